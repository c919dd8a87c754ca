"""The paper's preprocessing operations: resizing, label encoding, shuffling, generation, normalisation, reshaping."""

import numpy as np
import pandas as pd

from bcdlib.data import breakhis, checks, splits
from bcdlib.data.cache import PixelCache, build_cache
from bcdlib.data.cache import run_cache as run_cache  # for notebooks
from bcdlib.errors import InputError
from bcdlib.methods.parts import backbones
from bcdlib.methods.parts.augmentation import default_augmentation
from bcdlib.methods.parts.fitting import Batches
from bcdlib.runs import places
from bcdlib.runs.files import write_csv
from bcdlib.runs.folder import Run
from bcdlib.runs.profiles import Profile


def resize_images(
    run: Run, profile: Profile, source, *, cache_root=None, strict: bool = False, progress: bool = True
) -> PixelCache:
    """Decode each image of the run once, resize it (paper: 144x96) and keep it as uint8; or find that cache again.

    Records the cache's place in the run, so that later stages find it. What was left out or looks wrong goes into
    ``tables/intake.csv`` (see `bcdlib.intake`) and is summed up in print.

    Parameters
    ----------
    source : sources.Source
    profile : Profile
        Its ``size`` is (width, height).
    cache_root : path-like, optional
        Folder of caches, shared by runs; see `places.cache_root` for the default.
    strict : bool
        Stop if an image had to be left out or one picture stands under both classes.

    Raises
    ------
    InputError
        If not one image can be decoded, or `strict` says so.
    """
    root = cache_root or places.cache_root()
    cache = build_cache(source, run.images(), profile.size, root=root, progress=progress)
    found = checks.examine_images(run, source, cache)
    write_csv(run.folder / "tables" / "intake.csv", found)
    print(checks.left_out_lines(found, cache, run), flush=True)
    if strict:
        checks.refuse_left_out(found, run)
    run.record(cache=str(cache.folder), profile=profile.name)
    return cache


def left_out_table(run: Run) -> pd.DataFrame:
    """Every image that was left out, with the reason, and pictures that are filed under two labels; see `checks.examine_images`."""
    return run.read_csv("tables/intake.csv", "02_preprocess")


def cache_summary(cache: PixelCache) -> pd.DataFrame:
    """What the cache holds, as a two-column table."""
    rows = {
        "images used": len(cache.images),
        "images left out (unreadable)": len(cache.skipped),
        "array": f"{cache.pixels.dtype} {cache.pixels.shape}, 0..255",
        "size on disk": f"{cache.pixels.nbytes / 2**20:.1f} MiB",
    }
    return pd.DataFrame(rows.items(), columns=["what", "value"])


def label_counts(cache: PixelCache) -> pd.DataFrame:
    """Label encoding: benign 0, malignant 1; one row a class with its code and number of images."""
    codes = pd.Series(breakhis.class_labels(cache.images)).value_counts().sort_index()
    return pd.DataFrame(
        {
            "class": [breakhis.CLASSES[code] for code in codes.index],
            "label": codes.index,
            "images": codes.to_numpy(),
        }
    )


def write_splits(run: Run, profile: Profile, cache: PixelCache, seed: int = 0) -> pd.DataFrame:
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
            split, note = splits.make_feasible_split(cache.images, protocol, profile.folds, seed=seed)
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
        raise InputError(
            f"these {len(cache.images)} images allow no split; the last was {rows[-1]['what it is']}"
        )
    return pd.DataFrame(rows)


def _slides_are_cases(images: pd.DataFrame) -> bool:
    # of BreakHis's names both are known, and a partial copy is to have the same splits as the whole
    return bool((images["slide"] == images["case"]).all()) and not breakhis.is_breakhis(images)


def splits_note(table: pd.DataFrame) -> str:
    """Markdown: what is missing where the images do not allow a split by case (see `make_splits`); else empty."""
    left_out = table.loc[(table["split"] == "case") & (table["folds"] == 0), "what it is"]
    if left_out.empty:
        return ""
    strictest = next(name for name in splits.STRICTEST if name in set(table.loc[table["folds"] > 0, "split"]))
    reason = left_out.iloc[0].removeprefix("left out: ")
    return (
        f"**No split by case is possible ({reason}). The strictest that is possible is `{strictest}`: "
        f"{splits.PROTOCOLS[strictest]}. What is measured under it does not say how well the network would do on the "
        "next patient.**"
    )


def first_split(run: Run, profile: Profile) -> pd.DataFrame:
    """The first of the profile's splits that the images allow; see `splits.available_splits`."""
    return splits.read_split(run, splits.available_splits(run, profile.splits)[0])


def first_batch(
    cache: PixelCache, split: pd.DataFrame, *, batch_size: int = 32, seed: int = 0, augment: bool = True
):
    """Shuffling and generation: the first training batch of a split, as training sees it.

    Returns
    -------
    (X, y) : float32 (batch, height, width, 3), RGB 0..255, augmented if asked; float32 labels (batch, 1)
    """
    train = cache.rows(splits.fold_of(split, 0).query("role == 'train'")["filename"])
    X, y = Batches(cache.pixels[train], breakhis.class_labels(cache.images)[train], batch_size, 1, seed)[0]
    X = X.astype("float32")
    return (np.asarray(default_augmentation(seed)(X, training=True)) if augment else X), y


def normalise_batch(X, architecture: str = "resnet50") -> np.ndarray:
    """What the network's first convolution gets: see `backbones.normalise_images`."""
    return backbones.normalise_images(X, architecture)
