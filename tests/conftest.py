"""Shared fixtures: real images and weights where the environment names them, and a tiny made data set."""

import itertools
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib.pyplot
import numpy as np
import pytest
from PIL import Image

from bcdlib.data.breakhis import official_path
from bcdlib.data.cache import run_cache
from bcdlib.runs.folder import open_run_folder
from bcdlib.suite.run import prepare_run
from tests.shallow import stages

matplotlib.use("Agg")


@pytest.fixture(scope="module", autouse=True)
def no_open_figures():
    """Figures that another file's tests left open are not those of this one."""
    matplotlib.pyplot.close("all")


# of a minute or more: begun last they would leave the other worker with nothing to do
LONG = (
    "test_notebooks.py",
    "test_methods.py",
    "test_fitting.py",
    "test_cluster.py",
    "test_faults_crashes.py",
    "test_colab.py",
    "test_resume.py",
    "test_browser.py",
)
# all tests of these count as slow: they train many networks, or start many processes
SLOW = (
    *LONG[1:],
    "test_bench.py",
    "test_error_analysis.py",
    "test_explanation.py",
    "test_foreign_models.py",
    "test_hardware.py",
    "test_jobs.py",
    "test_near_duplicates.py",
    "test_recipes.py",
    "test_robust.py",
    "test_sklearn.py",
    "test_sweep.py",
)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """Mark what is slow, and begin with the long files; the others stay in their order."""
    for item in items:
        if item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="module")
def shallow():
    """ResNets, DenseNets, ResHist and GoogLeNet with some blocks of each stage, the last among them.

    The blocks left out are like these, and tracing a hundred layers takes ten times as long as computing
    them. The run of all notebooks has all blocks.
    """
    with stages(few=True):
        yield


@pytest.fixture
def full_depth():
    """All blocks, where a test of a file of `shallow` asks what the networks are."""
    with stages(few=False):
        yield


COUNTS = ("tried", "survived", "reported", "lost")


def _folder(variable):
    if not os.environ.get(variable):
        pytest.skip(f"set {variable} to run")
    folder = Path(os.environ[variable])
    assert folder.is_dir(), f"{variable}={folder}: no such folder"
    return folder


@pytest.fixture(scope="session")
def breakhis():
    """Folder with half/, original/ (real images) and breakhis_images.csv (facts about all of it)."""
    return _folder("BCD_BREAKHIS")


@pytest.fixture(scope="session")
def weights_dir():
    """Folder with pretrained weights."""
    return _folder("BCD_WEIGHTS_DIR")


def _tiny_names():
    """96 names of year 99: 12 cases (6 a class), two with two slides, 4 magnifications, 2 images each."""
    names = []
    for number, subtype in enumerate(["A", "F", "PT", "TA", "A", "F", "DC", "LC", "MC", "PC", "DC", "DC"]):
        letter = "B" if subtype in ("A", "F", "PT", "TA") else "M"
        for magnification in (40, 100, 200, 400):
            for sequence in (1, 2):
                part = "ABC"[sequence - 1] if number in (0, 6) else ""
                slide = f"99-{10001 + number}{part}"
                names.append(f"SOB_{letter}_{subtype}-{slide}-{magnification}-{sequence:03d}.png")
    return names


@pytest.fixture(scope="session")
def tiny_names():
    """The names of the images of `tiny`: 6 cases, 7 slides and 48 images a class."""
    return _tiny_names()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, tiny_names):
    """Folder with 96 noise images of 40x30 in the official layout. Copy it before changing anything."""
    folder = tmp_path_factory.mktemp("tiny")
    for number, name in enumerate(tiny_names):
        file = folder / official_path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng([99, number]).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file)
    return folder


@pytest.fixture(scope="session")
def apart():
    """Check that no title or caption of a figure's axes runs into another one."""

    def check(figure):
        figure.canvas.draw()
        texts = [text for axis in figure.axes for text in (axis.title, axis.xaxis.label) if text.get_text()]
        assert len(texts) > 1
        for one, other in itertools.combinations(texts, 2):
            assert not one.get_window_extent().overlaps(other.get_window_extent()), (one, other)

    return check


@pytest.fixture(scope="session")
def prepare():
    """Do what 01_mount and 02_preprocess do; return the run and its cache."""

    def prepare(folder, data, profile, cache_root, **options):
        run = open_run_folder(folder)
        prepare_run(run, profile, data, cache_root=cache_root, progress=False, **options)
        return run, run_cache(run)

    return prepare


@pytest.fixture
def prior(tmp_path):
    """A file outside the package with the quickest method: the share of malignant images in training."""
    file = tmp_path / "prior.py"
    file.write_text(
        "import numpy as np\nfrom bcdlib.methods import Method\n"
        "class Prior(Method):\n"
        "    key, title = 'prior', 'Share of malignant images in training'\n"
        "    def fit(self, X, y, validation_data=None, folder=None):\n"
        "        self.share_ = float(np.mean(y)); return self\n"
        "    def predict_proba(self, X):\n"
        "        return np.tile([1 - self.share_, self.share_], (len(X), 1))\n"
        "    def save(self, path):\n"
        "        path.write_text(str(self.share_))\n"
    )
    return file


TEXTURE = """
import keras
import numpy as np
from sklearn.linear_model import LogisticRegression

from bcdlib.methods import Method


class Texture(Method):
    key, title = "texture", "Random filters, pooled, and a logistic regression"

    def _network(self, shape):
        keras.utils.set_random_seed(0)
        x = inputs = keras.Input(shape, dtype="uint8", name="image")
        for layer in (
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(6, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(name="pool"),
            keras.layers.Normalization(name="standardise"),
        ):
            x = layer(x)
        return keras.Model(inputs, keras.layers.Dense(1, "sigmoid", name="probability")(x))

    def fit(self, X, y, folder=None):
        if folder:  # as a method that learns in epochs leaves it
            (folder / "history.csv").write_text("epoch,loss,accuracy,val_loss,val_accuracy\\n0,1,0,1,0\\n")
        self.network_ = self._network(X.shape[1:])
        layers = [self.network_.get_layer(name) for name in ("pool", "standardise", "probability")]
        pooled = np.asarray(keras.Model(self.network_.inputs, layers[0].output)(X))
        layers[1].adapt(pooled)
        fitted = LogisticRegression().fit(np.asarray(layers[1](pooled)), y)
        layers[2].set_weights([fitted.coef_.T, fitted.intercept_])
        return self

    def predict_proba(self, X):
        malignant = np.asarray(self.network_(X), dtype="float64") if len(X) else np.zeros((0, 1))
        return np.hstack([1 - malignant, malignant])

    def save(self, path):
        self.network_.save(path)
"""


def write_labelled(folder, cases, *, shift=0, seed=0, suffix=".png", prefix="p"):
    """Write 3 noise images of 24x16 a case and LABELS.csv beside them; malignant ones are darker and redder.

    Returns the CSV; cases `prefix`0, `prefix`1, ... are benign and malignant in turn.
    """
    random, rows = np.random.default_rng(seed), ["path,label,group"]
    (folder / "images").mkdir(parents=True)
    for case in range(cases):
        base = np.array([190, 130, 180]) + shift + random.normal(0, 14, 3) - case % 2 * np.array([8, 22, 20])
        for number in range(3):
            pixels = (base + random.normal(0, 12, (16, 24, 3))).clip(0, 255).astype("uint8")
            Image.fromarray(pixels).save(folder / "images" / f"{prefix}{case}-{number}{suffix}")
            rows.append(f"{prefix}{case}-{number}{suffix},{case % 2},{prefix}{case}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder / "labels.csv"


@pytest.fixture(scope="session")
def final_run(tmp_path_factory, prepare):
    """A run on 20 cases of images of one's own with a final model, and the result of its trial."""
    from bcdlib import compare
    from bcdlib.runs.profiles import get_profile

    home, profile = tmp_path_factory.mktemp("final"), get_profile("demo", size=(24, 16), folds=3)
    (home / "texture.py").write_text(TEXTURE)
    labels = write_labelled(home / "own", 24)
    run, _ = prepare(home / "run", home / "own" / "images", profile, home / "cache", manifest=labels)
    (result,) = compare.train_finals(
        run, profile, method_names=[str(home / "texture.py")], weights="none", progress=False
    )
    return run, result


def pytest_terminal_summary(terminalreporter):
    """Sums up what tests noted by ``record_property("faults", {kind, tried, survived, reported, lost})``."""
    totals = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "faults" and getattr(report, "when", "") == "call":
                    row = totals.setdefault(value["kind"], dict.fromkeys(COUNTS, 0))
                    row.update({count: row[count] + value[count] for count in COUNTS})
    if totals:
        terminalreporter.section("faults")
        for kind, row in [
            *totals.items(),
            ("all", {c: sum(row[c] for row in totals.values()) for c in COUNTS}),
        ]:
            terminalreporter.line(f"{kind:<16} " + ", ".join(f"{row[count]} {count}" for count in COUNTS))
