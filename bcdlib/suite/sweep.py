"""Every combination of notebook parameters in a YAML file: 04_train and 05_evaluate, each in a run folder of its own."""

import functools
import hashlib
import itertools
import json
import math
import re
import reprlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import papermill
import yaml

from bcdlib import methods
from bcdlib.data import splits
from bcdlib.errors import InputError
from bcdlib.evaluation import metrics
from bcdlib.runs.files import write_csv, write_json
from bcdlib.runs.folder import Run, open_run_folder
from bcdlib.runs.places import shipped
from bcdlib.runs.profiles import get_profile
from bcdlib.suite.run import check_inputs, prepare_run, run_suite
from bcdlib.trials import cluster

SWEEP_STAGES = ("04_train", "05_evaluate")
DONE = "sweep.json"  # written last into a combination's folder
ELSEWHERE = {
    "data": "--data",
    "out": "--out",
    "predictions": "evaluate PREDICTIONS.csv",
    "validation": "evaluate --validation",
    "image": "predict MODEL IMAGE",
}
MOST = 10_000  # combinations; more are a slip of the pen
_COUNTS = ("images", "slides", "cases", "folds", "seeds")
_AWKWARD = re.compile(r"[^\w.=,-]")  # in names of folders


@functools.cache
def sweepable_parameters() -> dict[str, dict]:
    """What may be swept: the parameters that 04_train or 05_evaluate declare, each with its ``default`` and ``choices``.

    ``choices`` is what the notebook's form offers, a list, or None if it offers none.
    """
    found = {}
    for stage in SWEEP_STAGES:
        for name, one in papermill.inspect_notebook(str(shipped("notebooks") / f"{stage}.ipynb")).items():
            form = one["help"].removeprefix("@param").strip()
            default = {"True": True, "False": False}.get(one["default"])
            found[name] = {
                "default": json.loads(one["default"]) if default is None else default,
                "choices": json.loads(form) if form.startswith("[") else None,
            }
    return {name: one for name, one in found.items() if name not in ELSEWHERE}


def read_sweep(path) -> dict[str, list]:
    """A sweep: parameter -> its values, at least one, in the order of the file.

    Raises
    ------
    InputError
        If the file cannot be read, is no YAML mapping, names a parameter that the notebooks do not declare, or gives a
        value of another type or one that the notebook does not offer.
    """
    try:
        return _read(path)
    except InputError as error:
        raise InputError(f"--sweep {path}: {error}") from None


def _read(path) -> dict[str, list]:
    try:
        given = yaml.safe_load(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise InputError(f"not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(given, dict) or not given:
        raise InputError("names no parameter; write lines as 'seed: [0, 1]'")
    found = {}
    for name, values in given.items():
        if name in ELSEWHERE:
            raise InputError(f"{name} is not swept; see {ELSEWHERE[name]}")
        if name not in sweepable_parameters():
            raise InputError(f"unknown parameter {name!r}; known are {', '.join(sweepable_parameters())}")
        values = values if isinstance(values, list) else [values]
        if not values:
            raise InputError(f"{name}: has no value")
        found[name] = [_value(name, value) for value in values]
    if (number := math.prod(map(len, found.values()))) > MOST:
        raise InputError(f"gives {number} combinations; at most {MOST} are run")
    return found


def _value(name: str, value):
    default, choices = sweepable_parameters()[name].values()
    kind = type(default)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise InputError(f"{name}: {reprlib.repr(value)}; give {kind.__name__}, as {name}: {default!r}")
    if choices and value not in choices:
        raise InputError(f"unknown {name} {value!r}; known are {', '.join(map(repr, choices))}")
    if name == "method":
        methods.method_settings(value)
        return methods.absolute_name(value)
    for split in value.split() if name == "splits" else ():
        splits.describe_protocol(split)
    # notebooks work in a folder of their own
    return (
        str(Path(value).expanduser().absolute())
        if name == "weights" and value and Path(value).is_dir()
        else value
    )


def run_sweep(
    out: Run, given: dict[str, list], base: dict, *, scheduler: str = "none", progress: bool = True
) -> pd.DataFrame:
    """Execute every combination that is not finished yet; one that fails does not stop the others.

    Data are listed, decoded and split here, once for each profile and seed; a combination's folder starts as a copy of
    that (small tables; the pixels lie in the cache). Writes ``sweep.csv``.

    Parameters
    ----------
    out : gets a folder for each combination, named after what is varied and a hash of all its parameters
    given : from `read`
    base : parameters that are the same for all, unless `given` has them: data, manifest, profile, seed, weights, method,
        strict. Its seed is also that of drawn data.
    scheduler : as in `cluster.map_on_cluster`, or "none": one after the other in this process

    Returns
    -------
    DataFrame, one row a combination and split: the parameters in `given`, ``label`` and `metrics.metrics_table` at threshold 0.5,
    some of it again at the locked threshold (``_locked``), ``error`` (text, else NaN), ``folder``.

    Raises
    ------
    InputError
        If data, weights or profile cannot be used.
    """
    planned = _planned(out, given, base)
    for profile, weights in {(one["profile"], one["weights"]) for one in planned.values()}:
        check_inputs(base["data"], profile, weights, only=(), seed=base["seed"], manifest=base["manifest"])
    waiting = {folder: one for folder, one in planned.items() if not (folder / DONE).is_file()}
    if len(waiting) < len(planned):
        print(
            f"{len(planned) - len(waiting)} of {len(planned)} combinations are finished already", flush=True
        )
    places = {(one["profile"], one["seed"]): "" for one in waiting.values()}
    for profile, seed in places:
        places[profile, seed] = str(_prepared(out, base, profile, seed).folder)
    items = [
        {"folder": str(folder), "parameters": one, "prepared": places[one["profile"], one["seed"]]}
        for folder, one in waiting.items()
    ]
    outcomes = (
        _one_by_one(items)
        if scheduler == "none"
        else cluster.map_on_cluster(
            scheduler,
            "bcdlib.suite.sweep:run_combination",
            items,
            keys=[_digest(item) for item in items],
            label="Sweep",
            progress=progress,
        )
    )
    errors = {
        items[number]["folder"]: _one_line(outcome)
        for number, outcome in outcomes
        if isinstance(outcome, Exception)
    }
    table = pd.concat(
        [_rows(folder, list(given), one, errors.get(str(folder))) for folder, one in planned.items()],
        ignore_index=True,
    )
    table = table.astype({name: "Int64" for name in _COUNTS if name in table})  # beside rows that failed, too
    write_csv(out.folder / "sweep.csv", table)
    return table


def _planned(out: Run, given: dict[str, list], base: dict) -> dict[Path, dict]:
    varied = [name for name, values in given.items() if len(set(values)) > 1]
    found = {}
    for values in itertools.product(*given.values()):
        one = base | dict(zip(given, values, strict=True))
        words = ",".join(f"{name}={Path(str(one[name])).name}" for name in varied) or "only"
        folder = out.folder / f"{_AWKWARD.sub('_', words)[:100]}-{_digest(one)}"
        found[folder] = one | {"out": str(folder)}
    return found


def _digest(facts: dict) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def _prepared(out: Run, base: dict, profile: str, seed: int) -> Run:
    run = open_run_folder(out.folder / "prepared" / f"{profile}-seed{seed}")
    inputs = {name: base[name] for name in ("data", "manifest", "strict")}
    prepare_run(run, get_profile(profile), **inputs, data_seed=base["seed"], seed=seed)
    return run


def _one_by_one(items: list[dict]) -> Iterator[tuple[int, object]]:
    for number, item in enumerate(items):
        print(f"Combination {number + 1} of {len(items)}: {Path(item['folder']).name}", flush=True)
        try:
            yield number, run_combination(**item)
        except Exception as error:  # one combination's failure must not cost the others' hours
            yield number, error


def run_combination(folder: str, parameters: dict, prepared: str) -> str:
    """One combination, on a worker or here; returns the name of its folder."""
    started = time.perf_counter()
    run = open_run_folder(folder)
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    run_suite(run, parameters, SWEEP_STAGES)
    write_json(
        run.folder / DONE, {"parameters": parameters, "seconds": round(time.perf_counter() - started, 1)}
    )
    return run.folder.name


def _one_line(error: Exception) -> str:
    return f"{getattr(error, 'kind', type(error).__name__)}: {error}".splitlines()[0]


def _rows(folder: Path, names: list[str], parameters: dict, error: str | None) -> pd.DataFrame:
    settings = {name: parameters[name] for name in names}
    if error:
        return pd.DataFrame([settings | {"error": error, "folder": folder.name}])
    found = metrics.metrics_table(metrics.read_predictions(folder / "predictions.csv"))
    locked = pd.read_csv(folder / "tables" / "thresholds.csv").query("at == 'locked'")
    found = found.merge(
        locked.drop(columns=["at", "images", "cases"]),
        how="left",
        on=["method", "split"],
        suffixes=("", "_locked"),
    )
    found = found.rename(columns={"method": "label", "weights": "started_from"})
    return pd.DataFrame([settings] * len(found)).join(found).assign(error=None, folder=folder.name)


def sweep_text(table: pd.DataFrame, given: dict[str, list]) -> str:
    """What `run` returns, as text: the parameters that vary, and the figures that everybody asks for."""
    names = [name for name in given if table[name].nunique() > 1] or list(given)
    shown = [name for name in ("split", "images", "cases", "accuracy", "auc", "case_auc") if name in table]
    return table[table["error"].isna()][[*names, *shown]].round(3).to_string(index=False)


def failed_combinations(table: pd.DataFrame) -> list[str]:
    """One line a combination that failed: its folder's name, why."""
    return [f"{row.folder}: {row.error}" for row in table[table["error"].notna()].itertuples()]
