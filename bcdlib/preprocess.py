"""02_preprocess: the paper's resizing, label encoding, shuffling, generation, normalisation and reshaping."""

from pathlib import Path

import numpy as np
import pandas as pd

from bcdlib.data import breakhis, checks, splits
from bcdlib.data.cache import PixelCache, build_cache, run_cache  # noqa: F401 (run_cache: for notebooks)
from bcdlib.errors import InputError
from bcdlib.methods.parts import augmentation, fitting
from bcdlib.methods.parts.backbones import normalise_images as normalise_images  # for notebooks
from bcdlib.plots import style
from bcdlib.runs import folder, lesson, places, profiles

# made before the splits, and not from them
FIRST_RESULTS = (
    *("01_mount.ipynb", "02_preprocess.ipynb", "table_i.csv"),
    *("intake.csv", "cache.csv", "left_out.csv", "labels.csv"),
)


def resize_images(
    run: folder.Run,
    profile: profiles.Profile,
    source,
    *,
    cache_root=None,
    strict: bool = False,
    progress: bool = True,
) -> PixelCache:
    """Decode each image of the run once, resize it (paper: 144x96), cache it as uint8; or reopen the cache.

    Records the cache's place in the run, so that later stages find it; if the run holds results of other
    pixels, they are removed. Images that were left out or look wrong go into ``tables/intake.csv`` (see
    `checks.examine_images`); a summary is printed.

    Parameters
    ----------
    run : Run
    profile : Profile
        Its ``size`` is (width, height).
    source : sources.Source
    cache_root : path-like, optional
        Folder of caches, shared by runs; by default `places.cache_root`.
    strict : bool
        Stop if an image had to be left out or stands under both classes.
    progress : bool
        Show a progress bar.

    Returns
    -------
    PixelCache

    Raises
    ------
    InputError
        If not one image can be decoded, or `strict` says so.
    """
    cache = build_cache(
        source, run.images(), profile.size, root=cache_root or places.cache_root(), progress=progress
    )
    before = run.settings.get("cache", run.settings.get("previous"))
    if before and Path(before).name != cache.folder.name:
        run.drop_results(keep=FIRST_RESULTS)
    found = checks.examine_images(run, source, cache)
    run.write_csv("tables/intake.csv", found)
    print(checks.left_out_lines(found, cache, run), flush=True)
    if strict:
        checks.refuse_left_out(found, run)
    run.record(
        cache=str(cache.folder), fingerprint=cache.fingerprint, size=list(cache.size), profile=profile.name
    )
    return cache


def left_out_table(run: folder.Run) -> pd.DataFrame:
    """Read which images were left out or look wrong, with reasons; see `checks.examine_images`."""
    return run.read_csv("tables/intake.csv", "02_preprocess")


def cache_summary(cache: PixelCache) -> pd.DataFrame:
    """Summarize what the cache holds, in the columns ``what`` and ``value``."""
    return pd.DataFrame(
        [
            ("images used", len(cache.images)),
            ("images left out (unreadable)", len(cache.skipped)),
            ("array", f"{cache.pixels.dtype} {cache.pixels.shape}, 0..255"),
            ("size on disk", f"{cache.pixels.nbytes / 2**20:.1f} MiB"),
        ],
        columns=["what", "value"],
    )


def label_counts(cache: PixelCache) -> pd.DataFrame:
    """Show the label encoding: one row a class with its code (benign 0, malignant 1) and number of images."""
    counts = cache.images["class"].value_counts()
    return pd.DataFrame(
        [(name, code, counts[name]) for code, name in enumerate(breakhis.CLASSES) if name in counts],
        columns=["class", "label", "images"],
    )


def write_splits(
    run: folder.Run, profile: profiles.Profile, cache: PixelCache, *, seed: int = 0
) -> pd.DataFrame:
    """Write ``splits/<protocol>.csv`` for every protocol that the images allow.

    If the run holds other splits of these names, the results that rest on them are removed.

    Parameters
    ----------
    run : Run
    profile : Profile
        Its ``splits``, ``compare_splits`` and ``folds``.
    cache : PixelCache
    seed : int
        Of the random splits.

    Returns
    -------
    pandas.DataFrame
        One row a protocol: split, what it is (or why it cannot be made), folds (0 if it cannot), and the mean
        number of images in each role.

    Raises
    ------
    InputError
        If the images allow no protocol at all.
    """
    rows, tables = [], {}
    for protocol in [name for name in splits.PROTOCOLS if name in profile.splits + profile.compare_splits]:
        row = {"split": protocol, "what it is": splits.PROTOCOLS[protocol], "folds": 0}
        try:
            # BreakHis's names give both, and a partial copy should have the same splits as the whole
            if (
                protocol == "slide"
                and not breakhis.is_breakhis(cache.images)
                and (cache.images["slide"] == cache.images["case"]).all()
            ):
                raise InputError("each slide is a case of its own here; the same as split 'case'")
            split, note = splits.make_feasible_split(cache.images, protocol, profile.folds, seed=seed)
        except InputError as error:
            row["what it is"] = f"left out: {error}"
        else:
            tables[protocol] = split
            row["what it is"] += f" ({note})" if note else ""
            row["folds"] = split["fold"].nunique()
            row |= {role: round((split["role"] == role).sum() / row["folds"]) for role in splits.ROLES}
        rows.append(row)
    texts = {name: table.to_csv(index=False) for name, table in tables.items()}
    # those of other seeds, as 06_compare makes them, come from the same images and number of folds
    stored = [file for file in (run.folder / "splits").glob("*.csv") if file.stem in splits.PROTOCOLS]
    if any(file.read_text() != texts.get(file.stem) for file in stored):
        run.drop_results(keep=FIRST_RESULTS)
    if not tables:
        raise InputError(
            f"these {len(cache.images)} images allow no split; the last was {rows[-1]['what it is']}"
        )
    for name, split in tables.items():
        run.write_csv(f"splits/{name}.csv", split)
    run.record(seed=seed)
    return pd.DataFrame(rows)


def splits_note(table: pd.DataFrame) -> str:
    """Warn, as Markdown, if the images do not allow a split by case; else return an empty text.

    Parameters
    ----------
    table : pandas.DataFrame
        From `write_splits`.
    """
    left_out = table.loc[(table["split"] == "case") & (table["folds"] == 0), "what it is"]
    if left_out.empty:
        return ""
    strictest = min(table.loc[table["folds"] > 0, "split"], key=splits.strictness)
    return (
        f"**No split by case is possible ({left_out.iloc[0].removeprefix('left out: ')}). "
        f"The strictest that is possible is `{strictest}`: {splits.PROTOCOLS[strictest]}. "
        "What is measured under it does not say how well the network would do on the next patient.**"
    )


def first_batch(run: folder.Run, profile: profiles.Profile, cache: PixelCache, *, seed: int = 0):
    """Shuffle and augment: return the first training batch of the profile's first split, as training sees it.

    Parameters
    ----------
    run : Run
    profile : Profile
        Its ``splits`` (the first that the images allow is taken) and ``batch_size``.
    cache : PixelCache
    seed : int
        Of order and augmentation.

    Returns
    -------
    X : float32 array (batch, height, width, 3)
        RGB, 0..255.
    y : float32 array (batch, 1)
        0 benign, 1 malignant.
    """
    split = splits.read_split(run, splits.available_splits(run, profile.splits)[0])
    train = cache.rows(splits.fold_of(split, 0).query("role == 'train'")["filename"])
    X, y = fitting.Batches(
        cache.pixels[train], breakhis.class_labels(cache.images.iloc[train]), profile.batch_size, 1, seed
    )[0]
    return np.asarray(augmentation.default_augmentation(seed)(X.astype("float32"), training=True)), y


def batch_figure(X, y, most: int = 16):
    """Draw the first images of a batch from `first_batch`, each with its label."""
    return style.image_grid(
        X[:most].round().clip(0, 255).astype("uint8"),
        [f"{int(label)} {breakhis.CLASSES[int(label)]}" for label in y[:most, 0]],
        8,
        title=f"The first {min(most, len(X))} of {len(X)} images of one batch",
        colours=[style.COLOURS[breakhis.CLASSES[int(label)]] for label in y[:most, 0]],
    )


def normalisation_table(X) -> pd.DataFrame:
    """Show what normalisation does to a batch: mean and deviation of each channel, before and after.

    The network's channels are in the order in which its ImageNet weights were trained: blue first.
    """
    return pd.DataFrame(
        [
            {"values": what, "channel": name, "mean": part.mean(), "standard deviation": part.std()}
            for what, images, channels in (
                ("in the batch", np.asarray(X), ("red", "green", "blue")),
                ("as the network gets them", np.asarray(normalise_images(X)), ("blue", "green", "red")),
            )
            for name, part in zip(channels, np.moveaxis(images, -1, 0), strict=True)
        ]
    )


def findings(run: folder.Run, cache: PixelCache, table: pd.DataFrame) -> str:
    """Say in three lines what 02_preprocess made, as Markdown; `table` is from `write_splits`."""
    made = table.loc[table["folds"] > 0, "split"].tolist()
    lines = [f"{len(cache.images)} images of {cache.size[0]} x {cache.size[1]} pixels are ready."]
    for name in dict.fromkeys([made[0], min(made, key=splits.strictness)]):
        overlap = splits.split_overlap(splits.fold_of(splits.read_split(run, name), 0), run.images())
        lines.append(f"`{name}`, first fold: {splits.overlap_line(overlap.iloc[0])}")
    return lesson.findings_text(lines)


def check_exercise(profile: profiles.Profile, table: pd.DataFrame, answer: float | None) -> str:
    """Check the exercise of 02_preprocess: the number of batches that show each training image once."""
    images = table.loc[table["folds"] > 0, "train"].iloc[0]
    return lesson.check_answer(
        answer,
        -(-images // profile.batch_size),
        lesson=f"{images:.0f} images / {profile.batch_size}, rounded up. That is one pass; the profile "
        f"`{profile.name}` has {profile.epochs} epochs of "
        + (f"{profile.steps_per_epoch} batches." if profile.steps_per_epoch else "one pass each."),
    )
