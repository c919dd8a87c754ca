"""The methods of Table II: networks as published, losses and rules by hand, trials from end to end."""

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from bcdlib import methods
from bcdlib.data import breakhis, splits, stain
from bcdlib.errors import InputError
from bcdlib.evaluation import metrics, published
from bcdlib.methods import alexnet, csdcnn, hybrid_cnn, resnet152
from bcdlib.methods.parts import architectures, backbones, features, hardware, heads
from bcdlib.runs.files import write_csv
from bcdlib.runs.folder import open_run_folder
from bcdlib.runs.profiles import get_profile
from bcdlib.trials import comparison
from bcdlib.trials.trial import Trial, run_trial

pytestmark = pytest.mark.usefixtures("shallow")
SIZE = (48, 32)
TINY = get_profile("demo", size=SIZE, epochs=1, steps_per_epoch=1, batch_size=8, head_epochs=2)
FROM_SCRATCH = ("lenet5", "dcnn14", "reshist", "alexnet")
RIVALS = [name for name in published.TABLE_II["key"] if name != "resnet50"]  # which is tested elsewhere


@pytest.fixture(scope="module")
def tables(cache):
    return {name: splits.make_split(cache.images, name, folds=3) for name in ("magnification", "case")}


def trial(method, tables, split="magnification", **settings):
    return Trial(method, split, tables[split], **({"trainable": "head"} | settings))


def shown(cache, table):
    rows = cache.rows(table["filename"])
    return cache.pixels[rows], cache.images.iloc[rows]


@pytest.fixture(scope="module")
def results(cache, tables, shallow, tmp_path_factory):
    """One finished trial a method, each with its saved model."""
    options = {"root": tmp_path_factory.mktemp("trials"), "weights": "none", "verbose": 0}
    return {name: run_trial(trial(name, tables), cache, TINY, **options) for name in RIVALS}


@pytest.fixture(scope="module")
def saved(results):
    """Load a method's saved model: once, where several tests ask it."""
    kept = {}

    def load(name):
        found = kept.get(name) or methods.load_method(results[name].folder / "model.keras")
        if name in ("hybrid_cnn", "resnet152"):
            kept[name] = found
        return found

    return load


@pytest.fixture(scope="module")
def alone(results, saved, cache, tmp_path_factory):
    """Predictions of every saved model by itself.

    In a new process that knows Keras only; images are stained as the file says.
    """
    folder = tmp_path_factory.mktemp("alone")
    for name, result in results.items():
        X, _ = shown(cache, result.predictions)
        target = saved(name).target
        np.save(folder / f"{name}.npy", X if target is None else stain.normalise_stain(X, target))
    models = {name: str(result.folder / "model.keras") for name, result in results.items()}
    code = (
        "import sys, numpy as np, keras\n"
        f"for name, file in {models!r}.items():\n"
        "    network = keras.models.load_model(file, safe_mode=True)\n"
        "    np.save(f'p_{name}.npy', network(np.load(f'{name}.npy'), training=False))\n"  # not compiled
        "assert not any('bcdlib' in module for module in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, env=os.environ | {"PYTHONPATH": ""})
    return {name: np.load(folder / f"p_{name}.npy") for name in results}


# --- the registry and the table -----------------------------------------------------------------------------


def test_all_of_table_ii_are_there():
    assert set(methods.method_names()) == {*published.TABLE_II["key"], "robust"}
    for name in published.TABLE_II["key"]:
        kind = methods.get_method(name)
        assert kind.key == name and kind.title and "Printed" in kind.__doc__


def test_labels_and_weights_of_a_row(results):
    for name, result in results.items():
        # nothing to fine-tune, or never fine-tuned
        alone = name in (*FROM_SCRATCH, "hybrid_cnn", "ensemble")
        assert set(result.predictions["method"]) == {name if alone else f"{name}-head"}
        weights = result.predictions["weights"].unique().item()
        assert weights == "no pre-trained weights" if name in FROM_SCRATCH else "random" in weights


# --- saved models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RIVALS)
def test_saved_model_alone_in_a_new_process(name, results, saved, alone, cache):
    predictions = results[name].predictions
    expected = predictions["probability"].to_numpy()
    if name in ("resnet152", "hybrid_cnn"):  # alone they know neither slides nor magnifications
        X, _ = shown(cache, predictions)
        expected = saved(name).predict_proba(X)[:, 1]
    assert predictions["probability"].nunique() > 1
    np.testing.assert_allclose(alone[name][:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["hybrid_cnn", "resnet152", "stained"])
def test_load_applies_the_stain_step_and_what_images_say(name, results, saved, cache, tables, tmp_path):
    asked = {
        "hybrid_cnn": trial("hybrid_cnn", tables, "case"),  # of magnifications that are in training
        "stained": trial("lenet5", tables, stain="macenko"),
    }
    options = {"root": tmp_path, "weights": "none", "verbose": 0}
    if name in asked:
        result = run_trial(asked[name], cache, TINY, **options)
        model = methods.load_method(result.folder / "model.keras")
    else:
        result, model = results[name], saved(name)
    X, images = shown(cache, result.predictions)
    np.testing.assert_allclose(
        model.predict_proba(X, images)[:, 1], result.predictions["probability"], atol=1e-5
    )
    assert model.size == SIZE and model.classes == ("benign", "malignant")
    assert (model.target is not None) == (name == "stained")
    without = model.network.predict(X, verbose=0)[:, 0]
    assert np.abs(without - result.predictions["probability"]).max() > 1e-5


def test_load_of_a_foreign_model(tmp_path, cache):
    inputs = keras.Input((32, 48, 3))
    outputs = keras.layers.Dense(2, activation="softmax")(keras.layers.GlobalAveragePooling2D()(inputs))
    keras.Model(inputs, outputs).save(tmp_path / "foreign.keras")
    saved = methods.load_method(tmp_path / "foreign.keras")
    expected = saved.network.predict(cache.pixels[:3], verbose=0)
    np.testing.assert_allclose(saved.predict_proba(cache.pixels[:3]), expected, atol=1e-6)
    assert saved.target is None and saved.size == SIZE
    keras.Model(inputs, keras.layers.Dense(5)(outputs)).save(tmp_path / "five.keras")
    (tmp_path / "junk.keras").write_bytes(b"junk")
    problems = {"five.keras": "5 numbers", "junk.keras": "not a usable Keras model", "none.keras": "no such"}
    for file, problem in problems.items():
        with pytest.raises(InputError, match=problem):
            methods.load_method(tmp_path / file)


# --- networks -----------------------------------------------------------------------------------------------


def convolution(size, channels, filters):
    return size * size * channels * filters + filters


def test_googlenet_layer_by_layer(full_depth):
    model = architectures.GoogLeNet(input_shape=(224, 224, 3))
    count = convolution(7, 3, 64) + convolution(1, 64, 64) + convolution(3, 64, 192)
    # Szegedy et al. 2015, Table 1: what comes in, #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj
    blocks = [
        (192, 64, 96, 128, 16, 32, 32),
        (256, 128, 128, 192, 32, 96, 64),
        (480, 192, 96, 208, 16, 48, 64),
        (512, 160, 112, 224, 24, 64, 64),
        (512, 128, 128, 256, 24, 64, 64),
        (512, 112, 144, 288, 32, 64, 64),
        (528, 256, 160, 320, 32, 128, 128),
        (832, 256, 160, 320, 32, 128, 128),
        (832, 384, 192, 384, 48, 128, 128),
    ]
    for channels, one, three_reduce, three, five_reduce, five, pool in blocks:
        count += convolution(1, channels, one + three_reduce + five_reduce + pool)
        count += convolution(3, three_reduce, three) + convolution(5, five_reduce, five)
    assert model.count_params() == count == 5_973_552
    shapes = {
        name: model.get_layer(name).output.shape[1:]
        for name in ("conv1", "conv2", "inception_3b", "inception_4e")
    }
    assert shapes == {
        "conv1": (112, 112, 64),
        "conv2": (56, 56, 192),
        "inception_3b": (28, 28, 480),
        "inception_4e": (14, 14, 832),
    }
    assert model.output_shape == (None, 7, 7, 1024)


def test_googlenet_has_no_top():
    with pytest.raises(ValueError, match="without its top"):
        architectures.GoogLeNet(include_top=True)


@pytest.mark.parametrize("name", ["reshist", "dcnn14"])
def test_layers_with_weights_are_as_many_as_the_name_says(name, full_depth):
    model = methods.get_method(name)().build((48, 72, 3))
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)]
    layers = [
        layer for layer in layers if not layer.name.endswith("shortcut")
    ]  # He et al. do not count them either
    assert len(layers) == {"reshist": 152, "dcnn14": 14}[name]


@pytest.mark.parametrize(
    "architecture, module",
    [
        ("resnet50", "resnet50"),
        ("resnet152", "resnet"),
        ("vgg16", "vgg16"),
        ("vgg19", "vgg19"),
        ("xception", "xception"),
        ("densenet201", "densenet"),
        ("mobilenet_v2", "mobilenet_v2"),
    ],
)
def test_normalisation_is_that_of_keras(architecture, module):
    X = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype("float32")
    expected = getattr(keras.applications, module).preprocess_input(X.copy())
    np.testing.assert_allclose(backbones.normalise_images(X, architecture), expected, atol=1e-4)


def test_small_images_are_enlarged():
    X = keras.Input((48, 72, 3))
    found = backbones.append_features(X, "xception", backbones.Weights(None, ""), seed=0)
    enlarged = keras.Model(X, found).get_layer("enlarge_xception").output
    assert enlarged.shape[1:] == (96, 144, 3) and found.shape[1] == 2048


def test_weights_of_a_base_that_keras_has_none_of(tmp_path):
    assert not backbones.find_all(["googlenet"], "imagenet", required=True)["googlenet"].pretrained
    architectures.GoogLeNet(input_shape=(32, 32, 3)).save_weights(tmp_path / "googlenet_notop.weights.h5")
    method = methods.get_method("googlenet")(weights=str(tmp_path), trainable="head", verbose=0)
    method.build((32, 48, 3))
    assert method.weights_.pretrained and "googlenet_notop.weights.h5" in method.weights_.label
    with pytest.raises(InputError, match="vgg16_notop.weights.h5"):  # none of its four bases
        methods.get_method("hybrid_cnn")(weights=str(tmp_path)).build((32, 48, 3))


# --- losses and rules, by hand ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, there, said",
    [
        ("googlenet", ["resnet50"], True),
        ("googlenet-all", ["resnet50"], False),  # trained whole
        ("googlenet", ["googlenet"], False),
        ("ensemble", ["mobilenet_v2"], True),  # one of two
        ("ensemble", ["densenet201", "mobilenet_v2"], False),
        ("robust", ["resnet50"], False),  # it does without the other
        ("robust", ["resnet50", "xception"], False),
        ("robust-all", ["xception"], False),
        ("robust-all", ["vgg16"], True),  # its bases never learn
        ("lenet5", [], False),  # it has none
    ],
)
def test_a_random_base_that_stays_frozen_is_called_not_comparable(method, there, said, tmp_path):
    for name in there:
        (tmp_path / f"{name}_notop.weights.h5").touch()
    name, _, whole = method.partition("-")
    settings = {"trainable": whole or "head", "weights": str(tmp_path), "pretrained_required": False}
    estimator = methods.get_method(name)(**settings)
    estimator._prepare()
    label = estimator.weights_.label
    assert label.endswith(", frozen random base: not comparable") == said, label


def test_class_structure_by_hand():
    y, embedding = np.array([0.0, 0.0, 1.0]), np.array([[0, 0], [3, 4], [0, 1]], dtype="float32")
    # within: 5 squared. Between, margin 2: distance 1 falls 1 short, distance 4.24 does not
    assert float(csdcnn.structure(y, embedding, margin=2.0)) == pytest.approx(25 + (1 + 0) / 2, rel=1e-6)
    assert float(csdcnn.structure(y[:2], embedding[:2])) == pytest.approx(25)  # one class only
    assert float(csdcnn.structure(y[1:], embedding[1:], margin=1.0)) == 0  # far enough apart


def test_embedding_has_length_one_in_float16_too():
    """The sum of squares would overflow from 65504 on."""
    with hardware.computing_dtype("mixed_float16"):
        model = methods.get_method("csdcnn")(weights="none", pretrained_required=False).build((48, 72, 3))
    layer = model.get_layer("embedding")
    found = np.asarray(layer(keras.ops.full((1, 128), 60.0, "float16")))
    assert found.dtype == "float32" and np.linalg.norm(found) == pytest.approx(1, rel=1e-3)


def test_a_download_that_failed_may_be_tried_again(monkeypatch):
    tries = []

    def constructor(include_top, weights):
        tries.append(weights)
        if len(tries) == 1:
            raise OSError("no network")

    about = backbones.ARCHITECTURES["resnet50"]._replace(constructor=constructor)
    monkeypatch.setitem(backbones.ARCHITECTURES, "resnet50", about)
    backbones._download.cache_clear()
    with pytest.raises(InputError, match=r"resnet50 cannot be downloaded \(no network\); name a folder"):
        backbones.find_weights("resnet50", "imagenet")
    for _ in range(3):
        assert backbones.find_weights("resnet50", "imagenet").pretrained
    assert len(tries) == 2, "what was downloaded is not downloaded again"
    backbones._download.cache_clear()


def test_a_download_that_failed_is_tried_once_a_comparison(monkeypatch):
    """Or each trial waits for the network anew, and some may start from other weights than the rest."""
    tries = []

    def constructor(include_top, weights):
        tries.append(weights)
        raise OSError("no network")

    about = backbones.ARCHITECTURES["resnet50"]._replace(constructor=constructor)
    monkeypatch.setitem(backbones.ARCHITECTURES, "resnet50", about)
    backbones._download.cache_clear()
    for number in (1, 2):
        with backbones.one_try():
            for _ in range(3):
                label = backbones.find_weights("resnet50", "imagenet", required=False).label
                assert label == "random initial weights (ImageNet's could not be had)"
            with pytest.raises(InputError, match="cannot be downloaded"):
                backbones.find_weights("resnet50", "imagenet")
        assert len(tries) == number, "tried again by the next comparison"


def test_structure_loss_by_hand():
    y = np.array([[0.0], [0.0], [1.0]])
    output = np.array([[0.5, 0, 0], [0.2, 3, 4], [0.9, 0, 1]], dtype="float32")
    loss = csdcnn.StructureLoss(outputs=1, margin=2.0, constraint=0.1)
    entropy = -np.mean(np.log([0.5, 0.8, 0.9]))
    assert float(loss(y, output)) == pytest.approx(entropy + 0.1 * 25.5, rel=1e-5)
    again = csdcnn.StructureLoss.from_config(loss.get_config())
    assert float(again(y, output)) == float(loss(y, output))


@pytest.mark.parametrize("rule, expected", [("sum", 0.65), ("product", 0.36 / 0.42), ("max", 0.9 / 1.5)])
def test_fusion_by_hand(rule, expected):
    p = np.array([[[0.9], [0.4]]], dtype="float32")
    assert float(alexnet.fuse(p, rule)[0, 0]) == pytest.approx(expected, rel=1e-5)
    both = np.concatenate([1 - p, p], axis=-1)
    np.testing.assert_allclose(np.asarray(alexnet.fuse(both, rule))[0], [1 - expected, expected], rtol=1e-5)


def test_product_of_patches_that_are_sure_of_opposites():
    p = np.array([[[1.0], [0.0]]], dtype="float32")
    assert float(alexnet.fuse(p, "product")[0, 0]) == pytest.approx(0.5)


def test_slide_decision_by_hand():
    images = pd.DataFrame({"slide": ["a", "a", "a", "b"], "magnification": [40, 40, 100, 40]})
    # slide a: magnifications 40 (0.2 and 0.4: 0.3) and 100 (0.9), one vote each
    decided = resnet152.slide_decision(np.array([[0.2], [0.4], [0.9], [0.1]]), images)
    np.testing.assert_allclose(decided[:, 0], [0.6, 0.6, 0.6, 0.1])
    # votes of 40 and 100; 200 has none, a mean one
    decided = resnet152.slide_decision(
        np.array([[0.2], [0.4], [0.9], [0.1]]), images, {"40": 0.75, "100": 0.25}
    )
    np.testing.assert_allclose(decided[:, 0], [0.45, 0.45, 0.45, 0.1])


def test_votes_are_those_of_unseen_slides():
    """Least squares by hand: 40X tells the class, 100X tells nothing, 200X the opposite."""
    label = np.repeat([0, 1], 12)
    slides = pd.DataFrame({"slide": [f"s{n}" for n in range(24)], "class": np.array(breakhis.CLASSES)[label]})
    images = pd.concat([slides.assign(magnification=power) for power in (40, 100, 200)], ignore_index=True)
    p = np.concatenate([0.1 + 0.8 * label, np.tile([0.2, 0.8], 12), 0.9 - 0.8 * label])
    np.testing.assert_allclose(resnet152.fit_votes(p, images, (40, 100, 200)), [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(resnet152.fit_votes(1 - p[:24], images[:24], (40,)), [1])


def test_heads_of_other_magnifications_in_the_same_process(cache):
    """As many heads of other names: what was compiled for the first is not theirs."""
    y = breakhis.class_labels(cache.images)
    X = np.random.default_rng(0).normal(size=(96, 2048)).astype("float32")
    for asked in ((40, 100), (100, 200), (40,), (100,)):
        rows = cache.images["magnification"].isin(asked).to_numpy()
        method = methods.get_method("resnet152")(trainable="head", epochs=1, weights="none", verbose=0)
        method.fit(X[rows], y[rows], images=cache.images[rows])
        assert heads.head_names(method.head_) == [str(name) for name in asked]
        assert method.predict_proba(X[rows], cache.images[rows]).shape == (rows.sum(), 2)


@pytest.mark.parametrize("task, outputs", [("binary", 1), ("subtype", 8)])
def test_second_stage_and_vote_in_the_network(task, outputs):
    method = methods.get_method("resnet152")(weights="none", pretrained_required=False, task=task)
    method.trainable, method.votes_ = "head", np.array([0.7, 0.1, 0.1, 0.1])
    method._prepare()
    head = method._new_head(np.random.default_rng(0).normal(size=(8, 16)).astype("float32"))
    X = np.random.default_rng(1).normal(size=(5, 16)).astype("float32")
    heads_found = np.asarray(head(X)).reshape(5, 4, outputs)
    if task == "subtype":
        np.testing.assert_allclose(heads_found.sum(axis=2), 1, atol=1e-6)
        stage = keras.Model(
            head.inputs, [head.get_layer(name).output for name in ("class_40", "malignant_40")]
        )
        malignant, which = map(np.asarray, stage(X))
        np.testing.assert_allclose(heads_found[:, 0, 4:], malignant * which, atol=1e-6)
    found = method._predictor(head).predict(X, verbose=0)
    expected = np.einsum("nmo,m->no", heads_found, method.votes_)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_heads_learn_their_magnification_and_share_what_none_has_learnt():
    share = resnet152.shares(pd.Series([100, 40, 400]), (100, 400))
    np.testing.assert_array_equal(share, [[1, 0], [0.5, 0.5], [0, 1]])
    heads = np.array([[0.8, 0.1]] * 3, dtype="float32")
    y = np.column_stack([[1, 1, 1], share]).astype("float32")
    expected = -np.log([0.8, 0.45, 0.1])
    np.testing.assert_allclose(np.asarray(resnet152.heads_loss(y, heads)), expected, rtol=1e-4)
    np.testing.assert_array_equal(np.ravel(resnet152.heads_accuracy(y, heads)), [1, 0, 0])


def test_wrong_parameters_are_named():
    for name, settings in (
        ("alexnet", {"fusion": "median"}),
        ("lenet5", {"stain": "vahadane"}),
        ("csdcnn", {"task": "grade"}),
        ("resnet50", {"trainable": "some"}),
    ):
        with pytest.raises(InputError, match=next(iter(settings))):
            methods.get_method(name)(weights="none", **settings).build((32, 48, 3))


# --- nothing from the test part -----------------------------------------------------------------------------


@pytest.fixture
def other_test_part(cache, tables, tmp_path):
    """The same training images; other images and the other class for all test images."""
    split = tables["magnification"]
    rows = cache.rows(split.loc[split["role"] == "test", "filename"])
    altered, images = np.array(cache.pixels), cache.images.copy()
    altered[rows] = altered[rows] // 2
    swap = {"benign": "malignant", "malignant": "benign"}
    images.loc[rows, "class"] = images.loc[rows, "class"].map(swap)
    folder = tmp_path / "other"
    folder.mkdir()
    return replace(cache, folder=folder, pixels=altered, images=images)


def trained_weights(result, names):
    model = keras.models.load_model(result.folder / "model.keras")
    return [weight for name in names for weight in model.get_layer(name).get_weights()]


def test_hybrid_never_looks_at_the_test_part(results, other_test_part, tables, tmp_path):
    other = run_trial(
        trial("hybrid_cnn", tables), other_test_part, TINY, root=tmp_path, weights="none", verbose=0
    )
    assert set(other.predictions["weights"]) == set(
        results["hybrid_cnn"].predictions["weights"]
    )  # names the base
    for mine, its in zip(
        *(
            trained_weights(r, ["linear_100", "linear_200", "linear_400"])
            for r in (results["hybrid_cnn"], other)
        )
    ):
        np.testing.assert_array_equal(mine, its)


def test_stain_target_is_fitted_on_training_images_only(cache, other_test_part, tables, tmp_path):
    found = []
    for number, images in enumerate((cache, other_test_part)):
        result = run_trial(
            trial("lenet5", tables, stain="reinhard"), images, TINY, root=tmp_path / str(number), verbose=0
        )
        with zipfile.ZipFile(result.folder / "model.keras") as archive:
            found.append(json.loads(archive.read("bcdlib.json"))["stain"])
    assert found[0] == found[1] and found[0]["kind"] == "reinhard"
    split = tables["magnification"]
    train = cache.pixels[cache.rows(split.loc[split["role"] == "train", "filename"])]
    assert list(stain.fit_stain("reinhard", train).values) == found[0]["values"]


# --- the hybrid's choice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["authors", "paper"])
def test_hybrid_finds_the_informative_base_and_gives_probabilities(recipe):
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 60)
    X = rng.normal(size=(120, 12)).astype("float32")
    X[:, 6] += 4 * y  # the third of four bases, three channels each
    method = methods.get_method("hybrid_cnn")(weights="none", verbose=0, folds=3, recipe=recipe)
    method.widths_ = [3, 3, 3, 3]
    for held_out in (None, (X[::3], y[::3])):
        method.fit(X, y, validation_data=held_out)
        assert method.chosen_[0] == "xception" and len(method.scores_) == 8
        assert set(method.C_) == {"all"} and method.C_["all"] in hybrid_cnn.GRID[method.chosen_[1]]
        p = method.predict_proba(X)
        assert np.mean((p[:, 1] > 0.5) == y) > 0.95
        assert abs(p[:, 1].mean() - 0.5) < 0.02


def test_hybrid_search_is_scikit_learns():
    """More features than images: rotated into as few columns as images, the search must find the same."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 20)
    X = (rng.normal(size=(40, 300)) + 0.3 * y[:, None]).astype("float32")
    method = methods.get_method("hybrid_cnn")(weights="none", folds=4)
    found = method._search(X, y)
    for kind, classifier, name in (
        ("logistic", LogisticRegression(), "C"),
        ("svm", SVC(kernel="linear"), "C"),
    ):
        grid = GridSearchCV(classifier, {name: hybrid_cnn.GRID[kind]}, cv=4).fit(X, y)
        assert found[kind]["correct"] == pytest.approx(40 * grid.best_score_)
        assert found[kind]["C"] == grid.best_params_["C"]
        kernel, bias = method._fitted("logistic", 0.01, X, y, unseen=None)
        expected = LogisticRegression(C=0.01).fit(X, y)
        np.testing.assert_allclose(
            X @ kernel[:, 0] + bias[0], expected.decision_function(X), atol=2e-3, rtol=1e-2
        )


def test_linear_svm_is_scikit_learns():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 5)), np.arange(60) % 3
    found = hybrid_cnn.LinearSVM(1.0).fit(X, y)
    for place in range(3):
        expected = SVC(kernel="linear").fit(X, y == place)
        np.testing.assert_allclose(found.coef_[place], expected.coef_[0], atol=1e-6)
        assert found.intercept_[place] == pytest.approx(expected.intercept_[0])
    both = hybrid_cnn.LinearSVM(1.0).fit(X, y > 0)
    np.testing.assert_allclose(both.coef_, SVC(kernel="linear").fit(X, y > 0).coef_, atol=1e-6)


# --- which magnification ------------------------------------------------------------------------------------


def test_magnification_is_a_task_of_four_classes(cache, tables, tmp_path):
    run = trial("hybrid_cnn", tables, "case", task="magnification")
    result = run_trial(run, cache, TINY, root=tmp_path, weights="none", verbose=0)
    table = result.predictions
    four = table[metrics.MAGNIFICATION_COLUMNS]
    assert run.label == "hybrid_cnn-magnification" and table["probability"].isna().all()
    np.testing.assert_allclose(four.sum(axis=1), 1, atol=1e-6)
    right = four.to_numpy().argmax(axis=1) == table["magnification"].map([40, 100, 200, 400].index)
    shown_here = metrics.metrics_table(table).iloc[0]
    assert shown_here["accuracy"] == pytest.approx(right.mean())
    assert shown_here[["auc", "case_auc", "sensitivity", "mcc", "brier"]].isna().all()
    saved = methods.load_method(result.folder / "model.keras")
    assert saved.task == "magnification" and saved.classes == ("40X", "100X", "200X", "400X")
    np.testing.assert_allclose(saved.predict_proba(*shown(cache, table)), four, atol=1e-5)
    with pytest.raises(InputError, match="cannot learn the task 'magnification'"):
        trial("lenet5", tables, task="magnification").estimator(TINY)


# --- the second task ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["csdcnn", "resnet152", "hybrid_cnn", "alexnet", "googlenet", "lenet5"])
def test_subtypes(name, results, cache, tables, tmp_path):
    run = trial(name, tables, "case", task="subtype")
    options = {"weights": "none", "verbose": 0, "keep_model": name in ("csdcnn", "hybrid_cnn")}
    result = run_trial(run, cache, TINY, root=tmp_path, **options)
    table = result.predictions
    assert run.label.endswith("-subtype") and set(table["method"]) == {run.label}
    eight = table[[f"p_{subtype}" for subtype in breakhis.SUBTYPES]]
    np.testing.assert_allclose(eight.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(
        eight[["p_DC", "p_LC", "p_MC", "p_PC"]].sum(axis=1), table["probability"], atol=1e-6
    )
    assert set(table["label"]) == {0, 1}
    train = tables["case"].query("fold == 0 and role == 'train'")["filename"]
    known = cache.images.set_index("filename").loc[train, "subtype"]
    assert known.nunique() < 8  # some subtypes are absent from training
    if (result.folder / "model.keras").is_file():
        saved = methods.load_method(result.folder / "model.keras")
        assert saved.classes == tuple(breakhis.SUBTYPES)
        np.testing.assert_allclose(saved.predict_proba(*shown(cache, table)), eight, atol=1e-5)


def test_task_or_stain_that_a_method_cannot(cache, tables, twelfth):
    for settings in ({"task": "subtype"}, {"stain": "macenko"}):
        with pytest.raises(InputError, match="prior"):
            trial(str(twelfth["prior"]), tables, **settings).estimator(TINY)


# --- shared features ----------------------------------------------------------------------------------------


def test_features_are_computed_once(cache, monkeypatch):
    none = backbones.Weights(None, "random")
    first = features.cached_features(cache, "vgg16", none, seed=7)
    assert first.dtype == np.float32 and first.shape == (len(cache.pixels), 512)
    before = set((cache.folder / "features").iterdir())
    again = features.cached_features(cache, "vgg16", none, seed=7)
    np.testing.assert_array_equal(first, again)
    assert set((cache.folder / "features").iterdir()) == before
    monkeypatch.setattr(keras.Model, "predict", None)
    features.cached_features(cache, "vgg16", none, seed=7)
    target = stain.fit_stain("reinhard", cache.pixels)
    for other in ({"seed": 8}, {"seed": 7, "target": target}, {"seed": 7, "pooling": "flatten"}):
        with pytest.raises(TypeError):  # it must compute: predict is None
            features.cached_features(cache, "vgg16", none, **other)


def test_random_weights_do_not_depend_on_what_was_built_before(cache):
    X, none = cache.pixels[:2], backbones.Weights(None, "random")
    first = features.extract_features(X, "mobilenet_v2", none, seed=3)
    keras.layers.Dense(5).build((None, 3))
    np.testing.assert_array_equal(features.extract_features(X, "mobilenet_v2", none, seed=3), first)
    assert (
        np.abs(features.extract_features(X, "mobilenet_v2", none, seed=4) - first).max()
        > 0.1 * first.max()
        > 0
    )


# --- fine-tuning --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["googlenet", "csdcnn"])
def test_fine_tuned_whole_and_resumed(name, cache, tmp_path):
    X, y = cache.pixels[::8], breakhis.class_labels(cache.images)[::8]
    kind = methods.get_method(name)
    settings = {"weights": "none", "steps_per_epoch": 1, "batch_size": 4, "verbose": 0}
    kind(epochs=1, **settings).fit(X, y, (X, y), folder=tmp_path)
    method = kind(epochs=2, **settings).fit(X, y, (X, y), folder=tmp_path)
    assert method.history_["epoch"].tolist() == [0, 1]
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(method.history_)
    started = kind(epochs=1, **settings).build(X.shape[1:])
    base = method.architectures[0]
    moved = [
        np.abs(a - b).max()
        for a, b in zip(
            started.get_layer(base).get_weights(), method.model_.get_layer(base).get_weights(), strict=True
        )
    ]
    assert min(moved[0::2]) > 0  # every kernel has got a gradient
    method.save(tmp_path / "model.keras")
    np.testing.assert_allclose(
        methods.load_method(tmp_path / "model.keras").predict_proba(X), method.predict_proba(X), atol=1e-5
    )


# --- a twelfth method ---------------------------------------------------------------------------------------


@pytest.fixture
def twelfth(prior, tmp_path):
    network = tmp_path / "colours.py"
    network.write_text(
        "import keras\nfrom bcdlib.methods import KerasMethod\n"
        "class Colours(KerasMethod):\n"
        "    key, title = 'colours', 'Mean colour'\n"
        "    def build_features(self, x):\n"
        "        return keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(x))\n"
    )
    return {"prior": prior, "colours": network}


def test_twelfth_method_from_a_file_is_compared(twelfth, cache, tmp_path):
    run = open_run_folder(tmp_path / "run")
    run.record(cache=str(cache.folder))
    write_csv(run.folder / "splits" / "case.csv", splits.make_split(cache.images, "case", folds=2))
    names = [str(twelfth["prior"]), str(twelfth["colours"]), "lenet5"]
    predictions = comparison.run_comparison(
        run, TINY, method_names=names, split_names=["case"], weights="none", progress=False
    )
    assert predictions.groupby("method")["filename"].nunique().to_dict() == dict.fromkeys(
        ("prior", "colours", "lenet5"), len(cache.images)
    )
    compared = pd.read_csv(run.folder / "comparison.csv").set_index("method")
    assert set(compared.index) == {"prior", "colours", "lenet5"} and compared["accuracy"].between(0, 1).all()


def test_platt_never_turns_the_order_round():
    rng = np.random.default_rng(0)
    scores, y = np.sort(rng.normal(size=200))[:, None], (rng.random(200) < np.linspace(0, 1, 200)).astype(int)
    slope, offset = hybrid_cnn.platt(scores, y)
    expected = LogisticRegression(C=1e6).fit(scores, y)
    assert slope[0] > 0 and slope[0] == pytest.approx(expected.coef_[0, 0])
    assert offset[0] == pytest.approx(expected.intercept_[0])
    # few held-out cases may ask for the opposite by chance: that would call every malignant image benign
    assert [value.tolist() for value in hybrid_cnn.platt(scores, 1 - y)] == [[1.0], [0.0]]
