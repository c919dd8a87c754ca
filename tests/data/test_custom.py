"""Images that are not BreakHis's: their manifest, what the suite makes of few groups, and a whole run."""

import io
import json
import re
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bcdlib import compare, mount, preprocess, train, visualize
from bcdlib.data import breakhis, custom, sources, splits
from bcdlib.data.cache import PixelCache, build_cache
from bcdlib.errors import InputError
from bcdlib.runs.folder import open_run_folder
from bcdlib.runs.profiles import get_profile
from bcdlib.trials import comparison
from tests.command import here

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = get_profile("demo", size=(24, 16), folds=5)


def picture(number, suffix=".jpg"):
    """The content of a picture of its own size; odd numbers are darker."""
    random = np.random.default_rng(number)
    pixels = random.integers(0, 120, (15 + number % 7, 20 + number % 11, 3)) + 120 * (number % 2 == 0)
    content = io.BytesIO()
    Image.fromarray(pixels.astype("uint8")).save(content, Image.registered_extensions()[suffix])
    return content.getvalue()


def rows(groups):
    """The manifest of a data set, 0 and 1 by turns in mixed groups; `groups` is [(name, classes, images)]."""
    kinds = (".jpg", ".png", ".tif", ".bmp")
    return pd.DataFrame(
        [
            (f"{group}/{number}{kinds[number % 4]}", classes[number % len(classes)], group)
            for group, classes, images in groups
            for number in range(images)
        ],
        columns=["path", "label", "group"],
    )


def draw(folder, table):
    """Write the pictures and, beside their folder, the table; returns (folder, its path)."""
    for number, (path, label) in enumerate(zip(table["path"], table["label"])):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(2 * number + int(label), file.suffix))
    csv = folder.with_suffix(".csv")
    table.to_csv(csv, index=False)
    return folder, csv


THREE = [
    ("anna", "01", 20),
    ("ben", "01", 20),
    ("carl", "1", 20),
]  # two groups of both classes, one malignant
LONE = [("anna", "0", 12), ("ben", "1", 12), ("carl", "1", 12)]  # one class has one group only


def prepared(tmp_path, groups, profile=TINY):
    """(run, cache, table of splits) of such a data set after 01 and 02."""
    folder, csv = draw(tmp_path / "mine", rows(groups))
    run = open_run_folder(tmp_path / "run")
    mount.start_run(run, folder, manifest=csv)
    cache = preprocess.resize_images(
        run, profile, mount.open_data(run), cache_root=tmp_path / "cache", progress=False
    )
    return run, cache, preprocess.write_splits(run, profile, cache)


def write(tmp_path, text):
    file = tmp_path / "my.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_read_understands_what_people_write(tmp_path):
    file = write(
        tmp_path,
        "\ufeffPath, LABEL ,group,magnification,subtype,Slide,note\n"
        "./b/2.png,Malignant,p1,40X,DC,s2,x\n"
        "b\\1.jpg, 0 ,p1,,,,x\n"
        "a.tif,BENIGN,007,200,my kind,s9,x\n",
    )
    table = custom.read_manifest(file)
    assert list(table.columns) == breakhis.IMAGE_COLUMNS
    assert table.values.tolist() == [
        ["a.tif", "benign", "my kind", 0, "s9", "007", 200, 1],
        ["b/1.jpg", "benign", "unknown", 0, "p1", "p1", 0, 1],
        ["b/2.png", "malignant", "DC", 0, "s2", "p1", 40, 2],
    ]
    assert table["magnification"].dtype == "int64" and not breakhis.is_breakhis(table)


GOOD = "path,label,group\na.jpg,0,p\nb.jpg,1,q\n"


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ["not a readable CSV"]),
        ("path,label,group\n", ["no rows"]),
        ("path;label;group\na.jpg;0;p\n", ["'path' is missing", "commas", "path;label;group"]),
        (GOOD.replace("group", "patient"), ["column 'group' is missing", "patient"]),
        (GOOD.replace("label", "class"), ["column 'label' is missing"]),
        (GOOD.replace("a.jpg,0", "a.jpg,2"), ["line 2: label of a.jpg is '2'", "0 or benign"]),
        (GOOD.replace("a.jpg,0", "a.jpg,"), ["line 2 has no label"]),
        (GOOD.replace("0,p", "0, "), ["line 2 has no group"]),
        (GOOD.replace("0,p", "0,NA"), ["line 2 has no group"]),
        (GOOD.replace("b.jpg", "./a.jpg"), ["line 3: path is './a.jpg'; it comes twice"]),
        (GOOD.replace("a.jpg", "/data/a.jpg"), ["'/data/a.jpg'", "relative"]),
        (GOOD.replace("a.jpg", "C:\\a.jpg"), ["'C:\\\\a.jpg'", "relative"]),
        (GOOD.replace("a.jpg", "b/../../a.jpg"), ["'b/../../a.jpg'", "inside"]),
        (GOOD.replace("a.jpg", ""), ["line 2 has no path"]),
        (GOOD.replace("b.jpg,1", "b.jpg,0"), ["all 2 images are benign", "both classes"]),
        (
            "path,label,group,magnification\na.jpg,0,p,big\nb.jpg,1,q,\n",
            ["line 2: magnification of a.jpg is 'big'", "whole number"],
        ),
        (GOOD + "c.jpg,1,q,x,y\n", ["not a readable CSV", "line 4"]),
    ],
)
def test_read_refuses(tmp_path, text, words):
    with pytest.raises(InputError) as caught:
        custom.read_manifest(write(tmp_path, text))
    assert all(word in str(caught.value) for word in ["my.csv", *words]), caught.value
    assert "\n" not in str(caught.value)


def test_read_refuses_what_is_no_table(tmp_path):
    with pytest.raises(InputError, match="nowhere.csv: no such manifest"):
        custom.read_manifest(tmp_path / "nowhere.csv")
    (tmp_path / "picture.csv").write_bytes(picture(0))
    with pytest.raises(InputError, match="picture.csv: not a readable CSV"):
        custom.read_manifest(tmp_path / "picture.csv")


def test_scan_tells_missing_and_unused(tmp_path):
    folder, csv = draw(tmp_path / "mine", rows(THREE))
    (folder / "anna" / "0.jpg").unlink()
    (folder / "other.png").write_bytes(picture(0, ".png"))
    scan = custom.scan_custom(csv, sources.open_source(folder))
    assert (scan.missing, scan.unused, scan.partial, len(scan.images)) == (
        ["anna/0.jpg"],
        ["other.png"],
        True,
        59,
    )
    found = custom.custom_overview(scan)
    assert (
        found["cases (groups)"] == 3
        and found["cases of both classes"] == 2
        and found["first missing"] == "anna/0.jpg"
    )
    for file in folder.rglob("*.*"):
        if file.name != "other.png":
            file.unlink()
    with pytest.raises(InputError, match="none of its 60 images .* 'anna/0.jpg'"):
        custom.scan_custom(csv, sources.open_source(folder))


def test_scan_refuses_what_is_left_of_one_class(tmp_path):
    folder, csv = draw(tmp_path / "mine", rows(LONE))
    for file in (folder / "anna").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="12 images missing .* all 24 images are malignant"):
        custom.scan_custom(csv, sources.open_source(folder))


@pytest.mark.parametrize("top", ["", "./", "mine/"])
def test_archives_with_and_without_a_folder_at_the_top(tmp_path, top):
    folder, csv = draw(tmp_path / "mine", rows(THREE))
    with (
        zipfile.ZipFile(tmp_path / "a.zip", "w") as packed,
        tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar,
    ):
        for file in filter(Path.is_file, folder.rglob("*")):
            name = top + file.relative_to(folder).as_posix()
            packed.write(file, name)
            tar.add(file, name)
    whole = None
    for place in (folder, tmp_path / "a.zip", tmp_path / "a.tar.gz"):
        source = sources.open_source(place)
        scan = custom.scan_custom(csv, source)
        assert not scan.missing and not scan.unused
        cache = build_cache(source, scan.images, (24, 16), root=tmp_path / "cache", progress=False)
        assert len(cache.images) == 60 and cache.pixels.shape == (60, 16, 24, 3)
        whole = cache.pixels if whole is None else whole
        assert np.array_equal(cache.pixels, whole)


def test_a_corrected_label_makes_another_cache(tmp_path):
    run, cache, _ = prepared(tmp_path, THREE)
    table = rows(THREE)
    table.loc[0, "label"] = "1"
    table.to_csv(tmp_path / "mine.csv", index=False)
    mount.start_run(run, tmp_path / "mine", manifest=tmp_path / "mine.csv")
    again = preprocess.resize_images(
        run, TINY, mount.open_data(run), cache_root=tmp_path / "cache", progress=False
    )
    changed = cache.images["class"] != again.images["class"]
    assert cache.images.loc[changed, "filename"].tolist() == ["anna/0.jpg"]


def test_three_groups(tmp_path):
    run, cache, table = prepared(tmp_path, THREE)
    assert run.settings["manifest"] == str(tmp_path / "mine.csv") and run.settings["partial"] is False
    table = table.set_index("split")
    assert table["folds"].to_dict() == {"magnification": 0, "image": 5, "official": 0, "slide": 0, "case": 2}
    assert "2 folds instead of 5: 2 cases have benign images" in table.loc["case", "what it is"]
    assert "the same as split 'case'" in table.loc["slide", "what it is"]
    assert "no 40X image" in table.loc["magnification", "what it is"]
    assert preprocess.splits_note(table.reset_index()) == ""
    # 04 trains under those of its protocols that there are, and names the others in its refusal
    assert [trial.split for trial in train.plan_trials(run, TINY)] == ["case"]
    assert set(splits.read_split(run, splits.available_splits(run, TINY.splits)[0])["filename"]) == set(
        cache.images["filename"]
    )
    assert (splits.split_overlap(splits.read_split(run, "case"), cache.images)["cases_shared"] == 0).all()
    with pytest.raises(InputError, match="'magnification'.* choose from image, case"):
        train.plan_trials(run, TINY, split_names=["magnification"])
    with pytest.raises(InputError, match="'slide'.* choose from image, case"):
        comparison.run_comparison(run, TINY, split_names=["slide"])


def test_a_class_with_one_group_leaves_image(tmp_path):
    run, _, table = prepared(tmp_path, LONE)
    assert table.loc[table["folds"] > 0, "split"].tolist() == ["image"]
    assert "only one case has benign images" in table.set_index("split").loc["case", "what it is"]
    note = preprocess.splits_note(table)
    assert note.startswith("**No split by case is possible") and "`image`" in note and "next patient" in note
    assert [trial.split for trial in train.plan_trials(run, TINY)] == ["image"]


def test_splits_of_other_images_do_not_stay(tmp_path):
    run, cache, _ = prepared(tmp_path, THREE)
    lone = cache.images.assign(case=cache.images["class"])
    preprocess.write_splits(run, TINY, PixelCache(cache.folder, lone, cache.pixels, cache.skipped))
    assert (
        not (run.folder / "splits" / "case.csv").exists() and (run.folder / "splits" / "image.csv").exists()
    )


def test_no_split_at_all(tmp_path):
    with pytest.raises(InputError, match="13 images allow no split"):
        prepared(tmp_path, [("anna", "0", 1), ("ben", "1", 12)])


def test_uneven_groups_of_both_classes_keep_both_in_training():
    # nearly all benign images in two of six groups: a greedy split may put both into one fold
    for seed in range(5):
        images = pd.DataFrame({"case": np.repeat(list("abcdef"), 20)})
        images["class"] = np.where(
            images["case"].isin(["a", "b"]) & (images.index % 20 < 19), "benign", "malignant"
        )
        images["filename"] = images.index.astype(str)
        split, note = splits.make_feasible_split(images, "case", 5, seed=seed)
        kinds = split.merge(images, on="filename").groupby(["fold", "role"])["class"].nunique()
        assert (kinds.xs("train", level="role") == 2).all() and "2 folds instead of 5" in note


def test_tables_and_words_of_own_images(tmp_path):
    table = rows(THREE).assign(magnification=["20"] * 50 + [""] * 10)
    folder, csv = draw(tmp_path / "mine", table)
    run = open_run_folder(tmp_path / "run")
    scan = mount.start_run(run, folder, manifest=csv)
    counted = mount.count_images(scan.images)
    assert counted.loc["total"].to_dict() == {"unknown": 10, "20X": 50, "total": 60}
    assert counted.loc["benign", "total"] == 20 and list(counted.index) == ["benign", "malignant", "total"]
    words = mount.counts_remark(run) + mount.references(run)
    assert "magnification of 10 images is not known" in words
    assert not any(word in words for word in ("652", "Table I", "Spanhol", "CC BY"))
    assert mount.overview(run, scan)["found"]["manifest"] == csv.name


def test_words_of_breakhis_stay(tiny, tmp_path):
    run = open_run_folder(tmp_path / "run")
    scan = mount.start_run(run, tiny)
    assert ("printed", 40) in mount.count_images(scan.images).columns
    assert "652" in mount.counts_remark(run) and "CC BY 4.0" in mount.references(run)


def texts(figure):
    for axis in figure.axes:
        labels = [*axis.get_xticklabels(), *axis.get_yticklabels(), *axis.texts]
        yield from [axis.get_xlabel(), axis.get_title(), *(label.get_text() for label in labels)]
    yield figure.get_suptitle()


def test_captions_say_nothing_that_is_not_known(tmp_path):
    run, cache, _ = prepared(tmp_path, THREE)
    figures = {
        "samples": visualize.class_samples_figure(run.images(), mount.open_data(run)),
        "random": visualize.random_samples_figure(cache),
        "augmented": visualize.augmented_samples_figure(cache),
        "normalised": visualize.normalised_samples_figure(cache),
        "counts": visualize.counts_figure(run.images()),
        "stain": visualize.stain_figure(cache),
    }
    seen = {name: list(texts(figure)) for name, figure in figures.items()}
    assert not [
        text for found in seen.values() for text in found if "0X" in text or re.search(r"\bnan\b", text)
    ]
    assert "Originals, of several sizes" in seen["samples"]
    assert {"0 benign", "1 malignant"} == set(filter(None, seen["random"][:-1]))
    assert {"unknown (benign)", "unknown (malignant)", "unknown"} <= set(seen["counts"])
    # two of the three slides hold both classes and stand in both strips
    assert [len(axis.images[0].get_array()) for axis in figures["stain"].axes[1:]] == [2, 3]


def test_captions_say_what_is_known(tmp_path):
    table = rows(THREE).assign(magnification="20", subtype="my_kind")
    folder, csv = draw(tmp_path / "mine", table)
    scan = custom.scan_custom(csv, sources.open_source(folder))
    found = set(texts(visualize.class_samples_figure(scan.images, sources.open_source(folder))))
    assert "my kind, 20X" in found
    assert breakhis.count_slide_folders(scan.images) == 3


def test_published_numbers_are_of_breakhis_only():
    mine = pd.DataFrame(
        {
            "filename": ["a.jpg", "b.jpg"],
            "slide": ["s", "t"],
            "case": ["s", "t"],
            "magnification": 0,
            "subtype": "unknown",
            "label": [0, 1],
            "probability": [0.1, 0.9],
            "fold": 0,
            "method": "m",
            "split": "case",
            "seed": 0,
            "weights": "w",
        }
    )
    table = compare.table_ii(mine)
    assert table["kind"].tolist() == ["measured"] and table["accuracy"].tolist() == [100]
    assert "published" not in compare.table_ii_figure(table).axes[0].get_xlabel()
    theirs = mine.assign(filename=breakhis.known_images()["filename"].head(2))
    assert len(compare.table_ii(theirs)) == 12


def test_in_colab_the_manifest_is_found_on_drive(tmp_path, monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "test")
    monkeypatch.setenv("BCD_DRIVE", str(tmp_path))
    _, csv = draw(tmp_path / "MyDrive" / "mine", rows(THREE))
    assert mount.find_manifest("mine", "mine.csv") == str(csv)
    run = open_run_folder(tmp_path / "run")
    assert len(mount.start_run(run, "mine", manifest="mine.csv").images) == 60 and run.settings[
        "manifest"
    ] == str(csv)


def test_command_line_refuses(tmp_path):
    folder, csv = draw(tmp_path / "mine", rows(LONE))
    for command in (["run"], ["compare"], ["audit"]):
        done = here(*command, "--manifest", csv, *(["--out", tmp_path / "out"] * (command != ["audit"])))
        assert done.returncode == 2 and "--data" in done.stderr.splitlines()[-1], done.stderr
    done = here("run", "--data", folder, "--manifest", tmp_path / "no.csv", "--out", tmp_path / "out")
    assert (
        done.returncode == 2 and "no.csv: no such manifest" in done.stderr and "Traceback" not in done.stderr
    )
    done = here("verify", folder)
    assert done.returncode == 2 and "--manifest" in done.stderr


def test_audit(tmp_path):
    folder, csv = draw(tmp_path / "mine", rows(THREE))
    done = here("audit", "--data", folder, "--manifest", csv, "--json")
    table = pd.DataFrame(json.loads(done.stdout))
    assert table.groupby("split").size().to_dict() == {"case": 2, "image": 5, "slide": 2}
    assert (table.loc[table["split"] == "case", "cases_shared"] == 0).all()
    assert (table.loc[table["split"] == "image", "cases_shared"] == 3).all()


def four(tmp_path, names, groups="pqrs"):
    """A manifest of four images with these paths."""
    lines = [f"{name},{number % 2},{group}" for number, (name, group) in enumerate(zip(names, groups))]
    return write(tmp_path, "path,label,group\n" + "\n".join(lines) + "\n")


def test_patients_that_look_the_same_are_one(tmp_path):
    pairs = [
        ("Müller", unicodedata.normalize("NFD", "Müller")),
        ("X9", "X9\u200b"),
        ("P-1", "p-1"),
        ("7", "7.0"),
    ]
    groups = [name for pair in pairs for name in pair]
    text = "".join(f"{number}.png,{number // 2 % 2},{group}\n" for number, group in enumerate(groups))
    table = custom.read_manifest(write(tmp_path, "path,label,group\n" + text))
    assert table["case"].tolist() == ["Müller", "Müller", "X9", "X9", "P-1", "p-1", "7", "7.0"]
    (tmp_path / "d").mkdir()
    for number in range(8):
        (tmp_path / "d" / f"{number}.png").write_bytes(picture(number, ".png"))
    scan = custom.scan_custom(tmp_path / "my.csv", sources.open_source(tmp_path / "d"))
    (note,) = scan.notes
    assert "counted apart: '7' and '7.0'; 'P-1' and 'p-1'; write" in note
    assert custom.custom_overview(scan)["note"] == note
    done = here("audit", "--data", tmp_path / "d", "--manifest", tmp_path / "my.csv", "--folds", 2)
    assert f"Note: {note}" in done.stderr and done.returncode == 0


def test_files_of_a_mac_and_a_table_of_a_pc(tmp_path):
    names = ["Müller.png", "Jäger.png", "b/ö.png", "a.png"]
    for number, name in enumerate(names):
        file = tmp_path / "d" / unicodedata.normalize("NFD", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number, ".png"))
    csv = four(tmp_path, [name.replace("/", "\\") for name in names])
    source = sources.open_source(tmp_path / "d")
    scan = custom.scan_custom(csv, source)
    assert sorted(scan.images["filename"]) == sorted(names) and not scan.missing and not scan.unused
    assert all(content for _, content, _ in source.read(scan.images["path"]))


@pytest.mark.parametrize("kind", ["windows", "mac"])
def test_archives_of_windows_and_macos(tmp_path, kind):
    """Backslashes between folders; UTF-8 without the flag that says so, and shadow files."""
    names = ["Proben/Müller.png", "Proben/Jäger.png", "Proben/a.png", "Proben/b.png"]
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(name.replace("/", "\\") if kind == "windows" else name, picture(number, ".png"))
            archive.writestr(f"x/__MACOSX/._{name.split('/')[1]}", b"shadow")
            archive.writestr(f"__MACOSX/{name}", b"shadow")
    if kind == "mac":
        content = bytearray((tmp_path / "d.zip").read_bytes())
        for sign, place in ((b"PK\3\4", 7), (b"PK\1\2", 9)):
            at = content.find(sign)
            while at >= 0:
                content[at + place] &= ~8
                at = content.find(sign, at + 4)
        (tmp_path / "d.zip").write_bytes(content)
    scan = custom.scan_custom(four(tmp_path, names), sources.open_source(tmp_path / "d.zip"))
    assert len(scan.images) == 4 and not scan.unused and not scan.missing


def test_why_an_image_is_missing(tmp_path):
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "d.png").write_bytes(picture(0, ".png"))
    folder = tmp_path / "d"
    folder.mkdir()
    for name in ("a.png", "b.png", "C.jpg", "slide.svs"):
        (folder / name).write_bytes(picture(1, ".png"))
    (folder / "link").symlink_to(tmp_path / "e")
    text = "a.png,0,p\nb.png,1,q\nslide.svs,1,r\nc.png,0,s\nlink/d.png,1,t\nnowhere.png,1,u\n"
    scan = custom.scan_custom(write(tmp_path, "path,label,group\n" + text), sources.open_source(folder))
    reasons = dict(scan.reasons)
    assert reasons["slide.svs"] == "there, but not one of .png, .jpg, .jpeg, .tif, .tiff, .bmp"
    assert (
        reasons["c.png"].endswith("there is C.jpg") and "such links are not followed" in reasons["link/d.png"]
    )
    assert reasons["nowhere.png"] == "named in the manifest, but not there"


def test_an_archive_that_is_meant_is_named(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "images.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match="the archive images.zip lies there"):
        custom.scan_custom(four(tmp_path, "abcd"), sources.open_source(tmp_path / "d"))
    with pytest.raises(InputError, match="no BreakHis image.* the archive images.zip lies there"):
        breakhis.scan_breakhis(sources.open_source(tmp_path / "d"))
