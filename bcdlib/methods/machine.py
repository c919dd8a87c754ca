"""What the machine can do for training: precision, XLA, steps an execution. Chosen here, logged; each can be set."""

import contextlib
import importlib.util

import keras

PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
XLA = {"auto": "auto", "on": True, "off": False}  # Keras' jit_compile; its "auto" compiles wherever that pays but on a CPU
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


def policy(precision: str = "auto") -> str:
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
def computing_in(name: str):
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


def describe(model: keras.Model, name: str) -> str:
    """One line for the log: backend, device, precision, XLA, steps an execution of a compiled model."""
    kind, capability = accelerator()
    device = kind.upper() + (f" (compute capability {capability})" if capability else "")
    return (f"Training on {keras.backend.backend()}, {device}: {name}, {'XLA' if model.jit_compile else 'no XLA'}, "
            f"{model.steps_per_execution} step{'s' * (model.steps_per_execution > 1)} an execution")
