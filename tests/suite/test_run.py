"""Notebooks that need nothing of each other, executed at the same time."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest

from bcdlib.errors import StageError
from bcdlib.methods.parts import hardware
from bcdlib.runs import places
from bcdlib.runs.folder import open_run_folder
from bcdlib.suite import run
from bcdlib.trials import notebook


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """Run the suite with notebooks that only meet; gives what began and ended, and the error."""
    monkeypatch.setattr(run, "write_report", lambda opened: {})

    def suite(cores=2, device="cpu", only=(), failing=(), meeting=()):
        monkeypatch.setattr(run, "count_cores", lambda: cores)
        monkeypatch.setattr(hardware, "accelerator", lambda: (device, 0.0))
        barrier, lines = threading.Barrier(2, timeout=20), []

        def execute(stage, *words, **more):
            lines.append(f"{stage[:2]} begins")
            if stage in meeting:
                barrier.wait()  # until the other one is there too
            if stage in failing:
                raise StageError(f"{stage} failed")
            if failing:
                time.sleep(0.2)
            lines.append(f"{stage[:2]} ends")

        monkeypatch.setattr(run, "execute_notebook", execute)
        try:
            run.run_suite(open_run_folder(tmp_path), {"profile": "demo"}, only)
        except StageError as error:
            lines.append(str(error))
        return lines

    return suite


def serial(*stages):
    return [f"{stage} {what}" for stage in stages for what in ("begins", "ends")]


def test_on_two_cores_those_that_need_nothing_of_each_other(executed):
    lines = executed(meeting=notebook.STAGES[2:])
    assert lines[:4] == serial("01", "02") and {*lines[4:8]} == {*serial("03", "04")}
    assert {*lines[8:]} == {*serial("05", "06")}
    assert executed(only=("02_preprocess", "03_visualize", "05_evaluate")) == serial("02", "03", "05")


@pytest.mark.parametrize("machine", [{"cores": 1}, {"device": "gpu"}, {"device": "tpu"}], ids=str)
def test_elsewhere_one_after_the_other(machine, executed):
    assert executed(**machine) == serial("01", "02", "03", "04", "05", "06")


@pytest.mark.parametrize("failing, other", [("03_visualize", "04"), ("04_train", "03")])
def test_the_one_beside_a_failed_one_goes_on(failing, other, executed, capsys):
    lines = executed(failing=(failing,), meeting=(failing, "03_visualize", "04_train"))
    assert f"{other} ends" in lines and lines[-1] == f"{failing} failed"
    assert not any(line.startswith("05") for line in lines)
    assert ("goes on" in capsys.readouterr().out) == (other == "04")


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Write a notebook of one cell among those that `notebook.execute_notebook` knows."""
    monkeypatch.setattr(places, "shipped", lambda name: tmp_path)

    def write(name, source):
        cells = [nbformat.v4.new_code_cell(source)]
        metadata = {"kernelspec": {"name": "python3", "display_name": "Python", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / f"{name}.ipynb")
        (tmp_path / name).mkdir()

    return write


def test_each_works_in_its_folder_and_environment(shipped, tmp_path):
    """And this process in its own all the while."""
    before = Path.cwd(), dict(os.environ)

    def execute(name):
        shipped(
            name,
            "import os, time\n"
            "time.sleep(0.5)\n"
            "print(os.getcwd(), os.environ['WHO'], 'BCD_HOME' in os.environ)",
        )
        out = tmp_path / name / "out.ipynb"
        notebook.execute_notebook(name, {}, out, cwd=tmp_path / name, env={"WHO": f"${name}"})

    threads = [threading.Thread(target=execute, args=[name]) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert (Path.cwd(), dict(os.environ)) == before
        time.sleep(0.02)
    for name in ("a", "b"):
        printed = nbformat.read(tmp_path / name / "out.ipynb", as_version=4).cells[0].outputs[0].text
        assert printed.split() == [str(tmp_path / name), f"${name}", "True"]


def test_stopped_inside_a_cell_its_kernel_ends_without_a_word(shipped, tmp_path):
    shipped("a", "import os, time\nprint('kernel', os.getpid(), flush=True)\ntime.sleep(60)")
    code = (
        "import pathlib, signal, sys\n"
        "from bcdlib.runs import places\n"
        "from bcdlib.trials import notebook\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "places.shipped = lambda name: folder\n"
        "try:\n"
        "    notebook.execute_notebook('a', {}, folder / 'out.ipynb', cwd=folder, log=sys.stdout)\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        kernel = int(next(line for line in process.stdout if line.startswith("kernel")).split()[1])
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130 and "IPKernelApp" not in said
    deadline = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(kernel, 0)
            time.sleep(0.1)
