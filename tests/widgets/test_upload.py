"""Upload of an image of one's own: what is asked, what is shown, what is said when it is no image."""

import sys
import types

import ipywidgets as widgets
import pandas as pd
import pytest

from bcdlib.errors import InputError
from bcdlib.explain import explanation
from bcdlib.plots import style
from bcdlib.widgets import upload


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


def test_upload_shows_answer_and_warning(your_image, monkeypatch, decoded):
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
    assert decoded(your_image.image.value).shape[1] == 450
    assert "max-width:300px" in your_image.image.value
    assert '<img alt="&lt;b&gt;.png: malignant, probability of malignant 0.812' in your_image.image.value


def test_upload_says_what_is_wrong(your_image, monkeypatch):
    def explain(file, image):
        raise InputError("image: cannot be decoded")

    monkeypatch.setattr(explanation, "explain_image", explain)
    your_image.upload.send("notes.txt", b"text")
    assert "notes.txt</b>: image: cannot be decoded" in your_image.answer.value
    assert your_image.image.layout.display == "none"


def test_in_colab_its_own_upload_is_used(monkeypatch):
    """ipywidgets 7 loses files of 1 MB and more on their way through Colab's proxy."""
    files = types.ModuleType("google.colab.files")
    content = bytes(3 * 2**20)
    files.upload = lambda: {"large.png": content}
    colab = types.ModuleType("google.colab")
    colab.files = files
    for name, module in {"google.colab": colab, "google.colab.files": files}.items():
        monkeypatch.setitem(sys.modules, name, module)
    asked = []
    monkeypatch.setattr(
        explanation, "explain_image", lambda file, image: asked.append(image) or answer("malignant", 0.9)
    )
    shown = upload.YourImage({"net": "model.keras", "other": "other.keras"}, answer("benign", 0.1))
    shown.model.value = "other"  # nothing chosen yet
    assert not asked
    shown.upload.click()
    assert asked == [content] and "large.png: malignant" in shown.answer.value
    files.upload = dict  # cancelled
    shown.upload.click()
    assert len(asked) == 1


def test_a_run_without_models_says_so(run):
    shown = upload.try_image(run, answer("", float("nan"), warning="no model"))
    assert shown.widget is None and (run.folder / "figures" / "own_image.svg").is_file()
