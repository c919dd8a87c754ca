"""Many trials: plan them, run them, keep what they found."""

from collections.abc import Iterable

import keras
import pandas as pd
from tqdm import tqdm

from bcdlib import methods
from bcdlib.data import splits
from bcdlib.data.cache import run_cache
from bcdlib.errors import InputError
from bcdlib.evaluation import metrics
from bcdlib.runs.files import write_csv
from bcdlib.runs.folder import Run
from bcdlib.runs.profiles import Profile
from bcdlib.trials import cluster, jobs, nested_cv
from bcdlib.trials.store import check_store, fetch_trial
from bcdlib.trials.trial import Result, Trial, add_predictions, load_trial


def run_comparison(
    run: Run,
    profile: Profile,
    *,
    method_names: Iterable[str] = ("resnet50",),
    split_names: Iterable[str] = (),
    seeds: Iterable[int] = (0,),
    trainable: str = "head",
    weights: str | None = None,
    task: str = "binary",
    stain: str | None = None,
    progress: bool = True,
    keep_models: bool = False,
    scheduler: str = "none",
    store: str = "",
    notebooks: bool = False,
) -> pd.DataFrame:
    """Every method x split x fold x seed; trials that are finished already are read, not run.

    Each trial is stored in its own folder as it ends, so that a comparison that was cut off goes on where it was. At the
    end its rows go into ``comparison_predictions.csv`` and ``comparison_validation.csv`` of the run, in place of older
    ones of the same methods and splits, and ``comparison.csv`` is written.

    Parameters
    ----------
    method_names : keys of the registry, paths of method files, or "all"
    split_names : protocols; empty means those of the profile's ``compare_splits`` that 02_preprocess could make.
    seeds : each seed trains anew and, where a protocol is random, on folds that are shuffled anew
    trainable : "head" (features of the frozen base once, then seconds a trial) or "all"
    task, stain : as in `trial.Trial`
    scheduler : where they run: "none" (this process, one after the other), "local:N", or Dask's; see `cluster.map_on_cluster`
    store : URL where finished trials are kept too, and looked for; see `trial.run_trial`
    keep_models : store each trial's ``model.keras`` and ``model-card.md``; a trial that was finished without is run again
    notebooks : also keep 04_train, executed, in each trial's folder; see `notebook.run_with_notebook`

    Returns
    -------
    DataFrame, the predictions of all these trials.

    Raises
    ------
    InputError
        Unknown method or split, or a split that these images do not allow. A trial that fails is kept in
        ``comparison.csv`` (column ``error``) and does not stop the others; if all fail, the first error is raised.
    """
    cache = run_cache(run)
    planned = _planned(run, profile, cache.images, method_names, split_names, seeds, trainable, task, stain)
    if store:
        check_store(store)
    options = {"weights": weights, "keep_models": keep_models, "store": store, "notebooks": notebooks}
    work = _one_by_one if scheduler == "none" else _on_workers
    outcomes = dict(work(run, cache, profile, planned, progress, options, scheduler))
    done = [outcomes[number] for number in sorted(outcomes) if isinstance(outcomes[number], Result)]
    failed = [
        (trial, outcomes[number])
        for number, trial in enumerate(planned)
        if not isinstance(outcomes[number], Result)
    ]
    _store(run, planned, done, failed)
    if not done:
        raise failed[0][1]
    return pd.concat([result.predictions for result in done], ignore_index=True)


def _one_by_one(run, cache, profile, planned, progress, options, _):
    work, root = jobs.trial_runner(options["notebooks"]), run.folder / "trials"
    with tqdm(planned, desc="Compare", unit="trial", disable=not progress) as bar:
        for number, trial in enumerate(bar):
            bar.set_postfix_str(f"{trial.label}, {trial.split}, fold {trial.fold}, seed {trial.seed}")
            try:
                yield (
                    number,
                    work(
                        trial,
                        cache,
                        profile,
                        root,
                        options["weights"],
                        0,
                        options["keep_models"],
                        options["store"],
                    ),
                )
            except Exception as error:  # one method's failure must not cost the others' hours
                yield number, error
            keras.utils.clear_session()  # or a night of trials would fill the memory with old graphs


def _on_workers(run, cache, profile, planned, progress, options, scheduler):
    root = run.folder / "trials"
    job = jobs.write_job(
        options["store"] or str(root),
        cache,
        profile,
        planned=planned,
        root=str(root),
        source=run.settings.get("source", ""),
        **options,
    )
    for number, outcome in cluster.map_on_cluster(
        scheduler, "bcdlib.trials.jobs:run_job", *jobs.job_items(job, planned), "Compare", progress
    ):
        if not isinstance(outcome, Exception):
            if (
                options["store"] and not (root / outcome).is_dir()
            ):  # made on a machine whose disk is not this one's
                fetch_trial(options["store"], root / outcome)
            outcome = load_trial(planned[number], root / outcome)
        yield number, outcome


def choose_methods(
    run: Run,
    profile: Profile,
    *,
    method_names: Iterable[str],
    split_names: Iterable[str] = (),
    seeds: Iterable[int] = (0,),
    trainable: str = "head",
    weights: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Choose among the methods inside each training part; see `choosing`. Arguments as in `run_trials`.

    Its predictions join those of the run as method "chosen"; who was chosen where stands in ``choices.csv``.

    Returns
    -------
    DataFrame, the predictions of "chosen".

    Raises
    ------
    InputError
        If none of the splits is one that can be cut once more (image, slide, case).
    """
    cache = run_cache(run)
    outer = [
        trial
        for trial in _planned(run, profile, cache.images, method_names, split_names, seeds, trainable)
        if trial.split in nested_cv.INNER_SPLITS
    ]
    if not outer:
        raise InputError(f"choosing needs one of the splits {', '.join(nested_cv.INNER_SPLITS)}")
    predictions, choices = nested_cv.nested_cv(
        outer, cache, profile, root=run.folder / "trials", weights=weights, progress=progress
    )
    add_predictions(run.folder / "comparison_predictions.csv", predictions)
    write_csv(run.folder / "choices.csv", choices)
    rows = run.read_csv("comparison.csv", "06_compare")
    errors = rows.loc[rows["error"].notna(), ["method", "split", "error"]]
    write_csv(run.folder / "comparison.csv", pd.concat([metrics.metrics_table(all_predictions(run)), errors]))
    return predictions


def _planned(
    run: Run,
    profile: Profile,
    images: pd.DataFrame,
    method_names,
    split_names,
    seeds,
    trainable,
    task="binary",
    stain=None,
) -> list[Trial]:
    return [
        Trial(method, name, table, int(fold), seed, trainable, task, stain)
        for method in _methods(method_names)
        for seed in seeds
        for name, table in _split_tables(run, profile, images, tuple(split_names), seed).items()
        for fold in sorted(table["fold"].unique())
    ]


def _methods(names: Iterable[str]) -> list[str]:
    found = [key for name in names for key in (methods.method_names() if name == "all" else (name,))]
    for name in found:
        methods.method_settings(name)  # an unknown one is a mistake, not a failed trial
    return list(dict.fromkeys(found))


def _store(run: Run, planned, done, failed) -> None:
    asked = pd.MultiIndex.from_tuples({(trial.label, trial.split) for trial in planned})
    for part, name in (
        ("validation", "comparison_validation.csv"),
        ("predictions", "comparison_predictions.csv"),
    ):
        tables = [getattr(result, part) for result in done]
        if (run.folder / name).is_file():
            old = run.read_csv(name, "06_compare")
            tables.insert(0, old[~pd.MultiIndex.from_frame(old[["method", "split"]]).isin(asked)])
        if tables:
            write_csv(run.folder / name, pd.concat([table for table in tables if len(table)] or tables[:1]))
    errors = [
        {"method": t.label, "split": t.split, "error": f"fold {t.fold}, seed {t.seed}: {_one_line(e)}"}
        for t, e in failed
    ]
    file = "comparison_predictions.csv"  # without rows, if all failed that were in it
    known = (
        [metrics.metrics_table(all_predictions(run))]
        if (run.folder / file).is_file() and len(run.read_csv(file, ""))
        else []
    )
    write_csv(
        run.folder / "comparison.csv",
        pd.concat([*known, pd.DataFrame(errors, columns=["method", "split", "error"])]),
    )


def _one_line(error: Exception) -> str:
    return f"{getattr(error, 'kind', type(error).__name__)}: {error}".splitlines()[0]


def all_predictions(run: Run) -> pd.DataFrame:
    """The predictions of every comparison that was made in this run so far."""
    run.read_csv("comparison_predictions.csv", "06_compare")
    return metrics.read_predictions(run.folder / "comparison_predictions.csv")


def failed_trials(run: Run) -> list[str]:
    """One line a trial of the last comparison that failed: method, split, fold and seed, reason."""
    table = run.read_csv("comparison.csv", "06_compare")
    rows = table[table["error"].notna()]
    return [f"{row.method}, split {row.split}, {row.error}" for row in rows.itertuples()]


def _split_tables(run: Run, profile: Profile, images: pd.DataFrame, names: tuple[str, ...], seed: int):
    """Split name -> table. The run's own seed uses what 02_preprocess wrote; another seed shuffles the folds anew."""
    if not names:
        names = [name for name in profile.compare_splits if (run.folder / "splits" / f"{name}.csv").is_file()]
    tables = {}
    for name in names:
        splits.describe_protocol(name)
        if seed == run.settings.get("seed", 0) and name in splits.PROTOCOLS:
            tables[name] = splits.read_split(run, name)
            continue
        file = f"splits/{name}-seed{seed}.csv"
        if not (run.folder / file).is_file():
            write_csv(
                run.folder / file, splits.make_feasible_split(images, name, profile.folds, seed=seed)[0]
            )
        tables[name] = run.read_csv(file, "06_compare")
    return tables
