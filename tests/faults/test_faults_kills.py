"""Killed (-9) at any moment and started again with the same words: the same table in the end, bit for bit."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from bcdlib.data import breakhis
from bcdlib.data.cache import open_cache

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parent.parent.parent
LONGEST = 240  # seconds that one piece of work may take
METHOD = """
import numpy as np
from bcdlib.methods import Method

class Colours(Method):
    key, title = "colours", "nearest mean colour"
    def fit(self, X, y, validation_data=None, folder=None):
        X = X.mean(axis=(1, 2)); self.means_ = np.stack([X[y == k].mean(axis=0) for k in (0, 1)]); return self
    def predict_proba(self, X):
        far = np.linalg.norm(X.mean(axis=(1, 2))[:, None] - self.means_, axis=2)
        return far[:, ::-1] / far.sum(axis=1, keepdims=True)
    def save(self, path):
        np.save(path, self.means_, allow_pickle=False)
"""


@pytest.fixture(scope="module")
def few(tmp_path_factory, tiny):
    """About 40 real images of eight cases, at 40X and 100X; noise where BreakHis is not at hand."""
    real = Path(os.environ.get("BCD_BREAKHIS") or "nowhere", "half")
    files = {file.name: file for file in sorted(real.rglob("*.png"))}
    if not files:
        return tiny
    images = breakhis.images_table(files).query("magnification <= 100")
    cases = [case for _, part in images.groupby("class") for case in sorted(part["case"].unique())[:4]]
    chosen = images[images["case"].isin(cases)].groupby(["case", "magnification"]).head(3)["filename"]
    folder = tmp_path_factory.mktemp("few")
    for name in chosen:
        place = folder / breakhis.official_path(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(files[name].read_bytes())
    return folder


def kill(process) -> None:
    """The process and all that it started: kernels of notebooks are in sessions of their own."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            pass
    while process.poll() is None:
        time.sleep(0.005)
    psutil.wait_procs(family[1:], timeout=10)


def finished(process) -> float:
    started = time.monotonic()
    while process.poll() is None:
        assert time.monotonic() - started < LONGEST, "hangs"
        time.sleep(0.01)
    return time.monotonic() - started


def disturbed(start, folder: Path, moments, seed: int) -> int:
    """Start, kill at each of the moments in turn (if it comes), then let it end. Returns the number of hits.

    A moment is (pattern, seconds): a random part of so many seconds after a file of this pattern in the
    folder has appeared or changed; without a pattern after the start.
    """
    rng, hits = np.random.default_rng(seed), 0
    for pattern, seconds in moments:
        pause, due, before = float(rng.uniform(0, seconds)), None, seen(folder, pattern)
        process = start()
        while process.poll() is None:
            if due is None and (pattern is None or seen(folder, pattern) - before):
                due = time.monotonic() + pause
            if due is not None and time.monotonic() >= due:
                kill(process)
                hits += process.poll() == -signal.SIGKILL
                break
            time.sleep(0.002)
    last = start()
    finished(last)
    assert last.poll() == 0
    return hits


def seen(folder: Path, pattern: str | None) -> set:
    found = set()
    for path in folder.glob(pattern or "nothing"):
        with contextlib.suppress(OSError):  # gone in the meantime
            found.add((path, path.stat().st_mtime_ns))
    return found


def note(record_property, hits: int, equal: bool) -> None:
    record_property(
        "faults",
        {
            "kind": "kills",
            "tried": hits,
            "survived": hits if equal else 0,
            "reported": 0,
            "lost": 0 if equal else hits,
        },
    )


def same_files(one: Path, other: Path, *names) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


# ---------------------------------------------------------------- preprocess


@pytest.mark.parametrize("kills", [2, pytest.param(8, marks=pytest.mark.thorough)])
def test_preprocess(kills, few, warm, tmp_path, record_property):
    def work(name):
        return warm.start(
            work="to_preprocess",
            data=few,
            out=tmp_path / name / "run",
            cache=tmp_path / name / "cache",
            size=(144, 96),
            log=tmp_path / "log",
        )

    usual = finished(whole := work("whole"))
    assert whole.poll() == 0, (tmp_path / "log").read_text()
    moments = [(None, usual) if number % 2 else ("cache/*", usual / 2) for number in range(kills)]
    hits = disturbed(lambda: work("cut"), tmp_path / "cut", moments, seed=kills)
    one, other = (
        [path.parent for path in (tmp_path / name / "cache").glob("*/cache.json")]
        for name in ("whole", "cut")
    )
    assert len(one) == len(other) == 1 and one[0].name == other[0].name
    whole, cut = open_cache(one[0]), open_cache(other[0])
    equal = np.array_equal(whole.pixels, cut.pixels) and whole.images.equals(cut.images)
    equal = equal and same_files(
        tmp_path / "whole" / "run",
        tmp_path / "cut" / "run",
        "splits/case.csv",
        "images.csv",
        "tables/intake.csv",
    )
    note(record_property, hits, equal)
    assert equal and hits


# ---------------------------------------------------------------- train


@pytest.mark.parametrize(
    "method, size, epochs, kills",
    [
        ("lenet5", (36, 24), 4, 2),
        pytest.param("lenet5", (36, 24), 8, 8, marks=pytest.mark.thorough),
        pytest.param("resnet50", (48, 32), 3, 4, marks=pytest.mark.thorough),
    ],
)
def test_train(method, size, epochs, kills, few, warm, tmp_path, record_property):
    """In an epoch, while a checkpoint is written, between the two, and before the first."""

    def work(name):
        return warm.start(
            work="to_train",
            data=few,
            out=tmp_path / name,
            cache=tmp_path / "cache",
            size=size,
            method=method,
            epochs=epochs,
            steps=4,
            log=tmp_path / "log",
        )

    usual = finished(whole := work("whole"))
    assert whole.poll() == 0, (tmp_path / "log").read_text()
    epoch = usual / epochs / 2
    kinds = [
        ("trials/*/.checkpoint-*", 0.03),
        ("trials/*/checkpoint.keras", epoch),
        ("trials/*/history.csv", usual / 2),
        (None, usual),
    ]
    hits = disturbed(
        lambda: work("cut"), tmp_path / "cut", [kinds[number % 4] for number in range(kills)], seed=epochs
    )
    equal = same_files(tmp_path / "whole", tmp_path / "cut", "predictions.csv", "validation.csv")
    histories = [
        pd.read_csv(next((tmp_path / name).glob("trials/*/history.csv"))) for name in ("whole", "cut")
    ]
    note(record_property, hits, equal and histories[0].equals(histories[1]))
    assert equal and hits
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    left = {path.name for path in (tmp_path / "cut").glob("trials/*/*")}
    assert "model-card.md" in left and "checkpoint.keras" not in left


# ---------------------------------------------------------------- feature cache, compare


@pytest.mark.thorough
def test_feature_cache_and_compare(few, warm, tmp_path, record_property):
    (tmp_path / "colours.py").write_text(METHOD)

    def work(name):
        return warm.start(
            work="to_compare",
            data=few,
            out=tmp_path / name / "run",
            cache=tmp_path / name / "cache",
            size=(72, 48),
            methods=["resnet50", tmp_path / "colours.py"],
            splits=["image", "case"],
            log=tmp_path / "log",
        )

    usual = finished(whole := work("whole"))
    assert whole.poll() == 0, (tmp_path / "log").read_text()
    moments = [
        ("cache/*/features/.*", 0.5),
        ("cache/*/features/.*", usual / 4),
        ("run/trials/*", usual / 6),
        ("run/trials/*/trial.json", usual / 6),
        (None, usual),
        ("run/trials/*/trial.json", 0.1),
        ("run/.comparison*", 0.01),
    ]
    hits = disturbed(lambda: work("cut"), tmp_path / "cut", moments, seed=6)
    names = ("comparison_predictions.csv", "comparison_validation.csv", "comparison.csv")
    equal = same_files(tmp_path / "whole" / "run", tmp_path / "cut" / "run", *names)
    features = [sorted((tmp_path / name).glob("cache/*/features/[!.]*.npy")) for name in ("whole", "cut")]
    equal = equal and [path.read_bytes() for path in features[0]] == [
        path.read_bytes() for path in features[1]
    ]
    note(record_property, hits, equal)
    assert equal and len(features[0]) == 1 and hits >= 5


# ---------------------------------------------------------------- the real commands


def command(data, out, cache, *words):
    env = {**os.environ, "BCD_CACHE": str(cache), "BCD_CHECKPOINT_SHARE": "1"}
    words = [sys.executable, "-m", "bcdlib", *words, "--data", data, "--out", out]
    with open(f"{out}.log", "a") as log:
        return subprocess.Popen(
            list(map(str, words)), cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
        )


@pytest.mark.thorough
def test_command_compare(few, tmp_path, record_property):
    (tmp_path / "colours.py").write_text(METHOD)

    def work(name):
        (tmp_path / name).mkdir(exist_ok=True)
        return command(
            few,
            tmp_path / name / "run",
            tmp_path / name / "cache",
            "compare",
            "--methods",
            tmp_path / "colours.py",
            "--splits",
            "image,case",
            "--folds",
            "2",
            "--seeds",
            "2",
        )

    usual = finished(whole := work("whole"))
    assert whole.poll() == 0, (tmp_path / "whole" / "run.log").read_text()
    moments = [
        ("cache/*", usual / 8),
        ("run/trials/*", 0.05),
        ("run/trials/*/trial.json", 0.3),
        (None, usual),
    ]
    hits = disturbed(lambda: work("cut"), tmp_path / "cut", moments, seed=1)
    names = ("comparison_predictions.csv", "comparison_validation.csv", "comparison.csv")
    equal = same_files(tmp_path / "whole" / "run", tmp_path / "cut" / "run", *names)
    note(record_property, hits, equal)
    assert equal and hits >= 2


@pytest.mark.thorough
def test_command_run(few, tmp_path, record_property):
    """Three notebooks under papermill, with all their kernels: data, pixels, training."""

    def work(name):
        (tmp_path / name).mkdir(exist_ok=True)
        only = [word for stage in ("01_mount", "02_preprocess", "04_train") for word in ("--only", stage)]
        return command(
            few, tmp_path / name / "run", tmp_path / name / "cache", "run", "--weights", "none", *only
        )

    usual = finished(whole := work("whole"))
    assert whole.poll() == 0, (tmp_path / "whole" / "run.log").read_text()
    moments = [
        ("cache/*", usual / 8),
        ("run/trials/*/.checkpoint-*", 0.2),
        ("run/trials/*/history.csv", usual / 4),
    ]
    hits = disturbed(lambda: work("cut"), tmp_path / "cut", moments, seed=2)
    equal = same_files(
        tmp_path / "whole" / "run", tmp_path / "cut" / "run", "predictions.csv", "validation.csv"
    )
    note(record_property, hits, equal)
    assert equal and hits >= 2 and (tmp_path / "cut" / "run" / "report.html").is_file()
