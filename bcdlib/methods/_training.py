"""What trains a `_keras.KerasMethod`, predicts with it and saves it."""

import json
import math
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import keras
import numpy as np
from sklearn.preprocessing import StandardScaler

from bcdlib.data.cache import resized_cache
from bcdlib.data.stain import StainTarget, fit_stain, normalise_stain
from bcdlib.methods._base import TASKS, Method, probability_columns
from bcdlib.methods.parts import augmentation, features, fitting, hardware, heads, networks
from bcdlib.runs.files import atomic_write, write_csv

MEMBER = "bcdlib.json"  # what a saved .keras file says beside the network
AUGMENTATION = "augmentation"  # name of the layer that a saved network leaves out
STANDARDISE = "standardise"  # name of the layer between frozen bases and their head
_TRAINED: dict[tuple, keras.Model] = {}  # networks in which something was trained; see `_compiled`


class KerasTraining(Method):
    """Training, prediction and saving of what `_keras.KerasMethod` defines; see there for the attributes."""

    fits_with_keras = True  # whether what is trained is trained by Keras' fit
    stain_: StainTarget | None = None
    head_: keras.Model | None = None  # with frozen bases: from features to what the loss looks at
    joined_: keras.Model | None = None  # the head whose weights `model_` has
    predictor_: keras.Model | None = None  # from the same inputs to the probability: compiled once
    longest = math.inf  # seconds that training the whole network may take on a CPU

    def targets(self, y, images=None) -> np.ndarray:
        """Give what the loss compares with, for labels (N,): a float array, rows parallel."""
        return np.asarray(y)

    @classmethod
    def probabilities(cls, network, X, images=None) -> np.ndarray:
        """Predict with a trained network from pixels or features; (N, 1) or (N, 8)."""
        return fitting.predict_batches(network, X)

    def inputs(self, cache, train=None) -> np.ndarray:
        """Give what `fit` and `predict_proba` want for all images of a cache.

        Parameters
        ----------
        cache : cache.PixelCache
        train : int array, optional
            Rows of the training images, on which a stain target is fitted; default all.

        Returns
        -------
        array
            Pixels, at the method's own size if it has one; or with frozen bases their features, float32 (N,
            channels), with copies (N, 1 + copies, channels).

        Raises
        ------
        InputError
            If the source that the cache was made from is needed and no longer there.
        """
        self._prepare()
        height, width, _ = self.image_shape(cache)
        cache = resized_cache(cache, (width, height))
        self.input_shape_ = cache.pixels.shape[1:]
        if not self.frozen:
            return cache.pixels
        self._fit_stain(cache.pixels if train is None else cache.pixels[train])
        return self._features(features.cached_features, cache)

    def _fit_stain(self, X) -> None:
        self.stain_ = fit_stain(self.stain, X) if self.stain else None

    def _copies(self) -> list[dict]:
        """List the changes to the images for each set of features, first none; see `extract_features`."""
        return [
            {},
            *(
                {"augment": [self.seed, number, *augmentation.REVISION]}
                for number in range(1, self.augmented_copies + 1)
            ),
        ]

    def _features(self, extract, X) -> np.ndarray:
        """Give all bases' features side by side; (N, channels), or with copies (N, 1 + copies, channels)."""
        found = []
        for change in self._copies():
            parts = [
                extract(
                    X,
                    name,
                    weights,
                    target=self.stain_,
                    seed=self.seed,
                    verbose=self.verbose,
                    **self.base_options(name),
                    **change,
                )
                for name, weights in self.bases_.items()
            ]
            self.widths_ = [part.shape[1] for part in parts]
            found.append(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))
        return found[0] if len(found) == 1 else np.stack(found, axis=1)

    def fit(self, X, y, validation_data=None, *, folder=None, images=None):
        """Train as `Method.fit`; with frozen bases X may also be features from `inputs`.

        If `folder` holds a checkpoint of a run that was cut off, training goes on from there. The folder gets
        ``checkpoint.keras``, ``history.csv`` and, where TensorFlow is installed, ``tensorboard/``.
        """
        self._prepare()
        self.classes_ = np.arange(len(TASKS[self.task]))
        self.cases_ = None if images is None else images["case"].to_numpy()
        X, held_out = np.asanyarray(X), None
        if X.ndim == 4:
            self.input_shape_ = X.shape[1:]
            self._fit_stain(X)
        X = self._prepared(X)
        if validation_data is not None:
            seen = first_copies(self._prepared(np.asanyarray(validation_data[0])))
            held_out = seen, self.targets(*validation_data[1:])
        self._train(X, self.targets(y, images), held_out, folder)
        return self

    def _prepared(self, X) -> np.ndarray:
        """Bring pixels to what the network or the head gets; features stay as they are."""
        if X.ndim == 4 and self.frozen:
            return self._features(features.extract_features, X)
        return self._stained(X)

    def _stained(self, X) -> np.ndarray:
        return X if X.ndim != 4 or self.stain_ is None else normalise_stain(X, self.stain_)

    def _train(self, X, y, held_out, folder) -> None:
        if self.frozen:
            X, y = flatten_copies(X, y)
            self.head_ = self._new_head(X)
            self._train_head(X, y, held_out)  # seconds: not worth a checkpoint
            if folder is not None:
                write_csv(Path(folder) / "history.csv", self.history_)
        else:
            self._train_whole(X, y, held_out, folder)

    def _new_head(self, X, weights=None) -> keras.Model:
        """Build an untrained head for training features (N, channels), which it standardises by them.

        ``weights`` (N,) say how much each counts there.
        """
        networks.set_seed(self.seed)
        inputs = keras.Input(X.shape[1:], name="features")
        head = self._connect(inputs, inputs)
        if self.plan.standardised:
            standardise(head.get_layer(STANDARDISE), X, weights)
        return head

    def _train_head(self, X, y, held_out) -> None:
        network = keras.models.clone_model(self.head_, clone_function=_without_standardising)
        networks.copy_weights(self.head_, network)
        standard = self.head_.get_layer(STANDARDISE)
        if held_out is not None:
            held_out = np.asarray(standard(held_out[0])), held_out[1]
        with self._compiled(self._compile(network)) as network:
            self._run(network, np.asarray(standard(X)), y, held_out)
            networks.copy_weights(network, self.head_)

    def _train_whole(self, X, y, held_out, folder) -> None:
        policy, shape = hardware.dtype_policy(self.precision), X.shape[1:]
        with hardware.sharing_devices(self.batch_size, self.verbose) as self.devices_:
            with hardware.computing_dtype(policy):
                fresh = self.build(shape)
                with self._compiled(fresh) if self.devices_ == 1 else nullcontext(fresh) as network:
                    self._run(network, X, y, held_out, folder, self.devices_)
                    weights = network.get_weights()
        if network is fresh or policy != "float32":
            # what is kept computes in float32, on one device: as exact, and quicker on a CPU
            self.build(shape)
        self.model_.set_weights(weights)

    @contextmanager
    def _compiled(self, fresh: keras.Model) -> Iterator[keras.Model]:
        """Lend a compiled network to train that equals an untrained one in weights and optimizer state.

        Compiling takes as long as a short training, and a comparison trains a hundred heads: a network that
        was compiled for an earlier training with the same parameters is used again. Of whole networks one is
        kept.
        """
        told = repr([self.get_params(), fresh.get_config(), fresh.optimizer.get_config()])
        told = re.sub(r"_\d+'", "'", told)  # Keras numbers names that it has given before
        # a head's layers have names of their own, of magnifications for example: weights go back by them
        names = tuple(x.name for x in fresh.layers if self.frozen or x.name.startswith(heads.HEAD))
        # by the loss itself: an object that is made anew each time may depend on the training images
        key = type(self), fresh.loss, told, names
        network = _TRAINED.pop(key, fresh)  # taken out: another thread trains in its own
        if len(_TRAINED) >= 4 or not self.frozen:
            _TRAINED.clear()
        fresh.optimizer.build(fresh.trainable_variables)
        if network is not fresh:
            network.set_weights(fresh.get_weights())
            for variable, first in zip(network.optimizer.variables, fresh.optimizer.variables, strict=True):
                variable.assign(first)
        yield network
        _TRAINED[key] = network

    def _run(self, model, X, y, held_out, folder=None, devices=1) -> None:
        """Train, and set ``history_``."""
        batches = fitting.Batches(X, y, self.batch_size, self.steps_per_epoch, self.seed)
        wanted = self.steps_per_execution
        if self.frozen and not wanted:
            # a step of a head takes milliseconds: of a thousand Python counts, so an epoch is one execution;
            # for fewer, what is compiled for one step serves trainings of all lengths
            wanted = batches.steps if batches.steps * self.epochs > 500 else 1
        at_once = hardware.steps_at_once(batches.steps, wanted, devices=devices)
        fitting.set_steps_at_once(model, at_once)
        if self.verbose and not self.frozen:
            print(hardware.describe_hardware(model), flush=True)
        self.history_ = fitting.fit_network(
            model,
            batches,
            held_out,
            folder=folder,
            epochs=self.epochs,
            devices=devices,
            callbacks=self.build_callbacks(),
            seed=self.seed,
            verbose=self.verbose,
            longest=None if self.frozen else self.longest,
        )

    def whole(self) -> keras.Model:
        """Give the fitted network from pixels on, compiled; with frozen bases built when first needed."""
        if self.frozen and self.joined_ is not self.head_:
            self.build(self.input_shape_)
            networks.copy_weights(self.head_, self.model_)
            self.joined_ = self.head_
        return self.model_

    def _predictor(self, model: keras.Model) -> keras.Model:
        if self.predictor_ is None or self.predictor_.inputs[0] is not model.inputs[0]:
            # never compiled: without the optimizer's state a saved file is half as large
            self.predictor_ = keras.Model(model.inputs, self.build_prediction(model), name=self.key)
        return self.predictor_

    def predict_proba(self, X, images=None) -> np.ndarray:
        """Predict as `Method.predict_proba`, from pixels or, with frozen bases, features from `inputs`."""
        X = np.asanyarray(X)
        if X.ndim == 4:
            return probability_columns(
                self.probabilities(self._predictor(self.whole()), self._stained(X), images)
            )
        return probability_columns(
            self._predict_head(
                first_copies(X), lambda head, standard: self.probabilities(head, standard, images)
            )
        )

    def _predict_head(self, X, predict) -> np.ndarray:
        """Predict features by ``predict(head, standardised features)``; see `networks.twin`."""
        X = np.asarray(self.head_.get_layer(STANDARDISE)(X))
        with networks.twin(self._predictor(self.head_), _without_standardising) as head:
            return predict(head, X)

    def save(self, path) -> None:
        """Write a .keras file: raw RGB uint8 in, probability of malignant (or of the eight subtypes) out.

        Keras alone can load it. If the method has a stain step, that is not in the network but described in
        the file's member ``bcdlib.json``; ``methods.load_method`` applies it.
        """
        facts = {
            "key": self.key,
            "title": self.title,
            "task": self.task,
            "classes": TASKS[self.task],
            "size": [self.input_shape_[1], self.input_shape_[0]],
            "weights": self.weights_.label,
            "stain": self.stain_ and {"kind": self.stain_.kind, "values": self.stain_.values},
        }
        with atomic_write(path) as temporary:
            _without_augmentation(self._predictor(self.whole())).save(temporary)
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.writestr(MEMBER, json.dumps(facts, indent=2))


def first_copies(X) -> np.ndarray:
    """Take the images' own from features (N, 1 + copies, channels); give others, or pixels, as they are."""
    return X[:, 0] if X.ndim == 3 else X


def flatten_copies(X, y) -> tuple[np.ndarray, np.ndarray]:
    """Make each copy a row of its own in features and targets, those of an image one after the other."""
    return (X.reshape(-1, X.shape[-1]), np.repeat(y, X.shape[1], axis=0)) if X.ndim == 3 else (X, y)


def _without_augmentation(network: keras.Model) -> keras.Model:
    """Copy a network without its augmentation, which is code of ours: a saved file needs Keras alone.

    It shares all other layers, and is to be saved only: their attribute ``output`` stays that of the first
    network.
    """

    def copy(layer):
        return (
            keras.layers.Identity(name=layer.name, dtype="float32") if layer.name == AUGMENTATION else layer
        )

    return keras.models.clone_model(network, clone_function=copy)


def standardise(layer: keras.layers.Normalization, X, weights=None) -> keras.layers.Normalization:
    """Set a normalisation layer to the mean and variance of features (N, channels), and give it back.

    ``weights`` (N,) say how much each row counts. A channel that is constant there (a dead unit) gets the
    mean variance of the others: by its own, a first activation in a new image would be a million deviations
    large.
    """
    found = StandardScaler().fit(X, sample_weight=weights)
    mean, variance = found.mean_, found.var_
    dead = variance <= 1e-12 * np.square(mean)
    variance[dead] = 1.0 if dead.all() else variance[~dead].mean()
    if not layer.built:
        layer.build(X.shape)
    networks.set_weights(layer, [mean, variance, *layer.get_weights()[2:]])
    return layer


def with_standardising(network: keras.Model, weights) -> keras.Model:
    """Copy a network with other weights of its standardising layer; it shares all other layers."""

    def copy(layer):
        return layer if layer.name != STANDARDISE else type(layer).from_config(layer.get_config())

    found = keras.models.clone_model(network, clone_function=copy)
    networks.set_weights(found.get_layer(STANDARDISE), weights)
    return found


def _without_standardising(layer: keras.layers.Layer) -> keras.layers.Layer:
    if layer.name == STANDARDISE:
        return keras.layers.Identity(name=layer.name)
    return type(layer).from_config(layer.get_config())
