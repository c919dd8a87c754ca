"""What a locked threshold decides about cases: the 2x2, predictive values, net benefit, and how sure that is.

A case counts once: it is predicted malignant where the mean probability of its images reaches the mean of
their thresholds. With several seeds (or folds that test a case more than once) a case counts with the share
of these that predict it malignant. Cases are independent of each other, so shares of them have the interval
of a binomial share.
"""

import bisect
from collections.abc import Sequence

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from bcdlib.errors import InputError, split_words
from bcdlib.evaluation import bootstrap, metrics

GROUP = ["method", "split"]
PREVALENCES = (0.05, 0.1, 0.25, 0.5)
HALF_WIDTH = 0.05  # of an interval, which precision is planned for
NEEDED = f"cases for +- {HALF_WIDTH}"  # the name of that column where it is shown
MOST_CASES = 10**7
MEASURES = ("sensitivity", "specificity", "PPV", "NPV")
_THRESHOLDS = tuple(n / 100 for n in range(1, 100))


def predict_cases(predictions: pd.DataFrame) -> pd.DataFrame:
    """Predict each case as a whole.

    Parameters
    ----------
    predictions : DataFrame
        Rows of one method and split; the column ``threshold`` where there is one (see
        `thresholds.apply_lock`), else 0.5.

    Returns
    -------
    DataFrame
        A row a case, seed (and fold, where folds test an image more than once): case, label (malignant if one
        of its images is), probability, calibrated (means over its images; the same where nothing was
        calibrated), predicted (0 or 1).

    Examples
    --------
    >>> images = pd.DataFrame({"filename": ["1", "2", "3"], "case": ["a", "a", "b"], "label": [1, 1, 0]})
    >>> found = predict_cases(images.assign(probability=[0.9, 0.3, 0.5], seed=0, fold=0, threshold=0.6))
    >>> found[["case", "label", "predicted"]].values.tolist()
    [['a', 1, 1], ['b', 0, 0]]
    """
    known = {"threshold": metrics.THRESHOLD, "calibrated": predictions["probability"]}
    table = predictions.assign(**{name: predictions.get(name, value) for name, value in known.items()})
    table["case"] = metrics.name_codes(table["case"])
    by = ["seed", "fold", "case"] if metrics.overlapping_folds(predictions) else ["seed", "case"]
    columns = {"label": "max", "probability": "mean", "calibrated": "mean", "threshold": "mean"}
    cases = table.groupby(by, sort=False).agg(columns).reset_index()
    reached = cases["probability"] >= cases["threshold"] - 1e-12  # a mean of equal numbers is rounded
    return cases.assign(predicted=reached.astype(int))[
        [*by, "label", "probability", "calibrated", "predicted"]
    ]


def count_cases(predictions: pd.DataFrame) -> dict[str, float]:
    """Count the 2x2 of one method and split by case: TP, FN, FP, TN (malignant is positive).

    Examples
    --------
    >>> images = pd.DataFrame({"filename": ["1", "2", "3"], "case": ["a", "b", "c"], "label": [1, 1, 0]})
    >>> count_cases(images.assign(probability=[0.9, 0.3, 0.2], seed=0, fold=0))
    {'TP': 1.0, 'FN': 1.0, 'FP': 0.0, 'TN': 1.0}
    """
    cases = predict_cases(predictions).groupby("case").agg({"label": "max", "predicted": "mean"})
    malignant, predicted = cases["label"], cases["predicted"]
    return {
        "TP": float((malignant * predicted).sum()),
        "FN": float((malignant * (1 - predicted)).sum()),
        "FP": float(((1 - malignant) * predicted).sum()),
        "TN": float(((1 - malignant) * (1 - predicted)).sum()),
    }


def share_limits(count: float, total: float) -> tuple[float, float]:
    """Compute Wilson's 95 % interval of a share of independent cases; NaN where there is no case.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Examples
    --------
    >>> [round(limit, 3) for limit in share_limits(8, 10)]
    [0.49, 0.943]
    """
    if not total:
        return float("nan"), float("nan")
    low, high = proportion_confint(count, total, 1 - bootstrap.LEVEL, method="wilson")
    return float(low), float(high)


def two_by_two(predictions: pd.DataFrame) -> pd.DataFrame:
    """Compute what follows from the 2x2 of each method and split, with Wilson's 95 % intervals.

    Returns
    -------
    DataFrame
        method, split, measure (`MEASURES`), count, of (cases: 5 of 7 malignant ones were found), value, low,
        high; NaN where there is no such case. Methods without a probability of malignant have no rows.
    """
    rows = []
    for key, part in _parts(predictions):
        n = count_cases(part)
        for measure, right, wrong in zip(MEASURES, ("TP", "TN", "TP", "TN"), ("FN", "FP", "FP", "FN")):
            count, of = n[right], n[right] + n[wrong]
            rows.append([*key, measure, count, of, count / of if of else np.nan, *share_limits(count, of)])
    return pd.DataFrame(rows, columns=[*GROUP, "measure", "count", "of", "value", "low", "high"])


def _parts(predictions: pd.DataFrame):
    known = predictions[predictions["probability"].notna()]
    return known.groupby(GROUP, sort=False)


def read_prevalences(text: str) -> list[float]:
    """Read shares of malignant cases, with commas or spaces between; empty: `PREVALENCES`.

    Raises
    ------
    InputError
        If one is no share between 0 and 1.

    Examples
    --------
    >>> read_prevalences("0.1, 0.25"), read_prevalences("")
    ([0.1, 0.25], [0.05, 0.1, 0.25, 0.5])
    >>> read_prevalences("0.5 0.1 .5")
    [0.5, 0.1]
    """
    shares = []
    for word in split_words(text):
        try:
            shares.append(float(word))
        except ValueError:
            shares.append(float("nan"))
        if not 0 < shares[-1] < 1:
            raise InputError(f"prevalence {word!r}: give a share between 0 and 1, such as 0.1")
    return list(dict.fromkeys(shares)) or list(PREVALENCES)


def predictive_values(predictions: pd.DataFrame, prevalences: Sequence[float] = PREVALENCES) -> pd.DataFrame:
    """Compute PPV and NPV where other shares of the cases are malignant, by Bayes' rule.

    The intervals are those of the likelihood ratios, by MOVER-R (Donner & Zou 2012; Newcombe 2016, "MOVER-R
    confidence intervals for ratios and products of two independently estimated quantities"), from Wilson's of
    sensitivity and specificity. The prevalence itself is taken as known.

    Parameters
    ----------
    predictions : DataFrame
    prevalences : sequence of float
        Between 0 and 1.

    Returns
    -------
    DataFrame
        method, split, prevalence, measure ("PPV" or "NPV"), value, low, high. NaN without malignant or
        without benign cases, or where no case is predicted so.
    """
    rows = []
    for key, part in _parts(predictions):
        n = count_cases(part)
        for prevalence in prevalences:
            for measure, odds, right, wrong in (
                ("PPV", prevalence / (1 - prevalence), ("TP", "FN"), ("FP", "TN")),
                ("NPV", (1 - prevalence) / prevalence, ("TN", "FP"), ("FN", "TP")),
            ):
                counts = [(n[part], n[part] + n[other]) for part, other in (right, wrong)]
                ratios = odds * np.array(_ratio_limits(*counts))
                shares = 1 - 1 / (1 + ratios)  # 1 where there is no upper end
                rows.append([*key, prevalence, measure, *shares])
    return pd.DataFrame(rows, columns=[*GROUP, "prevalence", "measure", "value", "low", "high"])


def _ratio_limits(above: tuple[float, float], below: tuple[float, float]) -> tuple[float, float, float]:
    """Compute the ratio of two independent shares, each (count, total), and its limits by MOVER-R."""
    if not above[1] or not below[1] or not above[0] + below[0]:
        return (np.nan,) * 3
    (a, b), (low_a, high_a), (low_b, high_b) = (
        (above[0] / above[1], below[0] / below[1]),
        share_limits(*above),
        share_limits(*below),
    )
    spread = [(a * b) ** 2 - x * y * (2 * a - x) * (2 * b - y) for x, y in ((low_a, high_b), (high_a, low_b))]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.divide(a, b)
        low = np.divide(a * b - np.sqrt(spread[0]), high_b * (2 * b - high_b))
        high = np.divide(a * b + np.sqrt(spread[1]), low_b * (2 * b - low_b)) if low_b > 1e-12 else np.inf
    return float(ratio), max(0.0, float(low)), float(high)


def net_benefit(predictions: pd.DataFrame, at: Sequence[float] = _THRESHOLDS) -> pd.DataFrame:
    """Compute the net benefit of acting on the calibrated probability of a case, at each threshold.

    Found malignant cases less false alarms, these weighed by the odds of the threshold, a share of all cases:
    TP / n - FP / n * t / (1 - t) (Vickers & Elkin 2006, "Decision curve analysis"). The share of malignant
    cases is that of the predictions.

    Parameters
    ----------
    predictions : DataFrame
    at : sequence of float
        Threshold probabilities t, from 0 up to below 1: who acts from 0.2 on takes four false alarms for one
        malignant case found.

    Returns
    -------
    DataFrame
        method, split, cases, threshold, net_benefit, low, high (95 % band over cases; NaN with fewer than
        `bootstrap.FEWEST_CASES` cases of a class), act_on_all (the net benefit of acting on every case;
        acting on none has 0).
    """
    thresholds, tables = np.asarray(at, dtype=float), []
    odds = thresholds / (1 - thresholds)
    for key, part in _parts(predictions):
        cases = predict_cases(part)
        labels = cases.groupby("case")["label"].max()
        found = _benefits(cases, thresholds)
        if min((labels == side).sum() for side in (0, 1)) < bootstrap.FEWEST_CASES:
            found[:, 1:] = np.nan
        rows = pd.DataFrame(found, columns=["net_benefit", "low", "high"]).assign(
            **dict(zip(GROUP, key, strict=True)),
            cases=len(labels),
            threshold=thresholds,
            act_on_all=labels.mean() - (1 - labels.mean()) * odds,
        )
        tables.append(rows)
    order = [*GROUP, "cases", "threshold", "net_benefit", "low", "high", "act_on_all"]
    return pd.concat(tables, ignore_index=True)[order] if tables else pd.DataFrame(columns=order)


def _benefits(cases: pd.DataFrame, thresholds: np.ndarray) -> np.ndarray:
    """Compute net benefit and its limits at each threshold, (N, 3), from the rows of `predict_cases`."""
    at, asked = np.unique(thresholds, return_inverse=True)
    case, names = pd.factorize(cases["case"], sort=True)
    place, units = bootstrap.draw_places(len(names))
    # how many of the thresholds each row reaches, counted for each unit that is drawn
    bins = place[case] * (len(at) + 1) + np.searchsorted(at - 1e-12, cases["calibrated"], side="right")
    share = 1 / np.bincount(case)[case]
    true, false = (
        np.bincount(bins, share * (cases["label"] == side), units * (len(at) + 1))
        .reshape(units, -1)[:, ::-1]
        .cumsum(axis=1)[:, -2::-1]
        for side in (1, 0)
    )
    benefits = true - false * at / (1 - at)
    draws = bootstrap.resampled_sums(benefits) / len(names)
    limits = [bootstrap.confidence_limits(values, len(names)) for values in draws.T]
    return np.column_stack([benefits.sum(axis=0) / len(names), limits])[asked]


def half_width(measure: str, value: float, cases: float, *, malignant: float = 0.5) -> float:
    """Compute half the width of the 95 % interval that a value would have with another number of cases.

    Parameters
    ----------
    measure : str
        "AUC by case" (Newcombe's interval), "sensitivity" or "specificity" (Wilson's).
    value : float
        What is measured, 0..1.
    cases : float
        All cases for an AUC, those of the class for a sensitivity or specificity.
    malignant : float
        Share of malignant cases, for an AUC.

    Examples
    --------
    >>> round(half_width("sensitivity", 0.8, 100), 3), round(half_width("AUC by case", 0.8, 100), 3)
    (0.078, 0.087)
    """
    if measure == "AUC by case":
        low, high = bootstrap.auc_limits(value, malignant * cases, (1 - malignant) * cases)
    else:
        low, high = share_limits(value * cases, cases)
    return (high - low) / 2


def cases_needed(measure: str, value: float, *, half: float = HALF_WIDTH, malignant: float = 0.5) -> int:
    """Compute how many cases narrow the interval of a value to +- `half`; see `half_width`.

    Examples
    --------
    >>> cases_needed("sensitivity", 0.8), cases_needed("specificity", 0.95)
    (245, 83)
    """
    found = bisect.bisect_left(
        range(4, MOST_CASES), -half, key=lambda n: -half_width(measure, value, n, malignant=malignant)
    )
    return found + 4


def precision(predictions: pd.DataFrame) -> pd.DataFrame:
    """Compute how wide the intervals of the figures by case are, and how many cases would narrow them.

    Returns
    -------
    DataFrame
        method, split, measure ("AUC by case", "sensitivity", "specificity"), counted ("all", "malignant" or
        "benign" cases), cases, malignant (share of the cases), value, half_width, needed (cases for
        +- `HALF_WIDTH`, if the value stays what it is). Measures that are not defined have no row.
    """
    shares = two_by_two(predictions).query("measure in ('sensitivity', 'specificity') and of > 0")
    counted = {"AUC by case": "all", "sensitivity": "malignant", "specificity": "benign"}
    rows = []
    for key, part in _parts(predictions):
        labels = predict_cases(part).groupby("case")["label"].max()
        found = shares[(shares[GROUP] == list(key)).all(axis=1)]
        known = dict(zip(found["measure"], zip(found["of"], found["value"])))
        if labels.nunique() == 2:
            auc = metrics.metrics_by_seed(part, keys=["case_auc"])["case_auc"].mean()
            known = {"AUC by case": (len(labels), auc), **known}
        for measure, (cases, value) in known.items():
            malignant = labels.mean()
            rows.append(
                [*key, measure, counted[measure], int(round(cases)), malignant, value]
                + [half_width(measure, value, cases, malignant=malignant)]
                + [cases_needed(measure, value, malignant=malignant)]
            )
    columns = [*GROUP, "measure", "counted", "cases", "malignant", "value", "half_width", "needed"]
    return pd.DataFrame(rows, columns=columns)
