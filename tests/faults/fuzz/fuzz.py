"""Coverage-guided fuzzing (atheris) of what strangers' files go through; not a part of the test run.

    python tests/faults/fuzz/fuzz.py manifest|predictions|archive|model FOLDER [--seconds 600]

FOLDER keeps the corpus and what was found (``crash-*``, ``timeout-*``, ``oom-*``). A finding is anything but
an answer or an `InputError` of one line. What was found so far lies in found/ and is tested in
tests/faults/test_fuzz.py. Needs atheris (``pip install atheris``).
"""

import argparse
import gzip
import io
import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))
for name in (
    "tarfile",
    "zipfile",
):  # others may have imported them; what is imported now is what coverage is measured of
    sys.modules.pop(name, None)

with atheris.instrument_imports(
    include=[
        *("bcdlib.data.breakhis", "bcdlib.data.custom", "bcdlib.data.sources", "bcdlib.evaluation.metrics"),
        *("bcdlib.methods._foreign", "bcdlib.methods._saved", "bcdlib.runs.files", "tarfile", "zipfile"),
    ]
):
    import tarfile
    import zipfile

    from bcdlib import methods
    from bcdlib.data import breakhis, custom, sources
    from bcdlib.errors import InputError
    from bcdlib.evaluation import metrics

NAME = "SOB_B_A-14-22549AB-40-001.png"
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")


def one_line(error: InputError) -> None:
    assert str(error) and len(str(error).splitlines()) == 1, f"not one line: {error!r}"


def try_manifest(data: bytes, folder: Path) -> None:
    """A CSV of images of one's own, and its bytes as a file name."""
    file = folder / "own.csv"
    file.write_bytes(data)
    for work in (
        lambda: custom.read_manifest(file),
        lambda: breakhis.parse_name(data[:80].decode("utf-8", "surrogateescape")),
    ):
        try:
            work()
        except InputError as error:
            one_line(error)


def try_predictions(data: bytes, folder: Path) -> None:
    """A predictions table, and what is computed of it."""
    file = folder / "predictions.csv"
    file.write_bytes(data)
    try:
        table = metrics.read_predictions(file)
    except InputError as error:
        one_line(error)
        return
    assert table["probability"].between(0, 1).all() and set(table["label"]) <= {0, 1}
    metrics.metrics_table(table)


def try_model(data: bytes, folder: Path) -> None:
    """The first byte says of what the rest takes the place: the file, or a member of a good one."""
    kind, body = (data[0] if data else 0) % (1 + len(MODEL)), data[1:]
    file = folder / "fuzz.keras"
    if kind:
        body = zipped(MODEL | {list(MODEL)[kind - 1]: body})
    file.write_bytes(body)
    try:
        methods.load_method(file)
    except InputError as error:
        one_line(error)


def small_model() -> dict[str, bytes]:
    """The members of a network of two layers, saved by Keras."""
    import keras

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "small.keras")
        layers = [keras.Input((4, 4, 3)), keras.layers.Conv2D(2, 3), keras.layers.GlobalAveragePooling2D()]
        keras.Sequential([*layers, keras.layers.Dense(1, activation="sigmoid")]).save(file)
        with zipfile.ZipFile(file) as archive:
            return {name: archive.read(name) for name in archive.namelist()}


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def try_archive(data: bytes, folder: Path) -> None:
    """The first byte says of what kind; checksums of tar headers are mended, to reach what is behind."""
    kind, body = (data[0] if data else 0) % 5, data[1:]
    suffix = SUFFIXES[kind % 4]
    if kind in (1, 2):
        body = repaired(body)
    if kind == 2:
        body = gzip.compress(body, 1)
    file = folder / f"fuzz{suffix}"
    file.write_bytes(body)
    try:
        source = sources.open_source(file)
        names = source.names()
        for name, content, reason in source.read(names):
            assert name in names and (content is None) == bool(reason)
    except InputError as error:
        one_line(error)


def repaired(content: bytes) -> bytes:
    """The same with right checksums in all blocks that look like tar headers."""
    blocks = [content[place : place + 512] for place in range(0, len(content), 512)]
    for number, block in enumerate(blocks):
        if len(block) == 512 and block[257:262] == b"ustar":
            total = 256 + sum(block[:148]) + sum(block[156:])
            blocks[number] = block[:148] + b"%06o\0 " % total + block[156:]
    return b"".join(blocks)


def archive_seeds():
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as archive:
            archive.writestr(f"a/{NAME}", b"picture" * 9)
            archive.writestr("b/", b"")
        yield b"\0" + out.getvalue()
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as archive:
            for name, kind in (
                (f"a/{NAME}", b"0"),
                ("l" * (90 if form == 0 else 120) + ".png", b"0"),
                ("é.png", b"2"),
                ("dev.png", b"3"),
                ("sparse.png", b"S"),
            ):
                member = tarfile.TarInfo(name)
                member.type, member.size, member.linkname = (
                    kind,
                    63 if kind == b"0" else 0,
                    "x" * 110 * (form > 0),
                )
                archive.addfile(member, io.BytesIO(b"picture" * 9))
        small = out.getvalue().rstrip(b"\0") + bytes(1536)
        yield from (b"\1" + small, b"\2" + small, b"\3" + gzip.compress(small), b"\4" + small)


MANIFEST_SEEDS = (
    b"path,label,group\na.png,0,x\nb.png,1,y\n",
    NAME.encode(),
    b"\xef\xbb\xbfPath;Label;Group\n",
    b'path,label,group,slide,magnification,subtype\n"a\nb.png",benign,p1,s1,40X,A\nc.png,Malignant,p2,,,\n',
    b"path,label,group,\na.png,0,x,,,\n",
    "path,label,group\né\u202e.png,0,\u00a0\n".encode(),
    b"path\0,label,group\n\xff,,",
    b"path,label,group,magnification\na.png,0,x,1e400\n./b\\c.png,1,y,40.000\n",
)


COLUMNS = ",".join(metrics.COLUMNS)
ROW = f"{NAME},14-22549AB,14-22549,40,A,0,0.2,0,resnet50,case,0"
PREDICTIONS_SEEDS = (
    f"{COLUMNS}\n{ROW}\n".encode(),
    f"{COLUMNS},weights,p_A,p_40X\n{ROW},imagenet,0.5,\n{ROW.replace('0.2', '1e-400')},,,1\n".encode(),
    f"\ufeff{COLUMNS.replace(',', ';')}\r\n{ROW.replace(',', ';')}\r\n".encode(),
    f'{COLUMNS}\n"a, b.png",,,,,1,1.0000001,val,m,s,x\n'.encode(),
    gzip.compress(f"{COLUMNS}\n{ROW}\n".encode()),
    f"{COLUMNS}\n{ROW}\n".encode("utf-16"),
)


def model_seeds():
    yield b"\0" + zipped(MODEL)
    yield from (bytes([number]) + content for number, content in enumerate(MODEL.values(), 1))


MODEL: dict[str, bytes] = {}
TARGETS = {
    "manifest": (try_manifest, lambda: MANIFEST_SEEDS),
    "predictions": (try_predictions, lambda: PREDICTIONS_SEEDS),
    "archive": (try_archive, archive_seeds),
    "model": (try_model, model_seeds),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=tuple(TARGETS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, default=600)
    options = parser.parse_args()
    corpus = options.folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    if options.target == "model":
        MODEL.update(small_model())
    work, seeds = TARGETS[options.target]
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        atheris.Setup(
            [
                sys.argv[0],
                f"-max_total_time={options.seconds}",
                "-timeout=20",
                "-rss_limit_mb=1500",
                f"-artifact_prefix={options.folder}/",
                "-max_len=12000",
                "-len_control=0",
                str(corpus),
            ],
            lambda data: work(data, Path(scratch)),
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
