"""Features of frozen bases: computed once for each base and image, stored beside the pixel cache, shared."""

import hashlib
import json
import re
from pathlib import Path

import keras
import numpy as np

from bcdlib.data import stain, vectors
from bcdlib.errors import InputError, one_line
from bcdlib.methods.parts import augmentation, backbones, fitting
from bcdlib.runs.files import atomic_write, local_copy, lock_path

FEATURES_FORMAT = 1


def cached_features(
    cache,
    architecture: str,
    weights: backbones.Weights,
    *,
    target: stain.StainTarget | None = None,
    pooling: str = "average",
    pixels: str = "imagenet",
    seed: int = 0,
    verbose=0,
    **change,
) -> np.ndarray:
    """Compute the features of all images of a pixel cache, or find them.

    They are stored as ``<cache.folder>/features/<architecture>-<hash>.npy``; the hash covers all that they
    depend on, so that methods, splits, folds and later processes share them. Found ones are mapped into
    memory, not read.

    Parameters
    ----------
    cache : cache.PixelCache
    architecture and so on : as in `extract_features`

    Returns
    -------
    float32 array (N, channels)
        Read-only, rows as in ``cache.pixels``.
    """
    if pixels != "imagenet":
        change["pixels"] = pixels
    facts = [
        FEATURES_FORMAT,
        architecture,
        weights_identity(weights, seed),
        pooling,
        1,  # once the number of patches
        target and [target.kind, target.values],
        *([change] if change else []),
    ]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    name = re.sub(r"[^\w.-]+", "_", architecture)[-80:]  # an encoder's may be an address
    path = cache.folder / "features" / f"{name}-{digest}.npy"
    with lock_path(path):
        if not path.is_file():
            with atomic_write(path) as temporary:
                np.save(
                    temporary,
                    extract_features(
                        cache.pixels,
                        architecture,
                        weights,
                        target=target,
                        pooling=pooling,
                        seed=seed,
                        verbose=verbose,
                        **change,
                    ),
                    allow_pickle=False,
                )
    try:
        return np.load(local_copy(path), mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); delete it") from None


def extract_features(
    X,
    architecture: str,
    weights: backbones.Weights,
    *,
    target: stain.StainTarget | None = None,
    pooling: str = "average",
    pixels: str = "imagenet",
    jitter: list[int] | None = None,
    augment: list[int] | None = None,
    seed: int = 0,
    verbose=0,
) -> np.ndarray:
    """Compute the features that a frozen base gives of images; nothing is stored.

    Parameters
    ----------
    X : uint8 array (N, height, width, 3), RGB
    architecture : str
        A key of `backbones.ARCHITECTURES`, or the preset of an encoder.
    target : stain.StainTarget, optional
        Of stain normalisation in front of the base.
    pooling, pixels
        As in `backbones.append_features`.
    jitter, augment : list of int, optional
        Seed of a copy of the images with jittered stains (see `stain.jitter_stain`), or augmented (see
        `augmentation.default_augmentation`).
    seed : int
        Of random initial weights; pre-trained ones do not depend on it.

    Returns
    -------
    float32 array (N, channels)
    """
    X = X if jitter is None else stain.jitter_stain(X, jitter)
    X = X if target is None else stain.normalise_stain(X, target)
    images = keras.Input(X.shape[1:], dtype="uint8", name="image")
    x = keras.layers.Rescaling(1.0, name="as_float")(images)
    if augment is not None:
        x = augmentation.default_augmentation(
            int(np.random.SeedSequence(augment).generate_state(1)[0] % 2**31), always=True
        )(x)
    x = backbones.append_features(x, architecture, weights, seed=seed, pooling=pooling, pixels=pixels)
    return fitting.predict_batches(keras.Model(images, x), X, verbose)


def weights_identity(weights: backbones.Weights, seed: int) -> str:
    """Identify what a base starts from: weights in a file by their content, random ones by their seed."""
    if weights.path is None:
        return f"random {seed} {keras.backend.backend()}"  # backends draw different numbers from a seed
    if Path(weights.path).is_dir():
        return vectors.content_digest(weights.path)
    if not Path(weights.path).is_file():  # "imagenet", or the address of an encoder
        return weights.path
    with open(weights.path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
