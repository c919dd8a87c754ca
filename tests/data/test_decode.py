"""Decoding and resizing against Pillow, and damaged and odd images."""

import io
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from bcdlib.data import decode, sources
from bcdlib.data.breakhis import scan_breakhis
from tests.faulty import encode

SIZE = (24, 20)


def noise(height=30, width=40, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth():
    y, x = np.mgrid[0:46, 0:70]
    return np.stack([x * 3, y * 5, (x + y) * 2], -1).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "JPEG"])
def test_decode_gives_the_pixels(kind):
    for array in (noise(), smooth()):
        content = encode(array, kind)
        decoded = decode.decode_image(content)
        assert decoded.dtype == np.uint8 and decoded.shape == array.shape
        assert np.array_equal(decoded, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
        if kind != "JPEG":  # lossless: what was put in comes out
            assert np.array_equal(decoded, array)
        assert np.array_equal(decode.decode_image(content, (array.shape[1], array.shape[0])), decoded)


def test_decode_real_images(breakhis):
    files = sorted((breakhis / "original").rglob("*.png"))
    assert len(files) == 29
    for file in files:
        with Image.open(file) as picture:
            assert np.array_equal(decode.decode_image(file.read_bytes()), np.asarray(picture))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
@pytest.mark.parametrize("make", [noise, smooth])
def test_truncated_is_refused_or_identical(kind, make):
    content = encode(make(), kind)
    whole = decode.decode_image(content)
    refused = 0
    for end in np.linspace(0, len(content) - 1, 20).astype(int):
        try:
            decoded = decode.decode_image(content[:end])
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert np.array_equal(decoded, whole)
    assert refused >= 15  # all but cuts behind the last pixel


def test_flipped_bytes_of_a_png_are_refused_or_harmless():
    content = encode(noise())
    whole = decode.decode_image(content)
    for place in np.linspace(0, len(content) - 1, 60).astype(int):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        try:
            decoded = decode.decode_image(bytes(damaged))
        except ValueError:
            continue
        assert np.array_equal(decoded, whole)


def test_other_8_bit_modes_become_rgb():
    array = noise()
    grey = array[..., 0]
    assert np.array_equal(decode.decode_image(encode(grey)), np.dstack([grey] * 3))
    palette = Image.fromarray(array // 64 * 64).quantize(64)
    assert palette.mode == "P"
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    assert np.array_equal(decode.decode_image(encode(palette)), colours[np.asarray(palette)])
    rgba = np.dstack([array, np.full(grey.shape, 255, np.uint8)])
    assert np.array_equal(decode.decode_image(encode(rgba)), array)
    bilevel = Image.fromarray(grey).convert("1")
    black_white = np.where(np.asarray(bilevel), 255, 0)
    assert np.array_equal(decode.decode_image(encode(bilevel)), np.dstack([black_white] * 3))
    for content in (encode(grey), encode(palette), encode(rgba), encode(bilevel)):
        decoded = decode.decode_image(content, SIZE)
        assert decoded.shape == (20, 24, 3) and decoded.dtype == np.uint8


@pytest.mark.parametrize("orientation, turn", [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_exif_rotation_is_applied(orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(smooth(), "JPEG", exif=exif, quality=95)
    upright = decode.decode_image(encode(smooth(), "JPEG", quality=95))
    assert np.array_equal(decode.decode_image(content), np.rot90(upright, turn))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"this is text\n" * 50,
        b"\x89PNG\r\n\x1a\n",
        encode(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50),
        encode(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50, "TIFF"),
        encode(np.arange(1200, dtype=np.int32).reshape(30, 40), "TIFF"),
        encode(np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40), "TIFF"),
    ],
    ids=["nothing", "text", "signature", "png16", "tiff16", "tiff32", "float"],
)
def test_not_an_8_bit_picture(content):
    for size in (None, SIZE):
        with pytest.raises(ValueError) as caught:
            decode.decode_image(content, size)
        assert str(caught.value) and "\n" not in str(caught.value)


def test_declared_size_beyond_reason_is_refused():
    content = bytearray(encode(Image.new("1", (8000, 8000))))  # 64 million pixels in a few kB
    with pytest.raises(ValueError, match="8000x8000"):
        decode.decode_image(bytes(content))


def lanczos(array, size):
    """Antialiased Lanczos-3, sinc(x) sinc(x/3) stretched by the scale, in float64 and rounded once.

    Before it means of 2x2, while four times the size is there.
    """

    def matrix(old, new):
        scale = old / new
        stretch = max(scale, 1)
        distance = (np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * scale) / stretch
        weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
        return weights / weights.sum(1, keepdims=True)

    array = array.astype(float)
    while min(array.shape[0] / size[1], array.shape[1] / size[0]) >= 4:
        array = array.reshape(array.shape[0] // 2, 2, array.shape[1] // 2, 2, 3).mean(axis=(1, 3))
    across = np.einsum("xw,hwc->hxc", matrix(array.shape[1], size[0]), array)
    return np.einsum("yh,hxc->yxc", matrix(array.shape[0], size[1]), across).round().clip(0, 255)


@pytest.mark.parametrize("size", [(24, 20), (80, 80), (7, 11), (40, 15), (10, 7), (70, 46)])
def test_resized_as_lanczos(size):
    for array in (noise(28), smooth()):
        resized = decode.decode_image(encode(array), size)
        assert resized.shape == (size[1], size[0], 3) and resized.dtype == np.uint8
        assert np.abs(resized - lanczos(array, size)).max() <= 1


def test_resized_much_as_pillow_does(breakhis):
    """Pillow's two steps; it rounds and clips between the ways, hence a few grey levels at sharp edges."""
    for file in sorted((breakhis / "original").rglob("*.png"))[::7]:
        with Image.open(file) as picture:
            expected = np.asarray(
                picture.resize((144, 96), Image.Resampling.LANCZOS, reducing_gap=2.0)
            ).astype(int)
        difference = np.abs(decode.decode_image(file.read_bytes(), (144, 96)) - expected)
        assert difference.mean() < 0.3 and (difference <= 2).mean() > 0.99


def test_resized_real_image(breakhis):
    file = sorted((breakhis / "original").rglob("*.png"))[0]
    with Image.open(file) as picture:
        array = np.asarray(picture)
    for size in ((144, 96), (224, 224), (72, 48)):
        assert np.abs(decode.decode_image(file.read_bytes(), size) - lanczos(array, size)).max() <= 1


def test_the_faster_decoder_changes_nothing(breakhis, monkeypatch):
    contents = [file.read_bytes() for file in sorted((breakhis / "original").rglob("*.png"))[::9]]
    expected = [decode.decode_image(content, (144, 96)) for content in contents]
    assert decode.imagecodecs is not None, "the faster decoder is not installed: this compares nothing"
    monkeypatch.setattr(decode, "imagecodecs", None)
    assert all(
        np.array_equal(decode.decode_image(*one), other)
        for one, other in zip(zip(contents, [(144, 96)] * 9), expected)
    )


def test_what_decode_gives_is_not_overwritten_by_the_next(breakhis):
    contents = [file.read_bytes() for file in sorted((breakhis / "original").rglob("*.png"))[:2]]
    for size in (None, (144, 96), (700, 460)):
        first = decode.decode_image(contents[0], size)
        before = first.copy()
        decode.decode_image(contents[1], size)
        assert np.array_equal(first, before)


def test_decode_all_does_not_depend_on_workers(tiny):
    source = sources.open_source(tiny)
    images = scan_breakhis(source).images
    runs = [list(decode.decode_all(source, images, SIZE, workers=w, progress=False)) for w in (1, 4)]
    assert [name for name, _, _ in runs[0]] == [name for name, _, _ in runs[1]]
    assert sorted(name for name, _, _ in runs[0]) == images["filename"].tolist()
    assert all(np.array_equal(one[1], other[1]) for one, other in zip(*runs, strict=True))
    full = {name: array for name, array, _ in decode.decode_all(source, images, workers=2, progress=False)}
    for file in tiny.rglob("*.png"):
        with Image.open(file) as picture:
            assert np.array_equal(full[file.name], np.asarray(picture))


def transparent(array):
    """The upper half of a picture; below it, as viewers of whole slides export, nothing on black."""
    alpha = np.zeros(array.shape[:2], "uint8")
    alpha[: len(array) // 2] = 255
    return np.dstack([array * (alpha > 0)[..., None], alpha])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_what_is_transparent_is_white(kind):
    array = noise()
    decoded = decode.decode_image(encode(transparent(array), kind))
    assert np.array_equal(decoded[:15], array[:15]) and (decoded[15:] == 255).all()
    half = np.dstack([np.zeros_like(array), np.full(array.shape[:2], 128, "uint8")])
    assert (np.abs(decode.decode_image(encode(half, kind)).astype(int) - 127) <= 1).all()


def test_transparent_palette_and_grey():
    palette = Image.fromarray(noise()).quantize(8)
    assert (decode.decode_image(encode(palette, transparency=bytes(8))) == 255).all()
    assert (decode.decode_image(encode(Image.new("LA", (9, 7), (0, 0)))) == 255).all()
    one = decode.decode_image(
        encode(Image.fromarray(np.arange(63, dtype="uint8").reshape(7, 9)), transparency=0)
    )
    assert (one[0, 0] == 255).all() and (one[0, 1] == 1).all()


def tiff(tiles: list[bytes], compression: int, width: int, height: int, tile: int, **tags) -> bytes:
    """A TIFF of one page whose tiles are packed by others; TIFF 6.0, section 15."""
    entries = {256: (width,), 257: (height,), 258: (8, 8, 8), 259: (compression,), 262: (2,), 277: (3,)}
    entries |= {322: (tile,), 323: (tile,), 324: (), 325: tuple(map(len, tiles)), 339: (1, 1, 1)}
    entries |= {int(key[1:]): value for key, value in tags.items()}
    start, data = 8 + 2 + 12 * len(entries) + 4, b"".join(tiles)
    entries[324] = tuple(start + sum(map(len, tiles[:number])) for number in range(len(tiles)))
    extra, body = start + len(data), b""
    rows = b""
    for tag, values in sorted(entries.items()):
        packed = struct.pack(f"<{len(values)}L", *values)
        if len(values) > 1:
            packed, body = struct.pack("<L", extra + len(body)), body + packed
        rows += struct.pack("<HHL", tag, 4, len(values)) + packed
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + bytes(4) + data + body


@pytest.mark.parametrize("kind, compression", [("JPEG2000", 33005), ("JPEG2000", 34712), ("WEBP", 50001)])
def test_tiles_of_slide_scanners(kind, compression):
    array = noise(50, 70)
    padded = np.pad(array, ((0, 14), (0, 26), (0, 0)))
    options = {"lossless": True} if kind == "WEBP" else {"irreversible": False, "no_jp2": True}
    tiles = [
        encode(padded[top : top + 32, left : left + 32], kind, **options)
        for top in (0, 32)
        for left in (0, 32, 64)
    ]
    assert np.array_equal(decode.decode_image(tiff(tiles, compression, 70, 50, 32)), array)
    big = encode(noise(64, 64), kind, **options)
    with pytest.raises(ValueError, match="a tile of 64x64"):
        decode.decode_image(tiff([big] * 6, compression, 70, 50, 32))
    with pytest.raises(ValueError, match="more or fewer tiles"):
        decode.decode_image(tiff(tiles, compression, 70, 50, 1))
    with pytest.raises(ValueError, match="declares 80000x50000 pixels, more than 50 million"):
        decode.decode_image(tiff(tiles, compression, 80000, 50000, 32))


@pytest.mark.parametrize(
    "tags, words",
    [
        ({"t259": (50002,)}, "packed by JPEG XL"),
        ({"t259": (1,), "t258": (32, 32, 32), "t339": (3, 3, 3)}, "3 samples of 32 bits .floating point."),
        ({"t259": (34933,)}, "packed by PNG"),
    ],
)
def test_other_tiffs_are_named(tags, words):
    with pytest.raises(ValueError, match=words):
        decode.decode_image(tiff([bytes(3 * 32 * 32 * 4)], 1, 32, 32, 32, **tags))


def chunk(kind, body):
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


@pytest.mark.parametrize(
    "kind, head", [(b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0"), (b"tEXt", b"k\0")]
)
def test_texts_of_a_png_are_not_unpacked(kind, head):
    """A megabyte of them would become a gigabyte."""
    text = chunk(kind, head + zlib.compress(bytes(10**6), 9)) * 1000
    for image in (Image.fromarray(noise()), Image.fromarray(noise()).quantize(9)):
        content = encode(image)
        tracemalloc.start()
        decoded = decode.decode_image(content[:33] + text + content[33:])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert np.array_equal(decoded, decode.decode_image(content)) and peak < 20 * 2**20


def test_pages_and_scans_cost_no_time():
    pages = [Image.new("L", (4, 4))] * 3000
    content = io.BytesIO()
    pages[0].save(content, "TIFF", save_all=True, append_images=pages[1:])
    picture = encode(smooth(), "JPEG", progressive=True)
    last = picture.rindex(b"\xff\xda")
    started = time.process_time()
    with pytest.raises(ValueError, match="holds several images"):
        decode.decode_image(content.getvalue())
    with pytest.raises(ValueError, match="more than 100 scans"):
        decode.decode_image(picture[:-2] + picture[last:-2] * 2000 + picture[-2:])
    assert time.process_time() - started < 1
    assert decode.decode_image(picture).shape == (46, 70, 3)


@pytest.mark.parametrize(
    "made, words",
    [
        (lambda jpeg, png: jpeg[:2] + b"\xff" * 30_000_000 + jpeg[2:], "a JPEG of more than 100000 segments"),
        (lambda jpeg, png: jpeg[:2] + b"\xff\xfe\0\2" * 2_000_000 + jpeg[2:], "more than 100000 segments"),
        (lambda jpeg, png: png[:33] + chunk(b"IDAT", b"") * 1_000_000 + png[33:], "more than 100000 chunks"),
        (lambda jpeg, png: png[:33] + chunk(b"prVt", b"") * 1_000_000 + png[33:], "more than 100000 chunks"),
    ],
)
def test_millions_of_small_parts_cost_no_time(made, words):
    content = made(encode(smooth(), "JPEG"), encode(smooth()))
    started = time.process_time()
    with pytest.raises(ValueError, match=words):
        decode.decode_image(content)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "start, kind",
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "an AVIF"),
        (bytes(128) + b"DICM", "a DICOM file"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"\n<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG"),
        (encode(smooth(), "WEBP"), "a WebP"),
        (encode(smooth(), "JPEG2000"), "a JPEG 2000"),
        (encode(smooth(), "GIF"), "a GIF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
    ],
)
def test_other_formats_under_an_images_name_are_told(start, kind):
    with pytest.raises(ValueError, match=f"not a PNG, JPEG, TIFF or BMP image but {kind}"):
        decode.decode_image(start)


@pytest.mark.parametrize("tag", [256, 257, 322, 323, 324, 325])
def test_tiles_that_say_nothing_of_themselves(tag):
    """Tags that are not there, or 0: one word for it, not Python's."""
    tags = {256: 32, 257: 32, 258: (8, 8, 8), 259: 34712, 262: 2, 322: 16, 323: 16, 324: 8, 325: 9}
    for value in (None, 0) if tag < 324 else (None,):
        made = {key: found for key, found in (tags | {tag: value}).items() if found is not None}
        if tag in (322, 323) and value is None:
            continue  # then it has strips
        content = io.BytesIO()
        entries = b""
        for key, found in sorted(made.items()):
            values = found if isinstance(found, tuple) else (found,)
            packed = struct.pack(f"<{len(values)}H", *values)
            where = (
                packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", 8 + 2 + 12 * len(made) + 4)
            )
            entries += struct.pack("<HHI", key, 3, len(values)) + where
        content.write(b"II*\0\x08\0\0\0" + struct.pack("<H", len(made)) + entries + bytes(4))
        content.write(struct.pack("<3H", 8, 8, 8))
        with pytest.raises(ValueError, match="damaged: it does not say how large it and its tiles are"):
            decode.decode_image(content.getvalue())
