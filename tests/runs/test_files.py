"""Files that are whole or not there, and copies near the machine."""

import errno
import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bcdlib.errors import InputError
from bcdlib.runs.files import atomic_write, local_copy, write_csv, write_json


def test_replacing_writes_the_whole_file(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    with atomic_write(path) as temporary:
        assert temporary.suffix == ".txt" and temporary.parent == path.parent
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    with (
        pytest.raises(InputError, match="if it lies on a Drive"),
        atomic_write(tmp_path / "gone" / "folder" / "file.txt"),
    ):
        pass  # one folder is made, not its parents: a Drive that has gone is not made up for
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_replacing_leaves_the_old_file_when_the_body_raises(kind, tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(kind), atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise kind("stop")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_failed_writers_leave_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_write_csv_has_no_index_column(tmp_path):
    write_csv(tmp_path / "a.csv", pd.DataFrame({"x": [1, 2], "y": ["b", "c,d"]}, index=[7, 8]))
    assert (tmp_path / "a.csv").read_text() == 'x,y\n1,b\n2,"c,d"\n'


def test_a_mapped_file_on_another_file_system_is_copied_near_once(tmp_path, monkeypatch):
    far = Path("/dev/shm") / f"bcdlib-test-{os.getpid()}.npy"
    if not far.parent.is_dir() or far.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    monkeypatch.delenv("BCD_NEAR", raising=False)
    try:
        np.save(far, np.arange(10))
        assert local_copy(far) == far  # where nobody asked for it
        monkeypatch.setenv("BCD_NEAR", str(tmp_path / "near"))
        copy = local_copy(far)
        assert copy.parent == tmp_path / "near" and np.array_equal(np.load(copy), np.arange(10))
        assert local_copy(far) == copy and len(list(copy.parent.iterdir())) == 1
        np.save(far, np.arange(12))  # made anew: another copy
        assert np.array_equal(np.load(local_copy(far)), np.arange(12))
        assert local_copy(copy) == copy
        monkeypatch.setattr(
            shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left"))
        )
        np.save(far, np.arange(14))
        assert local_copy(far) == far
    finally:
        far.unlink(missing_ok=True)
