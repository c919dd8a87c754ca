"""What shared cases are worth: the same test images, after training with and without their cases."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from bcdlib.data import breakhis, cache, splits
from bcdlib.errors import InputError
from bcdlib.evaluation import bootstrap, metrics
from bcdlib.runs import folder, profiles
from bcdlib.trials import comparison
from bcdlib.trials.trial import Trial

WITH, WITHOUT = "as published", "without shared cases"
_ARMS = {WITH: "shared", WITHOUT: "unshared"}  # what a trial's split is called after
DRAWS = 5
MEASURED = ("accuracy", "auc")


def equal_trainings(split: pd.DataFrame, images: pd.DataFrame, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Make a split with and one without the cases of its test part in training, both of one size.

    Without: all images of those cases are left out. With: as many others of the same class, chosen at random
    case by case (of the last case only as many images as are needed; where all others are not enough, images
    of the shared cases too). So both have the same number of benign and of malignant images. Images that were
    only for validation are in neither.

    Parameters
    ----------
    split : DataFrame
        One fold: filename, role.
    images : DataFrame
        filename, class, case.
    seed : int
        Of the draw.

    Returns
    -------
    dict of DataFrame
        By `WITH` and `WITHOUT`: filename, role (train, test). Empty if no case is shared.

    Raises
    ------
    InputError
        If without the shared cases no image of a class is left to train on.
    """
    rows = split[["filename", "role"]].merge(images[["filename", "class", "case"]], on="filename")
    test, train = rows[rows["role"] == "test"], rows[rows["role"] == "train"]
    train = train.assign(shared=train["case"].isin(test["case"]))
    if not train["shared"].any():
        return {}
    # cases in random order, and in each its images
    train = train.iloc[np.random.default_rng(seed).permutation(len(train))]
    train = train.iloc[np.argsort(pd.factorize(train["case"])[0], kind="stable")]
    kept = []
    for name in breakhis.CLASSES:
        own, others = (train[(train["class"] == name) & (train["shared"] == side)] for side in (True, False))
        if others.empty:
            raise InputError(f"without the cases of the test part no {name} image is left to train on")
        kept.append(pd.concat([own, others]).head(len(others)))
    parts = {WITH: pd.concat(kept), WITHOUT: train[~train["shared"]]}
    return {name: pd.concat([part, test])[["filename", "role"]] for name, part in parts.items()}


def measure_shared_cases(
    run: folder.Run,
    profile: profiles.Profile,
    *,
    method_names: Iterable[str],
    split_names: Iterable[str],
    seeds: Iterable[int] = range(DRAWS),
    trainable: str = "head",
    task: str = "binary",
    stain: str | None = None,
    recipe: str = "authors",
    **options,
) -> pd.DataFrame:
    """Train each method on `equal_trainings` of each split and fold; compare on the same test images.

    Writes ``shared_cases.csv`` (what is returned) and ``shared_cases_predictions.csv`` (with the column
    ``training``). Nothing is chosen on a validation part: there is none.

    Parameters
    ----------
    run, profile
        After 02_preprocess.
    method_names, split_names : iterable of str
    seeds : iterable of int
        The draws: each leaves out other cases, and is the seed of the training too.
    trainable, task, stain, recipe, **options
        As in `comparison.run_comparison`.

    Returns
    -------
    DataFrame
        A row for each method, split, metric and part ("all" test images, and those "of shared cases"):
        method, split, test images, metric, with, without, value (their difference, mean over the draws), low,
        high (95 %, paired bootstrap over cases), p, images, cases, draws, training_images (of both, mean over
        folds), shared_images (of these with shared cases, the same mean).

    Raises
    ------
    InputError
        Unknown method or split, or one that shares no case among these images, or a trial that failed.
    """
    images, methods = cache.run_cache(run).images, comparison.expand_methods(method_names)
    seed = run.settings.get("seed", 0)
    published = {
        name: splits.make_split(images, name, profile.folds, validation=0, seed=seed) for name in split_names
    }
    made = {
        (name, draw): _trainings(split, images, name=name, draw=draw)
        for name, split in published.items()
        for draw in seeds
    }
    planned = [
        (
            {"split": name, "training": training},
            Trial(
                method,
                f"{name}-{_ARMS[training]}",
                table,
                fold=int(fold),
                seed=draw,
                trainable=trainable,
                task=task,
                stain=stain,
                recipe=recipe,
            ),
        )
        for (name, draw), tables in made.items()
        for training, table in tables.items()
        for method in methods
        for fold in table["fold"].unique()
    ]
    outcomes = comparison.run_planned(run, profile, [trial for _, trial in planned], **options)
    found = []
    for (names, _), outcome in zip(planned, outcomes, strict=True):
        if isinstance(outcome, Exception):  # the others are stored by now, and found when it is run again
            raise outcome
        found.append(outcome.predictions.assign(**names))
    predictions = pd.concat(found, ignore_index=True)
    run.write_csv("shared_cases_predictions.csv", predictions)
    rows = []
    for (method, name), part in predictions.groupby(["method", "split"], sort=False):
        shared = _shared_cases(published[name], images)
        sizes = _sizes(made[name, part["seed"].iloc[0]][WITH], images, shared)
        rows += [{"method": method, "split": name, **row, **sizes} for row in _differences(part, shared)]
    table = pd.DataFrame(rows)
    run.write_csv("shared_cases.csv", table)
    return table


def _trainings(split: pd.DataFrame, images: pd.DataFrame, *, name: str, draw: int) -> dict[str, pd.DataFrame]:
    """`equal_trainings` of all folds that share a case, as two split tables."""
    made = {WITH: [], WITHOUT: []}
    for fold, part in splits.folds_of(split):
        try:
            found = equal_trainings(part, images, draw)
        except InputError as error:
            raise InputError(f"split {name!r}, fold {fold}: {error}; choose another split") from None
        for training, table in found.items():
            made[training].append(table.assign(fold=fold))
    if not made[WITH]:
        raise InputError(
            f"split {name!r}: among these images no case is in training and test; nothing to measure"
        )
    return {training: pd.concat(parts, ignore_index=True) for training, parts in made.items()}


def _shared_cases(split: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """Fold and case, a row each, of the cases in training and test."""
    rows = split.merge(images[["filename", "case"]], on="filename")
    sides = [rows.loc[rows["role"] == role, ["fold", "case"]].drop_duplicates() for role in ("train", "test")]
    return sides[0].merge(sides[1])


def _sizes(table: pd.DataFrame, images: pd.DataFrame, shared: pd.DataFrame) -> dict[str, int]:
    rows = table[table["role"] == "train"].merge(images[["filename", "case"]], on="filename")
    folds = table["fold"].nunique()
    return {
        "training_images": round(len(rows) / folds),
        "shared_images": round(len(rows.merge(shared)) / folds),
    }


def _differences(predictions: pd.DataFrame, shared: pd.DataFrame):
    """Yield rows of the result: all test images, and those of shared cases."""
    for what, part in (("all", predictions), ("of shared cases", predictions.merge(shared))):
        first, second = (part[part["training"] == training] for training in (WITH, WITHOUT))
        for metric in MEASURED:
            values = {
                name: metrics.metrics_by_seed(one, keys=[metric])[metric].mean(skipna=False)
                for name, one in (("with", first), ("without", second))
            }
            yield {
                "test images": what,
                "metric": metric,
                **values,
                **bootstrap.paired_difference(first, second, metric),
                "draws": part["seed"].nunique(),
            }
