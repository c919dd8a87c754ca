"""A process beside each worker, which does the work: alone with its random numbers, and gone when the worker is.

Dask's own threads draw from Python's random numbers at moments of their own, and Keras seeds its layers from the same:
in the worker's process the same seed would not give the same network. ``python -m bcdlib.trials.worker`` reads requests, JSON
lines of {"work": "module:function", "item": {...}}, and answers {"result": ...} or {"error": ..., "message": ...}.
"""

import importlib
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

from bcdlib.errors import printable

_lock = threading.Lock()
_running: list[subprocess.Popen] = []


class WorkError(Exception):
    """What the work raised; ``kind`` is the name of its class."""

    def __init__(self, kind: str, message: str):
        super().__init__(kind, message)
        self.kind, self.message = kind, message

    def __str__(self):
        return self.message


def call_worker(work: str, item: dict):
    """Have ``module:function`` called with ``**item`` by this process's child; what it returns must be JSON.

    Raises
    ------
    WorkError
        If the function raised something, or the child died (kind "Died").
    """
    with _lock:
        if not _running or _running[0].poll() is not None:
            _running[:] = [_start()]
        child = _running[0]
        try:
            child.stdin.write(json.dumps({"work": work, "item": item}) + "\n")
            child.stdin.flush()
            answer = child.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            raise WorkError("Died", f"its process ended with status {child.wait()}; was the memory enough?")
        answer = json.loads(answer)
        if "error" in answer:
            raise WorkError(answer["error"], answer["message"])
        return answer["result"]


def _start() -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "bcdlib.trials.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=worker_environment(),
    )


def worker_environment() -> dict[str, str]:
    """The child's: it finds this package, and takes BCD_DEVICES devices, else one: the others are of other workers."""
    root = str(Path(__file__).resolve().parent.parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    found = {**os.environ, "PYTHONPATH": path, "BCD_DEVICES": os.environ.get("BCD_DEVICES") or "1"}
    if (
        found.get("CUDA_VISIBLE_DEVICES") and found["BCD_DEVICES"].isdecimal()
    ):  # TensorFlow takes memory on all that it sees
        mine = found["CUDA_VISIBLE_DEVICES"].split(",")[: int(found["BCD_DEVICES"]) or None]
        found["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    return found


def serve_requests() -> None:
    """Answer until the other end is closed: at once, even in the middle of a piece of work."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the work prints must not stand among the answers
    requests = queue.SimpleQueue()

    def read():
        for line in sys.stdin:
            requests.put(json.loads(line))
        os._exit(0)  # the worker has ended: the same work may be going on elsewhere by now

    threading.Thread(target=read, daemon=True).start()
    while True:
        request = requests.get()
        try:
            module, function = request["work"].split(":")
            answer = {"result": getattr(importlib.import_module(module), function)(**request["item"])}
        except Exception as error:
            answer = {"error": type(error).__name__, "message": printable(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve_requests()
