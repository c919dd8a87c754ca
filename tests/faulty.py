"""Damaged images, made from good ones: each kind with its end. The same seed makes the same bytes."""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from bcdlib.data.breakhis import BENIGN, SUBTYPES

# what may become of a file
USED, LEFT_OUT = "used", "left out"
WHOLE_OR_LEFT_OUT = (
    "used with its very pixels, or left out"  # cut behind the last pixel, a flipped bit in a comment
)
ANY = "used or left out"  # formats without checksums: nobody can tell


@dataclass(frozen=True)
class Damaged:
    """One damaged file. ``pixels`` is what it shows, uint8 (height, width, 3), where that can be known."""

    kind: str
    path: str
    content: bytes
    outcome: str
    pixels: np.ndarray | None = None


def encode(array, kind="PNG", **options) -> bytes:
    out = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(out, kind, **options)
    return out.getvalue()


def rgb(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG with right checksums, whatever else is wrong with it."""

    def chunk(kind, body):
        return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))

    header = struct.pack(">LLBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows, 1))
        + chunk(b"IEND", b"")
    )


def deep_png(array) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array.astype("uint16") * 257)
    return png(array.shape[1], array.shape[0], 16, 2, rows)


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def flipped(content: bytes, rng, count: int, start: int = 0) -> bytes:
    changed = bytearray(content)
    for place in rng.integers(start, len(content), count):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def truncated(array, rng):
    content = encode(array)
    return content[: int(rng.integers(1, len(content)))], WHOLE_OR_LEFT_OUT, array


def cut_just_before_the_end(array, rng):
    content = encode(array)
    return content[: -int(rng.integers(1, 60))], WHOLE_OR_LEFT_OUT, array


def a_jpeg_cut_and_ended(array, rng):
    content = encode(array, "JPEG")
    return content[: int(rng.integers(len(content) // 2, len(content)))] + b"\xff\xd9", ANY, None


def black_below(array, rng):
    array = array.copy()
    array[-int(rng.integers(1, 40)) :] = 0
    return encode(array), USED, array


def truncated_jpeg(array, rng):
    content = encode(array, "JPEG")
    return content[: int(rng.integers(1, len(content) * 9 // 10))], LEFT_OUT, None


def a_bit_flipped(array, rng):
    return flipped(encode(array), rng, 1), WHOLE_OR_LEFT_OUT, array


def a_bit_flipped_late(array, rng):
    content = encode(array)
    return flipped(content, rng, 1, len(content) * 9 // 10), WHOLE_OR_LEFT_OUT, array


def bits_flipped(array, rng):
    return flipped(encode(array), rng, 40), LEFT_OUT, None


def bits_flipped_in_a_jpeg(array, rng):
    return flipped(encode(array, "JPEG"), rng, 3), ANY, None


def a_piece_overwritten(array, rng):
    content = bytearray(encode(array))
    place = int(rng.integers(8, len(content) - 400))
    content[place : place + 300] = bytes(300)
    return bytes(content), LEFT_OUT, None


def zero_length(array, rng):
    return b"", LEFT_OUT, None


def zeros(array, rng):
    return bytes(int(rng.integers(1, 5000))), LEFT_OUT, None


def text(array, rng):
    return b"benign, as far as I can see\n" * int(rng.integers(1, 50)), LEFT_OUT, None


def html(array, rng):
    return (
        b"<!DOCTYPE html><html><body>Sign in to download</body></html>" + bytes(rng.bytes(20)),
        LEFT_OUT,
        None,
    )


def noise(array, rng):
    return rng.bytes(2000), LEFT_OUT, None


def sixteen_bit_grey(array, rng):
    return encode(array[..., 0].astype("uint16") * 257), LEFT_OUT, None


def sixteen_bit_colour(array, rng):
    return deep_png(array), LEFT_OUT, None


def palette(array, rng):
    content = encode(Image.fromarray(array).quantize(int(rng.integers(2, 256))))
    return content, USED, rgb(content)


def grey(array, rng):
    return encode(array[..., 1]), USED, np.dstack([array[..., 1]] * 3)


def black_and_white(array, rng):
    content = encode(Image.fromarray(array).convert("1"))
    return content, USED, rgb(content)


def rgba(array, rng):
    alpha = rng.integers(0, 256, array.shape[:2], dtype="uint8")
    return encode(np.dstack([array, alpha])), USED, on_white(array, alpha)


def grey_with_alpha(array, rng):
    grey = np.dstack([array[..., 0]] * 3)
    return encode(np.dstack([array[..., 0], array[..., 1]])), USED, on_white(grey, array[..., 1])


def on_white(array, alpha):
    share = alpha[..., None] / 255
    return np.rint(array * share + 255 * (1 - share)).astype("uint8")


def cmyk_jpeg(array, rng):
    content = encode(Image.fromarray(array).convert("CMYK"), "JPEG", quality=95)
    return content, USED, rgb(content)


def animated_png(array, rng):
    more = [Image.fromarray(255 - array)] * int(rng.integers(1, 3))
    return encode(Image.fromarray(array), save_all=True, append_images=more), LEFT_OUT, None


def animated_gif(array, rng):
    more = [Image.fromarray(array[::-1])]
    return encode(Image.fromarray(array), "GIF", save_all=True, append_images=more), LEFT_OUT, None


def stack_in_a_tiff(array, rng):
    more = [Image.fromarray(255 - array)]
    return encode(Image.fromarray(array), "TIFF", save_all=True, append_images=more), LEFT_OUT, None


def turned_jpeg(array, rng):
    orientation, turn = [(3, 2), (6, -1), (8, 1)][int(rng.integers(3))]
    upright = rgb(encode(array, "JPEG", quality=95))
    return encode(array, "JPEG", quality=95, exif=exif(orientation)), USED, np.rot90(upright, turn)


def turned_png(array, rng):
    return encode(array, exif=exif(3)), USED, np.rot90(array, 2)


def huge_declared_png(array, rng):
    side = int(rng.integers(20_000, 2**31 - 1))
    return png(side, side, 8, 2, bytes(1000)), LEFT_OUT, None


def bomb_png(array, rng):
    side = int(rng.integers(8000, 12_000))
    return png(side, side, 1, 0, bytes((side // 8 + 2) * side)), LEFT_OUT, None


def huge_declared_bmp(array, rng):
    content = bytearray(encode(array, "BMP"))
    content[18:26] = struct.pack("<ll", 100_000, 100_000)
    return bytes(content), LEFT_OUT, None


def taller_than_its_pixels(array, rng):
    rows = b"".join(b"\0" + row.tobytes() for row in array)
    return png(array.shape[1], array.shape[0] + int(rng.integers(1, 100)), 8, 2, rows), LEFT_OUT, None


def really_a_jpeg(array, rng):
    content = encode(array, "JPEG", quality=int(rng.integers(60, 96)))
    return content, USED, rgb(content)


def really_a_tiff(array, rng):
    return encode(array, "TIFF"), USED, array


def really_a_bmp(array, rng):
    return encode(array, "BMP"), USED, array


def really_a_webp(array, rng):
    return encode(array, "WEBP"), LEFT_OUT, None


def really_a_pdf(array, rng):
    return encode(Image.fromarray(array), "PDF"), LEFT_OUT, None


def really_postscript(array, rng):
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n(touched) (w) file closefile showpage\n",
        LEFT_OUT,
        None,
    )


CONTENTS = (
    truncated,
    cut_just_before_the_end,
    truncated_jpeg,
    a_bit_flipped,
    a_bit_flipped_late,
    bits_flipped,
    bits_flipped_in_a_jpeg,
    a_piece_overwritten,
    a_jpeg_cut_and_ended,
    black_below,
    zero_length,
    zeros,
    text,
    html,
    noise,
    sixteen_bit_grey,
    sixteen_bit_colour,
    palette,
    grey,
    black_and_white,
    rgba,
    grey_with_alpha,
    cmyk_jpeg,
    animated_png,
    animated_gif,
    stack_in_a_tiff,
    turned_jpeg,
    turned_png,
    huge_declared_png,
    bomb_png,
    huge_declared_bmp,
    taller_than_its_pixels,
    really_a_jpeg,
    really_a_tiff,
    really_a_bmp,
    really_a_webp,
    really_a_pdf,
    really_postscript,
)


def _name(number: int) -> str:
    subtype = list(SUBTYPES)[number % 8]
    letter = "B" if subtype in BENIGN else "M"
    magnification = (40, 100, 200, 400)[number % 4]
    return f"SOB_{letter}_{subtype}-98-{20000 + number // 8}-{magnification}-{number % 1000:03d}.png"


def contents(originals: list[np.ndarray], number: int, seed: int = 0):
    """`number` files whose bytes are damaged or odd, kind after kind, each from one of the originals."""
    for place in range(number):
        rng = np.random.default_rng([seed, place])
        make = CONTENTS[place % len(CONTENTS)]
        content, outcome, pixels = make(originals[int(rng.integers(len(originals)))], rng)
        yield Damaged(make.__name__, f"damaged/{_name(place)}", content, outcome, pixels)


def names(originals: list[np.ndarray], number: int, seed: int = 0):
    """`number` good pictures (not counting those that they clash with) whose name or place is wrong."""
    for place in range(number):
        rng = np.random.default_rng([seed, 1, place])
        array = originals[int(rng.integers(len(originals)))]
        array = np.roll(
            array, 1 + place, axis=1
        )  # each picture once: the same under two labels is a kind of its own
        content, other = encode(array, compress_level=1), encode(255 - array, compress_level=1)
        kind, n = place % 7, place // 7
        if kind == 0:
            yield Damaged(
                "class against subtype", f"names/SOB_B_DC-98-{30000 + n}-40-001.png", content, LEFT_OUT
            )
        elif kind == 1:
            yield Damaged("unknown subtype", f"names/SOB_M_XX-98-{30000 + n}-40-001.png", content, LEFT_OUT)
        elif kind == 2:
            name = f"names/400X/SOB_M_DC-98-{31000 + n}-40-001.png"
            yield Damaged("magnification against folder", name, content, LEFT_OUT)
        elif kind == 3:
            yield Damaged(
                "subtype against folder",
                f"names/adenosis/SOB_M_DC-98-{32000 + n}-40-001.png",
                content,
                LEFT_OUT,
            )
        elif kind == 4:
            name = f"SOB_M_DC-98-{33000 + n}-40-001.png"
            yield Damaged("first of a name", f"names/a/{name}", content, USED, array)
            yield Damaged("same name, other picture", f"names/b/{name}", other, LEFT_OUT)
        elif kind == 5:
            name = f"SOB_M_DC-98-{34000 + n}-40-001.png"
            yield Damaged("first of a name", f"names/a/{name}", content, USED, array)
            yield Damaged("same name, same picture", f"names/b/{name}", content, LEFT_OUT)
        else:
            for letter, subtype in (("B", "A"), ("M", "DC")):
                name = f"names/SOB_{letter}_{subtype}-98-{35000 + n}-40-001.png"
                yield Damaged("same picture, two labels", name, content, USED, array)
