"""From probabilities to decisions: threshold, calibration and referral, all fitted on validation and then locked.

Order matters: `lock` sees the validation part only, `apply` puts what it found beside the test predictions. Nothing
here chooses on a test part, but `referral`, which says in its columns what it read there.
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve

from bcdlib.errors import InputError
from bcdlib.evaluation import metrics
from bcdlib.runs.folder import TRIAL_COLUMNS

RULES = ("youden", "sensitivity")
CALIBRATIONS = ("temperature", "platt", "none")
WISHED_SENSITIVITY = 0.95
REFERRAL_SENSITIVITY = 0.99
_EDGE = 1e-6  # probabilities of exactly 0 and 1 have no logit


def _logit(probability) -> np.ndarray:
    return logit(np.clip(np.asarray(probability, dtype=float), _EDGE, 1 - _EDGE))


def _check(rule: str = "youden", sensitivity: float = WISHED_SENSITIVITY, calibration: str = "none") -> None:
    if rule not in RULES:
        raise InputError(f"unknown threshold rule {rule!r}; known are {', '.join(RULES)}")
    if not 0 < sensitivity <= 1:
        raise InputError(f"wished sensitivity {sensitivity}: give a number above 0, up to 1")
    if calibration not in CALIBRATIONS:
        raise InputError(f"unknown calibration {calibration!r}; known are {', '.join(CALIBRATIONS)}")


def choose_threshold(
    label, probability, rule: str = "youden", *, sensitivity: float = WISHED_SENSITIVITY
) -> float:
    """The probability from which on an image is called malignant.

    Parameters
    ----------
    label : int array (N,), 0 or 1, both present
    probability : float array (N,), 0..1
    rule : "youden" (largest sensitivity + specificity - 1) or "sensitivity"
    sensitivity : for that rule: at least this much, 0..1, with the highest threshold that gives it

    Returns
    -------
    float in 0..1: a probability that occurs among the malignant ones, or 0.5 if one class is missing.

    Raises
    ------
    InputError
        Unknown rule, or a sensitivity that is not in 0..1.
    """
    _check(rule, sensitivity)
    if len(np.unique(label)) < 2:
        return metrics.THRESHOLD
    false_alarms, found, thresholds = roc_curve(label, probability, drop_intermediate=False)
    if rule == "youden":
        best = np.argmax(
            np.round(found - false_alarms, 12)
        )  # of equals the highest, whatever the last bit says
        return float(min(thresholds[best], 1.0))  # the curve's first threshold is infinite
    return float(thresholds[np.argmax(found >= sensitivity - 1e-12)])


def fit_calibration(label, probability, kind: str = "temperature") -> tuple[float, float]:
    """Slope and intercept of the line that makes logits honest: calibrated = sigmoid(slope * logit + intercept).

    ``temperature`` (Guo et al. 2017) fits the slope alone, 1 / temperature, and never changes which image is the more
    suspicious or what is called at 0.5: one number is as much as few cases carry. ``platt`` (Platt 1999, with his
    smoothed targets) fits both. With one class only, or "none", nothing is changed: (1, 0).

    Raises
    ------
    InputError
        Unknown kind.
    """
    _check(calibration=kind)
    label, x = np.asarray(label), _logit(probability)
    if kind == "none" or len(np.unique(label)) < 2 or np.ptp(x) == 0:
        return 1.0, 0.0
    if kind == "temperature":

        def loss(log_temperature):
            return np.logaddexp(0, -(2 * label - 1) * x / np.exp(log_temperature)).mean()

        return float(
            np.exp(-minimize_scalar(loss, bounds=(np.log(0.05), np.log(100)), method="bounded").x)
        ), 0.0
    positive, negative = label.sum(), (1 - label).sum()
    target = np.where(label == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))
    fit = LogisticRegression(C=1e6).fit(
        np.r_[x, x][:, None], np.repeat([1, 0], len(x)), sample_weight=np.r_[target, 1 - target]
    )
    return float(fit.coef_[0, 0]), float(fit.intercept_[0])


def calibrate(probability, slope: float, intercept: float) -> np.ndarray:
    """Calibrated probability, float (N,), 0..1; see `fit_calibration`."""
    return expit(np.asarray(slope) * _logit(probability) + np.asarray(intercept))


def lock_thresholds(
    validation: pd.DataFrame,
    rule: str = "youden",
    sensitivity: float = WISHED_SENSITIVITY,
    *,
    calibration: str = "temperature",
) -> pd.DataFrame:
    """What each trial's validation predictions decide.

    Returns
    -------
    DataFrame, one row a trial: `folder.TRIAL_COLUMNS`, validation_images, validation_cases, threshold, slope, intercept,
    refer_below (the highest limit that keeps 99 % of the malignant validation images at or above it).
    A trial whose validation part lacks a class has threshold 0.5, slope 1, intercept 0, refer_below NaN.
    """
    _check(rule, sensitivity, calibration)
    columns = [
        *TRIAL_COLUMNS,
        "validation_images",
        "validation_cases",
        "threshold",
        "slope",
        "intercept",
        "refer_below",
    ]
    rows = []
    for key, part in validation.groupby(TRIAL_COLUMNS, sort=False):
        label, probability = part["label"].to_numpy(), part["probability"].to_numpy()
        both = part["label"].nunique() == 2
        below = (
            choose_threshold(label, probability, "sensitivity", sensitivity=REFERRAL_SENSITIVITY)
            if both
            else float("nan")
        )
        rows.append(
            [
                *key,
                len(part),
                part["case"].nunique(),
                choose_threshold(label, probability, rule, sensitivity=sensitivity),
                *fit_calibration(label, probability, calibration),
                below,
            ]
        )
    # an empty table (no validation anywhere) must merge and calculate like any other
    floats = dict.fromkeys(columns[-4:], float)
    return pd.DataFrame(rows, columns=columns).astype(floats | dict(validation[TRIAL_COLUMNS].dtypes))


def apply_lock(predictions: pd.DataFrame, locked: pd.DataFrame) -> pd.DataFrame:
    """The predictions with the columns threshold, calibrated and refer_below of their trials.

    Trials that `locked` does not know (a protocol without validation) keep 0.5 and their probability.
    """
    known = predictions[TRIAL_COLUMNS].merge(
        locked.astype(dict(predictions[TRIAL_COLUMNS].dtypes)), on=TRIAL_COLUMNS, how="left"
    )
    return predictions.assign(
        threshold=known["threshold"].fillna(metrics.THRESHOLD).to_numpy(),
        calibrated=np.where(
            known["slope"].isna(),
            predictions["probability"],
            calibrate(predictions["probability"], known["slope"].fillna(1), known["intercept"].fillna(0)),
        ),
        refer_below=known["refer_below"].to_numpy(),
    )


def selective_accuracy(
    predictions: pd.DataFrame, shares=(1.0, 0.9, 0.8, 0.7, 0.6, 0.5), by=("method", "split")
) -> pd.DataFrame:
    """Accuracy on the images that are decided, if the least certain ones are referred to a pathologist.

    Certainty is the distance of the probability from its threshold, in logits. The threshold is the column
    ``threshold`` where there is one (see `apply`), else 0.5.

    Returns
    -------
    DataFrame: the columns of `by`, decided (share of images), images, cases, accuracy
    """
    rows = []
    for key, part in predictions.groupby(list(by), sort=False):
        at = part["threshold"] if "threshold" in part else pd.Series(metrics.THRESHOLD, part.index)
        certain = np.abs(_logit(part["probability"]) - _logit(at))
        part = metrics.with_correct(part.assign(at=at), "at").iloc[np.argsort(-certain, kind="stable")]
        for share in shares:
            kept = part.iloc[: max(1, round(share * len(part)))]
            rows.append(
                dict(zip(by, key, strict=True))
                | {
                    "decided": share,
                    "images": len(kept),
                    "cases": kept["case"].nunique(),
                    "accuracy": kept["right"].mean(),
                }
            )
    return pd.DataFrame(rows)


def referral_table(
    predictions: pd.DataFrame, sensitivity: float = REFERRAL_SENSITIVITY, by=("method", "split")
) -> pd.DataFrame:
    """What share of images must be referred so that 99 % of the malignant ones are found or referred.

    An image below the lower limit is called benign, one at or above its threshold malignant, one between is referred.

    Parameters
    ----------
    predictions : as from `apply`

    Returns
    -------
    DataFrame: the columns of `by`, images, cases; referred and sensitivity at the limits that validation set (NaN
    where there was none); referred_hindsight: the share that the test part itself would have asked for.
    """
    rows = []
    for key, part in predictions.groupby(list(by), sort=False):
        malignant, probability = part["label"] == 1, part["probability"]
        row = dict(zip(by, key, strict=True)) | {
            "images": len(part),
            "cases": part["case"].nunique(),
            "referred": float("nan"),
            "sensitivity": float("nan"),
        }
        if part["refer_below"].notna().all():
            row["referred"] = (
                (probability >= part["refer_below"]) & (probability < part["threshold"])
            ).mean()
            caught = probability[malignant] >= np.minimum(part["refer_below"], part["threshold"])[malignant]
            row["sensitivity"] = caught.mean() if len(caught) else float("nan")
        limit = choose_threshold(part["label"], probability, "sensitivity", sensitivity=sensitivity)
        row["referred_hindsight"] = ((probability >= limit) & (probability < part["threshold"])).mean()
        rows.append(row)
    return pd.DataFrame(rows)
