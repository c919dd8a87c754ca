"""Finished trials where many machines see them: a folder, ``gs://``, ``s3://``, what fsspec knows."""

from pathlib import Path

from bcdlib.errors import InputError
from bcdlib.runs.files import atomic_write

_LAST = "trial.json"  # written last: a trial that has it is whole


def check_store(store: str) -> None:
    """Refuse a store that cannot be written to.

    Raises
    ------
    InputError
        Also if the package that fsspec wants for this kind of address is missing.

    Examples
    --------
    >>> check_store("s3:/bucket")
    Traceback (most recent call last):
    bcdlib.errors.InputError: --store s3:/bucket: an address has two slashes, s3://bucket
    """
    import fsspec

    kind, colon, rest = store.partition(":")
    if colon and kind in fsspec.available_protocols() and not rest.startswith("//"):
        raise InputError(f"--store {store}: an address has two slashes, {kind}://{rest.lstrip('/')}")
    try:
        write_file(store, ".bcdlib", b"")
    except Exception as error:  # of many packages
        raise InputError(f"--store {store}: cannot be written to ({error})".splitlines()[0]) from None


def write_file(store: str, name: str, content: bytes) -> None:
    """Write a small file below a folder or URL, whole or not at all; ``name`` may begin with folders."""
    system, path = _open(store, name)
    system.makedirs(path.rpartition("/")[0], exist_ok=True)
    with system.transaction:  # on a local disk too it is renamed when it is whole
        system.pipe_file(path, content)


def read_file(store: str, name: str) -> bytes:
    """Read what `write_file` wrote."""
    system, path = _open(store, name)
    return system.cat_file(path)


def put_trial(store: str, folder: Path, *, anew: bool = True) -> None:
    """Copy a finished trial's files into the store.

    Parameters
    ----------
    store : str
    folder : pathlib.Path
    anew : bool
        Also if the store has files of all these names; otherwise only where it lacks one, since whoever
        finished the trial here may have been killed before all was copied.
    """
    left = (".", "checkpoint")  # what writers that were killed left, and checkpoints put aside
    files = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(left)]
    system, there = _open(store, folder.name)
    stored = system.ls(there, detail=False) if system.exists(there) else []
    known = {Path(path).name for path in stored}
    if not anew and {file.name for file in files} <= known:
        return
    if _LAST in known:  # until all is there the trial is not whole
        system.rm_file(f"{there}/{_LAST}")
    for file in sorted(files, key=lambda file: file.name == _LAST):
        write_file(store, f"{folder.name}/{file.name}", file.read_bytes())


def fetch_trial(store: str, folder: Path) -> bool:
    """Copy the trial of this folder's name from the store; return whether it was there and whole."""
    system, there = _open(store, folder.name)
    if not system.exists(f"{there}/{_LAST}"):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _LAST).unlink(missing_ok=True)  # until all is here the trial is not whole
    for path in sorted(system.ls(there, detail=False), key=lambda path: path.endswith(f"/{_LAST}")):
        with atomic_write(folder / Path(path).name) as temporary:
            temporary.write_bytes(system.cat_file(path))
    return True


def _open(store: str, name: str):
    import fsspec  # comes with Dask

    system, folder = fsspec.core.url_to_fs(store)
    system.invalidate_cache()  # other machines may have written since
    return system, f"{folder.rstrip('/')}/{name}"
