"""The comparison: trials that fail, comparisons that are cut off, seeds that shuffle the folds."""

import dataclasses
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bcdlib import compare, evaluate, mount, train
from bcdlib.data import breakhis, published_splits, splits
from bcdlib.errors import InputError
from bcdlib.evaluation import metrics, published
from bcdlib.runs.profiles import get_profile
from bcdlib.trials import comparison
from tests.command import here

ROOT = Path(__file__).resolve().parent.parent
PROFILE = get_profile("demo", size=(24, 16), folds=3)

METHOD = '''
"""Logistic regression on mean colours: a thirteenth method in a file of its own."""
import os
import time

import numpy as np
from sklearn.linear_model import LogisticRegression

from bcdlib.methods import Method


class Colours(Method):
    key = "KEY"
    title = "mean colours"

    def __init__(self, seed=0):
        self.seed = seed

    def fit(self, X, y, validation_data=None, folder=None):
        time.sleep(PAUSE * (os.environ.get("NO_PAUSE") is None))
        if FAILS:
            raise RuntimeError("no colours today\\nsecond line")
        self.model_ = LogisticRegression(random_state=self.seed).fit(X.mean(axis=(1, 2)), y)
        return self

    def predict_proba(self, X):
        return self.model_.predict_proba(X.mean(axis=(1, 2)))

    def save(self, path):
        np.save(path, self.model_.coef_)
'''


def method_file(folder, key="colours", pause=0, fails="False"):
    path = folder / f"{key}.py"
    path.write_text(METHOD.replace("KEY", key).replace("PAUSE", str(pause)).replace("FAILS", fails))
    return str(path)


@pytest.fixture(scope="module")
def prepared(prepare, tiny, tmp_path_factory):
    """A run folder with cache and splits, to be copied."""
    folder = tmp_path_factory.mktemp("runs")
    return prepare(folder / "run", tiny, PROFILE, folder / "cache")[0]


@pytest.fixture
def run(prepared, tmp_path):
    shutil.copytree(prepared.folder, tmp_path / "run")
    return mount.open_run(tmp_path / "run")


def test_a_failing_method_is_told_and_does_not_stop_the_others(run, tmp_path):
    names = [method_file(tmp_path, "broken", fails="True"), method_file(tmp_path)]
    found = comparison.run_comparison(run, PROFILE, method_names=names, split_names=["image"], progress=False)
    assert set(found["method"]) == {"colours"} and found["fold"].nunique() == 3
    lines = comparison.failed_trials(run)
    assert len(lines) == 3 and lines[0].startswith("broken, split image, fold 0, seed 0: InputError: ")
    assert "broken.py, line " in lines[0] and "RuntimeError: no colours today" in lines[0]
    assert "no colours today" in compare.failures_text(run)
    comparison.run_comparison(run, PROFILE, method_names=names[1:], split_names=["image"], progress=False)
    assert comparison.failed_trials(run) == [] and compare.failures_text(run) == "No trial failed."
    with pytest.raises(InputError, match="no colours today"):  # nothing to show at all
        comparison.run_comparison(run, PROFILE, method_names=names[:1], split_names=["image"], progress=False)


def test_a_frozen_random_base_is_called_not_comparable_beside_published_numbers(run, shallow):
    """In Table II and its figure; what was trained whole is as it was."""
    names = ["resnet50", "lenet5"]
    profile = dataclasses.replace(PROFILE, epochs=1, head_epochs=1)
    compare.run_comparison(
        run, profile, method_names=names, split_names=["case"], weights="none", progress=False
    )
    table = compare.table_ii(*compare.measured_tables(run))
    said = ", frozen random base: not comparable"
    measured = table[table["kind"] == "measured"]
    assert dict(zip(measured["key"], measured["method"])) == {
        "resnet50": f"resnet50-head{said}",
        "lenet5": "lenet5",
    }
    assert (table["kind"] == "published").sum() == 11
    assert table[["images", "cases"]].dtypes.eq("Int64").all()  # shown as 640, not as 640.00
    labels = [label.get_text() for label in compare.table_ii_figure(table).axes[0].get_yticklabels()]
    assert sum("not comparable" in label for label in labels) == 1
    # pre-trained weights elsewhere: the same table without it
    other = comparison.all_predictions(run).assign(weights="ImageNet weights (Keras)")
    assert not compare.table_ii(other)["method"].str.contains("comparable").any()


def test_split_authors_is_each_methods_own(run, monkeypatch):
    known = published.TABLE_II.assign(split=published.TABLE_II["split"].replace("gupta", "image-80-20"))
    monkeypatch.setattr(published, "TABLE_II", known)  # none of Gupta's images is here
    names = ["hybrid_cnn", "googlenet", "densenet201", "csdcnn", "resnet50"]
    planned = {
        (trial.method, trial.split)
        for name in names
        for trial in comparison._plan(
            run, PROFILE, run.images(), method_names=[name], split_names=["authors", "case"], seeds=[0]
        )
    }
    assert planned == {
        ("hybrid_cnn", "image-80-20"),
        ("densenet201", "image-400-balanced"),
        ("csdcnn", "image-50-25-25"),
        ("resnet50", "magnification"),
        *((name, "case") for name in names),
    }
    with pytest.raises(InputError, match="whose own is known"):
        comparison.run_comparison(
            run, PROFILE, method_names=["googlenet"], split_names=["authors"], progress=False
        )


def test_explained_table_sets_reruns_beside_printed_numbers(run, images_of_breakhis):
    """By hand: three of four right by image; magnifications; subtypes; the mean over slides."""
    rows = images_of_breakhis
    label = (rows["class"] == "malignant").astype(int)
    wrong = np.arange(len(rows)) % 4 == 0
    told = rows[["filename", "slide", "case", "magnification", "subtype"]].assign(
        label=label, probability=np.where(wrong, 1 - label, label) * 0.8 + 0.1, fold=0, seed=0
    )
    powers = [40, 100, 200, 400]
    four = pd.DataFrame(
        np.where(told["magnification"].to_numpy()[:, None] == powers, 0.7, 0.1),
        columns=metrics.MAGNIFICATION_COLUMNS,
        index=told.index,
    )
    found = pd.concat(
        [
            told.assign(method="lenet5", split="image-80-20"),
            told.assign(method="lenet5", split="case"),
            told.assign(method="alexnet", split="official-200"),
            told.assign(method="hybrid_cnn-magnification", split="gupta", probability=np.nan, **four),
        ],
        ignore_index=True,
    )
    table = compare.explained_table(found).set_index("method")
    assert len(table) == len(published.TABLE_II) and table.loc["lenet5", "printed (%)"] == 93.45
    assert table.loc["lenet5", "under their split"].startswith("75.0 (")
    assert table.loc["lenet5", "by case"].startswith("75.0 (")
    assert table.loc["hybrid_cnn-magnification", "under their split"].startswith("100.0 (")
    assert table.loc["googlenet", ["their split", "under their split", "by case"]].tolist() == [
        "not known",
        "",
        "",
    ]
    slides = found[found["method"] == "alexnet"].assign(right=~wrong)
    expected = slides.groupby(breakhis.slide_folders(slides))["right"].mean().mean()
    assert table.loc["alexnet", "under their split"].startswith(f"{100 * expected:.1f} (")
    assert compare.explained_table(found.assign(filename="mine.png")).empty


@pytest.fixture
def images_of_breakhis():
    known = breakhis.known_images()
    return known.groupby(["class", "magnification"]).sample(40, random_state=0).reset_index(drop=True)


@pytest.mark.parametrize(
    "seeds, words", [((), "no seed named"), ((-1,), "seed -1: give"), ((2**32,), "seed 4294")]
)
def test_seeds_that_are_none(run, tmp_path, seeds, words):
    names = [method_file(tmp_path)]
    with pytest.raises(InputError, match=words):
        comparison.run_comparison(
            run, PROFILE, method_names=names, split_names=["case"], seeds=seeds, progress=False
        )


def test_earlier_comparisons_of_the_run_stay(run, tmp_path):
    one, two = method_file(tmp_path, "one"), method_file(tmp_path, "two")
    comparison.run_comparison(run, PROFILE, method_names=[one], split_names=["image", "case"], progress=False)
    comparison.run_comparison(run, PROFILE, method_names=[two], split_names=["case"], progress=False)
    again = comparison.run_comparison(run, PROFILE, method_names=[one], split_names=["case"], progress=False)
    rows = comparison.all_predictions(run)
    assert set(map(tuple, rows[["method", "split"]].drop_duplicates().to_numpy())) == {
        ("one", "image"),
        ("one", "case"),
        ("two", "case"),
    }
    assert len(rows) == 3 * len(again) and len(again) == 96
    assert len(pd.read_csv(run.folder / "comparison.csv")) == 3
    table = compare.comparison_table(rows.query("split == 'case'"))
    assert (
        len(table) == 2
        and set(table.loc[0, ["first", "second"]]) == {"one", "two"}
        and (table["value"] == 0).all()
    )
    assert len(compare.measured_tables(run)) == 1  # 04_train did not run here


def test_seeds_shuffle_the_folds_anew_where_they_are_random(run, tmp_path):
    options = {
        "method_names": [method_file(tmp_path)],
        "split_names": ["magnification", "case"],
        "seeds": range(2),
        "progress": False,
    }
    found = comparison.run_comparison(run, PROFILE, **options)
    one, two = (splits.read_split(run, "case"), pd.read_csv(run.folder / "splits" / "case-seed1.csv"))
    assert not one.equals(two) and (found.groupby(["split", "seed"]).size() == [96, 96, 24, 24]).all()
    assert compare.protocol_table(found)["seeds"].tolist() == [2, 2]
    pd.testing.assert_frame_equal(found, comparison.run_comparison(run, PROFILE, **options))


def test_official_at_one_magnification_is_refused_for_other_images(run, tmp_path):
    with pytest.raises(InputError, match="official"):
        comparison.run_comparison(
            run, PROFILE, method_names=[method_file(tmp_path)], split_names=["official-40"], progress=False
        )
    with pytest.raises(InputError, match="unknown method 'resnet5000'"):
        comparison.run_comparison(
            run, PROFILE, method_names=["resnet5000"], split_names=["case"], progress=False
        )


@pytest.mark.thorough
def test_all_methods_on_the_demo_data_in_half_an_hour_of_two_cores(tmp_path):
    """Counted in processor time, so that what else runs on the machine does not matter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = ["compare", "--methods", "all", "--splits", "magnification,case", "--weights", "none"]
    command = [sys.executable, "-m", "bcdlib", *words, "--out", str(tmp_path / "run")]
    env = {**os.environ, "BCD_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2 * 30 * 60
    table = pd.read_csv(tmp_path / "run" / "comparison.csv")
    assert table.get("error", pd.Series(dtype=str)).isna().all() and len(table) == 2 * 12


@pytest.mark.slow
def test_killed_in_the_middle_gives_the_same_table(tiny, tmp_path):
    def words(out):
        words = ["compare", "--data", tiny, "--out", out, "--splits", "image,case"]
        return [*map(str, words), "--methods", method_file(tmp_path, pause=0.4)]

    cache = {"BCD_CACHE": str(tmp_path / "cache")}
    started = subprocess.Popen(
        [sys.executable, "-m", "bcdlib", *words(tmp_path / "killed")],
        cwd=ROOT,
        env=os.environ | cache,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "killed").glob("trials/*/trial.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("trials/*/trial.json")}
    assert 3 <= len(stored) < 10 and not (tmp_path / "killed" / "comparison.csv").exists()
    for out in ("killed", "whole"):
        done = here(*words(tmp_path / out), **cache, NO_PAUSE="1")
        assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == before for path, before in stored.items()), (
        "a finished trial ran again"
    )
    for name in ("comparison.csv", "comparison_predictions.csv", "comparison_validation.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_kept_models(run, prior):
    for keep in (False, True, True):
        found = comparison.run_comparison(
            run, PROFILE, method_names=[str(prior)], split_names=["image"], progress=False, keep_models=keep
        )
        models = list(run.folder.glob("trials/*/model.keras"))
        assert len(models) == (found["fold"].nunique() if keep else 0)
        assert all(model.with_name("model-card.md").is_file() for model in models)


def test_published_splits_on_real_images(prepare, breakhis, tmp_path, capsys):
    profile = get_profile("demo", size=(24, 16), folds=3)
    run, cache = prepare(tmp_path / "run", breakhis / "half", profile, tmp_path / "cache")
    found = comparison.run_comparison(
        run,
        profile,
        method_names=[method_file(tmp_path)],
        split_names=["eva", "thunder", "rap-mst", "case"],
        progress=False,
    )
    lines = capsys.readouterr().out.splitlines()
    present, counts = set(cache.images["filename"]), {}
    for name, tests in (("eva", 339), ("thunder", 339), ("rap-mst", 1653)):
        listed = published_splits.read_list(name).query("role == 'test'")["filename"]
        counts[name] = len(present & set(listed))
        assert any(line.startswith(f"{name}: {counts[name]} of {tests} test images and ") for line in lines)
    assert counts == {"eva": 51, "thunder": 51, "rap-mst": 103}
    tested = found.drop_duplicates(["split", "filename"]).groupby("split").size()
    assert tested.to_dict() == counts | {"case": 557}
    assert found[found["split"] == "rap-mst"].groupby("fold").size().tolist() == [103] * 5
    table = compare.protocol_table(found).set_index("split")
    assert table.loc["eva", "what is shared"].startswith(
        "kaiko-ai/eva, current version; 91 of 339 test images"
    )
    assert compare.protocol_figure(found).axes
    text = evaluate.leak_lines(run, found)
    assert (
        "split `eva`, fold 0: **0 of 6 test slides and 1 of 5 test cases were also in training (6 of 51"
        in text
    )
    assert (
        "This split keeps slides and cases apart, which none of the 9 published ones in the register does"
        in text
    )
    again = train.plan_table(train.plan_trials(run, profile, split_names=["eva", "case"]))  # 04_train too
    assert again["test"].tolist()[0] == 51 and again["fold"].tolist()[0] == "0 (of 1)"
    with pytest.raises(InputError, match="'compact-cnn', fold 0: train part has only malignant images"):
        splits.make_split(cache.images[cache.images["class"] == "malignant"], "compact-cnn")


def test_published_splits_are_drawn(run):
    figure = compare.published_splits_figure()
    register = published_splits.published_table()
    for axis, name in zip(figure.axes, ("benign", "malignant"), strict=True):
        assert axis.get_title() == name
        widths = [[bar.get_width() for bar in bars] for bars in axis.containers]
        shown = pd.DataFrame(widths).T[::-1]  # drawn from below
        assert [round(total) for total in shown.sum(axis=1)] == [100] * 9
        share = 100 * register[f"case_leak_{name}"] / register[f"test_{name}"]
        assert shown[[1, 2, 3]].sum(axis=1).tolist() == pytest.approx(share.tolist())
        assert shown[[2, 3]].sum(axis=1).tolist() == pytest.approx(
            register[f"slide_leak_{name}_pct"], abs=0.06
        )
        texts = [text.get_text() for text in axis.texts][::-1]
        assert texts[0] == f"{register[f'case_leak_{name}'][0]} of {register[f'test_{name}'][0]}"
    table = compare.published_splits_table().set_index("split")
    assert table.loc["gupta", "slide also in training"] == 673
    assert len(compare.published_splits_table(run)) == 9  # drawn tissue has BreakHis' names


@pytest.fixture
def two_protocols():
    """60 images under `case`, 40 of them, with fewer benign ones, under `image`, where all is right."""
    label = np.repeat([0, 1], 30)
    rows = pd.DataFrame(
        {
            "filename": [f"{k}.png" for k in range(60)],
            "slide": np.repeat([f"14-{k}" for k in range(20)], 3),
            "case": np.repeat([f"14-{k}" for k in range(20)], 3),
            "magnification": 40,
            "subtype": "A",
            "label": label,
            "fold": 0,
            "method": "m",
            "seed": 0,
            "weights": "random",
        }
    )
    wrong = np.arange(60) % 3 == 0
    case = rows.assign(split="case", probability=np.where(wrong, 1 - label, label) * 0.8 + 0.1)
    image = rows[20:].assign(split="image", probability=label[20:] * 0.8 + 0.1)
    return pd.concat([image, case], ignore_index=True)


def test_the_dotted_line_is_that_of_each_rows_own_images(two_protocols):
    found = []
    for axis in compare.protocol_figure(two_protocols).axes:
        (lines,) = [one for one in axis.collections if not one.get_label().startswith("_")]
        found.append({round(float(segment[0, 0]), 3) for segment in lines.get_segments()})
    assert found == [{0.5, 0.75}, {0.5}]


def test_what_was_found_compares_on_the_images_that_both_predicted(two_protocols):
    said = compare.findings(two_protocols)
    assert "On the 40 images that both predicted, the difference is +0.325" in said
    assert "Always predicting the larger class: 0.500" in said
