"""A saved model as ONNX: the same answers as predict's."""

import importlib.util
import json

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bcdlib import evaluate
from bcdlib.errors import InputError
from bcdlib.explain import export
from bcdlib.methods import get_method

LACKING = [name for name in export.EXTRA if importlib.util.find_spec(name) is None]
needs_extra = pytest.mark.skipif(
    bool(LACKING) or keras.backend.backend() != "tensorflow",
    reason=f'needs {", ".join(LACKING)} (pip install -e ".[onnx]") and Keras on TensorFlow',
)


def answers(file, folder):
    """What the file says of the images of a folder, read with Pillow alone; and its metadata."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    X = np.stack([np.asarray(Image.open(image).convert("RGB")) for image in sorted(folder.iterdir())])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": X}))), facts


def test_without_the_extra_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r'export needs onnx, onnxruntime, tf2onnx: pip install -e "\.\[onnx\]"$'
    ):
        evaluate.export_onnx(tmp_path / "model.keras", tmp_path / "model.onnx")


@needs_extra
def test_a_final_model_says_the_same_calibration_included(final_run, tmp_path):
    run, result = final_run
    images, file = run.folder.parent / "own" / "images", result.folder / "model.keras"
    facts = evaluate.export_onnx(file, tmp_path / "model.onnx")
    wanted = evaluate.predict_files(file, [images]).sort_values("file")
    found, said = answers(tmp_path / "model.onnx", images)
    assert list(found) == ["probability", "calibrated"] and facts["difference"] < 1e-4
    for name, values in found.items():
        assert values.shape == (72,) and np.abs(values - wanted[name]).max() < 1e-4
    locked = pd.read_csv(file.with_name("locked.csv")).iloc[0]
    assert [float(said[name]) for name in ("threshold", "slope")] == locked[["threshold", "slope"]].tolist()
    assert json.loads(said["size"]) == [24, 16] and said["method"] == "texture"
    with pytest.raises(InputError, match=r"model\.h5: name a file that ends in \.onnx"):
        evaluate.export_onnx(file, tmp_path / "model.h5")


@needs_extra
@pytest.mark.parametrize("kind", ["lenet5", "logits", "subtypes", "0..1"])
def test_other_networks_say_the_same(final_run, tmp_path, kind):
    """Ours without a lock; strangers that end in two logits, eight subtypes, or take 0..1."""
    images, values = final_run[0].folder.parent / "own" / "images", "0..1" if kind == "0..1" else ""
    file = tmp_path / "model.keras"
    if kind == "lenet5":
        X = np.random.default_rng(0).integers(0, 256, (4, 16, 24, 3), dtype="uint8")
        method = get_method("lenet5")(epochs=1, verbose=0, size="cache").fit(X, np.arange(4) % 2)
        method.save(file)
    else:
        keras.utils.set_random_seed(1)
        last = {"logits": (2, None), "subtypes": (8, "softmax"), "0..1": (1, "sigmoid")}[kind]
        scaling = [] if values else [keras.layers.Rescaling(1 / 255)]
        layers = [keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(*last)]
        keras.Sequential([keras.Input((16, 24, 3)), *scaling, *layers]).save(file)
    evaluate.export_onnx(file, tmp_path / "model.onnx", values=values)
    wanted = evaluate.predict_files(file, [images], values=values).sort_values("file")
    found, _ = answers(tmp_path / "model.onnx", images)
    assert list(found) == ["probability"]
    assert wanted["probability"].nunique() > 10
    assert np.abs(found["probability"] - wanted["probability"]).max() < 1e-4


@needs_extra
def test_stain_normalisation_cannot_be_exported(tmp_path):
    X = np.random.default_rng(0).integers(90, 200, (4, 16, 24, 3), dtype="uint8")
    method = get_method("lenet5")(epochs=1, verbose=0, size="cache", stain="reinhard")
    method.fit(X, np.arange(4) % 2).save(tmp_path / "model.keras")
    with pytest.raises(InputError, match="its reinhard stain normalisation is not in its network"):
        evaluate.export_onnx(tmp_path / "model.keras", tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
