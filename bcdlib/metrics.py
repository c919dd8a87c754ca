"""The predictions table and the figures that follow from it; works on any model's predictions.

Columns of a predictions table: filename, slide, case, magnification, subtype, label (0 benign, 1 malignant),
probability (of malignant), fold, method, split, seed; ours also have ``weights`` (what the network started from).
"""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import metrics as sk

from bcdlib import manifest
from bcdlib.errors import InputError

COLUMNS = ["filename", "slide", "case", "magnification", "subtype", "label", "probability", "fold", "method", "split",
           "seed"]
TRIAL = ["method", "split", "fold", "seed"]
THRESHOLD = 0.5


def read_predictions(path) -> pd.DataFrame:
    """Read and check a predictions table (CSV).

    Raises
    ------
    InputError
        If the file cannot be read, a column is missing, a label is not 0 or 1, a probability is not in 0..1, or an
        image comes twice in one trial.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such predictions table")
    try:
        table = pd.read_csv(path, dtype={"slide": str, "case": str})
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a readable CSV ({error})".splitlines()[0]) from None
    return check_predictions(table, str(path))


def check_predictions(table: pd.DataFrame, name: str = "predictions") -> pd.DataFrame:
    """Give the table back if it is a predictions table, else raise InputError (see `read_predictions`)."""
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise InputError(f"{name}: column {missing[0]!r} is missing; a predictions table has {', '.join(COLUMNS)}")
    if table.empty:
        raise InputError(f"{name}: the table has no rows")
    bad = ~table["label"].isin([0, 1])
    if bad.any():
        raise InputError(f"{name}: label of {table.loc[bad, 'filename'].iloc[0]} is not 0 (benign) or 1 (malignant)")
    probability = pd.to_numeric(table["probability"], errors="coerce")
    bad = ~probability.between(0, 1)  # NaN is not between
    if bad.any():
        raise InputError(f"{name}: probability of {table.loc[bad, 'filename'].iloc[0]} is not a number in 0..1")
    twice = table.duplicated([*TRIAL, "filename"])
    if twice.any():
        raise InputError(f"{name}: {table.loc[twice, 'filename'].iloc[0]} comes twice in one trial")
    return table.assign(probability=probability)


def scores(label, probability, threshold: float = THRESHOLD) -> dict[str, float]:
    """Figures of one set of predictions, from scikit-learn.

    Parameters
    ----------
    label : int array (N,), 0 or 1
    probability : float array (N,), 0..1

    Returns
    -------
    dict: accuracy, mse, sensitivity, specificity, precision, f1, auc; all 0..1. One that is not defined (AUC with one
    class only, sensitivity without malignant images, precision without a positive call) is NaN.
    """
    label, probability = np.asarray(label), np.asarray(probability)
    called = (probability >= threshold).astype(int)
    nan = float("nan")
    both = len(np.unique(label)) == 2
    return {
        "accuracy": sk.accuracy_score(label, called),
        "mse": sk.mean_squared_error(label, probability),
        "sensitivity": sk.recall_score(label, called, pos_label=1, zero_division=nan),
        "specificity": sk.recall_score(label, called, pos_label=0, zero_division=nan),
        "precision": sk.precision_score(label, called, zero_division=nan),
        "f1": sk.f1_score(label, called, zero_division=nan),
        "auc": sk.roc_auc_score(label, probability) if both else nan,
    }


def table(predictions: pd.DataFrame, by=("method", "split")) -> pd.DataFrame:
    """`scores` of each group, with the number of images, slides, cases and folds beside them.

    The folds of a group are pooled, each image with the prediction of the fold that tested it; seeds are pooled too.

    Parameters
    ----------
    by : column names to group by, in order of first appearance
    """
    rows = []
    for key, part in predictions.groupby(list(by), sort=False):
        rows.append(
            dict(zip(by, key, strict=True))
            | {
                "images": part["filename"].nunique(),
                "slides": manifest.slide_folders(part),
                "cases": part["case"].nunique(),
                "folds": part["fold"].nunique(),
            }
            | scores(part["label"], part["probability"])
        )
    result = pd.DataFrame(rows)
    if "weights" in predictions:
        names = predictions.groupby(list(by), sort=False)["weights"].agg(lambda w: ", ".join(dict.fromkeys(w)))
        result["weights"] = names.to_numpy()
    return result


def weights_note(predictions: pd.DataFrame) -> str:
    """What the networks started from, for captions; empty if the table does not say."""
    if "weights" not in predictions:
        return ""
    return "; ".join(dict.fromkeys(predictions["weights"]))
