"""Places, finding the data set, and what 01_mount records."""

import io
import sys
import tarfile
import types
import zipfile

import cv2
import nbformat
import numpy as np
import pytest

from bcdlib import mount
from bcdlib.data import breakhis, sources, synthetic
from bcdlib.errors import InputError
from bcdlib.runs import lesson, places
from bcdlib.runs.places import cache_root, in_colab, mount_drive

NAMES = ["SOB_B_A-14-22549AB-40-001.png", "SOB_M_DC-14-2523-100-002.png", "SOB_M_LC-14-13412-400-003.png"]
LAYOUTS = {
    "official": breakhis.official_path,
    "flattened": str,
    "nested": lambda name: f"a/b/c/{name[:5]}/{name}",
}
PNG = cv2.imencode(".png", np.full((4, 6, 3), 200, np.uint8))[1].tobytes()


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    for name in ("BCD_DRIVE", "BCD_HOME", "BCD_CACHE", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """A stand-in for google.colab; its list `calls` gets each argument of drive.mount."""
    calls = []

    def fake_mount(folder):
        calls.append(folder)
        (tmp_path / "drive" / "MyDrive").mkdir(parents=True)

    drive = types.ModuleType("google.colab.drive")
    drive.mount = fake_mount
    module = types.ModuleType("google.colab")
    module.drive, module.calls = drive, calls
    google = types.ModuleType("google")
    google.colab = module
    monkeypatch.setitem(sys.modules, "google", google)
    monkeypatch.setitem(sys.modules, "google.colab", module)
    monkeypatch.setitem(sys.modules, "google.colab.drive", drive)
    monkeypatch.setenv("BCD_DRIVE", str(tmp_path / "drive"))
    monkeypatch.setenv("BCD_NEAR", str(tmp_path / "near"))  # mount sets it, for good
    return module


def make(path, layout="official"):
    """The three images as a folder or archive at `path`."""
    members = [LAYOUTS[layout](name) for name in NAMES]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for member in members:
                archive.writestr(member, PNG)
    elif path.name.endswith((".tar", ".tar.gz", ".tgz")):
        with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
            for member in members:
                info = tarfile.TarInfo(member)
                info.size = len(PNG)
                archive.addfile(info, io.BytesIO(PNG))
    else:
        for member in members:
            (path / member).parent.mkdir(parents=True, exist_ok=True)
            (path / member).write_bytes(PNG)
    return path


# ---------------------------------------------------------------- the run folder


@pytest.mark.parametrize(
    "data, name",
    [
        ("synthetic", "synthetic-demo"),
        ("some/BreaKHis_v1.tar.gz", "BreaKHis_v1-demo"),
        ("x.TGZ", "x-demo"),
        ("a/b.zip", "b-demo"),
        ("folder/v1.5/", "v1.5-demo"),
        ("", "BreaKHis_v1-demo"),
    ],
)
def test_run_folder_name(tmp_path, data, name):
    assert mount.open_run(data=data).folder == tmp_path / "runs" / name


def test_run_folder_given(tmp_path):
    assert mount.open_run(out=tmp_path / "mine").folder == tmp_path / "mine"


def test_colab_mounts_once_and_runs_land_on_drive(colab, tmp_path):
    assert in_colab()
    run = mount.open_run(data="synthetic", profile="paper")
    mine = tmp_path / "drive" / "MyDrive"
    assert run.folder == mine / "bcdlib" / "synthetic-paper" and run.folder.is_dir()
    assert mount_drive() == mine / "bcdlib"
    assert colab.calls == [str(tmp_path / "drive")]
    assert cache_root() == mine / "bcdlib" / "cache"


def test_colab_mount_fails(colab):
    def refuse(folder):
        raise ValueError("mount\nfailed")

    colab.drive.mount = refuse
    with pytest.raises(InputError, match=r"could not be mounted \(mount failed\)"):
        mount.open_run()
    colab.drive.mount = lambda folder: None  # says nothing, mounts nothing
    with pytest.raises(InputError, match="could not be mounted"):
        mount_drive()


# ---------------------------------------------------------------- the data set


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["copy", "copy.zip", "copy.tar", "copy.tar.gz", "copy.tgz"])
def test_find_path(tmp_path, name, layout):
    source = mount.find_data(make(tmp_path / name, layout))
    assert breakhis.scan_breakhis(source).images["filename"].tolist() == sorted(NAMES)


def test_find_missing_and_empty(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        mount.find_data(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        mount.find_data("empty")


@pytest.mark.parametrize("name", ["BreaKHis_v1.tar.gz", "data/breakhis_V1 (1).zip", "data/BREAKHIS_v1"])
def test_search(tmp_path, name):
    (tmp_path / "BreaKHis_v1.tar.gz.part").write_bytes(b"half")
    make(tmp_path / name)
    assert mount.find_data("").path == tmp_path / name


def test_search_prefers_archive_and_names_places(tmp_path):
    (tmp_path / "BreaKHis_v1").mkdir()
    with pytest.raises(InputError, match=f"{tmp_path}, {tmp_path / 'data'}"):
        mount.find_data("")
    make(tmp_path / "BreaKHis_v1")
    make(tmp_path / "BreaKHis_v1.zip")
    assert mount.find_data("").path.name == "BreaKHis_v1.zip"


def test_find_on_drive(colab, tmp_path):
    with pytest.raises(InputError, match="BCDataset"):
        mount.find_data("")
    mine = tmp_path / "drive" / "MyDrive"
    make(mine / "papers" / "set.zip")
    assert mount.find_data("papers/set.zip").path == mine / "papers" / "set.zip"
    make(mine / "BCDataset" / "BreaKHis_v1")
    assert mount.find_data("").path == mine / "BCDataset" / "BreaKHis_v1"


def test_search_in_colab_skips_run_folders(colab, tmp_path):
    mount.open_run(data="").record(data="")
    make(tmp_path / "drive" / "MyDrive" / "bcdlib" / "BreaKHis_v1.tgz")
    assert mount.find_data("").path.name == "BreaKHis_v1.tgz"


def fake_draw(folder, seed=0, progress=True):
    make(folder)
    return folder


def test_synthetic_is_drawn_again(monkeypatch, tmp_path):
    monkeypatch.setattr(synthetic, "draw_dataset", fake_draw)
    run = mount.open_run()
    assert mount.start_run(run, seed=3, progress=False).partial
    folder = cache_root() / "synthetic-3"
    assert run.settings | {"listing": "", "modified": ""} == {
        "data": "synthetic",
        "asked": "synthetic",
        "profile": "demo",
        "seed": 3,
        "data_seed": 3,
        "source": str(folder),
        "partial": True,
        "manifest": "",
        "listing": "",
        "modified": "",
    }
    folder.rename(tmp_path / "gone")
    assert len(mount.open_data(run).names()) == 3 and mount.open_data(run).path == folder


def test_synthetic_in_colab_is_local(colab, monkeypatch, tmp_path):
    monkeypatch.setattr(synthetic, "draw_dataset", fake_draw)
    monkeypatch.setattr(mount.tempfile, "gettempdir", lambda: str(tmp_path / "local"))
    assert mount.find_data("synthetic", seed=1).path == tmp_path / "local" / "bcdlib-synthetic-1"


def test_start_and_overview(tmp_path):
    make(tmp_path / "set")
    (tmp_path / "set" / NAMES[0]).write_bytes(PNG)
    (tmp_path / "set" / "holiday.png").write_bytes(PNG)
    run = mount.open_run(data="set")
    scan = mount.start_run(run, data="set")
    assert run.images()["filename"].tolist() == scan.images["filename"].tolist() == sorted(NAMES)
    assert run.settings["source"] == str(tmp_path / "set") and run.settings["partial"] is True
    assert isinstance(mount.open_data(run), sources.FolderSource)
    present = int(breakhis.known_images()["filename"].isin(NAMES).sum())
    assert mount.overview(run, scan)["found"].tolist() == [
        "set",
        3,
        3,
        3,
        present,
        1,
        1,
        0,
        "partial",
    ]


def test_open_data_too_early(tmp_path):
    with pytest.raises(InputError, match="01_mount"):
        mount.open_data(mount.open_run())


def test_table_i(tmp_path):
    table = mount.count_images(breakhis.known_images())
    sizes = [*breakhis.MAGNIFICATIONS, "total"]
    assert list(table.columns) == [(kind, size) for kind in ("counted", "printed") for size in sizes]
    different = table["counted"] != table["printed"]
    assert different.to_numpy().sum() == 1 and different.loc["benign", 40]
    assert table.loc["benign", ("counted", 40)] == 625 and table.loc["benign", ("printed", 40)] == 652
    run = mount.open_run(tmp_path / "run")
    run.record(manifest="")
    assert all(number in mount.counts_remark(run) for number in ("652", "625", "1995", "2480"))


def test_a_guess_outlives_a_second_01_on_the_same_data(tmp_path, tiny):
    run = mount.open_run(tmp_path / "run")
    mount.start_run(run, tiny, progress=False)
    mount.record_guess(run, 80)
    mount.start_run(run, tiny, progress=False)
    assert lesson.read_guess(run) == 0.8 and "**80 %**" in mount.record_guess(run, 0)
    lines = mount.findings(run).splitlines()
    assert len(lines) == 3 and "96 images, but only 14 slides of 12 cases" in lines[0]
    # in `tiny` two cases have two slides: the exercise asks for that number
    assert "50.0 %" in lines[1] and "more than one slide" in lines[2] and "2" not in lines[2]
    assert "**Right: 2.**" in mount.check_exercise(run, 2)


def test_in_01_the_guess_is_kept_after_the_data_are_known():
    """`start_run` begins a run folder of other data anew, and would drop a guess made before it."""
    cells = nbformat.read(places.shipped("notebooks") / "01_mount.ipynb", as_version=4).cells
    sources = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert sources.index("mount.start_run(") < sources.index("mount.record_guess(")


def test_a_seed_out_of_range_is_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(InputError, match="^seed -1: give a whole number from 0 to 4294967295$"):
        mount.start_run(mount.open_run(tmp_path / "run"), "synthetic", seed=-1)
    with pytest.raises(InputError, match="epochs -3: give 1 or more"):
        mount.get_profile("demo", epochs=-3)
