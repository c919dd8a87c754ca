"""Cut-off trainings go on: in any precision, with a damaged history, on a slow disk, two at once."""

import functools
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

from bcdlib.errors import InputError
from bcdlib.methods.parts import fitting, hardware
from tests.methods.small import Small

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
CUT, EPOCHS, STEPS = 2, 4, 3


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


@functools.cache
def in_one_piece(precision, **settings):
    """An undisturbed training: the same for all tests, which only look at it."""
    return fitted(method(precision, **settings))


@pytest.fixture
def every_epoch(monkeypatch):
    """A checkpoint after each epoch."""
    monkeypatch.setenv("BCD_CHECKPOINT_SHARE", "inf")


class Killed(BaseException):
    pass


def cut_off(estimator, folder, epoch=CUT, step=1):
    """Train until it is killed in the middle of an epoch; gives the network as it was before that epoch."""
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


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Make a folder of a training that was killed, to go on in; gives what `cut_off` gives."""

    @functools.cache
    def once(precision, **settings):
        folder = tmp_path_factory.mktemp("killed")
        return cut_off(method(precision, **settings), folder), folder

    def copied(folder, precision="float32", **settings):
        state, first = once(precision, **settings)
        shutil.copytree(first, folder, dirs_exist_ok=True)
        return state

    return copied


@pytest.fixture
def whole_and_cut(killed, every_epoch, tmp_path):
    """An undisturbed training, and the folder of one that was killed."""
    killed(tmp_path / "cut")
    return in_one_piece("float32"), tmp_path / "cut"


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
def test_cut_off_in_one_precision_and_resumed_in_another(
    there, here, every_epoch, killed, tmp_path, monkeypatch
):
    """As a network that goes on in the other precision with no file between, bit for bit."""
    state = killed(tmp_path, there)
    models = networks(monkeypatch)
    resumed = fitted(method(here), tmp_path)
    computed = {layer.compute_dtype for layer in models[0].layers if layer.name.startswith("conv")}
    assert computed == {keras.dtype_policies.get(here).compute_dtype}
    scaled = isinstance(models[0].optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (here == "mixed_float16")
    assert int(models[0].optimizer.iterations) == EPOCHS * STEPS, "none of these steps overflowed"
    assert resumed.history_["epoch"].tolist() == list(range(EPOCHS))
    if there == here:
        expected = in_one_piece(here)
        pd.testing.assert_frame_equal(resumed.history_, expected.history_, check_exact=True)
        expected = expected.model_.get_weights()
    else:
        expected = gone_on(state, here).get_weights()
    for found, wanted in zip(resumed.model_.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("there, here", itertools.permutations(PRECISIONS, 2))
def test_the_loss_goes_on_where_it_was(there, here, every_epoch, killed, tmp_path):
    """Without random layers, whose numbers depend on the precision."""
    killed(tmp_path, there, augment=False)
    resumed = fitted(method(here, augment=False), tmp_path)
    undisturbed = in_one_piece(there, augment=False)
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(resumed.history_[name], undisturbed.history_[name], rtol=0, atol=1e-3)
    X, _ = images()
    np.testing.assert_allclose(resumed.predict_proba(X), undisturbed.predict_proba(X), atol=5e-3)


def test_steps_that_overflowed_and_the_scale_of_the_loss_are_kept(every_epoch, tmp_path, monkeypatch):
    """A scale that is too large at first: steps are left out, and the optimizer counts fewer."""

    class Large(keras.optimizers.LossScaleOptimizer):
        def __init__(self, inner, initial_scale=2.0**24, **more):
            super().__init__(inner, initial_scale, **more)

    monkeypatch.setattr("keras.src.trainers.trainer.LossScaleOptimizer", Large)
    whole = fitted(method("mixed_float16"))
    cut_off(method("mixed_float16"), tmp_path)
    models = networks(monkeypatch)
    resumed = fitted(method("mixed_float16"), tmp_path)
    assert (
        0 < int(models[0].optimizer.iterations) < EPOCHS * STEPS
        and float(models[0].optimizer.dynamic_scale) < 2**24
    )
    pd.testing.assert_frame_equal(resumed.history_, whole.history_, check_exact=True)
    X, _ = images()
    np.testing.assert_array_equal(resumed.predict_proba(X), whole.predict_proba(X))


def same(found, expected):
    pd.testing.assert_frame_equal(found.history_, expected.history_, check_exact=True)
    X, _ = images()
    np.testing.assert_array_equal(found.predict_proba(X), expected.predict_proba(X))


def test_whatever_happens_to_the_history_file_nothing_is_lost(whole_and_cut, tmp_path, capsys):
    whole, folder = whole_and_cut
    history = folder / "history.csv"
    checkpoint, text = (folder / "checkpoint.keras").read_bytes(), history.read_text()
    assert text.count("\n") == CUT + 1
    fitted(method(), tmp_path / "whole")
    written = tmp_path / "whole" / "history.csv"
    for damaged in (None, "", text[: len(text) // 2], "epoch,loss\n9,nonsense\n", "\0\0"):
        (folder / "checkpoint.keras").write_bytes(checkpoint)
        history.unlink(missing_ok=True) if damaged is None else history.write_text(damaged)
        resumed = fitted(method(verbose=2), folder)
        said = capsys.readouterr().out
        assert f"Going on after epoch {CUT} of {EPOCHS}" in said and "Epoch 1/" not in said
        same(resumed, whole)
        assert history.read_bytes() == written.read_bytes()
    assert {file.name for file in folder.iterdir() if file.is_file()} == {"checkpoint.keras", "history.csv"}


def without_history(checkpoint: Path) -> None:
    """Make a checkpoint one of those written before the history was part of it."""
    with zipfile.ZipFile(checkpoint) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name != "history.csv"}
    with zipfile.ZipFile(checkpoint, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_older_checkpoints_are_resumed(whole_and_cut, capsys):
    """With the history beside them, and if that is damaged without its curves."""
    whole, folder = whole_and_cut
    without_history(folder / "checkpoint.keras")
    checkpoint, text = (folder / "checkpoint.keras").read_bytes(), (folder / "history.csv").read_text()
    # it could be ahead of the checkpoint, and its last line cut off
    (folder / "history.csv").write_text(text + "2,0.5,0.2,0.5,0.2\n3,0.5")
    same(fitted(method(), folder), whole)
    assert "lost" not in capsys.readouterr().out
    X, _ = images()
    for damaged in (None, text[: text.index("\n1,") + 1], "nonsense"):
        (folder / "checkpoint.keras").write_bytes(checkpoint)
        (folder / "history.csv").unlink() if damaged is None else (folder / "history.csv").write_text(damaged)
        resumed = fitted(method(), folder)
        assert f"the curves of some of its {CUT} epochs are lost" in capsys.readouterr().out
        np.testing.assert_array_equal(resumed.predict_proba(X), whole.predict_proba(X))
        found = resumed.history_.dropna().set_index("epoch")
        expected = whole.history_.set_index("epoch").loc[found.index]
        pd.testing.assert_frame_equal(found, expected[found.columns], check_exact=True)
        assert set(found.index) >= set(range(CUT, EPOCHS))


@pytest.mark.parametrize("way", ["cut", "changed", "no archive", "another network", "another optimizer"])
def test_a_checkpoint_that_cannot_be_used_is_kept_aside(way, whole_and_cut, capsys, monkeypatch):
    whole, folder = whole_and_cut
    checkpoint = folder / "checkpoint.keras"
    content = bytearray(checkpoint.read_bytes())
    if way == "cut":
        content = content[: len(content) // 2]
    elif way == "changed":
        place = content.index(b"model.weights.h5") + 3000
        content[place : place + 8] = bytes(8 * [255])
    elif way == "no archive":
        content = b"nonsense"
    checkpoint.write_bytes(content)
    if way == "another network":
        keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(checkpoint)
    elif way == "another optimizer":
        monkeypatch.setattr(Small, "build_optimizer", lambda self: keras.optimizers.Adam(1e-4))
        whole = fitted(method())
    content = checkpoint.read_bytes()
    same(fitted(method(), folder), whole)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and f"{checkpoint}: not usable (" in said
    assert "it is now checkpoint-unusable-1.keras, and this training starts anew" in said
    assert (folder / "checkpoint-unusable-1.keras").read_bytes() == content


@pytest.mark.parametrize("writing", [0.1, 70.0, 2000.0])
@pytest.mark.parametrize("epoch", [7.0, 95.0, 900.0, 14_000.0])
def test_ten_minutes_lie_between_checkpoints_at_most(epoch, writing, tmp_path, monkeypatch):
    """On a clock of its own: at most so much training is lost; else writing keeps its share."""
    monkeypatch.delenv("BCD_CHECKPOINT_SHARE", raising=False)
    clock, steps, tail, epochs = [0.0], 200, 8.0, 250 if epoch < 600 else 30
    monkeypatch.setattr(fitting.time, "perf_counter", lambda: clock[0])
    history = fitting.History(pd.DataFrame(), 0)
    batches = fitting.Batches(np.zeros((64, 2)), np.zeros(64), 32, steps, seed=0)
    checkpoint = fitting.Checkpoint(tmp_path / "checkpoint.keras", history, batches, tail)
    written = []

    def write(done, within=0):
        written.append((done * (steps + tail) + within) * epoch / (steps + tail))
        clock[0] += writing

    monkeypatch.setattr(checkpoint, "_write", write)
    checkpoint.set_params({"epochs": epochs})
    checkpoint.set_model(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    checkpoint.on_train_begin()
    for number in range(epochs):
        batches.epoch = number
        for step in range(steps):
            checkpoint.on_train_batch_begin(step)
            clock[0] += epoch / (steps + tail)
            checkpoint.on_train_batch_end(step)
        clock[0] += epoch * tail / (steps + tail)  # the curves of held-out images
        checkpoint.on_epoch_end(number)
    apart = np.diff([0.0, *written])
    assert written[-1] == pytest.approx(epochs * epoch)
    # a step, and an epoch's last one with the curves, cannot be divided
    allowed = max(600, (1 + tail) * epoch / (steps + tail))
    assert apart.max() <= allowed * (1 + 1e-9)  # sums of floats
    said = checkpoint.seconds_apart(epoch)
    assert said <= 600 and (apart <= max(said, 15) + epoch).all(), "it is less often than was said"
    if writing == 0.1 and epoch < 600:
        assert len(written) * writing <= 0.021 * epochs * epoch and apart.min() <= max(epoch, 15)
    elif epoch < 600:
        assert np.sort(apart)[-2] > 500, "it writes more often than it must"
    else:
        assert len(written) <= epochs + epochs * epoch / 400, "it writes more often than it must"


class CutAfterWriting(fitting.Checkpoint):
    """Ends the training as soon as it has a checkpoint of this place; writes at every place."""

    MOST, place = 0.0, (0, 0)

    def _write(self, epochs, steps=0):
        super()._write(epochs, steps)
        if (epochs, steps) == self.place:
            raise Killed


def cut_inside(estimator, folder, place):
    """Train until there is a checkpoint of this place: whole epochs, and steps of the next one."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(fitting, "Checkpoint", CutAfterWriting)
        patch.setattr(CutAfterWriting, "place", place)
        fitted(estimator, folder)


@pytest.mark.parametrize("place", [(0, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_cut_off_inside_an_epoch(place, precision, tmp_path, capsys):
    """Random streams, batches, weights and the epoch's curves go on where they were, bit for bit."""
    cut_inside(method(precision, verbose=2), tmp_path, place)
    capsys.readouterr()
    resumed = fitted(method(precision, verbose=2), tmp_path)
    epochs, steps = place
    said = f"Going on after epoch {epochs} of {EPOCHS} and {steps} of the next one's {STEPS} steps\n"
    assert said in capsys.readouterr().out
    same(resumed, in_one_piece(precision))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), resumed.history_)


def test_cut_off_twice_inside_the_same_epoch(tmp_path):
    cut_inside(method(), tmp_path, (1, 1))
    cut_inside(method(), tmp_path, (1, 2))
    same(fitted(method(), tmp_path), in_one_piece("float32"))


def test_cut_off_inside_an_epoch_and_resumed_where_more_steps_are_done_at_once(tmp_path, monkeypatch):
    cut_inside(method(steps_per_epoch=12, steps_per_execution=2), tmp_path, (1, 2))
    models = networks(monkeypatch)
    resumed = fitted(method(steps_per_epoch=12, steps_per_execution=4), tmp_path)
    assert models[0].steps_per_execution == 4, "it stays slow after this epoch"
    same(resumed, fitted(method(steps_per_epoch=12)))


def test_cut_off_inside_an_epoch_and_resumed_in_a_network_compiled_for_more_steps(tmp_path):
    """An earlier training in this process did more steps at once than divide what is left of the epoch."""
    cut_inside(method(steps_per_epoch=12, steps_per_execution=2), tmp_path, (1, 2))
    undisturbed = fitted(method(steps_per_epoch=12, steps_per_execution=4))
    same(fitted(method(steps_per_epoch=12, steps_per_execution=4), tmp_path), undisturbed)


def test_cut_off_inside_an_epoch_and_resumed_in_another_precision(tmp_path, monkeypatch):
    settings = {"augment": False}
    cut_inside(method("mixed_float16", **settings), tmp_path, (2, 1))
    models = networks(monkeypatch)
    resumed = fitted(method(**settings), tmp_path)
    assert int(models[0].optimizer.iterations) == EPOCHS * STEPS
    undisturbed = in_one_piece("mixed_float16", **settings)
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(resumed.history_[name], undisturbed.history_[name], rtol=0, atol=1e-3)


@pytest.mark.parametrize("way", ["too many steps", "another state", "nonsense"])
def test_what_a_checkpoint_says_of_the_inside_of_an_epoch_may_be_wrong(way, tmp_path, capsys):
    cut_inside(method(), tmp_path, (1, 2))
    checkpoint = tmp_path / "checkpoint.keras"
    with zipfile.ZipFile(checkpoint) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    within = json.loads(members["within.json"])
    within |= {"too many steps": {"steps": STEPS}, "another state": {"state": within["state"][1:]}}.get(
        way, {}
    )
    members["within.json"] = b"{" if way == "nonsense" else json.dumps(within).encode()
    with zipfile.ZipFile(checkpoint, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    same(fitted(method(), tmp_path), in_one_piece("float32"))
    assert "it is now checkpoint-unusable-1.keras" in capsys.readouterr().out


def test_two_trainings_on_one_folder(every_epoch, tmp_path):
    """Each by itself gives the result; the second says that it waits."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from tests.methods import test_resume as t\n"
        "found = t.fitted(t.method(epochs=8), sys.argv[2]); found.history_.to_csv(sys.argv[3], index=False)"
    )
    root = Path(__file__).resolve().parents[2]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, root, tmp_path / "run", tmp_path / f"{name}.csv"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    said = [process.communicate(timeout=500) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    waited = [out for out, _ in said if "another training is at work in this folder; waiting" in out]
    assert len(waited) <= 1
    tables = [pd.read_csv(tmp_path / f"{name}.csv") for name in "ab"]
    tables.append(pd.read_csv(tmp_path / "run" / "history.csv"))
    expected = fitted(method(epochs=8)).history_
    for table in tables:
        pd.testing.assert_frame_equal(table, expected)


def test_the_second_says_that_it_waits(every_epoch, tmp_path, capsys, monkeypatch):
    began, go_on = threading.Event(), threading.Event()
    original = fitting.Checkpoint._write

    def slowly(self, epochs, steps):
        began.set()
        assert go_on.wait(100)
        original(self, epochs, steps)

    monkeypatch.setattr(fitting.Checkpoint, "_write", slowly)
    first = threading.Thread(target=lambda: fitted(method(epochs=1), tmp_path))
    first.start()
    assert began.wait(100)
    threading.Timer(1.0, go_on.set).start()
    second = fitted(method(epochs=1), tmp_path)  # nothing is left to do for it
    first.join()
    assert capsys.readouterr().out == f"{tmp_path}: {fitting.BUSY}\n"
    assert second.history_["epoch"].tolist() == [0]


def test_how_long_it_takes_is_said_from_the_first_steps(monkeypatch, capsys):
    """Steps of two seconds, but for the first, in which Keras compiles; 16 images are held out."""
    clock = [0.0]

    class Slow(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            clock[0] += 2.0 if clock[0] else 60.0

    original = keras.Model.fit
    monkeypatch.setattr(
        keras.Model,
        "fit",
        lambda self, *words, callbacks, **more: original(
            self, *words, callbacks=[Slow(), *callbacks], **more
        ),
    )
    monkeypatch.setattr(fitting.time, "perf_counter", lambda: clock[0])
    fitted(method(epochs=3, steps_per_epoch=30, verbose=2))
    assert "Training takes about 3 min 4 s (3 epochs)\n" in capsys.readouterr().out
    estimator, clock[0] = method(epochs=200, steps_per_epoch=30, verbose=2), 0.0
    estimator.longest = 3600
    with pytest.raises(InputError, match=r"about 3 h 24 min \(200 epochs\) on this CPU; .* GPU .* --anyway"):
        fitted(estimator)
    assert clock[0] == 60 + 3 * 2, "it was to stop after the first steps"


@pytest.mark.slow
def test_all_of_it_with_jax():
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed")
    if keras.backend.backend() == "jax":
        pytest.skip("these tests run on jax already")
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", Path(__file__)]
    done = subprocess.run(command, env=os.environ | {"KERAS_BACKEND": "jax"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
