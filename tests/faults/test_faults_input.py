"""Damaged files, each with a stated end: used with the right pixels, or left out by name with the reason."""

import collections
import json
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bcdlib import mount, preprocess
from bcdlib.data import breakhis, checks, sources, synthetic
from bcdlib.data.cache import build_cache
from bcdlib.data.decode import resize_image
from bcdlib.errors import InputError
from bcdlib.runs.profiles import get_profile
from tests.command import here
from tests.faulty import LEFT_OUT, USED, contents, names

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parent.parent.parent
PROFILE = get_profile("demo", size=(36, 24))

WORDS = {
    "same name, other picture": "ANOTHER image",
    "same name, same picture": "the same image",
    "html": "web page",
    "magnification against folder": "400X contradicts",
    "zero_length": "empty",
    "animated_png": "animation",
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder of 16 good images: half of them drawn, half of BreakHis where that is at hand."""
    folder = tmp_path_factory.mktemp("good")
    real = Path(os.environ.get("BCD_BREAKHIS") or "nowhere", "half")
    found = sorted(real.rglob("*.png"))[:: 1 + sum(1 for _ in real.rglob("*.png")) // 8]
    for file in found:
        place = folder / file.relative_to(real)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    for row in synthetic.plan_images().iloc[:: 640 // 8].itertuples():
        place = folder / row.relpath
        place.parent.mkdir(parents=True, exist_ok=True)
        picture = synthetic.draw_image(
            row.subtype, row.magnification, row.grade, slide=row.slide, sequence=row.sequence
        )
        Image.fromarray(picture[:116, :175]).save(place)
    return folder


def originals(good) -> list[np.ndarray]:
    return [np.asarray(Image.open(file).convert("RGB"))[:116, :175] for file in sorted(good.rglob("*.png"))]


def resized(array) -> np.ndarray:  # that this is a Lanczos resize, test_pixels.py checks
    return resize_image(np.ascontiguousarray(array), PROFILE.size)


def preprocessed(data, out, cache):
    """Stages 1 and 2 on a data set, and what they say of its images."""
    run = mount.open_run(out)
    mount.start_run(run, str(data), progress=False)
    made = preprocess.resize_images(run, PROFILE, mount.open_data(run), cache_root=cache, progress=False)
    return run, made, preprocess.left_out_table(run).set_index("path")


def end_of(file, made, told) -> str:
    """What became of a damaged file: used, left out, or lost (unheard of, no reason, other pixels)."""
    name = file.path.rsplit("/", 1)[-1]
    row = told.loc[file.path] if file.path in told.index else None
    if row is not None and row["outcome"] == LEFT_OUT:
        clear = len(row["reason"]) > 5 and "object at 0x" not in row["reason"] and "\n" not in row["reason"]
        return LEFT_OUT if clear and file.outcome != USED else f"lost: left out, {row['reason']}"
    if not (made.images["path"] == file.path).any() or file.outcome == LEFT_OUT:
        return "lost: not reported"
    right = file.pixels is None or np.array_equal(made.pixels[made.rows([name])[0]], resized(file.pixels))
    return USED if right else "lost: other pixels"


def check(files, made, told, good, record_property) -> None:
    ends = [(file.kind, file.outcome, end_of(file, made, told)) for file in files]
    lost = [end for end in ends if end[2].startswith("lost")]
    count = collections.Counter(end for _, _, end in ends)
    record_property(
        "faults",
        {
            "kind": "damaged files",
            "tried": len(files),
            "survived": count[USED],
            "reported": count[LEFT_OUT],
            "lost": len(lost),
        },
    )
    assert not lost
    for file in good.rglob("*.png"):
        assert np.array_equal(
            made.pixels[made.rows([file.name])[0]], resized(Image.open(file).convert("RGB"))
        ), file
    expected = {file.path for file in files if file.outcome == LEFT_OUT}
    assert expected <= set(told.index[told["outcome"] == LEFT_OUT])
    doubles = [file.path for file in files if file.kind == "same picture, two labels"]
    assert set(doubles) <= set(told.index[told["reason"].str.startswith(checks.TWO_CLASSES)])
    for file in files:
        assert WORDS.get(file.kind, "") in told["reason"].get(file.path, ""), file.path


def written(files, good, folder) -> Path:
    shutil.copytree(good, folder)
    for file in files:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.path).write_bytes(file.content)
    return folder


@pytest.mark.parametrize(
    "odd, misnamed", [(45, 14), pytest.param(468, 70, marks=pytest.mark.thorough)], ids=["few", "all"]
)
def test_damaged_files(odd, misnamed, good, tmp_path, record_property, capsys):
    pictures = originals(good)
    files = [*contents(pictures, odd), *names(pictures, misnamed)]
    data = written(files, good, tmp_path / "data")
    run, made, told = preprocessed(data, tmp_path / "run", tmp_path / "cache")
    out = capsys.readouterr().out
    left_out = int((told["outcome"] == LEFT_OUT).sum())
    assert (
        f"{len(made.images)} used, {left_out} left out" in out
        and str(run.folder / "tables" / "intake.csv") in out
    )
    check(files, made, told, good, record_property)
    with pytest.raises(InputError, match="intake.csv") as caught:
        preprocess.resize_images(
            run, PROFILE, mount.open_data(run), cache_root=tmp_path / "cache", progress=False, strict=True
        )
    assert told.index[0] in str(caught.value)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_damaged_files_in_an_archive(kind, good, tmp_path, record_property):
    pictures = originals(good)
    files = [*contents(pictures, 72, seed=1), *names(pictures, 14, seed=1)]
    data, archive = written(files, good, tmp_path / "data"), tmp_path / f"data.{kind}"
    paths = sorted(path for path in data.rglob("*") if path.is_file())
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
            for path in paths:
                out.write(path, path.relative_to(data).as_posix())
    else:
        with tarfile.open(archive, "w:gz") as out:
            for path in paths:
                out.add(path, path.relative_to(data).as_posix())
    _, made, told = preprocessed(archive, tmp_path / "run", tmp_path / "cache")
    check(files, made, told, good, record_property)


def test_things_that_are_no_files(good, tmp_path, record_property):
    """A folder, a pipe, and links of all sorts, all called like pictures."""
    data = shutil.copytree(good, tmp_path / "data")
    odd = [f"SOB_M_DC-98-40000-40-{number:03d}.png" for number in range(6)]
    (data / odd[0]).mkdir()
    os.mkfifo(data / odd[1])
    (data / odd[2]).symlink_to("nowhere.png")
    (data / odd[3]).symlink_to(odd[3])
    (data / odd[4]).symlink_to(data, target_is_directory=True)
    (data / "linked").symlink_to(good, target_is_directory=True)
    (data / odd[5]).symlink_to("/dev/zero")
    bad = os.fsencode(data) + b"/\xff" + odd[0].encode()
    Path(os.fsdecode(bad)).write_bytes(b"")
    _, made, told = preprocessed(data, tmp_path / "run", tmp_path / "cache")
    reported = {path for path in told.index if told.loc[[path], "outcome"].eq(LEFT_OUT).all()}
    expected = {*odd, "linked", "\\udcff" + odd[0]}
    lost = expected - reported
    record_property(
        "faults",
        {"kind": "damaged files", "tried": 8, "survived": 0, "reported": 8 - len(lost), "lost": len(lost)},
    )
    assert not lost and reported == expected
    assert len(made.images) == len(list(good.rglob("*.png")))


def as_nobody(work):
    """What `work` returns (JSON) in a process of its own, whose user is not root."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            answer = work()
        except BaseException as error:
            answer = repr(error)
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        answer = json.load(pipe)
    assert not isinstance(answer, str), answer
    os.waitpid(child, 0)
    return answer


def test_unreadable_rights_are_told_and_mended_ones_are_read(good, record_property):
    """As a user who is not root. A cache made while a file could not be read is made anew once it can."""
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are root's
        place = Path(place)
        os.chmod(place, 0o755)
        data = shutil.copytree(good, place / "data")
        os.chmod(data, 0o755)
        locked, hidden = sorted(data.rglob("*.png"))[2], sorted(data.rglob("*.png"))[-1].parent
        (place / "cache").mkdir()
        os.chmod(place / "cache", 0o777)

        def counted():
            source = sources.open_source(data)
            scan = breakhis.scan_breakhis(source)
            cache = build_cache(source, scan.images, PROFILE.size, root=place / "cache", progress=False)
            return [len(cache.images), cache.skipped.to_numpy().tolist(), scan.reasons]

        whole, behind = len(list(data.rglob("*.png"))), len(list(hidden.rglob("*.png")))
        os.chmod(locked, 0)
        os.chmod(hidden, 0)
        used, skipped, reasons = as_nobody(counted)
        assert used == whole - 1 - behind
        assert [name for name, _ in skipped] == [locked.name] and "Permission denied" in skipped[0][1]
        assert len(reasons) == 1 and hidden.name in reasons[0][0] and "cannot be listed" in reasons[0][1]
        os.chmod(hidden, 0o755)
        assert as_nobody(counted)[0] == whole - 1
        os.chmod(locked, 0o644)  # this changes neither size nor time of the file
        assert as_nobody(counted)[0] == whole
    record_property("faults", {"kind": "damaged files", "tried": 2, "survived": 0, "reported": 2, "lost": 0})


def test_strict_on_the_command_line(good, prior, tmp_path):
    data = written(list(contents(originals(good), 12)), good, tmp_path / "data")
    words = ["--data", data, "--methods", prior, "--out", tmp_path / "run", "--splits", "image"]
    done = here("compare", *words, "--folds", "2", "--strict", BCD_CACHE=str(tmp_path))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert re.search(r"^Error: damaged/SOB_\S+: .*intake\.csv", done.stderr.strip().splitlines()[-1])
    assert re.search(r"Images: \d+ used, \d+ left out", done.stdout)
    assert not (tmp_path / "run" / "trials").exists()
