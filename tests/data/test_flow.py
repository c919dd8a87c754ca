"""Which images went where: counted against the names, with everything that can go wrong with a file."""

import shutil

import numpy as np
import pandas as pd
import pytest

from bcdlib.data import flow
from bcdlib.data.breakhis import class_labels, official_path
from bcdlib.runs.folder import open_run_folder
from bcdlib.runs.profiles import get_profile


@pytest.fixture(scope="module")
def run_and_tested(tiny, tiny_names, prepare, tmp_path_factory):
    """A run of 96 images of which three are damaged, and with three files that are none of them."""
    folder = tmp_path_factory.mktemp("flow")
    shutil.copytree(tiny, folder / "data")
    for name in tiny_names[:3]:
        (folder / "data" / official_path(name)).write_bytes(b"no image")
    shutil.copy(folder / "data" / official_path(tiny_names[5]), folder / "data" / tiny_names[5])
    (folder / "data" / "other.png").write_bytes(b"x")
    (folder / "data" / "another.png").write_bytes(b"x")
    run, cache = prepare(folder / "run", folder / "data", get_profile("demo"), folder / "cache")
    tables = [pd.read_csv(run.folder / "splits" / f"{name}.csv") for name in ("case", "magnification")]
    tested = pd.concat(
        [
            part.query("fold == 0 and role == 'test'").assign(split=name)
            for name, part in zip(("case", "magnification"), tables)
        ]
    )
    return run, cache.images, tested


def test_found_left_out_and_used(run_and_tested):
    run, used, tested = run_and_tested
    table = flow.flow_table(run, tested)
    assert len(used) == 93
    common = table[table["split"] == ""]
    assert common["step"].tolist() == ["found", *["left out"] * 3, "used"]
    assert common["images"].tolist() == [99, 3, 2, 1, 93]  # the most frequent reason first
    assert common["reason"].tolist()[1:4] == [
        "cannot be decoded",
        "is not a BreakHis file name",
        "second copy",
    ]
    row = common.iloc[-1]
    assert [row["slides"], row["cases"]] == [14, 12]
    assert row["benign"] == (used["class"] == "benign").sum() == 45
    assert [row["benign_cases"], row["malignant_cases"]] == [6, 6]


@pytest.mark.parametrize("split", ["case", "magnification"])
def test_the_parts_of_a_split(run_and_tested, split):
    run, used, tested = run_and_tested
    table = flow.flow_table(run, tested).query("split == @split").set_index("step")
    assert table["images"].sum() == 93 and (table["fold"] == 0).all()
    roles = pd.read_csv(run.folder / "splits" / f"{split}.csv").query("fold == 0").merge(used, on="filename")
    for role, part in roles.groupby("role"):
        row = table.loc[role]
        assert row["images"] == len(part) and row["cases"] == part["case"].nunique()
        assert row["slides"] == part["slide"].nunique()
        assert row["malignant"] == (part["class"] == "malignant").sum()
        assert row["malignant_cases"] == part.loc[part["class"] == "malignant", "case"].nunique()
    assert table["cases_in_training"].notna().tolist() == [False, False, True]
    # of the first case both 40X images are damaged
    assert table.loc["test", "cases_in_training"] == {"case": 0, "magnification": 11}[split]


def test_images_outside_a_split_are_counted(run_and_tested):
    run, used, tested = run_and_tested
    part = pd.read_csv(run.folder / "splits" / "case.csv").query("fold == 0")
    part[part["filename"].isin(used["filename"][::2])].to_csv(run.folder / "splits" / "half.csv", index=False)
    table = flow.flow_table(run, tested[tested["split"] == "case"].assign(split="half"))
    table = table[table["split"] == "half"].set_index("step")
    assert table.loc["outside the split", "images"] == 46 and table["images"].sum() == 93


def test_of_predictions_made_elsewhere_only_the_test_part_is_known(tmp_path, tiny_names):
    label = class_labels(pd.DataFrame({"class": ["benign", "malignant"]}))
    rows = pd.DataFrame({"filename": ["1", "2", "3"], "slide": ["s", "s", "t"], "case": ["s", "s", "t"]})
    rows = rows.assign(subtype="unknown", label=label[[0, 0, 1]], split="mine", fold=np.int64(0), seed=0)
    both = pd.concat([rows, rows.assign(seed=1)])
    table = flow.flow_table(open_run_folder(tmp_path / "run"), both)
    (row,) = table.to_dict("records")
    assert [row[name] for name in flow.COUNTS] == [3, 2, 2, 2, 1, 1, 1]
    assert row["step"] == "test" and np.isnan(row["cases_in_training"])
