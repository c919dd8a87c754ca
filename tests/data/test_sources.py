"""Folders and archives: the same images from each, damage named, and the fingerprint."""

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import tarfile
import tracemalloc
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest

from bcdlib.data import breakhis, decode, sources
from bcdlib.errors import InputError
from tests.faulty import encode

KINDS = ["folder", "flattened", "nested", "zip", "deflated.zip", "tar", "tar.gz", "tgz"]


def pack(folder, archive, compression=zipfile.ZIP_STORED):
    """Pack a folder's files with the standard library, in reversed order."""
    files = sorted((file for file in folder.rglob("*") if file.is_file()), reverse=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", compression) as out:
            for file in files:
                out.write(file, file.relative_to(folder).as_posix())
    else:
        with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as out:
            for file in files:
                out.add(file, file.relative_to(folder).as_posix())
    return archive


@pytest.fixture(scope="module")
def places(tiny, tmp_path_factory):
    """The tiny data set in all shapes that a copy of BreakHis is found in."""
    root = tmp_path_factory.mktemp("places")
    found = {"folder": tiny}
    for kind in ("flattened", "nested"):
        found[kind] = root / kind
        for number, file in enumerate(sorted(tiny.rglob("*.png"))):
            deeper = () if kind == "flattened" else ("more", file.parent.name)[: number % 3]
            place = found[kind].joinpath(*deeper)
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, place)
    found["deflated.zip"] = pack(tiny, root / "deflated.zip", zipfile.ZIP_DEFLATED)
    for suffix in ("zip", "tar", "tar.gz", "tgz"):
        found[suffix] = pack(tiny, root / f"tiny.{suffix}")
    return found


@pytest.fixture(scope="module")
def truth(tiny):
    return {file.name: file.read_bytes() for file in tiny.rglob("*.png")}


@pytest.mark.parametrize("kind", KINDS)
def test_same_names_and_bytes(kind, places, truth):
    source = sources.open_source(str(places[kind]))
    names = source.names()
    assert names == sorted(names) and len(names) == len(truth) == 96
    assert {name.rsplit("/", 1)[-1] for name in names} == set(truth)
    read = list(source.read(names))
    assert sorted(name for name, _, _ in read) == names
    assert all(reason == "" for _, _, reason in read)
    assert {name.rsplit("/", 1)[-1]: content for name, content, _ in read} == truth
    assert set(breakhis.scan_breakhis(source).images["filename"]) == set(truth)


@pytest.mark.parametrize("kind", KINDS)
def test_read_gives_only_what_was_asked_for(kind, places, truth):
    source = sources.open_source(places[kind])
    wanted = source.names()[10:60:7]
    read = {name: content for name, content, _ in source.read(wanted)}
    assert set(read) == set(wanted)
    assert all(content == truth[name.rsplit("/", 1)[-1]] for name, content in read.items())


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_macos_shadow_files_and_other_files_are_left_out(kind, tiny, tmp_path):
    folder = tmp_path / "in"
    for file in sorted(tiny.rglob("*.png"))[:3]:
        for place in (f"x/{file.name}", f"x/._{file.name}", f"__MACOSX/{file.name}"):
            place = folder / place
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    (folder / "x" / "readme.txt").write_text("text")
    (folder / "x" / "UPPER.PNG").write_bytes(b"")
    path = folder if kind == "folder" else pack(folder, tmp_path / f"in.{kind}")
    expected = [f"x/{file.name}" for file in sorted(tiny.rglob("*.png"))[:3]]
    assert sources.open_source(path).names() == sorted([*expected, "x/UPPER.PNG"])


def test_paths_that_cannot_be_a_source(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.rar").write_bytes(b"Rar!")
    cases = {"nowhere": "no such", "nowhere.zip": "no such", "empty": "empty", "data.rar": ".zip"}
    for name, words in cases.items():
        with pytest.raises(InputError) as caught:
            sources.open_source(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and words in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Archives of 4 members of 300 kB that do not compress: nearly every place is inside a member."""
    root = tmp_path_factory.mktemp("large")
    (root / "in").mkdir()
    for number in range(4):
        content = np.random.default_rng(number).bytes(300_000)
        (root / "in" / f"SOB_B_A-99-10001-40-{number:03d}.png").write_bytes(content)
    return {kind: pack(root / "in", root / f"large.{kind}") for kind in ("zip", "tar", "tar.gz")}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.45, 0.6, 0.95])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archive_cut_off_inside_a_picture(kind, share, large, tmp_path):
    content = large[kind].read_bytes()
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError) as caught:
        breakhis.scan_breakhis(sources.open_source(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("extra", [0, 100])
def test_tar_cut_off_before_or_in_the_header_of_a_member(extra, places, tmp_path):
    with tarfile.open(places["tar"]) as archive:
        offset = archive.getmembers()[40].offset
    path = tmp_path / "cut.tar"
    path.write_bytes(places["tar"].read_bytes()[: offset + extra])
    with pytest.raises(InputError, match=re.escape(str(path))):
        sources.open_source(path).names()


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_text_in_place_of_an_archive(kind, tmp_path):
    path = tmp_path / f"page.{kind}"
    path.write_text("<html>Sign in to download</html>\n" * 40)
    with pytest.raises(InputError) as caught:
        sources.open_source(path).names()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["zip", "deflated.zip"])
def test_damaged_member_of_a_zip_is_told_and_the_others_are_read(kind, places, truth, tmp_path):
    with zipfile.ZipFile(places[kind]) as archive:
        victim = archive.infolist()[50]
    content = bytearray(places[kind].read_bytes())
    start = victim.header_offset + 30 + len(victim.filename) + 10
    content[start : start + 500] = b"\xff" * 500
    path = tmp_path / "damaged.zip"
    path.write_bytes(content)
    check_one_unreadable(path, victim.filename, truth)


def test_encoded_member_that_is_no_deflate_stream(places, truth, tmp_path):
    path = tmp_path / "damaged.zip"
    with zipfile.ZipFile(places["deflated.zip"]) as archive:
        victim = archive.infolist()[50]
    content = bytearray(places["deflated.zip"].read_bytes())
    start = victim.header_offset + 30 + len(victim.filename)
    content[start] = 0x07  # block type 3 does not exist (RFC 1951, 3.2.3)
    path.write_bytes(content)
    check_one_unreadable(path, victim.filename, truth)


def check_one_unreadable(path, victim, truth):
    source = sources.open_source(path)
    read = {name: (content, reason) for name, content, reason in source.read(source.names())}
    assert len(read) == 96
    assert read[victim][0] is None and read[victim][1]
    del read[victim]
    assert all(content == truth[name.rsplit("/", 1)[-1]] for name, (content, _) in read.items())


def test_file_that_vanished_is_told(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "copy")
    source = sources.open_source(tmp_path / "copy")
    names = source.names()
    (tmp_path / "copy" / names[5]).unlink()
    read = {name: (content, reason) for name, content, reason in source.read(names)}
    assert read[names[5]][0] is None and "no such file" in read[names[5]][1]
    assert sum(content is None for content, _ in read.values()) == 1


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_too_large_a_file_is_not_read(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LARGEST_IMAGE", 1000)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "fits.png").write_bytes(b"x" * 1000)
    (tmp_path / "in" / "large.png").write_bytes(b"x" * 1001)
    path = tmp_path / "in" if kind == "folder" else pack(tmp_path / "in", tmp_path / f"in.{kind}")
    source = sources.open_source(path)
    read = {name: (content, reason) for name, content, reason in source.read(["fits.png", "large.png"])}
    assert read["fits.png"] == (b"x" * 1000, "")
    assert read["large.png"][0] is None and "larger" in read["large.png"][1]


def test_fingerprint_of_a_folder(tiny, tmp_path):
    first, second = tmp_path / "one", tmp_path / "deep" / "two"
    shutil.copytree(tiny, first)
    shutil.copytree(first, second)
    before = sources.open_source(first).fingerprint()
    assert before == sources.open_source(first).fingerprint() == sources.open_source(second).fingerprint()

    seen = {before}
    file = second / sources.open_source(second).names()[17]
    status = file.stat()

    def now():
        return sources.open_source(second).fingerprint()

    times = sources.open_source(second).modified()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    seen.add(now())
    assert sources.open_source(second).modified() != times
    file.write_bytes(file.read_bytes() + b"x")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    seen.add(now())
    file.rename(file.with_name("renamed.png"))
    seen.add(now())
    file.with_name("renamed.png").unlink()
    seen.add(now())
    assert len(seen) == 4  # the time of change alone is none
    assert sources.open_source(first).fingerprint() == before


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_fingerprint_of_an_archive(kind, tiny, places, tmp_path):
    copy = tmp_path / f"elsewhere.{kind}"
    shutil.copy2(places[kind], copy)
    before = sources.open_source(places[kind]).fingerprint()
    assert sources.open_source(copy).fingerprint() == before
    status = copy.stat()
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    assert sources.open_source(copy).fingerprint() == before and sources.open_source(copy).modified() == ""
    folder = shutil.copytree(tiny, tmp_path / "tiny")
    next(folder.rglob("*.png")).open("ab").write(b"x")
    assert sources.open_source(pack(folder, copy)).fingerprint() != before


def test_the_names_in_a_tar_archive_are_read_once(tiny, tmp_path, monkeypatch):
    archive = shutil.make_archive(str(tmp_path / "tiny"), "gztar", tiny)
    first = sources.open_source(archive, tmp_path / "root" / "listings")
    names = first.names()
    assert names == sources.open_source(archive).names() and len(names) == 96
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)
        again = sources.open_source(archive, tmp_path / "root" / "listings")
        assert again.names() == names and again.left_out == first.left_out
    for file in (tmp_path / "root" / "listings").iterdir():
        file.write_text("{")  # cut off by something: read again
    assert sources.open_source(archive, tmp_path / "root" / "listings").names() == names
    with tarfile.open(archive, "w:gz") as other:
        other.add(next(tiny.rglob("*.png")), "other.png")
    assert sources.open_source(archive, tmp_path / "root" / "listings").names() == ["other.png"]


def tar_of(tmp_path, *members):
    """A tar.gz of (header, data); the headers as tarfile packs them, or bytes as they are."""
    with gzip.open(tmp_path / "a.tar.gz", "wb") as out:
        for header, data in members:
            out.write(header if isinstance(header, bytes) else header.tobuf(tarfile.GNU_FORMAT))
            out.write(data + bytes(-len(data) % 512))
        out.write(bytes(1024))
    return tmp_path / "a.tar.gz"


def header(name, size, **facts):
    made = tarfile.TarInfo(name)
    made.size = size
    for key, value in facts.items():
        setattr(made, key, value)
    return made


def extended(**facts):
    """A pax extension, whose map of a sparse file (version 1.0) stands before its data."""
    return tarfile.TarInfo._create_pax_generic_header(facts, tarfile.XHDTYPE, "utf-8")


def test_maps_of_sparse_files_are_not_read(tmp_path):
    """A few hundred bytes of them unpack to gigabytes; the other members are used."""
    good = (header("a.png", 4), b"good")
    pax = extended(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "b.png"})
    source = sources.open_source(
        tar_of(tmp_path, good, (pax, b""), (header("b.png", 512), b"9" * 512), (header("c.png", 4), b"also"))
    )
    assert source.names() == ["a.png", "c.png"] and dict(source.left_out)["b.png"].endswith("not an image")
    assert [content for _, content, _ in source.read(["a.png", "c.png"])] == [b"good", b"also"]
    old = bytearray(header("b.png", 0, type=tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    old[482] = 1  # the map goes on in the next block, and there again
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old)
    more = bytearray(512)
    more[504] = 1
    packed = tar_of(tmp_path, good, (bytes(old), bytes(more) * 200_000))
    tracemalloc.start()
    with pytest.raises(InputError, match="a.tar.gz: not a readable tar archive .*sparse file of many pieces"):
        sources.open_source(packed).names()
    assert tracemalloc.get_traced_memory()[1] < 30 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_damaged_first_copy_does_not_hide_a_sound_one(tmp_path, kind):
    picture = encode(np.full((5, 6, 3), 77, "uint8"))
    bad, archive = picture[:-30], tmp_path / f"a.{kind}"
    members = [("a.png", bad), ("a.png", picture), ("b.png", bad), ("b.png", bad), ("c.png", picture)]
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as out, warnings.catch_warnings(action="ignore"):
            for name, content in members:
                out.writestr(name, content)
    else:
        with tarfile.open(archive, "w") as out:
            for name, content in members:
                out.addfile(header(name, len(content)), io.BytesIO(content))
    source = sources.open_source(archive)
    images = pd.DataFrame({"filename": source.names(), "path": source.names()})
    found = {
        name: (array, reason) for name, array, reason in decode.decode_all(source, images, progress=False)
    }
    assert set(found) == {"a.png", "b.png", "c.png"}
    assert (found["a.png"][0] == 77).all() and (found["c.png"][0] == 77).all()
    assert found["b.png"][0] is None and found["b.png"][1]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives_of_the_other_suffix(places, truth, tmp_path, kind):
    """What an archive is, is told by how it begins: some are renamed, and a browser may do so too."""
    other = tmp_path / ("set.tar.gz" if kind == "zip" else "set.zip")
    shutil.copy(places[kind], other)
    source = sources.open_source(other)
    assert source.kind == kind[:3]
    assert {name.rsplit("/", 1)[-1]: content for name, content, _ in source.read(source.names())} == truth


def test_what_lies_near_a_path_at_which_nothing_is(tmp_path):
    (tmp_path / "Slides.ZIP").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "away")
    (tmp_path / "set.7z").write_bytes(b"7z")
    for name, words in {
        "slides": "no such file or folder; there is Slides.ZIP",
        "link": f"a link that leads nowhere, to {tmp_path / 'away'}",
        "nothing": "no such file or folder; point --data",
        "set.7z": "neither a folder nor one of .zip, .tar, .tar.gz, .tgz; unpack it",
    }.items():
        with pytest.raises(InputError, match=re.escape(f"{tmp_path / name}: {words}")):
            sources.open_source(tmp_path / name)


def test_the_checksum_at_the_end_of_a_tar_gz_is_looked_at(places, tmp_path):
    """Images without checksums of their own, as TIFF, would pass for sound; it stands behind the filling."""
    content = bytearray(places["tar.gz"].read_bytes())
    content[-6] ^= 1
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(
        InputError, match="a.tar.gz: not a readable tar archive .*; remove it and download it"
    ):
        sources.open_source(tmp_path / "a.tar.gz").names()


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz"])
@pytest.mark.parametrize(
    "start, kind",
    [
        (b"7z\xbc\xaf\x27\x1c\0\4", "a 7-Zip archive; unpack it"),
        (b"Rar!\x1a\x07\1\0", "a RAR archive; unpack it"),
        (lzma.compress(b"a" * 999), "a file packed by xz; unpack it"),
        (bz2.compress(b"a" * 999), "a file packed by bzip2; unpack it"),
        (b"(\xb5/\xfd", "a file packed by Zstandard; unpack it"),
        (b"<!DOCTYPE html><html>", "a web page; download it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a pointer of Git LFS; fetch the file itself: git lfs pull",
        ),
    ],
)
def test_other_files_under_an_archives_name_are_told(start, kind, suffix, tmp_path):
    (tmp_path / f"a{suffix}").write_bytes(start + bytes(40))
    with pytest.raises(InputError) as error:
        sources.open_source(tmp_path / f"a{suffix}")
    assert str(error.value) == f"{tmp_path / f'a{suffix}'}: not a zip or tar archive but {kind}"
