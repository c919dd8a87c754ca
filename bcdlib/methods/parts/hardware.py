"""What a network is trained on: the devices that share a batch, the precision, XLA, steps per execution.

Several devices of one machine each take a part of every batch and compute the same step together: on JAX by
`keras.distribution.DataParallel`, on TensorFlow by `tf.distribute.MirroredStrategy`. Other backends train on
one.
"""

import contextlib
import logging
import os
from collections.abc import Iterator

import keras

from bcdlib.errors import InputError

LIMIT = "BCD_DEVICES"  # environment variable: how many devices may be used at most
XLA = {"auto": "auto", "on": True, "off": False}  # Keras' jit_compile; its "auto" compiles but on a CPU

# each trial has a network of its own, which TensorFlow, after the fifth, takes for a mistake
logging.getLogger("tensorflow").addFilter(lambda record: "tf.function retracing" not in record.getMessage())


def available_devices() -> list[str]:
    """List the accelerators that this process sees, or its CPU (as a rule one device)."""
    backend = keras.backend.backend()
    return keras.distribution.list_devices() if backend in ("jax", "tensorflow") else [backend]


def used_devices(batch_size: int) -> list[str]:
    """List the devices that a batch is divided among: as many as divide it evenly, and as BCD_DEVICES allows.

    Parameters
    ----------
    batch_size : int

    Returns
    -------
    list of str
        The first of `available_devices`.

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
    """Build, load and train models on all `used_devices`.

    A step's loss and batch norm's statistics are those of the whole batch. On JAX so is all else. On
    TensorFlow each device draws the same random numbers for its own share: dropout and augmentation differ
    from those on one device, and are alike for the first image of each share, for the second, and so on; a
    loss that compares the images of a batch (`csdcnn`) compares those of a share.

    Yields
    ------
    int
        How many devices these are.
    """
    names, found = used_devices(batch_size), available_devices()
    if verbose and len(found) > 1:
        print(
            f"Training on {len(names)} of {len(found)} devices, {batch_size // len(names)} images of a "
            f"batch of {batch_size} on each: {', '.join(names)}",
            flush=True,
        )
    with _strategy(names) if len(names) > 1 else contextlib.nullcontext():
        yield len(names)


def _strategy(names: list[str]):
    if keras.backend.backend() == "jax":
        return keras.distribution.DataParallel(devices=names).scope()
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(names).scope()


def share_statistics(model: keras.Model, devices: int) -> None:
    """Let batch norm use the whole batch's statistics when several devices train; on JAX it always does."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            share_statistics(layer, devices)
        elif isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = devices > 1 and keras.backend.backend() == "tensorflow"


def accelerator() -> tuple[str, float]:
    """Find the first accelerator.

    Returns
    -------
    (kind, compute capability)
        ("gpu", 7.5) for a T4; ("tpu", 0.0); ("cpu", 0.0) if there is none.
    """
    if keras.backend.backend() == "jax":
        import jax

        device = jax.devices()[0]
        return device.platform, float(getattr(device, "compute_capability", 0) or 0)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        for device in tf.config.list_physical_devices("GPU"):
            details = tf.config.experimental.get_device_details(device)
            major, minor = details.get("compute_capability", (0, 0))
            return "gpu", major + minor / 10
        if tf.config.list_physical_devices("TPU"):
            return "tpu", 0.0
    return "cpu", 0.0


def dtype_policy(precision: str = "auto") -> str:
    """Choose Keras' dtype policy for training a whole network; "auto" is what this machine computes fastest.

    bfloat16 on a TPU and on GPUs that have it (compute capability 8.0 and up), float16 on those with tensor
    cores only (7.0, a T4 or V100), else float32. Weights stay float32, and so do images, normalisation and
    the probability.

    Examples
    --------
    >>> dtype_policy("mixed_float16")
    'mixed_float16'
    """
    if precision != "auto":
        return precision
    kind, capability = accelerator()
    if kind == "tpu" or capability >= 8:
        return "mixed_bfloat16"
    return "mixed_float16" if capability >= 7 else "float32"


@contextlib.contextmanager
def computing_dtype(name: str) -> Iterator[None]:
    """Give the layers that are built inside this dtype policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def steps_at_once(steps: int, wanted: int = 0, *, devices: int = 1) -> int:
    """Choose Keras' ``steps_per_execution`` for epochs of so many steps.

    Parameters
    ----------
    steps : int
        Of an epoch. Fewer than wanted are given where they would not divide it: Keras would go on into the
        next epoch. Where only few would be left (a prime number), so many as divide it next, to a limit that
        covers an epoch of BreakHis.
    wanted : int
        0 means what pays on this machine.
    devices : int
        On several under TensorFlow it is always 1: Keras 3.15 fails on more ("You must feed a value for
        placeholder tensor").

    Examples
    --------
    >>> steps_at_once(200, 7)
    5
    >>> steps_at_once(199, 10)
    199
    """
    if devices > 1 and keras.backend.backend() == "tensorflow":
        return 1
    # an accelerator must not wait for Python between steps: 60 of JAX were 17 % quicker than 10 (H200, batch
    # 32); TensorFlow writes each of them into its graph
    many = 50 if keras.backend.backend() == "jax" else 10
    most = min(steps, wanted or (1 if accelerator()[0] == "cpu" else many))
    parts = [number for number in range(1, steps + 1) if steps % number == 0]
    below = max(number for number in parts if number <= most)
    above = min(number for number in parts if number >= most)
    return above if 2 * below < most and above <= 250 else below


def describe_hardware(model: keras.Model) -> str:
    """Describe in one line backend, device, dtype policy, XLA and steps per execution of a compiled model."""
    kind, capability = accelerator()
    device = kind.upper() + (f" (compute capability {capability})" if capability else "")
    if kind == "cpu" and keras.backend.backend() == "tensorflow":
        device += f" (oneDNN {'off' if os.environ['TF_ENABLE_ONEDNN_OPTS'] == '0' else 'on'})"
    compiler, steps = "XLA" if model.jit_compile else "no XLA", model.steps_per_execution
    return (
        f"Training on {keras.backend.backend()}, {device}: {model.dtype_policy.name}, {compiler}, "
        f"{steps} step{'s' * (steps > 1)} an execution"
    )
