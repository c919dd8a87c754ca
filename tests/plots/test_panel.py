"""Widget or figure; images as files."""

import io

import numpy as np
import pytest
from PIL import Image

from bcdlib.plots import panel


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


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def test_small_images_grow_by_whole_pixels():
    small = np.arange(12, dtype=np.uint8).reshape(1, 4, 3)
    grown = decoded(panel.png_bytes(small, 10, 100))
    assert np.array_equal(grown, small.repeat(3, 0).repeat(3, 1))
    assert decoded(panel.png_bytes(np.zeros((20, 200, 3), np.uint8), 10, 100)).shape == (10, 100, 3)
