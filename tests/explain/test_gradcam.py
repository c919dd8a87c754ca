"""Maps of where a network looks, on networks whose answer is known; on TensorFlow and on JAX."""

import gc
import importlib.util
import os
import subprocess
import sys
import weakref
from pathlib import Path

import keras
import numpy as np
import pytest

from bcdlib.errors import InputError
from bcdlib.explain import gradcam
from bcdlib.methods.parts import fitting

HEIGHT, WIDTH = 32, 48


def one_corner(x, top: bool, left: bool):
    """Two channels that see the outer half of one corner's quarter only: how bright and how dark it is."""
    mask = np.zeros((HEIGHT, WIDTH, 1), "float32")
    rows = slice(0, HEIGHT // 4) if top else slice(-HEIGHT // 4, None)
    mask[rows, slice(0, WIDTH // 4) if left else slice(-WIDTH // 4, None)] = 1
    bright = keras.layers.Conv2D(
        1, 1, kernel_initializer=keras.initializers.Constant(1 / 765), name="bright"
    )(x)
    return keras.layers.Concatenate()([bright * mask, (1 - bright) * mask])


def head(x):
    dense = keras.layers.Dense(1, activation="sigmoid", name="probability")
    out = dense(x)
    half = np.array([[1.0], [-1.0]]) if x.shape[-1] == 2 else np.tile([[1.0], [-1.0]], (x.shape[-1] // 2, 1))
    dense.set_weights([half.astype("float32"), np.zeros(1, "float32")])
    return out


def network(kind: str, top=True, left=False) -> keras.Model:
    images = keras.Input((HEIGHT, WIDTH, 3), dtype="uint8")
    x = keras.layers.Rescaling(1.0)(images)
    if kind == "flat":
        return keras.Model(
            images, head(keras.layers.GlobalAveragePooling2D(name="pool")(one_corner(x, top, left)))
        )
    if (
        kind == "flatten"
    ):  # the places of the corner are in the weights of the last layer, not in the feature map
        x = keras.layers.AveragePooling2D(4)(keras.layers.Conv2D(1, 1, kernel_initializer="ones")(x))
        dense = keras.layers.Dense(1, activation="sigmoid")
        out = dense(keras.layers.Flatten()(x))
        weights = np.zeros((HEIGHT // 4, WIDTH // 4), "float32")
        weights[:2, -3:] = 1e-2
        dense.set_weights([weights.reshape(-1, 1), np.array([-20.0], "float32")])
        return keras.Model(images, out)
    inner = keras.Input((HEIGHT, WIDTH, 3))
    found = one_corner(inner, top, left)
    if kind == "nested":
        base = keras.Model(inner, found, name="resnet50")
        return keras.Model(
            images, head(keras.layers.GlobalAveragePooling2D(name="pool")(base(x, training=False)))
        )
    if kind == "ensemble":
        pooled = [
            keras.layers.GlobalAveragePooling2D()(keras.Model(inner, found, name=f"base{k}")(x))
            for k in (0, 1)
        ]
        return keras.Model(images, head(keras.layers.Concatenate(name="pool")(pooled)))
    base = keras.Model(inner, keras.layers.GlobalAveragePooling2D()(found), name="base")
    model = keras.Sequential(
        [images, keras.layers.Rescaling(1.0), base, keras.layers.Dense(1, activation="sigmoid")]
    )
    model.layers[-1].set_weights([np.array([[1.0], [-1.0]], "float32"), np.zeros(1, "float32")])
    return model


def noise():
    """Two images of noise; the corner at the upper right is bright in the first and dark in the second."""
    X = np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH, 3)).astype("uint8")
    X[0, :8, -12:], X[1, :8, -12:] = 250, 5
    return X


def mass(found, top=True, left=False):
    rows = slice(0, HEIGHT // 4) if top else slice(-HEIGHT // 4, None)
    columns = slice(0, WIDTH // 4) if left else slice(-WIDTH // 4, None)
    return found[:, rows, columns].sum(axis=(1, 2)) / found.sum(axis=(1, 2))


@pytest.mark.parametrize("kind", ["flat", "nested", "sequential", "ensemble"])
def test_a_network_that_looks_at_one_corner_only(kind):
    model, X = network(kind), noise()
    predicted = model.predict(X, verbose=0)[:, 0] >= 0.5
    assert predicted.tolist() == [True, False]  # malignant and benign
    found = gradcam.compute_gradcam(model, X)
    assert found.shape == (2, HEIGHT, WIDTH) and found.dtype == np.float32
    assert found.min() >= 0 and found.max(axis=(1, 2)).tolist() == [1, 1]
    assert (mass(found) > 0.99).all()


def test_the_corner_is_the_one_that_the_network_looks_at():
    X = np.full((1, HEIGHT, WIDTH, 3), 250, "uint8")
    for top in (True, False):
        for left in (True, False):
            assert mass(gradcam.compute_gradcam(network("nested", top, left), X), top, left) > 0.99


def test_a_network_that_flattens_its_map():
    X = np.full((1, HEIGHT, WIDTH, 3), 250, "uint8")
    model = network("flatten")
    assert model.predict(X, verbose=0)[0, 0] > 0.5
    assert (
        mass(gradcam.compute_gradcam(model, X)) > 0.75
    )  # the map is an eighth as wide as the image: its edge is soft


def test_a_network_that_cuts_its_images_into_pieces_has_no_one_map():
    images = keras.Input((HEIGHT, WIDTH, 3), dtype="uint8")
    pieces = keras.ops.reshape(keras.layers.Rescaling(1.0)(images), (-1, HEIGHT // 2, WIDTH, 3))
    bright = keras.layers.Conv2D(1, 1, kernel_initializer="ones")(pieces)
    pooled = keras.ops.reshape(keras.layers.GlobalAveragePooling2D()(bright), (-1, 2))
    model = keras.Model(images, keras.layers.Dense(1, activation="sigmoid")(pooled))
    with pytest.raises(InputError, match="makes 4 feature maps of 2 images"):
        gradcam.compute_gradcam(model, noise()[:2])


def test_saturated_output_still_has_a_map_and_the_other_class_another():
    model, X = network("flat"), noise()
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([1e5 * kernel, bias])
    assert model.predict(X, verbose=0)[0, 0] == 1.0
    assert (mass(gradcam.compute_gradcam(model, X)) > 0.99).all()
    np.testing.assert_allclose(
        gradcam.compute_gradcam(model, X, classes=[1, 0]), gradcam.compute_gradcam(model, X)
    )
    assert (
        np.abs(
            gradcam.compute_gradcam(model, X[:1], classes=[0]) - gradcam.compute_gradcam(model, X[:1])
        ).max()
        > 0.5
    )


def test_softmax_and_a_saved_file(tmp_path):
    images = keras.Input((HEIGHT, WIDTH, 3), dtype="uint8")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(
        one_corner(keras.layers.Rescaling(1.0)(images), True, False)
    )
    dense = keras.layers.Dense(3, activation="softmax")
    out = dense(x)
    dense.set_weights([np.array([[1, -1, 0], [-1, 1, 0]], "float32"), np.array([0, 0, -1], "float32")])
    keras.Model(images, out).save(tmp_path / "m.keras")
    model = keras.models.load_model(tmp_path / "m.keras")
    assert (mass(gradcam.compute_gradcam(model, noise())) > 0.99).all()


def test_features_are_those_of_the_layer_pool_or_the_mean_of_the_map():
    X = noise()
    bright = X[:, :8, -12:].astype(float).mean(axis=(1, 2, 3)) / 255 / 16
    np.testing.assert_allclose(gradcam.last_features(network("flat"), X)[:, 0], bright, rtol=1e-4)
    np.testing.assert_allclose(gradcam.last_features(network("sequential"), X)[:, 0], bright, rtol=1e-4)


def test_one_network_is_built_for_all_calls_and_goes_with_it(monkeypatch):
    """Keras compiles each network anew that is made to predict: once, not for each few hundred images."""
    asked = []
    original = fitting.predict_batches
    monkeypatch.setattr(
        fitting, "predict_batches", lambda model, X: asked.append(model) or original(model, X)
    )
    first, second = network("flat"), network("flat")
    for one in (first, first, second):
        gradcam.last_features(one, noise())
        gradcam.compute_gradcam(one, noise())
    assert asked[0] is asked[1] is not asked[2]
    gone = weakref.ref(first)
    del first, one, asked[:]
    gc.collect()
    assert gone() is None, "it is kept in memory for ever"


def test_no_map_and_no_image():
    dense = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
    flat = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    assert gradcam.compute_gradcam(dense, np.ones((1, 4, 4, 3))).shape == (
        1,
        4,
        4,
    )  # the image itself is its map
    with pytest.raises(InputError, match="feature map"):
        gradcam.compute_gradcam(flat, np.ones((1, 4)))
    assert gradcam.compute_gradcam(network("flat"), noise()[:0]).shape == (0, HEIGHT, WIDTH)


@pytest.mark.slow
def test_the_same_maps_with_jax(tmp_path):
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed")
    if keras.backend.backend() == "jax":
        pytest.skip("these tests run on jax already")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__)]
    done = subprocess.run(command, env=os.environ | {"KERAS_BACKEND": "jax"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
