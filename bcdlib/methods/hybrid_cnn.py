"""Deep features with traditional classifiers, the best pair chosen (Gupta & Chawla 2020)."""

import keras
import numpy as np
from sklearn import linear_model, metrics, svm

from bcdlib.data import splits
from bcdlib.evaluation.thresholds import fit_platt
from bcdlib.methods import KerasMethod, _linear, _training
from bcdlib.methods.parts import backbones

# features outnumber images by far: hence so strong a regularisation
CLASSIFIERS = {
    "logistic": lambda seed: linear_model.LogisticRegression(C=0.01, max_iter=1000),
    "svm": lambda seed: svm.LinearSVC(C=0.001, dual=True, max_iter=2000, random_state=seed),
}


class HybridCNN(KerasMethod):
    """Frozen features of VGG16, VGG19, Xception or ResNet-50 with a linear SVM or logistic regression.

    Publication: Gupta & Chawla, "Analysis of Histopathological Images for Prediction of Breast Cancer Using
    Traditional Classifiers with Pre-Trained CNN", Procedia Computer Science 167, 2020. Printed: 93.27 %
    (Table II, as printed; split not stated there). The publication was not at hand. Known of it: these four
    bases, pre-trained, and these two classifiers on their features. Chosen here: global average pooling,
    features standardised by the training images, C = 0.01 and 0.001; the pair with the best AUC (subtypes:
    balanced accuracy) in three-fold cross-validation inside the images it is fitted on, grouped by case where
    the cases are known; the SVM gets probabilities by Platt scaling on scores from the same folds. Neither
    the validation nor the test part is looked at.

    The bases always stay frozen. What was fitted becomes Keras layers: the saved network is the chosen pair.

    Attributes
    ----------
    chosen_ : (str, str)
        The base and the classifier.
    scores_ : dict
        The score of each pair.
    """

    key = "hybrid_cnn"
    title = "Deep features + SVM or logistic regression"
    architectures = ("vgg16", "vgg19", "xception", "resnet50")
    always = "head"
    fits_with_keras = False

    chosen_: tuple[str, str] | None = None

    def build_features(self, x):
        """Append the chosen base."""
        name = self.chosen_[0] if self.chosen_ else "resnet50"
        return backbones.append_features(x, name, self.bases_[name], pooling=self.pooling, seed=self.seed)

    def build_outputs(self, x):
        """Append the linear classifier; classes of an SVM have a sigmoid each, brought to the sum 1."""
        each = self.units == 1 or (self.chosen_ and self.chosen_[1] == "svm")
        x = keras.layers.Dense(self.units, activation="sigmoid" if each else "softmax", name="linear")(x)
        if self.units > 1:
            x = x / keras.ops.sum(x, axis=-1, keepdims=True)
        return keras.layers.Identity(name="probability")(x)

    def _prepare(self):
        super()._prepare()
        if self.chosen_:
            name = self.chosen_[0]
            label = backbones.weights_label({name: self.bases_[name]}, frozen=True)
            self.weights_ = backbones.Weights(self.bases_[name].path, f"{name}: {label}")

    def _train(self, X, y, held_out, folder):
        if X.ndim == 3 and self.cases_ is not None:
            self.cases_ = np.repeat(self.cases_, X.shape[1])
        X, y = _training.flatten_copies(X, y.astype(int))
        folds, self.scores_ = self._folds(y), {}
        for name, columns in self._columns().items():
            scale = _training.standardise(keras.layers.Normalization(), X[:, columns])
            Z = np.asarray(scale(X[:, columns]))
            for kind in CLASSIFIERS:
                self.scores_[name, kind] = self._score(self._unseen(kind, Z, y, folds), y)
        self.chosen_ = max(self.scores_, key=self.scores_.get)
        self._prepare()
        self.head_ = self._fitted_head(X[:, self._columns()[self.chosen_[0]]], y, folds)

    def _fitted_head(self, X, y, folds) -> keras.Model:
        """Fit the chosen classifier, as Keras layers."""
        head = self._new_head(X)
        Z = np.asarray(head.get_layer("standardise")(X))
        kernel, bias = self._linear(self.chosen_[1], Z, y)
        if self.chosen_[1] == "svm":
            slope, offset = platt(self._unseen("svm", Z, y, folds), y)
            kernel, bias = kernel * slope, bias * slope + offset
        head.get_layer("linear").set_weights([kernel, bias])
        return head

    def _columns(self) -> dict[str, slice]:
        """Find the columns of each base's features."""
        ends = np.cumsum(self.widths_)
        return dict(zip(self.architectures, map(slice, ends - self.widths_, ends), strict=True))

    def _folds(self, y) -> list:
        number = np.unique(y, return_counts=True)[1].min().clip(2, 3)
        cases = self.cases_
        if cases is None or max(len(np.unique(cases[y == kind])) for kind in np.unique(y)) < number:
            cases = np.arange(len(y))
        held_out = splits.group_folds(cases, y, y, folds=number, seed=self.seed)
        return [
            (np.flatnonzero(held_out != fold), np.flatnonzero(held_out == fold)) for fold in range(number)
        ]

    def _linear(self, kind: str, Z, y) -> tuple[np.ndarray, np.ndarray]:
        return _linear.linear_layer(CLASSIFIERS[kind](self.seed), Z, y, outputs=self.units)

    def _unseen(self, kind: str, Z, y, folds) -> np.ndarray:
        """Score images that the classifier is not fitted on, fold by fold."""
        scores = np.zeros((len(y), self.units))
        for train, test in folds:
            kernel, bias = self._linear(kind, Z[train], y[train])
            scores[test] = Z[test] @ kernel + bias
        return scores

    def _score(self, scores, y) -> float:
        if self.task == "subtype":
            return metrics.recall_score(y, scores.argmax(axis=1), labels=np.unique(y), average="macro")
        return metrics.roc_auc_score(y, scores[:, 0]) if len(np.unique(y)) == 2 else 0.0

    def predict_proba(self, X, images=None):
        """Predict as `KerasMethod.predict_proba`; features are those of all bases."""
        X = _training.first_copies(np.asanyarray(X))
        return super().predict_proba(X if X.ndim == 4 else X[:, self._columns()[self.chosen_[0]]], images)


def platt(scores, y) -> tuple[np.ndarray, np.ndarray]:
    """Fit slope and offset (outputs,) such that sigmoid(slope * score + offset) is a probability.

    Platt, "Probabilistic outputs for support vector machines", 1999, without its smoothing of labels. The
    order of the scores is never reversed: where these few images would ask for that, by chance, slope 1 and
    offset 0 leave them as they are.

    Parameters
    ----------
    scores : array (N, outputs)
        Of images that the classifier was not fitted on.
    y : int array (N,)
        With one output 1 is the class in question, else the number of the column.
    """
    outputs = scores.shape[1]
    slope, offset = np.ones(outputs), np.zeros(outputs)
    for column in range(outputs):
        target = (y == (1 if outputs == 1 else column)).astype(int)
        if 0 < target.sum() < len(target):
            fitted = fit_platt(scores[:, column], target, smooth=False)
            slope[column], offset[column] = fitted if fitted[0] > 0 else (1, 0)
    return slope, offset
