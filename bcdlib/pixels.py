"""Pictures as arrays: decode, resize, the uint8 cache that training maps into memory, and batches from it."""

import collections
import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from bcdlib import manifest
from bcdlib.errors import InputError
from bcdlib.runs import alone, saving, write_csv, write_json
from bcdlib.sources import UNREADABLE

LARGEST_PICTURE = 50_000_000  # pixels; a declared size beyond this is damage or a decompression bomb
RESAMPLING = "lanczos"
CACHE_FORMAT = 1
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")  # Pillow knows more; to open some of them it starts other programs
PNG = b"\x89PNG\r\n\x1a\n"


def decode(content: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode one picture, and resize it with antialiasing (Lanczos) if a size is given.

    Pillow, because it says so when a file is cut off or damaged, where OpenCV may return half a picture.

    Parameters
    ----------
    content : bytes
        A PNG, JPEG, TIFF or BMP file.
    size : (width, height), optional

    Returns
    -------
    uint8 array (height, width, 3), RGB, 0..255.

    Raises
    ------
    ValueError
        If it cannot be decoded to 8-bit RGB; the message says why.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
            if picture.width * picture.height > LARGEST_PICTURE:
                raise ValueError(f"declares {picture.width}x{picture.height} pixels")
            if picture.mode.startswith(("I", "F")) or _sixteen_bit(content, picture):
                raise ValueError(f"not an 8-bit picture (mode {picture.mode})")
            _check_sums(content)
            frames = getattr(picture, "n_frames", 1)
            if frames > 1 and picture.format != "MPO":  # a phone's MPO: a JPEG with its own preview behind it
                raise ValueError(f"holds {frames} pictures, an animation or a stack")
            picture.load()
            if content[:8] == PNG and not any(picture.crop((0, picture.height - 1, *picture.size)).tobytes()):
                _check_length(content, picture.size)
            picture = ImageOps.exif_transpose(picture).convert("RGB")
    except UnidentifiedImageError:
        raise ValueError(f"cannot be decoded: not a PNG, JPEG, TIFF or BMP picture{_taken_for(content)}") from None
    except ValueError:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds on damaged input: SyntaxError, struct.error, ...
        raise ValueError(f"cannot be decoded ({type(error).__name__}: {error})".splitlines()[0]) from None
    if size is not None and picture.size != tuple(size):
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _sixteen_bit(content: bytes, picture: Image.Image) -> bool:
    # Pillow opens 16-bit colour as 8-bit without a word; the bit depth is byte 24 of every PNG, and tag 258 of a TIFF
    depths = picture.tag_v2.get(258, ()) if picture.format == "TIFF" else ()
    return (content[:8] == PNG and content[24:25] == b"\x10") or any(depth > 8 for depth in depths)


def _check_sums(content: bytes) -> None:
    """Refuse a PNG whose pixel data are not what was written: Pillow does not look at the checksums of their last part.

    The other formats have no checksums: what is wrong in them can pass for picture.
    """
    place = len(PNG) if content[: len(PNG)] == PNG else len(content)
    while place + 8 <= len(content):
        size, kind = int.from_bytes(content[place : place + 4]), content[place + 4 : place + 8]
        end = place + 8 + size
        if kind == b"IDAT" and zlib.crc32(memoryview(content)[place + 4 : end]).to_bytes(4) != content[end : end + 4]:
            raise ValueError("damaged: a checksum does not fit, or it is cut off")
        place = end + 4


_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _check_length(content: bytes, size: tuple[int, int]) -> None:
    """Refuse a PNG that has fewer rows than it declares: Pillow leaves the others black without a word.

    This unpacks it once more, hence only where the last row is black.
    """
    bits = content[24] * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[content[25]]
    passes = _ADAM7 if content[28] else ((0, 0, 1, 1),)
    wanted = 0
    for left, top, across, down in passes:
        columns, rows = -(-(size[0] - left) // across), -(-(size[1] - top) // down)
        wanted += rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0
    place, data = len(PNG), b""
    while place + 8 <= len(content):
        length = int.from_bytes(content[place : place + 4])
        data += content[place + 8 : place + 8 + length] if content[place + 4 : place + 8] == b"IDAT" else b""
        place += 12 + length
    if len(zlib.decompressobj().decompress(data, wanted)) < wanted:
        raise ValueError("damaged: it has fewer rows than it declares")


def _taken_for(content: bytes) -> str:
    start = content[:512].lstrip().lower()
    if not start:
        return "; it is empty"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return " but a web page; download it again"
    return " but a GIF" if start.startswith(b"gif8") else " but a PDF" if start.startswith(b"%pdf") else ""


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
        Threads; default: one a core. The pixels do not depend on it.

    Yields
    ------
    (filename, array, reason) : array as from `decode`, or None with the reason why not.
    """

    def work(item):
        name, content, reason = item
        if content is None:
            return name, None, reason
        try:
            return name, decode(content, size), ""
        except ValueError as error:
            return name, None, str(error)

    filenames = dict(zip(images["path"], images["filename"], strict=True))
    workers = workers or os.cpu_count() or 1
    pending = collections.deque()  # a bounded window: memory does not grow with the data set
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(images), desc=label, unit="image", disable=not progress) as bar,
    ):
        for item in source.read(list(filenames)):
            pending.append(pool.submit(work, item))
            if len(pending) >= 4 * workers:
                bar.update()
                name, *rest = pending.popleft().result()
                yield filenames[name], *rest
        while pending:
            bar.update()
            name, *rest = pending.popleft().result()
            yield filenames[name], *rest


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
        pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
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
    from bcdlib import sources

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

    The cache is written beside its final name and renamed when it is whole, so that a cut-off run leaves nothing
    that looks finished.

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
    with saving(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=folder.name + ".part-", dir=folder.parent))
    try:
        _fill(part, source, images, size, progress)
        if _unread(pd.read_csv(part / "skipped.csv", dtype=str)).any() and source.fingerprint() != fingerprint:
            raise InputError(f"{source.path}: changed or vanished while it was read; run the same again when it is whole")
        write_json(part / "cache.json", {"size": list(size), "resampling": RESAMPLING, "made_from": str(source.path)})
        try:
            part.rename(folder)
        except OSError:
            if not (folder / "cache.json").is_file():  # another run finished the same cache first: use that one
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return open_cache(folder)


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
    width, height = size
    shape = (len(images), height, width, 3)
    place = {name: row for row, name in enumerate(images["filename"])}
    reasons = dict.fromkeys(place, "not found when it was to be read")
    raw = part / "pixels.all.npy"
    pixels = new_array(raw, shape)
    for name, array, reason in decode_all(source, images, size, progress=progress, label="Decode and resize"):
        reasons[name] = reason
        if array is not None:
            pixels[place[name]] = array
            del reasons[name]
    good = ~images["filename"].isin(list(reasons)).to_numpy()
    if not good.any():
        first = min(reasons)
        raise InputError(f"{source.path}: none of the {len(images)} images can be decoded; first: {first}: {reasons[first]}")
    pixels.flush()
    if good.all():
        raw.rename(part / "pixels.npy")
    else:
        kept = new_array(part / "pixels.npy", (int(good.sum()), *shape[1:]))
        for row, origin in enumerate(np.flatnonzero(good)):
            kept[row] = pixels[origin]
        kept.flush()
        raw.unlink()
    write_csv(part / "images.csv", images[good])
    write_csv(part / "skipped.csv", pd.DataFrame(sorted(reasons.items()), columns=["filename", "reason"]))


def new_array(path, shape) -> np.ndarray:
    """A new uint8 .npy file of zeros, mapped for writing, whose room on the disk is taken at once.

    Without that, a disk that fills up would end the process by a signal (SIGBUS) while pixels are written.

    Raises
    ------
    InputError
        If the disk is too full.
    """
    with saving(path):
        array = np.lib.format.open_memmap(path, mode="w+", dtype="uint8", shape=shape)
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
    rounds = np.unique(positions // n)
    order = {number: np.random.default_rng([seed, number]).permutation(n) for number in rounds}
    return np.array([order[position // n][position % n] for position in positions])
