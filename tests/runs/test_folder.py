"""The run folder, and messages that say which stage is missing."""

import json
import re
import xml.etree.ElementTree

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bcdlib.data import breakhis
from bcdlib.errors import InputError
from bcdlib.runs.files import read_table, write_csv
from bcdlib.runs.folder import has_cache, is_run_folder, open_run_folder


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
    html = open_run_folder(tmp_path).table("all", table).to_html()
    assert "paper" in html and html == open_run_folder(tmp_path).table("all", table).to_html()
    assert (tmp_path / "tables" / "all.csv").read_text() == "method,accuracy\npaper,0.125\n"


def test_words_of_a_table_begin_at_the_left_and_have_room(tmp_path):
    table = pd.DataFrame({"method": ["paper", "x" * 80], "accuracy": [0.125, np.nan], "note": ["", None]})
    shown = open_run_folder(tmp_path).table("all", table).to_html()
    rules = dict(re.findall(r" td\.(col\d) {\s*(.*?);\s*}", shown, flags=re.DOTALL))
    assert rules == {"col0": "text-align: left;\n  min-width: 30ch"}  # numbers and empty columns need none
    assert "<td" not in open_run_folder(tmp_path).table("none", table.iloc[:0]).to_html()


def test_save_figure_writes_png_and_svg(tmp_path):
    figure = matplotlib.figure.Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [1, 0])
    assert open_run_folder(tmp_path).figure("curve", figure) is figure
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == ["curve.png", "curve.svg"]
    with Image.open(tmp_path / "figures" / "curve.png") as image:
        assert image.format == "PNG" and image.width > 200
        low, high = image.convert("L").getextrema()
        assert low < 100 and high == 255
    root = xml.etree.ElementTree.parse(tmp_path / "figures" / "curve.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_a_cache_that_was_recorded_must_be_there(tmp_path):
    run = open_run_folder(tmp_path / "run")
    assert not has_cache(run)
    run.record(data="folder")
    assert not has_cache(run)
    run.record(cache=str(tmp_path / "cache"))
    assert not has_cache(run)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cache.json").write_text("{}")
    assert has_cache(run)


@pytest.mark.parametrize("text", ["[]", "null", '"data"', "[" * 100_000, '{"data": ', "\xe9"])
def test_settings_of_a_stranger(tmp_path, text):
    (tmp_path / "settings.json").write_text(text, encoding="latin-1")
    assert not is_run_folder(tmp_path)
    with pytest.raises(InputError, match="settings.json: cannot be read .*; name another run folder"):
        open_run_folder(tmp_path).settings  # noqa: B018


@pytest.mark.parametrize("damaged", [b"", b"a,b\n1,2,3\n", b"\xff\xfe\x00"])
def test_a_damaged_table_of_a_run_is_named(tmp_path, damaged):
    run = open_run_folder(tmp_path)
    (tmp_path / "images.csv").write_bytes(damaged)
    with pytest.raises(InputError, match=r"images.csv: cannot be read .*; delete it, and run again"):
        read_table(tmp_path / "images.csv", ["filename"])
    if damaged != b"a,b\n1,2,3\n":
        with pytest.raises(InputError, match=r"images.csv: cannot be read"):
            run.images()


def test_a_claimed_folder_has_no_settings_yet_and_is_taken_again(tmp_path):
    run = open_run_folder(tmp_path)
    for _ in range(2):
        run.claim()
        assert run.recorded() == {}
        with pytest.raises(InputError, match="run 01_mount"):
            run.settings  # noqa: B018
