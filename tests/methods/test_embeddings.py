"""Vectors from files and encoders from presets, judged as all else."""

import importlib.util
import json

import h5py
import keras
import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from bcdlib import methods
from bcdlib.data import breakhis, splits, vectors
from bcdlib.data.cache import resized_cache
from bcdlib.errors import InputError
from bcdlib.methods.parts import encoders
from bcdlib.runs.profiles import get_profile
from bcdlib.trials import comparison
from bcdlib.trials.trial import Trial, run_trial
from tests.command import here

NAMES = breakhis.known_images()["filename"].tolist()[:6]
X = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")
ORDER = [3, 1, 0, 5, 4, 2]  # of the files; and one vector more
STEMS = [NAMES[row].removesuffix(".png") for row in ORDER]


def patches(row):
    """Vectors of four patches with the row's mean, as whole-slide tools write them."""
    noise = np.random.default_rng(row).normal(size=(4, 5))
    return (X[row] + noise - noise.mean(axis=0)).astype("float32")


def npz(folder):
    np.savez(
        folder / "v.npz", names=[*STEMS, "other"], embeddings=np.vstack([X[ORDER], X[:1]]), label=np.ones(7)
    )
    return folder / "v.npz"


def npz_by_image(folder):
    np.savez(folder / "v.npz", other=X[0], **{stem: X[row] for stem, row in zip(STEMS, ORDER)})
    return folder / "v.npz"


def npy(folder):
    np.save(folder / "v.npy", np.vstack([X[ORDER], X[:1]]).astype("float64"))
    paths = [f"D:\\scans\\{stem.lower()}.JPG" for stem in STEMS] + ["other.png"]
    pd.DataFrame({"filename": paths, "label": 0}).to_csv(folder / "v.csv", index=False)
    return folder / "v.npy"


def hdf5(folder):
    with h5py.File(folder / "v.h5", "w") as file:
        file.create_dataset("features", data=np.vstack([X[ORDER], X[:1]]), compression="gzip")
        file["filenames"] = [*(f"a/{stem}.png" for stem in STEMS), "other"]
        file["coords"] = np.zeros((7, 2), "int64")
    return folder / "v.h5"


def hdf5_by_image(folder):
    with h5py.File(folder / "v.h5", "w") as file:
        for name, row in zip([*STEMS, "other"], [*ORDER, 0]):
            file[f"{name}/features"], file[f"{name}/coords"] = patches(row), np.zeros((4, 2))
    return folder / "v.h5"


def folder_of_hdf5(folder):
    (folder / "v").mkdir()
    for name, row in zip([*STEMS, "other"], [*ORDER, 0]):
        with h5py.File(folder / "v" / f"{name}.h5", "w") as file:
            file["features"], file["coords"] = patches(row)[None][0], np.zeros((4, 2))
    return folder / "v"


def parquet(folder):
    pytest.importorskip("pyarrow")
    table = pd.DataFrame(np.vstack([X[ORDER], X[:1]]), columns=[f"f{place}" for place in range(5)])
    facts = {"label": 1, "magnification": 40, "year": 14, "sequence": 1, "fold_1": 0}  # no features
    table.assign(filename=[*STEMS, "other"], **facts).to_parquet(folder / "v.parquet")
    return folder / "v.parquet"


def parquet_of_lists(folder):
    pytest.importorskip("pyarrow")
    table = pd.DataFrame({"path": [*STEMS, "other"], "embedding": [*X[ORDER].tolist(), X[0].tolist()]})
    table.to_parquet(folder / "v.parquet")
    return folder / "v.parquet"


@pytest.mark.parametrize(
    "make", [npz, npz_by_image, npy, hdf5, hdf5_by_image, folder_of_hdf5, parquet, parquet_of_lists]
)
def test_the_same_vectors_from_every_kind_of_file(make, tmp_path):
    found, extra = vectors.match_vectors(make(tmp_path), NAMES)
    assert found.dtype == "float32" and extra == 1
    np.testing.assert_allclose(found, X, atol=1e-6)
    with pytest.raises(
        InputError, match=r"no vector of 1 of 7 images, the first new.png \(1 of its 7 vectors"
    ):
        vectors.match_vectors(make_again(make, tmp_path), [*NAMES, "new.png"])


def make_again(make, folder):
    (folder / "again").mkdir()
    return make(folder / "again")


def test_names_that_are_alike_but_for_their_folders(tmp_path):
    np.savez(tmp_path / "v.npz", filename=["p/1", "q/1"], x=X[:2])
    assert (vectors.match_vectors(tmp_path / "v.npz", ["q/1.jpg", "p/1.tif"])[0] == X[[1, 0]]).all()
    np.savez(tmp_path / "v.npz", filename=["far/p/1", "far/q/1"], x=X[:2])
    with pytest.raises(InputError, match="no vector of 2 of 2 images"):
        vectors.match_vectors(tmp_path / "v.npz", ["q/1.jpg", "p/1.tif"])
    np.savez(tmp_path / "v.npz", filename=["far/1", "near/1"], x=X[:2])
    with pytest.raises(InputError, match="two different vectors of 1"):
        vectors.match_vectors(tmp_path / "v.npz", ["1.png"])


def test_files_that_cannot_be_used(tmp_path):
    def refused(match, file="v.npz", **arrays):
        if arrays:
            np.savez(tmp_path / file, **arrays)
        with pytest.raises(InputError, match=match) as caught:
            vectors.match_vectors(tmp_path / file, NAMES)
        assert len(str(caught.value).splitlines()) == 1

    refused("finite", filename=NAMES, x=np.where(np.arange(5) == 2, np.nan, X))
    refused("no names of images", embeddings=X)
    refused(r"holds filename \(6,\), x \(5, 5\)", filename=NAMES, x=X[:5])
    refused("is no vector", **{STEMS[0]: np.zeros((2, 2, 2))})
    refused("4 to 5 numbers", **{STEMS[0]: X[0], STEMS[1]: X[0, :4]})
    refused("cannot be read|can be read", filename=np.array([{}], dtype=object), x=X[:1])  # a pickle
    refused("no such", "w.npz")
    (tmp_path / "v.csv").write_text("a")
    refused("none of .npz", "v.csv")
    (tmp_path / "v.h5").write_bytes(b"no HDF5")
    refused("can be read", "v.h5")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = X
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["filename"], file["x"] = NAMES, h5py.ExternalLink("secret.h5", "x")
    refused("x in it is no plain array", "v.h5")


TINY = get_profile("demo", size=(48, 32))


def test_the_same_figures_as_the_built_in_path(cache, weights_dir, tmp_path):
    """Vectors of Keras' own MobileNetV2, from a file, against the method that computes them itself."""
    split = splits.make_split(cache.images, "case", folds=3)
    built_in = Trial("encoder:preset=mobilenet_v2", "case", split)
    assert built_in.label == "encoder-preset=mobilenet_v2"
    first = run_trial(built_in, cache, TINY, root=tmp_path, weights=str(weights_dir), verbose=0)
    base = keras.applications.MobileNetV2(
        include_top=False,
        weights=str(weights_dir / "mobilenet_v2_notop.weights.h5"),
        input_shape=cache.pixels.shape[1:],
        pooling="avg",
    )
    pixels = keras.applications.mobilenet_v2.preprocess_input(cache.pixels.astype("float32"))
    found = np.array(built_in.estimator(TINY, str(weights_dir)).inputs(cache))
    np.testing.assert_allclose(found, base.predict(pixels, verbose=0), atol=1e-4)
    names = cache.images["filename"].to_numpy(str)
    np.savez(tmp_path / "mine.npz", filename=names, embeddings=found)
    given = Trial(f"embeddings:file={tmp_path / 'mine.npz'}", "case", split)
    assert given.label == "embeddings-file=mine.npz"
    second = run_trial(given, cache, TINY, root=tmp_path, verbose=0)
    assert set(second.predictions["weights"]) == {"vectors of mine.npz"}
    for table in ("predictions", "validation"):
        ours, theirs = (getattr(result, table)["probability"] for result in (first, second))
        np.testing.assert_allclose(theirs, ours, atol=1e-6)
    assert not (second.folder / "model.keras").exists()  # it would be of vectors
    np.savez(tmp_path / "mine.npz", filename=names, embeddings=found[::-1])
    other = run_trial(given, cache, TINY, root=tmp_path, verbose=0)  # the content counts, not the path
    assert other.folder != second.folder and not other.predictions.equals(second.predictions)


def test_two_files_of_one_name_are_refused(tmp_path):
    files = [f"embeddings:file={tmp_path / folder / 'v.npz'}" for folder in "ab"]
    assert comparison.expand_methods([files[0], files[0]]) == files[:1]
    with pytest.raises(InputError, match="both are called embeddings-file=v.npz in the tables; rename one"):
        comparison.expand_methods(files)


def test_a_file_and_the_method_named_too_are_one(tiny, tiny_names, tmp_path):
    vectors_of = np.random.default_rng(0).normal(size=(len(tiny_names), 3))
    np.savez(tmp_path / "v.npz", filename=np.array(tiny_names), embeddings=vectors_of)
    words = ["compare", "--data", tiny, "--profile", "demo", "--splits", "image", "--folds", "2"]
    words += ["--embeddings", tmp_path / "v.npz", "--out", tmp_path / "run"]
    for names, label in (
        ("embeddings", "embeddings-file=v.npz"),
        ("embeddings:C=0.5", "embeddings-file=v.npz-C=0.5"),
    ):
        done = here(*words, "--methods", names, BCD_CACHE=str(tmp_path / "cache"))
        assert done.returncode == 0, done.stderr
        assert label in done.stdout and "Failed" not in done.stdout + done.stderr


def test_only_by_name():
    assert not {"embeddings", "encoder"} & set(methods.method_names())
    assert not {"embeddings", "encoder"} & set(comparison.expand_methods(["all"]))
    for name, advice in (("embeddings", "--embeddings FILE"), ("encoder", "encoder:preset=hf://")):
        with pytest.raises(InputError, match=advice):
            methods.get_method(name)().fit(np.zeros((2, 8, 8, 3), "uint8"), [0, 1])


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A tiny DINOv2 with random weights, as KerasHub stores it; images of 28 pixels in patches of 14."""
    keras_hub = pytest.importorskip("keras_hub", reason="KerasHub is an optional extra")
    folder = tmp_path_factory.mktemp("presets") / "tiny"
    keras.utils.set_random_seed(0)
    network = keras_hub.models.DINOV2Backbone(
        patch_size=14,
        num_layers=2,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        image_shape=(28, 28, 3),
        position_embedding_shape=(28, 28),
        num_register_tokens=3,
    )
    network.save_to_preset(str(folder))
    converter = keras_hub.layers.DINOV2ImageConverter(image_size=(28, 28), scale=1 / 127.5, offset=-1.0)
    converter.save_to_preset(str(folder))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# Tiny\n")
    return folder, network


def test_an_encoder_from_a_folder_of_kerashub(preset, cache, tmp_path):
    folder, network = preset
    split = splits.make_split(cache.images, "case", folds=3)
    trial = Trial(f"encoder:preset={folder}", "case", split)
    result = run_trial(trial, cache, TINY, root=tmp_path, verbose=0)
    assert set(result.predictions["weights"]) == {"tiny (licence of its weights: apache-2.0)"}
    assert result.trial.label == "encoder-preset=tiny"
    method = trial.estimator(TINY)
    found = method.inputs(cache)
    pixels = resized_cache(cache, (28, 28)).pixels
    wanted = network.predict(pixels / np.float32(127.5) - 1, verbose=0)[:, 0]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    both = methods.get_method("encoder")(preset=str(folder), tokens="both", verbose=0).inputs(cache)
    np.testing.assert_allclose(both[:, :16], found, atol=1e-5)
    assert both.shape[1] == 32


@pytest.fixture
def dinov2(tmp_path):
    """A tiny DINOv2 with random weights, as transformers stores it: the folder, and its weights by name."""
    numpy_file = pytest.importorskip(
        "safetensors.numpy", reason="KerasHub reads this layout with safetensors"
    )
    rng, sizes = np.random.default_rng(0), {}
    for layer in (f"encoder.layer.{number}." for number in range(2)):
        for part in ("norm1", "norm2"):
            sizes |= {f"{layer}{part}.weight": (16,), f"{layer}{part}.bias": (16,)}
        for part, rows, columns in (
            *((f"attention.attention.{one}", 16, 16) for one in ("query", "key", "value")),
            ("attention.output.dense", 16, 16),
            ("mlp.fc1", 32, 16),
            ("mlp.fc2", 16, 32),
        ):
            sizes |= {f"{layer}{part}.weight": (rows, columns), f"{layer}{part}.bias": (rows,)}
        sizes |= {f"{layer}layer_scale{number}.lambda1": (16,) for number in (1, 2)}
    sizes |= {"layernorm.weight": (16,), "layernorm.bias": (16,), "embeddings.cls_token": (1, 1, 16)}
    sizes |= {"embeddings.mask_token": (1, 16), "embeddings.position_embeddings": (1, 5, 16)}
    sizes["embeddings.patch_embeddings.projection.weight"] = (16, 3, 14, 14)
    sizes["embeddings.patch_embeddings.projection.bias"] = (16,)
    weights = {name: rng.normal(0, 0.3, size).astype("float32") for name, size in sizes.items()}
    numpy_file.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "image_size": 28,
        "patch_size": 14,
        "layerscale_value": 1.0,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "use_swiglu_ffn": False,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "num_channels": 3,
        "qkv_bias": True,
    }
    processor = {
        "image_processor_type": "BitImageProcessor",
        "crop_size": {"height": 28, "width": 28},
        "size": {"shortest_edge": 28},
        "rescale_factor": 1 / 255,
        "image_mean": MEAN,
        "image_std": DEVIATION,
        **{f"do_{step}": True for step in ("resize", "center_crop", "rescale", "normalize")},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path, weights


MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def class_token(pixels, weights):
    """DINOv2's class token by its publication, with numpy alone; pixels (N, 28, 28, 3), normalised."""

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def dense(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    patches = pixels.reshape(-1, 2, 14, 2, 14, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 4, 3 * 14 * 14)
    name = "embeddings.patch_embeddings.projection"
    x = patches @ weights[f"{name}.weight"].reshape(16, -1).T + weights[f"{name}.bias"]
    first = np.broadcast_to(weights["embeddings.cls_token"], (len(x), 1, 16))
    x = np.concatenate([first, x], axis=1) + weights["embeddings.position_embeddings"]
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        y = norm(x, f"{layer}.norm1")
        q, k, v = (
            dense(y, f"{layer}.attention.attention.{one}").reshape(-1, 5, 2, 8).transpose(0, 2, 1, 3)
            for one in ("query", "key", "value")
        )
        seen = special.softmax(q @ k.transpose(0, 1, 3, 2) / np.sqrt(8), axis=-1) @ v
        y = dense(seen.transpose(0, 2, 1, 3).reshape(-1, 5, 16), f"{layer}.attention.output.dense")
        x = x + y * weights[f"{layer}.layer_scale1.lambda1"]
        y = dense(norm(x, f"{layer}.norm2"), f"{layer}.mlp.fc1")
        y = dense(y * stats.norm.cdf(y), f"{layer}.mlp.fc2")
        x = x + y * weights[f"{layer}.layer_scale2.lambda1"]
    return norm(x, "layernorm")[:, 0]


def test_an_encoder_in_the_layout_of_hugging_face(dinov2):
    """Against the publication's formulas, and where transformers is at hand, against it."""
    pytest.importorskip("keras_hub", reason="KerasHub is an optional extra")
    folder, weights = dinov2
    images = np.random.default_rng(1).integers(0, 256, (4, 28, 28, 3), dtype="uint8")
    inputs = keras.Input((28, 28, 3), dtype="uint8")
    x = encoders.append_encoder(keras.layers.Rescaling(1.0)(inputs), str(folder), "class")
    ours = keras.Model(inputs, x).predict(images, verbose=0)
    pixels = (images / 255 - MEAN) / DEVIATION
    np.testing.assert_allclose(ours, class_token(pixels, weights), atol=1e-3)
    assert encoders.load_encoder(str(folder)).licence == "not stated"
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("torch"):
        import torch
        import transformers

        theirs = transformers.Dinov2Model.from_pretrained(folder).eval()
        with torch.no_grad():
            wanted = theirs(torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)).last_hidden_state
        np.testing.assert_allclose(ours, wanted[:, 0].numpy(), atol=1e-3)


def test_an_encoder_that_cannot_be_had(tmp_path):
    with pytest.raises(InputError, match="encoder: "):
        methods.get_method("encoder")(preset=str(tmp_path / "none")).fit(
            np.zeros((2, 8, 8, 3), "uint8"), [0, 1]
        )
