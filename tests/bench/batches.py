"""Shuffled, augmented batches, delivered as arrays."""

import importlib.util

import keras

from bcdlib.data import breakhis, sources
from bcdlib.data.cache import build_cache
from bcdlib.methods.parts.augmentation import default_augmentation
from bcdlib.methods.parts.fitting import Batches
from tests.bench import Setting, peers
from tests.bench.ingest import SIZE
from tests.bench.ratios import paired, rate

OURS, THEIRS = 100, 4  # batches that a run delivers: theirs take a hundred times as long


def comparisons(setting: Setting):
    """Against the paper's ImageDataGenerator, which reads and decodes the files for every batch."""
    if not importlib.util.find_spec("tensorflow"):
        return
    source = sources.open_source(setting.pictures)
    cache = build_cache(
        source, breakhis.scan_breakhis(source).images, SIZE, root=setting.folder / "cache", progress=False
    )
    images = keras.Input(cache.pixels.shape[1:], dtype="uint8")
    augmented = keras.Model(images, default_augmentation(0, always=True)(keras.layers.Rescaling(1.0)(images)))
    batches = Batches(cache.pixels, breakhis.class_labels(cache.images), peers.BATCH, OURS, seed=0)

    def ours():
        for step in range(OURS):
            X, _ = batches[step]
            augmented.predict_on_batch(X)

    generator = peers.keras_generator(setting.pictures, SIZE)
    yield paired(
        "batches-generator",
        "augmented batches / ImageDataGenerator",
        ">= 30",
        "images/s",
        lambda: rate(OURS * peers.BATCH, ours),
        lambda: rate(THEIRS * peers.BATCH, lambda: [next(generator) for _ in range(THEIRS)]),
        setting.pairs,
        "shuffled, flipped and zoomed; ours from the pixel cache, by the layer that training uses",
    )
