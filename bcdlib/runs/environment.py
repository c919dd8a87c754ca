"""What is installed here: Keras' backend, required packages, versions and device for the record."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from pathlib import Path

from bcdlib import __version__
from bcdlib.errors import InputError
from bcdlib.runs.places import shipped

BACKENDS = ("tensorflow", "jax")
# the extra "fast" of pyproject.toml: decoding is faster with them; there are none yet for the newest Python
OPTIONAL = ("imagecodecs", "zlib-ng")


def check_backend() -> None:
    """Refuse a Keras backend that bcdlib is not made for, before Keras is imported.

    Raises
    ------
    InputError
        If KERAS_BACKEND, or Keras' own settings file, names another than tensorflow or jax.
    """
    name = os.environ.get("KERAS_BACKEND")
    if not name:
        file = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras", "keras.json")
        with contextlib.suppress(OSError, ValueError, AttributeError):
            name = json.loads(file.read_text()).get("backend")
    if name and name not in BACKENDS:
        raise InputError(
            f"KERAS_BACKEND={name}: bcdlib runs on {' and '.join(BACKENDS)}; set KERAS_BACKEND to one of "
            "them and start again"
        )


def requirements() -> list[str]:
    """List what pip is to install in Colab: requirements.txt, without TensorFlow where Keras runs on JAX.

    Examples
    --------
    >>> [line for line in requirements() if line.startswith("keras")]
    ['keras>=...']
    """
    lines = [line.split("#")[0].strip() for line in shipped("requirements.txt").read_text().splitlines()]
    spared = ("tensorflow", "tensorboard") if os.environ.get("KERAS_BACKEND") == "jax" else ()
    return [line for line in lines if line and not line.startswith(spared)]


def describe_environment() -> dict[str, str | None]:
    """Describe what results may depend on beside data and settings.

    Returns
    -------
    dict
        Versions of bcdlib, Python, Keras, its backend, NumPy and scikit-learn; ``backend`` and ``device``
        (None if Keras is not loaded); ``colab``, the release of Colab (None elsewhere).

    Examples
    --------
    >>> describe_environment()["bcdlib"] == __version__
    True
    """
    backend, device = _backend_and_device()
    packages = ("keras", *([backend] if backend else []), "numpy", "scikit-learn")
    return {
        "bcdlib": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "backend": backend,
        "device": device,
        "colab": os.environ.get("COLAB_RELEASE_TAG"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # built by hand, or under another name (tensorflow-cpu)
        return getattr(sys.modules.get(package), "__version__", None)


def _backend_and_device() -> tuple[str | None, str | None]:
    """Keras' backend and the kind of its first device, where Keras is loaded."""
    if "keras" not in sys.modules:
        return None, None
    backend = sys.modules["keras"].backend.backend()
    if backend == "jax":
        import jax

        return backend, jax.devices()[0].device_kind
    import tensorflow as tf

    for device in tf.config.list_physical_devices("GPU"):
        return backend, tf.config.experimental.get_device_details(device).get("device_name", "GPU")
    return backend, "TPU" if tf.config.list_physical_devices("TPU") else "CPU"
