"""From the predictions table to what it is worth: leaks, metrics with intervals, threshold, calibration, referral."""

import html
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import ConfusionMatrixDisplay, RocCurveDisplay

from bcdlib.data import breakhis, near_duplicates, splits
from bcdlib.data.cache import run_cache
from bcdlib.data.decode import decode_files
from bcdlib.errors import InputError
from bcdlib.evaluation import bootstrap, metrics, thresholds
from bcdlib.explain import explanation, models
from bcdlib.explain.error_analysis import error_figure, worst_errors  # noqa: F401 - called as evaluate.worst_errors
from bcdlib.explain.explanation import explain_image, explain_own_image  # noqa: F401 - likewise
from bcdlib.plots import style
from bcdlib.runs.files import write_csv
from bcdlib.runs.folder import Run

GROUP = ["method", "split"]
INTERVALS = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auc", *metrics.UNIT_METRICS)

AT_ONCE = 512  # pictures that `predict` holds in memory
THRESHOLDED = ["sensitivity", "specificity", "accuracy", "balanced_accuracy", "precision", "f1", "mcc"]


def lock(
    run: Run,
    rule: str = "youden",
    sensitivity: float = thresholds.WISHED_SENSITIVITY,
    *,
    calibration: str = "temperature",
    validation: str = "",
) -> pd.DataFrame:
    """Threshold and calibration of each trial, from the validation predictions only; see `thresholds.lock_thresholds`.

    Writes ``locked.csv``. Call it before `predictions`: it does not look at the test part.

    Parameters
    ----------
    validation : path of a validation predictions table made elsewhere; empty means the run's own ``validation.csv``.
        Where there is none, nothing is locked and the threshold stays at 0.5.
    """
    path = Path(validation) if validation else run.folder / "validation.csv"
    if validation or (path.is_file() and len(pd.read_csv(path, nrows=1))):
        table = thresholds.lock_thresholds(
            metrics.read_predictions(path), rule, sensitivity, calibration=calibration
        )
    else:
        table = thresholds.lock_thresholds(
            pd.DataFrame(columns=metrics.COLUMNS), rule, sensitivity, calibration=calibration
        )
    write_csv(run.folder / "locked.csv", table)
    return table


def load_predictions(run: Run, lock: pd.DataFrame | None = None, path: str = "") -> pd.DataFrame:
    """A predictions table, checked (see `metrics.read_predictions`), with what was locked beside it.

    Parameters
    ----------
    lock : as from `locked`; None leaves the table as it is
    path : of a predictions table made elsewhere, which is copied into the run; empty means the run's own

    Raises
    ------
    InputError
        If the table is no predictions table, or one made elsewhere would take the place of the run's own.
    """
    if path:
        if (run.folder / "images.csv").is_file():
            raise InputError(
                f"{run.folder}: this folder holds a run of its own; name another run folder (out) for {path}"
            )
        write_csv(run.folder / "predictions.csv", metrics.read_predictions(path))
    run.read_csv("predictions.csv", "04_train")
    table = metrics.read_predictions(run.folder / "predictions.csv")
    return table if lock is None else thresholds.apply_lock(table, lock)


def results_table(table: pd.DataFrame) -> pd.DataFrame:
    """Each figure of each method and split, threshold 0.5, with its 95 % interval over cases, and the one by image.

    Returns
    -------
    DataFrame: method, split, images, slides, cases, figure, value, by case, by image (too narrow)
    """
    found = bootstrap.interval_table(table, INTERVALS)
    shown = found[[*GROUP, "images", "slides", "cases", "figure", "value"]]
    return shown.assign(
        **{
            "95 % by case": [_range(row.low, row.high) for row in found.itertuples()],
            "by image (too narrow)": [
                _range(row.low_by_image, row.high_by_image) for row in found.itertuples()
            ],
        }
    )


def _range(low: float, high: float) -> str:
    return "-" if np.isnan(low) else f"{low:.3f} to {high:.3f}"


def threshold_table(table: pd.DataFrame) -> pd.DataFrame:
    """What depends on the threshold, at 0.5 and at the locked one: two rows a method and split.

    Returns
    -------
    DataFrame: method, split, at ("0.5" or "locked"), images, cases, `THRESHOLDED`
    """
    sides = [metrics.metrics_table(table).assign(at="0.5")]
    if "threshold" in table:
        sides.append(metrics.metrics_table(table, threshold="threshold").assign(at="locked"))
    both = pd.concat(sides).sort_index(
        kind="stable", ignore_index=True
    )  # the two of a group one under the other
    return both[[*GROUP, "at", "images", "cases", *THRESHOLDED]]


def metrics_by_group(table: pd.DataFrame) -> pd.DataFrame:
    """Every metric at threshold 0.5: a row a figure, a column a method and split (with its number of cases)."""
    found = metrics.metrics_table(table)
    names = [f"{row.method}, {row.split} ({row.cases} cases)" for row in found.itertuples()]
    figures = found[[*metrics.METRICS, *metrics.UNIT_METRICS]].T.set_axis(names, axis="columns")
    return figures.rename_axis("figure").reset_index()


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Method against method and protocol against protocol, paired, with Holm's correction: `bootstrap.comparison_table`."""
    return bootstrap.comparison_table(table)


def cross_validation(table: pd.DataFrame) -> pd.DataFrame:
    """Mean, spread and pooled value over folds and seeds; see `metrics.cross_validation_table`."""
    return metrics.cross_validation_table(table)


def metrics_by(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Metrics by magnification, subtype or slide as well. With one class only AUC and one of the rates are not defined."""
    table = table.sort_values([*GROUP, column], kind="stable")  # before the gaps are filled: they come last
    unknown = table[column].isna() | (table[column] == (0 if column == "magnification" else ""))
    table[column] = table[column].astype(object).where(~unknown, breakhis.UNKNOWN)
    found = metrics.metrics_table(table, (*GROUP, column))
    figures = ["accuracy", "sensitivity", "specificity", "precision", "f1", "auc", "brier"]
    return found[[*GROUP, column, "images", *(["cases"] if column != "slide" else []), *figures]]


def leak_lines(run: Run, table: pd.DataFrame) -> str:
    """Markdown: for each split and fold that was tested, in bold, how much of the test part was also in training."""
    if not (run.folder / "images.csv").is_file():
        return (
            "These predictions were made elsewhere: what their model was trained on is not known here. "
            "`python -m bcdlib audit --split TABLE.csv` audits a split table with the columns filename and role."
        )
    images, lines = run.images(), []
    for name, part in table.groupby("split", sort=False):
        audit = splits.split_overlap(run.read_csv(f"splits/{name}.csv", "02_preprocess"), images)
        for _, row in audit[audit["fold"].isin(part["fold"])].iterrows():
            shared = html.escape(splits.overlap_line(row))  # it may name slides
            lines.append(f"- split `{html.escape(name)}`, fold {int(row['fold'])}: **{shared}**")
    return "\n".join(lines)


def near_duplicate_pairs(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """Near-identical pictures of which one was tested and the other trained on: split, fold, test, training, correlation."""
    columns = ["split", "fold", "test", "training", "correlation", "difference"]
    if "cache" not in (run.settings if (run.folder / "settings.json").is_file() else {}):
        return pd.DataFrame(columns=columns)
    found, tables = near_duplicates.near_duplicates(run_cache(run)), []
    for name, part in table.groupby("split", sort=False):
        split = run.read_csv(f"splits/{name}.csv", "02_preprocess")
        tables.append(
            near_duplicates.across_split(found, split[split["fold"].isin(part["fold"])]).assign(split=name)
        )
    return pd.concat(tables, ignore_index=True)[columns]


def near_duplicate_figure(run: Run, found: pd.DataFrame, most: int = 4):
    """The most alike pairs of `lookalike_pairs`, side by side; or a figure that says that there is none."""
    shown = found.drop_duplicates(["test", "training"]).head(most)
    if shown.empty:
        return style.note_figure("No near-identical pictures across training and test were found.")
    figure, axes = style.make_figure(len(shown), 2, width=7, height=2.4 * len(shown), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    cache = run_cache(run)
    for (left, right), pair in zip(axes, shown.itertuples(), strict=True):
        for axis, name, role in ((left, pair.test, "test"), (right, pair.training, "training")):
            axis.imshow(cache.pixels[cache.rows([name])[0]])
            axis.set_title(f"{role}: {name}", fontsize=7)
        left.set_ylabel(f"{pair.split}, fold {pair.fold}\ncorrelation {pair.correlation:.3f}", fontsize=7)
    return style.finish_figure(figure)


def confusion_figure(table: pd.DataFrame):
    """Confusion matrices at threshold 0.5, a panel a method and split; rows true, columns predicted class."""
    groups = list(table.groupby(GROUP, sort=False))
    figure, axes = style.make_figure(1, len(groups), width=3.6 * len(groups), height=3.4, squeeze=False)
    for axis, ((method, split), part) in zip(axes[0], groups, strict=True):
        called = (part["probability"] >= metrics.THRESHOLD).astype(int)
        ConfusionMatrixDisplay.from_predictions(
            part["label"],
            called,
            labels=[0, 1],
            display_labels=breakhis.CLASSES,
            cmap="Purples",
            colorbar=False,
            ax=axis,
        )
        axis.set_title(
            f"{method}, split {split}\n{len(part)} images, {part['case'].nunique()} cases", fontsize=9
        )
    return _with_note(figure, table)


def subtype_metrics(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and macro figures of the eight subtypes, where a method learned them; see `metrics.subtype_table`."""
    return metrics.subtype_table(table)


def subtype_confusion_figure(table: pd.DataFrame):
    """Confusion matrices of the eight subtypes, a panel a method and split; or a line that says that none learned them."""
    groups = list(metrics.subtype_predictions(table).groupby(GROUP, sort=False))
    if not groups:
        return style.note_figure('No method here learned the eight subtypes (task "subtype").')
    figure, axes = style.make_figure(1, len(groups), width=4.6 * len(groups), height=4.4, squeeze=False)
    for axis, ((method, split), part) in zip(axes[0], groups, strict=True):
        ConfusionMatrixDisplay.from_predictions(
            part["subtype"],
            part["called"],
            labels=list(breakhis.SUBTYPES),
            cmap="Blues",
            colorbar=False,
            ax=axis,
        )
        axis.set_title(
            f"{method}, split {split}\n{len(part)} images, {part['case'].nunique()} cases", fontsize=9
        )
    return _with_note(figure, table)


def roc_figure(table: pd.DataFrame):
    """ROC curves, one a method and split; groups with one class only have none and are left out."""
    figure, axis = style.make_figure(width=5, height=4.4)
    for (method, split), part in table.groupby(GROUP, sort=False):
        if part["label"].nunique() == 2:
            name = f"{method}, split {split} ({part['case'].nunique()} cases)"
            RocCurveDisplay.from_predictions(part["label"], part["probability"], name=name, ax=axis)
    axis.plot([0, 1], [0, 1], color=style.PUBLISHED, linestyle=":", label="chance")
    axis.set(xlabel="1 - specificity", ylabel="sensitivity (malignant found)")
    axis.legend(loc="lower right", fontsize=8)
    return _with_note(figure, table)


def reliability_figure(table: pd.DataFrame):
    """Reliability diagrams, before and after the calibration that was fitted on validation, a panel a method and split."""
    groups = list(table.groupby(GROUP, sort=False))
    figure, axes = style.make_figure(1, len(groups), width=3.8 * len(groups), height=3.8, squeeze=False)
    for axis, ((method, split), part) in zip(axes[0], groups, strict=True):
        for column, colour, marker in (
            ("probability", style.PUBLISHED, "s"),
            ("calibrated", style.MEASURED, "o"),
        ):
            if column in part:
                error = metrics.calibration_error(part["label"], part[column])
                name = f"{'before' if column == 'probability' else 'after'}, ECE {error:.3f}"
                CalibrationDisplay.from_predictions(
                    part["label"],
                    part[column],
                    n_bins=metrics.BINS,
                    name=name,
                    ax=axis,
                    color=colour,
                    marker=marker,
                    ref_line=column == "probability",
                )
        axis.set_title(f"{method}, split {split}\n{part['case'].nunique()} cases", fontsize=9)
        axis.set(xlabel="mean probability of malignant", ylabel="share malignant")
        axis.legend(fontsize=7, loc="upper left")
    return _with_note(figure, table)


def selective_figure(table: pd.DataFrame):
    """Accuracy of the images that are decided, against their share, when the least certain are referred."""
    found = thresholds.selective_accuracy(table, shares=np.linspace(0.1, 1, 19))
    figure, axis = style.make_figure(width=5, height=3.6)
    for (method, split), part in found.groupby(GROUP, sort=False):
        axis.plot(
            100 * part["decided"],
            part["accuracy"],
            marker=".",
            label=f"{method}, split {split} ({part['cases'].max()} cases)",
        )
    axis.set(
        xlabel="images decided (%); the others go to a pathologist",
        ylabel="accuracy of these",
        ylim=(0, 1.02),
    )
    axis.legend(fontsize=8, loc="lower left")
    return _with_note(figure, table)


def referral(table: pd.DataFrame) -> pd.DataFrame:
    """What must be referred for 99 % sensitivity; see `thresholds.referral_table`."""
    return thresholds.referral_table(table)


def _with_note(figure, table: pd.DataFrame):
    note = metrics.weights_note(table)
    if note:
        figure.supxlabel("started from " + note, fontsize=8)
    return style.finish_figure(figure)


def predict_files(model_file, image_files, progress: bool = False) -> pd.DataFrame:
    """Classify pictures with a saved model: decoded on all cores, a few hundred in memory at a time.

    Parameters
    ----------
    model_file : path of a .keras file that takes uint8 (N, height, width, 3), RGB 0..255
    image_files : paths of PNG, JPEG, TIFF or BMP files, and of folders or archives of them, each once

    Returns
    -------
    DataFrame: file, probability (of malignant; NaN if unreadable), class, reason (empty, or why it was left out); and
    if the model lies in a trial's folder with what they need: calibrated (probability), warning (empty, or that the
    picture is unlike the training images), nearest (the nearest training image)

    Raises
    ------
    InputError
        If the model cannot be loaded (Keras' safe mode: no lambdas), or not one picture can be read.
    """
    model, tables = models.load_model(model_file), []
    decoded = decode_files(image_files, model.size, progress)
    while part := list(itertools.islice(decoded, AT_ONCE)):
        tables.append(_predicted(model_file, model, pd.DataFrame(part, columns=["file", "array", "reason"])))
    if not tables:
        raise InputError("no image named")
    table = pd.concat(tables, ignore_index=True)
    if (table["reason"] != "").all():
        raise InputError(f"{table['file'][0]}: {table['reason'][0]}")
    texts = [name for name in ("warning", "nearest") if name in table]
    table[texts] = table[texts].fillna("")
    return table


def _predicted(model_file, model, part: pd.DataFrame) -> pd.DataFrame:
    used = part["reason"] == ""
    table = part.drop(columns="array").assign(probability=float("nan"), **{"class": ""})
    table = table[["file", "probability", "class", "reason"]]
    if not used.any():
        return table
    X = np.stack(part.loc[used, "array"].to_list())
    table.loc[used, "probability"] = models.predict_images(model, X)
    table.loc[used, "class"] = np.where(
        table.loc[used, "probability"] >= metrics.THRESHOLD, *breakhis.CLASSES[::-1]
    )
    more = explanation.explain_predictions(model_file, model, X, probability=table.loc[used, "probability"])
    return table.join(pd.DataFrame(more, index=table.index[used]))


def as_json(table: pd.DataFrame) -> str:
    """A table as a JSON list of rows, NaN as null."""
    return json.dumps(json.loads(table.to_json(orient="records")), indent=2)
