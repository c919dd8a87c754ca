"""The uint8 cache of a data set: each image decoded and resized once, then mapped into memory."""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from bcdlib.data import breakhis, decode, sources
from bcdlib.errors import InputError
from bcdlib.runs.files import (
    TEXTS,
    explain_disk_errors,
    local_copy,
    lock_path,
    make_cache_folder,
    read_json,
    write_csv,
    write_json,
)

CACHE_FORMAT = 3  # also to be raised where decode.RESAMPLING changes
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
    def fingerprint(self) -> str:
        """Hash of the images' names and content, whatever their source and size; it names the trials."""
        return self.folder.name.rsplit("-", 1)[-1]

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
            images=_read_images(folder),
            pixels=np.load(local_copy(folder / "pixels.npy"), mmap_mode="r", allow_pickle=False),
            skipped=pd.read_csv(folder / "skipped.csv", dtype=str),
        )
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{folder}: no readable pixel cache ({error}); run 02_preprocess first") from None


def _read_images(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "images.csv", dtype=TEXTS)


def resized_cache(cache: PixelCache, size: tuple[int, int]) -> PixelCache:
    """Open or build the cache of the same images at another (width, height), from the same source.

    Raises
    ------
    InputError
        If the source is no longer where it was, or its images are no longer those of this cache.
    """
    if tuple(size) == cache.size:
        return cache
    place = read_json(cache.folder / "cache.json")["made_from"]
    other = build_cache(
        sources.open_source(place), cache.images, size, root=cache.folder.parent, progress=False
    )
    same = _checksums(other.folder).reindex(cache.images["filename"]) == _checksums(cache.folder).reindex(
        cache.images["filename"]
    )
    if len(other.images) != len(cache.images) or not same.all():
        raise InputError(
            f"{place}: {max(len(other.skipped), int((~same).sum()))} images of {cache.folder} are no longer "
            "there, or have changed; preprocess again"
        )
    return other


def run_cache(run) -> PixelCache:
    """Open the cache that 02_preprocess recorded in a `folder.Run`; InputError if it has not run yet."""
    place = run.settings.get("cache")
    if place is None:
        raise InputError(
            f"{run.folder}: its images are not decoded yet; run 02_preprocess with this run first"
        )
    return open_cache(place)


def build_cache(
    source, images: pd.DataFrame, size: tuple[int, int], *, root, progress: bool = True
) -> PixelCache:
    """Decode and resize every image once, or open this very cache if it is there already.

    Whether it is there is asked by names and sizes, and by the checksums that an archive carries. A folder
    with other times of change than the one that was decoded (a second download) is read and compared by
    CRC-32, but not decoded again. Times never make two data sets one, nor one two.

    The cache is written under another name and renamed when it is whole, so that a run that was cut off
    leaves nothing that looks finished; the next run begins anew.

    Parameters
    ----------
    source : sources.Source
    images : DataFrame
        With IMAGE_COLUMNS and ``path``, for example ``breakhis.scan_breakhis(source).images``.
    size : (width, height)
    root : path-like
        Folder that holds caches.

    Returns
    -------
    PixelCache
        In ``<root>/pixels-<size>-v<format>-<fingerprint>``.

    Raises
    ------
    InputError
        If not one image can be decoded, the source vanishes while it is read, or the disk is full.
    """
    root, fingerprint, modified = Path(root), source.fingerprint(), source.modified()
    facts = [CACHE_FORMAT, list(size), fingerprint, images["path"].tolist(), _known_images(images)]
    note = f"source-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.json"
    # unfinished; each machine has one of its own, and the lock makes the machine's processes take turns
    part = root / f"pixels-{note[7:-5]}.{platform.node()}.part"
    with lock_path(root / note), explain_disk_errors(root):
        for left in root.glob("pixels-*.part"):  # by machines that never came back
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _STALE:
                    shutil.rmtree(left)
        shutil.rmtree(part, ignore_errors=True)  # of a run that was cut off
        for known in sorted(root.glob(f"pixels-*/{note}")):
            # a damaged one is made anew
            with contextlib.suppress(OSError, ValueError, KeyError):
                if (known.parent / "cache.json").is_file() and _holds(known, source, images, progress):
                    return open_cache(known.parent)
        folder = part
        try:
            make_cache_folder(root)
            part.mkdir()
            checksums, second = _decode_into(part, source, images, size, progress)
            if checksums["crc32"].isna().any() and source.fingerprint() != fingerprint:
                raise InputError(
                    f"{source.path}: changed or vanished while it was read; run the same again when it "
                    "is whole"
                )
            folder = root / f"pixels-{size[0]}x{size[1]}-v{CACHE_FORMAT}-{_fingerprint(images, checksums)}"
            write_json(part / note, {"modified": modified, "second": second})
            write_json(
                part / "cache.json",
                {"size": list(size), "resampling": decode.RESAMPLING, "made_from": str(source.path)},
            )
            if (folder / "cache.json").is_file():  # made from another source, or by another machine
                for file in sorted(part.iterdir(), key=lambda file: file.name == "cache.json"):
                    file.replace(folder / file.name)
            else:
                part.rename(folder)
        except OSError:
            if not (folder / "cache.json").is_file():  # else another machine has finished first: use that one
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return open_cache(folder)


class _Summing:
    """A source that notes the CRC-32 of each file that is read through it, by its path."""

    def __init__(self, source):
        self.source, self.any_order, self.path = source, source.any_order, source.path
        self.sums: dict[str, int] = {}
        self.names = source.names

    def read(self, names, **again):
        for name, content, reason in self.source.read(names, **again):
            if content is not None:
                self.sums[name] = zlib.crc32(content)
            yield name, content, reason


def _checksums(folder: Path) -> pd.Series:
    """CRC-32 of the files that a cache was made from, by filename; NaN where one could not be read."""
    return pd.read_csv(folder / "checksums.csv", dtype={"filename": str}).set_index("filename")["crc32"]


def _fingerprint(images: pd.DataFrame, checksums: pd.DataFrame) -> str:
    """Hash names and content of images; of those that are not BreakHis's also what their manifest says."""
    facts = _known_images(images) + checksums.to_csv(index=False)
    return "d" + hashlib.sha256(facts.encode()).hexdigest()[:12]  # never to be read as a number


def _known_images(images: pd.DataFrame) -> str:
    """Write down what is known of images: of BreakHis's everything follows from the names."""
    columns = ["filename"] if breakhis.is_breakhis(images) else breakhis.IMAGE_COLUMNS
    return images[columns].to_csv(index=False)


def _holds(note: Path, source, images: pd.DataFrame, progress: bool) -> bool:
    """Whether the cache with this note was made from what the source holds now; if so, note where it lies."""
    folder, facts, modified = note.parent, read_json(note), source.modified()
    second = images["filename"].map(facts.get("second", {}))
    images = images.assign(path=second.where(second.notna(), images["path"]))
    checksums = _checksums(folder)
    unread = images.loc[images["filename"].map(checksums).isna(), "path"].tolist()
    if unread and any(content is not None for _, content, _ in source.read(unread)):
        return False  # the file system gives an image now that it did not give then
    if facts["modified"] != modified:
        if not _same_content(source, images, checksums, progress):
            return False
        write_json(note, facts | {"modified": modified})
    used = _read_images(folder)
    paths = images.set_index("filename")["path"].reindex(used["filename"]).to_numpy()
    if (used["path"] != paths).any():
        write_csv(folder / "images.csv", used.assign(path=paths))
    made = read_json(folder / "cache.json")
    if made["made_from"] != str(source.path):
        write_json(folder / "cache.json", made | {"made_from": str(source.path)})
    return True


def _same_content(source, images: pd.DataFrame, checksums: pd.Series, progress: bool) -> bool:
    """Whether the files have the checksums of those that were decoded; reads them all, several at once."""
    summing, paths = _Summing(source), images["path"].tolist()
    groups = [paths[start : start + 16] for start in range(0, len(paths), 16)]
    bar = tqdm(total=len(paths), desc="Compare with the cache", unit="image", disable=not progress)
    with ThreadPoolExecutor(8) as pool, bar:  # more than cores: on a mounted Drive each file is waited for
        # an archive is read in one pass
        several = pool.map(lambda group: sum(1 for _ in summing.read(group)), groups)
        for number in several if source.any_order else (1 for _ in summing.read(paths)):
            bar.update(number)
    found = images.set_index("filename")["path"].map(summing.sums)
    return bool((found.eq(checksums) | checksums.isna()).all())


def _decode_into(
    part: Path, source, images: pd.DataFrame, size, progress: bool
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Write pixels.npy and the tables images, skipped and checksums.

    Return the last, and the paths of second copies that were used, by filename.
    """
    pixels = allocate_array(part / "all.npy", (len(images), size[1], size[0], 3))
    place = {name: row for row, name in enumerate(images["filename"])}
    reasons = dict.fromkeys(images["filename"], "not found when it was to be read")
    first, summing = dict(zip(images["filename"], images["path"])), _Summing(source)
    second: dict[str, str] = {}
    decoded = decode.decode_known(summing, images, size, progress=progress, label="Decode and resize")
    # written, not through the map: a page fault for each 4 KiB takes longer
    with open(part / "all.npy", "r+b") as file:
        for number, (name, path, array, reason) in enumerate(decoded):
            reasons[name] = reason
            if path != first[name]:
                second[name] = path
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
    images = images.assign(path=images["filename"].map(first | second))
    sums = images["path"].map(summing.sums).astype("Int64")
    checksums = images[["filename"]].assign(crc32=sums)
    write_csv(part / "images.csv", images[good])
    write_csv(part / "skipped.csv", skipped)
    write_csv(part / "checksums.csv", checksums)
    return checksums.assign(used=good), second


def allocate_array(path, shape: tuple[int, ...]) -> np.memmap:
    """Create a .npy file of zeros, uint8, mapped for writing, and take its room on the disk at once.

    Without that, a disk that fills up would end the process by a signal (SIGBUS) while pixels are written.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype="uint8", shape=shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return array
