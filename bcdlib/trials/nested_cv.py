"""Nested cross-validation: what choosing among methods is worth, measured on images kept out of the choice.

The best of many variants, by the same test folds that it was chosen by, looks better than it is. Here each
fold's training part is cut into folds of its own (grouped as the split is), every method is tried on these,
and the one with the best AUC there predicts the fold's test part (Varma & Simon 2006, "Bias in error
estimation when using cross-validation for model selection").
"""

import dataclasses
import functools

import pandas as pd
from tqdm import tqdm

from bcdlib.data import splits
from bcdlib.data.cache import PixelCache
from bcdlib.evaluation import metrics
from bcdlib.runs.profiles import Profile
from bcdlib.trials.trial import Trial, run_trial

CHOSEN = "chosen"
INNER_SPLITS = ("image", "slide", "case")
INNER_FOLDS = 3  # of each training part


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


def nested_cv(
    outer: list[Trial],
    cache: PixelCache,
    profile: Profile,
    *,
    root,
    weights: str | None = None,
    progress: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Choose among the methods of some trials, fold by fold.

    Parameters
    ----------
    outer : list of Trial
        Of several methods, under `INNER_SPLITS`.
    cache, profile, root, weights
        As in `trial.run_trial`.

    Returns
    -------
    predictions : DataFrame
        A predictions table of the method "chosen".
    choices : DataFrame
        A row a fold, seed and method: split, seed, fold, method, inner AUC, chosen.
    """
    run = functools.partial(run_trial, root=root, weights=weights, keep_model=False, verbose=0)
    places, predictions, choices = {}, [], []
    for trial in outer:
        places.setdefault((trial.split, trial.seed, trial.fold), []).append(trial)
    tables = [
        inner_split(cache.images, trials[0].split_table, fold, protocol=split, folds=INNER_FOLDS, seed=seed)
        for (split, seed, fold), trials in places.items()
    ]
    with tqdm(total=len(outer), desc="Choose", unit="trial", disable=not progress) as bar:
        for (split, seed, fold), trials, table in zip(places, places.values(), tables, strict=True):
            rows = []
            for trial in trials:
                inner = dataclasses.replace(trial, split=f"{split}-inner{fold}", split_table=table)
                folds = [dataclasses.replace(inner, fold=int(k)) for k in sorted(table["fold"].unique())]
                found = pd.concat([run(one, cache, profile).predictions for one in folds])
                row = {"split": split, "seed": seed, "fold": fold, "method": trial.label}
                rows.append(row | {"inner AUC": metrics.metrics_table(found)["auc"].iloc[0]})
                bar.update()
            scores = [row["inner AUC"] for row in rows]
            best = scores.index(max(scores))
            predictions.append(run(trials[best], cache, profile).predictions.assign(method=CHOSEN))
            choices += [row | {"chosen": number == best} for number, row in enumerate(rows)]
    return pd.concat(predictions, ignore_index=True), pd.DataFrame(choices)
