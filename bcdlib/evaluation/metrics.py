"""The predictions table and the figures that follow from it; works on any model's predictions.

Columns of a predictions table: filename, slide, case, magnification, subtype, label (0 benign, 1 malignant),
probability (of malignant), fold, method, split, seed; ours also have ``weights`` (what the network started from), and
those of the task "subtype" p_A, p_F, ... (probability of each of the eight subtypes).
"""

import numpy as np
import pandas as pd
from sklearn import metrics as sk

from bcdlib.data import breakhis
from bcdlib.errors import InputError
from bcdlib.runs.files import read_user_csv
from bcdlib.runs.folder import TRIAL_COLUMNS

COLUMNS = [
    "filename",
    "slide",
    "case",
    "magnification",
    "subtype",
    "label",
    "probability",
    "fold",
    "method",
    "split",
    "seed",
]
SUBTYPE_COLUMNS = [f"p_{name}" for name in breakhis.SUBTYPES]
THRESHOLD = 0.5
BINS = 10
METRICS = (
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "precision",
    "f1",
    "mcc",
    "kappa",
    "auc",
    "average_precision",
    "brier",
    "ece",
)
UNIT_METRICS = ("slide_recognition", "slide_auc", "case_auc")


def read_predictions(path) -> pd.DataFrame:
    """Read and check a predictions table (CSV).

    Raises
    ------
    InputError
        If the file cannot be read, a column is missing, a label is not 0 or 1, a probability is not in 0..1, a
        slide or case is empty, an image comes twice in one trial, or an image has two labels or two cases.
    """
    table = read_user_csv(path, "predictions table", {"slide": str, "case": str})
    return check_predictions(table, str(path))


def check_predictions(table: pd.DataFrame, name: str = "predictions") -> pd.DataFrame:
    """Give the table back if it is a predictions table, else raise InputError (see `read_predictions`)."""
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise InputError(
            f"{name}: column {missing[0]!r} is missing; a predictions table has {', '.join(COLUMNS)}"
        )
    if table.empty:
        raise InputError(f"{name}: the table has no rows")
    bad = ~table["label"].isin([0, 1])
    if bad.any():
        raise InputError(
            f"{name}: label of {table.loc[bad, 'filename'].iloc[0]} is not 0 (benign) or 1 (malignant)"
        )
    probability = pd.to_numeric(table["probability"], errors="coerce")
    bad = ~probability.between(0, 1)  # NaN is not between
    if bad.any():
        raise InputError(
            f"{name}: probability of {table.loc[bad, 'filename'].iloc[0]} is not a number in 0..1"
        )
    for column in ("filename", "slide", "case", *TRIAL_COLUMNS):
        if table[column].isna().any():
            row = int(np.flatnonzero(table[column].isna())[0]) + 2
            raise InputError(
                f"{name}: line {row} has no {column}; each row needs one (0 will do for fold and seed)"
            )
    twice = table.duplicated([*TRIAL_COLUMNS, "filename"])
    if twice.any():
        raise InputError(f"{name}: {table.loc[twice, 'filename'].iloc[0]} comes twice in one trial")
    for column in ("label", "case"):  # a slide may hold both classes, a picture may not
        differ = table.groupby("filename")[column].nunique() > 1
        if differ.any():
            raise InputError(f"{name}: {differ.idxmax()} has two different values of {column}")
    return table.assign(probability=probability)


def compute_metrics(label, probability, threshold=THRESHOLD) -> dict[str, float]:
    """Figures of one set of predictions, from scikit-learn.

    Parameters
    ----------
    label : int array (N,), 0 or 1
    probability : float array (N,), 0..1
    threshold : float, or array (N,)
        Probabilities from here on are called malignant.

    Returns
    -------
    dict with the keys `FIGURES`. All are 0..1 but mcc and kappa (-1..1). brier is the Brier score: the mean squared
    error of the probability, the paper's test loss. ece: see `calibration_error`. What is not defined is NaN: AUC,
    average precision, balanced accuracy, MCC and kappa with one class only, sensitivity without malignant images,
    specificity without benign ones, precision and F1 without a positive call.
    """
    label, probability = np.asarray(label), np.asarray(probability)
    called = (probability >= np.asarray(threshold)).astype(int)
    nan = float("nan")
    both = len(np.unique(label)) == 2
    return {
        "accuracy": sk.accuracy_score(label, called),
        "balanced_accuracy": sk.balanced_accuracy_score(label, called) if both else nan,
        "sensitivity": sk.recall_score(label, called, pos_label=1, zero_division=nan),
        "specificity": sk.recall_score(label, called, pos_label=0, zero_division=nan),
        "precision": sk.precision_score(label, called, zero_division=nan),
        "f1": sk.f1_score(label, called, zero_division=nan),
        "mcc": sk.matthews_corrcoef(label, called) if both else nan,
        "kappa": sk.cohen_kappa_score(label, called) if both else nan,
        "auc": sk.roc_auc_score(label, probability) if both else nan,
        "average_precision": sk.average_precision_score(label, probability) if both else nan,
        "brier": sk.mean_squared_error(label, probability),
        "ece": calibration_error(label, probability),
    }


def calibration_error(label, probability) -> float:
    """Expected calibration error of the probability of malignant, 0..1.

    In `BINS` bins of equal width: the distance between mean probability and share of malignant images, weighted by
    the bin's share of images (Guo et al. 2017, there for the probability of the called class).
    """
    difference = np.asarray(probability, dtype=float) - np.asarray(label)
    return float(np.abs(np.bincount(calibration_bins(probability), difference, BINS)).sum() / len(difference))


def calibration_bins(probability) -> np.ndarray:
    """The bin of each probability, int (N,), 0..BINS-1; 1.0 belongs to the last."""
    return np.minimum((np.asarray(probability, dtype=float) * BINS).astype(int), BINS - 1)


def group_units(predictions: pd.DataFrame, unit: str) -> pd.DataFrame:
    """One row a slide or case, all magnifications together: what a patient is told, not what a picture is called.

    Parameters
    ----------
    predictions : the rows of one seed, method and split, with ``probability`` and ``right`` (called correctly)
    unit : "slide" (slide folder: subtype and slide, 82 in BreakHis) or "case"

    Returns
    -------
    DataFrame: case, label (malignant if one of its images is), probability (mean over its images), right (share of
    its images that are called correctly), images
    """
    grouped = predictions.groupby(
        predictions["case"] if unit == "case" else breakhis.slide_folders(predictions), sort=False
    )
    return grouped.agg(
        case=("case", "first"),
        label=("label", "max"),
        probability=("probability", "mean"),
        right=("right", "mean"),
        images=("label", "size"),
    ).reset_index(drop=True)


def unit_metrics(predictions: pd.DataFrame, threshold=THRESHOLD) -> dict[str, float]:
    """Figures of slides and cases; NaN where not defined.

    Returns
    -------
    dict with the keys `UNIT_FIGURES`: slide_recognition, the mean over slides of the share of the slide's images that
    are right (Spanhol et al. 2016, there "patient recognition rate"); slide_auc and case_auc, from mean probability.
    """
    table = with_correct(predictions, threshold)
    slides, cases = group_units(table, "slide"), group_units(table, "case")
    return {
        "slide_recognition": slides["right"].mean(),
        "slide_auc": compute_metrics(slides["label"], slides["probability"])["auc"],
        "case_auc": compute_metrics(cases["label"], cases["probability"])["auc"],
    }


def with_correct(predictions: pd.DataFrame, threshold=THRESHOLD) -> pd.DataFrame:
    """The table with a column ``right``: whether the image is called correctly. `threshold` as in `table`."""
    at = predictions[threshold] if isinstance(threshold, str) else threshold
    return predictions.assign(right=(predictions["probability"] >= at).astype(int) == predictions["label"])


def metrics_table(predictions: pd.DataFrame, by=("method", "split"), threshold=THRESHOLD) -> pd.DataFrame:
    """`scores` and `unit_scores` of each group, with the number of images, slides, cases, folds and seeds beside them.

    The folds of a group are pooled, each image with the prediction of the fold that tested it (out of fold). With
    several seeds, each figure is the mean of the seeds' figures.

    Parameters
    ----------
    by : column names to group by, in order of first appearance
    threshold : float, or the name of a column that has each row's threshold
    """
    rows = []
    for key, part in predictions.groupby(list(by), sort=False):
        figures = [
            compute_metrics(
                one["label"], one["probability"], one[threshold] if isinstance(threshold, str) else threshold
            )
            | unit_metrics(one, threshold)
            for _, one in part.groupby("seed")
        ]
        rows.append(
            dict(zip(by, key, strict=True))
            | {
                "images": part["filename"].nunique(),
                "slides": breakhis.count_slide_folders(part),
                "cases": part["case"].nunique(),
                "folds": part["fold"].nunique(),
                "seeds": part["seed"].nunique(),
            }
            | pd.DataFrame(figures).mean().to_dict()
        )
    result = pd.DataFrame(rows)
    if "weights" in predictions:
        names = predictions.groupby(list(by), sort=False)["weights"].agg(
            lambda w: ", ".join(dict.fromkeys(w))
        )
        result["weights"] = names.to_numpy()
    return result


def subtype_predictions(predictions: pd.DataFrame) -> pd.DataFrame:
    """The rows of methods that learned the eight subtypes, with ``called``: the most probable one; may be empty."""
    if not set(SUBTYPE_COLUMNS) <= set(predictions):
        return predictions.iloc[:0].assign(called="")
    rows = predictions[predictions[SUBTYPE_COLUMNS].notna().all(axis=1)]
    most = rows[SUBTYPE_COLUMNS].to_numpy().argmax(axis=1) if len(rows) else []
    return rows.assign(called=np.array(list(breakhis.SUBTYPES))[most] if len(rows) else "")


def subtype_table(predictions: pd.DataFrame, by=("method", "split")) -> pd.DataFrame:
    """Figures of the eight-subtype task; folds and seeds pooled. Empty if no method learned it.

    Returns
    -------
    DataFrame: the columns of `by`, images, cases, subtypes (how many occur in the test part), accuracy,
    macro_sensitivity, macro_precision, macro_f1 (means over the subtypes that occur; a subtype that is never called has
    precision 0).
    """
    rows = []
    for key, part in subtype_predictions(predictions).groupby(list(by), sort=False):
        labels = [name for name in breakhis.SUBTYPES if (part["subtype"] == name).any()]
        average = {"labels": labels, "average": "macro", "zero_division": 0}
        truth, called = part["subtype"], part["called"]
        rows.append(
            dict(zip(by, key, strict=True))
            | {
                "images": part["filename"].nunique(),
                "cases": part["case"].nunique(),
                "subtypes": len(labels),
                "accuracy": sk.accuracy_score(truth, called),
                "macro_sensitivity": sk.recall_score(truth, called, **average),
                "macro_precision": sk.precision_score(truth, called, **average),
                "macro_f1": sk.f1_score(truth, called, **average),
            }
        )
    columns = [
        *by,
        "images",
        "cases",
        "subtypes",
        "accuracy",
        "macro_sensitivity",
        "macro_precision",
        "macro_f1",
    ]
    return pd.DataFrame(rows, columns=columns)


def cross_validation_table(
    predictions: pd.DataFrame, figures=("accuracy", "auc"), by=("method", "split")
) -> pd.DataFrame:
    """How much a figure differs from fold to fold and seed to seed, and what it is when the folds are pooled.

    Returns
    -------
    DataFrame: the columns of `by`, figure, cases, trials (folds x seeds in which it is defined), mean, sd, lowest, highest,
    pooled. The standard deviation is that of the trials; they share training images, so it is no standard error.
    """
    single = metrics_table(predictions, (*by, "fold", "seed"))
    pooled = metrics_table(predictions, by)
    rows = []
    for (key, part), (_, whole) in zip(single.groupby(list(by), sort=False), pooled.iterrows(), strict=True):
        for figure in figures:
            values = part[figure].dropna()
            rows.append(
                dict(zip(by, key, strict=True))
                | {
                    "figure": figure,
                    "cases": whole["cases"],
                    "trials": len(values),
                    "mean": values.mean(),
                    "sd": values.std(),
                    "lowest": values.min(),
                    "highest": values.max(),
                    "pooled": whole[figure],
                }
            )
    return pd.DataFrame(rows)


def weights_note(predictions: pd.DataFrame) -> str:
    """What the networks started from, for captions; empty if the table does not say."""
    if "weights" not in predictions:
        return ""
    return "; ".join(dict.fromkeys(predictions["weights"]))
