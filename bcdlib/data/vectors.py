"""Vectors of images (embeddings) that other tools computed, from their files.

Whatever made them: a pathology encoder in PyTorch, a whole-slide tool, another notebook.
"""

import functools
import hashlib
import zipfile
from pathlib import Path, PurePosixPath

import h5py
import numpy as np
import pandas as pd

from bcdlib.data import breakhis
from bcdlib.data.sources import IMAGE_SUFFIXES
from bcdlib.errors import InputError, one_line
from bcdlib.runs import files

SUFFIXES = (".npz", ".npy", ".h5", ".hdf5", ".parquet")
_NAMES = ("filename", "filenames", "name", "names", "path", "paths", "file", "files", "image", "images")
_VECTORS = ("embeddings", "embedding", "features", "feats", "vectors", "x")
# numbers in a table that are not the encoder's
_FACTS = (
    *("label", "class", "magnification", "slide", "case", "group", "fold", "seed", "split", "probability"),
    *("year", "sequence", "index", "unnamed: 0", *(f"fold_{number}" for number in range(1, 6))),
)
_LARGEST = 2**33  # bytes that a file may unpack to


def match_vectors(path, filenames) -> tuple[np.ndarray, int]:
    """Find the vector of each image in a file, by the image's name without folders and suffix.

    Where two images are called alike, their folders count too.

    Parameters
    ----------
    path : path-like
        .npz or .h5: an array (N, d) and the N names, or under each image's name its array; .npy: (N, d), and
        beside it a .csv of the same name with a column ``filename``; .parquet: a column of names, and d
        columns of numbers or one of lists; or a folder with an .h5 or .npy file an image. Of an array
        (patches, d) of one image the mean is taken.
    filenames : sequence of str
        Of the images.

    Returns
    -------
    float32 array (N, d)
        Rows as `filenames`.
    int
        How many vectors of the file belong to none of them.

    Raises
    ------
    InputError
        If the file cannot be read, an image has no vector or two different ones, or a number is not finite.
    """
    file = Path(path).expanduser()
    facts = file.stat() if file.is_file() and file.suffix.lower() != ".npy" else None  # .npy has a .csv too
    known, vectors = (
        _read_once(file, facts.st_ino, facts.st_size, facts.st_mtime_ns) if facts else _read(file)
    )
    if not np.isfinite(vectors).all():
        row = int((~np.isfinite(vectors).all(axis=1)).argmax())
        raise InputError(f"{path}: the vector of {known[row]} holds numbers that are not finite")
    wanted, have = (pd.Series(list(names), dtype=object).map(_key) for names in (filenames, known))
    if wanted.isin(have).sum() < len(wanted):  # other folders, or none
        short = [keys.map(lambda key: PurePosixPath(key).name) for keys in (wanted, have)]
        if short[0].is_unique:
            wanted, have = short
    places = pd.Series(np.arange(len(have)), index=have)
    for key, rows in places[have.duplicated(keep=False).to_numpy()].groupby(level=0):
        if key in set(wanted) and np.ptp(vectors[rows], axis=0).any():
            raise InputError(f"{path}: has two different vectors of {key}; keep one")
    places = places[~places.index.duplicated()]
    extra = int((~places.index.isin(wanted)).sum())
    missing = ~wanted.isin(places.index)
    if missing.any():
        raise InputError(
            f"{path}: has no vector of {missing.sum()} of {len(wanted)} images, the first "
            f"{list(filenames)[int(missing.to_numpy().argmax())]} ({extra} of its {len(places)} vectors "
            "belong to none of them); compute them too, or leave these images out"
        )
    return vectors[places[wanted].to_numpy()], extra


def content_digest(path) -> str:
    """Identify a file, or all files of a folder, by content; SHA-256."""
    path, digest = Path(path), hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with open(file, "rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
            digest.update(file.name.encode())
    return digest.hexdigest()


def _key(name: str) -> str:
    path = breakhis.official_name(str(name))
    stem, dot, suffix = path.rpartition(".")
    return stem if f"{dot}{suffix}".lower() in (*IMAGE_SUFFIXES, *SUFFIXES) else path


@functools.lru_cache(maxsize=1)  # a comparison asks in each of its trials
def _read_once(path: Path, *facts: int) -> tuple[list[str], np.ndarray]:
    return _read(path)


def _read(path: Path) -> tuple[list[str], np.ndarray]:
    """Read names (N) and vectors, float32 (N, d)."""
    if not path.exists():
        raise InputError(f"{path}: {files.why_no_file(path, 'file of embeddings')}")
    try:
        if path.is_dir():
            arrays = {file.stem: _one_image(file) for file in sorted(path.iterdir()) if _is_array(file)}
            return _join(arrays)
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            return _from_table(_read_parquet(path))
        if suffix == ".npy":
            vectors = np.asarray(np.load(path, allow_pickle=False))
            names = files.read_user_csv(path.with_suffix(".csv"), "table of names", ["filename"])["filename"]
            return _pair({"filename": names.to_numpy(dtype=object), "embeddings": vectors})
        if suffix in (".npz", ".h5", ".hdf5"):
            return _pair(_read_npz(path) if suffix == ".npz" else _read_hdf5(path))
        raise ValueError(f"it is none of {', '.join(SUFFIXES)}, nor a folder")
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: no embeddings that can be read ({one_line(error)})") from None


def _is_array(file: Path) -> bool:
    return file.suffix.lower() in (".npy", ".h5", ".hdf5")


def _one_image(file: Path) -> np.ndarray:
    if file.suffix.lower() == ".npy":
        return np.load(file, allow_pickle=False)
    arrays = {key.lower(): value for key, value in _read_hdf5(file).items()}
    return arrays[next((key for key in _VECTORS if key in arrays), min(arrays))]


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > _LARGEST:
            raise ValueError(f"it unpacks to more than {_LARGEST >> 30} GiB")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    """Read what lies in the file itself: no link is followed, which could lead to another."""
    found, total = {}, 0
    with h5py.File(path, "r") as file:
        for name in file:
            part = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
            if isinstance(part, h5py.Group):  # of one image
                inside = next((key for key in part if key.lower() in _VECTORS), None)
                direct = inside and isinstance(part.get(inside, getlink=True), h5py.HardLink)
                part = part[inside] if direct else None
            if not isinstance(part, h5py.Dataset) or part.is_virtual or part.external:
                raise ValueError(f"{name} in it is no plain array")
            total += part.size * max(1, part.dtype.itemsize)
            if total > _LARGEST:
                raise ValueError(f"it holds more than {_LARGEST >> 30} GiB")
            found[name] = part.asstr()[()] if h5py.check_string_dtype(part.dtype) else part[()]
    return found


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except ImportError:
        raise InputError(f"{path}: needs pyarrow to be read; pip install pyarrow") from None


def _from_table(table: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    table = table.reset_index() if table.index.name else table
    columns = {str(name).lower(): name for name in table}
    name = next((columns[key] for key in _NAMES if key in columns), None)
    if name is None:
        raise ValueError("it has no column of names; call it filename")
    lists = next((columns[key] for key in _VECTORS if key in columns), None)
    if lists is not None:
        return _pair({"filename": table[name].to_numpy(), "embeddings": np.stack(table[lists].to_list())})
    numbers = table.drop(columns=[columns[key] for key in _FACTS if key in columns])
    return _pair(
        {"filename": table[name].to_numpy(), "embeddings": numbers.select_dtypes("number").to_numpy()}
    )


def _pair(arrays: dict[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """Tell names and vectors among arrays by what they hold, and by their own names where several fit."""
    by = {key.lower(): np.asarray(value) for key, value in arrays.items()}
    text = {key: value for key, value in by.items() if value.dtype.kind in "USO" and value.ndim == 1}
    if not text:
        if any(key in _VECTORS for key in by):
            raise ValueError("it holds vectors, but no names of images; add an array filename")
        return _join(arrays)
    names = next((text[key] for key in _NAMES if key in text), next(iter(text.values())))
    fitting = {key: a for key, a in by.items() if a.ndim == 2 and a.dtype.kind in "fiu"}
    vectors = next((fitting[key] for key in _VECTORS if key in fitting), None)
    if vectors is None and len(fitting) == 1:
        [vectors] = fitting.values()
    if vectors is None or vectors.shape[0] != len(names) or not vectors.size:
        shapes = ", ".join(f"{key} {value.shape}" for key, value in by.items())
        raise ValueError(f"wanted are names (N,) and embeddings (N, d); it holds {shapes}")
    return [_text(name) for name in names], vectors.astype("float32")


def _text(name) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _join(arrays: dict[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """One array an image: a vector, or several of which the mean is taken."""
    if not arrays:
        raise ValueError("it holds none")
    found = {}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu" or array.ndim not in (1, 2) or not array.size:
            raise ValueError(f"{name} in it is no vector")
        found[name] = array.reshape(-1, array.shape[-1]).mean(axis=0, dtype="float64")
    if len(lengths := {len(vector) for vector in found.values()}) > 1:
        raise ValueError(
            f"its vectors have {min(lengths)} to {max(lengths)} numbers; wanted are as many in each"
        )
    return list(found), np.stack(list(found.values())).astype("float32")
