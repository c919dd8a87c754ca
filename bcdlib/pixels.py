"""Pictures as arrays: decoded on all cores, the uint8 cache that training maps into memory, and batches from it."""

import collections
import contextlib
import functools
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from bcdlib import manifest, sources
from bcdlib.decoding import RESAMPLING, decode
from bcdlib.errors import InputError
from bcdlib.runs import alone, near, saving, write_csv, write_json
from bcdlib.sources import UNREADABLE

try:
    from zlib_ng import zlib_ng as zlib  # the same sums, ten times as fast
except ImportError:
    import zlib

CACHE_FORMAT = 2
_ALL, _SUMS = "pixels.all.npy", "sums.npy"  # of a cache that is being made: pictures, checksums of those there
_STALE = 7 * 24 * 3600  # seconds after which nobody goes on with a cache that was begun


def decode_all(
    source, images: pd.DataFrame, size=None, workers: int | None = None, progress: bool = True, label: str = "Decode"
) -> Iterator[tuple[str, np.ndarray | None, str]]:
    """Decode many images of a `sources.Source` on all cores, in the order in which they are stored.

    Parameters
    ----------
    images : DataFrame with the columns ``filename`` and ``path`` (inside the source).
    size : (width, height), optional
        As in `decode`.
    workers : int, optional
        Threads; default: one a core that this process may use. The pixels do not depend on it.

    Yields
    ------
    (filename, array, reason) : array as from `decode`, or None with the reason why not.
    """

    filenames = dict(zip(images["path"], images["filename"], strict=True))

    def work(group):
        members = source.read(group) if source.any_order else group
        return [(filenames[name], *_decoded(content, size, reason)) for name, content, reason in members]

    groups = _named(filenames) if source.any_order else _groups(source.read(list(filenames)))
    workers = workers or cores()
    pending = collections.deque()  # a bounded window: memory does not grow with the data set
    with (
        _one_core_each(),
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(images), desc=label, unit="image", disable=not progress) as bar,
    ):
        for group in itertools.chain(groups, itertools.repeat(None)):
            if group is not None:
                pending.append(pool.submit(work, group))
            if group is None or len(pending) > 2 * workers:
                if not pending:
                    return
                for found in pending.popleft().result():
                    bar.update()
                    yield found


@contextlib.contextmanager
def _one_core_each() -> Iterator[None]:
    """Where all cores are at work, the own threads of OpenCV and of the matrix products only take time from them."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with threadpool_limits(1, "blas"):
            yield
    finally:
        cv2.setNumThreads(before)


def _decoded(content: bytes | None, size, reason: str) -> tuple[np.ndarray | None, str]:
    if content is None:
        return None, reason
    try:
        return decode(content, size), ""
    except ValueError as error:
        return None, str(error)


def _named(paths, most: int = 4) -> Iterator[list[str]]:
    """A few paths at a time: handing them over one by one costs a worker a tenth of its time."""
    paths = iter(paths)
    while group := list(itertools.islice(paths, most)):
        yield group


def _groups(members, most: int = 8, size: int = 2**22) -> Iterator[list]:
    """A few members of a source at a time, of a few MiB."""
    group, total = [], 0
    for member in members:
        group.append(member)
        total += len(member[1] or b"")
        if len(group) == most or total >= size:
            yield group
            group, total = [], 0
    if group:
        yield group


def decode_files(files, size=None, progress: bool = True) -> Iterator[tuple[str, np.ndarray | None, str]]:
    """Decode pictures that a user names, on all cores.

    Parameters
    ----------
    files : paths of pictures, and of folders or archives, whose pictures are all decoded; in any mixture
    size : (width, height), optional
        As in `decode`.

    Yields
    ------
    (path, array, reason) : as from `decode_all`; of a picture inside a folder or archive the path goes through it
    """
    for container, group in itertools.groupby(dict.fromkeys(map(Path, files)), sources.is_container):
        for source in [sources.open_source(path) for path in group] if container else [sources.FolderSource(Path())]:
            names = source.names() if container else [str(path) for path in group]
            shown = [str(source.path / name) for name in names]
            yield from decode_all(source, pd.DataFrame({"filename": shown, "path": names}), size, progress=progress)
            yield from ((str(source.path / name), None, reason) for name, reason in source.left_out)


def cores() -> int:
    """How many cores this process may use; at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class PixelCache:
    """All usable images of a source, decoded and resized once.

    Attributes
    ----------
    folder : pathlib.Path
    images : DataFrame
        One row an image in the order of the pixels: manifest.IMAGE_COLUMNS and the author's folds.
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
            raise InputError(f"{missing[0]}: not among the cached images ({len(missing)} such names); preprocess again")
        return index


def cache_key(fingerprint: str, images: pd.DataFrame, size: tuple[int, int]) -> str:
    """Name of the cache made from this source (its fingerprint), these images, at this (width, height)."""
    recipe = [CACHE_FORMAT, fingerprint, images["path"].tolist(), list(size), RESAMPLING]
    if not manifest.is_breakhis(images):  # their classes and groups do not follow from their names: a cache keeps both
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
        pixels = np.load(near(folder / "pixels.npy"), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no readable pixel cache ({error}); run 02_preprocess first") from None
    return PixelCache(folder, images, pixels, skipped)


def at_size(cache: PixelCache, size: tuple[int, int], progress: bool = False) -> PixelCache:
    """The same images at another (width, height): read from the source that `cache` was made from, or found cached.

    Raises
    ------
    InputError
        If the source is no longer where it was, or has lost images of this cache.
    """
    if tuple(size) == cache.size:
        return cache
    place = json.loads((cache.folder / "cache.json").read_text())["made_from"]
    other = build_cache(sources.open_source(place), cache.images, size, cache.folder.parent, progress)
    if len(other.images) != len(cache.images):
        raise InputError(f"{place}: {len(other.skipped)} images of {cache.folder} are no longer there; preprocess again")
    return other


def cache_of(run) -> PixelCache:
    """The cache that 02_preprocess recorded in a `runs.Run`; InputError if it has not run yet."""
    return open_cache(run.settings.get("cache", run.folder / "cache"))


def build_cache(source, images: pd.DataFrame, size: tuple[int, int], root, progress: bool = True) -> PixelCache:
    """Decode and resize every image once; or return at once if this very cache stands already.

    The cache is written beside its final name and renamed when it is whole, so that a cut-off run leaves nothing that looks
    finished. Called again after a cut, it goes on with the images that are not there yet.

    Parameters
    ----------
    source : sources.Source
    images : DataFrame with IMAGE_COLUMNS and ``path``, for example ``manifest.scan(source).images``
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
    with alone(folder):
        return _found_or_built(folder, fingerprint, source, images, size, progress)


def _found_or_built(folder: Path, fingerprint: str, source, images, size, progress: bool) -> PixelCache:
    if (folder / "cache.json").is_file():
        cache = open_cache(folder)
        if not _readable_by_now(source, images, cache.skipped):
            return cache
        _set_aside(folder)
    part = folder.with_name(f"{folder.name}.part")  # one name for all: another session, or machine, goes on with it
    with saving(folder):
        _sweep(folder.parent)
        part.mkdir(parents=True, exist_ok=True)
    try:
        _fill(part, source, images, size, progress)
        if _unread(pd.read_csv(part / "skipped.csv", dtype=str)).any() and source.fingerprint() != fingerprint:
            raise InputError(f"{source.path}: changed or vanished while it was read; run the same again when it is whole")
        write_json(part / "cache.json", {"size": list(size), "resampling": RESAMPLING, "made_from": str(source.path)})
        _rename(part, folder)
    except Exception:
        if (folder / "cache.json").is_file():  # another machine went on with it too, and finished first: use that one
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


def _sweep(root: Path) -> None:
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
        folder.rename(aside / folder.name)  # not removed in place: another run may have it mapped, or be opening it
    shutil.rmtree(aside, ignore_errors=True)


def _fill(part: Path, source, images: pd.DataFrame, size, progress: bool) -> None:
    shape = (len(images), size[1], size[0], 3)
    place = {name: row for row, name in enumerate(images["filename"])}
    pixels, sums = _opened(part / _ALL, shape, "uint8"), _opened(part / _SUMS, shape[:1], "uint32")
    # a checksum stands for "done": whatever a crash of the machine has kept of either, what does not agree is done again
    missing = np.array([not total or zlib.adler32(row) != total for row, total in zip(pixels, sums)])
    reasons = dict.fromkeys(images["filename"][missing], "not found when it was to be read")
    written = itertools.count(1)
    with open(part / _ALL, "r+b") as file:  # written, not through the map: a page fault for each 4 KiB takes longer
        for name, array, reason in decode_all(source, images[missing], size, progress=progress, label="Decode and resize"):
            reasons[name] = reason
            if array is not None:
                with saving(part):
                    file.seek(pixels.offset + place[name] * array.nbytes)
                    file.write(array)
                    if next(written) % 256 == 0:  # while others decode; at the end they would wait
                        os.fsync(file.fileno())
                sums[place[name]] = zlib.adler32(array)
                del reasons[name]
        with saving(part):
            file.flush()
            os.fsync(file.fileno())
    _close(part, images, pixels, ~images["filename"].isin(list(reasons)).to_numpy(), reasons, source)


def _opened(path: Path, shape, dtype: str) -> np.ndarray:
    """The array of an earlier run that was cut off, or a new one of zeros."""
    with contextlib.suppress(OSError, ValueError):
        array = np.load(path, mmap_mode="r+", allow_pickle=False)
        if array.shape == shape and array.dtype == dtype:
            return array
    return new_array(path, shape, dtype)


def _close(part: Path, images: pd.DataFrame, pixels: np.ndarray, good: np.ndarray, reasons: dict, source) -> None:
    if not good.any():
        first = min(reasons)
        raise InputError(f"{source.path}: none of the {len(images)} images can be decoded; first: {first}: {reasons[first]}")
    (part / "pixels.npy").unlink(missing_ok=True)  # of an earlier run that was cut off here
    if not good.all():
        kept = new_array(part / "pixels.npy", (int(good.sum()), *pixels.shape[1:]))
        for row, origin in enumerate(np.flatnonzero(good)):
            kept[row] = pixels[origin]
        kept.flush()
    write_csv(part / "images.csv", images[good])
    write_csv(part / "skipped.csv", pd.DataFrame(sorted(reasons.items()), columns=["filename", "reason"]))


def new_array(path, shape, dtype="uint8") -> np.ndarray:
    """A new .npy file of zeros, mapped for writing, whose room on the disk is taken at once.

    Without that, a disk that fills up would end the process by a signal (SIGBUS) while pixels are written.

    Raises
    ------
    InputError
        If the disk is too full.
    """
    with saving(path):
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return array


def batch_rows(n: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Which of n rows make up a training batch: an endless chain of permutations, cut into batches.

    Depends on nothing but its arguments, so that a run that was cut off goes on with the batch it would have had.
    Every row comes once before any comes twice.

    Returns
    -------
    int64 array (batch_size,) of positions in 0..n-1.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    orders = {number: _order(n, number, seed) for number in range(positions[0] // n, positions[-1] // n + 1)}
    return np.array([orders[position // n][position % n] for position in positions])


@functools.lru_cache(maxsize=8)
def _order(n: int, number: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, number]).permutation(n)
