"""Threshold, calibration and referral: by hand, and on probabilities whose truth is known."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve

from bcdlib import evaluate
from bcdlib.errors import InputError
from bcdlib.evaluation import bootstrap, metrics, thresholds


def table(label, probability, **columns):
    rows = {
        "filename": [f"{i}.png" for i in range(len(label))],
        "slide": "14-1",
        "case": "14-1",
        "magnification": 40,
        "subtype": "A",
        "label": label,
        "probability": probability,
        "fold": 0,
        "method": "m",
        "split": "case",
        "seed": 0,
    }
    return pd.DataFrame(rows | columns)


def validated(label, probability, **columns):
    """The same images of eight cases, as many as it takes to choose a threshold."""
    case = [f"14-{k}" for k in range(8) for _ in label]
    names = [f"{case}-{i}.png" for i, case in enumerate(case)]
    return table(label * 8, probability * 8, **{"filename": names, "case": case} | columns)


def test_thresholds_by_hand():
    y, p = [0, 0, 1, 0, 1, 1], [0.1, 0.2, 0.3, 0.4, 0.6, 0.9]
    # at 0.6: 2 of 3 found, no false alarm (0.67); at 0.3: all found, one false alarm (0.67): take the higher
    assert thresholds.choose_threshold(y, p) == 0.6
    assert thresholds.choose_threshold(y, p, "sensitivity", sensitivity=0.6) == 0.6
    assert thresholds.choose_threshold(y, p, "sensitivity", sensitivity=0.7) == 0.3
    assert thresholds.choose_threshold([1, 1], [0.2, 0.3]) == 0.5
    # upside down: no threshold is any good, but one that finds nothing is none
    assert thresholds.choose_threshold([1, 0], [0.2, 0.9]) == 0.2


@pytest.mark.parametrize("kind", ["temperature", "platt"])
def test_calibration_finds_what_was_done_to_the_logits(kind):
    rng = np.random.default_rng(0)
    honest = expit(rng.normal(0, 2, 40_000))
    y = (rng.random(40_000) < honest).astype(int)
    shift = 0.0 if kind == "temperature" else 0.7
    overconfident = expit(3 * logit(honest) + shift)
    slope, intercept = thresholds.fit_calibration(y, overconfident, kind)
    assert slope == pytest.approx(1 / 3, rel=0.05) and intercept == pytest.approx(-shift / 3, abs=0.05)
    after = thresholds.calibrate(overconfident, slope, intercept)
    assert metrics.calibration_error(y, overconfident) > 0.1 and metrics.calibration_error(y, after) < 0.01


def test_calibration_survives_extremes():
    assert (
        thresholds.fit_calibration([1, 1], [0.2, 0.9])
        == (1, 0)
        == thresholds.fit_calibration([0, 1], [0.5, 0.5])
    )
    assert thresholds.fit_calibration([0, 1], [0.1, 0.9], "none") == (1, 0)
    for kind in ("temperature", "platt"):  # separable, with probabilities of exactly 0 and 1
        slope, intercept = thresholds.fit_calibration([0, 0, 1, 1], [0.0, 0.1, 0.9, 1.0], kind)
        assert slope > 0 and np.isfinite([slope, intercept]).all()


def test_separable_classes_do_not_ask_for_certainty():
    """Twenty images in perfect order: an unsmoothed temperature runs to its bound, 0.05."""
    y, p = np.repeat([0, 1], 10), np.repeat([0.3, 0.7], 10)
    slope, _ = thresholds.fit_calibration(y, p)
    # by hand: the smoothed targets are 11/12 and 1/12, whose logit is log 11
    assert slope == pytest.approx(np.log(11) / logit(0.7), rel=1e-3)
    assert thresholds.calibrate([0.7], slope, 0) == pytest.approx(11 / 12, rel=1e-3)


def test_locked_thresholds_are_those_of_validation_and_of_the_trial():
    y = [0, 0, 1, 1]
    validation = pd.concat([validated(y, [0.1, 0.2, 0.3, 0.9]), validated(y, [0.1, 0.6, 0.7, 0.9], fold=1)])
    test = pd.concat(
        [table(y, [0.25, 0.35, 0.3, 0.9]), table(y, [0.65, 0.6, 0.7, 0.9], fold=1), table(y, y, fold=2)]
    )
    locked = thresholds.lock_thresholds(validation)
    assert locked["threshold"].tolist() == [0.3, 0.7] and locked["validation_images"].tolist() == [32, 32]
    assert locked["sensitivity_on_validation"].tolist() == [1, 1] and locked["note"].eq("").all()
    applied = thresholds.apply_lock(test, locked)
    assert applied.groupby("fold")["threshold"].first().tolist() == [
        0.3,
        0.7,
        0.5,
    ]  # fold 2 had no validation
    assert applied.query("fold == 2")["calibrated"].tolist() == [0, 0, 1, 1]
    by_hand = metrics.metrics_table(applied, ("method", "fold"), "threshold").set_index("fold")
    assert by_hand["accuracy"].tolist() == [0.75, 1, 1]
    # what is locked does not depend on the test part, nor the order of its rows on what is locked
    assert applied["filename"].tolist() == test["filename"].tolist()
    # temperature keeps the order within a trial
    assert (
        applied.query("fold == 0")["calibrated"].rank() == test.query("fold == 0")["probability"].rank()
    ).all()


def test_no_validation_locks_nothing():
    empty = thresholds.lock_thresholds(table([], []))
    assert empty.empty
    applied = thresholds.apply_lock(table([0, 1], [0.2, 0.9]), empty)
    assert applied["threshold"].tolist() == [0.5, 0.5] and applied["calibrated"].tolist() == [0.2, 0.9]
    one_class = thresholds.lock_thresholds(table([1, 1], [0.2, 0.3]))
    assert one_class["threshold"].tolist() == [0.5] and one_class["refer_below"].isna().all()


def test_selective_accuracy_by_hand():
    # certainty orders: 0.99 right, 0.03 right, 0.8 wrong, 0.45 right
    found = thresholds.selective_accuracy(
        table([1, 0, 0, 0], [0.99, 0.03, 0.8, 0.45]), shares=(1.0, 0.75, 0.5)
    )
    assert found["accuracy"].tolist() == [0.75, pytest.approx(2 / 3), 1] and found["images"].tolist() == [
        4,
        3,
        2,
    ]


def test_referral_by_hand():
    y, p = [1, 1, 1, 0, 0, 0], [0.9, 0.6, 0.3, 0.4, 0.2, 0.1]
    locked = thresholds.lock_thresholds(
        validated(y, p)
    )  # validation: Youden at 0.6; nothing malignant below 0.3
    assert locked["threshold"][0] == 0.6 and locked["refer_below"][0] == 0.3
    test = table(y, [0.9, 0.5, 0.25, 0.4, 0.2, 0.1])
    found = thresholds.referral_table(thresholds.apply_lock(test, locked)).iloc[0]
    assert found["referred"] == 2 / 6 and found["sensitivity"] == pytest.approx(2 / 3)  # 0.25 is lost
    assert found["referred, 95 % by case"] == "cannot be said"  # one case
    assert found["referred_hindsight"] == 3 / 6  # 0.25, 0.4 and 0.5 would have had to be looked at


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rule": "best"}, "unknown threshold rule 'best'"),
        ({"calibration": "isotonic"}, "unknown calibration"),
        ({"sensitivity": 1.2}, "above 0, up to 1"),
        ({"sensitivity": 0}, "above 0"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(InputError, match=message):
        thresholds.lock_thresholds(table([0, 1], [0.2, 0.8]), **change)


def test_both_thresholds_stand_one_under_the_other():
    y = [0, 0, 1, 1]
    rows = pd.concat([table(y, [0.1, 0.4, 0.35, 0.9]), table(y, [0.2, 0.6, 0.7, 0.8], split="image")])
    locked = thresholds.lock_thresholds(validated(y, [0.1, 0.2, 0.3, 0.9]))  # 0.3, for the split by case only
    found = evaluate.threshold_table(thresholds.apply_lock(rows, locked))
    assert found[["split", "at"]].drop_duplicates().values.tolist() == [
        ["case", "0.5"],
        ["case", "locked"],
        ["image", "0.5"],
        ["image", "locked"],
    ]
    values = found.pivot(index=["split", "at"], columns="metric", values="value")
    assert values["accuracy"].tolist() == [0.75, 0.75, 0.75, 0.75]
    assert values["sensitivity"].tolist() == [0.5, 1, 1, 1]
    assert (found["95 % by case"] == "cannot be said").all()  # one case
    every = evaluate.metrics_by_group(rows).set_index("metric")
    assert every.loc["auc"].tolist() == [0.75, 1] and list(every.index) == list(metrics.METRICS)


@pytest.mark.parametrize("cases, chosen", [(7, False), (8, True)])
def test_few_cases_choose_nothing(cases, chosen):
    rows = validated([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.9])
    locked = thresholds.lock_thresholds(rows[rows["case"].isin([f"14-{k}" for k in range(cases)])]).iloc[0]
    assert (locked["threshold"] == 0.3) == chosen and (locked["slope"] != 1) == chosen
    assert np.isfinite(locked["refer_below"]) == chosen
    assert locked["note"] == "" or "7 benign cases and 7 malignant cases on validation" in locked["note"]
    assert (locked["note"] == "") == chosen


class TestForeignValidation:
    """A validation table of another model: joined to its trial, or refused."""

    test = validated([0, 1], [0.2, 0.9]).assign(case=lambda t: "t" + t["case"])
    other = validated([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.9], split="val").assign(
        filename=lambda t: "v" + t["filename"], fold=9
    )

    def test_one_trial_on_each_side_belongs_together(self):
        found = thresholds.match_validation(self.other, self.test)
        assert (found["split"] == "case").all() and (found["fold"] == 0).all() and len(found) == 32

    def test_no_match_names_both(self):
        two = pd.concat([self.test, self.test.assign(fold=1)])
        with pytest.raises(
            InputError, match="they are of method m, split val.*tested is method m, split case"
        ):
            thresholds.match_validation(self.other, two)

    def test_test_images_are_refused(self):
        with pytest.raises(InputError, match="16 of 16 validation images are test images"):
            thresholds.match_validation(self.test, self.test)

    def test_shared_cases_are_warned_of(self):
        with pytest.warns(UserWarning, match="8 validation cases are test cases too, the first 14-0"):
            thresholds.match_validation(self.other, self.test.assign(case=lambda t: t["case"].str[1:]))


def test_the_reliability_band_is_of_sklearns_curve_and_over_cases():
    rng = np.random.default_rng(0)
    case = np.repeat(np.arange(30), 8)
    p = np.clip(rng.beta(1, 1, 30)[case] + rng.normal(0, 0.1, 240), 0, 1)
    rows = table((rng.random(240) < p).astype(int), p, case=[f"14-{k}" for k in case])
    rows.loc[0, "probability"] = 1.0
    found = thresholds.reliability_band(rows)
    share, mean = calibration_curve(rows["label"], rows["probability"], n_bins=metrics.BINS)
    assert found["malignant"].tolist() == pytest.approx(share)
    assert found["probability"].tolist() == pytest.approx(mean)
    # whole cases drawn, one by one
    cases = [part for _, part in rows.groupby("case")]
    draws = []
    for _ in range(500):
        drawn = pd.concat([cases[k] for k in rng.integers(0, 30, 30)])
        inside = drawn["probability"].between(0.5, 0.6)
        draws.append(drawn.loc[inside, "label"].mean())
    row = found[found["probability"].between(0.5, 0.6)].iloc[0]
    wanted = bootstrap.confidence_limits(np.array(draws), int(row["cases"]))
    assert [row["low"], row["high"]] == pytest.approx(wanted, abs=0.08)
    few = rows[rows["case"].isin(["14-0", "14-1"])]
    assert thresholds.reliability_band(few)[["low", "high"]].isna().all(axis=None)


def test_calibration_in_numbers_before_and_after():
    """Probabilities made too extreme: a slope below 1, and 1 after what was done to them is undone."""
    rng = np.random.default_rng(0)
    honest = expit(rng.normal(0, 1.5, 400))
    rows = table((rng.random(400) < honest).astype(int), expit(2 * logit(honest)))
    rows = rows.assign(case=[f"14-{n % 40}" for n in range(400)], calibrated=honest)
    found = evaluate.calibration_table(rows).set_index(["probability", "metric"])
    assert found.index.get_level_values(0).unique().tolist() == ["before", "after"]
    names = [metrics.METRICS[f"calibration_{name}"].label for name in ("slope", "intercept")]
    before, after = (found.loc[when, "value"] for when in ("before", "after"))
    assert before[names[0]] == pytest.approx(after[names[0]] / 2, rel=0.01)
    assert after[names].tolist() == pytest.approx([1, 0], abs=0.3)
    for name, right in zip(names, (1, 0)):
        low, high = map(float, found.loc[("after", name), "95 % by case"].split(" to "))
        assert low < right < high
    assert float(found.loc[("before", names[0]), "95 % by case"].split(" to ")[1]) < 1
    same = evaluate.calibration_table(rows.assign(calibrated=rows["probability"]))
    assert set(same["probability"]) == {"before"}  # nothing was fitted: once is enough
    panel = evaluate.reliability_figure(rows).axes[0]
    assert len(panel.collections) >= 2  # the band and its bars


def test_equally_certain_images_are_decided_together():
    """Whatever the order of the rows: tables come sorted by name, the benign ones first."""
    label = np.arange(40) % 2
    probability = np.where(np.arange(40) < 8, 0.999999999, 0.4)
    rows = table(label, probability, case=[f"14-{k // 2}" for k in range(40)])
    found = [
        thresholds.selective_accuracy(part, [0.1, 0.5])
        for part in (rows.sort_values("label"), rows.sort_values("label", ascending=False))
    ]
    pd.testing.assert_frame_equal(*found)
    assert found[0]["decided"].tolist() == [0.2, 1.0] and found[0]["accuracy"].tolist() == [0.5, 0.5]
