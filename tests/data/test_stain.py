"""Stain normalisation: what is fitted, on which images, and what happens to pictures that it does not fit."""

import json

import numpy as np
import pytest

from bcdlib.data import stain
from bcdlib.errors import InputError

HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])  # Ruifrok & Johnston 2001


def tissue(seed, strength=1.0, turn=0.0):
    """A picture (40, 60, 3) stained by the Beer-Lambert law; ``turn`` makes haematoxylin redder."""
    rng = np.random.default_rng(seed)
    amounts = strength * rng.gamma(1.0, 0.5, (40, 60, 2))
    vectors = np.stack([HAEMATOXYLIN + [-turn, 0, turn], EOSIN])
    density = amounts @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return np.clip(240 * np.exp(-density), 0, 255).astype("uint8")


def means(pictures):
    return np.asarray(pictures, dtype=float).mean(axis=(0, 1, 2))


@pytest.mark.parametrize("kind", stain.KINDS)
def test_brings_other_stains_to_the_target(kind):
    train = np.stack([tissue(seed) for seed in range(5)])
    others = np.stack([tissue(seed, strength=0.6, turn=0.25) for seed in range(10, 15)])
    result = stain.normalise_stain(others, stain.fit_stain(kind, train))
    assert result.dtype == np.uint8 and result.shape == others.shape
    before, after = np.abs(means(others) - means(train)), np.abs(means(result) - means(train))
    assert before.max() > 15 and after.max() < before.max() / 4
    np.testing.assert_array_equal(result, stain.normalise_stain(others, stain.fit_stain(kind, train)))


def test_macenko_finds_the_stains_that_were_mixed():
    target = stain.fit_stain("macenko", [tissue(seed) for seed in range(5)])
    vectors = np.array(target.values[0])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=0), 1)
    for found, true in zip(vectors.T, (HAEMATOXYLIN, EOSIN)):
        assert found @ true / np.linalg.norm(true) > 0.98


def test_reinhard_is_median_mean_and_deviation_in_lab():
    # grey 119 is L* = 50.03, a* = b* = 0 (CIE 1976, D65); half is black, so mean and deviation are half of it
    picture = np.zeros((4, 4, 3), dtype="uint8")
    picture[:2] = 119
    means_, deviations = stain.fit_stain("reinhard", [picture, picture]).values
    np.testing.assert_allclose(means_, [25.02, 0, 0], atol=0.05)
    np.testing.assert_allclose(deviations, [25.02, 0, 0], atol=0.05)


@pytest.mark.parametrize("kind", stain.KINDS)
@pytest.mark.parametrize(
    "picture",
    [
        np.full((40, 60, 3), 255),
        np.zeros((40, 60, 3)),
        np.full((40, 60, 3), [200, 120, 180]),
        np.full((1, 1, 3), 90),
    ],
    ids=["white", "black", "one colour", "one pixel"],
)
def test_picture_without_stained_tissue_stays_as_it_is(kind, picture):
    target = stain.fit_stain(kind, [tissue(0)])
    pictures = picture[None].astype("uint8")
    np.testing.assert_array_equal(stain.normalise_stain(pictures, target), pictures)


@pytest.mark.parametrize("kind", stain.KINDS)
def test_blank_pictures_do_not_count_in_the_target(kind):
    blank = np.full((40, 60, 3), 255, dtype="uint8")
    assert stain.fit_stain(kind, [tissue(0), blank, blank]) == stain.fit_stain(kind, [tissue(0)])
    with pytest.raises(InputError, match="none of the 2 training images"):
        stain.fit_stain(kind, [blank, blank])


def test_target_is_plain_numbers_and_unknown_kinds_are_refused():
    target = stain.fit_stain("macenko", [tissue(0)])
    kind, values = json.loads(json.dumps([target.kind, target.values]))
    assert stain.StainTarget(kind, tuple(values)) == target
    with pytest.raises(InputError, match="vahadane"):
        stain.fit_stain("vahadane", [tissue(0)])
