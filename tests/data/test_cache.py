"""The cache: its pixels, what is skipped, and that it is whole or not there."""

import io
import json
import os
import platform
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bcdlib import mount, preprocess
from bcdlib.data import cache, decode, sources
from bcdlib.data.breakhis import official_path, scan_breakhis
from bcdlib.data.cache import build_cache, open_cache, resized_cache
from bcdlib.errors import InputError
from bcdlib.runs.files import CACHE_TAG
from bcdlib.runs.folder import open_run_folder
from bcdlib.runs.profiles import get_profile
from tests.data.test_decode import lanczos, noise

SIZE = (24, 20)


def open_images(folder):
    source = sources.open_source(folder)
    return source, scan_breakhis(source).images


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the tiny data set that may be changed."""
    return shutil.copytree(tiny, tmp_path / "copy")


def build(folder, root, size=SIZE):
    return build_cache(*open_images(folder), size, root=root, progress=False)


def made_in(root):
    return sorted(path.name for path in root.iterdir() if path.name != CACHE_TAG)


def note_of(cache):
    (note,) = cache.folder.glob("source-*.json")
    return note.name


@pytest.fixture
def no_decoding(monkeypatch):
    def fail(content, size=None):
        raise AssertionError("decoded")

    monkeypatch.setattr(decode, "decode_image", fail)


def touch(folder, seconds=3600):
    for file in (*folder.rglob("*"), folder):
        os.utime(file, (file.stat().st_atime, file.stat().st_mtime + seconds))


def test_cache_holds_the_pixels(tiny, tmp_path):
    cache = build(tiny, tmp_path)
    assert cache.pixels.shape == (96, 20, 24, 3) and cache.pixels.dtype == np.uint8 and cache.size == SIZE
    assert cache.skipped.empty and not cache.pixels.flags.writeable
    for row, name in enumerate(cache.images["filename"]):
        with Image.open(tiny / official_path(name)) as picture:
            assert np.abs(cache.pixels[row] - lanczos(np.asarray(picture), SIZE)).max() <= 1
    again = open_cache(cache.folder)
    assert again.images.equals(cache.images) and np.array_equal(again.pixels, cache.pixels)


def test_cache_of_an_archive_is_the_same(tiny, tmp_path):
    shutil.make_archive(str(tmp_path / "tiny"), "tar", tiny)
    ours, archive = build(tiny, tmp_path / "a"), build(tmp_path / "tiny.tar", tmp_path / "b")
    assert ours.images["filename"].equals(archive.images["filename"])
    assert np.array_equal(ours.pixels, archive.pixels)


def test_second_call_does_not_decode_and_another_size_does(tiny, tmp_path, monkeypatch):
    cache = build(tiny, tmp_path)

    def fail(content, size=None):
        raise AssertionError("decoded")

    monkeypatch.setattr(decode, "decode_image", fail)
    again = build(tiny, tmp_path)
    assert again.folder == cache.folder and np.array_equal(again.pixels, cache.pixels)
    with pytest.raises(AssertionError, match="decoded"):
        build(tiny, tmp_path, (10, 10))


@pytest.mark.parametrize("kind", ["folder", "tar", "gztar", "zip"])
def test_a_second_download_is_not_decoded(kind, tiny, copy, tmp_path, request):
    """The same files with other times of change, at another place."""
    first, second = (Path(tiny), copy) if kind == "folder" else (tmp_path / "one", tmp_path / "two")
    if kind != "folder":
        first = Path(shutil.make_archive(str(first), kind, tiny))
        second = Path(shutil.copy(first, second.with_name(second.name + "".join(first.suffixes))))
    before = build(first, tmp_path / "root")
    request.getfixturevalue("no_decoding")
    touch(second)
    after = build(second, tmp_path / "root")
    assert after.folder == before.folder and after.fingerprint == before.fingerprint
    assert json.loads((after.folder / "cache.json").read_text())["made_from"] == str(second)
    assert build(second, tmp_path / "root").folder == before.folder


def test_other_content_of_the_same_size_and_name_is_another_data_set(copy, tmp_path):
    before = build(copy, tmp_path / "root")
    file = copy / official_path(before.images["filename"][40])
    content = file.read_bytes()
    changed = encode_in(len(content))
    file.write_bytes(changed)
    after = build(copy, tmp_path / "root")
    assert len(changed) == len(content) and after.fingerprint != before.fingerprint
    assert np.flatnonzero((after.pixels != before.pixels).any(axis=(1, 2, 3))).tolist() == [40]
    file.write_bytes(content)
    assert build(copy, tmp_path / "root").folder == before.folder


def encode_in(size):
    """A PNG of noise of so many bytes: a text chunk fills it up."""
    buffer = io.BytesIO()
    Image.fromarray(noise(seed=5)[:20, :20]).save(buffer, "PNG")
    fill = PngInfo()
    fill.add_text("x", "." * (size - len(buffer.getvalue()) - 14))
    buffer = io.BytesIO()
    Image.fromarray(noise(seed=5)[:20, :20]).save(buffer, "PNG", pnginfo=fill)
    return buffer.getvalue()


def test_a_folder_and_archives_of_it_are_one_data_set(tiny, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in Path(tiny).rglob("*.png"):
        shutil.copy(file, flat)
    places = [tiny, flat, *(shutil.make_archive(str(tmp_path / kind), kind, tiny) for kind in ("zip", "tar"))]
    caches = [build(place, tmp_path / "root") for place in places]
    assert len({cache.folder for cache in caches}) == 1
    other = build(flat, tmp_path / "root", (30, 20))
    assert other.fingerprint == caches[0].fingerprint and other.folder != caches[0].folder
    shutil.rmtree(tmp_path / "flat")  # the last source that was seen is asked for other sizes
    (tmp_path / "tar.tar").unlink()
    build(tiny, tmp_path / "root")
    assert resized_cache(open_cache(caches[0].folder), (12, 8)).size == (12, 8)


def test_another_size_of_images_that_have_changed(copy, tmp_path):
    before = build(copy, tmp_path / "root")
    file = copy / official_path(before.images["filename"][40])
    file.write_bytes(encode_in(len(file.read_bytes())))
    with pytest.raises(InputError, match="1 images .* have changed"):
        resized_cache(before, (12, 8))


def test_runs_and_caches_inside_the_data_are_not_data(copy, tmp_path):
    before = build(copy, tmp_path / "root")
    run = open_run_folder(copy / "runs" / "mine")
    run.record(data=str(copy))
    own = open_run_folder(copy)  # the data folder itself as a run
    own.record(data=str(copy))
    build(copy, copy / "runs" / "cache")
    for folder in (run.folder / "figures", own.folder / "figures", copy / "runs" / "cache" / "synthetic-0"):
        folder.mkdir(parents=True)
        shutil.copy(next(copy.rglob("*.png")), folder / "SOB_B_A-99-10099-40-001.png")
    source, images = open_images(copy)
    assert len(images) == 96 and source.fingerprint() == open_images(tmp_path / "copy")[0].fingerprint()
    assert build(copy, tmp_path / "root").folder == before.folder


def test_changed_source_makes_another_cache(copy, tmp_path):
    before = build(copy, tmp_path / "root")
    name = before.images["filename"][40]
    Image.fromarray(noise(seed=5)).save(copy / official_path(name), compress_level=1)
    after = build(copy, tmp_path / "root")
    assert after.folder != before.folder
    differing = (after.pixels != before.pixels).any(axis=(1, 2, 3))
    assert np.flatnonzero(differing).tolist() == [40]


def test_corrupt_image_is_skipped_and_the_others_are_unchanged(tiny, copy, tmp_path):
    names = open_images(tiny)[1]["filename"]
    cut = (copy / official_path(names[95])).read_bytes()[:900]
    bad = {names[3]: b"", names[50]: b"text", names[95]: cut}
    for name, content in bad.items():
        (copy / official_path(name)).write_bytes(content)
    cache, whole = build(copy, tmp_path / "root"), build(tiny, tmp_path / "root")
    assert set(cache.skipped["filename"]) == set(bad)
    assert cache.skipped["reason"].str.len().gt(5).all()
    assert cache.images["filename"].tolist() == [name for name in names if name not in bad]
    assert np.array_equal(cache.pixels, whole.pixels[whole.rows(cache.images["filename"])])
    with pytest.raises(InputError, match=names[3]):
        cache.rows([names[0], names[3]])
    assert sorted(file.name for file in cache.folder.iterdir()) == [
        "cache.json", "checksums.csv", "images.csv", "pixels.npy", "skipped.csv", note_of(cache)
    ]  # fmt: skip


def test_no_usable_image(copy, tmp_path):
    for file in copy.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match="none of the 96 images") as caught:
        build(copy, tmp_path / "root")
    assert str(copy) in str(caught.value)
    assert made_in(tmp_path / "root") == []


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["while images are decoded", "before the last file"])
def test_cut_off_and_called_again_gives_the_same(where, kind, tiny, tmp_path, monkeypatch):
    real, calls = decode.decode_image, []

    def stopping(content, size=None):
        calls.append(1)
        if len(calls) == 60:
            raise kind("stop")
        return real(content, size)

    def stop(path, value):
        raise kind("stop")

    with monkeypatch.context() as patch, pytest.raises(kind):
        if where == "before the last file":
            patch.setattr(cache, "write_json", stop)
        else:
            patch.setattr(decode, "decode_image", stopping)
        build(tiny, tmp_path / "cut")
    assert made_in(tmp_path / "cut") == [], "something half made stays"
    made = build(tiny, tmp_path / "cut")
    assert np.array_equal(made.pixels, build(tiny, tmp_path / "whole").pixels)
    assert made_in(tmp_path / "cut") == [made.folder.name]
    assert {file.name for file in made.folder.iterdir()} == {
        "cache.json",
        "checksums.csv",
        "images.csv",
        "pixels.npy",
        "skipped.csv",
        note_of(made),
    }


def test_what_a_killed_run_left_is_not_taken_for_a_cache(tiny, tmp_path, monkeypatch):
    """As after kill -9: nothing is cleaned up; that of another machine stays until it is a day old."""
    whole = build(tiny, tmp_path / "whole")
    root = tmp_path / "cut"
    mine, fresh, old = (
        root / f"pixels-{note_of(whole)[7:-5]}.{machine}.part"
        for machine in (platform.node(), "fresh", "old")
    )
    for folder in (mine, fresh, old):
        folder.mkdir(parents=True)
        (folder / "all.npy").write_bytes((whole.folder / "pixels.npy").read_bytes()[:50_000])
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    made = build(tiny, root)
    assert np.array_equal(made.pixels, whole.pixels) and made.images.equals(whole.images)
    assert made_in(root) == sorted([made.folder.name, fresh.name])
    assert np.array_equal(build(tiny, root).pixels, whole.pixels)


def test_another_machine_that_finishes_first(tiny, tmp_path, monkeypatch):
    whole, real = build(tiny, tmp_path / "whole"), cache.write_json

    def other_machine_was_here(path, value):
        real(path, value)
        shutil.copytree(whole.folder, tmp_path / "cut" / whole.folder.name)

    monkeypatch.setattr(cache, "write_json", other_machine_was_here)
    made = build(tiny, tmp_path / "cut")
    assert np.array_equal(made.pixels, whole.pixels)
    assert made_in(tmp_path / "cut") == [made.folder.name]


def test_open_cache_where_there_is_none(tmp_path):
    with pytest.raises(InputError) as caught:
        open_cache(tmp_path / "nothing")
    assert str(tmp_path / "nothing") in str(caught.value)


def test_a_cache_that_lost_its_pixels_is_named_and_built_again(tiny, tmp_path):
    folder, pixels = build(tiny, tmp_path).folder, np.array(build(tiny, tmp_path).pixels)
    (folder / "pixels.npy").unlink()  # emptied in place it would be lost to whoever has it mapped
    (folder / "pixels.npy").touch()
    with pytest.raises(InputError, match="no readable pixel cache"):
        open_cache(folder)
    assert np.array_equal(build(tiny, tmp_path).pixels, pixels)


def test_rows(tiny, tmp_path):
    cache = build(tiny, tmp_path)
    wanted = cache.images["filename"].tolist()[::-7]
    assert cache.images["filename"].iloc[cache.rows(wanted)].tolist() == wanted
    assert len(cache.rows([])) == 0
    with pytest.raises(InputError, match="unknown.png"):
        cache.rows([*wanted, "unknown.png"])


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_damaged_file_does_not_hide_a_sound_one_in_another_folder(tiny, copy, tmp_path, kind):
    """The first of three copies is cut off: the second is used, told, and found again."""
    whole = build(tiny, tmp_path / "c1")
    file = sorted(copy.rglob("*.png"))[3]
    content, name = file.read_bytes(), file.name
    for place, bytes_of in (("x", content[:-40]), ("y", content), ("z", content)):
        (copy / place).mkdir()
        (copy / place / name).write_bytes(bytes_of)
    file.unlink()
    if kind == "zip":
        copy = Path(shutil.make_archive(tmp_path / "set", "zip", copy))
    run = open_run_folder(tmp_path / "run")
    mount.start_run(run, copy)
    found = preprocess.resize_images(
        run, get_profile("demo", size=SIZE), mount.open_data(run), cache_root=tmp_path / "c2", progress=False
    )
    assert found.skipped.empty and found.fingerprint == whole.fingerprint
    assert np.array_equal(found.pixels[found.rows(whole.images["filename"])], whole.pixels)
    assert found.images.set_index("filename").loc[name, "path"] == f"y/{name}"
    told = dict(preprocess.left_out_table(run)[["path", "reason"]].to_numpy())
    assert set(told) == {f"x/{name}", f"z/{name}"}
    assert told[f"x/{name}"].startswith(f"second copy of y/{name}, the one that is used; damaged")
    assert told[f"z/{name}"] == f"second copy of y/{name}, the one that is used: the same image"
    if kind == "folder":
        touch(copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "decode_image", None)  # known again, and not decoded
        again = build(copy, tmp_path / "c2")
    assert again.folder == found.folder
    assert again.images.set_index("filename").loc[name, "path"] == f"y/{name}"
