"""The whole suite in one go: papermill runs the six notebooks, nbconvert and Jinja2 make one report of them."""

import sys

import pandas as pd

from bcdlib import mount, preprocess
from bcdlib.data import breakhis, custom, sources
from bcdlib.errors import InputError
from bcdlib.methods.parts import backbones
from bcdlib.runs.folder import Run
from bcdlib.runs.places import shipped
from bcdlib.runs.profiles import Profile, get_profile
from bcdlib.suite import report
from bcdlib.trials import notebook


def check_inputs(
    data: str, profile: str, weights: str | None, *, only: tuple[str, ...], seed: int = 0, manifest: str = ""
) -> None:
    """Find a user's mistakes before anything long starts. `manifest` is the manifest of images that are not BreakHis's.

    Raises
    ------
    InputError
        Unknown profile or notebook, a data set or manifest that cannot be used, weights that cannot be had.
    """
    settings = get_profile(profile)
    for stage in only:
        if stage not in notebook.STAGES:
            raise InputError(f"unknown notebook {stage!r}; known are {', '.join(notebook.STAGES)}")
    manifest = mount.find_manifest(data, manifest)
    source = mount.find_data(data, seed=seed)
    if not isinstance(
        source, sources.TarSource
    ):  # listing a .tar.gz means reading it all: 01_mount does that once
        custom.scan_custom(manifest, source) if manifest else breakhis.scan_breakhis(source)
    if not only or "04_train" in only or "06_compare" in only:
        backbones.find_weights("resnet50", weights, required=settings.needs_pretrained)


def prepare_run(
    run: Run,
    profile: Profile,
    data="synthetic",
    *,
    manifest="",
    cache_root=None,
    strict: bool = False,
    data_seed: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Do what 01_mount and 02_preprocess do: list, decode and split the images of a data set.

    Parameters
    ----------
    run : Run
    profile : Profile
    data, manifest : str or path-like
        See `mount.start_run`.
    cache_root, strict
        See `preprocess.resize_images`.
    data_seed : int, optional
        Of the synthetic data set; by default `seed`, which is that of the splits.

    Returns
    -------
    pandas.DataFrame
        One row a protocol; see `preprocess.write_splits`.

    Raises
    ------
    InputError
        If the data set or the manifest cannot be used, or `strict` says so.
    """
    data_seed = seed if data_seed is None else data_seed
    mount.start_run(run, data, manifest=manifest, seed=data_seed, progress=progress)
    cache = preprocess.resize_images(
        run, profile, mount.open_data(run), cache_root=cache_root, strict=strict, progress=progress
    )
    return preprocess.write_splits(run, profile, cache, seed=seed)


def run_suite(run: Run, parameters: dict, only: tuple[str, ...] = (), *, verbose: bool = True) -> dict:
    """Execute the notebooks in order into ``<run>/notebooks``, then write ``report.html`` and ``summary.json``.

    Parameters
    ----------
    parameters : values for the notebooks' parameters; each notebook gets those that it declares
    only : names of notebooks, for example ("05_evaluate",); empty means all six

    Returns
    -------
    dict, the contents of summary.json.

    Raises
    ------
    StageError
        If a notebook fails; its executed half is kept.
    InputError
        If it fails because of bad input.
    """
    stages = [stage for stage in notebook.STAGES if not only or stage in only]
    for number, stage in enumerate(stages, 1):
        print(f"[{number}/{len(stages)}] {stage}", flush=True)
        _execute(stage, run, parameters)
    return report.write_report(run)


def _execute(stage: str, run: Run, parameters: dict) -> None:
    output = run.folder / "notebooks" / f"{stage}.ipynb"
    output.parent.mkdir(exist_ok=True)
    notebook.execute_notebook(stage, parameters, output, cwd=shipped("notebooks"), log=sys.stdout)


def result_lines(summary: dict) -> str:
    """The table of results that ends a run, as text."""
    lines = [
        f"{'method':<16} {'split':<14} {'images':>7} {'cases':>6} {'accuracy':>9} {'AUC':>6}  started from"
    ]
    for row in summary["trained"] + summary["compared"]:
        auc = "-" if row["auc"] is None else f"{row['auc']:.3f}"
        lines.append(
            f"{row['method']:<16} {row['split']:<14} {row['images']:>7} {row['cases']:>6} "
            f"{row['accuracy']:>9.3f} {auc:>6}  {row.get('weights', '')}"
        )
    return "\n".join(lines)
