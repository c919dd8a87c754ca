"""Breast cancer diagnosis on BreakHis: the library beneath the notebooks.

One notebook, one module, one verb: `mount`, `preprocess`, `visualize`, `train`, `evaluate`, `compare`.

Beneath the verbs stand rooms, each with one purpose and only on floors beneath it: `suite` (all notebooks in
one go), `widgets` (what answers to clicks), `trials` (method x split x fold x seed), `explain` (Grad-CAM,
out-of-distribution, error analysis), `methods` (one file a method), `evaluation` (metrics, bootstrap,
thresholds), `data` (sources, cache, splits), `plots`, `runs` (the run folder and its files), `errors`.
"""

import importlib.util
import os

__version__ = "0.1.0"

# Memory of a GPU is taken as it is needed, or an open notebook would leave the next one none. TensorFlow and
# JAX read these when they first use it.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# TensorFlow leaves oneDNN off on CPUs without AVX-512, where a training step with it takes a third (72x48) to
# four fifths (144x96) of the time.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# The one place for the repository's address; `python -m bcdlib stamp` writes it into badges and first cells.
REPOSITORY = "https://github.com/bcdlib/bcdlib"
BRANCH = "main"


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


# Colab's TPU runtime has JAX and no TensorFlow, and Keras looks for TensorFlow unless told
if (
    os.environ.get("KERAS_BACKEND", "") in ("", "tensorflow")
    and not _installed("tensorflow")
    and _installed("jax")
):
    os.environ["KERAS_BACKEND"] = "jax"
