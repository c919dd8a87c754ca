"""The paper's recipe on an accelerator: images/s, share of the chip's peak, the same network in PyTorch.

``python -m tests.bench.accelerator --batches 32,128,512`` with any of Keras' backends; JSON on stdout. On a
CPU it runs too, with ``--steps 2 --batches 4 --size 72x48``, to see that it does.
"""

import importlib.util
import json
import math
import subprocess
import sys
import time

import click
import keras
import numpy as np

from bcdlib import methods
from bcdlib.methods.parts import hardware
from bcdlib.methods.parts.fitting import Batches, fit_network
from tests.bench.report import machine

# dense bf16 (T4: float16) TFLOP/s of the data sheets; a chip that is not here has the measured ceiling alone
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L4": 121, "T4": 65, "V100": 125}
PICTURES = 2048  # random ones: what they show costs no time
RECIPE = 200 * 200  # steps of the paper


@click.command()
@click.option("--batches", default="32,64,128,256,512", show_default=True)
@click.option(
    "--steps", default=60, show_default=True, help="Steps of an epoch; one to warm up, then three are timed."
)
@click.option("--size", default="144x96", show_default=True)
@click.option("--precision", default="auto", show_default=True)
@click.option("--torch/--no-torch", default=True, help="Whether PyTorch runs too, in a process of its own.")
def main(batches, steps, size, precision, torch):
    """Training throughput of ResNet-50, fine-tuned whole as in the paper."""
    width, height = map(int, size.split("x"))
    sizes = [int(batch) for batch in batches.split(",")]
    policy, ceiling = hardware.dtype_policy(precision), matmul_ceiling(hardware.dtype_policy(precision))
    name = device_name()
    peak = next((value for key, value in PEAKS.items() if key in name), None)
    answer = {
        "device": name,
        "backend": keras.backend.backend(),
        "precision": policy,
        "size": [width, height],
        "operations_a_picture": operations(height, width),
        "compilers_count": compilers_count(height, width),
        "measured_matmul_tflops": ceiling,
        "datasheet_tflops": peak,
        "ours": {},
    }
    for batch in sizes:
        answer["ours"][batch] = with_shares(ours(batch, steps, height, width, precision), batch, answer)
    if torch and importlib.util.find_spec("torch"):
        words = [sys.executable, "-m", "tests.bench.torch_peer", batches, str(steps), size, policy]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            answer["torch_error"] = done.stderr[-2000:]
        else:
            rates = json.loads(done.stdout.splitlines()[-1])
            answer["torch"] = {
                int(batch): with_shares(rate, int(batch), answer) for batch, rate in rates.items()
            }
            answer["over_torch"] = {
                batch: answer["ours"][batch]["images_a_second"] / rates[str(batch)] for batch in sizes
            }
    click.echo(json.dumps(answer, indent=2))


def ours(batch: int, steps: int, height: int, width: int, precision: str = "auto") -> float:
    """Images/s of `fit` as the suite calls it: batches from the host, augmentation in the compiled step."""
    X = np.random.default_rng(0).integers(0, 256, (max(PICTURES, batch), height, width, 3), dtype="uint8")
    y = np.arange(len(X)) % 2
    method = methods.get_method("resnet50")(weights="none", precision=precision, verbose=0)
    with hardware.computing_dtype(hardware.dtype_policy(precision)):
        model = method.build(X.shape[1:])
        model.steps_per_execution = hardware.steps_at_once(steps)
        data = Batches(X, y, batch, steps, seed=0)
        print(
            f"batch {batch}: {hardware.describe_hardware(model)}",
            file=sys.stderr,
            flush=True,
        )
        found = []
        for _ in range(4):
            started = time.perf_counter()
            fit_network(model, data, None, folder=None, epochs=data.epoch + 1, seed=0, verbose=0)
            np.asarray(model.trainable_variables[0])  # all steps are done
            found.append(batch * steps / (time.perf_counter() - started))
    keras.utils.clear_session()
    return float(np.median(found[1:]))


def with_shares(rate: float, batch: int, known: dict) -> dict:
    """Images/s with what it is of the chip's peak, and how long the paper's 200 x 200 steps take."""
    tflops = rate * known["operations_a_picture"] / 1e12
    shares = {
        f"share_of_{kind}": tflops / known[key]
        for kind, key in (("datasheet", "datasheet_tflops"), ("measured_matmul", "measured_matmul_tflops"))
        if known[key]
    }
    return {
        "images_a_second": rate,
        "tflops": tflops,
        **shares,
        "hours_of_200x200_steps": RECIPE * batch / rate / 3600,
    }


def operations(height: int, width: int) -> int:
    """Floating-point operations of a training step for one image.

    Twice the multiply-adds of convolutions and dense layers, three times (forward, gradient by the input,
    gradient by the weights), but for the first layer's input.
    """
    total = 0
    for layer in _layers(height, width):
        weights = math.prod(layer.kernel.shape)
        outputs = math.prod(layer.output.shape[1:-1]) if len(layer.output.shape) > 2 else 1
        total += 2 * weights * outputs * (2 if layer.name == "conv1_conv" else 3)
    return total


def _layers(height: int, width: int):
    model = methods.get_method("resnet50")(weights="none", verbose=0).build((height, width, 3))
    return [layer for layer in model._flatten_layers(include_self=False) if hasattr(layer, "kernel")]


def compilers_count(height: int, width: int, batch: int = 8) -> float | None:
    """What XLA counts for a training step for one image; only on JAX, None elsewhere."""
    if keras.backend.backend() != "jax":
        return None
    import jax

    model = methods.get_method("resnet50")(weights="none", verbose=0).build((height, width, 3))
    others = [variable.value for variable in model.non_trainable_variables]

    def loss(trained, X, y):
        predicted, _ = model.stateless_call(trained, others, X, training=True)
        return jax.numpy.mean((predicted - y) ** 2)

    X, y = np.zeros((batch, height, width, 3), "uint8"), np.zeros((batch, 1), "float32")
    step = jax.jit(jax.value_and_grad(loss)).lower(
        [variable.value for variable in model.trainable_variables], X, y
    )
    counted = step.compile().cost_analysis()
    return (counted[0] if isinstance(counted, list) else counted)["flops"] / batch


def matmul_ceiling(policy: str, side: int = 0) -> float:
    """TFLOP/s of a large matrix product in the policy's compute type: what this chip can do at best."""
    side = side or (8192 if hardware.accelerator()[0] != "cpu" else 1024)
    dtype = keras.DTypePolicy(policy).compute_dtype
    a = keras.ops.cast(keras.random.normal((side, side), seed=1), dtype)
    b, best = a, 0.0
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(10):
            b = keras.ops.matmul(a, b) * keras.ops.cast(1 / side**0.5, dtype)
        np.asarray(keras.ops.cast(b[0, 0], "float32"))
        best = max(best, 10 * 2 * side**3 / (time.perf_counter() - started) / 1e12)
    return best


def device_name() -> str:
    """Of the first accelerator, else of the CPU."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.devices()[0].device_kind
    if hardware.accelerator()[0] == "gpu":
        import tensorflow as tf

        return tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0]).get(
            "device_name", "GPU"
        )
    return machine()["processor"]


if __name__ == "__main__":
    main()
