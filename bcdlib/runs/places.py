"""Where things lie: Google Drive in Colab, the home folder of runs, the cache, files shipped with bcdlib."""

import os
import sys
import tempfile
from pathlib import Path

from bcdlib.errors import InputError, one_line


def in_colab() -> bool:
    """Tell whether this is Google Colab: its kernel, or a program started from it."""
    return "google.colab" in sys.modules or bool(os.environ.get("COLAB_RELEASE_TAG"))


def drive_folder() -> Path:
    """Return where Google Drive is mounted: the environment variable BCD_DRIVE, else ``/content/drive``."""
    return Path(os.environ.get("BCD_DRIVE") or "/content/drive")


def mount_drive() -> Path | None:
    """Mount Google Drive, unless it is mounted already or this is not Colab.

    Returns
    -------
    pathlib.Path or None
        ``<drive>/MyDrive/bcdlib``, created if need be; None outside Colab.

    Raises
    ------
    InputError
        If Drive cannot be mounted or the folder cannot be created.
    """
    if not in_colab():
        return None
    folder = drive_folder()
    os.environ.setdefault("BCD_NEAR", str(Path(tempfile.gettempdir(), "bcdlib-near")))  # see files.local_copy
    try:
        if not (folder / "MyDrive").is_dir():
            from google.colab import drive  # exists in Colab only

            drive.mount(str(folder))
        # without parents: where MyDrive is missing, they would be created on Colab's own disk, which is lost
        home_folder().mkdir(exist_ok=True)
    except Exception as error:  # Colab raises its own types, and AttributeError outside a notebook's kernel
        raise InputError(
            f"{folder}: Google Drive could not be mounted ({one_line(error)}); in a notebook cell run "
            f"`from google.colab import drive; drive.mount({str(folder)!r})` and allow access"
        ) from None
    return home_folder()


def home_folder() -> Path:
    """Return the folder of run folders and caches (not created here).

    In Colab ``<drive>/MyDrive/bcdlib``; elsewhere the environment variable BCD_HOME, else ``runs`` in the
    current folder, or beside it if the current folder is called ``notebooks``.
    """
    if in_colab():
        return drive_folder() / "MyDrive" / "bcdlib"
    here = Path.cwd()
    default = (here.parent if here.name == "notebooks" else here) / "runs"
    return Path(os.environ.get("BCD_HOME") or default).expanduser().absolute()


def cache_root() -> Path:
    """Return the folder of cached images and features, shared by runs: $BCD_CACHE, else ``<home>/cache``."""
    return Path(os.environ.get("BCD_CACHE") or home_folder() / "cache").expanduser().absolute()


def name_only(value):
    """Return what others may see of a value: of an absolute path its last name, all else as it is.

    Examples
    --------
    >>> name_only("/home/me/BreaKHis_v1"), name_only("imagenet"), name_only(3)
    ('BreaKHis_v1', 'imagenet', 3)
    """
    return Path(value).name if isinstance(value, str | Path) and Path(value).is_absolute() else value


def shipped(name: str) -> Path:
    """Find a file or folder that ships with bcdlib: at the top of a checkout, or in an installed wheel.

    Raises
    ------
    InputError
        If it is missing.

    Examples
    --------
    >>> shipped("notebooks").is_dir()
    True
    """
    package = Path(__file__).resolve().parent.parent
    for place in (package.parent / name, package / name):
        if place.exists():
            return place
    raise InputError(f"{name} is missing beside {package}; get a complete checkout of bcdlib")
