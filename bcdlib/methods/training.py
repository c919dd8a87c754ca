"""Pieces of the training loop: batches in a fixed order, callbacks that make a resumed run equal, augmentation."""

from pathlib import Path

import keras
import numpy as np

from bcdlib.pixels import batch_rows
from bcdlib.runs import replacing


def _targets(y) -> np.ndarray:
    y = np.asarray(y, dtype="float32")
    return y[:, None] if y.ndim == 1 else y


class Batches(keras.utils.PyDataset):
    """Training batches in an order that depends on seed and step only, so that a resumed run sees the same ones."""

    def __init__(self, X, y, batch_size: int, steps: int, seed: int, epoch: int = 0):
        super().__init__()
        self.X, self.y = X, _targets(y)
        self.batch_size, self.steps, self.seed, self.epoch = batch_size, steps, seed, epoch

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        rows = batch_rows(len(self.y), self.batch_size, self.epoch * self.steps + index, self.seed)
        return np.asarray(self.X[rows]), self.y[rows]

    def on_epoch_end(self):
        self.epoch += 1


class Ordered(keras.utils.PyDataset):
    """All rows once, in order, for evaluation and prediction without a copy of the whole."""

    def __init__(self, X, y=None, batch_size: int = 64):
        super().__init__()
        self.X, self.batch_size = X, batch_size
        self.y = None if y is None else _targets(y)

    def __len__(self):
        return -(-len(self.X) // self.batch_size)

    def __getitem__(self, index):
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        X = np.asarray(self.X[rows])
        return (X,) if self.y is None else (X, self.y[rows])


class EpochSeeds(keras.callbacks.Callback):
    """Restart the random streams of dropout and augmentation from (seed, epoch).

    A saved model does not hold their state; derived like this, a resumed run draws what it would have drawn.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch, logs=None):
        states = [v for v in self.model.non_trainable_variables if v.path.endswith("seed_generator_state")]
        for number, state in enumerate(states):
            entropy = np.random.SeedSequence([self.seed, epoch, number])
            state.assign(entropy.generate_state(2, dtype="uint32"))


class Checkpoint(keras.callbacks.Callback):
    """Save model and optimizer after each epoch; the last good file stays until the next one is whole."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        with replacing(self.path) as temporary:
            self.model.save(temporary)


def augmentation(seed: int = 0) -> keras.Sequential:
    """Real-time augmentation as layers: flips on both axes (both together: a half turn) and zooms of up to 10 %.

    Takes and gives float32 (N, height, width, 3), 0..255; acts while training only. The paper does not say which
    augmentation it used; tissue has no up or down. A quarter turn would cut a third off a 3:2 picture, so none here.
    """
    return keras.Sequential(
        [
            keras.layers.RandomFlip("horizontal_and_vertical", seed=seed),
            keras.layers.RandomZoom(0.1, fill_mode="reflect", seed=seed + 1),
        ],
        name="augmentation",
    )
