"""A trial: one method, one split, one fold, one seed. Trained once, stored, and found again."""

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
from bcdlib.errors import InputError
from bcdlib.evaluation.metrics import COLUMNS, SUBTYPE_COLUMNS
from bcdlib.methods._base import TASKS, Method, malignant_probability
from bcdlib.methods.parts import backbones
from bcdlib.runs.files import explain_disk_errors, write_csv, write_json
from bcdlib.runs.folder import TRIAL_COLUMNS
from bcdlib.runs.profiles import Profile
from bcdlib.trials import model_card
from bcdlib.trials.store import fetch_trial, put_trial

FINISHED = ("trial.json", "predictions.csv", "validation.csv")  # a trial's folder that has these


@dataclass(frozen=True)
class Trial:
    """What a trial is made of. ``method`` is a key of the registry or the path of a method file; changed settings may
    follow (``robust:stages=4``, see `methods.method_settings`).

    ``split_table`` is the whole split; ``fold`` says which of its folds. ``task`` is "binary" or "subtype". ``stain`` is
    "macenko", "reinhard" or "none"; None leaves it to the method.
    """

    method: str
    split: str
    split_table: pd.DataFrame
    fold: int = 0
    seed: int = 0
    trainable: str = "all"
    task: str = "binary"
    stain: str | None = None

    @property
    def label(self) -> str:
        """The method's name in tables: its key, with ``-head`` if its base stays frozen where it could be fine-tuned,
        ``-subtype`` for the second task, the stain normalisation if one was asked for, and settings that were changed."""
        kind = methods.get_method(self.method)
        offered = "trainable" in kind().get_params() and kind.trains("head") != kind.trains("all")
        frozen = "-head" if offered and self.trainable == "head" else ""
        task = "" if self.task == "binary" else f"-{self.task}"
        changes = "".join(f"-{key}={value}" for key, value in methods.method_settings(self.method).items())
        return kind.key + frozen + task + ("" if self.stain is None else f"-stain_{self.stain}") + changes

    def estimator(self, profile: Profile, weights: str | None = None, verbose=None) -> Method:
        """The untrained method with this profile's settings (those of them that it knows), or its own in their place.

        ``verbose`` is Keras'; default: the environment variable BCD_VERBOSE, else 1, one progress bar line an epoch.

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
        if self.stain is not None:
            settings["stain"] = None if self.stain == "none" else self.stain
        known = kind().get_params()
        if self.task not in kind.tasks:
            raise InputError(
                f"{kind.key}: cannot learn the task {self.task!r}; it knows {', '.join(kind.tasks)}"
            )
        if settings.get("stain") and "stain" not in known:
            raise InputError(f"{kind.key}: has no stain normalisation")
        return kind(
            **{key: value for key, value in settings.items() if key in known}
            | methods.method_settings(self.method)
        )

    def labels(self, images: pd.DataFrame) -> np.ndarray:
        """What the method learns: class (0, 1) or subtype (0..7, in the order of ``breakhis.SUBTYPES``); int64 (N,)."""
        if self.task == "binary":
            return breakhis.class_labels(images)
        return (
            images["subtype"]
            .map({name: number for number, name in enumerate(breakhis.SUBTYPES)})
            .to_numpy("int64")
        )


@dataclass(frozen=True)
class Result:
    """A finished trial: its folder, its predictions tables, and the curves (None if the method has none).

    ``validation`` has the columns of ``predictions``; it is empty where the protocol has no validation part.
    """

    trial: Trial
    folder: Path
    predictions: pd.DataFrame
    validation: pd.DataFrame
    history: pd.DataFrame | None

    @property
    def held_out(self) -> str:
        """Which part the curves beside the training curves are drawn on: validation, or test (as the paper drew)."""
        return json.loads((self.folder / "trial.json").read_text())["curves_on"]


def run_trial(
    trial: Trial,
    cache: PixelCache,
    profile: Profile,
    *,
    root,
    weights=None,
    verbose=None,
    keep_model=True,
    store: str = "",
) -> Result:
    """Train and predict a trial, or find it finished. One that was cut off goes on from its last checkpoint.

    Parameters
    ----------
    root : path-like
        Folder of trials. Each has a folder of its own, named after all that it depends on.
    store : URL for fsspec, for example ``gs://bucket/trials``
        Where finished trials are also kept and looked for: `FINISHED`, and what else a trial's folder holds, model
        included. Empty: only under ``root``.
    keep_model : bool
        Whether to store ``model.keras``, with ``model-card.md`` beside it; a trial that has none is then run again.
    """
    # BLAS sums in another order with other numbers of threads: with one, results do not depend on the machine's cores
    with threadpool_limits(1, "blas"):
        return _run(trial, cache, profile, Path(root), weights, verbose, keep_model, store)


def _run(trial, cache, profile, root, weights, verbose, keep_model, store) -> Result:
    part = splits.fold_of(trial.split_table, trial.fold)
    estimator = trial.estimator(profile, weights, verbose)
    folder = root / _name(trial, estimator, part, cache)
    wanted = FINISHED + ("model.keras",) * keep_model
    if store and not _holds(folder, wanted):
        fetch_trial(store, folder)
    if _holds(folder, wanted):
        _finish(folder, cache.images, part)
        return _load(trial, folder)
    started = time.perf_counter()
    with explain_disk_errors(folder):
        folder.parent.mkdir(exist_ok=True)
        folder.mkdir(exist_ok=True)
    rows = {role: cache.rows(part.loc[part["role"] == role, "filename"]) for role in splits.ROLES}
    curves_on = (
        "validation" if len(rows["validation"]) else "test"
    )  # the paper's protocol has no validation part
    inputs, labels = estimator.inputs(cache, rows["train"]), trial.labels(cache.images)
    wants_images = "images" in inspect.signature(estimator.fit).parameters

    def images_of(role):
        return {"images": cache.images.iloc[rows[role]]} if wants_images else {}

    held_out = (inputs[rows[curves_on]], labels[rows[curves_on]], *images_of(curves_on).values())
    estimator.fit(
        inputs[rows["train"]],
        labels[rows["train"]],
        validation_data=None if estimator.chooses and curves_on == "test" else held_out,
        folder=folder,
        **images_of("train"),
    )
    weights_label = getattr(getattr(estimator, "weights_", None), "label", "no pre-trained weights")
    if keep_model:
        estimator.save(folder / "model.keras")
    for role, name in (
        ("validation", "validation.csv"),
        ("test", "predictions.csv"),
    ):  # the test part is read last
        probability = np.zeros((0, len(TASKS[trial.task])))
        if len(rows[role]):
            probability = estimator.predict_proba(inputs[rows[role]], **images_of(role))
        write_csv(folder / name, _table(trial, cache.images.iloc[rows[role]], probability, weights_label))
    write_json(
        folder / "trial.json",
        {
            "method": trial.label,
            "split": trial.split,
            "fold": trial.fold,
            "seed": trial.seed,
            "task": trial.task,
            "folds": int(trial.split_table["fold"].nunique()),
            "curves_on": curves_on,
            "images": {role: len(found) for role, found in rows.items()},
            "parameters": estimator.get_params(),
            "weights": weights_label,
            "profile": profile.name,
            "devices": getattr(estimator, "devices_", 1),
            "seconds": round(time.perf_counter() - started, 1),
        },
    )
    _finish(folder, cache.images, part)
    if store:
        put_trial(store, folder)
    return _load(trial, folder)


def _holds(folder: Path, names) -> bool:
    return all((folder / name).is_file() for name in names)


def load_trial(trial: Trial, folder) -> Result:
    """A finished trial from its folder."""
    return _load(trial, Path(folder))


def _finish(folder: Path, images: pd.DataFrame, part: pd.DataFrame) -> None:
    """What comes after the trial's results are stored; done now if it was cut off there."""
    if (folder / "model.keras").is_file() and not (folder / model_card.CARD_NAME).is_file():
        model_card.write_card(folder, images, part)
    (folder / "checkpoint.keras").unlink(missing_ok=True)  # with optimizer it is three times the model


def _table(trial: Trial, images: pd.DataFrame, probability: np.ndarray, weights_label: str) -> pd.DataFrame:
    table = images[["filename", "slide", "case", "magnification", "subtype"]].assign(
        label=breakhis.class_labels(images),
        probability=malignant_probability(probability),
        fold=trial.fold,
        method=trial.label,
        split=trial.split,
        seed=trial.seed,
        weights=weights_label,
    )[[*COLUMNS, "weights"]]
    if trial.task == "subtype":
        table[SUBTYPE_COLUMNS] = probability
    return table


def _name(trial: Trial, estimator, part: pd.DataFrame, cache: PixelCache) -> str:
    settings = {k: v for k, v in estimator.get_params().items() if k != "verbose"}
    facts = json.dumps(
        [settings, cache.folder.name, part[["filename", "role"]].to_csv(index=False)], default=str
    )
    digest = hashlib.sha256(facts.encode()).hexdigest()[:8]
    label = re.sub(r"[^\w.=-]", "_", trial.label)
    return f"{label}-{trial.split}-fold{trial.fold}-seed{trial.seed}-{digest}"


def _load(trial: Trial, folder: Path) -> Result:
    predictions, validation = (
        pd.read_csv(folder / name, dtype={"slide": str, "case": str})
        for name in ("predictions.csv", "validation.csv")
    )
    history = folder / "history.csv"
    return Result(trial, folder, predictions, validation, pd.read_csv(history) if history.is_file() else None)


def add_predictions(path, new: pd.DataFrame) -> pd.DataFrame:
    """Put trials' predictions into a table on disk, in place of those of the same trials; returns the whole table."""
    path = Path(path)
    if path.is_file():
        old = pd.read_csv(path, dtype={"slide": str, "case": str})
        same = pd.MultiIndex.from_frame(old[TRIAL_COLUMNS]).isin(pd.MultiIndex.from_frame(new[TRIAL_COLUMNS]))
        new = pd.concat([old[~same], new], ignore_index=True)
    write_csv(path, new)
    return new
