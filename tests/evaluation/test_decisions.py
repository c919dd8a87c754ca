"""The 2x2 by case, predictive values, net benefit and precision: by hand, and on simulated truth."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bcdlib import evaluate
from bcdlib.errors import InputError
from bcdlib.evaluation import bootstrap, decisions, metrics


def table(cases: dict, **columns):
    """Rows of cases: name -> (label, probabilities of its images)."""
    rows = [
        {"filename": f"{case}-{n}.png", "case": case, "slide": case, "label": label, "probability": p}
        for case, (label, probabilities) in cases.items()
        for n, p in enumerate(probabilities)
    ]
    facts = {"magnification": 40, "subtype": "A", "fold": 0, "method": "m", "split": "case", "seed": 0}
    return pd.DataFrame(rows).assign(**facts | columns)


# six malignant cases, four of them found at 0.6; four benign ones, one of them a false alarm
CASES = {
    "m1": (1, [0.9, 0.8, 0.7]),
    "m2": (1, [0.6]),
    "m3": (1, [0.95, 0.35]),  # 0.65 on average
    "m4": (1, [1.0, 1.0, 0.1]),  # 0.7
    "m5": (1, [0.9, 0.2]),  # 0.55: missed, though one image is found
    "m6": (1, [0.1]),
    "b1": (0, [0.7, 0.6]),  # a false alarm
    "b2": (0, [0.9, 0.1, 0.1]),
    "b3": (0, [0.2]),
    "b4": (0, [0.0, 0.3]),
}


def simple(label, probability, **columns):
    """One image a case."""
    names = [f"c{n}" for n in range(len(label))]
    return table({name: (y, [p]) for name, y, p in zip(names, label, probability)}, **columns)


def test_two_by_two_by_hand():
    rows = table(CASES, threshold=0.6)
    assert decisions.count_cases(rows) == {"TP": 4, "FN": 2, "FP": 1, "TN": 3}
    found = decisions.two_by_two(rows).set_index("measure")
    assert found.loc["sensitivity", ["count", "of", "value"]].tolist() == [4, 6, 4 / 6]
    assert found.loc["specificity", ["count", "of", "value"]].tolist() == [3, 4, 3 / 4]
    assert found.loc["PPV", ["count", "of", "value"]].tolist() == [4, 5, 4 / 5]
    assert found.loc["NPV", ["count", "of", "value"]].tolist() == [3, 5, 3 / 5]
    for row in found.itertuples():
        wilson = stats.binomtest(int(row.count), int(row.of)).proportion_ci(0.95, "wilson")
        assert [row.low, row.high] == pytest.approx([wilson.low, wilson.high])
    assert decisions.count_cases(table(CASES)) == {"TP": 5, "FN": 1, "FP": 1, "TN": 3}  # at 0.5: m5 too
    shown = evaluate.case_table(rows)
    assert shown["cases"].tolist() == ["4 of 6", "3 of 4", "4 of 5", "3 of 5"]
    assert shown["95 %"][0] == "0.300 to 0.903"


def test_what_is_not_there_is_not_defined():
    found = decisions.two_by_two(simple([1, 1, 1], [0.1, 0.2, 0.3])).set_index("measure")
    assert found["of"].tolist() == [3, 0, 0, 3] and found["value"].isna().tolist() == [0, 1, 1, 0]
    assert evaluate.case_table(simple([1, 1], [0.1, 0.2]))["95 %"].tolist()[1:3] == ["cannot be said"] * 2
    values = decisions.predictive_values(simple([1, 1, 0], [0.1, 0.2, 0.3]))
    assert values.loc[values["measure"] == "PPV", "value"].isna().all()  # no case is predicted malignant
    assert decisions.precision(simple([1, 1, 1], [0.1, 0.2, 0.3]))["measure"].tolist() == ["sensitivity"]
    other = simple([1, 0], [np.nan, np.nan])  # learned the magnifications: no probability of malignant
    assert decisions.two_by_two(other).empty and decisions.net_benefit(other).empty
    for figure in (evaluate.case_figure, evaluate.net_benefit_figure, evaluate.precision_figure):
        assert "No method here" in figure(other).axes[0].texts[0].get_text()


def test_each_fold_has_its_threshold_and_seeds_count_with_their_share():
    rows = simple([1, 1, 0, 0], [0.6, 0.6, 0.3, 0.3])
    rows = rows.assign(fold=[0, 1, 0, 1], threshold=[0.5, 0.7, 0.2, 0.4])
    assert decisions.count_cases(rows) == {"TP": 1, "FN": 1, "FP": 1, "TN": 1}
    other = rows.assign(seed=1, probability=[0.6, 0.9, 0.1, 0.1])
    both = pd.concat([rows, other])
    assert decisions.count_cases(both) == {"TP": 1.5, "FN": 0.5, "FP": 0.5, "TN": 1.5}
    assert decisions.two_by_two(both)["of"].tolist() == [2, 2, 2, 2]  # cases, however many seeds
    again = pd.concat([rows, rows.assign(fold=[1, 0, 1, 0])])  # folds that test an image twice
    assert decisions.count_cases(again) == decisions.count_cases(rows)


def test_predictive_values_by_hand():
    rows = table(CASES, threshold=0.6)  # sensitivity 2/3, specificity 3/4
    found = decisions.predictive_values(rows, [0.1, 0.6]).set_index(["prevalence", "measure"])
    # of 1200: 120 malignant, 80 of them found, and 270 of 1080 false alarms
    assert found.loc[(0.1, "PPV"), "value"] == pytest.approx(80 / (80 + 270))
    assert found.loc[(0.1, "NPV"), "value"] == pytest.approx(810 / (810 + 40))
    # at the data's own prevalence they are those of the 2x2
    own = decisions.two_by_two(rows).set_index("measure")["value"]
    assert found.loc[(0.6, "PPV"), "value"] == pytest.approx(own["PPV"])
    assert found.loc[(0.6, "NPV"), "value"] == pytest.approx(own["NPV"])
    assert ((found["low"] < found["value"]) & (found["value"] < found["high"])).all()
    perfect = decisions.predictive_values(simple([1, 1, 1, 0, 0, 0], [0.9] * 3 + [0.1] * 3), [0.1])
    assert perfect["value"].tolist() == [1, 1] and perfect["high"].tolist() == [1, 1]
    assert (perfect["low"] < 1).all()
    text = evaluate.predictive_table(rows, "0.1, 0.6")
    assert text["prevalence"].tolist() == [0.1, 0.6] and text["PPV (95 %)"][0].startswith("0.229 (")
    assert evaluate.predictive_table(rows)["prevalence"].tolist() == list(decisions.PREVALENCES)


@pytest.mark.parametrize(("given", "named"), [("0", "0"), ("0.1 1", "1"), ("ten", "ten"), ("0.5,nan", "nan")])
def test_prevalences_that_are_none_are_refused(given, named):
    with pytest.raises(InputError, match=f"prevalence '{named}': give a share between 0 and 1"):
        evaluate.predictive_table(table(CASES), given)


@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.8, 0.7), (0.95, 0.9)])
def test_intervals_of_predictive_values_hold_the_truth(sensitivity, specificity):
    """Simulated studies of 30 malignant and 20 benign cases: 95 % is promised; few cases give more."""
    rng, held = np.random.default_rng(0), []
    odds = 0.1 * sensitivity / (0.9 * (1 - specificity))
    for _ in range(300):
        label = np.repeat([1, 0], [30, 20])
        right = rng.random(50) < np.where(label, sensitivity, specificity)
        rows = simple(label, np.where(right, label, 1 - label).astype(float))
        found = decisions.predictive_values(rows, [0.1]).iloc[0]
        held.append(found["low"] <= odds / (1 + odds) <= found["high"])
    assert 0.93 <= np.mean(held) <= 0.995


def test_net_benefit_by_hand():
    rows = simple([1, 1, 1, 0, 0, 0, 0, 0], [0.9, 0.7, 0.2, 0.8, 0.5, 0.1, 0.1, 0.1])
    found = decisions.net_benefit(rows, [0.0, 0.2, 0.6, 0.95]).set_index("threshold")
    # at 0.2: three found, two false alarms at 1 to 4; at 0.6: two found, one false alarm at 3 to 2
    assert found["net_benefit"].tolist() == pytest.approx([3 / 8, (3 - 2 / 4) / 8, (2 - 1.5) / 8, 0])
    assert found["act_on_all"].tolist() == pytest.approx(
        [3 / 8, (3 - 5 / 4) / 8, (3 - 5 * 1.5) / 8, (3 - 5 * 19) / 8]
    )
    assert (found["cases"] == 8).all()
    calibrated = rows.assign(calibrated=rows["probability"] / 2)  # it is what is acted on
    assert decisions.net_benefit(calibrated, [0.1, 0.3])["net_benefit"].tolist() == pytest.approx(
        [(3 - 2 / 9) / 8, (2 - 1 * 3 / 7) / 8]
    )
    few = decisions.net_benefit(simple([1, 1, 0, 0, 0], [0.9, 0.7, 0.2, 0.8, 0.5]))
    assert few["low"].isna().all() and len(few) == 99  # two malignant cases: nothing is said about others


def test_the_band_of_net_benefit_is_a_bootstrap_over_cases():
    """Against cases drawn one by one, whole, with all their images."""
    rng = np.random.default_rng(1)
    label = rng.integers(0, 2, 40)
    rows = table({f"c{n}": (y, rng.beta(1 + y, 2 - y, 3)) for n, y in enumerate(label)})
    found = decisions.net_benefit(rows, [0.3]).iloc[0]
    means = rows.groupby("case", sort=False)["probability"].mean().to_numpy()
    drawn = rng.integers(0, 40, (4000, 40))
    acted = means[drawn] >= 0.3
    draws = (acted & (label[drawn] == 1)).mean(axis=1) - (acted & (label[drawn] == 0)).mean(axis=1) * 3 / 7
    # one case more or less is 1/40
    assert [found["low"], found["high"]] == pytest.approx(bootstrap.confidence_limits(draws, 40), abs=0.026)


def test_many_cases_are_drawn_in_groups(monkeypatch):
    rng = np.random.default_rng(0)
    values = rng.random((3000, 2)) < 0.3
    all_cases = bootstrap.resampled_sums(values, repeats=500) / 3000
    monkeypatch.setattr(bootstrap, "MOST_UNITS", 1000)
    grouped = bootstrap.resampled_sums(values, repeats=500) / 3000
    assert grouped.shape == (500, 2)
    assert grouped.mean(axis=0) == pytest.approx(values.mean(axis=0), abs=2e-3)
    assert grouped.std(axis=0) == pytest.approx(all_cases.std(axis=0), rel=0.15)


def test_precision_by_hand():
    rows = table(CASES, threshold=0.6)
    found = decisions.precision(rows).set_index("measure")
    assert found["cases"].to_dict() == {"AUC by case": 10, "sensitivity": 6, "specificity": 4}
    wilson = stats.binomtest(4, 6).proportion_ci(0.95, "wilson")
    assert found.loc["sensitivity", "half_width"] == pytest.approx((wilson.high - wilson.low) / 2)
    auc = metrics.metrics_table(rows)["case_auc"][0]
    low, high = bootstrap.auc_limits(auc, 6, 4)
    assert found.loc["AUC by case", "value"] == auc
    assert found.loc["AUC by case", "half_width"] == pytest.approx((high - low) / 2)
    for measure, row in found.iterrows():
        reach = [
            decisions.half_width(measure, row["value"], row["needed"] - less, malignant=0.6)
            for less in (0, 1)
        ]
        assert reach[0] <= decisions.HALF_WIDTH < reach[1], measure
    # the textbook's 1.96 ** 2 * p * (1 - p) / 0.05 ** 2, which Wilson's interval comes near to
    assert decisions.cases_needed("sensitivity", 0.8) == pytest.approx(1.96**2 * 0.16 / 0.0025, rel=0.01)
    shown = evaluate.precision_table(rows)
    assert shown["counted"].tolist() == ["all", "malignant", "benign"] and "cases for +- 0.05" in shown


def test_titles_of_panels_do_not_run_into_each_other(apart):
    """Methods with settings of one's own, and files, have long names."""
    names = ["resnet50:learning_rate=0.0001:augment=False-head", "robust:bases=resnet50+xception:stages=234"]
    rows = pd.concat([table(CASES, threshold=0.6, method=name) for name in names])
    for figure in (evaluate.case_figure(rows), evaluate.confusion_figure(rows)):
        apart(figure)
        titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
        assert all(name in "".join(title.split()) for name, title in zip(names, titles, strict=True))


def test_figures_show_what_the_tables_say():
    rows = pd.concat([table(CASES, threshold=0.6), table(CASES, threshold=0.6, method="other")])
    matrices = [axis for axis in evaluate.case_figure(rows).axes if axis.get_title()]
    assert [axis.get_title() for axis in matrices] == ["m\nsplit case", "other\nsplit case"]
    assert [text.get_text() for text in matrices[0].texts] == ["3", "1", "2", "4"]
    curves = evaluate.net_benefit_figure(rows).axes[0].lines
    expected = decisions.net_benefit(table(CASES))
    assert curves[1].get_ydata().tolist() == expected["net_benefit"].tolist()
    assert curves[0].get_ydata().tolist() == expected["act_on_all"].tolist()
    panels = evaluate.precision_figure(rows).axes
    assert [axis.get_xlabel() for axis in panels] == ["test cases", "malignant cases", "benign cases"]
    many = pd.concat([table(CASES, method=f"m{n}") for n in range(30)])
    width, height = evaluate.net_benefit_figure(many).get_size_inches()
    assert max(width, height) < 40  # in several columns: a picture has a largest size
