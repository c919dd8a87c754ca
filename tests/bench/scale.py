"""Ten times BreakHis: memory and time of 80,000 images; and what a second run on the same data waits for.

Each measurement is a process of its own: ``python -m tests.bench.scale WORK DATA FOLDER``.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

FEW, MANY = 5_000, 80_000
BREAKHIS = 7_909
DRAWN = 64  # images that differ; the others are links to them
MEMORY = 1536  # MiB beyond what the framework takes by itself


def comparisons(setting):
    """Ratios to the bounds: of memory, of time an image, of the wait of a second run."""
    from tests.bench.ratios import Ratio

    if not Path("/proc/self/status").is_file():
        return  # memory is read there
    few, many, whole = (
        linked(setting.folder / f"drawn-{number}", number) for number in (FEW, MANY, BREAKHIS)
    )
    once, often, again = [], [], []
    for number in range(setting.pairs):
        once.append(_measured("ingest", few, setting.folder / f"few-{number}"))
        often.append(_measured("ingest", many, setting.folder / f"many-{number}"))
    yield Ratio(
        "scale-memory",
        f"memory for {MANY:,} images / {MEMORY} MiB",
        "<= 1",
        "MiB",
        [one["anonymous"] for one in often],
        [MEMORY] * len(often),
        "highest anonymous resident memory of ingest and an epoch of batches, beyond the framework's own",
    )
    yield Ratio(
        "scale-time",
        f"time an image, {MANY:,} images / {FEW:,}",
        "<= 1.25",
        "ms",
        [1000 * one["seconds"] / MANY for one in often],
        [1000 * one["seconds"] / FEW for one in once],
    )
    _measured("again", whole, setting.folder / "again")  # the first run, which decodes
    for _ in range(setting.pairs):
        again.append(_measured("again", whole, setting.folder / "again"))
    decoded = sum(one["decoded"] for one in again)
    yield Ratio(
        "scale-again",
        "second run: data ready after / 1 s",
        "<= 1",
        "s",
        [one["seconds"] for one in again],
        [1.0] * len(again),
        f"{BREAKHIS} images, {decoded} decoded again; from the framework's start to the first batch",
    )


def linked(folder: Path, number: int) -> Path:
    """A folder of so many names for drawn images of 210x138, of which `DRAWN` differ."""
    import cv2

    from bcdlib.data import synthetic
    from tests import bench

    if (folder / bench.made_up(number - 1)).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for row, place in zip(synthetic.plan_images().itertuples(), range(DRAWN)):
        picture = synthetic.draw_image(
            row.subtype, row.magnification, row.grade, slide=row.slide, sequence=row.sequence
        )[:138, :210]
        cv2.imwrite(str(folder / bench.made_up(place)), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    for place in range(DRAWN, number):
        os.link(folder / bench.made_up(place % DRAWN), folder / bench.made_up(place))
    return folder


def _measured(work: str, data: Path, folder: Path) -> dict:
    words = [sys.executable, "-m", "tests.bench.scale", work, data, folder]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------- in the process that is measured


def ingest(data: Path, folder: Path) -> dict:
    """Pixel cache and an epoch of batches: highest anonymous memory beyond that before (MiB), and seconds."""
    import keras

    from bcdlib.data import breakhis, cache, sources
    from bcdlib.methods.parts.fitting import Batches

    keras.ops.convert_to_numpy(keras.ops.zeros(1))  # the framework is up
    with highest() as memory:
        started = time.perf_counter()
        source = sources.open_source(data)
        cache = cache.build_cache(
            source, breakhis.scan_breakhis(source).images, (144, 96), root=folder, progress=False
        )
        batches = Batches(
            cache.pixels, breakhis.class_labels(cache.images), 32, len(cache.images) // 32, seed=0
        )
        for step in range(len(batches)):
            batches[step]
        seconds = time.perf_counter() - started
    return {"anonymous": memory[0], "seconds": seconds}


def again(data: Path, folder: Path) -> dict:
    """Stages 1 and 2 of a run and its first batch: seconds, and how many images were decoded."""
    import keras

    from bcdlib import mount, preprocess
    from bcdlib.data import breakhis, decode
    from bcdlib.methods.parts.fitting import Batches
    from bcdlib.runs import profiles

    keras.ops.convert_to_numpy(keras.ops.zeros(1))
    real, decoded = decode.decode_image, []
    decode.decode_image = lambda *arguments: (decoded.append(1), real(*arguments))[1]
    started = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        run = mount.open_run(folder / "run")
        mount.start_run(run, data, progress=False)
        cache = preprocess.resize_images(
            run,
            profiles.get_profile("paper"),
            mount.open_data(run),
            cache_root=folder / "cache",
            progress=False,
        )
    Batches(cache.pixels, breakhis.class_labels(cache.images), 32, 200, seed=0)[0]
    return {"seconds": time.perf_counter() - started, "decoded": len(decoded)}


@contextlib.contextmanager
def highest():
    """Yields a list whose one number becomes the most MiB of anonymous memory resident beyond those now."""
    before, found, stop = _anonymous(), [0.0], threading.Event()

    def watch():
        while not stop.wait(0.02):
            found[0] = max(found[0], _anonymous() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        stop.set()
        watcher.join()


def _anonymous() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


if __name__ == "__main__":
    print(json.dumps({"ingest": ingest, "again": again}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))))
