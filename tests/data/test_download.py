"""A download that survives broken connections, and never joins two versions of a file."""

import contextlib
import email.utils
import errno
import hashlib
import http.server
import threading
import time

import numpy as np
import pytest

from bcdlib.data import download
from bcdlib.errors import InputError

PAYLOAD = np.random.default_rng(0).bytes(1_000_000)


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "_PAUSE", 0.01)
    monkeypatch.chdir(tmp_path)


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        site = self.server
        site.seen.append(dict(self.headers))
        payload, first, status = site.payload, 0, site.statuses.pop(0) if site.statuses else 200
        # taken before the answer goes out: afterwards the test may already be setting the next one's
        cut = site.always if site.always is not None else (site.cuts.pop(0) if site.cuts else None)
        asked = self.headers.get("Range") if site.ranges and status == 200 else None
        if asked and (self.headers.get("If-Range") in site.validators.values() or not site.heeds_if_range):
            first = max(0, int(asked[len("bytes=") : -1]) - site.early)
            status = 206 if first < len(payload) else 416
        body = payload[first:] if status in (200, 206) else b""
        self.send_response(status)
        for key, value in (site.validators | site.extra).items():
            self.send_header(key, value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{len(payload) - 1}/{len(payload)}")
        if site.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])  # with a cut, the connection is closed early
        with contextlib.suppress(OSError):  # until the other side hangs up
            while site.drip and not time.sleep(site.pause):
                self.wfile.write(site.drip)


@pytest.fixture
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.payload, server.validators, server.extra = PAYLOAD, {"ETag": '"one"'}, {}
    server.ranges = server.heeds_if_range = server.length = True
    server.seen, server.cuts, server.statuses, server.always, server.early = [], [], [], None, 0
    server.drip, server.pause = b"", 0
    server.url = f"http://127.0.0.1:{server.server_address[1]}/some/set.tar.gz"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def check(path, tmp_path, payload=PAYLOAD):
    assert path == tmp_path / "down" / "set.tar.gz" and path.read_bytes() == payload
    assert [file.name for file in path.parent.iterdir()] == ["set.tar.gz"]


def get(site, **arguments):
    return download.download_archive("down", url=site.url, progress=False, timeout=5, **arguments)


def break_off(site, at=300_000):
    """One attempt that leaves a .part of `at` bytes."""
    site.cuts = [at]
    with pytest.raises(InputError, match=f"got {at} of {len(site.payload)} bytes.*resumes"):
        get(site, attempts=1)
    site.seen.clear()


def test_fetch_resumes(site, tmp_path, capsys):
    site.cuts = [200_000, 0, 300_000]
    site.extra = {"Content-Encoding": "gzip"}  # as some servers say of any .tar.gz; it must not be unpacked
    check(get(site, expected_size=len(PAYLOAD)), tmp_path)
    assert [seen.get("Range") for seen in site.seen] == [
        None,
        "bytes=200000-",
        "bytes=200000-",
        "bytes=500000-",
    ]
    assert {seen["Accept-Encoding"] for seen in site.seen} == {"identity"}
    assert "CC BY 4.0" in (text := capsys.readouterr().out) and "10.1109/TBME.2015.2496264" in text
    get(site)
    assert len(site.seen) == 4  # already there: the server is not asked
    with pytest.raises(InputError, match="remove it"):
        get(site, expected_size=7)


def test_fetch_to_drive_mounts_it_first(site, monkeypatch, tmp_path):
    calls = []

    def mount_drive():
        assert not (tmp_path / "drive").exists()
        calls.append(1)
        return tmp_path / "drive" / "MyDrive" / "bcdlib"

    monkeypatch.setenv("BCD_DRIVE", str(tmp_path / "drive"))
    monkeypatch.setattr(download.places, "mount_drive", mount_drive)
    home = tmp_path / "drive" / "MyDrive" / "bcdlib"
    path = download.download_archive(home, url=site.url, progress=False)
    assert calls and path == home / "set.tar.gz" and path.read_bytes() == PAYLOAD


def test_fetch_range_ignored(site, tmp_path):
    site.ranges, site.cuts = False, [200_000, 400_000]
    check(get(site), tmp_path)
    assert len(site.seen) == 3


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_fetch_file_changed(site, tmp_path, heeds_if_range):
    break_off(site)
    site.payload, site.validators, site.heeds_if_range = PAYLOAD[::-1], {"ETag": '"two"'}, heeds_if_range
    check(get(site), tmp_path, PAYLOAD[::-1])
    assert site.seen[0]["If-Range"] == '"one"'


def test_fetch_wrong_range_is_not_joined(site, tmp_path):
    break_off(site)
    site.early = 1000  # answers with a range that begins too early
    check(get(site), tmp_path)
    assert len(site.seen) == 2


def test_fetch_file_became_shorter(site, tmp_path):
    break_off(site)
    site.payload, site.heeds_if_range = PAYLOAD[:1000], False  # 416
    check(get(site), tmp_path, PAYLOAD[:1000])


def test_fetch_always_breaks_then_resumes(site, tmp_path):
    site.always = 100_000
    with pytest.raises(InputError, match="got 300000 of 1000000 bytes.*calling again resumes"):
        get(site, attempts=3)
    assert not (tmp_path / "down" / "set.tar.gz").exists()
    assert (tmp_path / "down" / "set.tar.gz.part").read_bytes() == PAYLOAD[:300_000]
    site.always = None
    site.seen.clear()
    check(get(site), tmp_path)
    assert [seen["Range"] for seen in site.seen] == ["bytes=300000-"]


@pytest.mark.parametrize("validators", [{}, {"ETag": 'W/"weak"'}])
def test_fetch_without_validator_starts_over(site, tmp_path, validators):
    site.validators, site.cuts = validators, [200_000]
    check(get(site), tmp_path)
    assert [seen.get("Range") for seen in site.seen] == [None, None]


def changed(seconds_ago):
    return {"Last-Modified": email.utils.formatdate(time.time() - seconds_ago, usegmt=True)}


@pytest.mark.parametrize(
    "validators, resumes",
    [
        (lambda: changed(3600), True),
        (lambda: changed(5), False),  # within its second a file may change twice
        (lambda: {"ETag": 'W/"weak"', **changed(3600)}, False),
        (lambda: {"Last-Modified": "yesterday"}, False),
    ],
)
def test_fetch_joins_only_what_a_strong_validator_vouches_for(site, tmp_path, validators, resumes):
    """Without one the file may have changed in between: here it has, and the server does not say so."""
    site.validators = validators()
    break_off(site)
    site.payload = PAYLOAD if resumes else PAYLOAD[::-1]
    check(get(site), tmp_path, site.payload)
    assert site.seen[0].get("Range") == ("bytes=300000-" if resumes else None)
    assert site.seen[0].get("If-Range") == (site.validators["Last-Modified"] if resumes else None)


def test_fetch_known_checksum(site, tmp_path):
    known = hashlib.sha256(PAYLOAD).hexdigest()
    check(get(site, sha256=known.upper()), tmp_path)
    with pytest.raises(InputError, match="its SHA-256 is not 00; remove it"):
        get(site, sha256="00")
    (tmp_path / "down" / "set.tar.gz").unlink()
    site.payload = PAYLOAD[::-1]
    with pytest.raises(InputError, match="another SHA-256 than"):
        get(site, sha256=known)
    assert not (tmp_path / "down" / "set.tar.gz").exists()
    site.payload = PAYLOAD
    check(get(site, sha256=known), tmp_path)  # what was wrong is not joined to it


def test_fetch_endless(site, tmp_path, monkeypatch):
    """A server that never says how much, and never ends: neither the disk nor the day is lost."""
    monkeypatch.setattr(download, "LARGEST", 3_000_000)
    site.length, site.drip = False, bytes(2**16)
    with pytest.raises(InputError, match="sends more than 3000000 bytes; check the address"):
        get(site)
    assert len(site.seen) == 1 and not (tmp_path / "down" / "set.tar.gz").exists()
    assert (tmp_path / "down" / "set.tar.gz.part").stat().st_size < 3_200_000


def test_fetch_longer_than_announced_is_cut_at_that(site, tmp_path):
    site.drip = b"more"  # beyond Content-Length
    check(get(site), tmp_path)


def test_fetch_drop_by_drop(site, tmp_path):
    """Each byte comes in time, all of them never: that is a broken connection too."""
    site.always, site.drip, site.pause = 0, b"x", 0.1
    begun = time.monotonic()
    with pytest.raises(InputError, match="it came at .* bytes a second; calling again resumes"):
        download.download_archive("down", url=site.url, progress=False, timeout=0.5, attempts=2)
    assert time.monotonic() - begun < 10 and len(site.seen) == 2


def test_fetch_foreign_part_is_not_used(site, tmp_path):
    (tmp_path / "down").mkdir()
    (tmp_path / "down" / "set.tar.gz.part").write_bytes(b"who knows")
    check(get(site), tmp_path)


def test_fetch_complete_part_is_renamed(site, tmp_path):
    break_off(site)
    (tmp_path / "down" / "set.tar.gz.part").write_bytes(PAYLOAD)  # as if killed just before the renaming
    check(get(site), tmp_path)
    assert site.seen == []


def test_fetch_without_length(site, tmp_path):
    site.length, site.cuts = False, [200_000]  # only expected_size tells that it broke off
    check(get(site, expected_size=len(PAYLOAD)), tmp_path)


def test_fetch_wrong_size(site, tmp_path):
    with pytest.raises(InputError, match="has 1000000 bytes, expected 5"):
        get(site, expected_size=5)
    assert not (tmp_path / "down" / "set.tar.gz").exists() and len(site.seen) == 1


def test_fetch_server_errors(site, tmp_path):
    site.statuses = [503, 429]
    check(get(site), tmp_path)


def test_fetch_refused(site, tmp_path):
    site.statuses = [404]
    with pytest.raises(InputError, match="404"):
        get(site)
    assert len(site.seen) == 1
    break_off(site)
    site.ranges, site.extra = False, {"Content-Type": "text/html"}
    with pytest.raises(InputError, match="web page"):
        get(site)
    assert (tmp_path / "down" / "set.tar.gz.part").stat().st_size == 300_000


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "nonsense/x.zip", "ftp://127.0.0.1/x.zip", "http:///x"])
def test_fetch_bad_address(url):
    with pytest.raises(InputError):
        download.download_archive("down", url=url, attempts=1)


def test_fetch_nobody_there(site):
    with pytest.raises(InputError, match="got 0 bytes") as caught:
        download.download_archive("down", url="http://127.0.0.1:9/x.zip", attempts=2, timeout=2)
    assert "\n" not in str(caught.value)


def test_fetch_disk_full(site, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download.files, "write_json", full)
    with pytest.raises(InputError, match="disk is full.*resumes"):
        get(site)
    assert not (tmp_path / "down" / "set.tar.gz").exists()


def test_fetch_of_another_expected_size_does_not_resume(site, tmp_path):
    break_off(site)
    with pytest.raises(InputError, match="has 1000000 bytes, expected 7"):
        get(site, expected_size=7)
    assert (tmp_path / "down" / "set.tar.gz.part").stat().st_size == 300_000
    check(get(site), tmp_path)


def test_fetch_where_no_folder_can_be(site, tmp_path):
    (tmp_path / "down").write_text("a file\n")
    with pytest.raises(InputError, match="cannot write there"):
        get(site)
