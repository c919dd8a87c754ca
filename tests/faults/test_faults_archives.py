"""Archives of strangers: nothing leaves the cache, memory is bounded, one line says what is wrong."""

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.faulty import encode, png

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = [f"SOB_{letter}-98-{50000 + number}-40-001.png" for number in range(3) for letter in ("B_A", "M_DC")]
MEMORY = 700 * 2**20  # bytes, all that the process may ever have; it has about 120 MiB when it starts

# What a stage 2 does with an archive, in a process whose memory is measured
WORK = """
import json, resource, sys
sys.path.insert(0, sys.argv[1])
from bcdlib.data import breakhis, cache, sources
from bcdlib.errors import InputError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    source = sources.open_source(sys.argv[2])
    scan = breakhis.scan_breakhis(source)
    made = cache.build_cache(source, scan.images, (36, 24), root=sys.argv[3], progress=False)
    answer = {"used": made.images["path"].tolist(), "skipped": made.skipped.values.tolist()}
    answer["reasons"] = scan.reasons
except InputError as error:
    answer = {"error": str(error)}
answer["grown"] = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(json.dumps(answer))
"""


def pictures() -> dict[str, bytes]:
    rng = np.random.default_rng(5)
    return {f"a/{name}": encode(rng.integers(0, 256, (24, 36, 3), dtype="uint8")) for name in NAMES}


def read(archive, tmp_path) -> dict:
    """What becomes of an archive; checks that nothing but the cache was written."""
    home, before = tmp_path / "home", everything(tmp_path)
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", WORK, ROOT, archive, tmp_path / "cache"],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "HOME": str(home), "TMPDIR": str(home)},
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    new = {
        path
        for path in everything(tmp_path) - before
        if path.relative_to(tmp_path).parts[0] not in ("cache", "home")
    }
    locks = {path for path in everything(home) if path.match("bcdlib-*") or path.match("bcdlib-*/*.lock")}
    assert not new and not everything(home) - locks
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["grown"] < MEMORY, f"{answer['grown'] >> 20} MiB"
    assert "error" not in answer or (
        str(archive) in answer["error"] and len(answer["error"].splitlines()) == 1
    )
    return answer


def everything(folder) -> set[Path]:
    return set(folder.rglob("*"))


def tar(path, members, mode="w") -> Path:
    """``members``: TarInfo, or (name, content)."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def special(name, kind, link="") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def outside(tmp_path) -> list[str]:
    name = NAMES[0].replace("001", "900")
    return [
        f"/{tmp_path}/evil/{name}",
        f"../../evil/{name.replace('900', '901')}",
        f"a/../../../../../..{tmp_path}/{name.replace('900', '902')}",
    ]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_paths_that_lead_out_links_and_devices(kind, tmp_path, record_property):
    evil = pictures()[f"a/{NAMES[0]}"]
    members = [*pictures().items(), *((name, evil) for name in outside(tmp_path))]
    links = [f"b/SOB_M_DC-98-51000-40-{number:03d}.png" for number in range(5)]
    path = tmp_path / f"hostile.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members:
                archive.writestr(name, content)
            for name, mode in zip(links, (0o120777, 0o020666, 0o010666, 0o060666, 0o140666)):
                info = zipfile.ZipInfo(name)
                info.create_system, info.external_attr = 3, mode << 16
                archive.writestr(info, "/etc/passwd")
            archive.writestr("b/inner.zip", b"PK")
    else:
        kinds = (
            (tarfile.SYMTYPE, "/etc/passwd"),
            (tarfile.LNKTYPE, f"a/{NAMES[0]}"),
            (tarfile.CHRTYPE, ""),
            (tarfile.FIFOTYPE, ""),
            (tarfile.DIRTYPE, ""),
        )
        tar(
            path,
            [*members, *(special(name, *one) for name, one in zip(links, kinds)), ("b/inner.zip", b"PK")],
            "w:gz",
        )
    answer = read(path, tmp_path)
    reasons = dict(answer["reasons"])
    assert sorted(answer["used"]) == sorted(pictures())
    assert {name for name, _ in members[len(NAMES) :]} | set(links) | {"b/inner.zip"} == set(reasons)
    assert all("leads out" in reasons[name] for name in outside(tmp_path))
    assert all("not an image" in reasons[name] for name in links)
    record_property("faults", {"kind": "archives", "tried": 9, "survived": 0, "reported": 9, "lost": 0})


@pytest.mark.parametrize(
    "method",
    [
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
        *(pytest.param(one, marks=pytest.mark.thorough) for one in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)),
    ],
)
def test_zip_that_lies_about_a_member(method, tmp_path, record_property):
    """A bomb: declared as 60 kB, unpacks to 512 MiB. Also a path twice, and one larger than any image."""
    path, bomb, large = (
        tmp_path / "bomb.zip",
        "a/SOB_M_DC-98-52000-40-001.png",
        "a/SOB_M_DC-98-52000-40-002.png",
    )
    zeros = bytes(2**20)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in pictures().items():
            archive.writestr(name, content)
        for name, size in ((bomb, 64 if method == zipfile.ZIP_STORED else 512), (large, 65)):
            with archive.open(name, "w") as member:
                for _ in range(size):
                    member.write(zeros)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(f"a/{NAMES[0]}", encode(np.zeros((24, 36, 3), "uint8")))
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(bomb.encode()))
    content[entry + 24 : entry + 28] = struct.pack("<L", 60_000)
    path.write_bytes(content)
    answer = read(path, tmp_path)
    skipped = dict(answer.get("skipped", ()))
    if method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert "another method than deflate" in answer["error"]
        record_property("faults", {"kind": "archives", "tried": 1, "survived": 0, "reported": 1, "lost": 0})
        return
    assert sorted(answer["used"]) == sorted(pictures())
    assert "64 MiB" in skipped[large.split("/")[1]] and skipped[bomb.split("/")[1]]
    assert [f"a/{NAMES[0]}", "comes twice in the archive; the first that is sound is used"] in answer[
        "reasons"
    ]
    record_property("faults", {"kind": "archives", "tried": 3, "survived": 0, "reported": 3, "lost": 0})


def test_encrypted_zip(tmp_path, record_property):
    path = tmp_path / "secret.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in pictures().items():
            archive.writestr(name, content)
    content = bytearray(path.read_bytes())
    for signature, flag in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(signature)
        while place >= 0:
            content[place + flag] |= 1
            place = content.find(signature, place + 4)
    path.write_bytes(content)
    error = read(path, tmp_path)["error"]
    assert "encrypted" in error and "password" in error
    record_property("faults", {"kind": "archives", "tried": 1, "survived": 0, "reported": 1, "lost": 0})


@pytest.mark.parametrize("outer", ["zip", "tar"])
def test_archive_inside_an_archive_and_nothing_else(outer, tmp_path, record_property):
    inner = tar(tmp_path / "inner.tar.gz", pictures().items(), "w:gz")
    path = tmp_path / f"outer.{outer}"
    if outer == "tar":
        tar(path, [("data/BreaKHis_v1.tar.gz", inner.read_bytes())])
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(inner, "data/BreaKHis_v1.tar.gz")
    error = read(path, tmp_path)["error"]
    assert "data/BreaKHis_v1.tar.gz" in error and "archive inside an archive" in error
    record_property("faults", {"kind": "archives", "tried": 1, "survived": 0, "reported": 1, "lost": 0})


def bomb_of_zeros(path):
    """A .tar.gz of a few MB whose picture, name or extended header is gigabytes of zeros, or endless."""
    info = tarfile.TarInfo(NAMES[0])
    info.size = 4 * 2**30
    return info.tobuf(tarfile.GNU_FORMAT), 4096


def long_name(path):
    info = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    info.size = 2 * 2**30
    return info.tobuf(tarfile.GNU_FORMAT), 2048


def long_header(path):
    info = special("x", tarfile.XHDTYPE)
    info.size = 2 * 2**30
    return info.tobuf(tarfile.USTAR_FORMAT), 2048


def endless(path):
    info = tarfile.TarInfo(NAMES[0])
    info.size = 2**62
    return info.tobuf(tarfile.GNU_FORMAT), 1


def negative(path):
    header = bytearray(tarfile.TarInfo(NAMES[0]).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024 in base 256
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))
    return bytes(header), 1


@pytest.mark.parametrize(
    "make",
    [
        *(pytest.param(one, marks=pytest.mark.thorough) for one in (bomb_of_zeros, long_name, long_header)),
        endless,
        negative,
    ],
)
def test_tar_bombs(make, tmp_path, record_property):
    header, size = make(tmp_path)
    path = tmp_path / "bomb.tar.gz"
    zeros = bytes(2**20)
    with gzip.open(path, "wb", compresslevel=1) as out:
        for name, content in pictures().items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.write(info.tobuf() + content + bytes(-len(content) % 512))
        out.write(header)
        for _ in range(size):
            out.write(zeros)
    error = read(path, tmp_path)["error"]
    assert "would unpack to more" in error or "not a readable tar archive" in error
    record_property("faults", {"kind": "archives", "tried": 1, "survived": 0, "reported": 1, "lost": 0})


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_million_members(kind, tmp_path, record_property):
    path = tmp_path / f"million.{kind}"
    if kind == "zip":
        name = b"x" * 40
        local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, 0, 0, 0, len(name), 0) + name
        entry = (
            struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0)
            + name
        )
        directory = 1_000_000 * len(entry)
        end = struct.pack(
            "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1_000_000, 1_000_000, directory, len(local)
        )
        end += struct.pack("<4sLQL", b"PK\6\7", 0, len(local) + directory, 1)
        end += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        path.write_bytes(local + entry * 1_000_000 + end)
    else:
        header = tarfile.TarInfo("x" * 40).tobuf()
        with open(path, "wb") as out:
            packer = zlib.compressobj(1, wbits=31)
            for _ in range(1000):
                out.write(packer.compress(header * 1000))
            out.write(packer.compress(bytes(1024)) + packer.flush())
    error = read(path, tmp_path)["error"]
    assert "500000" in error and "members" in error
    record_property("faults", {"kind": "archives", "tried": 1, "survived": 0, "reported": 1, "lost": 0})


@pytest.mark.parametrize(
    "kind, shares",
    [
        ("zip", (0.1, 0.7)),
        ("tar", (0.3, 0.9)),
        ("tar.gz", (0.2, 0.99)),
        *(
            pytest.param(kind, np.linspace(0.02, 0.98, 12), marks=pytest.mark.thorough)
            for kind in ("zip", "tar", "tar.gz")
        ),
    ],
)
def test_cut_off_in_the_middle(kind, shares, tmp_path, record_property):
    whole = tmp_path / f"whole.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(whole, "w") as archive:
            for name, content in pictures().items():
                archive.writestr(name, content)
    else:
        tar(whole, pictures().items(), "w" if kind == "tar" else "w:gz")
    for share in shares:
        path = tmp_path / f"cut.{kind}"
        content = whole.read_bytes()
        path.write_bytes(
            content[: int(len(content.rstrip(b"\0")) * share)]
        )  # behind a tar's end come zeros only
        assert "download it again" in read(path, tmp_path)["error"]
    record_property(
        "faults",
        {"kind": "archives", "tried": len(shares), "survived": 0, "reported": len(shares), "lost": 0},
    )


def test_a_png_that_is_a_bomb_costs_little(tmp_path, record_property):
    path = tmp_path / "picture.zip"
    side = 60_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in pictures().items():
            archive.writestr(name, content)
        archive.writestr("a/SOB_M_DC-98-53000-40-001.png", png(side, side, 1, 0, bytes(2**25)))
    answer = read(path, tmp_path)
    assert sorted(answer["used"]) == sorted(pictures()) and "3600000000 pixels" in answer["skipped"][0][1]
    assert answer["grown"] < 200 * 2**20
    record_property("faults", {"kind": "archives", "tried": 1, "survived": 0, "reported": 1, "lost": 0})
