"""The whole suite in one go: check what was asked for, execute the six notebooks, write the report."""

import functools
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from bcdlib import mount
from bcdlib.data import breakhis, custom, sources, splits
from bcdlib.data.decode import count_cores
from bcdlib.errors import InputError, check_known, one_line
from bcdlib.evaluation import decisions, metrics, thresholds
from bcdlib.runs import places, profiles
from bcdlib.runs.folder import Run
from bcdlib.suite.report import write_report
from bcdlib.trials.notebook import STAGES, execute_notebook

_MOST_COMPARED = 60
_ROUNDS = dict(zip(STAGES, (1, 2, 3, 3, 4, 4), strict=True))  # those of a round need nothing of each other


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
    from bcdlib import methods  # needs Keras, which takes seconds; `evaluate` does without

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
    from bcdlib.methods.parts import backbones

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
    from bcdlib import preprocess

    mount.start_run(run, data, manifest=manifest, profile=profile.name, seed=data_seed, progress=progress)
    cache = preprocess.resize_images(
        run, profile, mount.open_data(run), cache_root=cache_root, strict=strict, progress=progress
    )
    return preprocess.write_splits(run, profile, cache, seed=split_seed)


def evaluation_parameters(
    predictions, *, validation="", rule: str, sensitivity: float, calibration: str, prevalences: str = ""
) -> dict:
    """Check what 05_evaluate needs for predictions made elsewhere; return its parameters, and ``notes``.

    Parameters
    ----------
    predictions, validation : path-like
        Predictions tables of the test and of the validation part; the latter may be missing.
    rule, sensitivity, calibration
        As in `thresholds.lock_thresholds`.
    prevalences : str
        As in `decisions.read_prevalences`.

    Raises
    ------
    InputError
        If a table cannot be used, the two do not belong together (see `thresholds.match_validation`), or
        there is no such rule, calibration or prevalence.
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
    decisions.read_prevalences(prevalences)
    return {
        "predictions": _absolute(predictions),
        "validation": _absolute(validation) if validation else "",
        "rule": rule,
        "sensitivity": sensitivity,
        "calibration": calibration,
        "prevalences": prevalences,
        "notes": metrics.prediction_notes(table),
    }


def run_suite(run: Run, parameters: dict, only: tuple[str, ...] = (), *, final: bool = False) -> dict:
    """Execute the notebooks into ``<run>/notebooks``; write ``report.html`` and ``summary.json``.

    In order; but 03 beside 04, and 05 beside 06, where there are two cores and no accelerator.

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
        If a notebook fails; its executed half is kept, and the one beside it goes on to its end.
    InputError
        If it fails because of bad input, or the folder holds somebody else's files (see `Run.claim`).
    """
    run.claim()
    stages = [stage for stage in STAGES if not only or stage in only]
    (run.folder / "notebooks").mkdir(exist_ok=True)
    for together in _rounds(stages):
        for stage in together:
            print(f"[{stages.index(stage) + 1}/{len(stages)}] {stage}", flush=True)
        _do_all([functools.partial(_execute, run, stage, parameters, final) for stage in together])
    return write_report(run)


def _rounds(stages: list[str]) -> Iterator[list[str]]:
    """Give the notebooks in order, those together that are executed at the same time."""
    for _, group in itertools.groupby(stages, _ROUNDS.get):
        together = list(group)
        if len(together) > 1 and _has_room():
            yield together
        else:
            yield from ([stage] for stage in together)


def _has_room() -> bool:
    """Tell whether a second notebook has a core, and need not share an accelerator, which one may fill."""
    from bcdlib.methods.parts import hardware

    return count_cores() > 1 and hardware.accelerator()[0] == "cpu"


def _execute(run: Run, stage: str, parameters: dict, final: bool) -> None:
    own = {}
    if final and stage == "04_train":
        usual = splits.available_splits(run, profiles.get_profile(parameters["profile"]).splits)
        own["splits"] = ",".join((*usual, splits.ALL))
    execute_notebook(
        stage,
        parameters | own,
        run.folder / "notebooks" / f"{stage}.ipynb",
        cwd=places.shipped("notebooks"),
        log=sys.stdout,
    )


def _do_all(works: list[Callable[[], None]]) -> None:
    """Do pieces of work at the same time, the last one in this thread; then raise the first error, if any."""
    *others, last = works
    errors = []

    def beside(work):
        try:
            work()
        except BaseException as error:
            errors.append(error)
            # on a line of its own: a progress bar's may be open
            print(f"\nFailed: {one_line(error)}; what runs beside it goes on", flush=True)

    # if this process is interrupted it ends at once, and the kernels, which look for it, with it
    threads = [threading.Thread(target=beside, args=[work], daemon=True) for work in others]
    for thread in threads:
        thread.start()
    try:
        last()
    except Exception as error:
        errors.append(error)
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
