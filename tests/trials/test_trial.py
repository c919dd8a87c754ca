"""What a trial trains and predicts on, and what it is known by."""

import json
import shutil

import pandas as pd
import pytest

from bcdlib.data import splits
from bcdlib.errors import InputError
from bcdlib.methods.parts import architectures
from bcdlib.runs.profiles import get_profile
from bcdlib.trials.trial import Trial, add_predictions, run_trial

PROFILE = get_profile("demo", size=(20, 15), folds=3)
METHOD = '''
import numpy as np
from bcdlib.methods import Method


class Memory(Method):
    """Says 1 for an image of a case that it was fitted on, else 0; says too how many images it was given."""

    key, title, always = "memory", "test", "{always}"
    {more}

    def __init__(self, share=0.2):
        self.share = share

    def fit(self, X, y, validation_data=None, folder=None, images=None):
        self.cases = set(images["case"])
        self.given = 0 if validation_data is None else len(validation_data[1])
        if folder is not None:
            (folder / "given.txt").write_text(str(self.given))
        return self

    def predict_proba(self, X, images=None):
        p = images["case"].isin(self.cases).to_numpy(float)
        return np.column_stack([1 - p, p])

    def save(self, path):
        raise NotImplementedError
'''


@pytest.fixture
def run(prepare, tiny, tmp_path):
    return prepare(tmp_path / "run", tiny, PROFILE, tmp_path / "cache")


@pytest.fixture
def tried(run, tmp_path):
    """Run one trial of a method file with this text, by split."""

    def tried(text=None, split="case", name="memory.py", **settings):
        (tmp_path / name).write_text(text or METHOD.format(always="head", more=""))
        table = splits.read_split(run[0], split)
        trial = Trial(str(tmp_path / name), split, table, **{"fold": 1} | settings)
        return run_trial(
            trial, run[1], PROFILE, root=run[0].folder / "trials", weights="none", keep_model=False
        )

    return tried


@pytest.mark.parametrize("split", ["case", "slide"])
def test_heads_are_validated_out_of_fold(tried, run, split):
    """All of the training part is predicted, each image by a fit that has not seen its group."""
    result = tried(split=split)
    part = splits.fold_of(splits.read_split(run[0], split), 1).set_index("filename")["role"]
    validation, test = (table.set_index("filename") for table in (result.validation, result.predictions))
    assert set(validation.index) == set(part.index[part != "test"]) and validation.index.is_unique
    assert set(test.index) == set(part.index[part == "test"])
    if split == "case":
        assert (validation["probability"] == 0).all() and (test["probability"] == 0).all()
    record = json.loads((result.folder / "trial.json").read_text())
    assert record["out_of_fold"] == 3 and record["curves_on"] == "" and result.held_out == ""


def test_whole_networks_are_validated_on_the_validation_part(tried, run):
    result = tried(METHOD.format(always="all", more=""))
    part = splits.fold_of(splits.read_split(run[0], "case"), 1).set_index("filename")["role"]
    assert set(result.validation["filename"]) == set(part.index[part == "validation"])
    assert (result.validation["probability"] == 0).all()
    assert json.loads((result.folder / "trial.json").read_text())["out_of_fold"] == 0


@pytest.mark.parametrize("more, given", [("", False), ("chooses = False", True)])
def test_nothing_is_chosen_on_the_test_part(tried, run, more, given):
    """Without a validation part the test part is handed out for curves alone, to a method that says so."""
    result = tried(METHOD.format(always="all", more=more), split="magnification", fold=0)
    assert int((result.folder / "given.txt").read_text()) == given * len(result.predictions)
    assert result.validation.empty


def test_edited_code_is_another_trial_and_a_comment_is_not(tried):
    one = tried()
    again = tried(METHOD.format(always="head", more="") + "\n# a remark\n")
    assert again.folder == one.folder
    edited = tried(METHOD.format(always="head", more="").replace("share=0.2", "share=0.9"))
    assert edited.folder != one.folder
    deeper = tried(METHOD.format(always="head", more="").replace("p = images", "p = 0.9 * images"))
    assert deeper.folder not in (one.folder, edited.folder)


def test_weights_are_known_by_content(run, tmp_path):
    """The same weights in another folder are the same trial; other weights under the same path are not."""
    table = splits.read_split(run[0], "case")
    written = tmp_path / "googlenet_notop.weights.h5"
    architectures.GoogLeNet(input_shape=(32, 32, 3)).save_weights(written)
    names = []
    for place, change in (("a", False), ("b", False), ("b", True)):
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        file = folder / written.name
        if change:
            with open(file, "ab") as opened:
                opened.write(b"\0")  # HDF5 does not mind
        else:
            shutil.copy(written, file)
        trial = Trial("googlenet", "case", table, trainable="head")
        result = run_trial(
            trial,
            run[1],
            PROFILE,
            root=run[0].folder / "trials",
            weights=str(folder),
            keep_model=False,
            verbose=0,
        )
        assert str(written.name) in result.predictions["weights"].unique().item()
        names.append(result.folder.name)
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("name", ["predictions.csv", "validation.csv", "trial.json"])
def test_a_trial_with_a_cut_or_damaged_file_is_run_again(name, tried):
    whole = tried()
    content = (whole.folder / name).read_bytes()
    ways = [b"", content[:40] if name == "trial.json" else b"a,b,c\n1,2\n3,4,5,6\n"]
    if name != "trial.json":
        ways.append(b"".join(content.splitlines(keepends=True)[:5]))
    for damaged in ways:
        (whole.folder / name).write_bytes(damaged)
        again = tried()
        pd.testing.assert_frame_equal(again.predictions, whole.predictions)
        if name != "trial.json":
            assert (whole.folder / name).read_bytes() == content


@pytest.mark.parametrize("damaged", ["", "a,b\n1,2\n"])
def test_a_damaged_table_of_predictions_is_named(damaged, tried, tmp_path):
    (tmp_path / "comparison_predictions.csv").write_text(damaged)
    with pytest.raises(InputError, match=r"comparison_predictions.csv: cannot be read .* delete it"):
        add_predictions(tmp_path / "comparison_predictions.csv", tried().predictions)
