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

from bcdlib import pixels, sources, stored, trials
from bcdlib.profiles import Profile

_TABLES = {"filename": str, "slide": str, "case": str}


def write(place: str, cache: pixels.PixelCache, profile: Profile, planned: list[trials.Trial], **options) -> str:
    """Write the file of a comparison, and give its address back.

    Parameters
    ----------
    place : folder or URL for fsspec that all workers see
    options : weights, keep_models, notebooks, root (folder of trials), source (where the images came from), store
    """
    facts = {"cache": str(cache.folder), "size": list(cache.size), "profile": dataclasses.asdict(profile), **options,
             "images": cache.images.to_csv(index=False),
             "splits": {key: table.to_csv(index=False) for key, table in _tables(planned).items()}}
    text = json.dumps(facts)
    return stored.write(place, f"job-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json", text.encode())


def items(job: str, planned: list[trials.Trial]) -> tuple[list[dict], list[str]]:
    """Arguments of `run`, and a key for each: a hash of what it depends on."""
    keys = {id(table): key for key, table in _tables(planned).items()}
    found = [{"job": job, "trial": vars(trial) | {"method": str(trial.method), "split_table": keys[id(trial.split_table)]}}
             for trial in planned]
    return found, ["trial-" + hashlib.sha256(json.dumps(item, default=str).encode()).hexdigest()[:20] for item in found]


def _tables(planned: list[trials.Trial]) -> dict[str, pd.DataFrame]:
    distinct = {id(trial.split_table): trial.split_table for trial in planned}
    return {f"{number}": table for number, table in enumerate(distinct.values())}


def run(job: str, trial: dict) -> str:
    """A trial, on a worker; returns the name of its folder. One that is finished already is found."""
    facts, cache, profile, tables = _read(job)
    planned = trials.Trial(**trial | {"split_table": tables[trial["split_table"]]})
    work = runner(facts.get("notebooks", False))
    result = work(planned, cache, profile, _root(facts), facts["weights"], 0, facts["keep_models"], facts["store"])
    keras.utils.clear_session()  # or a night of trials would fill the memory with old graphs
    return result.folder.name


def runner(notebooks: bool):
    """`trials.run`, or what keeps the trial's notebook too."""
    if not notebooks:
        return trials.run
    from bcdlib import notebook  # with papermill, which is slow to import

    return notebook.run


@functools.lru_cache(maxsize=2)
def _read(job: str):
    facts = json.loads(stored.read(job))
    profile = Profile(**{key: tuple(value) if isinstance(value, list) else value for key, value in facts["profile"].items()})
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


def _cache(facts: dict) -> pixels.PixelCache:
    """The pixel cache; on a machine that does not see it, built from the same images at the same path, by one worker."""
    if (Path(facts["cache"]) / "cache.json").is_file():
        return pixels.open_cache(facts["cache"])
    images = pd.read_csv(StringIO(facts["images"]), dtype=_TABLES)
    return pixels.build_cache(sources.open_source(facts["source"]), images, tuple(facts["size"]), _own(), progress=False)
