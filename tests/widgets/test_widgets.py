"""What can be clicked: filters, pages, views, threshold, upload; and the figures of a headless run."""

import base64
import io
from dataclasses import replace

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix, recall_score

from bcdlib.data import breakhis, sources, stain
from bcdlib.data.cache import PixelCache
from bcdlib.errors import InputError
from bcdlib.explain import explanation, models
from bcdlib.plots import panel, style
from bcdlib.runs.files import write_json
from bcdlib.runs.folder import open_run_folder
from bcdlib.widgets import samples, upload
from bcdlib.widgets.threshold import (
    ThresholdSlider,
    at_threshold,
    confusion_html,
    move_threshold,
    threshold_rates,
)


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


@pytest.fixture
def run(tmp_path):
    return open_run_folder(tmp_path)


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


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


# ---------------------------------------------------------------- samples


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
    assert views.names[:4] == ["raw", "resized", "normalised", "augmented"]
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
    assert "raw" not in samples.Views(cache).names
    with pytest.raises(InputError, match="unknown view 'x-ray'"):
        views.of([3], "x-ray")


def test_stain_normalisation_is_offered_where_there_is_stain(cache):
    views = samples.Views(cache)
    (image,) = views.of([0], "stain-normalised")
    assert np.array_equal(image, stain.normalise_stain(cache.pixels[:1], views.target)[0])
    assert views.target.kind == "macenko" and not np.array_equal(image, cache.pixels[0])
    white = replace(cache, pixels=np.full_like(cache.pixels, 255))
    assert "stain-normalised" not in samples.Views(white).names


def captions(browser):
    return [cell.text.value for cell in browser.cells if cell.box.layout.display != "none"]


def test_sample_browser_filters_turns_and_enlarges(browser):
    assert len(captions(browser)) == samples.PAGE and "1 to 8 of 96" in browser.where.value
    browser.filters["magnification"].value = 200
    assert "of 24 images" in browser.where.value and all("200X" in text for text in captions(browser))
    browser.filters["slide"].value = "99-10001A"
    assert len(captions(browser)) == 1 and browser.filters["magnification"].value == 200
    browser.filters["class"].value = "malignant"  # that slide is benign: the filter falls back to all
    assert browser.filters["slide"].value == samples.ALL and "1 to 8 of 12" in browser.where.value
    first = [cell.image.value for cell in browser.cells]
    browser._turn(1)
    assert "9 to 12 of 12" in browser.where.value and len(captions(browser)) == 4
    assert not {cell.image.value for cell in browser.cells[:4]} & set(first)
    browser._turn(1)
    assert [cell.image.value for cell in browser.cells] == first
    browser.view.value = "raw"
    assert [cell.image.value for cell in browser.cells] != first
    assert browser.enlarged.layout.display == "none"
    browser.cells[2].over.click()
    assert browser.enlarged.layout.display != "none" and "raw, 40 × 30 pixels" in browser.about.value
    assert decoded(browser.large.value).shape[1] >= 500


def test_captions_are_escaped(cache):
    images = cache.images.assign(slide="<img src=x onerror=alert(1)>")
    browser = samples.SampleBrowser(
        samples.Views(PixelCache(cache.folder, images, cache.pixels, cache.skipped))
    )
    assert all("<img" not in text and "&lt;img" in text for text in captions(browser))
    browser.cells[0].over.click()
    assert "<img" not in browser.about.value


# ---------------------------------------------------------------- threshold


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


# ---------------------------------------------------------------- upload


def test_both_forms_of_an_upload():
    seven = {"a.png": {"metadata": {"name": "a.png", "size": 3}, "content": b"abc"}}
    eight = ({"name": "a.png", "type": "image/png", "size": 3, "content": memoryview(b"abc")},)
    assert upload.uploaded_files(seven) == upload.uploaded_files(eight) == [("a.png", b"abc")]
    assert upload.uploaded_files({}) == upload.uploaded_files(()) == []


def answer(label, probability, calibrated=None, warning=""):
    figure, _ = style.make_figure(width=3, height=2)
    return explanation.Explanation(label, probability, calibrated, warning, pd.DataFrame(), figure)


class Upload(widgets.HTML):
    """Stands in for ipywidgets.FileUpload, whose value comes from the browser."""

    def __init__(self, **options):
        super().__init__()

    def send(self, name, content):
        self.value = f"{name}|{content.hex()}"


@pytest.fixture
def your_image(monkeypatch):
    monkeypatch.setattr(upload.widgets, "FileUpload", Upload)
    monkeypatch.setattr(
        upload, "uploaded_files", lambda value: [(value.split("|")[0], bytes.fromhex(value.split("|")[1]))]
    )
    return upload.YourImage({"net, split case": "model.keras"}, answer("benign", 0.1))


def test_upload_shows_answer_and_warning(your_image, monkeypatch):
    asked = []

    def explain(file, image):
        asked.append((file, image))
        return answer("malignant", 0.8123, 0.7, "unlike the <training> data")

    monkeypatch.setattr(explanation, "explain_image", explain)
    assert "An image at hand: benign, probability of malignant 0.100" in your_image.answer.value
    your_image.upload.send("<b>.png", b"pixels")
    assert asked == [("model.keras", b"pixels")]
    text = your_image.answer.value
    assert "malignant, probability of malignant 0.812 (calibrated 0.700)" in text
    assert "&lt;b&gt;.png" in text and "unlike the &lt;training&gt; data" in text
    assert decoded(your_image.image.value).shape[1] == 450 and your_image.image.layout.width == "300px"


def test_upload_says_what_is_wrong(your_image, monkeypatch):
    def explain(file, image):
        raise InputError("image: cannot be decoded")

    monkeypatch.setattr(explanation, "explain_image", explain)
    your_image.upload.send("notes.txt", b"text")
    assert "notes.txt</b>: image: cannot be decoded" in your_image.answer.value
    assert your_image.image.layout.display == "none"


def test_models_of_a_run(run):
    for split, fold, finished in (("image", 0, True), ("case", 1, True), ("slide", 0, False)):
        folder = run.folder / "trials" / split
        folder.mkdir(parents=True)
        (folder / "model.keras").touch()
        if finished:
            write_json(folder / "trial.json", {"method": "net", "split": split, "fold": fold, "seed": 3})
    compared = run.folder / "trials" / "compared" / "trial.json"
    write_json(compared, {"method": "m", "split": "case", "fold": 0, "seed": 0})
    assert list(models.saved_models(run)) == [
        "net, split case, fold 2, seed 3",
        "net, split image, fold 1, seed 3",
    ]


def test_a_run_without_models_says_so(run):
    shown = upload.try_image(run, answer("", float("nan"), warning="no model"))
    assert shown.widget is None and (run.folder / "figures" / "own_image.svg").is_file()


# ---------------------------------------------------------------- widget or figure


def test_headless_leaves_a_figure_and_makes_no_widget(cache, tiny, run, monkeypatch):
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


@pytest.mark.parametrize("allow", [True, False])
def test_who_can_answer_is_live(monkeypatch, allow):
    class Shell:
        class kernel:
            get_parent = staticmethod(lambda: {"content": {"allow_stdin": allow}})

    monkeypatch.delenv("BCD_HEADLESS", raising=False)
    monkeypatch.setattr(panel, "get_ipython", lambda: Shell)
    assert panel.is_live() is allow
    monkeypatch.setenv("BCD_HEADLESS", "1")
    assert not panel.is_live()


def test_small_images_grow_by_whole_pixels():
    small = np.arange(12, dtype=np.uint8).reshape(1, 4, 3)
    grown = decoded(panel.png_bytes(small, 10, 100))
    assert np.array_equal(grown, small.repeat(3, 0).repeat(3, 1))
    assert decoded(panel.png_bytes(np.zeros((20, 200, 3), np.uint8), 10, 100)).shape == (10, 100, 3)
