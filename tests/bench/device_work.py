"""What `accelerator` runs in processes of their own: each prints JSON, a line a finding, and ends.

``python -m tests.bench.device_work PART JSON``, where JSON holds the part's arguments.
"""

import contextlib
import dataclasses
import gzip
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import keras
import numpy as np
from filelock import FileLock

from bcdlib import methods
from bcdlib.data import breakhis, sources, splits
from bcdlib.data import cache as caches
from bcdlib.methods.parts import backbones, features, fitting, hardware
from bcdlib.runs import profiles
from bcdlib.trials.trial import Trial, run_trial

PICTURES = 2048  # random ones: what they show costs no time
LOCK = "device.lock"  # who holds it measures; the others may compile


def say(**found) -> None:
    """Print a line of JSON."""
    print(json.dumps(found), flush=True)


class Watch(keras.callbacks.Callback):
    """Time the second epoch on, one process at a time, and stop after the epoch in which a deadline passes.

    Attributes
    ----------
    rates : list of float
        Images a second, an epoch each.
    """

    def __init__(self, batches, lock=None, deadline=float("inf")):
        super().__init__()
        self.batches, self.deadline, self.rates = batches, deadline, []
        self.lock = contextlib.nullcontext() if lock is None else FileLock(lock)

    def on_epoch_begin(self, epoch, logs=None):
        """Wait for one's turn; start the clock."""
        if epoch:
            self.lock.__enter__()
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        """Stop the clock: ``logs`` are numbers, so the step is done."""
        self.ended, self.steps = time.perf_counter(), batch + 1

    def on_epoch_end(self, epoch, logs=None):
        """Note the rate."""
        if epoch:
            self.lock.__exit__(None, None, None)
            self.rates.append(self.batches.batch_size * self.steps / (self.ended - self.started))
        if time.time() > self.deadline:
            self.model.stop_training = True


@contextlib.contextmanager
def watching(lock=None, deadline=float("inf")):
    """Watch the trainings inside; gives the list of their `Watch`."""
    whole, found = fitting.fit_network, []

    def watched(model, batches, held_out, *, callbacks=(), **options):
        found.append(Watch(batches, lock, deadline))
        return whole(model, batches, held_out, callbacks=[*callbacks, found[-1]], **options)

    fitting.fit_network = watched
    try:
        yield found
    finally:
        fitting.fit_network = whole


def trial(
    *,
    cache,
    method,
    split,
    seed,
    epochs,
    steps,
    root,
    weights,
    needs=True,
    verbose=0,
    lock=None,
    deadline=float("inf"),
):
    """Run a trial of profile ``paper``, fold 0, stopped where the time is up."""
    found = caches.open_cache(cache)
    table = splits.make_split(found.images, split, seed=0)
    profile = profiles.get_profile("paper", epochs=epochs, steps_per_epoch=steps)
    if not needs:
        profile = dataclasses.replace(profile, needs_pretrained=False)
    started = time.perf_counter()
    with watching(lock, deadline) as watches:
        result = run_trial(
            Trial(method, split, table, seed=seed),
            found,
            profile,
            root=root,
            weights=weights,
            keep_model=False,
            verbose=verbose,
        )
    rates = [rate for watch in watches for rate in watch.rates]
    answer = {
        "method": method,
        "split": split,
        "seed": seed,
        "folder": str(result.folder),
        "seconds": time.perf_counter() - started,
        "images_a_second": float(np.median(rates)) if rates else None,
        "peak_memory_bytes": peak_memory(),
        "finite": bool(np.isfinite(result.predictions["probability"]).all()),
    }
    if result.history is not None:
        answer["history"] = result.history.to_dict("list")
    say(**answer)


def all_methods(*, source, key, **options):
    """Run a trial of one method, from images of their own size."""
    opened = sources.open_source(source)
    root = Path(options["root"])
    with FileLock(root / "cache.lock"):
        images = breakhis.scan_breakhis(opened).images
        cache = caches.build_cache(opened, images, (144, 96), root=root / "cache", progress=False)
    trial(cache=cache.folder, method=key, needs=False, **options)


def speed(*, cache, weights, batches, steps, size, precision, lock, others=(), few_blocks=False):
    """Images/s of the training step by batch size, of prediction and of frozen features; where time goes."""
    width, height = size
    blocks = contextlib.nullcontext()
    if few_blocks:
        from tests.shallow import stages  # wants pytest, which an accelerator's machine may lack

        blocks = stages(few=True)
    with FileLock(lock), blocks:
        steps_of_training(batches, steps, height, width, precision, others)
        if cache:
            prediction(cache, weights)


def steps_of_training(batches, steps, height, width, precision, others):
    """By batch size; of the first also where the time goes, and with other numbers of steps an execution."""
    for batch in batches:
        with training(batch, steps, height, width, precision) as (model, epoch):
            images = batch * steps
            say(
                batch=batch, hardware=hardware.describe_hardware(model), images_a_second=images / usual(epoch)
            )
            if batch == batches[0]:
                say(profile=kernels(epoch))
                for at_once in others:
                    fitting.set_steps_at_once(model, hardware.steps_at_once(steps, at_once))
                    say(steps_at_once=model.steps_per_execution, images_a_second=images / usual(epoch))


def prediction(cache, weights):
    """Of a network as it is after training, and of its base."""
    X = caches.open_cache(cache).pixels
    X = np.concatenate([X] * 4) if hardware.accelerator()[0] != "cpu" else X[:64]
    base = backbones.find_weights("resnet50", weights, required=False)
    method = methods.get_method("resnet50")(weights="none", epochs=1, steps_per_epoch=1, verbose=0)
    method.fit(X[:32], np.arange(32) % 2)
    for what, call in (
        ("prediction", lambda: method.predict_proba(X)),
        ("frozen_features", lambda: features.extract_features(X, "resnet50", base)),
    ):
        say(what=what, images_a_second=len(X) / usual(call))


@contextlib.contextmanager
def training(batch: int, steps: int, height: int, width: int, precision: str):
    """Build ResNet-50 as the suite trains it; gives the model, and a function that trains an epoch."""
    X = np.random.default_rng(0).integers(0, 256, (max(PICTURES, batch), height, width, 3), dtype="uint8")
    method = methods.get_method("resnet50")(weights="none", precision=precision, verbose=0)
    with hardware.computing_dtype(hardware.dtype_policy(precision)):
        model = method.build(X.shape[1:])
        model.steps_per_execution = hardware.steps_at_once(steps)
        data = fitting.Batches(X, np.arange(len(X)) % 2, batch, steps, seed=0)

        def epoch():
            fitting.fit_network(model, data, None, epochs=data.epoch + 1, seed=0, verbose=0)
            np.asarray(model.trainable_variables[0])  # all steps are done

        yield model, epoch
    keras.utils.clear_session()


def usual(call) -> float:
    """Median seconds of three calls, after one to compile."""
    return float(np.median([seconds(call) for _ in range(4)][1:]))


def seconds(call) -> float:
    """Time a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def kernels(epoch, most: int = 30) -> dict:
    """Profile an epoch on JAX: its seconds, the device's busy ones, and the kernels that take the longest."""
    if keras.backend.backend() != "jax":
        return {}
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            wall = seconds(epoch)
        files = list(Path(folder).rglob("*.trace.json.gz"))
        events = json.loads(gzip.decompress(files[0].read_bytes()))["traceEvents"] if files else []
    names = {
        one["pid"]: one["args"]["name"]
        for one in events
        if one.get("name") == "process_name" and "name" in one.get("args", {})
    }
    threads = {
        (one["pid"], one["tid"]): one["args"]["name"] for one in events if one.get("name") == "thread_name"
    }
    spent, counted = Counter(), Counter()
    for one in events:
        place = names.get(one.get("pid"), ""), threads.get((one.get("pid"), one.get("tid")), "")
        if one.get("ph") == "X" and "GPU" in place[0] and "Stream" in place[1]:
            spent[one["name"]] += one["dur"] / 1e6
            counted[one["name"]] += 1
    longest = [
        {"kernel": name, "seconds": time, "calls": counted[name]} for name, time in spent.most_common(most)
    ]
    return {
        "wall_seconds": wall,
        "busy_seconds": sum(spent.values()),
        "kernels": sum(counted.values()),
        "places": sorted(set(names.values())),
        "longest": longest,
    }


def peak_memory() -> int | None:
    """Bytes of the device's memory that were in use at most; only JAX says so."""
    if keras.backend.backend() != "jax":
        return None
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


PARTS = {one.__name__: one for one in (trial, all_methods, speed)}

if __name__ == "__main__":
    PARTS[sys.argv[1]](**json.loads(sys.argv[2]))
