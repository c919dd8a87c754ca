"""A walk through all points at which a file gets its final name: ended there, the process is started again.

Whatever the point, the same words give the same result in the end: here, and in the store that other machines
look into ("done here" is not "done everywhere").
"""

import shutil
import zipfile
from functools import partial

import pytest

from tests.faults.test_faults_kills import METHOD, finished, note

pytestmark = [pytest.mark.faults, pytest.mark.slow]


def contents(folder) -> dict[str, bytes]:
    """What lies in a folder, without what says how long something took, or was half written."""
    return {
        name: _content(folder / name)
        for name in sorted(names(folder))
        if (folder / name).is_file() and not name.endswith("trial.json")
    }


def _content(file) -> bytes:
    """Of a network its weights: its file says also when it was written."""
    if not (file.suffix == ".keras" and zipfile.is_zipfile(file)):
        return file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        return archive.read("model.weights.h5")


def names(folder) -> set[str]:
    """Of files and folders, without TensorBoard's, which have the time and the process in their names."""
    return {
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if not file.name.startswith((".", "events.out."))
    }


def walk(start, folder, record_property) -> int:
    """Die at each point in turn and run again; return how many points there were."""
    whole = start()
    finished(whole)
    assert whole.poll() == 0
    wanted, known = contents(folder), names(folder)
    point, lost = 0, []
    while True:
        point += 1
        shutil.rmtree(folder)
        folder.mkdir()
        cut = start(dies_at=point)
        finished(cut)
        if cut.poll() == 0:  # there was no such point
            break
        assert cut.poll() == 9
        again = start()
        finished(again)
        equal = again.poll() == 0 and contents(folder) == wanted and names(folder) == known
        note(record_property, 1, equal)
        if not equal:
            lost.append(point)
    assert not lost, f"{len(lost)} of {point - 1} points: {lost}"
    return point - 1


@pytest.mark.parametrize("models", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_preprocess_and_compare_with_a_store(models, tiny, warm, tmp_path, record_property):
    (tmp_path / "colours.py").write_text(METHOD.replace("np.save(path", "np.save(open(path, 'wb')"))
    place = tmp_path / "walked"
    place.mkdir()

    start = partial(
        warm.start,
        work="to_compare",
        data=tiny,
        out=place / "run",
        cache=place / "cache",
        size=(36, 24),
        methods=[tmp_path / "colours.py"],
        splits=["case"],
        store=str(place / "store"),
        keep_models=models,
        log=tmp_path / "log",
    )
    points = walk(start, place, record_property)
    assert points > 30
    assert len(list(place.glob("store/*/predictions.csv"))) == 2
    assert len(list(place.glob("store/*/trial.json"))) == 2


SMALL = """
import keras
from bcdlib.methods import KerasMethod

class Small(KerasMethod):
    key, title = "small", "mean colours, with dropout"
    def build_features(self, x):
        return keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(x))
    def build_head(self, x):
        return keras.layers.Dropout(0.4, seed=self.seed)(x)
"""


def test_a_training_with_checkpoints(tiny, warm, tmp_path, record_property):
    """Two epochs of a network, with a checkpoint after each: the same tables and weights, bit for bit.

    The points of stages 1 and 2 are those of the walk above.
    """
    (tmp_path / "small.py").write_text(SMALL)
    place = tmp_path / "walked"
    place.mkdir()

    start = partial(
        warm.start,
        work="to_train",
        data=tiny,
        out=place / "run",
        cache=tmp_path / "cache",
        size=(36, 24),
        method=str(tmp_path / "small.py"),
        epochs=2,
        steps=2,
        log=tmp_path / "log",
    )
    points = walk(start, place, record_property)
    assert points > 8
    assert len(list(place.glob("run/trials/*/model.keras"))) == 1
    assert (place / "run" / "predictions.csv").is_file()
