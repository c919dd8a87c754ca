"""Names and the manifest, against the printed Table I, the facts table and real files."""

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from bcdlib.data import sources
from bcdlib.data.breakhis import (
    COLUMNS,
    FOLD_COLUMNS,
    IMAGE_COLUMNS,
    SUBTYPES,
    TABLE_I_PRINTED,
    class_labels,
    count_slide_folders,
    count_table_i,
    images_table,
    known_images,
    official_path,
    parse_name,
    scan_breakhis,
)
from bcdlib.errors import InputError

GOOD = "SOB_B_A-14-22549AB-40-001.png"
quiet = settings(max_examples=300, deadline=None, database=None)


@pytest.fixture(scope="module")
def table():
    return known_images()


@pytest.fixture(scope="module")
def facts(breakhis):
    return pd.read_csv(breakhis / "breakhis_images.csv", dtype={"slide": str, "case": str})


def test_counts_are_those_of_the_data_set(table):
    assert len(table) == 7909 and table["filename"].is_unique
    assert list(table.columns) == COLUMNS
    assert count_slide_folders(table) == 82
    assert table["relpath"].str.rsplit("/", n=2).str[0].nunique() == 82
    assert table["slide"].nunique() == 81 and table["case"].nunique() == 70
    both = table[table["slide"] == "14-13412"]
    assert set(both["subtype"]) == {"DC", "LC"}


def test_table_i(table):
    counted = count_table_i(table)
    expected = {40: (625, 1370), 100: (644, 1437), 200: (623, 1390), 400: (588, 1232)}
    for magnification, (benign, malignant) in expected.items():
        assert counted[magnification].tolist() == [benign, malignant, benign + malignant]
        for letter, count in (("B", benign), ("M", malignant)):  # counted from the names alone
            hits = table["filename"].str.startswith(f"SOB_{letter}_")
            assert (hits & table["filename"].str.contains(f"-{magnification}-", regex=False)).sum() == count
    assert counted["total"].tolist() == [2480, 5429, 7909]
    # The printed table differs in one cell, which contradicts its own column total.
    differing = (TABLE_I_PRINTED != counted).stack()
    assert differing[differing].index.tolist() == [("benign", 40)]
    assert TABLE_I_PRINTED.loc["benign", 40] == 652


def test_table_i_of_one_class_has_all_cells(table):
    counted = count_table_i(table[(table["class"] == "malignant") & (table["magnification"] == 40)])
    assert counted.to_numpy().tolist() == [[0] * 5, [1370, 0, 0, 0, 1370], [1370, 0, 0, 0, 1370]]


def test_labels(table):
    labels = class_labels(table)
    assert labels.dtype == "int64" and labels.sum() == 5429
    assert labels.tolist() == [int(name.startswith("SOB_M")) for name in table["filename"]]


def test_load_gives_a_fresh_copy(table):
    first = known_images()
    first["class"] = "spoilt"
    assert set(known_images()["class"]) == {"benign", "malignant"}


def format_name(row):
    letter = "B" if row["subtype"] in ("A", "F", "PT", "TA") else "M"
    return f"SOB_{letter}_{row['subtype']}-{row['slide']}-{row['magnification']}-{row['sequence']:03d}.png"


def test_every_name_round_trips(table):
    for row in table.to_dict("records"):
        parsed = parse_name(row["filename"])
        assert parsed == {column: row[column] for column in IMAGE_COLUMNS}
        assert format_name(row) == format_name(parsed) == row["filename"]
        assert official_path(row["filename"]) == row["relpath"]


def test_manifest_equals_the_facts_table(table, facts):
    shared = [column for column in facts.columns if column in table.columns]
    assert set(shared) == set(COLUMNS) - {"year"}
    ours = table[shared].sort_values("filename").reset_index(drop=True)
    theirs = facts[shared].sort_values("filename").reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, theirs, check_dtype=False)


def test_parse_an_example():
    assert parse_name(GOOD) == {
        "filename": GOOD, "class": "benign", "subtype": "A", "year": 14,
        "slide": "14-22549AB", "case": "14-22549", "magnification": 40, "sequence": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "SOB_M_A-14-22549AB-40-001.png",
        "SOB_B_DC-14-22549AB-40-001.png",
        "SOB_B_XX-14-22549AB-40-001.png",
        "SOB_B_A-14-22549AB-50-001.png",
        "SOB_B_A-14-22549AB-040-001.png",
        GOOD.lower(),
        GOOD.upper(),
        "40X/" + GOOD,
        "./" + GOOD,
        "SOB_B_A-14-22549AB-40-01.png",
        "SOB_B_A-14-22549AB-40-0001.png",
        "SOB_B_A-2014-22549AB-40-001.png",
        "SOB_B_A_14-22549AB-40-001.png",
        "SOB_B_A-14-AB-40-001.png",
        GOOD + "\n",
        " " + GOOD,
        GOOD + ".png",
        GOOD.replace(".png", ".jpg"),
        GOOD.replace(".png", "xpng"),
        "",
        "SOB_B_A-14-22549AB-40-٠٠١.png",
        "SOB_B_A-١٤-22549AB-40-001.png",
        "SOB_B_A-14-２２549AB-40-001.png",
        "SOB_B_A-14-22549ÄB-40-001.png",
    ],
)
def test_refused_names(name):
    for function in (parse_name, official_path):
        with pytest.raises(InputError) as caught:
            function(name)
        assert repr(name) in str(caught.value) and "\n" not in str(caught.value)


def parses_to_itself_or_is_refused(name):
    try:
        row = parse_name(name)
    except InputError:
        return False
    assert format_name(row) == name and official_path(name).endswith("/" + name)
    return True


@quiet
@given(st.text())
def test_random_text(text):
    assert not parses_to_itself_or_is_refused(text) or text.startswith("SOB_")


@quiet
@given(st.integers(0, len(GOOD)), st.integers(0, 3), st.text(max_size=3))
@example(len(GOOD), 0, "\n")
@example(12, 1, "٣")
def test_damaged_name(start, length, inserted):
    name = GOOD[:start] + inserted + GOOD[start + length :]
    if parses_to_itself_or_is_refused(name):
        assert name.isascii() and name.startswith("SOB_B_") and name.endswith(".png")


@quiet
@given(
    letter=st.sampled_from("BM"),
    subtype=st.sampled_from([*SUBTYPES, "X", "", "AD"]),
    slide=st.from_regex(r"[0-9]{1,3}-[0-9]{0,6}[A-Z]{0,3}", fullmatch=True),
    magnification=st.sampled_from(["40", "100", "200", "400", "50", "4000"]),
    sequence=st.from_regex(r"[0-9]{2,4}", fullmatch=True),
)
def test_names_near_the_rule(letter, subtype, slide, magnification, sequence):
    year, number = slide.split("-")
    valid = (
        subtype in (("A", "F", "PT", "TA") if letter == "B" else ("DC", "LC", "MC", "PC"))
        and len(year) == 2
        and number[:1].isdigit()
        and magnification in ("40", "100", "200", "400")
        and len(sequence) == 3
    )
    name = f"SOB_{letter}_{subtype}-{slide}-{magnification}-{sequence}.png"
    assert parses_to_itself_or_is_refused(name) == valid


def test_images_table_has_folds_only_for_known_names(table):
    known, unknown = table["filename"][7], "SOB_B_A-99-10001-40-001.png"
    rows = images_table([unknown, known])
    assert rows["filename"].tolist() == [unknown, known]
    assert rows.loc[0, FOLD_COLUMNS].isna().all()
    assert rows.loc[1, FOLD_COLUMNS].tolist() == table.loc[7, FOLD_COLUMNS].tolist()
    with pytest.raises(InputError, match="nonsense"):
        images_table([known, "nonsense.png"])


def test_scan_of_a_mixed_folder(mixed):
    folder, sound, cut, twice, extra = mixed
    found = scan_breakhis(sources.open_source(folder))
    assert found.images["filename"].tolist() == sorted([sound, cut, twice, extra])
    paths = dict(zip(found.images["filename"], found.images["path"], strict=True))
    assert paths == {sound: sound, cut: cut, twice: f"a/{twice}", extra: extra}
    assert found.not_breakhis == ["notes.png"] and found.duplicates == [f"b/{twice}"]
    assert found.partial


def test_no_breakhis_image_at_all(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "holiday.png")
    source = sources.open_source(tmp_path)
    with pytest.raises(InputError, match="no BreakHis image") as caught:
        scan_breakhis(source)
    assert str(tmp_path) in str(caught.value)


def test_complete_set_is_not_partial(tmp_path, table):
    for name in table["filename"]:
        (tmp_path / name).touch()
    assert not scan_breakhis(sources.open_source(tmp_path)).partial
    (tmp_path / table["filename"][0]).unlink()
    assert scan_breakhis(sources.open_source(tmp_path)).partial


def test_copies_in_other_formats_are_that_image(tmp_path):
    """What counts is the stem; a .png goes before what may have lost something, whatever the order."""
    name = "SOB_B_A-14-22549AB-40-001"
    for other in (f"a/{name}.jpg", f"b/{name}.PNG", "c/sob_m_dc-14-2523-400-007.tif", "c/cat.jpg"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(b"x")
    scan = scan_breakhis(sources.open_source(tmp_path))
    assert scan.images["filename"].tolist() == [f"{name}.png", "SOB_M_DC-14-2523-400-007.png"]
    assert scan.images["path"].tolist() == [f"b/{name}.PNG", "c/sob_m_dc-14-2523-400-007.tif"]
    assert scan.duplicates == [f"a/{name}.jpg"] and scan.not_breakhis == ["c/cat.jpg"]


@pytest.mark.parametrize(
    "folder", ["Malignant", "400x", "SOB_b_a_14-1", "Fibroadenoma", "Phyllodes tumor", "ductal-carcinoma"]
)
def test_folder_words_count_in_any_case(tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "SOB_B_A-14-22549AB-40-001.png").write_bytes(b"x")
    (tmp_path / "SOB_B_A-14-22549AB-40-002.png").write_bytes(b"x")
    scan = scan_breakhis(sources.open_source(tmp_path))
    assert len(scan.images) == 1 and f"its folder {folder} contradicts its name" in scan.reasons[0][1]


def test_agreeing_folder_words_in_any_case(tmp_path):
    folder = tmp_path / "BENIGN" / "Adenosis" / "sob_b_a_14-22549ab" / "40x"
    folder.mkdir(parents=True)
    (folder / "SOB_B_A-14-22549AB-40-001.png").write_bytes(b"x")
    assert len(scan_breakhis(sources.open_source(tmp_path)).images) == 1


def test_images_of_other_suffixes_are_named(tmp_path):
    """Without them it would seem as if they were not there; a text beside an image is not of interest."""
    for name in ("002.webp", "003.svs", "001.xml", "readme.txt"):
        (tmp_path / f"SOB_B_A-14-22549AB-40-{name}").write_bytes(b"x")
    with pytest.raises(
        InputError, match="no BreakHis image found; 3 others, first SOB_.*: not one of .png, "
    ):
        scan_breakhis(sources.open_source(tmp_path))
    (tmp_path / "SOB_B_A-14-22549AB-40-001.PNG").write_bytes(b"x")
    scan = scan_breakhis(sources.open_source(tmp_path))
    assert [path[-8:] for path, _ in scan.reasons] == ["002.webp", "-003.svs"]
    assert all(
        why == "not one of .png, .jpg, .jpeg, .tif, .tiff, .bmp; save it as PNG" for _, why in scan.reasons
    )


def test_nothing_but_an_archive(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "set.rar").write_bytes(b"Rar!")
    with pytest.raises(
        InputError, match="no BreakHis image found, nor any other image; .*set.rar lies there: unpack"
    ):
        scan_breakhis(sources.open_source(tmp_path))
    (tmp_path / "a" / "set.tar").write_bytes(b"")
    with pytest.raises(InputError, match="nor any other image; .*a/set.tar lies there: perhaps it is meant"):
        scan_breakhis(sources.open_source(tmp_path))
