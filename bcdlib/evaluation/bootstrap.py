"""Confidence intervals: bootstrap over cases, and paired differences between methods or protocols.

The images of a case resemble each other, so a resample draws whole cases with all their images, seeds and
folds. The interval then says what another set of as many cases would give; it says nothing about training
again on other cases.
"""

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import sparse, stats
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from bcdlib.data import splits
from bcdlib.errors import InputError, check_known
from bcdlib.evaluation.metrics import (
    METRICS,
    MOST_UNITS,
    THRESHOLD,
    metrics_by_seed,
    metrics_table,
    number_names,
    overlapping_folds,
    tables_by_seed,
    with_correct,
)

REPEATS = 2000
LEVEL = 0.95
KEY = ["filename", "seed"]
FEWEST_CASES = 3  # of a class: with fewer, nothing is said about other cases
ADDED = ["all correct", "all wrong"]  # the two cases that `bootstrap_cases` can add
MOST_KINDS = 20_000  # pairs of label and probability that are told apart
LEVELS = 250  # of probability, where there are more
FEW_KINDS = 100
FILLED = 0.05  # share of counts that are not 0: from here on a dense product is quicker than a sparse one
COUNTS, LIMITS, LIMITS_BY_IMAGE = (
    ["images", "slides", "cases"],
    ["low", "high"],
    ["low_by_image", "high_by_image"],
)
_USED = ["filename", "slide", "case", "label", "probability", "fold", "seed"]
# intervals of this process by `_digest`: the tables and figures of one notebook ask for the same ones again
_KNOWN: dict[str, dict] = {}
_MOST_KNOWN = 2_000


def bootstrap_cases(
    predictions: pd.DataFrame,
    metrics: Sequence[str] = ("accuracy", "auc"),
    unit: str = "case",
    *,
    threshold: float | str = THRESHOLD,
    added: bool = False,
    repeats: int = REPEATS,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute metrics of resampled predictions of one method and split.

    Time and memory stay bounded for large tables. More than `MOST_UNITS` units are drawn in as many groups,
    put together at random once: the spread of a mean over groups estimates the same (Wolter 2007,
    "Introduction to Variance Estimation", section 2.2), within 1 %. Of more than `MOST_KINDS` pairs of label
    and probability, probabilities that are next to each other are replaced by their mean.

    Parameters
    ----------
    predictions : DataFrame
        A predictions table; with several seeds (or folds that test an image more than once), each metric is
        the mean over them.
    metrics : sequence of str
        Keys of `METRICS`.
    unit : str
        The column that says what is drawn with replacement: "case", or "filename" for the naive bootstrap by
        image, whose intervals are too narrow.
    threshold : float or str
        A str names the column that has each row's threshold.
    added : bool
        Whether two more cases of mean size can be drawn, one predicted correctly throughout and one wrongly
        (of metrics that are a ``rate``; the others stay as they are). No more cases are drawn for that.

    Returns
    -------
    DataFrame (repeats, metrics) of float
        NaN where a resample does not define a metric: AUC with one class only, and the metrics of slides and
        cases when images are drawn.

    Raises
    ------
    InputError
        If a metric is not known.
    """
    for name in metrics:
        check_known("metric", name, METRICS)
    numbers, names = pd.factorize(predictions[unit], sort=True)
    predictions = predictions.assign(**{unit: numbers})
    place, units = draw_places(len(names), seed)
    tables = []
    for one in tables_by_seed(predictions, threshold, metrics):
        alike: dict[tuple, list[str]] = {}  # metrics of the same columns: counted and drawn once
        for name in metrics:
            if unit in one[METRICS[name].unit]:  # a slide or case cannot be drawn by image
                alike.setdefault(_rests_on(METRICS[name], one, added=added), []).append(name)
        tables += [
            {
                (*names,): _count_kinds(
                    METRICS[names[0]], one[METRICS[names[0]].unit], place, unit=unit, added=added
                )
                for names in alike.values()
            }
        ]
    blocks = []
    for weights in _draws(units + (len(ADDED) if added else 0), units, repeats=repeats, seed=seed):
        found = [
            {
                name: METRICS[name].weighted_values(kinds, drawn)
                for names, (kinds, counts) in one.items()
                for drawn in [(counts @ weights).T]
                for name in names
            }
            for one in tables
        ]
        blocks.append(
            sum(pd.DataFrame(one, columns=list(metrics), dtype=float) for one in found) / len(found)
        )
    return pd.concat(blocks, ignore_index=True)


@functools.lru_cache(maxsize=2)
def draw_places(n: int, seed: int = 0) -> tuple[np.ndarray, int]:
    """Assign n cases to units that are drawn: the unit of each, int (n,), and how many, at most `MOST_UNITS`.

    Examples
    --------
    >>> draw_places(3)
    (array([0, 1, 2]), 3)
    """
    units, order = min(n, MOST_UNITS), np.arange(n)
    if units < n:  # drawn in groups, made at random: as many groups give the same interval
        order = np.random.default_rng(seed).permutation(order)
    return order % units, units


def _draws(units: int, n: int, *, repeats: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each unit is among n drawn (units, up to 250 resamples): blocks, to save memory."""
    # kept where they are small: to draw from thousands of units takes longer than what is computed from it
    kept = _kept_blocks(units, n, REPEATS, seed) if repeats <= REPEATS else _blocks(units, n, repeats, seed)
    for start, drawn in zip(range(0, repeats, 250), kept):
        yield np.ascontiguousarray(drawn[: repeats - start].T, dtype=float)  # as sparse arrays want it


def _blocks(units: int, n: int, repeats: int, seed: int) -> Iterator[np.ndarray]:
    generator, small = np.random.default_rng(seed), np.min_scalar_type(n)
    for start in range(0, repeats, 250):
        drawn = generator.multinomial(n, [1 / units] * units, size=min(250, repeats - start))
        yield drawn.astype(small)


@functools.lru_cache(maxsize=3)
def _kept_blocks(*draw) -> list[np.ndarray]:
    return list(_blocks(*draw))


def resampled_sums(values, *, repeats: int = REPEATS, seed: int = 0) -> np.ndarray:
    """Sum what each case contributes over resampled cases.

    More than `MOST_UNITS` cases are drawn in as many groups; see `bootstrap_cases`.

    Parameters
    ----------
    values : float array (cases, K)
    repeats, seed : int
        Number of resamples, and the seed that draws them.

    Returns
    -------
    float array (repeats, K)

    Examples
    --------
    >>> drawn = resampled_sums([[0.0, 1.0], [1.0, 1.0]], repeats=3)
    >>> drawn.shape, drawn[:, 1].tolist()
    ((3, 2), [2.0, 2.0, 2.0])
    """
    values = np.asarray(values, dtype=float)
    place, units = draw_places(len(values), seed)
    if units < len(values):
        values = pd.DataFrame(values).groupby(place).sum().to_numpy()
    blocks = _draws(len(values), len(values), repeats=repeats, seed=seed)
    return np.concatenate([weights.T @ values for weights in blocks])


def _columns(metric, table: pd.DataFrame) -> list[str]:
    """Which columns a metric is computed from; one fold alone tells nothing apart, and may be among them."""
    by_fold = metric.within_folds or (not metric.rate and "fold" in table and table["fold"].nunique() == 1)
    return ["label", metric.of, *(["fold"] if by_fold else [])]


def _rests_on(metric, one: dict[str, pd.DataFrame], *, added: bool) -> tuple:
    classes = (metric.any_task, metric.classes) if added and metric.rate else ()
    return metric.unit, *_columns(metric, one[metric.unit]), classes


def _count_kinds(
    metric, table: pd.DataFrame, place: np.ndarray, *, unit: str, added: bool
) -> tuple[pd.DataFrame, np.ndarray | sparse.csr_array]:
    """Gather the rows that a metric cannot tell apart: (kinds, how many of each a unit has (K, units))."""
    columns = _columns(metric, table)
    rows = table[columns].assign(place=place[table[unit]], times=1.0)
    if metric.of == "probability" and len(rows[columns].drop_duplicates()) > MOST_KINDS:
        level = (rows["probability"].rank(method="min") * LEVELS / len(rows)).astype(int)
        rows["probability"] = rows["probability"].groupby(level).transform("mean")
    units = place.max() + 1
    if added and metric.rate:
        rows = pd.concat([rows, _added_cases(metric, table, units)], join="inner")
    kind = rows.groupby(columns, sort=False, dropna=False).ngroup().to_numpy()
    shape = kind.max() + 1, units + (len(ADDED) if added else 0)
    kinds = rows.loc[~pd.Series(kind).duplicated().to_numpy(), columns].reset_index(drop=True)
    if len(rows) > FILLED * math.prod(shape):
        counts = np.bincount(kind * shape[1] + rows["place"], rows["times"], math.prod(shape))
        counts = counts.reshape(shape)
        # a product with few rows waits for BLAS's threads
        return kinds, sparse.csr_array(counts) if shape[0] < FEW_KINDS else counts
    return kinds, sparse.csr_array((rows["times"], (kind, rows["place"])), shape=shape)


def _added_cases(metric, table: pd.DataFrame, first: int) -> pd.DataFrame:
    """Make rows that stand for a case predicted correctly throughout and, one place on, for a wrong one."""
    # where only what is correct counts, the class of the images does not
    by_class = {label: table[table["label"] == label] for label in metric.classes}
    parts = {1: table} if metric.any_task else by_class
    return pd.DataFrame(
        [
            {
                "label": label,
                "predicted": label if correct else 1 - label,
                "correct": correct,
                "place": first + 1 - correct,
                "times": len(part) / max(1, part["case"].nunique()),
            }
            for label, part in parts.items()
            for correct in (1, 0)
        ]
    )


def confidence_limits(values, n: int) -> tuple[float, float]:
    """Compute the 95 % interval from a bootstrap of n units: its percentiles, set a little further out.

    A percentile interval is too narrow for few units, by the factor between Student's t with n - 1 degrees
    of freedom and the normal distribution, and by sqrt(n / (n - 1)): the "expanded percentile" of
    Hesterberg (2015, "What Teachers Should Know About the Bootstrap", section 5).

    Returns
    -------
    tuple of float
        Lower and upper limit; NaN with fewer than two units, or if all values are NaN.

    Examples
    --------
    >>> low, high = confidence_limits(np.linspace(0, 1, 1001), n=11)  # not 0.025 and 0.975, as for many units
    >>> round(low, 3), round(high, 3)
    (0.01, 0.99)
    """
    if n < 2 or np.isnan(values).all():
        return float("nan"), float("nan")
    tail = stats.norm.cdf(stats.t.ppf((1 - LEVEL) / 2, n - 1) * np.sqrt(n / (n - 1)))
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def auc_limits(auc: float, malignant: float, benign: float) -> tuple[float, float]:
    """Compute the 95 % interval of an AUC from the numbers of units of both classes.

    Newcombe 2006, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part
    2", Statistics in Medicine 25, method 5. It holds for few units and near 1, where a bootstrap draws the
    same AUC again and again.

    Returns
    -------
    tuple of float

    Examples
    --------
    >>> low, high = auc_limits(1.0, 12, 8)
    >>> round(low, 2), high
    (0.79, 1.0)
    """
    half, size = stats.norm.ppf(0.5 + LEVEL / 2), (malignant + benign) / 2

    def distance(true, side):
        spread = 1 + (size - 1) * ((1 - true) / (2 - true) + true / (1 + true))
        return auc - true + side * half * np.sqrt(true * (1 - true) * spread / (malignant * benign))

    # 0 and 1 themselves solve the equation for an AUC of 0 or 1: the other solution is meant
    low = 0.0 if auc <= 0 else brentq(distance, 0, min(auc, 1 - 1e-9), args=(-1,))
    high = 1.0 if auc >= 1 else brentq(distance, max(auc, 1e-9), 1, args=(1,))
    return float(low), float(high)


def metric_limits(metric: str, value: float, predictions: pd.DataFrame, draws, added) -> tuple[float, float]:
    """Compute the 95 % interval of a metric over cases.

    It is the expanded percentile interval of the bootstrap (`confidence_limits`) for the number of cases of
    the class concerned (of two classes, the smaller). Near 0 and 1 that alone is too narrow, since errors of
    a kind that is not among these cases cannot be drawn. Hence rates take in the interval of a bootstrap with
    two added cases as well, an AUC beyond 0.9 (or 0.1) that of `auc_limits` with cases as units, and the AUC
    of cases has the latter alone. How often these hold the true value is measured by a test, for 14, 26 and
    70 cases.

    Parameters
    ----------
    metric : str
        A key of `METRICS`.
    value : float
        The metric of `predictions`.
    predictions : DataFrame
        With case and label.
    draws, added : float array (B,)
        The metric as from `bootstrap_cases`, without and with added cases.

    Returns
    -------
    tuple of float
        NaN where an interval cannot be said: with fewer than `FEWEST_CASES` cases of a class concerned, or
        where both limits are the same.
    """
    about, units = METRICS[metric], _effective_cases(metric, predictions)
    if not units or np.isnan(value):
        return float("nan"), float("nan")
    pairs = [confidence_limits(draws, units)]
    if about.rate:
        pairs.append(confidence_limits(added, units))
    if about.compute is roc_auc_score:
        cases = _cases_by_class(metric, predictions)
        newcombe = auc_limits(value, cases[1], cases[0])
        if about.unit == "case":
            pairs = [newcombe]
        elif abs(value - 0.5) > 0.4:
            pairs.append(newcombe)
    low, high = np.min(pairs, axis=0)[0], np.max(pairs, axis=0)[1]
    # limits that differ by rounding alone are the same
    return (float(low), float(high)) if high - low > 1e-9 else (float("nan"), float("nan"))


def _cases_by_class(metric: str, predictions: pd.DataFrame) -> pd.Series:
    """Count the cases of each label.

    A case with images of both labels counts for both; where the metric is by case, once, as malignant.
    """
    if METRICS[metric].unit == "case":
        return predictions.groupby("case")["label"].max().value_counts()
    return predictions.groupby("label")["case"].nunique()


def _effective_cases(metric: str, predictions: pd.DataFrame) -> int:
    """Count the cases that an interval rests on; 0 with too few of a class concerned."""
    about = METRICS[metric]
    cases = _cases_by_class(metric, predictions)
    cases = cases[cases.index.isin(about.classes)]
    if cases.empty or cases.min() < FEWEST_CASES:
        return 0
    # a case with images of both classes is one case
    return int(cases.min() if about.both_classes else min(cases.sum(), predictions["case"].nunique()))


def interval_table(
    predictions: pd.DataFrame,
    metrics: Sequence[str] = ("accuracy", "auc"),
    by: Sequence[str] = ("method", "split"),
    *,
    threshold: float | str = THRESHOLD,
    by_image: bool = True,
    repeats: int = REPEATS,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute metrics of each group with their 95 % intervals over cases; see `metric_limits`.

    Parameters
    ----------
    predictions : DataFrame
        A predictions table.
    metrics : sequence of str
        Keys of `METRICS`.
    by : sequence of str
        Columns to group by.
    threshold : float or str
        A str names the column that has each row's threshold.
    by_image : bool
        Whether to add the limits of a bootstrap by image.
    repeats, seed : int
        Number of resamples, and the seed that draws them.

    Returns
    -------
    DataFrame
        The columns of `by`, images, slides, cases, metric, value, low, high (NaN where no interval can be
        said), and low_by_image, high_by_image: what a bootstrap by image claims, which takes the images of a
        case for independent and is too narrow.
    """
    for name in metrics:
        check_known("metric", name, METRICS)
    predictions = number_names(predictions, by)
    if len(_KNOWN) > _MOST_KNOWN:
        _KNOWN.clear()
    rows = []
    for key, part in predictions.groupby(list(by), sort=False):
        parts = {"by case": _by_case, "by image": _by_image} if by_image else {"by case": _by_case}
        known = _KNOWN.setdefault(_digest(part, threshold, repeats, seed), {})
        for kind, compute in parts.items():
            asked = [name for name in metrics if (kind, METRICS[name]) not in known]
            found = compute(part, asked, threshold=threshold, repeats=repeats, seed=seed) if asked else {}
            known |= {(kind, METRICS[name]): row for name, row in found.items()}
        rows += [
            dict(zip(by, key, strict=True))
            | {name: value for kind in parts for name, value in known[kind, METRICS[metric]].items()}
            for metric in metrics
        ]
    columns = [*by, *COUNTS, "metric", "value", *LIMITS, *(LIMITS_BY_IMAGE if by_image else [])]
    return pd.DataFrame(rows, columns=columns)


def _digest(part: pd.DataFrame, threshold, repeats: int, seed: int) -> str:
    """Identify what intervals depend on: the rows, what is predicted at the threshold, repeats, seed."""
    used = with_correct(part[[*_USED, *([threshold] if isinstance(threshold, str) else [])]], threshold)
    rows = pd.util.hash_pandas_object(used[[*_USED, "predicted"]], index=False).to_numpy()
    return hashlib.sha256(rows.tobytes() + f"{repeats} {seed}".encode()).hexdigest()


def _by_case(part: pd.DataFrame, metrics: list[str], **options) -> dict[str, dict]:
    """Compute metrics of one group with their limits over cases."""
    (point,) = metrics_table(part.assign(all=0), ["all"], options["threshold"], keys=metrics).to_dict(
        "records"
    )
    limits = _limits_by_case(part, {metric: point[metric] for metric in metrics}, **options)
    counts = {name: point[name] for name in COUNTS}
    return {
        metric: {**counts, "metric": metric, "value": point[metric], **dict(zip(LIMITS, limits[metric]))}
        for metric in metrics
    }


def _limits_by_case(part: pd.DataFrame, values: dict[str, float], **options) -> dict[str, tuple]:
    """Compute the limits over cases of metrics of one group, given their values."""
    draws = bootstrap_cases(part, list(values), **options)
    added = bootstrap_cases(part, [name for name in values if METRICS[name].rate], added=True, **options)
    return {
        metric: metric_limits(metric, value, part, draws[metric], added.get(metric))
        for metric, value in values.items()
    }


def _by_image(part: pd.DataFrame, metrics: list[str], **options) -> dict[str, dict]:
    """Compute the limits that a bootstrap by image claims."""
    draws, images = bootstrap_cases(part, metrics, "filename", **options), part["filename"].nunique()
    return {
        metric: dict(zip(LIMITS_BY_IMAGE, confidence_limits(draws[metric], images))) for metric in metrics
    }


def share_interval(
    predictions: pd.DataFrame, found, *, metric: str = "accuracy", **options
) -> tuple[float, float, float]:
    """Compute a share of images with its 95 % interval over cases.

    Parameters
    ----------
    predictions : DataFrame
        Rows of one method and split.
    found : bool array (N,)
        Whether each image counts.
    metric : str
        "accuracy", or "slide_recognition": the mean over slides of the share of their images.
    **options
        threshold, repeats and seed, as in `interval_table`.

    Returns
    -------
    tuple of float
        Share, lower and upper limit: the mean over seeds, and over folds that test an image more than once.
        The limits are NaN where no interval can be said; see `metric_limits`.
    """
    counted = number_names(predictions.assign(label=1, probability=np.asarray(found, dtype=float)))
    options = {"threshold": THRESHOLD} | options
    value = metrics_by_seed(counted, options["threshold"], [metric])[metric].mean(skipna=False)
    return value, *_limits_by_case(counted, {metric: value}, **options)[metric]


def paired_difference(
    first: pd.DataFrame,
    second: pd.DataFrame,
    metric: str = "accuracy",
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> dict[str, float]:
    """Compute how much better `first` is than `second` on the images that both predicted, resampled alike.

    Returns
    -------
    dict
        value (first minus second), low, high, p (two-sided, of no difference, from the same interval: but
        for the error of resampling it is below 0.05 where the 95 % interval leaves out 0), images, cases.
        low, high and p are NaN where they cannot be said; see `metric_limits`.

    Raises
    ------
    InputError
        If no image was predicted by both with the same seed.
    """
    both = matched_predictions(first, second)
    values = [metrics_by_seed(one, keys=[metric])[metric].mean(skipna=False) for one in both]
    draws = [bootstrap_cases(one, [metric], repeats=repeats, seed=seed)[metric] for one in both]
    gaps = (draws[0] - draws[1]).dropna().to_numpy()
    units = _effective_cases(metric, both[0])
    low, high = confidence_limits(gaps, units)
    if high - low > 1e-9:
        tail = (min((gaps <= 0).sum(), (gaps >= 0).sum()) + 1) / (len(gaps) + 1)
        # confidence_limits, solved for the level whose interval ends at 0
        p = min(1.0, 2 * stats.t.cdf(stats.norm.ppf(tail) * np.sqrt((units - 1) / units), units - 1))
    else:
        low = high = p = np.nan
    return {
        "value": values[0] - values[1],
        "low": low,
        "high": high,
        "p": p,
        "images": both[0]["filename"].nunique(),
        "cases": both[0]["case"].nunique(),
    }


def difference_limits(first, second) -> tuple[float, float]:
    """Compute the 95 % interval of a difference from those of two metrics that share no case.

    The squares of how far each interval reaches are added: Newcombe 1998, "Interval estimation for the
    difference between independent proportions", Statistics in Medicine 17, method 10; for any metric Zou &
    Donner 2008, the same journal 27, section 2.

    Parameters
    ----------
    first, second : mapping
        With value, low and high, as rows of `interval_table`.

    Returns
    -------
    tuple of float
        Limits of first minus second; NaN where one of the intervals cannot be said.

    Examples
    --------
    >>> first, second = {"value": 0.8, "low": 0.7, "high": 0.85}, {"value": 0.6, "low": 0.5, "high": 0.65}
    >>> low, high = difference_limits(first, second)
    >>> round(low, 3), round(high, 3)
    (0.088, 0.312)
    """
    reach = [
        np.hypot(one["value"] - one["low"], other["high"] - other["value"])
        for one, other in ((first, second), (second, first))
    ]
    difference = first["value"] - second["value"]
    return float(difference - reach[0]), float(difference + reach[1])


def matched_predictions(first: pd.DataFrame, second: pd.DataFrame) -> list[pd.DataFrame]:
    """Select the images and seeds that both tables predicted; the cases are those of the first.

    Where one of them tests images in several folds (`official`), the other's predictions are repeated for
    these folds, so that an image counts alike on both sides. Else the fold does not tell predictions apart:
    the same image may lie in another one.

    Raises
    ------
    InputError
        If there is none.
    """
    overlapping, key = (overlapping_folds(first), overlapping_folds(second)), KEY
    if any(overlapping):
        key = [*KEY, "fold"]
        folds = (first if overlapping[0] else second)[key].drop_duplicates()
        first, second = (
            one if overlaps else one.drop(columns="fold").merge(folds, on=KEY)
            for one, overlaps in zip((first, second), overlapping)
        )
    found = [
        one.merge(other[key].drop_duplicates(), on=key) for one, other in ((first, second), (second, first))
    ]
    if found[0].empty:
        raise InputError(
            "these two have no image and seed in common; compare trials of the same data and seeds"
        )
    cases = found[0].drop_duplicates("filename").set_index("filename")["case"]
    return [found[0], found[1].assign(case=found[1]["filename"].map(cases))]


def paired_differences(
    predictions: pd.DataFrame,
    between: str = "method",
    metric: str = "accuracy",
    *,
    against: str | None = None,
    repeats: int = REPEATS,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute `paired_difference` of each method or protocol against one; see also `comparison_table`.

    Parameters
    ----------
    predictions : DataFrame
        A predictions table.
    between : str
        "method" (within each split) or "split" (within each method).
    metric : str
        A key of `METRICS`.
    against : str, optional
        The one that the others are compared with; default: the first in the table.

    Returns
    -------
    DataFrame
        split (or method), first, second, metric, value, low, high, p, p_holm, images, cases. p_holm is
        Holm's correction over all rows of the table, which is one family: one question, one metric. Empty if
        there is nothing to compare.
    """
    within = "split" if between == "method" else "method"
    pairs = []
    for name, part in predictions.groupby(within, sort=False):
        groups = dict(list(part.groupby(between, sort=False)))
        base = against if against in groups else next(iter(groups))
        for other, one in groups.items():
            if other != base and len(one[KEY].merge(groups[base][KEY], on=KEY)):
                pairs.append(
                    ({within: name, "first": other, "second": base, "metric": metric}, one, groups[base])
                )
    repeats = max(repeats, _resamples_needed(len(pairs), predictions["case"].nunique()))
    table = pd.DataFrame(
        [
            names | paired_difference(one, base, metric, repeats=repeats, seed=seed)
            for names, one, base in pairs
        ]
    )
    known = table["p"].notna() if pairs else []
    if any(known):
        table.loc[known, "p_holm"] = multipletests(table.loc[known, "p"], method="holm")[1]
    return table


def _resamples_needed(rows: int, cases: int) -> int:
    """Return how many resamples let Holm's correction of so many differences reject at 5 % at all."""
    if not rows or cases < 2:
        return 0
    tail = stats.norm.cdf(stats.t.ppf(0.0125 / rows, cases - 1) * np.sqrt(cases / (cases - 1)))
    return max(40 * rows, min(20_000, round(1 / tail)))


def comparison_table(
    predictions: pd.DataFrame,
    metrics: Sequence[str] = ("accuracy", "auc"),
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute all paired differences: methods under the same split, and protocols for the same method.

    Methods are compared with the first of the table, protocols with the strictest one that is there.

    Returns
    -------
    DataFrame
        within (the split or method that both share), first, second, metric, value, low, high, p, p_holm
        (Holm's correction over the differences of one metric between methods, or between protocols), images,
        cases. Empty if there is nothing to compare.
    """
    strictest = next((name for name in splits.STRICTEST if name in set(predictions["split"])), None)
    found = [
        paired_differences(predictions, between, metric, against=against, repeats=repeats, seed=seed).rename(
            columns={other: "within"}
        )
        for between, other, against in (("method", "split", None), ("split", "method", strictest))
        for metric in metrics
    ]
    return pd.concat(found, ignore_index=True).reindex(
        columns="within first second metric value low high p p_holm images cases".split()
    )


def range_text(low: float, high: float) -> str:
    """Format an interval for reading.

    Examples
    --------
    >>> range_text(0.6, 0.81234), range_text(float("nan"), float("nan"))
    ('0.600 to 0.812', 'cannot be said')
    """
    return "cannot be said" if np.isnan(low) else f"{low:.3f} to {high:.3f}"


def interval_text(row) -> str:
    """Format a row of `interval_table` or a table of differences; "-" where the metric is not defined.

    Examples
    --------
    >>> interval_text(pd.Series({"value": 0.71, "low": 0.6, "high": 0.81}))
    '0.710 (0.600 to 0.810)'
    """
    return "-" if np.isnan(row.value) else f"{row.value:.3f} ({range_text(row.low, row.high)})"


def error_bars(rows: pd.DataFrame, value: str = "value") -> list[pd.Series]:
    """Return how far intervals reach below and above the values, as matplotlib's ``xerr`` takes it.

    Examples
    --------
    >>> rows = pd.DataFrame({"value": [0.7], "low": 0.6, "high": 0.9})
    >>> [reach.round(2).tolist() for reach in error_bars(rows)]
    [[0.1], [0.2]]
    """
    return [(rows[value] - rows["low"]).clip(0), (rows["high"] - rows[value]).clip(0)]
