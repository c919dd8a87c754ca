"""Out-of-distribution detection: whether an image is like those that a network was trained on.

Measured by the distance of the image's features to those of the nearest training images. The features are the
network's own, pooled (see `gradcam.last_features`), and compared by the angle between their signed square
roots, that is by Hellinger's distance (Arandjelovic & Zisserman 2012): a few strong channels do not drown the
others. The distance to the k nearest neighbours needs no model of how the features are distributed (Sun et
al. 2022, "Out-of-Distribution Detection with Deep Nearest Neighbors"). An image is out-of-distribution if it
lies farther away than nearly all images of cases that the network has not seen.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import neighbors, preprocessing

from bcdlib.errors import InputError
from bcdlib.runs.files import TEXTS, atomic_write, read_json, write_csv, write_json

NEIGHBOURS = 5
PERCENTILE = 97.5
FILES = ("reference.npy", "reference.csv", "reference.json")


@dataclass(frozen=True)
class OODReference:
    """The training images of a network in its feature space, and the distance that is too far from them.

    Attributes
    ----------
    points : float32 array (N, channels)
        Each of length 1; see `reference_points`.
    images : DataFrame
        N rows: filename, slide, case, class, magnification, subtype.
    threshold : float
        An image is out-of-distribution if its distance is larger, 0..2.
    set_on : str
        In words, the images that the threshold was set on.
    """

    points: np.ndarray
    images: pd.DataFrame
    threshold: float
    set_on: str

    def nearest(self, queries) -> tuple[np.ndarray, np.ndarray]:
        """Find the `NEIGHBOURS` nearest training images of each point (Q, channels).

        Returns
        -------
        distances : float array (Q, NEIGHBOURS)
            Cosine distances, 0..2, nearest first.
        rows : int array (Q, NEIGHBOURS)
            Of `images`.
        """
        return _nearest(self.points, queries)

    def warnings(self, queries) -> list[str]:
        """Return a sentence for each point (N, channels) that is out-of-distribution, else an empty text."""
        return [
            f"Unlike the training images (out-of-distribution): its {NEIGHBOURS} nearest lie {distance:.2f} "
            f"away, and {PERCENTILE:g}\u00a0% of {self.set_on} have theirs within {self.threshold:.2f}. "
            "The class and its probability mean nothing here."
            if distance > self.threshold
            else ""
            for distance in self.nearest(queries)[0].mean(axis=1)
        ]


def reference_points(network, X) -> np.ndarray:
    """Place images in a network's feature space: signed square roots of their features, scaled to length 1.

    Parameters
    ----------
    network : keras.Model
    X : uint8 array (N, height, width, 3), as the network takes it

    Returns
    -------
    float32 array (N, channels)
    """
    from bcdlib.explain import gradcam  # needs Keras; the rest does not

    features = gradcam.last_features(network, X)
    return preprocessing.normalize(np.sign(features) * np.sqrt(np.abs(features))).astype("float32")


def build_reference(
    training, images: pd.DataFrame, validation=None, *, validation_images: pd.DataFrame | None = None
) -> OODReference:
    """Build a reference, and set the distance that is too far.

    The threshold is the `PERCENTILE` of validation images' distances to the training images of other cases,
    or the same of the training images themselves if that is larger or there is no validation part: a few
    validation cases may all happen to be ordinary. Images of the same case never count, whatever the
    protocol: a new image comes from a case that the network has not seen.

    Parameters
    ----------
    training, validation : float32 arrays (N, channels)
        As from `reference_points`.
    images, validation_images : DataFrames
        As many rows; columns filename, slide, case, class, magnification, subtype.
    """
    sets = {"training images": _distances_to_other_cases(training, images, training, query_images=images)}
    if validation is not None:
        sets["validation images"] = _distances_to_other_cases(
            training, images, validation, query_images=validation_images
        )
    limits = {name: np.percentile(found, PERCENTILE) for name, found in sets.items() if len(found)}
    if not limits:  # one case only: nothing tells how far apart cases lie
        return OODReference(training, images, 2.0, "no image")
    name = max(limits, key=limits.get)
    return OODReference(
        training, images, float(limits[name]), f"the {len(sets[name])} {name} (their own case left out)"
    )


def _distances_to_other_cases(training, images, queries, *, query_images) -> np.ndarray:
    cases, own = images["case"].to_numpy(), query_images["case"].to_numpy()
    found = [
        _nearest(training[cases != case], queries[own == case])[0].mean(axis=1)
        for case in np.unique(own)
        if (cases != case).any()
    ]
    return np.concatenate(found or [np.zeros(0, "float32")])


def _nearest(points, queries) -> tuple[np.ndarray, np.ndarray]:
    search = neighbors.NearestNeighbors(
        n_neighbors=min(NEIGHBOURS, len(points)), metric="cosine", algorithm="brute"
    )
    return search.fit(points).kneighbors(queries)


def save_reference(folder, reference: OODReference) -> None:
    """Write a reference beside a model, its points as float16: the files `FILES`."""
    points, images, facts = (Path(folder) / name for name in FILES)
    facts.unlink(missing_ok=True)  # written last: who finds it finds the others
    with atomic_write(points) as temporary:
        np.save(temporary, reference.points.astype("float16"), allow_pickle=False)
    write_csv(images, reference.images)
    write_json(facts, {"threshold": reference.threshold, "set_on": reference.set_on})


def load_reference(folder) -> OODReference | None:
    """Load the reference beside a model; None if there is none.

    Raises
    ------
    InputError
        If its files are damaged.
    """
    points, images, facts = (Path(folder) / name for name in FILES)
    if not facts.is_file():
        return None
    try:
        found = np.load(points, allow_pickle=False).astype("float32")
        rows, stored = pd.read_csv(images, dtype=TEXTS), read_json(facts)
        if len(found) != len(rows):
            raise ValueError("of different lengths")
        return OODReference(found, rows, float(stored["threshold"]), stored["set_on"])
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: {', '.join(FILES)} are damaged ({error}); delete them") from None
