"""Trainings that were cut off go on: in any precision, with a damaged history, on a slow disk, two at once."""

import importlib.util
import io
import itertools
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

from bcdlib.errors import InputError
from bcdlib.methods import KerasMethod
from bcdlib.methods.parts import fitting, hardware

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
CUT, EPOCHS, STEPS = 2, 4, 3


class Small(KerasMethod):
    """Batch norm, dropout, MSE and RMSprop, as the paper's network has them."""

    key, title, loss = "small", "test", "mean_squared_error"

    def build_features(self, x):
        x = keras.layers.Rescaling(1 / 127.5, -1)(x)
        x = keras.layers.Conv2D(8, 3, strides=2, use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=self.momentum)(x))
        return keras.layers.GlobalAveragePooling2D(name="pool")(x)

    def build_head(self, x):
        return keras.layers.Dropout(0.4, seed=self.seed)(x) if self.augment else x


def method(precision="float32", epochs=EPOCHS, **settings):
    usual = {"steps_per_epoch": STEPS, "batch_size": 8, "learning_rate": 1e-4, "verbose": 0}
    return Small(precision=precision, epochs=epochs, **usual | settings)


def images():
    """Noise, that of the malignant darker; X, y."""
    X, y = np.random.default_rng(0).integers(0, 256, (40, 24, 36, 3), dtype="uint8"), np.arange(40) % 2
    X[y == 1] //= 2
    return X, y


def fitted(estimator, folder=None):
    X, y = images()
    return estimator.fit(X, y, (X[:16], y[:16]), folder=folder)


@pytest.fixture
def every_epoch(monkeypatch):
    """A checkpoint after each epoch."""
    monkeypatch.setenv("BCD_CHECKPOINT_SHARE", "inf")


class Killed(BaseException):
    pass


def cut_off(estimator, folder, epoch=CUT, step=1):
    """Train until it is killed in the middle of an epoch; gives the network as it was after the epoch before."""
    found = []

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, number, logs=None):
            self.number = number
            if number == epoch:
                optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
                found.append((self.model.get_weights(), [np.array(v) for v in optimizer.variables]))

        def on_train_batch_begin(self, batch, logs=None):
            if (self.number, batch) == (epoch, step):
                raise Killed

    original = keras.Model.fit
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(
            keras.Model,
            "fit",
            lambda self, *words, callbacks, **more: original(
                self, *words, callbacks=[*callbacks, Kill()], **more
            ),
        )
        fitted(estimator, folder)
    return found[0]


def gone_on(state, precision, **settings):
    """Train the last epochs without a file: a new network that gets its state by hand."""
    X, y = images()
    estimator = method(precision, **settings)
    with hardware.computing_dtype(precision):
        model = estimator.build(X.shape[1:])
    model.optimizer.build(model.trainable_variables)
    model.set_weights(state[0])
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    for variable, value in zip(inner.variables, state[1], strict=True):
        variable.assign(value)
    batches = fitting.Batches(X, y, 8, STEPS, 0, CUT)
    fitting.fit_network(model, batches, None, epochs=EPOCHS, seed=0)
    return model


def networks(monkeypatch) -> list:
    """Collect the networks that are trained from now on."""
    found, original = [], fitting.fit_network

    def fit_network(model, *words, **more):
        found.append(model)
        return original(model, *words, **more)

    monkeypatch.setattr(fitting, "fit_network", fit_network)
    return found


@pytest.mark.parametrize("there", PRECISIONS)
@pytest.mark.parametrize("here", PRECISIONS)
def test_cut_off_in_one_precision_and_resumed_in_another(there, here, every_epoch, tmp_path, monkeypatch):
    """As a network that goes on in the other precision with no file between, bit for bit."""
    state = cut_off(method(there), tmp_path)
    models = networks(monkeypatch)
    resumed = fitted(method(here), tmp_path)
    computed = {layer.compute_dtype for layer in models[0].layers if layer.name.startswith("conv")}
    assert computed == {keras.dtype_policies.get(here).compute_dtype}
    scaled = isinstance(models[0].optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (here == "mixed_float16")
    assert int(models[0].optimizer.iterations) == EPOCHS * STEPS, "none of these steps overflowed"
    assert resumed.history_["epoch"].tolist() == list(range(EPOCHS))
    if there == here:
        expected = fitted(method(here))
        pd.testing.assert_frame_equal(resumed.history_, expected.history_, check_exact=True)
        expected = expected.model_.get_weights()
    else:
        expected = gone_on(state, here).get_weights()
    for found, wanted in zip(resumed.model_.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("there, here", itertools.permutations(PRECISIONS, 2))
def test_the_loss_goes_on_where_it_was(there, here, every_epoch, tmp_path):
    """Without random layers, whose numbers depend on the precision."""
    cut_off(method(there, augment=False), tmp_path)
    resumed, undisturbed = fitted(method(here, augment=False), tmp_path), fitted(method(there, augment=False))
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(resumed.history_[name], undisturbed.history_[name], rtol=0, atol=1e-3)
    X, _ = images()
    np.testing.assert_allclose(resumed.predict_proba(X), undisturbed.predict_proba(X), atol=5e-3)


def test_steps_that_overflowed_and_the_scale_of_the_loss_are_kept(every_epoch, tmp_path, monkeypatch):
    """A scale that is too large at first: steps are left out, the optimizer counts fewer, and so it goes on."""

    class Large(keras.optimizers.LossScaleOptimizer):
        def __init__(self, inner, initial_scale=2.0**30, **more):
            super().__init__(inner, initial_scale, **more)

    monkeypatch.setattr("keras.src.trainers.trainer.LossScaleOptimizer", Large)
    whole = fitted(method("mixed_float16"))
    cut_off(method("mixed_float16"), tmp_path)
    models = networks(monkeypatch)
    resumed = fitted(method("mixed_float16"), tmp_path)
    assert 0 < int(models[0].optimizer.iterations) < EPOCHS * STEPS and float(models[0].optimizer.dynamic_scale) < 2**30
    pd.testing.assert_frame_equal(resumed.history_, whole.history_, check_exact=True)
    X, _ = images()
    np.testing.assert_array_equal(resumed.predict_proba(X), whole.predict_proba(X))


@pytest.mark.slow
def test_all_of_it_with_jax():
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed")
    if keras.backend.backend() == "jax":
        pytest.skip("these tests run on jax already")
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", Path(__file__)]
    done = subprocess.run(command, env=os.environ | {"KERAS_BACKEND": "jax"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
