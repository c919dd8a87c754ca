"""Methods as scikit-learn's own tools use them: cross-validation, calibration, curves, clone, score."""

import functools
import json

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.metrics import RocCurveDisplay, accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from bcdlib import methods
from bcdlib.data import breakhis
from bcdlib.methods import KerasMethod
from bcdlib.methods.parts import augmentation, backbones


class Colours(KerasMethod):
    """Mean colours, an optimizer and an augmentation of its own."""

    key, title = "colours", "Mean colour"

    def build_features(self, x):
        return keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(x))

    def build_optimizer(self):
        return keras.optimizers.Adam(self.learning_rate)

    def build_augmentation(self):
        return keras.layers.RandomRotation(0.1, seed=self.seed)


@pytest.fixture(scope="module")
def data():
    """36 images of noise, every second one darker; X, y."""
    X, y = np.random.default_rng(0).integers(0, 256, (36, 24, 32, 3), dtype="uint8"), np.arange(36) % 2
    X[y == 1] //= 2
    return X, y


def colours():
    return Colours(epochs=4, batch_size=8, learning_rate=0.05, verbose=0)


def lenet5():
    return methods.get_method("lenet5")(epochs=1, batch_size=8, verbose=0)


@pytest.fixture(scope="module", autouse=True)
def one_base():
    """All `robust` here have the same frozen base, that of seed 0: to build it takes a second."""
    about = backbones.ARCHITECTURES["resnet50"]
    once = functools.cache(about.constructor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbones.ARCHITECTURES, "resnet50", about._replace(constructor=once))
        yield


def robust():
    return methods.get_method("robust")(bases="resnet50", size="cache", stages="2", weights="none", verbose=0)


@pytest.fixture
def by_path(prior):
    return methods.get_method(str(prior))()


@pytest.mark.parametrize("make", [colours, lenet5, robust])
def test_cross_validated_and_calibrated_and_drawn(make, data):
    X, y = data
    found = cross_val_predict(make(), X, y, cv=2, method="predict_proba")
    assert found.shape == (36, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    calibrated = CalibratedClassifierCV(make(), cv=2).fit(X, y)
    assert calibrated.classes_.tolist() == [0, 1]
    np.testing.assert_allclose(calibrated.predict_proba(X).sum(axis=1), 1)
    method = make().fit(X, y)
    assert method.classes_.tolist() == [0, 1]
    display = RocCurveDisplay.from_estimator(method, X, y)
    assert 0 <= display.roc_auc <= 1
    assert method.score(X, y) == accuracy_score(y, method.predict(X))


def test_what_is_learned_is_found_by_cross_validation(data):
    X, y = data
    assert cross_val_score(robust(), X, y, cv=3).mean() == 1
    best = GridSearchCV(robust(), {"C": [1e-6, 0.01]}, cv=2, scoring="neg_log_loss").fit(X, y)
    assert best.best_params_ == {"C": 0.01} and best.best_estimator_.get_params()["C"] == 0.01


def test_a_method_file_needs_no_classes_of_its_own(by_path, data):
    X, y = data
    with pytest.raises(NotFittedError):
        check_is_fitted(by_path)
    assert not hasattr(by_path, "classes_")
    by_path.fit(X, y)
    assert by_path.classes_.tolist() == [0, 1] and by_path.score(X, y) == 0.5
    assert cross_val_predict(clone(by_path), X, y, cv=2, method="predict_proba").shape == (36, 2)
    assert RocCurveDisplay.from_estimator(by_path, X, y).roc_auc == 0.5


def test_a_method_file_may_set_its_own_classes(by_path, data):
    X, y = data
    by_path.fit(X, y)
    by_path.classes_ = np.unique(y)
    assert by_path.classes_.tolist() == [0, 1]


@pytest.mark.parametrize("name", methods.method_names())
def test_parameters_are_copied_and_images_are_no_table(name):
    method = methods.get_method(name)(seed=7, weights="none")
    copy = clone(method)
    assert copy.get_params() == method.get_params() and copy.get_params()["seed"] == 7
    assert is_classifier(method) and not get_tags(method).input_tags.two_d_array
    json.dumps(method.get_params())  # they name a trial's folder


def test_eight_subtypes_have_eight_classes(data):
    X, y = data[0], np.arange(36) % 8
    method = methods.get_method("lenet5")(epochs=1, batch_size=8, verbose=0, task="subtype").fit(X, y)
    assert method.classes_.tolist() == list(range(len(breakhis.SUBTYPES)))
    assert cross_val_predict(method, X, y, cv=2, method="predict_proba").shape == (36, 8)
    assert method.set_params(task="binary").fit(X, y % 2).classes_.tolist() == [0, 1]


def test_optimizer_and_augmentation_are_hooks(data, tmp_path):
    X, y = data
    method = colours().fit(X, y, folder=tmp_path / "trained")
    assert type(method.model_.optimizer) is keras.optimizers.Adam
    assert type(method.model_.get_layer("augmentation")) is keras.layers.RandomRotation
    method.save(tmp_path / "model.keras")
    saved = keras.models.load_model(tmp_path / "model.keras")
    assert type(saved.get_layer("augmentation")) is keras.layers.Identity
    np.testing.assert_allclose(saved.predict(X, verbose=0)[:, 0], method.predict_proba(X)[:, 1], atol=1e-6)
    usual = lenet5().build(X.shape[1:])
    assert type(usual.optimizer) is keras.optimizers.RMSprop
    assert type(usual.get_layer("augmentation")) is augmentation.FlipAndZoom


def test_augmented_images_are_those_of_the_default_layer(data, monkeypatch):
    X, _ = data
    drawn = np.asarray(augmentation.FlipAndZoom(seed=3)(X.astype("float32"), training=True))
    found = augmentation.augmented(X, 3)
    assert found.dtype == np.uint8 and np.array_equal(found, drawn.round().clip(0, 255).astype("uint8"))
    monkeypatch.setattr(
        augmentation, "default_augmentation", lambda seed, always=False: keras.layers.Rescaling(0.5)
    )
    np.testing.assert_array_equal(augmentation.augmented(X, 3), (X / 2).round().astype("uint8"))


def test_images_reach_a_method_by_keyword(data):
    X, y = data
    images = pd.DataFrame({"case": [str(number // 4) for number in range(36)]})
    grouped, plain = (robust().fit(X, y, images=known) for known in (images, None))
    assert grouped.cases_.tolist() == images["case"].tolist() and plain.cases_ is None
    with pytest.raises(TypeError):
        robust().fit(X, y, None, None, images)
