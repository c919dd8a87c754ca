"""Comparisons on Dask's workers: the same table, whatever dies on the way."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from bcdlib.errors import InputError
from bcdlib.runs.profiles import get_profile
from bcdlib.trials import cluster, comparison
from tests.command import here
from tests.trials.slow import PROFILE, SLOW, prepared, starts

ROOT = Path(__file__).resolve().parent.parent.parent
TABLES = ("comparison.csv", "comparison_predictions.csv", "comparison_validation.csv")


def command(data, out, cache, *words):
    words = [sys.executable, "-m", "bcdlib", "compare", "--data", data, "--out", out, *words]
    return subprocess.Popen(
        list(map(str, words)),
        cwd=ROOT,
        env={**os.environ, "BCD_CACHE": str(cache)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


class Processes:
    """`dask scheduler` and `dask worker` as a user starts them."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.address, self.all = folder, f"tcp://127.0.0.1:{self.port}", []

    def _start(self, *words):
        log = open(self.folder / f"dask-{len(self.all)}.log", "w")
        self.all.append(
            subprocess.Popen(
                [sys.executable, "-m", "dask", *map(str, words)], cwd=ROOT, stdout=log, stderr=log
            )
        )
        return self.all[-1]

    def scheduler(self):
        # a worker that dies is no fault of its trial: as `local:N` sets it
        os.environ["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "10"
        return self._start("scheduler", "--host", "127.0.0.1", "--port", self.port, "--no-dashboard")

    def worker(self):
        return self._start(
            "worker",
            self.address,
            "--nthreads",
            1,
            "--memory-limit",
            0,
            "--no-dashboard",
            "--local-directory",
            self.folder / "dask",
        )

    def end(self):
        for process in self.all:
            with contextlib.suppress(psutil.NoSuchProcess):
                for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
            process.wait(20)


@pytest.fixture
def dask(tmp_path):
    processes = Processes(tmp_path)
    yield processes
    processes.end()


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come"
        time.sleep(0.02)


def kill_worker_of(process) -> bool:
    """Kill the worker that a `dask worker` keeps; False if it has none at the moment."""
    found = [one for one in psutil.Process(process.pid).children() if "spawn_main" in " ".join(one.cmdline())]
    for one in found:
        os.kill(one.pid, signal.SIGKILL)
    return bool(found)


def listening():
    mine = psutil.Process()
    for process in [mine, *mine.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            yield from (
                (one.laddr.ip, one.laddr.port)
                for one in process.net_connections("inet")
                if one.status == psutil.CONN_LISTEN
            )


def test_no_stranger_gives_work_to_processes_here(monkeypatch):
    """All ports are on loopback; the scheduler's want the key of this process, whoever else is on it."""
    import distributed

    before, seen, tried = set(listening()), set(), []
    true = cluster._completed

    def completed(client, work, items):
        seen.update(set(listening()) - before)
        address = client.scheduler.address
        for security in (None, distributed.Security.temporary()):
            with pytest.raises(OSError):
                other = address if security else address.replace("tls://", "tcp://")
                distributed.Client(other, timeout=3, security=security, set_as_default=False)
            tried.append(address)
        return true(client, work, items)

    monkeypatch.setattr(cluster, "_completed", completed)
    done = dict(cluster.map_items("builtins:dict", {"a": {"x": 1}}, scheduler="local:2", progress=False))
    assert done == {"a": {"x": 1}} and len(tried) == 2 and tried[0].startswith("tls://127.0.0.1:")
    assert len(seen) >= 3 and {ip for ip, _ in seen} == {"127.0.0.1"}


def test_the_same_table_as_in_one_process(tiny, tmp_path):
    """Features, a head in Keras, scikit-learn: bit for bit."""
    done = {}
    for name, scheduler in (("one", "none"), ("two", "local:2")):
        run = prepared(tiny, tmp_path, name)
        done[name] = comparison.run_comparison(
            run,
            PROFILE,
            method_names=["googlenet", "hybrid_cnn:bases=vgg16:folds=2"],
            split_names=["case"],
            weights="none",
            progress=False,
            scheduler=scheduler,
        )
        for part in (tmp_path / "cache").glob("*/features/*"):
            part.unlink()  # or the second would find the first's
    pd.testing.assert_frame_equal(done["one"], done["two"], check_exact=True)
    for name in TABLES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_killed_workers_and_a_killed_scheduler(dask, slow, tiny, tmp_path):
    """Two real processes on loopback; 24 trials; workers killed three times, then the scheduler, once."""
    scheduler = dask.scheduler()
    workers = [dask.worker(), dask.worker()]
    words = [
        "--methods",
        slow,
        "--splits",
        "image,case",
        "--folds",
        3,
        "--seeds",
        4,
        "--scheduler",
        dask.address,
    ]
    process = command(tiny, tmp_path / "run", tmp_path / "cache", *words)
    for number in range(3):
        wait_for(lambda least=4 * (number + 1): len(starts(slow)) >= least)
        wait_for(lambda worker=workers[number % 2]: kill_worker_of(worker))
    wait_for(lambda: len(starts(slow)) >= 17)
    finished = {path.parent.name for path in (tmp_path / "run" / "trials").glob("*/trial.json")}
    scheduler.kill()
    scheduler.wait()
    dask.scheduler()
    dask.worker()
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    table = pd.read_csv(tmp_path / "run" / "comparison_predictions.csv")
    assert len(table.groupby(["method", "split", "fold", "seed"])) == 24
    assert not table.duplicated(["method", "split", "fold", "seed", "filename"]).any()
    often = starts(slow).value_counts()
    assert len(often) == 24 and often.sum() > 24, "no trial was cut off: nothing was tried"
    assert (often[sorted(finished)] <= 4).all()
    alone = ["compare", "--data", tiny, *words[:-2], "--out"]
    at_once = {"BCD_CACHE": str(tmp_path / "cache"), "SLOW_FACTOR": "0"}
    assert here(*alone, tmp_path / "alone", **at_once).returncode == 0
    for name in TABLES:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    before = len(starts(slow))
    again = here(*alone, tmp_path / "run", BCD_CACHE=str(tmp_path / "cache"))  # what was done stays done
    assert again.returncode == 0 and len(starts(slow)) == before


@pytest.fixture
def quickly_given_up(monkeypatch):
    """A connection that does not come is waited for a second, not ten."""
    import distributed

    client = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda **words: client(**words | {"timeout": 1}))
    monkeypatch.setattr(cluster, "PATIENCE", 2)


def test_a_scheduler_that_goes_for_good(dask, slow, tiny, tmp_path, quickly_given_up):
    run = prepared(tiny, tmp_path, "run")
    dask.scheduler(), dask.worker()
    wait_for(lambda: "Registered" in (tmp_path / "dask-1.log").read_text())
    planned = [f"{slow}:seconds={number / 100}" for number in range(30, 36)]

    def kill():
        wait_for(lambda: len(list((tmp_path / "run").glob("trials/*/trial.json"))) >= 2)
        dask.end()

    import threading

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(InputError, match=r"does not answer; [1-9] of 12 are done"):
        comparison.run_comparison(
            run, PROFILE, method_names=planned, split_names=["image"], progress=False, scheduler=dask.address
        )
    killer.join()


def test_what_is_no_scheduler(tmp_path, quickly_given_up):
    for name in ("local", "local:0", "local:x", "host:8786", str(tmp_path / "none.json")):
        with pytest.raises(InputError, match="--scheduler"):
            cluster.check_scheduler(name)
    (tmp_path / "scheduler.json").write_text(json.dumps({"address": "tcp://127.0.0.1:1"}))
    with pytest.raises(InputError, match="does not answer; 0 of 1"):
        list(
            cluster.map_items(
                "os:getpid", {"a": {}}, scheduler=str(tmp_path / "scheduler.json"), progress=False
            )
        )


def test_errors_of_workers_are_those_of_one_process(slow, tiny, tmp_path):
    slow.write_text(SLOW.replace("self.share_ = float", "self.share_ = 1 / (1 - self.seed) * float"))
    for name, scheduler in (("one", "none"), ("two", "local:1")):
        run = prepared(tiny, tmp_path, name)
        comparison.run_comparison(
            run,
            PROFILE,
            method_names=[str(slow)],
            split_names=["image"],
            seeds=range(2),
            progress=False,
            scheduler=scheduler,
        )
    line = 1 + slow.read_text().partition("1 / (1 - self.seed)")[0].count("\n")
    expected = [
        f"slow, split image, fold {fold}, seed 1: "
        f"InputError: {slow}, line {line}: ZeroDivisionError: division by zero"
        for fold in range(2)
    ]
    assert comparison.failed_trials(run) == expected
    for name in TABLES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.thorough
def test_two_workers_are_nearly_twice_as_fast(slow, tiny, tmp_path, monkeypatch, capsys):
    """24 trials of about two seconds on one thread each, from the first start of a trial to the last end."""
    monkeypatch.setenv("BCD_THREADS", "1")
    seconds = {}
    for number in (1, 2):
        run = prepared(tiny, tmp_path, f"run{number}")
        comparison.run_comparison(
            run,
            PROFILE,
            method_names=[f"{slow}:seconds=2:spin=true"],
            split_names=["image", "case"],
            seeds=range(6),
            progress=False,
            scheduler=f"local:{number}",
        )
        ends = [path.stat().st_mtime for path in (tmp_path / f"run{number}").glob("trials/*/trial.json")]
        begins = [path.stat().st_mtime for path in (tmp_path / f"run{number}").glob("trials/job-*")]
        assert len(ends) == 24
        first = min(
            ends
        )  # start-up of processes and imports apart: from the first end on there are 23 trials
        seconds[number] = (max(ends) - first, max(ends) - min(begins))
    between, whole = (seconds[1][part] / seconds[2][part] for part in (0, 1))
    with capsys.disabled():
        print(f"\nspeed-up of two workers: {between:.2f}; with start-up of processes: {whole:.2f}; {seconds}")
    assert between >= 1.7


@pytest.mark.thorough
def test_825_trials_cost_little_and_the_scheduler_stays_small(dask, slow, tiny, tmp_path, capsys):
    scheduler = dask.scheduler()
    dask.worker()
    wait_for(lambda: "Registered" in (tmp_path / "dask-1.log").read_text())
    run = prepared(tiny, tmp_path, "run", get_profile("demo", size=(36, 24), folds=5))
    names = [f"{slow}:seconds={number / 1e6}" for number in range(11)]
    protocols = ["image", "slide", "case"]
    memory, started = [psutil.Process(scheduler.pid).memory_info().rss], time.monotonic()
    profile = get_profile("demo", size=(36, 24), folds=5)
    comparison.run_comparison(
        run, profile, method_names=names[:1], split_names=["image"], progress=False, scheduler=dask.address
    )  # imports, once
    memory.append(psutil.Process(scheduler.pid).memory_info().rss)
    started = time.monotonic()
    comparison.run_comparison(
        run,
        profile,
        method_names=names,
        split_names=protocols,
        seeds=range(1, 6),
        progress=False,
        scheduler=dask.address,
    )
    on_workers = time.monotonic() - started
    memory.append(psutil.Process(scheduler.pid).memory_info().rss)
    run = prepared(tiny, tmp_path, "alone", profile)
    comparison.run_comparison(run, profile, method_names=names[:1], split_names=["image"], progress=False)
    started = time.monotonic()
    comparison.run_comparison(
        run, profile, method_names=names, split_names=protocols, seeds=range(1, 6), progress=False
    )
    here = time.monotonic() - started
    each = 1000 * (on_workers - here) / 825
    with capsys.disabled():
        print(
            f"\n825 trials: {on_workers:.1f} s on one worker, {here:.1f} s here: {each:.1f} ms more a trial; "
            f"scheduler's memory {[round(one / 2**20) for one in memory]} MiB"
        )
    assert each <= 50 and memory[-1] - memory[0] < 200 * 2**20
