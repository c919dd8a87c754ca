"""What a method is."""

import inspect
from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from bcdlib.data import breakhis
from bcdlib.errors import InputError, one_line
from bcdlib.methods._recipe import PAPER, Recipe

TASKS = {
    "binary": breakhis.CLASSES,
    "subtype": tuple(breakhis.SUBTYPES),
    "magnification": tuple(f"{magnification}X" for magnification in breakhis.MAGNIFICATIONS),
}


class Method(ClassifierMixin, BaseEstimator, ABC):
    """A classifier of images, scikit-learn style.

    ``X`` is uint8 (N, height, width, 3), RGB 0..255; ``y`` is int (N,), benign 0, malignant 1
    (``task="binary"``), 0..7 in the order of ``breakhis.SUBTYPES`` (``task="subtype"``), or 0..3 in the order
    of ``breakhis.MAGNIFICATIONS`` (``task="magnification"``).

    Class attributes
    ----------------
    key, title : str
        The registry's name, and one for people; a file of one's own that has none is called as the file.
    tasks : tuple of str
        Which tasks it can learn.
    always : "all", "head" or None
        Whether it trains its whole network, or a head only, whatever ``trainable`` says.
    chooses : bool
        Whether `fit` chooses something on ``validation_data`` (early stopping, for example); it is then
        never given the test part there. A method that only draws curves on it says False.
    changes : dict
        Settings in place of the profile's, by what is trained: {"all": {...}, "head": {...}}.
    authors : Recipe
        How its authors trained it, as far as known; of ours, and where nothing is known, `PAPER`.
    own_size : bool
        Whether it may look at images at a size of its own, whatever the profile's.
    given : str
        Name of a parameter without which it cannot run: such a method is not among "all".
    decides_for : str
        What one probability is of: "image", or "slide" if all images of a slide get the same; tables say so.
    suffix : str
        Of the file that `save` writes; with another than ".keras" it is no network to draw maps of.
    """

    key: str
    title: str
    tasks: tuple[str, ...] = ("binary",)
    always: str | None = "all"
    chooses: bool = True
    changes: dict[str, dict] = {}
    authors: Recipe = PAPER
    own_size: bool = False
    given: str = ""
    decides_for: str = "image"
    suffix: str = ".keras"

    @abstractmethod
    def fit(self, X, y, validation_data=None, *, folder=None, images=None):
        """Train. A method leaves out of its signature what it does not want of all but X and y.

        Parameters
        ----------
        X, y : arrays
            See the class.
        validation_data : (X, y) or (X, y, images), optional
            What the ``val_`` curves are drawn on.
        folder : path-like, optional
            Where checkpoints go.
        images : DataFrame, optional
            What is known of the images: ``breakhis.IMAGE_COLUMNS``, rows parallel with X.

        Returns
        -------
        self
        """

    @abstractmethod
    def predict_proba(self, X, images=None) -> np.ndarray:
        """Predict probabilities. A method that does not want ``images`` leaves it out of its signature.

        Returns
        -------
        float64 array (N, 2), (N, 8) or (N, 4)
            Columns benign and malignant, or what `TASKS` says of another task.
        """

    def save(self, path) -> None:
        """Store the trained method in a file, atomically; a method without it is not stored."""
        raise NotImplementedError(f"{type(self).__name__} has no save")

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


def wanted(function, **offered) -> dict:
    """Select the keyword arguments that a function takes.

    Examples
    --------
    >>> wanted(lambda X, folder=None: X, folder="here", images=None)
    {'folder': 'here'}
    """
    known = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    return {name: value for name, value in offered.items() if takes_all or name in known}


def predict_checked(estimator: Method, X, images, *, classes: int) -> np.ndarray:
    """Call a method's `predict_proba`, and check what it gives.

    Parameters
    ----------
    estimator : Method
    X, images
        As `Method.predict_proba` takes them.
    classes : int

    Returns
    -------
    float64 array (N, classes)

    Raises
    ------
    InputError
        If it gives another shape, or rows that are no probabilities.
    """
    function = estimator.predict_proba
    probability = function(X, **wanted(function, images=images))
    code, n = getattr(inspect.unwrap(function), "__code__", None), len(X)  # a partial has none
    place = f"{code.co_filename}, line {code.co_firstlineno}" if code else type(estimator).__name__
    name = f"{place}: predict_proba"
    try:
        found = np.asarray(probability, dtype="float64")
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} gives no array of numbers ({one_line(error)})") from None
    if found.shape != (n, classes):
        raise InputError(
            f"{name} gives an array of shape {found.shape}; wanted is {(n, classes)}, a column a class"
        )
    bad = ~(np.isfinite(found) & (found >= 0) & (found <= 1)).all(axis=1) | (
        abs(found.sum(axis=1) - 1) > 0.01
    )
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            f"{name} gives {bad.sum()} rows of {n} that are no probabilities, the first (row {row}) "
            f"{found[row].tolist()}; wanted are numbers from 0 to 1 that sum to 1"
        )
    return found


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
        NaN where the columns are magnifications, which say nothing of it.

    Examples
    --------
    >>> malignant_probability(np.array([[0.75, 0.25]]))
    array([0.25])
    """
    if probability.shape[1] == 2:
        return probability[:, 1]
    if probability.shape[1] == len(TASKS["magnification"]):
        return np.full(len(probability), np.nan)
    malignant = [name not in breakhis.BENIGN for name in breakhis.SUBTYPES]
    return probability[:, malignant].sum(axis=1).clip(0, 1)
