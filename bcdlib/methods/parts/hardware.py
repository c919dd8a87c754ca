"""Training on several devices of one machine: each batch is divided among them, and they compute the same step together.

On JAX by `keras.distribution.DataParallel`, on TensorFlow by `tf.distribute.MirroredStrategy`; other backends train on one.
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator

import keras
import numpy as np

from bcdlib.errors import InputError
from bcdlib.methods.parts.fitting import Ordered, batch_stream

LIMIT = "BCD_DEVICES"  # environment variable: how many devices may be used at most


def available_devices() -> list[str]:
    """Names of the machine's accelerators that this process sees, or of its CPU (as a rule one device)."""
    backend = keras.backend.backend()
    if backend == "jax":
        return keras.distribution.list_devices()
    if backend == "tensorflow":
        import tensorflow as tf

        found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return [device.name for device in found]
    return [backend]


def used_devices(batch_size: int) -> list[str]:
    """Those of `available` that a batch is divided among: as many as divide it evenly, and as BCD_DEVICES allows.

    Raises
    ------
    InputError
        If BCD_DEVICES is not a number of devices.
    """
    limit = os.environ.get(LIMIT) or "0"
    if not limit.isdecimal():
        raise InputError(f"{LIMIT}={limit}: give a number of devices, for example 1; empty or 0 means all")
    found = available_devices()
    most = min(len(found), int(limit) or len(found))
    return found[: max(number for number in range(1, most + 1) if batch_size % number == 0)]


@contextlib.contextmanager
def sharing_devices(batch_size: int, verbose=0) -> Iterator[int]:
    """Models that are built, or loaded, and trained inside train on all `used` devices; yields how many these are.

    A step's loss and batch norm's statistics are those of the whole batch. On JAX so is all else. On TensorFlow each device
    draws the same random numbers for its own share: dropout and augmentation differ from those on one device, and are
    alike for the first picture of each share, for the second, and so on; a loss that compares the pictures of a batch
    (`csdcnn`) compares those of a share.
    """
    names = used_devices(batch_size)
    if verbose and len(available_devices()) > 1:
        print(
            f"Training on {len(names)} of {len(available_devices())} devices, {batch_size // len(names)} pictures of a batch of "
            f"{batch_size} on each: {', '.join(names)}",
            flush=True,
        )
    with _strategy(names) if len(names) > 1 else contextlib.nullcontext():
        yield len(names)


def _strategy(names: list[str]):
    if keras.backend.backend() == "jax":
        return keras.distribution.DataParallel(devices=names).scope()
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(names).scope()


def device_count() -> int:
    """How many devices a model that is built here and now trains on."""
    backend = keras.backend.backend()
    if backend == "jax":
        distribution = keras.distribution.distribution()
        return distribution.device_mesh.devices.size if distribution else 1
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.distribute.get_strategy().num_replicas_in_sync
    return 1


def shared_steps(wanted: int) -> int:
    """Keras' ``steps_per_execution`` here and now: as wanted, but 1 on several devices under TensorFlow.

    Keras 3.15 fails there on more ("You must feed a value for placeholder tensor").
    """
    return 1 if device_count() > 1 and keras.backend.backend() == "tensorflow" else wanted


def divided_batch(held_out) -> tuple[tuple | None, list[keras.callbacks.Callback]]:
    """What `fitting.fit_network` gets, here and now: the held-out part, and callbacks.

    On several devices it is None, and a callback in its place: Keras cannot divide a last batch unevenly.

    Parameters
    ----------
    held_out : (X, y) or None
    """
    count = device_count()
    if count == 1 or held_out is None:
        return held_out, [SharedStatistics(count)]
    return None, [SharedStatistics(count), HeldOutMetrics(*held_out, count)]


class SharedStatistics(keras.callbacks.Callback):
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


class HeldOutMetrics(keras.callbacks.Callback):
    """``val_`` curves after each epoch, of any number of rows on any number of devices."""

    def __init__(self, X, y, count: int):
        super().__init__()
        whole = len(y) - len(y) % count
        # fewer rows than devices are left: each device gets them all, and their mean is the same
        rest = [np.concatenate([np.asarray(part[whole:])] * count) for part in (X, y)]
        size = max(64 // count, 1) * count
        self.parts = [
            (rows, Ordered(*part, size))
            for rows, part in ((whole, (X[:whole], y[:whole])), (len(y) - whole, rest))
            if rows
        ]

    def on_epoch_end(self, epoch, logs=None):
        found = [
            (rows, self.model.evaluate(batch_stream(part), verbose=0, return_dict=True))
            for rows, part in self.parts
        ]
        total = sum(rows for rows, _ in found)
        for name in found[0][1]:  # written into the logs that the callbacks after this one get
            logs[f"val_{name}"] = sum(rows * values[name] for rows, values in found) / total


PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")


XLA = {
    "auto": "auto",
    "on": True,
    "off": False,
}  # Keras' jit_compile; its "auto" compiles wherever that pays but on a CPU


_STEPS = 10  # that an accelerator gets at once: it must not wait for Python between them


def accelerator() -> tuple[str, float]:
    """(kind, compute capability) of the first accelerator: ("gpu", 7.5) for a T4; ("tpu", 0.0); ("cpu", 0.0) if none."""
    if keras.backend.backend() == "jax":
        import jax

        device = jax.devices()[0]
        return device.platform, float(getattr(device, "compute_capability", 0) or 0)
    if keras.backend.backend() == "tensorflow" and importlib.util.find_spec("tensorflow"):
        import tensorflow as tf

        for device in tf.config.list_physical_devices("GPU"):
            found = tf.config.experimental.get_device_details(device).get("compute_capability", (0, 0))
            return "gpu", found[0] + found[1] / 10
        if tf.config.list_physical_devices("TPU"):
            return "tpu", 0.0
    return "cpu", 0.0


def dtype_policy(precision: str = "auto") -> str:
    """Keras' dtype policy for training a whole network: of "auto", what the machine computes fastest.

    bfloat16 on a TPU and on GPUs that have it (compute capability 8.0 and up), float16 on those with tensor cores only
    (7.0, a T4 or V100), else float32. Weights stay float32, and so do pictures, normalisation and the probability.
    """
    if precision != "auto":
        return precision
    kind, capability = accelerator()
    if kind == "tpu" or capability >= 8:
        return "mixed_bfloat16"
    return "mixed_float16" if capability >= 7 else "float32"


@contextlib.contextmanager
def computing_dtype(name: str):
    """Layers that are built inside have this dtype policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def steps_at_once(steps: int, wanted: int = 0) -> int:
    """Keras' ``steps_per_execution`` for epochs of so many steps: what is wanted, or of 0 what pays here.

    Or less, so that it divides the steps: Keras would go on into the next epoch.
    """
    most = min(steps, wanted or (1 if accelerator()[0] == "cpu" else _STEPS))
    return max(number for number in range(1, most + 1) if steps % number == 0)


def describe_hardware(model: keras.Model, name: str) -> str:
    """One line for the log: backend, device, precision, XLA, steps an execution of a compiled model."""
    kind, capability = accelerator()
    device = kind.upper() + (f" (compute capability {capability})" if capability else "")
    return (
        f"Training on {keras.backend.backend()}, {device}: {name}, {'XLA' if model.jit_compile else 'no XLA'}, "
        f"{model.steps_per_execution} step{'s' * (model.steps_per_execution > 1)} an execution"
    )
