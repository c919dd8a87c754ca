"""Confidence intervals: bootstrap over cases, and paired differences between methods or protocols.

The images of a case resemble each other, so a resample draws whole cases with all their images, seeds and
folds. The interval then says what another set of as many cases would give; it says nothing about training
again on other cases.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from bcdlib.data import splits
from bcdlib.errors import InputError, check_known
from bcdlib.evaluation.metrics import METRICS, THRESHOLD, metrics_by_seed, metrics_table, tables_by_seed

REPEATS = 2000
LEVEL = 0.95
KEY = ["filename", "seed"]


def bootstrap_cases(
    predictions: pd.DataFrame,
    metrics: Sequence[str] = ("accuracy", "auc"),
    unit: str = "case",
    *,
    threshold: float | str = THRESHOLD,
    repeats: int = REPEATS,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute metrics of resampled predictions of one method and split.

    Parameters
    ----------
    predictions : DataFrame
        A predictions table; with several seeds, each metric is the mean over the seeds.
    metrics : sequence of str
        Keys of `METRICS`.
    unit : str
        The column that says what is drawn with replacement: "case", or "filename" for the naive bootstrap by
        image, whose intervals are too narrow.
    threshold : float or str
        A str names the column that has each row's threshold.

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
    tables = tables_by_seed(predictions, threshold)
    blocks = [
        sum(_resampled(one, metrics, weights, unit=unit) for one in tables) / len(tables)
        for weights in _draws(np.unique(predictions[unit]), repeats, seed)
    ]
    return pd.concat(blocks, ignore_index=True)


def _draws(names: np.ndarray, repeats: int, seed: int) -> Iterator[pd.DataFrame]:
    """How often each unit is drawn (units, up to 250 resamples): blocks, so that memory stays small."""
    generator, n = np.random.default_rng(seed), len(names)
    for start in range(0, repeats, 250):
        counts = generator.multinomial(n, np.full(n, 1 / n), size=min(250, repeats - start))
        yield pd.DataFrame(counts.T, index=names)


def _resampled(tables, metrics, weights: pd.DataFrame, *, unit: str) -> pd.DataFrame:
    """Metrics (B, metrics) of one seed's tables; `weights` (units, B) says how often each unit is drawn."""
    drawn = {
        counted: weights.loc[table[unit]].to_numpy(dtype=float).T
        for counted, table in tables.items()
        if unit in table  # a slide or case cannot be drawn by image
    }
    chosen = {name: METRICS[name] for name in metrics if METRICS[name].unit in drawn}
    values = {name: one.weighted_values(tables[one.unit], drawn[one.unit]) for name, one in chosen.items()}
    return pd.DataFrame(values, index=weights.columns, columns=list(metrics), dtype=float)


def confidence_limits(values, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Compute the confidence interval from a bootstrap of n units: its percentiles, set a little further out.

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
    tail = stats.norm.cdf(stats.t.ppf((1 - level) / 2, n - 1) * np.sqrt(n / (n - 1)))
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def interval_table(
    predictions: pd.DataFrame,
    metrics: Sequence[str] = ("accuracy", "auc"),
    by: Sequence[str] = ("method", "split"),
    *,
    threshold: float | str = THRESHOLD,
    level: float = LEVEL,
    repeats: int = REPEATS,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute metrics of each group with their 95 % intervals over cases.

    Returns
    -------
    DataFrame
        The columns of `by`, images, slides, cases, metric, value, low, high, and low_by_image,
        high_by_image: what a bootstrap by image claims, which takes the images of a case for independent
        and is too narrow.
    """
    counts = [*by, "images", "slides", "cases"]
    rows, points = [], metrics_table(predictions, by, threshold)
    for (_, part), (_, point) in zip(
        predictions.groupby(list(by), sort=False), points.iterrows(), strict=True
    ):
        cases, images = (
            bootstrap_cases(part, metrics, unit, threshold=threshold, repeats=repeats, seed=seed)
            for unit in ("case", "filename")
        )
        for metric in metrics:
            rows.append(
                [
                    *point[counts],
                    metric,
                    point[metric],
                    *confidence_limits(cases[metric], point["cases"], level),
                    *confidence_limits(images[metric], point["images"], level),
                ]
            )
    return pd.DataFrame(
        rows, columns=[*counts, "metric", "value", "low", "high", "low_by_image", "high_by_image"]
    )


def paired_difference(
    first: pd.DataFrame,
    second: pd.DataFrame,
    metric: str = "accuracy",
    *,
    threshold: float | str = THRESHOLD,
    level: float = LEVEL,
    repeats: int = REPEATS,
    seed: int = 0,
) -> dict[str, float]:
    """Compute how much better `first` is than `second` on the images that both predicted, resampled alike.

    Returns
    -------
    dict
        value (first minus second), low, high, p (two-sided, of no difference, from the same resamples),
        images, cases.

    Raises
    ------
    InputError
        If no image was predicted by both with the same seed.
    """
    first, second = _matched(first, second)
    both = first, second.assign(case=first["case"])  # the same image belongs to the same case
    values = [metrics_by_seed(one, threshold, [metric])[metric].mean(skipna=False) for one in both]
    draws = [
        bootstrap_cases(one, [metric], threshold=threshold, repeats=repeats, seed=seed)[metric]
        for one in both
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


def _matched(first: pd.DataFrame, second: pd.DataFrame) -> list[pd.DataFrame]:
    """Select the images and seeds that both have, in one order."""
    # the author's folds test some images more than once
    key = [*KEY, "fold"] if set(first["split"]) == set(second["split"]) else KEY
    first, second = (one.drop_duplicates(key) for one in (first, second))
    both = first[key].merge(second[key], on=key)
    if both.empty:
        raise InputError(
            "these two have no image and seed in common; compare trials of the same data and seeds"
        )
    return [one.merge(both, on=key).sort_values(key, ignore_index=True) for one in (first, second)]


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
        split (or method), first, second, metric, value, low, high, p, images, cases. Empty if there is
        nothing to compare.
    """
    within = "split" if between == "method" else "method"
    rows = []
    for name, part in predictions.groupby(within, sort=False):
        groups = dict(list(part.groupby(between, sort=False)))
        base = against if against in groups else next(iter(groups))
        for other, one in groups.items():
            if other != base and len(one[KEY].merge(groups[base][KEY], on=KEY)):
                rows.append(
                    {within: name, "first": other, "second": base, "metric": metric}
                    | paired_difference(one, groups[base], metric, repeats=repeats, seed=seed)
                )
    return pd.DataFrame(rows)


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
        (Holm's correction over all rows of the table), images, cases. Empty if there is nothing to compare.
    """
    strictest = next((name for name in splits.STRICTEST if name in set(predictions["split"])), None)
    found = [
        paired_differences(predictions, between, metric, against=against, repeats=repeats, seed=seed).rename(
            columns={other: "within"}
        )
        for between, other, against in (("method", "split", None), ("split", "method", strictest))
        for metric in metrics
    ]
    table = pd.concat(found, ignore_index=True).reindex(
        columns="within first second metric value low high p p_holm images cases".split()
    )
    known = table["p"].notna()
    if known.any():
        table.loc[known, "p_holm"] = multipletests(table.loc[known, "p"], method="holm")[1]
    return table


def range_text(low: float, high: float) -> str:
    """Format an interval for reading; "-" where it is not defined.

    Examples
    --------
    >>> range_text(0.6, 0.81234), range_text(float("nan"), float("nan"))
    ('0.600 to 0.812', '-')
    """
    return "-" if np.isnan(low) else f"{low:.3f} to {high:.3f}"


def interval_text(row) -> str:
    """Format a row of `interval_table` or a table of differences; "-" where the metric is not defined.

    Examples
    --------
    >>> interval_text(pd.Series({"value": 0.71, "low": 0.6, "high": 0.81}))
    '0.710 (0.600 to 0.810)'
    """
    limits = "" if np.isnan(row.low) else f" ({range_text(row.low, row.high)})"
    return "-" if np.isnan(row.value) else f"{row.value:.3f}{limits}"
