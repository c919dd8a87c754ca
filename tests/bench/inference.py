"""Predicting with a saved network, from image files, against Keras on arrays that are decoded already."""

import importlib.util

import keras
import numpy as np

from bcdlib import evaluate, methods
from bcdlib.data import breakhis, sources
from bcdlib.data.cache import build_cache
from tests.bench import Setting
from tests.bench.ingest import SIZE
from tests.bench.ratios import paired, rate

PICTURES = 128
OFTEN = 3  # times as many pairs: of Keras' calls some wait for tf.data's tuning, see `fitting.batch_stream`
SAME = 1e-3  # what answers may differ by


def comparisons(setting: Setting):
    """Ratios of images/s."""
    source = sources.open_source(setting.pictures)
    cache = build_cache(
        source, breakhis.scan_breakhis(source).images, SIZE, root=setting.folder / "cache", progress=False
    )
    X, file = np.array(cache.pixels[:PICTURES]), setting.folder / "model.keras"
    files = [setting.pictures / path for path in cache.images["path"][:PICTURES]]
    method = methods.get_method("resnet50")(
        trainable="head", weights=setting.weights, pretrained_required=False, epochs=1, verbose=0
    )
    method.fit(X[:32], np.arange(32) % 2).save(file)
    network, loaded = keras.models.load_model(file), methods.load_method(file)
    expected = network.predict(X, verbose=0)[:, 0]

    def against(name, what, goal, predict, data, note=""):
        np.testing.assert_allclose(np.ravel(predict(data)), expected, atol=SAME)
        return paired(
            f"inference-{name}",
            f"{what} / keras.Model.predict on arrays",
            goal,
            "images/s",
            lambda: rate(len(X), lambda: predict(data)),
            lambda: rate(len(X), lambda: network.predict(X, batch_size=32, verbose=0)),
            OFTEN * setting.pairs,
            note,
        )

    yield against("arrays", "predict on arrays", ">= 0.97", lambda data: loaded.predict_proba(data)[:, 1], X)
    yield against(
        "files",
        "predict from files",
        "",
        lambda data: evaluate.predict_files(file, data)["probability"],
        files,
        "loading the model and decoding included",
    )
    if keras.backend.backend() == "tensorflow":
        for name, engine, needed in (
            ("openvino", _openvino, "openvino"),
            ("onnxruntime", _onnxruntime, "tf2onnx"),
        ):
            if importlib.util.find_spec(name) and importlib.util.find_spec(
                needed
            ):  # Keras exports by the latter
                yield against(name, name, "", engine(network, setting.folder), X, "looked at, not used")


def _openvino(network: keras.Model, folder):
    import openvino

    network.export(str(folder / "network.xml"), format="openvino", verbose=False)
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(folder / "network.xml", "CPU", hints)
    return lambda X: np.concatenate([compiled(X[first : first + 32])[0] for first in range(0, len(X), 32)])


def _onnxruntime(network: keras.Model, folder):
    import onnxruntime

    network.export(str(folder / "network.onnx"), format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(folder / "network.onnx", providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda X: np.concatenate(
        [session.run(None, {name: X[first : first + 32]})[0] for first in range(0, len(X), 32)]
    )
