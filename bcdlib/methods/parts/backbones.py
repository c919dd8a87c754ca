"""Convolutional bases: their constructors, their weights, and their normalisation as layers."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from bcdlib.errors import InputError, check_known
from bcdlib.evaluation.published import NOT_COMPARABLE
from bcdlib.methods.parts import encoders, networks
from bcdlib.methods.parts.architectures import GoogLeNet
from bcdlib.runs.files import why_no_file
from bcdlib.runs.places import name_only


class Architecture(NamedTuple):
    """What is known of a base.

    Attributes
    ----------
    constructor : callable
        As those of keras.applications.
    mode : str
        The way its ImageNet weights expect pixels, in keras.applications' own words.
    smallest : int
        The shortest side that it takes, in pixels.
    downloads : bool
        Whether Keras has its ImageNet weights.
    stages : dict
        The last layer of each stage, by the stage's digit (of ResNet-50: in the publication).
    """

    constructor: Callable
    mode: str
    smallest: int = 32
    downloads: bool = True
    stages: dict[str, str] = {}


ARCHITECTURES = {
    "resnet50": Architecture(
        keras.applications.ResNet50,
        "caffe",
        stages={
            "2": "conv2_block3_out",
            "3": "conv3_block4_out",
            "4": "conv4_block6_out",
            "5": "conv5_block3_out",
        },
    ),
    "resnet152": Architecture(keras.applications.ResNet152, "caffe"),
    "vgg16": Architecture(keras.applications.VGG16, "caffe"),
    "vgg19": Architecture(keras.applications.VGG19, "caffe"),
    "xception": Architecture(
        keras.applications.Xception,
        "tf",
        smallest=71,
        # what enters blocks 4, 5 and 9 and leaves 14: at 1/8, 1/16, 1/16 and 1/32 of the images' size
        stages={
            "2": "block4_sepconv1_act",
            "3": "block5_sepconv1_act",
            "4": "block9_sepconv1_act",
            "5": "block14_sepconv2_act",
        },
    ),
    "densenet201": Architecture(keras.applications.DenseNet201, "torch"),
    "mobilenet_v2": Architecture(keras.applications.MobileNetV2, "tf"),
    # as Caffe's model: BGR, less the mean colour of ImageNet
    "googlenet": Architecture(GoogLeNet, "caffe", downloads=False),
}


class Weights(NamedTuple):
    """Where a base's weights come from: its constructor's ``path`` (a file, "imagenet", None); a label."""

    path: str | None
    label: str

    @property
    def pretrained(self) -> bool:
        """Whether the base starts from weights that were learnt elsewhere."""
        return self.path is not None


def choose_weights(weights: str | None = None) -> str:
    """Choose where weights come from: the argument, else the folder in BCD_WEIGHTS_DIR, else ``"imagenet"``.

    Examples
    --------
    >>> choose_weights("none")
    'none'
    """
    return weights or os.environ.get("BCD_WEIGHTS_DIR") or "imagenet"


_failed: dict[str, InputError] | None = None  # inside `one_try`: the downloads that failed


@contextlib.contextmanager
def one_try():
    """Try each download once inside: what failed for one trial is not tried again for the next.

    So all trials of a comparison start from the same weights, and a machine without network does not wait
    for every one of them.
    """
    global _failed
    outer, _failed = _failed, {} if _failed is None else _failed
    try:
        yield
    finally:
        _failed = outer


@functools.cache
def _download(architecture: str) -> None:
    """Get Keras' ImageNet weights, once a process; what failed, and raised InputError, may be tried again."""
    if not ARCHITECTURES[architecture].downloads:
        raise InputError(f"Keras has no ImageNet weights of {architecture}")
    if _failed and architecture in _failed:
        raise _failed[architecture]
    try:
        ARCHITECTURES[architecture].constructor(include_top=False, weights="imagenet")
    except Exception as error:  # urllib, ssl, OSError, Keras' own: all mean that the download failed
        failure = InputError(
            f"ImageNet weights of {architecture} cannot be downloaded ({error})".splitlines()[0]
        )
        if _failed is not None:
            _failed[architecture] = failure
        raise failure from None


def find_weights(architecture: str, weights: str | None = None, required: bool = True) -> Weights:
    """Decide which weights a base starts from, and make sure that they can be had.

    Parameters
    ----------
    architecture : str
        A key of `ARCHITECTURES`; else the preset of an encoder, which has its own weights.
    weights : str, optional
        ``"imagenet"`` (Keras downloads them), ``"none"``, or a folder with
        ``<architecture>_notop.weights.h5``. Default: see `choose_weights`.
    required : bool
        If False, weights that cannot be had mean random ones.

    Raises
    ------
    InputError
        If they cannot be had and are required, or if a named folder does not exist or holds none at all.

    Examples
    --------
    >>> find_weights("resnet50", "none")
    Weights(path=None, label='random initial weights')
    """
    if architecture not in ARCHITECTURES:
        licence = encoders.load_encoder(architecture).licence
        return Weights(architecture, f"{name_only(architecture)} (licence of its weights: {licence})")
    weights = choose_weights(weights)
    if weights == "none":
        return Weights(None, "random initial weights")
    if weights == "imagenet":
        path, label = weights, "ImageNet weights (Keras)"
        try:
            _download(architecture)
            problem = ""
        except InputError as error:
            problem = str(error)
    else:
        folder = Path(weights).expanduser().absolute()
        if not folder.is_dir():
            raise InputError(f"{weights}: no such folder of weights; name a folder, 'imagenet' or 'none'")
        if next(folder.glob("*_notop.weights.h5"), None) is None:
            raise InputError(
                f"{weights}: holds no weights; they are named <architecture>_notop.weights.h5, for example "
                f"{architecture}_notop.weights.h5; name another folder with --weights or BCD_WEIGHTS_DIR, or "
                "start from random weights with --weights none"
            )
        path = folder / f"{architecture}_notop.weights.h5"
        label = f"ImageNet weights (file {folder.name}/{path.name})"
        problem = "" if path.is_file() else f"{path}: {why_no_file(path)}"
    if not problem:
        return Weights(str(path), label)
    if required:
        raise InputError(
            f"{problem}; name a folder that has {architecture}_notop.weights.h5 with --weights or "
            "BCD_WEIGHTS_DIR, or start from random weights with --weights none"
        )
    return Weights(None, "random initial weights (ImageNet's could not be had)")


def find_all(
    architectures: Iterable[str], weights: str | None = None, required: bool = True
) -> dict[str, Weights]:
    """Find the weights of each base of a method with `find_weights`.

    Where weights are required, a method needs them for one of its bases at least: a comparison need not stop
    because one of four is not at hand. A base of which Keras has no weights is never required. The label says
    what was used.
    """
    found = {name: find_weights(name, weights, required=False) for name in architectures}
    if required and not any(w.pretrained for w in found.values()):
        for name in found:
            if ARCHITECTURES[name].downloads:
                # raises; or the user asked for none, or a download succeeds now
                found[name] = find_weights(name, weights, required=True)
    return found


def weights_label(found: dict[str, Weights], *, frozen: bool = False) -> str:
    """Describe in a few words what a method's bases started from.

    Parameters
    ----------
    found : dict
        As from `find_all`.
    frozen : bool
        Whether the bases stay as they are: if one of them is random, the label says `NOT_COMPARABLE`.

    Examples
    --------
    >>> weights_label({})
    'no pre-trained weights'
    >>> weights_label({"resnet50": find_weights("resnet50", "none")}, frozen=True)
    'random initial weights, frozen random base: not comparable'
    """
    labels = {weights.label for weights in found.values()}
    if len(labels) == 1:
        text = labels.pop()
    else:
        text = ", ".join(f"{name}: {weights.label}" for name, weights in found.items())
    random = not all(weights.pretrained for weights in found.values())
    return f"{text}, {NOT_COMPARABLE}" if frozen and random else text or "no pre-trained weights"


def append_normalisation(x, architecture: str, name: str = "normalisation", *, pixels: str = "imagenet"):
    """Append the layers that turn RGB 0..255 into what the base's ImageNet weights expect.

    Or into what some authors gave it: 0..1 ("unit"), or the pixels as they are ("raw").

    Built-in layers only, so that a saved model loads without bcdlib, and in float32 whatever the policy. The
    tests compare them with ``keras.applications.<architecture>.preprocess_input``.
    """
    mode = ARCHITECTURES[architecture].mode
    if pixels != "imagenet":
        scale = {"unit": 1 / 255, "raw": 1.0}[pixels]
        return keras.layers.Rescaling(scale, name=name, dtype="float32")(x)
    if mode == "tf":
        return keras.layers.Rescaling(1 / 127.5, offset=-1.0, name=name, dtype="float32")(x)
    if mode == "caffe":
        x = keras.ops.flip(x, axis=-1)  # RGB -> BGR
        mean, deviation = np.array([103.939, 116.779, 123.68]), np.ones(3)
    else:
        mean, deviation = 255 * np.array([0.485, 0.456, 0.406]), 255 * np.array([0.229, 0.224, 0.225])
    return keras.layers.Normalization(
        mean=mean.tolist(), variance=np.square(deviation).tolist(), name=name, dtype="float32"
    )(x)


def normalise_images(images, architecture: str = "resnet50") -> np.ndarray:
    """Normalise images for a base.

    Parameters
    ----------
    images : array (N, height, width, 3), RGB 0..255
    architecture : str
        A key of `ARCHITECTURES`.

    Returns
    -------
    float32 array of the same shape
        In the network's order of channels.

    Raises
    ------
    InputError
        If the architecture is unknown.

    Examples
    --------
    >>> normalise_images(np.full((1, 1, 1, 3), 255), "xception").ravel().tolist()
    [1.0, 1.0, 1.0]
    """
    check_known("architecture", architecture, ARCHITECTURES)
    return keras.ops.convert_to_numpy(append_normalisation(np.asarray(images, dtype="float32"), architecture))


def normalised_for_display(images, architecture: str = "resnet50") -> np.ndarray:
    """Normalise images as `normalise_images`, and stretch each image's channels to 0..255, to be looked at.

    Returns
    -------
    uint8 array of the same shape, in the network's order of channels
    """
    values = normalise_images(images, architecture)
    low, high = values.min(axis=(1, 2), keepdims=True), values.max(axis=(1, 2), keepdims=True)
    return (255 * (values - low) / np.maximum(high - low, 1e-6)).round().astype("uint8")


def append_features(
    x,
    architecture: str,
    weights: Weights,
    *,
    trainable: bool = False,
    batch_norm: float | str | None = None,
    pooling: str = "average",
    pixels: str = "imagenet",
    name: str = "pool",
    seed: int,
):
    """Append a base and its pooling.

    Parameters
    ----------
    x : Keras tensor (batch, height, width, 3), RGB 0..255
    trainable : bool
        Whether the base is fine-tuned or stays frozen.
    batch_norm : float, "frozen" or None
        As in `profiles.Profile`.
    pooling : str
        "average" (global average), "flatten", or "moments-234": mean and standard deviation of each channel
        at the end of stages 2, 3 and 4 (of any of the base's stages), side by side; "means-234": the means
        alone; "layers-A,B": the means of the layers with these names. "fc1": the first dense layer of VGG's
        top, which only Keras' own weights have, at 224x224; "average" where they cannot be had.
    pixels : str
        As in `append_normalisation`.
    name : str
        Of the last layer.
    seed : int
        Of random initial weights; they do not depend on what was built before.

    Returns
    -------
    Keras tensor (batch, channels)

    Raises
    ------
    InputError
        If the weights file does not fit the architecture.
    """
    if architecture not in ARCHITECTURES:
        return encoders.append_encoder(x, architecture, pooling, name)
    about = ARCHITECTURES[architecture]
    height, width = x.shape[1:3]
    factor = -(-about.smallest // min(height, width))
    if factor > 1:  # the base cannot take images this small
        x = keras.layers.Resizing(
            factor * height, factor * width, name=f"enlarge_{architecture}", dtype="float32"
        )(x)
    x = append_normalisation(
        x, architecture, "normalisation" if name == "pool" else f"normalisation_{architecture}", pixels=pixels
    )
    top = pooling == "fc1" and weights.path == "imagenet" and tuple(x.shape[1:3]) == (224, 224)
    networks.set_seed(seed)
    try:
        base = about.constructor(
            include_top=top, weights=weights.path, input_shape=x.shape[1:], name=architecture
        )
    except (ValueError, OSError, KeyError) as error:
        raise InputError(
            f"{weights.path}: does not load as {architecture} ({error})".splitlines()[0]
        ) from None
    base.trainable = trainable
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization) and batch_norm is not None:
            if batch_norm == "frozen":
                layer.trainable = False  # Keras then uses its moving statistics in training too
            else:
                layer.momentum = batch_norm
    kind, _, stages = pooling.partition("-")
    if stages or top:
        names = stages.split(",") if kind == "layers" else [about.stages[stage] for stage in stages]
        outputs = [base.get_layer(layer).output for layer in names or ["fc1"]]
        base = keras.Model(base.inputs, outputs[0] if top else outputs, name=architecture)
    # training=False keeps a frozen base's batch norm statistics; None leaves it to fit() and predict()
    x = base(x, training=None if trainable else False)
    if stages:
        feature_maps = keras.tree.flatten(x)
        pooled = [keras.ops.mean(one, axis=(1, 2)) for one in feature_maps]
        if kind == "moments":  # with a little added: the gradient of a root ends at 0
            pooled += [keras.ops.sqrt(keras.ops.var(one, axis=(1, 2)) + 1e-6) for one in feature_maps]
        return keras.layers.Concatenate(name=name)(pooled)
    flat = pooling == "flatten" or top
    return (keras.layers.Flatten if flat else keras.layers.GlobalAveragePooling2D)(name=name)(x)
