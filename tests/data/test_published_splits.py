"""The register of published splits: counts against the sources and computed anew, lists, names."""

import hashlib
import json
import os
import subprocess
import sys
import time
import warnings

import pandas as pd
import pytest
from sklearn.model_selection import StratifiedKFold

from bcdlib.data import breakhis, checks, splits
from bcdlib.data import published_splits as published
from bcdlib.data.breakhis import images_table, known_images, slide_folders
from bcdlib.errors import InputError

# what the sources print or store, and what was computed from their lists by other code; in "both" the slide
# 14-13412 stands in training and test
FACTS = pd.DataFrame(
    [
        ("eva-2025-02", 1, 1995, 25, 602, 0, 183, 207, 0, 126, 395, 0, 57, 183, "no"),
        ("eva", 1, 1471, 14, 339, 0, 91, 129, 0, 49, 210, 0, 42, 91, "no"),
        ("thunder", 1, 1471, 14, 339, 0, 75, 129, 0, 49, 210, 0, 26, 91, "no"),
        ("csft", 1, 7909, 82, 2373, 2373, 2373, 744, 744, 744, 1629, 1629, 1629, 2373, "yes"),
        ("gupta", 1, 7900, 19, 1580, 673, 1124, 792, 412, 740, 788, 261, 384, 1124, "yes"),
        ("gupta-cnn", 1, 7900, 28, 2900, 0, 1144, 1007, 0, 695, 1893, 0, 449, 1144, "yes"),
        ("compact-cnn", 1, 1165, 11, 232, 0, 53, 70, 0, 53, 162, 0, 0, 53, "no"),
        ("rap-mst", 5, 39545, 16, 8265, 0, 2849, 2290, 0, 2101, 5975, 0, 748, 3225, "0 of 5 folds"),
    ],
    columns="split folds images slides_in_test test_images slide_leak case_leak test_benign "
    "slide_leak_benign case_leak_benign test_malignant slide_leak_malignant case_leak_malignant "
    "case_leak_trainval dup_14-13412_both_sides".split(),
)  # fmt: skip
PERCENT = {  # slides, cases, cases of benign and of malignant images
    "eva-2025-02": (0.0, 30.4, 60.9, 14.4),
    "eva": (0.0, 26.8, 38.0, 20.0),
    "thunder": (0.0, 22.1, 38.0, 12.4),
    "csft": (100.0, 100.0, 100.0, 100.0),
    "gupta": (42.6, 71.1, 93.4, 48.7),
    "gupta-cnn": (0.0, 39.4, 69.0, 23.7),
    "compact-cnn": (0.0, 22.8, 75.7, 0.0),
    "rap-mst": (0.0, 34.5, 91.7, 12.5),
}
PRINTED = {  # images of the roles, as the sources print or store them; of one fold
    "eva-2025-02": {"train": 1393, "test": 602},
    "eva": {"train": 1132, "test": 339},
    "thunder": {"train": 936, "validation": 196, "test": 339},
    "csft": {"train": 5536, "test": 2373},
    "gupta": {"train": 6320, "test": 1580},
    "gupta-cnn": {"train": 5000, "test": 2900},
    "compact-cnn": {"train": 933, "test": 232},
}


@pytest.fixture(scope="module")
def images():
    return known_images()


@pytest.fixture(scope="module")
def register():
    return published.published_table().set_index("split", drop=False)


def audit(*options):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "bcdlib", "audit", *options],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    return done.stdout, {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}


def test_register_states_the_facts(register):
    assert sorted(register.index) == sorted([*FACTS["split"], "official"])
    pd.testing.assert_frame_equal(
        register.loc[FACTS["split"], FACTS.columns].reset_index(drop=True), FACTS, check_dtype=False
    )
    columns = ["slide_leak_pct", "case_leak_pct", "case_leak_benign_pct", "case_leak_malignant_pct"]
    assert {name: tuple(register.loc[name, columns]) for name in PERCENT} == PERCENT
    assert (register["image_leak"] == 0).all()
    assert (register[["citation", "source", "publication", "unit", "basis"]] != "").all(axis=None)


@pytest.mark.parametrize("name", [*FACTS["split"], "official", *published.RECOMMENDED])
def test_register_is_what_the_lists_say(name, images):
    """Counted here without the register's own code: sets of units, fold by fold."""
    split = published.read_list(name)
    facts = images.assign(image=images["filename"], slide_=slide_folders(images)).set_index("filename")
    units = {"image": "image", "slide": "slide_", "case": "case"}
    counts = dict.fromkeys(
        [f"{unit}_leak{end}" for unit in units for end in ("", "_benign", "_malignant")], 0
    )
    for fold in split["fold"].unique():
        part = split[split["fold"] == fold]
        assert not part["filename"].duplicated().any()
        train = facts.loc[part.loc[part["role"] == "train", "filename"], list(units.values())]
        known = {column: set(train[column]) for column in train}
        for row in facts.loc[part.loc[part["role"] == "test", "filename"]].to_dict("records"):
            for unit, column in units.items():
                found = row[column] in known[column]
                counts[f"{unit}_leak"] += found
                counts[f"{unit}_leak_{row['class']}"] += found
    stated = pd.read_csv(published.LISTS / "index.csv", keep_default_na=False).set_index("split").loc[name]
    assert {key: stated[key] for key in counts} == counts
    recounted = published.count_overlap(split, images)
    assert {key: str(stated[key]) for key in recounted} == {
        key: str(value) for key, value in recounted.items()
    }
    if name != "official":
        assert stated["sha256"] == hashlib.sha256(published.list_file(name).read_bytes()).hexdigest()
    chosen = facts.loc[split["filename"].unique()]
    assert stated["magnifications"] == " ".join(map(str, sorted(chosen["magnification"].unique())))
    assert set(stated["subtypes"].split()) == set(chosen["subtype"])


@pytest.mark.parametrize("name", PRINTED)
def test_counts_that_the_sources_print(name):
    assert published.read_list(name)["role"].value_counts().to_dict() == PRINTED[name]


def test_one_test_part_in_five_folds(images):
    table = published.read_list("rap-mst")
    tests = [set(part["filename"]) for _, part in table[table["role"] == "test"].groupby("fold")]
    assert [len(test) for test in tests] == [1653] * 5 and len(set().union(*tests)) == 1653
    rows = checks.audit_splits(images, "rap-mst")
    assert [row["test_images_of_shared_cases"] for row in rows] == [645] * 5
    assert rows[0]["counts"]["test_benign"] == rows[0]["counts"]["case_leak_benign"] == 458


def test_lists_equal_the_stored_ones(breakhis):
    """Against the lists from which these were made, where they are at hand."""
    folder = breakhis.parent / "published_splits"
    if not folder.is_dir():
        pytest.skip("the published lists are not beside the images")
    keys = {
        "eva_v2_40x": "eva", "eva_v1_40x": "eva-2025-02", "thunder_40x": "thunder", "csft_jbhi2024": "csft",
        "karangupta26_8020": "gupta", "karangupta26_cnn_features": "gupta-cnn", "debcode_rapmst": "rap-mst",
        "wendydong_work11_400x": "compact-cnn",
    }  # fmt: skip
    index = pd.read_csv(folder / "index.csv", keep_default_na=False).set_index("name")
    register = published.published_table().set_index("split")
    assert set(index.index) == set(keys)
    for file, name in keys.items():
        table = pd.read_csv(folder / f"{file}.csv.gz")
        table["fold"] = table["fold"].str[-1].astype(int) if "fold" in table else 0
        key = ["fold", "filename"]
        pd.testing.assert_frame_equal(
            published.read_list(name).sort_values(key, ignore_index=True),
            table[["filename", "fold", "role"]].sort_values(key, ignore_index=True),
            check_dtype=False,
        )
        numbers = index.columns.drop(["source", "commit", "publication", "claim", "unit", "basis"])
        assert {key: str(register.loc[name, key]) for key in numbers} == {
            key: str(index.loc[file, key]) for key in numbers
        }
        assert register.loc[name, "commit"] == index.loc[file, "commit"]


def test_official_is_in_the_register(register, images):
    row, folds = register.loc["official"], checks.audit_splits(images, "official")
    assert row["test_images"] == sum(fold["test_images"] for fold in folds) == 13665
    assert row["case_leak"] == sum(fold["test_images_of_shared_cases"] for fold in folds) == 4351
    shares = [100 * fold["test_images_of_shared_cases"] / fold["test_images"] for fold in folds]
    assert 27 <= round(min(shares)) and round(max(shares)) <= 39
    assert row["dup_14-13412_both_sides"] == "3 of 5 folds"


def test_audit_published_is_read_in_a_moment(register):
    begun = time.perf_counter()
    text, imported = audit("--split", "published", "--json")
    seconds = time.perf_counter() - begun
    rows = pd.DataFrame(json.loads(text)).set_index("split")
    assert rows.loc[FACTS["split"], "case_leak"].tolist() == FACTS["case_leak"].tolist()
    assert "pandas" in imported
    assert not imported & {"keras", "tensorflow", "matplotlib", "sklearn", "scipy", "jax", "torch"}
    assert seconds < 6  # half a second on a machine that does nothing else; importtime and neighbours add
    lines = audit("--split", "published")[0].splitlines()
    (eva,) = (line.split() for line in lines if line.split()[:1] == ["eva"])
    assert "339" in eva and "91," in eva and "26.8" in eva
    assert any(line.startswith("thunder: MICS-Lab/thunder") and "arXiv 2507.07860" in line for line in lines)
    assert "first" not in " ".join(lines).replace("(first version", "")


@pytest.mark.parametrize("name", published.list_names())
def test_a_list_is_a_split(name, images):
    made = splits.make_split(images, name, validation=0)
    key = ["fold", "filename"]
    pd.testing.assert_frame_equal(
        made.sort_values(key, ignore_index=True),
        published.read_list(name).sort_values(key, ignore_index=True),
        check_dtype=False,
    )
    with_validation = splits.make_split(images, name)
    assert set(with_validation["role"]) == set(splits.ROLES)
    assert (with_validation["role"] == "test").equals(made["role"] == "test")
    assert str(made["fold"].nunique()) in splits.describe_protocol(name) or made["fold"].nunique() == 1


def test_validation_is_taken_from_training_by_case(images):
    known = images.set_index("filename")["case"]
    for name in ("eva", "breakhis-case-5fold"):
        for _, part in splits.folds_of(splits.make_split(images, name)):
            cases = {role: set(known[part.loc[part["role"] == role, "filename"]]) for role in splits.ROLES}
            assert cases["validation"] and not cases["validation"] & cases["train"]
    given = published.read_list("thunder").set_index("filename")["role"]
    made = splits.make_split(images, "thunder").set_index("filename")["role"]
    assert made.to_dict() == given.to_dict()  # a list that names validation keeps it


def test_a_part_of_the_images_and_other_images(images, tiny_names):
    half = images.iloc[::2]
    made = splits.make_split(half, "eva", validation=0)
    listed = published.read_list("eva")
    assert set(made["filename"]) == set(listed["filename"]) & set(half["filename"])
    tests = (made["role"] == "test").sum()
    assert published.coverage_text("eva", half).startswith(f"eva: {tests} of 339 test images and ")
    with pytest.raises(InputError, match="eva.*none of its images is here"):
        splits.make_split(images_table(tiny_names), "eva")
    with pytest.raises(InputError, match="'evva'.*eva-2025-02"):
        splits.make_split(images, "evva")


def test_names_are_matched_by_stem():
    name = "SOB_M_DC-14-2523-400-007"
    spelled = [
        f"{name}.png", f"{name}.PNG", f"{name}.jpg", name, f"data/train/{name}.png",
        f"C:\\x\\{name.lower()}.jpeg", f"./a b/{name}.png.jpg", f" {name}.tif ",
        f"a\\b/c/{name}.png", f"\\\\host\\share\\{name}.bmp",
    ]  # fmt: skip
    assert set(map(breakhis.official_name, spelled)) == {f"{name}.png"}
    others = ["mine.png", f"{name}x.png", f"my{name}.png", f"{name}/tile1.png", ""]
    assert [breakhis.official_name(one) for one in others] == others


def test_a_strangers_table_is_audited(tmp_path, images):
    listed = published.read_list("eva")
    changed = [
        lambda name, role: f"D:\\BreakHis\\{role}\\{name.replace('.png', '.jpg')}",
        lambda name, role: f"/home/me/{role}/{name.upper()}",
        lambda name, role: name.lower().removesuffix(".png"),
    ]
    spelled = [
        changed[number % 3](name, role)
        for number, (name, role) in enumerate(zip(listed["filename"], listed["role"]))
    ]
    listed.assign(filename=spelled)[["filename", "role"]].to_csv(tmp_path / "Mine.CSV", index=False)
    (row,) = checks.audit_splits(images, str(tmp_path / "Mine.CSV"))
    assert row["test_images"] == 339 and row["counts"]["case_leak"] == 91
    lines = checks.audit_lines([row])
    assert "(91 of 339 test images)" in lines[0] and "49 of 129 benign, 42 of 210 malignant" in lines[1]
    assert lines[2] == "  test cases: benign 4, malignant 9, F 2, TA 2, DC 7, MC 2"
    assert lines[3].startswith("This split keeps slides apart but not cases, as 7 of the 9 published ones")


def test_a_table_that_is_no_split_is_refused(tmp_path, images):
    known = images["filename"].iloc[:2].tolist()
    for names, word in (
        (["", *known], "line 2 has no filename"),
        ([f"a/{known[0]}", f"b/{known[0].replace('png', 'jpg')}", known[1]], "comes twice in fold 0"),
        (
            ["SOB_M_DC-14-2523-400-999.png", *known],
            "is 'SOB_M_DC-14-2523-400-999.png'; it is not among the images",
        ),
    ):
        table = pd.DataFrame({"filename": names, "role": ["train", "train", "test"]})
        table.to_csv(tmp_path / "t.csv", index=False)
        with pytest.raises(InputError, match=word):
            checks.audit_splits(images, str(tmp_path / "t.csv"))


def test_an_image_on_both_sides_is_told(tmp_path, images):
    names = images["filename"].iloc[[0, 0, 9, 2400]]
    roles = ["train", "test", "test", "train"]
    pd.DataFrame({"filename": names, "role": roles}).to_csv(tmp_path / "both.csv", index=False)
    rows = checks.audit_splits(images, str(tmp_path / "both.csv"))
    assert (
        checks.audit_lines(rows)[0].split(": ")[1].startswith("1 of 2 test images themselves, 1 of 1 test sl")
    )
    assert rows[0]["counts"]["image_leak"] == 1
    # the same image, spelled in two ways
    names = [f"train/{names.iloc[0]}", f"test/{names.iloc[1]}", *names.iloc[2:]]
    pd.DataFrame({"filename": names, "role": roles}).to_csv(tmp_path / "both.csv", index=False)
    assert checks.audit_splits(images, str(tmp_path / "both.csv"))[0]["images_shared"] == 1


def test_recognised_by_its_test_images():
    for name in ("eva-2025-02", "gupta", "breakhis-case-40x"):
        test = published.read_list(name).query("role == 'test'")["filename"]
        assert published.recognise(test) == [name]
    fold = published.read_list("breakhis-case-5fold").query("role == 'test' and fold == 3")["filename"]
    assert published.recognise(fold) == ["breakhis-case-5fold"]
    assert published.recognise(fold.iloc[1:]) == []


def test_the_recommended_folds(images):
    """70 cases, none in two folds; benign and malignant cases and subtypes of each fold as listed."""
    folds = pd.read_csv(
        published.list_file("breakhis-case-5fold")
    )  # as someone without this library reads it
    assert list(folds.columns) == ["filename", "fold"] and set(folds["filename"]) == set(images["filename"])
    table = folds.merge(images, on="filename")
    assert table["case"].nunique() == 70 and (table.groupby("case")["fold"].nunique() == 1).all()
    assert table.loc[table["slide"] == "14-13412", "subtype"].nunique() == 2
    found = [
        published.count_test_cases(part, images)
        for _, part in splits.folds_of(published.read_list("breakhis-case-5fold"))
    ]
    assert found == [
        {"benign": 4, "malignant": 10, "A": 1, "F": 2, "TA": 2, "DC": 7, "LC": 1, "MC": 1, "PC": 1},
        {"benign": 3, "malignant": 11, "A": 1, "F": 1, "TA": 1, "DC": 8, "LC": 1, "MC": 1, "PC": 1},
        {"benign": 3, "malignant": 11, "F": 2, "PT": 1, "TA": 1, "DC": 8, "MC": 2, "PC": 1},
        {"benign": 3, "malignant": 11, "F": 1, "PT": 1, "TA": 1, "DC": 8, "LC": 1, "MC": 2, "PC": 1},
        {"benign": 3, "malignant": 11, "F": 1, "PT": 1, "TA": 1, "DC": 7, "LC": 1, "MC": 1, "PC": 2},
    ]
    assert folds["fold"].value_counts().sort_index().tolist() == [1543, 1431, 1683, 1699, 1553]


def test_how_the_recommended_folds_were_drawn(images):
    """Stratified k folds over a table of cases, one row each, by class and (first) subtype; seed 0."""
    cases = images.groupby("case").agg({"class": "min", "subtype": "min"}).reset_index()
    cases = cases.sort_values(["class", "subtype", "case"], ignore_index=True)
    drawn = StratifiedKFold(5, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rare subtypes have fewer cases than folds
        parts = list(drawn.split(cases, cases["class"] + " " + cases["subtype"]))
    expected = {case: fold for fold, (_, test) in enumerate(parts) for case in cases["case"][test]}
    stored = pd.read_csv(published.list_file("breakhis-case-5fold")).merge(images, on="filename")
    assert (stored["case"].map(expected) == stored["fold"]).all()


def test_the_recommended_single_split(images):
    table = pd.read_csv(published.list_file("breakhis-case-40x"))
    assert list(table.columns) == ["filename", "role"]
    table = table.merge(images, on="filename").merge(
        pd.read_csv(published.list_file("breakhis-case-5fold")), on="filename"
    )
    assert set(table["filename"]) == set(images.loc[images["magnification"] == 40, "filename"])
    assert (table["role"] == table["fold"].map({0: "test", 1: "validation"}).fillna("train")).all()
    assert (table.groupby("case")["role"].nunique() == 1).all()
    assert table["role"].value_counts().to_dict() == {"train": 1232, "test": 401, "validation": 362}


@pytest.mark.parametrize("name", published.RECOMMENDED)
def test_the_recommended_lists_share_nothing(name, images):
    for row in checks.audit_splits(images, name):
        assert row["cases_shared"] == row["slides_shared"] == row["images_shared"] == 0


def test_how_others_keep_apart():
    for slides, cases, text in (
        (0, 5, "keeps slides apart but not cases, as 7 of the 9 published ones"),
        (3, 5, "has slides on both sides, as 2 of the 9"),
        (0, 0, "keeps slides and cases apart, which none of the 9"),
    ):
        assert text in published.kept_apart_text({"slide_leak": slides, "case_leak_trainval": cases})
