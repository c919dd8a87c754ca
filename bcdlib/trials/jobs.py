"""Trials as pieces of work; for workers, one file says all that the trials have in common."""

import contextlib
import dataclasses
import functools
import gc
import hashlib
import json
import os
from io import StringIO
from pathlib import Path

import keras
import pandas as pd

from bcdlib.data import sources
from bcdlib.data.cache import PixelCache, build_cache, open_cache
from bcdlib.methods.parts import backbones
from bcdlib.runs.files import TEXTS
from bcdlib.runs.profiles import Profile
from bcdlib.trials import cluster, store
from bcdlib.trials.trial import Result, Trial, load_trial, run_trial

_TYPES = {"filename": str, **TEXTS}


@backbones.one_try()
def run_trials(
    planned: list[Trial],
    cache: PixelCache,
    profile: Profile,
    *,
    root: Path,
    source: str = "",
    scheduler: str = "none",
    progress: bool = True,
    **options,
) -> list[Result | Exception]:
    """Run trials, here or on workers; one that fails does not stop the others.

    Parameters
    ----------
    root : pathlib.Path
        Folder of trials.
    source : str
        Where the cache's images came from, for workers on a machine that does not see the cache.
    scheduler : str
        As in `cluster.check_scheduler`.
    options
        weights, keep_model, store (as in `trial.run_trial`) and notebooks (see `run_here`).

    Returns
    -------
    list
        Of each trial what it found, or what it raised.

    Raises
    ------
    InputError
        If the store cannot be written to, or as in `cluster.map_items`.
    """
    if options["store"]:
        store.check_store(options["store"])
    if scheduler == "none":
        work, common = "run_here", {"cache": cache, "profile": profile, "root": root, **options}
        items = {str(trial): {"trial": trial, **common} for trial in planned}
    else:
        work, items = "run_job", write_job(planned, cache, profile, root=root, source=source, **options)
    with _only_new_garbage():
        outcomes = dict(
            cluster.map_items(
                f"{__name__}:{work}", items, scheduler=scheduler, label="Compare", progress=progress
            )
        )
    for name in outcomes.values():
        # made on a machine with a disk of its own
        if options["store"] and isinstance(name, str) and not (root / name).is_dir():
            store.fetch_trial(options["store"], root / name)
    return [
        load_trial(trial, root / outcome) if isinstance(outcome, str) else outcome
        for trial, outcome in ((trial, outcomes[str(trial)]) for trial in planned)
    ]


@contextlib.contextmanager
def _only_new_garbage():
    """Let collections of garbage meanwhile pass over what was there before.

    Each trial ends with one, and to look through TensorFlow's modules takes half a second.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def run_here(trial: Trial, cache: PixelCache, profile: Profile, *, notebooks: bool = False, **options) -> str:
    """Run a trial, with its executed notebook if so wished; return the name of its folder."""
    run = run_trial
    if notebooks:
        from bcdlib.trials.notebook import run_with_notebook as run  # with papermill, which is slow to import
    try:
        return run(trial, cache, profile, verbose=0, **options).folder.name
    finally:
        keras.utils.clear_session()  # or a night of trials would fill the memory with old graphs


def write_job(
    planned: list[Trial], cache: PixelCache, profile: Profile, *, root: Path, source: str, **options
) -> dict[str, dict]:
    """Write what trials have in common into a file, in the store if there is one, else beside the trials.

    Parameters
    ----------
    root, source, options
        As in `run_trials`.

    Returns
    -------
    dict
        Arguments of `run_job` for each trial, by its name.
    """
    content = json.dumps(
        {
            "cache": str(cache.folder),
            "size": list(cache.size),
            "profile": dataclasses.asdict(profile),
            "root": str(root),
            "source": source,
            "options": options,
            "images": cache.images.to_csv(index=False),
            "splits": {_split_name(trial): trial.split_table.to_csv(index=False) for trial in planned},
        }
    ).encode()
    job = {
        "place": options["store"] or str(root),
        "name": f"job-{hashlib.sha256(content).hexdigest()[:16]}.json",
    }
    store.write_file(job["place"], job["name"], content)
    return {
        str(trial): job
        | {"trial": vars(trial) | {"method": str(trial.method), "split_table": _split_name(trial)}}
        for trial in planned
    }


def _split_name(trial: Trial) -> str:
    return f"{trial.split}-seed{trial.seed}"


def run_job(place: str, name: str, trial: dict) -> str:
    """Run a trial on a worker, or find it finished; return the name of its folder."""
    facts, cache, profile, tables = _read_job(place, name)
    root = Path(facts["root"])
    # a run folder that is not seen from here: the store keeps the trials
    if facts["options"]["store"] and not root.parent.is_dir():
        root = _own_folder() / "trials"
        root.mkdir(parents=True, exist_ok=True)
    return run_here(
        Trial(**trial | {"split_table": tables[trial["split_table"]]}),
        cache,
        profile,
        root=root,
        **facts["options"],
    )


@functools.lru_cache(maxsize=2)
def _read_job(place: str, name: str):
    facts = json.loads(store.read_file(place, name))
    if (Path(facts["cache"]) / "cache.json").is_file():
        cache = open_cache(facts["cache"])
    else:  # not seen from here: built from the same images at the same path, by one worker of this machine
        cache = build_cache(
            sources.open_source(facts["source"]),
            pd.read_csv(StringIO(facts["images"]), dtype=_TYPES),
            tuple(facts["size"]),
            root=_own_folder(),
            progress=False,
        )
    return (
        facts,
        cache,
        Profile(**facts["profile"]),
        {key: pd.read_csv(StringIO(text), dtype=_TYPES) for key, text in facts["splits"].items()},
    )


def _own_folder() -> Path:
    return Path(os.environ.get("BCD_CACHE") or Path.home() / ".cache" / "bcdlib")
