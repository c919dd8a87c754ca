"""Recorded results, choosing inside training parts, and the commands for both."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

from bcdlib import compare
from bcdlib.data import breakhis, splits
from bcdlib.errors import InputError
from bcdlib.evaluation import bootstrap, metrics, recorded
from bcdlib.runs.profiles import get_profile
from bcdlib.trials import comparison, trial
from tests.command import here

ROOT = Path(__file__).resolve().parent.parent.parent
PROFILE = get_profile("demo", size=(20, 15), folds=3)
METHOD = '''
import numpy as np
from bcdlib.methods import Method


class Known(Method):
    """Knows the label of this share of the images: by name, which no real method could."""

    key, title = "known", "test"

    def __init__(self, share=1.0):
        self.share = share

    def fit(self, X, y, validation_data=None, folder=None, images=None):
        return self

    def predict_proba(self, X, images=None):
        right = (images["class"] == "malignant").to_numpy(float)
        random = np.random.default_rng(len(images))
        p = np.where(random.random(len(images)) < self.share, right, random.random(len(images)))
        return np.column_stack([1 - p, p])

    def save(self, path):
        raise NotImplementedError
'''


@pytest.fixture
def run(prepare, tiny, tmp_path):
    return prepare(tmp_path / "run", tiny, PROFILE, tmp_path / "cache")[0]


@pytest.fixture
def known(tmp_path):
    (tmp_path / "known.py").write_text(METHOD)
    return str(tmp_path / "known.py")


def predictions(split="case", better=0.0, method="a", seeds=(0,)):
    cases = ["14-22549", "14-21998", "14-29315", "14-10147", "14-11031", "14-12204"]
    names = breakhis.known_images()
    names = names[(names["magnification"] == 40) & names["case"].isin(cases)]
    rows = []
    for seed in seeds:
        random = np.random.default_rng(seed)
        label = breakhis.class_labels(names)
        noise = random.random(len(names))
        rows.append(
            names[["filename", "slide", "case", "magnification", "subtype"]].assign(
                label=label,
                probability=(noise + better * label) / (1 + better),
                fold=0,
                method=method,
                split=split,
                seed=seed,
                weights="ImageNet weights (file x/y.h5)",
            )
        )
    return pd.concat(rows, ignore_index=True)


def test_a_recording_gives_back_what_was_put_in(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "recorded_folder", lambda: tmp_path)
    table = pd.concat(
        [predictions(seeds=(0, 1)), predictions(better=1.0, method="b", seeds=(0, 1))], ignore_index=True
    )
    recorded.write_recording(
        "one",
        table,
        "pruned 8-bit ImageNet ResNet-50",
        commands=["python -m bcdlib compare"],
        against="a",
    )
    found = recorded.read_recording("one")
    same = found.predictions[metrics.COLUMNS]
    pd.testing.assert_frame_equal(
        same, table[metrics.COLUMNS], check_exact=False, atol=1e-5, check_dtype=False
    )
    assert set(found.predictions["weights"]) == {"pruned 8-bit ImageNet ResNet-50"}
    again = bootstrap.interval_table(found.predictions, metrics.shown_in("comparison"))
    np.testing.assert_allclose(
        found.metrics[["value", "low", "high"]], again[["value", "low", "high"]], atol=1e-9
    )
    difference = found.differences.query("metric == 'auc'").iloc[0]
    assert (difference["first"], difference["second"]) == ("b", "a") and difference["low"] > 0
    with pytest.raises(InputError, match="no recording 'two'"):
        recorded.read_recording("two")


def test_what_is_not_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "recorded_folder", lambda: tmp_path)
    with pytest.raises(InputError, match="choose from a"):
        recorded.write_recording("one", predictions(), "w", commands=[], against="b")
    foreign = predictions().assign(filename=lambda t: "mine-" + t["filename"])
    with pytest.raises(InputError, match="BreakHis"):
        recorded.write_recording("one", foreign, "w", commands=[], against="a")
    with pytest.raises(InputError, match="not a plain name"):
        recorded.write_recording("../one", predictions(), "w", commands=[], against="a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", recorded.recorded_names())
def test_the_stored_metrics_follow_from_the_stored_predictions(name):
    found = recorded.read_recording(name)
    values = metrics.metrics_table(found.predictions).set_index(["method", "split"])
    for row in found.metrics.itertuples():
        assert row.value == pytest.approx(values.loc[(row.method, row.split), row.metric], abs=1e-9)
        assert row.low <= row.value + 1e-9 and row.high >= row.value - 1e-9 or np.isnan(row.low)
    assert "pruned 8-bit ImageNet ResNet-50" in found.facts["weights"]
    assert set(found.predictions["filename"]) <= set(breakhis.known_images()["filename"])
    case = found.differences.query("split == 'case' and metric == 'case_auc'").iloc[-1]
    by_method = dict(list(found.predictions.query("split == 'case'").groupby("method")))
    again = bootstrap.paired_difference(by_method[case["first"]], by_method[case["second"]], "case_auc")
    assert again["value"] == pytest.approx(case["value"])
    assert again["low"] == pytest.approx(case["low"], abs=0.02)  # stored: from more resamples
    assert found.differences["p_holm"].ge(found.differences["p"] - 1e-12).all()
    draws = found.predictions.query("split == 'case' and method == @case.first").drop_duplicates(
        ["filename", "seed"]
    )
    if draws["seed"].nunique() > 1:  # three seeds are three draws of the folds
        folds = draws.drop_duplicates(["case", "seed"]).pivot(index="case", columns="seed", values="fold")
        for one, two in ((0, 1), (0, 2), (1, 2)):
            assert abs(adjusted_rand_score(folds[one], folds[two])) < 0.3


def test_recordings_are_drawn_with_images_slides_cases_seeds_and_weights():
    assert {"protocols", "variants"} <= set(recorded.recorded_names())
    for figure in (
        compare.recorded_protocol_figure("protocols"),
        compare.recorded_difference_figure("variants"),
    ):
        texts = [t.get_text() for t in figure.findobj(matplotlib.text.Text)]
        joined = " ".join(texts)
        for word in ("557 images", "35 slides", "26 cases", "seed", "pruned 8-bit ImageNet ResNet-50"):
            assert word in joined, word
    assert "python -m bcdlib compare" in compare.recorded_note("protocols")
    assert (
        len(compare.recorded_protocol_table("variants"))
        == recorded.read_recording("variants").differences["first"].nunique() + 1
    )


def test_the_better_method_is_chosen_and_pays(run, known):
    names = [f"{known}:share=0.2", known, f"{known}:share=0.5"]
    whole = comparison.run_comparison(run, PROFILE, method_names=names, split_names=["case"], progress=False)
    chosen = comparison.choose_methods(run, PROFILE, method_names=names, split_names=["case"], progress=False)
    best = whole[whole["method"] == "known"].reset_index(drop=True)
    pd.testing.assert_frame_equal(chosen.drop(columns="method"), best.drop(columns="method"))
    choices = pd.read_csv(run.folder / "choices.csv")
    assert choices.groupby("fold")["chosen"].sum().tolist() == [1, 1, 1]
    assert set(choices.loc[choices["chosen"], "method"]) == {"known"}
    everything = comparison.all_predictions(run)
    assert set(everything["method"]) == {"known-share=0.2", "known", "known-share=0.5", "chosen"}
    assert set(pd.read_csv(run.folder / "comparison.csv")["method"]) == set(everything["method"])
    with pytest.raises(InputError, match="image, slide, case"):
        comparison.choose_methods(
            run, PROFILE, method_names=names, split_names=["magnification"], progress=False
        )


def test_settings_in_a_name_change_the_trial(run, known):
    split = splits.read_split(run, "case")
    estimator = trial.Trial(f"{known}:share=0.25", "case", split).estimator(PROFILE)
    assert estimator.share == 0.25 and trial.Trial(known, "case", split).estimator(PROFILE).share == 1.0


def test_bad_settings_on_the_command_line(tmp_path):
    done = here("compare", "--methods", "robust:stage=4", "--out", tmp_path / "out")
    assert done.returncode == 2 and "no parameter 'stage'" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
