"""Convolutional bases from keras.applications: their weights, and their normalisation as layers."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from bcdlib.errors import InputError

# architecture -> constructor and the way its ImageNet weights expect pixels (keras.applications' own "mode" words)
ARCHITECTURES = {
    "resnet50": (keras.applications.ResNet50, "caffe"),
}


@dataclass(frozen=True)
class Weights:
    """Where a base's weights come from: ``path`` for keras.applications (a file, "imagenet" or None) and a label."""

    path: str | None
    label: str

    @property
    def pretrained(self) -> bool:
        """False if the base starts from random weights."""
        return self.path is not None


def choice(weights: str | None = None) -> str:
    """What the user wants: the argument, else the folder that BCD_WEIGHTS_DIR names, else ``"imagenet"``."""
    return weights or os.environ.get("BCD_WEIGHTS_DIR") or "imagenet"


@functools.cache
def _download_problem(architecture: str) -> str:
    """Empty if Keras has or gets the ImageNet weights, else why not; asked once a process."""
    try:
        ARCHITECTURES[architecture][0](include_top=False, weights="imagenet")
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
    weights = choice(weights)
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


def normalise(x, architecture: str):
    """Append the layers that turn RGB 0..255 into what the base's ImageNet weights expect.

    The built-in layers only, so that a saved model loads without bcdlib. Checked against
    ``keras.applications.<architecture>.preprocess_input``.
    """
    mode = ARCHITECTURES[architecture][1]
    if mode == "caffe":
        x = keras.ops.flip(x, axis=-1)  # RGB -> BGR
        return keras.layers.Normalization(mean=[103.939, 116.779, 123.68], variance=[1.0] * 3, name="normalisation")(x)
    raise ValueError(f"unknown normalisation {mode!r}")


def normalised(pictures, architecture: str = "resnet50") -> np.ndarray:
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
    return keras.ops.convert_to_numpy(normalise(np.asarray(pictures, dtype="float32"), architecture))


def build(architecture: str, input_shape: tuple[int, int, int], weights: Weights):
    """The base without its top: (height, width, 3) -> feature map.

    Raises
    ------
    InputError
        If the weights file does not fit the architecture.
    """
    constructor = ARCHITECTURES[architecture][0]
    try:
        return constructor(include_top=False, weights=weights.path, input_shape=input_shape, name=architecture)
    except (ValueError, OSError, KeyError) as error:
        raise InputError(f"{weights.path}: does not load as {architecture} ({error})".splitlines()[0]) from None


def set_trainable(base: keras.Model, trainable: bool, batch_norm: float | str | None = None) -> None:
    """Fine-tune or freeze a base; ``batch_norm`` as in `profiles.Profile`."""
    base.trainable = trainable
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization) and batch_norm is not None:
            if batch_norm == "frozen":
                layer.trainable = False  # Keras: a frozen batch norm layer also uses its moving statistics in training
            else:
                layer.momentum = batch_norm
