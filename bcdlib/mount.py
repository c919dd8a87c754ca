"""01_mount: where data, caches and run folders lie (Google Drive in Colab), and getting the data."""

import errno
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import requests
import urllib3
from tqdm import tqdm

from bcdlib import manifest, owndata, runs, sources
from bcdlib.errors import InputError

ARCHIVE_URL = "http://www.inf.ufpr.br/vri/databases/BreaKHis_v1.tar.gz"
LICENCE = "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/): share and adapt it, with attribution"
CITATION = (
    "Spanhol, Oliveira, Petitjean, Heutte: A Dataset for Breast Cancer Histopathological Image "
    "Classification, IEEE TBME 63(7):1455-1462, 2016, doi:10.1109/TBME.2015.2496264"
)
TABLE_I_REMARK = (
    "The paper prints 652 benign images at 40X; its own totals (1995 images at 40X, 2480 benign images) "
    "and the data set say 625."
)
REFERENCES = (
    "- F. A. Spanhol, L. S. Oliveira, C. Petitjean, L. Heutte, *A Dataset for Breast Cancer Histopathological Image "
    "Classification*, IEEE TBME 63(7), 2016. Licence of the images: CC BY 4.0."
)

_CHUNK = 2**16  # what a reset connection can cost: a chunk that was begun is lost
_PAUSE = 1.0  # seconds before the second attempt; doubled for each further one
_LONGEST_PAUSE = 15.0


# ---------------------------------------------------------------- places

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
    os.environ.setdefault("BCD_NEAR", str(Path(tempfile.gettempdir(), "bcdlib-near")))  # see runs.near
    try:
        if not (folder / "MyDrive").is_dir():
            from google.colab import drive  # exists in Colab only

            drive.mount(str(folder))
        # no parents: where MyDrive is missing, they would be made on Colab's own disk, which gets lost
        (folder / "MyDrive" / "bcdlib").mkdir(exist_ok=True)
    except Exception as error:  # Colab raises its own types, and AttributeError outside a notebook's kernel
        raise InputError(
            f"{folder}: Google Drive could not be mounted ({_one_line(error)}); in a notebook cell run "
            f"`from google.colab import drive; drive.mount({str(folder)!r})` and allow access"
        ) from None
    return folder / "MyDrive" / "bcdlib"


def home() -> Path:
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
    return home() / "cache"


def open_run(out=None, data="synthetic", profile="demo") -> runs.Run:
    """Open a run folder, on Google Drive in Colab, and create it if need be.

    Parameters
    ----------
    out : str or path-like, optional
        The folder; by default ``home()/<data>-<profile>``, where <data> has no archive suffix.
    data, profile : str
        What the default name is made of.

    Raises
    ------
    InputError
        If Drive cannot be mounted or the folder cannot be written to.
    """
    mount_drive()
    return runs.open_run(out or home() / f"{_stem(data)}-{profile}")


def _stem(data) -> str:
    if not str(data):
        return "BreaKHis_v1"  # what `find` searches for then
    name = os.path.basename(os.path.abspath(os.path.expanduser(data)))
    for suffix in sources.ARCHIVE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)] or "data"
    return name or "data"


# ---------------------------------------------------------------- the data set

def find(data="synthetic", seed=0, progress=True) -> sources.Source:
    """Open the data set.

    Parameters
    ----------
    data : str or path-like
        ``"synthetic"``: the embedded data set, drawn if not there yet. ``""``: a folder or archive named
        like BreaKHis_v1*, searched for in the likely places. Otherwise a folder or archive; in Colab also
        relative to ``MyDrive``.
    seed : int
        Of the synthetic data set.

    Raises
    ------
    InputError
        If nothing is found, or it is neither a folder with content nor an archive.
    """
    if str(data) == "synthetic":
        from bcdlib import synthetic  # here, not above: it needs OpenCV and SciPy

        # in Colab on the local disk: hundreds of small files are slow on a mounted Drive
        folder = Path(tempfile.gettempdir(), f"bcdlib-synthetic-{seed}") if in_colab() else None
        folder = folder or cache_root() / f"synthetic-{seed}"
        return sources.open_source(synthetic.draw(folder, seed=seed, progress=progress))
    if not str(data):
        return _opened(_search())
    return _opened(_here_or_on_drive(data))


def _opened(path) -> sources.Source:
    return sources.open_source(path, cache_root() / "listings")


def _here_or_on_drive(place) -> Path:
    path = Path(place).expanduser()
    if in_colab() and not path.exists():
        mount_drive()
        on_drive = drive_folder() / "MyDrive" / path
        path = on_drive if on_drive.exists() else path
    return path


def find_own(data, own) -> Path:
    """The table `own` that names the images in `data`, a folder or archive that is not BreakHis; see `owndata.read`.

    In Colab both may be relative to ``MyDrive``.

    Raises
    ------
    InputError
        If `data` is not a folder or archive of one's own. (Whether the table is there and good, `owndata.read` checks.)
    """
    if str(data) in ("", "synthetic"):
        raise InputError(f"{own}: a manifest names images of your own; give their folder or archive too (--data DIR)")
    return _here_or_on_drive(own)


def _search() -> Path:
    if mount_drive():
        mine = drive_folder() / "MyDrive"
        places = [mine, mine / "BCDataset", mine / "bcdlib"]
    else:
        places = [Path.cwd(), Path.cwd() / "data"]
    for place in places:
        found = [path for path in (place.iterdir() if place.is_dir() else ()) if _looks_like_breakhis(path)]
        if found:
            # an archive first: Drive reads one file quicker than 7909, and it is never half unpacked
            return min(found, key=lambda path: (path.is_dir(), path.name))
    raise InputError(
        f"no folder or archive named like BreaKHis_v1* in {', '.join(map(str, places))}; "
        "point --data at a copy, fetch it, or use 'synthetic'"
    )


def _looks_like_breakhis(path: Path) -> bool:
    name = path.name.lower()
    if not name.startswith("breakhis_v1"):
        return False
    if path.is_dir():  # an empty folder, or a run's folder, is no data set
        return any(path.iterdir()) and not (path / "settings.json").exists()
    return name.endswith(sources.ARCHIVE_SUFFIXES)


def start(run: runs.Run, data="synthetic", seed=0, progress=True, own="") -> manifest.Scan | owndata.OwnScan:
    """Find the data set, list its images, record both in the run's ``images.csv`` and ``settings.json``.

    What is called like an image but cannot be one goes into ``left_out.csv`` (path, reason).

    Parameters
    ----------
    own : str or path-like
        For images that are not BreakHis's: the CSV that names them (see `owndata.read`).

    Returns
    -------
    manifest.Scan, or owndata.OwnScan with `own`
        Its `images` have one row per image.

    Raises
    ------
    InputError
        If there is no such data set or not one BreakHis image in it, or if `own` is not such a table.
    """
    own = find_own(data, own).absolute() if own else ""
    if own:
        owndata.read(own)  # before a long listing of an archive
    source = find(data, seed=seed, progress=progress)
    scan = owndata.scan(own, source) if own else manifest.scan(source)
    runs.write_csv(run.folder / "left_out.csv", pd.DataFrame(scan.reasons, columns=["path", "reason"]))
    runs.write_csv(run.folder / "images.csv", scan.images)
    run.record(data=str(data), seed=seed, source=str(source.path.absolute()), partial=scan.partial, manifest=str(own))
    return scan


def open_data(run: runs.Run) -> sources.Source:
    """Reopen the data set that `start` recorded; a synthetic one is drawn again if it is gone.

    Raises
    ------
    InputError
        If `start` has not been here, or the data set is no longer where it was.
    """
    settings = run.settings
    if "source" not in settings:
        raise InputError(f"{run.folder}: its settings name no data set; run 01_mount with this run first")
    if settings["data"] == "synthetic":
        return find("synthetic", seed=settings["seed"])
    if not Path(settings["source"]).exists():
        mount_drive()  # a new Colab session begins without it
    return _opened(settings["source"])


def overview(run: runs.Run, scan: manifest.Scan | owndata.OwnScan) -> pd.DataFrame:
    """What was found, one line each, in the single column ``found`` (int; str for source, manifest and extent)."""
    images = scan.images
    if isinstance(scan, owndata.OwnScan):
        rows = {"source": run.settings["source"], "manifest": run.settings["manifest"], **owndata.overview(scan)}
        return pd.DataFrame({"found": pd.Series(rows, dtype=object)})
    known = manifest.load()["filename"]
    rows = {
        "source": run.settings["source"],
        "images": len(images),
        "slides": manifest.slide_folders(images),
        "cases": int(images["case"].nunique()),
        f"present of BreakHis's {len(known)}": int(known.isin(images["filename"]).sum()),
        "duplicates left out": len(scan.duplicates),
        "other image names left out": len(scan.not_breakhis),
        "left out for another reason": len(scan.reasons) - len(scan.not_breakhis) - len(scan.duplicates),
        "BreakHis is": "partial" if scan.partial else "complete",
    }
    return pd.DataFrame({"found": pd.Series(rows, dtype=object)})


def table_i(images: pd.DataFrame) -> pd.DataFrame:
    """Table I of the paper, counted in `images` beside what is printed (see TABLE_I_REMARK).

    Returns
    -------
    pandas.DataFrame of int, shape (3, 10)
        Rows benign, malignant, total; columns ("counted", 40 ... "total"), then ("printed", 40 ... "total").
    """
    return pd.concat({"counted": manifest.table_i(images), "printed": manifest.TABLE_I_PRINTED}, axis=1)


def counts(images: pd.DataFrame) -> pd.DataFrame:
    """Images by class and magnification: `table_i` for BreakHis and drawn tissue, else `owndata.counts`."""
    return table_i(images) if manifest.is_breakhis(images) else owndata.counts(images)


def counts_remark(run: runs.Run) -> str:
    """Markdown: what to know about `counts`; of images of one's own, what a case is and what is unknown."""
    if not run.settings.get("manifest"):
        return f"Table I as counted here, beside what the paper prints. {TABLE_I_REMARK}"
    images = run.images()
    remark = "These images are not BreakHis's. What the manifest calls a group is called a case in all that follows."
    unknown = int((images["magnification"] == 0).sum())
    return remark + (f" The magnification of {unknown} images is not known." if unknown else "")


def references(run: runs.Run) -> str:
    """Markdown: where BreakHis comes from and its licence; empty if the run's images are one's own."""
    return "" if run.settings.get("manifest") else REFERENCES


# ---------------------------------------------------------------- the download

def fetch(folder, url=ARCHIVE_URL, expected_size=None, attempts=5, progress=True, timeout=30) -> Path:
    """Download an archive, resuming where an earlier attempt, in this process or another, broke off.

    Until complete the file is called ``<name>.part``; beside it ``<name>.part.json`` notes which version
    of the file it is part of, so that pieces of two versions are never joined.

    Parameters
    ----------
    folder : str or path-like
        Created if need be.
    url : str
        Its last part names the file.
    expected_size : int, optional
        In bytes; checked, as is the size that the server announces.
    attempts : int
        How often to connect, with pauses of 1, 2, 4 ... seconds between.
    timeout : float
        Seconds without a byte after which a connection counts as broken.

    Returns
    -------
    pathlib.Path
        The complete file, at once if it is there already.

    Raises
    ------
    InputError
        If the file cannot be had or written. What has arrived is kept; calling again resumes.
    """
    target = _target(folder, url, expected_size)
    if target.exists():
        return target
    print(f"BreakHis is licensed under {LICENCE}.\nPlease cite {CITATION}.")
    download = _Download(target, url, expected_size)
    reason = ""
    for attempt in range(max(1, attempts)):
        if attempt:
            time.sleep(min(_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE))
        try:
            return download.attempt(timeout, progress)
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema,
                requests.exceptions.MissingSchema) as error:
            raise InputError(f"{url}: not an address to download from ({_one_line(error)})") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, _Broken) as error:
            reason = _one_line(error)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = "the disk is full; free some space" if full else f"cannot write there ({error.strerror})"
            got = download.reached()
            raise InputError(f"{download.part}: {what}; got {got}, calling again resumes") from None
    raise InputError(f"{url}: got {download.reached()}, then: {reason}; calling again resumes")


def _target(folder, url: str, expected_size: int | None) -> Path:
    name = unquote(urlsplit(url).path.rsplit("/", 1)[-1])
    if name in ("", ".", "..") or "/" in name:
        raise InputError(f"{url}: the address does not end in a file name")
    target = Path(folder).expanduser().absolute() / name
    if target.is_relative_to(drive_folder()):
        mount_drive()  # or the folder would be made on Colab's own disk, and Drive would seem to be mounted
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot create this folder ({error.strerror})") from None
    if target.exists() and expected_size is not None and target.stat().st_size != expected_size:
        size = target.stat().st_size
        raise InputError(f"{target}: has {size} bytes, expected {expected_size}; remove it and fetch again")
    return target


class _Broken(Exception):
    """An attempt failed in a way that a further one may mend."""


class _Download:
    def __init__(self, target: Path, url: str, expected: int | None):
        self.target, self.url, self.expected = target, url, expected
        self.part = target.with_name(target.name + ".part")
        self.note_file = target.with_name(target.name + ".part.json")
        self.total = expected

    @property
    def have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def reached(self) -> str:
        total = self.total if self.total is not None else self.note().get("total")
        return f"{self.have} of {total} bytes" if total is not None else f"{self.have} bytes"

    def note(self) -> dict:
        """The version that the .part belongs to (url, validator, total), or {} if it cannot be resumed."""
        try:
            note = json.loads(self.note_file.read_text())
            return note if note["url"] == self.url and note["validator"] and "total" in note else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def attempt(self, timeout: float, progress: bool) -> Path:
        """Receive the rest and name the file; _Broken, or an error of requests or urllib3, if it breaks."""
        note = self.note()
        if note and note["total"] == self.have:
            self._announce(note["total"])  # all is there; only the renaming was missed
        else:
            with self._open(note, timeout) as response:
                self._receive(response, note, progress)
        if self.total is not None and self.have < self.total:
            raise _Broken("the connection ended early")
        if self.total is not None and self.have > self.total:
            self.part.unlink()
            raise _Broken(f"the server sent more than {self.total} bytes")
        os.replace(self.part, self.target)
        self.note_file.unlink(missing_ok=True)
        return self.target

    def _get(self, timeout, **headers) -> requests.Response:
        # identity: sizes and positions are to count the file's own bytes
        headers = {"Accept-Encoding": "identity"} | {key.replace("_", "-"): headers[key] for key in headers}
        return requests.get(self.url, headers=headers, stream=True, timeout=timeout)

    def _open(self, note: dict, timeout) -> requests.Response:
        have = self.have
        if have and note:
            response = self._get(timeout, Range=f"bytes={have}-", If_Range=note["validator"])
            if response.status_code not in (206, 416) or _continues(response, have, note):
                return response
            response.close()  # a range of another version, or beyond the end: start over
        return self._get(timeout)

    def _receive(self, response: requests.Response, note: dict, progress: bool) -> None:
        status = response.status_code
        resumes = status == 206 and "Range" in response.request.headers
        if status >= 500 or status in (408, 429):
            raise _Broken(f"the server answered {status} {response.reason}")
        if status != 200 and not resumes:
            raise InputError(f"{self.url}: the server answered {status} {response.reason}; check the address")
        if response.headers.get("Content-Type", "").startswith("text/html"):  # must not replace a good .part
            raise InputError(f"{self.url}: the server sent a web page, not an archive; open it in a browser")
        if resumes:
            self._announce(note["total"] if note["total"] is not None else _content_range(response)[1])
        else:
            length = response.headers.get("Content-Length", "")
            self._announce(int(length) if length.isdecimal() else None)
            self.part.write_bytes(b"")  # before the note, so that the note never describes other bytes
            note = {"url": self.url, "validator": _validator(response), "total": self.total}
            runs.write_json(self.note_file, note)
        with (
            open(self.part, "ab") as file,
            tqdm(total=self.total, initial=self.have, desc=self.target.name, unit="B", unit_scale=True,
                 disable=not progress) as bar,
        ):
            # raw: some servers call a .tar.gz "Content-Encoding: gzip", and requests would unpack it
            for chunk in response.raw.stream(_CHUNK, decode_content=False):
                file.write(chunk)
                bar.update(len(chunk))

    def _announce(self, total: int | None) -> None:
        if None not in (total, self.expected) and total != self.expected:
            raise InputError(f"{self.url}: has {total} bytes, expected {self.expected}; check the address")
        self.total = total if total is not None else self.expected


def _validator(response: requests.Response) -> str | None:
    """What If-Range can compare: a strong ETag, else the date."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _content_range(response: requests.Response) -> tuple[int | None, int | None]:
    """First byte and total size that a 206 announces, None where it does not."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if match is None:
        return None, None
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _continues(response: requests.Response, have: int, note: dict) -> bool:
    """Whether a 206 goes on where the .part ends; some servers heed Range but not If-Range."""
    first, total = _content_range(response)
    same_version = _validator(response) in (None, note["validator"])
    return response.status_code == 206 and first == have and same_version and (
        None in (total, note["total"]) or total == note["total"]
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
