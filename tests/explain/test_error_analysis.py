"""The worst errors of a predictions table, and their figure."""

from bcdlib import evaluate
from bcdlib.data.breakhis import CLASSES
from bcdlib.runs.folder import open_run_folder


def test_worst_errors_come_first(table):
    worst = evaluate.worst_errors(table, n=5)
    wrong = table[(table["probability"] >= 0.5).astype(int) != table["label"]]
    distance = (wrong["probability"] - wrong["label"]).abs()
    assert worst["off_by"].is_monotonic_decreasing and worst["off_by"].iloc[0] == distance.max()
    assert worst["filename"].is_unique and len(worst) == min(5, wrong["filename"].nunique())
    by = evaluate.worst_errors(table, "magnification", 2)
    assert by["magnification"].is_monotonic_increasing and by.groupby("magnification").size().max() <= 2
    correct = table.assign(probability=table["label"].astype(float))
    assert evaluate.worst_errors(correct).empty


def test_maps_figure(run, table, texts):
    worst = evaluate.worst_errors(table, n=5)
    figure = evaluate.error_figure(run, worst)
    drawn = [axis for axis in figure.axes if len(axis.images) == 2]  # an image with a map over it
    assert len(drawn) == len(worst)
    cam = drawn[0].images[1].get_array()
    assert cam.shape == (32, 48) and cam.min() >= 0 and cam.max() == 1
    first = worst.iloc[0]
    assert f"true class {CLASSES[first['label']]}" in texts(figure)
    assert f"predicted {CLASSES[1 - first['label']]} ({first['probability']:.2f})" in texts(figure)
    assert worst["case"].iloc[0] in texts(figure)


def test_figures_that_say_why_they_are_empty(run, table, tmp_path, texts):
    assert "no wrong prediction" in texts(evaluate.error_figure(run, table[:0]))
    elsewhere = open_run_folder(tmp_path)
    assert "not in this run" in texts(evaluate.error_figure(elsewhere, table))
    other = table.assign(probability=0.123)  # the same four names, but not what this model said
    assert "No saved model" in texts(evaluate.error_figure(run, other))
    answer = evaluate.explain_own_image(elsewhere, table)
    assert answer.label == "" and "no saved model" in texts(answer.figure) and answer.nearest.empty
