"""How sure a figure is: bootstrap over cases, and paired differences between methods or protocols.

The images of a case resemble each other, so a resample draws whole cases with all their images, seeds and folds. The
interval then says what another set of as many cases would give; it says nothing about training again on other cases.
"""

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from bcdlib.data import splits
from bcdlib.errors import InputError
from bcdlib.evaluation import metrics

REPEATS = 2000
LEVEL = 0.95
KEY = ["filename", "seed"]


def bootstrap_cases(
    predictions: pd.DataFrame,
    figures=("accuracy", "auc"),
    unit: str = "case",
    *,
    repeats: int = REPEATS,
    seed: int = 0,
    threshold=metrics.THRESHOLD,
) -> pd.DataFrame:
    """Figures of resampled predictions of one method and split.

    Parameters
    ----------
    figures : keys of `metrics.METRICS` or `metrics.UNIT_METRICS`
    unit : column that says what is drawn with replacement: "case", or "filename" for the naive bootstrap by image,
        whose intervals are too narrow
    threshold : float, or the name of a column that has each row's threshold

    Returns
    -------
    float DataFrame (repeats, figures); NaN where a resample does not define a figure (AUC with one class only).

    Raises
    ------
    InputError
        If a figure is not known.
    """
    unknown = [name for name in figures if name not in (*metrics.METRICS, *metrics.UNIT_METRICS)]
    if unknown:
        raise InputError(
            f"unknown figure {unknown[0]!r}; known are {', '.join(metrics.METRICS + metrics.UNIT_METRICS)}"
        )
    parts, total = [part for _, part in metrics.with_correct(predictions, threshold).groupby("seed")], []
    for counts in _draws(predictions[unit].nunique(), repeats, seed):
        weight = pd.DataFrame(counts.T, index=np.unique(predictions[unit]))
        each = [_weighted(part, weight, unit, figures) for part in parts]
        total.append({name: np.mean([one[name] for one in each], axis=0) for name in figures})
    return pd.DataFrame({name: np.concatenate([one[name] for one in total]) for name in figures})


def _as_they_are(predictions: pd.DataFrame, figure: str, threshold) -> float:
    once = pd.DataFrame(1.0, index=np.unique(predictions["case"]), columns=["weight"])
    parts = [part for _, part in metrics.with_correct(predictions, threshold).groupby("seed")]
    return float(np.mean([_weighted(part, once, "case", [figure])[figure] for part in parts]))


def _draws(n: int, repeats: int, seed: int):
    """How often each of n units is drawn; int arrays (up to 250, n): blocks, so that memory stays small."""
    generator = np.random.default_rng(seed)
    for start in range(0, repeats, 250):
        yield generator.multinomial(n, np.full(n, 1 / n), size=min(250, repeats - start))


def _weighted(part: pd.DataFrame, weight: pd.DataFrame, unit: str, figures) -> dict[str, np.ndarray]:
    by_image = [name for name in figures if name in metrics.METRICS]
    found = weighted_metrics(
        part["label"].to_numpy(),
        part["probability"].to_numpy(),
        part["right"].to_numpy(),
        weights=weight.loc[part[unit]].to_numpy(dtype=float).T,
        figures=by_image,
    )
    if set(figures) & set(metrics.UNIT_METRICS):
        for name in ("slide", "case"):
            table = metrics.group_units(part, name)
            # drawn by image, slides and cases are as often there as they are in the data
            drawn = (
                weight.loc[table["case"]].to_numpy().T
                if unit == "case"
                else np.ones((weight.shape[1], len(table)))
            )
            found[f"{name}_auc"] = weighted_auc(
                table["label"].to_numpy(), table["probability"].to_numpy(), drawn
            )
            found[f"{name}_recognition"] = _divide(drawn @ table["right"].to_numpy(), drawn.sum(axis=1))
    return found


def weighted_metrics(label, probability, right, *, weights, figures=metrics.METRICS) -> dict[str, np.ndarray]:
    """`metrics.compute_metrics` for many weightings of the same images at once.

    Parameters
    ----------
    label, probability, right : arrays (N,); right: whether the image is called correctly
    weights : array (B, N), how often each image counts
    figures : those that are wanted, keys of `metrics.METRICS`

    Returns
    -------
    dict of float arrays (B,) with the keys `figures`; NaN where not defined.
    """
    malignant, total = label == 1, weights.sum(axis=1)
    tp, fn, tn, fp = (
        weights
        @ np.column_stack(
            [malignant & right, malignant & ~right, ~malignant & right, ~malignant & ~right]
        ).astype(float)
    ).T
    found = _from_counts(tp, fn, tn, fp)
    if "auc" in figures:
        found["auc"] = weighted_auc(label, probability, weights)
    if "average_precision" in figures:
        found["average_precision"] = _average_precision(label, probability, weights)
    if "brier" in figures:
        found["brier"] = _divide(weights @ (probability - label) ** 2, total)
    if "ece" in figures:
        bins = metrics.calibration_bins(probability)[:, None] == np.arange(metrics.BINS)
        found["ece"] = _divide(np.abs(weights @ (bins * (probability - label)[:, None])).sum(axis=1), total)
    return {name: found[name] for name in figures}


def _from_counts(tp, fn, tn, fp) -> dict[str, np.ndarray]:
    n, p, q = tp + fn + tn + fp, tp + fn, tn + fp
    sensitivity, specificity = _divide(tp, p), _divide(tn, q)
    accuracy, expected = _divide(tp + tn, n), (p * (tp + fp) + q * (tn + fn)) / np.maximum(n, 1) ** 2
    product = np.sqrt((tp + fp) * p * q * (tn + fn))
    mcc = np.where(
        product > 0, _divide(tp * tn - fp * fn, product), 0.0
    )  # scikit-learn: 0 for a constant call
    one_class = p * q == 0
    return {
        "accuracy": accuracy,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": _divide(tp, tp + fp),
        "f1": _divide(2 * tp, 2 * tp + fp + fn),
        "mcc": np.where(one_class, np.nan, mcc),
        "kappa": np.where(one_class, np.nan, _divide(accuracy - expected, 1 - expected)),
    }


def weighted_auc(label, probability, weights) -> np.ndarray:
    """Area under the ROC curve for many weightings at once; arguments as in `weighted_scores`, float (B,)."""
    positive, negative = _by_value(label, probability, weights)
    below = np.cumsum(negative, axis=1) - negative
    return _divide(
        (positive * (below + negative / 2)).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1)
    )


def _average_precision(label, probability, weights) -> np.ndarray:
    positive, negative = (values[:, ::-1] for values in _by_value(label, probability, weights))
    found, called = np.cumsum(positive, axis=1), np.cumsum(positive + negative, axis=1)
    precision = np.where(called > 0, found / np.maximum(called, 1), 0.0)
    one_class = negative.sum(axis=1) == 0
    return np.where(one_class, np.nan, _divide((positive * precision).sum(axis=1), positive.sum(axis=1)))


def _by_value(label, probability, weights):
    """Weight of the malignant and of the benign images at each distinct probability, ascending; two (B, values)."""
    order = np.argsort(probability, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(probability[order]) > 0])
    sorted_weights, malignant = weights[:, order], label[order] == 1
    return (
        np.add.reduceat(sorted_weights * malignant, starts, axis=1).astype(float),
        np.add.reduceat(sorted_weights * ~malignant, starts, axis=1).astype(float),
    )


def _divide(numerator, denominator) -> np.ndarray:
    denominator = np.asarray(denominator, dtype=float)
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator != 0)


def confidence_limits(values, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The interval that a bootstrap of n units gives: its percentiles, set a little further out.

    A percentile interval is too narrow for few units, by the factor between Student's t with n - 1 degrees of freedom
    and the normal distribution, and by sqrt(n / (n - 1)): the "expanded percentile" of Hesterberg (2015, "What
    Teachers Should Know About the Bootstrap", section 5).
    """
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if n < 2 or not len(values):
        return float("nan"), float("nan")
    tail = stats.norm.cdf(stats.t.ppf((1 - level) / 2, n - 1) * np.sqrt(n / (n - 1)))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def interval_table(
    predictions: pd.DataFrame,
    figures=("accuracy", "auc"),
    by=("method", "split"),
    *,
    repeats: int = REPEATS,
    seed: int = 0,
    threshold=metrics.THRESHOLD,
    level: float = LEVEL,
) -> pd.DataFrame:
    """Each figure of each group with its 95 % interval over cases.

    Returns
    -------
    DataFrame: the columns of `by`, images, slides, cases, figure, value, low, high, and low_by_image, high_by_image:
    what a bootstrap by image claims, which takes the images of a case for independent and is too narrow.
    """
    rows = []
    points = metrics.metrics_table(predictions, by, threshold)
    for (key, part), (_, point) in zip(
        predictions.groupby(list(by), sort=False), points.iterrows(), strict=True
    ):
        cases = bootstrap_cases(part, figures, "case", repeats=repeats, seed=seed, threshold=threshold)
        images = bootstrap_cases(part, figures, "filename", repeats=repeats, seed=seed, threshold=threshold)
        for figure in figures:
            low, high = confidence_limits(cases[figure], point["cases"], level)
            naive = confidence_limits(images[figure], point["images"], level)
            if figure in metrics.UNIT_METRICS:
                naive = (float("nan"), float("nan"))
            rows.append(
                dict(zip(by, key, strict=True))
                | {name: point[name] for name in ("images", "slides", "cases")}
                | {
                    "figure": figure,
                    "value": point[figure],
                    "low": low,
                    "high": high,
                    "low_by_image": naive[0],
                    "high_by_image": naive[1],
                }
            )
    return pd.DataFrame(rows)


def paired_difference(
    first: pd.DataFrame,
    second: pd.DataFrame,
    figure: str = "accuracy",
    *,
    repeats: int = REPEATS,
    seed: int = 0,
    threshold=metrics.THRESHOLD,
    level: float = LEVEL,
) -> dict[str, float]:
    """How much better `first` is than `second` on the images that both predicted: both are resampled alike.

    Returns
    -------
    dict: value (first minus second), low, high, p (two-sided, of no difference, from the same resamples), images, cases.

    Raises
    ------
    InputError
        If no image was predicted by both with the same seed.
    """
    first, second = _matched(first, second)
    second = second.assign(case=first["case"])  # the same picture belongs to the same case
    values = [_as_they_are(one, figure, threshold) for one in (first, second)]
    draws = [
        bootstrap_cases(one, [figure], "case", repeats=repeats, seed=seed, threshold=threshold)[figure]
        for one in (first, second)
    ]
    gaps = (draws[0] - draws[1]).dropna().to_numpy()
    cases = first["case"].nunique()
    low, high = confidence_limits(gaps, cases, level)
    tail = min((gaps <= 0).sum(), (gaps >= 0).sum())
    p = min(1.0, 2 * (tail + 1) / (len(gaps) + 1)) if len(gaps) and cases > 1 else float("nan")
    return {
        "value": values[0] - values[1],
        "low": low,
        "high": high,
        "p": p,
        "images": first["filename"].nunique(),
        "cases": cases,
    }


def _matched(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows that belong together, in one order."""
    key = KEY
    if set(first["split"]) == set(second["split"]):  # the author's folds test some images more than once
        key = [*KEY, "fold"]
    first, second = (one.drop_duplicates(key) for one in (first, second))
    both = first[key].merge(second[key], on=key)
    if both.empty:
        raise InputError(
            "these two have no image and seed in common; compare trials of the same data and seeds"
        )
    return tuple(one.merge(both, on=key).sort_values(key, ignore_index=True) for one in (first, second))


def paired_differences(
    predictions: pd.DataFrame,
    between: str = "method",
    figure: str = "accuracy",
    *,
    against: str | None = None,
    repeats: int = REPEATS,
    seed: int = 0,
) -> pd.DataFrame:
    """`difference` of each method (or protocol) against one; for many at once, with Holm's correction, see `comparisons`.

    Parameters
    ----------
    between : "method" (within each split) or "split" (within each method)
    against : the one that the others are held against; default: the first in the table

    Returns
    -------
    DataFrame: split (or method), first, second, figure, value, low, high, p, images, cases. Empty if there is nothing to
    compare.
    """
    within = "split" if between == "method" else "method"
    rows = []
    for name, part in predictions.groupby(within, sort=False):
        others = list(dict.fromkeys(part[between]))
        base = against if against in others else others[0]
        for other in others:
            one, two = part[part[between] == other], part[part[between] == base]
            if other != base and len(one[KEY].merge(two[KEY], on=KEY)):
                rows.append(
                    {within: name, "first": other, "second": base, "figure": figure}
                    | paired_difference(one, two, figure, repeats=repeats, seed=seed)
                )
    return pd.DataFrame(rows)


def comparison_table(
    predictions: pd.DataFrame, figures=("accuracy", "auc"), repeats: int = REPEATS, *, seed: int = 0
) -> pd.DataFrame:
    """All paired differences that a table allows: methods under the same split, and protocols for the same method.

    Methods are held against the first of the table, protocols against the strictest one that is there.

    Returns
    -------
    DataFrame: within (the split or method that both share), first, second, figure, value, low, high, p, p_holm (Holm's
    correction over all rows of the table), images, cases. Empty if there is nothing to compare.
    """
    present = set(predictions["split"])
    strictest = next((name for name in splits.STRICTEST if name in present), None)
    found = [
        paired_differences(predictions, between, figure, against=against, repeats=repeats, seed=seed).rename(
            columns={other: "within"}
        )
        for between, other, against in (("method", "split", None), ("split", "method", strictest))
        for figure in figures
    ]
    table = pd.concat(found, ignore_index=True)
    return _holm(table)


def _holm(table: pd.DataFrame) -> pd.DataFrame:
    columns = [
        "within",
        "first",
        "second",
        "figure",
        "value",
        "low",
        "high",
        "p",
        "p_holm",
        "images",
        "cases",
    ]
    if table.empty:
        return pd.DataFrame(columns=columns)
    known = table["p"].notna()
    table["p_holm"] = float("nan")
    if known.any():
        table.loc[known, "p_holm"] = multipletests(table.loc[known, "p"], method="holm")[1]
    return table.reindex(columns=columns)


def interval_text(row) -> str:
    """A row of `table` or `differences` for reading: "0.71 (0.60 to 0.81)"; "-" where the figure is not defined."""
    if np.isnan(row.value):
        return "-"
    return f"{row.value:.3f}" + ("" if np.isnan(row.low) else f" ({row.low:.3f} to {row.high:.3f})")
