"""Tables of strangers with any bytes in them, and what fuzz/fuzz.py found: an answer or one line."""

import csv
import gzip
import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bcdlib.data import breakhis, custom, sources, splits
from bcdlib.errors import InputError
from bcdlib.evaluation import metrics

FOUND = Path(__file__).resolve().parent / "fuzz" / "found"
NAMES = breakhis.known_images()["filename"].tolist()[:6]
quiet = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

SPLIT = "filename,role,fold\n" + "".join(
    f"{name},{role},0\n" for name, role in zip(NAMES, ["train", "test", "validation"] * 2)
)
OWN = (
    'path,label,group,slide,magnification,subtype\na.png,benign,p1,s1,40X,A\n"b,c.png",1,p2,,,\n'
    "d/e.jpg,Malignant,p3,s3,100,DC\n"
)
PREDICTED = (
    ",".join(metrics.COLUMNS)
    + "\n"
    + "".join(
        f"{name},14-22549,14-22549,40,A,{label},0.{label}5,0,resnet50,case,0\n"
        for label, name in enumerate(NAMES[:2])
    )
)

# what damaged tables hold: cells of others' programs, controls, numbers beyond any column's range, formulas
cells = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "",
            "nan",
            "NA",
            "-0",
            "1e400",
            "0x1",
            "inf",
            "1_0",
            "=1+1",
            "\ud83d",
            "a\nb",
            "\x1b[2J",
            '"',
            "'",
            "\0",
            "../../x.png",
            "9" * 400,
            "train",
            "Test",
            "TRUE",
            "Mu\u0308ller",
            "p1\u200b",
            "\u202ep1",
            '"Smith, Anna"',
            "Smith, Anna",
            "7.0",
            "a;b",
            "0.5",
            "1",
            NAMES[0],
        ]
    ),
)


@st.composite
def changed(draw, text: str) -> bytes:
    """A good table with cells, columns or bytes of it changed."""
    rows = [line.split(",") for line in text.splitlines()]
    for _ in range(draw(st.integers(0, 3))):
        row = draw(st.integers(0, len(rows) - 1))
        place = draw(st.integers(0, len(rows[row]) - 1))
        rows[row][place] = draw(cells)
    if draw(st.booleans()):
        drop = draw(st.integers(0, len(rows) - 1))
        rows = rows[:drop] + rows[drop + 1 :] + draw(st.sampled_from([[], rows[:1], rows[-1:]]))
    content = "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")
    start, length = draw(st.integers(0, len(content))), draw(st.sampled_from([0, 0, 0, 1, 9, len(content)]))
    inserted = draw(st.sampled_from([b"", b"", b"\xff", b"\0", b"\r", b'"', b"\xef\xbb\xbf"]))
    content = content[:start] + inserted + content[start + length :]
    return draw(st.sampled_from([lambda found: found] * 9 + PACKED))(content)


def _other_encoding(content: bytes) -> bytes:
    return content.decode("utf-8", "replace").encode("utf-16")


# as other programs save tables; a .gz whole and cut off
PACKED = [
    _other_encoding,
    gzip.compress,
    lambda content: gzip.compress(content)[:-9],
    lambda content: content.replace(b",", b";"),
    lambda content: content.replace(b"\n", b",,\n"),
]


def rows_of(file: Path) -> list[list[str]]:
    """The rows with any text, by the standard library alone, without the header."""
    content = file.read_bytes()
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    text = io.StringIO(content.decode("utf-8-sig"), newline="")
    return [row for row in csv.reader(text, skipinitialspace=True) if "".join(row).strip()][1:]


def answer_or_one_line(read, file: Path, content: bytes):
    file.write_bytes(content)
    try:
        return read(file)
    except InputError as error:
        assert str(error) and len(str(error).splitlines()) == 1 and str(error).isprintable()
        assert file.name in str(error)
        return None


@quiet
@given(content=changed(SPLIT))
@example(content=SPLIT.encode())
@example(content=b"filename,role")
@example(content=SPLIT.encode().replace(b",0\n", b",\n"))
def test_split_tables(content, tmp_path):
    images = breakhis.images_table(NAMES)
    table = answer_or_one_line(
        lambda file: splits.read_split_table(file, images), tmp_path / "split.csv", content
    )
    if table is not None:
        assert set(table["filename"]) <= set(NAMES) and set(table["role"]) <= set(splits.ROLES)
        assert len(splits.split_overlap(table, images)) >= 1  # what an audit does with it


@quiet
@given(content=changed(OWN))
@example(content=OWN.encode())
def test_manifests_of_ones_own(content, tmp_path):
    images = answer_or_one_line(custom.read_manifest, tmp_path / "own.csv", content)
    if images is not None:
        assert images["filename"].is_unique and set(images["class"]) == set(breakhis.CLASSES)
        assert images["magnification"].dtype == "int64" and not images[["slide", "case"]].eq("").any(
            axis=None
        )
        assert not any(name.startswith("/") or ".." in name.split("/") for name in images["filename"])
        rows = rows_of(tmp_path / "own.csv")  # no row is lost, no two patients are made one
        assert len(images) == len(rows)
        again = pd.read_csv(io.StringIO(images.to_csv(index=False)), dtype={"slide": str, "case": str})
        assert len(again) == len(images) and not again[["filename", "slide", "case"]].isna().any(axis=None)


@quiet
@given(content=changed(PREDICTED))
@example(content=PREDICTED.encode())
def test_predictions_tables(content, tmp_path):
    table = answer_or_one_line(metrics.read_predictions, tmp_path / "predictions.csv", content)
    if table is not None:
        assert len(table) == len(rows_of(tmp_path / "predictions.csv"))
        assert table["probability"].between(0, 1).all() and set(table["label"]) <= {0, 1}
        assert len(metrics.metrics_table(table)) >= 1


@quiet
@given(content=st.binary(max_size=400))
def test_any_bytes(content, tmp_path):
    for read in (
        custom.read_manifest,
        metrics.read_predictions,
        lambda file: splits.read_split_table(file, breakhis.images_table(NAMES)),
    ):
        answer_or_one_line(read, tmp_path / "any.csv", content)


@pytest.mark.parametrize("name", sorted(file.name for file in FOUND.iterdir()))
def test_what_the_fuzzers_found(name, tmp_path):
    content = (FOUND / name).read_bytes()
    if name.startswith("manifest"):
        answer_or_one_line(custom.read_manifest, tmp_path / "found.csv", content)
        return

    def read(file):
        source = sources.open_source(file)
        names = source.names()
        return list(source.read(names))

    for member, picture, reason in answer_or_one_line(read, tmp_path / "found.zip", content) or ():
        assert member and (picture is None) == bool(reason)
