"""The notebooks in Colab: with a user and without, with Drive and without, on a TPU's machine."""

import json
import re
import subprocess
import sys
import time
import venv
from pathlib import Path

import nbclient
import nbformat
import pandas as pd
import pytest

from bcdlib.runs import environment
from bcdlib.runs.folder import open_run_folder
from bcdlib.suite.report import write_report
from bcdlib.trials.notebook import STAGES
from tests.colab import ROOT, Colab, printed
from tests.data.test_custom import THREE, draw, rows

GET = 5  # cells up to the one that gets bcdlib
OPEN = "from bcdlib import mount; print(mount.open_run(data='synthetic').folder)"


@pytest.fixture
def colab(tmp_path):
    return Colab(tmp_path)


def failure(colab, **options) -> str:
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        colab.run("01_mount", cells=GET, **options)
    (output,) = [
        output
        for cell in colab.notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]
    assert len(output.traceback) == 1, "more than the one line"
    return output.traceback[0]


def test_a_user_is_asked_once(colab):
    for _ in range(2):
        notebook = colab.run("01_mount", answers=True, cells=GET, more=OPEN)
        assert printed(notebook).strip() == str(colab.mine / "bcdlib" / "synthetic-demo")
    assert colab.asked == 1


def test_nobody_is_asked_where_nobody_answers(colab):
    started = time.monotonic()
    line = failure(colab, answers=False)
    assert "could not be mounted" in line and "nobody is here" in line and "drive = False" in line
    colab.mine.mkdir(parents=True)  # mounted by a notebook of the same machine
    notebook = colab.run("01_mount", answers=False, cells=GET, more=OPEN)
    assert printed(notebook).strip() == str(colab.mine / "bcdlib" / "synthetic-demo")
    assert colab.asked == 0 and time.monotonic() - started < 60


@pytest.mark.parametrize("kind", ["denied", "not empty", "space", "no hostname"])
def test_a_failed_mount_is_one_line_in_the_first_cell(kind, colab):
    if kind == "denied":
        (colab.folder / "denied").touch()
    elif kind == "not empty":
        (colab.content / "drive").mkdir()
        (colab.content / "drive" / "file").touch()
    elif kind == "space":
        colab.environment["BCD_DRIVE"] = str(colab.content / "my drive")
    else:
        (colab.folder / "hostname").unlink()
    line = failure(colab, answers=True)
    assert line.startswith("Google Drive could not be mounted at ") and "\n" not in line
    assert "allow access" in line and colab.asked == 1


@pytest.mark.parametrize("answers", [True, False])
def test_without_drive_runs_lie_on_the_machines_own_disk(answers, colab):
    notebook = colab.run("01_mount", answers=answers, cells=GET, more=OPEN, drive=False)
    assert printed(notebook).strip() == str(colab.content / "bcdlib" / "synthetic-demo")
    assert colab.asked == 0 and not colab.mine.exists()


def test_a_home_of_ones_own_needs_no_drive(colab, tmp_path):
    colab.environment["BCD_HOME"] = str(tmp_path / "home")
    notebook = colab.run("01_mount", answers=False, cells=GET, more=OPEN)
    assert printed(notebook).strip() == str(tmp_path / "home" / "synthetic-demo") and colab.asked == 0


def test_headless_without_drive_goes_through(tiny, tmp_path):
    colab = Colab(tmp_path, pip=True)
    for stage in ("01_mount", "02_preprocess"):
        colab.run(stage, answers=False, drive=False, data=str(tiny))
    run = colab.content / "bcdlib" / f"{tiny.name}-demo"
    assert (run / "splits" / "case.csv").is_file() and colab.asked == 0
    assert list((colab.content / "bcdlib" / "cache").glob("pixels-*/pixels.npy"))


def test_the_upload_that_failed_to_install_does_not_stop(tmp_path):
    """There is no wheel of an optional package for this Python."""
    colab = Colab(tmp_path, pip=True)
    (colab.folder / "packages" / "sitecustomize.py").write_text(
        "import bcdlib.runs.environment as e; e.OPTIONAL = ('no-such-package-of-bcdlib',)"
    )
    colab.environment["PYTHONPATH"] += f":{ROOT}"
    notebook = colab.run("01_mount", answers=False, drive=False, cells=GET, more="print('went on')")
    assert printed(notebook) == "went on\n"


@pytest.mark.slow
def test_all_six_one_after_the_other_with_a_user_and_images_of_ones_own(colab):
    """As a user does: each notebook by itself, with no run folder named."""
    data, manifest = draw(colab.content / "mine", rows([(name, classes, 12) for name, classes, _ in THREE]))
    own = {"data": str(data), "manifest": str(manifest), "weights": "none", "method": "lenet5", "epochs": 1}
    run, executed = colab.mine / "bcdlib" / "mine-demo", {}
    for stage in STAGES:
        executed[stage] = colab.run(stage, answers=True, **own)
    assert colab.asked == 1
    assert (run / "predictions.csv").is_file() and (run / "figures" / "table_ii.svg").is_file()
    assert list((colab.mine / "bcdlib" / "cache").glob("pixels-*/pixels.npy"))
    facts = [json.loads(file.read_text()) for file in run.glob("trials/*/trial.json")]
    assert all(one["environment"]["colab"] == "release-colab_20260801" for one in facts)
    # the report of these images says nothing that is known of BreakHis alone
    (run / "notebooks").mkdir()
    for stage, notebook in executed.items():
        notebook.metadata.pop("widgets", None)  # random names, which may hold any number
        nbformat.write(notebook, run / "notebooks" / f"{stage}.ipynb")
    summary = write_report(open_run_folder(run))
    assert {row["split"] for row in summary["trained"]} == {"case"}
    assert {row["split"]: row["images"] for row in summary["compared"]} == {"image": 36, "case": 36}
    assert all(row["slides"] == row["cases"] == 3 for row in summary["compared"])
    html = re.sub('data:image/[a-z]+;base64,[^"]*', "", (run / "report.html").read_text())
    for word in ("652", "63(7)", "CC BY", "1995", "printed<", "Gour et al.", "99.10", "93.45"):
        found = re.search(rf"(?<![\w.]){re.escape(word)}(?!\w)", html)  # no part of a longer number or a name
        assert not found, html[found.start() - 80 : found.end() + 80]
    assert "2 folds instead of 3" in html and "of 2 test cases were also in training" in html
    by_magnification = pd.read_csv(run / "tables" / "by_magnification.csv")
    assert by_magnification["magnification"].tolist() == ["unknown"]


@pytest.mark.thorough
def test_run_all_in_01(tiny, colab):
    """The other five in the same machine, where nobody answers; Drive is mounted."""
    colab.mine.mkdir(parents=True)
    notebook = colab.run("01_mount", answers=False, data=str(tiny), weights="none", run_all=True)
    said = printed(notebook, next(i for i, cell in enumerate(notebook.cells) if cell.id == "run-all"))
    assert "[5/5] 06_compare" in said and "Report: " in said and colab.asked == 0
    run = colab.mine / "bcdlib" / f"{tiny.name}-demo"
    assert "Made with" in (run / "report.html").read_text()


# ---------------------------------------------------------------- a TPU's machine


def without_tensorflow(folder):
    """Packages as on Colab's TPU runtime, as far as their names go: JAX, no TensorFlow."""
    (folder / "jax").mkdir()
    (folder / "jax" / "__init__.py").write_text("")
    (folder / "sitecustomize.py").write_text("import sys; sys.modules['tensorflow'] = None\n")


@pytest.mark.parametrize("given", [None, "tensorflow"])
def test_where_tensorflow_is_not_jax_is_chosen_before_keras_is_imported(given, colab):
    without_tensorflow(colab.folder / "packages")
    colab.environment.pop("KERAS_BACKEND", None)
    if given:
        colab.environment["KERAS_BACKEND"] = given
    asks = (
        "import os, sys\n"
        "print(os.environ['KERAS_BACKEND'], 'keras' in sys.modules, *environment.requirements(), sep='\\n')"
    )
    backend, keras, *packages = printed(
        colab.run("04_train", answers=False, drive=False, cells=GET, more=asks)
    ).split()
    assert (backend, keras) == ("jax", "False")
    assert {"statsmodels", "papermill"} <= set(packages)
    assert not [name for name in packages if name.startswith("tensor")]
    assert any(name.startswith("opencv-python-headless") for name in packages)


@pytest.fixture
def python_without_tensorflow(tmp_path):
    """A Python that has all that this one has, as links, without TensorFlow."""
    pytest.importorskip("jax", reason="JAX is not installed here: nothing runs without TensorFlow")
    venv.create(tmp_path / "venv", symlinks=True)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    for folder in (Path(name) for name in sys.path if name.endswith("site-packages")):
        for entry in folder.iterdir():
            place = packages / entry.name
            if not entry.name.startswith("tensor") and entry.suffix != ".pth" and not place.exists():
                place.symlink_to(entry)
        if (share := folder.parents[2] / "share" / "jupyter").is_dir():
            (tmp_path / "venv" / "share").mkdir(exist_ok=True)
            (tmp_path / "venv" / "share" / "jupyter").symlink_to(share)
    return tmp_path / "venv" / "bin" / "python"


@pytest.mark.slow
def test_all_six_where_tensorflow_is_not(tiny, colab, python_without_tensorflow):
    """Under papermill, with JAX alone; nobody has said which backend to take."""
    run, environment = colab.content / "run", colab.environment | {"BCD_DRIVE": "none"}
    environment["PYTHONPATH"] += f":{ROOT}"
    environment.pop("KERAS_BACKEND", None)

    def do(program):
        command = [python_without_tensorflow, "-c", program]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    assert "No module named 'tensorflow'" in do("import tensorflow").stderr
    trained = {"method": "lenet5", "epochs": 1, "splits": "magnification", "weights": "none"}
    parameters = {"data": str(tiny), "out": str(run), "drive": False, **trained}
    done = do(
        "from bcdlib import mount\nfrom bcdlib.suite.run import run_suite\n"
        f"run_suite(mount.open_run({str(run)!r}), {parameters!r})"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in STAGES:
        cells = nbformat.read(run / "notebooks" / f"{stage}.ipynb", as_version=4).cells
        code = [cell for cell in cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code)
        assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    facts = [json.loads(file.read_text())["environment"] for file in run.glob("trials/*/trial.json")]
    assert len(facts) == 2 and all(one["backend"] == "jax" and "tensorflow" not in one for one in facts)
    assert "jax" in (run / "report.html").read_text() and colab.asked == 0


def test_torch_is_refused_in_one_line(colab, monkeypatch):
    colab.environment["KERAS_BACKEND"] = "torch"
    line = failure(colab, answers=False, drive=False)
    assert "KERAS_BACKEND=torch" in line and "tensorflow and jax" in line
    command = [sys.executable, "-m", "bcdlib", "audit", "--split", "official"]
    done = subprocess.run(command, cwd=ROOT, env=colab.environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "KERAS_BACKEND=torch" in done.stderr


# ---------------------------------------------------------------- requirements

# Colab's freeze of August 2026, of what has a lower bound here
FREEZE = {
    "keras": "3.13.2",
    "nbconvert": "7.17.1",
    "opencv-python-headless": "5.0.0.93",
    "pillow": "11.3.0",
    "requests": "2.32.4",
    "scikit-learn": "1.6.1",
    "tqdm": "4.67.3",
}


def test_lower_bounds_change_nothing_that_colab_ships():
    from packaging.requirements import Requirement

    bounds = {found.name: found.specifier for found in map(Requirement, environment.requirements())}
    assert {name for name, bound in bounds.items() if bound} == set(FREEZE)
    assert all(bounds[name].contains(version) for name, version in FREEZE.items())
    assert not set(environment.OPTIONAL) & set(bounds)
