"""A process that has loaded all that is slow to load, and forks a child for each piece of work to be killed.

Reads JSON lines: {"work": name, "log": file, ...arguments} starts one and answers its process id;
{"poll": pid} answers null while it runs, then its exit status. "dies_at": N ends a piece of work at the
N-th renaming of a file, of stage 4 in `to_train`. The children call nothing but public functions, as
notebooks do.
"""

import itertools
import json
import os
import sys
import traceback
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import keras  # noqa: F401  the slow part; nothing of it runs before the fork

from bcdlib import mount, train
from bcdlib.data.breakhis import known_images
from bcdlib.runs.profiles import get_profile
from bcdlib.suite.run import prepare_run
from bcdlib.trials import comparison


def settings(size, **changes):
    return get_profile("demo", size=tuple(size), folds=2, head_epochs=3, batch_size=8, **changes)


def to_preprocess(data, out, cache, size, dies_at=0):
    """Stages 1 and 2."""
    die_at(dies_at)
    run = mount.open_run(out)
    prepare_run(run, settings(size), data, cache_root=cache, progress=False)
    return run


def to_train(data, out, cache, size, method, epochs, steps, trainable="all", dies_at=0):
    """Stages 1, 2 and 4."""
    run = to_preprocess(data, out, cache, size)
    die_at(dies_at)
    profile = settings(size, epochs=epochs, steps_per_epoch=steps)
    train.train_trials(
        run,
        profile,
        train.plan_trials(run, profile, split_names=("case",), method=method, trainable=trainable),
        weights="none",
        verbose=0,
    )


def to_compare(data, out, cache, size, methods, splits, store="", keep_models=False, dies_at=0):
    """Stages 1, 2 and 6."""
    run = to_preprocess(data, out, cache, size, dies_at)
    comparison.run_comparison(
        run,
        settings(size),
        method_names=methods,
        split_names=splits,
        weights="none",
        progress=False,
        store=store,
        keep_models=keep_models,
    )


WORK = {work.__name__: work for work in (to_preprocess, to_train, to_compare)}


def die_at(number: int) -> None:
    """End the process, with nothing cleaned up, where the file of this number gets its final name."""
    count = itertools.count(1)

    def dying(real):
        def rename(*arguments, **options):
            if next(count) == number:
                os._exit(9)
            return real(*arguments, **options)

        return rename

    os.replace, os.rename = dying(os.replace), dying(os.rename)


def start(job: dict) -> int:
    child = os.fork()
    if child:
        return child
    os.setsid()
    with open(job.pop("log"), "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        WORK[job.pop("work")](**job)
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status)


def main() -> None:
    known_images()  # each child would read them anew
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if "poll" in job:
            done, status = os.waitpid(job["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if done else None
        else:
            answer = start(job)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
