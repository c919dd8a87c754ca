"""A process beside each Dask worker that does the work: alone with its random numbers, gone with the worker.

Dask's own threads draw from Python's random numbers at moments of their own, and Keras seeds its layers from
the same: in the worker's own process the same seed would not give the same network.
"""

import contextlib
import functools
import multiprocessing
import os
import pkgutil
import threading
from pathlib import Path

from bcdlib.errors import printable

_lock = threading.Lock()


class WorkError(Exception):
    """What the work raised, or "Died" if its process did.

    Attributes
    ----------
    kind : str
        Name of the exception's class.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(kind, message)  # both, or it could not be unpickled
        self.kind = kind

    def __str__(self):
        return self.args[1]


def call_worker(work: str, item: dict):
    """Call a function in the process beside this one, which is started if need be.

    Parameters
    ----------
    work : str
        "module:function"; it returns what can be pickled.
    item : dict
        Its keyword arguments.

    Raises
    ------
    WorkError
        If the function raised something, or the process died (kind "Died").
    """
    with _lock:
        process, connection = _start()
        try:
            connection.send((work, item))
            outcome = connection.recv()
        except (EOFError, OSError):
            process.join()
            _start.cache_clear()
            outcome = WorkError(
                "Died", f"its process ended with status {process.exitcode}; was the memory enough?"
            )
    if isinstance(outcome, WorkError):
        raise outcome
    return outcome


@functools.cache
def _start():
    multiprocessing.current_process().daemon = (
        False  # Dask's workers are daemons, which may not start processes
    )
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, worker_environment()), daemon=True)
    process.start()
    there.close()
    return process, here


def _serve(connection, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    os.dup2(2, 1)  # what the work prints is no answer of the command that handed it out
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError):  # the worker has ended
        while True:
            work, item = connection.recv()
            try:
                outcome = pkgutil.resolve_name(work)(**item)
            except Exception as error:
                outcome = WorkError(type(error).__name__, printable(error))
            connection.send(outcome)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(0)  # even in the middle of a piece of work: the same may be going on elsewhere by now


def worker_environment() -> dict[str, str]:
    """Return the environment of a worker's process: it finds this package, and takes its share of devices.

    That is BCD_DEVICES of them, or one: the others belong to other workers.
    """
    root = str(Path(__file__).resolve().parent.parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    found = {**os.environ, "PYTHONPATH": path, "BCD_DEVICES": os.environ.get("BCD_DEVICES") or "1"}
    if found.get("CUDA_VISIBLE_DEVICES") and found["BCD_DEVICES"].isdecimal():
        mine = found["CUDA_VISIBLE_DEVICES"].split(",")[: int(found["BCD_DEVICES"]) or None]
        found["CUDA_VISIBLE_DEVICES"] = ",".join(mine)  # TensorFlow takes memory on all that it sees
    return found
