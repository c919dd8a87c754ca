"""Figures of the data set: what they show and say, and that the same seed gives the same."""

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bcdlib import visualize
from bcdlib.data import breakhis, sources, stain
from bcdlib.data.cache import PixelCache
from bcdlib.errors import InputError
from bcdlib.methods.parts import backbones

# 14-4659 with two slides of one case; the other slides have a case of their own
SLIDES = {
    "B_A": "14-22549AB",
    "B_F": "14-21998CD",
    "B_PT": "14-29315EF",
    "B_TA": "14-3411F",
    "M_DC": "14-4659A",
    "M_LC": "14-4659B",
    "M_MC": "14-10147",
    "M_PC": "14-15687B",
}


def names():
    return [
        f"SOB_{kind}-{slide}-{power}-{number:03d}.png"
        for kind, slide in SLIDES.items()
        for power in (40, 400)
        for number in (1, 2)
    ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    images = breakhis.images_table(names())
    random = np.random.default_rng(0)
    # each slide has a colour of its own, with some grain
    tints = dict(zip(sorted(set(images["slide"])), random.integers(60, 230, (8, 3))))
    pixels = np.stack([tints[slide] + random.integers(-30, 25, (18, 26, 3)) for slide in images["slide"]])
    empty = pd.DataFrame(columns=["filename", "reason"])
    return PixelCache(tmp_path_factory.mktemp("cache"), images, pixels.astype("uint8"), empty)


@pytest.fixture
def originals(cache, tmp_path):
    """A folder with the cache's images as files; returns (scan, source)."""
    for name, pixels in zip(cache.images["filename"], cache.pixels):
        Image.fromarray(pixels).save(tmp_path / name)
    source = sources.open_source(tmp_path)
    return breakhis.scan_breakhis(source).images, source


def shown(figure):
    """(image, caption) of each axes with an image."""
    return [(axis.images[0].get_array(), axis.get_xlabel()) for axis in figure.axes if axis.images]


def same(one, other):
    pairs = zip(shown(one), shown(other), strict=True)
    return all(np.array_equal(a, b) and s == t for (a, s), (b, t) in pairs)


def encoded(row):
    return f"{int(row['class'] == 'malignant')} {row['class']}, {row['subtype']}, {row['magnification']}X"


@pytest.fixture(autouse=True)
def no_figure_is_left_open():
    yield
    assert plt.get_fignums() == []


def test_class_samples_show_originals_of_all_subtypes(cache, originals):
    figure = visualize.class_samples_figure(*originals, per_class=4, seed=1)
    captions = [caption.rsplit(", ", 1)[0] for _, caption in shown(figure)]
    full = [breakhis.SUBTYPES[code].replace("_", " ") for code in breakhis.SUBTYPES]
    assert sorted(captions[:4]) == sorted(full[:4]) and sorted(captions[4:]) == sorted(full[4:])
    assert [a.get_ylabel() for a in figure.axes if a.get_ylabel()] == ["(a) benign", "(b) malignant"]
    assert all(any(np.array_equal(image, known) for known in cache.pixels) for image, _ in shown(figure))
    assert same(figure, visualize.class_samples_figure(*originals, per_class=4, seed=1))
    assert not same(figure, visualize.class_samples_figure(*originals, per_class=4, seed=2))


def test_class_samples_pass_over_unreadable_images(originals):
    images, source = originals
    for path in images.loc[images["subtype"].isin(["A", "F", "PT"]), "path"]:
        (source.path / path).write_bytes(b"no image")
    figure = visualize.class_samples_figure(images, source, per_class=6)
    captions = [caption for _, caption in shown(figure)]
    assert len(captions) == 4 + 6 and all(caption.startswith("tubular adenoma") for caption in captions[:4])
    malignant = images[images["class"] == "malignant"]
    assert [a.get_ylabel() for a in visualize.class_samples_figure(malignant, source).axes][
        0
    ] == "(b) malignant"
    with pytest.raises(InputError, match="none of these 12 images"):
        visualize.class_samples_figure(images[images["subtype"].isin(["A", "F", "PT"])], source)


def test_random_samples_have_the_right_labels(cache):
    figure = visualize.random_samples_figure(cache, n=7, seed=3)
    assert len(shown(figure)) == len(figure.axes) == 7 and "26 × 18" in figure.get_suptitle()
    for image, caption in shown(figure):
        row = next(k for k, known in enumerate(cache.pixels) if np.array_equal(image, known))
        assert caption == encoded(cache.images.iloc[row])
    assert same(figure, visualize.random_samples_figure(cache, n=7, seed=3))
    assert not same(figure, visualize.random_samples_figure(cache, n=7, seed=4))
    assert len(shown(visualize.random_samples_figure(cache, n=1000))) == len(cache.images)


def test_augmented_samples_differ_from_the_cached_ones_and_repeat(cache):
    figure = visualize.augmented_samples_figure(cache, n=2, copies=5, seed=0)
    cells = shown(figure)
    assert len(cells) == len(figure.axes) == 12
    # classes take turns, so that two rows show both
    assert {cells[0][1].split(",")[0], cells[6][1].split(",")[0]} == {"0 benign", "1 malignant"}
    headings = [axis.get_title() for axis in figure.axes]
    assert headings[1:6] == [f"augmented {k}" for k in range(1, 6)]
    assert all(image.shape == (18, 26, 3) and image.dtype == np.uint8 for image, _ in cells)
    assert any((cells[0][0] == known).all() for known in cache.pixels)
    assert len({image.tobytes() for image, _ in cells}) > 8
    assert same(figure, visualize.augmented_samples_figure(cache, n=2, copies=5, seed=0))


def test_normalised_as_keras_does(cache):
    expected = keras.applications.resnet50.preprocess_input(cache.pixels.astype("float32"))
    values = backbones.normalise_images(cache.pixels, "resnet50")
    assert values.shape == cache.pixels.shape and values.dtype == np.float32
    np.testing.assert_allclose(values, expected, atol=1e-4)
    with pytest.raises(InputError, match="known are resnet50"):
        backbones.normalise_images(cache.pixels, "nothing")


def test_normalised_samples(cache):
    figure = visualize.normalised_samples_figure(cache, n=2, seed=5)
    cells = shown(figure)
    assert len(figure.axes) == 6 and len(cells) == 4 and "BGR" in figure.get_suptitle()
    for (cached, caption), (display, values) in zip(cells[::2], cells[1::2]):
        row = next(k for k, known in enumerate(cache.pixels) if np.array_equal(cached, known))
        assert caption == f"{encoded(cache.images.iloc[row])}\nslide {cache.images['slide'].iloc[row]}"
        exact = backbones.normalise_images(cached[None])[0]
        assert values == f"values {exact.min():.4g} to {exact.max():.4g}".replace("-", "−")
        assert display.min() == 0 and display.max() == 255
        # the first channel is blue
        assert np.corrcoef(display[..., 0].ravel(), cached[..., 2].ravel())[0, 1] > 0.999
    for axis in figure.axes[2::3]:
        shares = [patch.get_data().values for patch in axis.patches]
        assert len(shares) == 3 and np.allclose([s.sum() for s in shares], 100)
        assert axis.get_ylabel() == "pixels [%]"
    assert same(figure, visualize.normalised_samples_figure(cache, n=2, seed=5))


@pytest.mark.parametrize(
    "images", [breakhis.known_images(), breakhis.images_table(names()[:5])], ids=["all", "five"]
)
def test_counts_equal_the_crosstab(images):
    left, right = visualize.counts_figure(images).axes
    assert all(tick == round(tick) for tick in [*left.get_yticks(), *right.get_xticks()]), "of images"
    table = pd.crosstab(images["class"], images["magnification"])
    table = table.reindex(index=list(breakhis.CLASSES), columns=[40, 100, 200, 400], fill_value=0)
    assert [bar.get_height() for bar in left.patches] == table.to_numpy().ravel().tolist()
    assert [text.get_text() for text in left.texts] == [str(v) for v in table.to_numpy().ravel()]
    found = dict(zip([label.get_text() for label in right.get_yticklabels()], right.patches))
    assert len(found) == 8
    for code, name in breakhis.SUBTYPES.items():
        assert found[f"{name.replace('_', ' ')} ({code})"].get_width() == (images["subtype"] == code).sum()


def test_stain_colours(cache):
    figure = visualize.stain_figure(cache)
    plane, benign, malignant = figure.axes
    points = np.concatenate([c.get_offsets() for c in plane.collections if len(c.get_offsets())])
    assert points.shape == (8, 2)
    assert benign.images[0].get_array().shape == malignant.images[0].get_array().shape == (4, 1, 3)
    assert sum(len(line.get_xdata()) == 2 for line in plane.lines) == 1  # the one case of two slides
    assert "no unit" in plane.get_xlabel() and "no unit" in plane.get_ylabel()
    again = visualize.stain_figure(cache)
    assert np.array_equal(benign.images[0].get_array(), again.axes[1].images[0].get_array())


def test_stain_densities_undo_beer_lambert():
    vectors = stain.RUIFROK_HE / np.linalg.norm(stain.RUIFROK_HE, axis=1, keepdims=True)
    densities = np.array([[0.4, 0.1], [0.1, 0.5]])
    light = np.rint(255 * 10 ** -(densities @ vectors)).astype("uint8")
    images = breakhis.images_table([names()[0], names()[-1]])
    pixels = np.broadcast_to(light[:, None, None], (2, 8, 12, 3))
    slides = visualize._slide_means(PixelCache(None, images, pixels, None), seed=0).set_index("slide")
    found = slides.loc[images["slide"], ["hematoxylin", "eosin"]].to_numpy()
    np.testing.assert_allclose(found, densities, atol=0.02)
