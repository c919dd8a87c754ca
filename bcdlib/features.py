"""Features of frozen bases: computed once a base and image, stored beside the pixel cache, shared by all that ask."""

import hashlib
import json

import keras
import numpy as np

from bcdlib import stain
from bcdlib.methods import backbones
from bcdlib.methods.augment import FlipAndZoom
from bcdlib.methods.training import predict
from bcdlib.runs import alone, near, replacing

FORMAT = 1


def of(cache, architecture: str, weights: backbones.Weights, seed: int = 0, pooling: str = "average", patches: int = 1,
       verbose=0, *, target: stain.Target | None = None, **change) -> np.ndarray:
    """Features of all images of a pixel cache.

    Stored as ``<cache.folder>/features/<architecture>-<hash>.npy``; the hash covers all that they depend on, so that
    methods, splits, folds and later processes share them. Found ones are mapped, not read.

    Parameters
    ----------
    cache : pixels.PixelCache
    architecture and so on : as in `extract`

    Returns
    -------
    float32 array (N, channels), read-only, rows as in ``cache.pixels``.
    """
    facts = [FORMAT, architecture, _identity(weights, seed), pooling, patches, target and [target.kind, target.values]]
    facts += [change] if change else []
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    path = cache.folder / "features" / f"{architecture}-{digest}.npy"
    if not path.is_file():
        with alone(path):
            if not path.is_file():  # or another process made it in the meantime
                with replacing(path) as temporary:
                    found = extract(cache.pixels, architecture, weights, seed, pooling, patches, verbose, target=target,
                                    **change)
                    np.save(temporary, found, allow_pickle=False)
    return np.load(near(path), mmap_mode="r", allow_pickle=False)


def extract(X, architecture: str, weights: backbones.Weights, seed: int = 0, pooling: str = "average", patches: int = 1,
            verbose=0, *, target: stain.Target | None = None, jitter: list[int] | None = None,
            augment: list[int] | None = None) -> np.ndarray:
    """Features of pictures; uint8 (N, height, width, 3) -> float32 (N, channels). Nothing is stored.

    Parameters
    ----------
    architecture : str
        A key of ``backbones.ARCHITECTURES``.
    seed : int
        Of random initial weights; pre-trained ones do not depend on it.
    pooling, patches
        As in `backbones.features`.
    target : stain.Target, optional
        Stain normalisation in front of the base.
    jitter, augment : list of int, optional
        Seed of a copy of the pictures with jittered stains (see `stain.jitter`), or flipped and zoomed
        (see `augment.FlipAndZoom`).
    """
    X = X if jitter is None else stain.jitter(X, jitter)
    X = X if target is None else stain.apply(X, target)
    images = keras.Input(X.shape[1:], dtype="uint8", name="image")
    x = keras.layers.Rescaling(1.0, name="as_float")(images)
    if augment is not None:
        x = FlipAndZoom(seed=int(np.random.SeedSequence(augment).generate_state(1)[0] % 2**31), always=True)(x)
    x = backbones.features(x, architecture, weights, seed, pooling=pooling, patches=patches)
    return predict(keras.Model(images, x), X, verbose)


def _identity(weights: backbones.Weights, seed: int) -> str:
    if weights.path is None:
        return f"random {seed} {keras.backend.backend()}"  # backends draw different numbers from a seed
    if weights.path == "imagenet":
        return "imagenet"
    with open(weights.path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
