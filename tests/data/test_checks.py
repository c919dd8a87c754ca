"""What came in and what did not, a copy of BreakHis against its manifest, and the audit of splits."""

import json

import pytest
from PIL import Image

from bcdlib.data import checks, sources, splits
from bcdlib.data.breakhis import known_images, official_path, scan_breakhis
from bcdlib.data.cache import build_cache
from bcdlib.errors import InputError


@pytest.fixture(scope="module")
def table():
    return known_images()


def names(found, status):
    return set(found.images.loc[found.images["status"] == status, "filename"])


def test_verify_original_images(breakhis):
    found = checks.verify_copy(sources.open_source(breakhis / "original"), progress=False)
    assert found.summary() == {
        "present": 29, "missing": 7880, "extra": 0, "unreadable": 0, "wrong_size": 4, "not_breakhis": 0,
        "duplicates": 0,
    }  # fmt: skip
    assert len(found.images) == 7909 and found.partial
    on_disk = {file.name for file in (breakhis / "original").rglob("*.png")}
    assert names(found, "present") == on_disk
    small = set()
    for name in on_disk:
        with Image.open(breakhis / "original" / official_path(name)) as picture:
            small |= {name} if picture.height == 456 else set()
    assert set(found.wrong_size["filename"]) == small
    assert found.wrong_size[["width", "height"]].to_numpy().tolist() == [[700, 456]] * 4
    assert found.counts().sum().to_dict() == {"present": 29, "missing": 7880, "extra": 0, "unreadable": 0}


def test_verify_of_a_mixed_folder(mixed):
    folder, sound, cut, twice, extra = mixed
    found = checks.verify_copy(sources.open_source(folder), progress=False)
    assert found.summary() == {
        "present": 2, "missing": 7906, "extra": 1, "unreadable": 1, "wrong_size": 0, "not_breakhis": 1,
        "duplicates": 1,
    }  # fmt: skip
    assert names(found, "present") == {sound, twice}
    assert names(found, "extra") == {extra} and names(found, "unreadable") == {cut}
    reasons = found.images.set_index("filename")["reason"]
    assert reasons[cut] and not reasons.drop(cut).any()
    assert found.scan.not_breakhis == ["notes.png"] and found.scan.duplicates == [f"b/{twice}"]


def test_verify_takes_the_sound_one_of_two_copies(mixed):
    folder, _, cut, twice, _ = mixed
    (folder / "a" / twice).write_bytes(b"damaged")
    (folder / "b" / cut).write_bytes((folder / "b" / twice).read_bytes())
    found = checks.verify_copy(sources.open_source(folder), progress=False)
    assert found.summary()["present"] == 3 and found.summary()["unreadable"] == 0


def test_verify_without_any_breakhis_image(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "holiday.png")
    with pytest.raises(InputError, match="no BreakHis image") as caught:
        checks.verify_copy(sources.open_source(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_audit_of_all_protocols(table):
    rows = checks.audit_splits(table)
    assert [row["split"] for row in rows] == ["magnification"] + [
        name for name in ("image", "official", "slide", "case") for _ in range(5)
    ]
    assert all(row["cases_shared"] == 0 for row in rows if row["split"] == "case")
    assert json.loads(json.dumps(rows)) == rows
    lines = checks.audit_lines(rows)
    assert (
        len(lines) == len(rows)
        and lines[1].startswith("image, fold 0: ")
        and lines[0]
        == (
            "magnification, fold 0: 82 of 82 test slides and 70 of 70 test cases were also in training "
            "(1995 of 1995 test images)."
        )
    )


def test_audit_tells_near_duplicates(breakhis, tmp_path):
    """Slide 14-13412 stands under DC and LC with identical images, in three folds on both sides."""
    source = sources.open_source(breakhis / "half")
    images = scan_breakhis(source).images
    cache = build_cache(source, images, (144, 96), root=tmp_path, progress=False)
    rows = checks.audit_splits(images, "official", cache)
    assert [bool(row["near_duplicates"]) for row in rows] == [True, False, True, False, True]
    pair = rows[0]["near_duplicates"][0]
    assert set(pair) == {"test", "training", "correlation"} and pair["correlation"] > 0.999
    assert checks.audit_lines(rows)[1].startswith("  near-duplicate (1.000): test SOB_M_")
    assert json.loads(json.dumps(rows)) == rows


def test_audit_of_a_table_and_of_what_cannot_be(tmp_path, table):
    splits.make_split(table, "slide", 3).to_csv(tmp_path / "mine.csv", index=False)
    rows = checks.audit_splits(table, str(tmp_path / "mine.csv"))
    assert [row["fold"] for row in rows] == [0, 1, 2]
    assert checks.audit_lines(rows)[0].startswith(f"{tmp_path / 'mine.csv'}, fold 0: ")
    for images, split in ((table, "astrology"), (table[:1], None)):
        with pytest.raises(InputError):
            checks.audit_splits(images, split)
