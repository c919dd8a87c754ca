"""The flow diagram: what its boxes say, and that they fit."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.patches import Rectangle

from bcdlib.data.flow import COLUMNS
from bcdlib.plots.flow_diagram import MOST_SPLITS, draw_flow


def row(step, *counts, split="", fold="", reason="", shared=None):
    return dict(zip(COLUMNS, [split, fold, step, reason, *counts, shared]))


def flow(splits=1, folds=1):
    rows = [row("found", 8012, *[None] * 6), row("left out", 100, *[None] * 6, reason="second copy")]
    rows.append(row("left out", 3, *[None] * 6, reason="its folder contradicts its name " * 2))
    rows.append(row("used", 7909, 82, 70, 2480, 5429, 21, 49))
    for number in range(splits):
        for fold in range(folds):
            names = {"split": f"case-{number}" if number else "case", "fold": fold}
            rows.append(row("outside the split", 1, 1, 1, 1, 0, 1, 0, **names))
            rows.append(row("train", 4268, 47, 42, 981, 3287, 13, 29, **names))
            rows.append(row("validation", 2098, 20, 14, 1132, 966, 4, 10, **names))
            rows.append(row("test", 1543, 15, 14, 367, 1176, 4, 10, shared=3, **names))
    return pd.DataFrame(rows)


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def test_every_box_says_its_numbers():
    shown = texts(draw_flow(flow(folds=5)))
    assert shown[0] == "Found: 8012 files" and shown[1].startswith("Left out: 103\n100: second copy\n3: its")
    assert (
        shown[2]
        == "Used\n7909 images (2480 benign, 5429 malignant)\n82 slides\n70 cases (21 benign, 49 malignant)"
    )
    assert (
        shown[3] == "Split case, fold 0 (first of 5 tested)" and "Not in this split\n1 image (1" in shown[4]
    )
    assert shown[5].split("\n") == [
        "train",
        "4268 images",
        "(981 benign,",
        "3287 malignant)",
        "47 slides",
        "42 cases",
        "(13 benign,",
        "29 malignant)",
    ]
    assert shown[7].endswith("(3 cases also\nin training)") and len(shown) == 8


@pytest.mark.parametrize("splits", [1, 3])
def test_texts_stay_in_their_boxes(splits):
    figure = draw_flow(flow(splits))
    (axis,) = figure.axes
    figure.draw_without_rendering()
    boxes = [patch.get_window_extent() for patch in axis.patches if isinstance(patch, Rectangle)]
    for text in (text for text in axis.texts if text.get_text() and text.get_weight() != "bold"):
        place = text.get_window_extent()
        around = [box for box in boxes if box.x0 <= place.x0 and place.x1 <= box.x1]
        assert any(box.y0 <= place.y0 and place.y1 <= box.y1 for box in around), text.get_text()
    for one, other in ((a, b) for a in boxes for b in boxes if a is not b):
        assert not one.overlaps(other)


def test_many_splits_stay_a_picture():
    figure = draw_flow(flow(20))
    assert figure.get_figheight() * 200 < 16_383  # what WebP can hold, at twice the pixels
    assert sum(text.startswith("Split ") for text in texts(figure)) == MOST_SPLITS
    assert not plt.get_fignums()


def test_made_elsewhere():
    table = pd.DataFrame([row("test", 3, 2, 2, 2, 1, 1, 1, split="mine", fold=0)])
    figure = draw_flow(table)
    shown = texts(figure)
    assert len(figure.axes[0].texts) == 4  # an arrow, to the test part
    assert shown[0].startswith("Made elsewhere") and shown[1] == "Split mine, fold 0"
    assert shown[2].startswith("test\n3 images")
