"""Is a picture like those that a network was trained on? Its features' distance to the nearest training images.

Features are the network's own, pooled (see `gradcam.last_features`). They are compared by the angle between their signed square
roots, that is by Hellinger's distance (Arandjelovic & Zisserman 2012): a few strong channels do not drown the others.
The distance to the k nearest neighbours needs no model of how the features lie (Sun et al. 2022, "Out-of-Distribution
Detection with Deep Nearest Neighbors"). A picture is unlike the training data if it lies farther away than nearly all
images of cases that the network has not seen.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from bcdlib.errors import InputError
from bcdlib.explain import gradcam
from bcdlib.runs.files import atomic_write, write_csv, write_json

NEIGHBOURS = 5
PERCENTILE = 97.5
FILES = ("reference.npy", "reference.csv", "reference.json")


@dataclass(frozen=True)
class OODReference:
    """What a trained network knows.

    Attributes
    ----------
    points : float array (N, channels), each of length 1; see `points`
    images : DataFrame (N rows): filename, slide, case, class, magnification, subtype
    threshold : the distance from which on a picture is unlike these images
    set_on : in words, what the threshold was set on
    """

    points: np.ndarray
    images: pd.DataFrame
    threshold: float
    set_on: str

    def nearest(self, queries, n: int = NEIGHBOURS) -> tuple[np.ndarray, np.ndarray]:
        """Cosine distances (0..2) and rows of the n nearest images, nearest first; float and int arrays (Q, n)."""
        return _search(self.points, queries, n)

    def distances(self, queries) -> np.ndarray:
        """Mean distance to the `NEIGHBOURS` nearest images; float array (Q,), 0..2."""
        return _far(self.points, queries)

    def warnings(self, queries) -> list[str]:
        """For each picture one plain sentence if it is unlike these images, else an empty text."""
        return [
            f"Unlike the training images: its {NEIGHBOURS} nearest lie {far:.2f} away, and {PERCENTILE:g}\u00a0% of "
            f"{self.set_on} have theirs within {self.threshold:.2f}. The class and its probability mean nothing here."
            if far > self.threshold
            else ""
            for far in self.distances(queries)
        ]


def reference_points(network, X) -> np.ndarray:
    """Where pictures lie: signed square roots of their features, scaled to length 1; float32 (N, channels).

    X is what the network takes: uint8 (N, height, width, 3).
    """
    found = gradcam.last_features(network, X)
    return normalize(np.sign(found) * np.sqrt(np.abs(found))).astype("float32")


def build_reference(
    training, images: pd.DataFrame, validation=None, validation_images: pd.DataFrame | None = None
) -> OODReference:
    """A reference, and the distance that is too far.

    The threshold is the `PERCENTILE` of validation images' distances to the training images of other cases, or the
    same of the training images themselves if that is larger or there is no validation part: a few validation cases
    may all happen to be ordinary. Images of the same case never count, whatever the protocol: a new picture comes from
    a case that the network has not seen.

    Parameters
    ----------
    training, validation : float arrays (N, channels), as from `points`
    images, validation_images : DataFrames with as many rows; columns filename, slide, case, class, magnification, subtype
    """
    sets = {"training images": _from_other_cases(training, images, training, images)}
    if validation is not None and len(validation):
        sets["validation images"] = _from_other_cases(training, images, validation, validation_images)
    limits = {name: np.percentile(far, PERCENTILE) for name, far in sets.items() if len(far)}
    if not limits:  # one case only: nothing tells how far apart cases lie
        return OODReference(training, images, 2.0, "no image")
    name = max(limits, key=limits.get)
    return OODReference(
        training, images, float(limits[name]), f"the {len(sets[name])} {name} (their own case left out)"
    )


def _from_other_cases(training, images, queries, query_images) -> np.ndarray:
    cases, own = images["case"].to_numpy(), query_images["case"].to_numpy()
    found = [
        _far(training[cases != case], queries[own == case])
        for case in np.unique(own)
        if (cases != case).any()
    ]
    return np.concatenate(found) if found else np.zeros(0)


def _far(training, queries) -> np.ndarray:
    return _search(training, queries, NEIGHBOURS)[0].mean(axis=1)


def _search(training, queries, n: int):
    training, queries = np.asarray(training, dtype="float32"), np.asarray(queries, dtype="float32")
    return (
        NearestNeighbors(metric="cosine", algorithm="brute")
        .fit(training)
        .kneighbors(queries, min(n, len(training)))
    )


def save_reference(folder, reference: OODReference) -> None:
    """Write a reference beside a model: ``reference.npy`` (float16), ``reference.csv``, ``reference.json``."""
    folder = Path(folder)
    (folder / FILES[2]).unlink(missing_ok=True)  # written last: who finds it finds the others
    with atomic_write(folder / FILES[0]) as temporary:
        np.save(temporary, reference.points.astype("float16"), allow_pickle=False)
    write_csv(folder / FILES[1], reference.images)
    write_json(folder / FILES[2], {"threshold": reference.threshold, "set_on": reference.set_on})


def load_reference(folder) -> OODReference | None:
    """The reference beside a model, or None if there is none.

    Raises
    ------
    InputError
        If its files are damaged.
    """
    folder = Path(folder)
    if not (folder / FILES[2]).is_file():
        return None
    try:
        found = np.load(folder / FILES[0], allow_pickle=False)
        images = pd.read_csv(folder / FILES[1], dtype={"slide": str, "case": str})
        facts = json.loads((folder / FILES[2]).read_text())
        if len(found) != len(images):
            raise ValueError("of different lengths")
        return OODReference(found.astype("float32"), images, float(facts["threshold"]), facts["set_on"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: {', '.join(FILES)} are damaged ({error}); delete them") from None
