"""A saved model as ONNX, for programs without Keras: from an image to what `predict` says of it."""

import importlib.util
import json
import logging
import warnings
from pathlib import Path

import keras
import numpy as np

from bcdlib.data import breakhis
from bcdlib.errors import InputError, one_line
from bcdlib.evaluation import thresholds
from bcdlib.explain import models
from bcdlib.methods import SavedMethod
from bcdlib.methods._saved import RANGES, flat_operations
from bcdlib.runs.files import atomic_write

EXTRA = ("onnx", "onnxruntime", "tf2onnx")  # pyproject.toml's optional extra "onnx"
TOLERANCE = 1e-4


def export_onnx(model_file, out, *, values: str = "") -> dict:
    """Write a saved model as an ONNX file, and compare its answers with the model's own.

    The file takes ``image``, uint8 (N, height, width, 3), RGB and of the model's size, and gives
    ``probability`` (of malignant, float32 (N,)) and, if a calibration lies beside the model, ``calibrated``.
    Its metadata say size, classes, threshold and calibration.

    Parameters
    ----------
    model_file : path-like
    out : path-like
        The file to write; it must end in .onnx.
    values : str
        As in `methods.load_method`.

    Returns
    -------
    dict
        The metadata (texts), and ``difference``: the largest one of 8 images of noise, at most `TOLERANCE`.

    Raises
    ------
    InputError
        If the optional packages are missing, Keras does not run on TensorFlow, the model has a stain
        normalisation (which is not in its network), or it cannot be exported with the same answers.
    """
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f'export needs {", ".join(missing)}: pip install -e ".[onnx]"')
    if keras.backend.backend() != "tensorflow":
        raise InputError(
            f"export needs Keras on TensorFlow, not on {keras.backend.backend()}; set KERAS_BACKEND"
        )
    if Path(out).suffix != ".onnx":
        raise InputError(f"{out}: name a file that ends in .onnx")
    model, lock = models.load_model(model_file, values=values), models.saved_lock(model_file)
    if model.target is not None:
        raise InputError(
            f"{model_file}: its {model.target.kind} stain normalisation is not in its network and cannot be "
            "exported; export a model that was trained without (stain none)"
        )
    facts = _facts(model, model_file, lock)
    names = ["probability"] if lock is None else ["probability", "calibrated"]
    with atomic_write(out) as temporary:
        try:
            _convert(_whole_network(model, lock), temporary, names, facts)
        except Exception as error:  # tf2onnx and its parts raise many kinds
            raise InputError(f"{model_file}: cannot be exported ({one_line(error)})") from None
        found = _largest_difference(model, lock, temporary)
        if not found <= TOLERANCE:
            raise InputError(
                f"{model_file}: the exported model's answers differ by {found:.2g}; it is not kept"
            )
    return facts | {"difference": found}


def _facts(model: SavedMethod, model_file, lock: dict | None) -> dict[str, str]:
    record = models.trial_record(model_file)
    return {
        "input": "image: uint8 (N, height, width, 3), RGB 0..255, resized to `size` (width, height)",
        "size": json.dumps(model.size),
        "classes": json.dumps(breakhis.CLASSES),
        "method": record.get("method", Path(model_file).stem),
        "split": record.get("split", ""),
        "weights": record.get("weights", ""),
        **{name: repr(value) for name, value in (lock or {}).items()},
        "use": "For research and teaching. Not a medical device.",
    }


def _whole_network(model: SavedMethod, lock: dict | None) -> keras.Model:
    """Connect raw pixels to the probability of malignant, and to the calibrated one, as `predict` does."""
    ops, (width, height) = keras.ops, model.size
    for layer in flat_operations(model.network):
        if isinstance(layer, keras.layers.Normalization):  # else its mean would become an input of the file
            layer.mean, layer.variance = np.asarray(layer.mean), np.asarray(layer.variance)
    image = keras.Input((height, width, 3), dtype="uint8", name="image")
    x = ops.cast(image, "float32")
    if model.values != "0..255":
        x = x * RANGES[model.values][0] + RANGES[model.values][1]
    found = ops.minimum(model.network(ops.cast(x, model.network.inputs[0].dtype)), 1.0)
    if len(model.classes) == 2:
        malignant = [0, 1]
    else:
        malignant = [float(name not in breakhis.BENIGN) for name in model.classes]
    if found.shape[1] > 1:
        found = ops.sum(found * np.float32(malignant), axis=1, keepdims=True) / ops.sum(
            found, axis=1, keepdims=True
        )
    outputs = [ops.cast(found[:, 0], "float32")]
    if lock is not None:
        p = ops.clip(ops.cast(outputs[0], "float64"), 1e-6, 1 - 1e-6)  # as `thresholds.calibrate`
        z = lock["slope"] * ops.log(p / (1 - p)) + lock["intercept"]
        outputs.append(ops.cast(1 / (1 + ops.exp(-z)), "float32"))
    network = keras.Model(image, outputs)
    network(np.zeros((1, height, width, 3), "uint8"))  # Keras exports only what was called once
    return network


def _convert(network: keras.Model, path: Path, names: list[str], facts: dict[str, str]) -> None:
    """Write a network as ONNX, with outputs of these names and the facts as metadata."""
    import onnx

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras's own, about NumPy
        network.export(str(path), format="onnx", verbose=False)
    made = onnx.load(str(path))
    renamed = dict(zip((output.name for output in made.graph.output), names, strict=True))
    for old, new in renamed.items():
        made.graph.node.append(onnx.helper.make_node("Identity", [old], [new]))
    for output in made.graph.output:
        output.name = renamed[output.name]
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.helper.set_model_props(made, facts)
    onnx.checker.check_model(made)
    onnx.save(made, str(path))


def _largest_difference(model: SavedMethod, lock: dict | None, path: Path) -> float:
    """Compare the file's answers with the model's own on images of noise, dark ones to bright ones."""
    import onnxruntime

    width, height = model.size
    noise = np.random.default_rng(0).integers(0, 256, (8, height, width, 3))
    X = (noise * np.linspace(0.2, 1, 8)[:, None, None, None]).astype("uint8")
    wanted = [models.predict_images(model, X)]
    if lock is not None:
        wanted.append(thresholds.calibrate(wanted[0], lock["slope"], lock["intercept"]))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return float(np.abs(np.subtract(session.run(None, {"image": X}), wanted)).max())
