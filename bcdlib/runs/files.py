"""Files that are whole or not there at all: atomic writing, locks, full and vanished disks."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import pandas as pd

from bcdlib.errors import InputError

_STALE = 6 * 3600  # seconds after which a temporary file has no writer any more


_FULL = (
    "no space left",
    "quota exceeded",
    "errno = 28",
    "requested and",
)  # the last is NumPy's: it has no number


_GONE = {
    errno.EIO,
    errno.ENOTCONN,
    errno.ESTALE,
    errno.ENODEV,
    errno.ENXIO,
    errno.EROFS,
    errno.ETIMEDOUT,
    errno.ENOENT,
    errno.EACCES,
}


@contextlib.contextmanager
def atomic_write(path) -> Iterator[Path]:
    """Write a file atomically: yields a temporary path of the same suffix, renamed to `path` when all went well.

    Raises
    ------
    InputError
        If the disk is full or has gone (see `saving`); the old file stays.
    """
    path = Path(path)
    with explain_disk_errors(path):
        path.parent.mkdir(
            exist_ok=True
        )  # not its parents: under a Drive that has gone they would be of this machine alone
        _remove_stale(path)
        handle, name = tempfile.mkstemp(suffix=path.suffix, prefix=f".{path.stem}-", dir=path.parent)
        os.close(handle)
        try:
            yield Path(name)
            os.chmod(name, 0o644)  # mkstemp's 0600 would keep a shared Drive's other users out
            _to_disk(name)  # or after a crash of the machine the new name may stand on an empty file
            os.replace(name, path)
        finally:
            with contextlib.suppress(OSError):  # on a disk that has gone
                Path(name).unlink(missing_ok=True)


def _to_disk(name) -> None:
    with open(name, "rb") as file, contextlib.suppress(OSError):  # some mounted Drives do not know fsync
        os.fsync(file.fileno())


def _remove_stale(path: Path) -> None:
    """Remove what writers of this file left behind that were killed: a checkpoint's half is hundreds of megabytes."""
    for left in path.parent.glob(f".{glob.escape(path.stem)}-????????{glob.escape(path.suffix)}"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE:
                left.unlink()


@contextlib.contextmanager
def lock_path(path) -> Iterator[None]:
    """Hold the right to make `path`, on this machine: other processes that ask for it wait.

    Who comes after must look again whether it is there. The right of a process that dies is free at once. Processes on
    other machines are not held up: they may make the same at the same time, and the last one's stays.
    """
    name = hashlib.sha256(str(Path(path).absolute()).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"bcdlib-{os.getuid() if hasattr(os, 'getuid') else 'locks'}"
    folder.mkdir(exist_ok=True)
    with filelock.FileLock(folder / f"{name}.lock"):
        yield


def local_copy(path) -> Path:
    """A file to be mapped into memory, or its copy on this machine's own disk, made once.

    Where the environment variable BCD_NEAR names a folder (in Colab `mount` sets it) and the file lies on another file
    system: mapped on a mounted Drive, each page would be fetched by itself, in the order of shuffled batches.
    """
    path, root = Path(path), os.environ.get("BCD_NEAR")
    if not root:
        return path
    status, name = path.stat(), hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
    copy = Path(root) / f"{name}-{status.st_size}-{status.st_mtime_ns}{path.suffix}"
    copy.parent.mkdir(parents=True, exist_ok=True)
    if status.st_dev == copy.parent.stat().st_dev:
        return path
    try:
        with lock_path(copy):
            if not copy.is_file():
                with atomic_write(copy) as temporary:
                    shutil.copyfile(path, temporary)
    except InputError:  # no room: slower where it is, but right
        return path
    return copy


@contextlib.contextmanager
def explain_disk_errors(path) -> Iterator[None]:
    """Turn what a full or vanished disk raises, in whatever library, into one InputError that names `path`.

    Raises
    ------
    InputError
        What to do about it; other errors pass as they are.
    """
    try:
        yield
    except InputError:
        raise
    except (
        Exception
    ) as error:  # h5py, zipfile and TensorFlow each have their own, and hand the system's message on
        words = f"{getattr(error, 'strerror', None) or ''} {error}".lower()
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or any(text in words for text in _FULL):
            raise InputError(
                f"{path}: the disk is full; free some space and run the same again, it goes on from what is "
                "stored"
            ) from None
        here = str(getattr(error, "filename", None) or path).startswith(str(Path(path or ".").parent))
        if isinstance(error, OSError) and number in _GONE and here:
            raise InputError(
                f"{path}: cannot be written ({error.strerror}); if it lies on a Drive, see that it is mounted, "
                "then run the same again"
            ) from None
        raise


def write_csv(path, table: pd.DataFrame) -> None:
    """Write a table without its index, atomically."""
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False)


def write_json(path, value) -> None:
    """Write JSON, indented, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def read_user_csv(path, what: str, dtype: dict) -> pd.DataFrame:
    """A CSV file that a user named.

    Parameters
    ----------
    what : what it is to be, for the message

    Raises
    ------
    InputError
        If there is no such file, or it is not a readable CSV.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such {what}")
    try:
        return pd.read_csv(path, dtype=dtype)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a readable CSV ({error})".splitlines()[0]) from None
