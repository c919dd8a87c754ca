"""Files written whole or not at all, locks between processes, one message for a disk that fails."""

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

from bcdlib.errors import InputError, one_line

CACHE_TAG = "CACHEDIR.TAG"  # marks a folder as a cache, see bford.info/cachedir
# what libraries without error numbers say of a full disk; the last is NumPy's
_FULL = ("no space left", "quota exceeded", "errno = 28", "requested and")
# what the disk or its driver says when a Drive is unmounted or a stick pulled out
GONE = {
    *(errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ENODEV, errno.ENXIO),
    *(errno.EROFS, errno.ETIMEDOUT, errno.ENOENT, errno.EACCES),
}


@contextlib.contextmanager
def atomic_write(path) -> Iterator[Path]:
    """Write a file so that `path` holds either its old content or all of the new.

    Parameters
    ----------
    path : str or path-like
        Its folder is created if need be, but not that folder's parents.

    Yields
    ------
    pathlib.Path
        A temporary file of the same suffix; it is renamed to `path` if the body raises nothing.

    Raises
    ------
    InputError
        If the disk is full or unreachable (see `explain_disk_errors`); the old file stays.

    Examples
    --------
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_write(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("new")
    >>> (folder / "a.txt").read_text()
    'new'
    """
    path = Path(path)
    with explain_disk_errors(path):
        # without parents: where a Drive is no longer mounted, they would be created on this machine
        path.parent.mkdir(exist_ok=True)
        _remove_stale(path)
        handle, name = tempfile.mkstemp(suffix=path.suffix, prefix=f".{path.stem}-", dir=path.parent)
        os.close(handle)
        try:
            yield Path(name)
            os.chmod(name, 0o644)  # mkstemp's 0600 would lock other users of a shared Drive out
            # flushed first, or after a crash of the machine the new name may belong to an empty file
            with open(name, "rb") as file, contextlib.suppress(OSError):  # some mounted Drives lack fsync
                os.fsync(file.fileno())
            os.replace(name, path)
        finally:
            with contextlib.suppress(OSError):  # on an unreachable disk
                Path(name).unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Remove temporary files of killed writers of `path`: half a checkpoint is hundreds of megabytes."""
    for left in path.parent.glob(f".{glob.escape(path.stem)}-????????{glob.escape(path.suffix)}"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 6 * 3600:  # seconds: no writer takes that long
                left.unlink()


def _path_digest(path) -> str:
    return hashlib.sha256(str(Path(path).absolute()).encode()).hexdigest()[:16]


@contextlib.contextmanager
def lock_path(path, *, busy: str = "") -> Iterator[None]:
    """Lock the creation of `path` across the processes of this machine.

    Other processes that ask for the same lock wait. Look inside the lock whether `path` exists by now. The
    lock of a process that dies is released. Processes on other machines are not locked out: both create the
    file, and the last one's stays.

    Parameters
    ----------
    path : str or path-like
        Need not exist.
    busy : str
        Printed if another process holds the lock, before waiting for it.
    """
    folder = Path(tempfile.gettempdir(), f"bcdlib-{os.getuid() if hasattr(os, 'getuid') else 'locks'}")
    folder.mkdir(exist_ok=True)
    lock = filelock.FileLock(folder / f"{_path_digest(path)}.lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        if busy:
            print(busy, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def local_copy(path) -> Path:
    """Copy a file that will be memory-mapped to this machine's own disk, once.

    Only if the environment variable BCD_NEAR names a folder (in Colab `mount` sets it) on another file
    system: on a mounted Drive each page would be fetched by itself, in the order of shuffled batches.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    pathlib.Path
        The copy, or `path` itself where none is wanted, needed or possible.
    """
    path, root = Path(path), os.environ.get("BCD_NEAR")
    if not root:
        return path
    status = path.stat()
    copy = Path(root, f"{_path_digest(path)}-{status.st_size}-{status.st_mtime_ns}{path.suffix}")
    copy.parent.mkdir(parents=True, exist_ok=True)
    if status.st_dev == copy.parent.stat().st_dev:
        return path
    try:
        with lock_path(copy):
            if not copy.is_file():
                with atomic_write(copy) as temporary:
                    shutil.copyfile(path, temporary)
    except InputError:  # no room: reading from `path` is slower, but works
        return path
    return copy


@contextlib.contextmanager
def explain_disk_errors(path) -> Iterator[None]:
    """Turn whatever a library raises on a full or unreachable disk into one InputError that names `path`.

    Parameters
    ----------
    path : str or path-like
        What is written in the body, for the message.

    Raises
    ------
    InputError
        The disk is full, or the folder of `path` cannot be reached. Other errors pass unchanged.

    Examples
    --------
    >>> with explain_disk_errors("model.keras"):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    bcdlib.errors.InputError: model.keras: the disk is full; ...
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # h5py, zipfile and TensorFlow have types of their own for the system's errors
        number, text = getattr(error, "errno", None), getattr(error, "strerror", None)
        message = f"{text or ''} {error}".lower()
        if number in (errno.ENOSPC, errno.EDQUOT) or any(words in message for words in _FULL):
            raise InputError(
                f"{path}: the disk is full; free some space and run the same again, it goes on from what is "
                "stored"
            ) from None
        here = str(getattr(error, "filename", None) or path).startswith(str(Path(path or ".").parent))
        if isinstance(error, OSError) and number in GONE and here:
            raise InputError(
                f"{path}: cannot be written ({text}); if it lies on a Drive, see that it is mounted, "
                "then run the same again"
            ) from None
        raise


def write_csv(path, table: pd.DataFrame) -> None:
    """Write a table without its index, atomically."""
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False)


def write_text(path, text: str) -> None:
    """Write a text in UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value) -> None:
    """Write JSON, indented, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def make_cache_folder(folder) -> Path:
    """Create a folder of files that can be made again, marked as such; return it.

    Examples
    --------
    >>> (make_cache_folder(Path(tempfile.mkdtemp(), "cache")) / CACHE_TAG).is_file()
    True
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CACHE_TAG).is_file():
        (folder / CACHE_TAG).write_text("Signature: 8a477f597d28d172789f06886806bc55\n# made by bcdlib\n")
    return folder


def read_user_csv(path, what: str, dtype, **options) -> pd.DataFrame:
    """Read a CSV file that a user named.

    Parameters
    ----------
    path : str or path-like
    what : str
        What the file should be ("predictions table"), for the message.
    dtype : type, or dict of column -> type
    **options
        Of `pandas.read_csv`, as is `dtype`.

    Returns
    -------
    pandas.DataFrame

    Raises
    ------
    InputError
        If there is no such file or it is not a readable CSV.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such {what}")
    try:
        return pd.read_csv(path, dtype=dtype, **options)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a readable CSV ({one_line(error)})") from None
