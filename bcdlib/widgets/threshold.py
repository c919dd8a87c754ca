"""Move the decision threshold and see what it costs."""

import ipywidgets as widgets
import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from bcdlib.evaluation import metrics
from bcdlib.plots import panel, style
from bcdlib.runs.folder import Run

RATES = ("sensitivity", "specificity", "accuracy")


def at_threshold(table: pd.DataFrame, threshold: float) -> dict:
    """Count the predictions of each class from this probability on.

    Parameters
    ----------
    table : DataFrame
        Rows of a predictions table: filename, label, probability, case.
    threshold : float

    Returns
    -------
    dict
        predictions (rows of the table: with several seeds, an image has several), images, cases,
        true_negative, false_positive, false_negative, true_positive (int; of the predictions), sensitivity,
        specificity, accuracy (float, 0..1; NaN where a class is missing)
    """
    counts = confusion_matrix(table["label"], table["probability"] >= threshold, labels=[0, 1])
    found = metrics.compute_metrics(table["label"], table["probability"], threshold)
    return {
        "predictions": len(table),
        "images": table["filename"].nunique(),
        "cases": table["case"].nunique(),
        **dict(
            zip(
                ("true_negative", "false_positive", "false_negative", "true_positive"),
                counts.ravel().tolist(),
                strict=True,
            )
        ),
        **{name: found[name] for name in RATES},
    }


def threshold_rates(table: pd.DataFrame, thresholds) -> pd.DataFrame:
    """Compute sensitivity and specificity at each of many thresholds.

    Parameters
    ----------
    table : DataFrame
        Rows of a predictions table: label, probability.
    thresholds : array (T,)

    Returns
    -------
    DataFrame
        T rows: threshold, sensitivity, specificity (NaN where a class is missing).

    Examples
    --------
    >>> table = pd.DataFrame({"label": [0, 0, 1, 1], "probability": [0.1, 0.6, 0.4, 0.9]})
    >>> threshold_rates(table, [0.5, 0.7]).iloc[:, 1:].to_numpy().tolist()
    [[0.5, 0.5], [0.5, 1.0]]
    """
    below = []  # the share of each class whose probability is under each threshold
    for label in (0, 1):
        probability = np.sort(table.loc[table["label"] == label, "probability"].to_numpy())
        under = np.searchsorted(probability, thresholds)
        below.append(under / (len(probability) or np.nan))
    return pd.DataFrame({"threshold": thresholds, "sensitivity": 1 - below[1], "specificity": below[0]})


def move_threshold(run: Run, table: pd.DataFrame) -> panel.Panel:
    """Move the threshold: confusion matrix, sensitivity and specificity of one method and split.

    The figure (``figures/threshold``): both rates against the threshold, with 0.5 and the locked one marked.

    Parameters
    ----------
    run : Run
    table : DataFrame
        Predictions, as from ``evaluate.load_predictions``.
    """
    return panel.Panel(run.figure("threshold", threshold_figure(table)), lambda: ThresholdSlider(table).box)


def threshold_figure(table: pd.DataFrame):
    """Draw `rates_figure` of each method and split of a table, up to eight; the widget has all."""
    groups = list(_groups(table).items())[:8]
    rows = -(-len(groups) // 2)
    figure, axes = style.make_figure(rows, min(2, len(groups)), height=3.6 * rows, squeeze=False, sharey=True)
    for axis in axes.flat[len(groups) :]:
        axis.remove()
    for axis, (name, part) in zip(axes.flat, groups):
        rates_figure(part, name, axis)
    return figure


def rates_figure(table: pd.DataFrame, title: str, ax=None):
    """Draw sensitivity and specificity against the threshold.

    Parameters
    ----------
    table : DataFrame
        Predictions of one method and split.
    title : str
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Figure
    """
    figure, ax = style.make_figure(width=5.2, height=3.6) if ax is None else (ax.figure, ax)
    curve = threshold_rates(table, np.linspace(0, 1, 501))
    for rate, kind, dashes in (("sensitivity", "malignant", "-"), ("specificity", "benign", "--")):
        ax.plot(
            curve["threshold"],
            curve[rate],
            dashes,
            color=style.COLOURS[kind],
            label=f"{rate} ({kind} found)",
        )
    ax.axvline(metrics.THRESHOLD, color="black", lw=1, ls=":", label="threshold 0.5")
    for place, value in enumerate(_locked(table)):
        ax.axvline(
            value,
            color=style.MEASURED,
            lw=1.4,
            ls="-.",
            label=None if place else f"locked on validation, {value:.3f}",
        )
    ax.set(xlim=(0, 1), ylim=(0, 1.02))
    ax.set_xlabel("threshold (probability from which on malignant is predicted)", fontsize=8)
    ax.set_ylabel("rate", fontsize=9)
    ax.set_title(
        f"{title}\n{table['filename'].nunique()} images, {table['case'].nunique()} cases", fontsize=9
    )
    ax.legend(fontsize=7, framealpha=0.9)
    return figure


def _groups(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {
        f"{method}, split {split}": part
        for (method, split), part in table.groupby(["method", "split"], sort=False)
    }


def _locked(part: pd.DataFrame) -> list[float]:
    """Return the thresholds that validation set, one a trial; none where nothing was locked."""
    return sorted(set(part["threshold"]) - {metrics.THRESHOLD}) if "threshold" in part else []


class ThresholdSlider:
    """The widget of `move_threshold`; `box` is what is shown."""

    def __init__(self, table: pd.DataFrame):
        self.groups = _groups(table)
        self.group = panel.dropdown("predictions", list(self.groups), "380px")
        panel.show_widget(self.group, len(self.groups) > 1)
        self.slider = widgets.FloatSlider(
            description="threshold",
            max=1,
            value=metrics.THRESHOLD,
            step=0.005,
            readout_format=".3f",
            style={"description_width": "initial"},
            layout=widgets.Layout(width="420px", max_width="100%"),
        )
        self.numbers, self.image = widgets.HTML(), widgets.HTML()
        self.locked = panel.button("Locked", lambda: setattr(self.slider, "value", _locked(self.part)[0]))
        self.box = widgets.VBox(
            [
                self.group,
                panel.wrapping_row(
                    self.slider,
                    panel.button("0.5", lambda: setattr(self.slider, "value", metrics.THRESHOLD)),
                    self.locked,
                ),
                panel.wrapping_row(self.numbers, self.image),
            ]
        )
        self._choose()
        self.group.observe(lambda _: self._choose(), "value")
        self.slider.observe(lambda _: self._move(), "value")

    def _choose(self):
        self.part = self.groups[self.group.value]
        self.figure = rates_figure(self.part, self.group.value)
        self.line = self.figure.axes[0].axvline(0, color="black", lw=2)
        self.figure.canvas.draw()
        self.figure.set_layout_engine("none")  # laid out once: only the line moves
        # with several folds each has its own, and there is not the one
        self.locked.disabled = len(_locked(self.part)) != 1
        self._move()

    def _move(self):
        self.numbers.value = confusion_html(at_threshold(self.part, self.slider.value), self.slider.value)
        self.line.set_xdata([self.slider.value] * 2)
        self.image.value = panel.figure_html(
            self.figure, f"Sensitivity and specificity at each threshold, marked at {self.slider.value:.3f}"
        )


def confusion_html(found: dict, threshold: float) -> str:
    """Format `at_threshold` as an HTML table: rows true, columns predicted class."""
    row = (
        '<tr><th style="text-align:left;padding:4px 10px;color:{}">{}</th>'
        + 2 * '<td style="text-align:right;padding:4px 14px;border:1px solid #888;font-size:16px">{}</td>'
        + "</tr>"
    )
    rows = "".join(
        row.format(style.COLOURS[name], name, found[left], found[right])
        for name, left, right in (
            ("benign", "true_negative", "false_positive"),
            ("malignant", "false_negative", "true_positive"),
        )
    )
    rates = "".join(
        f"<br>{name} <b>{'not defined' if np.isnan(found[name]) else format(found[name], '.3f')}</b>"
        for name in RATES
    )
    more = f"{found['predictions']} predictions on " if found["predictions"] > found["images"] else ""
    return (
        '<table style="border-collapse:collapse"><tr><td>true \\ predicted</td>'
        '<th style="padding:4px 10px">benign</th><th style="padding:4px 10px">malignant</th></tr>'
        f'{rows}</table><div style="line-height:1.5">{more}{found["images"]} images, {found["cases"]} cases, '
        f"at threshold {threshold:.3f}{rates}</div>"
    )
