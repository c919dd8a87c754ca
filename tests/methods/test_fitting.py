"""The paper's recipe on the compiled model and the trial; resuming, saving and loading."""

import gc
import os
import subprocess
import sys
import time
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest

from bcdlib import methods
from bcdlib.data import breakhis, splits
from bcdlib.errors import InputError
from bcdlib.methods import _training
from bcdlib.methods.parts import backbones, features, fitting, hardware
from bcdlib.methods.parts.augmentation import FlipAndZoom
from bcdlib.runs.profiles import get_profile
from bcdlib.trials.trial import Trial, run_trial
from tests.methods.small import Small

pytestmark = pytest.mark.usefixtures("shallow")
SIZE = (48, 32)
PAPER = get_profile("paper")
TINY = get_profile("demo", size=SIZE, epochs=3, steps_per_epoch=2, batch_size=8, head_epochs=3)


@pytest.fixture(scope="module")
def trial(cache):
    return Trial("resnet50", "magnification", splits.make_split(cache.images, "magnification"))


def test_paper_recipe_on_the_compiled_model(trial, full_depth):
    model = trial.estimator(PAPER, "none").build((PAPER.size[1], PAPER.size[0], 3))
    assert model.input_shape == (None, 96, 144, 3) and model.input.dtype == "uint8"
    assert model.output_shape == (None, 1)
    layers = {layer.name: layer for layer in model.layers}
    assert type(layers["pool"]) is keras.layers.GlobalAveragePooling2D
    assert layers["dense"].units == 1024 and isinstance(layers["relu"], keras.layers.ReLU)
    assert layers["dropout"].rate == 0.4
    assert layers["probability"].units == 1 and layers["probability"].activation.__name__ == "sigmoid"
    order = [layer.name for layer in model.layers]
    assert order.index("dense") < order.index("relu") < order.index("dropout") < order.index("probability")
    assert type(model.optimizer) is keras.optimizers.RMSprop
    assert float(model.optimizer.learning_rate) == pytest.approx(0.001)
    assert model.loss == "mean_squared_error"
    # fine-tuned: every weight of the base but the batch norm statistics; the count is as Keras publishes it
    assert layers["resnet50"].count_params() == 23_587_712
    assert sum(int(np.prod(w.shape)) for w in layers["resnet50"].trainable_weights) == 23_534_592
    norms = [
        layer for layer in layers["resnet50"].layers if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert len(norms) == 53 and {layer.momentum for layer in norms} == {0.99}


def test_paper_recipe_on_the_trial():
    images = breakhis.known_images()
    split = splits.make_split(images, PAPER.splits[0])
    roles = split["role"].value_counts()
    assert PAPER.splits[0] == "magnification" and roles.to_dict() == {"train": 5914, "test": 1995}
    method = Trial("resnet50", "magnification", split).estimator(PAPER, "none")
    assert (method.epochs, method.steps_per_epoch, method.batch_size) == (200, 200, 32)
    assert method.trainable == "all" and method.augment and PAPER.size == (144, 96)
    train = images.merge(split.query("role == 'train'"), on="filename")
    assert sorted(train["magnification"].unique()) == [100, 200, 400]


def test_paper_needs_pretrained_weights(trial, tmp_path):
    with pytest.raises(InputError, match="resnet50_notop.weights.h5"):
        trial.estimator(PAPER, str(tmp_path)).build((32, 48, 3))
    with pytest.raises(InputError, match="no such folder"):
        trial.estimator(PAPER, str(tmp_path / "nowhere")).build((32, 48, 3))
    with pytest.raises(InputError, match="holds no weights"):  # rather another folder than random ones
        backbones.find_weights("resnet50", str(tmp_path), required=False)
    (tmp_path / "vgg16_notop.weights.h5").touch()
    found = backbones.find_weights("resnet50", str(tmp_path), required=False)
    assert not found.pretrained and "random" in found.label


def test_weights_file_that_does_not_fit(trial, tmp_path):
    (tmp_path / "resnet50_notop.weights.h5").write_bytes(b"not an HDF5 file")
    with pytest.raises(InputError, match="does not load"):
        trial.estimator(PAPER, str(tmp_path)).build((32, 48, 3))


def test_normalisation_is_keras_own(weights_dir, full_depth):
    X = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), dtype="uint8")
    method = methods.get_method("resnet50")(trainable="head", weights=str(weights_dir), verbose=0)
    method.build(X.shape[1:])
    file = f"{weights_dir}/resnet50_notop.weights.h5"
    base = keras.applications.ResNet50(
        include_top=False, weights=file, input_shape=X.shape[1:], pooling="avg"
    )
    expected = base(keras.applications.resnet50.preprocess_input(X.astype("float32")), training=False)
    found = features.extract_features(X, "resnet50", method.weights_)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def finished(trial, cache, shallow, tmp_path_factory):
    """A finished trial that fine-tuned the whole network."""
    root = tmp_path_factory.mktemp("finished")
    return run_trial(trial, cache, TINY, root=root, weights="none", verbose=0)


def test_trial_cut_off_and_resumed_equals_undisturbed(trial, finished, cache, tmp_path):
    """The same seed gives the same, bit for bit, also in two pieces."""

    class Cut(Exception):
        pass

    class CutAfterFirstEpoch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                raise Cut

    original = keras.Model.fit

    def cut(self, *args, **kwargs):
        kwargs["callbacks"] = [*kwargs["callbacks"], CutAfterFirstEpoch()]
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
        patch.setattr(keras.Model, "fit", cut)
        run_trial(trial, cache, TINY, root=tmp_path / "cut", weights="none", verbose=0)
    resumed = run_trial(trial, cache, TINY, root=tmp_path / "cut", weights="none", verbose=0)
    assert resumed.history["epoch"].tolist() == [0, 1, 2]
    pd.testing.assert_frame_equal(resumed.history, finished.history, check_exact=True)
    pd.testing.assert_frame_equal(resumed.predictions, finished.predictions, check_exact=True)


def test_finished_trial_is_not_run_again(trial, finished, cache, monkeypatch):
    monkeypatch.setattr(keras.Model, "fit", None)
    root = finished.folder.parent
    again = run_trial(trial, cache, TINY, root=root, weights="none", verbose=0)
    pd.testing.assert_frame_equal(finished.predictions, again.predictions)
    with pytest.raises(TypeError):  # other settings are another trial
        run_trial(trial, cache, replace(TINY, epochs=2), root=root, weights="none", verbose=0)


def test_saved_model_needs_no_bcdlib_and_predicts_the_same(finished, cache, tmp_path):
    test = cache.pixels[cache.rows(finished.predictions["filename"])]
    np.save(tmp_path / "X.npy", test)
    code = (
        "import sys, numpy as np, keras; assert not any('bcdlib' in p for p in sys.modules);"
        f"m = keras.models.load_model({str(finished.folder / 'model.keras')!r}, safe_mode=True);"
        f"np.save({str(tmp_path / 'p.npy')!r}, m.predict(np.load({str(tmp_path / 'X.npy')!r}), verbose=0))"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""}
    )
    np.testing.assert_allclose(
        np.load(tmp_path / "p.npy")[:, 0], finished.predictions["probability"], atol=1e-5
    )


def test_head_on_features_is_the_whole_network(cache, tmp_path):
    trial = Trial("resnet50", "case", splits.make_split(cache.images, "case", folds=3), 1, trainable="head")
    result = run_trial(trial, cache, TINY, root=tmp_path, weights="none", verbose=0)
    model = keras.models.load_model(result.folder / "model.keras")
    whole = model.predict(cache.pixels[cache.rows(result.predictions["filename"])], verbose=0)[:, 0]
    np.testing.assert_allclose(whole, result.predictions["probability"], atol=1e-4)
    assert result.held_out == "" and set(result.predictions["method"]) == {"resnet50-head"}


@pytest.mark.parametrize("name", ["dcnn14", "csdcnn"])  # with batch norm, with dropout
def test_same_seed_same_result_other_seed_another(cache, name):
    labels = breakhis.class_labels(cache.images)

    def fitted(seed):  # of the large network the trial above says it, that was cut off and resumed
        method = methods.get_method(name)(
            epochs=1, steps_per_epoch=2, batch_size=4, seed=seed, weights="none", verbose=0
        )
        return method.fit(cache.pixels, labels).predict_proba(cache.pixels)

    first = fitted(0)
    np.testing.assert_array_equal(first, fitted(0))
    assert np.abs(first - fitted(1)).max() > 1e-6
    np.testing.assert_allclose(first.sum(axis=1), 1)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow's graphs")
def test_the_graph_of_a_training_goes_with_its_network():
    """Or a night of trials fills the memory."""
    X = np.zeros((4, 8), "float32")
    kept = []
    for _ in range(2):
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1, activation="sigmoid")])
        model.compile("rmsprop", "mse")
        batches = fitting.Batches(X, np.arange(4.0) % 2, 4, None, seed=0)
        fitting.fit_network(model, batches, None, epochs=1, seed=0)
        del model
        keras.utils.clear_session()
        kept.append(sum(type(thing).__name__ == "FuncGraph" for thing in gc.get_objects()))
    assert kept[0] == kept[1]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow's graphs")
def test_a_step_is_traced_once_and_stays_compiled(cache, monkeypatch):
    """Large networks take longer to trace, and to make ready to run, than a short training computes."""
    from tensorflow.python.eager import context

    traced, dropped, step = [], [], keras.Model.train_step
    monkeypatch.setattr(
        keras.Model, "train_step", lambda self, data: traced.append(self.name) or step(self, data)
    )
    monkeypatch.setattr(_training, "_TRAINED", {})
    for name in ("_set_global_seed", "clear_kernel_cache"):
        true = getattr(context.Context, name)
        monkeypatch.setattr(
            context.Context,
            name,
            lambda self, *words, name=name, true=true: dropped.append(name) or true(self, *words),
        )
    X, y = cache.pixels[:16], breakhis.class_labels(cache.images)[:16]
    settings = {"epochs": 2, "steps_per_epoch": 2, "batch_size": 4, "weights": "none", "verbose": 0}
    for _ in range(2):
        methods.get_method("dcnn14")(**settings).fit(X, y, (X[:9], y[:9]))
    for _ in range(2):
        head().fit(X[:, 0, :, 0], y, (X[:9, 0, :, 0], y[:9]))
    assert len(traced) == 2 and not dropped


@pytest.mark.parametrize("rows", [1, 64, 65, 150])
def test_a_network_that_predicts_is_traced_once(rows):
    traced = []

    class Traced(keras.layers.Layer):
        def call(self, x):
            traced.append(x.shape)
            return x

    inputs = keras.Input((3,))
    x = Traced()(inputs)
    network = keras.Model(inputs, [keras.layers.Dense(2)(x), keras.layers.Dense(1)(x)])
    traced.clear()
    X = np.random.default_rng(0).normal(size=(rows, 3)).astype("float32")
    found = fitting.predict_batches(network, X)
    assert traced == [(min(rows, 64), 3)]
    for part, right in zip(found, network(X), strict=True):
        np.testing.assert_allclose(part, right, rtol=1e-5, atol=1e-6)


def test_registry():
    assert methods.method_names()[0] == "resnet50"
    with pytest.raises(InputError, match="resnet51"):
        methods.get_method("resnet51")
    with pytest.raises(InputError, match="trainable"):
        methods.get_method("resnet50")(trainable="some", weights="none").build((32, 48, 3))


def test_method_from_a_file_outside_the_package(cache, prior, tmp_path):
    split = splits.make_split(cache.images, "case", folds=3)
    result = run_trial(Trial(str(prior), "case", split), cache, TINY, root=tmp_path / "trials")
    train = split.query("fold == 0 and role == 'train'")["filename"]
    share = cache.images.set_index("filename").loc[train, "class"].eq("malignant").mean()
    np.testing.assert_allclose(result.predictions["probability"], share)


def test_checkpoints_take_at_most_their_share_of_the_time_on_a_slow_disk(tmp_path, monkeypatch):
    monkeypatch.delenv("BCD_CHECKPOINT_SHARE", raising=False)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    save, written = model.save, []

    def slowly(path):
        started = time.perf_counter()
        time.sleep(0.03)
        save(path)
        written.append(time.perf_counter() - started)

    monkeypatch.setattr(model, "save", slowly)
    wait = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: time.sleep(0.04))
    history = fitting.History(pd.DataFrame(), 0)
    batches = fitting.Batches(np.zeros((4, 2)), np.zeros(4), 4, None, seed=0)
    started = time.perf_counter()
    model.fit(
        np.zeros((4, 2)),
        np.zeros(4),
        epochs=60,
        verbose=0,
        callbacks=[wait, history, fitting.Checkpoint(tmp_path / "checkpoint.keras", history, batches)],
    )
    trained = time.perf_counter() - started - sum(written)
    assert (tmp_path / "checkpoint.keras").is_file() and len(written) >= 2
    assert (
        sum(written[:-1]) <= 1.2 * 0.02 * trained
    )  # but for the last epoch's, which always comes; 1.2: sleep is not exact


def quick(**settings):
    return methods.get_method("lenet5")(
        **{"epochs": 2, "steps_per_epoch": 4, "batch_size": 8, "learning_rate": 0.0001, "verbose": 0}
        | settings
    )


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_epochs_get_the_batches_of_their_numbers(at_once):
    """Through Keras' loop as batch by batch, from the first epoch and from the third."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 5)).astype("float32"), rng.normal(size=30)

    def network():
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, kernel_initializer="ones")])
        model.compile(keras.optimizers.SGD(0.1), "mse", steps_per_execution=at_once)
        return model

    for first in (0, 2):
        model, by_hand = network(), network()
        history = fitting.fit_network(
            model, fitting.Batches(X, y, 8, 4, 1, first), None, folder=None, epochs=5, seed=0, verbose=0
        )
        assert history["epoch"].tolist() == list(range(5 - first)) and np.diff(history["loss"]).all()
        for epoch in range(first, 5):
            batches = fitting.Batches(X, y, 8, 4, 1, epoch)
            for step in range(4):
                by_hand.train_on_batch(*batches[step])
        np.testing.assert_allclose(model.get_weights()[0], by_hand.get_weights()[0], rtol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.data is TensorFlow's")
def test_nothing_waits_for_the_thread_that_tunes_tf_data():
    """Nor is anything lost: the batches come in order, the last one short."""
    X = np.arange(150, dtype="float32")[:, None]
    data = fitting.batch_stream(fitting.Ordered(X))
    assert data.options().autotune.enabled is False and int(data.cardinality()) == 3
    np.testing.assert_array_equal(np.concatenate([part for (part,) in data.as_numpy_iterator()]), X)
    endless = fitting.batch_stream(fitting.Batches(X, X[:, 0], 32, 4, seed=0))
    assert endless.options().autotune.enabled is False


def test_precision_steps_and_xla_each_can_be_set(cache, capsys):
    """On a CPU "auto" is float32 without XLA, a step at a time; other settings compute the same network."""
    X, y = cache.pixels, breakhis.class_labels(cache.images)
    usual = quick().fit(X, y)
    assert (
        hardware.dtype_policy() == "float32"
        and not usual.model_.jit_compile
        and usual.model_.steps_per_execution == 1
    )
    several = quick(steps_per_execution=3, verbose=2).fit(X, y)
    assert "2 steps an execution" in capsys.readouterr().out  # 3 do not divide an epoch of 4
    np.testing.assert_array_equal(several.predict_proba(X), usual.predict_proba(X))
    compiled = quick(xla="on").fit(X, y)
    assert compiled.model_.jit_compile  # its random numbers are others: dropout's and the augmentation's
    np.testing.assert_allclose(compiled.history_["loss"], usual.history_["loss"], rtol=0.1)
    for precision in ("mixed_bfloat16", "mixed_float16"):
        mixed = quick(precision=precision).fit(X, y)
        np.testing.assert_allclose(
            mixed.history_["loss"], usual.history_["loss"], rtol=0.2
        )  # other random numbers too
        assert not mixed.history_.equals(usual.history_), "it computed in float32"
        assert {layer.compute_dtype for layer in mixed.model_.layers} == {"float32"}, (
            "what is kept is slow on a CPU"
        )
    for name in ("precision", "xla"):
        with pytest.raises(InputError, match=f"lenet5: {name}='half'; it knows 'auto'"):
            quick(**{name: "half"}).fit(X, y)


def head(**settings):
    return methods.get_method("resnet50")(
        trainable="head",
        weights="none",
        pretrained_required=False,
        verbose=0,
        **{"epochs": 3} | settings,
    )


def test_a_head_learns_the_same_in_executions_of_any_length():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(120, 16)).astype("float32"), rng.integers(0, 2, 120)
    fitted = [head(steps_per_execution=steps).fit(X, y, (X[:10], y[:10])) for steps in (0, 4, 2)]
    for other in fitted[1:]:
        pd.testing.assert_frame_equal(other.history_, fitted[0].history_, rtol=1e-6)
        np.testing.assert_allclose(other.predict_proba(X), fitted[0].predict_proba(X), atol=1e-6)


@pytest.mark.parametrize("epochs", [3, 10], ids=["a step an execution", "an epoch an execution"])
def test_a_head_learns_the_same_whatever_was_trained_before(epochs, monkeypatch):
    """Heads that are alike are trained in one compiled network: nothing of one may reach the next."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(256, 16)).astype("float32"), rng.integers(0, 2, 256)

    def fit(size):
        return head(epochs=epochs, batch_size=4).fit(X[:size], y[:size], (X[:9], y[:9]))

    one_after_another = {size: fit(size) for size in (256, 208, 224)}
    for size, found in one_after_another.items():
        monkeypatch.setattr(_training, "_TRAINED", {})
        alone = fit(size)
        pd.testing.assert_frame_equal(found.history_, alone.history_)
        np.testing.assert_array_equal(found.predict_proba(X), alone.predict_proba(X))


def test_a_network_learns_the_same_whatever_was_trained_before(cache, monkeypatch):
    """Networks that are alike are trained in one that is compiled once: nothing of one may reach the next."""
    X, y = cache.pixels, breakhis.class_labels(cache.images)
    settings = {"epochs": 2, "steps_per_epoch": 2, "batch_size": 4, "verbose": 0}

    def fit(size):  # with batch norm, dropout and augmentation
        return Small(**settings).fit(X[:size], y[:size], (X[:9], y[:9]))

    monkeypatch.setattr(_training, "_TRAINED", {})
    one_after_another, compiled = {}, set()
    for size in (16, 12, 14):
        one_after_another[size] = fit(size)
        compiled |= {*_training._TRAINED.values()}
    assert len(compiled) == 1
    for size, found in one_after_another.items():
        monkeypatch.setattr(_training, "_TRAINED", {})
        alone = fit(size)
        pd.testing.assert_frame_equal(found.history_, alone.history_)
        np.testing.assert_array_equal(found.predict_proba(X), alone.predict_proba(X))


def test_what_training_uses_is_said(cache, capsys):
    quick(verbose=2, epochs=1).fit(cache.pixels, breakhis.class_labels(cache.images))
    assert "CPU (oneDNN on): float32, no XLA, 1 step an execution" in capsys.readouterr().out


def test_cut_off_in_float16_and_resumed(cache, tmp_path):
    """Overflowing steps are left out of the optimizer's count: epochs must not be counted by it."""
    X, y = cache.pixels, breakhis.class_labels(cache.images)
    settings = {"precision": "mixed_float16", "epochs": 4}
    whole = quick(**settings).fit(X, y, folder=tmp_path / "whole")
    quick(**settings | {"epochs": 2}).fit(X, y, folder=tmp_path / "cut")  # its last epoch has a checkpoint
    resumed = quick(**settings).fit(X, y, folder=tmp_path / "cut")
    pd.testing.assert_frame_equal(resumed.history_, whole.history_, check_exact=True)
    np.testing.assert_array_equal(resumed.predict_proba(X), whole.predict_proba(X))


def test_flips_and_zooms_are_keras_own():
    X = np.random.default_rng(0).integers(0, 256, (32, 24, 36, 3)).astype("float32")
    flipped = keras.ops.convert_to_numpy(FlipAndZoom(0.0, seed=3)(X, training=True))
    kinds = [X, X[:, ::-1], X[:, :, ::-1], X[:, ::-1, ::-1]]
    which = [[np.abs(image - kind[row]).max() < 1e-2 for kind in kinds] for row, image in enumerate(flipped)]
    assert (np.sum(which, axis=1) == 1).all() and (
        np.sum(which, axis=0) > 2
    ).all()  # one of the four, and all four come
    y, x = np.mgrid[0:24, 0:36]
    waves = np.stack([128 + 100 * np.sin(x / 2), 128 + 100 * np.cos(y / 2), 4.0 * (x + y)], -1)[None].astype(
        "float32"
    )
    zoomed = keras.ops.convert_to_numpy(
        FlipAndZoom(0.3, seed=4)(np.repeat(waves, 500, axis=0), training=True)
    )
    for factor in (0.78, 1.22):  # with Keras' own at one factor: of many draws one comes close to it
        keras_own = keras.layers.RandomZoom((factor - 1, factor - 1), fill_mode="reflect")(
            waves, training=True
        )
        distances = np.abs(zoomed - keras.ops.convert_to_numpy(keras_own)).mean(axis=(1, 2, 3))
        assert distances.min() < 0.5 and np.median(distances) > 10
    assert np.array_equal(FlipAndZoom()(X), X), "it acts outside training too"


def test_the_head_learns_from_augmented_copies_too(cache, tmp_path):
    split = splits.make_split(cache.images, "case", folds=3)
    svm = "hybrid_cnn:bases=vgg16+resnet50"  # two of its four bases, one of them known already
    asked = {"net": "resnet50:augmented_copies=2", "svm": f"{svm}:augmented_copies=1"}
    found = {
        name: run_trial(
            Trial(method, "case", split, trainable="head"),
            cache,
            TINY,
            root=tmp_path,
            weights="none",
            verbose=0,
        )
        for name, method in asked.items()
    }
    for result in found.values():
        saved = methods.load_method(result.folder / "model.keras")
        rows = cache.rows(result.predictions["filename"])
        again = saved.predict_proba(cache.pixels[rows], cache.images.iloc[rows])[:, 1]
        np.testing.assert_allclose(again, result.predictions["probability"], atol=1e-4)
    method = methods.get_method("resnet50")(trainable="head", augmented_copies=2, weights="none", verbose=0)
    copies = method.inputs(cache)
    assert copies.shape == (96, 3, 2048)
    plain = features.extract_features(cache.pixels, "resnet50", method.weights_)
    np.testing.assert_allclose(copies[:, 0], plain, rtol=1e-4, atol=1e-5)
    change = np.abs(copies[:, 1:] - copies[:, :1]).mean(axis=(1, 2))
    assert (change > 1e-4).all() and not np.array_equal(copies[:, 1], copies[:, 2])
    plain = run_trial(
        Trial("resnet50", "case", split, trainable="head"),
        cache,
        TINY,
        root=tmp_path,
        weights="none",
        verbose=0,
    )
    assert len(plain.history) == len(found["net"].history)
    assert not plain.predictions["probability"].equals(found["net"].predictions["probability"])
