"""Intervals on simulated studies whose truth is known, and against scikit-learn on weighted images."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from bcdlib.errors import InputError
from bcdlib.evaluation import bootstrap, metrics


def study(seed, cases=60, shift=0.0):
    """Predictions of a simulated collection: a case has a class, a difficulty of its own, and 4 to 16 images."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(4, 17, cases)
    label = np.repeat(rng.integers(0, 2, cases), sizes)
    difficulty = np.repeat(rng.normal(0, 1.2, cases), sizes)
    signal = (2 * label - 1) * 0.8 + difficulty
    n = len(label)
    case = np.repeat([f"14-{k}" for k in range(cases)], sizes)
    rows = pd.DataFrame(
        {
            "filename": [f"{k}.png" for k in range(n)],
            "case": case,
            "slide": case,
            "subtype": "A",
            "magnification": 40,
            "label": label,
            "fold": 0,
            "split": "case",
            "seed": 0,
        }
    )
    tables = {
        name: rows.assign(method=name, probability=1 / (1 + np.exp(-(signal + rng.normal(by, 1, n)))))
        for name, by in (("first", 0.0), ("second", shift))
    }
    return tables["first"], tables["second"]


def coverage(studies=500, repeats=600):
    """Share of studies whose interval holds the truth, by metric and way of drawing."""
    big = [study(10_000_019, cases=60_000, shift=0.6)]
    truth = {
        f: metrics.compute_metrics(big[0][0]["label"], big[0][0]["probability"])[f]
        for f in ("accuracy", "auc")
    }
    gap = {
        f: truth[f] - metrics.compute_metrics(big[0][1]["label"], big[0][1]["probability"])[f] for f in truth
    }
    held = []
    for number in range(studies):
        first, second = study(number, shift=0.6)
        drawn = bootstrap.interval_table(first, repeats=repeats, seed=number).set_index("metric")
        row = {}
        for metric, value in truth.items():
            found = drawn.loc[metric]
            row[f"{metric}, by case"] = found["low"] <= value <= found["high"]
            row[f"{metric}, by image"] = found["low_by_image"] <= value <= found["high_by_image"]
            paired = bootstrap.paired_difference(first, second, metric, repeats=repeats, seed=number)
            row[f"{metric}, paired difference by case"] = paired["low"] <= gap[metric] <= paired["high"]
        held.append(row)
    return pd.DataFrame(held).mean()


@pytest.mark.slow
def test_coverage():
    """95 % intervals over cases hold the truth in 93 to 97 % of 500 studies of 60 cases; those by image do not."""
    held = coverage()
    print(held.to_string())
    by_case = held[held.index.str.endswith("by case")]
    assert len(by_case) == 4 and by_case.between(0.93, 0.97).all(), held.to_string()
    assert (held[held.index.str.endswith("by image")] < 0.75).all()


def test_weighted_metrics_agree_with_sklearn():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, 300), rng.random(300).round(2)
    weights = rng.integers(0, 4, (4, 300))
    images = metrics.with_correct(pd.DataFrame({"label": y, "probability": p}))
    by_image = {key: metric for key, metric in metrics.METRICS.items() if metric.unit == "image"}
    found = {key: metric.weighted_values(images, weights) for key, metric in by_image.items()}
    for row, w in enumerate(weights):
        predicted = p >= 0.5
        expected = {
            "accuracy": sk.accuracy_score(y, predicted, sample_weight=w),
            "auc": sk.roc_auc_score(y, p, sample_weight=w),
            "balanced_accuracy": sk.balanced_accuracy_score(y, predicted, sample_weight=w),
            "sensitivity": sk.recall_score(y, predicted, sample_weight=w),
            "specificity": sk.recall_score(y, predicted, pos_label=0, sample_weight=w),
            "precision": sk.precision_score(y, predicted, sample_weight=w),
            "f1": sk.f1_score(y, predicted, sample_weight=w),
            "mcc": sk.matthews_corrcoef(y, predicted, sample_weight=w),
            "kappa": sk.cohen_kappa_score(y, predicted, sample_weight=w),
            "average_precision": sk.average_precision_score(y, p, sample_weight=w),
            "brier": sk.brier_score_loss(y, p, sample_weight=w),
            "ece": metrics.calibration_error(np.repeat(y, w), np.repeat(p, w)),
        }
        assert {name: values[row] for name, values in found.items()} == pytest.approx(expected, abs=1e-9)


def test_table_and_seed():
    first, _ = study(3)
    found = bootstrap.interval_table(
        first, ("accuracy", "auc", "slide_recognition", "case_auc"), repeats=300
    ).set_index("metric")
    assert (found["low"] < found["value"]).all() and (found["value"] < found["high"]).all()
    naive = found["high_by_image"] - found["low_by_image"]
    assert naive["accuracy"] < (found["high"] - found["low"])["accuracy"]
    assert naive[["slide_recognition", "case_auc"]].isna().all()  # a slide cannot be drawn by image
    assert found["cases"].eq(60).all() and found["images"].eq(len(first)).all()
    again, other = (
        bootstrap.interval_table(first, tuple(found.index), repeats=300, seed=k).set_index("metric")
        for k in (0, 1)
    )
    pd.testing.assert_frame_equal(found, again)
    assert not found["low"].equals(other["low"])


def test_one_case_or_one_class_has_no_interval():
    first, _ = study(3)
    one = first[first["case"] == first["case"][0]]
    found = bootstrap.interval_table(one, repeats=50).set_index("metric")
    assert found["low"].isna().all() and np.isnan(found.loc["auc", "value"])
    assert (
        bootstrap.interval_text(next(found.reset_index().itertuples()))
        == f"{found.loc['accuracy', 'value']:.3f}"
    )


def test_limits_by_hand():
    # 11 units: t with 10 degrees of freedom at 2.5 % is -2.228, times sqrt(1.1) -2.337: a tail of 0.97 %
    low, high = bootstrap.confidence_limits(np.linspace(0, 1, 100_001), 11)
    assert low == pytest.approx(0.00972, abs=1e-4) and high == pytest.approx(1 - low)
    assert all(np.isnan(bootstrap.confidence_limits([1.0, 2.0], 1)))


def test_paired_difference():
    first, second = study(5, shift=0.6)
    both = pd.concat([first, second])
    found = bootstrap.paired_difference(first, second, "auc", repeats=400)
    one, two = (sk.roc_auc_score(table["label"], table["probability"]) for table in (first, second))
    expected = one - two
    assert (
        found["value"] == pytest.approx(expected)
        and found["low"] < expected < found["high"]
        and found["cases"] == 60
    )
    same = bootstrap.paired_difference(first, first, "auc", repeats=400)
    assert same["value"] == same["low"] == same["high"] == 0 and same["p"] == 1
    # only images that both predicted count
    part = bootstrap.paired_difference(first, second.iloc[:100], repeats=50)
    assert part["images"] == 100
    with pytest.raises(InputError, match="no image and seed in common"):
        bootstrap.paired_difference(first, second.assign(seed=7))
    table = bootstrap.paired_differences(
        pd.concat([both, second.assign(method="third")]), "method", "auc", repeats=400
    )
    assert table["first"].tolist() == ["second", "third"] and table["second"].tolist() == ["first", "first"]
    assert bootstrap.paired_differences(first, "method").empty


def test_unknown_metric():
    with pytest.raises(InputError, match="unknown metric 'acc'"):
        bootstrap.bootstrap_cases(study(1)[0], ("acc",))


def test_comparisons_of_methods_and_protocols_with_holm():
    first, second = study(5, shift=0.6)
    both = pd.concat([first, second])
    table = bootstrap.comparison_table(pd.concat([both, both.assign(split="image")]), repeats=400)
    # methods under each split against the first; then each method's protocols against the strictest: by case
    assert table[["within", "first", "second"]].drop_duplicates().values.tolist() == [
        ["case", "second", "first"],
        ["image", "second", "first"],
        ["first", "image", "case"],
        ["second", "image", "case"],
    ]
    assert len(table) == 8 and set(table["metric"]) == {"accuracy", "auc"}
    # Holm by hand: the smallest of 8 times 8, the next times 7, ..., never falling, at most 1
    ranked = table.sort_values("p", kind="stable")
    by_hand = (ranked["p"] * np.arange(8, 0, -1)).cummax().clip(upper=1)
    assert ranked["p_holm"].tolist() == pytest.approx(by_hand.tolist())
    assert bootstrap.comparison_table(first).empty and "p_holm" in bootstrap.comparison_table(first)
