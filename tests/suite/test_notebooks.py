"""The six notebooks: consistent as committed, and running under papermill, elsewhere and on Colab's path."""

import ast
import base64
import importlib
import inspect
import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from bcdlib.plots import panel
from bcdlib.runs.profiles import PROFILES
from bcdlib.suite import stamp
from bcdlib.trials.notebook import STAGES
from tests.command import bcdlib, here
from tests.data.test_custom import THREE, draw, rows

ROOT = Path(__file__).resolve().parent.parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path, kind=None):
    return [c for c in nbformat.read(path, as_version=4).cells if kind in (None, c.cell_type)]


def test_there_are_six_in_order():
    assert [path.stem for path in NOTEBOOKS] == list(STAGES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_as_committed(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    # GPU time is rationed
    assert notebook.metadata.get("accelerator") == ("GPU" if path.stem >= "04" else None)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in code)
    for cell in code:
        tree = ast.parse(cell.source)
        defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        assert not [node for node in ast.walk(tree) if isinstance(node, defined)], cell.source
    logic = (ast.For, ast.While, ast.If, ast.Try, ast.With)
    assert not [n for c in code[2:] for n in ast.walk(ast.parse(c.source)) if isinstance(n, logic)]
    tagged = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert tagged == [code[0]] and all("# @param" in line for line in tagged[0].source.splitlines())
    assert code[1].source == cells(NOTEBOOKS[0], "code")[1].source  # get bcdlib
    common = cells(NOTEBOOKS[0], "code")[0].source.splitlines()[:6]
    assert tagged[0].source.splitlines()[:6] == common
    assert notebook.cells[1].source.startswith(f"# {path.stem[1]}. ")
    assert all(len(c.source.splitlines()) <= 10 for c in code[2:])  # after the parameters
    names = [c.id for c in notebook.cells]
    assert len(set(names)) == len(names)


def test_no_two_cells_write_the_same_table_or_figure():
    """A later notebook's would replace an earlier one's in the run folder."""
    code = "\n".join(cell.source for path in NOTEBOOKS for cell in cells(path, "code"))
    names = re.findall(r"run\.(table|figure)\(\s*\"(\w+)\"", code)
    assert len(names) > 30 and len(set(names)) == len(names)


@pytest.mark.parametrize("name", PROFILES)
def test_the_table_of_profiles_is_right(name):
    (plan,) = (c.source for c in cells(NOTEBOOKS[3], "markdown") if "| `paper` |" in c.source)
    (row,) = (line for line in plan.splitlines() if line.startswith(f"| `{name}` |"))
    profile, (_, network, epochs, rate, norm) = PROFILES[name], row.strip("| ").split(" | ")[:5]
    size = "{}x{}".format(*profile.size)
    assert size in network or (network == "the same" and profile.size == PROFILES["paper"].size)
    steps = profile.steps_per_epoch
    told = f"of {steps} steps, batch {profile.batch_size}" if steps else "passes"
    assert epochs == f"{profile.epochs} {told}" and float(rate) == profile.learning_rate
    assert str(profile.batch_norm or 0.99) in norm


@pytest.mark.parametrize("number", range(6))
def test_each_says_what_comes_next(number):
    last = cells(NOTEBOOKS[number])[-1].source
    if number == 5:
        assert "README.md#what-the-results-mean" in last
        assert "\n## What the results mean, and what they do not\n" in (ROOT / "README.md").read_text()
    else:
        name = NOTEBOOKS[number + 1].name
        assert f"(https://colab.research.google.com/github/bcdlib/bcdlib/blob/main/notebooks/{name})" in last
        assert f"]({name})" in last


def imports(path) -> dict[str, str]:
    """Name -> module of what a notebook imports, the cell that gets bcdlib aside."""
    found = {}
    for cell in cells(path, "code")[2:]:
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.Import), ast.unparse(node)
            if isinstance(node, ast.ImportFrom):
                found |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_imports_are_verbs_and_widgets(path):
    allowed = {"IPython.display.Markdown"} | {f"bcdlib.{stage.split('_')[1]}" for stage in STAGES}
    found = set(imports(path).values())
    assert f"bcdlib.{path.stem.split('_')[1]}" in found, "each calls its own verb"
    assert {name for name in found if not name.startswith("bcdlib.widgets.")} <= allowed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_calls_fit_the_functions_that_they_call(path):
    known = {name: place for name, place in imports(path).items() if place.startswith("bcdlib.")}
    for cell in cells(path, "code")[2:]:
        for call in (node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)):
            assert len(call.args) <= 4, ast.unparse(call)
            module = getattr(getattr(call.func, "value", None), "id", None)
            if module in known:
                function = getattr(importlib.import_module(known[module]), call.func.attr)
                named = {keyword.arg for keyword in call.keywords}
                starred = None in named or any(isinstance(value, ast.Starred) for value in call.args)
                bind = (
                    inspect.signature(function).bind_partial if starred else inspect.signature(function).bind
                )
                bind(*call.args, **dict.fromkeys(named - {None}))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_parameter_is_explained(path):
    explained, declared = (
        next(c for c in cells(path) if c.id == name).source for name in ("words", "parameters")
    )
    names = [node.targets[0].id for node in ast.parse(declared).body]
    assert re.findall(r"^- `(\w+)`: \S", explained, flags=re.M) == names


def test_what_is_explained_is_a_parameter():
    source = "\n".join(c.source for path in NOTEBOOKS for c in cells(path, "code") if c.id == "parameters")
    assert set(stamp.PARAMETERS) == {node.targets[0].id for node in ast.parse(source).body}


def test_stamp_changes_nothing_here_and_everything_for_another_address(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for path in [*NOTEBOOKS, ROOT / "README.md"]:
        (tmp_path / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    assert stamp.stamp_notebooks(tmp_path) == []
    changed = stamp.stamp_notebooks(tmp_path, "https://github.com/someone/fork", "dev")
    assert len(changed) == 7
    text = (tmp_path / "notebooks" / "04_train.ipynb").read_text() + (tmp_path / "README.md").read_text()
    assert "someone/fork/blob/dev/notebooks/04_train.ipynb" in text
    assert 'REPOSITORY = \\"https://github.com/someone/fork' in text


def test_readme_commands_are_ci_commands():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    commands = re.findall(r"^python3 -m venv .*$", readme, flags=re.M)
    assert len(commands) == 2 and commands[1] == ci.splitlines()[-1]


def run_suite(start, out, data, *options):
    words = ["--data", data, "--profile", "demo", "--out", out, "--weights", "none", *options]
    return start("run", *words, BCD_CACHE=str(Path(out).parent / "cache"))


def check_run(folder):
    for stage in STAGES:
        notebook = nbformat.read(folder / "notebooks" / f"{stage}.ipynb", as_version=4)
        assert all(
            o.output_type != "error" for c in notebook.cells if c.cell_type == "code" for o in c.outputs
        )
    check_headless(folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert {row["split"] for row in summary["trained"]} == {"magnification", "case"}
    assert {"image", "slide", "case"} <= {row["split"] for row in summary["compared"]}
    html = (folder / "report.html").read_text()
    assert html.count("data:image/webp;base64,") >= 12
    assert "random initial weights" in html and "test slides and" in html
    assert "Nobody: the images are drawn" in html
    flow = pd.read_csv(folder / "tables" / "flow.csv").query("step == 'test'").set_index("split")
    assert flow["cases_in_training"].to_dict() == {"magnification": 12, "case": 0}
    checklist = (folder / "checklist.md").read_text()
    assert "met: 5.7 Which images went where" in checklist and "impossible with drawn tissue" in checklist
    assert not re.findall(r'(?:src|href)="(?!data:|#|https://doi)[^"]*\.(?:js|css|png|svg)"', html)
    return summary


def check_headless(folder):
    """Where a live notebook has a widget, this one has a still image, and no widget at all."""
    cells = {"browse-samples": "03_visualize", "threshold-slider": "05_evaluate", "own-image": "05_evaluate"}
    cells |= {"follow-case": "03_visualize", "follow-case-answers": "06_compare"}
    for cell, stage in cells.items():
        notebook = nbformat.read(folder / "notebooks" / f"{stage}.ipynb", as_version=4)
        (outputs,) = [c.outputs for c in notebook.cells if c["id"] == cell]
        data = [output.data for output in outputs if "data" in output]
        png = base64.b64decode(data[0]["image/png"])
        assert png in [file.read_bytes() for file in (folder / "figures").glob("*.png")], "drawn twice"
        assert len(data) == 1 and len(data[0]["image/png"]) > 10_000 and panel.VIEW not in data[0]
        assert not notebook.metadata.get("widgets")


def test_run_from_another_folder_keeps_everything_there(prior, tmp_path, monkeypatch):
    """Relative paths, as a user in that folder writes them."""
    draw(tmp_path / "mine", rows(THREE))
    for name in ("BCD_CACHE", "BCD_HOME"):
        monkeypatch.delenv(name, raising=False)
    words = ["--data", "mine", "--manifest", "mine.csv"]
    done = here("run", *words, "--only", "01_mount", "--only", "02_preprocess", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "mine-demo"
    cache = Path(json.loads((run / "settings.json").read_text())["cache"])
    assert cache.parent == tmp_path / "runs" / "cache" and (cache / "pixels.npy").is_file()
    kept = nbformat.read(run / "notebooks" / "02_preprocess.ipynb", as_version=4)
    said = [output.text for cell in kept.cells for output in cell.get("outputs", []) if "text" in output]
    assert any("Run folder" in text for text in said)
    assert not any("absl" in text or "cuda" in text for text in said)  # what TensorFlow says as it starts
    words += ["--out", "runs/mine-demo", "--weights", "none", "--methods", prior.name, "--splits", "case"]
    done = here("compare", *words, cwd=tmp_path)
    assert done.returncode == 0 and "case" in done.stdout, done.stderr
    assert (run / "comparison.csv").is_file() and list(cache.parent.glob("pixels-*")) == [cache]


@pytest.mark.slow
def test_run_end_to_end_and_notebook_failures(tiny, tmp_path):
    done = run_suite(bcdlib, tmp_path / "run", tiny)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = check_run(tmp_path / "run")
    assert summary["settings"]["profile"] == "demo" and "Report:" in done.stdout
    # once a split's table is broken 04 cannot read it: the error names notebook and cell, the half stays
    (tmp_path / "run" / "splits" / "case.csv").write_text("nonsense")
    failed = run_suite(here, tmp_path / "run", tiny, "--only", "04_train")
    assert failed.returncode == 1 and "Error: 04_train, cell " in failed.stderr
    kept = nbformat.read(tmp_path / "run" / "notebooks" / "04_train.ipynb", as_version=4)
    assert any(o.output_type == "error" for c in kept.cells if c.cell_type == "code" for o in c.outputs)
