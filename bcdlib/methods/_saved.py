"""Trained methods from their files."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np

from bcdlib.data import stain
from bcdlib.errors import InputError, check_known
from bcdlib.methods import _base, _foreign, _keras, _training
from bcdlib.methods.parts import fitting
from bcdlib.runs.files import why_no_file

RANGES = {"0..255": (1.0, 0.0), "0..1": (1 / 255, 0.0), "-1..1": (1 / 127.5, -1.0)}  # factor and offset
SHRINK = 20  # images that the training images' mean counts as, where a folder's own takes its place
AT_ONCE = 512  # images of usual size, and of networks of usual size, that are predicted at once
_NUMBERS = 2**26  # that a stranger's largest layer may make at once: 256 MiB
# what brings pixels to the range that the network was trained on
_SCALING = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.Normalization,
    keras.layers.Rescaling,
)
# layers that leave a probability a probability, and a logit a logit
_PASSING = (
    keras.layers.ActivityRegularization,
    keras.layers.Average,
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.Identity,
    keras.layers.Reshape,
)
_PROBABILITIES = ("sigmoid", "softmax", "hard_sigmoid")
_LOGARITHMS = ("log_softmax", "log_sigmoid")
_NAMES = {  # of layers and operations that are an activation by themselves
    "logsigmoid": "log_sigmoid",
    "logsoftmax": "log_softmax",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "softmax": "softmax",
}


@dataclass(frozen=True)
class SavedMethod:
    """A trained network with what its file says about it.

    Attributes
    ----------
    network : keras.Model
        Its outputs are probabilities: where the file's network ends in logits, a layer was put behind it.
    kind : type of the method
        KerasMethod itself if the file is not one of ours.
    task : "binary", "subtype" or "magnification"
    classes : tuple of str
        Names of the columns of `predict_proba`.
    size : (width, height) or None
        Of its images, in pixels; None if the network takes any.
    target : stain.StainTarget or None
    file : str
    values : str
        What range of numbers the network takes, one of `RANGES`.
    notes : tuple of str
        What is assumed of a file that does not say it, and what may be wrong with it; sentences.
    at_once : int
        How many images fit well into memory, as they are and in the network.
    sums_to_one : bool
        Whether its numbers of an image, if they are several, have to; not those of several sigmoids.
    """

    network: keras.Model
    kind: type[_keras.KerasMethod]
    task: str
    classes: tuple[str, ...]
    size: tuple[int, int] | None
    target: stain.StainTarget | None
    file: str = ""
    values: str = "0..255"
    notes: tuple[str, ...] = ()
    at_once: int = AT_ONCE
    sums_to_one: bool = True

    def predict_proba(self, X, images=None) -> np.ndarray:
        """Predict as `Method.predict_proba`: stain normalisation, if the method had it, then the network.

        Raises
        ------
        InputError
            If the network fails on these images, or gives what are no probabilities.
        """
        X = self.stained(X)
        try:
            found = self.kind.probabilities(self.network, X, images)
        except InputError:
            raise
        except Exception as error:  # Keras and its backends raise many kinds
            raise InputError(
                f"{self.file}: the network fails on these images ({_foreign.shortly(error)})"
            ) from None
        wrong = ~(np.isfinite(found) & (found >= 0) & (found <= 1 + 1e-6)).all(axis=1)
        if found.shape[1] > 1:
            total = found.sum(axis=1)
            wrong |= abs(total - 1) > 0.01 if self.sums_to_one else total == 0
        if wrong.any():
            raise InputError(
                f"{self.file}: gives {wrong.sum()} of {len(found)} images what is no probability, the first "
                f"{found[wrong.argmax()].tolist()}; wanted is a network that ends in sigmoid, softmax or "
                "logits"
            )
        return _base.probability_columns(np.minimum(found, 1))

    def stained(self, X) -> np.ndarray:
        """Bring pixels to what the network wants: stain-normalised if the method had that, and scaled."""
        X = np.asanyarray(X)
        X = X if self.target is None else stain.normalise_stain(X, self.target)
        factor, offset = RANGES[self.values]
        return X if self.values == "0..255" else np.float32(factor) * X + np.float32(offset)

    def adapted(self, batches: Iterable) -> "SavedMethod":
        """Copy it for images of another laboratory: standardised by their own mean features.

        A whole folder's stain, scanner and focus shift all its features alike, and with them all its
        probabilities; this takes the shift away, without labels. It supposes that the classes are about as
        frequent among these images as they weighed in training: half and half, if both weighed the same. The
        deviations stay those of training (moving them too, as AdaBN does, gained nothing on simulated
        laboratories). Of few images the mean says little: the training images' counts as `SHRINK` images.

        Li et al., "Adaptive batch normalization for practical domain adaptation", Pattern Recognition 80,
        2018.

        Parameters
        ----------
        batches : iterable of uint8 arrays (N, height, width, 3)

        Raises
        ------
        InputError
            If the network does not standardise features of a frozen base, or there are no images.
        """
        layers = [layer for layer in self.network.layers if layer.name == _training.STANDARDISE]
        if not layers:
            raise InputError(
                f"{self.file}: --adapt is for a head on frozen features, which this network does not "
                "standardise; leave out --adapt"
            )
        features, total, count = keras.Model(self.network.inputs, layers[0].input), 0.0, 0
        for X in batches:
            total = total + fitting.predict_batches(features, self.stained(X)).sum(axis=0, dtype="float64")
            count += len(X)
        if not count:
            raise InputError("--adapt: none of the images can be read")
        mean, *rest = layers[0].get_weights()
        mean = (total + SHRINK * mean) / (count + SHRINK)
        note = (
            f"--adapt: standardised by the mean features of these {count} images, as if both classes were as "
            "frequent among them as they weighed in training; do not use it on images of one class"
        )
        return replace(
            self,
            network=_training.with_standardising(self.network, [mean, *rest]),
            notes=(*self.notes, note),
        )


def load_saved(path, kinds: dict[str, type[_keras.KerasMethod]], *, values: str = "") -> SavedMethod:
    """Load a network as `bcdlib.methods.load_method`; ``kinds`` gives the classes by the key in the file."""
    if not Path(path).is_file():
        folder = " (a SavedModel? A .keras file is wanted)" if Path(path).is_dir() else ""
        raise InputError(f"{path}: {why_no_file(path, 'model file')}{folder}")
    if values:
        check_known("--input", values, RANGES)
    try:
        network, facts = _foreign.read_network(path)
        size, outputs = _input_size(network), _outputs(network, facts)
        task, target = _read_facts(facts, outputs)
        kind = kinds.get(str(facts.get("key")), _keras.KerasMethod)
        if "key" in facts:
            if values:
                raise ValueError("it says itself what it takes: leave out --input")
            activation, notes = "", []
        else:
            network, activation = _with_probabilities(network)
            notes = _notes(network, activation, values or "0..255", stated=bool(values))
        at_once = _count_at_once(network, size)
    except Exception as error:  # Keras raises many kinds on a damaged or foreign file
        raise InputError(f"{path}: not a usable Keras model ({_foreign.shortly(error)})") from None
    return SavedMethod(
        network,
        kind,
        task,
        _base.TASKS[task],
        size,
        target,
        file=str(path),
        values=values or "0..255",
        notes=tuple(notes),
        at_once=at_once,
        sums_to_one=activation not in ("sigmoid", "hard_sigmoid"),
    )


def _input_size(network: keras.Model) -> tuple[int, int] | None:
    """Return (width, height) of the images that a network takes; None for any."""
    if len(network.inputs) != 1:
        raise ValueError(f"it takes {len(network.inputs)} inputs; wanted is one, an RGB image")
    _, *shape = network.inputs[0].shape
    said = "x".join("?" if one is None else str(one) for one in shape)
    if len(shape) != 3:
        raise ValueError(f"it takes arrays of {said}; wanted are images, height x width x 3")
    height, width, channels = shape
    if channels != 3 and height in (1, 3, 4):
        raise ValueError(f"it takes channels first, {said}; wanted are channels last, height x width x 3")
    kinds = {1: "grey images (1 channel)", 4: "RGBA images (4 channels)"}
    if channels != 3:
        raise ValueError(f"it takes {kinds.get(channels, said)}; wanted are RGB images, height x width x 3")
    return (width, height) if width and height else None


def _outputs(network: keras.Model, facts: dict) -> int:
    """Return how many numbers a network gives an image; as many as magnifications only if it says so."""
    if len(network.outputs) != 1:
        raise ValueError(f"it gives {len(network.outputs)} outputs; wanted is one, a probability")
    _, *shape = network.outputs[0].shape
    if len(shape) != 1:
        raise ValueError(
            f"it gives {'x'.join(map(str, shape)) or 'no'} numbers an image, a map; wanted are 1, 2 or 8: "
            "end it in pooling"
        )
    tasks = {name: len(kinds) for name, kinds in _base.TASKS.items()}
    if facts.get("task") != "magnification":
        del tasks["magnification"]
    if shape[0] not in (1, *tasks.values()):
        raise ValueError(f"the network gives {shape[0]} numbers an image; 1, 2 or 8 are understood")
    return shape[0]


def _read_facts(facts: dict, outputs: int) -> tuple[str, stain.StainTarget | None]:
    """Return task and stain target; of a file that is not ours the task that the outputs allow."""
    task = facts.get("task", "subtype" if outputs == len(_base.TASKS["subtype"]) else "binary")
    if not isinstance(task, str) or task not in _base.TASKS or outputs not in (1, len(_base.TASKS[task])):
        raise ValueError(f"its bcdlib.json names the task {task!r}, which goes not with {outputs} outputs")
    if (target := facts.get("stain")) is None:
        return task, None
    shapes = {"macenko": [(3, 2), (2,)], "reinhard": [(3,), (3,)]}
    try:
        kind, values = target["kind"], tuple(target["values"])
        sides = [np.asarray(side, dtype="float64").squeeze() for side in values]
        sound = [side.shape for side in sides] == shapes[kind] and all(np.isfinite(s).all() for s in sides)
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError("its bcdlib.json holds no stain target")
    return task, stain.StainTarget(kind, values)


def _with_probabilities(network: keras.Model) -> tuple[keras.Model, str]:
    """Put behind a network that ends in logits what makes them probabilities; give its last activation."""
    single, last = network.outputs[0].shape[-1] == 1, last_activation(network.outputs[0])
    if last == "softmax" and single:
        raise ValueError("it ends in softmax over one number, which is always 1; wanted are two, or sigmoid")
    if last == "" and single:
        raise ValueError(
            "whether its last layer gives probabilities cannot be told; put a sigmoid at its end"
        )
    if last in (*_PROBABILITIES, ""):
        return network, last
    if last != "linear" and last not in _LOGARITHMS:
        raise ValueError(
            f"it ends in {last}, which gives no probability; wanted are sigmoid, softmax or logits"
        )
    missing = "exponential" if last in _LOGARITHMS else "sigmoid" if single else "softmax"
    probability = keras.layers.Activation(missing, dtype="float32", name="bcdlib_probability")
    return keras.Model(network.inputs[0], probability(network.outputs[0]), name=network.name), last


def last_activation(tensor) -> str:
    """Return the name of the last activation before a Keras tensor; empty if it cannot be told.

    Layers that only pass on (dropout, reshaping, averaging) are gone through, networks within gone into.

    Examples
    --------
    >>> image = keras.Input((2, 3, 3))
    >>> last_activation(keras.layers.Dropout(0.5)(keras.layers.Dense(1, "sigmoid")(image)))
    'sigmoid'
    """
    operation, node, place = tensor._keras_history
    if isinstance(operation, keras.Model):
        return last_activation(operation.outputs[place])
    name = type(operation).__name__.lower()
    before = operation._inbound_nodes[node].input_tensors
    if isinstance(operation, keras.layers.TimeDistributed | keras.layers.SpectralNormalization):
        operation = operation.layer
    if hasattr(operation, "activation"):
        named = keras.activations.serialize(operation.activation)
        name = named if isinstance(named, str) else ""
        if name != "linear" or not isinstance(operation, keras.layers.Activation):
            return name
    elif name in _NAMES:
        return _NAMES[name]
    found = {last_activation(one) for one in before} if before else {""}
    if (
        isinstance(operation, _PASSING)
        or name in ("linear", "mean", "reshape")
        or found == {"linear"}
        and name == "add"
    ):
        return found.pop() if len(found) == 1 else ""
    return ""


def _notes(network: keras.Model, activation: str, values: str, *, stated: bool) -> list[str]:
    """Say what is assumed of a network without our ``bcdlib.json``, and what may be wrong."""
    count = network.outputs[0].shape[-1]
    means = {
        1: "its one number is the probability of malignant",
        2: "its numbers are benign, then malignant",
        8: f"its numbers are {', '.join(_base.TASKS['subtype'])}, in this order",
    }[count]
    notes = [f"the file does not say, so it is assumed: RGB images of {values}, and {means}"]
    if activation == "linear":
        notes.append(
            f"its last layer is linear: {'sigmoid' if count == 1 else 'softmax'} makes it probabilities"
        )
    if not activation:
        notes.append(
            "what its last layer gives cannot be told; it is taken for probabilities if it sums to 1"
        )
    if activation in ("sigmoid", "hard_sigmoid") and count > 1:
        notes.append(f"its last layer is {activation}: each of its numbers is divided by their sum")
    if not (stated or _scales(network)):
        notes.append(
            "no Rescaling or Normalization layer stands in front: if it was trained on 0..1 or -1..1, its "
            "answers are wrong without --input 0..1 or --input=-1..1; --input 0..255 says that it was not"
        )
    return notes


def _scales(network: keras.Model) -> bool:
    """Whether pixels are scaled before the first layer that has a kernel."""
    for operation in flat_operations(network):
        if isinstance(operation, _SCALING) or not isinstance(operation, keras.Layer):
            return True
        if operation.weights and not isinstance(operation, keras.layers.PReLU):
            return False
    return False


def flat_operations(network: keras.Model) -> list:
    """List a network's operations from the input on, those of networks within it in their place."""
    return [
        one
        for operation in getattr(network, "operations", network.layers)
        for one in (flat_operations(operation) if isinstance(operation, keras.Model) else [operation])
    ]


def _count_at_once(network: keras.Model, size: tuple[int, int] | None) -> int:
    """Return how many images may be in memory at once, by their size and the network's largest layer."""
    pixels = 3 * math.prod(size) if size else 1
    largest = max(
        _foreign.largest_output(operation, [node.output_tensors for node in operation._inbound_nodes])
        for operation in flat_operations(network)
    )
    batch = AT_ONCE if 64 * largest <= _NUMBERS else _NUMBERS // largest  # Keras predicts 64 at a time
    return max(1, min(AT_ONCE, 2**28 // pixels, batch))
