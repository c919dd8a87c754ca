"""Files that are whole or not there, and copies near the machine."""

import contextlib
import errno
import gzip
import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bcdlib.errors import InputError
from bcdlib.runs.files import atomic_write, local_copy, read_user_csv, write_csv, write_json


def test_replacing_writes_the_whole_file(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    with atomic_write(path) as temporary:
        assert temporary.suffix == ".txt" and temporary.parent == path.parent
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    with (
        pytest.raises(InputError, match="if it lies on a Drive"),
        atomic_write(tmp_path / "gone" / "folder" / "file.txt"),
    ):
        pass  # one folder is made, not its parents: a Drive that has gone is not made up for
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_replacing_leaves_the_old_file_when_the_body_raises(kind, tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(kind), atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise kind("stop")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_failed_writers_leave_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_write_csv_has_no_index_column(tmp_path):
    write_csv(tmp_path / "a.csv", pd.DataFrame({"x": [1, 2], "y": ["b", "c,d"]}, index=[7, 8]))
    assert (tmp_path / "a.csv").read_text() == 'x,y\n1,b\n2,"c,d"\n'


def test_a_mapped_file_on_another_file_system_is_copied_near_once(tmp_path, monkeypatch):
    far = Path("/dev/shm") / f"bcdlib-test-{os.getpid()}.npy"
    if not far.parent.is_dir() or far.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    monkeypatch.delenv("BCD_NEAR", raising=False)
    try:
        np.save(far, np.arange(10))
        assert local_copy(far) == far  # where nobody asked for it
        monkeypatch.setenv("BCD_NEAR", str(tmp_path / "near"))
        copy = local_copy(far)
        assert copy.parent == tmp_path / "near" and np.array_equal(np.load(copy), np.arange(10))
        assert local_copy(far) == copy and len(list(copy.parent.iterdir())) == 1
        np.save(far, np.arange(12))  # made anew: another copy
        assert np.array_equal(np.load(local_copy(far)), np.arange(12))
        assert local_copy(copy) == copy
        monkeypatch.setattr(
            shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left"))
        )
        np.save(far, np.arange(14))
        assert local_copy(far) == far
    finally:
        far.unlink(missing_ok=True)


GOOD = "path,label,group\na.png,0,Müller\nb.png,1,Weiß\n"


def read(tmp_path, content, name="m.csv"):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_user_csv(tmp_path / name, "manifest", ("path", "label", "group"), ("note",))


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        GOOD.encode("utf-8-sig"),
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("\n", "\r"),
        GOOD + ",,\n , ,\n\n",
        "\n\n" + GOOD,
        "sep=,\n" + GOOD,
        GOOD.replace(",", ", "),
        '"path", "label", "group"\n"a.png", "0", "Müller"\n"b.png", "1", "Weiß"\n',
        GOOD.replace("\na", "\na")
        .replace("ler\n", "ler,,\n")
        .replace("ß\n", "ß,\n"),  # commas that say nothing
        GOOD.upper()
        .replace("A.PNG", "a.png")
        .replace("B.PNG", "b.png")
        .replace("MÜLLER", "Müller")
        .replace("WEISS", "Weiß"),
        gzip.compress(GOOD.encode(), mtime=0),
        "note,group,label,path\nx,Müller,0,a.png\ny,Weiß,1,b.png\n",
        "extra,path,label,group\n,a.png,0,Mu\u0308ller\n,b.png,1,Weiß\n",
    ],
)
def test_tables_as_people_write_them(tmp_path, content):
    table = read(tmp_path, content)
    assert table[["path", "label", "group"]].values.tolist() == [
        ["a.png", "0", "Müller"],
        ["b.png", "1", "Weiß"],
    ]


def test_the_index_is_the_line_and_cells_stay_text(tmp_path):
    table = read(tmp_path, "\npath,label,group\n\na.png,007,1e5\n,,\nb.png,1.0,NA\n")
    assert table.index.tolist() == [4, 6]
    assert table.values.tolist() == [["a.png", "007", "1e5"], ["b.png", "1.0", ""]]


@pytest.mark.parametrize(
    "content, words",
    [
        (GOOD.encode("latin-1"), ["Latin-1", "CSV UTF-8"]),
        (GOOD.encode("utf-16"), ["UTF-16", "CSV UTF-8"]),
        (GOOD.encode("utf-16-le"), ["UTF-16", "CSV UTF-8"]),
        (b"PK\3\4\x14\0\6\0\x08\0", ["Excel", ".xlsx", "CSV UTF-8"]),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", ["Excel", "CSV UTF-8"]),
        (b"PAR1\x15\x04", ["Parquet"]),
        (GOOD.replace(",", ";"), ["'path' is missing", "semicolons", "commas"]),
        ("sep=;\n" + GOOD.replace(",", ";"), ["'path' is missing", "semicolons", "commas"]),
        (GOOD.replace(",", "\t"), ["'path' is missing", "tabs", "commas"]),
        (gzip.compress(GOOD.encode() * 50, mtime=0)[:-12], ["cut off"]),
        (GOOD.replace("Müller", "Smith, Anna"), ["line 2 has 4 fields", "quotation marks"]),
        (GOOD.replace("Müller", '"Müller').replace("Weiß", 'Weiß"'), ["line 2", "line break"]),
        (GOOD.replace("Müller", '"Müller'), ["line 2", "quotation mark"]),
        (GOOD.replace("group", "label"), ["'label' comes twice"]),
        (gzip.compress(b"a" * 30_000_000, mtime=0), ["a million characters"]),
        (gzip.compress(gzip.compress(GOOD.encode(), mtime=0), mtime=0), ["gzip twice"]),
        (GOOD + "\n" * 5000 + "a\0,0,1\n", ["line 5004", "NUL"]),
        ("", ["empty"]),
        ("path,label,group\n,,\n", ["no rows"]),
    ],
)
def test_what_is_no_such_table_is_named(tmp_path, content, words):
    with pytest.raises(InputError) as caught:
        read(tmp_path, content)
    assert all(word in str(caught.value) for word in ["m.csv", *words]), caught.value
    assert "\n" not in str(caught.value)


def test_formulas_are_defused_where_people_read(tmp_path):
    table = pd.DataFrame({"name": ["=cmd()", "+1", "@x", "-", "a"], "value": [-1.5, 2, 3, 4, 5]})
    write_csv(tmp_path / "a.csv", table, for_reading=True)
    assert (tmp_path / "a.csv").read_text() == "name,value\n'=cmd(),-1.5\n'+1,2.0\n'@x,3.0\n-,4.0\na,5.0\n"
    write_csv(tmp_path / "a.csv", table)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a.csv"), table)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_at_once_and_row_by_row_are_the_same(tmp_path, end):
    """A table without quotation marks is read at once; packed, the same is read row by row."""
    cells = [
        "007",
        "7",
        "1.0",
        " a b ",
        "NA",
        "",
        "Mu\u0308ller",
        "x\u200by",
        "\u2028",
        "1e5",
        "-0",
        "#",
        "nan",
    ]
    rows = [
        f"{number}.png,{cell},{other}"
        for number, cell in enumerate(cells)
        for other in cells
        if cell or other
    ]
    text = "\ufeff" + end.join(["path, Label ,GROUP", *rows, "", ""])
    plain, packed = read(tmp_path, text), read(tmp_path, gzip.compress(text.encode()), "m.csv.gz")
    pd.testing.assert_frame_equal(plain, packed, check_column_type=False)
    assert len(plain) == len(rows) and plain.index[-1] == len(rows) + 1


def test_excels_own_line_may_have_as_many_commas_as_the_table(tmp_path):
    (tmp_path / "a.csv").write_text("sep=,\nfilename,role\na.png,test\n")
    table = read_user_csv(tmp_path / "a.csv", "split table", ("filename",), ("role",))
    assert table.to_dict("index") == {3: {"filename": "a.png", "role": "test"}}


@pytest.mark.parametrize("cut", [None, -40, 12])
def test_a_packed_table_is_closed(tmp_path, cut):
    """What refers to an error would keep it open: some file systems cannot remove it then."""
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"filename,role\na,test\n" * 5000)[:cut])
    with contextlib.ExitStack() as kept:
        if cut:
            kept.enter_context(pytest.raises(InputError, match="cut off"))
        with pytest.MonkeyPatch.context() as patch:
            opened = []
            patch.setattr(
                "builtins.open", lambda *a, _open=open, **k: opened.append(_open(*a, **k)) or opened[-1]
            )
            read_user_csv(tmp_path / "a.csv.gz", "split table", ("filename",))
    assert opened and all(file.closed for file in opened)
