"""Pictures as arrays: decoded on all cores, the uint8 cache that training maps into memory, and batches from it."""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bcdlib.data import breakhis, sources
from bcdlib.data.decode import RESAMPLING, decode_all
from bcdlib.data.sources import UNREADABLE
from bcdlib.errors import InputError
from bcdlib.runs.files import explain_disk_errors, local_copy, lock_path, write_csv, write_json

try:
    from zlib_ng import zlib_ng as zlib  # the same sums, ten times as fast
except ImportError:
    import zlib

CACHE_FORMAT = 2
_ALL, _SUMS = (
    "pixels.all.npy",
    "sums.npy",
)  # of a cache that is being made: pictures, checksums of those there
_STALE = 7 * 24 * 3600  # seconds after which nobody goes on with a cache that was begun


@dataclass(frozen=True)
class PixelCache:
    """All usable images of a source, decoded and resized once.

    Attributes
    ----------
    folder : pathlib.Path
    images : DataFrame
        One row an image in the order of the pixels: breakhis.IMAGE_COLUMNS and the author's folds.
    pixels : uint8 array (N, height, width, 3), RGB, mapped from disk (read-only)
    skipped : DataFrame
        ``filename`` and ``reason`` of the images that could not be read.
    """

    folder: Path
    images: pd.DataFrame
    pixels: np.ndarray
    skipped: pd.DataFrame

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the cached pictures."""
        return self.pixels.shape[2], self.pixels.shape[1]

    def rows(self, filenames) -> np.ndarray:
        """Positions of these file names in `pixels`; int64 (n,). Raises InputError for a name that is not cached."""
        index = pd.Index(self.images["filename"]).get_indexer(list(filenames))
        if (index < 0).any():
            missing = [name for name, place in zip(filenames, index, strict=True) if place < 0]
            raise InputError(
                f"{missing[0]}: not among the cached images ({len(missing)} such names); preprocess again"
            )
        return index


def cache_key(fingerprint: str, images: pd.DataFrame, size: tuple[int, int]) -> str:
    """Name of the cache made from this source (its fingerprint), these images, at this (width, height)."""
    recipe = [CACHE_FORMAT, fingerprint, images["path"].tolist(), list(size), RESAMPLING]
    if not breakhis.is_breakhis(
        images
    ):  # their classes and groups do not follow from their names: a cache keeps both
        recipe.append(images.to_csv(index=False))
    recipe = json.dumps(recipe)
    return f"pixels-{size[0]}x{size[1]}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def open_cache(folder) -> PixelCache:
    """Map a finished cache into memory.

    Raises
    ------
    InputError
        If there is no finished cache in this folder.
    """
    folder = Path(folder)
    try:
        images = pd.read_csv(folder / "images.csv", dtype={"slide": str, "case": str})
        skipped = pd.read_csv(folder / "skipped.csv", dtype=str)
        pixels = np.load(local_copy(folder / "pixels.npy"), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no readable pixel cache ({error}); run 02_preprocess first") from None
    return PixelCache(folder, images, pixels, skipped)


def resized_cache(cache: PixelCache, size: tuple[int, int], progress: bool = False) -> PixelCache:
    """The same images at another (width, height): read from the source that `cache` was made from, or found cached.

    Raises
    ------
    InputError
        If the source is no longer where it was, or has lost images of this cache.
    """
    if tuple(size) == cache.size:
        return cache
    place = json.loads((cache.folder / "cache.json").read_text())["made_from"]
    other = build_cache(
        sources.open_source(place), cache.images, size, root=cache.folder.parent, progress=progress
    )
    if len(other.images) != len(cache.images):
        raise InputError(
            f"{place}: {len(other.skipped)} images of {cache.folder} are no longer there; preprocess again"
        )
    return other


def run_cache(run) -> PixelCache:
    """The cache that 02_preprocess recorded in a `folder.Run`; InputError if it has not run yet."""
    return open_cache(run.settings.get("cache", run.folder / "cache"))


def build_cache(
    source, images: pd.DataFrame, size: tuple[int, int], *, root, progress: bool = True
) -> PixelCache:
    """Decode and resize every image once; or return at once if this very cache stands already.

    The cache is written beside its final name and renamed when it is whole, so that a cut-off run leaves nothing that looks
    finished. Called again after a cut, it goes on with the images that are not there yet.

    Parameters
    ----------
    source : sources.Source
    images : DataFrame with IMAGE_COLUMNS and ``path``, for example ``breakhis.scan_breakhis(source).images``
    size : (width, height)
    root : path-like
        Folder that holds caches.

    Raises
    ------
    InputError
        If not one image can be decoded.
    """
    images = images.reset_index(drop=True)
    fingerprint = source.fingerprint()
    folder = Path(root) / cache_key(fingerprint, images, size)
    with lock_path(folder):
        return _found_or_built(folder, fingerprint, source, images, size, progress)


def _found_or_built(folder: Path, fingerprint: str, source, images, size, progress: bool) -> PixelCache:
    if (folder / "cache.json").is_file():
        cache = open_cache(folder)
        if not _readable_by_now(source, images, cache.skipped):
            return cache
        _set_aside(folder)
    part = folder.with_name(
        f"{folder.name}.part"
    )  # one name for all: another session, or machine, goes on with it
    with explain_disk_errors(folder):
        _remove_stale(folder.parent)
        part.mkdir(parents=True, exist_ok=True)
    try:
        _fill(part, source, images, size, progress)
        if (
            _unread(pd.read_csv(part / "skipped.csv", dtype=str)).any()
            and source.fingerprint() != fingerprint
        ):
            raise InputError(
                f"{source.path}: changed or vanished while it was read; run the same again when it is whole"
            )
        write_json(
            part / "cache.json", {"size": list(size), "resampling": RESAMPLING, "made_from": str(source.path)}
        )
        _rename(part, folder)
    except Exception:
        if (
            folder / "cache.json"
        ).is_file():  # another machine went on with it too, and finished first: use that one
            return open_cache(folder)
        raise
    finally:
        if not _begun(part):
            shutil.rmtree(part, ignore_errors=True)
    return open_cache(folder)


def _rename(part: Path, folder: Path) -> None:
    """What was made gets its final names, one step after the other; nothing long comes between them."""
    if (part / "pixels.npy").exists():  # a copy without those that were left out
        (part / _ALL).unlink()
    else:
        (part / _ALL).rename(part / "pixels.npy")
    (part / _SUMS).unlink()
    part.rename(folder)


def _remove_stale(root: Path) -> None:
    """Remove what was begun long ago, from data that have changed since."""
    for left in root.glob("pixels-*.part"):
        with contextlib.suppress(OSError):
            if time.time() - max(file.stat().st_mtime for file in [left, *left.iterdir()]) > _STALE:
                shutil.rmtree(left, ignore_errors=True)


def _begun(part: Path) -> bool:
    """Whether there is anything to go on with."""
    try:
        return bool(np.load(part / _SUMS, allow_pickle=False).any())
    except (OSError, ValueError):
        return False


def _unread(skipped: pd.DataFrame) -> pd.Series:
    """Which of the images that were left out the file system did not give: of these, their files say nothing."""
    return skipped["reason"].astype(str).str.startswith(UNREADABLE)


def _readable_by_now(source, images: pd.DataFrame, skipped: pd.DataFrame) -> bool:
    """Whether a file can be read that could not when the cache was made: its rights have been mended, the Drive is back."""
    names = skipped.loc[_unread(skipped), "filename"]
    paths = images.loc[images["filename"].isin(names), "path"].tolist()
    return any(content is not None for _, content, _ in source.read(paths)) if paths else False


def _set_aside(folder: Path) -> None:
    aside = Path(tempfile.mkdtemp(prefix=folder.name + ".old-", dir=folder.parent))
    with contextlib.suppress(OSError):  # another run did it first
        folder.rename(
            aside / folder.name
        )  # not removed in place: another run may have it mapped, or be opening it
    shutil.rmtree(aside, ignore_errors=True)


def _fill(part: Path, source, images: pd.DataFrame, size, progress: bool) -> None:
    shape = (len(images), size[1], size[0], 3)
    place = {name: row for row, name in enumerate(images["filename"])}
    pixels, sums = _opened(part / _ALL, shape, "uint8"), _opened(part / _SUMS, shape[:1], "uint32")
    # a checksum stands for "done": whatever a crash of the machine has kept of either, what does not agree is done again
    missing = np.array([not total or zlib.adler32(row) != total for row, total in zip(pixels, sums)])
    reasons = dict.fromkeys(images["filename"][missing], "not found when it was to be read")
    written = itertools.count(1)
    with open(
        part / _ALL, "r+b"
    ) as file:  # written, not through the map: a page fault for each 4 KiB takes longer
        for name, array, reason in decode_all(
            source, images[missing], size, progress=progress, label="Decode and resize"
        ):
            reasons[name] = reason
            if array is not None:
                with explain_disk_errors(part):
                    file.seek(pixels.offset + place[name] * array.nbytes)
                    file.write(array)
                    if next(written) % 256 == 0:  # while others decode; at the end they would wait
                        os.fsync(file.fileno())
                sums[place[name]] = zlib.adler32(array)
                del reasons[name]
        with explain_disk_errors(part):
            file.flush()
            os.fsync(file.fileno())
    _close(part, images, pixels, ~images["filename"].isin(list(reasons)).to_numpy(), reasons, source)


def _opened(path: Path, shape, dtype: str) -> np.ndarray:
    """The array of an earlier run that was cut off, or a new one of zeros."""
    with contextlib.suppress(OSError, ValueError):
        array = np.load(path, mmap_mode="r+", allow_pickle=False)
        if array.shape == shape and array.dtype == dtype:
            return array
    return allocate_array(path, shape, dtype)


def _close(
    part: Path, images: pd.DataFrame, pixels: np.ndarray, good: np.ndarray, reasons: dict, source
) -> None:
    if not good.any():
        first = min(reasons)
        raise InputError(
            f"{source.path}: none of the {len(images)} images can be decoded; first: {first}: {reasons[first]}"
        )
    (part / "pixels.npy").unlink(missing_ok=True)  # of an earlier run that was cut off here
    if not good.all():
        kept = allocate_array(part / "pixels.npy", (int(good.sum()), *pixels.shape[1:]))
        for row, origin in enumerate(np.flatnonzero(good)):
            kept[row] = pixels[origin]
        kept.flush()
    write_csv(part / "images.csv", images[good])
    write_csv(part / "skipped.csv", pd.DataFrame(sorted(reasons.items()), columns=["filename", "reason"]))


def allocate_array(path, shape, dtype="uint8") -> np.ndarray:
    """A new .npy file of zeros, mapped for writing, whose room on the disk is taken at once.

    Without that, a disk that fills up would end the process by a signal (SIGBUS) while pixels are written.

    Raises
    ------
    InputError
        If the disk is too full.
    """
    with explain_disk_errors(path):
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return array
