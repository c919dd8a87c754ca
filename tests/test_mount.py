"""Places, finding the data set, what 01_mount records, and a download that survives broken connections."""

import errno
import http.server
import io
import sys
import tarfile
import threading
import types
import zipfile

import cv2
import numpy as np
import pytest

from bcdlib import mount
from bcdlib.data import breakhis, download, sources, synthetic
from bcdlib.errors import InputError
from bcdlib.runs.places import cache_root, home_folder, in_colab, mount_drive

NAMES = ["SOB_B_A-14-22549AB-40-001.png", "SOB_M_DC-14-2523-100-002.png", "SOB_M_LC-14-13412-400-003.png"]
LAYOUTS = {
    "official": breakhis.official_path,
    "flattened": str,
    "nested": lambda name: f"a/b/c/{name[:5]}/{name}",
}
PNG = cv2.imencode(".png", np.full((4, 6, 3), 200, np.uint8))[1].tobytes()
PAYLOAD = np.random.default_rng(0).bytes(1_000_000)


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    for name in ("BCD_DRIVE", "BCD_HOME", "BCD_CACHE", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "_PAUSE", 0.01)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """A stand-in for google.colab; its list `calls` gets each argument of drive.mount."""
    calls = []

    def fake_mount(folder):
        calls.append(folder)
        (tmp_path / "drive" / "MyDrive").mkdir(parents=True)

    drive = types.ModuleType("google.colab.drive")
    drive.mount = fake_mount
    module = types.ModuleType("google.colab")
    module.drive, module.calls = drive, calls
    google = types.ModuleType("google")
    google.colab = module
    monkeypatch.setitem(sys.modules, "google", google)
    monkeypatch.setitem(sys.modules, "google.colab", module)
    monkeypatch.setitem(sys.modules, "google.colab.drive", drive)
    monkeypatch.setenv("BCD_DRIVE", str(tmp_path / "drive"))
    monkeypatch.setenv("BCD_NEAR", str(tmp_path / "near"))  # mount sets it, for good
    return module


def make(path, layout="official"):
    """The three images as a folder or archive at `path`."""
    members = [LAYOUTS[layout](name) for name in NAMES]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for member in members:
                archive.writestr(member, PNG)
    elif path.name.endswith((".tar", ".tar.gz", ".tgz")):
        with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
            for member in members:
                info = tarfile.TarInfo(member)
                info.size = len(PNG)
                archive.addfile(info, io.BytesIO(PNG))
    else:
        for member in members:
            (path / member).parent.mkdir(parents=True, exist_ok=True)
            (path / member).write_bytes(PNG)
    return path


# ---------------------------------------------------------------- the run folder


@pytest.mark.parametrize(
    "data, name",
    [
        ("synthetic", "synthetic-demo"),
        ("some/BreaKHis_v1.tar.gz", "BreaKHis_v1-demo"),
        ("x.TGZ", "x-demo"),
        ("a/b.zip", "b-demo"),
        ("folder/v1.5/", "v1.5-demo"),
        ("", "BreaKHis_v1-demo"),
    ],
)
def test_run_folder_name(tmp_path, data, name):
    assert mount.open_run(data=data).folder == tmp_path / "runs" / name


def test_run_folder_given(tmp_path):
    assert mount.open_run(out=tmp_path / "mine").folder == tmp_path / "mine"


def test_colab_mounts_once_and_runs_land_on_drive(colab, tmp_path):
    assert in_colab()
    run = mount.open_run(data="synthetic", profile="paper")
    mine = tmp_path / "drive" / "MyDrive"
    assert run.folder == mine / "bcdlib" / "synthetic-paper" and run.folder.is_dir()
    assert mount_drive() == mine / "bcdlib"
    assert colab.calls == [str(tmp_path / "drive")]
    assert cache_root() == mine / "bcdlib" / "cache"


def test_colab_mount_fails(colab):
    def refuse(folder):
        raise ValueError("mount\nfailed")

    colab.drive.mount = refuse
    with pytest.raises(InputError, match=r"could not be mounted \(mount failed\)"):
        mount.open_run()
    colab.drive.mount = lambda folder: None  # says nothing, mounts nothing
    with pytest.raises(InputError, match="could not be mounted"):
        mount_drive()


# ---------------------------------------------------------------- the data set


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["copy", "copy.zip", "copy.tar", "copy.tar.gz", "copy.tgz"])
def test_find_path(tmp_path, name, layout):
    source = mount.find_data(make(tmp_path / name, layout))
    assert breakhis.scan_breakhis(source).images["filename"].tolist() == sorted(NAMES)


def test_find_missing_and_empty(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        mount.find_data(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        mount.find_data("empty")


@pytest.mark.parametrize("name", ["BreaKHis_v1.tar.gz", "data/breakhis_V1 (1).zip", "data/BREAKHIS_v1"])
def test_search(tmp_path, name):
    (tmp_path / "BreaKHis_v1.tar.gz.part").write_bytes(b"half")
    make(tmp_path / name)
    assert mount.find_data("").path == tmp_path / name


def test_search_prefers_archive_and_names_places(tmp_path):
    (tmp_path / "BreaKHis_v1").mkdir()
    with pytest.raises(InputError, match=f"{tmp_path}, {tmp_path / 'data'}"):
        mount.find_data("")
    make(tmp_path / "BreaKHis_v1")
    make(tmp_path / "BreaKHis_v1.zip")
    assert mount.find_data("").path.name == "BreaKHis_v1.zip"


def test_find_on_drive(colab, tmp_path):
    with pytest.raises(InputError, match="BCDataset"):
        mount.find_data("")
    mine = tmp_path / "drive" / "MyDrive"
    make(mine / "papers" / "set.zip")
    assert mount.find_data("papers/set.zip").path == mine / "papers" / "set.zip"
    make(mine / "BCDataset" / "BreaKHis_v1")
    assert mount.find_data("").path == mine / "BCDataset" / "BreaKHis_v1"


def test_search_in_colab_skips_run_folders(colab, tmp_path):
    mount.open_run(data="").record(data="")
    make(tmp_path / "drive" / "MyDrive" / "bcdlib" / "BreaKHis_v1.tgz")
    assert mount.find_data("").path.name == "BreaKHis_v1.tgz"


def fake_draw(folder, seed=0, progress=True):
    make(folder)
    return folder


def test_synthetic_is_drawn_again(monkeypatch, tmp_path):
    monkeypatch.setattr(synthetic, "draw_dataset", fake_draw)
    run = mount.open_run()
    assert mount.start_run(run, seed=3, progress=False).partial
    folder = cache_root() / "synthetic-3"
    assert run.settings == {
        "data": "synthetic",
        "seed": 3,
        "source": str(folder),
        "partial": True,
        "manifest": "",
    }
    folder.rename(tmp_path / "gone")
    assert len(mount.open_data(run).names()) == 3 and mount.open_data(run).path == folder


def test_synthetic_in_colab_is_local(colab, monkeypatch, tmp_path):
    monkeypatch.setattr(synthetic, "draw_dataset", fake_draw)
    monkeypatch.setattr(mount.tempfile, "gettempdir", lambda: str(tmp_path / "local"))
    assert mount.find_data("synthetic", seed=1).path == tmp_path / "local" / "bcdlib-synthetic-1"


def test_start_and_overview(tmp_path):
    make(tmp_path / "set")
    (tmp_path / "set" / NAMES[0]).write_bytes(PNG)
    (tmp_path / "set" / "holiday.png").write_bytes(PNG)
    run = mount.open_run(data="set")
    scan = mount.start_run(run, data="set")
    assert run.images()["filename"].tolist() == scan.images["filename"].tolist() == sorted(NAMES)
    assert run.settings["source"] == str(tmp_path / "set") and run.settings["partial"] is True
    assert isinstance(mount.open_data(run), sources.FolderSource)
    present = int(breakhis.known_images()["filename"].isin(NAMES).sum())
    assert mount.overview(run, scan)["found"].tolist() == [
        str(tmp_path / "set"),
        3,
        3,
        3,
        present,
        1,
        1,
        0,
        "partial",
    ]


def test_open_data_too_early(tmp_path):
    with pytest.raises(InputError, match="01_mount"):
        mount.open_data(mount.open_run())


def test_table_i(tmp_path):
    table = mount.count_images(breakhis.known_images())
    sizes = [*breakhis.MAGNIFICATIONS, "total"]
    assert list(table.columns) == [(kind, size) for kind in ("counted", "printed") for size in sizes]
    different = table["counted"] != table["printed"]
    assert different.to_numpy().sum() == 1 and different.loc["benign", 40]
    assert table.loc["benign", ("counted", 40)] == 625 and table.loc["benign", ("printed", 40)] == 652
    run = mount.open_run(tmp_path / "run")
    run.record(manifest="")
    assert all(number in mount.counts_remark(run) for number in ("652", "625", "1995", "2480"))


# ---------------------------------------------------------------- the download


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
        if asked and (self.headers.get("If-Range") == site.validators.get("ETag") or not site.heeds_if_range):
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


@pytest.fixture
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.payload, server.validators, server.extra = PAYLOAD, {"ETag": '"one"'}, {}
    server.ranges = server.heeds_if_range = server.length = True
    server.seen, server.cuts, server.statuses, server.always, server.early = [], [], [], None, 0
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


def test_fetch_to_drive_mounts_it_first(site, colab, tmp_path):
    path = download.download_archive(home_folder(), url=site.url, progress=False)
    assert colab.calls and path == tmp_path / "drive" / "MyDrive" / "bcdlib" / "set.tar.gz"


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

    monkeypatch.setattr(download, "write_json", full)
    with pytest.raises(InputError, match="disk is full.*resumes"):
        get(site)
    assert not (tmp_path / "down" / "set.tar.gz").exists()
