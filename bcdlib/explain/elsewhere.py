"""A saved model on images from elsewhere, another laboratory's for example, beside its internal figures."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bcdlib.data import breakhis
from bcdlib.errors import InputError
from bcdlib.evaluation import bootstrap, metrics, thresholds
from bcdlib.explain import models, ood, prediction
from bcdlib.plots import style
from bcdlib.runs.files import TEXTS, read_table
from bcdlib.runs.folder import CROSS_VALIDATION, Run
from bcdlib.runs.names import in_markdown
from bcdlib.runs.places import name_only

_METRICS = ("auc", "case_auc", "balanced_accuracy", "sensitivity", "specificity", "accuracy")
_TYPES = TEXTS | {"probability": float, "label": int}
HOW = (
    "Nothing was asked: set `external` to a folder or archive of images from elsewhere, and "
    "`external_labels` to a CSV with the columns `path`, `label` and `group`."
)


@dataclass(frozen=True)
class Elsewhere:
    """How a saved model does on images from elsewhere.

    Attributes
    ----------
    line : str
        What was asked and found, as Markdown; or how to ask.
    predictions : DataFrame or None
        As from `prediction.predict_labelled`; None if nothing was asked.
    table : DataFrame or None
        Metrics inside and elsewhere, with intervals and their difference; see `elsewhere_table`.
    figure : matplotlib Figure or None
    """

    line: str
    predictions: pd.DataFrame | None = None
    table: pd.DataFrame | None = None
    figure: object = None

    def show_table(self, run: Run):
        """Write and show the table as `Run.table` does; None if nothing was asked."""
        return None if self.table is None else run.table("elsewhere", self.table)

    def show_figure(self, run: Run):
        """Write and show the figure as `Run.figure` does; None if nothing was asked."""
        return None if self.figure is None else run.figure("elsewhere", self.figure)


def ask_elsewhere(run: Run, external: str = "", external_labels: str = "") -> Elsewhere:
    """Ask the run's final model, or that of the strictest protocol, about labelled images from elsewhere.

    Threshold and calibration are those that were locked with the model: nothing is fitted. The predictions
    go into ``external.csv`` of the run.

    Parameters
    ----------
    run : Run
    external : str
        Folder or archive. Empty: nothing is asked.
    external_labels : str
        CSV that labels its images; see `custom.read_manifest`.

    Raises
    ------
    InputError
        If only one of the two is named, they cannot be used, or the run has no saved model.

    Examples
    --------
    >>> ask_elsewhere(Run(Path("run"))).line.partition(":")[0]
    'Nothing was asked'
    """
    if not external and not external_labels:
        return Elsewhere(HOW)
    if not external or not external_labels:
        raise InputError(f"{external or external_labels}: name both, external and external_labels")
    saved = models.saved_models(run)
    if not saved:
        raise InputError(f"{run.folder}: has no saved model; run 04_train with keep_model = True first")
    name, model_file = next(iter(saved.items()))
    found = prediction.predict_labelled(
        model_file, Path(external).expanduser(), Path(external_labels).expanduser(), progress=True
    )
    run.write_csv("external.csv", found)
    internal, table = internal_predictions(model_file), elsewhere_table(found, model_file)
    line = elsewhere_text(found, model_file=model_file, table=table, place=name_only(external))
    return Elsewhere(f"Model: {in_markdown(name)}. {line}", found, table, _figure(found, internal, table))


def internal_predictions(model_file) -> pd.DataFrame | None:
    """Return the predictions that a model's internal figures rest on, with threshold and calibrated.

    Of a final model those of its cross-validation, each fold at its own threshold; of another one its test
    part, at its locked threshold. None if they do not lie beside the model.
    """
    folder, lock = Path(model_file).parent, models.saved_lock(model_file)
    if (folder / CROSS_VALIDATION).is_file():
        return read_table(folder / CROSS_VALIDATION, metrics.COLUMNS, dtype=_TYPES)
    if not models.trial_record(model_file) or not (folder / "predictions.csv").is_file():
        return None
    table = read_table(folder / "predictions.csv", metrics.COLUMNS, dtype=_TYPES)
    lock = lock or {"threshold": metrics.THRESHOLD, "slope": 1.0, "intercept": 0.0}
    return table.assign(
        threshold=lock["threshold"],
        calibrated=thresholds.calibrate(table["probability"], lock["slope"], lock["intercept"]),
    )


def elsewhere_table(found: pd.DataFrame, model_file) -> pd.DataFrame:
    """Compute metrics elsewhere, beside the internal ones, with 95 % intervals by case and group.

    Parameters
    ----------
    found : DataFrame
        As from `prediction.predict_labelled`.
    model_file : path-like
        What lies beside it says the internal ones; see `internal_predictions`.

    Returns
    -------
    DataFrame
        metric (at the locked threshold; the Brier score is that of the calibrated probability); value and
        interval inside, elsewhere, and of their difference (elsewhere minus inside; the two share no case,
        see `bootstrap.difference_limits`). Where the internal ones are not known those columns are left out.
    """
    there, internal = _measure(found), internal_predictions(model_file)
    table = pd.DataFrame({"metric": [metrics.METRICS[key].label for key in there.index]})
    if internal is None:
        return table.assign(**_columns(there, "elsewhere", "95 % by group"))
    here = _measure(internal)
    limits = [bootstrap.difference_limits(there.loc[key], here.loc[key]) for key in there.index]
    gap = pd.DataFrame(limits, there.index, ["low", "high"]).assign(value=there["value"] - here["value"])
    return table.assign(
        **_columns(here, "inside", "95 % by case"),
        **_columns(there, "elsewhere", "95 % by group"),
        **_columns(gap, "difference", "95 % of the difference"),
    )


def _measure(table: pd.DataFrame) -> pd.DataFrame:
    """Compute the metrics of one method and split, a row each, indexed by their keys."""
    calibrated = table.assign(probability=table["calibrated"])
    parts = [
        bootstrap.interval_table(table, _METRICS, threshold="threshold", by_image=False),
        bootstrap.interval_table(calibrated, ["brier"], by_image=False),
    ]
    return pd.concat(parts).set_index("metric")


def _columns(found: pd.DataFrame, name: str, interval: str) -> dict:
    return {
        name: found["value"].to_numpy(),
        interval: list(map(bootstrap.range_text, found["low"], found["high"])),
    }


def elsewhere_text(found: pd.DataFrame, *, model_file, table: pd.DataFrame, place: str = "") -> str:
    """Say what was asked and what it means, as Markdown.

    Parameters
    ----------
    found : DataFrame
        As from `prediction.predict_labelled`.
    model_file : path-like
    table : DataFrame
        As from `elsewhere_table`.
    place : str
        What the images are called.
    """
    groups = found.drop_duplicates(["case", "label"])["label"].value_counts()
    of = f" of `{place}`" if place else ""
    lock = models.saved_lock(model_file)
    fixed = "0.5: none lies beside it" if lock is None else f"{lock['threshold']:.3f}"
    lines = [
        f"{len(found)} images{of}, {found['case'].nunique()} groups ("
        + ", ".join(f"{groups.get(side, 0)} {name}" for side, name in enumerate(breakhis.CLASSES))
        + f"). Threshold ({fixed}) and calibration are those locked with the model: nothing was fitted here.",
    ]
    auc = table.iloc[0]
    if "difference" in table and not np.isnan(auc["difference"]):
        lines.append(
            f"AUC **{auc['elsewhere']:.3f}** elsewhere ({auc['95 % by group']}), {auc['inside']:.3f} inside "
            f"({auc['95 % by case']}): a difference of {auc['difference']:+.3f} "
            f"({auc['95 % of the difference']})."
        )
    elif not np.isnan(auc["elsewhere"]):
        lines.append(f"AUC **{auc['elsewhere']:.3f}** ({auc['95 % by group']}).")
    if "warning" in found:
        flagged = found["warning"] != ""
        share = dict(zip(("value", "low", "high"), bootstrap.share_interval(found, flagged), strict=True))
        lines.append(
            f"Unlike the training images (out-of-distribution): {flagged.sum()} of {len(found)} images, "
            f"{bootstrap.interval_text(pd.Series(share))}; of unseen cases of its own laboratory it would be "
            f"about {1 - ood.PERCENTILE / 100:.3f}."
        )
    else:
        lines.append("The training images are not known here: what is unlike them cannot be said.")
    known = _known_images(Path(model_file).parent, found)
    if known:
        lines.append(f"**{known} of these images have names of images that it was trained on.**")
    return "\n\n".join([*lines, *map(in_markdown, found.attrs["notes"])])


def _known_images(folder: Path, found: pd.DataFrame) -> int:
    """Count images whose names, without folder and suffix, are those of training images, as far as known."""
    reference = ood.load_reference(folder)
    if reference is None:
        return 0
    names, known = (
        table["filename"].map(lambda path: Path(path).stem) for table in (found, reference.images)
    )
    return int(names.isin(known).sum())


def _figure(found: pd.DataFrame, internal: pd.DataFrame | None, table: pd.DataFrame):
    """Draw the metrics inside and elsewhere, and each case's mean probability on both sides."""
    sides = {"inside": internal, "elsewhere": found} if internal is not None else {"elsewhere": found}
    looks = {"inside": (style.PUBLISHED, "s"), "elsewhere": (style.MEASURED, "o")}
    figure, (left, right) = style.make_figure(1, 2, width=11, height=4)
    for offset, (name, rows) in enumerate(sides.items()):
        measured, (colour, marker) = _measure(rows), looks[name]
        left.errorbar(
            measured["value"],
            np.arange(len(measured)) + 0.25 * offset,
            xerr=bootstrap.error_bars(measured),
            fmt=marker,
            color=colour,
            capsize=3,
            label=f"{name}: {rows['filename'].nunique()} images, {rows['case'].nunique()} cases",
        )
    left.set_yticks(np.arange(len(table)) + 0.125 * (len(sides) - 1), table["metric"])
    left.invert_yaxis()
    left.set(xlim=(-0.02, 1.02), xlabel="at the locked threshold, 95 % interval over cases")
    left.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=2, fontsize=8, frameon=False)
    ticks, generator = [], np.random.default_rng(0)
    for name, rows in sides.items():
        for side, kind in enumerate(breakhis.CLASSES):
            shown = rows[rows["label"] == side].groupby("case")["probability"].mean()
            height = len(ticks) + generator.uniform(-0.25, 0.25, len(shown))
            right.scatter(shown, height, s=22, color=style.COLOURS[kind], alpha=0.7)
            ticks.append(f"{name},\n{kind}")
    right.axvline(
        found["threshold"].iloc[0], color="#222222", linestyle="--", label="the model's locked threshold"
    )
    right.set_yticks(range(len(ticks)), ticks)
    right.invert_yaxis()
    right.set(xlim=(-0.02, 1.02), xlabel="mean probability of malignant of a case (a dot each)")
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=8, frameon=False)
    return figure
