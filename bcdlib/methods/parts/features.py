"""Features of frozen bases: computed once a base and image, stored beside the pixel cache, shared by all that ask."""

import hashlib
import json

import keras
import numpy as np

from bcdlib.data import stain
from bcdlib.methods.parts import backbones
from bcdlib.methods.parts.augmentation import FlipAndZoom
from bcdlib.methods.parts.fitting import predict_batches
from bcdlib.runs.files import atomic_write, local_copy, lock_path

FEATURES_FORMAT = 1


def cached_features(
    cache,
    architecture: str,
    weights: backbones.Weights,
    *,
    seed: int = 0,
    pooling: str = "average",
    patches: int = 1,
    verbose=0,
    target: stain.StainTarget | None = None,
    **change,
) -> np.ndarray:
    """Features of all images of a pixel cache.

    Stored as ``<cache.folder>/features/<architecture>-<hash>.npy``; the hash covers all that they depend on, so that
    methods, splits, folds and later processes share them. Found ones are mapped, not read.

    Parameters
    ----------
    cache : cache.PixelCache
    architecture and so on : as in `extract`

    Returns
    -------
    float32 array (N, channels), read-only, rows as in ``cache.pixels``.
    """
    facts = [
        FEATURES_FORMAT,
        architecture,
        _identity(weights, seed),
        pooling,
        patches,
        target and [target.kind, target.values],
    ]
    facts += [change] if change else []
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    path = cache.folder / "features" / f"{architecture}-{digest}.npy"
    if not path.is_file():
        with lock_path(path):
            if not path.is_file():  # or another process made it in the meantime
                with atomic_write(path) as temporary:
                    found = extract_features(
                        cache.pixels,
                        architecture,
                        weights,
                        seed=seed,
                        pooling=pooling,
                        patches=patches,
                        verbose=verbose,
                        target=target,
                        **change,
                    )
                    np.save(temporary, found, allow_pickle=False)
    return np.load(local_copy(path), mmap_mode="r", allow_pickle=False)


def extract_features(
    X,
    architecture: str,
    weights: backbones.Weights,
    *,
    seed: int = 0,
    pooling: str = "average",
    patches: int = 1,
    verbose=0,
    target: stain.StainTarget | None = None,
    jitter: list[int] | None = None,
    augment: list[int] | None = None,
) -> np.ndarray:
    """Features of pictures; uint8 (N, height, width, 3) -> float32 (N, channels). Nothing is stored.

    Parameters
    ----------
    architecture : str
        A key of ``backbones.ARCHITECTURES``.
    seed : int
        Of random initial weights; pre-trained ones do not depend on it.
    pooling, patches
        As in `backbones.append_features`.
    target : stain.StainTarget, optional
        Stain normalisation in front of the base.
    jitter, augment : list of int, optional
        Seed of a copy of the pictures with jittered stains (see `stain.jitter_stain`), or flipped and zoomed
        (see `augmentation.FlipAndZoom`).
    """
    X = X if jitter is None else stain.jitter_stain(X, jitter)
    X = X if target is None else stain.normalise_stain(X, target)
    images = keras.Input(X.shape[1:], dtype="uint8", name="image")
    x = keras.layers.Rescaling(1.0, name="as_float")(images)
    if augment is not None:
        x = FlipAndZoom(seed=int(np.random.SeedSequence(augment).generate_state(1)[0] % 2**31), always=True)(
            x
        )
    x = backbones.append_features(x, architecture, weights, seed=seed, pooling=pooling, patches=patches)
    return predict_batches(keras.Model(images, x), X, verbose)


def _identity(weights: backbones.Weights, seed: int) -> str:
    if weights.path is None:
        return f"random {seed} {keras.backend.backend()}"  # backends draw different numbers from a seed
    if weights.path == "imagenet":
        return "imagenet"
    with open(weights.path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
