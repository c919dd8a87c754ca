"""What a method is, and the part that all methods trained with Keras share."""

import inspect
from abc import ABC, abstractmethod

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from bcdlib.data import breakhis

TASKS = {"binary": breakhis.CLASSES, "subtype": tuple(breakhis.SUBTYPES)}


class Method(ClassifierMixin, BaseEstimator, ABC):
    """A classifier of images, scikit-learn style.

    ``X`` is uint8 (N, height, width, 3), RGB 0..255; ``y`` is int (N,), benign 0, malignant 1 (``task="binary"``), or
    0..7 in the order of ``breakhis.SUBTYPES`` (``task="subtype"``).

    Class attributes
    ----------------
    key, title : the registry's name, and one for people
    tasks : which tasks it can learn
    always : "all" or "head" if the method trains its whole network, or a head only, whatever ``trainable`` says
    chooses : True if `fit` chooses something on ``validation_data``; it is then never given the test part there
    changes : settings in place of the profile's, by what is trained: {"all": {...}, "head": {...}}
    own_size : True if it may look at pictures at a size of its own, whatever the profile's
    """

    key: str
    title: str
    tasks: tuple[str, ...] = ("binary",)
    always: str | None = "all"
    chooses: bool = False
    changes: dict[str, dict] = {}
    own_size: bool = False

    @abstractmethod
    def fit(self, X, y, validation_data=None, folder=None):
        """Train. ``validation_data`` is (X, y) to draw curves of; ``folder`` is where checkpoints go. Returns self.

        A method that wants to know more about the images takes ``images=None`` too: a DataFrame with
        ``breakhis.IMAGE_COLUMNS``, rows parallel with X. `predict_proba` likewise; ``validation_data`` is then
        (X, y, images).
        """

    @abstractmethod
    def predict_proba(self, X) -> np.ndarray:
        """Probabilities; float64 (N, 2), columns benign and malignant, or (N, 8) for ``task="subtype"``."""

    @abstractmethod
    def save(self, path) -> None:
        """Store the trained method in a file, atomically."""

    def predict(self, X) -> np.ndarray:
        """Class: at threshold 0.5, or the most probable subtype; int64 (N,)."""
        probability = self.predict_proba(X)
        if probability.shape[1] == 2:
            return (probability[:, 1] >= 0.5).astype("int64")
        return probability.argmax(axis=1)

    def inputs(self, cache, train=None) -> np.ndarray:
        """What `fit` and `predict_proba` want for all images of a `cache.PixelCache`; by default its pixels.

        ``train`` are the rows of the training images, the only ones that anything may be fitted on.
        """
        return cache.pixels

    @classmethod
    def trains(cls, trainable: str) -> str:
        """What it trains if asked for this: "all" or "head"."""
        return cls.always or trainable

    @classmethod
    def _get_param_names(cls):
        # scikit-learn's list of parameters, with those that a method's own __init__ hands on as **settings
        found = [p for kind in cls.__mro__ if "__init__" in vars(kind) for p in _keywords(kind)]
        return sorted(set(found))


def _keywords(kind) -> list[str]:
    parameters = inspect.signature(kind.__init__).parameters.values()
    return [
        p.name for p in parameters if p.name != "self" and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]


def probability_columns(probability) -> np.ndarray:
    """A network's output (N, 1) or (N, classes) as `Method.predict_proba` gives it; float64 rows that sum to 1."""
    probability = np.asarray(probability, dtype="float64")
    if probability.shape[1] == 1:
        return np.column_stack([1 - probability, probability])
    return probability / probability.sum(axis=1, keepdims=True)


def malignant_probability(probability) -> np.ndarray:
    """Probability of malignant from (N, 2) classes or (N, 8) subtypes, the sum over the malignant ones; float64 (N,)."""
    if probability.shape[1] == 2:
        return probability[:, 1]
    columns = [number for number, name in enumerate(breakhis.SUBTYPES) if name not in breakhis.BENIGN]
    return probability[:, columns].sum(axis=1).clip(0, 1)
