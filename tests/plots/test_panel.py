"""Widget or figure; images as files."""

import base64
import io
import re

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


def decoded(element):
    content = re.search(r'src="data:image/png;base64,([^"]+)"', element)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_small_images_grow_by_whole_pixels():
    small = np.arange(12, dtype=np.uint8).reshape(1, 4, 3)
    grown = decoded(panel.image_html(small, "small", narrowest=10, widest=100))
    assert np.array_equal(grown, small.repeat(3, 0).repeat(3, 1))
    wide = panel.image_html(np.zeros((20, 200, 3), np.uint8), '"<b>', narrowest=10, widest=100)
    assert decoded(wide).shape == (10, 100, 3) and 'alt="&quot;&lt;b&gt;"' in wide
