"""The five protocols on the whole manifest: counts, leaks, grouping, and what is refused."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

from bcdlib.data import breakhis, custom, splits
from bcdlib.data.breakhis import CLASSES, images_table, known_images
from bcdlib.errors import InputError
from bcdlib.evaluation import metrics

FOLDED = ["image", "slide", "case"]


@pytest.fixture(scope="module")
def images():
    return known_images()


@pytest.fixture(scope="module")
def made(images):
    return {protocol: splits.make_split(images, protocol) for protocol in splits.PROTOCOLS}


def groups(split, images, unit, fold, *roles):
    names = split.loc[(split["fold"] == fold) & split["role"].isin(roles), "filename"]
    return set(images.set_index("filename").loc[names, unit])


@pytest.mark.parametrize("protocol", splits.PROTOCOLS)
def test_every_image_has_one_role_in_every_fold(protocol, made, images):
    split = made[protocol]
    assert list(split.columns) == ["filename", "fold", "role"]
    folds = 1 if protocol == "magnification" else 5
    assert sorted(split["fold"].unique()) == list(range(folds))
    assert len(split) == folds * 7909 and not split.duplicated(["filename", "fold"]).any()
    assert set(split["filename"]) == set(images["filename"])
    roles = {"train", "test"} if protocol == "magnification" else {"train", "validation", "test"}
    assert set(split["role"]) == roles
    kinds = split.merge(images[["filename", "class"]], on="filename")
    assert (kinds.groupby(["fold", "role"])["class"].nunique() == 2).all()


def test_magnification_is_the_papers(made, images):
    split = made["magnification"]
    assert split["role"].value_counts().to_dict() == {"train": 5914, "test": 1995}
    test = split.loc[split["role"] == "test", "filename"]
    assert test.str.contains("-40-0", regex=False).all()
    (row,) = splits.split_overlap(split, images).to_dict("records")
    assert (row["slides_shared"], row["test_slides"]) == (82, 82)
    assert (row["cases_shared"], row["test_cases"]) == (70, 70)
    assert row["images_shared"] == 0 and row["test_images"] == 1995
    assert row["test_images_of_shared_slides"] == row["test_images_of_shared_cases"] == 1995
    assert splits.overlap_line(row) == (
        "82 of 82 test slides and 70 of 70 test cases were also in training (1995 of 1995 test images)."
    )


def test_official_is_the_fold_columns(made, images):
    split = made["official"]
    for fold in range(5):
        part = splits.fold_of(split, fold).set_index("filename")["role"]
        expected = images.set_index("filename")[f"fold_{fold + 1}"]
        assert set(part.index[part == "test"]) == set(expected.index[expected == "test"])


def test_official_equals_the_facts_table(made, breakhis):
    facts = pd.read_csv(breakhis / "breakhis_images.csv", dtype=str)
    for fold in range(5):
        part = splits.fold_of(made["official"], fold)
        test = set(part.loc[part["role"] == "test", "filename"])
        assert test == set(facts.loc[facts[f"fold_{fold + 1}"] == "test", "filename"])


def test_official_shares_cases(made, images):
    table = splits.split_overlap(made["official"], images)
    assert table["fold"].tolist() == [0, 1, 2, 3, 4]
    assert table["test_images_of_shared_cases"].tolist() == [1145, 674, 697, 836, 999]
    assert table["test_images"].tolist() == [2904, 2403, 2577, 2698, 3083]
    assert table["images_shared"].tolist() == [0] * 5
    assert table["slides_shared"].tolist() == [1, 0, 1, 0, 1]
    for fold in range(5):
        train = groups(made["official"], images, "slide", fold, "train", "validation")
        shared = groups(made["official"], images, "slide", fold, "test") & train
        assert shared == ({"14-13412"} if fold in (0, 2, 4) else set())


def test_overlap_counted_by_hand():
    images = pd.DataFrame(
        [
            ("a", "A", "14-1A", "14-1"),
            ("b", "A", "14-1B", "14-1"),
            ("c", "F", "14-2", "14-2"),
            ("d", "DC", "14-3", "14-3"),
            ("e", "LC", "14-3", "14-3"),
            ("f", "DC", "14-4", "14-4"),
        ],
        columns=["filename", "subtype", "slide", "case"],
    )
    roles = ["train", "test", "test", "validation", "test", "train"]
    split = pd.DataFrame({"filename": list("abcdef"), "role": roles})
    (row,) = splits.split_overlap(split, images).to_dict("records")
    assert row == {
        "fold": 0, "test_images": 3, "images_shared": 0,
        "test_slides": 3, "slides_shared": 1, "test_images_of_shared_slides": 1,
        "test_cases": 3, "cases_shared": 2, "test_images_of_shared_cases": 2,
        "shared_slide_names": ["14-3"], "shared_case_names": ["14-1", "14-3"],
    }  # fmt: skip
    assert splits.overlap_line(row).startswith("1 of 3 test slides (slide 14-3) and 2 of 3 test cases")


def test_overlap_sees_an_image_on_both_sides(images):
    split = pd.DataFrame({"filename": images["filename"].iloc[[0, 0, 9]], "role": ["train", "test", "test"]})
    assert splits.split_overlap(split, images)["images_shared"].tolist() == [1]


@pytest.mark.parametrize("protocol", FOLDED)
def test_every_image_is_tested_once(protocol, made, images):
    split = made[protocol]
    tested = split.loc[split["role"] == "test", "filename"]
    assert sorted(tested) == sorted(images["filename"])


def test_what_the_protocols_share(made, images):
    shared = {protocol: splits.split_overlap(made[protocol], images) for protocol in FOLDED}
    assert (shared["case"][["images_shared", "slides_shared", "cases_shared"]] == 0).all(axis=None)
    assert (shared["slide"][["images_shared", "slides_shared"]] == 0).all(axis=None)
    assert shared["slide"]["cases_shared"].sum() > 0
    assert (shared["image"]["images_shared"] == 0).all()
    assert (shared["image"]["slides_shared"] == shared["image"]["test_slides"]).all()


@pytest.mark.parametrize("protocol, unit", [("slide", "slide"), ("case", "case"), ("official", "case")])
def test_validation_is_grouped(protocol, unit, made, images):
    for fold in range(5):
        validation = groups(made[protocol], images, unit, fold, "validation")
        assert validation and not validation & groups(made[protocol], images, unit, fold, "train")
        if protocol != "official":
            assert not validation & groups(made[protocol], images, unit, fold, "test")


@pytest.mark.parametrize("protocol", [*FOLDED, "official"])
def test_validation_share(protocol, made, images):
    split = made[protocol]
    training = split[split["role"] != "test"]
    share = (training["role"] == "validation").groupby(training["fold"]).mean()
    assert share.between(0.24, 0.26).all() if protocol == "image" else share.between(0.1, 0.45).all()
    none = splits.make_split(images, protocol, validation=0)
    assert set(none["role"]) == {"train", "test"}
    assert none[none["role"] == "test"].equals(split[split["role"] == "test"])


def test_image_folds_are_stratified(made, images):
    kinds = made["image"].merge(images[["filename", "class"]], on="filename")
    for role in splits.ROLES:
        part = kinds[kinds["role"] == role]
        share = (part["class"] == "malignant").groupby(part["fold"]).mean()
        assert (share - 5429 / 7909).abs().max() < 0.002


@pytest.mark.parametrize("protocol", ["slide", "case"])
def test_folds_hold_as_many_groups_of_each_class(protocol, made, images):
    """One row a group: every fold tests a fifth of the benign ones, whatever the number of their images."""
    tested = made[protocol].query("role == 'test'").merge(images, on="filename")
    counts = tested.groupby(["fold", "class"])[protocol].nunique().unstack()
    for name in CLASSES:
        total = images.loc[images["class"] == name, protocol].nunique()
        assert counts[name].between(total // 5, total // 5 + 1).all(), counts
    assert (tested.groupby("fold")["subtype"].nunique() >= 6).all()


@pytest.mark.parametrize("protocol", FOLDED)
def test_seeds_draw_other_folds(protocol, images):
    """Three seeds are three draws: the adjusted Rand index of their folds is about 0."""
    unit = "filename" if protocol == "image" else protocol
    drawn = []
    for seed in range(3):
        tested = splits.make_split(images, protocol, seed=seed).query("role == 'test'")
        tested = tested.merge(images.drop_duplicates("filename"), on="filename").drop_duplicates(unit)
        drawn.append(tested.set_index(unit)["fold"].sort_index())
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert abs(adjusted_rand_score(drawn[one], drawn[two])) < 0.05


def test_folds_do_not_depend_on_the_version_of_scikit_learn(made):
    """The same folds with 1.6.1 and the newest: a digest of all of them."""
    text = "".join(made[protocol].to_csv(index=False) for protocol in FOLDED)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "f1367ee10bd9f729"


def test_groups_of_both_classes_are_spread():
    """A group with images of both classes counts for both."""
    groups = np.repeat(np.arange(30), 4)
    classes = np.where(groups < 10, "benign", "malignant")
    classes[(groups >= 8) & (groups < 12) & (np.arange(120) % 2 == 0)] = "benign"
    classes[(groups >= 8) & (groups < 12) & (np.arange(120) % 2 == 1)] = "malignant"
    folds = splits.group_folds(groups, classes, classes, folds=5)
    for fold in range(5):
        assert set(classes[folds == fold]) == {"benign", "malignant"}
    assert (pd.Series(folds).groupby(groups).nunique() == 1).all()


@pytest.mark.parametrize("protocol, unit", [("slide", "slide"), ("case", "case"), ("official", "case")])
def test_inner_folds_are_grouped(protocol, unit, made, images):
    part = splits.fold_of(made[protocol], 0).query("role != 'test'")
    training = images.set_index("filename").loc[part["filename"]].reset_index()
    folds = splits.inner_folds(training, protocol, 3)
    assert set(folds) == {0, 1, 2}
    assert (pd.Series(folds).groupby(training[unit].to_numpy()).nunique() == 1).all()
    for fold in range(3):
        assert training.loc[folds == fold, "class"].nunique() == 2
    benign = training[training["class"] == "benign"]
    one = pd.concat(
        [training[training["class"] == "malignant"], benign[benign[unit] == benign[unit].iloc[0]]]
    )
    assert not splits.inner_folds(one, protocol, 3).any()  # nothing benign to train on beside it


@pytest.mark.parametrize("protocol", FOLDED)
def test_seed(protocol, made, images):
    assert splits.make_split(images, protocol).equals(made[protocol])
    other = splits.make_split(images, protocol, seed=1)
    assert not other.equals(made[protocol])
    assert not other[other["role"] == "test"].equals(made[protocol][made[protocol]["role"] == "test"])


def test_seed_leaves_the_given_tests_alone(made, images):
    assert splits.make_split(images, "magnification", seed=1).equals(made["magnification"])
    other = splits.make_split(images, "official", seed=1)
    assert (other["role"] == "test").equals(made["official"]["role"] == "test")
    assert not other.equals(made["official"])


def test_row_labels_of_the_table_do_not_matter(images):
    part = images[images["magnification"] == 200]
    assert splits.make_split(part, "case").equals(splits.make_split(part.reset_index(drop=True), "case"))


@pytest.mark.parametrize("protocol", FOLDED)
def test_number_of_folds(protocol, tiny_names):
    images = images_table(tiny_names)
    for folds in (2, 3, 6):
        split = splits.make_split(images, protocol, folds=folds)
        assert split["fold"].nunique() == folds
        assert splits.split_overlap(split, images)["test_images"].sum() == 96
        if protocol != "image":
            assert (splits.split_overlap(split, images)[f"{protocol}s_shared"] == 0).all()


@pytest.mark.parametrize(
    "protocol, folds", [("slide", 8), ("case", 7), ("image", 49), ("case", 1), ("case", 0)]
)
def test_too_many_or_too_few_folds(protocol, folds, tiny_names):
    images = images_table(tiny_names)  # 6 cases, 7 slides and 48 images a class
    with pytest.raises(InputError, match=f"{folds} folds") as caught:
        splits.make_split(images, protocol, folds=folds)
    assert protocol in str(caught.value) and "\n" not in str(caught.value)
    if folds > 1:
        assert splits.make_split(images, protocol, folds=folds - 1)["fold"].nunique() == folds - 1


def test_unknown_protocol(images):
    with pytest.raises(InputError, match="'patient'") as caught:
        splits.make_split(images, "patient")
    assert all(protocol in str(caught.value) for protocol in splits.PROTOCOLS)


@pytest.mark.parametrize("protocol", splits.PROTOCOLS)
def test_one_class_only(protocol, images):
    for kind in CLASSES:
        with pytest.raises(InputError, match=protocol):
            splits.make_split(images[images["class"] == kind], protocol)


@pytest.mark.parametrize("drop", [[40], [100, 200, 400]])
def test_magnification_with_an_empty_part(drop, images):
    with pytest.raises(InputError, match="magnification"):
        splits.make_split(images[~images["magnification"].isin(drop)], "magnification")


def test_official_needs_the_real_names(images, tiny_names):
    tiny = images_table(tiny_names)
    for table in (tiny, images_table([*images["filename"], tiny_names[0]])):
        with pytest.raises(InputError, match="official"):
            splits.make_split(table, "official")


def test_fold_of(made):
    part = splits.fold_of(made["case"], 3)
    assert set(part["fold"]) == {3} and len(part) == 7909
    with pytest.raises(InputError, match="fold 5"):
        splits.fold_of(made["case"], 5)


def test_protocols_on_the_real_part(breakhis):
    images = images_table(sorted(file.name for file in (breakhis / "half").rglob("*.png")))
    assert len(images) == 557
    shared = splits.split_overlap(splits.make_split(images, "case"), images)
    assert shared["test_images"].sum() == 557
    assert (shared[["images_shared", "slides_shared", "cases_shared"]] == 0).all(axis=None)


def test_official_at_one_magnification(images):
    split = splits.make_split(images, "official-40")
    names = set(split["filename"])
    assert (
        names == set(images.loc[images["magnification"] == 40, "filename"]) and split["fold"].nunique() == 5
    )
    facts = images.set_index("filename")
    for fold, part in splits.folds_of(split):
        author = facts.loc[part["filename"], f"fold_{fold + 1}"].to_numpy()
        assert ((part["role"] == "test") == (author == "test")).all()
    assert "40X only" in splits.describe_protocol("official-40")
    with pytest.raises(InputError, match="unknown split 'official-50'"):
        splits.make_split(images, "official-50")
    with pytest.raises(InputError, match="no 40X image"):
        splits.make_split(images[images["magnification"] == 100], "official-40")


def test_a_table_made_elsewhere(images, tmp_path):
    table = splits.make_split(images, "official")[["filename", "fold", "role"]]
    one = table[table["fold"] == 2].drop(columns="fold")
    one.to_csv(tmp_path / "mine.csv", index=False)
    row = splits.split_overlap(splits.read_split_table(tmp_path / "mine.csv", images), images).iloc[0]
    assert (row["test_images"], row["test_images_of_shared_cases"]) == (2577, 697)
    assert row["shared_slide_names"] == ["14-13412"] and "(slide 14-13412)" in splits.overlap_line(row)
    # an image on both sides is what an audit is for: counted, not refused
    both = pd.concat([one, one[one["role"] == "test"].head(3).assign(role="train")])
    both.to_csv(tmp_path / "both.csv", index=False)
    assert (
        splits.split_overlap(splits.read_split_table(tmp_path / "both.csv", images), images)["images_shared"][
            0
        ]
        == 3
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.rename(columns={"role": "set"}), "column 'role' is missing"),
        (lambda t: t.assign(role="testing"), "is 'testing'; a role is one of train, validation, test"),
        (lambda t: t.assign(filename="cat.png"), "'cat.png'; it is not among the images"),
        (lambda t: pd.concat([t, t]), "comes twice in fold 0"),
        (lambda t: t[t["role"] == "test"], "no image with role 'train' or none"),
    ],
)
def test_bad_tables_made_elsewhere(images, tmp_path, change, message):
    change(splits.make_split(images, "magnification")[["filename", "role"]]).to_csv(
        tmp_path / "t.csv", index=False
    )
    with pytest.raises(InputError, match=message):
        splits.read_split_table(tmp_path / "t.csv", images)


def test_no_table_made_elsewhere(images, tmp_path):
    with pytest.raises(InputError, match="no such split table"):
        splits.read_split_table(tmp_path / "none.csv", images)


@pytest.fixture
def kaggle_folds(images, tmp_path):
    """As the Folds.csv of Kaggle's copy: paths in its folders, folds from 1, the role called grp."""
    official = splits.make_split(images, "official", validation=0)
    where = "BreaKHis_v1/" + official["filename"].map(breakhis.official_path)
    table = official.assign(fold=official["fold"] + 1, mag=40, grp=official["role"], filename=where)
    table[["fold", "mag", "grp", "filename"]].to_csv(tmp_path / "Folds.csv", index=False)
    return tmp_path / "Folds.csv", official


def test_the_table_that_lies_beside_kaggles_copy(kaggle_folds, images):
    file, official = kaggle_folds
    found = splits.split_overlap(splits.read_split_table(file, images), images)
    pd.testing.assert_frame_equal(
        found.assign(fold=found["fold"] - 1), splits.split_overlap(official, images)
    )
    with pytest.raises(InputError, match="line 2: .*not among .*; without --data all of BreakHis is audited"):
        splits.read_split_table(file, images[images["class"] == "malignant"])


def test_a_table_in_another_ones_place_is_told(kaggle_folds):
    file, _ = kaggle_folds
    for read in (custom.read_manifest, metrics.read_predictions):
        with pytest.raises(
            InputError, match="is missing; .*; it is rather a split table, for `audit --split`"
        ):
            read(file)
    file.write_text("path,label,group\n")
    with pytest.raises(
        InputError, match="'filename' is missing; .*it is rather a manifest of images of one's own"
    ):
        metrics.read_predictions(file)


def test_the_last_seed_has_validation_parts_too(images):
    """Each fold's are drawn by the seed and the fold's number."""
    last = splits.make_split(images, "case", seed=2**32 - 1)
    assert (last.groupby("fold")["role"].nunique() == 3).all() and last["fold"].nunique() == 5


def test_a_fold_that_the_split_does_not_have(images):
    with pytest.raises(InputError, match="^fold -1: the split has folds 0, 1, 2, 3, 4$"):
        splits.fold_of(splits.make_split(images, "case"), -1)


# --- what publications drew ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "protocol, sizes",
    [("image-80-20", (6327, 1582)), ("image-50-25-25", (3954, 1977)), ("image-400-balanced", (940, 236))],
)
def test_splits_of_publications_have_their_sizes(protocol, sizes, images):
    """6327 and 1582 images (Dabeer 2019); half and quarters; 588 of each class at 400X, 80 % and 20 %."""
    split = splits.make_split(images, protocol, validation=0 if "50" not in protocol else 0.25)
    counts = split["role"].value_counts()
    assert split["fold"].unique().tolist() == [0] and not split["filename"].duplicated().any()
    assert abs(counts["train"] - sizes[0]) <= 2 and abs(counts["test"] - sizes[1]) <= 2
    known = split.merge(images, on="filename")
    shares = known.groupby("role")["class"].value_counts(normalize=True).unstack()
    assert np.ptp(shares["malignant"]) < 0.005  # stratified
    if protocol == "image-400-balanced":
        assert set(known["magnification"]) == {400} and known["class"].value_counts().nunique() == 1
    if protocol == "image-50-25-25":
        assert abs(counts["validation"] - sizes[1]) <= 2
    overlap = splits.split_overlap(split, images).iloc[0]
    assert overlap["test_images_of_shared_slides"] > 0.99 * overlap["test_images"]
    other = splits.make_split(images, protocol, seed=1)
    again = splits.make_split(images, protocol)
    assert again.equals(splits.make_split(images, protocol)) and not again.equals(other)


def test_balanced_split_without_400x(images):
    with pytest.raises(InputError, match="no 400X image"):
        splits.make_split(images[images["magnification"] == 40], "image-400-balanced")


@pytest.mark.parametrize("protocol", [*splits.PROTOCOLS, *splits.AUTHORS])
def test_the_order_of_the_images_does_not_matter(protocol, images):
    one, other = (
        splits.make_split(table, protocol).sort_values(["fold", "filename"], ignore_index=True)
        for table in (images, images.sample(frac=1, random_state=1))
    )
    pd.testing.assert_frame_equal(one, other)
