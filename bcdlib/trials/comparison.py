"""Many trials: plan them, run them, keep what they found; choose among methods.

The best of many variants, by the same test folds that it was chosen by, looks better than it is. What
choosing is worth is measured by nested cross-validation, on images kept out of the choice: inside each fold's
training part, the method with the best AUC out of fold is chosen, and it alone predicts the fold's test part
(Varma & Simon 2006, "Bias in error estimation when using cross-validation for model selection").
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from tqdm import tqdm

from bcdlib import methods
from bcdlib.data import cache, published_splits, splits
from bcdlib.errors import InputError, describe_error
from bcdlib.evaluation import metrics, published
from bcdlib.runs import files, folder, profiles
from bcdlib.trials import jobs
from bcdlib.trials.trial import Result, Trial, add_predictions, run_trial


def run_comparison(
    run: folder.Run,
    profile: profiles.Profile,
    *,
    method_names: Iterable[str] = ("resnet50",),
    split_names: Iterable[str] = (),
    seeds: Iterable[int] = (0,),
    trainable: str = "head",
    task: str = "binary",
    stain: str | None = None,
    recipe: str = "authors",
    **options,
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
        Protocols; empty means those of the profile's ``compare_splits`` that 02_preprocess could make;
        "authors" the one that each method's own authors used, where it is known (`published.TABLE_II`).
    seeds : iterable of int
        Each seed trains anew and, where a protocol is random, on folds that are shuffled anew.
    trainable : {"head", "all"}
        "head": the features of the frozen base are computed once, then a trial takes seconds.
    task, stain, recipe
        As in `trial.Trial`.
    **options
        weights, keep_models, scheduler, store, notebooks and progress; see `run_planned`.

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
        recipe=recipe,
    )
    if not planned:
        raise InputError(
            "no seed named; give 1 or more seeds, and to split 'authors' a method whose own is known"
        )
    for name in dict.fromkeys(trial.split for trial in planned):
        if name in published_splits.list_names():
            print(published_splits.coverage_text(name, pixels.images), flush=True)
    outcomes = run_planned(run, profile, planned, **options)
    done = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    errors = [
        (trial.label, trial.split, f"fold {trial.fold}, seed {trial.seed}: {describe_error(outcome)}")
        for trial, outcome in zip(planned, outcomes, strict=True)
        if isinstance(outcome, Exception)
    ]
    tried = pd.MultiIndex.from_tuples(
        {(trial.label, trial.split) for trial in planned}, names=["method", "split"]
    )
    for part in ("validation", "predictions"):
        tables = [getattr(result, part) for result in done]
        add_predictions(run.folder / f"comparison_{part}.csv", *tables, replaced=tried)
    _write_summary(run, pd.DataFrame(errors, columns=["method", "split", "error"]))
    if not done:
        raise outcomes[0]
    return pd.concat([result.predictions for result in done], ignore_index=True)


def run_planned(
    run: folder.Run,
    profile: profiles.Profile,
    planned: list[Trial],
    *,
    weights: str | None = None,
    keep_models: bool = False,
    scheduler: str = "none",
    store: str = "",
    notebooks: bool = False,
    progress: bool = True,
) -> list[Result | Exception]:
    """Run planned trials, which are kept in the run's folder ``trials``.

    Parameters
    ----------
    run, profile
        After 02_preprocess.
    planned : list of Trial
    weights : str, optional
        See `parts.backbones.choose_weights`.
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
    progress : bool
        Show a progress bar.

    Returns
    -------
    list
        Of each trial what it found, or what it raised; see `jobs.run_trials`.
    """
    return jobs.run_trials(
        planned,
        cache.run_cache(run),
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


def choose_methods(
    run: folder.Run,
    profile: profiles.Profile,
    *,
    method_names: Iterable[str],
    split_names: Iterable[str] = (),
    seeds: Iterable[int] = (0,),
    trainable: str = "head",
    recipe: str = "authors",
    weights: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Choose among methods inside each training part, by the predictions of their trials on validation.

    These are out of fold where a method trains a head only (see `trial.run_trial`): with the folds outside,
    this is nested cross-validation. The test predictions of the best join those of the run as method
    "chosen"; which method was chosen where stands in ``choices.csv``.

    Parameters
    ----------
    run, profile, method_names, split_names, seeds, trainable, recipe, weights
        As in `run_comparison`, which has run them.

    Returns
    -------
    DataFrame
        The predictions of "chosen".

    Raises
    ------
    InputError
        If none of the splits has a validation part.
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
        recipe=recipe,
    )
    places = {}
    for trial in planned:
        if (splits.fold_of(trial.split_table, trial.fold)["role"] == "validation").any():
            places.setdefault((trial.split, trial.seed, trial.fold), []).append(trial)
    if not places:
        raise InputError("choosing needs a split with a validation part; choose among image, slide, case")
    options = {"root": run.folder / "trials", "weights": weights, "keep_model": False, "verbose": 0}
    predictions, choices = [], []
    for (split, seed, fold), trials in tqdm(places.items(), "Choose", unit="fold", disable=not progress):
        results = [run_trial(trial, pixels, profile, **options) for trial in trials]
        # a network that was fine-tuned has seen more of the training part: compare where all are unseen
        common = set.intersection(*(set(result.validation["filename"]) for result in results))
        scores = []
        for result in results:
            seen = result.validation[result.validation["filename"].isin(common)]
            scores.append(metrics.compute_metrics(seen["label"], seen["probability"])["auc"])
        best = int(np.nanargmax(scores)) if np.isfinite(scores).any() else 0
        predictions.append(results[best].predictions.assign(method="chosen"))
        choices += [
            {
                "split": split,
                "seed": seed,
                "fold": fold,
                "method": trial.label,
                "AUC on validation": score,
                "chosen": number == best,
            }
            for number, (trial, score) in enumerate(zip(trials, scores, strict=True))
        ]
    chosen = pd.concat(predictions, ignore_index=True)
    add_predictions(run.folder / "comparison_predictions.csv", chosen)
    run.write_csv("choices.csv", pd.DataFrame(choices))
    failed = run.read_csv("comparison.csv", "06_compare").dropna(subset="error")
    _write_summary(run, failed[["method", "split", "error"]])
    return chosen


def expand_methods(names: Iterable[str]) -> list[str]:
    """Put the registry's methods in the place of "all"; each name stands once.

    Raises
    ------
    InputError
        Unknown method or setting, no method, or two that tables would call the same.

    Examples
    --------
    >>> expand_methods(["robust:stages=4", "lenet5", "lenet5"])
    ['robust:stages=4', 'lenet5']
    """
    found = [key for name in names for key in (methods.method_names() if name == "all" else [name])]
    if not found:
        raise InputError(
            f"no method named; known are {', '.join(methods.method_names())}, or all of them: all"
        )
    for name in found:
        methods.method_settings(name)  # an unknown one is a mistake, not a failed trial
    labels: dict[str, str] = {}
    for name in dict.fromkeys(found):
        label = Trial(name, "", pd.DataFrame()).label
        if labels.setdefault(label, name) != name:
            raise InputError(
                f"{labels[label]} and {name}: both are called {label} in the tables; rename one of the files"
            )
    return list(labels.values())


def _plan(
    run: folder.Run,
    profile: profiles.Profile,
    images: pd.DataFrame,
    *,
    method_names,
    split_names,
    seeds,
    **settings,
) -> list[Trial]:
    asked = tuple(split_names)
    return [
        Trial(method, split, table, fold=int(fold), seed=seed, **settings)
        for method in expand_methods(method_names)
        for seed in seeds
        if (names := _own_splits(method, asked)) or not asked
        for split, table in _split_tables(run, profile, images, names=names, seed=seed).items()
        for fold in sorted(table["fold"].unique())
    ]


def _own_splits(method: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Put the split of a method's authors in the place of "authors", where it is known; each stands once."""
    if "authors" not in names:
        return names
    printed = published.TABLE_II.set_index("key")["split"]
    own = printed.get(methods.get_method(method).key, "")
    return tuple(
        dict.fromkeys(own if name == "authors" else name for name in names if name != "authors" or own)
    )


def _split_tables(
    run: folder.Run, profile: profiles.Profile, images: pd.DataFrame, *, names: tuple[str, ...], seed: int
) -> dict[str, pd.DataFrame]:
    """Read or make the splits for the run's own seed; for another seed shuffle the folds anew."""
    if not names:
        names = [name for name in profile.compare_splits if (run.folder / "splits" / f"{name}.csv").is_file()]
    tables = {}
    for name in names:
        if seed == run.settings.get("seed", 0):
            tables[name] = splits.read_split(run, name)
        else:
            file = f"splits/{name}-seed{seed}.csv"
            if not (run.folder / file).is_file():
                run.write_csv(file, splits.make_feasible_split(images, name, profile.folds, seed=seed)[0])
            tables[name] = run.read_csv(file, "06_compare")
    return tables


def _write_summary(run: folder.Run, errors: pd.DataFrame) -> None:
    tables, file = [errors], "comparison_predictions.csv"
    if (run.folder / file).is_file() and len(run.read_csv(file, "")):  # no rows if all failed that were in it
        tables.insert(0, metrics.metrics_table(all_predictions(run)))
    files.write_csv(run.folder / "comparison.csv", pd.concat(tables), for_reading=True)


def all_predictions(run: folder.Run) -> pd.DataFrame:
    """Read the predictions of every comparison that was made in this run so far."""
    name = "comparison_predictions.csv"
    run.read_csv(name, "06_compare")
    return run.check_origin(metrics.read_predictions(run.folder / name, any_task=True), name)


def failed_trials(run: folder.Run) -> list[str]:
    """List the trials of the last comparison that failed, a line each: method, split, fold, seed, reason."""
    table = run.read_csv("comparison.csv", "06_compare").dropna(subset="error")
    return [f"{row.method}, split {row.split}, {row.error}" for row in table.itertuples()]
