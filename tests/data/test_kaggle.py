"""BreakHis from Kaggle: through kagglehub, found again, mounted, and what is said without network."""

import os
import shutil
import sys
import types
from pathlib import Path

import pytest

from bcdlib import mount
from bcdlib.data import breakhis, download
from bcdlib.errors import InputError
from tests.command import here

NESTED = "BreaKHis_v1/BreaKHis_v1/histology_slides/breast"


def nested(name: str) -> Path:
    """Where Kaggle's copy has an image."""
    return Path("BreaKHis_v1/BreaKHis_v1", breakhis.official_path(name).removeprefix("BreaKHis_v1/"))


@pytest.fixture
def kagglehub(tiny, tmp_path, monkeypatch):
    """A stand-in that lays the files as the real one does; ``calls`` gets each handle, ``offline`` fails."""
    real = Path(os.environ.get("BCD_BREAKHIS") or "nowhere", "half")
    module = types.ModuleType("kagglehub")
    module.calls, module.offline = [], False
    module.images = sorted((real if real.is_dir() else tiny).rglob("*.png"))
    cache = tmp_path / "kagglehub"

    def dataset_download(handle):
        module.calls.append(handle)
        if module.offline:
            raise ConnectionError("HTTPSConnectionPool(host='api.kaggle.com'):\nMax retries exceeded")
        folder = cache / "datasets" / handle / "versions" / "4"
        for file in module.images:
            place = folder / nested(file.name)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
        (folder / "Folds.csv").write_text("fold,mag,filename\n")
        (folder.parent.parent / "4.complete").touch()
        return str(folder)

    module.dataset_download = dataset_download
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(cache))
    monkeypatch.setattr(download, "KAGGLE_INPUT", tmp_path / "input")
    monkeypatch.setenv("BCD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BCD_CACHE", str(tmp_path / "cache"))
    return module


def test_kaggle_is_downloaded_once_and_held_against_the_manifest(kagglehub, capsys):
    run = mount.open_run(data="kaggle")
    scan = mount.start_run(run, "kaggle", progress=False)
    assert run.folder.name == "kaggle-demo" and kagglehub.calls == ["ambarish/breakhis"]
    assert len(scan.images) == len(kagglehub.images) and not scan.duplicates and not scan.reasons
    assert scan.images["path"].str.startswith(NESTED).all()
    names = breakhis.known_images()["filename"]
    present = int(names.isin(scan.images["filename"]).sum())
    assert f"Kaggle's copy has {present} of BreakHis's 7909 images; {7909 - present} are missing" in (
        said := capsys.readouterr().out
    )
    assert "CC BY 4.0" in said and "cite" in said
    kagglehub.offline = True  # what was downloaded is found without asking
    again = mount.reopen_run(data="kaggle")
    assert mount.open_data(again).names() == sorted(scan.images["path"])
    assert len(kagglehub.calls) == 1


def test_a_half_downloaded_copy_is_not_used(kagglehub, tmp_path):
    folder = tmp_path / "kagglehub" / "datasets" / "ambarish" / "breakhis" / "versions" / "4"
    half = folder / nested(kagglehub.images[0].name)
    half.parent.mkdir(parents=True)
    half.touch()
    assert len(mount.find_data("kaggle").names()) == len(kagglehub.images) and len(kagglehub.calls) == 1


@pytest.mark.parametrize("place", ["breakhis", "datasets/ambarish/breakhis"])
def test_what_is_mounted_is_used(place, kagglehub, tmp_path):
    folder = tmp_path / "input" / place / NESTED
    folder.mkdir(parents=True)
    shutil.copy(kagglehub.images[0], folder)
    source = mount.find_data("kaggle")
    assert source.path == tmp_path / "input" / place and len(source.names()) == 1 and not kagglehub.calls


def test_empty_images_of_the_copy_found_again_are_named(kagglehub, capsys):
    folder = Path(kagglehub.dataset_download("ambarish/breakhis"))
    (folder / nested(kagglehub.images[0].name)).write_bytes(b"")
    mount.start_run(mount.open_run(data="kaggle"), "kaggle", progress=False)
    said = capsys.readouterr().out
    assert f"; 1 are empty, the first is {nested(kagglehub.images[0].name).as_posix()}; " in said
    assert "force_download=True" in said and "02_preprocess decodes each" in said


def test_without_network_or_package(kagglehub, monkeypatch):
    kagglehub.offline = True
    with pytest.raises(InputError, match="could not be downloaded .*Max retries.*online") as caught:
        mount.find_data("kaggle")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(InputError, match="pip install kagglehub"):
        mount.find_data("kaggle")
    with pytest.raises(InputError, match="a manifest names images of your own"):
        mount.find_manifest("kaggle", "mine.csv")


def test_on_the_command_line(kagglehub, tmp_path):
    """Also that "kaggle" is not taken for a path."""
    kagglehub.dataset_download("ambarish/breakhis")
    words = ["run", "--data", "kaggle", "--only", "01_mount", "--only", "02_preprocess"]
    done = here(*words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "home" / "kaggle-demo" / "splits" / "case.csv").is_file()
    assert "Kaggle's copy has " in done.stdout
