"""Sweeps of notebook parameters, and the executed notebook of a trial."""

import json
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from bcdlib import __main__, mount, preprocess
from bcdlib.data import breakhis
from bcdlib.errors import InputError, StageError
from bcdlib.runs.profiles import get_profile
from bcdlib.suite import sweep
from bcdlib.trials import comparison
from tests.command import here, refused

ROOT = Path(__file__).resolve().parent.parent.parent
# a list of ten lists of ten lists ...: 10**9 numbers, if somebody wrote them out
BOMB = [
    "seed:\n- &a0 [0, 0]\n",
    *(f"- &a{number + 1} [{', '.join([f'*a{number}'] * 10)}]\n" for number in range(9)),
]
EPOCHS = "    def __init__(self, epochs=1):\n        self.epochs = epochs\n    def fit("


@pytest.fixture
def written(tmp_path):
    def write(text):
        (tmp_path / "sweep.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path / "sweep.yaml"

    return write


def test_a_good_file(written, prior, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w").mkdir()
    given = sweep.read_sweep(
        written(
            "method: [resnet50, 'robust:stages=4', prior.py]\nseed: [0, 1]\nsplits: case image\n"
            "epochs: 3\nsensitivity: 1\nstain: none\nkeep_model: false\nweights: w\n"
        )
    )
    assert given == {
        "method": ["resnet50", "robust:stages=4", str(prior)],
        "seed": [0, 1],
        "splits": ["case image"],
        "epochs": [3],
        "sensitivity": [1.0],
        "stain": ["none"],
        "keep_model": [False],
        "weights": [str(tmp_path / "w")],
    }


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "names no parameter"),
        ("# nothing\n", "names no parameter"),
        ("{}", "names no parameter"),
        ("- seed", "names no parameter"),
        ("seed: [0, 1", "not YAML"),
        (b"\xff\xfe\x00seed", "not YAML"),
        ("seed: 2020-99-99", "not YAML"),
        ("&a [" * 3000, "not YAML"),
        ("!!python/object:os.system {}", "not YAML"),
        ("sede: 0", "unknown parameter 'sede'; known are profile, seed"),
        ("3: 0", "unknown parameter 3"),
        ("seed: []", "seed: has no value"),
        ("seed: one", "seed: 'one'; give int, as seed: 0"),
        ("seed: true", "give int"),
        ("seed: [[0]]", r"\[0\]; give int"),
        ("".join(BOMB), "give int"),
        ("seed:", "None; give int"),
        ("epochs: 1.5", "give int"),
        ("epochs: -1", "epochs: -1; give 0 or more"),
        ("seed: [0, -1]", "seed -1: give a whole number from 0 to 4294967295"),
        ("seed: 4294967296", "seed 4294967296: give"),
        ("method: 5", "give str"),
        ("method: resnet5000", "unknown method 'resnet5000'"),
        ("method: nowhere.py", "no such method file"),
        ("splits: case astrology", "unknown split 'astrology'"),
        ("profile: huge", "unknown profile 'huge'"),
        ("trainable: some", "unknown trainable 'some'; known are all, head"),
        ("stain: yes", "give str"),
        ("data: elsewhere", "data is not swept; see --data"),
        ("out: here", "out is not swept"),
        (f"seed: {list(range(101))}\nepochs: {list(range(101))}", "gives 10201 combinations"),
    ],
)
def test_a_bad_file(written, text, words):
    with pytest.raises(InputError, match=words) as error:
        sweep.read_sweep(written(text))
    assert "\n" not in str(error.value) and "sweep.yaml" in str(error.value)


def test_files_that_are_none(tmp_path):
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            sweep.read_sweep(path)


def command(*words):
    __main__.main.main(["run", *map(str, words)], standalone_mode=False)


def test_words_that_do_not_go_together(written):
    with pytest.raises(InputError, match="--only 04_train: does not go with --sweep"):
        command("--sweep", written("seed: 0"), "--only", "04_train")
    with pytest.raises(InputError, match="--scheduler local:2: without --sweep"):
        command("--scheduler", "local:2")
    done = here("run", "--sweep", written("sede: 0"))
    refused(done, "sweep.yaml", "'sede'")


def fake(run, parameters, only):
    """What stands for the notebooks: predictions that are right for lenet5, nothing for alexnet."""
    with open(run.folder.parent / "started", "a") as log:
        log.write(run.folder.name + "\n")
    if parameters["method"] == "alexnet" and not (run.folder.parent / "mended").exists():
        raise StageError("04_train, cell 7: no luck")
    assert (
        only == sweep.SWEEP_STAGES
        and parameters["out"] == str(run.folder)
        and (run.folder / "splits" / "case.csv").is_file()
    )
    images = run.images()
    label = breakhis.class_labels(images)
    table = images[["filename", "slide", "case", "magnification", "subtype"]].assign(
        label=label,
        probability=np.where(parameters["method"] == "lenet5", label, 0.6).astype(float),
        fold=0,
        method=parameters["method"],
        split="case",
        seed=parameters["seed"],
    )
    table.to_csv(run.folder / "predictions.csv", index=False)
    row = {
        "method": parameters["method"],
        "split": "case",
        "images": 96,
        "cases": 12,
        "metric": "accuracy",
        "value": 0.25,
        "95 % by case": "cannot be said",
    }
    at = pd.DataFrame([row | {"at": "0.5"}, row | {"at": "locked"}])
    run.table("thresholds", at)


def test_every_combination_once_whatever_fails(written, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BCD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sweep, "run_suite", fake)
    listed, start = [], mount.start_run
    monkeypatch.setattr(
        mount,
        "start_run",
        lambda run, *more, **own: listed.append(run.folder.name) or start(run, *more, **own),
    )
    words = [
        "--sweep",
        written("method: [lenet5, alexnet]\nseed: [0, 1, 1]\nsplits: case\n"),
        "--data",
        tiny,
        "--weights",
        "none",
        "--out",
        tmp_path / "out",
    ]
    with pytest.raises(SystemExit) as ended:
        command(*words)
    said = capsys.readouterr()
    assert (
        ended.value.code == 1
        and said.err.count("Failed: method=alexnet,seed=") == 2
        and "no luck" in said.err
    )
    assert listed == ["demo-seed0", "demo-seed1"], "data are prepared once for each profile and seed"
    assert len(list((tmp_path / "cache").glob("pixels-*"))) == 1
    table = pd.read_csv(tmp_path / "out" / "sweep.csv")
    assert table.columns[:4].tolist() == ["method", "seed", "splits", "label"] and len(table) == 4
    assert table["images"].dropna().tolist() == [96, 96] and table["error"].notna().tolist() == [
        False,
        False,
        True,
        True,
    ]
    good = table[table["error"].isna()]
    assert (
        (good["accuracy"] == 1).all()
        and (good["accuracy_locked"] == 0.25).all()
        and good["seed"].tolist() == [0, 1]
    )
    folders = [tmp_path / "out" / name for name in good["folder"]]
    assert [json.loads((one / "sweep.json").read_text())["parameters"]["seed"] for one in folders] == [0, 1]
    cases = [(one / "splits" / "case.csv").read_bytes() for one in folders]
    assert cases[0] != cases[1], "another seed, another split"

    (tmp_path / "out" / "mended").touch()
    command(*words)
    assert "2 of 4 combinations are finished already" in capsys.readouterr().out
    names = (tmp_path / "out" / "started").read_text().splitlines()
    assert sorted(map(names.count, set(names))) == [1, 1, 2, 2], "what was finished is not run again"
    table = pd.read_csv(tmp_path / "out" / "sweep.csv")
    assert table["error"].isna().all() and table["accuracy"].tolist() == [1, 1, 0.5, 0.5]


@pytest.mark.slow
def test_a_real_sweep_on_a_worker(written, prior, tiny, tmp_path):
    file = written(f"method: '{prior}'\nsplits: case\nkeep_model: false\n")
    words = ["--data", tiny, "--weights", "none", "--out", tmp_path / "out", "--scheduler", "local:1"]
    done = here("run", "--sweep", file, *words, BCD_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    (row,) = pd.read_csv(tmp_path / "out" / "sweep.csv").to_dict("records")
    assert row["label"] == "prior" and row["auc"] == 0.5 and row["accuracy_locked"] >= 0
    for stage in sweep.SWEEP_STAGES:
        nbformat.read(tmp_path / "out" / row["folder"] / "notebooks" / f"{stage}.ipynb", as_version=4)
    assert (tmp_path / "out" / row["folder"] / "report.html").is_file()


def test_a_trial_keeps_its_notebook(prior, tiny, tmp_path, monkeypatch):
    """In the trial's folder and in the store; it shows the finished trial and trains nothing."""
    profile = get_profile("demo", folds=3)
    run = mount.open_run(tmp_path / "run")
    mount.start_run(run, tiny, progress=False)
    cache = preprocess.resize_images(
        run, profile, mount.open_data(run), cache_root=tmp_path / "cache", progress=False
    )
    preprocess.write_splits(run, profile, cache)
    text = prior.read_text()
    monkeypatch.chdir(tmp_path)
    options = {"progress": False, "store": str(tmp_path / "store"), "notebooks": True}
    comparison.run_comparison(
        run, profile, method_names=["prior.py"], split_names=["magnification"], seeds=(3,), **options
    )
    (file,) = run.folder.glob("trials/*/*.ipynb")
    assert file.read_bytes() == (tmp_path / "store" / file.parent.name / "trial.ipynb").read_bytes()
    notebook = nbformat.read(file, as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.get("text", "") for output in outputs)
    assert "Trial 1 of 1: prior, split magnification, fold 0, seed 3" in said
    assert all(output.output_type != "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert len(list(run.folder.glob("trials/*/"))) == 1 and not (file.parent / "model.keras").exists()

    monkeypatch.setattr("bcdlib.trials.notebook.execute_notebook", None)  # it is there: nothing is executed
    comparison.run_comparison(
        run, profile, method_names=["prior.py"], split_names=["magnification"], seeds=(3,), **options
    )
    prior.write_text(text.replace("    def fit(", EPOCHS))
    with pytest.raises(InputError, match="profile 'demo' was changed"):  # 04_train would train another trial
        comparison.run_comparison(
            run,
            get_profile("demo", folds=3, epochs=77),
            method_names=["prior.py"],
            split_names=["magnification"],
            seeds=(3,),
            **options,
        )
