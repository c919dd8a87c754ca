"""Evaluate a predictions table: leaks, metrics with intervals, threshold, calibration, referral."""

import html
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import ConfusionMatrixDisplay, RocCurveDisplay

from bcdlib.data import breakhis, cache, decode, near_duplicates, splits
from bcdlib.errors import InputError
from bcdlib.evaluation import bootstrap, metrics, thresholds
from bcdlib.explain import explanation, models
from bcdlib.plots import style
from bcdlib.runs.folder import Run

# isort: split
# for notebooks, which call verbs only
from bcdlib.evaluation.bootstrap import comparison_table as comparison_table
from bcdlib.evaluation.metrics import cross_validation_table as cross_validation_table
from bcdlib.evaluation.metrics import subtype_table as subtype_table
from bcdlib.evaluation.thresholds import referral_table as referral_table
from bcdlib.explain.error_analysis import error_figure as error_figure
from bcdlib.explain.error_analysis import worst_errors as worst_errors
from bcdlib.explain.explanation import explain_image as explain_image
from bcdlib.explain.explanation import explain_own_image as explain_own_image

GROUP = ["method", "split"]
AT_ONCE = 512  # images that `predict_files` holds in memory


def lock(
    run: Run,
    rule: str = "youden",
    sensitivity: float = thresholds.WISHED_SENSITIVITY,
    *,
    calibration: str = "temperature",
    validation: str = "",
) -> pd.DataFrame:
    """Choose threshold and calibration of each trial from the validation predictions, and store them.

    Writes ``locked.csv``. Call it before `load_predictions`: it does not look at the test part.

    Parameters
    ----------
    run : Run
    rule, sensitivity, calibration
        As in `thresholds.lock_thresholds`.
    validation : str
        Path of a validation predictions table made elsewhere; empty means the run's own ``validation.csv``.
        Where there is none, nothing is locked and the threshold stays at 0.5.

    Returns
    -------
    DataFrame
        As from `thresholds.lock_thresholds`.
    """
    path = Path(validation) if validation else run.folder / "validation.csv"
    known = validation or (path.is_file() and len(pd.read_csv(path, nrows=1)))
    table = metrics.read_predictions(path) if known else pd.DataFrame(columns=metrics.COLUMNS)
    table = table if validation else run.check_origin(table, path.name)
    locked = thresholds.lock_thresholds(table, rule, sensitivity, calibration=calibration)
    run.write_csv("locked.csv", locked)
    return locked


def load_predictions(run: Run, lock: pd.DataFrame | None = None, path: str = "") -> pd.DataFrame:
    """Load a predictions table and check it (see `metrics.read_predictions`); add what was locked.

    Parameters
    ----------
    run : Run
    lock : DataFrame, optional
        As from `lock`; None leaves the table as it is.
    path : str
        Of a predictions table made elsewhere, which is copied into the run; empty means the run's own.

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
        run.write_csv("predictions.csv", metrics.read_predictions(path))
    run.read_csv("predictions.csv", "04_train")
    table = run.check_origin(metrics.read_predictions(run.folder / "predictions.csv"), "predictions.csv")
    return table if lock is None else thresholds.apply_lock(table, lock)


def results_table(table: pd.DataFrame) -> pd.DataFrame:
    """Compute the metrics of each method and split at threshold 0.5, with their 95 % intervals.

    Returns
    -------
    DataFrame
        method, split, images, slides, cases, metric, value, "95 % by case", "by image (too narrow)" (text).
    """
    found = bootstrap.interval_table(table, metrics.shown_in("results"))
    texts = {
        "95 % by case": list(map(bootstrap.range_text, found["low"], found["high"])),
        "by image (too narrow)": list(
            map(bootstrap.range_text, found["low_by_image"], found["high_by_image"])
        ),
    }
    return found[[*GROUP, "images", "slides", "cases", "metric", "value"]].assign(**texts)


def threshold_table(table: pd.DataFrame) -> pd.DataFrame:
    """Compute the metrics that depend on the threshold, at 0.5 and at the locked one.

    Returns
    -------
    DataFrame
        Two rows a method and split: method, split, at ("0.5" or "locked"), images, cases, metrics.
    """
    sides = [metrics.metrics_table(table).assign(at="0.5")]
    if "threshold" in table:
        sides.append(metrics.metrics_table(table, threshold="threshold").assign(at="locked"))
    return pd.concat(sides).sort_index(kind="stable", ignore_index=True)[  # the two of a group together
        [*GROUP, "at", "images", "cases", *metrics.shown_in("thresholds")]
    ]


def metrics_by_group(table: pd.DataFrame) -> pd.DataFrame:
    """Compute every metric at 0.5: a row a metric, a column a method and split (with its number of cases)."""
    found = metrics.metrics_table(table)
    names = [f"{row.method}, {row.split} ({row.cases} cases)" for row in found.itertuples()]
    return found[list(metrics.METRICS)].T.set_axis(names, axis=1).rename_axis("metric").reset_index()


def metrics_by(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Compute metrics by magnification, subtype or slide as well.

    With one class only, AUC and one of sensitivity and specificity are not defined.
    """
    table = table.sort_values([*GROUP, column], kind="stable")  # before the gaps are filled: they come last
    unknown = table[column].isna() | (table[column] == (0 if column == "magnification" else ""))
    table[column] = table[column].astype(object).where(~unknown, breakhis.UNKNOWN)
    cases = [] if column == "slide" else ["cases"]
    return metrics.metrics_table(table, (*GROUP, column))[
        [*GROUP, column, "images", *cases, *metrics.shown_in("groups")]
    ]


def leak_lines(run: Run, table: pd.DataFrame) -> str:
    """Write, in Markdown, how much of each tested split and fold's test part was also in training."""
    if not (run.folder / "images.csv").is_file():
        return (
            "These predictions were made elsewhere: what their model was trained on is not known here. "
            "`python -m bcdlib audit --split TABLE.csv` audits a split table with the columns filename and "
            "role."
        )
    images, lines = run.images(), []
    for name, part in table.groupby("split", sort=False):
        audit = splits.split_overlap(run.read_csv(f"splits/{name}.csv", "02_preprocess"), images)
        lines += [
            f"- split `{html.escape(name)}`, fold {int(row['fold'])}: "
            f"**{html.escape(splits.overlap_line(row))}**"  # it may name slides
            for _, row in audit[audit["fold"].isin(part["fold"])].iterrows()
        ]
    return "\n".join(lines)


def near_duplicate_pairs(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """Find near-duplicate images of which one was tested and the other trained on.

    Returns
    -------
    DataFrame
        split, fold, test, training, correlation. Empty in a run without images.
    """
    columns = ["split", "fold", "test", "training", "correlation"]
    if "cache" not in (run.settings if (run.folder / "settings.json").is_file() else {}):
        return pd.DataFrame(columns=columns)
    found, tables = near_duplicates.near_duplicates(cache.run_cache(run)), []
    for name, part in table.groupby("split", sort=False):
        split = run.read_csv(f"splits/{name}.csv", "02_preprocess")
        tables.append(
            near_duplicates.across_split(found, split[split["fold"].isin(part["fold"])]).assign(split=name)
        )
    return pd.concat(tables, ignore_index=True)[columns]


def near_duplicate_figure(run: Run, found: pd.DataFrame, most: int = 4):
    """Draw the most alike pairs of `near_duplicate_pairs` side by side; or say that there is none."""
    shown = found.drop_duplicates(["test", "training"]).head(most)
    if shown.empty:
        return style.note_figure("No near-duplicate images across training and test were found.")
    captions = [
        f"{side}: {pair[side]}\n{pair['split']}, fold {pair['fold']}, correlation {pair['correlation']:.3f}"
        for pair in shown.to_dict("records")
        for side in ("test", "training")
    ]
    images = cache.run_cache(run)
    pixels = images.pixels[images.rows(shown[["test", "training"]].to_numpy().ravel())]
    return style.image_grid(pixels, captions, 2)


def confusion_figure(table: pd.DataFrame):
    """Draw confusion matrices at threshold 0.5, a panel a method and split; rows true, columns predicted."""
    found, names = metrics.with_correct(table), np.array(breakhis.CLASSES)
    found = found.assign(truth=names[found["label"]], predicted=names[found["predicted"]])
    return _confusion_panels(found, names, size=3.6, colours="Purples")


def subtype_confusion_figure(table: pd.DataFrame):
    """Draw confusion matrices of the eight subtypes, a panel a method and split that learned them."""
    found = metrics.subtype_predictions(table)
    if found.empty:
        return style.note_figure('No method here learned the eight subtypes (task "subtype").')
    return _confusion_panels(
        found.assign(truth=found["subtype"]), breakhis.SUBTYPES, size=4.6, colours="Blues"
    )


def _panels(table: pd.DataFrame, *, width: float, height: float):
    """Make a figure with a titled panel for each method and split; also return pairs of panel and rows."""
    names, parts = zip(*table.groupby(GROUP, sort=False), strict=True)
    figure, axes = style.make_figure(1, len(parts), width=width * len(parts), height=height, squeeze=False)
    for axis, (method, split), part in zip(axes[0], names, parts, strict=True):
        axis.set_title(
            f"{method}, split {split}\n{len(part)} images, {part['case'].nunique()} cases", fontsize=9
        )
    return figure, zip(axes[0], parts, strict=True)


def _confusion_panels(table: pd.DataFrame, names, *, size: float, colours: str):
    figure, panels = _panels(table, width=size, height=size - 0.2)
    for axis, part in panels:
        ConfusionMatrixDisplay.from_predictions(
            part["truth"], part["predicted"], labels=list(names), cmap=colours, colorbar=False, ax=axis
        )
    return _with_note(figure, table)


def roc_figure(table: pd.DataFrame, ax=None):
    """Draw a ROC curve a method and split; those with one class only have none and are left out."""
    figure, axis = style.axes_or_new(ax, width=5, height=4.4)
    for (method, split), part in table.groupby(GROUP, sort=False):
        if part["label"].nunique() == 2:
            RocCurveDisplay.from_predictions(
                part["label"],
                part["probability"],
                name=f"{method}, split {split} ({part['case'].nunique()} cases)",
                ax=axis,
            )
    axis.plot([0, 1], [0, 1], color=style.PUBLISHED, linestyle=":", label="chance")
    axis.set(xlabel="1 - specificity", ylabel="sensitivity (malignant found)")
    axis.legend(loc="lower right", fontsize=8)
    return _with_note(figure, table) if ax is None else figure


def reliability_figure(table: pd.DataFrame):
    """Draw reliability diagrams before and after calibration on validation, a panel a method and split."""
    figure, panels = _panels(table, width=3.8, height=3.8)
    looks = {"probability": ("before", style.PUBLISHED, "s"), "calibrated": ("after", style.MEASURED, "o")}
    for axis, part in panels:
        for column, (when, colour, marker) in looks.items():
            if column in part:
                CalibrationDisplay.from_predictions(
                    part["label"],
                    part[column],
                    n_bins=metrics.BINS,
                    name=f"{when}, ECE {metrics.calibration_error(part['label'], part[column]):.3f}",
                    ax=axis,
                    color=colour,
                    marker=marker,
                    ref_line=column == "probability",
                )
        axis.set(xlabel="mean probability of malignant", ylabel="share malignant")
        axis.legend(fontsize=7, loc="upper left")
    return _with_note(figure, table)


def selective_figure(table: pd.DataFrame, ax=None):
    """Draw accuracy against the share of images that are decided when the least certain are referred."""
    found = thresholds.selective_accuracy(table, shares=np.linspace(0.1, 1, 19))
    figure, axis = style.axes_or_new(ax, width=5, height=3.6)
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
    return _with_note(figure, table) if ax is None else figure


def _with_note(figure, table: pd.DataFrame):
    note = metrics.weights_note(table)
    if note:
        figure.supxlabel("started from " + note, fontsize=8)
    return figure


def predict_files(model_file, image_files, progress: bool = False) -> pd.DataFrame:
    """Classify images with a saved model: decoded on all cores, a few hundred in memory at a time.

    Parameters
    ----------
    model_file : path
        A .keras file that takes uint8 (N, height, width, 3), RGB 0..255.
    image_files : sequence of paths
        PNG, JPEG, TIFF or BMP files, and folders or archives of them, each once.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    DataFrame
        file, probability (of malignant; NaN if unreadable), class, reason (empty, or why it was left out);
        and if the model lies in a trial's folder with what they need: calibrated (probability), warning
        (empty, or that the image is unlike the training images), nearest (the nearest training image).

    Raises
    ------
    InputError
        If the model cannot be loaded (Keras' safe mode: no lambdas), or none of the images can be read.
    """
    model, tables = models.load_model(model_file), []
    decoded = decode.decode_files(image_files, model.size, progress)
    while part := list(itertools.islice(decoded, AT_ONCE)):
        tables.append(_predicted(model_file, model, pd.DataFrame(part, columns=["file", "array", "reason"])))
    if not tables:
        raise InputError("no image named")
    table = pd.concat(tables, ignore_index=True)
    if (table["reason"] != "").all():
        raise InputError(f"{table['file'][0]}: {table['reason'][0]}")
    return table.fillna({"warning": "", "nearest": ""})


def _predicted(model_file, model, part: pd.DataFrame) -> pd.DataFrame:
    used = part["reason"] == ""
    table = part.assign(probability=float("nan"), **{"class": ""})[["file", "probability", "class", "reason"]]
    if not used.any():
        return table
    X = np.stack(part.loc[used, "array"].to_list())
    probability = models.predict_images(model, X)
    table.loc[used, "probability"] = probability
    table.loc[used, "class"] = np.where(probability >= metrics.THRESHOLD, *breakhis.CLASSES[::-1])
    more = explanation.explain_predictions(model_file, model, X, probability=probability)
    return table.join(pd.DataFrame(more, index=table.index[used]))


def as_json(table: pd.DataFrame) -> str:
    """Format a table as a JSON list of rows, NaN as null.

    Examples
    --------
    >>> json.loads(as_json(pd.DataFrame({"probability": [0.5, float("nan")]})))
    [{'probability': 0.5}, {'probability': None}]
    """
    return json.dumps(json.loads(table.to_json(orient="records")), indent=2)
