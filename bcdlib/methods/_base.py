"""What a method is."""

from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from bcdlib.data import breakhis

TASKS = {"binary": breakhis.CLASSES, "subtype": tuple(breakhis.SUBTYPES)}


class Method(ClassifierMixin, BaseEstimator, ABC):
    """A classifier of images, scikit-learn style.

    ``X`` is uint8 (N, height, width, 3), RGB 0..255; ``y`` is int (N,), benign 0, malignant 1
    (``task="binary"``), or 0..7 in the order of ``breakhis.SUBTYPES`` (``task="subtype"``).

    Class attributes
    ----------------
    key, title : str
        The registry's name, and one for people.
    tasks : tuple of str
        Which tasks it can learn.
    always : "all", "head" or None
        Whether it trains its whole network, or a head only, whatever ``trainable`` says.
    chooses : bool
        Whether `fit` chooses something on ``validation_data``; it is then never given the test part there.
    changes : dict
        Settings in place of the profile's, by what is trained: {"all": {...}, "head": {...}}.
    own_size : bool
        Whether it may look at images at a size of its own, whatever the profile's.
    """

    key: str
    title: str
    tasks: tuple[str, ...] = ("binary",)
    always: str | None = "all"
    chooses: bool = False
    changes: dict[str, dict] = {}
    own_size: bool = False

    @abstractmethod
    def fit(self, X, y, validation_data=None, *, folder=None, images=None):
        """Train.

        Parameters
        ----------
        X, y : arrays
            See the class.
        validation_data : (X, y) or (X, y, images), optional
            What the ``val_`` curves are drawn on.
        folder : path-like, optional
            Where checkpoints go.
        images : DataFrame, optional
            What is known of the images: ``breakhis.IMAGE_COLUMNS``, rows parallel with X. A method that does
            not want it leaves it out of its signature, here and in `predict_proba`.

        Returns
        -------
        self
        """

    @abstractmethod
    def predict_proba(self, X, images=None) -> np.ndarray:
        """Predict probabilities.

        Returns
        -------
        float64 array (N, 2) or (N, 8)
            Columns benign and malignant, or for ``task="subtype"`` the subtypes.
        """

    @abstractmethod
    def save(self, path) -> None:
        """Store the trained method in a file, atomically."""

    @cached_property
    def classes_(self) -> np.ndarray:
        """Labels of the columns of `predict_proba`, once it is fitted; a method may set others itself."""
        check_is_fitted(self)
        return np.arange(len(TASKS[getattr(self, "task", "binary")]))

    def predict(self, X) -> np.ndarray:
        """Predict classes: at threshold 0.5, or the most probable subtype; int64 (N,)."""
        probability = self.predict_proba(X)
        if probability.shape[1] == 2:
            return (probability[:, 1] >= 0.5).astype("int64")
        return probability.argmax(axis=1)

    def inputs(self, cache, train=None) -> np.ndarray:
        """Give what `fit` and `predict_proba` want for all images of a cache; by default its pixels.

        ``train`` are the rows of the training images, the only ones that anything may be fitted on.
        """
        return cache.pixels

    @classmethod
    def trains(cls, trainable: str) -> str:
        """Say what it trains if asked for this: "all" or "head"."""
        return cls.always or trainable

    @classmethod
    def _get_param_names(cls):
        # scikit-learn's list of parameters, with those that a method's own __init__ hands on as **settings
        return sorted(
            {
                name
                for kind in cls.__mro__
                if "__init__" in vars(kind)
                for name in BaseEstimator._get_param_names.__func__(kind)
            }
        )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False  # images, in four dimensions
        return tags


def probability_columns(probability) -> np.ndarray:
    """Bring a network's output (N, 1) or (N, classes) to what `Method.predict_proba` gives.

    Returns
    -------
    float64 array (N, classes)
        Rows sum to 1.

    Examples
    --------
    >>> probability_columns([[0.25]])
    array([[0.75, 0.25]])
    """
    probability = np.asarray(probability, dtype="float64")
    if probability.shape[1] == 1:
        return np.column_stack([1 - probability, probability])
    return probability / probability.sum(axis=1, keepdims=True)


def malignant_probability(probability) -> np.ndarray:
    """Take the probability of malignant from (N, 2) classes, or sum it over those of (N, 8) subtypes.

    Returns
    -------
    float64 array (N,)

    Examples
    --------
    >>> malignant_probability(np.array([[0.75, 0.25]]))
    array([0.25])
    """
    if probability.shape[1] == 2:
        return probability[:, 1]
    malignant = [name not in breakhis.BENIGN for name in breakhis.SUBTYPES]
    return probability[:, malignant].sum(axis=1).clip(0, 1)
