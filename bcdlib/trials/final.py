"""A final model: trained on all images, for use elsewhere; what it is worth is said by cross-validation.

No image is left to test it, nor to choose its threshold. So the same method is also trained fold by fold, and
each image is predicted by the model that has not seen its case: these predictions set the threshold and the
calibration, and are the model's figures. They are those of models trained on fewer cases.
"""

from collections.abc import Iterable

import pandas as pd

from bcdlib import methods
from bcdlib.data import cache, splits
from bcdlib.errors import InputError
from bcdlib.evaluation import thresholds
from bcdlib.runs import files, folder, profiles
from bcdlib.trials import comparison, model_card
from bcdlib.trials.trial import Result, Trial, load_trial

_PROTOCOLS = ("case", "slide", "image")  # that test each image once


def plan_final(run: folder.Run, method: str, **settings) -> list[Trial]:
    """Plan a final model: a trial for each fold of the strictest protocol, and last the one on all images.

    Parameters
    ----------
    run : Run
        After 02_preprocess.
    method, **settings
        seed, trainable, task, stain and recipe, as in `trial.Trial`.
    """
    protocol = splits.available_splits(run, _PROTOCOLS)[0]
    table, whole = splits.read_split(run, protocol), splits.whole_split(cache.run_cache(run).images)
    run.write_csv(f"splits/{splits.ALL}.csv", whole)
    return [
        *(Trial(method, protocol, table, fold=int(fold), **settings) for fold, _ in splits.folds_of(table)),
        Trial(method, splits.ALL, whole, **settings),
    ]


def finish_final(results: list[Result], images: pd.DataFrame) -> Result:
    """Give a final model its threshold, calibration and figures, from the folds' test predictions.

    Written beside the model: ``cross_validation.csv``, the folds' predictions with the threshold and the
    calibrated probability that each fold's own validation part gave; the same as ``validation.csv``;
    ``locked.csv``; and ``model-card.md``.

    Parameters
    ----------
    results : list of Result
        Of the trials from `plan_final`, in their order; others may stand before them.
    images : DataFrame
        With filename, class, subtype, slide, case.

    Returns
    -------
    Result
        The last one, with these predictions as its validation part.

    Raises
    ------
    InputError
        If the method has no `save`.
    """
    *others, final = results
    folds = [result for result in others if result.trial.split == others[-1].trial.split]
    trial, place = final.trial, final.folder
    if not (place / f"model{methods.get_method(trial.method).suffix}").is_file():
        raise InputError(f"{trial.label}: its method has no `save`, so there is no final model to take")
    tested = pd.concat(
        [
            thresholds.apply_lock(fold.predictions, thresholds.lock_thresholds(fold.validation))
            for fold in folds
        ],
        ignore_index=True,
    )
    validation = tested[final.predictions.columns].assign(split=trial.split, fold=trial.fold)
    validation = validation.drop_duplicates("filename")
    files.write_csv(place / folder.CROSS_VALIDATION, tested)
    files.write_csv(place / "validation.csv", validation)
    files.write_csv(place / folder.LOCK, thresholds.lock_thresholds(validation))
    model_card.write_card(place, images, trial.split_table)
    return load_trial(trial, place)


def train_finals(
    run: folder.Run,
    profile: profiles.Profile,
    *,
    method_names: Iterable[str],
    seed: int = 0,
    trainable: str = "head",
    task: str = "binary",
    stain: str | None = None,
    recipe: str = "authors",
    **options,
) -> list[Result]:
    """Train the final model of each method; folds that are finished already are read, not run.

    Parameters
    ----------
    run, profile, method_names, trainable, task, stain, recipe
        As in `comparison.run_comparison`.
    seed : int
    **options
        As in `comparison.run_planned`.

    Raises
    ------
    InputError
        If the task is "magnification", a trial fails, or a method has no `save`.
    """
    if task == "magnification":
        raise InputError("task 'magnification': there is no final model that tells benign from malignant")
    found = []
    for method in comparison.expand_methods(method_names):
        settings = {"seed": seed, "trainable": trainable, "task": task, "stain": stain, "recipe": recipe}
        *folds, final = plan_final(run, method, **settings)
        outcomes = comparison.run_planned(run, profile, folds, **options)
        alone = options | {"keep_models": True, "notebooks": False}
        outcomes += comparison.run_planned(run, profile, [final], **alone)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        found.append(finish_final(outcomes, cache.run_cache(run).images))
    return found
