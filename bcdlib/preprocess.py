"""The paper's preprocessing operations: resizing, label encoding, shuffling, generation, normalisation, reshaping."""

import numpy as np
import pandas as pd

from bcdlib import intake, manifest, pixels, splits
from bcdlib.errors import InputError
from bcdlib.methods import backbones
from bcdlib.methods.augment import FlipAndZoom
from bcdlib.methods.base import Batches
from bcdlib.pixels import PixelCache
from bcdlib.profiles import Profile
from bcdlib.runs import Run, write_csv


def resize(run: Run, source, profile: Profile, cache_root, progress: bool = True, strict: bool = False) -> PixelCache:
    """Decode each image of the run once, resize it (paper: 144x96) and keep it as uint8; or find that cache again.

    Records the cache's place in the run, so that later stages find it. What was left out or looks wrong goes into
    ``tables/intake.csv`` (see `bcdlib.intake`) and is summed up in print.

    Parameters
    ----------
    source : sources.Source
    profile : Profile
        Its ``size`` is (width, height).
    cache_root : path-like
        Folder of caches, shared by runs.
    strict : bool
        Stop if an image had to be left out or one picture stands under both classes.

    Raises
    ------
    InputError
        If not one image can be decoded, or `strict` says so.
    """
    cache = pixels.build_cache(source, run.images(), profile.size, cache_root, progress)
    found = run.save_table("intake", intake.examine(run, source, cache))
    print(intake.lines(found, cache, run), flush=True)
    if strict:
        intake.refuse(found, run)
    run.record(cache=str(cache.folder), profile=profile.name)
    return cache


def intake_table(run: Run) -> pd.DataFrame:
    """Every image that was left out, with the reason, and pictures that are filed under two labels; see `intake.examine`."""
    return run.read_csv("tables/intake.csv", "02_preprocess")


def summary(cache: PixelCache) -> pd.DataFrame:
    """What the cache holds, as a two-column table."""
    rows = {
        "images used": len(cache.images),
        "images left out (unreadable)": len(cache.skipped),
        "array": f"{cache.pixels.dtype} {cache.pixels.shape}, 0..255",
        "size on disk": f"{cache.pixels.nbytes / 2**20:.1f} MiB",
    }
    return pd.DataFrame(rows.items(), columns=["what", "value"])


def encode(cache: PixelCache) -> pd.DataFrame:
    """Label encoding: benign 0, malignant 1; one row a class with its code and number of images."""
    codes = pd.Series(manifest.labels(cache.images)).value_counts().sort_index()
    return pd.DataFrame({"class": [manifest.CLASSES[code] for code in codes.index], "label": codes.index,
                         "images": codes.to_numpy()})


def make_splits(run: Run, cache: PixelCache, profile: Profile, seed: int = 0) -> pd.DataFrame:
    """Write ``splits/<protocol>.csv`` for every protocol that the images allow, and show who trains and tests where.

    Returns
    -------
    DataFrame: one row a protocol with folds, mean number of images a role, and what leaks (or why it cannot be made).
    """
    rows = []
    wanted = {*profile.splits, *profile.compare_splits}
    for protocol in (name for name in splits.PROTOCOLS if name in wanted):
        row = {"split": protocol, "what it is": splits.PROTOCOLS[protocol]}
        file = run.folder / "splits" / f"{protocol}.csv"
        try:
            if protocol == "slide" and _slides_are_cases(cache.images):
                raise InputError("each slide is a case of its own here; the same as split 'case'")
            split, note = splits.make_feasible(cache.images, protocol, profile.folds, seed)
        except InputError as error:
            rows.append(row | {"folds": 0, "what it is": f"left out: {error}"})
            file.unlink(missing_ok=True)  # one made from other images must not pass for these images' own
            continue
        if note:
            row["what it is"] += f" ({note})"
        write_csv(file, split)
        folds = split["fold"].nunique()
        counts = split["role"].value_counts().reindex(list(splits.ROLES), fill_value=0) / folds
        rows.append(row | {"folds": folds} | counts.round().astype(int).to_dict())
    if not any(row["folds"] for row in rows):
        raise InputError(f"these {len(cache.images)} images allow no split; the last was {rows[-1]['what it is']}")
    return pd.DataFrame(rows)


def _slides_are_cases(images: pd.DataFrame) -> bool:
    # of BreakHis's names both are known, and a partial copy is to have the same splits as the whole
    return bool((images["slide"] == images["case"]).all()) and not manifest.is_breakhis(images)


def splits_note(table: pd.DataFrame) -> str:
    """Markdown: what is missing where the images do not allow a split by case (see `make_splits`); else empty."""
    left_out = table.loc[(table["split"] == "case") & (table["folds"] == 0), "what it is"]
    if left_out.empty:
        return ""
    strictest = next(name for name in splits.STRICTEST if name in set(table.loc[table["folds"] > 0, "split"]))
    reason = left_out.iloc[0].removeprefix("left out: ")
    return (f"**No split by case is possible ({reason}). The strictest that is possible is `{strictest}`: "
            f"{splits.PROTOCOLS[strictest]}. What is measured under it does not say how well the network would do on the "
            "next patient.**")


def first_split(run: Run, profile: Profile) -> pd.DataFrame:
    """The first of the profile's splits that the images allow; see `splits.made`."""
    return splits.read(run, splits.made(run, profile.splits)[0])


def batch(cache: PixelCache, split: pd.DataFrame, batch_size: int = 32, seed: int = 0, augment: bool = True):
    """Shuffling and generation: the first training batch of a split, as training sees it.

    Returns
    -------
    (X, y) : float32 (batch, height, width, 3), RGB 0..255, augmented if asked; float32 labels (batch, 1)
    """
    train = cache.rows(splits.fold_of(split, 0).query("role == 'train'")["filename"])
    X, y = Batches(cache.pixels[train], manifest.labels(cache.images)[train], batch_size, 1, seed)[0]
    X = X.astype("float32")
    return (np.asarray(FlipAndZoom(seed=seed)(X, training=True)) if augment else X), y


def normalise(X, architecture: str = "resnet50") -> np.ndarray:
    """What the network's first convolution gets: see `backbones.normalised`."""
    return backbones.normalised(X, architecture)
