"""Sweeps: 04_train and 05_evaluate for every combination of parameters, each in a run folder of its own."""

import ast
import functools
import hashlib
import itertools
import json
import math
import re
import reprlib
import shutil
import time
from pathlib import Path

import pandas as pd
import papermill
import yaml

from bcdlib import methods
from bcdlib.data import splits
from bcdlib.errors import InputError, check_known, check_seed, describe_error, one_line, split_words
from bcdlib.evaluation import metrics
from bcdlib.runs import files, places, profiles
from bcdlib.runs.folder import Run, open_run_folder
from bcdlib.suite.run import check_inputs, prepare_run, run_suite
from bcdlib.trials import cluster, notebook

SWEEP_STAGES = ("04_train", "05_evaluate")
ELSEWHERE = {
    "data": "--data",
    "out": "--out",
    "drive": "the environment variable BCD_HOME",
    "predictions": "evaluate PREDICTIONS.csv",
    "validation": "evaluate --validation",
    "image": "predict MODEL IMAGE",
    "guess": "01_mount",
}
MOST = 10_000  # combinations; more are a slip of the pen
_DONE = "sweep.json"  # written last into a combination's folder


@functools.cache
def sweepable_parameters() -> dict[str, dict]:
    """Read what may be swept: the parameters that 04_train or 05_evaluate declare.

    Returns
    -------
    dict
        Name -> its ``default`` and ``choices``: what the notebook's form offers, a list, or None if it offers
        none.
    """
    found = {}
    for stage in SWEEP_STAGES:
        for name, one in papermill.inspect_notebook(
            notebook.papermill_path(places.shipped("notebooks") / f"{stage}.ipynb")
        ).items():
            form = one["help"].removeprefix("@param").strip()
            found[name] = {
                "default": ast.literal_eval(one["default"]),
                "choices": json.loads(form) if form.startswith("[") else None,
            }
    return {name: one for name, one in found.items() if name not in ELSEWHERE}


class _OnceLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML readers take the last without a word."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise InputError(f"{key!r} is given twice; give all its values in one list")
        return super().construct_mapping(node, deep)


def read_sweep(path) -> dict[str, list]:
    """Read a sweep: parameter -> its values, at least one, in the order of the file.

    Raises
    ------
    InputError
        If the file cannot be read, is no YAML mapping, names a parameter that the notebooks do not declare,
        or gives a value of another type or one that the notebook does not offer.
    """
    try:
        given = yaml.load(Path(path).read_bytes(), _OnceLoader)  # a safe loader
        if not isinstance(given, dict) or not given:
            raise InputError("names no parameter; write lines as 'seed: [0, 1]'")
        found = {name: _values(name, values) for name, values in given.items()}
        if (number := math.prod(map(len, found.values()))) > MOST:
            raise InputError(f"gives {number} combinations; at most {MOST} are run")
    except OSError as error:
        raise InputError(f"--sweep {path}: cannot be read ({error.strerror})") from None
    except InputError as error:
        raise InputError(f"--sweep {path}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise InputError(f"--sweep {path}: not YAML ({one_line(error)})") from None
    return found


def _values(name: str, values) -> list:
    if name in ELSEWHERE:
        raise InputError(f"{name} is not swept; see {ELSEWHERE[name]}")
    check_known("parameter", name, sweepable_parameters())
    if values == []:
        raise InputError(f"{name}: has no value")
    return [_value(name, value) for value in (values if isinstance(values, list) else [values])]


def _value(name: str, value):
    default, choices = sweepable_parameters()[name].values()
    if type(default) is float and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise InputError(
            f"{name}: {reprlib.repr(value)}; give {type(default).__name__}, as {name}: {default!r}"
        )
    if choices:
        check_known(name, value, choices)
    if name == "method":
        methods.method_settings(value)
        return methods.absolute_name(value)
    if name == "splits":
        for split in split_words(value):
            splits.describe_protocol(split)
    if name == "seed":
        check_seed(value)
    elif type(value) is int and value < 0:
        raise InputError(f"{name}: {value}; give 0 or more")
    if name == "weights" and value and Path(value).is_dir():  # notebooks work in a folder of their own
        return str(Path(value).expanduser().absolute())
    return value


def run_sweep(out: Run, given: dict[str, list], base: dict, *, scheduler: str = "none") -> pd.DataFrame:
    """Execute every combination that is not finished yet; one that fails does not stop the others.

    Data are listed, decoded and split here, once for each profile and seed; a combination's folder starts as
    a copy of that (small tables; the pixels lie in the cache). Writes ``sweep.csv``.

    Parameters
    ----------
    out : Run
        Gets a folder for each combination, named after what is varied and a hash of all its parameters.
    given : dict
        From `read_sweep`.
    base : dict
        Parameters that are the same for all, unless `given` has them: data, manifest, profile, seed, weights,
        method, strict. Its seed is also that of drawn data.
    scheduler : str
        As in `cluster.check_scheduler`; "none": one after the other in this process.

    Returns
    -------
    DataFrame
        One row a combination and split: the parameters in `given`, ``label`` and `metrics.metrics_table` at
        threshold 0.5, some of it again at the locked threshold (``_locked``), ``error`` (text, else NaN),
        ``folder``.

    Raises
    ------
    InputError
        If data, weights or profile cannot be used.
    """
    planned = _plan(out, given, base)
    for profile, weights in {(one["profile"], one["weights"]) for one in planned.values()}:
        check_inputs(base | {"profile": profile, "weights": weights})
    waiting = {folder: one for folder, one in planned.items() if not (folder / _DONE).is_file()}
    print(f"{len(planned) - len(waiting)} of {len(planned)} combinations are finished already", flush=True)
    prepared = {
        (one["profile"], one["seed"]): out.folder / "prepared" / f"{one['profile']}-seed{one['seed']}"
        for one in waiting.values()
    }
    for (profile, seed), folder in prepared.items():
        prepare_run(
            open_run_folder(folder),
            profiles.get_profile(profile),
            base["data"],
            manifest=base["manifest"],
            strict=base["strict"],
            data_seed=base["seed"],
            split_seed=seed,
        )
    outcomes = cluster.map_items(
        f"{__name__}:run_combination",
        {
            folder.name: {
                "folder": str(folder),
                "parameters": one,
                "prepared": str(prepared[one["profile"], one["seed"]]),
            }
            for folder, one in waiting.items()
        },
        scheduler=scheduler,
        label="Sweep",
        progress=scheduler != "none",  # here the notebooks' own lines show how far it is
    )
    errors = {name: describe_error(outcome) for name, outcome in outcomes if isinstance(outcome, Exception)}
    table = pd.concat(
        [_rows(folder, list(given), one, errors.get(folder.name)) for folder, one in planned.items()],
        ignore_index=True,
    )
    files.write_csv(out.folder / "sweep.csv", table, for_reading=True)
    return table


def _plan(out: Run, given: dict[str, list], base: dict) -> dict[Path, dict]:
    varied = [name for name, values in given.items() if len(set(values)) > 1]
    found = {}
    for values in itertools.product(*given.values()):
        one = base | dict(zip(given, values, strict=True))
        words = ",".join(f"{name}={Path(str(one[name])).name}" for name in varied)
        words = re.sub(r"[^\w.=,-]", "_", words or "only")[:100]
        digest = hashlib.sha256(json.dumps(one, sort_keys=True).encode()).hexdigest()[:8]
        folder = out.folder / f"{words}-{digest}"
        found[folder] = one | {"out": str(folder)}
    return found


def run_combination(folder: str, parameters: dict, prepared: str) -> None:
    """Run one combination, on a worker or here."""
    started = time.perf_counter()
    run = open_run_folder(folder)
    print(f"Combination {run.folder.name}", flush=True)
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    run_suite(run, parameters, SWEEP_STAGES)
    files.write_json(
        run.folder / _DONE, {"parameters": parameters, "seconds": round(time.perf_counter() - started, 1)}
    )


def _rows(folder: Path, names: list[str], parameters: dict, error: str | None) -> pd.DataFrame:
    settings = {name: parameters[name] for name in names}
    if error:
        return pd.DataFrame([settings | {"error": error, "folder": folder.name}])
    locked = files.read_table(folder / "tables" / "thresholds.csv", ["at"]).query("at == 'locked'")
    found = (
        metrics.metrics_table(metrics.read_predictions(folder / "predictions.csv"))
        .merge(
            locked.pivot(index=["method", "split"], columns="metric", values="value").reset_index(),
            how="left",
            on=["method", "split"],
            suffixes=("", "_locked"),
        )
        .rename(columns={"method": "label", "weights": "started_from"})
        # counts stay whole numbers beside rows that failed, too
        .astype(dict.fromkeys(["images", "slides", "cases", "folds", "seeds"], "Int64"))
    )
    return pd.DataFrame([settings] * len(found)).join(found).assign(error=None, folder=folder.name)


ON_TEST = (
    "These are metrics of test parts: to choose a combination by them is to choose on the test part. "
    "`compare --choose` chooses inside the training part."
)


def sweep_text(table: pd.DataFrame, given: dict[str, list]) -> str:
    """Return a sweep's table as text: the parameters that vary, and the metrics that everybody asks for."""
    names = [name for name in given if table[name].nunique() > 1] or list(given)
    shown = [name for name in ("split", "images", "cases", "accuracy", "auc", "case_auc") if name in table]
    return f"{table[table['error'].isna()][[*names, *shown]].round(3).to_string(index=False)}\n{ON_TEST}"


def failed_combinations(table: pd.DataFrame) -> list[str]:
    """List the combinations that failed, a line each: its folder's name, why."""
    return [f"{row.folder}: {row.error}" for row in table[table["error"].notna()].itertuples()]
