"""What the tests of widgets share."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from bcdlib.runs.folder import open_run_folder


@pytest.fixture
def run(tmp_path):
    return open_run_folder(tmp_path)


@pytest.fixture
def decoded():
    """The pixels of a PNG file, from its bytes or from an HTML element that holds them."""

    def decode(content):
        if isinstance(content, str):
            content = base64.b64decode(re.search(r'src="data:image/\w+;base64,([^"]+)"', content)[1])
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

    return decode
