"""Near-duplicates on both sides of a split: images that are the same though their names do not say so.

Exact copies are found by a hash. Then each image, grey, band-passed and 64 x 64, is held against those whose
spectrum is most like its own: the magnitudes of a Fourier transform do not change when an image is shifted,
and averaged over the eight flips and quarter turns they do not change by these either. What counts is the
correlation at the best shift and orientation, on the part that both show.
"""

import hashlib

import numpy as np
import pandas as pd
from PIL import Image
from scipy import fft, ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bcdlib.data import splits

SIDE = 64
BAND = (1, 6)  # pixels: what is finer is noise and compression, what is coarser every pale image shares
CANDIDATES = 10  # images held against each: bounds the time, also where thousands are alike
SAME_CORRELATION = 0.7  # unrelated images of BreakHis reach 0.57
_FLAT = 1.0  # grey levels: an image without structure is like every other one
_SMALLEST_OVERLAP = 0.6
_BLOCK = 64  # pairs at a time: bounds the memory, and what is at work stays in the processor's cache


def near_duplicates(cache) -> pd.DataFrame:
    """Find pairs of images that are nearly the same.

    Each of 60 real images was found again when it was flipped, turned by quarters, made grey or brighter,
    blurred, saved as JPEG of quality 50, cropped to 98 % or shifted by 3 %; of crops to 95 % four in five, of
    crops to 90 % hardly one. No two of different slides were taken for one. Two fields of view of one slide
    that share nearly all of their area count too.

    Parameters
    ----------
    cache : bcdlib.data.cache.PixelCache

    Returns
    -------
    DataFrame
        Columns first, second (file names) and correlation, most alike first. Exact copies have correlation 1
        and are listed as pairs with the first of them only.
    """
    names = cache.images["filename"].to_numpy()
    copy_of = _first_copies(cache.pixels)
    exact = np.flatnonzero(copy_of != np.arange(len(names)))
    tables = [pd.DataFrame({"first": names[copy_of[exact]], "second": names[exact], "correlation": 1.0})]
    grey = np.stack([_grey(cache.pixels[place]) for place in np.unique(copy_of)])
    textured = grey.std(axis=(1, 2)) >= _FLAT
    names, grey = names[np.unique(copy_of)][textured], grey[textured]
    if len(grey) > 1:
        bands, pairs = _band(grey), _candidates(_spectra(grey))
        for start in range(0, len(pairs), _BLOCK):
            one, two = pairs[start : start + _BLOCK].T
            found = {"first": names[one], "second": names[two]}
            tables.append(pd.DataFrame(found | {"correlation": _correlations(bands[one], bands[two])}))
    table = pd.concat(tables, ignore_index=True)
    table = table[table["correlation"] >= SAME_CORRELATION]
    return table.sort_values("correlation", ascending=False, kind="stable", ignore_index=True)


def across_split(found: pd.DataFrame, split: pd.DataFrame) -> pd.DataFrame:
    """Select the test images of which a near-duplicate was trained or chosen on.

    Parameters
    ----------
    found : DataFrame
        As from `near_duplicates`.
    split : DataFrame
        A split table.

    Returns
    -------
    DataFrame
        A row for each fold and such test image: fold, test, training (the most alike there; file names),
        correlation.
    """
    pairs = _both_ways(found)
    tables = []
    for fold, part in splits.folds_of(split):
        tests = set(part.loc[part["role"] == "test", "filename"])
        training = set(part.loc[part["role"] != "test", "filename"])
        crossing = pairs[pairs["test"].isin(tests) & pairs["training"].isin(training)]
        tables.append(crossing.drop_duplicates("test").assign(fold=fold))
    columns = ["fold", "test", "training", "correlation"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def _both_ways(found: pd.DataFrame) -> pd.DataFrame:
    """All ordered pairs, most alike first, those of several copies of one image included."""
    # an array of texts would give each as much room as the longest
    codes, names = pd.factorize(found[["first", "second"]].to_numpy(dtype=object).ravel(), sort=True)
    codes = codes.reshape(-1, 2)
    exact = (found["correlation"] == 1).to_numpy()
    graph = coo_array((np.ones(exact.sum()), codes[exact].T), shape=(len(names), len(names)))
    image = pd.Series(connected_components(graph, directed=False)[1] if len(names) else [], index=names)
    members = image.reset_index(name="image").rename(columns={"index": "name"})
    near = pd.DataFrame(image.to_numpy()[codes[~exact]], columns=["one", "two"])
    near["correlation"] = found["correlation"].to_numpy()[~exact]
    copies = pd.DataFrame({"one": image.unique(), "two": image.unique(), "correlation": 1.0})
    both = pd.concat([copies, near, near.rename(columns={"one": "two", "two": "one"})])
    both = both.merge(members.rename(columns={"image": "one", "name": "test"}), on="one")
    both = both.merge(members.rename(columns={"image": "two", "name": "training"}), on="two")
    both = both[both["test"] != both["training"]]
    return both.sort_values("correlation", ascending=False, kind="stable")[
        ["test", "training", "correlation"]
    ]


def _first_copies(pixels) -> np.ndarray:
    """Of each image the place of the first that is equal in every pixel; int64 (N,)."""
    digests = np.array([hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in pixels])
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    return first[inverse]


def _grey(image) -> np.ndarray:
    small = Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype="float32")


def _band(grey: np.ndarray) -> np.ndarray:
    fine, coarse = (ndimage.gaussian_filter(grey, (0, sigma, sigma)) for sigma in BAND)
    return _standardised(fine - coarse)


def _standardised(images: np.ndarray) -> np.ndarray:
    images = images - images.mean(axis=(1, 2), keepdims=True)
    return images / np.maximum(images.std(axis=(1, 2), keepdims=True), 1e-6)


def _orientations(images: np.ndarray) -> np.ndarray:
    """Flips and quarter turns of square images; (N, S, S) -> (N, 8, S, S)."""
    turned = [np.rot90(images, turns, axes=(1, 2)) for turns in range(4)]
    return np.stack([*turned, *(image[:, :, ::-1] for image in turned)], axis=1)


def _spectra(grey: np.ndarray, reach: int = 12) -> np.ndarray:
    """Return magnitudes of low frequencies, which shifts, flips and quarter turns keep; (N, features)."""
    window = np.outer(np.hanning(SIDE), np.hanning(SIDE)).astype("float32")
    magnitude = np.abs(fft.fft2(_standardised(grey) * window, axes=(1, 2), workers=-1))
    kept = np.r_[0 : reach + 1, SIDE - reach : SIDE]
    low = fft.fftshift(magnitude[:, kept][:, :, kept], axes=(1, 2))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    once = (x > 0) & (y >= 0) & (y <= x)  # the eighth that the orientations map onto each other
    features = np.log1p(_orientations(low).mean(axis=1)[:, once]).astype("float32")
    return (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)


def _candidates(features: np.ndarray, block: int = 512) -> np.ndarray:
    """Pairs of places, each image with its `CANDIDATES` nearest; int64 (pairs, 2), each pair once."""
    square, pairs = (features**2).sum(axis=1), set()
    most = min(CANDIDATES, len(features) - 1)
    for start in range(0, len(features), block):
        part = features[start : start + block]
        distance = square - 2 * part @ features.T  # up to a constant of each row
        distance[np.arange(len(part)), start + np.arange(len(part))] = np.inf
        nearest = np.argpartition(distance, most - 1, axis=1)[:, :most]
        pairs |= {
            tuple(sorted((start + row, other))) for row, others in enumerate(nearest) for other in others
        }
    return np.array(sorted(pairs))


def _correlations(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Correlation of pairs of standardised images at their best shift and orientation; float (pairs,)."""
    oriented = _orientations(two)
    spectra = fft.rfft2(oriented, workers=-1)
    np.multiply(fft.rfft2(one, axes=(1, 2), workers=-1)[:, None], spectra.conj(), out=spectra)
    surface = fft.irfft2(spectra, s=(SIDE, SIDE), workers=-1)
    best = np.unravel_index(surface.reshape(len(one), -1).argmax(axis=1), surface.shape[1:])
    values = np.zeros(len(one))
    for number, (orientation, *shifts) in enumerate(zip(*best)):
        shifts = [shift - SIDE if shift > SIDE // 2 else shift for shift in shifts]
        left = one[number][tuple(slice(max(shift, 0), SIDE + min(shift, 0)) for shift in shifts)]
        other = oriented[number, orientation][
            tuple(slice(max(-shift, 0), SIDE + min(-shift, 0)) for shift in shifts)
        ]
        if left.size >= _SMALLEST_OVERLAP * SIDE**2:
            values[number] = np.corrcoef(left.ravel(), other.ravel())[0, 1]
    return values
