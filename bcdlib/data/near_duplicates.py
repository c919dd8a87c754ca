"""Near-duplicates on both sides of a split: what the names of files cannot show.

First filter: thumbnails of 24 x 16 pixels, every pair of the two sides. Confirmation: the correlation of the
cached images themselves. Shifted fields of view of one slide are not near-duplicates in this sense; the split
by slide or case is what keeps these apart.
"""

import numpy as np
import pandas as pd
from PIL import Image

from bcdlib.data import splits

_FILTER = 0.95
SAME_CORRELATION = 0.97


def _unit(images: np.ndarray) -> np.ndarray:
    flat = images.reshape(len(images), -1).astype("float32")
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def thumbnails(pixels: np.ndarray) -> np.ndarray:
    """Shrink images to 24 x 16, take the mean off and scale them to length 1; flat images become all zero.

    Parameters
    ----------
    pixels : uint8 array (N, height, width, 3)

    Returns
    -------
    float32 array (N, 1152)

    Examples
    --------
    >>> thumbnails(np.zeros((2, 96, 144, 3), "uint8")).shape
    (2, 1152)
    """
    box = Image.Resampling.BOX
    return _unit(np.stack([np.asarray(Image.fromarray(image).resize((24, 16), box)) for image in pixels]))


def near_duplicates(cache, least: float = SAME_CORRELATION) -> pd.DataFrame:
    """Find every pair of near-duplicates in a `cache.PixelCache`.

    Parameters
    ----------
    cache : cache.PixelCache
    least : float
        Correlation of the cached pixels (all channels, mean taken off), from which on a pair counts; 1 is
        equal up to brightness and contrast.

    Returns
    -------
    DataFrame
        Most alike first: first, second (file names), correlation, difference (mean absolute, grey levels).
    """
    small, names = thumbnails(cache.pixels), cache.images["filename"].to_numpy()
    rows = []
    for start in range(0, len(small), 512):  # all pairs at once would be 250 MB for the whole of BreakHis
        alike = small[start : start + 512] @ small.T
        for a, b in np.argwhere(alike >= _FILTER) + [start, 0]:
            if a < b:
                one, two = cache.pixels[a], cache.pixels[b]
                correlation = float((_unit(one[None]) * _unit(two[None])).sum())
                if correlation >= least:
                    difference = float(np.abs(one.astype(int) - two.astype(int)).mean())
                    rows.append((names[a], names[b], correlation, difference))
    return pd.DataFrame(rows, columns=["first", "second", "correlation", "difference"]).sort_values(
        "correlation", ascending=False, kind="stable", ignore_index=True
    )


def across_split(found: pd.DataFrame, split: pd.DataFrame) -> pd.DataFrame:
    """Select the pairs with one image in a fold's test part and the other in what was trained or chosen on.

    Parameters
    ----------
    found : DataFrame
        From `near_duplicates`.
    split : DataFrame
        Filename, role and, if there are several, fold.

    Returns
    -------
    DataFrame
        Fold, test, training (file names), correlation, difference.
    """
    tables = []
    for fold, part in splits.folds_of(split):
        role = part.set_index("filename")["role"]
        sides = found.assign(fold=fold, one=found["first"].map(role), two=found["second"].map(role)).dropna()
        crossing = sides[(sides["one"] == "test") != (sides["two"] == "test")]
        straight = crossing.rename(columns={"first": "test", "second": "training"})
        swapped = crossing.rename(columns={"first": "training", "second": "test"})
        tables.append(straight.where(crossing["one"] == "test", swapped))
    return pd.concat(tables, ignore_index=True)[["fold", "test", "training", "correlation", "difference"]]
