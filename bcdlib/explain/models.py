"""Saved models of trials: load them, predict with them, describe what they predicted."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bcdlib.data import breakhis, cache, splits
from bcdlib.errors import InputError, one_line
from bcdlib.evaluation import metrics
from bcdlib.runs.files import read_json
from bcdlib.runs.folder import LOCK, MODEL, TRIAL_COLUMNS, Run

# functions import what needs Keras: 05_evaluate starts without it where there is no model to ask
if TYPE_CHECKING:
    from bcdlib import methods


def load_model(model_file, *, values: str = "") -> methods.SavedMethod:
    """Load a saved model that takes images of one size; see `methods.load_method`.

    Raises
    ------
    InputError
        If it cannot be loaded or does not take images of one size.
    """
    facts = os.stat(model_file) if os.path.isfile(model_file) else None  # loading says what is wrong
    model = _load(model_file, values, facts and (facts.st_ino, facts.st_size, facts.st_mtime_ns))
    if model.task == "magnification":
        raise InputError(
            f"{model_file}: tells magnifications, not benign from malignant; name a model of another task"
        )
    if model.size is None:
        raise InputError(f"{model_file}: not a usable Keras model (it does not take images of one size)")
    return model


# 05_evaluate draws three figures with the same two models, and to load one takes a second
@functools.lru_cache(maxsize=2)
def _load(model_file, values: str, facts) -> methods.SavedMethod:
    from bcdlib import methods

    return methods.load_method(model_file, values=values)


def model_cache(model: methods.SavedMethod, cached: cache.PixelCache) -> cache.PixelCache | None:
    """Return a run's images at the size that a model takes, or None if they cannot be had.

    A model of another size than the run's was trained before the run was preprocessed anew, unless its method
    has a size of its own.
    """
    if cached.size != model.size and not (model.kind.own_size or model.kind.authors.size):
        return None
    try:
        return cache.resized_cache(cached, model.size)
    except InputError:  # the data set is no longer where it was
        return None


def predict_images(model: methods.SavedMethod, X) -> np.ndarray:
    """Predict the probability of malignant; float64 (N,)."""
    from bcdlib.methods._base import malignant_probability

    return malignant_probability(model.predict_proba(np.asarray(X)))


def overlay(axis, cam) -> None:
    """Draw a class activation map (values 0..1) over the image that an axes shows, stretched to its size."""
    # viridis: told apart by colour-blind readers, and unlike the colours of the stain
    alpha, extent = 0.2 + 0.45 * cam, axis.images[0].get_extent()
    axis.imshow(cam, cmap="viridis", alpha=alpha, vmin=0, vmax=1, extent=extent)


def prediction_caption(probability: float, threshold: float = metrics.THRESHOLD) -> str:
    """Say which class a probability of malignant means at a threshold.

    Examples
    --------
    >>> prediction_caption(0.831)
    'predicted malignant (0.83)'
    """
    return f"predicted {predicted_class(probability, threshold)} ({probability:.2f})"


def predicted_class(probability: float, threshold: float = metrics.THRESHOLD) -> str:
    """Return the class at a threshold."""
    return breakhis.CLASSES[int(probability >= threshold)]


def true_caption(row) -> str:
    """Say which class a row of a predictions table has in truth."""
    return f"true class {breakhis.CLASSES[int(row['label'])]}"


def trial_record(model_file) -> dict:
    """Return what ``trial.json`` beside a model says; empty if there is none, InputError if it is damaged."""
    record = Path(model_file).with_name("trial.json")
    try:
        return read_json(record) if record.is_file() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{record}: cannot be read ({one_line(error)}); move the model elsewhere") from None


def saved_lock(model_file) -> dict | None:
    """Return the threshold and calibration that lie beside a model (``locked.csv``); None without them.

    Returns
    -------
    dict or None
        threshold, slope, intercept (see `thresholds.lock_thresholds`).

    Raises
    ------
    InputError
        If the file is damaged, or of another model than ``trial.json`` beside it.
    """
    record, file = trial_record(model_file), Path(model_file).with_name(LOCK)
    if not file.is_file():
        return None
    try:
        table = pd.read_csv(file)
        if record and any(str(table[name].iloc[0]) != str(record[name]) for name in TRIAL_COLUMNS):
            raise ValueError("it is of another model")
        [row] = table[["threshold", "slope", "intercept"]].astype(float).to_dict("records")
        if not np.isfinite(list(row.values())).all():
            raise ValueError("a number is missing")
        if not 0 <= row["threshold"] <= 1:
            raise ValueError(f"threshold {row['threshold']:g} is not in 0..1")
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InputError(
            f"{file}: cannot be read ({one_line(error)}); delete it, or run again what made it"
        ) from None
    return row


def run_of(model_file) -> Run:
    """Return the run in whose folder ``trials`` the trial of this model lies, if it lies in one."""
    return Run(Path(model_file).absolute().parent.parent.parent)


def saved_models(run: Run) -> dict[str, Path]:
    """Find the run's saved models.

    Returns
    -------
    dict
        Files by what the models were trained on: final models first, then the strictest protocol; of equal
        names the newest.
    """
    found = []
    for file in (run.folder / "trials").glob(f"*/{MODEL}"):
        record = trial_record(file)
        if record:  # written last: a trial that was cut off has none
            name = (
                f"{record['method']}, split {record['split']}, fold {record['fold']}, seed {record['seed']}"
            )
            rank = splits.strictness(record["split"]) if record["split"] != splits.ALL else -1
            found.append((rank, name, file.with_name("trial.json").stat().st_mtime, file))
    return {name: file for _, name, _, file in sorted(found)}
