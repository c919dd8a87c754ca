"""Work on many processes: Dask's scheduler hands it out, on this machine or on a cluster; one process needs none of it.

What is handed out is small (names and settings) and so is what comes back: results lie in files that all can see.
Work must be idempotent: a worker that dies has its piece done again by another, and pieces that were done stay done.
"""

import contextlib
import importlib.util
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from bcdlib.errors import InputError
from bcdlib.trials.worker import call_worker

DEATHS = 10  # of workers that one piece of work may cost before it is given up
PATIENCE = 60  # seconds that a scheduler which has gone may take to come back
_LOCAL = re.compile(r"local:([1-9][0-9]{0,3})")


class _LostError(Exception):
    """The scheduler does not answer any more."""


def check_scheduler(scheduler: str) -> None:
    """Refuse what is no scheduler before anything long starts.

    Parameters
    ----------
    scheduler : "none", "local:N" (N processes here), "tcp://host:port" (or tls://), or the path of a scheduler file

    Raises
    ------
    InputError
        If it is none of these, or dask.distributed is not installed.
    """
    if scheduler == "none":
        return
    if not (
        _LOCAL.fullmatch(scheduler)
        or re.match(r"(tcp|tls|ws|wss)://.+", scheduler)
        or Path(scheduler).is_file()
    ):
        raise InputError(
            f"--scheduler {scheduler}: use none, local:N (N processes), tcp://host:port, or a scheduler file"
        )
    if importlib.util.find_spec("distributed") is None:
        raise InputError("--scheduler needs dask.distributed: pip install distributed")


def map_on_cluster(
    scheduler: str,
    work: str,
    items: Sequence[dict],
    keys: Sequence[str],
    *,
    label: str = "Work",
    progress: bool = True,
) -> Iterator[tuple[int, object]]:
    """Call ``work(**item)`` for every item on the scheduler's workers, each in a process of its own (see `child`).

    With "local:N" each process gets its share of the cores. A worker takes one item at a time; where workers have the
    resource GPU (``dask worker --resources GPU=1``), an item takes one.

    Parameters
    ----------
    scheduler : as in `check`, but not "none"
    work : "module:function" that the workers can import; it returns what JSON can hold
    items : its arguments, each; of what JSON can hold
    keys : a name for each, from all that it depends on; the same name is done once

    Yields
    ------
    (number of the item, what work returned or a `worker.WorkError` of what it raised), as they are completed.

    Raises
    ------
    InputError
        If the scheduler cannot be reached, or goes and does not come back; what was done by then stays done.
    """
    check_scheduler(scheduler)
    waiting = {key: number for number, key in enumerate(keys)}
    with (
        _address(scheduler) as address,
        tqdm(total=len(waiting), desc=label, unit="trial", disable=not progress) as bar,
    ):
        last_seen = None
        while waiting:
            try:
                with _client(address, first=last_seen is None) as client:
                    last_seen = time.monotonic()
                    for key, outcome in _completed(
                        client, work, {key: items[number] for key, number in waiting.items()}
                    ):
                        yield waiting.pop(key), outcome
                        bar.update()
                        last_seen = time.monotonic()
            except _LostError:
                if (
                    scheduler.startswith("local:")
                    or last_seen is None
                    or time.monotonic() - last_seen > PATIENCE
                ):
                    done = f"{len(items) - len(waiting)} of {len(items)}"
                    raise InputError(
                        f"{scheduler}: the scheduler does not answer; {done} are done and stay so; run the "
                        "same again when it is up"
                    ) from None
                time.sleep(1)


@contextlib.contextmanager
def _address(scheduler: str):
    """(address of a scheduler, path of its file): what `distributed.Client` takes."""
    local = _LOCAL.fullmatch(scheduler)
    if not local:
        yield {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
        return
    import dask
    from distributed import LocalCluster

    number = int(local[1])
    # BCD_THREADS: to measure, with the same threads a worker however many there are
    threads = os.environ.get("BCD_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // number))
    names = (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS",
    )
    # mapped pixels count as memory of a process: Dask's own limit would kill workers that are well
    with (
        dask.config.set(
            {"distributed.scheduler.allowed-failures": DEATHS, "distributed.worker.memory.terminate": False}
        ),
        LocalCluster(
            n_workers=number,
            threads_per_worker=1,
            memory_limit=0,
            dashboard_address=":0",
            env=dict.fromkeys(names, threads),
            silence_logs=50,
        ) as cluster,
    ):
        yield {"address": cluster.scheduler_address}


@contextlib.contextmanager
def _client(address: dict, first: bool):
    from distributed import Client

    try:
        client = Client(**address, timeout=10, set_as_default=False)
    except Exception:  # OSError, TimeoutError, ValueError of a damaged file
        raise _LostError from None
    try:
        if first and importlib.util.find_spec("bokeh"):
            print(f"Dashboard: {client.dashboard_link}", flush=True)
        yield client
    finally:
        with contextlib.suppress(Exception):
            client.close(timeout=2)


def _completed(client, work, items: dict[str, dict]) -> Iterator[tuple[str, object]]:
    from distributed import as_completed

    try:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        gpus = any("GPU" in worker.get("resources", {}) for worker in workers)
        # 1 a worker, whatever its threads: Keras takes all of them for one
        futures = [
            client.submit(
                call_worker, work, item, key=key, pure=False, resources={"GPU": 1} if gpus else None
            )
            for key, item in items.items()
        ]
        completed = as_completed(futures, loop=client.loop)
        while not completed.is_empty():
            if not completed.has_ready():
                if client.status != "running":
                    raise _LostError
                time.sleep(0.01)
                continue
            future = completed.next()
            if future.status not in ("finished", "error"):  # cancelled, lost: with the scheduler
                raise _LostError
            key = future.key
            error = future.exception()
            yield key, future.result() if error is None else error
            futures.remove(future)
            future.release()
    except OSError:  # of the connection: what `work` raises comes as an outcome
        raise _LostError from None
