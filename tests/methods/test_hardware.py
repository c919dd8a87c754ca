"""Training on several devices, two parts of this machine's CPU: the same as on one."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from bcdlib.errors import InputError
from bcdlib.methods.parts import hardware
from bcdlib.trials import cluster

HERE = Path(__file__).resolve().parent.parent
BACKENDS = pytest.mark.parametrize("backend", ["tensorflow", "jax"])


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two_devices.py finds for a backend in one process: (folder, findings, what it printed)."""
    known = {}

    def ask(backend):
        if backend not in known:
            folder = tmp_path_factory.mktemp(backend)
            known[backend] = folder, *shared(backend, folder, "both")
        return known[backend]

    return ask


def shared(backend, where, what):
    """What tests/two_devices.py finds, and what it printed before."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    done = subprocess.run(
        [sys.executable, HERE / "two_devices.py", str(where), what],
        capture_output=True,
        text=True,
        timeout=1500,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said, _, found = done.stdout.rstrip().rpartition("\n")
    return json.loads(found), said


def test_networks_of_several_trials_are_no_mistake(caplog):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("of TensorFlow")
    for _ in range(7):
        inputs = keras.Input((2,))
        keras.Model(inputs, keras.layers.Dense(1)(inputs)).predict(np.zeros((2, 2)), verbose=0)
    assert "retracing" not in caplog.text


def difference(one, two, name):
    assert len(one[name]) == len(two[name])
    return np.abs(np.subtract(one[name], two[name])).max()


@BACKENDS
def test_the_same_loss_as_on_one_device(backend, both):
    """20 steps with batch norm, on JAX also augmentation and dropout; 37 held out; a batch of 9 on one."""
    _, found, said = both(backend)
    assert len(found["1"]["loss"]) == 4 and found["1"]["loss"][0] > 2 * found["1"]["loss"][-1], (
        "nothing was learned"
    )
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "probability"):
        assert difference(found["1"], found["2"], name) < 1e-5, name
    assert said.count("Training on 1 of 2 devices, 9 images of a batch of 9 on each: ") == 1


@BACKENDS
def test_cut_off_and_resumed_and_saved_on_two_devices(backend, both):
    folder, found, said = both(backend)
    assert found["whole"] == found["resumed"], "bit for bit"
    assert "Training on 2 of 2 devices, 4 images of a batch of 8 on each: " in said
    assert "Epoch 3/4" in said and "Epoch 2/4" not in said, "did not go on where it was"
    with zipfile.ZipFile(folder / "model.keras") as archive:
        assert b'"synchronized": true' not in archive.read("config.json")
    X = np.random.default_rng(0).integers(0, 256, (64, 24, 36, 3), dtype="uint8")
    X[1::2] //= 2
    here = keras.models.load_model(folder / "model.keras").predict(X[:37], verbose=0)[:, 0]  # one device
    np.testing.assert_allclose(here, found["resumed"]["probability"], atol=1e-5)


@pytest.mark.thorough
@BACKENDS
def test_the_whole_resnet50_in_float64(backend, weights_dir):
    found, _ = shared(backend, weights_dir, "resnet50")
    assert (
        difference(found["1"], found["2"], "loss") < 1e-9
        and difference(found["1"], found["2"], "probability") < 1e-9
    )


def test_which_devices(monkeypatch):
    monkeypatch.setattr(hardware, "available_devices", lambda: [f"gpu:{number}" for number in range(6)])
    monkeypatch.delenv(hardware.LIMIT, raising=False)
    assert [len(hardware.used_devices(size)) for size in (32, 30, 9, 7, 1)] == [4, 6, 3, 1, 1]
    monkeypatch.setenv(hardware.LIMIT, "2")
    assert hardware.used_devices(32) == ["gpu:0", "gpu:1"] and hardware.used_devices(9) == ["gpu:0"]
    monkeypatch.setenv(hardware.LIMIT, "100")
    assert len(hardware.used_devices(12)) == 6
    for nonsense in ("two", "-1", "1.5"):
        monkeypatch.setenv(hardware.LIMIT, nonsense)
        with pytest.raises(InputError, match="BCD_DEVICES=.*number of devices"):
            hardware.used_devices(32)


def test_a_worker_takes_one_device(monkeypatch):
    """Workers of one machine share its GPUs: each gets the first of its own list (dask-cuda turns it)."""
    monkeypatch.delenv(hardware.LIMIT, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,0,1")
    assert {key: cluster.worker_environment()[key] for key in ("BCD_DEVICES", "CUDA_VISIBLE_DEVICES")} == {
        "BCD_DEVICES": "1",
        "CUDA_VISIBLE_DEVICES": "2",
    }
    monkeypatch.setenv(hardware.LIMIT, "2")
    assert cluster.worker_environment()["CUDA_VISIBLE_DEVICES"] == "2,3"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert "CUDA_VISIBLE_DEVICES" not in cluster.worker_environment()


@pytest.mark.parametrize(
    "steps, expected",
    [(200, 10), (185, 5), (199, 199), (194, 97), (247, 13), (7, 7), (1, 1), (13, 13), (1009, 1), (1994, 2)],
)
def test_steps_at_once_of_an_epoch_that_ten_do_not_divide(steps, expected):
    found = hardware.steps_at_once(steps, 10)
    assert found == expected and steps % found == 0


def test_memory_of_a_gpu_grows():
    code = "import os, bcdlib; print(*(os.environ[name] for name in %r))"
    names = ("TF_FORCE_GPU_ALLOW_GROWTH", "XLA_PYTHON_CLIENT_PREALLOCATE")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    for given, said in (({}, "true false"), (dict.fromkeys(names, "own"), "own own")):
        done = subprocess.run(
            [sys.executable, "-c", code % (names,)],
            cwd=HERE.parent,
            env=environment | given,
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == said.split(), done.stderr
