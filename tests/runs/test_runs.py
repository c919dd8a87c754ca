"""The run folder: whole files or none, and messages that say which stage is missing."""

import errno
import json
import os
import shutil
import stat
import xml.etree.ElementTree
from pathlib import Path

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bcdlib.data import breakhis
from bcdlib.errors import InputError
from bcdlib.runs.files import atomic_write, local_copy, write_csv, write_json
from bcdlib.runs.folder import open_run_folder


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


def test_open_run_makes_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = open_run_folder("deep/run")
    assert run.folder == tmp_path / "deep" / "run" and run.folder.is_dir()
    assert list(run.folder.iterdir()) == []
    assert open_run_folder(run.folder) == run


@pytest.mark.parametrize("below", [(), ("run",), ("deep", "run")])
def test_open_run_at_or_under_a_regular_file(below, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError) as caught:
        open_run_folder(tmp_path.joinpath("file", *below))
    assert str(tmp_path / "file") in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "kept"


def test_settings_are_added_up(tmp_path):
    run = open_run_folder(tmp_path)
    with pytest.raises(InputError, match="01_mount"):
        run.settings  # noqa: B018
    run.record(data="folder", seed=1)
    run.record(seed=2, size=[224, 224])
    assert run.settings == {"data": "folder", "seed": 2, "size": [224, 224]}
    assert json.loads((tmp_path / "settings.json").read_text()) == run.settings


def test_read_csv_names_the_stage(tmp_path):
    run = open_run_folder(tmp_path)
    with pytest.raises(InputError, match="03_split") as caught:
        run.read_csv("splits/case.csv", "03_split")
    assert str(tmp_path / "splits" / "case.csv") in str(caught.value)
    with pytest.raises(InputError, match="01_mount"):
        run.images()


def test_images_come_back_as_written(tmp_path):
    images = breakhis.images_table(["SOB_B_A-99-10001-40-001.png", breakhis.known_images()["filename"][0]])
    write_csv(tmp_path / "images.csv", images)
    pd.testing.assert_frame_equal(open_run_folder(tmp_path).images(), images, check_dtype=False)


def test_table(tmp_path):
    table = pd.DataFrame({"method": ["paper"], "accuracy": [0.125]})
    assert "paper" in open_run_folder(tmp_path).table("all", table).to_html()
    assert (tmp_path / "tables" / "all.csv").read_text() == "method,accuracy\npaper,0.125\n"


def test_save_figure_writes_png_and_svg(tmp_path):
    figure = matplotlib.figure.Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [1, 0])
    assert open_run_folder(tmp_path).figure("curve", figure) is figure
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == ["curve.png", "curve.svg"]
    with Image.open(tmp_path / "figures" / "curve.png") as picture:
        assert picture.format == "PNG" and picture.width > 200
        low, high = picture.convert("L").getextrema()
        assert low < 100 and high == 255
    root = xml.etree.ElementTree.parse(tmp_path / "figures" / "curve.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


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
