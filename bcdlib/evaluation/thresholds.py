"""Threshold, calibration and referral: how probabilities become decisions.

All are fitted on validation and then locked: `lock_thresholds` sees the validation part only, `apply_lock`
adds what it found to the test predictions. Nothing here chooses on a test part, except `referral_table`,
whose columns say what it read there.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve

from bcdlib.data import breakhis
from bcdlib.errors import InputError, check_known
from bcdlib.evaluation import bootstrap, metrics
from bcdlib.runs.folder import TRIAL_COLUMNS

RULES = ("youden", "sensitivity")
CALIBRATIONS = ("temperature", "platt", "none")
FEWEST_CASES = 8  # of a class, below which a threshold or calibration is noise
_REPEATS = 500  # resamples of each point of a curve
WISHED_SENSITIVITY = 0.95
REFERRAL_SENSITIVITY = 0.99


def _check(rule: str = "youden", sensitivity: float = WISHED_SENSITIVITY, calibration: str = "none") -> None:
    check_known("threshold rule", rule, RULES)
    if not 0 < sensitivity <= 1:
        raise InputError(f"wished sensitivity {sensitivity}: give a number above 0, up to 1")
    check_known("calibration", calibration, CALIBRATIONS)


def choose_threshold(
    label, probability, rule: str = "youden", *, sensitivity: float = WISHED_SENSITIVITY
) -> float:
    """Choose the probability from which on an image is predicted malignant.

    Parameters
    ----------
    label : int array (N,)
        0 or 1.
    probability : float array (N,)
        Of malignant, 0..1.
    rule : str
        "youden" (largest sensitivity + specificity - 1) or "sensitivity".
    sensitivity : float
        For that rule: at least this much, above 0 up to 1, with the highest threshold that gives it.

    Returns
    -------
    float
        A probability that occurs among the malignant images, or 0.5 if one class is missing.

    Raises
    ------
    InputError
        If the rule is unknown or the sensitivity is not above 0 and up to 1.

    Examples
    --------
    >>> choose_threshold([0, 0, 1, 0, 1, 1], [0.1, 0.2, 0.3, 0.4, 0.6, 0.9])
    0.6
    >>> choose_threshold([0, 0, 1, 0, 1, 1], [0.1, 0.2, 0.3, 0.4, 0.6, 0.9], "sensitivity", sensitivity=0.9)
    0.3
    """
    _check(rule, sensitivity)
    if len(np.unique(label)) < 2:
        return metrics.THRESHOLD
    false_alarms, found, thresholds = roc_curve(label, probability, drop_intermediate=False)
    # of equals the highest, whatever rounding did to the last bit
    good = np.round(found - false_alarms, 12) if rule == "youden" else found >= sensitivity - 1e-12
    # a threshold at which nothing is malignant, the curve's first, is none
    return float(thresholds[found > 0][np.argmax(good[found > 0])])


def fit_calibration(label, probability, kind: str = "temperature") -> tuple[float, float]:
    """Fit a line to the logits so that sigmoid(slope * logit + intercept) is a calibrated probability.

    ``temperature`` (Guo et al. 2017) fits the slope alone, 1 / temperature: it changes neither the order of
    the images nor what is predicted at 0.5, and one number is as much as a few cases can support. ``platt``
    (Platt 1999) fits both. Both are fitted to `smoothed_targets`: classes that are perfectly separated would
    ask for certainty.

    Returns
    -------
    tuple of float
        Slope and intercept; (1, 0), which changes nothing, for "none" or with one class only.

    Raises
    ------
    InputError
        If the kind is unknown.

    Examples
    --------
    >>> fit_calibration([0, 1], [0.1, 0.9], "none")
    (1.0, 0.0)
    """
    _check(calibration=kind)
    label, x = np.asarray(label), metrics.clipped_logit(probability)
    if kind == "none" or len(np.unique(label)) < 2 or np.ptp(x) == 0:
        return 1.0, 0.0
    if kind == "platt":
        return fit_platt(x, label)
    target = smoothed_targets(label)

    def loss(log_temperature):
        scaled = x / np.exp(log_temperature)
        return (np.logaddexp(0, scaled) - target * scaled).mean()

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(100)), method="bounded")
    return float(np.exp(-found.x)), 0.0


def smoothed_targets(label) -> np.ndarray:
    """Draw labels towards each other as Platt (1999) does: by one image more of each class.

    Examples
    --------
    >>> smoothed_targets([1, 1, 0]).round(3).tolist()
    [0.75, 0.75, 0.333]
    """
    positive = np.sum(label)
    negative = len(label) - positive
    return np.where(label, (positive + 1) / (positive + 2), 1 / (negative + 2))


def fit_platt(scores, label, *, smooth: bool = True) -> tuple[float, float]:
    """Fit Platt scaling: sigmoid(slope * score + intercept) is the probability of label 1.

    Platt, "Probabilistic outputs for support vector machines", 1999.

    Parameters
    ----------
    scores : float array (N,)
    label : int array (N,)
        0 or 1, both present.
    smooth : bool
        Whether to smooth the targets as Platt does, which keeps few images from giving certainty.

    Returns
    -------
    tuple of float
        Slope and intercept.

    Examples
    --------
    >>> slope, intercept = fit_platt([-2, -1, 1, 2], [0, 0, 1, 1])
    >>> slope > 0, abs(intercept) < 0.001
    (True, True)
    """
    scores, label = np.reshape(scores, (-1, 1)), np.asarray(label)
    model = LogisticRegression(C=1e6)
    if smooth:
        target = smoothed_targets(label)
        both = np.repeat([1, 0], len(label))  # each image once as malignant and once as benign, weighted
        model.fit(np.r_[scores, scores], both, sample_weight=np.r_[target, 1 - target])
    else:
        model.fit(scores, label)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def calibrate(probability, slope, intercept) -> np.ndarray:
    """Compute calibrated probabilities, float (N,), 0..1; see `fit_calibration`.

    Examples
    --------
    >>> calibrate([0.1, 0.5, 0.9], slope=0.5, intercept=0).round(2).tolist()
    [0.25, 0.5, 0.75]
    """
    return expit(np.asarray(slope) * metrics.clipped_logit(probability) + np.asarray(intercept))


def lock_thresholds(
    validation: pd.DataFrame,
    rule: str = "youden",
    sensitivity: float = WISHED_SENSITIVITY,
    *,
    calibration: str = "temperature",
) -> pd.DataFrame:
    """Choose threshold, calibration and referral limit of each trial from its validation predictions.

    Returns
    -------
    DataFrame
        One row a trial: `TRIAL_COLUMNS`, validation_images, benign_cases, malignant_cases, threshold, slope,
        intercept, refer_below (the highest limit that keeps 99 % of the malignant validation images at or
        above it), sensitivity_on_validation and specificity_on_validation (at that threshold), note. With
        fewer than `FEWEST_CASES` cases of a class nothing is chosen: threshold 0.5, slope 1, intercept 0,
        refer_below NaN, and the note says so.

    Raises
    ------
    InputError
        If the rule, the sensitivity or the calibration is not one of those that exist.
    """
    _check(rule, sensitivity, calibration)
    rows = []
    for key, part in validation.groupby(TRIAL_COLUMNS, sort=False):
        label, probability = part["label"].to_numpy(), part["probability"].to_numpy()
        cases = [part.loc[label == side, "case"].nunique() for side in (0, 1)]
        if min(cases) < FEWEST_CASES:
            chosen, note = [metrics.THRESHOLD, 1.0, 0.0, np.nan], _too_few(cases)
        else:
            threshold = choose_threshold(label, probability, rule, sensitivity=sensitivity)
            below = choose_threshold(label, probability, "sensitivity", sensitivity=REFERRAL_SENSITIVITY)
            chosen, note = [threshold, *fit_calibration(label, probability, calibration), below], ""
        found = metrics.compute_metrics(label, probability, chosen[0])
        rows.append([*key, len(part), *cases, *chosen, found["sensitivity"], found["specificity"], note])
    floats = (
        "threshold slope intercept refer_below sensitivity_on_validation specificity_on_validation".split()
    )
    counts = ["validation_images", "benign_cases", "malignant_cases"]
    table = pd.DataFrame(rows, columns=[*TRIAL_COLUMNS, *counts, *floats, "note"])
    table.insert(table.columns.get_loc("threshold") + 1, "note", table.pop("note"))
    # an empty table (no validation anywhere) must merge and calculate like any other
    return table.astype(dict.fromkeys(floats, float) | dict(validation[TRIAL_COLUMNS].dtypes))


def _too_few(cases: list[int]) -> str:
    few = " and ".join(
        f"{count} {name} case{'s' * (count != 1)}"
        for count, name in zip(cases, breakhis.CLASSES, strict=True)
        if count < FEWEST_CASES
    )
    return f"{few} on validation, fewer than {FEWEST_CASES}: threshold 0.5, no calibration"


def apply_lock(predictions: pd.DataFrame, locked: pd.DataFrame) -> pd.DataFrame:
    """Add the columns threshold, calibrated and refer_below of each prediction's trial.

    Trials that `locked` does not know (a protocol without validation) keep 0.5 and their probability.
    """
    trials, probability = predictions[TRIAL_COLUMNS], predictions["probability"]
    known = _as_text(trials).merge(_as_text(locked), on=TRIAL_COLUMNS, how="left")
    return predictions.assign(
        threshold=known["threshold"].fillna(metrics.THRESHOLD).to_numpy(),
        calibrated=np.where(
            known["slope"].isna(), probability, calibrate(probability, known["slope"], known["intercept"])
        ),
        refer_below=known["refer_below"].to_numpy(),
    )


def _as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Write the names of trials as text: a fold is 0 in one table and "val" in another."""
    return table.astype(dict.fromkeys(TRIAL_COLUMNS, str))


def match_validation(validation: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """Give validation predictions the names of the trials whose test predictions they belong to.

    One trial on each side belongs together, whatever its columns say; else `TRIAL_COLUMNS` tell.

    Parameters
    ----------
    validation, predictions : DataFrame
        Predictions tables.

    Returns
    -------
    DataFrame
        The validation table. Warned of are cases that were tested too.

    Raises
    ------
    InputError
        If trials of the validation table are not among the tested ones, or images are both validated and
        tested in one trial.
    """
    trials = [table[TRIAL_COLUMNS].drop_duplicates() for table in (validation, predictions)]
    if all(len(names) == 1 for names in trials):
        validation = validation.assign(**trials[1].iloc[0])
    matched = _as_text(validation).merge(_as_text(trials[1]), on=TRIAL_COLUMNS)
    if matched.empty:
        sides = [", ".join(f"{name} {value}" for name, value in names.iloc[0].items()) for names in trials]
        raise InputError(
            f"validation predictions of no tested trial: they are of {sides[0]}; tested is {sides[1]}; "
            f"make the columns {', '.join(TRIAL_COLUMNS)} agree"
        )
    matched = matched.astype(dict(predictions[TRIAL_COLUMNS].dtypes))
    both = matched.merge(predictions, on=[*TRIAL_COLUMNS, "filename"], suffixes=("", "_tested"))
    if len(both):
        raise InputError(
            f"{len(both)} of {len(matched)} validation images are test images of the same trial, the first "
            f"{both['filename'].iloc[0]}; leave them out of the validation table: a "
            "threshold is chosen on images that are not tested"
        )
    tested = predictions[[*TRIAL_COLUMNS, "case"]].drop_duplicates()
    shared = matched.merge(tested, on=[*TRIAL_COLUMNS, "case"])["case"].unique()
    if len(shared):
        warnings.warn(
            f"{len(shared)} validation cases are test cases too, the first {shared[0]}: the threshold has "
            "seen them",
            stacklevel=2,
        )
    return matched


def selective_accuracy(
    predictions: pd.DataFrame,
    shares: Sequence[float] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5),
) -> pd.DataFrame:
    """Compute the accuracy on the images that are decided when the least certain are referred elsewhere.

    Certainty is the distance of the probability from its threshold, in logits; equally certain images are
    decided together. The threshold is the column ``threshold`` where there is one (see `apply_lock`), else
    0.5.

    Returns
    -------
    DataFrame
        method, split, decided (share of predictions), images, cases, accuracy, and low, high: its 95 %
        interval over cases.
    """
    rows = []
    for key, part in predictions.groupby(["method", "split"], sort=False):
        at = part["threshold"] if "threshold" in part else metrics.THRESHOLD
        certain = np.abs(metrics.clipped_logit(part["probability"]) - metrics.clipped_logit(at))
        part, most_certain = metrics.number_names(metrics.with_correct(part, at)), np.sort(certain)[::-1]
        for share in shares:
            wanted = max(1, round(share * len(part)))
            kept = part[certain >= most_certain[wanted - 1]]
            if len(kept) > wanted:
                share = len(kept) / len(part)
            interval = bootstrap.share_interval(kept, kept["correct"], repeats=_REPEATS)
            rows.append([*key, share, kept["filename"].nunique(), kept["case"].nunique(), *interval])
    return pd.DataFrame(rows, columns="method split decided images cases accuracy low high".split())


def reliability_band(predictions: pd.DataFrame, column: str = "probability") -> pd.DataFrame:
    """Compute a reliability curve with its 95 % band over cases, in `metrics.BINS` bins of equal width.

    Parameters
    ----------
    predictions : DataFrame
        Rows of one method and split.
    column : str
        "probability" or "calibrated".

    Returns
    -------
    DataFrame
        A row a bin that holds images: probability (their mean), malignant (share of them), cases, low, high
        (NaN with fewer than `bootstrap.FEWEST_CASES` cases, or where both are the same).
    """
    place = np.searchsorted(np.linspace(0, 1, metrics.BINS + 1)[1:-1], predictions[column])
    predictions = metrics.number_names(predictions)
    images = pd.DataFrame({"case": predictions["case"], "bin": place, "label": predictions["label"], "n": 1})
    sums = images.pivot_table(["label", "n"], "case", "bin", "sum", fill_value=0)
    curve = predictions.groupby(place).agg(
        probability=(column, "mean"), malignant=("label", "mean"), cases=("case", "nunique")
    )
    drawn = bootstrap.resampled_sums(sums, repeats=_REPEATS)
    found, counts = np.split(drawn, 2, axis=1)
    shares = np.divide(found, counts, out=np.full_like(found, np.nan), where=counts > 0)
    limits = [
        bootstrap.confidence_limits(share, cases if cases >= bootstrap.FEWEST_CASES else 0)
        for share, cases in zip(shares.T, curve["cases"], strict=True)
    ]
    curve[["low", "high"]] = limits
    curve.loc[curve["low"] == curve["high"], ["low", "high"]] = np.nan
    return curve.reset_index(drop=True)


def referral_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Compute what share of images must be referred so that 99 % of the malignant ones are found or referred.

    An image below the lower limit is predicted benign, one at or above its threshold malignant, one between
    is referred.

    Parameters
    ----------
    predictions : DataFrame
        As from `apply_lock`.

    Returns
    -------
    DataFrame
        method, split, images, cases; referred and sensitivity at the limits that validation set (NaN
        where there was none), each followed by its 95 % interval over cases (text); referred_hindsight: the
        share that the test part itself would have asked for, which has no interval since it was chosen there.
    """
    rows = []
    for (method, split), part in predictions.groupby(["method", "split"], sort=False):
        probability, threshold, below = part["probability"], part["threshold"], part["refer_below"]
        limit = choose_threshold(part["label"], probability, "sensitivity", sensitivity=REFERRAL_SENSITIVITY)
        counts = {"images": part["filename"].nunique(), "cases": part["case"].nunique()}
        row = {"method": method, "split": split, **counts}
        found, malignant = probability >= np.minimum(below, threshold), part["label"] == 1
        shares = {
            "referred": (part, (probability >= below) & (probability < threshold)),
            "sensitivity": (part[malignant], found[malignant]),
        }
        for name, (rows_of, counted) in shares.items():
            known = below.notna().all() and len(rows_of)
            row[name], *limits = bootstrap.share_interval(rows_of, counted) if known else [np.nan] * 3
            row[f"{name}, 95 % by case"] = bootstrap.range_text(*limits)
        row["referred_hindsight"] = ((probability >= limit) & (probability < threshold)).mean()
        rows.append(row)
    return pd.DataFrame(rows)
