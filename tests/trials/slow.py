"""A method that takes its time, in a file of its own, and a run folder that is ready for trials."""

import pandas as pd

from bcdlib import mount, preprocess
from bcdlib.runs.profiles import get_profile

PROFILE = get_profile("demo", size=(36, 24), folds=2, head_epochs=2)
SLOW = '''
import os, time
import numpy as np
from bcdlib.methods import Method

class Slow(Method):
    """Takes its time, and notes each start of a piece of work beside this file."""
    key, title = "slow", "test"
    def __init__(self, seconds=0.3, seed=0, spin=False):
        self.seconds, self.seed, self.spin = seconds, seed, spin
    def fit(self, X, y, validation_data=None, folder=None):
        with open(os.path.join(os.path.dirname(__file__), "started"), "a") as log:
            log.write(f"{folder.name} {os.getpid()}\\n")
        end = time.monotonic() + self.seconds * float(os.environ.get("SLOW_FACTOR", 1))
        if self.spin:
            for _ in range(int(self.seconds * 25)):
                np.sort(np.random.default_rng(0).random(450_000))
        while not self.spin and time.monotonic() < end:
            time.sleep(0.01)
        self.share_ = float(np.mean(y)); return self
    def predict_proba(self, X):
        p = np.clip(self.share_ + np.linspace(-0.2, 0.2, len(X)), 0, 1); return np.column_stack([1 - p, p])
    def save(self, path):
        path.write_text(str(self.share_))
'''


def starts(slow) -> pd.Series:
    log = slow.with_name("started")
    return pd.Series(
        [line.split()[0] for line in log.read_text().splitlines()] if log.is_file() else [], dtype=object
    )


def prepared(data, tmp_path, name, profile=PROFILE):
    run = mount.open_run(tmp_path / name)
    mount.start_run(run, data, progress=False)
    cache = preprocess.resize_images(
        run, profile, mount.open_data(run), cache_root=tmp_path / "cache", progress=False
    )
    preprocess.write_splits(run, profile, cache)
    return run
