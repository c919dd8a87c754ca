"""Recorded results, choosing inside training parts, and the commands for both."""

import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

from bcdlib import choosing, compare, intervals, manifest, metrics, mount, preprocess, profiles, recorded, splits, trials
from bcdlib.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
PROFILE = profiles.get("demo", size=(20, 15), folds=3)
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
def run(tiny, tmp_path):
    folder = mount.open_run(tmp_path / "run")
    mount.start(folder, str(tiny))
    cache = preprocess.resize(folder, mount.open_data(folder), PROFILE, tmp_path / "cache", progress=False)
    preprocess.make_splits(folder, cache, PROFILE)
    return folder


@pytest.fixture
def known(tmp_path):
    (tmp_path / "known.py").write_text(METHOD)
    return str(tmp_path / "known.py")


def predictions(split="case", better=0.0, method="a", seeds=(0,)):
    cases = ["14-22549", "14-21998", "14-29315", "14-10147", "14-11031", "14-12204"]
    names = manifest.load()
    names = names[(names["magnification"] == 40) & names["case"].isin(cases)]
    rows = []
    for seed in seeds:
        random = np.random.default_rng(seed)
        label = manifest.labels(names)
        noise = random.random(len(names))
        rows.append(names[["filename", "slide", "case", "magnification", "subtype"]].assign(
            label=label, probability=(noise + better * label) / (1 + better), fold=0, method=method, split=split, seed=seed,
            weights="ImageNet weights (file x/y.h5)"))
    return pd.concat(rows, ignore_index=True)


def test_a_recording_gives_back_what_was_put_in(tmp_path):
    table = pd.concat([predictions(seeds=(0, 1)), predictions(better=1.0, method="b", seeds=(0, 1))], ignore_index=True)
    recorded.write("one", table, "pruned 8-bit ImageNet ResNet-50", ["python -m bcdlib compare"], "a", tmp_path)
    found = recorded.read("one", tmp_path)
    same = found.predictions[metrics.COLUMNS]
    pd.testing.assert_frame_equal(same, table[metrics.COLUMNS], check_exact=False, atol=1e-5, check_dtype=False)
    assert set(found.predictions["weights"]) == {"pruned 8-bit ImageNet ResNet-50"}
    again = intervals.table(found.predictions, recorded.FIGURES)
    np.testing.assert_allclose(found.figures[["value", "low", "high"]], again[["value", "low", "high"]], atol=1e-9)
    difference = found.differences.query("figure == 'auc'").iloc[0]
    assert (difference["first"], difference["second"]) == ("b", "a") and difference["low"] > 0
    with pytest.raises(InputError, match="no recording 'two'"):
        recorded.read("two", tmp_path)


def test_what_is_not_recorded(tmp_path):
    with pytest.raises(InputError, match="choose from a"):
        recorded.write("one", predictions(), "w", [], "b", tmp_path)
    foreign = predictions().assign(filename=lambda t: "mine-" + t["filename"])
    with pytest.raises(InputError, match="BreakHis"):
        recorded.write("one", foreign, "w", [], "a", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", recorded.names())
def test_the_stored_figures_follow_from_the_stored_predictions(name):
    found = recorded.read(name)
    values = metrics.table(found.predictions).set_index(["method", "split"])
    for row in found.figures.itertuples():
        assert row.value == pytest.approx(values.loc[(row.method, row.split), row.figure], abs=1e-9)
        assert row.low <= row.value + 1e-9 and row.high >= row.value - 1e-9 or np.isnan(row.low)
    assert "pruned 8-bit ImageNet ResNet-50" in found.facts["weights"]
    assert set(found.predictions["filename"]) <= set(manifest.load()["filename"])
    case = found.differences.query("split == 'case' and figure == 'case_auc'").iloc[-1]
    by_method = dict(list(found.predictions.query("split == 'case'").groupby("method")))
    again = intervals.difference(by_method[case["first"]], by_method[case["second"]], "case_auc")
    assert again["value"] == pytest.approx(case["value"]) and again["low"] == pytest.approx(case["low"])


def test_recordings_are_drawn_with_images_slides_cases_seeds_and_weights():
    assert {"protocols", "variants"} <= set(compare.recordings())
    for figure in (compare.recorded_protocol_figure("protocols"), compare.difference_figure("variants")):
        texts = [t.get_text() for t in figure.findobj(matplotlib.text.Text)]
        joined = " ".join(texts)
        for word in ("557 images", "35 slides", "26 cases", "seed", "pruned 8-bit ImageNet ResNet-50"):
            assert word in joined, word
    assert "python -m bcdlib compare" in compare.recorded_note("protocols")
    assert len(compare.recorded_protocols("variants")) == compare.recorded_differences("variants")["first"].nunique() + 1


def test_inner_splits_leave_the_test_images_out(run):
    images, outer = run.images(), splits.read(run, "case")
    for fold in range(3):
        inner = choosing.inner_split(images, outer, fold, "case", 3, 0)
        test = splits.fold_of(outer, fold).query("role == 'test'")["filename"]
        assert not set(inner["filename"]) & set(test)
        assert set(inner["filename"]) | set(test) == set(images["filename"])
        assert (splits.overlap(inner, images)["cases_shared"] == 0).all()


def test_the_better_method_is_chosen_and_pays(run, known):
    names = [f"{known}:share=0.2", known, f"{known}:share=0.5"]
    whole = compare.run_trials(run, PROFILE, names, ["case"], progress=False)
    chosen = compare.choose(run, PROFILE, names, ["case"], progress=False)
    best = whole[whole["method"] == "known"].reset_index(drop=True)
    pd.testing.assert_frame_equal(chosen.drop(columns="method"), best.drop(columns="method"))
    choices = pd.read_csv(run.folder / "choices.csv")
    assert choices.groupby("fold")["chosen"].sum().tolist() == [1, 1, 1]
    assert set(choices.loc[choices["chosen"], "method"]) == {"known"}
    everything = compare.all_predictions(run)
    assert set(everything["method"]) == {"known-share=0.2", "known", "known-share=0.5", "chosen"}
    assert set(pd.read_csv(run.folder / "comparison.csv")["method"]) == set(everything["method"])
    with pytest.raises(InputError, match="image, slide, case"):
        compare.choose(run, PROFILE, names, ["magnification"], progress=False)


def test_settings_in_a_name_change_the_trial(run, known):
    split = splits.read(run, "case")
    estimator = trials.Trial(f"{known}:share=0.25", "case", split).estimator(PROFILE)
    assert estimator.share == 0.25 and trials.Trial(known, "case", split).estimator(PROFILE).share == 1.0


def test_bad_settings_on_the_command_line(tmp_path):
    done = subprocess.run([sys.executable, "-m", "bcdlib", "compare", "--methods", "robust:stage=4", "--out",
                           str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "no parameter 'stage'" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
