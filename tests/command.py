"""The command line, as a process of its own or, where Python and Keras have started already, in this one."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from bcdlib.__main__ import cli
from bcdlib.runs import noise

ROOT = Path(__file__).resolve().parent.parent


def bcdlib(*arguments, cwd=ROOT, **env):
    """Run ``python -m bcdlib`` with these arguments; `env` are changes of its environment."""
    command = [sys.executable, "-m", "bcdlib", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=1200)


def here(*arguments, cwd=ROOT, **env):
    """The same in this process: seconds quicker, for all that does not test the process itself."""
    written = io.StringIO(), io.StringIO()
    with (
        patch.object(noise, "drop_noise"),
        patch.object(sys, "argv", ["bcdlib", *map(str, arguments)]),
        patch.dict(os.environ, {"PYTHONPATH": str(ROOT), **env}),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(written[0]),
        contextlib.redirect_stderr(written[1]),
        pytest.raises(SystemExit) as ended,
    ):
        cli()
    stdout, stderr = (text.getvalue() for text in written)
    return subprocess.CompletedProcess(arguments, ended.value.code or 0, stdout, stderr)


def refused(done, *words):
    """It ended with status 2 and one line that has these words."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and lines[-1].startswith("Error: ")
    assert all(word in lines[-1] for word in words), lines[-1]
