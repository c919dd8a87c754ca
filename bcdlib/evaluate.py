"""From the predictions table to the figures of a paper: metrics, confusion matrix, ROC, and who leaked into the test."""

import json
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from sklearn.metrics import ConfusionMatrixDisplay, RocCurveDisplay

from bcdlib import manifest, metrics, pixels, splits, style
from bcdlib.errors import InputError
from bcdlib.runs import Run


def predictions(run: Run) -> pd.DataFrame:
    """The run's predictions table, checked; see `metrics.read_predictions`."""
    run.read_csv("predictions.csv", "04_train")
    return metrics.read_predictions(run.folder / "predictions.csv")


def results(table: pd.DataFrame) -> pd.DataFrame:
    """One row a method and split: images, slides, cases, accuracy, MSE, sensitivity, specificity, precision, F1, AUC."""
    return metrics.table(table)


def by(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """`results` by magnification or subtype as well. A subtype has one class only: AUC and one rate are not defined."""
    result = metrics.table(table.sort_values(["method", "split", column], kind="stable"), ("method", "split", column))
    return result.replace({"magnification": {0: manifest.UNKNOWN}}) if column == "magnification" else result


def leak_lines(run: Run, table: pd.DataFrame) -> str:
    """Markdown: for each split and fold that was tested, in bold, how much of the test part was also in training."""
    images, lines = run.images(), []
    for name, part in table.groupby("split", sort=False):
        audit = splits.overlap(run.read_csv(f"splits/{name}.csv", "02_preprocess"), images)
        for _, row in audit[audit["fold"].isin(part["fold"])].iterrows():
            lines.append(f"- split `{name}`, fold {int(row['fold'])}: **{splits.overlap_line(row)}**")
    return "\n".join(lines)


def confusion(table: pd.DataFrame):
    """Confusion matrices at threshold 0.5, a panel a method and split; rows true, columns predicted class."""
    groups = list(table.groupby(["method", "split"], sort=False))
    figure, axes = style.subplots(1, len(groups), width=3.6 * len(groups), height=3.4, squeeze=False)
    for axis, ((method, split), part) in zip(axes[0], groups, strict=True):
        called = (part["probability"] >= metrics.THRESHOLD).astype(int)
        ConfusionMatrixDisplay.from_predictions(
            part["label"], called, labels=[0, 1], display_labels=manifest.CLASSES, cmap="Blues", colorbar=False, ax=axis
        )
        axis.set_title(f"{method}, split {split}\n{len(part)} images, {part['case'].nunique()} cases", fontsize=9)
    return _with_note(figure, table)


def roc(table: pd.DataFrame):
    """ROC curves, one a method and split; groups with one class only have none and are left out."""
    figure, axis = style.subplots(width=5, height=4.4)
    for (method, split), part in table.groupby(["method", "split"], sort=False):
        if part["label"].nunique() == 2:
            name = f"{method}, split {split} ({part['case'].nunique()} cases)"
            RocCurveDisplay.from_predictions(part["label"], part["probability"], name=name, ax=axis)
    axis.plot([0, 1], [0, 1], color=style.PUBLISHED, linestyle=":", label="chance")
    axis.set(xlabel="1 - specificity", ylabel="sensitivity (malignant found)")
    axis.legend(loc="lower right", fontsize=8)
    return _with_note(figure, table)


def _with_note(figure, table: pd.DataFrame):
    note = metrics.weights_note(table)
    if note:
        figure.supxlabel("started from " + note, fontsize=8)
    return style.finish(figure)


def predict(model_file, image_files) -> pd.DataFrame:
    """Classify pictures with a saved model.

    Parameters
    ----------
    model_file : path of a .keras file that takes uint8 (N, height, width, 3), RGB 0..255
    image_files : paths of PNG, JPEG, TIFF or BMP files

    Returns
    -------
    DataFrame: file, probability (of malignant; NaN if unreadable), class, reason (empty, or why it was left out)

    Raises
    ------
    InputError
        If the model cannot be loaded (Keras' safe mode: no lambdas), or not one picture can be read.
    """
    if not Path(model_file).is_file():
        raise InputError(f"{model_file}: no such model file")
    try:
        model = keras.models.load_model(model_file, compile=False, safe_mode=True)
        height, width, _ = model.input_shape[1:]
    except Exception as error:  # a damaged or foreign file fails in many ways: zip, JSON, HDF5, missing layers
        raise InputError(f"{model_file}: not a usable Keras model ({error})".splitlines()[0]) from None
    rows, arrays = [], []
    for file in map(Path, image_files):
        try:
            arrays.append(pixels.decode(file.read_bytes(), (width, height)))
            rows.append({"file": str(file), "probability": float("nan"), "class": "", "reason": ""})
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            rows.append({"file": str(file), "probability": float("nan"), "class": "", "reason": reason})
    if not arrays:
        raise InputError(f"{rows[0]['file']}: {rows[0]['reason']}" if rows else "no image named")
    table = pd.DataFrame(rows)
    used = table["reason"] == ""
    table.loc[used, "probability"] = model.predict(np.stack(arrays), verbose=0)[:, 0].astype("float64")
    table.loc[used, "class"] = np.where(table.loc[used, "probability"] >= metrics.THRESHOLD, *manifest.CLASSES[::-1])
    return table


def as_json(table: pd.DataFrame) -> str:
    """A table as a JSON list of rows, NaN as null."""
    return json.dumps(json.loads(table.to_json(orient="records")), indent=2)
