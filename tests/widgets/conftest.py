"""What the tests of widgets share."""

import io

import numpy as np
import pytest
from PIL import Image

from bcdlib.runs.folder import open_run_folder


@pytest.fixture
def run(tmp_path):
    return open_run_folder(tmp_path)


@pytest.fixture
def decoded():
    """The pixels of a PNG file, from its bytes."""
    return lambda content: np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
