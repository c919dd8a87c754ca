"""What a method is, and the part that all methods trained with Keras share."""

import importlib.util
from abc import ABC, abstractmethod
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin

from bcdlib.errors import InputError
from bcdlib.methods import backbones
from bcdlib.pixels import batch_rows
from bcdlib.runs import replacing, write_csv


class Method(ClassifierMixin, BaseEstimator, ABC):
    """A classifier of images, scikit-learn style.

    ``X`` is uint8 (N, height, width, 3), RGB 0..255; ``y`` is int (N,), benign 0, malignant 1.

    Class attributes: ``key`` (the registry's name) and ``title``.
    """

    key: str
    title: str

    @abstractmethod
    def fit(self, X, y, validation_data=None, folder=None):
        """Train. ``validation_data`` is (X, y) to draw curves of; ``folder`` is where checkpoints go. Returns self."""

    @abstractmethod
    def predict_proba(self, X) -> np.ndarray:
        """Probabilities; float64 (N, 2), columns benign and malignant."""

    @abstractmethod
    def save(self, path) -> None:
        """Store the trained method in a file, atomically."""

    def predict(self, X) -> np.ndarray:
        """Class at threshold 0.5; int64 (N,)."""
        return (self.predict_proba(X)[:, 1] >= 0.5).astype("int64")

    def inputs(self, cache) -> np.ndarray:
        """What `fit` and `predict_proba` want for all images of a `pixels.PixelCache`; by default its pixels."""
        return cache.pixels


class Batches(keras.utils.PyDataset):
    """Training batches in an order that depends on seed and step only, so that a resumed run sees the same ones."""

    def __init__(self, X, y, batch_size: int, steps: int, seed: int, epoch: int = 0):
        super().__init__()
        self.X, self.y = X, np.asarray(y, dtype="float32")[:, None]
        self.batch_size, self.steps, self.seed, self.epoch = batch_size, steps, seed, epoch

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        rows = batch_rows(len(self.y), self.batch_size, self.epoch * self.steps + index, self.seed)
        return np.asarray(self.X[rows]), self.y[rows]

    def on_epoch_end(self):
        self.epoch += 1


class Ordered(keras.utils.PyDataset):
    """All rows once, in order, for evaluation and prediction without a copy of the whole."""

    def __init__(self, X, y=None, batch_size: int = 64):
        super().__init__()
        self.X, self.batch_size = X, batch_size
        self.y = None if y is None else np.asarray(y, dtype="float32")[:, None]

    def __len__(self):
        return -(-len(self.X) // self.batch_size)

    def __getitem__(self, index):
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        X = np.asarray(self.X[rows])
        return (X,) if self.y is None else (X, self.y[rows])


class EpochSeeds(keras.callbacks.Callback):
    """Restart the random streams of dropout and augmentation from (seed, epoch).

    A saved model does not hold their state; derived like this, a resumed run draws what it would have drawn.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch, logs=None):
        states = [v for v in self.model.non_trainable_variables if v.path.endswith("seed_generator_state")]
        for number, state in enumerate(states):
            entropy = np.random.SeedSequence([self.seed, epoch, number])
            state.assign(entropy.generate_state(2, dtype="uint32"))


class Checkpoint(keras.callbacks.Callback):
    """Save model and optimizer after each epoch; the last good file stays until the next one is whole."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        with replacing(self.path) as temporary:
            self.model.save(temporary)


class KerasMethod(Method):
    """A method trained with Keras: augmentation, normalisation, base, pooling, head, and the paper's training loop.

    Parameters
    ----------
    trainable : "all" or "head"
        Fine-tune the whole network, or train the head on the frozen base's features: computed once, standardised
        by the training images.
    weights : str, optional
        As in `backbones.find_weights`.
    pretrained_required : bool
        Whether random weights in place of ImageNet's are an error.
    epochs, steps_per_epoch, batch_size, learning_rate, batch_norm
        As in `profiles.Profile`.
    augment : bool
        Flips and small zooms; they act on training batches of ``trainable="all"`` only.
    seed : int
        Of initial weights, order of images, augmentation and dropout.
    verbose : int or "auto"
        As in ``keras.Model.fit``.

    Attributes
    ----------
    model_ : keras.Model
        uint8 (N, height, width, 3) -> probability of malignant (N, 1).
    weights_ : backbones.Weights
    history_ : DataFrame
        One row an epoch: epoch (from 0), loss, accuracy, val_loss, val_accuracy.
    """

    architecture: str

    def __init__(self, *, trainable="all", weights=None, pretrained_required=True, epochs=200, steps_per_epoch=None,
                 batch_size=32, learning_rate=0.001, batch_norm=None, augment=True, seed=0, verbose="auto"):
        self.trainable = trainable
        self.weights = weights
        self.pretrained_required = pretrained_required
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.batch_norm = batch_norm
        self.augment = augment
        self.seed = seed
        self.verbose = verbose

    @abstractmethod
    def build_base(self, input_shape) -> keras.Model:
        """The convolutional base: normalised (height, width, 3) -> feature map."""

    @abstractmethod
    def build_head(self, x):
        """From pooled features (a Keras tensor) to the probability of malignant."""

    def build(self, input_shape) -> keras.Model:
        """The compiled network for images (height, width, 3); sets ``model_`` and ``weights_``.

        Raises
        ------
        InputError
            If ``trainable`` is unknown or the weights cannot be had.
        """
        if self.trainable not in ("all", "head"):
            raise InputError(f"trainable={self.trainable!r}; known are 'all' and 'head'")
        keras.utils.set_random_seed(self.seed)
        self.weights_ = backbones.find_weights(self.architecture, self.weights, self.pretrained_required)
        images = keras.Input(input_shape, dtype="uint8", name="image")
        x = keras.layers.Rescaling(1.0, name="as_float")(images)
        if self.augment and self.trainable == "all":
            x = augmentation(self.seed)(x)
        x = backbones.normalise(x, self.architecture)
        base = self.build_base(input_shape)
        backbones.set_trainable(base, self.trainable == "all", self.batch_norm)
        # training=False keeps a frozen base's batch norm statistics; None leaves it to fit() and predict()
        x = base(x, training=None if base.trainable else False)
        features = keras.layers.GlobalAveragePooling2D(name="pool")(x)
        if self.trainable == "head":  # a frozen base's channels differ in scale by orders of magnitude
            features = keras.layers.Normalization(name="standardise")(features)
        self.model_ = self._compile(keras.Model(images, self.build_head(features), name=self.key))
        return self.model_

    def _compile(self, model):
        model.compile(
            optimizer=keras.optimizers.RMSprop(learning_rate=self.learning_rate),
            loss="mean_squared_error",
            metrics=[keras.metrics.BinaryAccuracy(name="accuracy")],
        )
        return model

    def transform(self, X) -> np.ndarray:
        """Pooled features of the base; float32 (N, channels). Needs `build`."""
        extractor = keras.Model(self.model_.input, self.model_.get_layer("pool").output)
        return extractor.predict(Ordered(X), verbose=self.verbose)

    def inputs(self, cache) -> np.ndarray:
        if self.trainable == "all":
            return cache.pixels
        self.build(cache.pixels.shape[1:])
        return self.transform(cache.pixels)

    def _head(self) -> keras.Model:
        """The layers behind the pooling as a model of their own; it shares its weights with `model_`."""
        features = x = keras.Input(self.model_.get_layer("pool").output.shape[1:], name="features")
        names = [layer.name for layer in self.model_.layers]
        for layer in self.model_.layers[names.index("pool") + 1 :]:
            x = layer(x)
        return keras.Model(features, x, name=f"{self.key}_head")

    def fit(self, X, y, validation_data=None, folder=None):
        """Train as `Method.fit`; with ``trainable="head"`` X may also be features (N, channels) from `inputs`.

        If `folder` holds a checkpoint of a run that was cut off, goes on from there. It gets ``checkpoint.keras``,
        ``history.csv`` and, where TensorFlow is installed, ``tensorboard/``.
        """
        X = np.asanyarray(X)
        if X.ndim == 4 or not hasattr(self, "model_"):
            self.build(X.shape[1:])
        if self.trainable == "all":
            self.model_ = self._fit(self.model_, X, y, validation_data, folder)
            return self
        if X.ndim == 4:
            X = self.transform(X)
            if validation_data is not None:
                validation_data = (self.transform(validation_data[0]), validation_data[1])
        keras.utils.set_random_seed(self.seed)
        head = self._compile(keras.models.clone_model(self._head()))
        head.get_layer("standardise").adapt(np.asarray(X))  # on the training images only
        head = self._fit(head, X, y, validation_data, folder=None)  # seconds: not worth a checkpoint
        self._head().set_weights(head.get_weights())
        self.model_.get_layer("standardise").finalize_state()  # set_weights leaves the layer's derived mean as it was
        if folder is not None:
            write_csv(Path(folder) / "history.csv", self.history_)
        return self

    def _fit(self, model, X, y, validation_data, folder):
        steps = self.steps_per_epoch or -(-len(y) // self.batch_size)
        epoch, callbacks = 0, [EpochSeeds(self.seed)]
        if folder is not None:
            folder = Path(folder)
            model, epoch = self._resume(model, steps, folder)
            callbacks += [keras.callbacks.CSVLogger(folder / "history.csv", append=True)]
            if importlib.util.find_spec("tensorflow") and importlib.util.find_spec("tensorboard"):
                callbacks += [keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False)]
            callbacks += [Checkpoint(folder / "checkpoint.keras")]
        if epoch < self.epochs:
            model.fit(
                Batches(X, y, self.batch_size, steps, self.seed, epoch),
                validation_data=None if validation_data is None else Ordered(*validation_data),
                epochs=self.epochs, initial_epoch=epoch, callbacks=callbacks, shuffle=False, verbose=self.verbose,
            )
        if folder is not None:
            self.history_ = _history(folder)
        else:
            self.history_ = pd.DataFrame(model.history.history).rename_axis("epoch").reset_index()
        return model

    def _resume(self, model, steps: int, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint, history = folder / "checkpoint.keras", folder / "history.csv"
        if not checkpoint.is_file():
            history.unlink(missing_ok=True)
            return model, 0
        model = keras.models.load_model(checkpoint)
        epoch = int(model.optimizer.iterations) // steps
        if history.is_file():  # it may be an epoch ahead of the checkpoint, if cut off between the two
            write_csv(history, _history(folder).query("epoch < @epoch"))
        return model, epoch

    def predict_proba(self, X) -> np.ndarray:
        X = np.asanyarray(X)
        model = self.model_ if X.ndim == 4 else self._head()
        malignant = model.predict(Ordered(X), verbose=0)[:, 0].astype("float64")
        return np.column_stack([1 - malignant, malignant])

    def save(self, path) -> None:
        """Write ``model_`` as a .keras file: raw RGB uint8 in, probability of malignant out."""
        with replacing(path) as temporary:
            # a model that was never compiled: without the optimizer's state the file is half as large
            keras.Model(self.model_.inputs, self.model_.outputs, name=self.key).save(temporary)



def augmentation(seed: int = 0) -> keras.Sequential:
    """Real-time augmentation as layers: flips on both axes (both together: a half turn) and zooms of up to 10 %.

    Takes and gives float32 (N, height, width, 3), 0..255; acts while training only. The paper does not say which
    augmentation it used; tissue has no up or down. A quarter turn would cut a third off a 3:2 picture, so none here.
    """
    return keras.Sequential(
        [
            keras.layers.RandomFlip("horizontal_and_vertical", seed=seed),
            keras.layers.RandomZoom(0.1, fill_mode="reflect", seed=seed + 1),
        ],
        name="augmentation",
    )


def _history(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "history.csv")
