"""Deep features with traditional classifiers, the best pair chosen (Gupta & Chawla 2020)."""

import warnings

import keras
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.svm import LinearSVC

from bcdlib.methods._base import TASKS
from bcdlib.methods._keras import KerasMethod, first_copies, flatten_copies, standardise
from bcdlib.methods._linear import linear_layer
from bcdlib.methods.parts import backbones

# Features outnumber images by far: hence so strong a regularisation.
CLASSIFIERS = {
    "logistic": lambda seed: LogisticRegression(C=0.01, max_iter=1000),
    "svm": lambda seed: LinearSVC(C=0.001, dual=True, max_iter=2000, random_state=seed),
}


class HybridCNN(KerasMethod):
    """Frozen features of VGG16, VGG19, Xception or ResNet-50 with a linear SVM or logistic regression.

    Publication: Gupta & Chawla, "Analysis of Histopathological Images for Prediction of Breast Cancer Using Traditional
    Classifiers with Pre-Trained CNN", Procedia Computer Science 167, 2020. Printed: 93.27 % (Table II, as printed; split
    not stated there). The publication was not at hand. Known of it: these four bases, pre-trained, and these two
    classifiers on their features. Chosen here: global average pooling, features standardised by the training images,
    C = 0.01 and 0.001; the pair with the best AUC (subtypes: balanced accuracy) on the validation part, or, where the
    protocol has none, in three-fold cross-validation inside the training part, grouped by case where the cases are known.
    The test part is never looked at. The SVM gets probabilities by Platt scaling on the validation part's scores, or on
    cross-validated ones.

    The bases always stay frozen. What was fitted becomes Keras layers: the saved network is the chosen pair.

    Attributes
    ----------
    chosen_ : (base, classifier)
    scores_ : dict, the score of each pair
    """

    key = "hybrid_cnn"
    title = "Deep features + SVM or logistic regression"
    architectures = ("vgg16", "vgg19", "xception", "resnet50")
    always = "head"
    chooses = True

    def build_features(self, x):
        name = self._chosen()[0]
        return backbones.append_features(x, name, self.bases_[name], seed=self.seed, pooling=self.pooling)

    def build_outputs(self, x):
        outputs = 1 if self.task == "binary" else len(TASKS[self.task])
        if outputs == 1 or self._chosen()[1] == "svm":
            x = keras.layers.Dense(outputs, activation="sigmoid", name="linear")(x)
        else:
            x = keras.layers.Dense(outputs, activation="softmax", name="linear")(x)
        if outputs > 1:
            x = x / keras.ops.sum(x, axis=-1, keepdims=True)
        return keras.layers.Identity(name="probability")(x)

    def _chosen(self):
        return getattr(self, "chosen_", ("resnet50", "logistic"))

    def _prepare(self):
        super()._prepare()
        if hasattr(self, "chosen_"):
            weights = self.bases_[self.chosen_[0]]
            self.weights_ = backbones.Weights(weights.path, f"{self.chosen_[0]}: {weights.label}")

    def fit(self, X, y, validation_data=None, folder=None, images=None):
        """As `KerasMethod.fit`; the pair is chosen on ``validation_data``: never give it the test part."""
        self.__dict__.pop("chosen_", None)
        self.groups_ = None if images is None else images["case"].to_numpy()
        return super().fit(X, y, validation_data, folder, images)

    def _train(self, X, y, held_out, folder):
        if X.ndim == 3 and self.groups_ is not None:
            self.groups_ = np.repeat(self.groups_, X.shape[1])
        X, y = flatten_copies(X, y.astype(int))
        folds = self._folds(y)
        self.scores_ = {}
        for name, columns in self._columns().items():
            scale = standardise(keras.layers.Normalization(), X[:, columns])
            Z = np.asarray(scale(X[:, columns]))
            for kind in CLASSIFIERS:
                if held_out is None:
                    score = self._score(y, self._out_of_fold(kind, Z, y, folds))
                else:
                    kernel, bias = self._linear(kind, Z, y)
                    score = self._score(
                        held_out[1], np.asarray(scale(held_out[0][:, columns])) @ kernel + bias
                    )
                self.scores_[name, kind] = float(score)
        self.chosen_ = max(self.scores_, key=self.scores_.get)
        self._prepare()
        columns = self._columns()[self.chosen_[0]]
        held_out = None if held_out is None else (held_out[0][:, columns], held_out[1])
        self.head_, self.joined_ = self._fitted_head(X[:, columns], y, folds, held_out), False
        return self

    def _fitted_head(self, X, y, folds, held_out=None) -> keras.Model:
        """The chosen classifier as Keras layers."""
        inputs = keras.Input(X.shape[1:], name="features")
        head = self._connect(inputs, inputs)
        scale = standardise(head.get_layer("standardise"), X)
        Z, kind = np.asarray(scale(X)), self.chosen_[1]
        kernel, bias = self._linear(kind, Z, y)
        if kind == "svm":
            if held_out is None:
                slope, offset = platt(self._out_of_fold(kind, Z, y, folds), y)
            else:
                slope, offset = platt(np.asarray(scale(held_out[0])) @ kernel + bias, held_out[1].astype(int))
            kernel, bias = kernel * slope, bias * slope + offset
        head.get_layer("linear").set_weights([kernel, bias])
        return head

    def _columns(self) -> dict[str, slice]:
        ends = np.cumsum(self.widths_)
        return {
            n: slice(end - width, end)
            for n, width, end in zip(self.architectures, self.widths_, ends, strict=True)
        }

    def _folds(self, y) -> list:
        counts = np.bincount(y)
        number = max(2, min(3, counts[counts > 0].min()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a rare subtype may have fewer images than folds
            if self.groups_ is None:
                return list(StratifiedKFold(number, shuffle=True, random_state=self.seed).split(y, y))
            splitter = StratifiedGroupKFold(number, shuffle=True, random_state=self.seed)
            return list(splitter.split(y, y, self.groups_))

    def _linear(self, kind: str, Z, y) -> tuple[np.ndarray, np.ndarray]:
        """Kernel (features, outputs) and bias (outputs,) of a classifier; one output for two classes."""
        return linear_layer(
            CLASSIFIERS[kind](self.seed), Z, y, outputs=1 if self.task == "binary" else len(TASKS[self.task])
        )

    def _out_of_fold(self, kind: str, Z, y, folds) -> np.ndarray:
        """Scores (N, outputs) of each image by a classifier that was not fitted on it."""
        outputs = 1 if self.task == "binary" else len(TASKS[self.task])
        scores = np.zeros((len(y), outputs))
        for train, test in folds:
            kernel, bias = self._linear(kind, Z[train], y[train])
            scores[test] = Z[test] @ kernel + bias
        return scores

    def _score(self, y, scores) -> float:
        if self.task == "subtype":
            return recall_score(y, scores.argmax(axis=1), labels=np.unique(y), average="macro")
        return roc_auc_score(y, scores[:, 0]) if len(np.unique(y)) == 2 else 0.0

    def predict_proba(self, X, images=None):
        """As `KerasMethod.predict_proba`; features are those of all bases."""
        X = first_copies(np.asanyarray(X))
        return super().predict_proba(X if X.ndim == 4 else X[:, self._columns()[self.chosen_[0]]], images)


def platt(scores, y) -> tuple[np.ndarray, np.ndarray]:
    """Platt scaling: slope and offset (outputs,) such that sigmoid(slope * score + offset) is a probability.

    Platt, "Probabilistic outputs for support vector machines", 1999, without its smoothing of labels. The order of the
    scores is never turned round: where these images would ask for that, slope 1 and offset 0 leave them as they are.

    Parameters
    ----------
    scores : array (N, outputs), of images that the classifier was not fitted on
    y : int array (N,); with one output 1 is the class in question, else the number of the column
    """
    slope, offset = np.ones(scores.shape[1]), np.zeros(scores.shape[1])
    for column in range(scores.shape[1]):
        target = y == (1 if scores.shape[1] == 1 else column)
        if target.any() and not target.all():
            fitted = LogisticRegression(C=1e6).fit(scores[:, [column]], target)
            if (
                fitted.coef_[0, 0] > 0
            ):  # else it would turn the classifier's order round: from few cases, by chance
                slope[column], offset[column] = fitted.coef_[0, 0], fitted.intercept_[0]
    return slope, offset
