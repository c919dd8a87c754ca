"""The authors' numbers on the networks and optimizers that are built, each with its source."""

import keras
import numpy as np
import pandas as pd
import pytest

from bcdlib import methods
from bcdlib.data import breakhis
from bcdlib.errors import InputError
from bcdlib.methods import alexnet, csdcnn, densenet201, ensemble, hybrid_cnn
from bcdlib.methods._recipe import PAPER
from bcdlib.methods.parts import fitting
from bcdlib.runs.profiles import get_profile
from bcdlib.trials.trial import Trial

NONE = {"weights": "none", "pretrained_required": False}


def planned(name, profile="paper", **settings):
    trial = Trial(name, "case", pd.DataFrame(), **({"trainable": "all"} | settings))
    return trial, trial.estimator(get_profile(profile), "none")


def own(name, **settings):
    return methods.get_method(name)(**NONE, **settings)


def convolutions(model):
    return [
        (layer.kernel_size, layer.filters) for layer in model.layers if isinstance(layer, keras.layers.Conv2D)
    ]


def dense(model):
    return [layer.units for layer in model.layers if isinstance(layer, keras.layers.Dense)]


# --- a method each ------------------------------------------------------------------------------------------


def test_lenet5_as_two_reconstructions_have_it():
    """Three 5x5 convolutions (32, 64, 128 maps), 3x3 pooling, FC 64, FC 64, two classes."""
    model = own("lenet5").build((96, 144, 3))
    assert convolutions(model) == [((5, 5), 32), ((5, 5), 64), ((5, 5), 128)]
    pools = [layer for layer in model.layers if isinstance(layer, keras.layers.MaxPooling2D)]
    assert [pool.pool_size for pool in pools] == [(3, 3)] * 3
    assert dense(model) == [64, 64, 1]
    count = (75 * 32 + 32) + (800 * 64 + 64) + (1600 * 128 + 128)
    count += (4 * 6 * 128 * 64 + 64) + (64 * 64 + 64) + 65  # 96x144 pooled thrice by 3, padded
    assert model.count_params() == count
    assert methods.get_method("lenet5").authors == PAPER  # nothing known of the training


@pytest.mark.parametrize("patch, count", [(32, 260), (64, 54)])
def test_alexnet_as_in_breastcancercnn(patch, count):
    """WendyDong/BreastCancerCNN, deploy_32.prototxt and deploy_64.prototxt; its README on the patches."""
    method = own("alexnet", patch=patch)
    model = method.build((230, 350, 3))  # images of 350x230
    assert methods.get_method("alexnet").authors.size == (350, 230)
    assert convolutions(model) == [((5, 5), 32), ((5, 5), 32), ((5, 5), 64)]
    pools = [layer for layer in model.layers if "pool" in layer.name]
    kinds = [keras.layers.MaxPooling2D, keras.layers.AveragePooling2D, keras.layers.AveragePooling2D]
    assert [(type(pool), pool.pool_size, pool.strides) for pool in pools] == [
        (kind, (3, 3), (2, 2)) for kind in kinds
    ]
    assert dense(model) == [64, 1]
    with_weights = [model.get_layer(f"conv_{number}") for number in (1, 2, 3)] + [model.get_layer("dense")]
    for layer in with_weights:
        assert isinstance(layer.kernel_initializer, keras.initializers.GlorotUniform)  # Xavier
        assert np.allclose(layer.get_weights()[1], 0.2)
    flat = (patch // 8) ** 2 * 64
    expected = (75 * 32 + 32) + (800 * 32 + 32) + (800 * 64 + 64) + (flat * 64 + 64) + 65
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == expected
    X = np.random.default_rng(0).integers(0, 256, (2, 230, 350, 3), dtype="uint8")
    assert model(X).shape == (2 * count, 1)  # all patches of the sliding window
    optimizer = model.optimizer
    assert isinstance(optimizer, keras.optimizers.SGD)
    assert methods.get_method("alexnet")().always is None and not method.architectures  # from scratch


def test_ensemble_as_in_breakhis_3path_cnn():
    """sara-kassani/paper-codes, BreakHis-3path-CNN: its model summary, head and optimizer."""
    method = own("ensemble")
    head = _ensemble_network(method)
    assert method.widths_ == [1632, 960] and sum(method.widths_) == 2592
    assert dense(head) == [256, 1]
    assert head.get_layer("dense").activation is keras.activations.relu
    assert head.get_layer("dropout").rate == 0.5
    assert head.count_params() == 2 * 2592 + 1 + (2592 * 256 + 256) + 257  # the first: not standardised
    optimizer = head.optimizer
    assert isinstance(optimizer, keras.optimizers.Adam) and optimizer.amsgrad
    assert float(optimizer.learning_rate) == pytest.approx(0.0001)
    assert (optimizer.beta_1, optimizer.beta_2) == (0.7, 0.995)
    trial, estimator = planned("ensemble")
    assert (estimator.batch_size, estimator.epochs, estimator.augmented_copies) == (32, 1000, 15)
    assert estimator.frozen and trial.label == "ensemble" and estimator.stain is None
    assert estimator.plan.size == (224, 224) and estimator.plan.pixels == "unit"
    assert planned("ensemble", "quick")[1].augmented_copies == 0
    with pytest.raises(InputError, match="'resnet50' is none"):
        own("ensemble", bases="densenet201+resnet50")._prepare()


def _ensemble_network(method):
    method._prepare()
    method.widths_ = []
    x = keras.Input((64, 64, 3))
    for name in method.architectures:
        pooled = methods.parts.backbones.append_features(
            x, name, method.bases_[name], seed=0, **method.base_options(name)
        )
        method.widths_.append(pooled.shape[1])
    return method._new_head(np.zeros((2, sum(method.widths_)), "float32"))


def test_ensemble_layers_have_the_notebooks_channels():
    """The same notebook: 64, 128, 256, 896, 128, 32 and 128 of DenseNet201, 960 of MobileNetV2."""
    for name, channels in {
        "densenet201": [64, 128, 256, 896, 128, 32, 128],
        "mobilenet_v2": [960],
        "vgg19": [512],
    }.items():
        base = methods.parts.backbones.ARCHITECTURES[name].constructor(
            include_top=False, weights=None, input_shape=(64, 64, 3)
        )
        found = [base.get_layer(layer).output.shape[-1] for layer in ensemble.LAYERS[name]]
        assert found == channels


def test_hybrid_cnn_as_in_the_authors_repository():
    """karangupta26/Breast-Cancer-Diagnostics-using-Classification-Algorithm: features, grids, folds."""
    trial, method = planned("hybrid_cnn")
    assert trial.label == "hybrid_cnn" and method.folds == 10 and method.plan.size == (224, 224)
    assert planned("hybrid_cnn", "quick")[1].folds == 3
    assert hybrid_cnn.GRID["logistic"] == (0.001, 0.01, 0.1, 1, 10)
    assert hybrid_cnn.GRID["svm"] == (0.001, 0.01, 0.1, 1, 10, 100)
    assert method.base_options("resnet50") == {"pooling": "flatten", "pixels": "unit"}
    assert method.base_options("xception") == {"pooling": "average", "pixels": "imagenet"}
    for name in ("vgg16", "vgg19"):
        assert method.base_options(name) == {"pooling": "fc1", "pixels": "imagenet"}
    assert not method.plan.standardised
    x = keras.Input((224, 224, 3))
    none = methods.parts.backbones.Weights(None, "random")
    found = methods.parts.backbones.append_features(
        x, "resnet50", none, seed=0, **method.base_options("resnet50")
    )
    assert found.shape[1] == 100_352


def test_fc1_of_keras_own_weights(monkeypatch):
    """4096 numbers, at 224x224 only; a stand-in for a download of 500 MB."""

    def vgg(include_top, weights, input_shape, name):
        inputs = keras.Input(input_shape)
        x = keras.layers.AveragePooling2D(32, name="block5_pool")(inputs)
        if include_top:
            x = keras.layers.Dense(4096, name="fc1")(keras.layers.Flatten()(x))
            x = keras.layers.Dense(10)(x)
        return keras.Model(inputs, x, name=name)

    backbones = methods.parts.backbones
    about = backbones.ARCHITECTURES["vgg16"]._replace(constructor=vgg)
    monkeypatch.setitem(backbones.ARCHITECTURES, "vgg16", about)
    keras_own, file = backbones.Weights("imagenet", ""), backbones.Weights(None, "")
    for size, weights, channels in ((224, keras_own, 4096), (128, keras_own, 3), (224, file, 3)):
        x = keras.Input((size, size, 3))
        assert backbones.append_features(x, "vgg16", weights, seed=0, pooling="fc1").shape[1] == channels


def test_densenet201_as_in_the_authors_notebook():
    """abhinavsagar/breast-cancer-classification: head, Adam, batch, epochs, plateau, size, augmentation."""
    trial, method = planned("densenet201")
    assert trial.label == "densenet201" and not method.frozen
    assert (method.batch_size, method.epochs, method.steps_per_epoch) == (16, 20, None)
    assert method.plan.size == (224, 224) and method.plan.pixels == "raw"
    model = own("densenet201").build((64, 64, 3))
    names = [layer.name for layer in model.layers]
    assert names[-4:] == ["pool", "dropout", "batch_norm", "probability"]
    assert model.get_layer("dropout").rate == 0.5 and model.get_layer("densenet201").trainable
    assert model.get_layer("normalisation").scale == 1.0
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.0001)
    zoomed, turned = densenet201._augmentation(0).layers
    assert zoomed.zoom == 2.0 and turned.factor == (-0.25, 0.25)  # 90 degrees
    (plateau,) = method.build_callbacks()
    assert (plateau.factor, plateau.patience) == (0.2, 5)
    assert method.chooses  # it is never given the test part
    quick = planned("densenet201", "quick")[1]
    assert (quick.epochs, quick.batch_size, quick.learning_rate) == (4, 16, 0.0001)


def test_csdcnn_as_far_as_known():
    """Scientific Reports 7, 4172, as remembered: 256x256, SGD 0.01, rare classes oversampled."""
    trial, method = planned("csdcnn")
    assert trial.label == "csdcnn" and method.plan.size == (256, 256)
    model = own("csdcnn").build((64, 64, 3))
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    y = np.array([0, 0, 1, 2, 2, 2, 2])
    rows = csdcnn.oversample(y, 0)
    assert np.bincount(y[rows]).tolist() == [4, 4, 4] and set(rows) == set(range(7))


@pytest.mark.parametrize(
    "name", ["resnet50", "robust", "reshist", "dcnn14", "googlenet", "resnet152", "lenet5"]
)
def test_methods_of_which_nothing_further_is_known_are_the_same_in_both_recipes(name):
    trial, method = planned(name)
    other, same = planned(name, recipe="paper")
    assert trial.label == other.label
    assert method.get_params() | {"recipe": ""} == same.get_params() | {"recipe": ""}


# --- recipes ------------------------------------------------------------------------------------------------


def test_paper_recipe_is_this_papers():
    for name in ("densenet201", "csdcnn", "alexnet", "ensemble", "hybrid_cnn"):
        trial, method = planned(name, recipe="paper")
        assert trial.label.endswith("-paper_recipe")
        assert isinstance(method.build_optimizer(), keras.optimizers.RMSprop)
        assert method.plan.size is None and method.plan.pixels == "imagenet"
        epochs = 10 if method.frozen else 200
        assert (method.batch_size, method.epochs) == (32, epochs) and not method.build_callbacks()


def test_asked_epochs_go_before_the_authors():
    trial = Trial("densenet201", "case", pd.DataFrame())
    for name in ("demo", "quick", "paper"):
        assert trial.estimator(get_profile(name, epochs=33), "none").epochs == 33
    assert trial.estimator(get_profile("demo"), "none").size == "cache"
    assert trial.estimator(get_profile("quick"), "none").size == ""


def test_images_are_read_at_the_authors_size(cache):
    method = own("alexnet")
    assert method.image_shape(cache) == (230, 350, 3)
    assert method.inputs(cache).shape[1:] == (230, 350, 3)
    small = own("alexnet", size="cache")
    assert small.inputs(cache).shape[1:] == cache.pixels.shape[1:]
    with pytest.raises(InputError, match="size='big'"):
        own("alexnet", size="big").image_shape(cache)


def test_plateau_goes_on_as_if_it_had_not_been_cut():
    """Keras' own, over the same values, in one piece and in two."""

    class Model:
        def __init__(self, rate):
            self.optimizer = keras.optimizers.Adam(rate)

    values, rates = [0.5, 0.6, 0.6, 0.6, 0.7, 0.7, 0.7, 0.7], {}
    for cut in (0, 3, 6):
        rate, known = 0.1, {"accuracy": []}
        for part in (values[:cut], values[cut:]):
            callback = fitting.Plateau(factor=0.5, patience=2)
            callback.set_model(Model(rate))
            callback.known = known
            callback.on_train_begin()
            for value in part:
                known["accuracy"] = [*known["accuracy"], value]
                callback.on_epoch_end(len(known["accuracy"]) - 1, {"accuracy": value})
            rate = float(callback.model.optimizer.learning_rate)
        rates[cut] = rate
    assert rates[0] == pytest.approx(0.1 * 0.5 * 0.5) and rates == {cut: rates[0] for cut in rates}


# --- patches ------------------------------------------------------------------------------------------------


def test_patches_of_the_window_are_cut_row_by_row():
    x = np.random.default_rng(0).random((2, 48, 64, 3)).astype("float32")
    cut = np.asarray(alexnet.Patches(32)(x))
    expected = [one[r : r + 32, c : c + 32] for one in x for r in (0, 16) for c in (0, 16, 32)]
    np.testing.assert_array_equal(cut, expected)


def test_patches_drawn_in_training_are_patches():
    x = np.arange(2 * 40 * 50 * 3, dtype="float32").reshape(2, 40, 50, 3)
    drawn = np.asarray(alexnet.Patches(32)(x, training=True)).reshape(2, 20, 32, 32, 3)
    places = drawn[:, :, 0, 0, 0] // 3 - np.array([[0], [2000]])
    assert (places == places[0]).all()  # the same in each image
    rows, columns = np.divmod(places[0].astype(int), 50)
    assert rows.max() <= 8 and columns.max() <= 18 and len(set(zip(rows, columns))) > 5
    for patch, row, column in zip(drawn[1], rows, columns):
        np.testing.assert_array_equal(patch, x[1, row : row + 32, column : column + 32])


def test_alexnet_learns_resumes_and_needs_room(cache, tmp_path):
    X, y = cache.pixels[::4], breakhis.class_labels(cache.images)[::4]
    X = np.where(y[:, None, None, None] == 1, X // 3, X)  # darker
    kind, settings = methods.get_method("alexnet"), {"batch_size": 8, "verbose": 0, "learning_rate": 0.01}
    kind(epochs=3, **settings).fit(X, y, folder=tmp_path)
    resumed = kind(epochs=6, **settings).fit(X, y, folder=tmp_path)
    whole = kind(epochs=6, **settings).fit(X, y)
    np.testing.assert_allclose(resumed.predict_proba(X), whole.predict_proba(X), atol=1e-5)
    assert resumed.score(X, y) == 1.0 and resumed.history_["epoch"].tolist() == list(range(6))
    with pytest.raises(InputError, match="patch=32 is larger than the images, 24x16"):
        kind(**settings).fit(X[:, :16, :24], y)
