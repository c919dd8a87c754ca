"""Intervals on simulated studies whose truth is known, and against scikit-learn on weighted images."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import special
from sklearn import metrics as sk

from bcdlib.errors import InputError
from bcdlib.evaluation import bootstrap, metrics


def study(seed, cases=60, shift=0.0):
    """Predictions of a simulated collection: a case has a class, a difficulty and 4 to 16 images."""
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


def test_weighted_metrics_agree_with_sklearn():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, 300), rng.random(300).round(2)
    weights = rng.integers(0, 4, (4, 300))
    images = metrics.with_correct(pd.DataFrame({"label": y, "probability": p}))
    by_image = {key: metric for key, metric in metrics.METRICS.items() if metric.unit == "image"}
    images["fold"] = np.arange(300) % 2
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
            "auc_within": np.mean(
                [sk.roc_auc_score(y[k::2], p[k::2], sample_weight=w[k::2]) for k in (0, 1)]
            ),
        }
        logit, binomial = special.logit(p.clip(1e-6, 1 - 1e-6)), sm.families.Binomial()
        slope = sm.GLM(y, sm.add_constant(logit), binomial, freq_weights=w).fit(tol=1e-12).params[1]
        intercept = sm.GLM(y, np.ones(300), binomial, freq_weights=w, offset=logit).fit(tol=1e-12).params[0]
        values = {name: values[row] for name, values in found.items()}
        assert values.pop("calibration_slope") == pytest.approx(slope, abs=1e-4)
        assert values.pop("calibration_intercept") == pytest.approx(intercept, abs=1e-5)
        assert values == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("predicted", [0, 1])
def test_mcc_and_kappa_are_0_where_all_are_predicted_alike(predicted):
    y = np.arange(9) % 3 // 2
    rows = pd.DataFrame({"label": y, "predicted": predicted})
    for name, sklearns in (("mcc", sk.matthews_corrcoef), ("kappa", sk.cohen_kappa_score)):
        found = metrics.METRICS[name].weighted_values(rows, np.vstack([np.ones(9), 1.0 * (y == 0)]))
        assert found[0] == sklearns(y, rows["predicted"]) == 0 and np.isnan(found[1])


def test_what_was_asked_before_is_the_same_as_asked_anew(monkeypatch):
    """Whatever was asked of the same rows before, and of others that differ a little."""
    first, second = study(8)
    changed = first.assign(probability=first["probability"].where(first.index > 0, 0.5))
    fifths = first.assign(at=0.2)
    asked = [
        lambda: bootstrap.interval_table(first, ["accuracy"], by_image=False, repeats=60),
        lambda: bootstrap.interval_table(first, ["auc", "accuracy"], repeats=60),
        lambda: bootstrap.interval_table(first, ["auc", "accuracy"], by_image=False, repeats=60),
        lambda: bootstrap.interval_table(first, ["accuracy"], threshold=0.2, repeats=60),
        lambda: bootstrap.interval_table(fifths, ["accuracy"], threshold="at", repeats=60),
        lambda: bootstrap.interval_table(first, ["accuracy"], repeats=61),
        lambda: bootstrap.interval_table(first, ["accuracy"], repeats=60, seed=1),
        lambda: bootstrap.interval_table(changed, ["accuracy", "auc"], repeats=60),
        lambda: bootstrap.interval_table(second, ["accuracy"], repeats=60),
        lambda: bootstrap.interval_table(first.assign(case="a"), ["accuracy"], repeats=60),
    ]
    anew = []
    for ask in asked:
        bootstrap._KNOWN.clear()
        anew.append(ask())
    bootstrap._KNOWN.clear()
    for ask, found in zip(asked, anew):
        pd.testing.assert_frame_equal(ask(), found, check_exact=True)
    monkeypatch.setattr(bootstrap, "bootstrap_cases", None)
    pd.testing.assert_frame_equal(asked[2](), anew[2], check_exact=True)  # nothing is drawn again
    with pytest.raises(InputError, match="metric"):
        bootstrap.interval_table(first, ["acuracy"])


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
    text = bootstrap.interval_text(next(found.reset_index().itertuples()))
    assert text == f"{found.loc['accuracy', 'value']:.3f} (cannot be said)"


@pytest.mark.parametrize("benign", [1, 2, 3])
def test_fewer_than_three_cases_of_a_class_say_nothing(benign):
    """Not even where images abound: "specificity 0.900 to 0.900" of one benign case was printed once."""
    first, _ = study(3)
    cases = first.drop_duplicates("case")
    kept = (
        cases[cases["label"] == 0]["case"].head(benign).tolist() + cases[cases["label"] == 1]["case"].tolist()
    )
    keys = ("accuracy", "auc", "specificity", "sensitivity", "balanced_accuracy", "case_auc")
    found = bootstrap.interval_table(first[first["case"].isin(kept)], keys, repeats=200).set_index("metric")
    said = found["low"].notna()
    assert said["sensitivity"]  # rests on the malignant cases alone
    assert said.drop("sensitivity").all() == (benign == 3) and said.drop("sensitivity").any() == (benign == 3)


def test_perfect_predictions_have_an_interval_below_one():
    """Nothing is "1.000 to 1.000": other cases may well be wrong."""
    first, _ = study(3, cases=26)
    perfect = first.assign(probability=first["label"].clip(0.01, 0.99))
    keys = (
        "accuracy",
        "sensitivity",
        "specificity",
        "balanced_accuracy",
        "slide_recognition",
        "auc",
        "case_auc",
    )
    found = bootstrap.interval_table(perfect, keys, repeats=1000).set_index("metric")
    assert found["value"].eq(1).all() and found["high"].eq(1).all()
    assert found["low"].between(0.6, 0.95).all(), found["low"]
    m, b = first.groupby("label")["case"].nunique()[[1, 0]]
    assert found.loc["case_auc", "low"] == bootstrap.auc_limits(1.0, m, b)[0]


def test_auc_limits_by_hand():
    """Newcombe's equation holds at both limits; they meet the AUC as units grow, and mirror each other."""
    for auc, m, b in ((0.5, 10, 10), (0.8, 12, 8), (0.97, 54, 16), (1.0, 20, 6), (0.0, 20, 6)):
        for side, limit in zip((-1, 1), bootstrap.auc_limits(auc, m, b), strict=True):
            n = (m + b) / 2 - 1
            variance = (
                limit * (1 - limit) / (m * b) * (1 + n * (1 - limit) / (2 - limit) + n * limit / (1 + limit))
            )
            assert auc == pytest.approx(limit - side * 1.959964 * np.sqrt(variance), abs=1e-6)
        low, high = bootstrap.auc_limits(1 - auc, b, m)
        assert (1 - high, 1 - low) == pytest.approx(bootstrap.auc_limits(auc, m, b))
    low, high = bootstrap.auc_limits(0.8, 10**6, 10**6)
    assert low == pytest.approx(0.8, abs=0.01) and high == pytest.approx(0.8, abs=0.01)


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
    assert same["value"] == 0 and np.isnan([same["low"], same["high"], same["p"]]).all()
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
    again = both.assign(split="image", probability=both["probability"] ** 0.9)
    table = bootstrap.comparison_table(pd.concat([both, again]), repeats=400)
    # methods under each split against the first; then each method's protocols against the strictest: by case
    assert table[["within", "first", "second"]].drop_duplicates().values.tolist() == [
        ["case", "second", "first"],
        ["image", "second", "first"],
        ["first", "image", "case"],
        ["second", "image", "case"],
    ]
    assert len(table) == 8 and set(table["metric"]) == {"accuracy", "auc"}
    # Holm by hand: a family is one metric under one question, methods or protocols; here two rows each
    for name, family in table.groupby([table["within"].isin(["case", "image"]), "metric"]):
        ranked = family.sort_values("p", kind="stable")
        if ranked["p"].isna().any():
            assert name == (False, "auc")  # the order of probabilities is the same: no difference to speak of
            continue
        by_hand = (ranked["p"] * [2, 1]).cummax().clip(upper=1)
        assert ranked["p_holm"].tolist() == pytest.approx(by_hand.tolist())
    assert bootstrap.comparison_table(first).empty and "p_holm" in bootstrap.comparison_table(first)


def test_p_says_what_the_interval_says():
    """p is below 0.05 where the 95 % interval leaves out 0, and nowhere else."""
    sides = set()
    for number in range(25):
        first, second = study(number, cases=20, shift=1.0)
        found = bootstrap.paired_difference(first, second, "brier", repeats=400)
        left_out = not found["low"] <= 0 <= found["high"]
        sides.add(left_out)
        assert left_out == (found["p"] < 0.05) or abs(found["p"] - 0.05) < 0.01
    assert sides == {True, False}


def test_a_large_difference_among_many_is_found():
    """Holm's correction of 60 comparisons can reject: there are as many resamples as that takes."""
    first, _ = study(5, cases=26)
    bad = first.assign(probability=1 - first["probability"])
    others = [
        first.assign(method=f"like-{k}", probability=(first["probability"] + k / 1e4).clip(0, 1))
        for k in range(59)
    ]
    table = bootstrap.paired_differences(
        pd.concat([first, bad.assign(method="bad"), *others]), "method", "accuracy"
    )
    assert len(table) == 60
    assert table.set_index("first").loc["bad", "p_holm"] < 0.05


def test_pairs_are_found_whatever_the_folds():
    """The same images under other folds are the same images."""
    first, second = study(5, shift=0.6)
    shuffled = second.assign(fold=np.arange(len(second)) % 5)
    apart = second.assign(fold=7)
    expected = bootstrap.paired_difference(first, second, "auc", repeats=100)
    for other in (shuffled, apart):
        found = bootstrap.paired_difference(first, other.sample(frac=1, random_state=0), "auc", repeats=100)
        assert found == pytest.approx(expected)
    # folds that overlap: the same image is judged once a fold, on both sides
    twice = [pd.concat([one, one.assign(fold=1)]) for one in (first, second)]
    assert bootstrap.paired_difference(*twice, "auc", repeats=100) == pytest.approx(expected)
    # and against folds that do not
    assert bootstrap.paired_difference(twice[0], second, "auc", repeats=100) == pytest.approx(expected)


def test_large_tables_are_drawn_in_groups(monkeypatch):
    """Units in random groups and probabilities in levels give the same intervals, but for chance."""
    first, _ = study(5, cases=1500)
    keys = ("accuracy", "sensitivity", "auc", "brier", "slide_auc", "slide_recognition", "balanced_accuracy")

    def widths():
        found = bootstrap.interval_table(first.assign(fold=0), keys, repeats=1000).set_index("metric")
        return found["high"] - found["low"], found["high_by_image"] - found["low_by_image"]

    exact, exact_by_image = widths()
    monkeypatch.setattr(bootstrap, "_KNOWN", {})  # or it is asked what it knows
    monkeypatch.setattr(bootstrap, "MOST_UNITS", 1200)
    monkeypatch.setattr(bootstrap, "MOST_KINDS", 2000)
    grouped, grouped_by_image = widths()
    np.testing.assert_allclose(grouped, exact, rtol=0.12)
    np.testing.assert_allclose(grouped_by_image.dropna(), exact_by_image.dropna(), rtol=0.12)
    assert not np.array_equal(grouped, exact)


def test_kinds_count_what_rows_do():
    """Each resample's metrics are those of the resampled rows themselves."""
    first, _ = study(2, cases=12)
    first = first.assign(probability=first["probability"].round(1), fold=np.arange(len(first)) % 3)
    keys = ("accuracy", "auc", "auc_within", "brier", "slide_recognition", "f1", "kappa")
    found = bootstrap.bootstrap_cases(first, keys, repeats=20, seed=4)
    cases = np.unique(first["case"])
    counts = np.random.default_rng(4).multinomial(12, np.full(12, 1 / 12), size=20)
    for drawn, row in zip(counts, found.to_dict("records"), strict=True):
        rows = first.loc[np.repeat(first.index, pd.Series(drawn, cases)[first["case"]])]
        expected = {key: metrics.METRICS[key].value(metrics.with_correct(rows)) for key in keys[:4]}
        expected |= {key: metrics.METRICS[key].value(metrics.with_correct(rows)) for key in keys[5:]}
        assert {key: row[key] for key in expected} == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("metric", ["accuracy", "auc", "case_auc"])
def test_the_same_predictions_do_not_differ_where_only_one_split_tests_images_twice(metric):
    """Each image counts on both sides as often as the folds of the one that overlaps test it."""
    table, _ = study(3)
    cases = table["case"].drop_duplicates().to_numpy()
    folds = [cases[:30], cases[15:50], cases[40:]]  # some cases in two folds, some in one
    overlapping = pd.concat(
        [
            table[table["case"].isin(part)].assign(fold=fold, split="official")
            for fold, part in enumerate(folds)
        ]
    )
    for first, second in ((table, overlapping), (overlapping, table)):
        found = bootstrap.paired_difference(first, second, metric, repeats=200)
        assert found["value"] == 0 and found["images"] == len(table)
    other = overlapping.assign(probability=1 - overlapping["probability"])
    by_fold, upside_down = (
        [metrics.metrics_table(part, keys=[metric])[metric].item() for _, part in one.groupby("fold")]
        for one in (overlapping, other)
    )
    found = bootstrap.paired_difference(table, other, metric, repeats=200)
    assert found["value"] == pytest.approx(np.mean(by_fold) - np.mean(upside_down))


def test_a_case_with_images_of_both_classes_is_one_case():
    """The interval is as wide as with as many cases of one class each."""
    rng = np.random.default_rng(0)
    mixed = pd.DataFrame(
        {
            "filename": [f"{k}.png" for k in range(130)],
            "case": np.repeat([f"14-{k}" for k in range(13)], 10),
            "label": [*np.tile([0, 1], 50), *[0] * 30],
            "probability": rng.random(130),
            "slide": "14-1",
            "subtype": "A",
            "magnification": 40,
            "fold": 0,
            "seed": 0,
            "method": "m",
            "split": "case",
        }
    )
    (row,) = bootstrap.interval_table(mixed, ["case_auc"], by_image=False).itertuples()
    assert (row.low, row.high) == pytest.approx(bootstrap.auc_limits(row.value, 10, 3))
    two = mixed[mixed["case"] != "14-12"]  # two benign cases: too few to say anything
    assert bootstrap.interval_table(two, ["case_auc"], by_image=False)["low"].isna().all()


def test_limits_that_differ_by_rounding_alone_are_none():
    table, _ = study(0)
    certain = table.assign(probability=np.where(table["label"] == 1, 0.7, 0.3))
    found = bootstrap.interval_table(certain, ["average_precision"], by_image=False)
    assert found["value"].item() == pytest.approx(1) and found["low"].isna().all()
