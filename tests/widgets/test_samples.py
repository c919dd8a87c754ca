"""The browser of samples: filters, pages, views; and the figure of a headless run."""

import base64
import re
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from bcdlib.data import breakhis, sources, stain
from bcdlib.data.cache import PixelCache
from bcdlib.errors import InputError
from bcdlib.plots import panel, style
from bcdlib.widgets import samples


@pytest.fixture(scope="module")
def cache(tiny, tmp_path_factory):
    images = breakhis.scan_breakhis(sources.open_source(tiny)).images
    pixels = np.random.default_rng(0).integers(0, 256, (len(images), 18, 26, 3), dtype=np.uint8)
    return PixelCache(
        tmp_path_factory.mktemp("cache"), images, pixels, pd.DataFrame(columns=["filename", "reason"])
    )


@pytest.fixture
def browser(cache, tiny):
    return samples.SampleBrowser(samples.Views(cache, sources.open_source(tiny)))


def test_matching_and_choices(cache):
    images = cache.images
    rows = samples.matching_rows(images, **{"class": "malignant"}, magnification=400, slide=samples.ALL)
    expected = images[(images["class"] == "malignant") & (images["magnification"] == 400)]
    assert images.iloc[rows]["filename"].tolist() == expected["filename"].tolist() and len(rows) == 12
    assert len(samples.matching_rows(images)) == len(images)
    found = samples.filter_choices(images, **{"class": "benign"})
    assert found["subtype"] == ["A", "F", "PT", "TA"] and found["magnification"] == [40, 100, 200, 400]
    assert set(found["slide"]) == set(images.loc[images["class"] == "benign", "slide"])
    # a subtype that this class does not have no longer narrows the filters after it
    assert samples.filter_choices(images, **{"class": "benign", "subtype": "DC"})["slide"] == found["slide"]


def test_turn_goes_round():
    assert [samples.turn_page(0, 1, 20), samples.turn_page(8, 1, 20), samples.turn_page(16, 1, 20)] == [
        8,
        16,
        0,
    ]
    assert (
        samples.turn_page(0, -1, 20) == 16
        and samples.turn_page(0, 1, 8) == 0
        and samples.turn_page(0, -1, 5) == 0
    )


def test_views(cache, tiny):
    views = samples.Views(cache, sources.open_source(tiny))
    assert list(views.views)[:4] == ["raw", "resized", "normalised", "augmented"]
    assert views.of([3], "raw")[0].shape == (30, 40, 3)
    assert np.array_equal(views.of([3, 5], "resized"), cache.pixels[[3, 5]])
    for name in ("normalised", "augmented"):
        (image,) = views.of([3], name)
        assert (
            image.shape == (18, 26, 3)
            and image.dtype == np.uint8
            and not np.array_equal(image, cache.pixels[3])
        )
    assert views.of([3], "normalised")[0].min() == 0 and views.of([3], "normalised")[0].max() == 255
    assert "raw" not in samples.Views(cache).views
    with pytest.raises(InputError, match="unknown view 'x-ray'"):
        views.of([3], "x-ray")


def test_stain_normalisation_is_offered_where_there_is_stain(cache):
    views = samples.Views(cache)
    (image,) = views.of([0], "stain-normalised")
    assert np.array_equal(image, stain.normalise_stain(cache.pixels[:1], views.target)[0])
    assert views.target.kind == "macenko" and not np.array_equal(image, cache.pixels[0])
    white = replace(cache, pixels=np.full_like(cache.pixels, 255))
    assert "stain-normalised" not in samples.Views(white).views


def captions(browser):
    return [
        re.sub("<img[^>]*>", "", cell.shown.value)
        for cell in browser.cells
        if cell.box.layout.display != "none"
    ]


def test_sample_browser_filters_turns_and_enlarges(browser, decoded):
    assert len(captions(browser)) == samples.PAGE and "1 to 8 of 96" in browser.where.value
    browser.filters["magnification"].value = 200
    assert "of 24 images" in browser.where.value and all("200X" in text for text in captions(browser))
    browser.filters["slide"].value = "99-10001A"
    assert len(captions(browser)) == 1 and browser.filters["magnification"].value == 200
    browser.filters["class"].value = "malignant"  # that slide is benign: the filter falls back to all
    assert browser.filters["slide"].value == samples.ALL and "1 to 8 of 12" in browser.where.value
    first = [cell.shown.value for cell in browser.cells]
    browser._turn(1)
    assert "9 to 12 of 12" in browser.where.value and len(captions(browser)) == 4
    assert not {cell.shown.value for cell in browser.cells[:4]} & set(first)
    browser._turn(1)
    assert [cell.shown.value for cell in browser.cells] == first
    browser.view.value = "raw"
    assert [cell.shown.value for cell in browser.cells] != first
    assert browser.enlarged.layout.display == "none"
    browser.cells[2].over.click()
    assert browser.enlarged.layout.display != "none" and "raw, 40 × 30 pixels" in browser.about.value
    assert decoded(browser.large.value).shape[1] >= 500
    # for who cannot see the images: what they show, and what a click does
    assert f'<img alt="{browser.about.value}"' in browser.large.value
    assert 'alt="malignant, ' in browser.cells[2].shown.value and "SOB_M_" in browser.cells[2].over.tooltip


def test_captions_are_escaped(cache):
    images = cache.images.assign(slide="<img src=x onerror=alert(1)>")
    browser = samples.SampleBrowser(
        samples.Views(PixelCache(cache.folder, images, cache.pixels, cache.skipped))
    )
    assert all("<img" not in text and "&lt;img" in text for text in captions(browser))
    browser.cells[0].over.click()
    assert "<img" not in browser.about.value


def test_headless_leaves_a_figure_and_makes_no_widget(cache, tiny, run, monkeypatch, decoded):
    monkeypatch.setattr(samples, "SampleBrowser", lambda views: pytest.fail("a widget in a headless run"))
    shown = samples.browse_samples(run, cache, sources.open_source(tiny))
    data, metadata = shown._repr_mimebundle_()
    assert not panel.is_live() and panel.VIEW not in data
    image = decoded(base64.b64decode(data["image/png"]))
    assert image.shape[1] > 1000 and metadata["image/png"]["width"] in range(
        image.shape[1] // 2 - 1, image.shape[1]
    )
    assert [axis.get_title() for axis in shown.figure.axes[:4]] == [
        "raw",
        "resized",
        "normalised",
        "augmented",
    ]
    assert {tuple(axis.spines["left"].get_edgecolor()) for axis in shown.figure.axes} == {
        tuple(plt.matplotlib.colors.to_rgba(colour)) for colour in style.COLOURS.values()
    }


def test_live_shows_the_widget(cache, run, monkeypatch):
    monkeypatch.setenv("BCD_HEADLESS", "0")
    shown = samples.browse_samples(run, cache)
    data, _ = shown._repr_mimebundle_()
    assert data[panel.VIEW]["model_id"] == shown.widget.model_id and "image/png" in data
    monkeypatch.setenv("COLAB_RELEASE_TAG", "test")  # there the widget alone, as ipywidgets itself sends it
    assert set(shown._repr_mimebundle_()[0]) == {"text/plain", panel.VIEW}
