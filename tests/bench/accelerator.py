"""The paper's recipe on an accelerator: images/s, share of the chip's peak, the same network in PyTorch.

``python -m tests.bench.accelerator --cache CACHE --images IMAGES --weights WEIGHTS --out OUT`` with any of
Keras' backends. On a CPU it runs too, with ``--batches 4 --steps 2 --epoch-steps 2``, to see that it does.
"""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import keras
import numpy as np

from bcdlib import methods
from bcdlib.methods.parts import hardware
from bcdlib.plots import style
from bcdlib.runs.files import atomic_write, write_json
from tests.bench.report import machine

# dense bf16 (T4: float16) TFLOP/s of the data sheets; a chip that is not here has the measured ceiling alone
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L4": 121, "T4": 65, "V100": 125}
RECIPE = 200 * 200  # steps of the paper
HELD_OUT = {"magnification": "test, as the paper drew it", "case": "validation"}
METHODS = [key for key in methods.method_names() if key not in ("embeddings", "encoder")]


@click.command()
@click.option("--cache", help="Folder of a pixel cache, as a run's settings.json names it.")
@click.option("--images", help="Folder or archive of images, for the methods that look at other sizes.")
@click.option("--weights", default="none", show_default=True, help="Folder of ImageNet weights.")
@click.option("--out", required=True, help="Folder for accelerator.json, accelerator.png and the trials.")
@click.option("--minutes", default=9.0, show_default=True, help="When all of it shall have ended.")
@click.option("--parts", default="speed,methods,recipe", show_default=True)
@click.option("--methods", default=",".join(METHODS), show_default=True)
@click.option("--batches", default="32,256", show_default=True)
@click.option("--steps", default=60, show_default=True, help="Of a timed epoch.")
@click.option("--epochs", default=200, show_default=True, help="Of the recipe, if the time allows.")
@click.option("--epoch-steps", default=200, show_default=True)
@click.option("--size", default="144x96", show_default=True)
@click.option("--precision", default="auto", show_default=True)
@click.option("--flags", multiple=True, help="XLA_FLAGS with which the first batch size is timed too.")
@click.option("--torch/--no-torch", default=True, help="Whether PyTorch is timed too.")
@click.option("--few-blocks", is_flag=True, help="Time networks of few blocks a stage, to try this script.")
def main(**options):
    """Try the paper's recipe on an accelerator, measure it, and record what it finds; nothing is lost."""
    setting = Setting(**options)
    parts = options["parts"].split(",")
    if "speed" in parts:
        speed(setting)  # by itself: what else runs would be measured with it
    works = start_methods(setting) if "methods" in parts else {}
    if "recipe" in parts:
        recipe(setting)
    end_methods(setting, works)
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
            "measured_matmul_tflops": matmul_ceiling(self.policy),
            "datasheet_tflops": next((value for key, value in PEAKS.items() if key in name), None),
        }

    def __getattr__(self, name):
        return self.others[name]

    @property
    def lock(self) -> str:
        """Held by the process that measures."""
        return str(self.folder / "device.lock")

    def note(self, part: str, started: float) -> None:
        """Note how many seconds a part took, and save."""
        self.found.setdefault("seconds", {})[part] = round(time.time() - started, 1)
        self.save()

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


def speed(setting: Setting) -> None:
    """PyTorch and the suite, one after the other; PyTorch compiles meanwhile."""
    until, started = min(setting.until, time.time() + 240), time.time()
    size = "x".join(map(str, setting.size))
    arguments = {
        "cache": setting.cache,
        "weights": setting.weights,
        "batches": setting.batches,
        "steps": setting.steps,
        "size": setting.size,
        "precision": setting.precision,
        "lock": setting.lock,
        "others": [60],
        "few_blocks": setting.few_blocks,
    }
    ours, peers = setting.start("speed", arguments, "speed"), []
    if setting.torch and importlib.util.find_spec("torch"):
        peers = [
            setting.start(
                "torch_peer",
                [str(batch), str(setting.steps), size, setting.policy, setting.lock],
                f"torch-{batch}",
                TORCHINDUCTOR_COMPILE_THREADS="4",
            )
            for batch in setting.batches
        ]
    setting.found["compilers_count"] = compilers_count(*setting.size[::-1])
    setting.found["speed"] = shares(ours.end(until), setting.found)
    setting.note("speed", started)
    setting.found["torch"] = shares([line for work in peers for line in work.end(until)], setting.found)
    setting.note("torch", started)
    arguments |= {"batches": setting.batches[:1], "cache": None, "others": []}
    for flags in setting.flags:
        lines = setting.start("speed", arguments, "flags", XLA_FLAGS=flags).end(until)
        setting.found.setdefault("flags", {})[flags] = shares(lines, setting.found)
        setting.note("flags", started)


def shares(lines: list[dict], known: dict) -> list[dict]:
    """Add to training's images/s what they are of the chip's peak."""
    return [
        line | with_shares(line["images_a_second"], line["batch"], known) if "batch" in line else line
        for line in lines
    ]


def start_methods(setting: Setting) -> dict[str, Work]:
    """Every method in a process of its own: 20 steps of each of two epochs, the second timed."""
    works = {}
    for key in setting.methods.split(","):
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
    for key, work in works.items():
        setting.found.setdefault("methods", {})[key] = work.end(setting.until)[-1]
        setting.save()


def recipe(setting: Setting) -> None:
    """The paper's recipe, side by side: two epochs in float32, and as many of 200 as the time allows.

    The latter in the machine's own precision, under the paper's split and by case. Those by case are killed
    after an epoch, and go on.
    """
    started = time.time()
    trials = {
        "float32": ("resnet50:precision=float32", "case", 2),
        "case": ("resnet50", "case", setting.epochs),
        "magnification": ("resnet50", "magnification", setting.epochs),
    }
    works = {
        name: start_trial(setting, name, *trials[name], often=name != "magnification") for name in trials
    }
    killed = set()
    for name in ("case", "float32"):
        stem = "resnet50-case-fold0" if name == "case" else "resnet50-precision=float32-case-fold0"
        while works[name].process.poll() is None and time.time() < setting.until - 60:
            if any(setting.folder.glob(f"trials/{stem}-*/checkpoint.keras")):
                works[name].process.kill()
                killed.add(name)
                break
            time.sleep(0.1)
        works[name] = start_trial(setting, f"{name}-resumed", *trials[name])
    for name, work in works.items():
        found = work.end(setting.until - 5)[-1]
        said = [line for line in work.said if line.startswith("Going on")]
        setting.found.setdefault("recipe", {})[name] = {"killed": name in killed, "said": said} | found
        if "folder" in found and name != "float32":
            for file in ("history.csv", "predictions.csv", "validation.csv", "trial.json"):
                shutil.copy(Path(found["folder"]) / file, setting.folder / f"{name}-{file}")
        setting.note("recipe", started)


def start_trial(setting: Setting, name: str, method: str, split: str, epochs: int, *, often=False) -> Work:
    """Start a trial; ``often``: with a checkpoint after each epoch."""
    arguments = {
        "cache": setting.cache,
        "method": method,
        "split": split,
        "seed": 0,
        "epochs": epochs,
        "steps": setting.epoch_steps,
        "root": str(setting.folder / "trials"),
        "weights": setting.weights,
        "needs": setting.weights != "none",
        "verbose": 2,
        "deadline": setting.until - 60,
    }
    share = {"BCD_CHECKPOINT_SHARE": "1000"} if often else {}
    return setting.start("trial", arguments, f"recipe-{name}", BCD_ANYWAY="1", **share)


def figure(found: dict):
    """Images/s of training, the suite's and PyTorch's; and the paper's Figures 8 and 9 as far as measured."""
    chart, axes = style.make_figure(1, 3, width=14, height=4)
    for name, label, colour in (("speed", "bcdlib", style.MEASURED), ("torch", "PyTorch", style.PUBLISHED)):
        rows = [row for row in found.get(name, []) if "batch" in row]
        rates = [row["images_a_second"] for row in rows]
        axes[0].plot([str(row["batch"]) for row in rows], rates, "o-", color=colour, label=label)
        for row in rows:
            place = str(row["batch"]), row["images_a_second"]
            axes[0].annotate(f"{place[1]:,.0f}", place, (6, 4), textcoords="offset points")
    axes[0].set(xlabel="batch size", ylabel="images a second", title="Training", ylim=(0, None))
    axes[0].margins(x=0.3)
    for axis, curve, title in zip(axes[1:], ("accuracy", "loss"), ("Figure 8", "Figure 9"), strict=True):
        for name, colour in (("magnification", style.SERIES[0]), ("case", style.SERIES[1])):
            history = found.get("recipe", {}).get(name, {}).get("history", {})
            for prefix, line, what in (("", ":", "training"), ("val_", "-", HELD_OUT[name])):
                if f"{prefix}{curve}" in history:
                    values = history[f"{prefix}{curve}"]
                    label = f"{name}: {what}"
                    axis.plot(range(1, len(values) + 1), values, line, color=colour, label=label)
        axis.set(xlabel="epoch of 200", ylabel=curve, title=f"{title}, as far as time allowed")
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    width, height = found["size"]
    chart.supxlabel(
        f"ResNet-50 at {width}x{height}, {found['precision']}, Keras on {found['machine']['backend']}; "
        f"{found['device']}",
        fontsize=8,
    )
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

    with jax.default_device(jax.devices("cpu")[0]):  # of a GPU's convolutions it knows nothing
        model = methods.get_method("resnet50")(weights="none", verbose=0).build((height, width, 3))
        others = [variable.value for variable in model.non_trainable_variables]

        def loss(trained, X, y):
            predicted, _ = model.stateless_call(trained, others, X, training=True)
            return jax.numpy.mean((predicted - y) ** 2)

        X, y = np.zeros((batch, height, width, 3), "uint8"), np.zeros((batch, 1), "float32")
        variables = [variable.value for variable in model.trainable_variables]
        counted = jax.jit(jax.value_and_grad(loss)).lower(variables, X, y).cost_analysis() or {}
    return counted.get("flops", 0) / batch or None


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
