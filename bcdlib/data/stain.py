"""Stain normalisation: bring the colours of H&E images to those of a target, fitted on training images.

Wraps torchstain's NumPy normalizers. Macenko et al., "A method for normalizing histology slides for
quantitative analysis", ISBI 2009; Reinhard et al., "Color transfer between images", IEEE CG&A 21(5), 2001.
"""

import contextlib
from dataclasses import dataclass

import numpy as np
from torchstain.numpy.normalizers import NumpyMacenkoNormalizer, NumpyReinhardNormalizer

from bcdlib.errors import InputError, check_known

KINDS = ("macenko", "reinhard")
# Ruifrok & Johnston 2001: optical density of haematoxylin, eosin and DAB (rows) in red, green and blue
RUIFROK = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
RUIFROK_HE = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])  # as they are often printed, to two decimals
# what fit() of each normalizer finds in an image, and normalize() brings others to
_FITTED = {"macenko": ("HERef", "maxCRef"), "reinhard": ("target_means", "target_stds")}
_NORMALIZERS = {"macenko": NumpyMacenkoNormalizer, "reinhard": NumpyReinhardNormalizer}
# what the methods raise on images that they were not made for
_FAILURES_IGNORED = contextlib.suppress(np.linalg.LinAlgError, FloatingPointError, ValueError, IndexError)
_TO_RGB = RUIFROK / np.linalg.norm(RUIFROK, axis=1, keepdims=True)
_FROM_RGB = np.linalg.inv(_TO_RGB)


@dataclass(frozen=True)
class StainTarget:
    """What images are brought to; plain numbers, so that it can be stored as JSON.

    Attributes
    ----------
    kind : "macenko" or "reinhard"
    values : nested lists of float
        Macenko: stain matrix (3, 2), columns haematoxylin and eosin, and their 99th percentiles of
        concentration (2,). Reinhard: means (3,) and standard deviations (3,) in CIELAB.
    """

    kind: str
    values: tuple[list, list]


def fit_stain(kind: str, X) -> StainTarget:
    """Fit a target: the median, value by value, of what single images have. Give it training images only.

    Parameters
    ----------
    kind : "macenko" or "reinhard"
    X : uint8 array (N, height, width, 3), RGB

    Raises
    ------
    InputError
        If the kind is unknown or no image shows stained tissue.

    Examples
    --------
    >>> images = np.random.default_rng(0).integers(0, 200, (2, 8, 8, 3), dtype="uint8")
    >>> fit_stain("reinhard", images).kind
    'reinhard'
    """
    check_known("stain normalisation", kind, KINDS)
    found = []
    for image in filter(_is_stained, X):
        with _FAILURES_IGNORED, np.errstate(divide="raise", invalid="raise", over="raise"):
            normalizer = _NORMALIZERS[kind]()
            normalizer.fit(np.asarray(image))
            found.append([getattr(normalizer, name) for name in _FITTED[kind]])
    if not found:
        raise InputError(
            f"stain normalisation {kind!r}: none of the {len(X)} training images shows stained tissue"
        )
    first, second = (np.median(values, axis=0) for values in zip(*found))
    if kind == "macenko":
        first = first / np.linalg.norm(first, axis=0)  # the median of unit vectors is a little short
    return StainTarget(kind, (first.tolist(), second.tolist()))


def normalise_stain(X, target: StainTarget) -> np.ndarray:
    """Normalise images. One without stained tissue, or that the method fails on, is left as it is.

    Parameters
    ----------
    X : uint8 array (N, height, width, 3), RGB

    Returns
    -------
    uint8 array of the same shape
    """
    normalizer = _NORMALIZERS[target.kind]()
    for name, values in zip(_FITTED[target.kind], target.values, strict=True):
        setattr(normalizer, name, np.array(values))
    result = np.array(X)
    for image in filter(_is_stained, result):
        with _FAILURES_IGNORED, np.errstate(divide="raise", invalid="raise", over="raise"):
            image[:] = (
                normalizer.normalize(image, stains=False)[0]
                if target.kind == "macenko"
                else normalizer.normalize(image)
            )
    return result


def jitter_stain(X, seed, strength: float = 0.3, *, shift: float = 0.03) -> np.ndarray:
    """Augment the stain: each image's haematoxylin, eosin and rest times 1 +- strength, plus or minus shift.

    Tellez et al., "Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference to train
    distilled stain-invariant convolutional networks", IEEE TMI 37(9), 2018; stain vectors of Ruifrok &
    Johnston 2001.

    Parameters
    ----------
    X : uint8 array (N, height, width, 3), RGB
    seed : int or list of int
        An image's draw depends on it and on the image's place in X.
    strength : float, 0..1
    shift : float
        In units of optical density (decimal logarithm).

    Returns
    -------
    uint8 array of the same shape

    Examples
    --------
    >>> jitter_stain(np.full((2, 4, 6, 3), 180, "uint8"), seed=0).shape
    (2, 4, 6, 3)
    """
    result = np.empty_like(X)
    for row, image in enumerate(X):
        random = np.random.default_rng([*np.atleast_1d(seed), row])
        amounts = -np.log10((np.asarray(image, dtype="float32") + 1) / 256) @ _FROM_RGB
        amounts = amounts * random.uniform(1 - strength, 1 + strength, 3) + random.uniform(-shift, shift, 3)
        result[row] = (256 * 10 ** -(amounts @ _TO_RGB) - 1).round().clip(0, 255)
    return result


def _is_stained(image) -> bool:
    """Whether 5 % of the pixels are as dark as Macenko's threshold asks, and not all are one colour."""
    dark = (np.asarray(image) < 240 * np.exp(-0.15)).all(axis=-1)
    return dark.mean() >= 0.05 and np.std(image, axis=(0, 1)).max() >= 1
