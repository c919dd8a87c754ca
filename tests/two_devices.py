"""Train on two made-up devices, parts of the CPU: ``python two_devices.py FOLDER WHAT`` prints JSON."""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["BCD_CHECKPOINT_SHARE"] = "inf"  # a checkpoint after each epoch
os.environ["NPROC"] = (
    "16"  # threads of JAX: with two, devices that wait for each other in a sum would wait for ever
)

import keras
import numpy as np

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from bcdlib import methods
from bcdlib.methods._keras import KerasMethod
from bcdlib.methods.parts import hardware

RANDOM = keras.backend.backend() == "jax"  # whether random numbers are those of one device
SMALL = {
    "epochs": 4,
    "steps_per_epoch": 5,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "batch_norm": 0.8,
    "verbose": 0,
    "precision": "float32",
    "steps_per_execution": 5,
}


class Pieces(KerasMethod):
    """The pieces of the paper's network on a small base: batch norm, pooling, dropout, MSE, RMSprop."""

    key, title, loss = "pieces", "test", "mean_squared_error"

    def build_features(self, x):
        x = keras.layers.Rescaling(1 / 127.5, -1)(x)
        for filters in (8, 16):
            x = keras.layers.Conv2D(filters, 3, strides=2, use_bias=False)(x)
            x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=self.momentum)(x))
        return keras.layers.GlobalAveragePooling2D(name="pool")(x)

    def build_head(self, x):
        x = keras.layers.ReLU(name="relu")(keras.layers.Dense(64, name="dense")(x))
        return keras.layers.Dropout(0.4, seed=self.seed)(x) if self.augment else x


def data(n=64, size=(36, 24)):
    """Noise, that of the malignant darker; X, y."""
    X, y = np.random.default_rng(0).integers(0, 256, (n, *size[::-1], 3), dtype="uint8"), np.arange(n) % 2
    X[y == 1] //= 2
    return X, y


def fitted(method, count: int, folder=None, held_out=37) -> dict:
    os.environ["BCD_DEVICES"] = str(count)
    X, y = data()
    # an odd number of rows, in batches that two do not divide
    method.fit(X, y, (X[:held_out], y[:held_out]), folder=folder)
    return {**method.history_.to_dict("list"), "probability": method.predict_proba(X[:37])[:, 1].tolist()}


def same_loss() -> dict:
    found = {str(count): fitted(Pieces(**SMALL, augment=RANDOM), count) for count in (1, 2)}
    os.environ["BCD_DEVICES"] = ""
    found["odd"] = fitted(
        Pieces(**SMALL | {"batch_size": 9, "epochs": 1, "verbose": 2}), 2, held_out=1
    )  # one device
    return found


def resumed(folder: Path) -> dict:
    """With random layers: undisturbed, and cut off in its third epoch and resumed; the second is saved."""
    found = {"whole": fitted(Pieces(**SMALL), 2, folder / "whole")}

    class Cut(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    fit = keras.Model.fit
    keras.Model.fit = lambda self, *words, callbacks, **more: fit(
        self, *words, callbacks=[*callbacks, Cut()], **more
    )
    try:
        fitted(Pieces(**SMALL), 2, folder / "cut")
        raise AssertionError("was not cut off")
    except KeyboardInterrupt:
        keras.Model.fit = fit
    method = Pieces(**SMALL | {"verbose": 2})
    found["resumed"] = fitted(method, 2, folder / "cut")
    method.save(folder / "model.keras")
    return found


def resnet50(weights: str) -> dict:
    """Train the paper's network in profile quick's settings, in float64.

    In float32 RMSprop makes much of what rounding leaves of gradients that are 0: after a few steps two runs
    on one device with other numbers of threads differ as much.
    """
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    settings = SMALL | {"learning_rate": 3e-5, "batch_norm": "frozen", "weights": weights, "augment": RANDOM}
    hardware.dtype_policy = lambda precision: "float64"  # in place of those that are offered
    kind = methods.get_method("resnet50")
    kind.output = lambda self, name="probability": keras.layers.Dense(1, activation="sigmoid", name=name)
    if not RANDOM:
        kind.build_head = Pieces.build_head
    return {str(count): fitted(kind(**settings), count, held_out=9) for count in (1, 2)}


if __name__ == "__main__":
    where, what = sys.argv[1:]
    result = {
        "both": lambda: same_loss() | resumed(Path(where)),
        "resnet50": lambda: resnet50(where),
    }[what]()
    print("\n" + json.dumps(result))
