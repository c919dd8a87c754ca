"""Stain normalisation: bring the colours of H&E pictures to those of a target that is fitted on training images only.

Wraps torchstain's NumPy normalizers. Macenko et al., "A method for normalizing histology slides for quantitative
analysis", ISBI 2009; Reinhard et al., "Color transfer between images", IEEE CG&A 21(5), 2001.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torchstain.numpy.normalizers.macenko import NumpyMacenkoNormalizer
from torchstain.numpy.normalizers.reinhard import NumpyReinhardNormalizer

from bcdlib.errors import InputError

KINDS = ("macenko", "reinhard")
# what fit() of each normalizer finds in a picture, and normalize() brings others to
_FITTED = {"macenko": ("HERef", "maxCRef"), "reinhard": ("target_means", "target_stds")}
_NORMALIZERS = {"macenko": NumpyMacenkoNormalizer, "reinhard": NumpyReinhardNormalizer}

# optical density of haematoxylin, eosin and DAB in red, green and blue (Ruifrok & Johnston 2001)
_TO_RGB = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
_TO_RGB /= np.linalg.norm(_TO_RGB, axis=1, keepdims=True)
_FROM_RGB = np.linalg.inv(_TO_RGB)


@dataclass(frozen=True)
class StainTarget:
    """What pictures are brought to; plain numbers, so that it can be stored as JSON.

    Attributes
    ----------
    kind : "macenko" or "reinhard"
    values : nested lists of float
        Macenko: stain matrix (3, 2), columns haematoxylin and eosin, and their 99th percentiles of concentration (2,).
        Reinhard: means (3,) and standard deviations (3,) in CIELAB.
    """

    kind: str
    values: tuple[list, list]


def fit_stain(kind: str, X) -> StainTarget:
    """Fit a target: the median, value by value, of what single pictures have. Give it training images only.

    Parameters
    ----------
    kind : "macenko" or "reinhard"
    X : uint8 array (N, height, width, 3), RGB

    Raises
    ------
    InputError
        If the kind is unknown or no picture shows stained tissue.
    """
    if kind not in KINDS:
        raise InputError(f"unknown stain normalisation {kind!r}; known are {', '.join(KINDS)} and none")
    found = list(_fits(kind, X))
    if not found:
        raise InputError(
            f"stain normalisation {kind!r}: none of the {len(X)} training images shows stained tissue"
        )
    first, second = (np.median([pair[part] for pair in found], axis=0) for part in (0, 1))
    if kind == "macenko":
        first = first / np.linalg.norm(first, axis=0)  # the median of unit vectors is a little short
    return StainTarget(kind, (first.tolist(), second.tolist()))


def normalise_stain(X, target: StainTarget) -> np.ndarray:
    """Normalise pictures. A picture without stained tissue, or that the method fails on, is left as it is.

    Parameters
    ----------
    X : uint8 array (N, height, width, 3), RGB

    Returns
    -------
    uint8 array of the same shape.
    """
    normalizer = _NORMALIZERS[target.kind]()
    for name, values in zip(_FITTED[target.kind], target.values, strict=True):
        setattr(normalizer, name, np.array(values))
    result = np.array(X)
    for row, picture in enumerate(result):
        if _stained(picture):
            result[row] = _attempt(lambda p=picture: _normalized(normalizer, p), otherwise=picture)
    return result


def jitter_stain(X, seed, strength: float = 0.3, *, shift: float = 0.03) -> np.ndarray:
    """Stain augmentation: each picture's haematoxylin, eosin and rest times 1 +- strength, plus or minus shift.

    Tellez et al., "Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference to train distilled
    stain-invariant convolutional networks", IEEE TMI 37(9), 2018; stain vectors of Ruifrok & Johnston 2001.

    Parameters
    ----------
    X : uint8 array (N, height, width, 3), RGB
    seed : int or list of int; a picture's draw depends on it and on the picture's place in X
    strength : 0..1
    shift : in units of optical density (decimal logarithm)

    Returns
    -------
    uint8 array of the same shape.
    """
    result = np.empty_like(X)
    for row, picture in enumerate(X):
        random = np.random.default_rng([*np.atleast_1d(seed), row])
        amounts = -np.log10((np.asarray(picture, dtype="float32") + 1) / 256) @ _FROM_RGB
        amounts = amounts * random.uniform(1 - strength, 1 + strength, 3) + random.uniform(-shift, shift, 3)
        result[row] = (256 * 10 ** -(amounts @ _TO_RGB) - 1).round().clip(0, 255)
    return result


def _fits(kind: str, X) -> Iterator[tuple]:
    for picture in X:
        normalizer = _NORMALIZERS[kind]()
        if _stained(picture) and _attempt(
            lambda p=picture, n=normalizer: (n.fit(np.asarray(p)), True)[1], otherwise=False
        ):
            yield tuple(getattr(normalizer, name) for name in _FITTED[kind])


def _stained(picture) -> bool:
    """At least 5 % of the pixels are as dark in every channel as Macenko's own threshold asks, and they are not all one."""
    dark = (np.asarray(picture) < 240 * np.exp(-0.15)).all(axis=-1)
    return dark.mean() >= 0.05 and np.std(picture, axis=(0, 1)).max() >= 1


def _normalized(normalizer, picture) -> np.ndarray:
    if isinstance(normalizer, NumpyMacenkoNormalizer):
        return normalizer.normalize(picture, stains=False)[0]
    return normalizer.normalize(picture)


def _attempt(work, otherwise):
    try:
        with np.errstate(divide="raise", invalid="raise", over="raise"):
            return work()
    except (np.linalg.LinAlgError, FloatingPointError, ValueError, IndexError):
        return otherwise
