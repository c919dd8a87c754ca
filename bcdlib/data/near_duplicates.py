"""Pairs of near-identical pictures on both sides of a split: what the names of files cannot show.

First filter: thumbnails of 24 x 16 pixels, every pair of the two sides. Confirmation: the correlation of the cached
pictures themselves. Shifted fields of view of one slide are not near-identical in this sense; the split by slide or
case is what keeps these apart.
"""

import numpy as np
import pandas as pd
from PIL import Image

from bcdlib.data import splits

THUMBNAIL = (24, 16)
FILTER = 0.95
SAME_CORRELATION = 0.97


def _unit(pictures: np.ndarray) -> np.ndarray:
    flat = pictures.reshape(len(pictures), -1).astype("float32")
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def thumbnails(pixels: np.ndarray) -> np.ndarray:
    """Pictures shrunk to 24 x 16, mean taken off, length 1; float32 (N, 1152). Flat pictures are all zero.

    Parameters
    ----------
    pixels : uint8 array (N, height, width, 3)
    """
    small = [
        np.asarray(Image.fromarray(picture).resize(THUMBNAIL, Image.Resampling.BOX)) for picture in pixels
    ]
    return _unit(np.stack(small))


def near_duplicates(cache, least: float = SAME_CORRELATION) -> pd.DataFrame:
    """Every pair of near-identical pictures of a `cache.PixelCache`.

    Parameters
    ----------
    least : correlation of the cached pixels (all channels, mean taken off), from which on a pair counts; 1 is equal
        up to brightness and contrast

    Returns
    -------
    DataFrame, most alike first: first, second (file names), correlation, difference (mean absolute, grey levels).
    """
    small, names = thumbnails(cache.pixels), cache.images["filename"].to_numpy()
    rows = []
    for start in range(
        0, len(small), 512
    ):  # in blocks: all pairs at once would be 250 MB for the whole of BreakHis
        alike = small[start : start + 512] @ small.T
        for a, b in np.argwhere(alike >= FILTER):
            if (a := a + start) < b:
                one, two = cache.pixels[a], cache.pixels[b]
                correlation = float((_unit(one[None]) * _unit(two[None])).sum())
                if correlation >= least:
                    difference = float(np.abs(one.astype(int) - two.astype(int)).mean())
                    rows.append((names[a], names[b], correlation, difference))
    table = pd.DataFrame(rows, columns=["first", "second", "correlation", "difference"])
    return table.sort_values("correlation", ascending=False, kind="stable", ignore_index=True)


def across_split(found: pd.DataFrame, split: pd.DataFrame) -> pd.DataFrame:
    """Those of the `pairs` that have one picture in a fold's test part and the other in what it was trained or chosen on.

    Returns
    -------
    DataFrame: fold, test, training (file names), correlation, difference
    """
    tables = []
    for fold, part in splits.folds_of(split):
        role = part.set_index("filename")["role"]
        sides = found.assign(one=found["first"].map(role), two=found["second"].map(role)).dropna(
            subset=["one", "two"]
        )
        crossing = sides[(sides["one"] == "test") != (sides["two"] == "test")]
        first_tests = crossing["one"] == "test"
        tables.append(
            pd.DataFrame(
                {
                    "fold": fold,
                    "test": crossing["first"].where(first_tests, crossing["second"]),
                    "training": crossing["second"].where(first_tests, crossing["first"]),
                    "correlation": crossing["correlation"],
                    "difference": crossing["difference"],
                }
            )
        )
    return pd.concat(tables, ignore_index=True)
