"""Models of strangers: what they mean is read right, and what is hostile is refused and touches nothing."""

import contextlib
import copy
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bcdlib import evaluate, methods
from bcdlib.errors import InputError
from bcdlib.methods import _foreign

L = keras.layers
SHAPE = (24, 36, 3)
MEMORY = 500 * 2**20
WEIGHTS = "model.weights.h5"
X = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), dtype="uint8")


def network(*last, first=(), shape=SHAPE):
    return keras.Sequential([keras.Input(shape), *first, L.Flatten(), *last])


def saved(place, model):
    model.save(place)
    return place


class Members(dict):
    """Members of an archive, by name; Hypothesis writes its arguments down, and these are long."""

    def __repr__(self):
        return f"Members({sorted(self)})"


def members(place) -> dict[str, bytes]:
    with zipfile.ZipFile(place) as archive:
        return Members({name: archive.read(name) for name in archive.namelist()})


def packed(place, content: dict[str, bytes], kind=zipfile.ZIP_STORED):
    with zipfile.ZipFile(place, "w", kind) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return place


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, bytes]:
    """The members of a plain model."""
    model = network(L.Dense(2, "softmax", name="last"), first=[L.Rescaling(1 / 255)])
    return members(saved(tmp_path_factory.mktemp("good") / "m.keras", model))


# --- what the numbers mean ----------------------------------------------------------------------------------


def constant(*values, activation=None, behind=()):
    """A network that gives the same numbers whatever the image."""
    dense = L.Dense(len(values), activation, kernel_initializer="zeros")
    model = network(dense, *behind)
    dense.bias.assign(values)
    return model


def sigmoid(value):
    return 1 / (1 + np.exp(-np.float64(value)))


def average_of_two():
    image = keras.Input(SHAPE)
    flat = L.Flatten()(image)
    each = [
        L.Dense(1, "sigmoid", kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(one))
        for one in (1.0, -2.0)
    ]
    return keras.Model(image, L.Average()([one(flat) for one in each]))


def wrapped(model):
    image = keras.Input(SHAPE)
    return keras.Model(image, L.Dropout(0.5)(model(image)))


@pytest.mark.parametrize(
    "model, malignant",
    [
        (lambda: constant(0.3), sigmoid(0.3)),
        (lambda: constant(-7.5), sigmoid(-7.5)),
        (lambda: constant(-3.0, -1.0), sigmoid(2.0)),
        (lambda: constant(0.3, activation="sigmoid"), sigmoid(0.3)),
        (lambda: constant(-3.0, -1.0, activation="softmax"), sigmoid(2.0)),
        (lambda: constant(-3.0, -1.0, activation="log_softmax"), sigmoid(2.0)),
        (lambda: constant(0.3, behind=[L.Activation("sigmoid")]), sigmoid(0.3)),
        (lambda: constant(0.3, behind=[L.Activation("linear")]), sigmoid(0.3)),
        (lambda: constant(-3.0, -1.0, behind=[L.Softmax()]), sigmoid(2.0)),
        (lambda: constant(-3.0, -1.0, behind=[L.Activation("softmax", dtype="float32")]), sigmoid(2.0)),
        (lambda: constant(0.3, behind=[L.Dropout(0.2), L.Reshape((1,))]), sigmoid(0.3)),
        (lambda: wrapped(constant(0.3)), sigmoid(0.3)),
        (lambda: wrapped(wrapped(constant(0.3, activation="sigmoid"))), sigmoid(0.3)),
        (lambda: wrapped(constant(-3.0, -1.0)), sigmoid(2.0)),
        (lambda: network(constant_head(-3.0, -1.0)), sigmoid(2.0)),
        (average_of_two, (sigmoid(1.0) + sigmoid(-2.0)) / 2),
        (lambda: constant(-3.0, -1.0, activation="sigmoid"), sigmoid(-1) / (sigmoid(-3) + sigmoid(-1))),
        (lambda: constant(*range(8)), np.exp(range(4, 8)).sum() / np.exp(range(8)).sum()),
    ],
)
def test_logits_and_probabilities(model, malignant, tmp_path):
    found = methods.load_method(saved(tmp_path / "m.keras", model()))
    probability = found.predict_proba(X)
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    if probability.shape[1] == 8:
        probability = probability[:, [4, 5, 6, 7]].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probability[:, -1], malignant, atol=1e-6)
    assert "assumed: RGB images of 0..255" in found.notes[0]


def constant_head(*values):
    model = keras.Sequential([keras.Input((int(np.prod(SHAPE)),)), L.Dense(2, kernel_initializer="zeros")])
    model.layers[-1].bias.assign(values)
    return model


def test_a_functional_ending_in_an_operation(tmp_path):
    image = keras.Input(SHAPE)
    logits = constant(-3.0, -1.0)(image / 255.0)
    model = keras.Model(image, keras.activations.softmax(logits))
    found = methods.load_method(saved(tmp_path / "m.keras", model))
    np.testing.assert_allclose(found.predict_proba(X)[:, 1], sigmoid(2.0), atol=1e-6)
    assert len(found.notes) == 1  # division by 255 stands in front


@pytest.mark.parametrize(
    "model, why",
    [
        (lambda: constant(0.3, activation="tanh"), "ends in tanh"),
        (lambda: constant(0.3, activation="relu"), "ends in relu"),
        (lambda: constant(1.0, activation="softmax"), "always 1"),
        (lambda: constant(1.0, behind=[L.Rescaling(2.0)]), "cannot be told"),
        (lambda: network(L.Dense(2, "sigmoid"), shape=(3, 24, 36)), "channels first"),
        (lambda: network(L.Dense(2, "sigmoid"), shape=(24, 36, 1)), "grey"),
        (lambda: network(L.Dense(2, "sigmoid"), shape=(24, 36, 4)), "RGBA"),
        (lambda: network(L.Dense(2, "sigmoid"), shape=(8, 24, 36, 3)), "8x24x36x3"),
        (lambda: keras.Sequential([keras.Input(SHAPE), L.Conv2D(2, 3, activation="softmax")]), "a map"),
        (lambda: network(L.Dense(5, "softmax")), "5 numbers"),
        (lambda: two(inputs=2), "2 inputs"),
        (lambda: two(outputs=2), "2 outputs"),
    ],
)
def test_networks_that_are_not_understood(model, why, tmp_path):
    place = saved(tmp_path / "m.keras", model())
    with pytest.raises(InputError, match=why) as error:
        methods.load_method(place)
    assert str(error.value).startswith(f"{place}: ") and len(str(error.value)) < 500


def two(inputs=1, outputs=1):
    images = [keras.Input(SHAPE) for _ in range(inputs)]
    flat = L.Flatten()(images[0] if inputs == 1 else L.Add()(images))
    return keras.Model(images, [L.Dense(1, "sigmoid")(flat) for _ in range(outputs)])


@pytest.mark.parametrize("values", [(np.nan,), (np.inf, 0.0), (-0.92, 0.5), (3.0, 4.0), (0.1, 0.1)])
def test_values_that_are_no_probabilities(values, tmp_path):
    """NaN of a training that went wrong; and what a last layer of unknown meaning gives."""
    model = constant(*values) if np.isnan(values[0]) else constant(*values, behind=[L.Rescaling(1.0)])
    found = methods.load_method(saved(tmp_path / "m.keras", model))
    with pytest.raises(InputError, match=r"m\.keras: gives 3 of 3 images what is no probability"):
        found.predict_proba(X)


def brightness():
    """A network that was trained on 0..1: the logit is the mean pixel, less a half, times ten."""
    dense = L.Dense(1)
    model = network(dense)
    count = int(np.prod(SHAPE))
    dense.set_weights([np.full((count, 1), 10 / count), np.array([-5.0])])
    return model


def test_the_range_of_values(tmp_path):
    place = saved(tmp_path / "m.keras", brightness())
    mean = X.mean(axis=(1, 2, 3), dtype="float64")
    for values, scaled in {"0..255": mean, "0..1": mean / 255, "-1..1": mean / 127.5 - 1}.items():
        found = methods.load_method(place, values=values)
        np.testing.assert_allclose(found.predict_proba(X)[:, 1], sigmoid(10 * scaled - 5), rtol=1e-4)
        assert values in found.notes[0] and not any("--input" in note for note in found.notes)
    assert any("no Rescaling or Normalization" in note for note in methods.load_method(place).notes)
    with pytest.raises(InputError, match="unknown --input '0-1'"):
        methods.load_method(place, values="0-1")
    for first in ([L.Rescaling(1 / 255)], [L.BatchNormalization()], [L.Conv2D(2, 3)]):
        notes = methods.load_method(saved(place, network(L.Dense(1), first=first))).notes
        assert any("no Rescaling" in note for note in notes) == isinstance(first[0], L.Conv2D)


def test_a_table_of_a_strangers_model(tmp_path):
    place = saved(tmp_path / "m.keras", constant(0.3))
    Image.fromarray(X[0]).save(tmp_path / "a.png")
    table = evaluate.predict_files(place, [tmp_path / "a.png"], values="0..1")
    assert table["class"].tolist() == ["malignant"] and abs(table["probability"][0] - 0.574443) < 1e-5
    assert "0..1" in table.attrs["notes"][0] and "linear" in table.attrs["notes"][1]


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "bcdlib", *map(str, words)], capture_output=True, text=True, timeout=120
    )


def test_what_the_command_says(tmp_path):
    """Notes and a progress bar, and no start-up notes of TensorFlow, CUDA and absl."""
    place = saved(tmp_path / "m.keras", brightness())
    Image.fromarray(np.full(SHAPE, 255, "uint8")).save(tmp_path / "a.png")
    done = command("predict", "--json", "--input=-1..1", place, tmp_path / "a.png")
    assert done.returncode == 0 and abs(json.loads(done.stdout)[0]["probability"] - sigmoid(5)) < 1e-5
    lines = [line for line in done.stderr.splitlines() if line and not line.startswith("Decode")]
    assert len(lines) == 2 and all(line.startswith("Note: ") for line in lines), done.stderr
    HOSTILE["a pickle"](place, {})
    done = command("predict", place, tmp_path / "a.png")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and str(place) in done.stderr


# --- hostile: classes ---------------------------------------------------------------------------------------

NAMED = [  # module, class, registered name
    ("keras.layers", "Lambda", None),
    ("keras", "layers.Lambda", None),
    ("keras.src.layers", "Lambda", None),
    ("keras.src.layers.core.lambda_layer", "Lambda", "Lambda"),
    (None, "Lambda", None),
    ("builtins", "Lambda", None),
    ("keras.layers", "lambda", None),
    ("keras.layers", "TFSMLayer", None),
    ("keras", "layers.TFSMLayer", None),
    ("keras.layers", "TorchModuleWrapper", None),
    ("keras.layers", "JaxLayer", None),
    ("keras.layers", "FlaxLayer", None),
    ("keras.layers", "StringLookup", None),
    ("keras.layers", "IntegerLookup", None),
    ("keras.layers", "TextVectorization", None),
    ("keras", "layers.TextVectorization", None),
    ("keras.layers", "Layer", None),
    ("keras.layers", "Wrapper", None),
    ("keras.utils", "get_file", None),
    ("keras", "utils.get_file", None),
    ("keras.models", "load_model", None),
    ("keras.saving", "load_model", None),
    ("keras.src.utils.python_utils", "func_load", None),
    ("keras.src.saving.serialization_lib", "SafeModeScope", None),
    ("keras.config", "enable_unsafe_deserialization", None),
    ("os", "system", None),
    ("builtins", "eval", None),
    ("subprocess", "Popen", None),
    ("evil", "Layer", None),
    ("evil", "Flatten", "Flatten"),
    ("keras.layers", "Flatten", "stranger>Flatten"),
    ("keras.layers", "Flatten", ["Flatten"]),
    (["keras.layers"], "Flatten", None),
    ("keras.layers", {"class_name": "Flatten"}, None),
]
BAD = {"module": "keras.layers", "class_name": "Lambda", "config": {"function": "evil"}}
FUNCTION = {"class_name": "function", "config": "run", "module": "evil", "registered_name": "run"}
SPEC = {"class_name": "__typespec__", "spec_name": "Layer", "module": "evil", "registered_name": None}


def placed(key, value):
    """Set an argument of the last layer, whose weights and name stay."""

    def change(config):
        config["config"]["layers"][-1]["config"][key] = value

    return change


def instead(*layers):
    """Put layers in front of the others."""

    def change(config):
        config["config"]["layers"][1:1] = layers

    return change


def layer(class_name, module="keras.layers", **config):
    return {"module": module, "class_name": class_name, "config": config, "registered_name": None}


def at_top(key, value):
    return lambda config: config.update({key: value})


PLACES = {
    "in a wrapper": instead(layer("TimeDistributed", layer=BAD)),
    "in two wrappers": instead(layer("TimeDistributed", layer=layer("SpectralNormalization", layer=BAD))),
    "both ways": instead(layer("Bidirectional", layer=BAD)),
    "in a cell": instead(layer("RNN", cell=BAD)),
    "in a network": instead(layer("Sequential", "keras", layers=[BAD])),
    "in a pipeline": instead(layer("Pipeline", layers=[BAD])),
    "in no known key": placed("anything", {"deep": [[{"in": BAD}]]}),
    "as initializer": placed("kernel_initializer", BAD),
    "as an initializer of code": placed("bias_initializer", FUNCTION),
    "as regularizer": placed("kernel_regularizer", FUNCTION),
    "as constraint": placed("kernel_constraint", {"class_name": "Layer", "module": "evil", "config": {}}),
    "as activation": placed("activation", FUNCTION),
    "as a lambda": placed("activation", {"class_name": "__lambda__", "config": {"value": "4wAAAA=="}}),
    "as an activation elsewhere": placed("activation", FUNCTION | {"module": "os", "config": "getcwd"}),
    "as a type": placed("activation", SPEC | {"config": []}),
    "as dtype": placed("dtype", {"class_name": "Layer", "module": "evil", "config": {}}),
    "as a tensor": placed("activation", {"class_name": "__tensor__", "module": "evil", "config": {}}),
    "as a long text": placed(
        "kernel_initializer", {"class_name": "__numpy__", "config": {"value": ["a"], "dtype": "U900000000"}}
    ),
    "in build_config": lambda config: config["config"]["layers"][-1].update(build_config={"a": BAD}),
    "as quantisation": placed("quantization_config", FUNCTION),
    "as no network": at_top("class_name", "Dense"),
    "at the top": at_top("module", "evil"),
    "without class": at_top("class_name", None),
    "without layers": at_top("config", {}),
    "layers of text": at_top("config", {"name": "a", "layers": "evil"}),
    # monstrous shapes; the file has 20 kB
    "units": placed("units", 10**9),
    "many units": placed("units", 10**30),
    "units below zero": placed("units", -(10**9)),
    "a kernel": instead(layer("Conv2D", filters=10**6, kernel_size=[24, 36])),
    "a vocabulary": instead(layer("Embedding", input_dim=10**9, output_dim=1)),
    "a built shape": instead(
        layer("BatchNormalization") | {"build_config": {"input_shape": [None, 1, 1, 10**9]}}
    ),
    "an image": lambda config: config["config"]["layers"][0]["config"].update(
        batch_shape=[None, 10**5, 10**5, 3]
    ),
    "upsampled": instead(layer("UpSampling2D", size=[10**4, 10**4])),
    "padded": instead(layer("ZeroPadding2D", padding=[10**5, 10**5])),
    "resized": instead(layer("Resizing", height=10**5, width=10**5)),
    "repeated": instead(
        layer("Reshape", target_shape=[2592]),
        layer("RepeatVector", n=10**7),
        layer("GlobalAveragePooling1D"),
        layer("Reshape", target_shape=[24, 36, 3]),
    ),
    "one-hot": instead(layer("CategoryEncoding", num_tokens=10**9)),
    "in each part": instead(
        layer("TimeDistributed", layer=layer("Sequential", "keras", name="a", layers=[layer("Flatten")]))
    ),
    "very deep": placed("anything", json.loads("[" * 900 + "]" * 900)),
    "many layers": instead(*[layer("Activation", activation="relu")] * 30_000),
}


# --- hostile: archives and weights --------------------------------------------------------------------------


def h5(change):
    """Change the weights of a plain model."""

    def make(place, good):
        with io.BytesIO(good[WEIGHTS]) as buffer:
            with h5py.File(buffer, "a") as file:
                change(file, place.parent)
            packed(place, good | {WEIGHTS: buffer.getvalue()})

    return make


def kernel(file):
    group = file["layers/dense/vars"]
    return group, "0", group["0"][()]


def h5_external_link(file, folder):
    group, name, value = kernel(file)
    with h5py.File(folder / "other.h5", "w") as other:
        other["kernel"] = value
    del group[name]
    group[name] = h5py.ExternalLink(str(folder / "other.h5"), "kernel")


def h5_external_group(file, folder):
    h5_external_link(file, folder)
    del file["layers"]
    file["layers"] = h5py.ExternalLink(str(folder / "other.h5"), "/")


def h5_soft_link(file, folder):
    group, name, value = kernel(file)
    file["elsewhere"] = value
    del group[name]
    group[name] = h5py.SoftLink("/elsewhere")


def h5_hard_link(file, folder):
    file["layers/again"] = file["layers"]


def h5_external_storage(file, folder):
    group, name, value = kernel(file)
    del group[name]
    (folder / "other.bin").write_bytes(value.tobytes())
    group.create_dataset(name, value.shape, "f4", external=[(str(folder / "other.bin"), 0, value.nbytes)])


def h5_virtual(file, folder):
    group, name, value = kernel(file)
    with h5py.File(folder / "other.h5", "w") as other:
        other["kernel"] = value
    layout = h5py.VirtualLayout(value.shape, "f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "kernel", value.shape)
    del group[name]
    group.create_virtual_dataset(name, layout)


def h5_new(*arguments, **settings):
    def change(file, folder):
        group, name, _ = kernel(file)
        del group[name]
        group.create_dataset(name, *arguments, **settings)

    return h5(change)


def h5_attribute(file, folder):
    file.attrs.create("name", ["x" * 1000] * 50, dtype=h5py.string_dtype())


def h5_named_type(file, folder):
    file["layers/kind"] = np.dtype("f8")


def h5_with_a_zip_behind(name):
    def make(place, good):
        model = network(L.Dense(2, "softmax"), L.Lambda(lambda x: x))
        model.save(place.with_name("old.h5"))
        behind = packed(place.with_name("behind.zip"), good).read_bytes()
        content = place.with_name("old.h5").read_bytes() + behind
        for extra in ("old.h5", "behind.zip"):
            place.with_name(extra).unlink()
        place.with_name(name).write_bytes(content)

    return make


def other_members(changes, kind=zipfile.ZIP_STORED):
    return lambda place, good: packed(
        place, {name: data for name, data in (good | changes).items() if data is not None}, kind
    )


def member_twice(place, good):
    packed(place, good)
    with zipfile.ZipFile(place, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("config.json", good["config.json"])


def declared(name, size, kind=zipfile.ZIP_DEFLATED):
    """Declare another size of a member than it has, in both headers."""

    def make(place, good):
        data = b" " * (600 * 2**20) if kind else good[name]
        packed(place, good | {name: data}, kind)
        content = bytearray(place.read_bytes())
        true = len(data).to_bytes(4, "little")
        place.write_bytes(content.replace(true, size.to_bytes(4, "little")))

    return make


def cut(end):
    def make(place, good):
        packed(place, good)
        place.write_bytes(place.read_bytes()[:end])

    return make


def written(content):
    return lambda place, good: place.write_bytes(content)


def keras_2(place, good):
    config = json.loads(good["config.json"])
    config["module"] = "keras.src.engine.sequential"
    packed(place, good | {"config.json": json.dumps(config).encode()})


def nested_many_times(place, good):
    """Networks that each call the one within them twice: 2**40 calls."""
    inner = layer("Sequential", "keras", layers=[layer("Activation", activation="relu")])
    for _ in range(40):
        node = {"args": [], "kwargs": {}}
        inner = layer(
            "Functional",
            "keras.src.models.functional",
            layers=[inner | {"inbound_nodes": [node, node]}],
        )
    packed(place, good | {"config.json": json.dumps(inner).encode()})


def old_hdf5(place, good):
    network(L.Dense(2, "softmax")).save(place.with_suffix(".h5"))
    place.with_suffix(".h5").rename(place)


def attending(attend):
    """A network of 20 kB whose scores of each pixel for each other are 6 GB."""

    def make(place, good):
        image = keras.Input(SHAPE)
        pixels = L.Reshape((40000, 3))(L.Resizing(200, 200)(image))
        pooled = L.GlobalAveragePooling1D()(attend(pixels))
        keras.Model(image, L.Dense(1, "sigmoid")(pooled)).save(place)

    return make


def products(x):
    return keras.ops.mean(keras.ops.matmul(x, keras.ops.transpose(x, (0, 2, 1))), axis=-1, keepdims=True)


BOMB = b"\0" * (600 * 2**20)
ARCHIVES = {
    "an unknown member": other_members({"evil.py": b"import os"}),
    "an asset": other_members({"assets/layers/a/vocabulary.txt": b"a"}),
    "a path": other_members({"../../evil.txt": b"a"}),
    "an absolute path": other_members({"/tmp/evil.txt": b"a"}),
    "a member twice": member_twice,
    "split weights": other_members({WEIGHTS: None, "model.weights.json": b"{}"}),
    "no weights": other_members({WEIGHTS: None}),
    "no config": other_members({"config.json": None}),
    "no metadata": other_members({"metadata.json": None}),
    "config no object": other_members({"config.json": b"[]"}),
    "config no JSON": other_members({"config.json": b"import os"}),
    "config of great numbers": other_members({"config.json": b"1" * 10**5}),
    "config of great depth": other_members({"config.json": b"[" * 10**6}),
    "config a bomb": other_members({"config.json": BOMB}, zipfile.ZIP_DEFLATED),
    "metadata a bomb": other_members({"metadata.json": BOMB}, zipfile.ZIP_DEFLATED),
    "weights a bomb": other_members({WEIGHTS: BOMB}, zipfile.ZIP_DEFLATED),
    "facts a bomb": other_members({"bcdlib.json": BOMB}, zipfile.ZIP_DEFLATED),
    "config small it says": declared("config.json", 1000),
    "weights small it says": declared(WEIGHTS, 1000),
    "packed by lzma": other_members({}, zipfile.ZIP_LZMA),
    "packed by bzip2": other_members({"metadata.json": b" " * 2**16}, zipfile.ZIP_BZIP2),
    "facts of a wrong kind": other_members({"bcdlib.json": b'{"key": [1], "task": {}}'}),
    "facts of a wrong task": other_members({"bcdlib.json": b'{"key": "resnet50", "task": "subtype"}'}),
    "facts of a wrong stain": other_members({"bcdlib.json": b'{"key": "a", "stain": {"kind": "evil"}}'}),
    "facts of endless stain": other_members(
        {"bcdlib.json": b'{"key": "a", "stain": {"kind": "reinhard", "values": [[1,2,NaN],[1,2,3]]}}'}
    ),
    "cut": cut(-900),
    "cut early": cut(5000),
    "empty": written(b""),
    "a pickle": written(b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR."),
    "PyTorch": lambda place, good: packed(place, {"archive/data.pkl": b"\x80\x02}q\x00."}),
    "HDF5 of Keras 2": old_hdf5,
    "HDF5 with a zip behind": h5_with_a_zip_behind("m.keras"),
    "Keras 2": keras_2,
    "Keras 2 by its metadata": other_members({"metadata.json": b'{"keras_version": "2.15.0"}'}),
    "a folder": lambda place, good: place.mkdir(),
    "nested many times": nested_many_times,
    "attention": attending(lambda x: L.Attention()([x, x])),
    "additive attention": attending(lambda x: L.AdditiveAttention()([x, x])),
    "attention of heads": attending(lambda x: L.MultiHeadAttention(1, 1)(x, x)),
    "attention of groups": attending(lambda x: L.GroupQueryAttention(1, 1, 1)(x, x)),
    "dot": attending(lambda x: L.Dot(axes=2)([x, x])),
    "products": attending(products),
    "external link": h5(h5_external_link),
    "external group": h5(h5_external_group),
    "soft link": h5(h5_soft_link),
    "hard link in a circle": h5(h5_hard_link),
    "external storage": h5(h5_external_storage),
    "virtual": h5(h5_virtual),
    "packed kernel": h5_new((30000, 30000), "f4", chunks=(1000, 1000), compression="gzip"),
    "kernel without bytes": h5_new((2592, 400000), "f4"),
    "kernel of fill values": h5_new((2592, 2), "f4", chunks=(2592, 2), fillvalue=1.0),
    "kernel of words": h5_new(data=["a", "b"], dtype=h5py.string_dtype()),
    "kernel of records": h5_new(data=np.zeros(3, [("a", "f4"), ("b", "f4")])),
    "kernel of another shape": h5_new(data=np.zeros((7, 2), "f4")),
    "kernel of references": h5_new((2,), h5py.ref_dtype),
    "long attribute": h5(h5_attribute),
    "named type": h5(h5_named_type),
    "weights no HDF5": other_members({WEIGHTS: b"evil"}),
}


def with_class(module, name, registered):
    def change(config):
        config["config"]["layers"][2] |= {
            "module": module,
            "class_name": name,
            "registered_name": registered,
            "config": {"name": "flatten", "function": "evil", "vocabulary": "/etc/passwd", "filepath": "."},
        }

    return change


def configured(change):
    def make(place, good):
        config = json.loads(good["config.json"])
        change(config)
        packed(place, good | {"config.json": json.dumps(config).encode()})

    return make


HOSTILE = (
    {f"{module}:{name} {registered or ''}": configured(with_class(module, name, registered))
     for module, name, registered in NAMED}
    | {name: configured(change) for name, change in PLACES.items()}
    | ARCHIVES
)  # fmt: skip


class Watch:
    """Sees what this process opens, imports and starts: `sys.addaudithook` cannot be taken away again."""

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        if not self.on:
            return
        if event in ("open", "os.remove", "os.rename", "os.mkdir", "os.listdir"):
            self.seen.append((event, os.fspath(arguments[0]) if not isinstance(arguments[0], int) else ""))
            if event == "os.remove" and arguments[1] != -1:  # below an open folder: of our temporary one
                assert self.seen.pop()[1] == WEIGHTS
        elif event in ("subprocess.Popen", "os.system", "os.exec", "socket.connect", "pickle.find_class"):
            self.seen.append((event, str(arguments)))
        elif event == "exec" and getattr(arguments[0], "co_filename", "").startswith("<"):
            self.seen.append((event, arguments[0].co_filename))


@pytest.fixture(scope="module")
def watch(good, tmp_path_factory):
    place = packed(tmp_path_factory.mktemp("first") / "m.keras", good)
    methods.load_method(place).predict_proba(X)  # imports what it needs
    return Watch()


def memory(kind="VmHWM") -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind + ":"))


def touched(watch, place) -> list:
    """Files that belong neither to the model, to Python and its packages, nor to a folder for its weights."""
    own = (str(place), "/proc/", "/sys/", sys.prefix, sys.base_prefix, str(Path(keras.__file__).parent))
    return [
        (event, name)
        for event, name in watch.seen
        if not str(name).startswith(own)
        and not ("/tmp" in str(name) and Path(str(name)).parts[-2:-1] and _temporary(str(name)))
        and not str(name).endswith((".py", ".pyc"))
    ]


def _temporary(name: str) -> bool:
    import tempfile

    inner = (
        Path(name).relative_to(tempfile.gettempdir()).parts if name.startswith(tempfile.gettempdir()) else ()
    )
    return bool(inner) and inner[0].startswith("tmp") and inner[1:] in ((), (WEIGHTS,))


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that a hostile file may name; it leaves a mark when it is imported or called."""
    mark, folder = tmp_path / "mark", tmp_path / "modules"
    folder.mkdir()
    (folder / "evil.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "class Layer:\n    from_config = _deserialize = classmethod(lambda *a: None)\n"
        "Flatten = Layer\ndef run(*a): return a[0]\n"
    )
    monkeypatch.syspath_prepend(folder)
    yield mark
    sys.modules.pop("evil", None)


@pytest.mark.faults
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_models(name, good, evil, watch, tmp_path, monkeypatch, record_property):
    folder = tmp_path / "here"
    folder.mkdir()
    place = folder / "m.keras"
    HOSTILE[name](place, copy.deepcopy(good))
    monkeypatch.chdir(folder)
    before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in folder.rglob("*")}
    for file in folder.rglob("other.*"):
        os.utime(file, ns=(0, file.stat().st_mtime_ns))
    Path("/proc/self/clear_refs").write_text("5")
    base, watch.seen, watch.on = memory("VmRSS"), [], True
    try:
        with pytest.raises(InputError) as error:
            methods.load_method(place).predict_proba(X)
    finally:
        watch.on = False
    used = memory() - base
    text = str(error.value)
    assert text.startswith(f"{place}: ") and len(text) < 700 and len(text.splitlines()) == 1
    assert not evil.exists() and "evil" not in sys.modules, "code ran"
    assert touched(watch, place) == [], "files were touched"
    assert {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in folder.rglob("*")} == before
    assert all(file.stat().st_atime == 0 for file in folder.rglob("other.*")), "another file was read"
    assert used < MEMORY, f"{used / 2**20:.0f} MiB"
    record_property("faults", dict(kind="hostile model", tried=1, survived=0, reported=1, lost=0))


def test_the_watch_sees(watch, tmp_path):
    """Else the test above asserts nothing."""
    (tmp_path / "file").write_text("a")
    os.utime(tmp_path / "file", (0, 1))
    watch.seen, watch.on = [], True
    (tmp_path / "file").read_text()
    eval(compile("1", "<lambda>", "eval"))
    watch.on = False
    assert [event for event, _ in touched(watch, tmp_path / "m.keras")] == ["open", "exec"]
    base = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    np.ones(2**27)
    assert memory() - base > 0.9 * 2**30


def test_at_least_sixty():
    assert len(HOSTILE) >= 60


@pytest.mark.parametrize(
    "compiled",
    [BAD, {"loss": FUNCTION}, {"optimizer": {"class_name": "Layer", "module": "evil", "config": {}}}],
)
def test_what_belongs_to_training_is_left_out(compiled, good, evil, tmp_path):
    """Networks with a loss of their own are common: they load, and the loss is not looked at."""
    configured(at_top("compile_config", compiled))(tmp_path / "m.keras", good)
    assert methods.load_method(tmp_path / "m.keras").predict_proba(X).shape == (3, 2)
    assert not evil.exists()


def test_every_layer_of_keras_has_been_looked_at():
    """A layer that a new Keras brings is refused until it stands in one of the two lists."""
    left_out = """
        AdaptiveAveragePooling3D AdaptiveMaxPooling3D ConvLSTM3D Discretization FlaxLayer HashedCrossing
        Hashing IntegerLookup JaxLayer Lambda Layer MaxNumBoundingBoxes MelSpectrogram ReversibleEmbedding
        STFTSpectrogram StringLookup TFSMLayer TextVectorization TorchModuleWrapper Wrapper
    """.split()
    known = {name for module, name in _foreign._CLASSES if module == "keras.layers"}
    there = {one.__name__ for one in vars(L).values() if isinstance(one, type) and issubclass(one, L.Layer)}
    assert there <= known | set(left_out) and not known & set(left_out)


@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0", "ConvNeXtTiny", "DenseNet121"])
def test_usual_networks_are_loaded(name, tmp_path):
    base = getattr(keras.applications, name)(
        weights=None, include_top=False, input_shape=(64, 64, 3), pooling="avg"
    )
    model = keras.Sequential([keras.Input((64, 64, 3)), L.RandomFlip(), base, L.Dropout(0.2), L.Dense(1)])
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype="uint8")
    found = methods.load_method(saved(tmp_path / "m.keras", model)).predict_proba(images)
    # step by step: to compile a large network takes longer
    own = np.asarray(model(images, training=False))[:, 0]
    np.testing.assert_allclose(found[:, 1], sigmoid(own), atol=1e-6)


# --- any change ---------------------------------------------------------------------------------------------

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**40),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        [BAD, FUNCTION, {}, [], [[]], 10**30, "float8", "int8", "channels_first", "relu", "evil"]
    ),
)


def _paths(part, path=()):
    yield path
    inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, value in inner:
        yield from _paths(value, (*path, key))


@st.composite
def changed_models(draw, good):
    """The bytes of a good model with values of its configuration, or bytes of a member or of all, changed."""
    content, config = dict(good), json.loads(good["config.json"])
    for _ in range(draw(st.integers(0, 3))):
        *path, last = draw(st.sampled_from([path for path in _paths(config) if path]))
        part = config
        with contextlib.suppress(KeyError, IndexError, TypeError):
            for key in path:
                part = part[key]
            part[last] = copy.deepcopy(draw(values))  # which a later change may change
    content["config.json"] = json.dumps(config).encode()

    def damaged(data: bytes) -> bytes:
        if not data or draw(st.integers(0, 3)):
            return data
        place, length = draw(st.integers(0, len(data) - 1)), draw(st.sampled_from([0, 1, 4, 64]))
        return data[:place] + draw(st.binary(max_size=8)) + data[place + length :]

    buffer = io.BytesIO()
    packed(buffer, {name: damaged(data) for name, data in content.items()})
    return damaged(buffer.getvalue())


@pytest.fixture(scope="module")
def small():
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            L.Conv2D(2, 3, activation="relu", kernel_regularizer="l2"),
            L.BatchNormalization(),
            L.GlobalAveragePooling2D(),
            L.Dense(1),
        ]
    )
    model.compile("adam", "binary_crossentropy")
    buffer = Path(os.environ.get("TMPDIR", "/tmp")) / f"small-{os.getpid()}.keras"
    model.save(buffer)
    content = members(buffer)
    buffer.unlink()
    return content


@settings(
    max_examples=int(os.environ.get("BCD_EXAMPLES", 40)),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_any_change_gives_an_answer_or_one_line(data, small, tmp_path, evil):
    place = tmp_path / "m.keras"
    place.write_bytes(data.draw(changed_models(small)))
    try:
        found = methods.load_method(place).predict_proba(X[:1])
    except InputError as error:
        assert str(error).startswith(f"{place}: ") and len(str(error).splitlines()) == 1
    else:
        assert np.isfinite(found).all() and (found >= 0).all() and (found <= 1).all()
        np.testing.assert_allclose(found.sum(axis=1), 1)
    assert not evil.exists()
