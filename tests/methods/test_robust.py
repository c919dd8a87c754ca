"""Our own method: its features, its weights, and how it reads images at a size of its own."""

import functools
import json
import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from skimage.color import hed2rgb, rgb2hed
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from bcdlib import __main__, evaluate, methods
from bcdlib.data import breakhis, sources, splits, stain
from bcdlib.data.cache import build_cache, resized_cache
from bcdlib.data.decode import resize_image
from bcdlib.errors import InputError
from bcdlib.explain import gradcam
from bcdlib.methods.parts import backbones, features
from bcdlib.runs.profiles import get_profile
from bcdlib.trials import trial

pytestmark = pytest.mark.usefixtures("shallow")
SIZE = (48, 32)
TINY = get_profile("demo", size=SIZE)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    return shutil.copytree(tiny, tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def cache(folder, tmp_path_factory):
    source = sources.open_source(folder)
    return build_cache(
        source,
        breakhis.scan_breakhis(source).images,
        SIZE,
        root=tmp_path_factory.mktemp("cache"),
        progress=False,
    )


@pytest.fixture(scope="module")
def split(cache):
    return splits.make_split(cache.images, "case", folds=3)


@pytest.fixture(scope="module")
def method(cache):
    kind = methods.get_method("robust")
    y = breakhis.class_labels(cache.images)
    fitted = kind(weights="none", bases="resnet50", stages="34", verbose=0)
    return fitted.fit(cache.pixels[:60], y[:60], images=cache.images[:60])


def independent_features(X, stages=("conv3_block4_out", "conv4_block6_out")):
    keras.utils.set_random_seed(0)
    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=X.shape[1:])
    base = keras.Model(base.input, [base.get_layer(name).output for name in stages])
    # step by step: to compile a large network takes longer than to compute so few images
    feature_maps = base(keras.applications.resnet50.preprocess_input(X.astype("float32")), training=False)
    feature_maps = [np.asarray(one) for one in feature_maps]
    return np.hstack(
        [m.mean((1, 2)) for m in feature_maps] + [np.sqrt(m.var((1, 2)) + 1e-6) for m in feature_maps]
    )


def test_features_and_head_against_keras_and_scikit_learn(cache, method):
    y, case = breakhis.class_labels(cache.images)[:60], cache.images["case"][:60]
    X = independent_features(cache.pixels)
    found = features.extract_features(cache.pixels, "resnet50", method.weights_, pooling=method.pooling)
    np.testing.assert_allclose(found, X, rtol=1e-3, atol=1e-3 * X.std())
    per_case = case.map(case.value_counts()).to_numpy()
    weights = 1 / per_case
    for kind in (0, 1):
        weights[y == kind] *= 30 / weights[y == kind].sum()  # both classes half of 60
    scale = StandardScaler().fit(X[:60], sample_weight=weights)
    assert (np.abs(scale.transform(X)) > 5).any()  # some are cut off
    cut = scale.transform(X).clip(-5, 5)
    head = LogisticRegression(C=0.003, max_iter=2000).fit(cut[:60], y, sample_weight=weights)
    expected = head.predict_proba(cut[60:])
    np.testing.assert_allclose(method.predict_proba(cache.pixels[60:]), expected, atol=2e-3)


def test_two_bases_side_by_side(cache):
    """Xception's third stage ends where its fifth block begins."""
    settings = {"weights": "none", "stages": "3", "deviations": False, "verbose": 0}
    method = methods.get_method("robust")(**settings)
    X = cache.pixels[:4]
    method.fit(X, [0, 1, 0, 1])
    keras.utils.set_random_seed(0)
    base = keras.applications.Xception(include_top=False, weights=None, input_shape=(96, 144, 3))
    base = keras.Model(base.input, keras.ops.relu(base.get_layer("block5_sepconv1_act").input))
    larger = keras.ops.image.resize(X.astype("float32"), (96, 144))
    xception = np.asarray(base(keras.applications.xception.preprocess_input(np.array(larger)))).mean((1, 2))
    expected = np.hstack([independent_features(X)[:, :512], xception])
    np.testing.assert_allclose(method._prepared(X), expected, rtol=1e-3, atol=1e-3 * xception.std())


def test_saved_alone_in_a_new_process_and_its_maps(cache, method, tmp_path):
    method.save(tmp_path / "model.keras")
    np.save(tmp_path / "X.npy", cache.pixels[:5])
    code = (
        "import keras, numpy as np; network = keras.models.load_model('model.keras', safe_mode=True);"
        "np.save('p.npy', network.predict(np.load('X.npy'), verbose=0))"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""}
    )
    expected = method.predict_proba(cache.pixels[:5])[:, 1]
    np.testing.assert_allclose(np.load(tmp_path / "p.npy")[:, 0], expected, atol=1e-5)
    saved = methods.load_method(tmp_path / "model.keras")
    np.testing.assert_allclose(saved.predict_proba(cache.pixels[:5])[:, 1], expected, atol=1e-5)
    found = gradcam.compute_gradcam(saved.network, cache.pixels[:2])
    assert found.shape == (2, 32, 48) and np.isfinite(found).all() and found.max() == 1


def test_a_folder_of_another_laboratory_is_standardised_by_its_own_mean(cache, method, tmp_path):
    file, lab = str(tmp_path / "model.keras"), tmp_path / "lab"
    method.save(file)
    lab.mkdir()
    X = (cache.pixels[60:72] * 0.6).round().astype("uint8")  # darker
    for row, image in enumerate(X):
        Image.fromarray(image).save(lab / f"{row:02}.png")
    (lab / "99.png").write_text("no image")
    F = independent_features(X)
    mean, variance, _ = method.head_.get_layer("standardise").get_weights()
    kernel, bias = method.head_.get_layer("probability").get_weights()
    moved = (12 * F.mean(axis=0) + 20 * mean) / 32
    expected = 1 / (1 + np.exp(-(((F - moved) / np.sqrt(variance)).clip(-5, 5) / 5 @ kernel + bias)[:, 0]))
    said = CliRunner().invoke(__main__.main, ["predict", file, str(lab), "--adapt", "--json"])
    table = json.loads(said.stdout)
    np.testing.assert_allclose([row["probability"] for row in table[:12]], expected, atol=2e-3)
    assert {row["adapted"] for row in table} == {12} and "mean features of these 12 images" in said.stderr
    plain = evaluate.predict_files(file, [lab])  # the model itself is as it was
    np.testing.assert_allclose(plain["probability"][:12], method.predict_proba(X)[:, 1], atol=1e-5)
    assert np.abs(plain["probability"][:12] - expected).max() > 0.02 and "adapted" not in plain


def test_what_standardises_no_features_is_not_adapted(tmp_path):
    image = keras.Input((32, 48, 3))
    network = keras.layers.Dense(1, "sigmoid")(keras.layers.GlobalAveragePooling2D()(image))
    keras.Model(image, network).save(tmp_path / "other.keras")
    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="leave out --adapt"):
        evaluate.predict_files(tmp_path / "other.keras", [tmp_path / "a.png"], adapt=True)


def test_a_trial_reads_its_own_size_once(cache, split, tmp_path):
    def run(method, seed=0):
        return trial.run_trial(
            trial.Trial(method, "case", split, seed=seed, trainable="head"),
            cache,
            TINY,
            root=tmp_path,
            weights="none",
            verbose=0,
        )

    result = run("robust:bases=resnet50:size=64x40:stages=2")
    label = "robust-bases=resnet50-size=64x40-stages=2"
    assert result.trial.label == label == result.predictions["method"].unique().item()
    assert methods.load_method(result.folder / "model.keras").size == (64, 40)
    larger = resized_cache(cache, (64, 40))
    assert larger.size == (64, 40) and larger.images["filename"].tolist() == cache.images["filename"].tolist()
    name = cache.images["filename"][7]
    with Image.open(os.path.join(_place(cache), breakhis.official_path(name))) as image:
        expected = resize_image(np.asarray(image.convert("RGB")), (64, 40))
    np.testing.assert_allclose(larger.pixels[7].astype(int), np.asarray(expected, dtype=int), atol=1)
    rows = cache.rows(result.predictions["filename"])
    again = methods.load_method(result.folder / "model.keras").predict_proba(larger.pixels[rows])[:, 1]
    np.testing.assert_allclose(again, result.predictions["probability"], atol=1e-5)
    same = run("robust:bases=resnet50:size=cache:stages=2")
    assert methods.load_method(same.folder / "model.keras").size == SIZE
    assert not same.predictions["probability"].equals(result.predictions["probability"])


def _place(cache):
    return json.loads((cache.folder / "cache.json").read_text())["made_from"]


def test_a_source_that_is_gone_is_told(cache, folder):
    moved = folder.rename(folder.parent / "elsewhere")
    try:
        with pytest.raises(InputError, match=str(folder)):
            resized_cache(cache, (20, 10))
    finally:
        moved.rename(folder)


def test_stain_copies_and_eight_subtypes(cache, split, tmp_path):
    settings = "robust:bases=resnet50:size=cache:stages=2"
    plain, jittered = (
        trial.run_trial(
            trial.Trial(f"{settings}{more}", "case", split, task="subtype"),
            cache,
            TINY,
            root=tmp_path,
            weights="none",
            verbose=0,
        )
        for more in ("", ":stain_copies=1")
    )
    for result in (plain, jittered):
        eight = result.predictions[[f"p_{subtype}" for subtype in breakhis.SUBTYPES]]
        np.testing.assert_allclose(eight.sum(axis=1), 1, atol=1e-6)
    assert np.abs(plain.predictions["probability"] - jittered.predictions["probability"]).max() > 1e-4


@pytest.mark.parametrize(
    "change, message",
    [
        ("robust:stage=2", "no parameter 'stage'"),
        ("robust:C=strong", "C='strong'; give float"),
        ("robust:deviations=no", "give bool"),
        ("robot:C=1", "unknown method 'robot'"),
    ],
)
def test_settings_that_do_not_exist(change, message):
    with pytest.raises(InputError, match=message):
        methods.method_settings(change)


@pytest.mark.parametrize(
    "change, message", [("stages", "16"), ("balance", "fair"), ("size", "large"), ("bases", "vgg16")]
)
def test_values_that_do_not_exist(change, message, cache):
    with pytest.raises(InputError, match=message):
        methods.get_method("robust")(weights="none", **{change: message}).inputs(cache)


@pytest.mark.parametrize("C", [-1.0, 0.0, float("nan"), float("inf"), "strong"])
def test_a_penalty_that_cannot_be(C, cache):
    with pytest.raises(InputError, match=r"robust: C=.*; give a number above 0"):
        methods.get_method("robust")(weights="none", C=C).inputs(cache)


@pytest.mark.parametrize(
    "method, name, value",
    [
        ("lenet5", "learning_rate", -1.0),
        ("lenet5", "batch_size", -3),
        ("lenet5", "epochs", float("nan")),
        ("lenet5", "steps_per_epoch", -2),
        ("lenet5", "seed", -1),
        ("csdcnn", "margin", float("inf")),
        ("robust", "stain_copies", -1),
    ],
)
def test_numbers_that_cannot_be(method, name, value, cache):
    with pytest.raises(InputError, match=f"{method}: {name}=.*; give 0 or more"):
        methods.get_method(method)(weights="none", **{name: value}).inputs(cache)


def test_settings_get_the_types_of_the_defaults():
    assert methods.method_settings("robust") == {}
    found = methods.method_settings("robust:stages=4:C=1:deviations=false:stain=macenko:stain_copies=2")
    assert found == {"stages": "4", "C": 1.0, "deviations": False, "stain": "macenko", "stain_copies": 2}


def test_jitter_against_scikit_image():
    # scikit-image cuts negative amounts off, so images that have none
    X = (hed2rgb(np.random.default_rng(0).uniform(0.03, 0.08, (2, 6, 5, 3))) * 255).round().astype("uint8")
    found = stain.jitter_stain(X, [3, 1])
    assert found.dtype == np.uint8 and np.array_equal(found, stain.jitter_stain(X, [3, 1]))
    assert not np.array_equal(found, stain.jitter_stain(X, [3, 2]))
    assert np.abs(stain.jitter_stain(X, 0, strength=0, shift=0).astype(int) - X).max() <= 1
    random = np.random.default_rng([3, 1, 0])
    factor, shift = random.uniform(0.7, 1.3, 3), random.uniform(-0.03, 0.03, 3)
    # scikit-image scales its densities by log(1e-6): the same change in its units
    amounts = rgb2hed(X[0]) * factor
    norms = np.linalg.norm([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], axis=1)
    expected = hed2rgb(amounts + shift / 6 / norms) * 255
    assert np.abs(found[0] - expected).mean() < 2


def test_pooling_of_unknown_stages(cache):
    with pytest.raises(InputError, match="digits from 2 to 5"):
        methods.get_method("robust")(weights="none", stages="").fit(cache.pixels[:4], [0, 1, 0, 1])
    x = keras.Input((32, 48, 3))
    pooled = backbones.append_features(
        x, "resnet50", backbones.Weights(None, "random"), seed=0, pooling="means-5"
    )
    assert pooled.shape == (None, 2048)


def test_every_case_counts_the_same_whatever_its_number_of_images(cache):
    y, images = breakhis.class_labels(cache.images), cache.images
    twice = np.concatenate([np.arange(96), np.flatnonzero(images["case"] == images["case"][0])])
    kind = functools.partial(
        methods.get_method("robust"), weights="none", bases="resnet50", stages="2", verbose=0
    )
    one, two = (
        kind().fit(cache.pixels[rows], y[rows], images=images.iloc[rows]) for rows in (np.arange(96), twice)
    )
    # the weights are the same but for their sum, the number of images, against which the penalty stands
    np.testing.assert_allclose(two.predict_proba(cache.pixels), one.predict_proba(cache.pixels), atol=0.02)
    mean, again = (found.head_.get_layer("standardise").get_weights()[0] for found in (one, two))
    np.testing.assert_allclose(again, mean, rtol=1e-4, atol=1e-6)
    unbalanced = kind(balance="none").fit(cache.pixels[twice], y[twice])
    assert np.abs(unbalanced.predict_proba(cache.pixels) - one.predict_proba(cache.pixels)).max() > 0.02
