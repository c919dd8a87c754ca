"""Finished trials where many machines can see them: a folder, ``gs://``, ``s3://``, anything that fsspec knows."""

from pathlib import Path

from bcdlib.errors import InputError
from bcdlib.runs.files import atomic_write

LAST = "trial.json"  # written last: a trial that has it is whole


def check_store(store: str) -> None:
    """Refuse a store that cannot be written to.

    Raises
    ------
    InputError
        Also if the package that fsspec wants for this kind of address is missing.
    """
    try:
        write_file(store, ".bcdlib", b"")
    except Exception as error:  # of many packages
        raise InputError(f"--store {store}: cannot be written to ({error})".splitlines()[0]) from None


def write_file(place: str, name: str, content: bytes) -> str:
    """Write one small file into a folder or below a URL, and give its address back."""
    system, folder = _open(place)
    _put(system, folder, name, content)
    return f"{place.rstrip('/')}/{name}"


def read_file(address: str) -> bytes:
    """What `write` wrote."""
    system, path = _open(address)
    return system.cat_file(path)


def put_trial(store: str, folder: Path) -> None:
    """Copy a finished trial's files into the store."""
    system, place = _open(store)
    files = sorted(
        (file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")),
        key=lambda file: file.name == LAST,
    )
    for file in files:
        _put(system, f"{place}/{folder.name}", file.name, file.read_bytes())


def _put(system, folder: str, name: str, content: bytes) -> None:
    system.makedirs(folder, exist_ok=True)
    with system.transaction:  # whole or not at all, on a local disk too
        system.pipe_file(f"{folder}/{name}", content)


def fetch_trial(store: str, folder: Path) -> bool:
    """Copy a trial of this folder's name from the store, if it is there and whole; returns whether it was."""
    system, place = _open(store)
    there = f"{place}/{folder.name}"
    if not system.exists(f"{there}/{LAST}"):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(
        (path.rsplit("/", 1)[-1] for path in system.ls(there, detail=False)), key=lambda name: name == LAST
    )
    for name in names:
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(system.cat_file(f"{there}/{name}"))
    return True


def _open(store: str):
    import fsspec  # comes with Dask

    system, place = fsspec.core.url_to_fs(store)
    system.invalidate_cache()  # what other machines wrote since
    return system, place.rstrip("/")
