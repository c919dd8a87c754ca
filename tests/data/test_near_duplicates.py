"""Near-duplicates across a split: found whatever their names say, and only these."""

import io
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance, ImageFilter

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
    images = [
        first,
        Image.fromarray(smooth[1]),
        ImageEnhance.Brightness(first).enhance(0.85),
        Image.open(tmp_path / "copy.jpg"),
        first.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        Image.fromarray(np.roll(smooth[1], 40, axis=1)),
    ]
    (tmp_path / "data").mkdir()
    for name, image in zip(NAMES, images, strict=True):
        image.save(tmp_path / "data" / name)
    source = sources.open_source(tmp_path / "data")
    return build_cache(
        source, scan_breakhis(source).images, (144, 96), root=tmp_path / "cache", progress=False
    )


def cache_of(pixels):
    names = [f"{number}.png" for number in range(len(pixels))]
    return SimpleNamespace(pixels=pixels, images=pd.DataFrame({"filename": names}))


def test_pairs_are_the_copies_and_nothing_else(cache):
    found = near_duplicates.near_duplicates(cache)
    same = (NAMES[0], NAMES[2], NAMES[3], NAMES[4])
    expected = {frozenset((one, two)) for one in same for two in same if one != two}
    assert {frozenset(pair) for pair in found[["first", "second"]].to_numpy()} == expected | {
        frozenset((NAMES[1], NAMES[5]))
    }
    assert found["correlation"].is_monotonic_decreasing and found["correlation"].between(0.7, 1.0001).all()


def test_across_names_each_test_image_once(cache):
    roles = ["test", "train", "train", "validation", "test", "train"]
    split = pd.DataFrame({"filename": NAMES, "fold": 0, "role": roles})
    other = split.assign(fold=1, role=["train", "test", "train", "train", "train", "validation"])
    found = near_duplicates.across_split(near_duplicates.near_duplicates(cache), pd.concat([split, other]))
    assert sorted(zip(found["fold"], found["test"])) == [(0, NAMES[0]), (0, NAMES[4]), (1, NAMES[1])]
    assert set(found["training"]) <= {NAMES[2], NAMES[3], NAMES[5]}


def test_copies_of_one_image_are_found_whichever_of_them_is_tested():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 48, 72, 3), dtype="uint8")
    pixels[1:3] = pixels[0]
    found = near_duplicates.near_duplicates(cache_of(pixels))
    assert found.to_numpy().tolist() == [["0.png", "1.png", 1.0], ["0.png", "2.png", 1.0]]
    split = pd.DataFrame(
        {"filename": [f"{k}.png" for k in range(4)], "role": ["validation", "test", "test", "train"]}
    )
    crossing = near_duplicates.across_split(found, split)
    assert crossing["test"].tolist() == ["1.png", "2.png"] and set(crossing["training"]) == {"0.png"}
    split = split.assign(role=["test", "train", "test", "train"])  # 0 was not trained on, but its copy was
    crossing = near_duplicates.across_split(found, split)
    assert set(crossing["test"]) == {"0.png", "2.png"} and set(crossing["training"]) == {"1.png"}


def test_flat_images_are_no_pairs():
    flat = np.full((30, 48, 72, 3), 240, dtype="uint8")
    flat += np.random.default_rng(0).integers(0, 4, flat.shape, dtype="uint8")
    assert near_duplicates.near_duplicates(cache_of(flat)).empty


def _jpeg(image):
    content = io.BytesIO()
    image.save(content, "JPEG", quality=50)
    return Image.open(content)


def _crop(image, left, top, right, bottom):
    width, height = image.size
    return image.crop((left * width, top * height, right * width, bottom * height))


CHANGES = {
    "flip": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "quarter turn": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "half turn": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "crop to 98 %": lambda image: _crop(image, 0.01, 0.01, 0.99, 0.99),
    "flip, turn and crop": lambda image: _crop(
        image.transpose(Image.Transpose.TRANSPOSE), 0.01, 0.01, 0.99, 0.99
    ),
    "shift of 1 %": lambda image: _crop(image, 0.01, 0, 1, 1),
    "shift of 3 %": lambda image: _crop(image, 0.03, 0.03, 1, 1),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "colour": lambda image: Image.merge(
        "RGB", [band.point(lambda v, f=f: f * v) for band, f in zip(image.split(), (1.08, 0.92, 1.04))]
    ),
    "blur": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "JPEG": _jpeg,
}


@pytest.fixture(scope="module")
def real(breakhis):
    return sorted((breakhis / "half").rglob("*.png"))


def small(image):
    return np.asarray(image.convert("RGB").resize((144, 96), Image.Resampling.LANCZOS))


@pytest.fixture(scope="module")
def unchanged(real):
    return np.stack([small(Image.open(file)) for file in real])


@pytest.mark.parametrize("first", range(4))
def test_real_images_changed_as_people_do_are_found(first, real, unchanged):
    """Two or three changes of each at once: an image is held against the ten that are most like it."""
    chosen, changes = np.random.default_rng(0).choice(len(real), 60, replace=False), list(CHANGES)[first::4]
    opened = [Image.open(real[place]).convert("RGB") for place in chosen]
    changed = [small(CHANGES[change](image)) for change in changes for image in opened]
    found = near_duplicates.near_duplicates(cache_of(np.concatenate([unchanged, changed])))
    pairs = {frozenset(pair) for pair in found[["first", "second"]].to_numpy()}
    places = np.arange(len(real), len(real) + len(changed)).reshape(len(changes), 60)
    for change, copies in zip(changes, places, strict=True):
        hits = [frozenset((f"{one}.png", f"{other}.png")) in pairs for one, other in zip(chosen, copies)]
        assert sum(hits) == 60, f"{change}: {sum(hits)} of 60"


def test_no_alarm_among_real_images_of_other_slides(real, unchanged):
    found = near_duplicates.near_duplicates(cache_of(unchanged))
    slides = ["-".join(file.name.split("-")[1:3]) for file in real]
    places = found[["first", "second"]].map(lambda name: slides[int(name.removesuffix(".png"))])
    assert 1 <= len(found) <= 20 and (places["first"] == places["second"]).all(), found


@pytest.mark.slow
@pytest.mark.parametrize(
    "alike, number",
    [
        ("drawn from few", 4000),
        pytest.param("drawn from few", 8000, marks=pytest.mark.thorough),
        ("blank", 8000),
    ],
)
def test_eight_thousand_images_take_less_than_two_minutes(alike, number):
    """The time may grow with the square: half as many images may take a quarter of it."""
    random = np.random.default_rng(0)
    few = [Image.fromarray(random.integers(0, 256, (12, 18, 3), dtype="uint8")) for _ in range(number // 40)]
    few = np.stack([np.asarray(image.resize((144, 96), Image.Resampling.BICUBIC)) for image in few])
    pixels = few[np.arange(number) % len(few)]
    pixels[:, ::7, ::5] += random.integers(0, 9, pixels[:, ::7, ::5].shape, dtype="uint8")
    if alike == "blank":
        pixels[: number // 2] = 240
    started = time.perf_counter()
    found = near_duplicates.near_duplicates(cache_of(pixels))
    assert time.perf_counter() - started < 120 * (number / 8000) ** 2 and len(found) > 3900


def test_real_images_of_the_slide_filed_twice(breakhis, tmp_path):
    """Slide 14-13412 stands under DC and LC with identical images; by case nothing is shared."""
    source = sources.open_source(breakhis / "half")
    images = scan_breakhis(source).images
    cache = build_cache(source, images, (144, 96), root=tmp_path, progress=False)
    found = near_duplicates.near_duplicates(cache)
    twins = found[found["first"].str.replace("LC", "DC") == found["second"].str.replace("LC", "DC")]
    assert (
        len(twins) >= 1
        and (twins["correlation"] == 1).all()
        and twins["first"].str.contains("14-13412").all()
    )
    assert near_duplicates.across_split(found, splits.make_split(images, "case")).empty
    crossing = near_duplicates.across_split(found, splits.make_split(images, "official"))
    assert sorted(crossing["fold"].unique()) == [0, 2, 4]  # the folds in which the names show it too
