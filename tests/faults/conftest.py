"""A process that has imported everything and forks for each piece of work that is to be killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


class Warm:
    """See killable.py."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "killable.py"],
            stdin=subprocess.PIPE,
            text=True,
            stdout=subprocess.PIPE,
            env={**os.environ, "BCD_CHECKPOINT_SHARE": "1"},
        )
        assert self.process.stdout.readline() == "ready\n"

    def _ask(self, **words):
        self.process.stdin.write(json.dumps(words, default=str) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, **job):
        return Forked(self, self._ask(**job))


class Forked:
    def __init__(self, warm, pid):
        self.warm, self.pid, self.status = warm, pid, None

    def poll(self):
        if self.status is None:
            self.status = self.warm._ask(poll=self.pid)
        return self.status


@pytest.fixture(scope="module")
def warm():
    found = Warm()
    yield found
    found.process.stdin.close()
    found.process.wait(30)
