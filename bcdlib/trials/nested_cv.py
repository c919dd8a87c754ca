"""What choosing among methods is worth: chosen anew inside each training part, tested on the part kept aside.

The best of many variants, by the same test folds that it was chosen by, looks better than it is. Here each fold's
training part is cut into folds of its own (grouped as the split is), every method is tried on these, and the one with
the best AUC there predicts the fold's test part: nested cross-validation (Varma & Simon 2006, "Bias in error
estimation when using cross-validation for model selection").
"""

import dataclasses

import pandas as pd
from tqdm import tqdm

from bcdlib.data import splits
from bcdlib.evaluation import metrics
from bcdlib.trials.trial import Trial, run_trial

CHOSEN = "chosen"
INNER_SPLITS = ("image", "slide", "case")
INNER_FOLDS = 3  # of each training part


def inner_split(
    images: pd.DataFrame, split: pd.DataFrame, fold: int, *, protocol: str, folds: int, seed: int
) -> pd.DataFrame:
    """A split table of one fold's training and validation images alone; none of its test images is in it.

    Raises
    ------
    InputError
        If they are too few for two folds.
    """
    known = splits.fold_of(split, fold).query("role != 'test'")["filename"]
    return splits.make_feasible_split(images[images["filename"].isin(known)], protocol, folds, seed=seed)[0]


def nested_cv(outer: list[Trial], cache, profile, *, root, weights=None, progress: bool = True):
    """Choose among the methods of some trials, fold by fold.

    Parameters
    ----------
    outer : trials of several methods under one of `SPLITS`
    cache, profile, root, weights : as in `trial.run_trial`

    Returns
    -------
    predictions : DataFrame, a predictions table of the method "chosen"
    choices : DataFrame, a row a fold, seed and method: split, seed, fold, method, inner AUC, chosen
    """
    places = dict.fromkeys((trial.split, trial.seed, trial.fold) for trial in outer)
    todo = []
    for place in places:
        mine = [trial for trial in outer if (trial.split, trial.seed, trial.fold) == place]
        table = inner_split(
            cache.images, mine[0].split_table, place[2], protocol=place[0], folds=INNER_FOLDS, seed=place[1]
        )
        todo.append((mine, table, sorted(table["fold"].unique())))
    predictions, choices = [], []
    total = sum(len(mine) * len(folds) for mine, _, folds in todo)
    with tqdm(total=total, desc="Choose", unit="trial", disable=not progress) as bar:
        for mine, table, folds in todo:
            scores = []
            for trial in mine:
                found = []
                for fold in folds:
                    inner = dataclasses.replace(
                        trial, split=f"{trial.split}-inner{trial.fold}", split_table=table, fold=int(fold)
                    )
                    found.append(
                        run_trial(
                            inner, cache, profile, root=root, weights=weights, verbose=0, keep_model=False
                        ).predictions
                    )
                    bar.update()
                scores.append(metrics.metrics_table(pd.concat(found))["auc"].iloc[0])
            best = max(range(len(mine)), key=scores.__getitem__)
            result = run_trial(
                mine[best], cache, profile, root=root, weights=weights, verbose=0, keep_model=False
            )
            predictions.append(result.predictions.assign(method=CHOSEN))
            choices += [
                {
                    "split": trial.split,
                    "seed": trial.seed,
                    "fold": trial.fold,
                    "method": trial.label,
                    "inner AUC": score,
                    "chosen": number == best,
                }
                for number, (trial, score) in enumerate(zip(mine, scores, strict=True))
            ]
    return pd.concat(predictions, ignore_index=True), pd.DataFrame(choices)
