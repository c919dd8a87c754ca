"""What 02_preprocess shows: what was left out, labels, splits, one batch."""

from pathlib import Path

import numpy as np
import pytest

from bcdlib import preprocess
from bcdlib.runs.profiles import get_profile

TINY = get_profile("demo", size=(36, 24), folds=2, batch_size=8)


@pytest.fixture(scope="module")
def prepared(prepare, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("preprocess")
    return prepare(folder / "run", tiny, TINY, folder / "cache")


def test_corrupt_image_is_reported_and_left_out(prepare, tiny, tmp_path):
    names = sorted(Path(tiny).rglob("*.png"))
    data = tmp_path / "data"
    data.mkdir()
    for number, path in enumerate(names):
        content = path.read_bytes()
        (data / path.name).write_bytes(content[:50] if number == 3 else content)
    run, cache = prepare(tmp_path / "run", data, get_profile("demo"), tmp_path / "cache")
    assert len(cache.images) == len(names) - 1
    assert cache.skipped["filename"].tolist() == [names[3].name] and cache.skipped["reason"].iloc[0]
    table = preprocess.cache_summary(cache).set_index("what")["value"]
    assert table["images left out (unreadable)"] == 1
    assert preprocess.left_out_table(run)["outcome"].tolist() == ["left out"]


def test_labels(prepared):
    table = preprocess.label_counts(prepared[1])
    assert table.to_numpy().tolist() == [["benign", 0, 48], ["malignant", 1, 48]]


def test_first_batch(prepared):
    X, y = preprocess.first_batch(prepared[0], TINY, prepared[1], seed=1)
    assert X.shape == (8, 24, 36, 3) and X.dtype == np.float32 and X.min() >= 0 and X.max() <= 255
    assert y.shape == (8, 1) and set(y[:, 0]) <= {0, 1}
    again, other = (preprocess.first_batch(*prepared[:1], TINY, prepared[1], seed=seed)[0] for seed in (1, 2))
    assert np.array_equal(X, again) and not np.array_equal(X, other)
    assert preprocess.normalise_images(X).shape == X.shape
