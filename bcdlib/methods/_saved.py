"""Trained methods from their files."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from bcdlib.data import stain
from bcdlib.errors import InputError
from bcdlib.methods import _base, _keras, _training


@dataclass(frozen=True)
class SavedMethod:
    """A trained network with what its file says about it.

    Attributes
    ----------
    network : keras.Model
    kind : type of the method
        KerasMethod itself if the file is not one of ours.
    task : "binary" or "subtype"
    classes : tuple of str
        Names of the columns of `predict_proba`.
    size : (width, height) or None
        Of its images, in pixels; None if the network takes any.
    target : stain.StainTarget or None
    """

    network: keras.Model
    kind: type[_keras.KerasMethod]
    task: str
    classes: tuple[str, ...]
    size: tuple[int, int] | None
    target: stain.StainTarget | None

    def predict_proba(self, X, images=None) -> np.ndarray:
        """Predict as `Method.predict_proba`: stain normalisation, if the method had it, then the network."""
        return _base.probability_columns(self.kind.probabilities(self.network, self.stained(X), images))

    def stained(self, X) -> np.ndarray:
        """Bring pixels to what the network wants: stain-normalised if the method had that step."""
        X = np.asanyarray(X)
        return X if self.target is None else stain.normalise_stain(X, self.target)


# Layers that carry Python code or another library's pickles, or read files of the machine that loads them
_CODE = {
    "Lambda",
    "TorchModuleWrapper",
    "JaxLayer",
    "FlaxLayer",
    "TFSMLayer",
    "StringLookup",
    "IntegerLookup",
    "TextVectorization",
}
_LARGEST_CONFIG = 2**26  # bytes; ResNet-152's has under 1 MiB


def _check(path) -> None:
    """Refuse what could run a stranger's code; only recent versions of Keras refuse all of it too."""
    found = set()
    try:
        # older formats, HDF5 and SavedModel, hold code that no safe mode stops
        with zipfile.ZipFile(path) as archive:
            if any(
                archive.getinfo(f"{name}.json").file_size > _LARGEST_CONFIG for name in ("config", "metadata")
            ):
                raise ValueError("its config.json is of a monstrous size")
            json.loads(
                archive.read("config.json"), object_hook=lambda part: found.add(part.get("class_name"))
            )
    except Exception as error:  # zipfile, json and the wrong structure raise many kinds
        raise InputError(f"{path}: not a usable Keras model (a .keras file is wanted: {error})") from None
    for name in sorted(found & _CODE):
        raise InputError(
            f"{path}: refused: its layer {name} can run code of whoever made the file; only networks of "
            "plain layers are loaded. Ask for one without it"
        )


def load_saved(path, kinds: dict[str, type[_keras.KerasMethod]]) -> SavedMethod:
    """Load a network as `bcdlib.methods.load_method`; ``kinds`` gives the classes by the key in the file."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such model file")
    _check(path)
    try:
        network = keras.models.load_model(path, compile=False, safe_mode=True)
        _, height, width, _ = network.input_shape
        outputs = network.output_shape[-1]
        with zipfile.ZipFile(path) as archive:
            facts = (
                json.loads(archive.open(_training.MEMBER).read(_LARGEST_CONFIG))
                if _training.MEMBER in archive.namelist()
                else {}
            )
    except Exception as error:  # Keras raises many kinds on a damaged or foreign file
        raise InputError(f"{path}: not a usable Keras model ({error})".splitlines()[0]) from None
    task = facts.get("task", "subtype" if outputs == len(_base.TASKS["subtype"]) else "binary")
    if outputs not in (1, len(_base.TASKS[task])):
        raise InputError(f"{path}: the network gives {outputs} numbers an image; 1, 2 or 8 are understood")
    target = facts.get("stain")
    return SavedMethod(
        network,
        kinds.get(facts.get("key"), _keras.KerasMethod),
        task,
        _base.TASKS[task],
        (width, height) if width and height else None,
        stain.StainTarget(target["kind"], tuple(target["values"])) if target else None,
    )
