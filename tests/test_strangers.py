"""Models, tables and names from strangers: no code of theirs is run, nothing of theirs becomes HTML."""

import ast
import html
import io
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import bcdlib
from bcdlib import methods
from bcdlib.data import custom
from bcdlib.data.cache import open_cache
from bcdlib.errors import InputError
from bcdlib.evaluation import metrics
from bcdlib.runs.profiles import get_profile
from tests.command import here

ROOT = Path(__file__).resolve().parent.parent
BOMB = '"><img src=x onerror=alert(1)><script>alert(2)</script>`![p](http://evil/p.png)[q](http://evil/q)'


def network(*layers):
    return keras.Sequential(
        [keras.Input((24, 36, 3)), *layers, keras.layers.Flatten(), keras.layers.Dense(2, "softmax")]
    )


def with_lambda(place):
    network(keras.layers.Lambda(lambda x: x / 255.0)).save(place)


def with_a_lambda_deep_inside(place):
    inner = keras.Sequential([keras.Input((24, 36, 3)), keras.layers.Lambda(lambda x: x + 1.0)])
    network(keras.Sequential([keras.Input((24, 36, 3)), inner])).save(place)


def of_an_older_format(place):
    network().save(place.with_suffix(".h5"))
    place.with_suffix(".h5").rename(place)


def with_a_class_of_its_own(place):
    network().save(place)
    _changed(
        place,
        lambda text: text.replace('"class_name": "Flatten"', '"class_name": "system"').replace(
            '"module": "keras.layers"', '"module": "os"'
        ),
    )


def without_end(place):
    network().save(place)
    place.write_bytes(place.read_bytes()[:-900])


def a_pickle(place):
    place.write_bytes(b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.")


def _changed(place, change):
    with zipfile.ZipFile(place) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["config.json"] = change(members["config.json"].decode()).encode()
    with zipfile.ZipFile(place, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    "make",
    [
        with_lambda,
        with_a_lambda_deep_inside,
        of_an_older_format,
        with_a_class_of_its_own,
        without_end,
        a_pickle,
    ],
)
def test_models_that_could_run_code_or_are_broken(make, tmp_path):
    make(tmp_path / "model.keras")
    with pytest.raises(InputError) as error:
        methods.load_method(tmp_path / "model.keras")
    assert str(tmp_path / "model.keras") in str(error.value) and len(str(error.value).splitlines()) == 1
    assert ("lambda" in make.__name__) == ("Lambda" in str(error.value) and "refused" in str(error.value))


def test_plain_models_of_strangers_are_loaded(tmp_path):
    model = network()
    model.save(tmp_path / "model.keras")
    X = np.random.default_rng(0).integers(0, 256, (4, 24, 36, 3), dtype="uint8")
    found = methods.load_method(tmp_path / "model.keras").network
    np.testing.assert_allclose(found.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-6)


def test_refused_on_the_command_line(tmp_path):
    with_lambda(tmp_path / "model.keras")
    Image.fromarray(np.zeros((24, 36, 3), "uint8")).save(tmp_path / "a.png")
    done = here("predict", tmp_path / "model.keras", tmp_path / "a.png")
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in done.stderr and "Lambda" in done.stderr


def test_a_cache_with_a_pickle_in_it(prepare, tiny, tmp_path):
    _, cache = prepare(tmp_path / "run", tiny, get_profile("demo", size=(36, 24)), tmp_path / "c")
    np.save(cache.folder / "pixels.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises((InputError, ValueError), match="(?i)object|pickle|pixels"):
        open_cache(cache.folder)


def test_no_code_of_ours_reads_or_writes_pickles():
    """What a user may exchange is JSON, CSV, .npy of numbers and .keras."""
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for file in Path(bcdlib.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not banned & {part for name in names for part in name.split(".")}, file
            for keyword in getattr(node, "keywords", ()):
                told = getattr(getattr(keyword, "value", None), "value", None)
                assert (keyword.arg, told) not in {("allow_pickle", True), ("safe_mode", False)}, file
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("to_pickle", "read_pickle", "enable_unsafe_deserialization"), file


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def tags(text):
    parser = _Tags()
    parser.feed(text)
    return parser.found


def harmless(report: Path) -> None:
    text = report.read_text()
    for tag, attributes in tags(text):
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert attributes.get("src", "data:").startswith("data:"), (tag, attributes)
        assert "//evil" not in attributes.get("href", ""), (tag, attributes)
    assert [
        attributes for tag, attributes in tags(text) if tag == "script" and not attributes.get("nonce")
    ] == []
    assert "alert(2)</script>" not in text
    assert html.escape("<script>alert(2)") in text, "the hostile text is not there at all: nothing was tried"


@pytest.mark.slow
def test_names_of_ones_own_images_in_the_report(tmp_path):
    """Stages 1 to 3 on files, slides and groups whose names are HTML."""
    folder, rows = tmp_path / "data", []
    for number in range(12):
        name = f"{number}{BOMB.replace('/', '')}.png"
        content = io.BytesIO()
        noise = np.random.default_rng(number).integers(0, 200, (30, 40, 3)) + 50 * (number % 2)
        Image.fromarray(noise.astype("uint8")).save(content, "PNG")
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content.getvalue() if number else b"<html>")
        rows.append(
            (name, number % 2, f"group {number // 2 % 3}{BOMB}", f"slide {number % 6}{BOMB}", f"type{BOMB}")
        )
    csv = tmp_path / f"my{BOMB.replace('/', '')}.csv"
    pd.DataFrame(rows, columns=["path", "label", "group", "slide", "subtype"]).to_csv(csv, index=False)
    assert len(custom.read_manifest(csv)) == 12
    only = [word for stage in ("01_mount", "02_preprocess", "03_visualize") for word in ("--only", stage)]
    done = here(
        "run",
        "--data",
        folder,
        "--manifest",
        csv,
        "--out",
        tmp_path / "run",
        *only,
        BCD_CACHE=str(tmp_path / "c"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    harmless(tmp_path / "run" / "report.html")


def hostile_predictions():
    """A predictions table of a stranger, whose texts are HTML; see test_main's reports of two tables."""
    random, numbers = np.random.default_rng(0), range(40)
    return pd.DataFrame(
        {
            "filename": [f"{number}{BOMB}.png" for number in numbers],
            "slide": [f"s{number // 4}{BOMB}" for number in numbers],
            "case": [f"c{number // 4}{BOMB}" for number in numbers],
            "magnification": 40,
            "subtype": f"A{BOMB}",
            "label": [number // 4 % 2 for number in numbers],
            "probability": random.random(40),
            "fold": 0,
            "method": f"net{BOMB}",
            "split": f"mine{BOMB}",
            "seed": 0,
        }
    )[[*metrics.COLUMNS]]
