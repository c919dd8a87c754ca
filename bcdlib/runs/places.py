"""Where things lie: Google Drive in Colab, the home folder of runs, the cache."""

import os
import sys
import tempfile
from pathlib import Path

from bcdlib.errors import InputError, one_line


def in_colab() -> bool:
    """True in Google Colab: its kernel is running, or this is a program that was started from it."""
    return "google.colab" in sys.modules or bool(os.environ.get("COLAB_RELEASE_TAG"))


def drive_folder() -> Path:
    """Where Google Drive is mounted: the environment variable BCD_DRIVE, else ``/content/drive``."""
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
        # no parents: where MyDrive is missing, they would be made on Colab's own disk, which gets lost
        (folder / "MyDrive" / "bcdlib").mkdir(exist_ok=True)
    except Exception as error:  # Colab raises its own types, and AttributeError outside a notebook's kernel
        raise InputError(
            f"{folder}: Google Drive could not be mounted ({one_line(error)}); in a notebook cell run "
            f"`from google.colab import drive; drive.mount({str(folder)!r})` and allow access"
        ) from None
    return folder / "MyDrive" / "bcdlib"


def home_folder() -> Path:
    """The folder of run folders and caches (not created here).

    In Colab ``<drive>/MyDrive/bcdlib``; elsewhere the environment variable BCD_HOME, else ``runs`` in the
    current folder, or beside it if the current folder is called ``notebooks``.
    """
    if in_colab():
        return drive_folder() / "MyDrive" / "bcdlib"
    if os.environ.get("BCD_HOME"):
        return Path(os.environ["BCD_HOME"]).expanduser().absolute()
    here = Path.cwd()
    return (here.parent if here.name == "notebooks" else here) / "runs"


def cache_root() -> Path:
    """Where decoded images and the like are kept, for all runs: $BCD_CACHE, else ``home()/cache``."""
    if os.environ.get("BCD_CACHE"):
        return Path(os.environ["BCD_CACHE"]).expanduser().absolute()
    return home_folder() / "cache"


def shipped(name: str) -> Path:
    """Find a file or folder that comes with the library: at the top of a checkout, or inside an installed wheel.

    Raises
    ------
    InputError
        If it is missing.
    """
    package = Path(__file__).resolve().parent.parent
    for place in (package.parent / name, package / name):
        if place.exists():
            return place
    raise InputError(f"{name} is missing beside {package}; get a complete checkout of bcdlib")
