"""Download an archive so that an interrupted download goes on where it stopped."""

import errno
import hashlib
import os
import time
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import requests
import urllib3
from tqdm import tqdm

from bcdlib.errors import InputError, one_line
from bcdlib.runs import files, places

ARCHIVE_URL = "http://www.inf.ufpr.br/vri/databases/BreaKHis_v1.tar.gz"
LICENCE = "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/): share and adapt it, with attribution"
CITATION = (
    "Spanhol, Oliveira, Petitjean, Heutte: A Dataset for Breast Cancer Histopathological Image "
    "Classification, IEEE TBME 63(7):1455-1462, 2016, doi:10.1109/TBME.2015.2496264"
)
KAGGLE_DATASET = "ambarish/breakhis"  # public, needs no account
KAGGLE_INPUT = Path("/kaggle/input")  # where Kaggle, and Colab on request, mount data sets
LARGEST = 2**34  # bytes of an archive whose size nobody says; BreakHis has 4 GB
SLOWEST = 10_000  # bytes a second; slower than this a connection counts as broken
_PAUSE = 1.0  # seconds before the second attempt; doubled for each further one, up to 15


def download_archive(
    folder, url=ARCHIVE_URL, expected_size=None, *, sha256="", attempts=5, timeout=30, progress=True
) -> Path:
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
    sha256 : str
        Hexadecimal checksum of the file where it is known; checked too. (Nobody publishes that of BreakHis; a
        .tar.gz carries checksums of its own, which are checked when it is read.)
    attempts : int
        How often to connect, with pauses of 1, 2, 4 ... seconds between.
    timeout : float
        Seconds without a byte after which a connection counts as broken; twice this is the time in which it
        must keep up `SLOWEST`.
    progress : bool
        Show a progress bar.

    Returns
    -------
    pathlib.Path
        The complete file, at once if it is there already.

    Raises
    ------
    InputError
        If the file cannot be had or written. What has arrived is kept; calling again resumes. A whole file of
        another checksum is removed.
    """
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    if name in ("", ".."):
        raise InputError(f"{url}: the address does not end in a file name")
    target = Path(folder).expanduser().absolute() / name
    if target.is_relative_to(places.drive_folder()):
        # or the folder would be made on Colab's own disk, and Drive would seem to be mounted
        places.mount_drive()
    if target.exists():
        if expected_size not in (None, size := target.stat().st_size):
            raise InputError(
                f"{target}: has {size} bytes, expected {expected_size}; remove it and fetch again"
            )
        if not _has_sum(target, sha256):
            raise InputError(f"{target}: its SHA-256 is not {sha256}; remove it and fetch again")
        return target
    print(f"BreakHis is licensed under {LICENCE}.\nPlease cite {CITATION}.")
    part, reason = target.with_name(f"{name}.part"), ""
    for attempt in range(attempts):
        time.sleep(min(_PAUSE * 2 ** (attempt - 1), 15) if attempt else 0)
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            _receive(part, url, expected_size, timeout, progress)
            if not _has_sum(part, sha256):
                part.unlink()
                raise InputError(f"{url}: what came has another SHA-256 than {sha256}; check the address")
            part.replace(target)
            _note_file(part).unlink(missing_ok=True)
            return target
        except (
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.MissingSchema,
        ) as error:
            raise InputError(f"{url}: not an address to download from ({one_line(error)})") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            reason = one_line(error)
        except OSError as error:
            what = (
                "the disk is full; free some space"
                if error.errno in (errno.ENOSPC, errno.EDQUOT)
                else f"cannot write there ({error.strerror})"
            )
            raise InputError(f"{part}: {what}; calling again resumes") from None
    have, total = (part.stat().st_size if part.exists() else 0), _note(part, url).get("total")
    got = f"{have} bytes" if total is None else f"{have} of {total} bytes"
    raise InputError(f"{url}: got {got}, then: {reason}; calling again resumes")


def find_kaggle_copy() -> Path:
    """Find BreakHis as it lies on Kaggle, or download it through kagglehub (see `KAGGLE_DATASET`).

    Looks into ``/kaggle/input``, then among what kagglehub has downloaded before ($KAGGLEHUB_CACHE).

    Returns
    -------
    pathlib.Path
        The folder; in it BreakHis is nested (``BreaKHis_v1/BreaKHis_v1/histology_slides``).

    Raises
    ------
    InputError
        If kagglehub is missing, or cannot download it.
    """
    owner, name = KAGGLE_DATASET.split("/")
    cache = Path(os.environ.get("KAGGLEHUB_CACHE") or Path.home() / ".cache" / "kagglehub", "datasets")
    complete = sorted((cache / owner / name).glob("*.complete"), key=lambda mark: mark.stat().st_mtime)
    downloaded = [cache / owner / name / "versions" / mark.stem for mark in reversed(complete)]
    for folder in (KAGGLE_INPUT / name, KAGGLE_INPUT / "datasets" / owner / name, *downloaded):
        if folder.is_dir() and any(folder.iterdir()):
            return folder
    print(f"BreakHis is licensed under {LICENCE}.\nPlease cite {CITATION}.")
    try:
        import kagglehub  # Colab has it

        return Path(kagglehub.dataset_download(KAGGLE_DATASET))
    except ImportError:
        raise InputError(
            "kaggle: needs the package kagglehub; pip install kagglehub, or name a copy of BreakHis"
        ) from None
    except Exception as error:  # of requests, kagglesdk and its own
        raise InputError(
            f"kaggle: {KAGGLE_DATASET} could not be downloaded ({one_line(error)}); see that this machine is "
            "online and run the same again, or name a copy of BreakHis"
        ) from None


def _has_sum(file: Path, sha256: str) -> bool:
    if not sha256:
        return True
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == sha256.lower()


def _note_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _note(part: Path, url: str) -> dict:
    """Which version of the file `part` is of (url, validator, total); {} if that is not known."""
    try:
        note = files.read_json(_note_file(part))
        return note if part.exists() and note["url"] == url and {"validator", "total"} <= note.keys() else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _receive(part: Path, url: str, expected: int | None, timeout: float, progress: bool) -> None:
    """Receive what `part` lacks; an error of requests or urllib3 if that breaks off."""
    note = _note(part, url)
    have = part.stat().st_size if note.get("validator") else 0
    if have and have == note["total"] and expected in (None, have):
        return  # only the renaming was missed
    headers = {"Accept-Encoding": "identity"}  # sizes and positions are to count the file's own bytes
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": note["validator"]}
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
        if response.status_code >= 500 or response.status_code in (408, 429):
            response.raise_for_status()
        if have and response.status_code in (206, 416) and not _continues(response, have, note):
            _note_file(part).unlink()  # a range of another version, or beyond the end: start over
            return _receive(part, url, expected, timeout, progress)
        if response.status_code != 200 and not (have and response.status_code == 206):
            raise InputError(
                f"{url}: the server answered {response.status_code} {response.reason}; check the address"
            )
        if response.headers.get("Content-Type", "").startswith("text/html"):  # must not replace a good .part
            raise InputError(f"{url}: the server sent a web page, not an archive; open it in a browser")
        if response.status_code == 200:
            have, length = 0, response.headers.get("Content-Length", "")
            note = {
                "url": url,
                "validator": _validator(response),
                "total": int(length) if length.isdecimal() else expected,
            }
        if expected not in (None, note["total"]):
            raise InputError(f"{url}: has {note['total']} bytes, expected {expected}; check the address")
        if not have:
            part.write_bytes(b"")  # before the note, so that the note never describes other bytes
            files.write_json(_note_file(part), note)
        bar = tqdm(
            desc=part.stem, total=note["total"], initial=have, unit="B", unit_scale=True, disable=not progress
        )
        with open(part, "ab") as file, bar:
            # raw: some servers call a .tar.gz "Content-Encoding: gzip", and requests would unpack it; read1:
            # what has come, so that a server that sends a byte now and then is noticed
            started, since = time.monotonic(), 0
            while chunk := response.raw.read1(2**16, decode_content=False):
                bar.update(file.write(chunk))
                since += len(chunk)
                if file.tell() > (note["total"] or LARGEST):
                    raise InputError(
                        f"{url}: sends more than {note['total'] or LARGEST} bytes; check the address"
                    )
                if (seconds := time.monotonic() - started) > 2 * timeout:
                    if since < SLOWEST * seconds:
                        raise requests.RequestException(f"it came at {since / seconds:.0f} bytes a second")
                    started, since = time.monotonic(), 0
    have = part.stat().st_size
    if note["total"] not in (None, have):
        raise requests.RequestException(f"the connection ended at {have} of {note['total']} bytes")


def _validator(response: requests.Response) -> str | None:
    """Something that proves the same bytes: a strong ETag, or without any ETag a date of change.

    The date counts only if it was a minute old when it was sent: within its second a file may have changed
    twice (RFC 9110, section 8.8.2.2).
    """
    etag, date = response.headers.get("ETag", ""), response.headers.get("Last-Modified")
    if etag:
        return None if etag.startswith("W/") else etag  # a weak one says that the bytes may differ
    try:
        sent, changed = map(parsedate_to_datetime, (response.headers["Date"], date or ""))
        return date if (sent - changed).total_seconds() >= 60 else None
    except (KeyError, TypeError, ValueError):
        return None


def _continues(response: requests.Response, have: int, note: dict) -> bool:
    """Whether a 206 goes on where the .part ends; some servers heed Range but not If-Range."""
    span = response.headers.get("Content-Range", "")
    return (
        span.startswith(f"bytes {have}-")
        and span.endswith(("/*", f"/{note['total']}"))
        and _validator(response) == note["validator"]
    )
