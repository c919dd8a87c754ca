"""What the leak line says of predictions that were made elsewhere."""

import pandas as pd

from bcdlib import evaluate
from bcdlib.data import published_splits
from bcdlib.data.breakhis import class_labels, known_images
from bcdlib.evaluation import metrics
from bcdlib.runs.folder import open_run_folder


def predictions(*names, fold=None):
    """Rows of a predictions table: the test images of published splits, under names of one's own."""
    tables = []
    for name in names:
        test = published_splits.read_list(name).query("role == 'test'")
        test = test if fold is None else test[test["fold"] == fold]
        tables.append(test[["filename", "fold"]].assign(split=f"my <{name}>", method="mine", seed=0))
    images = known_images()
    images = images.assign(label=class_labels(images), probability=0.4)
    return pd.concat(tables).merge(images[metrics.COLUMNS[:7]], on="filename")


def test_predictions_on_a_published_split_are_recognised(tmp_path):
    run = open_run_folder(tmp_path)
    text = evaluate.leak_lines(run, predictions("eva-2025-02", "breakhis-case-40x"))
    assert text.startswith("These predictions were made elsewhere")
    assert "- split `my &lt;eva-2025-02&gt;`: these are the test images of the list `eva-2025-02` (" in text
    assert "183 of 602 test images are of a case that is also in training" in text
    assert "the list `breakhis-case-40x` (bcdlib, version 1; 0 of " in text
    for rows in (predictions("breakhis-case-5fold"), predictions("breakhis-case-5fold", fold=2)):
        assert "the list `breakhis-case-5fold` (bcdlib, version 1; 0 of 7909" in evaluate.leak_lines(
            run, rows
        )
    alone = evaluate.leak_lines(run, predictions("eva-2025-02")[:-1])
    assert "the list" not in alone and alone.endswith("filename and role.")
