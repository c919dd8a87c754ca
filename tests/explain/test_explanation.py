"""What a saved model says about a picture: through the run that trained it, and from its file alone."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bcdlib import evaluate, methods, mount, preprocess, train
from bcdlib.data import splits
from bcdlib.data.breakhis import CLASSES, scan_breakhis
from bcdlib.errors import InputError
from bcdlib.explain import explanation, ood
from bcdlib.runs.folder import open_run_folder
from bcdlib.runs.profiles import get_profile

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = get_profile("demo", size=(48, 32), head_epochs=2, batch_size=8)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run on the tiny data set: a frozen base, trained under the paper's protocol and by case."""
    home = tmp_path_factory.mktemp("maps")
    run = open_run_folder(home / "run")
    mount.start_run(run, tiny)
    cache = preprocess.resize_images(
        run, TINY, mount.open_data(run), cache_root=home / "cache", progress=False
    )
    preprocess.write_splits(run, TINY, cache)
    train.train_trials(
        run,
        TINY,
        train.plan_trials(run, TINY, split_names=("magnification", "case"), trainable="head"),
        weights="none",
        verbose=0,
    )
    return run


@pytest.fixture(scope="module")
def table(run):
    return evaluate.load_predictions(run, evaluate.lock(run))


def folder_of(run, split):
    (found,) = [
        file.parent
        for file in (run.folder / "trials").glob("*/trial.json")
        if json.loads(file.read_text())["split"] == split
    ]
    return found


def texts(figure):
    return " ".join(text.get_text() for axis in figure.axes for text in [axis.title, *axis.texts])


def test_worst_mistakes_come_first(table):
    worst = evaluate.worst_errors(table, n=5)
    wrong = table[(table["probability"] >= 0.5).astype(int) != table["label"]]
    distance = (wrong["probability"] - wrong["label"]).abs()
    assert worst["distance"].is_monotonic_decreasing and worst["distance"].iloc[0] == distance.max()
    assert worst["filename"].is_unique and len(worst) == min(5, wrong["filename"].nunique())
    by = evaluate.worst_errors(table, "magnification", 2)
    assert by["magnification"].is_monotonic_increasing and by.groupby("magnification").size().max() <= 2
    right = table.assign(probability=table["label"].astype(float))
    assert evaluate.worst_errors(right).empty


def test_maps_figure(run, table):
    worst = evaluate.worst_errors(table, n=5)
    figure = evaluate.error_figure(run, worst)
    drawn = [axis for axis in figure.axes if len(axis.images) == 2]  # a picture with a map over it
    assert len(drawn) == len(worst)
    cam = drawn[0].images[1].get_array()
    assert cam.shape == (32, 48) and cam.min() >= 0 and cam.max() == 1
    assert (
        f"{worst['probability'].iloc[0]:.2f}" in texts(figure) and "is benign" in texts(figure) + "is benign"
    )
    assert worst["case"].iloc[0] in texts(figure)


def test_figures_that_say_why_they_are_empty(run, table, tmp_path):
    assert "no wrong call" in texts(evaluate.error_figure(run, table[:0]))
    elsewhere = open_run_folder(tmp_path)
    assert "not in this run" in texts(evaluate.error_figure(elsewhere, table))
    other = table.assign(probability=0.123)  # the same four names, but not what this model said
    assert "No saved model" in texts(evaluate.error_figure(run, other))
    answer = evaluate.explain_own_image(elsewhere, table)
    assert answer.label == "" and "no saved model" in texts(answer.figure) and answer.nearest.empty


def test_own_image_is_one_of_the_strictest_test_part(run, table):
    answer = evaluate.explain_own_image(run, table, seed=1)
    assert answer.label in CLASSES and 0 <= answer.probability <= 1
    test = table[table["split"] == "case"]
    assert np.isclose(test["probability"], answer.probability, atol=1e-4).any()
    row = test.iloc[np.abs(test["probability"] - answer.probability).argmin()]
    assert answer.calibrated == pytest.approx(row["calibrated"], abs=1e-3)
    split = pd.read_csv(run.folder / "splits" / "case.csv").query("fold == 0 and role == 'train'")
    assert (
        set(answer.nearest["filename"]) <= set(split["filename"])
        and answer.nearest["distance"].is_monotonic_increasing
    )
    assert (
        list(answer.nearest) == ["filename", "slide", "case", "class", "distance"]
        and len(answer.nearest) == 5
    )
    assert answer.label in answer.line and "not a medical device" in answer.line
    assert answer.nearest["slide"].iloc[0] in texts(answer.figure)


def test_explain_takes_a_path_or_bytes_and_knows_its_training_images(run, tiny):
    model = folder_of(run, "case") / "model.keras"
    training = (
        pd.read_csv(run.folder / "splits" / "case.csv")
        .query("fold == 0 and role == 'train'")["filename"]
        .iloc[3]
    )
    picture = next(Path(tiny).rglob(training))
    answer = evaluate.explain_image(model, picture, run)
    assert answer.warning == "" and answer.nearest["filename"].iloc[0] == training
    assert answer.nearest["distance"].iloc[0] == pytest.approx(0, abs=1e-3)
    again = evaluate.explain_image(model, picture.read_bytes())  # the run is found by the model's place
    assert (again.label, again.probability, again.calibrated) == (
        answer.label,
        answer.probability,
        answer.calibrated,
    )
    pd.testing.assert_frame_equal(again.nearest, answer.nearest)
    flat = io.BytesIO()
    Image.new("RGB", (70, 46), "grey").save(flat, "PNG")
    grey = evaluate.explain_image(model, flat.getvalue())
    assert grey.warning.startswith("Unlike the training images") and "Unlike" in texts(grey.figure).replace(
        "\n", " "
    )


def test_reference_files_need_no_pickle_and_damage_is_said(run, tmp_path):
    folder = folder_of(run, "case")
    explanation.trial_reference(folder / "model.keras", run)
    found = ood.load_reference(folder)
    stored = np.load(folder / "reference.npy", allow_pickle=False)
    counts = json.loads((folder / "trial.json").read_text())["images"]
    assert len(stored) == len(found.images) == counts["train"] and 0 < found.threshold < 2
    for name in ood.FILES:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    np.save(tmp_path / "reference.npy", stored[:3], allow_pickle=False)
    with pytest.raises(InputError, match="damaged"):
        ood.load_reference(tmp_path)
    assert ood.load_reference(tmp_path / "nowhere") is None


def test_a_model_alone(run, tmp_path):
    source = folder_of(run, "case") / "model.keras"
    (tmp_path / "model.keras").write_bytes(source.read_bytes())
    Image.new("RGB", (48, 32), "grey").save(tmp_path / "grey.png")
    answer = evaluate.explain_image(tmp_path / "model.keras", tmp_path / "grey.png")
    assert answer.calibrated is None and answer.warning == "" and answer.nearest.empty
    assert "cannot be said" in texts(answer.figure).replace("\n", " ")
    with pytest.raises(InputError, match=r"nowhere\.png"):
        evaluate.explain_image(tmp_path / "model.keras", tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="the picture: "):
        evaluate.explain_image(tmp_path / "model.keras", b"not a picture")
    with pytest.raises(InputError, match=r"no\.keras"):
        evaluate.explain_image(tmp_path / "no.keras", tmp_path / "grey.png")
    alone = evaluate.predict_files(tmp_path / "model.keras", [tmp_path / "grey.png"])
    assert list(alone) == ["file", "probability", "class", "reason"]


def test_predict_says_more_in_a_trials_folder(run, table, tiny, tmp_path):
    model = folder_of(run, "case") / "model.keras"
    explanation.trial_reference(model, run)  # 05_evaluate leaves it beside the model
    picture = next(Path(tiny).rglob("*.png"))
    Image.new("RGB", (48, 32), "grey").save(tmp_path / "grey.png")
    (tmp_path / "text.png").write_text("not a picture")
    command = [
        sys.executable,
        "-m",
        "bcdlib",
        "predict",
        model,
        picture,
        tmp_path / "text.png",
        tmp_path / "grey.png",
    ]
    done = subprocess.run(
        [*map(str, command), "--json"], cwd=ROOT, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    good, bad, grey = json.loads(done.stdout)
    assert 0 <= good["calibrated"] <= 1 and good["nearest"].startswith("SOB_")
    assert bad["calibrated"] is None and bad["nearest"] == bad["warning"] == "" and "decoded" in bad["reason"]
    assert grey["warning"].startswith("Unlike the training images")


def test_threshold_is_set_on_other_cases():
    rng = np.random.default_rng(0)
    points = np.abs(rng.normal(size=(40, 8))).astype("float32")
    points[::2] = points[1::2]  # each image twice, in the same case
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    images = pd.DataFrame({"filename": [str(k) for k in range(40)], "case": np.repeat(np.arange(10), 4)})
    alone = ood.build_reference(points, images)
    assert alone.threshold > 0.05 and "40 training images" in alone.set_on
    shared = ood.build_reference(
        points, images, points, validation_images=images
    )  # a protocol that leaks: the same cases in validation
    assert shared.threshold == alone.threshold
    far = ood.build_reference(points, images, -points[:4], validation_images=images[:4].assign(case=99))
    assert far.threshold > alone.threshold and "4 validation images" in far.set_on
    one = ood.build_reference(points, images.assign(case=1))
    assert one.warnings(-points[:2]) == ["", ""]


@pytest.mark.slow
def test_unseen_cases_are_familiar_and_other_pictures_are_not(breakhis, weights_dir, tmp_path):
    """The goal: of at least 150 tissue images of unseen cases at most 10 % flagged, of 50 other pictures at least 95 %."""
    pytest.importorskip("skimage")
    import nontissue

    from bcdlib.data import cache, sources

    source = sources.open_source(breakhis / "half")
    cache = cache.build_cache(source, scan_breakhis(source).images, (144, 96), root=tmp_path, progress=False)
    method = methods.get_method("resnet50")(trainable="head", weights=str(weights_dir), verbose=0)
    network = method.build(cache.pixels.shape[1:])
    others = nontissue.pictures((144, 96))
    assert len(others) == 50
    tissue, other = (
        ood.reference_points(network, cache.pixels),
        ood.reference_points(network, np.stack(list(others.values()))),
    )
    split = splits.make_split(cache.images, "case", folds=3)
    for fold in range(3):
        role = (
            splits.fold_of(split, fold).set_index("filename")["role"].loc[cache.images["filename"]].to_numpy()
        )
        parts = {name: (tissue[role == name], cache.images[role == name]) for name in splits.ROLES}
        assert not set(parts["test"][1]["case"]) & {
            *parts["train"][1]["case"],
            *parts["validation"][1]["case"],
        }
        reference = ood.build_reference(*parts["train"], *parts["validation"])
        flagged = np.array([bool(text) for text in reference.warnings(parts["test"][0])])
        caught = np.array([bool(text) for text in reference.warnings(other)])
        missed = [name for name, found in zip(others, caught) if not found]
        print(
            f"fold {fold}: {flagged.sum()} of {len(flagged)} tissue images of {parts['test'][1]['case'].nunique()} "
            f"unseen cases flagged, {caught.sum()} of {len(caught)} other pictures; missed: {missed}"
        )
        assert len(flagged) >= 150 and flagged.mean() <= 0.10
        assert caught.mean() >= 0.95
        assert {"cat", "flat_grey"} <= set(others) - set(missed)
