"""Trials for workers: one file says all that they have in common, so that what the scheduler passes on is a line each."""

import dataclasses
import functools
import hashlib
import json
import os
from io import StringIO
from pathlib import Path

import keras
import pandas as pd

from bcdlib.data import sources
from bcdlib.data.cache import PixelCache, build_cache, open_cache
from bcdlib.runs.profiles import Profile
from bcdlib.trials import store
from bcdlib.trials.trial import Trial, run_trial

_TABLES = {"filename": str, "slide": str, "case": str}


def write_job(place: str, cache: PixelCache, profile: Profile, *, planned: list[Trial], **options) -> str:
    """Write the file of a comparison, and give its address back.

    Parameters
    ----------
    place : folder or URL for fsspec that all workers see
    options : weights, keep_models, notebooks, root (folder of trials), source (where the images came from), store
    """
    facts = {
        "cache": str(cache.folder),
        "size": list(cache.size),
        "profile": dataclasses.asdict(profile),
        **options,
        "images": cache.images.to_csv(index=False),
        "splits": {key: table.to_csv(index=False) for key, table in _tables(planned).items()},
    }
    text = json.dumps(facts)
    return store.write_file(
        place, f"job-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json", text.encode()
    )


def job_items(job: str, planned: list[Trial]) -> tuple[list[dict], list[str]]:
    """Arguments of `run`, and a key for each: a hash of what it depends on."""
    keys = {id(table): key for key, table in _tables(planned).items()}
    found = [
        {
            "job": job,
            "trial": vars(trial) | {"method": str(trial.method), "split_table": keys[id(trial.split_table)]},
        }
        for trial in planned
    ]
    return found, [
        "trial-" + hashlib.sha256(json.dumps(item, default=str).encode()).hexdigest()[:20] for item in found
    ]


def _tables(planned: list[Trial]) -> dict[str, pd.DataFrame]:
    distinct = {id(trial.split_table): trial.split_table for trial in planned}
    return {f"{number}": table for number, table in enumerate(distinct.values())}


def run_job(job: str, trial: dict) -> str:
    """A trial, on a worker; returns the name of its folder. One that is finished already is found."""
    facts, cache, profile, tables = _read(job)
    planned = Trial(**trial | {"split_table": tables[trial["split_table"]]})
    work = trial_runner(facts.get("notebooks", False))
    result = work(
        planned, cache, profile, _root(facts), facts["weights"], 0, facts["keep_models"], facts["store"]
    )
    keras.utils.clear_session()  # or a night of trials would fill the memory with old graphs
    return result.folder.name


def trial_runner(notebooks: bool):
    """`trial.run_trial`, or what keeps the trial's notebook too."""
    if not notebooks:
        return run_trial
    from bcdlib.trials import notebook  # with papermill, which is slow to import

    return notebook.run_with_notebook


@functools.lru_cache(maxsize=2)
def _read(job: str):
    facts = json.loads(store.read_file(job))
    profile = Profile(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in facts["profile"].items()}
    )
    tables = {key: pd.read_csv(StringIO(text), dtype=_TABLES) for key, text in facts["splits"].items()}
    return facts, _cache(facts), profile, tables


def _own() -> Path:
    return Path(os.environ.get("BCD_CACHE") or Path.home() / ".cache" / "bcdlib")


def _root(facts: dict) -> Path:
    """The folder of trials; on a machine that does not see it, one of its own, since the store keeps what is finished."""
    root = Path(facts["root"])
    if facts["store"] and not root.parent.is_dir():
        root = _own() / "trials"
        root.mkdir(parents=True, exist_ok=True)
    return root


def _cache(facts: dict) -> PixelCache:
    """The pixel cache; on a machine that does not see it, built from the same images at the same path, by one worker."""
    if (Path(facts["cache"]) / "cache.json").is_file():
        return open_cache(facts["cache"])
    images = pd.read_csv(StringIO(facts["images"]), dtype=_TABLES)
    return build_cache(
        sources.open_source(facts["source"]), images, tuple(facts["size"]), root=_own(), progress=False
    )
