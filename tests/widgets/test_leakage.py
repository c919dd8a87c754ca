"""A case followed from protocol to protocol: sides and answers, against the split tables."""

import html
import re

import numpy as np
import pandas as pd
import pytest

from bcdlib.data import breakhis, sources, splits
from bcdlib.data.cache import PixelCache
from bcdlib.plots import panel
from bcdlib.widgets import leakage

CASE = "99-10001"  # of the slides A and B, 4 images each


@pytest.fixture(scope="module")
def cache(tiny, tmp_path_factory):
    images = breakhis.scan_breakhis(sources.open_source(tiny)).images
    pixels = np.random.default_rng(0).integers(0, 256, (len(images), 18, 26, 3), dtype=np.uint8)
    return PixelCache(tmp_path_factory.mktemp("cache"), images, pixels, pd.DataFrame())


@pytest.fixture
def run(run, cache):
    """A run with four protocols."""
    for name in ("magnification", "image", "slide", "case"):
        run.write_csv(f"splits/{name}.csv", splits.make_feasible_split(cache.images, name)[0])
    run.record(seed=0)
    return run


@pytest.fixture
def predictions(run, cache):
    """Of two methods and two seeds; by image all is right, by case all is wrong, else nothing is known."""
    tables = []
    for split in ("image", "case"):
        table = splits.read_split(run, split).query("role == 'test'").merge(cache.images, on="filename")
        table["label"] = breakhis.class_labels(table)
        table["probability"] = np.abs(table["label"] - (0.1 if split == "image" else 0.9))
        tables += [
            table.assign(split=split, method=method, seed=seed)
            for method in ("net", "other")
            for seed in (0, 1)
        ]
    return pd.concat(tables, ignore_index=True)


@pytest.fixture
def strips(run, cache, predictions):
    return leakage.CaseStrips(leakage.Protocols(run, cache, predictions))


def counts(strips):
    """How many images the widget shows, by role."""
    return {role: int(n) for role, n in re.findall(r"<b>In (\w+): (\d+)</b>", strips.strips.value)}


def test_the_case_of_several_slides_comes_first(run, cache):
    names = leakage.Protocols(run, cache).names("case")
    assert list(names)[:2] == ["99-10001", "99-10007"] and names[CASE] == f"{CASE}: 2 slides, 8 images"
    assert set(names) == set(cache.images["case"])
    assert leakage.Protocols(run, cache).names("slide")["99-10001A"] == "99-10001A: 4 images"


@pytest.mark.parametrize("unit, name", [("case", CASE), ("slide", "99-10001B")])
def test_images_change_sides_as_the_splits_say(strips, run, cache, unit, name):
    strips.unit.value = unit
    strips.name.value = name
    mine = cache.images.loc[cache.images[unit] == name, "filename"]
    for protocol in strips.protocol.options:
        strips.protocol.value = protocol
        split = splits.read_split(run, protocol)
        roles = (
            split[split["filename"].isin(mine)].groupby("fold")["role"].value_counts().unstack(fill_value=0)
        )
        most = roles.loc[roles["test"].idxmax()].rename({"train": "training"})
        assert counts(strips) == most[most > 0].to_dict()
        assert html.escape(splits.describe_protocol(protocol)) in strips.said.value
    assert counts(strips) == {"test": len(mine)}  # by case, at last


def test_what_is_shared_is_said(strips, run, cache):
    strips.protocol.value = "magnification"
    assert "2 of its images are in test, 6 in training." in strips.said.value
    strips.protocol.value = "case"
    assert "8 of its images are in test, none in training." in strips.said.value
    strips.unit.value = "slide"
    assert strips.name.value == "99-10001A"  # of the case that was shown
    strips.protocol.value = "slide"
    split, images = splits.read_split(run, "slide"), cache.images
    own, other = (images.loc[images["slide"] == f"{CASE}{letter}", "filename"] for letter in "AB")
    fold = split.query("role == 'test'").set_index("filename")["fold"][own.iloc[0]]
    known = split[split["filename"].isin(other) & (split["fold"] == fold) & (split["role"] != "test")]
    assert f"Fold {fold}: 4 of its images are in test, none in training" in strips.said.value
    assert ("4 of other slides of its case" in strips.said.value) == (len(known) == 4)


def test_images_stand_by_slide_and_magnification(strips):
    strips.protocol.value = "case"  # all in test
    captions = re.findall(r"<figcaption[^>]*>(.*?)<br>", strips.strips.value)
    assert [caption.split(", ", 1)[1] for caption in captions] == [
        f"{m}X, slide 99-10001{slide}" for slide in "AB" for m in (40, 100, 200, 400)
    ]


def test_answers_of_the_fold_that_tests_them(strips):
    strips.protocol.value = "image"
    tested = counts(strips)["test"]
    assert f"{tested} of {tested} answers are right" in strips.said.value
    assert strips.strips.value.count("predicted benign (0.10), right</b>") == tested
    strips.protocol.value = "case"
    assert "0 of 8 answers are right" in strips.said.value
    assert strips.strips.value.count('in test, predicted malignant (0.90), wrong"') == 8  # for who cannot see
    strips.protocol.value = "slide"  # of which there are no predictions
    assert "answers" not in strips.said.value and "predicted" not in strips.strips.value
    strips.method.value = "other"
    strips.protocol.value = "case"
    assert "0 of 8 answers are right" in strips.said.value


def test_predictions_of_other_folds_are_not_used(run, cache, predictions):
    protocols = leakage.Protocols(run, cache, predictions[predictions["seed"] == 1])
    assert protocols.methods == []
    strips = leakage.CaseStrips(protocols)
    strips.protocol.value = "case"
    assert "answers" not in strips.said.value


def test_images_have_words_and_these_are_escaped(run, cache):
    images = cache.images.assign(slide='"><script>')
    strips = leakage.CaseStrips(leakage.Protocols(run, PixelCache(cache.folder, images, cache.pixels, None)))
    assert strips.strips.value.count("<img alt=") == strips.strips.value.count("<img") > 0
    assert "<script>" not in strips.strips.value + strips.said.value


def test_a_headless_run_shows_a_figure(run, cache, predictions, monkeypatch):
    monkeypatch.setattr(leakage, "CaseStrips", lambda protocols: pytest.fail("a widget in a headless run"))
    bare, answered = (leakage.follow_case(run, cache, table) for table in (None, predictions))
    assert panel.VIEW not in bare._repr_mimebundle_()[0]
    assert {path.name for path in (run.folder / "figures").glob("*.svg")} == {
        "case_roles.svg",
        "case_answers.svg",
    }
    rows = [axis.get_ylabel() for axis in bare.figure.axes[::8]]
    assert rows == ["magnification", "image", "slide", "case"]
    columns = [axis.get_title() for axis in bare.figure.axes[:8]]
    assert columns == [f"99-10001{slide}\n{m}X" for slide in "AB" for m in (40, 100, 200, 400)]
    captions = [axis.get_xlabel() for axis in answered.figure.axes]
    assert captions[-8:] == ["test\n0.90, wrong"] * 8 and captions[:8].count("test") == 2
    assert "test\n0.10, right" in captions[8:16] and "training" in captions[8:16]
