"""Trained methods from their files."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from bcdlib import stain
from bcdlib.errors import InputError
from bcdlib.methods.base import MEMBER, TASKS, KerasMethod, columns


@dataclass(frozen=True)
class Saved:
    """A trained network with what its file says about it.

    Attributes
    ----------
    network : keras.Model
    kind : type of the method; KerasMethod itself if the file is not one of ours
    task : "binary" or "subtype"
    classes : names of the columns of `predict_proba`
    size : (width, height) of its images, or None if the network takes any
    target : stain.Target or None
    """

    network: keras.Model
    kind: type[KerasMethod]
    task: str
    classes: tuple[str, ...]
    size: tuple[int, int] | None
    target: stain.Target | None

    def predict_proba(self, X, images=None) -> np.ndarray:
        """As `Method.predict_proba`: stain normalisation, if the method had it, then the network."""
        return columns(self.kind.probabilities(self.network, self.stained(X), images))

    def stained(self, X) -> np.ndarray:
        """Pixels as the network wants them: stain-normalised if the method had that step."""
        X = np.asanyarray(X)
        return X if self.target is None else stain.apply(X, self.target)


def load(path, kinds: dict[str, type[KerasMethod]]) -> Saved:
    """See `bcdlib.methods.load`; ``kinds`` gives the class for the key that a file names, if known."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such model file")
    try:
        network = keras.models.load_model(path, compile=False, safe_mode=True)
        _, height, width, _ = network.input_shape
        outputs = network.output_shape[-1]
        with zipfile.ZipFile(path) as archive:
            facts = json.loads(archive.read(MEMBER)) if MEMBER in archive.namelist() else {}
    except Exception as error:  # Keras raises many kinds on a damaged or foreign file
        raise InputError(f"{path}: not a usable Keras model ({error})".splitlines()[0]) from None
    task = facts.get("task", "subtype" if outputs == len(TASKS["subtype"]) else "binary")
    if outputs not in (1, len(TASKS[task])):
        raise InputError(f"{path}: the network gives {outputs} numbers an image; 1, 2 or 8 are understood")
    target = facts.get("stain")
    return Saved(
        network, kinds.get(facts.get("key"), KerasMethod), task, TASKS[task],
        (width, height) if width and height else None,
        stain.Target(target["kind"], tuple(target["values"])) if target else None,
    )
