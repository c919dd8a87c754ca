"""Deep features with traditional classifiers, one a magnification (Gupta & Chawla 2020)."""

import warnings

import keras
import numpy as np
from sklearn import linear_model, svm
from sklearn.model_selection import StratifiedKFold

from bcdlib.evaluation.thresholds import fit_platt
from bcdlib.methods import KerasMethod, _linear, _training
from bcdlib.methods._recipe import Recipe
from bcdlib.methods.parts import backbones, heads

ALL = "all"  # the head of all magnifications, where there is one only


class LinearSVM:
    """Support vector machines, scikit-learn's linear ``SVC``: of several classes one against the rest."""

    def __init__(self, C: float):
        self.C = C

    def fit(self, X, y, sample_weight=None):
        """Fit, and set ``coef_`` (outputs, features) and ``intercept_`` as a linear model's."""
        classes, products = np.unique(y), X @ X.T  # once, whatever the number of classes
        fitted = [svm.SVC(C=self.C, kernel="precomputed").fit(products, y == name) for name in classes]
        fitted = fitted[1:] if len(classes) == 2 else fitted
        self.coef_ = np.stack([(one.dual_coef_ @ X[one.support_])[0] for one in fitted])
        self.intercept_ = np.concatenate([one.intercept_ for one in fitted])
        return self


CLASSIFIERS = {
    "logistic": lambda C: linear_model.LogisticRegression(C=C),
    "svm": LinearSVM,
}
GRID = {"logistic": (0.001, 0.01, 0.1, 1, 10), "svm": (0.001, 0.01, 0.1, 1, 10, 100)}


class HybridCNN(KerasMethod):
    """Frozen VGG16, VGG19, Xception or ResNet-50, and an SVM or logistic regression per magnification.

    Publication: Gupta & Chawla, "Analysis of Histopathological Images for Prediction of Breast Cancer Using
    Traditional Classifiers with Pre-Trained CNN", Procedia Computer Science 167, 2020. Printed: 93.27 %
    (Table II), which is very likely the accuracy of recognising the magnification (``task="magnification"``),
    its first phase, not of telling benign from malignant, its second, with a model of its own for each
    magnification.

    Seen in karangupta26/Breast-Cancer-Diagnostics-using-Classification-Algorithm: the two phases; test
    accuracy of the magnification 93.23 % (ResNet-50 with logistic regression) and 92.5 % (with SVM), of
    benign or malignant at 40X, 100X, 200X and 400X 83.1, 85.2, 84.0, 80.1 and 86.4, 86.0, 84.3, 82.9 %, the
    best of all bases 86.7 % (VGG16 with logistic regression at 100X); 93.27 itself is not there. Images of
    224x224; ResNet-50 flattened (100,352 features) of pixels in 0..1, VGG16 and VGG19 at ``fc1``, VGG19 of
    pixels as ImageNet's weights expect them (inferred: VGG16 and Xception too), Xception pooled; no
    standardisation. C by tenfold search on accuracy inside the 6320 training images, drawn by image: for
    logistic regression 0.001 to 10, for linear and RBF SVMs 0.001 to 100; 1580 test images. Their lists are
    the split ``gupta``.

    Here: the RBF kernel is left out (its support vectors would make up the saved network), Xception too sees
    224x224 (299 there, probably), and ``fc1`` needs Keras' own weights: with others VGG is pooled. The pair
    of base and classifier with the best accuracy in the same search is taken, for all magnifications
    together; the publication reports all pairs. The SVM gets probabilities by Platt scaling on scores from
    the same folds. An image of a magnification that training lacks gets the mean over the others' models.
    Neither the validation nor the test part is looked at. Profiles quick and demo search in three folds; demo
    keeps its small images.

    The bases always stay frozen. What was fitted becomes Keras layers: the saved network is the chosen pair;
    by itself it gives the mean over the magnifications' models.

    Parameters
    ----------
    bases : str
        Among which is chosen, with ``+`` between.
    folds : int
        Of the search for C.

    Attributes
    ----------
    chosen_ : (str, str)
        The base and the classifier.
    scores_ : dict
        The accuracy of each pair in the search.
    C_ : dict
        The chosen pair's C, by magnification.
    """

    key = "hybrid_cnn"
    title = "Deep features + SVM or logistic regression"
    tasks = (*KerasMethod.tasks, "magnification")
    always = "head"
    fits_with_keras = False
    authors = Recipe(size=(224, 224), standardised=False, shorter={"folds": 3})
    magnifications_: tuple = (ALL,)
    chosen_: tuple[str, str] | None = None

    def __init__(self, *, bases="vgg16+vgg19+xception+resnet50", folds=10, **settings):
        super().__init__(**settings)
        self.bases = bases
        self.folds = folds

    @property
    def architectures(self) -> tuple[str, ...]:
        """The bases, by name."""
        return tuple(self.bases.split("+"))

    def base_options(self, name):
        """Take the layer, and scale pixels, as the authors did for each base."""
        if self.recipe == "paper":
            return super().base_options(name)
        own = {"resnet50": {"pooling": "flatten", "pixels": "unit"}, "xception": {}}
        return super().base_options(name) | own.get(name, {"pooling": "fc1"})

    def build_features(self, x):
        """Append the chosen base."""
        name = self.chosen_[0] if self.chosen_ else self.architectures[-1]
        return backbones.append_features(
            x, name, self.bases_[name], seed=self.seed, **self.base_options(name)
        )

    def build_outputs(self, x):
        """Append a linear classifier a magnification; classes of an SVM have a sigmoid each, of sum 1."""
        each = self.units == 1 or (self.chosen_ and self.chosen_[1] == "svm")
        outputs = []
        for name in self.magnifications_:
            y = keras.layers.Dense(
                self.units, activation="sigmoid" if each else "softmax", name=f"linear_{name}"
            )(x)
            if self.units > 1:
                y = y / keras.ops.sum(y, axis=-1, keepdims=True)
            outputs.append(keras.layers.Identity(name=f"{heads.HEAD}{name}")(y))
        return heads.average_heads(outputs)

    @classmethod
    def probabilities(cls, network, X, images=None):
        """Predict as `KerasMethod.probabilities`; with ``images`` by each one's magnification."""
        return super().probabilities(network, X) if images is None else heads.predict_own(network, X, images)

    def _prepare(self):
        super()._prepare()
        if self.chosen_:
            name = self.chosen_[0]
            label = backbones.weights_label({name: self.bases_[name]}, frozen=True)
            self.weights_ = backbones.Weights(self.bases_[name].path, f"{name}: {label}")

    def fit(self, X, y, validation_data=None, *, folder=None, images=None):
        """Train as `KerasMethod.fit`, one model a magnification (without ``images`` one for all)."""
        one = images is None or self.task == "magnification"
        self.seen_ = np.full(len(X), ALL) if one else images["magnification"].astype(str).to_numpy()
        self.magnifications_ = tuple(np.unique(self.seen_).tolist())
        return super().fit(X, y, validation_data, folder=folder, images=images)

    def _train(self, X, y, held_out, folder):
        seen = np.repeat(self.seen_, X.shape[1] if X.ndim == 3 else 1)
        X, y = _training.flatten_copies(X, y.astype(int))
        self.scores_, found = {}, {}
        for base, columns in self._columns().items():
            Z = np.asarray(self._scaled(X[:, columns]))
            searched = {name: self._search(Z[seen == name], y[seen == name]) for name in self.magnifications_}
            for kind in CLASSIFIERS:
                parts = {name: search[kind] for name, search in searched.items()}
                self.scores_[base, kind] = sum(part["correct"] for part in parts.values()) / len(y)
                found[base, kind] = parts
        self.chosen_ = max(self.scores_, key=self.scores_.get)
        self._prepare()
        chosen = found[self.chosen_]
        self.C_ = {name: part["C"] for name, part in chosen.items()}
        X = X[:, self._columns()[self.chosen_[0]]]
        self.head_ = self._new_head(X)
        Z = np.asarray(self.head_.get_layer(_training.STANDARDISE)(X))
        for name, part in chosen.items():
            rows = seen == name
            kernel, bias = self._fitted(self.chosen_[1], part["C"], Z[rows], y[rows], unseen=part["scores"])
            self.head_.get_layer(f"linear_{name}").set_weights([kernel, bias])

    def _scaled(self, X):
        """Standardise features, where the recipe says so."""
        if not self.plan.standardised:
            return X
        return _training.standardise(keras.layers.Normalization(), X)(X)

    def _columns(self) -> dict[str, slice]:
        """Find the columns of each base's features."""
        ends = np.cumsum(self.widths_)
        return dict(zip(self.architectures, map(slice, ends - self.widths_, ends), strict=True))

    def _search(self, Z, y) -> dict[str, dict]:
        """Find each classifier's best C, its scores (N, outputs) of unseen images, and how many are right."""
        Z, _ = rotated(Z)
        folds = np.unique(y, return_counts=True)[1].min().clip(2, self.folds)
        splits = []
        if len(np.unique(y)) > 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a class may have one image only
                splits = list(
                    StratifiedKFold(folds).split(Z, y)
                )  # as GridSearchCV: in the order of the images
        best = {}
        for kind, values in GRID.items():
            for C in values:
                scores = np.zeros((len(y), self.units))
                for train, test in splits:
                    kernel, bias = self._linear(kind, C, Z[train], y[train])
                    scores[test] = Z[test] @ kernel + bias
                predicted = scores[:, 0] > 0 if self.units == 1 else scores.argmax(axis=1)
                correct = int((predicted == y).sum())
                if kind not in best or correct > best[kind]["correct"]:
                    best[kind] = {"C": C, "scores": scores, "correct": correct}
        return best

    def _linear(self, kind: str, C: float, Z, y) -> tuple[np.ndarray, np.ndarray]:
        return _linear.linear_layer(CLASSIFIERS[kind](C), Z, y, outputs=self.units)

    def _fitted(self, kind: str, C: float, X, y, *, unseen) -> tuple[np.ndarray, np.ndarray]:
        """Fit on all images; give what a Dense layer on the features wants."""
        Z, back = rotated(X)
        kernel, bias = self._linear(kind, C, Z, y)
        kernel = back(kernel)
        if kind == "svm":
            slope, offset = platt(unseen, y)
            kernel, bias = kernel * slope, bias * slope + offset
        return kernel, bias

    def predict_proba(self, X, images=None):
        """Predict as `KerasMethod.predict_proba`; features are those of all bases."""
        X = _training.first_copies(np.asanyarray(X))
        return super().predict_proba(X if X.ndim == 4 else X[:, self._columns()[self.chosen_[0]]], images)


def rotated(X):
    """Rotate rows into as few columns as there are rows: all their products, and so linear models, stay.

    Parameters
    ----------
    X : float array (N, features)

    Returns
    -------
    Z : float64 array (N, at most N)
    back : callable
        From coefficients (columns of Z, outputs) to those of the features.

    Examples
    --------
    >>> X = np.array([[3.0, 0, 4, 0], [0, 1, 0, 1]])
    >>> Z, back = rotated(X)
    >>> bool(np.allclose(Z @ Z.T, X @ X.T)), bool(np.allclose(X @ back(np.eye(2)), Z))
    (True, True)
    """
    if len(X) >= X.shape[1]:
        return np.asarray(X, dtype="float64"), lambda kernel: kernel
    products = np.zeros((len(X), len(X)))
    for start in range(0, X.shape[1], 8192):  # never all features in float64 at once
        part = X[:, start : start + 8192].astype("float64")
        products += part @ part.T
    values, vectors = np.linalg.eigh(products)
    large = values > 1e-10 * values[-1]  # what is less is rounding
    root, vectors = np.sqrt(values[large]), vectors[:, large]
    return vectors * root, lambda kernel: X.T @ (vectors / root @ kernel)


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
