"""Tables and images of strangers, each with a stated end: read as it was meant, or refused in one line."""

import collections
import gzip
import re
import unicodedata

import numpy as np
import pytest
from PIL import Image

from bcdlib.data import breakhis, custom, decode, splits
from bcdlib.errors import InputError
from bcdlib.evaluation import metrics
from tests.faulty import encode

pytestmark = pytest.mark.faults
NAMES = breakhis.known_images()["filename"].iloc[[0, 1, 4000, 4001]].tolist()
OWN = "path,label,group\na.png,0,Müller\nb.png,0,p1\nc.png,1,Weiß\nd.png,1,7\n"
PREDICTED = ",".join(metrics.COLUMNS) + "\n" + "".join(
    f"{name},s,c,40,A,{number // 2},0.{2 + 2 * number},0,net,mine,0\n" for number, name in enumerate(NAMES)
)  # fmt: skip
SPLIT = "filename,role,fold\n" + "".join(
    f"{name},{role},0\n" for name, role in zip(NAMES, ["train", "test"] * 2)
)
HELD, REPORTED = "held", "reported"


def header(text: str, change) -> str:
    first, rest = text.split("\n", 1)
    return f"{change(first)}\n{rest}"


# each makes other bytes of a good table; with what becomes of it
WAYS = {
    "as it is": (str.encode, HELD),
    "byte order mark": (lambda text: text.encode("utf-8-sig"), HELD),
    "line ends of Windows": (lambda text: text.replace("\n", "\r\n").encode(), HELD),
    "line ends of old Macs": (lambda text: text.replace("\n", "\r").encode(), HELD),
    "decomposed letters": (lambda text: unicodedata.normalize("NFD", text).encode(), HELD),
    "packed": (lambda text: gzip.compress(text.encode()), HELD),
    "blanks after commas": (lambda text: text.replace(",", ", ").encode(), HELD),
    "capitals in the header": (lambda text: header(text, str.upper).encode(), HELD),
    "rows of commas at the end": (lambda text: (text + ",,\n,\n\n").encode(), HELD),
    "a comma ends every row": (lambda text: text.replace("\n", ",\n").encode(), HELD),
    "zero-width signs": (lambda text: text.replace("0,", "0\u200b,").encode(), HELD),
    "all in quotes": (lambda text: re.sub("[^,\n]+", r'"\g<0>"', text).encode(), HELD),
    "cut-off gz": (lambda text: gzip.compress(text.encode() * 20)[:-12], REPORTED),
    "packed twice": (lambda text: gzip.compress(gzip.compress(text.encode())), REPORTED),
    "a NUL far down": (lambda text: (text + "\n" * 5000 + "\0\n").encode(), REPORTED),
    "UTF-16": (lambda text: text.encode("utf-16"), REPORTED),
    "Latin-1": (lambda text: re.sub("net|train", "é", text).encode("latin-1"), REPORTED),
    "semicolons": (lambda text: text.replace(",", ";").encode(), REPORTED),
    "tabs": (lambda text: text.replace(",", "\t").encode(), REPORTED),
    "a workbook": (lambda text: b"PK\3\4" + text.encode(), REPORTED),
    "commas without quotes": (lambda text: re.sub("(0|p1)\n", r"\1, Anna\n", text).encode(), REPORTED),
    "a stray quotation mark": (lambda text: re.sub("\n(a|SOB)", r'\n"\1', text, count=1).encode(), REPORTED),
    "nothing but a header": (lambda text: text[: text.index("\n") + 1].encode(), REPORTED),
    "no bytes": (lambda text: b"", REPORTED),
}  # fmt: skip
READERS = {
    "own": (OWN, custom.read_manifest),
    "predictions": (PREDICTED, metrics.read_predictions),
    "split": (SPLIT, lambda file: splits.read_split_table(file, breakhis.images_table(NAMES))),
}


def tell(record_property, kind: str, ends: dict) -> None:
    count = collections.Counter(ends.values())
    lost = {name: end for name, end in ends.items() if end not in (HELD, REPORTED)}
    facts = {"kind": kind, "tried": len(ends), "survived": count[HELD], "reported": count[REPORTED]}
    record_property("faults", facts | {"lost": len(lost)})
    assert not lost


def test_tables_as_other_programs_save_them(tmp_path, record_property):
    ends = {}
    for table, (text, read) in READERS.items():
        (tmp_path / "good.csv").write_text(text, encoding="utf-8")
        good = read(tmp_path / "good.csv")
        for way, (change, meant) in WAYS.items():
            file = tmp_path / f"{table}.csv"
            file.write_bytes(change(text))
            try:
                found = read(file).reset_index(drop=True)
                end = HELD if found.equals(good.reset_index(drop=True)) else "other values"
            except InputError as error:
                one_line = file.name in str(error) and "\n" not in str(error)
                end = REPORTED if one_line else f"not one line: {error}"
            ends[table, way] = end if end == meant else f"{end}, not {meant}"
    tell(record_property, "tables", ends)


def test_images_as_other_programs_save_them(record_property):
    array = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype="uint8")
    alpha = np.full((24, 36, 1), 255, "uint8")
    alpha[12:] = 0
    white = np.where(alpha > 0, array, 255)
    image, clear = Image.fromarray(array), Image.fromarray(np.dstack([array * (alpha > 0), alpha]))
    kinds = {
        "png": (encode(image), array),
        "tiff": (encode(image, "TIFF"), array),
        "bmp": (encode(image, "BMP"), array),
        "transparent png": (encode(clear), white),
        "transparent tiff": (encode(clear, "TIFF"), white),
        "tiff of lzw": (encode(image, "TIFF", compression="tiff_lzw"), array),
        "tiff of deflate": (encode(image, "TIFF", compression="tiff_adobe_deflate"), array),
        "tiff of two pages": (encode(image, "TIFF", save_all=True, append_images=[image]), None),
        "tiff of floats": (encode(Image.fromarray(np.ones((9, 9), "float32")), "TIFF"), None),
        "png of 16 bits": (encode(Image.fromarray(np.ones((9, 9), "uint16"))), None),
        "webp": (encode(image, "WEBP"), None),
        "jpeg 2000": (encode(image, "JPEG2000"), None),
        "gif": (encode(image, "GIF"), None),
        "a web page": (b"<!doctype html>", None),
    }
    ends = {}
    for kind, (content, pixels) in kinds.items():
        try:
            end = HELD if np.array_equal(decode.decode_image(content), pixels) else "other pixels"
        except ValueError as error:
            end = REPORTED if pixels is None and "\n" not in str(error) else f"refused: {error}"
        ends[kind] = end
    tell(record_property, "images", ends)
