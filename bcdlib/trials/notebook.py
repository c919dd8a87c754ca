"""Notebooks executed by papermill; that of a finished trial is 04_train for this trial alone."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from bcdlib.data.cache import PixelCache
from bcdlib.errors import InputError, StageError, one_line
from bcdlib.runs import files, noise, places, profiles
from bcdlib.runs.folder import Run
from bcdlib.trials import cluster
from bcdlib.trials.store import put_trial

if TYPE_CHECKING:
    from bcdlib.trials.trial import Result, Trial

STAGES = ("01_mount", "02_preprocess", "03_visualize", "04_train", "05_evaluate", "06_compare")
_NAME = "trial.ipynb"


def run_with_notebook(
    trial: Trial,
    cache: PixelCache,
    profile: profiles.Profile,
    *,
    weights: str | None = None,
    store: str = "",
    **options,
) -> Result:
    """Run a trial; if its folder has no ``trial.ipynb``, make it, and put it into the store too.

    Parameters
    ----------
    trial, cache, profile, weights, store, options
        As in `trial.run_trial`.

    Raises
    ------
    InputError
        If 04_train cannot be told these settings, since they are not those of a profile by name.
    StageError
        If the notebook fails; its executed half is kept, and the trial's results too.
    """
    from bcdlib.trials.trial import run_trial  # needs Keras; to execute a notebook does not

    result = run_trial(trial, cache, profile, weights=weights, store=store, **options)
    if not (result.folder / _NAME).is_file():
        if (
            trial.estimator(profiles.get_profile(profile.name), weights).get_params()
            != trial.estimator(profile, weights).get_params()
        ):
            raise InputError(
                f"profile {profile.name!r} was changed: 04_train knows profiles by name only, "
                "and would train anew"
            )
        _make_notebook(result, cache, profile, weights=weights)
        if store:
            put_trial(store, result.folder, anew=False)
    return result


def _make_notebook(
    result: Result, cache: PixelCache, profile: profiles.Profile, *, weights: str | None
) -> None:
    """Execute 04_train in a temporary run folder with this trial's split and its folder of trials."""
    trial, half = result.trial, result.folder / f".{_NAME}"
    with tempfile.TemporaryDirectory(prefix="bcdlib-") as folder:
        scratch = Run(Path(folder))
        made_from = files.read_json(cache.folder / "cache.json")["made_from"]
        scratch.record(
            data=made_from,
            source=made_from,
            profile=profile.name,
            seed=trial.seed,
            cache=str(cache.folder),
        )
        files.write_csv(scratch.folder / "splits" / f"{trial.split}.csv", trial.split_table)
        execute_notebook(
            "04_train",
            {
                "data": made_from,
                "profile": profile.name,
                "out": folder,
                "seed": trial.seed,
                "weights": weights or "",
                "method": str(trial.method),
                "trainable": trial.trainable,
                "task": trial.task,
                "stain": trial.stain or "",
                "recipe": trial.recipe,
                "splits": trial.split,
                "fold": trial.fold,
                "keep_model": False,
            },
            half,
            # it works here: the method's file and the folder of weights may have been named relative to it
            cwd=Path.cwd(),
            env={
                "BCD_TRIALS": str(result.folder.parent.absolute()),
                # the process that trained may hold all of a GPU's memory; to show a network takes none
                "CUDA_VISIBLE_DEVICES": "-1",
                "JAX_PLATFORMS": "cpu",
                "PYTHONPATH": cluster.worker_environment()["PYTHONPATH"],
            },
        )
    half.replace(result.folder / _NAME)


def _section_printer(notebook: Path, log):
    """Make what prints a section's title, and how many there are, when its first cell starts."""
    title, titles = "", {}
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            title = cell.source.splitlines()[0][3:]
        elif cell.cell_type == "code" and title not in ("", *titles.values()):
            titles[cell.id] = title

    def say(cell, cell_index):
        if cell.id in titles:
            number = [*titles].index(cell.id) + 1
            title = titles[cell.id] if titles[cell.id][0].isdigit() else f"{notebook.stem}: {titles[cell.id]}"
            print(f"  {title} ({number} of {len(titles)})", file=log, flush=True)

    return say


class _ThisPython(AsyncKernelManager):
    """Starts this very Python, whatever JUPYTER_PATH or the user's Jupyter settings call "python3"."""

    changes: dict[str, str] = {}  # of its environment

    @property
    def kernel_spec(self) -> KernelSpec:
        words = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
        # stopped inside a cell it would log that it cannot answer any more, and that its parent has gone
        return KernelSpec(argv=[sys.executable, *words, "--log-level=CRITICAL"], language="python")

    async def start_kernel(self, **options):
        await super().start_kernel(env=os.environ | self.changes, **options)


def papermill_path(path) -> str:
    """Write a path so that papermill, which formats paths with the notebook's parameters, leaves it as it is.

    Examples
    --------
    >>> papermill_path("runs/{case}.ipynb")
    'runs/{{case}}.ipynb'
    """
    return str(path).replace("{", "{{").replace("}", "}}")


def execute_notebook(
    stage: str, parameters: dict, output: Path, *, cwd: Path, log=None, env: dict[str, str] | None = None
) -> None:
    """Execute one notebook.

    Parameters
    ----------
    stage : str
        One of `STAGES`.
    parameters : dict
        Those that the notebook declares are handed on.
    output : pathlib.Path
        Gets the executed notebook, or, if it fails, its executed half.
    cwd : pathlib.Path
        Where it works.
    log : file, optional
        Gets what the notebook prints.
    env : dict, optional
        Changes of its environment.

    Raises
    ------
    StageError
        If the notebook fails; the message says which cell and why.
    InputError
        If it fails because of bad input.
    """
    notebook = places.shipped("notebooks") / f"{stage}.ipynb"
    known = papermill.inspect_notebook(papermill_path(notebook))
    changes = {
        # its caches must be ours: notebooks work in a folder of their own
        "BCD_HOME": str(places.home_folder()),
        "BCD_VERBOSE": os.environ.get("BCD_VERBOSE", "1" if sys.stdout.isatty() else "2"),
        **(env or {}),
    }
    try:
        papermill.execute_notebook(
            papermill_path(notebook),
            papermill_path(output),
            {key: value for key, value in parameters.items() if key in known},
            kernel_name="python3",
            # papermill's cwd and os.environ are this whole process's, and another notebook may run beside
            resources={"metadata": {"path": str(cwd)}},
            progress_bar=False,
            stdout_file=log,
            stderr_file=log and noise.WithoutNoise(sys.stderr),
            on_cell_start=_section_printer(notebook, log) if log else None,
            kernel_manager_class=type("Kernel", (_ThisPython,), {"changes": changes}),
        )
    except papermill.PapermillExecutionError as error:
        _drop_noise(output)
        if error.ename == InputError.__name__:
            raise InputError(error.evalue) from None
        if error.ename == "KeyboardInterrupt":  # the terminal stops the kernel too
            raise KeyboardInterrupt from None
        reason = f"{error.ename}: {error.evalue}".splitlines()[0]
        raise StageError(f"{stage}, cell {error.cell_index + 1}: {reason} (see {output})") from None
    except (RuntimeError, OSError) as error:  # jupyter_client's and nbclient's
        raise StageError(f"{stage}: its kernel did not start or died ({one_line(error)})") from None
    _drop_noise(output)


def _drop_noise(path: Path) -> None:
    """Take what libraries say when they start out of an executed notebook."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                output.text = noise.without_noise(output.text)
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("text") != ""]
    with files.atomic_write(path) as temporary:
        nbformat.write(notebook, temporary)
