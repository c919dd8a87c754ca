"""The README is short, and each of its commands does what stands beside it."""

import re
import shlex
import shutil
import tarfile
from pathlib import Path

import click
import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bcdlib.__main__ import main
from bcdlib.data.breakhis import class_labels, known_images
from bcdlib.evaluation import bootstrap, recorded
from bcdlib.suite.pictures import picture_sources
from tests.command import here

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)[3:]
    for block in re.findall(r"^```bash\n(.*?)^```", README, flags=re.M | re.S)
    for line in block.splitlines()
    if line.startswith("python -m bcdlib ")
]
QUICK = ("verify", "audit", "predict")


def test_it_is_short():
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 1800


def test_files_that_it_names_are_there():
    places = re.findall(r'\]\((?!https?:)([^)#]+)\)|src="([^"]+)"', README)
    assert len(places) >= 7
    for place in filter(None, sum(places, ())):
        assert (ROOT / place).is_file(), place


def test_its_table_is_the_record():
    found = recorded.read_recording("protocols")
    (table,) = re.findall(r"<!-- record -->(.*?)<!-- /record -->", README, flags=re.S)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.split("\n") if "`" in line]
    sources = [found.metrics.query(f"method == '{name}'") for name in ("resnet50-head", "resnet50", "robust")]
    sources.append(found.differences.query("first == 'robust' and second == 'resnet50-head'"))
    for row, source in zip(rows, sources, strict=True):
        stored = source[source["split"] == "case"].set_index("metric")
        told = [
            bootstrap.interval_text(stored.loc[name])
            for name in ("auc", "auc_within", "case_auc", "accuracy")
        ]
        assert [cell.removeprefix("+") for cell in row[1:]] == told


@pytest.mark.parametrize("name", picture_sources())
def test_pictures_are_as_young_as_what_draws_them(name):
    with Image.open(ROOT / "notebooks" / name) as picture:
        drawn_with = picture.text.get("Source")
    assert drawn_with == picture_sources()[name], "python -m bcdlib stamp --pictures runs/synthetic-demo"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_these_options(words):
    name, *rest = words
    command = main.commands[name]
    with command.make_context(name, list(rest)) as context:  # parses, and refuses what it does not know
        assert isinstance(context, click.Context)


def test_every_option_in_the_prose_is_one():
    known = {word for command in main.commands.values() for option in command.params for word in option.opts}
    prose = re.sub(r"^```.*?^```", "", README, flags=re.M | re.S)
    for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose):
        assert option in known | {"--help"}, option


@pytest.fixture
def desk(tmp_path, tiny):
    """A folder with what the commands name."""
    shutil.copytree(tiny, tmp_path / "DIR")
    with tarfile.open(tmp_path / "BreaKHis_v1.tar.gz", "w:gz") as archive:
        archive.add(tiny, "BreaKHis_v1")
    images = sorted(path.name for path in tiny.rglob("*.png"))
    roles = ["test" if number % 4 == 0 else "train" for number in range(len(images))]
    pd.DataFrame({"filename": images, "role": roles}).to_csv(tmp_path / "MY_SPLIT.csv", index=False)
    shutil.copy(next(tiny.rglob("*.png")), tmp_path / "IMAGE.png")
    paths = [path.relative_to(tiny).as_posix() for path in sorted(tiny.rglob("*.png"))]
    labels = ["benign" if "/benign/" in path else "malignant" for path in paths]
    groups = [Path(path).name.split("-")[2] for path in paths]
    pd.DataFrame({"path": paths, "label": labels, "group": groups}).to_csv(tmp_path / "MY.csv", index=False)
    model = keras.Sequential(
        [
            keras.Input((30, 40, 3), dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    (tmp_path / "runs" / "NAME" / "trials" / "TRIAL").mkdir(parents=True)
    model.save(tmp_path / "runs" / "NAME" / "trials" / "TRIAL" / "model.keras")
    found = (
        known_images().groupby("class").head(200)[["filename", "slide", "case", "magnification", "subtype"]]
    )
    found = found.assign(
        label=class_labels(known_images().loc[found.index]), fold=0, method="mine", split="case", seed=0
    )
    found["probability"] = np.random.default_rng(0).uniform(0.2, 0.6, len(found)) + 0.2 * found["label"]
    tests = found["case"].isin(sorted(found["case"].unique())[::2])
    found[tests].to_csv(tmp_path / "PREDICTIONS.csv", index=False)
    found[~tests].to_csv(tmp_path / "VALIDATION.csv", index=False)
    return tmp_path


def run_there(desk, words):
    return here(*words, cwd=desk, BCD_CACHE=str(desk / "cache"))


def test_the_quick_commands_as_they_stand(desk):
    ran = {}
    for words in COMMANDS:
        if words[0] in QUICK:
            done = run_there(desk, words)
            assert done.returncode == 0, (words, done.stderr)
            ran[" ".join(words)] = done.stdout
    assert "96 extra" in ran["verify BreaKHis_v1.tar.gz"]
    assert ran["audit --split published"].count("eva") and "91 of 339" in ran["audit --split eva"]
    assert "of 24 test images" in ran["audit --split MY_SPLIT.csv --data DIR"]
    predicted, elsewhere = [text for words, text in ran.items() if words.startswith("predict")]
    assert '"probability"' in predicted and '"class"' in predicted
    assert "sensitivity" in elsewhere and len(pd.read_csv(desk / "OUT.csv")) == 96


@pytest.mark.slow
def test_the_report_of_a_table_as_it_stands(desk):
    (words,) = [words for words in COMMANDS if words[0] == "evaluate"]
    done = run_there(desk, words)
    assert done.returncode == 0, done.stderr
    assert (desk / "runs" / "PREDICTIONS-evaluate" / "report.html").is_file()
