"""The tiny data set as a pixel cache, a new one for each file of tests."""

import pytest

from bcdlib.data import breakhis, sources
from bcdlib.data.cache import build_cache


@pytest.fixture(scope="module")
def cache(tiny, tmp_path_factory):
    source = sources.open_source(tiny)
    images = breakhis.scan_breakhis(source).images
    return build_cache(source, images, (48, 32), root=tmp_path_factory.mktemp("cache"), progress=False)
