"""Move the decision threshold and see what it costs."""

import ipywidgets as widgets
import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from bcdlib.evaluation import metrics
from bcdlib.plots import panel, style
from bcdlib.runs.folder import Run

PANELS = 8  # methods and splits in the static picture of the threshold; the slider has all


def at_threshold(table: pd.DataFrame, threshold: float) -> dict:
    """What is called what from this probability on.

    Parameters
    ----------
    table : rows of a predictions table with the columns filename, label, probability, case

    Returns
    -------
    dict: predictions (rows of the table: with several seeds, an image has several), images, cases, true_negative,
    false_positive, false_negative, true_positive (int; of the predictions), sensitivity, specificity, accuracy
    (float, 0..1; NaN where a class is missing)
    """
    label, called = table["label"], (table["probability"] >= threshold).astype(int)
    names = ("true_negative", "false_positive", "false_negative", "true_positive")
    matrix = zip(names, confusion_matrix(label, called, labels=[0, 1]).ravel().tolist(), strict=True)
    figures = metrics.compute_metrics(label, table["probability"], threshold)
    return {
        "predictions": len(table),
        "images": table["filename"].nunique(),
        "cases": table["case"].nunique(),
        **dict(matrix),
    } | {name: figures[name] for name in ("sensitivity", "specificity", "accuracy")}


def threshold_rates(table: pd.DataFrame, thresholds) -> pd.DataFrame:
    """Sensitivity and specificity at each of many thresholds: columns threshold, sensitivity, specificity (NaN as above)."""
    thresholds = np.asarray(thresholds, dtype=float)
    scores = {label: np.sort(table.loc[table["label"] == label, "probability"]) for label in (0, 1)}
    below = {
        label: np.searchsorted(values, thresholds) / len(values)
        if len(values)
        else np.full(len(thresholds), np.nan)
        for label, values in scores.items()
    }
    return pd.DataFrame({"threshold": thresholds, "sensitivity": 1 - below[1], "specificity": below[0]})


def move_threshold(run: Run, table: pd.DataFrame) -> panel.Panel:
    """Move the threshold: confusion matrix, sensitivity and specificity of one method and split.

    The static picture (``figures/threshold``): both rates against the threshold, 0.5 and the locked one marked.

    Parameters
    ----------
    table : predictions, as from ``evaluate.load_predictions``
    """
    figure = run.figure("threshold", threshold_figure(table))
    return panel.Panel(figure, lambda: ThresholdSlider(table).box)


def threshold_figure(table: pd.DataFrame):
    """Sensitivity and specificity against the threshold, a panel a method and split (the first `PANELS` of them)."""
    groups = dict(list(_groups(table).items())[:PANELS])
    rows = -(-len(groups) // 2)
    figure, axes = style.make_figure(
        rows, min(2, len(groups)), width=8, height=3.6 * rows, squeeze=False, sharey=True
    )
    for axis in axes.flat[len(groups) :]:
        axis.remove()
    for axis, (name, part) in zip(axes.flat, groups.items(), strict=False):
        _draw_rates(axis, name, part)
    return style.finish_figure(figure)


def _draw_rates(axis, name: str, part: pd.DataFrame) -> None:
    curve = threshold_rates(part, np.linspace(0, 1, 501))
    for rate, kind, dashes in (("sensitivity", "malignant", "-"), ("specificity", "benign", "--")):
        axis.plot(
            curve["threshold"], curve[rate], dashes, color=style.COLOURS[kind], label=f"{rate} ({kind} found)"
        )
    axis.axvline(metrics.THRESHOLD, color="black", lw=1, ls=":", label="threshold 0.5")
    for place, value in enumerate(_locked(part)):
        axis.axvline(
            value,
            color=style.MEASURED,
            lw=1.4,
            ls="-.",
            label=None if place else f"locked on validation, {value:.3f}",
        )
    axis.set(
        xlabel="threshold (probability from which on it is called malignant)", ylim=(0, 1.02), xlim=(0, 1)
    )
    axis.xaxis.label.set_size(8)
    axis.set_ylabel("rate", fontsize=9)
    axis.set_title(f"{name}\n{part['filename'].nunique()} images, {part['case'].nunique()} cases", fontsize=9)
    axis.legend(fontsize=7, framealpha=0.9)


def _groups(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    grouped = table.groupby(["method", "split"], sort=False)
    return {f"{method}, split {split}": part for (method, split), part in grouped}


def _locked(part: pd.DataFrame) -> list[float]:
    """The thresholds that validation set, one a trial; none where nothing was locked."""
    return sorted(set(part["threshold"]) - {metrics.THRESHOLD}) if "threshold" in part else []


class ThresholdSlider:
    """The widget of `threshold`; `box` is what is shown."""

    def __init__(self, table: pd.DataFrame):
        self.groups = _groups(table)
        self.group = panel.dropdown("predictions", list(self.groups), "380px")
        self.slider = widgets.FloatSlider(
            description="threshold",
            min=0,
            max=1,
            step=0.005,
            value=metrics.THRESHOLD,
            readout_format=".3f",
            style={"description_width": "initial"},
            layout=widgets.Layout(width="420px", max_width="100%"),
        )
        self.numbers = widgets.HTML()
        self.picture = panel.image_widget("520px")
        half = panel.button("0.5", lambda _: setattr(self.slider, "value", metrics.THRESHOLD))
        self.locked = panel.button(
            "Locked", lambda _: setattr(self.slider, "value", _locked(self._part())[0])
        )
        wrap = widgets.Layout(flex_flow="row wrap", align_items="center")
        panel.show_widget(self.group, len(self.groups) > 1)
        self.box = widgets.VBox(
            [
                self.group,
                widgets.Box([self.slider, half, self.locked], layout=wrap),
                widgets.Box([self.numbers, self.picture], layout=wrap),
            ]
        )
        self._choose()
        self.group.observe(lambda _: self._choose(), "value")
        self.slider.observe(lambda _: self._move(), "value")

    def _part(self) -> pd.DataFrame:
        return self.groups[self.group.value]

    def _choose(self):
        figure, axis = style.make_figure(width=5.2, height=3.6)
        _draw_rates(axis, self.group.value, self._part())
        self.line = axis.axvline(0, color="black", lw=2)
        self.figure = style.finish_figure(figure)
        self.figure.canvas.draw()
        self.figure.set_layout_engine("none")  # laid out once: only the line moves
        self.locked.disabled = (
            len(_locked(self._part())) != 1
        )  # each fold has its own: then there is not the one
        self._move()

    def _move(self):
        self.numbers.value = confusion_html(at_threshold(self._part(), self.slider.value), self.slider.value)
        self.line.set_xdata([self.slider.value] * 2)
        self.picture.value = panel.figure_image(self.figure)


def confusion_html(found: dict, threshold: float) -> str:
    """`at_threshold` as an HTML table: rows true, columns called."""
    cells = [
        ("benign", found["true_negative"], found["false_positive"]),
        ("malignant", found["false_negative"], found["true_positive"]),
    ]
    rows = "".join(
        f'<tr><th style="text-align:left;padding:4px 10px;color:{style.COLOURS[name]}">{name}</th>'
        + "".join(
            f'<td style="text-align:right;padding:4px 14px;border:1px solid #888;font-size:16px">{count}</td>'
            for count in counts
        )
        + "</tr>"
        for name, *counts in cells
    )
    figures = "".join(
        f"<br>{name} <b>{'not defined' if np.isnan(found[name]) else format(found[name], '.3f')}</b>"
        for name in ("sensitivity", "specificity", "accuracy")
    )
    more = f"{found['predictions']} predictions on " if found["predictions"] > found["images"] else ""
    return (
        f'<table style="border-collapse:collapse"><tr><td>true \\ called</td><th style="padding:4px 10px">benign</th>'
        f'<th style="padding:4px 10px">malignant</th></tr>{rows}</table>'
        f'<div style="line-height:1.5">{more}{found["images"]} images, {found["cases"]} cases, '
        f"called at {threshold:.3f}{figures}</div>"
    )
