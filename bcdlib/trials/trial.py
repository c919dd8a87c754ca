"""A trial: one method, one split, one fold, one seed. Trained once, stored, and found again."""

import ast
import copy
import hashlib
import inspect
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from bcdlib import methods
from bcdlib.data import breakhis, splits
from bcdlib.data.cache import PixelCache
from bcdlib.errors import InputError, check_seed
from bcdlib.evaluation import thresholds
from bcdlib.evaluation.metrics import COLUMNS, MAGNIFICATION_COLUMNS, SUBTYPE_COLUMNS
from bcdlib.methods._base import TASKS, Method, malignant_probability, predict_checked, wanted
from bcdlib.methods._recipe import PAPER, Recipe
from bcdlib.methods.parts import backbones, fitting, hardware
from bcdlib.runs import environment, files, places, profiles
from bcdlib.runs.folder import LOCK, TRIAL_COLUMNS
from bcdlib.trials import model_card
from bcdlib.trials.store import fetch_trial, put_trial

TRIAL_FORMAT = 2  # raised when trials that are stored would come out otherwise today
INNER_FOLDS = 3  # of out-of-fold predictions inside the training part


@dataclass(frozen=True)
class Trial:
    """What a trial is made of.

    Attributes
    ----------
    method : str
        A key of the registry or the path of a method file; changed settings may follow (``robust:stages=4``,
        see `methods.method_settings`).
    split : str
        Name of the protocol.
    split_table : DataFrame
        The whole split, with filename, fold and role.
    fold : int
        Which of its folds.
    seed : int
    trainable : {"all", "head"}
    task : {"binary", "subtype", "magnification"}
    stain : {"macenko", "reinhard", "none"}, optional
        Stain normalisation; None leaves it to the method.
    recipe : {"authors", "paper"}
        How it is trained: as the method's authors did, as far as known, or as the paper that compares.
    """

    method: str
    split: str
    split_table: pd.DataFrame
    fold: int = 0
    seed: int = 0
    trainable: str = "all"
    task: str = "binary"
    stain: str | None = None
    recipe: str = "authors"

    def __post_init__(self):
        check_seed(self.seed)

    def __str__(self):
        return f"{self.label}, split {self.split}, fold {self.fold}, seed {self.seed}"

    @property
    def label(self) -> str:
        """The method's name in tables.

        Its key, with ``-head`` if its base stays frozen where it could be fine-tuned, another task than
        benign or malignant, the stain normalisation if one was asked for, ``-paper_recipe`` if its authors'
        recipe is known and it is not trained by that, and settings that were changed.
        """
        kind = methods.get_method(self.method)
        offered = "trainable" in kind().get_params() and kind.trains("head") != kind.trains("all")
        parts = [
            kind.key,
            "head" if offered and self.trainable == "head" else "",
            "" if self.task == "binary" else self.task,
            "" if self.stain is None else f"stain_{self.stain}",
            "paper_recipe" if self.recipe == "paper" and kind.authors != PAPER else "",
            *(
                f"{key}={places.name_only(value)}"
                for key, value in methods.method_settings(self.method).items()
            ),
        ]
        return "-".join(filter(None, parts))

    def estimator(self, profile: profiles.Profile, weights: str | None = None, verbose=None) -> Method:
        """Return the untrained method with this profile's settings, or its own in their place.

        What authors state goes before the profile; but profiles quick and demo take no more epochs than they
        have, and demo no larger images. Epochs that were asked for go before both.

        Parameters
        ----------
        profile : Profile
        weights : str, optional
            See `parts.backbones.choose_weights`.
        verbose : int, optional
            Keras'; default: the environment variable BCD_VERBOSE, else 1, one progress bar line an epoch.

        Raises
        ------
        InputError
            If the method cannot learn the task or knows no stain normalisation.
        """
        kind = methods.get_method(self.method)
        trains = kind.trains(self.trainable)
        head = trains == "head"
        settings = {
            "trainable": self.trainable,
            "recipe": self.recipe,
            "task": self.task,
            "weights": backbones.choose_weights(weights),
            "pretrained_required": profile.needs_pretrained,
            "epochs": profile.head_epochs if head else profile.epochs,
            "steps_per_epoch": None if head else profile.steps_per_epoch,
            "batch_size": profile.batch_size,
            "learning_rate": profile.head_learning_rate if head else profile.learning_rate,
            "batch_norm": profile.batch_norm,
            "seed": self.seed,
            "verbose": int(os.environ.get("BCD_VERBOSE", 1)) if verbose is None else verbose,
        } | kind.changes.get(trains, {})
        if self.recipe == "authors":
            settings |= self._authors_settings(kind.authors, profile, settings)
        if self.stain is not None:
            settings["stain"] = None if self.stain == "none" else self.stain
        known = kind().get_params()
        if self.task not in kind.tasks:
            raise InputError(
                f"{kind.key}: cannot learn the task {self.task!r}; it knows {', '.join(kind.tasks)}"
            )
        if settings.get("stain") and "stain" not in known:
            raise InputError(f"{kind.key}: has no stain normalisation")
        settings = {key: value for key, value in settings.items() if key in known}
        with methods.explain_errors(self.method):
            return kind(**settings | methods.method_settings(self.method))

    @staticmethod
    def _authors_settings(authors: Recipe, profile: profiles.Profile, settings: dict) -> dict:
        short = profile.name != "paper"
        found = authors.settings_for(short=short, epochs=settings["epochs"])
        usual = profiles.PROFILES[profile.name]
        if (profile.epochs, profile.head_epochs) != (usual.epochs, usual.head_epochs):
            found["epochs"] = settings["epochs"]
        if authors.size and profile.name == "demo":
            found["size"] = "cache"
        return found

    def labels(self, images: pd.DataFrame) -> np.ndarray:
        """Return what the method learns; int64 (N,).

        The class (0, 1), or the place of the subtype in ``breakhis.SUBTYPES``, or of the magnification in
        ``breakhis.MAGNIFICATIONS``.

        Raises
        ------
        InputError
            If an image's magnification is to be learnt and is none of BreakHis's.
        """
        if self.task == "binary":
            return breakhis.class_labels(images)
        if self.task == "magnification":
            known = images["magnification"].isin(breakhis.MAGNIFICATIONS)
            if not known.all():
                raise InputError(
                    f"{images['filename'][~known].iloc[0]}: its magnification is not known, and the task "
                    "'magnification' needs it; choose another task"
                )
            return images["magnification"].map(list(breakhis.MAGNIFICATIONS).index).to_numpy("int64")
        return images["subtype"].map(list(breakhis.SUBTYPES).index).to_numpy("int64")


@dataclass(frozen=True)
class Result:
    """A finished trial.

    Attributes
    ----------
    trial : Trial
    folder : pathlib.Path
    predictions : DataFrame
        The predictions table of the test part.
    validation : DataFrame
        That of the validation part, or of the whole training part out of fold (see `run_trial`); empty where
        the protocol has none.
    history : DataFrame or None
        The curves; None if the method has none.
    """

    trial: Trial
    folder: Path
    predictions: pd.DataFrame
    validation: pd.DataFrame
    history: pd.DataFrame | None

    @property
    def held_out(self) -> str:
        """The part of the second curves: "validation", "test" (as the paper drew them), or "" (none)."""
        return files.read_json(self.folder / "trial.json")["curves_on"]


# BLAS sums in another order with other numbers of threads: with one, results do not depend on the cores
@threadpool_limits.wrap(limits=1, user_api="blas")
@backbones.one_try()
def run_trial(
    trial: Trial,
    cache: PixelCache,
    profile: profiles.Profile,
    *,
    root,
    weights: str | None = None,
    keep_model: bool = True,
    store: str = "",
    verbose: int | None = None,
) -> Result:
    """Train and predict a trial, or find it finished. One that was cut off goes on from its last checkpoint.

    Validation predictions set the threshold and the calibration, and choose among methods. A method that
    trains a head only makes them out of fold: the training part (roles train and validation) is cut into
    `INNER_FOLDS`, grouped as the split is, and each is predicted by the same method fitted on the others; the
    method itself is then fitted on all of them. What it needs no labels for (features, a stain target) is
    shared. A network that is fine-tuned is fitted once, on the role train, and predicts the role validation.

    Parameters
    ----------
    trial : Trial
    cache : PixelCache
    profile : Profile
    root : path-like
        Folder of trials. Each has a folder of its own, named after all that it depends on.
    weights, verbose
        As in `Trial.estimator`.
    keep_model : bool
        Whether to store ``model.keras``, with ``model-card.md`` and, where there is a validation part,
        ``locked.csv`` (threshold and calibration) beside it; a trial that has none is then run again.
    store : str
        URL for fsspec, for example ``gs://bucket/trials``, where finished trials are also kept and looked
        for, with all that their folders hold. Empty: only under ``root``.

    Raises
    ------
    InputError
        If the method or its weights cannot be used, or the disk is full.
    """
    part = splits.fold_of(trial.split_table, trial.fold)
    estimator = trial.estimator(profile, weights, verbose)
    folder = Path(root) / _name(trial, estimator, part, cache)
    model_name = f"model{estimator.suffix}"
    names = ["trial.json", "predictions.csv", "validation.csv"]
    if keep_model and type(estimator).save is not Method.save:
        names.append(model_name)
    with files.lock_path(folder, busy=f"{folder}: {fitting.BUSY}"):
        result = _finished(trial, folder, names)
        if store and result is None:
            fetch_trial(store, folder)
            result = _finished(trial, folder, names)
        found = result is not None
        if not found:
            with methods.explain_errors(trial.method):
                _train(trial, estimator, cache, part=part, folder=folder, profile=profile, names=names)
            result = load_trial(trial, folder)
        # what comes after the trial's results are stored: here also if it was cut off there
        if (folder / model_name).is_file():
            if len(result.validation) and trial.task != "magnification" and not (folder / LOCK).is_file():
                files.write_csv(folder / LOCK, thresholds.lock_thresholds(result.validation))
            # a final model's rests on other trials too: final.finish_final
            if trial.split != splits.ALL and not (folder / model_card.CARD_NAME).is_file():
                model_card.write_card(folder, cache.images, part)
        (folder / "checkpoint.keras").unlink(missing_ok=True)  # with optimizer it is three times the model
        if store:
            put_trial(store, folder, anew=not found)
        return result


def _finished(trial: Trial, folder: Path, names: list[str]) -> Result | None:
    """Read a finished trial; None if a file of it is not there, is damaged or was cut."""
    if not all((folder / name).is_file() for name in names):
        return None
    try:
        result, facts = load_trial(trial, folder), files.read_json(folder / "trial.json")
        lengths = [len(result.predictions), len(result.validation)]
        # a final model's validation.csv is what its folds predicted: final.finish_final
        checked = 1 if trial.split == splits.ALL else 2
        return result if facts.get("rows", lengths)[:checked] == lengths[:checked] else None
    except (OSError, ValueError, KeyError):
        return None


def _train(
    trial: Trial,
    estimator: Method,
    cache: PixelCache,
    *,
    part: pd.DataFrame,
    folder: Path,
    profile: profiles.Profile,
    names: list[str],
) -> None:
    started = time.perf_counter()
    with files.explain_disk_errors(folder):
        folder.parent.mkdir(exist_ok=True)
        folder.mkdir(exist_ok=True)
    rows = {role: cache.rows(part.loc[part["role"] == role, "filename"]) for role in splits.ROLES}
    # the paper's protocol has no validation part, a final model no test part either
    curves_on = next((role for role in ("validation", "test") if len(rows[role])), "")
    known, number = rows["train"], np.zeros(0)
    if estimator.trains(trial.trainable) == "head" and len(rows["validation"]):
        known = np.concatenate([rows["train"], rows["validation"]])
        number = splits.inner_folds(cache.images.iloc[known], trial.split, INNER_FOLDS, seed=trial.seed)
        curves_on = ""
    if profile.name == "paper" and not os.environ.get(fitting.ANYWAY):
        estimator.longest = fitting.LONGEST
    inputs, labels = estimator.inputs(cache, known), trial.labels(cache.images)
    held_out = rows.get(curves_on, rows["test"][:0])
    shown = len(held_out) and not (estimator.chooses and curves_on == "test")

    def fitted(method, chosen, **options):
        options["images"] = cache.images.iloc[chosen]
        method.fit(inputs[chosen], labels[chosen], **wanted(method.fit, **options))
        return method  # a fit of one's own may return nothing

    def predicted(method, chosen):
        classes = len(TASKS[trial.task])
        if not len(chosen):
            return np.zeros((0, classes))
        return predict_checked(method, inputs[chosen], cache.images.iloc[chosen], classes=classes)

    validated, validation = rows["validation"], None
    if number.any():
        validated, validation = known, np.zeros((len(known), len(TASKS[trial.task])))
        for fold in range(number.max() + 1):
            method = fitted(copy.copy(estimator), known[number != fold], validation_data=None, folder=None)
            validation[number == fold] = predicted(method, known[number == fold])
    shown_images = wanted(estimator.fit, images=cache.images.iloc[held_out]).values()
    data = (inputs[held_out], labels[held_out], *shown_images) if shown else None
    fitted(estimator, known, validation_data=data, folder=folder)
    weights_label = getattr(getattr(estimator, "weights_", None), "label", "no pre-trained weights")
    if estimator.decides_for != "image":
        weights_label += f"; each image has its {estimator.decides_for}'s mean probability"
    if (name := f"model{estimator.suffix}") in names:
        estimator.save(folder / name)
    if validation is None:
        validation = predicted(estimator, validated)
    tables = {"validation.csv": (validated, validation)}
    tables["predictions.csv"] = (rows["test"], predicted(estimator, rows["test"]))  # read last
    for name, (chosen, probability) in tables.items():
        files.write_csv(
            folder / name,
            _table(trial, cache.images.iloc[chosen], probability, weights_label, cache.fingerprint),
        )
    files.write_json(
        folder / "trial.json",
        {
            "method": trial.label,
            "split": trial.split,
            "fold": trial.fold,
            "seed": trial.seed,
            "task": trial.task,
            "recipe": trial.recipe,
            "folds": int(trial.split_table["fold"].nunique()),
            "curves_on": curves_on,
            "out_of_fold": int(number.max(initial=-1) + 1) if number.any() else 0,
            "images": {role: len(found) for role, found in rows.items()},
            "rows": [len(rows["test"]), len(validated)],  # of predictions.csv and validation.csv
            # a method of one's own may have parameters that JSON does not know
            "parameters": json.loads(json.dumps(estimator.get_params(), default=str)),
            "weights": weights_label,
            "profile": profile.name,
            "devices": getattr(estimator, "devices_", 1),
            "seconds": round(time.perf_counter() - started, 1),
            "data": cache.fingerprint,
            "precision": _precision(estimator),
            "environment": environment.describe_environment(),
        },
    )


def _precision(estimator: Method) -> str:
    """Name the dtype policy that it trained with."""
    whole = hasattr(estimator, "precision") and not estimator.frozen
    return hardware.dtype_policy(estimator.precision) if whole else "float32"


def _table(
    trial: Trial, images: pd.DataFrame, probability: np.ndarray, weights_label: str, fingerprint: str
) -> pd.DataFrame:
    table = images[["filename", "slide", "case", "magnification", "subtype"]].assign(
        label=breakhis.class_labels(images),
        probability=malignant_probability(probability),
        fold=trial.fold,
        method=trial.label,
        split=trial.split,
        seed=trial.seed,
        weights=weights_label,
        data=fingerprint,
    )[[*COLUMNS, "weights", "data"]]
    if trial.task != "binary":
        table[SUBTYPE_COLUMNS if trial.task == "subtype" else MAGNIFICATION_COLUMNS] = probability
    return table


def _name(trial: Trial, estimator, part: pd.DataFrame, cache: PixelCache) -> str:
    settings = {k: v for k, v in estimator.get_params().items() if k not in ("verbose", "weights")}
    facts = [
        TRIAL_FORMAT,
        settings,
        # the method's code, in a form that comments and layout do not change
        ast.dump(ast.parse(Path(inspect.getfile(type(estimator))).read_text())),
        estimator.starts_from() if hasattr(estimator, "starts_from") else "none",
        cache.folder.name,
        part[["filename", "role"]].to_csv(index=False),
    ]
    digest = hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:8]
    label = re.sub(r"[^\w.=-]", "_", trial.label)
    return f"{label}-{trial.split}-fold{trial.fold}-seed{trial.seed}-{digest}"


def load_trial(trial: Trial, folder) -> Result:
    """Read a finished trial from its folder."""
    folder = Path(folder)
    history = folder / "history.csv"
    return Result(
        trial,
        folder,
        predictions=files.read_table(folder / "predictions.csv", COLUMNS),
        validation=files.read_table(folder / "validation.csv", COLUMNS),
        history=pd.read_csv(history) if history.is_file() else None,
    )


def add_predictions(path, *tables: pd.DataFrame, replaced: pd.MultiIndex | None = None) -> None:
    """Put predictions tables into the one on disk, in place of those of the same trials.

    Rows of other images than the new ones' (column ``data``) are dropped.

    Parameters
    ----------
    path : path-like
    *tables : DataFrame
        Predictions tables; there may be none, or empty ones.
    replaced : MultiIndex, optional
        Which rows make room, by its columns: those of (method, split) that failed too, for example.
    """
    new = pd.concat(tables) if tables else pd.DataFrame()
    if Path(path).is_file():
        if replaced is None:
            replaced = pd.MultiIndex.from_frame(new[TRIAL_COLUMNS])
        old = files.read_table(path, replaced.names)
        others = old[~pd.MultiIndex.from_frame(old[replaced.names]).isin(replaced)]
        if len(new):
            others = others[others["data"].isin(new["data"])] if "data" in others else others[:0]
        tables = (others, *tables)
    if tables:
        files.write_csv(path, pd.concat([table for table in tables if len(table)] or tables[:1]))
