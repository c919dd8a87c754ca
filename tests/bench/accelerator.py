"""The paper's recipe on an accelerator: images/s, share of the chip's peak, the same network in PyTorch.

``python -m tests.bench.accelerator --cache CACHE --images IMAGES --weights WEIGHTS --out OUT`` with any of
Keras' backends. On a CPU it runs too, with ``--batches 4 --steps 2 --epoch-steps 2``, to see that it does.
"""

import contextlib
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import keras
import numpy as np
from filelock import FileLock

from bcdlib import methods
from bcdlib.methods.parts import hardware
from bcdlib.plots import style
from bcdlib.runs.files import atomic_write, write_json
from tests.bench.report import machine

# dense bf16 (T4: float16) TFLOP/s of the data sheets; a chip that is not here has the measured ceiling alone
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L4": 121, "T4": 65, "V100": 125}
RECIPE = 200 * 200  # steps of the paper


@click.command()
@click.option("--cache", help="Folder of a pixel cache, as a run's settings.json names it.")
@click.option("--images", help="Folder or archive of images, for the methods that look at other sizes.")
@click.option("--weights", default="none", show_default=True, help="Folder of ImageNet weights.")
@click.option("--out", required=True, help="Folder for accelerator.json, accelerator.png and the trials.")
@click.option("--minutes", default=9.0, show_default=True, help="When all of it shall have ended.")
@click.option("--parts", default="recipe,speed,methods,record", show_default=True)
@click.option("--batches", default="32,256,1024", show_default=True)
@click.option("--steps", default=60, show_default=True, help="Of a timed epoch.")
@click.option("--epoch-steps", default=200, show_default=True, help="Of an epoch of the recipe.")
@click.option("--size", default="144x96", show_default=True)
@click.option("--precision", default="auto", show_default=True)
@click.option("--flags", multiple=True, help="XLA_FLAGS with which the first batch size is timed too.")
@click.option("--torch/--no-torch", default=True, help="Whether PyTorch is timed too.")
def main(**options):
    """Try the paper's recipe on an accelerator, measure it, and record what it finds; nothing is lost."""
    setting = Setting(**options)
    parts = options["parts"].split(",")
    # these compile while others do; while a part measures, they stand still
    waiting = start_methods(setting) if "methods" in parts else {}
    for name in ("recipe", "speed", "methods", "record"):
        if name not in parts:
            continue
        started = time.time()
        with setting.quiet(waiting) if name in ("speed", "record") else contextlib.nullcontext():
            PARTS[name](setting, waiting)
        setting.found.setdefault("seconds", {})[name] = round(time.time() - started, 1)
        setting.save()
    click.echo(json.dumps(setting.found, indent=1))


class Setting:
    """What was asked for, and what was found so far.

    Attributes
    ----------
    found : dict
        As accelerator.json holds it.
    """

    def __init__(self, *, out, minutes, batches, size, precision, **others):
        self.until = time.time() + 60 * minutes
        self.folder = Path(out).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        # several processes share the device, and what one has compiled
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(self.folder / "compiled"))
        self.batches = [int(batch) for batch in batches.split(",")]
        self.size = [int(side) for side in size.split("x")]
        self.precision, self.others = precision, others
        self.policy = hardware.dtype_policy(precision)
        name = device_name()
        self.found = {
            "device": name,
            "machine": machine(),
            "precision": self.policy,
            "size": self.size,
            "operations_a_picture": operations(*self.size[::-1]),
            "compilers_count": compilers_count(*self.size[::-1]),
            "measured_matmul_tflops": matmul_ceiling(self.policy),
            "datasheet_tflops": next((value for key, value in PEAKS.items() if key in name), None),
        }

    def __getattr__(self, name):
        return self.others[name]

    @property
    def lock(self) -> str:
        """Held by the process that measures."""
        return str(self.folder / "device.lock")

    @contextlib.contextmanager
    def quiet(self, works: dict):
        """Let processes stand still; none of them while it holds the lock."""
        with FileLock(self.lock):
            running = [work.process for work in works.values() if work.process.poll() is None]
            for process in running:
                process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in running:
                process.send_signal(signal.SIGCONT)

    def save(self) -> None:
        """Write what was found so far."""
        write_json(self.folder / "accelerator.json", self.found)
        with atomic_write(self.folder / "accelerator.png") as temporary:
            figure(self.found).savefig(temporary, dpi=110)

    def start(self, part: str, arguments: dict | list, log: str, **environment) -> "Work":
        """Start a part of `device_work`, or with a list PyTorch, in a process of its own."""
        words = [part, json.dumps(arguments)]
        module = "tests.bench.device_work"
        if isinstance(arguments, list):
            module, words = f"tests.bench.{part}", arguments
        return Work([sys.executable, "-m", module, *words], self.folder / f"{log}.log", environment)


class Work:
    """A process that prints JSON a line.

    Attributes
    ----------
    lines : list of dict
        What it found so far.
    said : list of str
        What else it wrote to stdout.
    """

    def __init__(self, words: list[str], log: Path, environment: dict):
        self.log, self.lines, self.said = log, [], []
        with open(log, "a") as file:
            self.process = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=file, text=True, env=os.environ | environment
            )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                self.lines.append(json.loads(line))
            else:
                self.said.append(line.rstrip())

    def end(self, until: float) -> list[dict]:
        """Wait, stop it when the time is up, and give what it said; what went wrong, too."""
        try:
            self.process.wait(max(until - time.time(), 1))
            self.reader.join()
        except subprocess.TimeoutExpired:
            self.process.kill()
            return [*self.lines, {"error": "the time was up"}]
        if self.process.returncode:
            return [*self.lines, {"error": self.log.read_text()[-1500:]}]
        return self.lines


def recipe(setting: Setting, _) -> None:
    """Two epochs in float32 and in the machine's own precision, each killed after the first and resumed."""
    works = {}
    precisions = dict.fromkeys(("float32", setting.policy))
    until = min(setting.until, time.time() + 150)
    for precision in precisions:
        arguments = {
            "cache": setting.cache,
            "method": f"resnet50:precision={precision}",
            "split": "case",
            "seed": 0,
            "epochs": 2,
            "steps": setting.epoch_steps,
            "root": str(setting.folder / "trials"),
            "weights": setting.weights,
            "needs": setting.weights != "none",
            "verbose": 2,
        }
        # a share of 1: a checkpoint after each epoch
        works[precision] = (
            setting.start("trial", arguments, f"recipe-{precision}", BCD_CHECKPOINT_SHARE="1000"),
            arguments,
        )
    answer = setting.found["recipe"] = {}
    running, killed = dict(works), []
    while running and time.time() < until:
        for precision, (work, arguments) in list(running.items()):
            name = f"trials/resnet50-precision={precision}-*/checkpoint.keras"
            if work.process.poll() is None and not any(setting.folder.glob(name)):
                continue
            if work.process.poll() is None:
                killed.append(precision)
                work.process.kill()
            works[precision] = setting.start("trial", arguments, f"recipe-{precision}-resumed"), arguments
            del running[precision]
        time.sleep(0.1)
    for precision, (work, _) in works.items():
        lines = work.end(until)
        answer[precision] = {"killed": precision in killed} | lines[-1]
        answer[precision]["said"] = [line for line in work.said if line.startswith("Going on")]
        setting.save()
    losses = [one["loss"][-1] for one in answer.values() if "loss" in one]
    if len(losses) == 2:
        answer["difference"] = abs(losses[0] - losses[1])


def speed(setting: Setting, _) -> None:
    """PyTorch and the suite, one after the other; PyTorch compiles while nothing is timed."""
    until = min(setting.until, time.time() + 270)
    steps, size = setting.steps, "x".join(map(str, setting.size))
    if setting.torch and importlib.util.find_spec("torch"):
        batches = ",".join(map(str, setting.batches))
        lines = setting.start(
            "torch_peer", [batches, str(steps), size, setting.policy, setting.lock], "torch"
        ).end(until)
        setting.found["torch"] = shares(lines, setting.found)
        setting.save()
    arguments = {
        "cache": setting.cache,
        "weights": setting.weights,
        "batches": setting.batches,
        "steps": steps,
        "size": setting.size,
        "precision": setting.precision,
        "lock": setting.lock,
        "others": [1, 60],
    }
    setting.found["speed"] = shares(setting.start("speed", arguments, "speed").end(until), setting.found)
    setting.save()
    arguments |= {"batches": setting.batches[:1], "cache": None, "others": []}
    for flags in setting.flags:
        lines = setting.start("speed", arguments, "flags", XLA_FLAGS=flags).end(until)
        setting.found.setdefault("flags", {})[flags] = shares(lines, setting.found)
        setting.save()


def shares(lines: list[dict], known: dict) -> list[dict]:
    """Add to training's images/s what they are of the chip's peak."""
    return [
        line | with_shares(line["images_a_second"], line["batch"], known) if "batch" in line else line
        for line in lines
    ]


def start_methods(setting: Setting) -> dict[str, Work]:
    """Every method in a process of its own: 20 steps of each of two epochs, the second timed."""
    works = {}
    for key in METHODS:
        arguments = {
            "source": setting.images,
            "key": key,
            "split": "case",
            "seed": 0,
            "epochs": 2,
            "steps": 20,
            "root": str(setting.folder / "methods"),
            "weights": "none",
            "lock": setting.lock,
        }
        works[key] = setting.start("all_methods", arguments, f"method-{key}")
    return works


def end_methods(setting: Setting, works: dict[str, Work]) -> None:
    """Wait for the methods."""
    until = min(setting.until, time.time() + 180)
    for key, work in works.items():
        setting.found.setdefault("methods", {})[key] = work.end(until)[-1]
        setting.save()


def record(setting: Setting, _) -> None:
    """The paper's 200 epochs under its own split and by case, side by side, as many as the time allows."""
    works = []
    for split in ("magnification", "case"):
        arguments = {
            "cache": setting.cache,
            "method": "resnet50",
            "split": split,
            "seed": 0,
            "epochs": 200,
            "steps": setting.epoch_steps,
            "root": str(setting.folder / "trials"),
            "weights": setting.weights,
            "needs": setting.weights != "none",
            "deadline": setting.until - 45,
        }
        works.append(setting.start("trial", arguments, f"record-{split}", BCD_ANYWAY="1"))
    for work in works:
        found = work.end(setting.until)[-1]
        setting.found.setdefault("record", []).append(found)
        for name in ("history.csv", "predictions.csv", "validation.csv", "trial.json"):
            if "folder" in found:
                stem = f"{found['method']}-{found['split']}-seed{found['seed']}"
                shutil.copy(Path(found["folder"]) / name, setting.folder / f"{stem}-{name}")
        setting.save()


PARTS = {"recipe": recipe, "speed": speed, "methods": end_methods, "record": record}
METHODS = [key for key in methods.method_names() if key not in ("embeddings", "encoder")]


def figure(found: dict):
    """Images/s of training by batch size, ours and PyTorch's; and the methods'."""
    chart, axis = style.make_figure(width=8, height=4)
    for name, label, colour in (("speed", "bcdlib", style.MEASURED), ("torch", "PyTorch", style.PUBLISHED)):
        rows = [row for row in found.get(name, []) if "batch" in row]
        axis.plot(
            [row["batch"] for row in rows],
            [row["images_a_second"] for row in rows],
            "o-",
            color=colour,
            label=label,
        )
        for row in rows:
            axis.annotate(f"{row['images_a_second']:.0f}", (row["batch"], row["images_a_second"]))
    axis.set(
        xscale="log",
        xlabel="batch size",
        ylabel="images a second, training",
        title=f"ResNet-50 at {found['size'][0]}x{found['size'][1]}, {found['precision']}, {found['device']}",
    )
    axis.set_ylim(bottom=0)
    axis.legend()
    return chart


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
    step = jax.jit(jax.value_and_grad(loss))
    variables = [variable.value for variable in model.trainable_variables]
    return step.lower(variables, X, y).cost_analysis()["flops"] / batch


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
