"""Disks that fill up, data that vanish, two runs on one cache: one line, and the same table in the end."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bcdlib import mount, preprocess, train
from bcdlib.data import decode
from bcdlib.data.cache import open_cache, run_cache
from bcdlib.errors import InputError
from bcdlib.runs import files
from bcdlib.runs.profiles import get_profile
from bcdlib.suite.run import prepare_run

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = get_profile("demo", size=(36, 24), folds=2, batch_size=8, epochs=4, steps_per_epoch=3, head_epochs=3)
LARGE = get_profile("demo", size=(144, 96), folds=2, head_epochs=3)


class Disk:
    """A small file system in memory that can grow, and go away and come back."""

    def __init__(self, folder: Path, kib: int):
        self.folder, self.kib = folder, kib
        folder.mkdir()
        done = self._call("mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder)
        if done.returncode:
            pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")

    @staticmethod
    def _call(*words):
        return subprocess.run(list(map(str, words)), capture_output=True, text=True)

    def grow(self, kib: int) -> None:
        assert self._call("mount", "-o", f"remount,size={kib}k", self.folder).returncode == 0

    def leave(self) -> None:
        """As a Drive does: what lies there is gone, the empty folder under it stays."""
        self._call("mount", "--move", self.folder, self.aside())

    def aside(self) -> Path:
        place = self.folder.with_name(self.folder.name + "-aside")
        place.mkdir(exist_ok=True)
        return place

    def come_back(self) -> None:
        assert self._call("mount", "--move", self.aside(), self.folder).returncode == 0

    def end(self) -> None:
        for place in (self.folder, self.aside()):
            self._call("umount", "-l", place)


@pytest.fixture
def disk(tmp_path):
    made = []

    def make(kib: int, name="disk") -> Disk:
        made.append(Disk(tmp_path / name, kib))
        return made[-1]

    yield make
    for one in made:
        one.end()


def note(record_property, tried=1) -> None:
    """Written after the asserts: what came so far was told in one line and then went on."""
    record_property(
        "faults", {"kind": "disks", "tried": tried, "survived": tried, "reported": tried, "lost": 0}
    )


def prepared(data, out, cache_root, profile=SMALL):
    run = mount.open_run(out)
    prepare_run(run, profile, data, cache_root=cache_root, progress=False)
    return run, run_cache(run)


def trained(run, method="lenet5", trainable="all", profile=SMALL):
    return train.train_trials(
        run,
        profile,
        train.plan_trials(run, profile, split_names=("case",), method=method, trainable=trainable),
        weights="none",
        verbose=0,
    )


def one_line(error, *words) -> None:
    text = str(error.value)
    assert len(text.splitlines()) == 1 and all(word in text for word in words), text


def test_full_while_pixels_are_written(disk, tiny, tmp_path, record_property):
    full = disk(1500)
    small = prepared(tiny, tmp_path / "small", full.folder)[1]
    before = small.pixels.copy()
    with pytest.raises(InputError) as error:
        prepared(tiny, tmp_path / "run", full.folder, LARGE)  # 4 MB
    one_line(error, "the disk is full", str(full.folder))
    # no half of one stays
    assert {path.name for path in full.folder.iterdir()} == {small.folder.name, files.CACHE_TAG}
    assert np.array_equal(open_cache(small.folder).pixels, before)
    full.grow(12_000)
    cache = prepared(tiny, tmp_path / "run", full.folder, LARGE)[1]
    usual = prepared(tiny, tmp_path / "usual", tmp_path / "cache", LARGE)[1]
    assert np.array_equal(cache.pixels, usual.pixels) and len(cache.images) == 96
    note(record_property)


@pytest.mark.thorough
def test_full_while_a_checkpoint_is_written(disk, tiny, tmp_path, monkeypatch, record_property):
    monkeypatch.setenv("BCD_CHECKPOINT_SHARE", "1")
    trained(usual := prepared(tiny, tmp_path / "usual", tmp_path / "cache")[0])
    size = (
        2 * next((usual.folder / "trials").glob("*/model.keras")).stat().st_size
    )  # with the optimizer's copy
    full = disk(60_000)
    run, _ = prepared(tiny, full.folder / "run", tmp_path / "cache")
    taken = sum(file.stat().st_size for file in full.folder.rglob("*") if file.is_file())
    full.grow((taken + 3 * size // 2) // 1024 + 60)  # room for one, not for the next beside it
    with pytest.raises(InputError) as error:
        trained(run)
    one_line(error, "the disk is full", str(run.folder))
    history = pd.read_csv(next(run.folder.glob("trials/*/history.csv")))
    assert next(run.folder.glob("trials/*/checkpoint.keras")).stat().st_size > size // 2, (
        "the last good one is lost"
    )
    assert 1 <= len(history) < SMALL.epochs
    full.grow(60_000)
    trained(run)
    for name in ("predictions.csv", "validation.csv"):
        assert (run.folder / name).read_bytes() == (usual.folder / name).read_bytes()
    note(record_property)


@pytest.mark.thorough
def test_full_while_features_are_written(disk, tiny, tmp_path, record_property):
    usual, _ = prepared(tiny, tmp_path / "usual", tmp_path / "cache")
    trained(usual, "resnet50", "head")
    full = disk(900)
    run, cache = prepared(tiny, tmp_path / "run", full.folder)
    taken = sum(file.stat().st_size for file in full.folder.rglob("*") if file.is_file())
    full.grow(taken // 1024 + 200)  # the features take 96 x 2048 x 4 bytes
    with pytest.raises(InputError) as error:
        trained(run, "resnet50", "head")
    one_line(error, "the disk is full", str(full.folder))
    full.grow(60_000)
    trained(run, "resnet50", "head")
    assert (run.folder / "predictions.csv").read_bytes() == (usual.folder / "predictions.csv").read_bytes()
    note(record_property)


@pytest.mark.parametrize("way", ["renamed", "unmounted"])
def test_data_that_vanish_while_they_are_read(way, disk, tiny, tmp_path, monkeypatch, record_property):
    usual = prepared(tiny, tmp_path / "usual", tmp_path / "cache")[1]
    if way == "unmounted":
        drive = disk(20_000, "drive")
        data, leave, come_back = drive.folder / "data", drive.leave, drive.come_back
    else:
        data, away = tmp_path / "data", tmp_path / "away"
        leave, come_back = lambda: data.rename(away), lambda: away.rename(data)
    shutil.copytree(tiny, data)
    run = mount.open_run(tmp_path / "run")
    mount.start_run(run, data, progress=False)
    source = mount.open_data(run)
    real, count, lock = decode.decode_image, [0], threading.Lock()

    def decode_and_leave(*arguments, **options):
        with lock:
            count[0] += 1
            if count[0] == 20:
                leave()
        return real(*arguments, **options)

    monkeypatch.setattr(decode, "decode_image", decode_and_leave)
    with pytest.raises(InputError) as error:
        preprocess.resize_images(run, SMALL, source, cache_root=tmp_path / "other", progress=False)
    monkeypatch.undo()
    one_line(error, str(data))
    assert not [path for path in (tmp_path / "other").glob("*/cache.json")]
    with pytest.raises(InputError) as error:  # still away: told at once
        prepared(data, tmp_path / "run", tmp_path / "other")
    one_line(error, str(data))
    come_back()
    again = prepared(data, tmp_path / "run", tmp_path / "other")[1]
    assert np.array_equal(again.pixels, usual.pixels) and again.skipped.empty
    note(record_property)


@pytest.mark.thorough
def test_a_run_folder_that_vanishes_while_training(disk, tiny, tmp_path, monkeypatch, record_property):
    monkeypatch.setenv("BCD_CHECKPOINT_SHARE", "1")
    trained(usual := prepared(tiny, tmp_path / "usual", tmp_path / "cache")[0])
    drive = disk(60_000, "drive")
    run, _ = prepared(tiny, drive.folder / "run", tmp_path / "cache")
    stop = threading.Event()

    def leave_after_the_first_checkpoint():
        while not stop.wait(0.002):
            if list(run.folder.glob("trials/*/checkpoint.keras")):
                drive.leave()
                return

    watcher = threading.Thread(target=leave_after_the_first_checkpoint)
    watcher.start()
    with pytest.raises(InputError) as error:
        trained(run)
    stop.set()
    watcher.join()
    one_line(error, str(drive.folder))
    shutil.rmtree(drive.folder / "run", ignore_errors=True)  # what came to lie under the mount point
    drive.come_back()
    trained(run)
    assert (run.folder / "predictions.csv").read_bytes() == (usual.folder / "predictions.csv").read_bytes()
    note(record_property)


def test_two_runs_on_one_cache_at_the_same_time(tiny, prior, tmp_path, record_property):
    command = [
        sys.executable,
        "-m",
        "bcdlib",
        "compare",
        "--data",
        tiny,
        "--methods",
        prior,
        "--splits",
        "image,case",
        "--folds",
        "2",
        "--out",
    ]
    runs = [
        subprocess.Popen(
            [*map(str, command), str(tmp_path / name)],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "BCD_CACHE": str(tmp_path / "cache")},
        )
        for name in ("one", "other")
    ]
    said = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert len(list((tmp_path / "cache").glob("pixels-*"))) == 1, "a second copy, or what one of them left"
    for name in ("comparison_predictions.csv", "comparison.csv", "images.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    record_property("faults", {"kind": "two at a time", "tried": 2, "survived": 2, "reported": 0, "lost": 0})


@pytest.mark.thorough
def test_full_disk_on_the_command_line(disk, tiny, prior, tmp_path, record_property):
    full = disk(1000)
    command = [
        sys.executable,
        "-m",
        "bcdlib",
        "compare",
        "--data",
        tiny,
        "--methods",
        prior,
        "--splits",
        "image",
        "--folds",
        "2",
        "--profile",
        "quick",
        "--out",
        tmp_path / "run",
    ]
    environment = {**os.environ, "BCD_CACHE": str(full.folder)}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ") and "the disk is full" in last
    full.grow(20_000)
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    note(record_property)
