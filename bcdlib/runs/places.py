"""Where things lie: Google Drive in Colab, the home folder of runs, the cache, files shipped with bcdlib."""

import os
import sys
import tempfile
from pathlib import Path

from bcdlib.errors import InputError, one_line

NO_DRIVE = "none"  # value of BCD_DRIVE


def in_colab() -> bool:
    """Tell whether this is Google Colab: its kernel, or a program started from it."""
    return "google.colab" in sys.modules or bool(os.environ.get("COLAB_RELEASE_TAG"))


def content_folder() -> Path:
    """Return Colab's own disk, which is lost with its machine: $BCD_CONTENT, else ``/content``."""
    return Path(os.environ.get("BCD_CONTENT") or "/content")


def drive_folder() -> Path:
    """Return where Google Drive is mounted: the environment variable BCD_DRIVE, else ``/content/drive``."""
    named = os.environ.get("BCD_DRIVE", "")
    return content_folder() / "drive" if named in ("", NO_DRIVE) else Path(named)


def uses_drive() -> bool:
    """Tell whether runs are kept on Google Drive: in Colab, unless told otherwise.

    The notebooks' parameter ``drive = False`` sets BCD_DRIVE to "none"; BCD_HOME names a folder of one's own.
    """
    return in_colab() and not os.environ.get("BCD_HOME") and os.environ.get("BCD_DRIVE") != NO_DRIVE


def somebody_answers() -> bool:
    """Tell whether somebody sits before this kernel, and not papermill or a batch job.

    Examples
    --------
    >>> somebody_answers()
    False
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:  # a program: Colab has its own package loaded in its kernels only
        return "google.colab" in sys.modules
    # a front end says with each request whether it can ask its user something
    return bool(getattr(getattr(shell, "kernel", None), "_allow_stdin", False))


def mount_drive() -> Path | None:
    """Create the home folder in Colab; mount Google Drive before, if it is wanted and not mounted yet.

    Where nobody can allow it, it is not asked for: Colab would wait two minutes for an answer.

    Returns
    -------
    pathlib.Path or None
        See `home_folder`; None outside Colab.

    Raises
    ------
    InputError
        If Drive cannot be mounted or the folder cannot be created.
    """
    if not in_colab():
        return None
    os.environ.setdefault("BCD_NEAR", str(Path(tempfile.gettempdir(), "bcdlib-near")))  # see files.local_copy
    folder = drive_folder()
    try:
        # it asks in the browser also where it is mounted
        if uses_drive() and not (folder / "MyDrive").is_dir():
            if not somebody_answers():
                raise PermissionError("nobody is here to allow it")
            from google.colab import drive  # exists in Colab only

            drive.mount(str(folder))
        # without parents: where MyDrive is missing, they would be created on Colab's own disk, which is lost
        home_folder().mkdir(exist_ok=True, parents=not uses_drive())
    except Exception as error:  # Colab raises its own types
        if not uses_drive():
            raise InputError(f"{home_folder()}: cannot be created ({one_line(error)})") from None
        raise InputError(
            f"{folder}: Google Drive could not be mounted ({one_line(error)}); in a notebook cell run "
            f"`from google.colab import drive; drive.mount({str(folder)!r})` and allow access, or work "
            "without it: drive = False"
        ) from None
    return home_folder()


def home_folder() -> Path:
    """Return the folder of run folders and caches (not created here).

    The environment variable BCD_HOME; else in Colab ``<drive>/MyDrive/bcdlib``, or without Drive
    ``/content/bcdlib``; else ``runs`` in the current folder, or beside it if that is called ``notebooks``.
    """
    if in_colab() and not os.environ.get("BCD_HOME"):
        return (drive_folder() / "MyDrive" if uses_drive() else content_folder()) / "bcdlib"
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
