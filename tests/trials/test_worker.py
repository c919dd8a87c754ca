"""The process beside a worker that does the work."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bcdlib.trials.cluster import WorkError, call_worker

ROOT = Path(__file__).resolve().parent.parent.parent
WORKER = """
from bcdlib.trials.cluster import call_worker
print(call_worker("os:getpid", {}), flush=True)
call_worker("builtins:print", {"end": "said by the work\\n"})
call_worker("signal:pause", {})
"""


def test_a_child_that_dies_is_told_and_replaced():
    with pytest.raises(WorkError, match="its process ended") as error:
        call_worker("os:abort", {})
    assert error.value.kind == "Died"
    assert call_worker("os:getpid", {}) == call_worker("os:getpid", {}) != os.getpid()


def test_what_the_work_raises_comes_back():
    with pytest.raises(WorkError, match="no keyword arguments") as error:
        call_worker("math:sqrt", {"x": 4})
    assert error.value.kind == "TypeError"


def test_it_ends_with_the_worker_in_the_middle_of_work_and_prints_elsewhere(tmp_path):
    with open(tmp_path / "errors", "w") as errors:
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    child = psutil.Process(int(worker.stdout.readline()))
    time.sleep(0.5)
    assert child.is_running()
    worker.kill()
    assert worker.communicate()[0] == "" and (tmp_path / "errors").read_text() == "said by the work\n"
    child.wait(10)
