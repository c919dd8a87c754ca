"""Trials on machines that do not see the run folder or the cache."""

import gc
import shutil
from pathlib import Path

import pytest

from bcdlib.data import cache, splits
from bcdlib.runs.folder import open_run_folder
from bcdlib.trials import cluster, jobs, trial
from bcdlib.trials.store import fetch_trial
from tests.trials.slow import PROFILE, prepared


def test_a_machine_without_the_cache_builds_its_own_once(slow, tiny, tmp_path, monkeypatch):
    run = prepared(tiny, tmp_path, "run")
    monkeypatch.setenv("BCD_CACHE", str(tmp_path / "elsewhere"))
    (first,) = (tmp_path / "cache").glob("pixels-*")
    shutil.move(first, tmp_path / "away")
    job_cache = open_run_folder(run.folder)  # what the parent had mapped is gone for the workers
    assert job_cache.settings["cache"] == str(first)
    own = cache.open_cache(tmp_path / "away")
    object.__setattr__(own, "folder", first)
    planned = [
        trial.Trial(f"{slow}:seconds=0", "image", splits.read_split(run, "image"), fold) for fold in range(2)
    ]
    found = jobs.run_trials(
        planned,
        own,
        PROFILE,
        root=run.folder / "trials",
        source=run.settings["source"],
        scheduler="local:2",
        progress=False,
        weights=None,
        keep_model=False,
        store="",
    )
    assert [result.trial.fold for result in found] == [0, 1], found
    assert [path.name for path in (tmp_path / "elsewhere").glob("pixels-*")] == [first.name]


def test_a_machine_without_the_run_folder_works_from_the_store(slow, tiny, tmp_path, monkeypatch):
    run = prepared(tiny, tmp_path, "run")
    monkeypatch.setenv("BCD_CACHE", str(tmp_path / "elsewhere"))
    store, root = str(tmp_path / "store"), str(tmp_path / "of another machine" / "run" / "trials")
    planned = [
        trial.Trial(f"{slow}:seconds=0", "image", splits.read_split(run, "image"), fold) for fold in range(2)
    ]
    items = jobs.write_job(
        planned,
        cache.run_cache(run),
        PROFILE,
        root=root,
        weights=None,
        keep_model=False,
        store=store,
        notebooks=False,
        source=run.settings["source"],
    )
    names = [jobs.run_job(**item) for item in items.values()]
    assert all(fetch_trial(store, run.folder / "trials" / name) for name in names) and not Path(root).exists()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["trials"]


def test_collections_of_garbage_see_all_again_after_the_trials(tiny, tmp_path, monkeypatch):
    run, seen = prepared(tiny, tmp_path, "run"), []

    def fail(*words, **more):
        seen.append(gc.get_freeze_count())
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "map_items", fail)
    options = {"root": tmp_path, "weights": None, "keep_model": False, "store": ""}
    with pytest.raises(KeyboardInterrupt):
        jobs.run_trials([], cache.run_cache(run), PROFILE, **options)
    assert seen[0] > 0 and gc.get_freeze_count() == 0
