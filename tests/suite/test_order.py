"""Notebooks in another order, left out, run twice, with other parameters or data, on an old run folder.

Each gives the right result or one line that says what to do; nothing is mixed in silence. The functions are
those that the notebooks call, with the parameters that the notebooks hand them.
"""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bcdlib import compare, evaluate, mount, preprocess, train
from bcdlib.errors import InputError
from bcdlib.runs.files import write_csv

SIZE = (36, 24)


@pytest.fixture
def other(tiny, tmp_path):
    """Images of the same names and number as `tiny`, with other pixels."""
    folder = shutil.copytree(tiny, tmp_path / "other")
    for file in folder.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(file))[:, ::2]).save(file)
    return folder


@pytest.fixture
def alike(tiny, tmp_path):
    """As `other`, but the files have the same sizes too."""
    folder = shutil.copytree(tiny, tmp_path / "alike")
    for file in folder.rglob("*.png"):
        size = file.stat().st_size
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
        assert file.stat().st_size == size
    return folder


@pytest.fixture
def notebooks(tiny, tmp_path, prior, monkeypatch):
    """The five notebooks that write or read results, as functions; parameters as in their cells."""
    monkeypatch.setenv("BCD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BCD_HOME", str(tmp_path / "home"))
    given = {"out": str(tmp_path / "run"), "data": str(tiny), "profile": "demo", "seed": 0}

    class Notebooks:
        folder = tmp_path / "run"

        def open(self, more):
            return mount.reopen_run(
                *((given | more)[key] for key in ("out", "data", "profile")), seed=(given | more)["seed"]
            )

        def mount(self, asked=None, **more):
            words = given | more
            run = mount.open_run(words["out"], words["data"], words["profile"])
            mount.start_run(
                run, words["data"], asked=asked, profile=words["profile"], seed=words["seed"], progress=False
            )

        def preprocess(self, size=SIZE, **more):
            run, profile = self.open(more), mount.get_profile(more.get("profile", "demo"), size=size)
            cache = preprocess.resize_images(run, profile, mount.open_data(run), progress=False)
            preprocess.write_splits(run, profile, cache, seed=more.get("seed", 0))

        def train(self, method=prior, **more):
            run, profile = self.open(more), mount.get_profile(more.get("profile", "demo"))
            planned = train.plan_trials(run, profile, method=str(method), seed=more.get("seed", 0))
            train.train_trials(run, profile, planned, verbose=0)

        def evaluate(self, predictions="", **more):
            run = self.open(more)
            return evaluate.load_predictions(run, evaluate.lock(run), predictions)

        def compare(self, **more):
            run, profile = self.open(more), mount.get_profile(more.get("profile", "demo"))
            compare.run_comparison(
                run,
                profile,
                method_names=[str(prior)],
                split_names=["case"],
                seeds=[more.get("seed", 0)],
                progress=False,
            )
            return compare.table_ii(*compare.measured_tables(run))

        def prepared(self, **more):
            self.mount(**more)
            self.preprocess(**more)

        def finished(self, **more):
            self.prepared(**more)
            self.train(**more)
            self.compare(**more)

        def refused(self, stage, **more):
            with pytest.raises(InputError) as caught:
                getattr(self, stage)(**more)
            assert "\n" not in str(caught.value)
            return str(caught.value)

        @property
        def settings(self):
            return json.loads((self.folder / "settings.json").read_text())

        @property
        def results(self):
            names = ("predictions.csv", "comparison_predictions.csv")
            return [pd.read_csv(self.folder / name) for name in names if (self.folder / name).is_file()]

        @property
        def trials(self):
            return {file.parent.name for file in self.folder.glob("trials/*/trial.json")}

    return Notebooks()


STAGES = ("preprocess", "train", "evaluate", "compare")


@pytest.mark.parametrize("stage", STAGES)
def test_without_01(stage, notebooks):
    assert "run 01_mount" in notebooks.refused(stage)
    assert not notebooks.folder.exists(), "an empty run folder is left"


@pytest.mark.parametrize("stage", STAGES[1:])
def test_without_02(stage, notebooks):
    notebooks.mount()
    assert "run 0" in (line := notebooks.refused(stage)) and ("02_preprocess" in line or "04_train" in line)


def test_05_without_04(notebooks):
    notebooks.prepared()
    assert "run 04_train" in notebooks.refused("evaluate")


def test_06_without_04_and_05(notebooks):
    notebooks.prepared()
    table = notebooks.compare()
    assert (table["kind"] == "measured").sum() == 1


def test_each_twice(notebooks):
    notebooks.finished()
    before, trials = [table.to_csv() for table in notebooks.results], notebooks.trials
    notebooks.finished()
    assert [table.to_csv() for table in notebooks.results] == before and notebooks.trials == trials


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "key, value", [("profile", "quick"), ("seed", 1), ("data", "somewhere/else"), ("data", "synthetic")]
)
def test_other_parameters_later(stage, key, value, notebooks):
    notebooks.prepared()
    line = notebooks.refused(stage, **{key: value})
    assert f"set {key} = " in line and "run 01_mount with" in line and repr(value) in line
    assert notebooks.results == []


def test_the_same_place_by_another_name(notebooks, tiny, monkeypatch):
    notebooks.prepared()
    monkeypatch.chdir(tiny.parent)
    notebooks.train(data=tiny.name)
    assert len(notebooks.results) == 1


def test_01_on_other_data_without_02(notebooks, other):
    """What 02 made of the old data is not trained on."""
    notebooks.finished()
    trials = notebooks.trials
    notebooks.mount(data=str(other))
    assert notebooks.results == [] and not list(notebooks.folder.glob("splits/*"))
    assert "02_preprocess" in notebooks.refused("train", data=str(other))
    assert "02_preprocess" in notebooks.refused("compare", data=str(other))
    assert "04_train" in notebooks.refused("evaluate", data=str(other))
    assert notebooks.trials == trials


def test_01_on_data_of_the_same_names_and_sizes_without_02(notebooks, alike):
    notebooks.finished()
    notebooks.mount(data=str(alike))
    for stage in ("train", "evaluate", "compare"):
        assert "02_preprocess" in notebooks.refused(stage, data=str(alike))
    notebooks.preprocess(data=str(alike))
    assert notebooks.results == []


def test_other_data_and_back(notebooks, other):
    notebooks.finished()
    before, trials = [table.to_csv() for table in notebooks.results], notebooks.trials
    first = notebooks.settings["fingerprint"]
    notebooks.finished(data=str(other))
    second = notebooks.settings["fingerprint"]
    assert first != second and all(set(table["data"]) == {second} for table in notebooks.results)
    assert len(notebooks.trials) == 2 * len(trials)
    notebooks.finished()
    assert [table.to_csv() for table in notebooks.results] == before
    assert len(notebooks.trials) == 2 * len(trials), "trained again"


def test_data_that_changed_where_they_lie(notebooks, tiny, tmp_path):
    """One image replaced by another of the same name between 02 and 02."""
    data = shutil.copytree(tiny, tmp_path / "mine")
    notebooks.finished(data=str(data))
    before = notebooks.settings["fingerprint"]
    file = next(data.rglob("*.png"))
    file.write_bytes(next(iter(sorted(data.rglob("*.png"))[5:6])).read_bytes())
    notebooks.preprocess(data=str(data))
    assert notebooks.settings["fingerprint"] != before and notebooks.results == []


def test_a_second_download_keeps_everything(notebooks, tiny, tmp_path):
    notebooks.finished()
    before, trials = [table.to_csv() for table in notebooks.results], notebooks.trials
    copy = tmp_path / "again"
    for file in tiny.rglob("*.png"):  # other times
        (copy / file.relative_to(tiny)).parent.mkdir(parents=True, exist_ok=True)
        (copy / file.relative_to(tiny)).write_bytes(file.read_bytes())
    notebooks.finished(data=str(copy))
    assert [table.to_csv() for table in notebooks.results] == before and notebooks.trials == trials


@pytest.mark.parametrize("change", [{"profile": "quick"}, {"seed": 1}])
def test_01_with_another_profile_or_seed_starts_anew(change, notebooks):
    notebooks.finished()
    notebooks.mount(**change)
    assert notebooks.results == []
    assert "set " in notebooks.refused("train")
    notebooks.preprocess(**change)
    notebooks.train(**change)
    assert len(notebooks.results) == 1 and set(notebooks.results[0]["seed"]) == {change.get("seed", 0)}


def test_02_at_another_size(notebooks):
    notebooks.finished()
    notebooks.preprocess(size=(30, 20))
    assert notebooks.results == [] and notebooks.settings["size"] == [30, 20]
    notebooks.finished()
    assert len(notebooks.results) == 2
    with pytest.raises(InputError, match="width 30 and height 0"):
        mount.get_profile("demo", size=(30, 0))


def test_rows_of_other_images_are_refused(notebooks, other):
    notebooks.finished()
    strange = notebooks.results[0].assign(data="d0123456789ab")
    write_csv(notebooks.folder / "predictions.csv", strange)
    assert "other images" in notebooks.refused("evaluate")
    notebooks.train()  # drops them
    assert set(notebooks.evaluate()["data"]) == {notebooks.settings["fingerprint"]}


def test_an_old_run_folder(notebooks, tiny):
    """As an earlier bcdlib left it: settings without profile and fingerprint, tables without ``data``."""
    notebooks.finished()
    old = {key: notebooks.settings[key] for key in ("data", "source", "partial", "manifest", "cache")}
    (notebooks.folder / "settings.json").write_text(json.dumps(old))
    for name in ("predictions.csv", "comparison_predictions.csv"):
        table = pd.read_csv(notebooks.folder / name).drop(columns="data").assign(method="old")
        write_csv(notebooks.folder / name, table)
    for stage in STAGES:
        assert "older bcdlib; run 01_mount" in notebooks.refused(stage)
    notebooks.finished()
    assert all(set(table["method"]) == {"prior"} for table in notebooks.results)


def test_a_downloaded_data_set_is_found_by_the_later_notebooks(notebooks, tiny, tmp_path, monkeypatch):
    """01 with ``download`` and nothing else changed: the others are still told "synthetic"."""
    archive = shutil.make_archive(str(tmp_path / "BreaKHis_v1"), "gztar", tiny)
    same = {"out": "", "data": "synthetic"}
    run = mount.open_run("", archive, "demo")
    mount.start_run(run, archive, asked="synthetic", profile="demo", progress=False)
    notebooks.preprocess(**same)
    notebooks.train(**same)
    assert (tmp_path / "home" / "BreaKHis_v1-demo" / "predictions.csv").is_file()
    assert not (tmp_path / "home" / "synthetic-demo").exists()
    # drawn tissue asked for afterwards is drawn tissue
    monkeypatch.setattr(mount, "find_data", lambda data, **_: mount.sources.open_source(tiny))
    mount.start_run(mount.open_run("", "synthetic", "demo"), "synthetic", progress=False)
    assert mount.reopen_run("", "synthetic", "demo").folder == tmp_path / "home" / "synthetic-demo"


def test_predictions_made_elsewhere_need_no_01(notebooks, tmp_path):
    notebooks.finished()
    table = tmp_path / "mine.csv"
    write_csv(table, notebooks.results[0])
    run = mount.reopen_run(tmp_path / "alone", predictions=str(table))
    assert len(evaluate.load_predictions(run, evaluate.lock(run), str(table))) == len(pd.read_csv(table))
