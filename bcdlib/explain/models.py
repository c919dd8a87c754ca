"""Saved models of trials: load them, predict with them, describe what they predicted."""

import json
from pathlib import Path

import numpy as np

from bcdlib import methods
from bcdlib.data import breakhis, splits
from bcdlib.data.cache import PixelCache, resized_cache
from bcdlib.errors import InputError
from bcdlib.evaluation import metrics
from bcdlib.methods._base import malignant_probability
from bcdlib.methods._saved import SavedMethod
from bcdlib.runs.folder import Run


def load_model(model_file) -> SavedMethod:
    """A saved model that takes pictures of one size; see `methods.load_method`.

    Raises
    ------
    InputError
        If it cannot be loaded (Keras' safe mode: no lambdas) or does not take pictures of one size.
    """
    model = methods.load_method(model_file)
    if model.size is None:
        raise InputError(f"{model_file}: not a usable Keras model (it does not take pictures of one size)")
    return model


def model_cache(model: SavedMethod, cache: PixelCache) -> PixelCache | None:
    """A run's pictures at the size that a model takes, or None if they cannot be had.

    Another size than the run's means that the run was preprocessed anew since, unless the method has a size of its own.
    """
    if cache.size == model.size:
        return cache
    if not model.kind.own_size:
        return None
    try:
        return resized_cache(cache, model.size)
    except InputError:  # the data set is no longer where it was
        return None


def predict_images(model: SavedMethod, X) -> np.ndarray:
    """Probability of malignant; float64 (N,)."""
    return malignant_probability(model.predict_proba(np.asarray(X)))


def overlay(axis, picture, cam) -> None:
    """Draw a picture and over it a map of 0..1, stretched to its size."""
    axis.imshow(picture)
    # viridis: told apart by colour-blind readers, and unlike the colours of the stain
    height, width = np.shape(picture)[:2]
    axis.imshow(
        cam,
        cmap="viridis",
        alpha=0.2 + 0.45 * cam,
        vmin=0,
        vmax=1,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )


def predicted_class(probability: float) -> str:
    """The class at 0.5."""
    return breakhis.CLASSES[int(probability >= metrics.THRESHOLD)]


def true_class(row) -> str:
    """A caption: the true class of a row of a predictions table."""
    return f"is {breakhis.CLASSES[int(row['label'])]}"


def saved_models(run: Run) -> dict[str, Path]:
    """The run's saved models by what they were trained on, the strictest protocol first; of equal names the newest."""
    order, found = list(splits.STRICTEST), []
    for record in (run.folder / "trials").glob(
        "*/trial.json"
    ):  # written last: a trial that was cut off has none
        file, facts = record.parent / "model.keras", json.loads(record.read_text())
        if not file.is_file():  # 06_compare keeps no models
            continue
        name = f"{facts['method']}, split {facts['split']}, fold {facts['fold'] + 1}, seed {facts['seed']}"
        place = order.index(facts["split"]) if facts["split"] in order else len(order)
        found.append((place, name, record.stat().st_mtime, file))
    return {name: file for _, name, _, file in sorted(found)}
