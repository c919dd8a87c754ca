"""The threshold's figure and slider, against scikit-learn."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix, recall_score

from bcdlib.plots import style
from bcdlib.widgets.threshold import (
    ThresholdSlider,
    at_threshold,
    confusion_html,
    move_threshold,
    rates_figure,
    threshold_rates,
)


@pytest.fixture
def table():
    """Predictions of two splits, with ties and with exactly 0 and 1; threshold locked for one."""
    random = np.random.default_rng(1)
    parts = []
    for split, n in (("image", 60), ("case", 80)):
        probability = np.r_[0, 1, 0.5, 0.5, random.random(n - 4).round(2)]
        parts.append(
            pd.DataFrame(
                {
                    "filename": [f"{k}.png" for k in range(n)],
                    "case": [f"c{k % 9}" for k in range(n)],
                    "slide": "s",
                    "magnification": 40,
                    "subtype": "A",
                    "label": random.integers(0, 2, n),
                    "probability": probability,
                    "fold": 0,
                    "method": "net",
                    "split": split,
                    "seed": 0,
                    "threshold": 0.5 if split == "image" else 0.31,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("threshold", [0, 0.31, 0.5, 0.505, 1])
def test_slider_numbers_are_scikit_learns(table, threshold):
    part = table[table["split"] == "case"]
    predicted = (part["probability"] >= threshold).astype(int)
    found = at_threshold(part, threshold)
    matrix = [found[name] for name in ("true_negative", "false_positive", "false_negative", "true_positive")]
    assert matrix == confusion_matrix(part["label"], predicted, labels=[0, 1]).ravel().tolist()
    assert found["sensitivity"] == pytest.approx(recall_score(part["label"], predicted, zero_division=0))
    assert found["specificity"] == pytest.approx(
        recall_score(part["label"], predicted, pos_label=0, zero_division=0)
    )
    curve = threshold_rates(part, [threshold]).iloc[0]
    assert [curve["sensitivity"], curve["specificity"]] == pytest.approx(
        [found["sensitivity"], found["specificity"]]
    )
    assert (found["images"], found["cases"]) == (80, 9)


def test_one_class_only_has_no_other_rate(table):
    part = table[table["label"] == 1]
    assert np.isnan(threshold_rates(part, [0.5])["specificity"]).all()
    assert "specificity <b>not defined" in confusion_html(at_threshold(part, 0.5), 0.5)


def test_threshold_slider(table):
    slider = ThresholdSlider(table)
    before, image = slider.numbers.value, slider.image.value
    slider.slider.value = 0.9
    assert (
        slider.numbers.value != before
        and slider.image.value != image
        and "marked at 0.900" in slider.image.value
        and "at threshold 0.900" in slider.numbers.value
    )
    assert slider.locked.disabled  # nothing was locked for this split
    slider.group.value = "net, split case"
    slider.locked.click()
    assert slider.slider.value == pytest.approx(0.31) and "80 images, 9 cases" in slider.numbers.value


def test_threshold_figure_marks_both_thresholds(table, run):
    shown = move_threshold(run, table).figure
    texts = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in shown.axes]
    assert "locked on validation, 0.310" in texts[1] and len(texts[0]) == 3 and "threshold 0.5" in texts[0]
    assert [axis.lines[0].get_color() for axis in shown.axes] == [style.COLOURS["malignant"]] * 2
    assert (run.folder / "figures" / "threshold.svg").is_file()
    assert plt.get_fignums() == []


def test_rates_are_drawn_into_given_axes(table):
    figure, axes = plt.subplots(1, 2)
    assert rates_figure(table, "both", axes[1]) is figure
    assert not axes[0].lines and axes[1].get_title().startswith("both\n80 images")
    assert plt.get_fignums() == [figure.number]  # whose figure it is closes it
    plt.close(figure)
