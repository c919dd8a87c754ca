"""KerasMethod: what defines a method that is trained with Keras."""

import json
import zipfile
from pathlib import Path

import keras
import numpy as np

from bcdlib.data.stain import KINDS, fit_stain, normalise_stain
from bcdlib.errors import InputError
from bcdlib.methods._base import TASKS, Method, probability_columns
from bcdlib.methods.parts import backbones, features, hardware
from bcdlib.methods.parts.augmentation import FlipAndZoom
from bcdlib.methods.parts.fitting import Batches, fit_network, predict_batches
from bcdlib.runs.files import atomic_write, write_csv

MEMBER = "bcdlib.json"  # what a saved .keras file says beside the network


class KerasMethod(Method):
    """A method trained with Keras: augmentation, bases with their normalisation, pooling, head, loss, training loop.

    A method is a set of bases (``architectures``; none for a network trained from scratch, which then has
    `build_features`), a ``pooling``, `build_head`, and a ``loss``.

    Parameters
    ----------
    trainable : "all" or "head"
        Fine-tune the whole network, or train the head on the frozen bases' features: computed once, standardised
        by the training images.
    task : "binary" or "subtype"
        Benign or malignant, or the eight tumour types.
    stain : None, "macenko" or "reinhard"
        Stain normalisation in front of the network, its target fitted on the training images.
    weights : str, optional
        As in `backbones.find_weights`.
    pretrained_required : bool
        Whether random weights in place of ImageNet's are an error; see `backbones.find_all`.
    epochs, steps_per_epoch, batch_size, learning_rate, batch_norm
        As in `profiles.Profile`.
    augment : bool
        Flips and small zooms, on training batches of ``trainable="all"``; see `augmentation.FlipAndZoom`.
    augmented_copies : int
        With frozen bases: how many copies of each training image, flipped and zoomed, the head is trained on beside it.
    precision, xla, steps_per_execution
        As in `hardware.dtype_policy` (of ``trainable="all"``), `hardware.XLA` and `hardware.steps_at_once`; "auto" and 0 are what
        pays here, of a head alone whole epochs at once.
    seed : int
        Of initial weights, order of images, augmentation and dropout.
    verbose : int or "auto"
        As in ``keras.Model.fit``.

    Attributes
    ----------
    model_ : keras.Model
        uint8 (N, height, width, 3) -> what the loss looks at: for most methods the probability of malignant (N, 1), or
        of the subtypes (N, 8). With ``trainable="head"`` built when it is first needed.
    weights_ : backbones.Weights
        Of the first base; its label covers all. Not there if the network has no base.
    stain_ : stain.StainTarget or None
    devices_ : int
        How many devices a whole network was trained on; see `devices`.
    history_ : DataFrame
        One row an epoch: epoch (from 0), loss, accuracy, val_loss, val_accuracy.
    """

    architectures: tuple[str, ...] = ()
    always = None
    pooling = "average"
    loss = "binary_crossentropy"
    tasks = ("binary", "subtype")

    def __init__(
        self,
        *,
        trainable="all",
        task="binary",
        stain=None,
        weights=None,
        pretrained_required=True,
        epochs=200,
        steps_per_epoch=None,
        batch_size=32,
        learning_rate=0.001,
        batch_norm=None,
        augment=True,
        augmented_copies=0,
        precision="auto",
        xla="auto",
        steps_per_execution=0,
        seed=0,
        verbose="auto",
    ):
        self.trainable = trainable
        self.task = task
        self.stain = stain
        self.weights = weights
        self.pretrained_required = pretrained_required
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.batch_norm = batch_norm
        self.augment = augment
        self.augmented_copies = augmented_copies
        self.precision = precision
        self.xla = xla
        self.steps_per_execution = steps_per_execution
        self.seed = seed
        self.verbose = verbose

    @classmethod
    def trains(cls, trainable: str) -> str:
        """As `Method.trains`; a network without a base always trains whole."""
        return super().trains(trainable if cls.architectures else "all")

    # --- what makes a method ---------------------------------------------------------------------------------------

    def build_features(self, x):
        """From RGB 0..255 (a Keras tensor) to features (batch, channels): the bases, pooled, side by side."""
        several = len(self.architectures) > 1
        pooled = [
            backbones.append_features(
                x,
                name,
                self.bases_[name],
                seed=self.seed,
                trainable=not self.frozen,
                pooling=self.pooling,
                batch_norm=self.batch_norm,
                patches=self.cuts,
                name=f"pool_{name}" if several else "pool",
            )
            for name in self.architectures
        ]
        return keras.layers.Concatenate(name="pool")(pooled) if several else pooled[0]

    def build_head(self, x):
        """From features (a Keras tensor) to what the output layer gets."""
        return x

    def build_outputs(self, x):
        """From features to what the loss looks at."""
        return self.output()(self.build_head(x))

    def build_prediction(self, model: keras.Model):
        """From the trained network to its prediction, (batch, 1) or (batch, 8); by default its layer ``probability``."""
        return model.get_layer("probability").output

    def output(self, name: str = "probability") -> keras.layers.Layer:
        """A new output layer for the task: one sigmoid, or eight numbers by softmax."""
        if self.task == "binary":
            return keras.layers.Dense(1, activation="sigmoid", name=name, dtype="float32")
        return keras.layers.Dense(len(TASKS[self.task]), activation="softmax", name=name, dtype="float32")

    def build_loss(self):
        """What is minimised: the method's own loss, or for subtypes the cross-entropy."""
        return self.loss if self.task == "binary" else "sparse_categorical_crossentropy"

    def build_metric(self):
        """What the curve ``accuracy`` shows."""
        kind = (
            keras.metrics.BinaryAccuracy if self.task == "binary" else keras.metrics.SparseCategoricalAccuracy
        )
        return kind(name="accuracy")

    def targets(self, y, images=None) -> np.ndarray:
        """What the loss compares with, for labels (N,); float array, rows parallel."""
        return np.asarray(y)

    @classmethod
    def probabilities(cls, network, X, images=None, verbose=0) -> np.ndarray:
        """Predictions of a trained network, (N, 1) or (N, 8), for pixels or features."""
        return predict_batches(network, X, verbose)

    @property
    def cuts(self) -> int:
        """Images go through the bases in cuts x cuts patches."""
        return 1

    @property
    def momentum(self) -> float:
        """Momentum of batch norm layers trained from scratch; the profile's "frozen" is for ImageNet's statistics."""
        return self.batch_norm if isinstance(self.batch_norm, float) else 0.9

    # --- the network -----------------------------------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        """Whether the bases stay as they are and only the head is trained."""
        return self.trains(self.trainable) == "head"

    def _prepare(self) -> None:
        for name, known in (
            ("trainable", ("all", "head")),
            ("task", self.tasks),
            ("stain", (None, *KINDS)),
            ("precision", hardware.PRECISIONS),
            ("xla", hardware.XLA),
        ):
            if getattr(self, name) not in known:
                words = ", ".join(repr(value) for value in known)
                raise InputError(f"{self.key}: {name}={getattr(self, name)!r}; it knows {words}")
        if self.architectures:
            self.bases_ = backbones.find_all(self.architectures, self.weights, self.pretrained_required)
            first = next(iter(self.bases_.values()))
            self.weights_ = backbones.Weights(first.path, backbones.weights_label(self.bases_))

    def build(self, input_shape) -> keras.Model:
        """The compiled network for images (height, width, 3); sets ``model_`` and ``weights_``.

        Raises
        ------
        InputError
            If ``trainable``, ``task`` or ``stain`` is unknown or the weights cannot be had.
        """
        self._prepare()
        keras.utils.set_random_seed(self.seed)
        self.input_shape_ = tuple(input_shape)
        images = keras.Input(input_shape, dtype="uint8", name="image")
        x = keras.layers.Rescaling(1.0, name="as_float", dtype="float32")(images)
        if self.augment and not self.frozen:
            x = FlipAndZoom(seed=self.seed, name="augmentation", dtype="float32")(x)
        self.model_ = self._connect(images, self.build_features(x))
        return self.model_

    def _connect(self, inputs, x) -> keras.Model:
        if self.frozen:  # a frozen base's channels differ in scale by orders of magnitude
            x = keras.layers.Normalization(name="standardise")(x)
        model = keras.Model(inputs, self.build_outputs(x), name=self.key)
        model.compile(
            optimizer=keras.optimizers.RMSprop(learning_rate=self.learning_rate),
            loss=self.build_loss(),
            metrics=[self.build_metric()],
            jit_compile=hardware.XLA[self.xla],
        )
        return model

    def whole(self) -> keras.Model:
        """The fitted network from pixels on, compiled: `model_`, which with a frozen base is built when first needed."""
        if self.frozen and hasattr(self, "head_") and not getattr(self, "joined_", False):
            self.build(self.input_shape_)
            for layer in self.head_.layers:
                if layer.weights:
                    copy = self.model_.get_layer(layer.name)
                    copy.set_weights(layer.get_weights())
                    if isinstance(copy, keras.layers.Normalization):
                        copy.finalize_state()  # set_weights leaves the layer's derived mean as it was
            self.joined_ = True
        return self.model_

    def _predictor(self, model: keras.Model) -> keras.Model:
        # never compiled: without the optimizer's state a saved file is half as large
        return keras.Model(model.inputs, self.build_prediction(model), name=self.key)

    # --- training --------------------------------------------------------------------------------------------------

    def transform(self, X) -> np.ndarray:
        """Features of the bases as they start; uint8 (N, height, width, 3) -> float32 (N, channels)."""
        self._prepare()
        return self._side_by_side([self._extracted(X, name) for name in self.architectures])

    def _extracted(self, X, name: str, **change) -> np.ndarray:
        return features.extract_features(
            X,
            name,
            self.bases_[name],
            seed=self.seed,
            pooling=self.pooling,
            patches=self.cuts,
            verbose=self.verbose,
            **change,
        )

    def _copies(self) -> list[dict]:
        """What is done to the pictures for each set of features, the first as they are; see `features.extract_features`."""
        return [{}, *({"augment": [self.seed, number]} for number in range(1, self.augmented_copies + 1))]

    def _of_copies(self, features_of) -> np.ndarray:
        """All bases' features side by side; (N, channels), or with copies (N, 1 + copies, channels)."""
        found = [
            self._side_by_side([features_of(name, **change) for name in self.architectures])
            for change in self._copies()
        ]
        return found[0] if len(found) == 1 else np.stack(found, axis=1)

    def _side_by_side(self, found) -> np.ndarray:
        self.widths_ = [part.shape[1] for part in found]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def inputs(self, cache, train=None) -> np.ndarray:
        """Pixels; or with frozen bases their features, stained if asked for with the target of the training rows, and with
        those of copies if asked for: float32 (N, channels) or (N, 1 + copies, channels)."""
        self._prepare()
        self.input_shape_ = cache.pixels.shape[1:]
        if not self.frozen:
            return cache.pixels
        self.stain_ = (
            fit_stain(self.stain, cache.pixels if train is None else cache.pixels[train])
            if self.stain
            else None
        )
        return self._of_copies(
            lambda name, **change: features.cached_features(
                cache,
                name,
                self.bases_[name],
                seed=self.seed,
                pooling=self.pooling,
                patches=self.cuts,
                verbose=self.verbose,
                target=self.stain_,
                **change,
            )
        )

    def fit(self, X, y, validation_data=None, folder=None, images=None):
        """Train as `Method.fit`; with frozen bases X may also be features from `inputs`.

        If `folder` holds a checkpoint of a run that was cut off, goes on from there. It gets ``checkpoint.keras``,
        ``history.csv`` and, where TensorFlow is installed, ``tensorboard/``.
        """
        self._prepare()
        X = np.asanyarray(X)
        if X.ndim == 4:
            self.input_shape_ = X.shape[1:]
            self.stain_ = fit_stain(self.stain, X) if self.stain else None
        X, held_out = self._prepared(X), None
        if validation_data is not None:
            held_out = (
                first_copies(self._prepared(np.asanyarray(validation_data[0]))),
                self.targets(*validation_data[1:]),
            )
        return self._train(X, self.targets(y, images), held_out, folder)

    def _prepared(self, X) -> np.ndarray:
        """Pixels as the network or the head gets them; features as they are."""
        if X.ndim == 4 and self.frozen:
            return self._of_copies(
                lambda name, **change: self._extracted(X, name, target=self.stain_, **change)
            )
        return self._stained(X) if X.ndim == 4 else X

    def _stained(self, X) -> np.ndarray:
        target = getattr(self, "stain_", None)
        return X if target is None else normalise_stain(X, target)

    def _train(self, X, y, held_out, folder):
        if not self.frozen:
            self.model_ = self._fine_tuned(X, y, held_out, folder)
            return self
        X, y = flatten_copies(X, y)
        keras.utils.set_random_seed(self.seed)
        inputs = keras.Input(X.shape[1:], name="features")
        head = self._connect(inputs, inputs)
        steps = self._steps(y)  # a step takes milliseconds: Python counts, so an epoch is one execution
        head.steps_per_execution = hardware.steps_at_once(steps, self.steps_per_execution or steps)
        standardise(head.get_layer("standardise"), X)  # on the training images only
        self.head_, self.joined_ = (
            self._run(head, X, y, held_out, folder=None),
            False,
        )  # seconds: not worth a checkpoint
        if folder is not None:
            write_csv(Path(folder) / "history.csv", self.history_)
        return self

    def _steps(self, y) -> int:
        return self.steps_per_epoch or -(-len(y) // self.batch_size)

    def _fine_tuned(self, X, y, held_out, folder) -> keras.Model:
        policy = hardware.dtype_policy(self.precision)
        with (
            hardware.sharing_devices(self.batch_size, self.verbose) as self.devices_,
            hardware.computing_dtype(policy),
        ):
            model = self.build(X.shape[1:])
            steps = hardware.steps_at_once(self._steps(y), self.steps_per_execution)
            model.steps_per_execution = hardware.shared_steps(steps)
            if self.verbose:
                print(hardware.describe_hardware(model, policy), flush=True)
            model = self._run(model, X, y, held_out, folder)
        if policy == "float32" and self.devices_ == 1:
            return model
        whole = self.build(
            X.shape[1:]
        )  # what is kept computes in float32, on one device: as exact, and quicker on a CPU
        whole.set_weights(model.get_weights())
        return whole

    def _run(self, model, X, y, held_out, folder):
        batches = Batches(X, y, self.batch_size, self._steps(y), self.seed)
        held_out, callbacks = hardware.divided_batch(held_out)
        model, self.history_ = fit_network(
            model,
            batches,
            held_out,
            folder=folder,
            epochs=self.epochs,
            seed=self.seed,
            verbose=self.verbose,
            callbacks=callbacks,
        )
        return model

    # --- prediction ------------------------------------------------------------------------------------------------

    def predict_proba(self, X, images=None) -> np.ndarray:
        """As `Method.predict_proba`, for pixels or, with frozen bases, features from `inputs`; copies are not looked at."""
        X = np.asanyarray(X)
        if X.ndim == 4:
            return probability_columns(
                self.probabilities(self._predictor(self.whole()), self._stained(X), images)
            )
        return probability_columns(self.probabilities(self._predictor(self.head_), first_copies(X), images))

    def save(self, path) -> None:
        """Write a .keras file: raw RGB uint8 in, probability of malignant (or of the eight subtypes) out.

        Keras alone can load it. If the method has a stain step, that is not in the network but described in the
        file's member ``bcdlib.json``; ``methods.load_method`` applies it.
        """
        target = getattr(self, "stain_", None)
        facts = {
            "key": self.key,
            "title": self.title,
            "task": self.task,
            "classes": TASKS[self.task],
            "size": [self.input_shape_[1], self.input_shape_[0]],
            "weights": self.weights_.label if self.architectures else "no pre-trained weights",
            "stain": target and {"kind": target.kind, "values": target.values},
        }
        with atomic_write(path) as temporary:
            _without_augmentation(self._predictor(self.whole())).save(temporary)
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.writestr(MEMBER, json.dumps(facts, indent=2))


def first_copies(X) -> np.ndarray:
    """Features (N, 1 + copies, channels) of the pictures as they are; others (N, channels), or pixels, as they come."""
    return X[:, 0] if X.ndim == 3 else X


def flatten_copies(X, y) -> tuple[np.ndarray, np.ndarray]:
    """Features and targets with each copy a row of its own, those of an image one after the other."""
    return (X.reshape(-1, X.shape[-1]), np.repeat(y, X.shape[1], axis=0)) if X.ndim == 3 else (X, y)


def _without_augmentation(network: keras.Model) -> keras.Model:
    """The same, sharing all other layers: a saved file needs Keras alone, and the augmentation is code of ours.

    To be saved only: the shared layers' attribute ``output`` stays that of the first network.
    """

    def copy(layer):
        nothing = isinstance(layer, FlipAndZoom)
        return keras.layers.Identity(name=layer.name, dtype="float32") if nothing else layer

    return keras.models.clone_model(network, clone_function=copy)


def standardise(layer: keras.layers.Normalization, X) -> keras.layers.Normalization:
    """Set a normalisation layer to the mean and variance of features (N, channels), and give it back.

    A channel that is constant there (a dead unit) gets the mean variance of the others: by its own, a first activation
    in a new image would be a million deviations large.
    """
    layer.adapt(np.asarray(X))
    mean, variance, *rest = layer.get_weights()
    dead = variance <= 1e-12 * np.square(mean)
    if dead.any():
        variance[dead] = variance[~dead].mean() if not dead.all() else 1.0
        layer.set_weights([mean, variance, *rest])
        layer.finalize_state()  # set_weights leaves the derived mean as it was
    return layer
