"""A finished trial's notebook: 04_train, executed for this trial alone; it shows the network and the curves."""

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

import papermill

from bcdlib.data.cache import PixelCache
from bcdlib.errors import InputError
from bcdlib.runs.files import write_csv
from bcdlib.runs.folder import Run
from bcdlib.runs.places import home_folder, shipped
from bcdlib.runs.profiles import Profile, get_profile
from bcdlib.trials import worker
from bcdlib.trials.store import write_file
from bcdlib.trials.trial import Result, Trial, run_trial

NOTEBOOK_NAME = "trial.ipynb"
# Beside the process that trained, and that may hold all of a GPU's memory; to show a network takes none
_NO_ACCELERATOR = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}


def run_with_notebook(
    trial: Trial,
    cache: PixelCache,
    profile: Profile,
    *,
    root,
    weights=None,
    verbose=None,
    keep_model=True,
    store: str = "",
) -> Result:
    """`trial.run_trial`; then, if the trial's folder has no ``trial.ipynb``, make it, and put it into the store too.

    Raises
    ------
    InputError
        If 04_train cannot be told these settings, since they are not those of a profile by name.
    notebook.StageError
        If the notebook fails; its executed half is kept, and the trial's results too.
    """
    result = run_trial(
        trial, cache, profile, root=root, weights=weights, verbose=verbose, keep_model=keep_model, store=store
    )
    if not (result.folder / NOTEBOOK_NAME).is_file():
        _check(trial, profile, weights)
        _execute(result, cache, profile, weights)
        if store:
            write_file(
                f"{store.rstrip('/')}/{result.folder.name}",
                NOTEBOOK_NAME,
                (result.folder / NOTEBOOK_NAME).read_bytes(),
            )
    return result


def _check(trial: Trial, profile: Profile, weights) -> None:
    named = get_profile(profile.name)
    if trial.estimator(named, weights).get_params() != trial.estimator(profile, weights).get_params():
        raise InputError(
            f"profile {profile.name!r} was changed: 04_train knows profiles by name only, and would train anew"
        )


def _execute(result: Result, cache: PixelCache, profile: Profile, weights) -> None:
    """In a run folder for the while, which has the trial's split alone and the trial's own folder of trials."""
    trial, half = result.trial, result.folder / f".{NOTEBOOK_NAME}"
    with tempfile.TemporaryDirectory(prefix="bcdlib-") as folder:
        scratch = Run(Path(folder))
        scratch.record(
            cache=str(cache.folder), profile=profile.name, trials=str(result.folder.parent.absolute())
        )
        write_csv(scratch.folder / "splits" / f"{trial.split}.csv", trial.split_table)
        made_from = json.loads((cache.folder / "cache.json").read_text())["made_from"]
        parameters = {
            "data": made_from,
            "profile": profile.name,
            "out": folder,
            "seed": trial.seed,
            "weights": weights or "",
            "method": str(trial.method),
            "trainable": trial.trainable,
            "task": trial.task,
            "stain": trial.stain or "",
            "splits": trial.split,
            "fold": trial.fold,
            "keep_model": False,
        }
        # it works here: the method's file and the folder of weights may have been named relative to it
        env = _NO_ACCELERATOR | {"PYTHONPATH": worker.worker_environment()["PYTHONPATH"]}
        execute_notebook("04_train", parameters, half, cwd=Path.cwd(), env=env)
    half.replace(result.folder / NOTEBOOK_NAME)


STAGES = ("01_mount", "02_preprocess", "03_visualize", "04_train", "05_evaluate", "06_compare")


class StageError(RuntimeError):
    """A notebook failed; the message says which cell and why."""


def execute_notebook(
    stage: str, parameters: dict, output: Path, *, cwd: Path, log=None, env: dict[str, str] | None = None
) -> None:
    """Execute one notebook.

    Parameters
    ----------
    parameters : those that it declares are handed on
    output : gets the executed notebook, or, if it fails, its executed half
    cwd : where it works
    log : file that what it prints goes to
    env : changes of its environment

    Raises
    ------
    StageError, InputError
        As `run`.
    """
    notebook = shipped("notebooks") / f"{stage}.ipynb"
    known = papermill.inspect_notebook(str(notebook))
    try:
        with _environment(env or {}):
            papermill.execute_notebook(
                str(notebook),
                str(output),
                {key: value for key, value in parameters.items() if key in known},
                kernel_name="python3",
                cwd=str(cwd),
                progress_bar=False,
                stdout_file=log,
                stderr_file=log and sys.stderr,
            )
    except papermill.PapermillExecutionError as error:
        if error.ename == InputError.__name__:
            raise InputError(error.evalue) from None
        reason = f"{error.ename}: {error.evalue}".splitlines()[0]
        raise StageError(f"{stage}, cell {error.cell_index + 1}: {reason} (see {output})") from None


@contextlib.contextmanager
def _environment(changes: dict[str, str]):
    changes = {
        # the kernel must be this very Python, not one that the user's Jupyter settings name "python3"
        "JUPYTER_PREFER_ENV_PATH": "1",
        # and its caches ours: the notebooks work in their own folder, which need not be beside the user's
        "BCD_HOME": str(home_folder()),
        "BCD_VERBOSE": os.environ.get("BCD_VERBOSE", "1" if sys.stdout.isatty() else "2"),
    } | changes
    before = {name: os.environ[name] for name in changes if name in os.environ}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name in changes:
            del os.environ[name]
        os.environ.update(before)
