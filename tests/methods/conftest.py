"""The tiny data set as a pixel cache, a new one for each file of tests; large networks without tracing."""

import contextlib
import warnings

import keras
import pytest

from bcdlib.data import breakhis, sources
from bcdlib.data.cache import build_cache


@pytest.fixture(scope="module")
def cache(tiny, tmp_path_factory):
    source = sources.open_source(tiny)
    images = breakhis.scan_breakhis(source).images
    return build_cache(source, images, (48, 32), root=tmp_path_factory.mktemp("cache"), progress=False)


@pytest.fixture(scope="module")
def large_network():
    """A context: layer after layer, as TensorFlow's functions do it once traced.

    To trace a step of a hundred layers takes ten times as long as to do it. Small networks are traced in
    these files, and ResNet-50 in the run of all notebooks.
    """
    return _eagerly


@contextlib.contextmanager
def _eagerly():
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # tf.data stays traced
            yield
    finally:
        tf.config.run_functions_eagerly(False)
