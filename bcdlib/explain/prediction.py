"""What a saved model says of many images: of any, and of those that a manifest labels."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bcdlib.data import breakhis, custom, decode, sources
from bcdlib.errors import InputError
from bcdlib.evaluation import metrics
from bcdlib.explain import explanation, models
from bcdlib.runs.folder import LOCK

if TYPE_CHECKING:
    from bcdlib.methods import SavedMethod

EXTERNAL = "external"  # the split of images from elsewhere


def predict_files(
    model_file, image_files, progress: bool = False, *, values: str = "", adapt: bool = False
) -> pd.DataFrame:
    """Classify images with a saved model: decoded on all cores, a few hundred in memory at a time.

    Parameters
    ----------
    model_file : path
        A .keras file, ours or any that takes (N, height, width, 3), RGB; see `methods.load_method`.
    image_files : sequence of paths
        PNG, JPEG, TIFF or BMP files, and folders or archives of them, each once.
    progress : bool
        Whether to show a progress bar.
    values : str
        As in `methods.load_method`.
    adapt : bool
        Whether a head on frozen features standardises by the mean of these images (`SavedMethod.adapted`);
        they are then read twice.

    Returns
    -------
    DataFrame
        Its ``attrs["notes"]`` say what was assumed of a model that does not say it (list of str). Columns:
        file, probability (of malignant; NaN if unreadable), class, reason (empty, or why it was left out);
        and of a model with what they need beside it: threshold (from which on the class is malignant; else
        0.5) and calibrated (probability), as locked with the model; warning (empty, or that the image is
        unlike the training images), nearest (the nearest training image). With ``adapt`` also adapted: to
        how many images.

    Raises
    ------
    InputError
        If the model cannot be loaded or adapted, it gives what are no probabilities, or none of the images
        can be read.
    """
    model = models.load_model(model_file, values=values)
    return _predict(
        model_file, model, lambda: decode.decode_files(image_files, model.size, progress), adapt=adapt
    )


def predict_labelled(
    model_file, images, manifest, progress: bool = False, *, values: str = "", adapt: bool = False
) -> pd.DataFrame:
    """Classify the images that a manifest names; what comes out is a predictions table.

    Nothing is fitted to labels: threshold and calibration are those that were locked with the model.

    Parameters
    ----------
    model_file, progress, values, adapt
        As in `predict_files`.
    images : path-like
        One folder or archive.
    manifest : path-like
        CSV with path, label and group; see `custom.read_manifest`.

    Returns
    -------
    DataFrame
        `metrics.COLUMNS`, split "external" and the manifest's groups as cases, method and seed those of the
        model's trial (else the file's name, and 0), sorted by filename; and threshold, calibrated, warning
        and nearest as from `predict_files`, without what is known 0.5 and the probability itself. Its
        ``attrs["notes"]`` say what was left out, and what was assumed of the model (list of str).

    Raises
    ------
    InputError
        As `predict_files`; or if the manifest cannot be used, or `images` is no folder or archive.
    """
    custom.read_manifest(manifest)  # before an archive is listed, which may take long
    source = sources.open_source(images)
    scan, model = custom.scan_custom(manifest, source), models.load_model(model_file, values=values)
    found = _predict(
        model_file,
        model,
        lambda: decode.decode_all(source, scan.images, model.size, progress=progress),
        adapt=adapt,
    )
    read = found[found["reason"] == ""].rename(columns={"file": "filename"})
    record = models.trial_record(model_file)
    table = (
        scan.images.merge(read.drop(columns=["class", "reason"]), on="filename")
        .assign(
            label=lambda rows: breakhis.class_labels(rows),
            fold=0,
            method=record.get("method", Path(model_file).stem),
            split=EXTERNAL,
            seed=record.get("seed", 0),
        )
        .drop(columns=["path", "class", "year", "sequence"])
    )
    if "threshold" not in table:
        table = table.assign(threshold=metrics.THRESHOLD, calibrated=table["probability"])
    table = table[[*metrics.COLUMNS, *table.columns.difference(metrics.COLUMNS, sort=False)]]
    table.attrs["notes"] = [
        *scan.notes,
        *_left_out(scan, found[found["reason"] != ""]),
        *_lock_notes(model_file),
        *found.attrs["notes"],
    ]
    return table


def _left_out(scan: custom.CustomScan, unread: pd.DataFrame) -> list[str]:
    """Say how many images are not in the table, and why; a sentence a kind."""
    kinds = {
        "missing, though named in the manifest": [f"{path}: {why}" for path, why in scan.reasons],
        "that cannot be read": [f"{row.file}: {row.reason}" for row in unread.itertuples()],
        "without a label in the manifest": scan.unused,
    }
    return [f"left out: {len(found)} {kind}, the first {found[0]}" for kind, found in kinds.items() if found]


def _lock_notes(model_file) -> list[str]:
    if models.saved_lock(model_file) is not None:
        return []
    return [
        f"no {LOCK} lies beside the model: threshold 0.5, no calibration; take a model's whole folder along"
    ]


def _predict(model_file, model: SavedMethod, decoded: Callable[[], Iterable], *, adapt: bool) -> pd.DataFrame:
    """Predict decoded images, (name, array, reason) each, a few hundred at a time; as `predict_files`."""
    parts, used = functools.partial(_parts, decoded, model.at_once), model
    if adapt:
        used = model.adapted(_pixels(part) for part in parts() if (part["reason"] == "").any())
    tables = [_predicted(model_file, model, used, part) for part in parts()]
    if not tables:
        raise InputError("no image named")
    table = pd.concat(tables, ignore_index=True)
    if (table["reason"] != "").all():
        raise InputError(f"{table['file'][0]}: {table['reason'][0]}")
    table = table.fillna({"warning": "", "nearest": ""})
    if adapt:
        table["adapted"] = int((table["reason"] == "").sum())
    table.attrs["notes"] = list(used.notes)
    return table


def _parts(decoded: Callable[[], Iterable], size: int) -> Iterator[pd.DataFrame]:
    """Decode images, so many at a time."""
    images = iter(decoded())
    while part := list(itertools.islice(images, size)):
        yield pd.DataFrame(part, columns=["file", "array", "reason"])


def _pixels(part: pd.DataFrame) -> np.ndarray:
    return np.stack(part.loc[part["reason"] == "", "array"].to_list())


def _predicted(model_file, model: SavedMethod, used: SavedMethod, part: pd.DataFrame) -> pd.DataFrame:
    """Predict with ``used``, which is the model or it adapted; what else is known is the model's."""
    read = part["reason"] == ""
    table = part.assign(probability=float("nan"), **{"class": ""})[["file", "probability", "class", "reason"]]
    if not read.any():
        return table
    X = _pixels(part)
    probability = models.predict_images(used, X)
    more = explanation.explain_predictions(model_file, model, X, probability=probability)
    table.loc[read, "probability"] = probability
    malignant = probability >= more.get("threshold", metrics.THRESHOLD)
    table.loc[read, "class"] = np.where(malignant, *breakhis.CLASSES[::-1])
    return table.join(pd.DataFrame(more, index=table.index[read]))
