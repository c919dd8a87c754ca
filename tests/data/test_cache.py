"""The cache: its pixels, what is skipped, and that it is whole or not there."""

import os
import platform
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from bcdlib.data import cache, decode, sources
from bcdlib.data.breakhis import official_path, scan_breakhis
from bcdlib.data.cache import build_cache, open_cache
from bcdlib.errors import InputError
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
        "cache.json", "images.csv", "pixels.npy", "skipped.csv"
    ]  # fmt: skip


def test_no_usable_image(copy, tmp_path):
    for file in copy.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match="none of the 96 images") as caught:
        build(copy, tmp_path / "root")
    assert str(copy) in str(caught.value)
    assert list((tmp_path / "root").iterdir()) == []


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
    assert list((tmp_path / "cut").iterdir()) == [], "something half made stays"
    made = build(tiny, tmp_path / "cut")
    assert np.array_equal(made.pixels, build(tiny, tmp_path / "whole").pixels)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [made.folder.name]
    assert {file.name for file in made.folder.iterdir()} == {
        "cache.json",
        "images.csv",
        "pixels.npy",
        "skipped.csv",
    }


def test_what_a_killed_run_left_is_not_taken_for_a_cache(tiny, tmp_path, monkeypatch):
    """As after kill -9: nothing is cleaned up; that of another machine stays until it is a day old."""
    whole = build(tiny, tmp_path / "whole")
    root = tmp_path / "cut"
    mine, fresh, old = (
        root / f"{whole.folder.name}.{machine}.part" for machine in (platform.node(), "fresh", "old")
    )
    for folder in (mine, fresh, old):
        folder.mkdir(parents=True)
        (folder / "all.npy").write_bytes((whole.folder / "pixels.npy").read_bytes()[:50_000])
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    made = build(tiny, root)
    assert np.array_equal(made.pixels, whole.pixels) and made.images.equals(whole.images)
    assert {path.name for path in root.iterdir()} == {made.folder.name, fresh.name}
    assert np.array_equal(build(tiny, root).pixels, whole.pixels)


def test_another_machine_that_finishes_first(tiny, tmp_path, monkeypatch):
    whole, real = build(tiny, tmp_path / "whole"), cache.write_json

    def other_machine_was_here(path, value):
        real(path, value)
        shutil.copytree(whole.folder, tmp_path / "cut" / whole.folder.name)

    monkeypatch.setattr(cache, "write_json", other_machine_was_here)
    made = build(tiny, tmp_path / "cut")
    assert np.array_equal(made.pixels, whole.pixels)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [made.folder.name]


def test_open_cache_where_there_is_none(tmp_path):
    with pytest.raises(InputError) as caught:
        open_cache(tmp_path / "nothing")
    assert str(tmp_path / "nothing") in str(caught.value)


def test_rows(tiny, tmp_path):
    cache = build(tiny, tmp_path)
    wanted = cache.images["filename"].tolist()[::-7]
    assert cache.images["filename"].iloc[cache.rows(wanted)].tolist() == wanted
    assert len(cache.rows([])) == 0
    with pytest.raises(InputError, match="unknown.png"):
        cache.rows([*wanted, "unknown.png"])
