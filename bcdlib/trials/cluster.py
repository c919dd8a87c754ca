"""Many pieces of work: in this process, or on the workers of a Dask scheduler, here or on a cluster.

What is handed out is small (names and settings) and so is what comes back: results lie in files that all can
see. Work must be idempotent: a worker that dies has its piece done again by another, and pieces that were
done stay done.

The work is done in a process beside each Dask worker: alone with its random numbers, gone with the worker.
Dask's own threads draw from Python's random numbers at moments of their own, and Keras seeds its layers from
the same: in the worker's own process the same seed would not give the same network.
"""

import contextlib
import functools
import importlib.util
import multiprocessing
import os
import pkgutil
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from bcdlib.data.decode import count_cores
from bcdlib.errors import InputError, printable

PATIENCE = 60  # seconds that a scheduler which has gone may take to come back
_LOCAL = re.compile(r"local:([1-9][0-9]{0,3})")
_lock = threading.Lock()


def check_scheduler(scheduler: str) -> None:
    """Refuse what is no scheduler before anything long starts.

    Parameters
    ----------
    scheduler : str
        "none", "local:N" (N processes here), "tcp://host:port" (or tls://), or the path of a scheduler file.

    Raises
    ------
    InputError
        If it is none of these, or what it needs is not installed.

    Examples
    --------
    >>> check_scheduler("none")
    """
    if not (
        re.fullmatch(rf"none|{_LOCAL.pattern}|(tcp|tls|ws|wss)://.+", scheduler) or Path(scheduler).is_file()
    ):
        raise InputError(
            f"--scheduler {scheduler}: use none, local:N (N processes), tcp://host:port, or a scheduler file"
        )
    if scheduler != "none" and importlib.util.find_spec("distributed") is None:
        raise InputError("--scheduler needs dask.distributed: pip install distributed")
    if _LOCAL.fullmatch(scheduler) and importlib.util.find_spec("cryptography") is None:
        raise InputError(f"--scheduler {scheduler} encrypts between its processes: pip install cryptography")


def map_items(
    work: str,
    items: dict[str, dict],
    *,
    scheduler: str = "none",
    label: str = "Work",
    progress: bool = True,
) -> Iterator[tuple[str, object]]:
    """Call a function for every item; one that fails does not stop the others.

    On a scheduler each call is made in a process of its own (see `call_worker`). With "local:N" each
    process gets its share of the cores. A worker takes one item at a time; where workers have the resource
    GPU (``dask worker --resources GPU=1``), an item takes one.

    Parameters
    ----------
    work : str
        "module:function" that the workers can import.
    items : dict
        Name -> keyword arguments; on a scheduler these, and what the function returns, are pickled.
    scheduler : str
        As in `check_scheduler`; "none" means one after the other in this process.
    label : str
        Of the progress bar.

    Yields
    ------
    (name, outcome)
        As they are completed: what the function returned, or the exception that it raised (on a scheduler a
        `WorkError`).

    Raises
    ------
    InputError
        If the scheduler cannot be reached, or goes and does not come back; what was done by then stays done.

    Examples
    --------
    >>> dict(map_items("builtins:dict", {"one": {"x": 1}, "two": {"x": 2}}, progress=False))
    {'one': {'x': 1}, 'two': {'x': 2}}
    """
    check_scheduler(scheduler)
    with tqdm(total=len(items), desc=label, unit="trial", disable=not progress) as bar:
        for done in _here(work, items, bar) if scheduler == "none" else _on_workers(scheduler, work, items):
            yield done
            bar.update()


def _here(work: str, items: dict[str, dict], bar: tqdm) -> Iterator[tuple[str, object]]:
    function = pkgutil.resolve_name(work)
    for name, item in items.items():
        bar.set_postfix_str(name)
        try:
            outcome = function(**item)
        except Exception as error:  # one item's failure must not cost the others' hours
            outcome = error
        yield name, outcome


def _on_workers(scheduler: str, work: str, items: dict[str, dict]) -> Iterator[tuple[str, object]]:
    waiting, last_seen = dict(items), None
    while waiting:
        try:
            with _client(scheduler) as client:
                if last_seen is None and importlib.util.find_spec("bokeh"):
                    print(f"Dashboard: {client.dashboard_link}", flush=True)
                last_seen = time.monotonic()
                for name, outcome in _completed(client, work, waiting):
                    del waiting[name]
                    last_seen = time.monotonic()
                    yield name, outcome
        except OSError:  # of the connection: what the work raises comes as an outcome
            if _LOCAL.fullmatch(scheduler) or last_seen is None or time.monotonic() - last_seen > PATIENCE:
                raise InputError(
                    f"{scheduler}: the scheduler does not answer; {len(items) - len(waiting)} of "
                    f"{len(items)} are done and stay so; run the same again when it is up"
                ) from None
            time.sleep(1)


@contextlib.contextmanager
def _client(scheduler: str):
    """Connect to the scheduler; that of "local:N" lives as long as the connection."""
    import dask
    import distributed

    with (
        dask.config.set(
            {
                # this many workers may die before a piece of work is given up
                "distributed.scheduler.allowed-failures": 10,
                # mapped pixels count as memory of a process: Dask's own limit would kill good workers
                "distributed.worker.memory.terminate": False,
            }
        ),
        contextlib.ExitStack() as stack,
    ):
        if local := _LOCAL.fullmatch(scheduler):
            # BCD_THREADS: to measure, with the same threads a worker however many there are
            threads = os.environ.get("BCD_THREADS") or max(1, count_cores() // int(local[1]))
            cluster = distributed.LocalCluster(
                n_workers=int(local[1]),
                threads_per_worker=1,
                memory_limit=0,
                # whoever reaches a port may give work to it: only who has this process's key, from here
                security=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                env={
                    "OMP_NUM_THREADS": str(threads),
                    "OPENBLAS_NUM_THREADS": str(threads),
                    "MKL_NUM_THREADS": str(threads),
                    "TF_NUM_INTRAOP_THREADS": str(threads),
                    "TF_NUM_INTEROP_THREADS": str(threads),
                },
                silence_logs=50,
            )
            stack.enter_context(cluster)
            address = {"address": cluster.scheduler_address, "security": cluster.security}
        else:
            address = {"scheduler_file" if Path(scheduler).is_file() else "address": scheduler}
        try:
            client = distributed.Client(**address, timeout=10, set_as_default=False)
        except Exception as error:  # OSError, TimeoutError, ValueError of a damaged file
            raise ConnectionError from error
        try:
            yield client
        finally:
            with contextlib.suppress(Exception):
                client.close(timeout=2)


def _completed(client, work: str, items: dict[str, dict]) -> Iterator[tuple[str, object]]:
    from dask.tokenize import tokenize
    from distributed import as_completed

    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    # 1 a worker, whatever its threads: Keras takes all of them for one
    resources = {"GPU": 1} if any("GPU" in worker.get("resources", {}) for worker in workers) else None
    names = {
        # the key: what is asked for twice is done once
        client.submit(call_worker, work, item, key=f"trial-{tokenize(work, item)}", resources=resources): name
        for name, item in items.items()
    }
    for future in as_completed(names, loop=client.loop):
        if future.status not in ("finished", "error"):  # cancelled, lost: with the scheduler
            raise ConnectionError
        yield names[future], future.exception() or future.result()
        future.release()


class WorkError(Exception):
    """What the work raised, or "Died" if its process did: ``WorkError(kind, message)``."""

    @property
    def kind(self) -> str:
        """Name of the exception's class."""
        return self.args[0]

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
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(there, worker_environment()), daemon=True
    )
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
    found = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")])
        ),
        "BCD_DEVICES": os.environ.get("BCD_DEVICES") or "1",
    }
    if found.get("CUDA_VISIBLE_DEVICES") and found["BCD_DEVICES"].isdecimal():
        mine = found["CUDA_VISIBLE_DEVICES"].split(",")[: int(found["BCD_DEVICES"]) or None]
        found["CUDA_VISIBLE_DEVICES"] = ",".join(mine)  # TensorFlow takes memory on all that it sees
    return found
