"""Where things lie, in Colab and elsewhere."""

import pytest

from bcdlib.errors import InputError
from bcdlib.runs.places import cache_root, home_folder, in_colab, mount_drive, shipped


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    for name in ("BCD_DRIVE", "BCD_HOME", "BCD_CACHE", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BCD_NEAR", str(tmp_path / "near"))  # mounting sets it, for good
    monkeypatch.chdir(tmp_path)


def test_outside_colab(monkeypatch, tmp_path):
    assert not in_colab() and mount_drive() is None
    assert home_folder() == tmp_path / "runs" and cache_root() == tmp_path / "runs" / "cache"
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert home_folder() == tmp_path / "runs"
    monkeypatch.setenv("BCD_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("BCD_CACHE", str(tmp_path / "cache"))
    assert home_folder() == tmp_path / "elsewhere" and cache_root() == tmp_path / "cache"


def test_release_tag_without_kernel(monkeypatch, tmp_path):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    monkeypatch.setenv("BCD_DRIVE", str(tmp_path))
    with pytest.raises(InputError, match="drive.mount"):
        mount_drive()
    (tmp_path / "MyDrive").mkdir()  # mounted by the notebook that started this program
    assert mount_drive() == tmp_path / "MyDrive" / "bcdlib"


def test_shipped_names_what_is_missing():
    with pytest.raises(InputError, match="no_such_folder is missing beside .*bcdlib"):
        shipped("no_such_folder")
