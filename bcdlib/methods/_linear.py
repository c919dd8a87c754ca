"""A linear classifier of scikit-learn as the weights of a Keras layer, and methods with such a head."""

import warnings

import keras
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from bcdlib.methods import _training
from bcdlib.methods._keras import KerasMethod

NEVER = -30.0  # score of a class that training lacks
LIMIT = 5.0  # standard deviations: a channel that rarely fires in training may lie hundreds away elsewhere


def linear_layer(classifier, Z, y, *, outputs: int, sample_weight=None) -> tuple[np.ndarray, np.ndarray]:
    """Fit it, and give what a Dense layer wants.

    Parameters
    ----------
    classifier : an unfitted linear classifier with ``coef_`` and ``intercept_``
    Z : float array (N, features)
    y : int array (N,): 0 or 1 with one output, else 0..outputs-1; classes may be missing
    sample_weight : float array (N,), optional

    Returns
    -------
    kernel (features, outputs) and bias (outputs,); float64
    """
    present = np.unique(y)
    kernel, bias = np.zeros((Z.shape[1], outputs)), np.full(outputs, NEVER)
    if len(present) < 2:
        bias[present if outputs > 1 else 0] = -NEVER if outputs > 1 or present[0] == 1 else NEVER
        return kernel, bias
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # good enough, and the same each time
        fitted = classifier.fit(Z, y, sample_weight=sample_weight)
    coef, intercept = fitted.coef_.T, fitted.intercept_
    if len(present) == 2 and outputs > 1:  # scikit-learn gives one column for two classes
        coef, intercept = np.hstack([-coef, coef]), np.concatenate([-intercept, intercept])
    columns = [0] if outputs == 1 else present
    kernel[:, columns], bias[columns] = coef, intercept
    return kernel, bias


class LinearHead(KerasMethod):
    """Frozen features of any kind, and a regularised logistic head, fitted at once.

    Nothing is chosen on ``validation_data``, and there are no epochs to draw.

    Parameters
    ----------
    C : float
        Inverse strength of the head's L2 penalty, as in scikit-learn's LogisticRegression; features are
        standardised, and cut off at 5 standard deviations.
    balance : "case", "class" or "none"
        "case": in training and in standardising both classes weigh the same, and within a class every case,
        however many images it has; `fit` then needs ``images``, without which every image counts as a case
        of its own.
    """

    always = "head"
    fits_with_keras = False
    positive = ("C",)
    choices = KerasMethod.choices | {"balance": ("case", "class", "none")}

    def __init__(self, *, C=0.003, balance="case", **settings):
        super().__init__(**settings)
        self.C = C
        self.balance = balance

    def build_head(self, x):
        """Cut the standardised features off at `LIMIT` either way; they are then -1..1."""
        x = keras.layers.Rescaling(1 / LIMIT, name="scale", dtype="float32")(x)
        return keras.layers.Activation("hard_tanh", name="cut", dtype="float32")(x)

    def _train(self, X, y, held_out, folder):
        rows, labels = _training.flatten_copies(X, y.astype(int))
        copies = len(rows) // len(X)
        weights = np.repeat(self._weights(y.astype(int)) / copies, copies)
        self.head_ = self._new_head(rows, weights)
        standard = np.asarray(self.head_.get_layer(_training.STANDARDISE)(rows))
        kernel, bias = linear_layer(
            LogisticRegression(C=self.C, max_iter=2000),
            standard.clip(-LIMIT, LIMIT),
            labels,
            outputs=self.units,
            sample_weight=weights,
        )
        self.head_.get_layer("probability").set_weights([LIMIT * kernel, bias])

    def _weights(self, y) -> np.ndarray:
        """How much each training image counts; float (N,), mean 1."""
        weights = np.ones(len(y))
        if self.balance == "case" and self.cases_ is not None:
            _, place, counts = np.unique(self.cases_, return_inverse=True, return_counts=True)
            weights /= counts[place]
        if self.balance != "none":
            for kind in np.unique(y):
                weights[y == kind] /= weights[y == kind].sum()
        return weights * len(y) / weights.sum()
