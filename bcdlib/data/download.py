"""Download an archive so that an interrupted download goes on where it stopped."""

import errno
import json
import os
import re
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
import urllib3
from tqdm import tqdm

from bcdlib.errors import InputError, one_line
from bcdlib.runs.files import write_json
from bcdlib.runs.places import drive_folder, mount_drive

ARCHIVE_URL = "http://www.inf.ufpr.br/vri/databases/BreaKHis_v1.tar.gz"


LICENCE = "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/): share and adapt it, with attribution"


CITATION = (
    "Spanhol, Oliveira, Petitjean, Heutte: A Dataset for Breast Cancer Histopathological Image "
    "Classification, IEEE TBME 63(7):1455-1462, 2016, doi:10.1109/TBME.2015.2496264"
)


_CHUNK = 2**16  # what a reset connection can cost: a chunk that was begun is lost


_PAUSE = 1.0  # seconds before the second attempt; doubled for each further one


_LONGEST_PAUSE = 15.0


def download_archive(
    folder, url=ARCHIVE_URL, expected_size=None, *, attempts=5, progress=True, timeout=30
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
        except (
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.MissingSchema,
        ) as error:
            raise InputError(f"{url}: not an address to download from ({one_line(error)})") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, _Broken) as error:
            reason = one_line(error)
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
            write_json(self.note_file, note)
        with (
            open(self.part, "ab") as file,
            tqdm(
                total=self.total,
                initial=self.have,
                desc=self.target.name,
                unit="B",
                unit_scale=True,
                disable=not progress,
            ) as bar,
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
    return (
        response.status_code == 206
        and first == have
        and same_version
        and (None in (total, note["total"]) or total == note["total"])
    )
