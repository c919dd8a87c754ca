"""Many trials: plan them, run them, keep what they found; choose among methods.

The best of many variants, by the same test folds that it was chosen by, looks better than it is. What
choosing is worth is measured by nested cross-validation, on images kept out of the choice: each fold's
training part is cut into folds of its own (grouped as the split is), every method is tried on these, and the
one with the best AUC there predicts the fold's test part (Varma & Simon 2006, "Bias in error estimation when
using cross-validation for model selection").
"""

import dataclasses
from collections.abc import Iterable

import pandas as pd
from tqdm import tqdm

from bcdlib import methods
from bcdlib.data import cache, splits
from bcdlib.errors import InputError, describe_error
from bcdlib.evaluation import metrics
from bcdlib.runs import files, profiles
from bcdlib.runs.folder import Run
from bcdlib.trials import jobs
from bcdlib.trials.trial import Result, Trial, add_predictions, of_same_data, run_trial

INNER_SPLITS = ("image", "slide", "case")  # that can be cut once more


def run_comparison(
    run: Run,
    profile: profiles.Profile,
    *,
    method_names: Iterable[str] = ("resnet50",),
    split_names: Iterable[str] = (),
    seeds: Iterable[int] = (0,),
    trainable: str = "head",
    weights: str | None = None,
    task: str = "binary",
    stain: str | None = None,
    keep_models: bool = False,
    scheduler: str = "none",
    store: str = "",
    notebooks: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Run every method x split x fold x seed; trials that are finished already are read, not run.

    Each trial is stored in its own folder as it ends, so that a comparison that was cut off goes on where it
    was. At the end its rows go into ``comparison_predictions.csv`` and ``comparison_validation.csv`` of the
    run, in place of older ones of the same methods and splits, and ``comparison.csv`` is written.

    Parameters
    ----------
    run, profile
        After 02_preprocess.
    method_names : iterable of str
        Keys of the registry, paths of method files, or "all".
    split_names : iterable of str
        Protocols; empty means those of the profile's ``compare_splits`` that 02_preprocess could make.
    seeds : iterable of int
        Each seed trains anew and, where a protocol is random, on folds that are shuffled anew.
    trainable : {"head", "all"}
        "head": the features of the frozen base are computed once, then a trial takes seconds.
    weights : str, optional
        See `parts.backbones.choose_weights`.
    task, stain
        As in `trial.Trial`.
    keep_models : bool
        Store each trial's ``model.keras`` and ``model-card.md``; a trial that was finished without is run
        again.
    scheduler : str
        Where they run: "none" (this process, one after the other), "local:N", or Dask's; see
        `cluster.check_scheduler`.
    store : str
        URL where finished trials are kept too, and looked for; see `trial.run_trial`.
    notebooks : bool
        Also keep 04_train, executed, in each trial's folder; see `notebook.run_with_notebook`.

    Returns
    -------
    DataFrame
        The predictions of all these trials.

    Raises
    ------
    InputError
        Unknown method or split, or a split that these images do not allow. A trial that fails is kept in
        ``comparison.csv`` (column ``error``) and does not stop the others; if all fail, the first error is
        raised.
    """
    pixels = cache.run_cache(run)
    planned = _plan(
        run,
        profile,
        pixels.images,
        method_names=method_names,
        split_names=split_names,
        seeds=seeds,
        trainable=trainable,
        task=task,
        stain=stain,
    )
    outcomes = jobs.run_trials(
        planned,
        pixels,
        profile,
        root=run.folder / "trials",
        source=run.settings.get("source", ""),
        scheduler=scheduler,
        progress=progress,
        weights=weights,
        keep_model=keep_models,
        store=store,
        notebooks=notebooks,
    )
    done = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    errors = [
        (trial.label, trial.split, f"fold {trial.fold}, seed {trial.seed}: {describe_error(outcome)}")
        for trial, outcome in zip(planned, outcomes, strict=True)
        if isinstance(outcome, Exception)
    ]
    tried = pd.MultiIndex.from_tuples({(trial.label, trial.split) for trial in planned})
    _replace_rows(run, "comparison_validation.csv", tried, [result.validation for result in done])
    _replace_rows(run, "comparison_predictions.csv", tried, [result.predictions for result in done])
    _write_summary(run, pd.DataFrame(errors, columns=["method", "split", "error"]))
    if not done:
        raise outcomes[0]
    return pd.concat([result.predictions for result in done], ignore_index=True)


def choose_methods(
    run: Run,
    profile: profiles.Profile,
    *,
    method_names: Iterable[str],
    split_names: Iterable[str] = (),
    seeds: Iterable[int] = (0,),
    trainable: str = "head",
    weights: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Choose among methods inside each training part by nested cross-validation.

    The predictions join those of the run as method "chosen"; which method was chosen where stands in
    ``choices.csv``.

    Parameters
    ----------
    run, profile, method_names, split_names, seeds, trainable, weights
        As in `run_comparison`, which has run them.

    Returns
    -------
    DataFrame
        The predictions of "chosen".

    Raises
    ------
    InputError
        If none of the splits is one that can be cut once more (image, slide, case).
    """
    pixels = cache.run_cache(run)
    planned = _plan(
        run,
        profile,
        pixels.images,
        method_names=method_names,
        split_names=split_names,
        seeds=seeds,
        trainable=trainable,
    )
    outer = [trial for trial in planned if trial.split in INNER_SPLITS]
    if not outer:
        raise InputError(f"choosing needs one of the splits {', '.join(INNER_SPLITS)}")
    places = {}
    for trial in outer:
        places.setdefault((trial.split, trial.seed, trial.fold), []).append(trial)
    tables = [
        inner_split(pixels.images, trials[0].split_table, fold, protocol=split, folds=3, seed=seed)
        for (split, seed, fold), trials in places.items()
    ]
    options = {"root": run.folder / "trials", "weights": weights, "keep_model": False, "verbose": 0}
    predictions, choices = [], []
    with tqdm(total=len(outer), desc="Choose", unit="trial", disable=not progress) as bar:
        for (split, seed, fold), trials, table in zip(places, places.values(), tables, strict=True):
            scores = []
            for trial in trials:
                inner = [
                    dataclasses.replace(
                        trial, split=f"{split}-inner{fold}", split_table=table, fold=int(inner_fold)
                    )
                    for inner_fold in sorted(table["fold"].unique())
                ]
                found = pd.concat([run_trial(one, pixels, profile, **options).predictions for one in inner])
                scores.append(metrics.metrics_table(found)["auc"].iloc[0])
                bar.update()
            best = trials[scores.index(max(scores))]
            predictions.append(
                run_trial(best, pixels, profile, **options).predictions.assign(method="chosen")
            )
            choices += [
                {
                    "split": split,
                    "seed": seed,
                    "fold": fold,
                    "method": trial.label,
                    "inner AUC": score,
                    "chosen": trial is best,
                }
                for trial, score in zip(trials, scores, strict=True)
            ]
    chosen = pd.concat(predictions, ignore_index=True)
    add_predictions(run.folder / "comparison_predictions.csv", chosen)
    files.write_csv(run.folder / "choices.csv", pd.DataFrame(choices))
    failed = run.read_csv("comparison.csv", "06_compare").dropna(subset="error")
    _write_summary(run, failed[["method", "split", "error"]])
    return chosen


def inner_split(
    images: pd.DataFrame, split: pd.DataFrame, fold: int, *, protocol: str, folds: int, seed: int
) -> pd.DataFrame:
    """Make a split table of one fold's training and validation images alone, without its test images.

    Raises
    ------
    InputError
        If they are too few for two folds.
    """
    known = splits.fold_of(split, fold).query("role != 'test'")["filename"]
    return splits.make_feasible_split(images[images["filename"].isin(known)], protocol, folds, seed=seed)[0]


def expand_methods(names: Iterable[str]) -> list[str]:
    """Put the registry's methods in the place of "all"; each name stands once.

    Raises
    ------
    InputError
        Unknown method or setting.

    Examples
    --------
    >>> expand_methods(["robust:stages=4", "lenet5", "lenet5"])
    ['robust:stages=4', 'lenet5']
    """
    found = [key for name in names for key in (methods.method_names() if name == "all" else [name])]
    for name in found:
        methods.method_settings(name)  # an unknown one is a mistake, not a failed trial
    return list(dict.fromkeys(found))


def _plan(
    run: Run, profile: profiles.Profile, images: pd.DataFrame, *, method_names, split_names, seeds, **settings
) -> list[Trial]:
    return [
        Trial(method, split, table, fold=int(fold), seed=seed, **settings)
        for method in expand_methods(method_names)
        for seed in seeds
        for split, table in _split_tables(run, profile, images, names=tuple(split_names), seed=seed).items()
        for fold in sorted(table["fold"].unique())
    ]


def _split_tables(
    run: Run, profile: profiles.Profile, images: pd.DataFrame, *, names: tuple[str, ...], seed: int
) -> dict[str, pd.DataFrame]:
    """Read what 02_preprocess wrote for the run's own seed; for another seed shuffle the folds anew."""
    if not names:
        names = [name for name in profile.compare_splits if (run.folder / "splits" / f"{name}.csv").is_file()]
    tables = {}
    for name in names:
        splits.describe_protocol(name)  # or it is refused
        if seed == run.settings.get("seed", 0) and name in splits.PROTOCOLS:
            tables[name] = splits.read_split(run, name)
        else:
            file = f"splits/{name}-seed{seed}.csv"
            if not (run.folder / file).is_file():
                shuffled = splits.make_feasible_split(images, name, profile.folds, seed=seed)[0]
                files.write_csv(run.folder / file, shuffled)
            tables[name] = run.read_csv(file, "06_compare")
    return tables


def _replace_rows(run: Run, name: str, tried: pd.MultiIndex, tables: list[pd.DataFrame]) -> None:
    """Put tables into a file in place of its rows of the (method, split) that were tried."""
    if (run.folder / name).is_file():
        old = run.read_csv(name, "06_compare")
        others = old[~pd.MultiIndex.from_frame(old[["method", "split"]]).isin(tried)]
        tables = [of_same_data(others, pd.concat(tables)) if tables else others, *tables]
    if tables:
        files.write_csv(run.folder / name, pd.concat([table for table in tables if len(table)] or tables[:1]))


def _write_summary(run: Run, errors: pd.DataFrame) -> None:
    tables, file = [errors], "comparison_predictions.csv"
    if (run.folder / file).is_file() and len(run.read_csv(file, "")):  # no rows if all failed that were in it
        tables.insert(0, metrics.metrics_table(all_predictions(run)))
    files.write_csv(run.folder / "comparison.csv", pd.concat(tables))


def all_predictions(run: Run) -> pd.DataFrame:
    """Read the predictions of every comparison that was made in this run so far."""
    name = "comparison_predictions.csv"
    run.read_csv(name, "06_compare")
    return run.check_origin(metrics.read_predictions(run.folder / name), name)


def failed_trials(run: Run) -> list[str]:
    """List the trials of the last comparison that failed, a line each: method, split, fold, seed, reason."""
    failed = run.read_csv("comparison.csv", "06_compare").dropna(subset="error")
    return [f"{row.method}, split {row.split}, {row.error}" for row in failed.itertuples()]
