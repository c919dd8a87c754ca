"""Convolutional bases: their constructors, their weights, and their normalisation as layers."""

import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from bcdlib.errors import InputError
from bcdlib.methods.parts.architectures import AlexNet, GoogLeNet


class Architecture(NamedTuple):
    """A base: ``constructor`` as those of keras.applications, ``mode`` the way its ImageNet weights expect pixels
    (keras.applications' own words), ``smallest`` the shortest side that it takes, ``downloads`` whether Keras has its
    ImageNet weights, ``stages`` the last layer of each stage, by the stage's digit in the publication."""

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
    "xception": Architecture(keras.applications.Xception, "tf", smallest=71),
    "densenet201": Architecture(keras.applications.DenseNet201, "torch"),
    "mobilenet_v2": Architecture(keras.applications.MobileNetV2, "tf"),
    # as Caffe's models of both: BGR, less the mean colour of ImageNet
    "googlenet": Architecture(GoogLeNet, "caffe", downloads=False),
    "alexnet": Architecture(AlexNet, "caffe", smallest=67, downloads=False),
}


@dataclass(frozen=True)
class Weights:
    """Where a base's weights come from: ``path`` for the constructor (a file, "imagenet" or None) and a label."""

    path: str | None
    label: str

    @property
    def pretrained(self) -> bool:
        """False if the base starts from random weights."""
        return self.path is not None


def choose_weights(weights: str | None = None) -> str:
    """What the user wants: the argument, else the folder that BCD_WEIGHTS_DIR names, else ``"imagenet"``."""
    return weights or os.environ.get("BCD_WEIGHTS_DIR") or "imagenet"


@functools.cache
def _download_problem(architecture: str) -> str:
    """Empty if Keras has or gets the ImageNet weights, else why not; asked once a process."""
    if not ARCHITECTURES[architecture].downloads:
        return f"Keras has no ImageNet weights of {architecture}"
    try:
        ARCHITECTURES[architecture].constructor(include_top=False, weights="imagenet")
    except Exception as error:  # urllib, ssl, OSError, Keras' own: all mean that the download failed
        return f"ImageNet weights of {architecture} cannot be downloaded ({error})".splitlines()[0]
    return ""


def find_weights(architecture: str, weights: str | None = None, required: bool = True) -> Weights:
    """Decide which weights a base starts from, and make sure that they can be had.

    Parameters
    ----------
    architecture : str
        A key of `ARCHITECTURES`.
    weights : str, optional
        ``"imagenet"`` (Keras downloads them), ``"none"``, or a folder with ``<architecture>_notop.weights.h5``.
        Default: see `choice`.
    required : bool
        If False, weights that cannot be had mean random ones.

    Raises
    ------
    InputError
        If they cannot be had and are required, or if a named folder does not exist.
    """
    weights = choose_weights(weights)
    if weights == "none":
        return Weights(None, "random initial weights")
    if weights == "imagenet":
        problem = _download_problem(architecture)
        if not problem:
            return Weights("imagenet", "ImageNet weights (Keras)")
    else:
        folder = Path(weights).expanduser().absolute()
        if not folder.is_dir():
            raise InputError(f"{weights}: no such folder of weights; name a folder, 'imagenet' or 'none'")
        file = folder / f"{architecture}_notop.weights.h5"
        if file.is_file():
            return Weights(str(file), f"ImageNet weights (file {file.parent.name}/{file.name})")
        problem = f"{file}: no such file"
    if required:
        raise InputError(
            f"{problem}; name a folder that has {architecture}_notop.weights.h5 with --weights or BCD_WEIGHTS_DIR, "
            "or start from random weights with --weights none"
        )
    return Weights(None, "random initial weights (ImageNet's could not be had)")


def find_all(
    architectures: Iterable[str], weights: str | None = None, required: bool = True
) -> dict[str, Weights]:
    """`find_weights` of each base of a method.

    Where weights are required, a method needs them for one of its bases at least: a comparison need not stop because
    one of four is not at hand. A base of which Keras has no weights is never required. The label says what was used.
    """
    names = list(architectures)
    found = {name: find_weights(name, weights, required=False) for name in names}
    if required and not any(w.pretrained for w in found.values()):
        for name in names:
            if ARCHITECTURES[name].downloads:
                find_weights(name, weights, required=True)  # raises, or the user asked for none
    return found


def weights_label(found: dict[str, Weights]) -> str:
    """What a method's bases started from, in a few words."""
    labels = {weights.label for weights in found.values()}
    if len(labels) == 1:
        return labels.pop()
    return (
        ", ".join(f"{name}: {weights.label}" for name, weights in found.items()) or "no pre-trained weights"
    )


def append_normalisation(x, architecture: str, name: str = "normalisation"):
    """Append the layers that turn RGB 0..255 into what the base's ImageNet weights expect.

    The built-in layers only, so that a saved model loads without bcdlib, and in float32 whatever the policy. Checked
    against ``keras.applications.<architecture>.preprocess_input``.
    """
    mode = ARCHITECTURES[architecture].mode
    if mode == "caffe":
        x = keras.ops.flip(x, axis=-1)  # RGB -> BGR
        return keras.layers.Normalization(
            mean=[103.939, 116.779, 123.68], variance=[1.0] * 3, name=name, dtype="float32"
        )(x)
    if mode == "torch":
        mean, deviation = 255 * np.array([0.485, 0.456, 0.406]), 255 * np.array([0.229, 0.224, 0.225])
        return keras.layers.Normalization(
            mean=mean.tolist(), variance=(deviation**2).tolist(), name=name, dtype="float32"
        )(x)
    if mode == "tf":
        return keras.layers.Rescaling(1 / 127.5, offset=-1.0, name=name, dtype="float32")(x)
    raise ValueError(f"unknown normalisation {mode!r}")


def normalise_images(pictures, architecture: str = "resnet50") -> np.ndarray:
    """Pictures as the base gets them.

    Parameters
    ----------
    pictures : array (N, height, width, 3), RGB 0..255

    Returns
    -------
    float32 array of the same shape, in the network's order of channels.

    Raises
    ------
    InputError
        If the architecture is unknown.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"unknown architecture {architecture!r}; use {' or '.join(ARCHITECTURES)}")
    return keras.ops.convert_to_numpy(
        append_normalisation(np.asarray(pictures, dtype="float32"), architecture)
    )


def build_backbone(architecture: str, input_shape: tuple[int, int, int], weights: Weights):
    """The base without its top: (height, width, 3) -> feature map.

    Raises
    ------
    InputError
        If the weights file does not fit the architecture.
    """
    constructor = ARCHITECTURES[architecture].constructor
    try:
        return constructor(
            include_top=False, weights=weights.path, input_shape=input_shape, name=architecture
        )
    except (ValueError, OSError, KeyError) as error:
        raise InputError(
            f"{weights.path}: does not load as {architecture} ({error})".splitlines()[0]
        ) from None


def append_features(
    x,
    architecture: str,
    weights: Weights,
    *,
    seed: int,
    trainable: bool = False,
    batch_norm=None,
    pooling: str = "average",
    patches: int = 1,
    name: str = "pool",
):
    """Append a base and its pooling.

    Parameters
    ----------
    x : Keras tensor (batch, height, width, 3), RGB 0..255
    seed : of random initial weights; they do not depend on what was built before.
    trainable, batch_norm : as in `set_trainable`
    pooling : "average" (global average), "flatten", or "moments-234": mean and standard deviation of each channel at the
        end of stages 2, 3 and 4 (of any of the base's stages), side by side; "means-234" the means alone
    patches : cut the image into patches x patches equal parts and put each through the base
    name : of the last layer

    Returns
    -------
    Keras tensor (batch, channels); with patches > 1 the features of all patches side by side, row by row.
    """
    if patches > 1:
        x = cut_patches(x, patches)
    height, width = x.shape[1:3]
    factor = -(-ARCHITECTURES[architecture].smallest // min(height, width))
    if factor > 1:  # the base cannot take pictures this small
        x = keras.layers.Resizing(
            factor * height, factor * width, name=f"enlarge_{architecture}", dtype="float32"
        )(x)
    x = append_normalisation(
        x, architecture, "normalisation" if name == "pool" else f"normalisation_{architecture}"
    )
    keras.utils.set_random_seed(seed)
    base = build_backbone(architecture, x.shape[1:], weights)
    set_trainable(base, trainable, batch_norm)
    kind, _, stages = pooling.partition("-")
    if stages:
        base = keras.Model(
            base.inputs,
            [base.get_layer(ARCHITECTURES[architecture].stages[s]).output for s in stages],
            name=architecture,
        )
    # training=False keeps a frozen base's batch norm statistics; None leaves it to fit() and predict()
    x = base(x, training=None if trainable else False)
    if stages:
        feature_maps = x if isinstance(x, list | tuple) else [x]
        return keras.layers.Concatenate(name=name)(_moments(feature_maps, deviations=kind == "moments"))
    inner = name if patches == 1 else f"{name}_patch"
    pool = (
        keras.layers.Flatten(name=inner)
        if pooling == "flatten"
        else keras.layers.GlobalAveragePooling2D(name=inner)
    )
    x = pool(x)
    return (
        x
        if patches == 1
        else keras.layers.Identity(name=name)(keras.ops.reshape(x, (-1, patches**2 * x.shape[-1])))
    )


def _moments(feature_maps, deviations: bool) -> list:
    found = [keras.ops.mean(one, axis=(1, 2)) for one in feature_maps]
    if deviations:  # with a little added: the gradient of a root ends at 0
        found += [keras.ops.sqrt(keras.ops.var(one, axis=(1, 2)) + 1e-6) for one in feature_maps]
    return found


def cut_patches(x, patches: int):
    """Cut images into patches x patches equal parts (a rest at the right and lower edge of fewer pixels is left out).

    Keras tensor (batch, height, width, 3) -> (batch * patches**2, height // patches, width // patches, 3), an image's
    patches one after the other, row by row.
    """
    height, width = x.shape[1] // patches, x.shape[2] // patches
    rows = keras.ops.image.extract_patches(x[:, : height * patches, : width * patches], (height, width))
    return keras.ops.reshape(rows, (-1, height, width, 3))


def set_trainable(base: keras.Model, trainable: bool, batch_norm: float | str | None = None) -> None:
    """Fine-tune or freeze a base; ``batch_norm`` as in `profiles.Profile`."""
    base.trainable = trainable
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization) and batch_norm is not None:
            if batch_norm == "frozen":
                layer.trainable = (
                    False  # Keras: a frozen batch norm layer also uses its moving statistics in training
                )
            else:
                layer.momentum = batch_norm
