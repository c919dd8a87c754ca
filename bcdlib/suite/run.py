"""The whole suite in one go: check what was asked for, execute the six notebooks, write the report."""

import os
import sys
from pathlib import Path

import pandas as pd

from bcdlib import methods, mount, preprocess
from bcdlib.data import breakhis, custom, sources, splits
from bcdlib.errors import InputError, check_known
from bcdlib.evaluation import metrics, thresholds
from bcdlib.methods.parts import backbones
from bcdlib.runs import places, profiles
from bcdlib.runs.folder import Run
from bcdlib.suite.report import write_report
from bcdlib.trials.notebook import STAGES, execute_notebook

_MOST_COMPARED = 60


def absolute_parameters(parameters: dict) -> dict:
    """Make the paths among the parameters absolute: the notebooks work in a folder of their own.

    Parameters
    ----------
    parameters : dict
        data, manifest, weights, method and others; the environment variable BCD_WEIGHTS_DIR is changed too.

    Raises
    ------
    InputError
        Unknown method, or a manifest without a folder or archive of one's own.
    """
    data, manifest, weights = (parameters[name] for name in ("data", "manifest", "weights"))
    methods.method_settings(parameters["method"])
    if os.environ.get("BCD_WEIGHTS_DIR"):
        os.environ["BCD_WEIGHTS_DIR"] = _absolute(os.environ["BCD_WEIGHTS_DIR"])
    return parameters | {
        "data": data if data in mount.DRAWN_OR_FETCHED else _absolute(data),
        "manifest": mount.find_manifest(data, manifest),
        "weights": _absolute(weights) if weights and Path(weights).is_dir() else weights or "",
        "method": methods.absolute_name(parameters["method"]),
    }


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def check_inputs(parameters: dict, only: tuple[str, ...] = ()) -> None:
    """Find a user's mistakes before anything long starts.

    Parameters
    ----------
    parameters : dict
        From `absolute_parameters`, with profile and seed.
    only : tuple of str
        As in `run_suite`.

    Raises
    ------
    InputError
        Unknown profile or notebook, a data set or manifest that cannot be used, weights that cannot be had.
    """
    profile, manifest = profiles.get_profile(parameters["profile"]), parameters["manifest"]
    for stage in only:
        check_known("notebook", stage, STAGES)
    source = mount.find_data(parameters["data"], seed=parameters["seed"])
    if not isinstance(
        source, sources.TarSource
    ):  # to list a .tar.gz is to read it all: 01_mount does that once
        custom.scan_custom(manifest, source) if manifest else breakhis.scan_breakhis(source)
    if not only or {"04_train", "06_compare"} & set(only):
        backbones.find_weights("resnet50", parameters["weights"], required=profile.needs_pretrained)


def prepare_run(
    run: Run,
    profile: profiles.Profile,
    data="synthetic",
    *,
    manifest="",
    cache_root=None,
    strict: bool = False,
    data_seed: int = 0,
    split_seed: int = 0,
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
    data_seed, split_seed : int
        Of drawn data, and of the splits.
    progress : bool
        Show progress bars.

    Returns
    -------
    pandas.DataFrame
        One row a protocol; see `preprocess.write_splits`.

    Raises
    ------
    InputError
        If the data set or the manifest cannot be used, or `strict` says so.
    """
    mount.start_run(run, data, manifest=manifest, profile=profile.name, seed=data_seed, progress=progress)
    cache = preprocess.resize_images(
        run, profile, mount.open_data(run), cache_root=cache_root, strict=strict, progress=progress
    )
    return preprocess.write_splits(run, profile, cache, seed=split_seed)


def evaluation_parameters(
    predictions, *, validation="", rule: str, sensitivity: float, calibration: str
) -> dict:
    """Check what 05_evaluate needs for predictions made elsewhere; return its parameters, and ``notes``.

    Parameters
    ----------
    predictions, validation : path-like
        Predictions tables of the test and of the validation part; the latter may be missing.
    rule, sensitivity, calibration
        As in `thresholds.lock_thresholds`.

    Raises
    ------
    InputError
        If a table cannot be used, the two do not belong together (see `thresholds.match_validation`), or
        there is no such rule or calibration.
    """
    table = metrics.read_predictions(predictions)
    found = table[["method", "split"]].drop_duplicates()
    if len(found) > _MOST_COMPARED:
        raise InputError(
            f"{predictions}: has {len(found)} pairs of method and split, first {', '.join(found.iloc[0])}; "
            f"at most {_MOST_COMPARED} are drawn side by side: give all rows of a method the same name"
        )
    known = table[:0]
    if validation:
        known = thresholds.match_validation(metrics.read_predictions(validation), table)
    thresholds.lock_thresholds(known, rule, sensitivity, calibration=calibration)
    return {
        "predictions": _absolute(predictions),
        "validation": _absolute(validation) if validation else "",
        "rule": rule,
        "sensitivity": sensitivity,
        "calibration": calibration,
        "notes": metrics.prediction_notes(table),
    }


def run_suite(run: Run, parameters: dict, only: tuple[str, ...] = (), *, final: bool = False) -> dict:
    """Execute the notebooks in order into ``<run>/notebooks``; write ``report.html`` and ``summary.json``.

    Parameters
    ----------
    run : Run
    parameters : dict
        Values for the notebooks' parameters; each notebook gets those that it declares.
    only : tuple of str
        Names of notebooks, for example ("05_evaluate",); empty means all six.
    final : bool
        Whether 04_train also makes a final model (split "all").

    Returns
    -------
    dict
        The contents of ``summary.json``.

    Raises
    ------
    StageError
        If a notebook fails; its executed half is kept.
    InputError
        If it fails because of bad input.
    """
    stages = [stage for stage in STAGES if not only or stage in only]
    folder = run.folder / "notebooks"
    folder.mkdir(exist_ok=True)
    for number, stage in enumerate(stages, 1):
        print(f"[{number}/{len(stages)}] {stage}", flush=True)
        own = {}
        if final and stage == "04_train":
            usual = splits.available_splits(run, profiles.get_profile(parameters["profile"]).splits)
            own["splits"] = ",".join((*usual, splits.ALL))
        execute_notebook(
            stage,
            parameters | own,
            folder / f"{stage}.ipynb",
            cwd=places.shipped("notebooks"),
            log=sys.stdout,
        )
    return write_report(run)
