"""Decode image files to 8-bit RGB, refuse damaged ones, resize; one by one, or many on all cores."""

import contextlib
import functools
import io
import itertools
import os
import threading
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from bcdlib.data import breakhis, sources

try:  # only faster: the same pixels come out without it
    import imagecodecs
except ImportError:
    imagecodecs = None  # type: ignore[assignment]

LARGEST_PIXELS = 50_000_000  # pixels; a declared size beyond this is damage or a decompression bomb
MOST_SCANS = 100  # of a JPEG; a progressive one has about ten
MOST_PARTS = 100_000  # chunks of a PNG, segments of a JPEG's head; each costs time
RESAMPLING = "lanczos, gap 2"
PNG = b"\x89PNG\r\n\x1a\n"
_MATTERS = (b"tRNS", b"eXIf", b"acTL")  # chunks that change what a PNG shows: for Pillow
# what stands at the beginning of other files, in small letters
_TAKEN_FOR = {
    **dict.fromkeys((b"<!doctype", b"<html"), " but a web page; download it again"),
    b"version https://git-lfs": " but a pointer of Git LFS; fetch the images themselves: git lfs pull",
    **dict.fromkeys((b"<svg", b"<?xml"), " but an SVG or other XML"),
    **dict.fromkeys((b"ftypheic", b"ftypmif1", b"ftypheix"), " but a HEIC; save it as PNG"),
    b"ftypavif": " but an AVIF; save it as PNG",
    b"webpvp8": " but a WebP; save it as PNG",
    b"jp  \r\n\x87\n": " but a JPEG 2000; save it as PNG",
    b"8bps": " but a Photoshop file; save it as PNG",
    b"\0dicm": " but a DICOM file; save it as PNG",
    b"gif8": " but a GIF; save it as PNG",
    b"%pdf": " but a PDF",
}
_BAND = 8  # rows or columns that one matrix product makes: the fewer, the fewer zeros, and the more products


def decode_image(content: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode one image, and resize it if a size is given; see `resize_image`.

    A plain 8-bit RGB PNG, as all of BreakHis's are, by libspng (imagecodecs): of what was measured on 29
    original images (566 kB each) on one core, the fastest that lets other threads run: libspng 200 images/s,
    PyAV 198, OpenCV and TensorFlow 150, Pillow 136. (GDAL reaches 276, but is a system for maps; kornia-rs
    372 and pyspng 218 hold the interpreter's lock.) All else, and what libspng does not take, by Pillow,
    which says why. Both refuse a file that is cut off or damaged, where OpenCV may return half an image.

    Parameters
    ----------
    content : bytes
        A PNG, JPEG, TIFF or BMP file.
    size : (width, height), optional

    Returns
    -------
    uint8 array (height, width, 3), RGB, 0..255

    Raises
    ------
    ValueError
        If it cannot be decoded to 8-bit RGB; the message says why.

    Examples
    --------
    >>> import cv2
    >>> content = cv2.imencode(".png", np.full((4, 6, 3), 200, "uint8"))[1].tobytes()
    >>> decode_image(content, (3, 2)).shape
    (2, 3, 3)
    """
    array = decode_once(content)
    return array.copy() if size is None else resize_image(array, size)


def decode_once(content: bytes) -> np.ndarray:
    """Decode one image, perhaps into memory that this thread's next call uses again."""
    content = _without_texts(content)
    array = _decode_plain_png(content)
    return _decode_any(content) if array is None else array


warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # refused below, with a reason
_own = threading.local()


def _scratch(name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Memory of this thread, used again: to get it anew for each image costs a tenth of the decoding."""
    found = getattr(_own, name, None)
    if found is None or found.shape != shape:
        found = np.empty(shape, dtype)
        if found.nbytes <= 2**25:  # larger memory is not kept
            setattr(_own, name, found)
    return found


def _decode_plain_png(content: bytes) -> np.ndarray | None:
    if imagecodecs is None or content[:16] != PNG + b"\0\0\0\rIHDR" or content[24:29] != b"\x08\x02\0\0\0":
        return None  # of another kind: 8 bits, RGB, not interlaced
    width, height = int.from_bytes(content[16:20]), int.from_bytes(content[20:24])
    chunks = list(_chunks(content))
    if not 0 < width * height <= LARGEST_PIXELS or any(kind in _MATTERS for kind, _, _ in chunks):
        return None
    # libspng looks at the others' sums
    _check_sums(content, [chunk for chunk in chunks if chunk[0] == b"IDAT"][-1:])
    try:
        return imagecodecs.spng_decode(content, out=_scratch("image", (height, width, 3), "uint8"))
    except Exception:  # whatever it is, Pillow finds a better word for it
        return None


def _decode_any(content: bytes) -> np.ndarray:
    try:
        tags = _tiff_tags(content)
        if tags.get(259) in _PACKED_TILES:
            return _decode_tiles(content, tags)
        _check_head(content)
        # Pillow knows more formats; to open some of them it starts other programs
        image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "TIFF", "BMP"))
        _check_size(image.width, image.height)
        # Pillow opens 16-bit colour as 8-bit without a word; the depth is byte 24 of a PNG, tag 258 of a TIFF
        tags = {258: content[24:25]} if content[:8] == PNG else tags
        if image.mode.startswith(("I", "F")) or any(depth > 8 for depth in tags.get(258, ())):
            raise ValueError(f"not an 8-bit image (mode {image.mode})")
        _check_sums(content, _chunks(content))
        _check_frames(image)
        _check_scans(content, image, tags)
        image.load()
        if content[:8] == PNG and not any(image.crop((0, image.height - 1, *image.size)).tobytes()):
            _check_length(content, image.size)
        return np.asarray(_on_white(ImageOps.exif_transpose(image)))
    except UnidentifiedImageError:
        if what := _tiff_kind(content):
            raise ValueError(f"cannot be decoded: {what}; save it as an 8-bit RGB TIFF or PNG") from None
        start = content[:512].lstrip().lower()
        what = (
            next((words for mark, words in _TAKEN_FOR.items() if mark in start[:140]), "")
            if start
            else "; it is empty"
        )
        raise ValueError(f"cannot be decoded: not a PNG, JPEG, TIFF or BMP image{what}") from None
    except ValueError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged input: SyntaxError, struct.error, ...
        raise ValueError(f"cannot be decoded ({type(error).__name__}: {error})".splitlines()[0]) from None


def _without_texts(content: bytes) -> bytes:
    """Leave out a PNG's texts and colour profile: a megabyte of them may unpack to a gigabyte."""
    kept, place = [], 0
    for kind, start, end in _chunks(content):
        if kind in (b"zTXt", b"iTXt", b"tEXt", b"iCCP"):
            kept.append(content[place : start - 4])
            place = end + 4
    return b"".join([*kept, content[place:]]) if kept else content


def _check_size(width: int, height: int) -> None:
    if width * height > LARGEST_PIXELS:
        raise ValueError(
            f"declares {width}x{height} pixels, more than {LARGEST_PIXELS // 10**6} million; cut it up"
        )


def _check_head(content: bytes) -> None:
    """Refuse a JPEG with millions of segments, or filling between them: they take minutes."""
    place = 2 if content[:2] == b"\xff\xd8" else len(content)
    for _ in range(MOST_PARTS):
        if content[place : place + 1] != b"\xff" or content[place + 1 : place + 2] == b"\xda":
            return
        filling = content[place + 1 : place + 2] == b"\xff"
        place += 1 if filling else 2 + int.from_bytes(content[place + 2 : place + 4])
    raise ValueError(f"a JPEG of more than {MOST_PARTS} segments; save it anew")


def _check_frames(image: Image.Image) -> None:
    if image.format == "TIFF":  # to count its pages would read through all of them
        with contextlib.suppress(EOFError):
            image.seek(1)
            raise ValueError("holds several images, an animation or a stack")
    elif (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
        # a phone's MPO is a JPEG with its own preview behind it
        raise ValueError(f"holds {frames} images, an animation or a stack")


def _check_scans(content: bytes, image: Image.Image, tags) -> None:
    """Refuse a JPEG of very many scans, each of which costs as much time as a whole image."""
    parts = len(tags.get(324, tags.get(273, (0,)))) if image.format == "TIFF" else 1
    packed_as_jpeg = image.format in ("JPEG", "MPO") or tags.get(259) == 7
    if packed_as_jpeg and content.count(b"\xff\xda") > MOST_SCANS * parts:
        raise ValueError(f"a JPEG of more than {MOST_SCANS} scans; save it anew")


def _on_white(image: Image.Image) -> Image.Image:
    """Lay what is transparent on white, as slides are: viewers of whole slides export black underneath."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


# ---------------------------------------------------------------- TIFF

# compressions (tag 259) whose tiles are whole files that Pillow reads by themselves
_PACKED_TILES = {33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 50001: "WebP"}
_OTHER_PACKERS = {
    34892: "lossy JPEG (DNG)",
    34933: "PNG",
    34934: "JPEG XR",
    22610: "JPEG XR",
    50002: "JPEG XL",
}
_SAMPLES = {1: "whole numbers", 2: "signed numbers", 3: "floating point", 5: "complex", 6: "complex"}


def _tiff_tags(content: bytes) -> dict:
    """Read the tags of a TIFF's first image; {} if it is no TIFF."""
    if content[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return {}
    try:
        head = content[:16] if content[2] == 43 or content[3] == 43 else content[:8]
        directory = TiffImagePlugin.ImageFileDirectory_v2(head)
        file = io.BytesIO(content)
        file.seek(directory.next)
        directory.load(file)
        return {**directory, "next": directory.next}
    except Exception:  # damaged: whatever it is, Pillow says it when it opens the image
        return {}


def _tiff_kind(content: bytes) -> str:
    """Say what kind of TIFF cannot be read; "" if it is none."""
    tags = _tiff_tags(content)
    if not tags:
        return ""
    packer, bits = tags.get(259, 1), tags.get(258, (1,))
    if packer in _OTHER_PACKERS:
        return f"a TIFF packed by {_OTHER_PACKERS[packer]}"
    kind = _SAMPLES.get(tags.get(339, (1,))[0], "unknown samples")
    return f"a TIFF of compression {packer}, {len(bits)} samples of {bits[0]} bits ({kind})"


def _decode_tiles(content: bytes, tags) -> np.ndarray:
    """Decode a TIFF whose tiles, or strips, are JPEG 2000 or WebP, as scanners of whole slides write them."""
    width, height = tags.get(256), tags.get(257)
    across, down = tags.get(322, width), tags.get(323, tags.get(278, height))
    starts, sizes = (tags.get(324), tags.get(325)) if 324 in tags else (tags.get(273), tags.get(279))
    if not all(isinstance(side, int) and side > 0 for side in (width, height, across, down)) or not all(
        isinstance(places, tuple) for places in (starts, sizes)
    ):
        raise ValueError("damaged: it does not say how large it and its tiles are, and where")
    _check_size(width, height)
    if tags["next"]:
        raise ValueError("holds several images, an animation or a stack")
    if tags.get(284, 1) != 1 or len(tags.get(258, ())) not in (3, 4) or set(tags[258]) != {8}:
        raise ValueError(f"not an 8-bit RGB image, but {_tiff_kind(content)}")
    if -(-height // down) * -(-width // across) != len(starts):
        raise ValueError("damaged: it has more or fewer tiles than it declares")
    places = itertools.product(range(0, height, down), range(0, width, across))
    image = np.empty((height, width, 3), "uint8")
    for (top, left), start, size in zip(places, starts, sizes, strict=True):
        tile = Image.open(io.BytesIO(content[start : start + size]), formats=("JPEG2000", "WEBP"))
        wanted = (min(across, width - left), min(down, height - top))
        if not all(most >= has >= least for most, has, least in zip((across, down), tile.size, wanted)):
            raise ValueError(f"damaged: a tile of {tile.width}x{tile.height} pixels")
        _check_size(*tile.size)
        pixels = _on_white(tile)
        if tags[259] == 33003:  # Aperio's, whose colours are luminance and two differences
            pixels = Image.frombytes("YCbCr", tile.size, pixels.tobytes()).convert("RGB")
        image[top : top + down, left : left + across] = np.asarray(pixels)[: wanted[1], : wanted[0]]
    return image


# ---------------------------------------------------------------- resizing


def resize_image(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize with antialiasing: halve (means of 2x2) while four times the wanted size is there, then Lanczos.

    As Pillow's ``resize(size, LANCZOS, reducing_gap=2.0)``, whose documentation calls the difference from
    Lanczos alone hardly visible. OpenCV halves; Lanczos is a product with a banded matrix each way, in
    float32 and rounded once (Pillow rounds and clips between the ways). From 700x460 to 144x96 that takes 0.4
    ms on one core where Pillow's Lanczos takes 3.1 (with the gap 1.4) and OpenCV's area mean 1.0; decoding
    takes 5.

    Parameters
    ----------
    array : uint8 (height, width, 3)
    size : (width, height), at least 1 each

    Returns
    -------
    uint8 array (size[1], size[0], 3), in memory of its own
    """
    height, width, channels = array.shape
    while min(height / size[1], width / size[0]) >= 4:
        width, height = width // 2, height // 2
        array = cv2.resize(
            array,
            (width, height),
            dst=_scratch(f"half {width}", (height, width, channels), "uint8"),
            interpolation=cv2.INTER_LINEAR_EXACT,  # means of 2x2
        )
    if (width, height) == tuple(size):
        return array.copy()
    rows = _scratch("rows", (height, width * channels), "float32")
    np.copyto(rows, array.reshape(height, -1))
    down = _scratch("down", (width * channels, size[1]), "float32")  # turned, so that the columns come first
    for made, wanted, weights in _bands(height, size[1]):
        np.matmul(rows[wanted].T, weights.T, out=down[:, made])
    columns = down.reshape(width, channels * size[1])
    across = _scratch("across", (size[0], channels * size[1]), "float32")
    for made, wanted, weights in _bands(width, size[0]):
        np.matmul(weights, columns[wanted], out=across[made])
    turned = np.rint(across, out=across).clip(0, 255, out=across).astype("uint8")
    return cv2.transpose(turned.reshape(-1, size[1])).reshape(size[1], size[0], channels)


@functools.lru_cache(maxsize=64)
def _bands(old: int, new: int) -> list[tuple[slice, slice, np.ndarray]]:
    """Cut the matrix of a Lanczos-3 resize into bands: which rows each makes, from which, by what weights."""
    stretch = max(old / new, 1)
    distance = (np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * old / new) / stretch
    matrix = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    matrix = (matrix / matrix.sum(1, keepdims=True)).astype("float32")
    bands = []
    for first in range(0, new, _BAND):
        part = matrix[first : first + _BAND]
        made, used = slice(first, first + len(part)), np.flatnonzero(part.any(axis=0))
        wanted = slice(int(used[0]), int(used[-1]) + 1)
        bands.append((made, wanted, np.ascontiguousarray(part[:, wanted])))
    return bands


# ---------------------------------------------------------------- damage


def _chunks(content: bytes):
    """Yield kind, first byte of the kind and end of the data of each chunk of a PNG, as far as present."""
    place, number = len(PNG) if content[: len(PNG)] == PNG else len(content), 0
    while place + 8 <= len(content):
        if (number := number + 1) > MOST_PARTS:
            raise ValueError(f"a PNG of more than {MOST_PARTS} chunks; save it anew")
        end = place + 8 + int.from_bytes(content[place : place + 4])
        yield content[place + 4 : place + 8], place + 4, end
        place = end + 4


def _check_sums(content: bytes, chunks) -> None:
    """Refuse a PNG whose pixel data are not what was written: decoders skip the checksum of the last part.

    The other formats have no checksums: what is wrong in them can pass for an image.
    """
    for kind, start, end in chunks:
        if (
            kind == b"IDAT"
            and zlib.crc32(memoryview(content)[start:end]).to_bytes(4) != content[end : end + 4]
        ):
            raise ValueError("damaged: a checksum does not fit, or it is cut off")


_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _check_length(content: bytes, size: tuple[int, int]) -> None:
    """Refuse a PNG that has fewer rows than it declares: Pillow leaves the others black without a word.

    This unpacks it once more, hence only where the last row is black.
    """
    bits = content[24] * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[content[25]]
    wanted = 0
    for left, top, across, down in _ADAM7 if content[28] else ((0, 0, 1, 1),):
        columns, rows = -(-(size[0] - left) // across), -(-(size[1] - top) // down)
        wanted += rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0
    data = b"".join(content[start + 4 : end] for kind, start, end in _chunks(content) if kind == b"IDAT")
    if len(zlib.decompressobj().decompress(data, wanted)) < wanted:
        raise ValueError("damaged: it has fewer rows than it declares")


# ---------------------------------------------------------------- many images


def decode_all(
    source, images: pd.DataFrame, size=None, *, workers: int | None = None, label="Decode", progress=True
) -> Iterator[tuple[str, np.ndarray | None, str]]:
    """Decode many images of a `sources.Source` on all cores, in the order in which they are stored.

    Of a name that comes twice in an archive, the second copy is decoded where the first cannot be; such
    images, and those that cannot be decoded at all, come last.

    Parameters
    ----------
    images : DataFrame
        With the columns ``filename`` and ``path`` (inside the source).
    size : (width, height), optional
        As in `decode_image`.
    workers : int, optional
        Threads; default: one a core that this process may use. The pixels do not depend on it.
    label : str
        What the progress bar is called.

    Yields
    ------
    (filename, array, reason) : array as from `decode_image`, or None with the reason why not
    """
    failed = {}
    for name, array, reason in _decode_pass(source, images, size, workers or count_cores(), label, progress):
        if array is None and not source.any_order:
            failed[name] = reason
        else:
            yield name, array, reason
    if failed:  # an archive may hold a sound second copy of a damaged file
        part = images[images["filename"].isin(failed)]
        for name, array, _ in _decode_pass(source, part, size, 1, label, False, copy=1):
            if array is not None:
                del failed[name]
                yield name, array, ""
    yield from ((name, None, reason) for name, reason in failed.items())


def decode_known(source, images: pd.DataFrame, size=None, **options) -> Iterator[tuple]:
    """Decode images as `decode_all`, and in place of a damaged BreakHis image a sound one of its name.

    Yields
    ------
    (filename, path, array, reason) : path is that of the file that was decoded, or could not be
    """
    paths, failed = dict(zip(images["filename"], images["path"], strict=True)), {}
    for name, array, reason in decode_all(source, images, size, **options):
        if array is None:
            failed[name] = reason
        else:
            yield name, paths[name], array, ""
    others = breakhis.other_copies(source, images[images["filename"].isin(failed)])
    for _, part in others.groupby(others.groupby("filename").cumcount()):  # the best first
        part = part[part["filename"].isin(failed)]
        found = dict(zip(part["filename"], part["path"], strict=True))
        for name, array, _ in decode_all(source, part, size, progress=False):
            if array is not None:
                del failed[name]
                yield name, found[name], array, ""
    yield from ((name, paths[name], None, reason) for name, reason in failed.items())


def _decode_pass(source, images: pd.DataFrame, size, workers: int, label: str, progress: bool, **again):
    """Decode each image once; in an archive, `again` says which copy of it."""
    filenames = dict(zip(images["path"], images["filename"], strict=True))
    members = (
        [(path, None, "") for path in filenames]
        if source.any_order
        else source.read(list(filenames), **again)
    )

    def work(group):
        if source.any_order:
            group = source.read([path for path, _, _ in group])
        return [(filenames[path], *_decoded(content, reason, size)) for path, content, reason in group]

    pending: list[Future] = []  # bounded: memory does not grow with the data set
    with (
        threadpool_limits(1, "blas"),
        contextlib.ExitStack() as afterwards,
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(images), desc=label, unit="image", disable=not progress) as bar,
    ):
        # OpenCV and BLAS do without threads of their own: where all cores are at work, they only take time
        afterwards.callback(cv2.setNumThreads, cv2.getNumThreads())
        cv2.setNumThreads(1)
        # the empty groups push the last ones out
        for group in itertools.chain(_groups(members), [[]] * 2 * workers):
            pending.append(pool.submit(work, group))
            if len(pending) > 2 * workers:
                for found in pending.pop(0).result():
                    bar.update()
                    yield found


def _decoded(content: bytes | None, reason: str, size) -> tuple[np.ndarray | None, str]:
    """Decode what was read: (array, "") or (None, why there is none)."""
    if content is None:
        return None, reason
    try:
        return decode_image(content, size), reason
    except ValueError as error:
        return None, str(error)


def _groups(members) -> Iterator[list]:
    """Yield a few members at a time, of a few MiB: one by one they cost a worker a tenth of its time."""
    group, total = [], 0
    for member in members:
        group.append(member)
        total += len(member[1] or b"")
        if len(group) == 8 or total >= 2**22:
            yield group
            group, total = [], 0
    yield group


def decode_files(files, size=None, progress: bool = True) -> Iterator[tuple[str, np.ndarray | None, str]]:
    """Decode images that a user names, on all cores.

    Parameters
    ----------
    files : paths
        Of images, and of folders or archives, whose images are all decoded; in any mixture.
    size : (width, height), optional
        As in `decode_image`.

    Yields
    ------
    (path, array, reason) : as from `decode_all`; of an image inside a folder or archive the path goes through
    it
    """
    for container, group in itertools.groupby(dict.fromkeys(map(Path, files)), sources.is_container):
        paths = list(group)
        for source in map(sources.open_source, paths) if container else [sources.FolderSource(Path())]:
            names = source.names() if container else list(map(str, paths))
            images = pd.DataFrame({"filename": [str(source.path / name) for name in names], "path": names})
            yield from decode_all(source, images, size, progress=progress)
            yield from ((str(source.path / name), None, reason) for name, reason in source.left_out)


def count_cores() -> int:
    """Count the cores that this process may use; at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
