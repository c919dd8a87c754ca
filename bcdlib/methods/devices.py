"""Training on several devices of one machine: each batch is divided among them, and they compute the same step together.

On JAX by `keras.distribution.DataParallel`, on TensorFlow by `tf.distribute.MirroredStrategy`; other backends train on one.
"""

import contextlib
import os
from collections.abc import Iterator

import keras
import numpy as np

from bcdlib.errors import InputError
from bcdlib.methods.training import Ordered, stream

LIMIT = "BCD_DEVICES"  # environment variable: how many devices may be used at most


def available() -> list[str]:
    """Names of the machine's accelerators that this process sees, or of its CPU (as a rule one device)."""
    backend = keras.backend.backend()
    if backend == "jax":
        return keras.distribution.list_devices()
    if backend == "tensorflow":
        import tensorflow as tf

        found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return [device.name for device in found]
    return [backend]


def used(batch_size: int) -> list[str]:
    """Those of `available` that a batch is divided among: as many as divide it evenly, and as BCD_DEVICES allows.

    Raises
    ------
    InputError
        If BCD_DEVICES is not a number of devices.
    """
    limit = os.environ.get(LIMIT) or "0"
    if not limit.isdecimal():
        raise InputError(f"{LIMIT}={limit}: give a number of devices, for example 1; empty or 0 means all")
    found = available()
    most = min(len(found), int(limit) or len(found))
    return found[: max(number for number in range(1, most + 1) if batch_size % number == 0)]


@contextlib.contextmanager
def sharing(batch_size: int, verbose=0) -> Iterator[int]:
    """Models that are built, or loaded, and trained inside train on all `used` devices; yields how many these are.

    A step's loss and batch norm's statistics are those of the whole batch. On JAX so is all else. On TensorFlow each device
    draws the same random numbers for its own share: dropout and augmentation differ from those on one device, and are
    alike for the first picture of each share, for the second, and so on; a loss that compares the pictures of a batch
    (`csdcnn`) compares those of a share.
    """
    names = used(batch_size)
    if verbose and len(available()) > 1:
        print(f"Training on {len(names)} of {len(available())} devices, {batch_size // len(names)} pictures of a batch of "
              f"{batch_size} on each: {', '.join(names)}", flush=True)
    with _strategy(names) if len(names) > 1 else contextlib.nullcontext():
        yield len(names)


def _strategy(names: list[str]):
    if keras.backend.backend() == "jax":
        return keras.distribution.DataParallel(devices=names).scope()
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(names).scope()


def number() -> int:
    """How many devices a model that is built here and now trains on."""
    backend = keras.backend.backend()
    if backend == "jax":
        distribution = keras.distribution.distribution()
        return distribution.device_mesh.devices.size if distribution else 1
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.distribute.get_strategy().num_replicas_in_sync
    return 1


def steps_at_once(wanted: int) -> int:
    """Keras' ``steps_per_execution`` here and now: as wanted, but 1 on several devices under TensorFlow.

    Keras 3.15 fails there on more ("You must feed a value for placeholder tensor").
    """
    return 1 if number() > 1 and keras.backend.backend() == "tensorflow" else wanted


def divided(held_out) -> tuple[tuple | None, list[keras.callbacks.Callback]]:
    """What `training.run` gets, here and now: the held-out part, and callbacks.

    On several devices it is None, and a callback in its place: Keras cannot divide a last batch unevenly.

    Parameters
    ----------
    held_out : (X, y) or None
    """
    count = number()
    if count == 1 or held_out is None:
        return held_out, [Statistics(count)]
    return None, [Statistics(count), HeldOut(*held_out, count)]


class Statistics(keras.callbacks.Callback):
    """Batch norm by the statistics of the whole batch while training on several devices.

    On JAX it is always so. What is stored does not ask for it, so that it trains elsewhere.
    """

    def __init__(self, count: int):
        super().__init__()
        self.wanted = count > 1 and keras.backend.backend() == "tensorflow"

    def on_train_begin(self, logs=None):
        self._set(self.wanted)

    def on_train_end(self, logs=None):
        self._set(False)

    def _set(self, synchronized: bool) -> None:
        for layer in _layers(self.model):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = synchronized


def _layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        yield layer
        yield from _layers(layer) if isinstance(layer, keras.Model) else ()


class HeldOut(keras.callbacks.Callback):
    """``val_`` curves after each epoch, of any number of rows on any number of devices."""

    def __init__(self, X, y, count: int):
        super().__init__()
        whole = len(y) - len(y) % count
        # fewer rows than devices are left: each device gets them all, and their mean is the same
        rest = [np.concatenate([np.asarray(part[whole:])] * count) for part in (X, y)]
        size = max(64 // count, 1) * count
        self.parts = [(rows, Ordered(*part, size)) for rows, part in ((whole, (X[:whole], y[:whole])),
                                                                      (len(y) - whole, rest)) if rows]

    def on_epoch_end(self, epoch, logs=None):
        found = [(rows, self.model.evaluate(stream(part), verbose=0, return_dict=True)) for rows, part in self.parts]
        total = sum(rows for rows, _ in found)
        for name in found[0][1]:  # written into the logs that the callbacks after this one get
            logs[f"val_{name}"] = sum(rows * values[name] for rows, values in found) / total
