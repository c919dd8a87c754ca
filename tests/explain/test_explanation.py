"""What a saved model says about an image: through the run that trained it, and from its file alone."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bcdlib import evaluate
from bcdlib.data.breakhis import CLASSES
from bcdlib.errors import InputError
from bcdlib.explain import explanation, models, ood
from tests.command import here

ROOT = Path(__file__).resolve().parent.parent.parent


def folder_of(run, split):
    (found,) = [
        file.parent
        for file in (run.folder / "trials").glob("*/trial.json")
        if json.loads(file.read_text())["split"] == split
    ]
    return found


def test_own_image_is_one_of_the_strictest_test_part(run, table, texts):
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


def test_explain_takes_a_path_or_bytes_and_knows_its_training_images(run, tiny, texts):
    model = folder_of(run, "case") / "model.keras"
    training = (
        pd.read_csv(run.folder / "splits" / "case.csv")
        .query("fold == 0 and role == 'train'")["filename"]
        .iloc[3]
    )
    image = next(Path(tiny).rglob(training))
    answer = evaluate.explain_image(model, image)
    assert answer.warning == "" and answer.nearest["filename"].iloc[0] == training
    assert answer.nearest["distance"].iloc[0] == pytest.approx(0, abs=1e-3)
    again = evaluate.explain_image(model, image.read_bytes())
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
    explanation.trial_reference(folder / "model.keras", models.load_model(folder / "model.keras"))
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


def test_a_model_alone(run, tmp_path, texts):
    source = folder_of(run, "case") / "model.keras"
    (tmp_path / "model.keras").write_bytes(source.read_bytes())
    Image.new("RGB", (48, 32), "grey").save(tmp_path / "grey.png")
    answer = evaluate.explain_image(tmp_path / "model.keras", tmp_path / "grey.png")
    assert answer.calibrated is None and answer.warning == "" and answer.nearest.empty
    assert "cannot be said" in texts(answer.figure).replace("\n", " ")
    with pytest.raises(InputError, match=r"nowhere\.png"):
        evaluate.explain_image(tmp_path / "model.keras", tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(2**40)
    for name, why in {
        "GREY.tif": "no such file; there is grey.png",
        "pipe.png": "not a plain file",
        "huge.png": "larger than 64 MiB",
    }.items():
        with pytest.raises(InputError, match=f"{name}: .*{why}"):
            evaluate.explain_image(tmp_path / "model.keras", tmp_path / name)
    with pytest.raises(InputError, match="the image: "):
        evaluate.explain_image(tmp_path / "model.keras", b"not an image")
    with pytest.raises(InputError, match=r"no\.keras"):
        evaluate.explain_image(tmp_path / "no.keras", tmp_path / "grey.png")
    (tmp_path / "trial.json").write_text("[")
    with pytest.raises(InputError, match="trial.json: cannot be read .*; move the model"):
        evaluate.predict_files(tmp_path / "model.keras", [tmp_path / "grey.png"])
    (tmp_path / "trial.json").unlink()
    alone = evaluate.predict_files(tmp_path / "model.keras", [tmp_path / "grey.png"])
    assert list(alone) == ["file", "probability", "class", "reason"]


def test_predict_says_more_in_a_trials_folder(run, table, tiny, tmp_path):
    model = folder_of(run, "case") / "model.keras"
    explanation.trial_reference(model, models.load_model(model))  # 05_evaluate leaves it beside the model
    image = next(Path(tiny).rglob("*.png"))
    Image.new("RGB", (48, 32), "grey").save(tmp_path / "grey.png")
    (tmp_path / "text.png").write_text("not an image")
    done = here("predict", model, image, tmp_path / "text.png", tmp_path / "grey.png", "--json")
    assert done.returncode == 0, done.stderr
    good, bad, grey = json.loads(done.stdout)
    assert 0 <= good["calibrated"] <= 1 and good["nearest"].startswith("SOB_")
    assert bad["calibrated"] is None and bad["nearest"] == bad["warning"] == "" and "decoded" in bad["reason"]
    assert grey["warning"].startswith("Unlike the training images")
