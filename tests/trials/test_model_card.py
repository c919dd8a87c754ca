"""The model card beside a saved model."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from bcdlib.data import breakhis, sources, splits
from bcdlib.data.cache import build_cache
from bcdlib.evaluation import metrics
from bcdlib.runs.profiles import get_profile
from bcdlib.trials import model_card
from bcdlib.trials.trial import Trial, run_trial

SIZE = (48, 32)


def finished(folder, images, split, weights="ImageNet weights (Keras)", name="case"):
    """A trial's folder as `trial.run_trial` leaves it, without the training; returns the card's text."""
    part = splits.fold_of(split, 0)
    test = images.merge(part.query("role == 'test'"), on="filename")
    label = breakhis.class_labels(test)
    wrong = np.arange(len(test)) % 4 == 0
    test[["filename", "slide", "case", "magnification", "subtype"]].assign(
        label=label,
        probability=np.where(wrong, 1 - label, label).astype(float),
        fold=0,
        method="resnet50",
        split=name,
        seed=0,
        weights=weights,
    ).to_csv(folder / "predictions.csv", index=False)
    (folder / "trial.json").write_text(
        json.dumps(
            {
                "method": "resnet50",
                "split": name,
                "fold": 0,
                "seed": 0,
                "folds": 5,
                "weights": weights,
                "profile": "paper",
                "curves_on": "validation" if (part["role"] == "validation").any() else "test",
                "parameters": {"trainable": "all", "epochs": 200, "weights": "/somewhere", "verbose": 1},
            }
        )
    )
    return model_card.write_card(folder, images, part).read_text()


def row(text, first):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_papers_protocol_on_breakhis(tmp_path):
    images = breakhis.known_images()
    text = finished(tmp_path, images, splits.make_split(images, "magnification"), name="magnification")
    assert row(text, "train") == ["train", "5914", "82", "70", "1855", "4059"]
    assert row(text, "validation")[1:] == ["0"] * 5 and row(text, "test")[1:] == [
        "1995",
        "82",
        "70",
        "625",
        "1370",
    ]
    assert "82 of 82 test slides and 70 of 70 test cases were also in training" in text
    assert "not how well it would do on the next patient" in text and "no validation part" in text
    figure, value, interval = row(text, "accuracy")
    predictions = pd.read_csv(tmp_path / "predictions.csv", dtype={"case": str})
    assert float(value) == pytest.approx(metrics.metrics_table(predictions)["accuracy"][0], abs=6e-4)
    low, high = map(float, interval.split(" to "))
    assert low < float(value) < high
    assert "1995 images of 70 cases" in text and "CC BY 4.0" in text
    assert row(text, "epochs")[1] == "`200`" and "/somewhere" not in text and "verbose" not in text
    assert "ImageNet weights (Keras)" in text and "One laboratory" in text
    assert text.count("ot a medical device") >= 2 and "Research and teaching" in text


def test_by_case_nothing_is_shared(tmp_path):
    images = breakhis.known_images()
    text = finished(tmp_path, images, splits.make_split(images, "case"))
    assert "0 of" in text and "also in training: the metrics" not in text and "grouped by case" in text


def test_drawn_tissue_and_own_images_are_called_that(tmp_path, tiny_names):
    images = breakhis.images_table(tiny_names)
    text = finished(tmp_path, images, splits.make_split(images, "case", folds=3), "random initial weights")
    assert "say nothing about tissue" in text and "random weights" in text and "CC BY" not in text
    own = images.assign(filename=[f"{k}.png" for k in range(len(images))], magnification=0, subtype="unknown")
    text = finished(tmp_path, own, splits.make_split(own, "case", folds=3))
    assert "The user's own images: 96 images" in text and "BreakHis" not in text


def test_a_trial_writes_its_card_beside_its_model(tiny, prior, tmp_path):
    source = sources.open_source(tiny)
    cache = build_cache(
        source, breakhis.scan_breakhis(source).images, SIZE, root=tmp_path / "cache", progress=False
    )
    trial = Trial(str(prior), "case", splits.make_split(cache.images, "case", folds=3), 1)
    folder = run_trial(trial, cache, get_profile("demo"), root=tmp_path / "trials").folder
    text = (folder / model_card.CARD_NAME).read_text()
    assert (folder / "model.keras").is_file() and "prior, split case, fold 1, seed 0" in text
    assert "no pre-trained weights" in text
    without = run_trial(trial, cache, get_profile("demo"), root=tmp_path / "more", keep_model=False).folder
    assert not (without / model_card.CARD_NAME).exists()


def front_matter(text):
    """The metadata that Hugging Face reads: YAML between the first two lines of dashes."""
    start, metadata, rest = text.split("---\n", 2)
    assert start == "" and rest.lstrip().startswith("# Model card")
    return yaml.safe_load(metadata)


def test_hugging_face_reads_its_metadata(tmp_path, tiny_names):
    images = breakhis.known_images()
    text = finished(tmp_path, images, splits.make_split(images, "case"))
    data = front_matter(text)
    assert data["license"] == "apache-2.0" and data["library_name"] == "keras"
    assert data["datasets"] == ["breakhis"] and "histopathology" in data["tags"]
    (model,) = data["model-index"]
    (result,) = model["results"]
    assert model["name"] == "bcdlib-resnet50-case-fold0-seed0"
    assert result["task"]["type"] == data["pipeline_tag"] == "image-classification"
    assert result["dataset"]["type"] == "breakhis" and result["dataset"]["split"] == "test"
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert list(values) == data["metrics"] and {"accuracy", "roc_auc", "recall"} <= set(values)
    assert values["accuracy"] == pytest.approx(float(row(text, "accuracy")[1]), abs=6e-4)
    assert all(isinstance(value, float) for value in values.values())
    assert "95 % interval over cases" in result["metrics"][0]["name"]
    drawn = breakhis.images_table(tiny_names)
    data = front_matter(finished(tmp_path, drawn, splits.make_split(drawn, "case", folds=3)))
    assert "datasets" not in data and data["model-index"][0]["results"][0]["dataset"]["type"] == "other"
    own = drawn.assign(filename=[f"{k}.png" for k in range(len(drawn))], magnification=0, subtype="unknown")
    data = front_matter(finished(tmp_path, own, splits.make_split(own, "case", folds=3)))
    assert data["license"] == "other" and data["license_name"] and "datasets" not in data
