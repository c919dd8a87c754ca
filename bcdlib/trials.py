"""A trial: one method, one split, one fold, one seed. Trained once, stored, and found again."""

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bcdlib import card, manifest, methods, splits
from bcdlib.methods import backbones
from bcdlib.metrics import COLUMNS, TRIAL
from bcdlib.pixels import PixelCache
from bcdlib.profiles import Profile
from bcdlib.runs import write_csv, write_json


@dataclass(frozen=True)
class Trial:
    """What a trial is made of. ``method`` is a key of the registry or the path of a method file.

    ``split_table`` is the whole split; ``fold`` says which of its folds.
    """

    method: str
    split: str
    split_table: pd.DataFrame
    fold: int = 0
    seed: int = 0
    trainable: str = "all"

    @property
    def label(self) -> str:
        """The method's name in tables: its key, with ``-head`` if its base stays frozen."""
        return methods.get(self.method).key + ("-head" if self.trainable == "head" else "")

    def estimator(self, profile: Profile, weights: str | None = None, verbose=None) -> methods.Method:
        """The untrained method with this profile's settings (those of them that it knows).

        ``verbose`` is Keras'; default: the environment variable BCD_VERBOSE, else 1, one progress bar line an epoch.
        """
        head = self.trainable == "head"
        settings = {
            "trainable": self.trainable,
            "weights": backbones.choice(weights),
            "pretrained_required": profile.needs_pretrained,
            "epochs": profile.head_epochs if head else profile.epochs,
            "steps_per_epoch": None if head else profile.steps_per_epoch,
            "batch_size": profile.batch_size,
            "learning_rate": profile.head_learning_rate if head else profile.learning_rate,
            "batch_norm": profile.batch_norm,
            "seed": self.seed,
            "verbose": int(os.environ.get("BCD_VERBOSE", 1)) if verbose is None else verbose,
        }
        kind = methods.get(self.method)
        return kind(**{key: value for key, value in settings.items() if key in kind().get_params()})


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


def run(trial: Trial, cache: PixelCache, profile: Profile, root, weights=None, verbose=None, keep_model=True,
        shared: dict | None = None) -> Result:
    """Train and predict a trial, or find it finished. One that was cut off goes on from its last checkpoint.

    Parameters
    ----------
    root : path-like
        Folder of trials. Each has a folder of its own, named after all that it depends on.
    keep_model : bool
        Whether to store ``model.keras``, with ``model-card.md`` beside it.
    shared : dict, optional
        Where trials with a frozen base leave base and features for the next one. Give the same dict to all trials
        of one comparison.
    """
    part = splits.fold_of(trial.split_table, trial.fold)
    estimator = trial.estimator(profile, weights, verbose)
    folder = Path(root) / _name(trial, estimator, part, cache)
    if all((folder / name).is_file() for name in ("trial.json", "predictions.csv", "validation.csv")):
        return _load(trial, folder)
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    estimator, inputs = _prepare(trial, estimator, cache, {} if shared is None else shared)
    labels = manifest.labels(cache.images)
    rows = {role: cache.rows(part.loc[part["role"] == role, "filename"]) for role in splits.ROLES}
    curves_on = "validation" if len(rows["validation"]) else "test"  # the paper's protocol has no validation part
    estimator.fit(
        inputs[rows["train"]], labels[rows["train"]],
        validation_data=(inputs[rows[curves_on]], labels[rows[curves_on]]), folder=folder,
    )
    weights_label = getattr(getattr(estimator, "weights_", None), "label", "no pre-trained weights")
    if keep_model:
        estimator.save(folder / "model.keras")
    for role, name in (("validation", "validation.csv"), ("test", "predictions.csv")):  # the test part is read last
        table = cache.images.iloc[rows[role]][["filename", "slide", "case", "magnification", "subtype"]].assign(
            label=labels[rows[role]],
            probability=estimator.predict_proba(inputs[rows[role]])[:, 1] if len(rows[role]) else 0.0,
            fold=trial.fold, method=trial.label, split=trial.split, seed=trial.seed, weights=weights_label,
        )
        write_csv(folder / name, table[[*COLUMNS, "weights"]])
    write_json(folder / "trial.json", {
        "method": trial.label, "split": trial.split, "fold": trial.fold, "seed": trial.seed,
        "folds": int(trial.split_table["fold"].nunique()), "curves_on": curves_on,
        "images": {role: len(found) for role, found in rows.items()},
        "parameters": estimator.get_params(), "weights": weights_label, "profile": profile.name,
        "seconds": round(time.perf_counter() - started, 1),
    })
    if keep_model:
        card.write(folder, cache.images, part)
    (folder / "checkpoint.keras").unlink(missing_ok=True)  # with optimizer it is three times the model
    return _load(trial, folder)


def _prepare(trial: Trial, estimator, cache: PixelCache, shared: dict):
    if trial.trainable != "head":
        return estimator, estimator.inputs(cache)
    key = (trial.method, trial.seed, cache.folder)
    if key not in shared:
        shared[key] = (estimator, estimator.inputs(cache))
    return shared[key]


def _name(trial: Trial, estimator, part: pd.DataFrame, cache: PixelCache) -> str:
    settings = {k: v for k, v in estimator.get_params().items() if k != "verbose"}
    facts = json.dumps([settings, cache.folder.name, part[["filename", "role"]].to_csv(index=False)], default=str)
    digest = hashlib.sha256(facts.encode()).hexdigest()[:8]
    return f"{trial.label}-{trial.split}-fold{trial.fold}-seed{trial.seed}-{digest}"


def _load(trial: Trial, folder: Path) -> Result:
    predictions, validation = (
        pd.read_csv(folder / name, dtype={"slide": str, "case": str}) for name in ("predictions.csv", "validation.csv")
    )
    history = folder / "history.csv"
    return Result(trial, folder, predictions, validation, pd.read_csv(history) if history.is_file() else None)


def add_predictions(path, new: pd.DataFrame) -> pd.DataFrame:
    """Put trials' predictions into a table on disk, in place of those of the same trials; returns the whole table."""
    path = Path(path)
    if path.is_file():
        old = pd.read_csv(path, dtype={"slide": str, "case": str})
        same = pd.MultiIndex.from_frame(old[TRIAL]).isin(pd.MultiIndex.from_frame(new[TRIAL]))
        new = pd.concat([old[~same], new], ignore_index=True)
    write_csv(path, new)
    return new
