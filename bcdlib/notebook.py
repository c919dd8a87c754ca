"""A finished trial's notebook: 04_train, executed for this trial alone; it shows the network and the curves."""

import json
import tempfile
from pathlib import Path

from bcdlib import child, profiles, stored, suite, trials
from bcdlib.errors import InputError
from bcdlib.pixels import PixelCache
from bcdlib.profiles import Profile
from bcdlib.runs import Run, write_csv

NAME = "trial.ipynb"
# Beside the process that trained, and that may hold all of a GPU's memory; to show a network takes none
_NO_ACCELERATOR = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}


def run(trial: trials.Trial, cache: PixelCache, profile: Profile, root, weights=None, verbose=None, keep_model=True,
        store: str = "") -> trials.Result:
    """`trials.run`; then, if the trial's folder has no ``trial.ipynb``, make it, and put it into the store too.

    Raises
    ------
    InputError
        If 04_train cannot be told these settings, since they are not those of a profile by name.
    suite.StageError
        If the notebook fails; its executed half is kept, and the trial's results too.
    """
    result = trials.run(trial, cache, profile, root, weights, verbose, keep_model, store)
    if not (result.folder / NAME).is_file():
        _check(trial, profile, weights)
        _execute(result, cache, profile, weights)
        if store:
            stored.write(f"{store.rstrip('/')}/{result.folder.name}", NAME, (result.folder / NAME).read_bytes())
    return result


def _check(trial: trials.Trial, profile: Profile, weights) -> None:
    named = profiles.get(profile.name)
    if trial.estimator(named, weights).get_params() != trial.estimator(profile, weights).get_params():
        raise InputError(f"profile {profile.name!r} was changed: 04_train knows profiles by name only, and would train anew")


def _execute(result: trials.Result, cache: PixelCache, profile: Profile, weights) -> None:
    """In a run folder for the while, which has the trial's split alone and the trial's own folder of trials."""
    trial, half = result.trial, result.folder / f".{NAME}"
    with tempfile.TemporaryDirectory(prefix="bcdlib-") as folder:
        scratch = Run(Path(folder))
        scratch.record(cache=str(cache.folder), profile=profile.name, trials=str(result.folder.parent.absolute()))
        write_csv(scratch.folder / "splits" / f"{trial.split}.csv", trial.split_table)
        made_from = json.loads((cache.folder / "cache.json").read_text())["made_from"]
        parameters = {
            "data": made_from, "profile": profile.name, "out": folder, "seed": trial.seed, "weights": weights or "",
            "method": str(trial.method), "trainable": trial.trainable, "task": trial.task, "stain": trial.stain or "",
            "splits": trial.split, "fold": trial.fold, "keep_model": False,
        }
        # it works here: the method's file and the folder of weights may have been named relative to it
        env = _NO_ACCELERATOR | {"PYTHONPATH": child.environment()["PYTHONPATH"]}
        suite.execute("04_train", parameters, half, Path.cwd(), env=env)
    half.replace(result.folder / NAME)
