"""Grids of images, and axes of the caller's own."""

import base64
import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from bcdlib.errors import InputError
from bcdlib.plots import style
from bcdlib.runs.folder import open_run_folder


def test_grid_leaves_no_empty_axes():
    images = np.zeros((5, 10, 15, 3), "uint8")
    figure = style.image_grid(images, list("abcde"), columns=3, title="five")
    assert [axis.get_xlabel() for axis in figure.axes] == list("abcde") and len(figure.axes) == 5
    assert figure.get_suptitle() == "five" and figure.get_figwidth() == 8
    with pytest.raises(InputError, match="no image"):
        style.image_grid([], [], 3)


def test_captions_do_not_run_into_each_other(apart):
    """A long name without blanks, words, wide letters: broken where the image ends, and nothing is lost."""
    captions = ["name_" * 12 + "1.png\nmalignant", "malignant, predicted malignant", "m" * 29, "short"]
    figure = style.image_grid([np.zeros((10, 15, 3), "uint8")] * 4, captions, 4)
    apart(figure)
    shown = [axis.get_xlabel() for axis in figure.axes]
    assert shown[1] == "malignant, predicted\nmalignant" and shown[3] == "short"
    for text, caption in zip(shown, captions, strict=True):
        assert "".join(text.split()) == "".join(caption.split())


def test_a_place_without_image_has_its_caption_as_text():
    figure = style.image_grid([np.zeros((10, 15, 3), "uint8"), None], ["one", "two"], 2)
    image, empty = figure.axes
    assert len(image.images) == 1 and not empty.images and not empty.axison
    assert [text.get_text() for text in empty.texts] == ["two"]


def test_a_figure_is_closed():
    before = plt.get_fignums()  # of other tests
    figure, ax = style.make_figure(width=3, height=2)
    assert ax.figure is figure and figure.get_size_inches().tolist() == [3, 2]
    assert plt.get_fignums() == before  # closed: a notebook shows it as a cell's value only


def test_a_figure_that_was_saved_is_shown_as_it_was_saved(tmp_path):
    """Until something in it is changed; at the size at which IPython shows a new drawing of it."""
    figure, axis = style.make_figure(width=3, height=2)
    axis.set_title("first")
    drawn, size = style.shown_png(figure)
    open_run_folder(tmp_path).figure("name", figure)
    saved, saved_size = style.shown_png(figure)
    assert base64.b64decode(saved) == (tmp_path / "figures" / "name.png").read_bytes()
    assert saved_size == pytest.approx(size, abs=1)
    one, other = (np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for png in (drawn, saved))
    assert one.shape == other.shape and np.abs(one.astype(int) - other).mean() < 1
    axis.set_title("second")
    figure.canvas.draw()  # it is up to date then, but not as it was saved
    assert style.shown_png(figure)[0] not in (drawn, saved)
