"""The training loop and its pieces: batches in a fixed order, callbacks that make a resumed run equal."""

import functools
import importlib.util
import itertools
import json
import os
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from bcdlib.errors import printable
from bcdlib.runs.files import atomic_write, explain_disk_errors, write_csv

EPOCH = "epoch.json"  # member of a checkpoint: how many epochs it has behind it
SHARE = 0.02  # of the training time that checkpoints may take: on a mounted Drive one can take a minute
FAST_DISK = 200e6  # bytes a second


def _targets(y) -> np.ndarray:
    y = np.asarray(y, dtype="float32")
    return y[:, None] if y.ndim == 1 else y


class Batches(keras.utils.PyDataset):
    """Training batches in an order that depends on seed and step only, so that a resumed run sees the same ones.

    Indexed, those of one epoch: `epoch` is how many lie behind it. Iterated, all from the first of that epoch on, without
    end.
    """

    def __init__(self, X, y, batch_size: int, steps: int, seed: int, epoch: int = 0):
        super().__init__()
        self.X, self.y = X, _targets(y)
        self.batch_size, self.steps, self.seed, self.epoch = batch_size, steps, seed, epoch

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        return self._batch(self.epoch, index)

    def __iter__(self):
        first = self.epoch
        return (self._batch(epoch, index) for epoch in itertools.count(first) for index in range(self.steps))

    def _batch(self, epoch, index):
        step = (epoch + 1) * self.steps + index  # from 1, as in all figures that were published before
        rows = batch_rows(len(self.y), self.batch_size, step, seed=self.seed)
        return np.asarray(self.X[rows]), self.y[rows]


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

    def __iter__(self):
        return map(self.__getitem__, range(len(self)))


def batch_stream(batches: Batches | Ordered):
    """What Keras' fit, evaluate and predict shall get for these batches.

    On TensorFlow a ``tf.data.Dataset``: `Batches` as one without end (an epoch is its next ``batches.steps``), so that
    nothing is begun anew between epochs, and both without tf.data's tuning, which Keras has on. Its thread sleeps 10 ms,
    then twice as long each time, and the end of a data set waits for it: every other epoch or prediction took up to twice
    as long as it computes (TensorFlow 2.21, Keras 3.15). Other backends take the batches as they are.
    """
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    signature = tuple(tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in batches[0])
    length = tf.data.INFINITE_CARDINALITY if isinstance(batches, Batches) else len(batches)
    data = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=signature)
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.apply(tf.data.experimental.assert_cardinality(length)).prefetch(2).with_options(options)


def predict_batches(network: keras.Model, X, verbose=0):
    """Outputs of a network for rows (N, ...), in batches, without a copy of them all; arrays as from Keras' predict."""
    return network.predict(batch_stream(Ordered(X)), verbose=verbose)


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
    """Save model and optimizer after an epoch; the last good file stays until the next one is whole.

    Writing takes at most `share` of the training time (the environment variable BCD_CHECKPOINT_SHARE, else 0.02), however
    slow the disk: between two checkpoints lie as many epochs as that needs, and the last epoch always has one. Which
    epochs have one changes no result: those that a cut-off run lost are done again, the same.
    """

    def __init__(self, path: Path, share: float | None = None):
        super().__init__()
        self.path = path
        self.share = float(os.environ.get("BCD_CHECKPOINT_SHARE") or SHARE) if share is None else share
        self.spent = self.last = 0.0

    def on_train_begin(self, logs=None):
        self.started = time.perf_counter()
        # of the first nothing is known but its size: model and two of the optimizer's copies, as on a fast disk
        self.last = 3 * sum(weight.nbytes for weight in self.model.get_weights()) / FAST_DISK

    def on_epoch_end(self, epoch, logs=None):
        begun = time.perf_counter()
        # what has been written and what is to be, against the time that was spent on training alone
        due = self.spent + self.last <= self.share * (begun - self.started - self.spent)
        if due or epoch + 1 == self.params["epochs"]:
            with atomic_write(self.path) as temporary:
                self.model.save(temporary)
                with zipfile.ZipFile(
                    temporary, "a"
                ) as archive:  # the optimizer's own count leaves out overflowing steps
                    archive.writestr(EPOCH, json.dumps(epoch + 1))
            self.last = time.perf_counter() - begun
            self.spent += self.last


def fit_network(
    model: keras.Model, batches: Batches, held_out, *, folder, epochs: int, seed: int, verbose, callbacks=()
):
    """Train, going on from ``<folder>/checkpoint.keras`` if an earlier run was cut off.

    Parameters
    ----------
    model : compiled
    held_out : (X, y) that ``val_`` curves are drawn on, or None
    folder : gets ``checkpoint.keras``, ``history.csv`` and, where TensorFlow is installed, ``tensorboard/``; None keeps
        nothing
    epochs : in all, those before the cut included
    callbacks : of Keras, before those of this module

    Returns
    -------
    (model, history) : the trained model (another object if it was resumed), and a DataFrame, one row an epoch
    """
    count = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: setattr(batches, "epoch", epoch)
    )
    callbacks = [*callbacks, count, EpochSeeds(seed)]
    if folder is not None:
        folder = Path(folder)
        model, batches.epoch = _resume(model, folder)
        callbacks += [keras.callbacks.CSVLogger(folder / "history.csv", append=True)]
        if importlib.util.find_spec("tensorflow") and importlib.util.find_spec("tensorboard"):
            callbacks += [keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False)]
        callbacks += [Checkpoint(folder / "checkpoint.keras")]
    if batches.epoch < epochs:
        data = batch_stream(batches)
        with explain_disk_errors(folder):
            model.fit(
                data,
                validation_data=None if held_out is None else batch_stream(Ordered(*held_out)),
                steps_per_epoch=None if data is batches else batches.steps,
                epochs=epochs,
                initial_epoch=batches.epoch,
                callbacks=callbacks,
                shuffle=False,
                verbose=verbose,
            )
        batches.epoch = epochs
    if folder is not None:
        with explain_disk_errors(folder):
            return model, pd.read_csv(folder / "history.csv")
    history = model.history.history if batches.epoch else {}  # no epoch was asked for
    return model, pd.DataFrame(history).rename_axis("epoch").reset_index()


def _resume(model: keras.Model, folder: Path) -> tuple[keras.Model, int]:
    """The model and how many epochs it has behind it."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, history = folder / "checkpoint.keras", folder / "history.csv"
    if not checkpoint.is_file():
        history.unlink(missing_ok=True)
        return model, 0
    try:
        resumed = keras.models.load_model(checkpoint)  # in Keras' safe mode
        resumed.steps_per_execution = (
            model.steps_per_execution
        )  # was set after compile(), which is all that a file knows
        with zipfile.ZipFile(checkpoint) as archive:
            epoch = int(json.loads(archive.read(EPOCH)))
        # the history may be epochs ahead of the checkpoint, and its last line cut off
        known = pd.read_csv(history).drop_duplicates("epoch").query("epoch < @epoch")
        if known["epoch"].tolist() != list(range(epoch)):
            raise ValueError("its history.csv lacks epochs")
    except Exception as error:  # a damaged file makes Keras raise nearly anything
        print(
            f"{checkpoint}: not usable ({printable(error).split('. ')[0]}); this training starts anew",
            flush=True,
        )
        for file in (checkpoint, history):
            file.unlink(missing_ok=True)
        return model, 0
    write_csv(history, known)
    return resumed, epoch


def batch_rows(n: int, batch_size: int, step: int, *, seed: int) -> np.ndarray:
    """Which of n rows make up a training batch: an endless chain of permutations, cut into batches.

    Depends on nothing but its arguments, so that a run that was cut off goes on with the batch it would have had.
    Every row comes once before any comes twice.

    Returns
    -------
    int64 array (batch_size,) of positions in 0..n-1.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    orders = {
        number: _permutation(n, number, seed) for number in range(positions[0] // n, positions[-1] // n + 1)
    }
    return np.array([orders[position // n][position % n] for position in positions])


@functools.lru_cache(maxsize=8)
def _permutation(n: int, number: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, number]).permutation(n)
