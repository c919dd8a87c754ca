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
from bcdlib.methods.parts.hardware import share_statistics
from bcdlib.runs.files import atomic_write, explain_disk_errors, write_csv

EPOCH = "epoch.json"  # member of a checkpoint: how many epochs it has behind it


class Ordered(keras.utils.PyDataset):
    """All rows once, in order, for evaluation and prediction without a copy of the whole.

    Parameters
    ----------
    X, y : arrays with rows parallel
        y is (N,) or (N, outputs), or None for prediction.
    """

    def __init__(self, X, y=None, batch_size: int = 64):
        super().__init__()
        self.X, self.y, self.batch_size = X, y, batch_size
        if y is not None:
            y = np.asarray(y, dtype="float32")
            self.y = y[:, None] if y.ndim == 1 else y

    def __len__(self):
        return -(-len(self.X) // self.batch_size)

    def __getitem__(self, index):
        return self._rows(slice(index * self.batch_size, (index + 1) * self.batch_size))

    def __iter__(self):
        return map(self.__getitem__, range(len(self)))

    def _rows(self, rows) -> tuple:
        X = np.asarray(self.X[rows])
        return (X,) if self.y is None else (X, self.y[rows])


class Batches(Ordered):
    """Training batches in an order that depends on seed and step only: a resumed run sees the same ones.

    Indexed, it gives those of one epoch; iterated, all from the first of that epoch on, without end.

    Parameters
    ----------
    X, y, batch_size : as of `Ordered`
    steps : int or None
        Batches of an epoch; by default about as many as show every row once.
    seed : int
    epoch : int
        How many epochs lie behind the one that it stands at.
    """

    def __init__(self, X, y, batch_size: int, steps: int | None, seed: int, epoch: int = 0):
        super().__init__(X, y, batch_size)
        self.steps, self.seed, self.epoch = steps or super().__len__(), seed, epoch

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        return self._at(self._first + index)

    def __iter__(self):
        return map(self._at, itertools.count(self._first))

    @property
    def _first(self) -> int:
        return (self.epoch + 1) * self.steps  # from the second epoch's, as in all results published before

    def _at(self, step: int) -> tuple:
        return self._rows(batch_rows(len(self.y), self.batch_size, step, seed=self.seed))


def batch_stream(batches: Batches | Ordered):
    """Turn batches into what Keras' fit, evaluate and predict shall get.

    On TensorFlow that is a ``tf.data.Dataset``: of `Batches` one without end (an epoch is its next
    ``batches.steps``), so that nothing begins anew between epochs, and always without tf.data's tuning, which
    Keras has on. Its thread sleeps 10 ms, then twice as long each time, and the end of a data set waits for
    it: every other epoch or prediction took up to twice as long as it computes (TensorFlow 2.21, Keras 3.15).
    Other backends take the batches as they are.
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
    """Predict rows (N, ...) in batches, without a copy of them all; gives what Keras' predict gives."""
    return network.predict(batch_stream(Ordered(X)), verbose=verbose)


class Checkpoint(keras.callbacks.Callback):
    """Save model and optimizer after an epoch; the last good file stays until the next one is whole.

    Writing takes at most a share of the training time (environment variable BCD_CHECKPOINT_SHARE, else 0.02:
    on a mounted Drive one file can take a minute), however slow the disk: between two checkpoints lie as many
    epochs as that needs, and the last epoch always has one. Which epochs have one changes no result: those
    that a cut-off run lost are done again, the same.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.share = path, float(os.environ.get("BCD_CHECKPOINT_SHARE") or 0.02)
        self.spent = self.last = 0.0

    def on_train_begin(self, logs=None):
        """Guess how long the first file takes: model and the optimizer's two copies, at 200 MB a second."""
        self.started = time.perf_counter()
        self.last = 3 * sum(weight.nbytes for weight in self.model.get_weights()) / 200e6

    def on_epoch_end(self, epoch, logs=None):
        """Write, if all writing then stays within its share of the time that was spent on training alone."""
        begun = time.perf_counter()
        due = self.spent + self.last <= self.share * (begun - self.started - self.spent)
        if due or epoch + 1 == self.params["epochs"]:
            with atomic_write(self.path) as temporary:
                self.model.save(temporary)
                with zipfile.ZipFile(temporary, "a") as archive:
                    # the optimizer's own count of steps leaves out those that overflowed
                    archive.writestr(EPOCH, json.dumps(epoch + 1))
            self.last = time.perf_counter() - begun
            self.spent += self.last


class HeldOutMetrics(keras.callbacks.Callback):
    """``val_`` curves on several devices for any number of rows: Keras divides no last batch unevenly."""

    def __init__(self, X, y, devices: int):
        super().__init__()
        whole = len(y) - len(y) % devices
        # fewer rows than devices are left: each device gets them all, and their mean is the same
        rest = [np.concatenate([np.asarray(part[whole:])] * devices) for part in (X, y)]
        size = max(64 // devices, 1) * devices
        self.parts = {whole: Ordered(X[:whole], y[:whole], size), len(y) - whole: Ordered(*rest, size)}

    def on_epoch_end(self, epoch, logs=None):
        """Write the means over both parts into the logs that the callbacks after this one get."""
        found = {
            rows: self.model.evaluate(batch_stream(part), verbose=0, return_dict=True)
            for rows, part in self.parts.items()
            if rows
        }
        for name in next(iter(found.values())):
            logs[f"val_{name}"] = sum(rows * part[name] for rows, part in found.items()) / sum(found)


def fit_network(
    model: keras.Model,
    batches: Batches,
    held_out,
    *,
    folder=None,
    epochs: int,
    devices: int = 1,
    seed: int,
    verbose=0,
):
    """Train a network, going on from ``<folder>/checkpoint.keras`` if an earlier run was cut off.

    The random streams of dropout and augmentation start anew from (seed, epoch) in each epoch. A saved model
    does not hold their state; so a resumed run draws what it would have drawn.

    Parameters
    ----------
    model : keras.Model
        Compiled.
    batches : Batches
    held_out : (X, y) or None
        What the ``val_`` curves are drawn on.
    folder : path-like or None
        Gets ``checkpoint.keras``, ``history.csv`` and, where TensorFlow is installed, ``tensorboard/``; None
        keeps nothing.
    epochs : int
        In all, those before the cut included.
    devices : int
        As from `hardware.sharing_devices`.

    Returns
    -------
    (keras.Model, DataFrame)
        The trained model (another object if it was resumed), and its history, one row an epoch.
    """
    callbacks = []
    if devices > 1 and held_out is not None:
        callbacks, held_out = [HeldOutMetrics(*held_out, devices)], None

    def begin_epoch(epoch, logs):
        batches.epoch = epoch
        states = [v for v in model.non_trainable_variables if v.path.endswith("seed_generator_state")]
        for number, state in enumerate(states):
            state.assign(np.random.SeedSequence([seed, epoch, number]).generate_state(2, dtype="uint32"))

    callbacks += [keras.callbacks.LambdaCallback(on_epoch_begin=begin_epoch)]
    if folder is not None:
        folder = Path(folder)
        model, batches.epoch = _resume(model, folder)
        callbacks += [keras.callbacks.CSVLogger(folder / "history.csv", append=True)]
        if importlib.util.find_spec("tensorflow") and importlib.util.find_spec("tensorboard"):
            callbacks += [keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False)]
        callbacks += [Checkpoint(folder / "checkpoint.keras")]
    share_statistics(model, devices)
    history = {}
    with explain_disk_errors(folder):
        if batches.epoch < epochs:
            data = batch_stream(batches)
            history = model.fit(
                data,
                validation_data=None if held_out is None else batch_stream(Ordered(*held_out)),
                steps_per_epoch=None if data is batches else batches.steps,
                epochs=epochs,
                initial_epoch=batches.epoch,
                callbacks=callbacks,
                shuffle=False,
                verbose=verbose,
            ).history
            batches.epoch = epochs
        if folder is not None:
            return model, pd.read_csv(folder / "history.csv")
    return model, pd.DataFrame(history).rename_axis("epoch").reset_index()


def _resume(model: keras.Model, folder: Path) -> tuple[keras.Model, int]:
    """Load the checkpoint of a run that was cut off, if there is one, and how many epochs lie behind it."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, history = folder / "checkpoint.keras", folder / "history.csv"
    if checkpoint.is_file():
        try:
            resumed = keras.models.load_model(checkpoint)  # in Keras' safe mode
            # it was set after compile(), which is all that a file knows
            resumed.steps_per_execution = model.steps_per_execution
            with zipfile.ZipFile(checkpoint) as archive:
                epoch = int(json.loads(archive.read(EPOCH)))
            # the history may be epochs ahead of the checkpoint, and its last line cut off
            known = pd.read_csv(history).drop_duplicates("epoch").query("epoch < @epoch")
            if known["epoch"].tolist() != list(range(epoch)):
                raise ValueError("its history.csv lacks epochs")
        except Exception as error:  # a damaged file makes Keras raise nearly anything
            reason = printable(error).split(". ")[0]
            print(f"{checkpoint}: not usable ({reason}); this training starts anew", flush=True)
        else:
            write_csv(history, known)
            return resumed, epoch
    for file in (checkpoint, history):
        file.unlink(missing_ok=True)
    return model, 0


def batch_rows(n: int, batch_size: int, step: int, *, seed: int) -> np.ndarray:
    """Draw a training batch of n rows from an endless chain of permutations.

    It depends on nothing but the arguments, so that a run that was cut off goes on with the batch that it
    would have had. Every row comes once before any comes twice.

    Parameters
    ----------
    step : int
        The batch's number, from 0.

    Returns
    -------
    int64 array (batch_size,)
        Positions in 0..n-1.

    Examples
    --------
    >>> sorted(int(row) for step in (0, 1) for row in batch_rows(6, 3, step, seed=0))
    [0, 1, 2, 3, 4, 5]
    """
    positions = range(step * batch_size, (step + 1) * batch_size)
    return np.array([_permutation(n, position // n, seed)[position % n] for position in positions])


@functools.lru_cache(maxsize=8)
def _permutation(n: int, number: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, number]).permutation(n)
