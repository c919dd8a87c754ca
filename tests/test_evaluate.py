"""What the leak line says of predictions that were made elsewhere."""

import pandas as pd
import pytest

from bcdlib import evaluate
from bcdlib.data import published_splits
from bcdlib.data.breakhis import class_labels, known_images
from bcdlib.errors import InputError
from bcdlib.evaluation import metrics
from bcdlib.runs import files
from bcdlib.runs.folder import open_run_folder
from bcdlib.suite.run import evaluation_parameters


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
    assert "- split `my <eva-2025-02>`: these are the test images of the list `eva-2025-02` (" in text
    assert "183 of 602 test images are of a case that is also in training" in text
    assert "the list `breakhis-case-40x` (bcdlib, version 1; 0 of " in text
    for rows in (predictions("breakhis-case-5fold"), predictions("breakhis-case-5fold", fold=2)):
        assert "the list `breakhis-case-5fold` (bcdlib, version 1; 0 of 7909" in evaluate.leak_lines(
            run, rows
        )
    alone = evaluate.leak_lines(run, predictions("eva-2025-02")[:-1])
    assert "the list" not in alone and alone.endswith("filename and role.")


def many(n):
    """Rows of n slides of one image each, the first 400 wrong."""
    numbers = pd.Series(range(n)).astype(str)
    table = pd.DataFrame({"filename": numbers + ".png", "slide": "s" + numbers, "case": "c" + numbers})
    table = table.assign(magnification=40, subtype="t" + numbers, label=[number % 2 for number in range(n)])
    table = table.assign(probability=table["label"] * 0.8 + 0.1, fold=0, method="m", split="s", seed=0)
    table.loc[:399, "probability"] = 1 - table.loc[:399, "probability"]
    return table


@pytest.mark.parametrize("written_by_us", [False, True])
def test_the_copy_in_a_run_is_not_read_anew(written_by_us, tmp_path, monkeypatch):
    """A table that we wrote ourselves has the same content as its copy."""
    run, table = open_run_folder(tmp_path / "run"), predictions("eva-2025-02").reset_index(drop=True)
    source = tmp_path / "mine.csv"
    table.to_csv(source, index=False, quoting=0 if written_by_us else 1)
    if written_by_us:
        files.write_csv(source, metrics.read_predictions(source))
    with files.read_once():
        read = metrics.read_predictions(source)
        evaluate.load_predictions(run, None, str(source))
        assert (run.folder / "predictions.csv").read_bytes() == source.read_bytes() or not written_by_us
        monkeypatch.setattr(files, "read_user_csv", None)
        pd.testing.assert_frame_equal(metrics.read_predictions(run.folder / "predictions.csv"), read)


def test_tables_by_group_are_bounded(monkeypatch):
    """A million slides or words for subtypes would take hours: the worst slides, the largest groups."""
    monkeypatch.setattr(evaluate, "MOST_SLIDES", 400)
    monkeypatch.setattr(evaluate, "MOST_GROUPS", 3)
    table = many(2000)
    found = evaluate.metrics_by(table, "slide")
    assert len(found) == 400 and (found["accuracy"] == 0).all()
    table.loc[:1999, "subtype"] = [
        f"t{min(number // 500, 5)}" if number < 1900 else str(number) for number in range(2000)
    ]
    assert set(evaluate.metrics_by(table, "subtype")["subtype"]) == {"t0", "t1", "t2"}


def test_methods_that_are_names_of_files_are_refused(tmp_path):
    many(100).assign(method=lambda table: table["filename"]).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(
        InputError, match="p.csv: has 100 pairs of method and split, first 0.png, s; at most 60"
    ):
        evaluation_parameters(tmp_path / "p.csv", rule="youden", sensitivity=0.9, calibration="none")


def test_no_factor_where_all_is_right():
    table = many(40).assign(probability=lambda table: 0.1 + 0.8 * table["label"])
    table["case"] = "c" + (table.index // 4).astype(str)
    assert evaluate.check_exercise(table, 3.0) == "This run has no answer to that."
    table.loc[:3, "probability"] = 1 - table.loc[:3, "probability"]
    assert "too low" in evaluate.check_exercise(table, 0.1)
