"""The uint8 cache of a data set: each image decoded and resized once, then mapped into memory."""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bcdlib.data import breakhis, decode, sources
from bcdlib.errors import InputError
from bcdlib.runs.files import explain_disk_errors, local_copy, lock_path, write_csv, write_json

CACHE_FORMAT = 2
_STALE = 24 * 3600  # seconds; nobody decodes for a day


@dataclass(frozen=True)
class PixelCache:
    """All usable images of a source, decoded and resized once.

    Attributes
    ----------
    folder : pathlib.Path
    images : DataFrame
        One row an image in the order of the pixels: breakhis.IMAGE_COLUMNS and the author's folds.
    pixels : uint8 array (N, height, width, 3)
        RGB, mapped from disk, read-only.
    skipped : DataFrame
        ``filename`` and ``reason`` of the images that could not be read.
    """

    folder: Path
    images: pd.DataFrame
    pixels: np.ndarray
    skipped: pd.DataFrame

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the cached images."""
        return self.pixels.shape[2], self.pixels.shape[1]

    def rows(self, filenames) -> np.ndarray:
        """Find the positions of file names in `pixels`.

        Parameters
        ----------
        filenames : iterable of str

        Returns
        -------
        int64 array (n,)

        Raises
        ------
        InputError
            If a name is not cached.
        """
        filenames = pd.Index(list(filenames))
        index = pd.Index(self.images["filename"]).get_indexer(filenames)
        missing = filenames[index < 0]
        if len(missing):
            raise InputError(
                f"{missing[0]}: not among the cached images ({len(missing)} such names); preprocess again"
            )
        return index


def cache_key(fingerprint: str, images: pd.DataFrame, size: tuple[int, int]) -> str:
    """Name the cache made from a source with this fingerprint, of these images, at this (width, height)."""
    recipe = [CACHE_FORMAT, fingerprint, images["path"].tolist(), list(size), decode.RESAMPLING]
    if not breakhis.is_breakhis(images):  # class and group do not follow from the name: the cache keeps them
        recipe.append(images.to_csv(index=False))
    return f"pixels-{size[0]}x{size[1]}-{hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]}"


def open_cache(folder) -> PixelCache:
    """Map a finished cache into memory.

    Raises
    ------
    InputError
        If there is no finished cache in this folder.
    """
    folder = Path(folder)
    try:
        return PixelCache(
            folder,
            images=pd.read_csv(folder / "images.csv", dtype={"slide": str, "case": str}),
            pixels=np.load(local_copy(folder / "pixels.npy"), mmap_mode="r", allow_pickle=False),
            skipped=pd.read_csv(folder / "skipped.csv", dtype=str),
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no readable pixel cache ({error}); run 02_preprocess first") from None


def resized_cache(cache: PixelCache, size: tuple[int, int], progress: bool = False) -> PixelCache:
    """Open or build the cache of the same images at another (width, height), from the same source.

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
    """Open the cache that 02_preprocess recorded in a `folder.Run`; InputError if it has not run yet."""
    return open_cache(run.settings.get("cache", run.folder / "cache"))


def build_cache(
    source, images: pd.DataFrame, size: tuple[int, int], *, root, progress: bool = True
) -> PixelCache:
    """Decode and resize every image once, or open this very cache if it is there already.

    The cache is written beside its final name and renamed when it is whole, so that a run that was cut off
    leaves nothing that looks finished; the next run begins anew.

    Parameters
    ----------
    source : sources.Source
    images : DataFrame
        With IMAGE_COLUMNS and ``path``, for example ``breakhis.scan_breakhis(source).images``.
    size : (width, height)
    root : path-like
        Folder that holds caches.

    Raises
    ------
    InputError
        If not one image can be decoded, the source vanishes while it is read, or the disk is full.
    """
    fingerprint = source.fingerprint()
    folder = Path(root) / cache_key(fingerprint, images, size)
    # unfinished; each machine has one of its own, and the lock makes the machine's processes take turns
    part = folder.with_name(f"{folder.name}.{platform.node()}.part")
    with lock_path(folder), explain_disk_errors(folder):
        for left in folder.parent.glob("pixels-*.part"):  # by machines that never came back
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _STALE:
                    shutil.rmtree(left)
        shutil.rmtree(part, ignore_errors=True)  # of a run that was cut off
        if (folder / "cache.json").is_file():
            cache = open_cache(folder)
            if not _readable_by_now(source, images, cache.skipped):
                return cache
            with contextlib.suppress(OSError):  # another machine did it first
                folder.rename(part)  # not removed in place: another run may have it mapped, or be opening it
                shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir(parents=True)
            skipped = _decode_into(part, source, images, size, progress)
            if (
                skipped["reason"].str.startswith(sources.UNREADABLE).any()
                and source.fingerprint() != fingerprint
            ):
                raise InputError(
                    f"{source.path}: changed or vanished while it was read; run the same again when it "
                    "is whole"
                )
            write_json(
                part / "cache.json",
                {"size": list(size), "resampling": decode.RESAMPLING, "made_from": str(source.path)},
            )
            part.rename(folder)
        except OSError:
            if not (folder / "cache.json").is_file():  # else another machine has finished first: use that one
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return open_cache(folder)


def _readable_by_now(source, images: pd.DataFrame, skipped: pd.DataFrame) -> bool:
    """Whether the file system gives an image now that it did not give when the cache was made."""
    names = skipped.loc[skipped["reason"].str.startswith(sources.UNREADABLE), "filename"]
    paths = images.loc[images["filename"].isin(names), "path"].tolist()
    return any(content is not None for _, content, _ in source.read(paths)) if paths else False


def _decode_into(part: Path, source, images: pd.DataFrame, size, progress: bool) -> pd.DataFrame:
    """Write pixels.npy, images.csv and skipped.csv; return what was skipped."""
    pixels = allocate_array(part / "all.npy", (len(images), size[1], size[0], 3))
    place = {name: row for row, name in enumerate(images["filename"])}
    reasons = dict.fromkeys(images["filename"], "not found when it was to be read")
    decoded = decode.decode_all(source, images, size, progress=progress, label="Decode and resize")
    # written, not through the map: a page fault for each 4 KiB takes longer
    with open(part / "all.npy", "r+b") as file:
        for number, (name, array, reason) in enumerate(decoded):
            reasons[name] = reason
            if array is not None:
                file.seek(pixels.offset + place[name] * array.nbytes)
                file.write(array.data)
                del reasons[name]
            if number % 256 == 255:  # while others decode; at the end they would wait
                os.fsync(file.fileno())
        file.flush()
        os.fsync(file.fileno())
    good = ~images["filename"].isin(list(reasons)).to_numpy()
    if not good.any():
        first = min(reasons)
        raise InputError(
            f"{source.path}: none of the {len(images)} images can be decoded; first: {first}: "
            f"{reasons[first]}"
        )
    if good.all():
        (part / "all.npy").rename(part / "pixels.npy")
    else:
        kept = allocate_array(part / "pixels.npy", (int(good.sum()), *pixels.shape[1:]))
        np.take(pixels, np.flatnonzero(good), axis=0, out=kept, mode="clip")  # "raise" would copy all of it
        kept.flush()
        (part / "all.npy").unlink()
    skipped = pd.DataFrame(sorted(reasons.items()), columns=["filename", "reason"], dtype=str)
    write_csv(part / "images.csv", images[good])
    write_csv(part / "skipped.csv", skipped)
    return skipped


def allocate_array(path, shape: tuple[int, ...], dtype: str = "uint8") -> np.memmap:
    """Create a .npy file of zeros, mapped for writing, and take its room on the disk at once.

    Without that, a disk that fills up would end the process by a signal (SIGBUS) while pixels are written.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return array
