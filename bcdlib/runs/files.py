"""Files written whole or not at all, locks between processes, one message for a disk that fails."""

import contextlib
import csv
import errno
import glob
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import filelock
import numpy as np
import pandas as pd

from bcdlib.errors import InputError, one_line
from bcdlib.runs.names import clean_text

TEXTS = {"slide": str, "case": str}  # columns of our own tables that pandas must not take for numbers
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
    lock of a process that dies is released. Processes on other machines are not locked out, also where both
    see the same Drive: each does all the work, its files are whole, and the last one's stay. (A lock in the
    folder itself would not help: a Drive shows one machine's files to another minutes later.) Give each
    machine a run folder of its own; `compare --store` lets several share the work.

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
        held = lock.acquire(blocking=False)
    except filelock.Timeout:
        if busy:
            print(busy, flush=True)
        held = lock.acquire()
    with held:
        yield


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


def write_csv(path, table: pd.DataFrame, *, for_reading: bool = False) -> None:
    """Write a table without its index, atomically.

    Parameters
    ----------
    path : str or path-like
    table : DataFrame
    for_reading : bool
        Whether people open it in a spreadsheet, and no program reads it again: a cell of text that begins
        like a formula gets an apostrophe in front.
    """
    if for_reading:
        texts = table.select_dtypes(exclude=["number", "bool"])
        table = table.assign(**{str(name): texts[name].astype(object).map(_no_formula) for name in texts})
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False)


def _no_formula(cell):
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "@", "\t", "\r")) else cell


def write_text(path, text: str) -> None:
    """Write a text in UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value) -> None:
    """Write JSON, indented, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_table(path, columns=(), **options) -> pd.DataFrame:
    """Read a table that a stage wrote; texts stay texts.

    Parameters
    ----------
    path : str or path-like
    columns : sequence of str
        Which must be there.
    **options
        As of `pandas.read_csv`.

    Raises
    ------
    InputError
        If the file is not there, is damaged or lacks a column.

    Examples
    --------
    >>> write_csv(file := Path(tempfile.mkdtemp(), "a.csv"), pd.DataFrame({"slide": ["0012"], "label": 1}))
    >>> read_table(file, ["label"])["slide"].tolist()
    ['0012']
    """
    try:
        table = pd.read_csv(path, **{"dtype": TEXTS} | options)
        if missing := set(columns) - set(table):
            raise ValueError(f"no column {min(missing)}")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({one_line(error)}); delete it, and run again what made it"
        ) from None
    return table


def read_json(path) -> dict:
    """Read a JSON object.

    Raises
    ------
    OSError
    ValueError
        If it is no JSON, or none with names and values.

    Examples
    --------
    >>> (file := Path(tempfile.mkdtemp(), "a.json")).write_text('{"seed": 0}')
    11
    >>> read_json(file)
    {'seed': 0}
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


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


def why_no_file(path, what: str = "file") -> str:
    """Say of a path at which there is no file what lies there, or what of nearly that name lies beside it.

    Examples
    --------
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "mine.CSV.gz").touch()
    >>> why_no_file(folder / "mine.csv", "table"), why_no_file(folder, "table")
    ('no such table; there is mine.CSV.gz', 'a folder, not a table')
    """
    path = Path(path)
    try:
        if path.is_dir():
            return f"a folder, not a {what}"
        if path.is_symlink():
            return f"a link that leads nowhere, to {os.readlink(path)}"
        if path.exists():
            return "neither a file nor a folder"
        beside = sorted(os.listdir(path.parent))
    except OSError:
        beside = []
    stem = clean_text(path.name).casefold().split(".")[0]
    near = next((name for name in beside if clean_text(name).casefold().split(".")[0] == stem), "")
    return f"no such {what}" + (f"; there is {near}" if near else "")


# how a file begins that is no text with commas, and what it is
_NO_CSV = {
    b"PK\3\4": "an Excel workbook (.xlsx) or a zip archive",
    b"\xd0\xcf\x11\xe0": "an Excel workbook (.xls)",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "packed by gzip twice",
    b"\x89PNG": "an image",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ": "packed by xz",
}
_SAVE = "save it as 'CSV UTF-8', with commas between the columns"
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
# tables that are taken for each other: by what they are known, what they are, where they belong
_OTHER_TABLES = (
    ({"filename", "probability"}, "a predictions table, for `evaluate`"),
    ({"filename", "role"}, "a split table, for `audit --split`"),
    ({"filename", "grp"}, "a split table, for `audit --split`"),
    ({"path", "group"}, "a manifest of images of one's own, for --manifest"),
)
_LONGEST_LINE = 2**20  # characters
_MOST_LINES = 20_000_000
_LARGEST_PLAIN = 2**28  # bytes that are read at once
# what pandas takes for empty: such a word would be lost on the way through the run's own tables
_EMPTY = set("|#n/a|#n/a n/a|#na|<na>|n/a|na|nan|-nan|none|null|1.#ind|-1.#ind|1.#qnan|-1.#qnan".split("|"))


def read_user_csv(path, what: str, required: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV file that a user named, as text; nothing is guessed, and nothing left out without a word.

    Parameters
    ----------
    path : str or path-like
        A CSV file in UTF-8 with commas, perhaps packed by gzip.
    what : str
        What the file should be ("predictions table"), for the message.
    required, optional : sequence of str
        The columns that are read, found in any case.

    Returns
    -------
    pandas.DataFrame of str
        The columns of `required` and those of `optional` that are there; cells as `names.clean_text` writes
        them, "" where empty (also what pandas takes for empty, such as NA). Rows without any text are left
        out. The index is the line in the file.

    Raises
    ------
    InputError
        If there is no such file, it is not such a CSV (the message says what it is instead and what to save
        it as), a column is missing or comes twice, a row has more fields than the header (a comma without
        quotation marks), a field holds a line break, or there is no row.
    """
    try:
        if not Path(path).is_file():
            raise InputError(f"{path}: {why_no_file(path, what)}")
        with _open_table(path) as text:
            table = _read_plain(path, text, what, required, optional)
            return _read_rows(path, text, what, required, optional) if table is None else table
    except UnicodeDecodeError:
        raise _no_csv(path, f"its letters are not UTF-8, perhaps Latin-1 or Windows-1252; {_SAVE}") from None
    except (EOFError, zlib.error) as error:
        raise _no_csv(
            path, f"a .gz that is cut off or damaged, {one_line(error)}; copy or download it again"
        ) from None
    except (csv.Error, OSError) as error:
        raise _no_csv(path, one_line(error)) from None


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Let this process and those that it starts read each predictions table once; see `kept_table`."""
    with (
        tempfile.TemporaryDirectory(prefix="bcdlib-") as folder,  # which nobody else can write to
        patch.dict(os.environ, {"BCD_TABLES": folder}),
    ):
        yield


def kept_table(path) -> Path | None:
    """Say where a table that was read from a file is kept within `read_once`; None elsewhere."""
    folder = os.environ.get("BCD_TABLES")
    if not folder or not Path(path).is_file():
        return None
    return Path(folder, f"{hashlib.sha256(Path(path).read_bytes()).hexdigest()}.npz")


def write_kept(path: Path, table: pd.DataFrame) -> None:
    """Write a table of numbers, texts and categories as NumPy arrays: names, and which row has which.

    A name holds no line break: `read_user_csv` refuses them. What ``attrs`` notes is kept too.
    """
    arrays: dict[str, Any] = {"columns": _joined(table.columns), "attrs": _joined([json.dumps(table.attrs)])}
    for number, (_, values) in enumerate(table.items()):
        if pd.api.types.is_numeric_dtype(values):
            arrays[f"{number} numbers"] = values.to_numpy()
        else:
            known = isinstance(values.dtype, pd.CategoricalDtype)
            codes, names = (values.cat.codes, values.cat.categories) if known else pd.factorize(values)
            kind = "categories" if known else "objects" if values.dtype == object else "texts"
            arrays |= {f"{number} codes": codes, f"{number} {kind}": _joined(names)}
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def read_kept(path: Path) -> pd.DataFrame:
    """Read what `write_kept` wrote."""
    columns = {}
    with np.load(path, allow_pickle=False) as arrays:
        for number, column in enumerate(_parted(arrays["columns"])):
            if f"{number} numbers" in arrays:
                columns[column] = arrays[f"{number} numbers"]
                continue
            kind = next(kind for kind in ("categories", "objects", "texts") if f"{number} {kind}" in arrays)
            names = pd.Series(_parted(arrays[f"{number} {kind}"]))
            values = pd.Categorical.from_codes(arrays[f"{number} codes"], names)
            to = {"categories": values.dtype, "objects": object, "texts": names.dtype}[kind]
            columns[column] = pd.Series(values).astype(to)
        table = pd.DataFrame(columns)
        table.attrs = json.loads(*_parted(arrays["attrs"]))
    return table


def _joined(names: Iterable[str]) -> np.ndarray:
    # an array of texts would give each as much room as the longest
    return np.frombuffer("\n".join(names).encode(), dtype="uint8")


def _parted(joined: np.ndarray) -> list[str]:
    return joined.tobytes().decode().split("\n")


def _no_csv(path, why: str) -> InputError:
    return InputError(f"{path}: not a readable CSV ({why})")


@contextlib.contextmanager
def _open_table(path) -> Iterator[io.TextIOWrapper]:
    with open(path, "rb") as plain:  # gzip leaves it open
        file = gzip.open(plain) if plain.peek(2).startswith(b"\x1f\x8b") else plain
        start = file.read(2**12)  # of a .gz that is cut off, this says so
        file.seek(0)
        kind = next((kind for mark, kind in _NO_CSV.items() if start.startswith(mark)), "")
        if kind or b"\0" in start:
            raise _no_csv(path, f"it is {kind or 'text in UTF-16, or no text'}; {_SAVE}")
        with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
            yield text


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: text.readline(_LONGEST_LINE), "")):
        if len(line) == _LONGEST_LINE:
            raise csv.Error("a line of more than a million characters")
        if "\0" in line:
            raise csv.Error("a NUL character, which no text has")
        if number == _MOST_LINES:
            raise csv.Error(f"more than {_MOST_LINES} lines")
        yield line


def _read_plain(path, text: io.TextIOWrapper, what: str, required, optional) -> pd.DataFrame | None:
    """Read a table of as many commas in each line, and no quotation mark, at once; None if it is another.

    Row by row (`_read_rows`, which also says what is wrong with others) a million rows take 10 seconds more.
    """
    if isinstance(text.buffer, gzip.GzipFile) or os.fstat(text.fileno()).st_size > _LARGEST_PLAIN:
        return None
    content = Path(path).read_bytes().replace(b"\r\n", b"\n").rstrip(b"\n") + b"\n"
    signs = np.frombuffer(content, "uint8")
    ends = np.flatnonzero(signs == ord("\n"))
    commas = np.diff(np.searchsorted(np.flatnonzero(signs == ord(",")), ends), prepend=0)
    longest = np.diff(ends, prepend=-1).max()
    if (commas != commas[0]).any() or longest > csv.field_size_limit() or len(ends) < 2:
        return None
    if any(sign in content for sign in (b'"', b"\r", b"\0")):
        return None
    header = content[: ends[0]].decode("utf-8-sig").split(",")
    if _is_excels(header):
        return None
    places = _find_columns(path, header, what, required, optional)
    found = pd.read_csv(
        io.BytesIO(content),
        header=None,
        skiprows=1,
        usecols=list(places.values()),
        dtype=object,
        na_filter=False,
        quoting=csv.QUOTE_NONE,
        low_memory=False,
    )
    table = pd.DataFrame({name: _clean_column(found[place]) for name, place in places.items()})
    table.index += 2  # the line
    nameless = table[table.iloc[:, 0] == ""]
    return None if (nameless == "").all(axis=1).any() else table


def _read_rows(path, text, what: str, required, optional) -> pd.DataFrame:
    reader = csv.reader(_lines(text), strict=True, skipinitialspace=True)
    places, width, rows, lines, last = {}, 0, [], [], 0
    while True:
        first = last + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            quoted = ""
            if '"' in str(error) or "end of data" in str(error):
                quoted = "a quotation mark is not closed or stands inside a cell: "
            raise _no_csv(path, f"line {first}: {quoted}{error}") from None
        if row is None:
            break
        last = reader.line_num
        if last > first:
            raise _no_csv(
                path,
                f"line {first}: a line break inside a cell; or a quotation mark that should not be there",
            )
        if not "".join(row).strip():
            continue
        if not width and _is_excels(row):
            continue
        if not width:
            places, width = _find_columns(path, row, what, required, optional), len(row)
            continue
        if len(row) != width:
            if any(cell.strip() for cell in row[width:]):
                raise _no_csv(
                    path,
                    f"line {last} has {len(row)} fields, the header {width}; a cell with a comma in it needs "
                    'quotation marks: "Smith, Anna"',
                )
            row += [""] * (width - len(row))
        rows.append([sys.intern(row[place]) for place in places.values()])
        lines.append(last)
    if not width:
        raise _no_csv(path, "it is empty")
    if not rows:
        raise InputError(f"{path}: the table has no rows")
    return pd.DataFrame(rows, index=lines, columns=list(places), dtype=object).apply(_clean_column)


def _is_excels(first: list[str]) -> bool:
    """Whether this is Excel's own first line, which says what separates the columns."""
    return first[0].strip().lower().startswith("sep=")


def _find_columns(path, header: list[str], what: str, required, optional) -> dict[str, int]:
    """Where each column stands."""
    names = [clean_text(name).lower() for name in header]
    twice = [name for name in (*required, *optional) if names.count(name.lower()) > 1]
    if twice:
        raise InputError(f"{path}: column {twice[0]!r} comes twice; keep one of them")
    missing = [name for name in required if name.lower() not in names]
    if missing:
        found = ",".join(header)
        hints = [f"; it has {kind}: {_SAVE}" for sign, kind in _SEPARATORS.items() if sign in found]
        hints += [f"; it is rather {kind}" for known, kind in _OTHER_TABLES if known <= set(names)]
        raise InputError(
            f"{path}: column {missing[0]!r} is missing; a {what} has {', '.join(required)}, separated by "
            f"commas; found {', '.join(names[:10])[:200]!r}{hints[0] if hints else ''}"
        )
    wanted = [*required, *(name for name in optional if name.lower() in names)]
    return {name: names.index(name.lower()) for name in wanted}


def _clean_column(column: pd.Series) -> pd.Series:
    codes, values = pd.factorize(column)
    text = "\n".join(values)  # said at once of most: a million are read
    plain = text.isascii() and text.replace("\n", "").isprintable()
    if plain and " " not in text and _EMPTY.isdisjoint(text.lower().split("\n")):
        return column.astype(object)
    cleaned = [value.strip() if plain else clean_text(value) for value in values]
    kept = np.array(["" if text.lower() in _EMPTY else text for text in cleaned], dtype=object)
    return pd.Series(kept[codes], index=column.index, dtype=object)


def refuse_rows(path, table: pd.DataFrame, bad: pd.Series, column: str, advice: str, *, name: str) -> None:
    """Refuse a table of `read_user_csv` where a cell is wrong, naming the first such line.

    Parameters
    ----------
    path : str or path-like
    table : DataFrame
    bad : Series of bool
        Which rows are wrong.
    column : str
        Whose cells are.
    advice : str
        What to write instead.
    name : str
        The column that names a row ("path", "filename").

    Raises
    ------
    InputError
        If there is such a row.
    """
    if bad.any():
        line, more = bad.idxmax(), f" ({bad.sum()} such rows)" if bad.sum() > 1 else ""
        cell, named = table.at[line, column], "" if name == column else f" of {table.at[line, name]}"
        what = f": {column}{named} is {cell!r}" if cell else f" has no {column}"
        raise InputError(f"{path}: line {line}{what}; {advice}{more}")


def numbers_or_text(column: pd.Series) -> pd.Series:
    """Turn a column of text into whole numbers if all of it is that; else it stays text.

    Examples
    --------
    >>> numbers_or_text(pd.Series(["0", "1.0"])).tolist(), numbers_or_text(pd.Series(["0", "val"])).tolist()
    ([0, 1], ['0', 'val'])
    """
    values = column.unique()
    if all(re.fullmatch(r"-?[0-9]{1,15}(\.0*)?", value) for value in values):
        return column.map({value: int(value.split(".")[0]) for value in values}).astype("int64")
    return column
