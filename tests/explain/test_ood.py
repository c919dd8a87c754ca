"""Out-of-distribution detection: its threshold, and what it flags."""

import numpy as np
import pandas as pd
import pytest

from bcdlib import methods
from bcdlib.data import splits
from bcdlib.data.breakhis import scan_breakhis
from bcdlib.explain import ood


def test_threshold_is_set_on_other_cases():
    rng = np.random.default_rng(0)
    points = np.abs(rng.normal(size=(40, 8))).astype("float32")
    points[::2] = points[1::2]  # each image twice, in the same case
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    images = pd.DataFrame({"filename": [str(k) for k in range(40)], "case": np.repeat(np.arange(10), 4)})
    alone = ood.build_reference(points, images)
    assert alone.threshold > 0.05 and "40 training images" in alone.set_on
    shared = ood.build_reference(
        points, images, points, validation_images=images
    )  # a protocol that leaks: the same cases in validation
    assert shared.threshold == alone.threshold
    far = ood.build_reference(points, images, -points[:4], validation_images=images[:4].assign(case=99))
    assert far.threshold > alone.threshold and "4 validation images" in far.set_on
    one = ood.build_reference(points, images.assign(case=1))
    assert one.warnings(-points[:2]) == ["", ""]


@pytest.mark.slow
def test_unseen_cases_are_in_distribution_and_other_images_are_not(breakhis, weights_dir, tmp_path):
    """Of 150 or more tissue images of unseen cases at most 10 % flagged, of 50 other images at least 95 %."""
    pytest.importorskip("skimage")
    from bcdlib.data import cache, sources
    from tests import nontissue

    source = sources.open_source(breakhis / "half")
    cache = cache.build_cache(source, scan_breakhis(source).images, (144, 96), root=tmp_path, progress=False)
    method = methods.get_method("resnet50")(trainable="head", weights=str(weights_dir), verbose=0)
    network = method.build(cache.pixels.shape[1:])
    others = nontissue.images((144, 96))
    assert len(others) == 50
    tissue, other = (
        ood.reference_points(network, cache.pixels),
        ood.reference_points(network, np.stack(list(others.values()))),
    )
    split = splits.make_split(cache.images, "case", folds=3)
    for fold in range(3):
        role = (
            splits.fold_of(split, fold).set_index("filename")["role"].loc[cache.images["filename"]].to_numpy()
        )
        parts = {name: (tissue[role == name], cache.images[role == name]) for name in splits.ROLES}
        assert not set(parts["test"][1]["case"]) & {
            *parts["train"][1]["case"],
            *parts["validation"][1]["case"],
        }
        points, images = parts["validation"]
        reference = ood.build_reference(*parts["train"], points, validation_images=images)
        flagged = np.array([bool(text) for text in reference.warnings(parts["test"][0])])
        caught = np.array([bool(text) for text in reference.warnings(other)])
        missed = [name for name, found in zip(others, caught) if not found]
        print(
            f"fold {fold}: {flagged.sum()} of {len(flagged)} tissue images "
            f"of {parts['test'][1]['case'].nunique()} unseen cases flagged, "
            f"{caught.sum()} of {len(caught)} other images; missed: {missed}"
        )
        assert len(flagged) >= 150 and flagged.mean() <= 0.10
        assert caught.mean() >= 0.95
        assert {"cat", "flat_grey"} <= set(others) - set(missed)
