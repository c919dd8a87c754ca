"""Near-identical pictures across a split: found whatever their names say, and only these."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance

from bcdlib.data import near_duplicates, sources, splits
from bcdlib.data.breakhis import scan_breakhis
from bcdlib.data.cache import build_cache

NAMES = [f"SOB_B_A-14-{number}-40-001.png" for number in range(20001, 20007)]


@pytest.fixture
def cache(tmp_path):
    """Six images: two smooth ones; the first brighter, as JPEG and mirrored; the second shifted."""
    smooth = [
        np.asarray(
            Image.fromarray(np.random.default_rng(k).integers(0, 256, (7, 10, 3), dtype=np.uint8)).resize(
                (144, 96), Image.Resampling.BICUBIC
            )
        )
        for k in (1, 2)
    ]
    first = Image.fromarray(smooth[0])
    first.save(tmp_path / "copy.jpg", quality=70)
    pictures = [
        first,
        Image.fromarray(smooth[1]),
        ImageEnhance.Brightness(first).enhance(0.85),
        Image.open(tmp_path / "copy.jpg"),
        first.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        Image.fromarray(np.roll(smooth[1], 40, axis=1)),
    ]
    (tmp_path / "data").mkdir()
    for name, picture in zip(NAMES, pictures, strict=True):
        picture.save(tmp_path / "data" / name)
    source = sources.open_source(tmp_path / "data")
    return build_cache(
        source, scan_breakhis(source).images, (144, 96), root=tmp_path / "cache", progress=False
    )


def test_pairs_are_the_copies_and_nothing_else(cache):
    found = near_duplicates.near_duplicates(cache)
    assert {frozenset(pair) for pair in found[["first", "second"]].to_numpy()} == {
        frozenset(pair) for pair in [(NAMES[0], NAMES[2]), (NAMES[0], NAMES[3]), (NAMES[2], NAMES[3])]
    }
    assert found["correlation"].is_monotonic_decreasing and found["correlation"].between(0.97, 1.0001).all()


def test_across_names_the_sides(cache):
    roles = ["test", "train", "train", "validation", "test", "train"]
    split = pd.DataFrame({"filename": NAMES, "fold": 0, "role": roles})
    other = split.assign(fold=1, role=["train", "test", "train", "train", "test", "train"])
    found = near_duplicates.across_split(near_duplicates.near_duplicates(cache), pd.concat([split, other]))
    assert set(zip(found["fold"], found["test"], found["training"])) == {
        (0, NAMES[0], NAMES[2]),
        (0, NAMES[0], NAMES[3]),
    }


def test_flat_pictures_are_no_pairs():
    flat = np.full((3, 96, 144, 3), 200, dtype=np.uint8)
    assert not near_duplicates.thumbnails(flat).any()


def test_real_images_of_the_slide_filed_twice(breakhis, tmp_path):
    """Slide 14-13412 stands under DC and LC with identical pictures; by case nothing is shared."""
    source = sources.open_source(breakhis / "half")
    images = scan_breakhis(source).images
    cache = build_cache(source, images, (144, 96), root=tmp_path, progress=False)
    found = near_duplicates.near_duplicates(cache)
    twins = found[found["first"].str.replace("LC", "DC") == found["second"].str.replace("LC", "DC")]
    assert (
        len(twins) >= 1 and (twins["difference"] == 0).all() and twins["first"].str.contains("14-13412").all()
    )
    assert near_duplicates.across_split(found, splits.make_split(images, "case")).empty
    crossing = near_duplicates.across_split(found, splits.make_split(images, "official"))
    assert sorted(crossing["fold"].unique()) == [0, 2, 4]  # the folds in which the names show it too
