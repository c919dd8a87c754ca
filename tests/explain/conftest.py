"""A run with trained models, which the tests of explanations share."""

import pytest

from bcdlib import evaluate, mount, preprocess, train
from bcdlib.runs.folder import open_run_folder
from bcdlib.runs.profiles import get_profile
from tests.shallow import stages

TINY = get_profile("demo", size=(48, 32), head_epochs=2, batch_size=8)


@pytest.fixture(scope="session")
def run(tiny, tmp_path_factory):
    """A run on the tiny data set: a frozen base, trained under the paper's protocol and by case."""
    home = tmp_path_factory.mktemp("maps")
    run = open_run_folder(home / "run")
    mount.start_run(run, tiny)
    cache = preprocess.resize_images(
        run, TINY, mount.open_data(run), cache_root=home / "cache", progress=False
    )
    preprocess.write_splits(run, TINY, cache)
    trials = train.plan_trials(run, TINY, split_names=("magnification", "case"), trainable="head")
    with stages(few=True):
        train.train_trials(run, TINY, trials, weights="none", verbose=0)
    return run


@pytest.fixture(scope="session")
def table(run):
    return evaluate.load_predictions(run, evaluate.lock(run))


@pytest.fixture(scope="session")
def texts():
    """All captions and texts of a figure, as one."""

    def read(figure):
        return " ".join(text.get_text() for axis in figure.axes for text in [axis.xaxis.label, *axis.texts])

    return read
