"""The command line as a user meets it: figures, and one clear line with exit status 2 for bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bcdlib.data.breakhis import class_labels, known_images, official_path
from tests.command import ROOT, bcdlib, here, refused
from tests.test_strangers import harmless, hostile_predictions


def test_help_lists_commands_that_exist():
    done = bcdlib("--help")
    assert done.returncode == 0
    for name in ("run", "verify", "audit", "compare", "evaluate", "predict", "record", "stamp"):
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("command", [("run", "--data"), ("verify",)])
def test_bad_data(tmp_path, command):
    out = ["--out", tmp_path / "out"] if command[0] == "run" else []
    refused(here(*command, tmp_path / "nowhere", *out), "nowhere", "no such")
    (tmp_path / "empty").mkdir()
    refused(here(*command, tmp_path / "empty", *out), "empty")
    (tmp_path / "cats").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "cats" / "cat.png")
    refused(here(*command, tmp_path / "cats", *out), "cats", "no BreakHis image")
    (tmp_path / "broken.zip").write_bytes(b"PK not a zip")
    refused(here(*command, tmp_path / "broken.zip", *out), "broken.zip", "not a readable zip")


def test_bad_words(tiny, tmp_path):
    out = ["--data", tiny, "--out", tmp_path / "out"]
    refused(here("run", *out, "--profile", "huge"), "huge", "demo")
    refused(here("run", *out, "--only", "07_dance"), "07_dance")
    refused(here("run", *out, "--weights", tmp_path / "none"), "none", "no such folder")
    refused(here("compare", *out, "--methods", "resnet5000"), "resnet5000")
    refused(
        here("compare", *out, "--splits", "astrology", "--weights", "none", BCD_CACHE=str(tmp_path)),
        "astrology",
    )
    refused(here("audit", "--split", "astrology"), "astrology")
    (tmp_path / "file").touch()
    refused(here("run", "--data", tiny, "--out", tmp_path / "file" / "run"), "cannot write")


def test_quick_needs_weights(tiny, tmp_path):
    (tmp_path / "weights").mkdir()
    done = here(
        "run",
        "--data",
        tiny,
        "--profile",
        "quick",
        "--out",
        tmp_path / "out",
        "--weights",
        tmp_path / "weights",
    )
    refused(done, "resnet50_notop.weights.h5", "--weights")


def test_verify_on_real_images(breakhis):
    done = here("verify", breakhis / "original")
    assert done.returncode == 0
    assert "29 present, 7880 missing, 0 extra, 0 unreadable, 4 wrong size" in done.stdout
    assert done.stdout.count("is 700x456") == 4 and "partial" in done.stdout


def test_audit_of_the_paper_and_the_author():
    paper = json.loads(here("audit", "--split", "magnification", "--json").stdout)
    assert [(row["slides_shared"], row["test_slides"], row["cases_shared"]) for row in paper] == [
        (82, 82, 70)
    ]
    official = json.loads(here("audit", "--split", "official", "--json").stdout)
    assert [row["test_images_of_shared_cases"] for row in official] == [1145, 674, 697, 836, 999]
    case = json.loads(here("audit", "--split", "case", "--json").stdout)
    assert {row["cases_shared"] for row in case} == {0}


def test_predict_labelled_images_and_evaluate(tmp_path):
    """A model that takes bright for malignant, and is right on 150 of 200 bright and dark images."""
    bright = keras.Sequential(
        [
            keras.Input((6, 8, 3), dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1, "sigmoid"),
        ]
    )
    bright.layers[-1].set_weights([np.full((3, 1), 20 / 3), np.full(1, -10.0)])
    bright.save(tmp_path / "mine <b>.keras")
    images = known_images().sample(200, random_state=0)
    label = class_labels(images)
    (tmp_path / "lab").mkdir()
    for name, says in zip(images["filename"], np.where(np.arange(200) < 150, label, 1 - label)):
        Image.new("RGB", (8, 6), ("black", "white")[says]).save(tmp_path / "lab" / name)
    manifest = images[["slide", "magnification", "subtype"]].assign(
        path=images["filename"], label=label, group=images["case"]
    )
    manifest.to_csv(tmp_path / "labels.csv", index=False)
    Image.new("RGB", (8, 6)).save(tmp_path / "lab" / "stranger.png")
    named = ["--manifest", tmp_path / "labels.csv", "--csv", tmp_path / "p.csv"]
    done = here("predict", tmp_path / "mine <b>.keras", tmp_path / "lab", *named)
    assert done.returncode == 0, done.stderr
    assert "left out: 1 without a label in the manifest, the first stranger.png" in done.stderr
    (accuracy,) = [line for line in done.stdout.splitlines() if "balanced" not in line and "accuracy" in line]
    assert "0.75" in accuracy
    table = pd.read_csv(tmp_path / "p.csv")
    wanted = manifest.sort_values("path")
    for column, other in {"filename": "path", "case": "group", "label": "label", "slide": "slide"}.items():
        assert table[column].tolist() == wanted[other].tolist()
    assert set(table["split"]) == {"external"} and set(table["probability"].round()) == {0, 1}
    others = known_images().sample(400, random_state=1)  # a validation table with its threshold at 0.4
    others = others[~others["filename"].isin(images["filename"])]
    validation = others[["filename", "slide", "case", "magnification", "subtype"]].assign(
        label=class_labels(others), fold=3, method="mine <b>", split="val", seed=0
    )
    validation = validation.assign(probability=0.3 + 0.1 * validation["label"])
    validation.to_csv(tmp_path / "v.csv", index=False)
    asked = ["evaluate", tmp_path / "p.csv", "--validation", tmp_path / "v.csv", "--out", tmp_path / "out"]
    done = here(*asked, "--prevalences", "0.2")
    assert done.returncode == 0 and "0.75" in done.stdout and "mine" in done.stdout, done.stderr
    assert pd.read_csv(tmp_path / "out" / "locked.csv")["threshold"].tolist() == [0.4]
    results = pd.read_csv(tmp_path / "out" / "tables" / "results.csv").set_index("metric")
    assert (
        results.loc["accuracy", "value"] == 0.75
        and results.loc["accuracy", "cases"] == table["case"].nunique()
    )
    # the 2x2 by case, at the locked threshold, counted anew; and what it gives at a prevalence of 0.2
    cases = table.groupby("case").agg(label=("label", "max"), p=("probability", "mean"))
    cases["found"] = cases["p"] >= 0.4
    shares = cases.groupby("label")["found"].mean()
    by_case = pd.read_csv(tmp_path / "out" / "tables" / "by_case.csv").set_index("measure")
    assert by_case.loc["sensitivity", "value"] == pytest.approx(shares[1])
    assert by_case.loc["specificity", "value"] == pytest.approx(1 - shares[0])
    assert by_case.loc["PPV", "value"] == pytest.approx(cases.loc[cases["found"], "label"].mean())
    values = pd.read_csv(tmp_path / "out" / "tables" / "predictive_values.csv")
    ppv = 0.2 * shares[1] / (0.2 * shares[1] + 0.8 * shares[0])
    assert values["prevalence"].tolist() == [0.2] and values["PPV (95 %)"][0].startswith(f"{ppv:.3f} (")
    checklist = (tmp_path / "out" / "checklist.md").read_text()
    assert "met: 5.10 Calibration" in checklist and "met: 5.7" not in checklist  # the training is not known
    html = (tmp_path / "out" / "report.html").read_text()
    assert f"Split external, mine &lt;b&gt;:</b> AUC {results.loc['case_auc', 'value']:.2f} (" in html
    assert "made elsewhere" in html and "mine &lt;b&gt;" in html and "mine <b>" not in html
    table.drop(columns="probability").to_csv(tmp_path / "p.csv", index=False)
    refused(here("evaluate", tmp_path / "p.csv"), "p.csv", "'probability' is missing")
    refused(here("evaluate", tmp_path / "q.csv"), "q.csv")
    refused(here("evaluate", tmp_path / "v.csv", "--rule", "best"), "unknown threshold rule 'best'")
    refused(here("evaluate", tmp_path / "v.csv", "--prevalences", "20"), "prevalence '20': give a share")
    refused(here("evaluate", tmp_path / "v.csv", "--validation", tmp_path / "w.csv"), "w.csv")


def test_audit_of_a_split_made_elsewhere(tmp_path):
    images = known_images()
    split = images[["filename"]].assign(role=np.where(images["magnification"] == 400, "test", "train"))
    split.to_csv(tmp_path / "mine.csv", index=False)
    (row,) = json.loads(here("audit", "--split", tmp_path / "mine.csv", "--json").stdout)
    assert (row["test_images"], row["slides_shared"], row["test_slides"]) == (1820, 82, 82)
    refused(here("audit", "--split", tmp_path / "none.csv"), "none.csv")


def test_audit_compares_pictures_too(breakhis, tmp_path):
    done = here("audit", "--data", breakhis / "half", "--split", "official", BCD_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (
        "near-duplicate (1.000): test SOB_M_LC-14-13412-100-003.png" in lines[1] and "DC-14-13412" in lines[1]
    )


def test_predict(tiny, tmp_path):
    mean = keras.Sequential(
        [
            keras.Input((30, 40, 3), dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1, kernel_initializer="ones"),
        ]
    )
    mean.layers[-1].set_weights([np.full((3, 1), 1 / 3), np.zeros(1)])
    mean.save(tmp_path / "mean.keras")
    picture = next(Path(tiny).rglob("*.png"))
    (tmp_path / "text.png").write_text("not a picture")
    done = bcdlib("predict", tmp_path / "mean.keras", picture, tmp_path / "text.png", "--json")
    assert done.returncode == 0, done.stderr
    good, bad = json.loads(done.stdout)
    logit = np.asarray(Image.open(picture)).mean() / 255  # its last layer is linear
    assert good["probability"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)
    assert good["class"] == ("malignant" if good["probability"] >= 0.5 else "benign")
    assert bad["probability"] is None and "decoded" in bad["reason"]
    archive = shutil.make_archive(str(tmp_path / "all"), "zip", tiny)
    many = json.loads(here("predict", tmp_path / "mean.keras", tiny, picture, archive, "--json").stdout)
    assert (
        len(many) == 96 + 1 + 96 and many[96]["file"] == str(picture) and many[97]["file"].startswith(archive)
    )
    assert many[96]["probability"] == pytest.approx(good["probability"], abs=1e-6)
    folder, packed = (
        {Path(row["file"]).name: row["probability"] for row in part} for part in (many[:96], many[97:])
    )
    assert packed == pytest.approx(folder, abs=1e-6)
    refused(here("predict", tmp_path / "no.keras", picture), "no.keras")
    refused(here("predict", tmp_path / "text.png", picture), "text.png", "not a usable Keras model")
    refused(here("predict", tmp_path / "mean.keras", tmp_path / "text.png"), "text.png")


def test_table_ii_and_gap():
    from bcdlib import compare
    from bcdlib.evaluation import published

    assert (
        dict(zip(published.TABLE_II["key"], published.TABLE_II["accuracy"]))["resnet50"] == 99.10
        and len(published.TABLE_II) == 11
    )
    images = known_images().drop_duplicates("case").groupby("class").head(16)
    images = pd.concat([images, known_images()[lambda known: known["case"].isin(images["case"])]])
    images = images.drop_duplicates("filename").groupby("case").head(4).groupby("class").head(50)
    label = class_labels(images)
    base = images[["filename", "slide", "case", "magnification", "subtype"]].assign(
        label=label, fold=0, method="m", seed=0, weights="w"
    )
    right = base.assign(probability=label.astype(float), split="image")
    half = base.assign(probability=np.where(np.arange(100) % 2, label, 1 - label).astype(float), split="case")
    table = compare.table_ii(pd.concat([right, half]))
    # methods by published accuracy, what is not in Table II first; measured rows under the published one
    assert table["key"].tolist()[:3] == ["m", "m", "resnet50"] and table["accuracy"].tolist()[:3] == [
        100,
        50,
        99.10,
    ]
    assert len(table) == 13 and table["low"].notna().sum() == 2
    mine = compare.table_ii(right.assign(method="alexnet-head")).query("key == 'alexnet'")
    assert mine[["kind", "accuracy"]].values.tolist() == [["published", 84.60], ["measured", 100]]
    assert "accuracy 1.000 with a split by image, 0.500 with a split by case" in compare.gap_text(
        pd.concat([right, half])
    )
    assert compare.gap_text(right) == ""


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["audit", "--seed", "-1"], ["--seed"]),
        (["audit", "--folds", "many"], ["--folds"]),
        (["compare", "--seeds", "0"], ["--seeds"]),
        (["compare", "--seeds", "2", "--seed", str(2**32 - 1)], ["--seed 4294967295", "2 seeds"]),
        (["audit", "--folds", "1000000000"], ["--folds", "2<=x<=100"]),
        (["verify", ""], ["no name"]),
        (["verify", "HTTP://site/BreaKHis_v1.tar.gz"], ["an address; download it first"]),
        (["compare", "--methods", ""], ["no method", "resnet50"]),
        (["audit", "--data", "~nouser/x"], ["home folder", "~"]),
        (["verify", "a" * 5000], ["a" * 100]),
        (["frobnicate"], ["frobnicate"]),
        (["run", "--final", "--only", "05_evaluate"], ["--final", "04_train"]),
        (["predict", "m.keras", "a", "b", "--manifest", "l.csv"], ["b: with --manifest", "one folder"]),
        (["predict", "m.keras", ""], ["empty name"]),
        (["predict", "m.keras", "a.png", "--csv", "m.keras"], ["--csv m.keras", ".csv"]),
        (["predict", "m.keras", "a.png", "--csv", "."], ["--csv .", ".csv"]),
        (["predict", "m.keras", "a.png", "--csv", "nowhere/o.csv"], ["--csv nowhere/o.csv", "no folder"]),
        (["predict", "m.keras", "a", "--manifest", "l.csv", "--csv", "./l.csv"], ["./l.csv", "manifest"]),
        (["audit", "--split"], ["--split"]),
        (["evaluate", "p\u00fcnktchen.csv"], ["no such predictions table"]),
    ],
)
def test_one_line_for_what_cannot_be_meant(arguments, words, tmp_path):
    run = here if "".join(arguments).isascii() else bcdlib  # a process has an encoding of its own
    done = run(*arguments, PYTHONIOENCODING="ascii", BCD_HOME=str(tmp_path))
    refused(done, *words)
    assert not any(line.startswith(("Usage", "Try")) for line in done.stderr.splitlines())


def test_a_key_given_twice_in_a_sweep(tmp_path):
    (tmp_path / "s.yaml").write_text("seed: 1\nseed: 2\n")
    refused(here("run", "--sweep", tmp_path / "s.yaml"), "s.yaml", "'seed' is given twice")


def test_names_of_files_do_nothing_to_the_terminal(tmp_path):
    name = "\x1b[31mred\u202egnp.png"
    Image.new("RGB", (8, 8)).save(tmp_path / name)
    shutil.copytree(ROOT / "tests" / "data", tmp_path / "more", ignore=lambda folder, names: names)
    Image.new("RGB", (700, 460)).save(tmp_path / "SOB_B_A-14-22549AB-40-001.png")
    done = bcdlib("verify", tmp_path)
    assert done.returncode == 0 and "\\x1b[31mred\\u202egnp.png" in done.stdout
    assert not set("\x1b\u202e") & set(done.stdout + done.stderr)


def test_the_keyboard_stops_with_one_line(tmp_path):
    """And a name that is ASCII's or not goes through the same door."""
    name = "m\u00fc\u202e"
    program = "import click\nfrom bcdlib.__main__ import cli\n@click.command()\ndef stopped():\n"
    program += f"    click.echo({name!r}); print({name!r}); raise KeyboardInterrupt\ncli(stopped)\n"
    (tmp_path / "stopped.py").write_text(program, encoding="utf-8")
    for encoding, shown in (("ascii", "m\\xfc\\u202e"), ("utf-8", "m\u00fc\\u202e")):
        done = subprocess.run(
            [sys.executable, tmp_path / "stopped.py"],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 130
        assert done.stderr.decode().strip() == "Error: stopped; the same command goes on from here"
        assert done.stdout.decode().splitlines() == [shown, shown]


def predictions_of(name, cases=12):
    """A predictions table of a method of this name, on images of one's own."""
    n = 4 * cases
    label, random = np.arange(n) // 4 % 2, np.random.default_rng(len(name))
    return pd.DataFrame(
        {
            "filename": [f"{number}.png" for number in range(n)],
            "slide": np.arange(n) // 4,
            "case": np.arange(n) // 4,
            "magnification": 40,
            "subtype": "",
            "label": label,
            "probability": (label + random.random(n)) / 2,
            "fold": 0,
            "method": name,
            "split": "mine",
            "seed": 0,
        }
    )


@pytest.mark.slow
def test_reports_of_two_tables_of_one_name(tmp_path, monkeypatch):
    """Each has a folder of its own; a folder that holds the one is not overwritten with the other.

    The other's texts are a stranger's, and must not become HTML.
    """
    for name, table in {"a": predictions_of("model a"), "b": hostile_predictions()}.items():
        (tmp_path / name).mkdir()
        table.to_csv(tmp_path / name / "predictions.csv", index=False)
    home = tmp_path / "runs {seed} 100%"
    kernel = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = ["/bin/false", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": "site", "language": "python"}))
    where = {"BCD_HOME": str(home), "JUPYTER_PATH": str(tmp_path / "jupyter")}
    for name in "aba":
        done = here("evaluate", tmp_path / name / "predictions.csv", **where)
        assert done.returncode == 0, done.stderr
        if name == "b":  # what the third would compute is there
            monkeypatch.setattr("bcdlib.suite.run.execute_notebook", lambda *words, **more: None)
    made = {folder.name: (folder / "tables" / "metrics.csv").read_text() for folder in home.iterdir()}
    assert set(made) == {"predictions-evaluate", "predictions-evaluate-2"}
    assert "model a" in made["predictions-evaluate"] and "net" in made["predictions-evaluate-2"]
    harmless(home / "predictions-evaluate-2" / "report.html")
    out = home / "predictions-evaluate"
    refused(here("evaluate", tmp_path / "b" / "predictions.csv", "--out", out, **where), "name another --out")
    assert "model a" in (out / "tables" / "metrics.csv").read_text()
    assert "base-uri 'none'; form-action 'none'" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    "command, unneeded",
    [
        ("--help", {"pandas", "numpy", "keras"}),
        ("run --help", {"pandas", "numpy", "keras"}),
        ("audit --split published", {"keras", "sklearn", "scipy", "cv2", "requests"}),
        ("audit --split eva", {"keras", "sklearn", "scipy", "requests"}),
        ("verify", {"keras", "sklearn", "scipy", "requests"}),
    ],
)
def test_what_should_start_at_once_imports_little(tiny, command, unneeded):
    words = command.split() + [str(tiny)] * (command == "verify")
    code = (
        "import sys, bcdlib.__main__ as m\n"
        "try: m.main()\n"
        "finally: print('MODULES', *{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = set(done.stdout.rpartition("MODULES ")[2].split())
    assert "click" in found and not found & unneeded


def test_a_table_is_evaluated_without_keras():
    """What `evaluate` and 05_evaluate import; where there is a model to ask, Keras comes then."""
    code = (
        "import sys, bcdlib.evaluate, bcdlib.suite.run, bcdlib.widgets.threshold, bcdlib.widgets.upload\n"
        "assert 'sklearn' in sys.modules and 'keras' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    "name",
    [
        "images.csv",
        "report.html",
        "predictions.csv",
        "figures/one.pdf",
        "notebooks/mine.ipynb",
        "tables/t.csv",
    ],
)
def test_a_folder_with_files_of_ones_own_is_no_run_folder(name, tiny, tmp_path):
    """Nothing is written or removed there; what holds nothing that a run would replace may be used."""
    own = tmp_path / "project"
    (own / name).parent.mkdir(parents=True)
    (own / name).write_text("mine")
    done = here("run", "--data", tiny, "--out", own, "--only", "01_mount", BCD_HOME=str(tmp_path))
    refused(done, name, "another --out")
    assert [file for file in own.rglob("*") if file.is_file()] == [own / name]
    assert (own / name).read_text() == "mine"


def test_a_table_beside_its_report_is_not_replaced(tmp_path):
    table = tmp_path / "predictions.csv"
    table.write_text("filename,slide,case,magnification,subtype,label,probability,fold,method,split,seed\n")
    before = table.read_bytes()
    rows = "a.png,1,1,40,A,0,0.2,0,m,s,0\nb.png,2,2,40,A,1,0.7,0,m,s,0\n"
    table.write_bytes(before + rows.encode())
    refused(here("evaluate", table, "--out", tmp_path), "predictions.csv", "another --out")
    assert table.read_bytes() == before + rows.encode()


def test_a_copy_of_which_nothing_can_be_read_is_not_usable(tmp_path):
    file = tmp_path / "data" / official_path("SOB_B_A-14-22549AB-40-001.png")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no image")
    done = here("verify", tmp_path / "data")
    assert done.returncode == 2 and "usable" not in done.stdout
    assert done.stderr.count("Error") == 1 and "no image with a BreakHis name can be read" in done.stderr
