"""Pre-trained encoders through KerasHub, by address or from a folder."""

import functools
import json
import re
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from bcdlib.errors import InputError, one_line

TOKENS = ("class", "mean", "both")


class Encoder(NamedTuple):
    """A frozen encoder: its backbone, what brings pixels 0..255 to it, (width, height) of its images."""

    backbone: keras.Model
    converter: keras.layers.Layer
    size: tuple[int, int]
    licence: str


@functools.lru_cache(maxsize=1)  # to load one takes seconds and memory
def load_encoder(preset: str) -> Encoder:
    """Load an encoder by its KerasHub preset.

    Parameters
    ----------
    preset : str
        ``hf://owner/name``, ``kaggle://...``, a built-in name, or a folder in KerasHub's layout or that of
        Hugging Face's transformers.

    Raises
    ------
    InputError
        If KerasHub is not installed, or the preset cannot be had or is no image encoder.
    """
    try:
        import keras_hub
    except ImportError:
        raise InputError("encoder: needs KerasHub, which Colab has; pip install keras-hub") from None
    try:
        backbone = keras_hub.models.Backbone.from_preset(preset)
        converter = keras_hub.layers.ImageConverter.from_preset(preset)
    except Exception as error:  # downloads, files, configurations: each library behind it has its own kinds
        raise InputError(f"encoder: {preset}: cannot be loaded ({one_line(error)[:300]})") from None
    converter = converter or _read_converter(keras_hub, preset)
    height, width = converter.image_size or getattr(backbone, "image_shape", (224, 224, 3))[:2]
    backbone.trainable = False
    return Encoder(backbone, converter, (width or 224, height or 224), read_licence(preset))


def _read_converter(keras_hub, preset: str) -> keras.layers.Layer:
    """Make what brings pixels to an encoder of transformers, of whose preprocessing KerasHub says nothing."""
    file = _fetch(preset, "preprocessor_config.json")
    try:
        facts = json.loads(file.read_text())
        size = facts.get("crop_size") or facts["size"]
        height, width = (size.get(side) or size["shortest_edge"] for side in ("height", "width"))
        deviation = np.array(facts["image_std"], dtype=float)
        scale = facts.get("rescale_factor", 1 / 255) / deviation
        offset = -np.array(facts["image_mean"], dtype=float) / deviation
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(
            f"encoder: {preset}: has no preprocessor_config.json with size and normalisation of its images"
        ) from None
    return keras_hub.layers.ImageConverter(
        image_size=(height, width), scale=scale.tolist(), offset=offset.tolist()
    )


def _fetch(preset: str, name: str) -> Path | None:
    """Find a file of a preset: in its folder, or on Hugging Face."""
    file = Path(preset, name)
    if preset.startswith("hf://"):
        try:
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(preset.removeprefix("hf://").rstrip("/"), name))
        except Exception:  # no such file, no network
            return None
    return file if file.is_file() else None


def read_licence(preset: str) -> str:
    """Read the licence of weights from their card (README.md) on Hugging Face or in the folder.

    Returns
    -------
    str
        "not stated" if there is none.
    """
    card = _fetch(preset, "README.md")
    text = card.read_text(errors="replace") if card else ""
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = front and re.search(r"^licen[sc]e:\s*(\S.*)$", front[1], re.MULTILINE)
    return found[1].strip() if found else "not stated"


def append_encoder(x, preset: str, tokens: str, name: str = "pool"):
    """Append a frozen encoder, and its vector for the whole image.

    Parameters
    ----------
    x : Keras tensor (batch, height, width, 3), RGB 0..255
    preset : str
    tokens : str
        One of `TOKENS`.
    name : str
        Of the last layer.

    Returns
    -------
    Keras tensor (batch, channels)
    """
    encoder = load_encoder(preset)
    x = encoder.converter(x)
    inputs = encoder.backbone.input
    x = encoder.backbone({next(iter(inputs)): x} if isinstance(inputs, dict) else x, training=False)
    if isinstance(x, dict):
        x = x[next((key for key in ("pooled_output", "sequence_output") if key in x), next(iter(x)))]
    if len(x.shape) == 4:
        return keras.layers.GlobalAveragePooling2D(name=name)(x)
    if len(x.shape) == 3:
        # registers are neither the class token nor patches
        first = 1 + (getattr(encoder.backbone, "num_register_tokens", 0) or 0)
        parts = {"class": x[:, 0], "mean": keras.ops.mean(x[:, first:], axis=1)}
        x = keras.ops.concatenate(
            [parts[part] for part in (parts if tokens == "both" else [tokens])], axis=-1
        )
    return keras.layers.Identity(name=name)(x)
