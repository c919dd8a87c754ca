"""The embedded data set: its plan, its pixels, and that an interrupted drawing is completed."""

import json

import cv2
import numpy as np
import pytest

from bcdlib.data import breakhis, synthetic


def read(folder, row):
    return cv2.imread(str(folder / row.relpath))[..., ::-1]


def test_plan_counts_and_names():
    table = synthetic.plan_images(0)
    assert len(table) == 640 and table.filename.is_unique
    assert table.case.nunique() == 26 and table.slide.nunique() == 32
    assert set(table.subtype) == set(breakhis.SUBTYPES)
    assert set(table.magnification) == {40, 100, 200, 400}
    assert table.groupby(["slide", "magnification"]).size().eq(synthetic.IMAGES_EACH).all()
    assert table.slide.eq(table.case).any() and table.slide.str.endswith("CD").any()
    assert 0.45 <= (table["class"] == "M").mean() <= 0.60
    assert table.grade.between(0, 1).all()
    # The two classes overlap, yet differ.
    grades = table.groupby("class").grade
    assert grades.mean()["M"] > grades.mean()["B"] + 0.2 and grades.max()["B"] > grades.min()["M"]
    for row in table.itertuples():
        parsed = breakhis.parse_name(row.filename)
        assert (parsed["slide"], parsed["case"], parsed["subtype"]) == (row.slide, row.case, row.subtype)
        assert row.relpath == breakhis.official_path(row.filename)


def test_plan_depends_on_the_seed_in_the_grades_alone():
    one, other = synthetic.plan_images(0), synthetic.plan_images(1)
    assert one.drop(columns="grade").equals(other.drop(columns="grade"))
    assert not one.grade.equals(other.grade)
    assert one.equals(synthetic.plan_images(0))


@pytest.mark.parametrize("subtype", list(breakhis.SUBTYPES))
@pytest.mark.parametrize("magnification", [40, 400])
def test_image_is_a_picture_and_repeats(subtype, magnification):
    one = synthetic.draw_image(subtype, magnification, 0.6)
    assert one.shape == (460, 700, 3) and one.dtype == np.uint8
    assert one.std() > 10
    assert np.array_equal(one, synthetic.draw_image(subtype, magnification, 0.6))
    assert not np.array_equal(one, synthetic.draw_image(subtype, magnification, 0.6, sequence=2))


def test_nuclei_are_darker_and_bluer_than_the_rest():
    for slide in ("99-10001AB", "99-10002AB", "99-10003AB"):
        pixels = synthetic.draw_image("TA", 200, 0.4, slide=slide).astype(float)
        gray = pixels.mean(2)
        dark, rest = pixels[gray < np.quantile(gray, 0.08)], pixels[gray > np.quantile(gray, 0.4)]
        assert dark.mean() < rest.mean() - 40
        assert dark[:, 2].mean() - dark[:, 0].mean() > rest[:, 2].mean() - rest[:, 0].mean()


def test_a_grade_adds_hematoxylin():
    def red(grade):
        return np.mean(
            [synthetic.draw_image("DC", 100, grade, sequence=s)[..., 0].mean() for s in range(1, 6)]
        )

    assert red(0.9) < red(0.1)


@pytest.mark.parametrize("arguments", [("XX", 40), ("A", 50)])
def test_image_refuses_the_unknown(arguments):
    with pytest.raises(ValueError, match="unknown"):
        synthetic.draw_image(*arguments)


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_all_layouts_survive_extreme_grades(extreme):
    for subtype in breakhis.SUBTYPES:
        synthetic.draw_image(subtype, 400, extreme, sequence=3)


def test_draw_does_not_depend_on_the_workers(tmp_path):
    folders = [synthetic.draw_dataset(tmp_path / str(n), workers=n, progress=False, limit=6) for n in (1, 3)]
    for row in synthetic.plan_images().head(6).itertuples():
        one, three = (read(folder, row) for folder in folders)
        assert np.array_equal(one, three)
        again = synthetic.draw_image(
            row.subtype, row.magnification, row.grade, slide=row.slide, sequence=row.sequence
        )
        assert np.array_equal(one, again)


def test_draw_completes_and_then_returns_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(
        synthetic, "plan_images", lambda seed=0, full=synthetic.plan_images: full(seed).head(5)
    )
    synthetic.draw_dataset(tmp_path, progress=False, limit=3)
    assert not (tmp_path / synthetic.MARKER).exists()
    kept = sorted(tmp_path.rglob("*.png"))
    times = [path.stat().st_mtime_ns for path in kept]
    assert synthetic.draw_dataset(str(tmp_path), progress=False) == tmp_path
    assert len(kept) == 3 and [path.stat().st_mtime_ns for path in kept] == times
    assert len(list(tmp_path.rglob("*.png"))) == 5 and not list(tmp_path.rglob("*.tmp"))
    state = json.loads((tmp_path / synthetic.MARKER).read_text())
    assert state == {"seed": 0, "version": synthetic.VERSION, "count": 5}
    monkeypatch.setattr(synthetic, "draw_image", None)  # would fail if it were drawn again
    synthetic.draw_dataset(tmp_path, progress=False)


def test_draw_refuses_a_folder_of_another_seed(tmp_path):
    synthetic.draw_dataset(tmp_path, seed=0, progress=False, limit=1)
    with pytest.raises(ValueError, match="another folder"):
        synthetic.draw_dataset(tmp_path, seed=1, progress=False, limit=1)
