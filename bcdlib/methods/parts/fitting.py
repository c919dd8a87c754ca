"""The training loop and its pieces: batches in a fixed order, callbacks that make a resumed run equal."""

import contextlib
import errno
import functools
import importlib.util
import io
import itertools
import json
import math
import os
import time
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import h5py
import keras
import numpy as np
import pandas as pd

from bcdlib.errors import InputError, printable
from bcdlib.methods.parts.hardware import accelerator, share_statistics
from bcdlib.runs.files import atomic_write, explain_disk_errors, lock_path, write_csv

# members of a checkpoint: how many epochs it has behind it, their curves (copied into a file beside it), and
# if it was written inside an epoch how many of that one's steps, with what a saved model leaves out
EPOCH, HISTORY, WITHIN = "epoch.json", "history.csv", "within.json"
BUSY = "another training is at work in this folder; waiting for it to end"
LONGEST = 300.0  # seconds that the paper's training may take on a CPU without being asked for
ANYWAY = "BCD_ANYWAY"  # environment variable: train however long it takes


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


class _OfOneSize(Ordered):
    """Batches for prediction, the last one filled up with the first rows.

    For a batch of another size TensorFlow would trace the network again, and JAX compile it, which takes
    seconds for a large one.
    """

    def __getitem__(self, index):
        size = min(len(self.X), self.batch_size)
        return self._rows(np.arange(index * size, (index + 1) * size) % len(self.X))


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

    Attributes
    ----------
    done : int
        How many steps of that epoch are done already: its batches are those that are left.
    """

    def __init__(self, X, y, batch_size: int, steps: int | None, seed: int, epoch: int = 0):
        super().__init__(X, y, batch_size)
        self.steps, self.seed, self.epoch = steps or super().__len__(), seed, epoch
        self.done = 0

    def __len__(self):
        return self.steps - self.done

    def __getitem__(self, index):
        return self._at(self._first + index)

    def __iter__(self):
        return map(self._at, itertools.count(self._first))

    @property
    def _first(self) -> int:
        # from the second epoch's, as in all results published before
        return (self.epoch + 1) * self.steps + self.done

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
    predicted = network.predict(batch_stream(_OfOneSize(X)), verbose=verbose)
    return keras.tree.map_structure(lambda part: part[: len(X)], predicted)


class Checkpoint(keras.callbacks.Callback):
    """Save model, optimizer and history after an epoch; the last good file stays until the next one is whole.

    Writing takes at most a share of the training time (environment variable BCD_CHECKPOINT_SHARE, else 0.02:
    on a mounted Drive one file can take a minute). Yet however slow the disk and however long an epoch, at
    most `MOST` seconds of training lie between two checkpoints: what would come too late after the epoch is
    written inside it. (A step, and the last one with the ``val_`` curves, is not divided.) The last epoch
    always has one. Where they are written changes no result: what a cut-off
    run lost is done again, the same.

    Parameters
    ----------
    path : pathlib.Path
        Of the checkpoint. ``history.csv`` is written beside it, from what the checkpoint holds.
    history : History
    batches : Batches
    tail : float
        What follows the last step of an epoch (the ``val_`` curves), as so many steps.
    """

    MOST = 600.0

    def __init__(self, path: Path, history: "History", batches: Batches, tail: float = 0.0):
        super().__init__()
        self.path, self.history, self.batches, self.tail = path, history, batches, tail
        self.share = float(os.environ.get("BCD_CHECKPOINT_SHARE") or 0.02)

    def on_train_begin(self, logs=None):
        """Guess how long the first file takes: model and the optimizer's two copies, at 200 MB a second."""
        self.started = self.written = time.perf_counter()
        self.spent = 0.0
        self.last = 3 * sum(weight.nbytes for weight in self.model.get_weights()) / 200e6

    def on_train_batch_begin(self, batch, logs=None):
        """Note the time and the step that an execution begins with."""
        self.first, self.begun = batch, time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        """Write, if the next occasion would be too late."""
        self.at_once = batch + 1 - self.first
        self.step = (time.perf_counter() - self.begun) / self.at_once
        left = len(self.batches) - batch - 1
        if left and self._late(left):
            self._write_timed(self.batches.epoch, self.batches.steps - left)

    def on_epoch_end(self, epoch, logs=None):
        """Write, if all writing then stays within its share, or if the next occasion would be too late."""
        within = self.spent + self.last <= self.share * (time.perf_counter() - self.started - self.spent)
        if within or epoch + 1 == self.params["epochs"] or self._late(self.batches.steps):
            self._write_timed(epoch + 1)

    def _late(self, left: int) -> bool:
        """Whether too much may lie behind at the next occasion, if so many steps of an epoch are left."""
        steps = min(self.at_once, left)
        ahead = self.step * (steps + self.tail * (steps == left))
        return time.perf_counter() - self.written + 2 * ahead > self.MOST  # not all steps take the same time

    def _write_timed(self, epochs: int, steps: int = 0) -> None:
        begun = time.perf_counter()
        self._write(epochs, steps)
        self.written = time.perf_counter()
        self.last = self.written - begun
        self.spent += self.last

    def _write(self, epochs: int, steps: int = 0) -> None:
        table = self.history.table()
        with atomic_write(self.path) as temporary:
            self.model.save(temporary)
            with zipfile.ZipFile(temporary, "a") as archive:
                # the optimizer's own count of steps leaves out those that overflowed
                archive.writestr(EPOCH, json.dumps(epochs))
                archive.writestr(HISTORY, table.to_csv(index=False))
                if steps:
                    state = [keras.ops.convert_to_numpy(one).tolist() for one in _passing_state(self.model)]
                    archive.writestr(WITHIN, json.dumps({"steps": steps, "state": state}))
        write_csv(self.path.with_name(HISTORY), table)

    def seconds_apart(self, epoch: float) -> float:
        """Guess how much training lies between two checkpoints if an epoch takes so many seconds."""
        wanted = self.last / self.share if self.share else self.MOST
        return min(max(epoch, wanted), self.MOST)


class History(keras.callbacks.History):
    """Keras' history, which goes on from that of a run that was cut off.

    Parameters
    ----------
    known : DataFrame
        Its rows; column epoch, and one a curve.
    epochs : int
        How many epochs it had: more than rows if some were lost.
    """

    def __init__(self, known: pd.DataFrame, epochs: int):
        super().__init__()
        self.lost = epochs - len(known)
        self.history = known.drop(columns="epoch", errors="ignore").to_dict("list")

    def table(self) -> pd.DataFrame:
        """Give one row an epoch: epoch (from 0), and the curves."""
        found = pd.DataFrame(self.history, dtype="float64")
        return found.set_axis(pd.RangeIndex(self.lost, self.lost + len(found), name="epoch")).reset_index()


class Plateau(keras.callbacks.ReduceLROnPlateau):
    """Reduce the learning rate when accuracy does not rise; a run that was cut off goes on as it would have.

    Watched is ``val_accuracy`` or, where nothing is held out, ``accuracy``.
    """

    known: dict = {}  # the curves so far, those before the cut included; set by `fit_network`

    def __init__(self, factor: float, patience: int):
        super().__init__("val_accuracy", factor, patience, mode="max")

    def on_train_begin(self, logs=None):
        """Look at the epochs that lie behind; the optimizer has their rate already."""
        super().on_train_begin(logs)
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        for epoch, value in enumerate(list(self.known.get(self._watched(self.known), []))):
            self.on_epoch_end(epoch, {self.monitor: value})
        self.model.optimizer.learning_rate = rate

    def on_epoch_end(self, epoch, logs=None):
        """Compare with the best so far."""
        self.monitor = self._watched(logs)
        super().on_epoch_end(epoch, logs)

    def __repr__(self):
        return f"Plateau(factor={self.factor}, patience={self.patience})"

    @staticmethod
    def _watched(logs) -> str:
        return "val_accuracy" if "val_accuracy" in logs else "accuracy"


class TimeEstimate(keras.callbacks.Callback):
    """Say from the first steps how long training will take; stop if that is too long for a CPU.

    The first execution, in which the network is compiled, does not count.

    Parameters
    ----------
    batches : Batches
    epochs : int
        To come.
    tail : float
        As of `Checkpoint`.
    checkpoint : Checkpoint or None
    longest : float
        Seconds that training may take on a CPU.
    verbose : int or "auto"
        As in ``keras.Model.fit``; 0 says nothing.
    """

    MEASURED = 5.0  # seconds

    def __init__(self, batches: Batches, *, epochs: int, tail: float, checkpoint, longest: float, verbose):
        super().__init__()
        self.batches, self.epochs, self.tail, self.checkpoint = batches, epochs, tail, checkpoint
        self.longest, self.verbose = longest, verbose
        self.done = self.before = 0
        self.seconds = None

    def on_train_begin(self, logs=None):
        """Wait for the next execution to end: it compiles."""
        self.compiled = None

    def on_train_batch_begin(self, batch, logs=None):
        """Note which step an execution begins with."""
        self.first = batch

    def on_train_batch_end(self, batch, logs=None):
        """Estimate, once enough was measured."""
        self.done += batch + 1 - self.first
        if self.compiled is None:
            self.compiled, self.before = time.perf_counter(), self.done
        elif self.seconds is None and time.perf_counter() - self.compiled >= self.MEASURED:
            self._estimate()

    def on_epoch_end(self, epoch, logs=None):
        """Estimate from what there is."""
        if self.seconds is None and self.done > self.before:
            self._estimate()

    def _estimate(self) -> None:
        step = (time.perf_counter() - self.compiled) / (self.done - self.before)
        epoch = step * (self.batches.steps + self.tail)
        self.seconds = epoch * self.epochs
        epochs = f"{self.epochs} epoch{'s' * (self.epochs > 1)}"
        text = f"Training takes about {duration(self.seconds)} ({epochs})"
        if self.seconds > self.longest and accelerator()[0] == "cpu":
            raise InputError(
                f"{text} on this CPU; choose a machine with a GPU (in Colab: Runtime, Change runtime type), "
                f"or profile quick, or go on with --anyway (in a notebook: {ANYWAY}=1 in the environment)"
            )
        if self.verbose:
            if self.checkpoint is not None:
                apart, most = self.checkpoint.seconds_apart(epoch), self.checkpoint.MOST
                text += f"; a checkpoint about every {duration(apart)}"
                text += f", on a slow disk at least every {duration(most)}" * (apart < most)
            print("\n" * (self.verbose != 2) + text, flush=True)  # a progress bar's line may be open


def duration(seconds: float) -> str:
    """Write a time for people, in two units at most.

    Examples
    --------
    >>> duration(11_700), duration(150), duration(8.2)
    ('3 h 15 min', '2 min 30 s', '8 s')
    """
    minutes, seconds = divmod(max(round(seconds), 1), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (0 if hours else seconds, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


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
    callbacks: Sequence[keras.callbacks.Callback] = (),
    seed: int,
    verbose=0,
    longest: float | None = None,
) -> pd.DataFrame:
    """Train a network, going on from ``<folder>/checkpoint.keras`` if an earlier run was cut off.

    The random streams of dropout and augmentation start anew from (seed, epoch) in each epoch. A saved model
    does not hold their state; so a resumed run draws what it would have drawn. It goes on in the precision
    and on the devices that `model` was built for, whatever machine wrote the checkpoint.

    Parameters
    ----------
    model : keras.Model
        Compiled.
    batches : Batches
    held_out : (X, y) or None
        What the ``val_`` curves are drawn on.
    folder : path-like or None
        Gets ``checkpoint.keras``, ``history.csv`` and, where TensorFlow is installed, ``tensorboard/``; None
        keeps nothing. Of two trainings in one folder, on one machine, the second waits for the first.
    epochs : int
        In all, those before the cut included.
    devices : int
        As from `hardware.sharing_devices`.
    callbacks : sequence of keras.callbacks.Callback
        The method's own.
    longest : float or None
        Seconds that it may take on a CPU, see `TimeEstimate`; None does not estimate.

    Returns
    -------
    DataFrame
        The history, one row an epoch.

    Raises
    ------
    InputError
        If the disk is full or unreachable, or if training would take too long.
    """
    with explain_disk_errors(folder), _registering_nothing(), contextlib.ExitStack() as stack:
        known, done, state, checkpoint = pd.DataFrame(), 0, [], None
        at_once = model.steps_per_execution
        if folder is not None:
            path = Path(folder, "checkpoint.keras")
            stack.enter_context(lock_path(path, busy=f"{folder}: {BUSY}"))
            known, done, state = _resume(model, batches, path)
            batches.epoch = done
        history = History(known, done)
        # predicting takes a third of a training step
        tail = 0.0 if held_out is None else len(held_out[1]) / batches.batch_size / 3
        if folder is not None:
            checkpoint = Checkpoint(path, history, batches, tail)
        if batches.epoch < epochs:
            if verbose and (done or batches.done):
                within = f" and {batches.done} of the next one's {batches.steps} steps" * bool(batches.done)
                print(f"Going on after epoch {done} of {epochs}{within}", flush=True)
            for callback in callbacks:
                callback.known = history.history
            callbacks = _callbacks(model, batches, [history, *callbacks], checkpoint, seed=seed, state=state)
            if longest is not None:
                settings = {"checkpoint": checkpoint, "longest": longest, "verbose": verbose}
                callbacks.insert(0, TimeEstimate(batches, epochs=epochs - done, tail=tail, **settings))
            if devices > 1 and held_out is not None:
                callbacks.insert(0, HeldOutMetrics(*held_out, devices))
                held_out = None
            share_statistics(model, devices)
            if devices == 1 and keras.backend.backend() == "tensorflow":
                _make_metrics(model, batches)
        while batches.epoch < epochs:
            data = batch_stream(batches)
            until = batches.epoch + 1 if batches.done else epochs  # what is left of an epoch goes by itself
            model.fit(
                data,
                validation_data=None if held_out is None else batch_stream(Ordered(*held_out)),
                steps_per_epoch=None if data is batches else len(batches),
                epochs=until,
                initial_epoch=batches.epoch,
                callbacks=callbacks,
                shuffle=False,
                verbose=verbose,
            )
            batches.epoch, batches.done = until, 0
            set_steps_at_once(model, at_once)
        return history.table()


def set_steps_at_once(model: keras.Model, number: int) -> None:
    """Set ``steps_per_execution``, and drop the functions that Keras made for another number of steps.

    Keras makes new ones when it trains: on several devices of JAX they must know the optimizer's variables,
    which are not there before.
    """
    if model.steps_per_execution != number:
        model.steps_per_execution = number
        model.train_function = model.test_function = None


@contextlib.contextmanager
def _registering_nothing():
    """Take back what TensorFlow registers meanwhile as gradients.

    Keras' optimizers register one in each training, and TensorFlow keeps it and the graph behind it for ever:
    350 MB for each trial that fine-tunes ResNet-50.
    """
    if keras.backend.backend() != "tensorflow":
        yield
        return
    from tensorflow.python.framework import ops

    registered = getattr(ops.gradient_registry, "_registry", {})  # of another TensorFlow: nothing is freed
    known = set(registered)
    try:
        yield
    finally:
        for name in registered.keys() - known:
            del registered[name]


def _random_states(model: keras.Model) -> list:
    return [v for v in model.non_trainable_variables if v.path.endswith("seed_generator_state")]


def _passing_state(model: keras.Model) -> list:
    """List the variables that a saved model leaves out: of random streams, and of the epoch's curves."""
    return [*_random_states(model), *model.metrics_variables]


def _make_metrics(model, batches: Batches) -> None:
    """Make the metrics' variables: where the first step makes them, TensorFlow traces it a second time."""
    outputs = getattr(model, "output", None)
    if outputs is None:  # not known before it is called
        return
    X, y = batches[0]
    nothing = keras.tree.map_structure(
        lambda output: keras.ops.zeros((len(y), *output.shape[1:]), output.dtype), outputs
    )
    model.compute_metrics(X, y, nothing)
    model.reset_metrics()


def _callbacks(model, batches: Batches, others: list, checkpoint, *, seed: int, state: list) -> list:
    def begin_epoch(epoch, logs):
        batches.epoch = epoch
        for number, variable in enumerate(_random_states(model)):
            variable.assign(np.random.SeedSequence([seed, epoch, number]).generate_state(2, dtype="uint32"))
        if batches.done:
            for variable, value in zip(_passing_state(model), state, strict=True):
                variable.assign(np.array(value, variable.dtype))

    found = [keras.callbacks.LambdaCallback(on_epoch_begin=begin_epoch), *others]
    if checkpoint is not None:
        if importlib.util.find_spec("tensorflow") and importlib.util.find_spec("tensorboard"):
            folder = checkpoint.path.with_name("tensorboard")
            found.append(keras.callbacks.TensorBoard(folder, write_graph=False))
        found.append(checkpoint)
    return found


def _resume(model: keras.Model, batches: Batches, checkpoint: Path) -> tuple[pd.DataFrame, int, list]:
    """Load the checkpoint of a run that was cut off, if there is one; sets ``batches.done``.

    Gives its history, how many whole epochs it has, and what `_passing_state` was inside the next.
    """
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if not checkpoint.is_file():
        return pd.DataFrame(), 0, []
    try:
        known, done = _read_history(checkpoint)
        state = _read_within(model, batches, checkpoint)
        _load_state(model, checkpoint)
    except Exception as error:  # a damaged file makes Keras raise nearly anything
        if isinstance(error, MemoryError) or getattr(error, "errno", None) not in (None, errno.EINVAL):
            raise  # the machine's fault, not the file's, of which zipfile may say that an argument is invalid
        reason = printable(error).split(". ")[0]
        aside = next(
            path
            for number in itertools.count(1)
            if not (path := checkpoint.with_stem(f"{checkpoint.stem}-unusable-{number}")).exists()
        )
        checkpoint.rename(aside)
        batches.done = 0
        print(
            f"{checkpoint}: not usable ({reason}); it is now {aside.name}, and this training starts anew",
            flush=True,
        )
        return pd.DataFrame(), 0, []
    write_csv(checkpoint.with_name(HISTORY), known)
    return known, done, state


def _read_history(checkpoint: Path) -> tuple[pd.DataFrame, int]:
    with zipfile.ZipFile(checkpoint) as archive:
        done = int(json.loads(archive.read(EPOCH)))
        if HISTORY in archive.namelist():
            text = archive.read(HISTORY).decode()
            return pd.read_csv(io.StringIO(text), float_precision="round_trip"), done
    # written before the history was part of it: what is left of the file beside it will do
    try:
        known = pd.read_csv(checkpoint.with_name(HISTORY), float_precision="round_trip")
        known = known.drop_duplicates("epoch").set_index("epoch").apply(pd.to_numeric, errors="coerce")
        known = known.reindex(range(done)).rename_axis("epoch").reset_index()
    except (OSError, ValueError, KeyError):
        known = pd.DataFrame()
    if len(known) < done or known.isna().any(axis=None):
        print(
            f"{checkpoint}: the curves of some of its {done} epochs are lost; the training is not", flush=True
        )
    return known, done


def _read_within(model: keras.Model, batches: Batches, checkpoint: Path) -> list:
    """Set ``batches.done``, prepare the network to go on there, and give its `_passing_state`."""
    with zipfile.ZipFile(checkpoint) as archive:
        within = json.loads(archive.read(WITHIN)) if WITHIN in archive.namelist() else {"steps": 0}
    if not within["steps"]:
        return []
    if not 0 < within["steps"] < batches.steps:
        raise ValueError(f"it was written after {within['steps']} of an epoch's {batches.steps} steps")
    batches.done = within["steps"]
    # this machine may do more steps at once than are left
    set_steps_at_once(model, math.gcd(model.steps_per_execution, len(batches)))
    # Keras makes the variables of the curves when it first needs them
    model.evaluate(batch_stream(Ordered(*batches[0], batches.batch_size)), verbose=0)
    shapes = [tuple(variable.shape) for variable in _passing_state(model)]
    if shapes != [np.shape(value) for value in within["state"]]:
        raise ValueError("it was written inside an epoch of another network")
    return within["state"]


def _load_state(model: keras.Model, checkpoint: Path) -> None:
    """Load weights and optimizer state into a network whose precision may be another than the file's.

    In float16 Keras wraps the optimizer in one that scales the loss, and stores both: the network gets for a
    moment such an optimizer as the file has, wrapped or not, around the same inner one.
    """
    with zipfile.ZipFile(checkpoint) as archive:  # read whole: damage shows before anything is loaded
        with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as stored:
            wrapped = "inner_optimizer" in stored["optimizer"]
    own = model.optimizer
    if not own.built:  # Keras would give the wrapper its variables twice
        own.build(model.trainable_variables)
    inner = getattr(own, "inner_optimizer", own)
    state = [*model.variables, *own.variables]
    before = [np.array(keras.ops.convert_to_numpy(variable)) for variable in state]
    try:
        if wrapped and own is inner:
            model.optimizer = keras.optimizers.LossScaleOptimizer(inner)
            model.optimizer.build(model.trainable_variables)
        elif not wrapped:
            model.optimizer = inner
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Keras only warns where the optimizer does not fit
            model.load_weights(checkpoint)
    except Exception:
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)
        raise
    finally:
        model.optimizer = own


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
