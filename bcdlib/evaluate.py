"""Evaluate a predictions table: leaks, metrics with intervals, threshold, calibration, referral."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import ConfusionMatrixDisplay, RocCurveDisplay

from bcdlib.data import breakhis, cache, near_duplicates, published_splits, splits
from bcdlib.errors import InputError
from bcdlib.evaluation import bootstrap, decisions, metrics, thresholds
from bcdlib.plots import style
from bcdlib.runs import files, lesson
from bcdlib.runs.files import write_csv
from bcdlib.runs.folder import LOCK, TRIAL_COLUMNS, Run, trial_folder
from bcdlib.runs.names import in_markdown

# isort: split
# for notebooks, which call verbs only
from bcdlib.data.flow import flow_table as flow_table
from bcdlib.evaluation.bootstrap import comparison_table as comparison_table
from bcdlib.evaluation.metrics import cross_validation_table as cross_validation_table
from bcdlib.evaluation.metrics import subtype_table as subtype_table
from bcdlib.evaluation.thresholds import referral_table as referral_table
from bcdlib.explain.elsewhere import ask_elsewhere as ask_elsewhere
from bcdlib.explain.elsewhere import elsewhere_table as elsewhere_table
from bcdlib.explain.error_analysis import error_figure as error_figure
from bcdlib.explain.error_analysis import worst_errors as worst_errors
from bcdlib.explain.explanation import explain_image as explain_image
from bcdlib.explain.explanation import explain_own_image as explain_own_image
from bcdlib.explain.prediction import predict_files as predict_files
from bcdlib.explain.prediction import predict_labelled as predict_labelled
from bcdlib.plots.flow_diagram import draw_flow as draw_flow

GROUP = ["method", "split"]
REFITS = 500  # resamples in which calibration is fitted anew: a regression each
MOST_SLIDES, MOST_GROUPS = 500, 50  # in a table: the intervals of a million groups would take hours


def lock(
    run: Run,
    rule: str = "youden",
    sensitivity: float = thresholds.WISHED_SENSITIVITY,
    *,
    calibration: str = "temperature",
    validation: str = "",
) -> pd.DataFrame:
    """Choose threshold and calibration of each trial from the validation predictions, and store them.

    Writes ``locked.csv``, and each trial's part of it beside the trial's model. Call it before
    `load_predictions`: it does not look at the test part.

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
    known = validation or (path.is_file() and len(files.read_table(path, nrows=1)))
    table = metrics.read_predictions(path) if known else pd.DataFrame(columns=metrics.COLUMNS)
    table = table if validation else run.check_origin(table, path.name)
    locked = thresholds.lock_thresholds(table, rule, sensitivity, calibration=calibration)
    run.write_csv(LOCK, locked)
    if not validation:
        for (_, row), (_, part) in zip(
            locked.iterrows(), table.groupby(TRIAL_COLUMNS, sort=False), strict=True
        ):
            folder = trial_folder(run, part.iloc[0], "validation.csv")
            if folder is not None:
                write_csv(folder / LOCK, row.to_frame().T)
    return locked


def load_predictions(
    run: Run, lock: pd.DataFrame | None = None, path: str = "", *, validation: str = ""
) -> pd.DataFrame:
    """Load a predictions table and check it (see `metrics.read_predictions`); add what was locked.

    Names of images, slides and cases become categories, which are quicker to compare than a million texts.

    Parameters
    ----------
    run : Run
    lock : DataFrame, optional
        As from `lock`; None leaves the table as it is.
    path : str
        Of a predictions table made elsewhere, which is copied into the run; empty means the run's own.
    validation : str
        As in `lock`: which trial it belongs to is told by `thresholds.match_validation`.

    Raises
    ------
    InputError
        If the table is no predictions table, or one made elsewhere would take the place of the run's own; if
        the validation table belongs to none of its trials, or shares images with them.
    """
    if path:
        if (run.folder / "images.csv").is_file():
            raise InputError(
                f"{run.folder}: this folder holds a run of its own; name another run folder (out) for {path}"
            )
        table = metrics.read_predictions(path)
        run.write_csv("predictions.csv", table)
        kept, ours = files.kept_table(path), files.kept_table(run.folder / "predictions.csv")
        if kept != ours:  # for the report; of a table that we wrote it is the same
            shutil.copyfile(kept, ours)
    else:
        run.need_file("predictions.csv", "04_train")
        table = metrics.read_predictions(run.folder / "predictions.csv")
    table = run.check_origin(table, "predictions.csv")
    if validation and lock is not None:
        matched = thresholds.match_validation(metrics.read_predictions(validation), table)
        if len(lock) == 1:
            lock = lock.assign(**matched[TRIAL_COLUMNS].iloc[0])
    table = table.astype(dict.fromkeys(("filename", "slide", "case"), "category"))
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
        "by image (too narrow)": [
            "-" if np.isnan(low) else bootstrap.range_text(low, high)
            for low, high in found[["low_by_image", "high_by_image"]].to_numpy()
        ],
    }
    return found[[*GROUP, "images", "slides", "cases", "metric", "value"]].assign(**texts)


def guess_figure(run: Run, table: pd.DataFrame, guess: float = 0):
    """Draw the accuracy of each method and split with its 95 % interval over cases, and the reader's guess.

    Parameters
    ----------
    run : Run
        In which 01_mount may have recorded a guess.
    table : DataFrame
        A predictions table.
    guess : float
        In percent; 0: the recorded one, if there is one.
    """
    found = bootstrap.interval_table(table, ["accuracy"], by_image=False).iloc[::-1].reset_index(drop=True)
    figure, axis = style.make_figure(width=8, height=0.6 * len(found) + 1.6)
    bars = bootstrap.error_bars(found)
    axis.errorbar(
        found["value"], found.index, xerr=bars, fmt="o", color=style.MEASURED, capsize=4, label="measured"
    )
    style.mark_guess(axis, lesson.read_guess(run, guess))
    axis.set_yticks(
        found.index, [f"{row.method}, {row.split}\n{row.cases} test cases" for row in found.itertuples()]
    )
    axis.set(
        xlim=(0, 1.02),
        ylim=(-0.6, len(found) - 0.4),
        xlabel="accuracy on test images, 95 % interval over cases",
    )
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False)
    return _with_note(figure, table)


def threshold_table(table: pd.DataFrame) -> pd.DataFrame:
    """Compute the metrics that depend on the threshold, at 0.5 and at the locked one, with intervals.

    Returns
    -------
    DataFrame
        Rows of each method and split: method, split, at ("0.5" or "locked"), images, cases, metric, value,
        "95 % by case" (text).
    """
    keys, sides = metrics.shown_in("thresholds"), {"0.5": metrics.THRESHOLD}
    if "threshold" in table:
        sides["locked"] = "threshold"
    found = pd.concat(
        [
            bootstrap.interval_table(table, keys, threshold=threshold, by_image=False).assign(at=at)
            for at, threshold in sides.items()
        ]
    )
    order = found.groupby(GROUP, sort=False).ngroup()  # both sides of a method and split together
    found = found.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)
    texts = list(map(bootstrap.range_text, found["low"], found["high"]))
    return found[[*GROUP, "at", "images", "cases", "metric", "value"]].assign(**{"95 % by case": texts})


def metrics_by_group(table: pd.DataFrame) -> pd.DataFrame:
    """Compute every metric at 0.5: a row a metric, a column a method and split (with its number of cases)."""
    found = metrics.metrics_table(table)
    names = [f"{row.method}, {row.split} ({row.cases} cases)" for row in found.itertuples()]
    return found[list(metrics.METRICS)].T.set_axis(names, axis=1).rename_axis("metric").reset_index()


def metrics_by(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Compute metrics by magnification, subtype or slide as well, with the interval of accuracy over cases.

    With one class only, AUC and one of sensitivity and specificity are not defined. A slide is of one case:
    what other cases would give cannot be said from it, and there is no interval.

    Of more than `MOST_SLIDES` slides those with the most wrong images are shown, of more than `MOST_GROUPS`
    magnifications or subtypes those with the most images.
    """
    most, wrong = MOST_GROUPS, True
    if column == "slide":
        most, wrong = MOST_SLIDES, (table["probability"] >= metrics.THRESHOLD) != table["label"]
    names = metrics.name_codes(table[column])
    if names.nunique() > most:
        counts = table.assign(wrong=wrong).groupby(names)["wrong"].sum()
        table = table[names.isin(counts.nlargest(most).index)]
    if column == "slide":
        table = table.astype({"slide": object})  # names, in their order
    table = table.sort_values([*GROUP, column], kind="stable")  # before the gaps are filled: they come last
    unknown = table[column].isna() | (table[column] == (0 if column == "magnification" else ""))
    table[column] = table[column].astype(object).where(~unknown, breakhis.UNKNOWN)
    by = [*GROUP, column]
    found = metrics.metrics_table(table, by, keys=metrics.shown_in("groups"))
    if column == "slide":
        return found[[*by, "images", *metrics.shown_in("groups")]]
    limits = bootstrap.interval_table(table, ["accuracy"], by, by_image=False)
    texts = list(map(bootstrap.range_text, limits["low"], limits["high"]))
    found.insert(found.columns.get_loc("accuracy") + 1, "accuracy, 95 % by case", texts)
    others = [key for key in metrics.shown_in("groups") if key != "accuracy"]
    return found[[*by, "images", "cases", "accuracy", "accuracy, 95 % by case", *others]]


def leak_lines(run: Run, table: pd.DataFrame) -> str:
    """Write, in Markdown, how much of each tested fold was also in training, and what is odd in the table.

    A split of BreakHis is held against the register of published ones; of predictions that were made
    elsewhere, the stored splits that test exactly these images are named.
    """
    notes = [f"- {in_markdown(note)}" for note in metrics.prediction_notes(table)]
    if not (run.folder / "images.csv").is_file():
        made_elsewhere = (
            "These predictions were made elsewhere: what their model was trained on is not known here. "
            "`python -m bcdlib audit --split TABLE.csv` audits a split table with the columns filename and "
            "role."
        )
        return "\n".join([made_elsewhere, "", *notes, *_recognised_lines(table)]).strip()
    images, lines = run.images(), notes
    for name, part in table.groupby("split", sort=False):
        split = run.read_csv(f"splits/{name}.csv", "02_preprocess")
        split = split[split["fold"].isin(part["fold"])]
        lines += [
            f"- {in_markdown(f'split `{name}`')}, fold {int(row['fold'])}: "
            f"**{in_markdown(splits.overlap_line(row))}**"  # it may name slides
            for _, row in splits.split_overlap(split, images).iterrows()
        ]
        if name in published_splits.list_names():
            lines.append(f"  A list: {in_markdown(published_splits.describe_list(name))}.")
        elif breakhis.is_breakhis(images):
            fitted = split.replace({"role": {"validation": "train"}})  # fitted or chosen on
            counts = published_splits.count_overlap(fitted, images)
            lines.append(f"  {published_splits.kept_apart_text(counts)}")
    return "\n".join(lines)


def _recognised_lines(table: pd.DataFrame) -> list[str]:
    return [
        f"- {in_markdown(f'split `{name}`')}: these are the test images of the list `{found}` "
        f"({published_splits.describe_list(found)})."
        for name, part in table.groupby("split", sort=False)
        for found in published_splits.recognise(part["filename"])
    ]


def near_duplicate_pairs(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """Find near-duplicate images of which one was tested and the other trained on.

    Returns
    -------
    DataFrame
        split, fold, test, training, correlation. Empty in a run without images.
    """
    columns = ["split", "fold", "test", "training", "correlation"]
    if "cache" not in run.recorded():
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
    found = metrics.with_correct(table).rename(columns={"label": "truth"})
    # numbers, not words: a million of these take seconds to sort
    names, predicted = dict(enumerate(breakhis.CLASSES)), f"predicted at threshold {metrics.THRESHOLD:g}"
    return _confusion_panels(found, names, size=3.6, colours="Purples", predicted=predicted)


def subtype_confusion_figure(table: pd.DataFrame):
    """Draw confusion matrices of the eight subtypes, a panel a method and split that learned them."""
    found = metrics.subtype_predictions(table)
    if found.empty:
        return style.note_figure('No method here learned the eight subtypes (task "subtype").')
    return _confusion_panels(
        found.assign(truth=found["subtype"]),
        dict(zip(breakhis.SUBTYPES, breakhis.SUBTYPES)),
        size=4.6,
        colours="Blues",
        predicted="predicted",
    )


def _panels(table: pd.DataFrame, *, width: float, height: float, columns: int = 0):
    """Make a figure with a titled panel for each method and split; also return pairs of panel and rows.

    With `columns`, panels stand in so many of them (more if there are many panels), else in one row.
    """
    names, parts = zip(*table.groupby(GROUP, sort=False), strict=True)
    columns = min(len(parts), max(columns, math.isqrt(len(parts)))) if columns else len(parts)
    rows = -(-len(parts) // columns)
    figure, axes = style.make_figure(
        rows, columns, width=width * columns, height=height * rows, squeeze=False
    )
    for axis in axes.flat[len(parts) :]:
        axis.remove()
    for axis, (method, split), part in zip(axes.flat, names, parts):
        title = (
            f"{method}, split {split}\n{part['filename'].nunique()} images, {part['case'].nunique()} cases"
        )
        axis.set_title(style.wrap(title, 9, width - 0.3), fontsize=9)
    return figure, zip(axes.flat, parts)


def _confusion_panels(table: pd.DataFrame, names: dict, *, size: float, colours: str, predicted: str):
    figure, panels = _panels(table, width=size, height=size - 0.2)
    for axis, part in panels:
        ConfusionMatrixDisplay.from_predictions(
            part["truth"],
            part["predicted"],
            labels=list(names),
            display_labels=list(names.values()),
            cmap=colours,
            colorbar=False,
            ax=axis,
        )
        axis.set_xlabel(predicted)
    return _with_note(figure, table)


def roc_figure(table: pd.DataFrame):
    """Draw a ROC curve a method and split; those with one class only have none and are left out."""
    figure, axis = style.make_figure(width=5, height=4.4)
    for (method, split), part in table.groupby(GROUP, sort=False):
        if part["label"].nunique() == 2:
            RocCurveDisplay.from_predictions(
                part["label"],
                part["probability"],
                name=f"{method}, split {split}, {part['case'].nunique()} cases",
                ax=axis,
            )
    axis.plot([0, 1], [0, 1], color=style.PUBLISHED, linestyle=":", label="chance")
    axis.set(xlabel="1 - specificity", ylabel="sensitivity (malignant found)")
    axis.legend(loc="lower right", fontsize=8)
    return _with_note(figure, table)


def reliability_figure(table: pd.DataFrame):
    """Draw reliability diagrams before and after calibration on validation, a panel a method and split.

    The band is the 95 % interval over cases, where there are enough, of the last curve. The legends give the
    Brier score (the lower, the better) with its interval.
    """
    figure, panels = _panels(table, width=3.8, height=3.8)
    looks = {"probability": ("before", style.PUBLISHED, "s"), "calibrated": ("after", style.MEASURED, "o")}
    for axis, part in panels:
        for column, (when, colour, marker) in looks.items():
            if column in part:
                shown = part.assign(probability=part[column])
                brier = bootstrap.interval_table(shown, ["brier"], by_image=False).iloc[0]
                CalibrationDisplay.from_predictions(
                    part["label"],
                    part[column],
                    n_bins=metrics.BINS,
                    name=f"{when}, Brier {bootstrap.interval_text(brier)}",
                    ax=axis,
                    color=colour,
                    marker=marker,
                    ref_line=column == "probability",
                )
        band = thresholds.reliability_band(part, "calibrated" if "calibrated" in part else "probability")
        axis.errorbar(
            band["probability"],
            band["malignant"],
            yerr=bootstrap.error_bars(band, "malignant"),
            fmt="none",
            color=colour,
            capsize=2,
        )
        axis.fill_between(band["probability"], band["low"], band["high"], color=colour, alpha=0.15)
        # the upper part is the legend's: curves reach 1
        axis.set(xlabel="mean probability of malignant", ylabel="share malignant", ylim=(-0.05, 1.5))
        axis.set_yticks(np.linspace(0, 1, 6))
        axis.legend(fontsize=7, loc="upper left")
    return _with_note(figure, table)


def calibration_table(table: pd.DataFrame) -> pd.DataFrame:
    """Compute calibration slope and intercept, and the Brier score, with 95 % intervals over cases.

    Returns
    -------
    DataFrame
        method, split, probability ("before" or "after" what was fitted on validation; one row where nothing
        was), cases, metric, value, "95 % by case" (text).
    """
    keys, tables = metrics.shown_in("calibration"), []
    for _, part in table.groupby(GROUP, sort=False):
        looks = {"before": part["probability"], "after": part.get("calibrated", part["probability"])}
        if np.allclose(looks["before"], looks["after"], equal_nan=True):
            del looks["after"]
        tables += [
            bootstrap.interval_table(
                part.assign(probability=values),
                [key],
                by_image=False,
                repeats=bootstrap.REPEATS if key == "brier" else REFITS,
            ).assign(when=when)
            for when, values in looks.items()
            for key in keys
        ]
    found = pd.concat(tables, ignore_index=True)
    return pd.DataFrame(
        found[GROUP].to_dict("series")
        | {
            "probability": found["when"],
            "cases": found["cases"],
            "metric": [metrics.METRICS[key].label for key in found["metric"]],
            "value": found["value"],
            "95 % by case": list(map(bootstrap.range_text, found["low"], found["high"])),
        }
    )


def case_figure(table: pd.DataFrame):
    """Draw the 2x2 by case at the locked threshold, a panel a method and split."""
    known = table[table["probability"].notna()]
    if known.empty:
        return style.note_figure("No method here gives a probability of malignant.")
    figure, panels = _panels(known, width=2.1, height=2.3, columns=2)
    for axis, part in panels:
        n = decisions.count_cases(part)
        matrix = np.array([[n["TN"], n["FP"]], [n["FN"], n["TP"]]])
        shown = ConfusionMatrixDisplay(matrix, display_labels=breakhis.CLASSES)
        shown.plot(ax=axis, cmap="Greens", colorbar=False, values_format=".3g")
        axis.set(xlabel="predicted", ylabel="true")
        axis.tick_params(labelsize=8)
        axis.tick_params(axis="y", labelrotation=90)
        title = "{method}\nsplit {split}".format(**part.iloc[0])
        axis.set_title(style.wrap(title, 8.5, 1.8), fontsize=8.5)
    return figure


def case_table(table: pd.DataFrame) -> pd.DataFrame:
    """Compute sensitivity, specificity, PPV and NPV by case at the locked threshold.

    Returns
    -------
    DataFrame
        method, split, measure, cases ("5 of 7"), value, "95 %" (Wilson's interval, text).
    """
    found = decisions.two_by_two(table)
    cases = [f"{count:.3g} of {of:.3g}" for count, of in found[["count", "of"]].to_numpy()]
    texts = list(map(bootstrap.range_text, found["low"], found["high"]))
    return found[[*GROUP, "measure"]].assign(cases=cases, value=found["value"], **{"95 %": texts})


def predictive_table(table: pd.DataFrame, prevalences="") -> pd.DataFrame:
    """Compute PPV and NPV by case for other shares of malignant cases; see `decisions.predictive_values`.

    Parameters
    ----------
    table : DataFrame
    prevalences : str
        See `decisions.read_prevalences`.

    Returns
    -------
    DataFrame
        method, split, prevalence, "PPV (95 %)", "NPV (95 %)" (text).

    Raises
    ------
    InputError
        If one is no share between 0 and 1.
    """
    found = decisions.predictive_values(table, decisions.read_prevalences(prevalences))
    texts = found.assign(text=[bootstrap.interval_text(row) for row in found.itertuples()])
    wide = texts.pivot(index=[*GROUP, "prevalence"], columns="measure", values="text")
    order = pd.MultiIndex.from_frame(texts[[*GROUP, "prevalence"]].drop_duplicates())
    names = {"PPV": "PPV (95 %)", "NPV": "NPV (95 %)"}
    return wide.reindex(order)[list(names)].rename(columns=names).reset_index().rename_axis(columns=None)


def net_benefit_figure(table: pd.DataFrame):
    """Draw decision curves by case with 95 % bands, a panel a method and split."""
    found = decisions.net_benefit(table)
    if found.empty:
        return style.note_figure("No method here gives a probability of malignant.")
    figure, panels = _panels(table[table["probability"].notna()], width=4.2, height=2.7, columns=1)
    for (axis, _), (_, part) in zip(panels, found.groupby(GROUP, sort=False)):
        most = part["act_on_all"].max()
        axis.fill_between(part["threshold"], part["low"], part["high"], color=style.MEASURED, alpha=0.15)
        # the two are often the same: the wide one stays in sight under the other
        axis.plot(
            part["threshold"], part["act_on_all"], color=style.PUBLISHED, lw=4, label="act on every case"
        )
        axis.plot(part["threshold"], part["net_benefit"], color=style.MEASURED, label="act on the model")
        axis.axhline(0, color="#222222", linewidth=0.8, linestyle=":", label="act on none")
        axis.set(
            xlim=(0, 1),
            ylim=(-0.4 * max(most, 0.1), 1.8 * max(most, 0.1)),
            xlabel="threshold probability of acting",
            ylabel="net benefit, per case",
        )
        axis.legend(fontsize=8, loc="upper right", frameon=False)
    return figure


def precision_table(table: pd.DataFrame) -> pd.DataFrame:
    """Compute how wide the intervals by case are, and how many cases +- 0.05 would need.

    Returns
    -------
    DataFrame
        method, split, measure, counted ("all", "malignant" or "benign" cases), cases, value, "+- now", "cases
        for +- 0.05"; see `decisions.precision`.
    """
    found = decisions.precision(table)
    names = {"half_width": "+- now", "needed": decisions.NEEDED}
    return found.drop(columns="malignant").rename(columns=names)


def precision_figure(table: pd.DataFrame):
    """Draw how far intervals by case reach against the number of cases, a panel a measure."""
    found, cases = decisions.precision(table), np.geomspace(2, 2000, 40)
    if found.empty:
        return style.note_figure("No method here gives a probability of malignant.")
    measures = found["measure"].unique()
    figure, axes = style.make_figure(len(measures), 1, width=4.2, height=2.1 * len(measures), squeeze=False)
    for axis, measure in zip(axes.flat, measures):
        for row in found[found["measure"] == measure].itertuples():
            widths = [decisions.half_width(measure, row.value, n, malignant=row.malignant) for n in cases]
            (line,) = axis.plot(cases, widths, label=f"{row.method}, split {row.split}: {row.value:.2f}")
            axis.plot(row.cases, row.half_width, "o", color=line.get_color())
        axis.axhline(decisions.HALF_WIDTH, color="#222222", linewidth=0.8, linestyle=":")
        counted = row.counted.replace("all", "test")
        axis.set(xscale="log", ylim=(0, 0.52), xlabel=f"{counted} cases", ylabel=f"{measure}, +-")
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.legend(fontsize=8, loc="upper right", frameon=False)
    return figure


def selective_figure(table: pd.DataFrame):
    """Draw accuracy, with its 95 % band over cases, against the share of images that are decided."""
    found = thresholds.selective_accuracy(table, shares=np.linspace(0.1, 1, 19))
    figure, axis = style.make_figure(width=5, height=3.6)
    for (method, split), part in found.groupby(GROUP, sort=False):
        axis.plot(
            100 * part["decided"],
            part["accuracy"],
            marker=".",
            label=f"{method}, split {split} ({part['cases'].max()} cases)",
        )
        axis.fill_between(100 * part["decided"], part["low"], part["high"], alpha=0.15)
    axis.set(
        xlabel="images decided (%); the others go to a pathologist",
        ylabel="accuracy of these",
        ylim=(0, 1.02),
    )
    axis.legend(fontsize=8, loc="lower left")
    return _with_note(figure, table)


def _with_note(figure, table: pd.DataFrame):
    started = metrics.weights_note(table)
    notes = ["started from " + started] if started else []
    if any(metrics.overlapping_folds(part) for _, part in table.groupby(GROUP)):
        notes.append("an image that is tested in several folds counts once in each")
    if notes:
        figure.supxlabel("; ".join(notes), fontsize=8)
    return figure


def as_json(table: pd.DataFrame) -> str:
    """Format a table as a JSON list of rows, NaN as null.

    Examples
    --------
    >>> json.loads(as_json(pd.DataFrame({"probability": [0.5, float("nan")]})))
    [{'probability': 0.5}, {'probability': None}]
    """
    return json.dumps(json.loads(table.to_json(orient="records")), indent=2)


def findings(run: Run, table: pd.DataFrame, guess: float = 0) -> str:
    """Say in three lines what the predictions are worth, as Markdown; `guess` as in `guess_figure`."""
    found = bootstrap.interval_table(table, ["accuracy", "auc"], by_image=False)
    strictest = min(found["split"], key=splits.strictness)
    accuracy, auc = (
        found[(found["split"] == strictest) & (found["metric"] == metric)].iloc[0]
        for metric in ("accuracy", "auc")
    )
    part = table[(table["split"] == strictest) & (table["method"] == accuracy["method"])]
    at_half = metrics.metrics_table(part, keys=["sensitivity", "specificity"]).iloc[0]
    return lesson.findings_text(
        [
            f"Under the strictest split here, `{strictest}`: accuracy "
            f"{bootstrap.interval_text(accuracy)} on {accuracy['cases']} cases. Always predicting the larger "
            f"class: {metrics.larger_class(part).item():.3f}."
            + lesson.guess_text(lesson.read_guess(run, guess), accuracy["value"]),
            f"AUC {bootstrap.interval_text(auc)}: in this share of pairs of a malignant and a benign image, "
            "the malignant one gets the higher probability.",
            f"At threshold 0.5 it recognises {100 * at_half['sensitivity']:.0f} % of the malignant images "
            f"and {100 * at_half['specificity']:.0f} % of the benign ones.",
        ]
    )


def check_exercise(table: pd.DataFrame, answer: float | None) -> str:
    """Check the exercise of 05_evaluate: by which factor accuracy's interval over cases is the wider one.

    Asked of the last method and split of the table.
    """
    row = bootstrap.interval_table(table, ["accuracy"]).iloc[-1]
    by_image = row["high_by_image"] - row["low_by_image"]  # 0 if all is right, or all wrong
    truth = (row["high"] - row["low"]) / by_image if by_image else float("nan")
    return lesson.check_answer(
        answer,
        truth,
        tolerance=0.1 * truth,
        lesson="Whoever takes the images of one patient for independent reports an interval that is too "
        "narrow by this factor.",
    )
