"""What shared cases are worth: trainings of one size with and without them, and the paired difference."""

import pandas as pd
import pytest

from bcdlib.data import splits
from bcdlib.data.breakhis import known_images
from bcdlib.errors import InputError
from bcdlib.runs.profiles import get_profile
from bcdlib.trials import shared_cases

PROFILE = get_profile("demo", size=(24, 16), folds=4)  # of which four put two slides of a case apart

# knows the cases that it was trained on, and calls every other image malignant
RECOGNISER = """
import numpy as np

from bcdlib.methods import Method


class Recogniser(Method):
    key, title = "recogniser", "remembers cases"

    def fit(self, X, y, validation_data=None, folder=None, images=None):
        self.known_ = dict(zip(images["case"], y))
        return self

    def predict_proba(self, X, images=None):
        malignant = np.array([self.known_.get(case, 0.9) for case in images["case"]], float)
        return np.stack([1 - malignant, malignant], axis=1)

    def save(self, path):
        path.write_text("")
"""


def table(rows):
    """Images of a split from (case, class, role, how many)."""
    made = [
        {"case": case, "class": kind, "role": role, "filename": f"{case}-{role}-{number}"}
        for case, kind, role, count in rows
        for number in range(count)
    ]
    return pd.DataFrame(made)


ROWS = [
    ("b1", "benign", "train", 4), ("b1", "benign", "test", 3), ("b2", "benign", "train", 3),
    ("b3", "benign", "train", 5), ("b4", "benign", "train", 2), ("m1", "malignant", "train", 6),
    ("m2", "malignant", "train", 7), ("m3", "malignant", "test", 5), ("b5", "benign", "validation", 9),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_both_trainings_are_of_one_size(seed):
    images = table(ROWS)
    made = shared_cases.equal_trainings(images, images, seed)
    facts = images.set_index("filename")[["case", "class"]]
    parts = {name: part.join(facts, on="filename") for name, part in made.items()}
    test = set(images.loc[images["role"] == "test", "filename"])
    counts = {}
    for name, part in parts.items():
        assert set(part.loc[part["role"] == "test", "filename"]) == test
        assert set(part["role"]) == {"train", "test"} and not part["filename"].duplicated().any()
        counts[name] = part[part["role"] == "train"].groupby("class").size().to_dict()
    assert counts[shared_cases.WITH] == counts[shared_cases.WITHOUT] == {"benign": 10, "malignant": 13}
    training = {name: part[part["role"] == "train"]["case"].value_counts() for name, part in parts.items()}
    assert training[shared_cases.WITHOUT].to_dict() == {"b2": 3, "b3": 5, "b4": 2, "m1": 6, "m2": 7}
    kept = training[shared_cases.WITH]
    assert kept["b1"] == 4 and kept["m1"] == 6 and kept["m2"] == 7  # nothing is shared among the malignant
    others = kept.reindex(["b2", "b3", "b4"], fill_value=0)
    broken = [0 < count < whole for count, whole in zip(others, (3, 5, 2))]
    assert others.sum() == 6 and sum(broken) <= 1  # whole cases, but for the last one


def test_draws_differ_and_repeat():
    images = table(ROWS)
    names = []
    for seed in (0, 0, *range(1, 9)):
        made = shared_cases.equal_trainings(images, images, seed)
        names.append(tuple(sorted(made[shared_cases.WITH]["filename"])))
    assert names[0] == names[1] and len(set(names)) > 2


def test_too_few_others_and_none():
    few = table([("b1", "benign", "train", 8), ("b1", "benign", "test", 2), ("b2", "benign", "train", 3),
                 ("m1", "malignant", "train", 4)])  # fmt: skip
    made = shared_cases.equal_trainings(few, few)
    cases = {name: part.loc[part["role"] == "train", "filename"].str[:2] for name, part in made.items()}
    assert cases[shared_cases.WITH].value_counts().to_dict() == {"b1": 3, "m1": 4}
    assert cases[shared_cases.WITHOUT].value_counts().to_dict() == {"b2": 3, "m1": 4}
    apart = few[~((few["case"] == "b1") & (few["role"] == "train"))]
    assert shared_cases.equal_trainings(apart, few) == {}
    with pytest.raises(InputError, match="no benign image is left"):
        shared_cases.equal_trainings(few[few["case"] != "b2"], few)


@pytest.mark.parametrize(
    "name", ["eva", "eva-2025-02", "thunder", "gupta", "gupta-cnn", "rap-mst", "official"]
)
def test_every_published_split_that_can_be_measured(name):
    images = known_images()
    for _, part in splits.folds_of(splits.make_split(images, name, validation=0)):
        made = shared_cases.equal_trainings(part, images)
        known = images.set_index("filename")[["case", "class"]]
        sizes = []
        for training, rows in made.items():
            rows = rows.join(known, on="filename")
            train, test = rows[rows["role"] == "train"], rows[rows["role"] == "test"]
            sizes.append(train["class"].value_counts().to_dict())
            assert train["case"].isin(test["case"]).any() == (training == shared_cases.WITH)
            assert len(test) == (part["role"] == "test").sum()
        assert sizes[0] == sizes[1]
    with pytest.raises(InputError, match="left to train on"):
        shared_cases.equal_trainings(splits.make_split(images, "csft", validation=0), images)


def test_measured_on_tiny_images(prepare, tiny, tmp_path):
    run, cache = prepare(tmp_path / "run", tiny, PROFILE, tmp_path / "cache")
    (tmp_path / "recogniser.py").write_text(RECOGNISER)
    asked = {"method_names": [str(tmp_path / "recogniser.py")], "seeds": range(3), "progress": False}
    # of the two cases with two slides each, one slide is tested while the other trains
    for seed in range(50):
        split = splits.make_split(cache.images, "slide", 4, validation=0, seed=seed)
        overlap = splits.split_overlap(split, cache.images)
        if overlap["cases_shared"].any():
            break
    run.record(seed=seed)
    found = shared_cases.measure_shared_cases(run, PROFILE, split_names=["slide"], **asked)
    rows = found.set_index(["test images", "metric"])
    names = {name for fold in overlap["shared_case_names"] for name in fold}
    shared = cache.images[cache.images["case"].isin(names)]
    assert len(shared) == overlap["test_images_of_shared_cases"].sum() > 0
    benign, tested = (
        (shared["class"] == "benign").sum(),
        overlap[overlap["cases_shared"] > 0]["test_images"].sum(),
    )
    assert rows.loc[("of shared cases", "accuracy"), "with"] == 1
    assert rows.loc[("of shared cases", "accuracy"), "without"] == pytest.approx(1 - benign / len(shared))
    assert rows.loc[("all", "accuracy"), "value"] == pytest.approx(benign / tested)
    assert (found["draws"] == 3).all()
    assert (rows.loc["of shared cases", "images"] == len(shared)).all()
    assert (rows.loc["all", "images"] == tested).all()
    low, high = rows.loc[("all", "accuracy"), ["low", "high"]]
    assert low <= benign / tested <= high
    stored = pd.read_csv(run.folder / "shared_cases.csv")
    pd.testing.assert_frame_equal(stored, found, check_dtype=False)
    predictions = pd.read_csv(run.folder / "shared_cases_predictions.csv")
    assert len(predictions) == 2 * 3 * tested and set(predictions["split"]) == {"slide"}
    with pytest.raises(InputError, match="'case'.*no case is in training and test"):
        shared_cases.measure_shared_cases(run, PROFILE, split_names=["case"], **asked)
