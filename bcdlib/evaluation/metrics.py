"""The registry of metrics and the tables that follow from predictions, made here or by any other model.

A predictions table has the columns filename, slide, case, magnification, subtype, label (0 benign, 1
malignant), probability (of malignant), fold, method, split and seed. Ours also have ``weights`` (what the
network started from) and, for the task "subtype", p_A, p_F, ... (the probability of each of the eight
subtypes). For the task "magnification" they have p_40X, ... instead, and no probability of malignant: an
image is then correct if its magnification is the most probable one.

To add a metric, add one entry to `METRICS`: results, comparison and model card show it, each with its
interval.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import pandas as pd
import sklearn
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from bcdlib.data import breakhis
from bcdlib.errors import InputError
from bcdlib.runs import files, folder, names

COLUMNS = "filename slide case magnification subtype label probability fold method split seed".split()
SUBTYPE_COLUMNS = [f"p_{name}" for name in breakhis.SUBTYPES]
MAGNIFICATION_COLUMNS = [f"p_{name}X" for name in breakhis.MAGNIFICATIONS]
THRESHOLD = 0.5
FAR_UNDER_CHANCE = 0.35  # an AUC below this is rather a mistake in the table than a bad model
MOST_UNITS = 10_000  # images, slides or cases that are told apart by their order, and drawn one by one
BINS = 10  # of the calibration error and the reliability diagram


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric: how it is computed, and where and under which name it is shown.

    Attributes
    ----------
    label : str
        Its name in tables, in figures and on model cards.
    compute : callable
        ``compute(label, score)`` as in scikit-learn, where score is the column `of`; returns a float.
    weighted : callable, optional
        The same for many weightings at once, which makes its bootstrap fast: ``weighted(label, score,
        weights)`` with weights (B, N) returns a float array (B,). Without it, `compute` is called for each
        resample: seconds instead of milliseconds.
    of : str
        The column it is computed from: "predicted" (0 or 1), "probability" (of malignant) or "correct"
        (whether the image is predicted correctly; for slides and cases the share of their images).
    unit : str
        What it counts: "image", "slide" or "case" (see `group_units`; slides and cases have no column
        "predicted").
    both_classes : bool
        Whether it is undefined (NaN) with benign or malignant images only.
    classes : tuple of int
        The labels whose cases it rests on, which sets how wide its interval is: (1,) for sensitivity, (0,)
        for specificity.
    rate : bool
        Whether it is a share of what is predicted correctly: its interval then allows for errors of a kind
        that the few cases at hand do not show; see `bootstrap.interval_table`.
    within_folds : bool
        Whether it is computed fold by fold and averaged (over the folds in which it is defined), so that
        probabilities of differently trained networks are never ranked against each other.
    any_task : bool
        Whether it only counts what is correct, and so holds for the task "magnification" too; others are NaN
        there.
    tables : tuple of str
        Where it is shown: "results", "comparison", "card", "thresholds", "calibration", "groups" (by
        magnification, subtype or slide).

    Examples
    --------
    >>> table = pd.DataFrame({"label": [1, 1, 0], "probability": [0.9, 0.4, 0.2], "predicted": [1, 0, 0]})
    >>> METRICS["sensitivity"].value(table), METRICS["auc"].value(table)
    (0.5, 1.0)
    >>> METRICS["sensitivity"].weighted_values(table, np.array([[1.0, 1, 1], [3, 1, 0]])).tolist()
    [0.5, 0.75]
    """

    label: str
    compute: Callable[..., float]
    weighted: Callable[..., np.ndarray] | None = None
    of: str = "predicted"
    unit: str = "image"
    both_classes: bool = False
    classes: tuple[int, ...] = (0, 1)
    rate: bool = False
    within_folds: bool = False
    any_task: bool = False
    tables: tuple[str, ...] = ("results", "comparison", "card")

    def value(self, table: pd.DataFrame) -> float:
        """Compute it from the rows of `table`; NaN where it is not defined."""
        if self.within_folds:
            whole = dataclasses.replace(self, within_folds=False)
            return float(pd.Series([whole.value(part) for _, part in table.groupby("fold")]).mean())
        if self.both_classes and table["label"].nunique() < 2:
            return float("nan")
        if not self.any_task and "probability" in table and table["probability"].isna().any():
            return float("nan")
        return float(self.compute(table["label"].to_numpy(), table[self.of].to_numpy()))

    def weighted_values(self, table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
        """Compute it for each row of ``weights`` (B, N): how often each row of `table` counts; float (B,)."""
        if self.within_folds:
            whole = dataclasses.replace(self, within_folds=False)
            by_fold = np.array(
                [
                    whole.weighted_values(table.iloc[rows], weights[:, rows])
                    for rows in table.groupby("fold").indices.values()
                ]
            )
            known = np.isfinite(by_fold)
            return _ratio(np.where(known, by_fold, 0).sum(axis=0), known.sum(axis=0))
        if self.weighted is None:
            rows = np.arange(len(table))
            return np.array([self.value(table.iloc[rows.repeat(count)]) for count in weights.astype(int)])
        label = table["label"].to_numpy()
        if table[self.of].isna().any():
            return np.full(len(weights), np.nan)
        values, malignant = self.weighted(label, table[self.of].to_numpy(), weights), weights @ label
        defined = (malignant > 0) & (malignant < weights.sum(axis=1)) if self.both_classes else True
        return np.where(defined, values, np.nan)


def _ratio(numerator, denominator) -> np.ndarray:
    """Divide; NaN where the denominator is 0."""
    return numerator / np.where(denominator == 0, np.nan, denominator)


def _weighted_mean(_, score, weights) -> np.ndarray:
    return _ratio(weights @ score, weights.sum(axis=1))


def _weighted_recall(label, predicted, weights, *, pos_label: int = 1) -> np.ndarray:
    positive = label == pos_label
    return _ratio(weights @ (positive & (predicted == label)), weights @ positive)


def _weighted_auc(label, probability, weights) -> np.ndarray:
    order = np.argsort(probability, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(probability[order]) > 0])  # of equal probabilities
    positive, negative = (
        np.add.reduceat(weights[:, order] * (label[order] == side), starts, axis=1) for side in (1, 0)
    )
    below = np.cumsum(negative, axis=1) - negative
    return _ratio(
        (positive * (below + negative / 2)).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1)
    )


def _weighted_mcc(label, predicted, weights) -> np.ndarray:
    """0 where all are predicted to be of one class, as scikit-learn's."""
    whole, both, one, other = _weighted_counts(label, predicted, weights)
    scale = np.sqrt(one * (whole - one) * other * (whole - other))
    return (whole * both - one * other) / np.where(scale == 0, 1, scale)


def _weighted_kappa(label, predicted, weights) -> np.ndarray:
    whole, both, one, other = _weighted_counts(label, predicted, weights)
    return _ratio(2 * (whole * both - one * other), whole * (one + other) - 2 * one * other)


def _weighted_counts(label, predicted, weights) -> tuple[np.ndarray, ...]:
    """Count images: all, malignant and predicted so, malignant, predicted malignant."""
    return (weights.sum(axis=1), *(weights @ of for of in (label * predicted, label, predicted)))


def calibration_error(label, probability) -> float:
    """Compute the calibration error of the probability of malignant, 0..1, without the bias of few images.

    In `BINS` bins of equal width: the squared distance between mean probability and share of malignant
    images, less what chance alone adds to it, weighted by the bin's share of images; the root of that (Kumar,
    Liang & Ma 2019, "Verified Uncertainty Calibration", section 4). The usual expected calibration error (Guo
    et al. 2017) is never 0, however good the model: the fewer the images, the larger. Bins with one image are
    left out.

    Examples
    --------
    >>> round(calibration_error([0, 0, 0, 0, 1, 1], [0.2, 0.2, 0.2, 0.2, 0.9, 0.9]), 3)
    0.173
    """
    label, probability = np.asarray(label, dtype=float), np.asarray(probability, dtype=float)
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)  # 1.0 belongs to the last
    counts = np.bincount(bins, minlength=BINS)
    used = counts > 1
    if not used.any():
        return float("nan")
    counts = counts[used]
    share, mean = (np.bincount(bins, of, BINS)[used] / counts for of in (label, probability))
    excess = (mean - share) ** 2 - share * (1 - share) / (counts - 1)
    return float(np.sqrt(max(0.0, np.average(excess, weights=counts))))


def clipped_logit(probability) -> np.ndarray:
    """Compute logits, float (N,), of probabilities that are kept 1e-6 away from 0 and 1, which have none.

    Examples
    --------
    >>> clipped_logit([0.5, 1]).round(2).tolist()
    [0.0, 13.82]
    """
    return logit(np.clip(np.asarray(probability, dtype=float), 1e-6, 1 - 1e-6))


def calibration_slope(label, probability, weights=None) -> float:
    """Compute the slope of a logistic regression of the label on the logit of the probability.

    1 is right; below 1 the probabilities are too extreme, as after overfitting (Van Calster et al. 2019,
    "Calibration: the Achilles heel of predictive analytics"). NaN where all probabilities are the same. Where
    they tell the classes apart without a mistake it has no bound, and says nothing.

    Examples
    --------
    >>> round(calibration_slope([0, 0, 0, 1, 0, 1, 1, 1], [0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9]), 2)
    0.5
    """
    x = clipped_logit(probability)
    if np.ptp(x if weights is None else x[np.asarray(weights) > 0]) == 0:
        return float("nan")
    model = LogisticRegression(C=1e6, solver="newton-cholesky", tol=1e-8)
    model.fit(x[:, None], label, sample_weight=weights)
    return float(model.coef_[0, 0])


def calibration_intercept(label, probability, weights=None) -> float:
    """Compute how far the logits must be moved so that on average as much is malignant as they say.

    0 is right, above 0 the probabilities are too low: "calibration in the large" (see `calibration_slope`).

    Examples
    --------
    >>> round(calibration_intercept([1, 1, 1, 0], [0.5, 0.5, 0.5, 0.5]), 3)  # log 3
    1.099
    """
    x, weights = clipped_logit(probability), np.ones(len(label)) if weights is None else weights
    wanted = weights @ label
    return float(brentq(lambda shift: weights @ expit(x + shift) - wanted, -40, 40))


def _by_resample(compute, label, probability, weights) -> np.ndarray:
    """Compute a metric that takes weights for each resample; NaN where a class was not drawn."""
    found = np.full(len(weights), np.nan)
    with sklearn.config_context(skip_parameter_validation=True, assume_finite=True):  # a third of the time
        for number, row in enumerate(weights):
            used = row > 0
            if 0 < row @ label < row.sum():
                found[number] = compute(label[used], probability[used], row[used])
    return found


METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        "accuracy",
        sk.accuracy_score,
        lambda label, predicted, weights: _weighted_mean(label, predicted == label, weights),
        rate=True,
        any_task=True,
        tables=("results", "comparison", "card", "thresholds", "groups"),
    ),
    "balanced_accuracy": Metric(
        "balanced accuracy",
        sk.balanced_accuracy_score,
        lambda *values: (_weighted_recall(*values) + _weighted_recall(*values, pos_label=0)) / 2,
        both_classes=True,
        rate=True,
        tables=("results", "card", "thresholds"),
    ),
    "sensitivity": Metric(
        "sensitivity (malignant found)",
        partial(sk.recall_score, zero_division=np.nan),
        _weighted_recall,
        classes=(1,),
        rate=True,
        tables=("results", "card", "thresholds", "groups"),
    ),
    "specificity": Metric(
        "specificity",
        partial(sk.recall_score, pos_label=0, zero_division=np.nan),
        partial(_weighted_recall, pos_label=0),
        classes=(0,),
        rate=True,
        tables=("results", "card", "thresholds", "groups"),
    ),
    "precision": Metric(
        "precision",
        partial(sk.precision_score, zero_division=np.nan),
        lambda label, predicted, weights: _weighted_recall(predicted, label, weights),  # roles exchanged
        rate=True,
        tables=("thresholds", "groups"),
    ),
    "f1": Metric(
        "F1",
        partial(sk.f1_score, zero_division=np.nan),
        lambda label, predicted, weights: _ratio(
            weights @ (2 * label * predicted), weights @ (label + predicted)
        ),
        rate=True,
        tables=("thresholds", "groups"),
    ),
    "mcc": Metric("Matthews correlation", sk.matthews_corrcoef, _weighted_mcc, both_classes=True, tables=()),
    "kappa": Metric("Cohen's kappa", sk.cohen_kappa_score, _weighted_kappa, both_classes=True, tables=()),
    "auc": Metric(
        "AUC",
        sk.roc_auc_score,
        _weighted_auc,
        of="probability",
        both_classes=True,
        tables=("results", "comparison", "card", "groups"),
    ),
    "auc_within": Metric(
        "AUC within folds",
        sk.roc_auc_score,
        _weighted_auc,
        of="probability",
        both_classes=True,
        within_folds=True,
        tables=("results", "comparison"),
    ),
    "average_precision": Metric(
        "average precision", sk.average_precision_score, of="probability", both_classes=True, tables=()
    ),
    # the mean squared error of the probability, the paper's test loss
    "brier": Metric(
        "Brier score",
        partial(sk.brier_score_loss, pos_label=1),
        lambda label, probability, weights: _weighted_mean(label, (probability - label) ** 2, weights),
        of="probability",
        tables=("groups", "calibration"),
    ),
    "ece": Metric("calibration error (debiased)", calibration_error, of="probability", tables=()),
    "calibration_slope": Metric(
        "calibration slope (1 is right)",
        calibration_slope,
        partial(_by_resample, calibration_slope),
        of="probability",
        both_classes=True,
        tables=("calibration",),
    ),
    "calibration_intercept": Metric(
        "calibration intercept (0 is right)",
        calibration_intercept,
        partial(_by_resample, calibration_intercept),
        of="probability",
        both_classes=True,
        tables=("calibration",),
    ),
    # the mean over slides of the share of their images that are predicted correctly: the "patient
    # recognition rate" of Spanhol et al. 2016
    "slide_recognition": Metric(
        "slide recognition",
        lambda _, correct: float(np.mean(correct)),
        _weighted_mean,
        of="correct",
        unit="slide",
        rate=True,
        any_task=True,
    ),
    "slide_auc": Metric(
        "slide AUC",
        sk.roc_auc_score,
        _weighted_auc,
        of="probability",
        unit="slide",
        both_classes=True,
        tables=("results",),
    ),
    "case_auc": Metric(
        "case AUC", sk.roc_auc_score, _weighted_auc, of="probability", unit="case", both_classes=True
    ),
}


def shown_in(table: str) -> list[str]:
    """List the keys of the metrics that a table shows, in the registry's order.

    Examples
    --------
    >>> shown_in("comparison")
    ['accuracy', 'auc', 'auc_within', 'slide_recognition', 'case_auc']
    """
    return [key for key, metric in METRICS.items() if table in metric.tables]


def read_predictions(path, *, any_task: bool = False) -> pd.DataFrame:
    """Read and check a predictions table (CSV).

    `COLUMNS`, ``weights``, `SUBTYPE_COLUMNS` and `MAGNIFICATION_COLUMNS` are read, others left out.
    Magnification, subtype and the optional columns may be empty. Names are written as
    `breakhis.official_name` does; folds and seeds that are not all whole numbers are text.

    Parameters
    ----------
    path : path-like
    any_task : bool
        Whether the probability may be empty where `MAGNIFICATION_COLUMNS` are not.

    Raises
    ------
    InputError
        If the file cannot be read (see `files.read_user_csv`), a column is missing, a label is not 0 or 1, a
        probability is not in 0..1 (1e-6 beyond is rounding), a slide or case is empty, an image comes twice
        in one trial, an image has two labels or two cases, or labels contradict BreakHis names.
    """
    kept = files.kept_table(path)
    if kept and kept.is_file():
        return files.read_kept(kept)
    several = [*SUBTYPE_COLUMNS, *MAGNIFICATION_COLUMNS]
    table = files.read_user_csv(path, "predictions table", COLUMNS, ["weights", "data", *several])
    kinds = breakhis.read_classes(table["label"])
    power = breakhis.read_magnifications(table["magnification"])
    numbers = table[table.columns.intersection(["probability", *several], sort=False)].apply(
        pd.to_numeric, errors="coerce"
    )
    wrong = table["probability"][~_in_range(numbers["probability"])]
    wanted = "give a number in 0..1"
    if wrong.str.contains(",", regex=False).any():
        wanted += ", with a decimal point"
    elif numbers["probability"].max() > 1 or wrong.str.endswith("%").any():
        wanted += " (divide per cent by 100)"
    for bad, column, advice in (
        *((table[column] == "", column, "each row needs one") for column in ("filename", "slide", "case")),
        *((table[column] == "", column, "each row needs one; 0 will do") for column in folder.TRIAL_COLUMNS),
        (kinds.isna(), "label", "use 0 (benign) or 1 (malignant)"),
        (power.isna(), "magnification", "use a whole number such as 40, or leave it empty"),
        (~_in_range(numbers["probability"]) & ~(any_task & _without_class(table)), "probability", wanted),
        *(
            (~_in_range(numbers[column]) & (table[column] != ""), column, "give a number in 0..1")
            for column in numbers.columns.drop("probability")
        ),
    ):
        files.refuse_rows(path, table, bad, column, advice, name="filename")
    table = table.assign(
        **numbers,
        label=(kinds == breakhis.CLASSES[1]).astype("int64"),
        magnification=power.astype("int64"),
        subtype=table["subtype"].replace("", breakhis.UNKNOWN),
        fold=files.numbers_or_text(table["fold"]),
        seed=files.numbers_or_text(table["seed"]),
    )
    if "weights" in table:
        table["weights"] = table["weights"].replace("", "not stated")
    table = check_predictions(table.reset_index(drop=True), str(path))
    if kept and not any_task:
        files.write_kept(kept, table)
    return table


def _without_class(table: pd.DataFrame) -> np.ndarray:
    """Tell which rows are of the task "magnification", bool (N,): they have no probability of malignant."""
    empty = table["probability"].isna() | (table["probability"] == "")
    if not empty.any():
        return empty.to_numpy()
    named = table.reindex(columns=MAGNIFICATION_COLUMNS)
    return (empty & (named.notna() & (named != "")).all(axis=1)).to_numpy()


def _in_range(probability: pd.Series) -> pd.Series:
    """Whether each is a number in 0..1, but for what float32 rounds away; False for NaN."""
    return probability.between(-1e-6, 1 + 1e-6)


def check_predictions(table: pd.DataFrame, name: str = "predictions") -> pd.DataFrame:
    """Return the table if it is a predictions table, else raise InputError (see `read_predictions`).

    What the names of BreakHis images prove takes the place of what the table says: slide, case and subtype.
    A slide name that stands in several cases is several slides. `prediction_notes` says what else is odd.

    Examples
    --------
    >>> check_predictions(pd.DataFrame({"filename": ["1.png"]}), "mine.csv")
    Traceback (most recent call last):
    ...
    bcdlib.errors.InputError: mine.csv: column 'slide' is missing; a predictions table has filename, ...
    """
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise InputError(
            f"{name}: column {missing[0]!r} is missing; a predictions table has {', '.join(COLUMNS)}"
        )
    if table.empty:
        raise InputError(f"{name}: the table has no rows")
    probability = pd.to_numeric(table["probability"], errors="coerce")
    for column, good, wanted in (
        ("label", table["label"].isin([0, 1]), "0 (benign) or 1 (malignant)"),
        ("probability", _in_range(probability) | _without_class(table), "a number in 0..1"),
    ):
        if not good.all():
            raise InputError(f"{name}: {column} of {table.loc[~good, 'filename'].iloc[0]} is not {wanted}")
    for column in ("filename", "slide", "case", *folder.TRIAL_COLUMNS):
        if table[column].isna().any():
            raise InputError(f"{name}: row {table[column].isna().argmax() + 1} has no {column}")
    matched = breakhis.official_names(table["filename"].astype(str))
    table = table.assign(filename=matched, probability=probability.clip(0, 1))
    again = table["filename"].duplicated(keep=False)  # of a million as a rule none
    twice = table[again].duplicated([*folder.TRIAL_COLUMNS, "filename"])
    if twice.any():
        raise InputError(f"{name}: {table['filename'][twice.idxmax()]} comes twice in one trial")
    table = _with_breakhis_facts(table, name)
    for column in ("label", "case"):  # a slide may hold both classes, an image may not
        differ = table[again].groupby("filename")[column].nunique() > 1
        if differ.any():
            raise InputError(f"{name}: {differ.idxmax()} has two different values of {column}")
    return table.assign(slide=breakhis.distinct_slides(table))


def _with_breakhis_facts(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Hold the rows that have BreakHis names against these; their cases become accession numbers."""
    named = table["filename"].str.startswith("SOB_")
    known = named & table["filename"].isin(
        list(filter(breakhis.is_breakhis_name, table.loc[named, "filename"].unique()))
    )
    facts = breakhis.images_table(table.loc[known, "filename"])
    wrong = breakhis.class_labels(facts) != table.loc[known, "label"].to_numpy()
    if wrong.any():
        raise InputError(
            f"{name}: {wrong.sum()} of {len(table)} labels contradict the file name, the first of "
            f"{facts['filename'][wrong.argmax()]}; were the images shuffled after the labels were listed?"
        )
    table, notes = table.copy(), []
    said = {"case": "accession numbers", "magnification": "magnifications"}
    for column in ("slide", "case", "subtype", "magnification"):
        kind = table[column].dtype if column == "magnification" else object
        values, table[column] = facts[column].to_numpy(dtype=kind), table[column].astype(kind)
        other = (values != table.loc[known, column].to_numpy()).sum()
        table.loc[known, column] = values
        if column in said and other:
            what = f"the column `{column}` differs from the {said[column]} in the file names"
            notes.append(f"{what}, which were taken ({other} of {len(table)} rows).")
    if notes:
        table.attrs["notes"] = notes
    return table


def prediction_notes(predictions: pd.DataFrame) -> list[str]:
    """List what is odd about a predictions table, a sentence each.

    Parameters
    ----------
    predictions : DataFrame
        From `read_predictions`.

    Examples
    --------
    >>> table = pd.DataFrame({"filename": ["1", "2"], "case": ["a", "b"], "label": [0, 1], "method": "m"})
    >>> prediction_notes(table.assign(split="s", probability=[0.9, 0.8]))[0]
    'Every case has one image: if several images come from one patient, the column `case` must say so.'
    """
    notes = list(predictions.attrs.get("notes", []))
    alike = names.spelling_note(predictions["case"].unique(), "cases")
    notes += [f"{alike}."] if alike else []
    if predictions["case"].nunique() == predictions["filename"].nunique():
        notes.append(
            "Every case has one image: if several images come from one patient, the column `case` must say "
            "so."
        )
    told = predictions[predictions["probability"].notna()]
    for (method, split), part in told.groupby(["method", "split"], sort=False):
        what = f"{method}, split {split}: "
        if (part["probability"] >= THRESHOLD).all():
            notes.append(
                f"{what}all probabilities are 0.5 or more: is the column the confidence in the predicted "
                "class rather than the probability of malignant?"
            )
        auc = sk.roc_auc_score(part["label"], part["probability"]) if part["label"].nunique() == 2 else 0.5
        if auc < FAR_UNDER_CHANCE:
            notes.append(f"{what}AUC {auc:.3f}, far under 0.5: is it the probability of benign?")
    return notes


def with_correct(predictions: pd.DataFrame, threshold=THRESHOLD) -> pd.DataFrame:
    """Add the columns ``predicted`` (0 or 1, at `threshold`) and ``correct`` (whether that is the label).

    Where the magnification was predicted, ``correct`` says whether that is right, and ``predicted`` agrees.

    Parameters
    ----------
    predictions : DataFrame
        With label and probability.
    threshold : float, array (N,) or str
        Probabilities from here on are predicted malignant; a str names the column that has each row's
        threshold.

    Examples
    --------
    >>> with_correct(pd.DataFrame({"label": [1, 1, 0], "probability": [0.5, 0.4, 0.2]}))["correct"].tolist()
    [True, False, True]
    """
    at = predictions[threshold] if isinstance(threshold, str) else threshold
    predicted = (predictions["probability"] >= at).astype(int)
    if (other := _without_class(predictions)).any():
        rows = predictions[other]
        most = rows[MAGNIFICATION_COLUMNS].astype(float).to_numpy().argmax(axis=1)
        found = np.asarray(breakhis.MAGNIFICATIONS)[most] == rows["magnification"].to_numpy()
        predicted[other] = np.where(found, rows["label"], 1 - rows["label"])
    return predictions.assign(predicted=predicted, correct=predicted == predictions["label"])


def larger_class(predictions: pd.DataFrame) -> pd.Series:
    """Compute the accuracy of always predicting the larger class: float, by method and split.

    It is counted as the accuracy of a method is: as a mean over folds where these overlap.

    Examples
    --------
    >>> rows = dict.fromkeys(COLUMNS, 0) | {"filename": ["a", "b", "c", "d"], "label": [0, 1, 1, 1]}
    >>> larger_class(pd.DataFrame(rows)).item()
    0.75
    """
    larger = predictions.groupby(["method", "split"])["label"].transform("mean").round()
    # without what was predicted, which could say another class
    same = predictions.filter(regex="^(?!p_)").assign(probability=larger)
    return metrics_table(same, keys=["accuracy"]).set_index(["method", "split"])["accuracy"]


def compute_metrics(label, probability, threshold=THRESHOLD) -> dict[str, float]:
    """Compute the metrics that count images.

    Parameters
    ----------
    label : int array (N,)
        0 or 1.
    probability : float array (N,)
        Of malignant, 0..1.
    threshold : float or array (N,)
        Probabilities from here on are predicted malignant.

    Returns
    -------
    dict of float
        The keys are those of `METRICS` whose unit is the image, without the one within folds. All are 0..1
        but mcc and kappa (-1..1).
        What is not defined is NaN: AUC, average precision, balanced accuracy, MCC and kappa with one class
        only, sensitivity without malignant images, specificity without benign ones, precision without an
        image predicted malignant, F1 where no image is malignant nor predicted so.

    Examples
    --------
    >>> found = compute_metrics([1, 1, 0, 0], [0.9, 0.4, 0.6, 0.1])
    >>> found["accuracy"], found["auc"]
    (0.5, 0.75)
    """
    table = with_correct(
        pd.DataFrame({"label": np.asarray(label), "probability": np.asarray(probability)}),
        np.asarray(threshold),
    )
    return {
        key: metric.value(table)
        for key, metric in METRICS.items()
        if metric.unit == "image" and not metric.within_folds
    }


def name_codes(names: pd.Series) -> pd.Series:
    """Take the codes of a category, in the order of its names; other columns stay as they are."""
    return names.cat.codes if isinstance(names.dtype, pd.CategoricalDtype) else names


def number_names(predictions: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Put numbers in place of the names of images, slides and cases: a million texts are slow to compare.

    Few names are numbered in their order, which says what a bootstrap draws; of many it does not matter.

    Parameters
    ----------
    predictions : DataFrame
        A predictions table, perhaps with numbers already.
    by : sequence of str
        Columns that stay as they are.

    Examples
    --------
    >>> table = pd.DataFrame({"filename": ["b", "a"], "subtype": ["A", "F"], "slide": "1", "case": "c"})
    >>> number_names(table)[["filename", "slide", "case"]].values.tolist()
    [[1, 0, 0], [0, 1, 0]]
    """
    numbers = {}
    for column in ("filename", "slide", "case"):
        names = name_codes(predictions[column])
        if column in by or pd.api.types.is_integer_dtype(predictions[column]):
            continue
        if column == "slide":  # a slide folder each
            known = predictions["subtype"].isin(list(breakhis.SUBTYPES))
            both = pd.DataFrame({"subtype": predictions["subtype"].where(known, ""), "slide": names})
            pairs = both.groupby(["subtype", "slide"], sort=False, dropna=False).ngroup()
            codes, found = pairs.to_numpy(), predictions[~pairs.duplicated().to_numpy()]
            if len(found) <= MOST_UNITS:
                codes, found = pd.factorize(breakhis.slide_folders(found))
                codes = codes[pairs]
        else:
            codes, found = pd.factorize(names)
        if len(found) <= MOST_UNITS:
            codes = pd.Index(found).argsort().argsort()[codes]
        numbers[column] = codes
    return predictions.assign(**numbers)


def group_units(predictions: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Summarise the images of each slide or case in one row, all magnifications together.

    Parameters
    ----------
    predictions : DataFrame
        The rows of one seed, method and split, as from `with_correct`.
    unit : str
        "slide" (slide folder: subtype and slide, 82 in BreakHis), "case", or "image" (the predictions as
        they are).

    Returns
    -------
    DataFrame
        case, label (malignant if one of its images is), probability (mean over its images), correct (share
        of its images that are predicted correctly), images.
    """
    if unit == "image":
        return predictions
    by = name_codes(predictions["case"]) if unit == "case" else breakhis.slide_folders(predictions)
    return (
        predictions.groupby(by, sort=False)
        .agg(
            case=("case", "first"),
            label=("label", "max"),
            probability=("probability", "mean"),
            correct=("correct", "mean"),
            images=("label", "size"),
        )
        .reset_index(drop=True)
    )


def tables_by_seed(
    predictions: pd.DataFrame, threshold=THRESHOLD, keys: Iterable[str] | None = None
) -> list[dict[str, pd.DataFrame]]:
    """Make tables of the units that metrics count (default: all), for each seed of one method and split.

    Where folds test an image more than once (the author's do), for each seed and fold: pooled, slides and
    cases would be judged by the mean of several networks.
    """
    units = {METRICS[key].unit for key in (METRICS if keys is None else keys)}
    return [
        {unit: group_units(part, unit) for unit in units}
        for part in _judged_alone(with_correct(predictions, threshold))
    ]


def _judged_alone(predictions: pd.DataFrame) -> list[pd.DataFrame]:
    """Part one method and split into what is judged by itself: its seeds, and folds that overlap."""
    by = ["seed", "fold"] if overlapping_folds(predictions) else ["seed"]
    if len(predictions) and (predictions[by] == predictions[by].iloc[0]).all(axis=None):
        return [predictions]  # not a copy of a million rows
    return [part for _, part in predictions.groupby(by)]


def overlapping_folds(predictions: pd.DataFrame) -> bool:
    """Tell whether the folds of one method and split test an image more than once."""
    # said at once of most: a table may hold a million
    return not predictions["filename"].is_unique and bool(predictions.duplicated(["filename", "seed"]).any())


def metrics_by_seed(
    predictions: pd.DataFrame, threshold=THRESHOLD, keys: Sequence[str] | None = None
) -> pd.DataFrame:
    """Compute metrics (default: all) of one method and split: a row a table of `tables_by_seed`."""
    chosen = {key: METRICS[key] for key in (METRICS if keys is None else keys)}
    with sklearn.config_context(skip_parameter_validation=True):  # of 300 slides it takes a third of the time
        return pd.DataFrame(
            [
                {key: metric.value(tables[metric.unit]) for key, metric in chosen.items()}
                for tables in tables_by_seed(predictions, threshold, chosen)
            ]
        )


def metrics_table(
    predictions: pd.DataFrame,
    by=("method", "split"),
    threshold=THRESHOLD,
    *,
    keys: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Compute every metric of each group, with its number of images, slides, cases, folds and seeds.

    The folds of a group are pooled, each image with the prediction of the fold that tested it (out of
    fold). Where folds test an image more than once (``official``), each metric is the mean over the folds, as
    the data set's authors report it. With several seeds, each metric is the mean over the seeds; NaN if it is
    not defined for one of them.

    Parameters
    ----------
    predictions : DataFrame
        A predictions table.
    by : sequence of str
        Columns to group by; groups come in order of first appearance.
    threshold : float or str
        A str names the column that has each row's threshold.
    keys : sequence of str, optional
        Which metrics; default: all. With ``()`` the table only says how many images, slides, ... there are.

    Returns
    -------
    DataFrame
        The columns of `by`, images, slides, cases, folds, seeds, the keys of `METRICS`, and weights if the
        table has it.
    """
    rows, predictions = [], number_names(predictions, by)
    for key, part in predictions.groupby(list(by), sort=False):
        counts = {
            "images": part["filename"].nunique(),
            "slides": breakhis.count_slide_folders(part),
            "cases": part["case"].nunique(),
            "folds": part["fold"].nunique(),
            "seeds": part["seed"].nunique(),
        }
        weights = {"weights": ", ".join(part["weights"].unique())} if "weights" in part else {}
        rows.append(
            dict(zip(by, key, strict=True))
            | counts
            | metrics_by_seed(part, threshold, keys).mean(skipna=False).to_dict()
            | weights
        )
    return pd.DataFrame(rows)


def subtype_predictions(predictions: pd.DataFrame) -> pd.DataFrame:
    """Select the rows of methods that learned the eight subtypes; add ``predicted``, the most probable one.

    The result is empty if no method learned them.
    """
    probability = predictions.reindex(columns=SUBTYPE_COLUMNS).astype(float)
    learned = probability.notna().all(axis=1)
    most = probability[learned].idxmax(axis=1).astype(str).str.removeprefix("p_")
    return predictions[learned].assign(predicted=most.to_numpy())


def subtype_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Compute the metrics of the eight-subtype task; folds and seeds are treated as in `metrics_table`.

    Returns
    -------
    DataFrame
        method, split, images, cases, subtypes (how many occur in the test part), accuracy,
        macro_sensitivity, macro_precision, macro_f1 (means over the subtypes that occur; a subtype that is
        never predicted has precision 0). Empty if no method learned it.
    """
    rows = []
    for key, part in subtype_predictions(predictions).groupby(["method", "split"], sort=False):
        values = np.mean([_subtype_metrics(one) for one in _judged_alone(part)], axis=0)
        subtypes = len(set(part["subtype"]) & set(breakhis.SUBTYPES))
        rows.append([*key, part["filename"].nunique(), part["case"].nunique(), subtypes, *values])
    columns = "method split images cases subtypes accuracy macro_sensitivity macro_precision macro_f1"
    return pd.DataFrame(rows, columns=columns.split())


def _subtype_metrics(part: pd.DataFrame) -> tuple[float, float, float, float]:
    truth, predicted = part["subtype"], part["predicted"]
    labels = [name for name in breakhis.SUBTYPES if (truth == name).any()]
    precision, sensitivity, f1, _ = sk.precision_recall_fscore_support(
        truth, predicted, labels=labels, average="macro", zero_division=0
    )
    return sk.accuracy_score(truth, predicted), sensitivity, precision, f1


def cross_validation_table(
    predictions: pd.DataFrame, metrics=("accuracy", "auc"), by=("method", "split")
) -> pd.DataFrame:
    """Compare each metric's spread over folds and seeds with its value when the folds are pooled.

    Returns
    -------
    DataFrame
        The columns of `by`, metric, cases, trials (folds x seeds in which it is defined), mean, sd, lowest,
        highest, pooled (NaN where folds test an image more than once). The standard deviation is that of
        the trials; they share training images, so it is no standard error.
    """
    key = [*by, "metric"]
    single = metrics_table(predictions, (*by, "fold", "seed"), keys=metrics)
    single = single.melt(list(by), list(metrics), "metric")
    spread = single.groupby(key)["value"].agg(
        trials="count", mean="mean", sd="std", lowest="min", highest="max"
    )
    pooled = metrics_table(predictions, by, keys=metrics).melt(
        [*by, "cases"], list(metrics), "metric", "pooled", ignore_index=False
    )
    table = pooled.sort_index(kind="stable").merge(spread, on=key)  # the metrics of a group together
    filename = name_codes(predictions["filename"])
    often = predictions.groupby([*by, "seed", filename]).size().groupby(list(by)).max() > 1
    table["pooled"] = table["pooled"].mask(table.join(often.rename("often"), on=list(by))["often"])
    return table[[*key, "cases", *spread, "pooled"]]


def weights_note(predictions: pd.DataFrame) -> str:
    """Say what the networks started from, for captions; empty if the table does not say.

    Examples
    --------
    >>> weights_note(pd.DataFrame({"weights": ["ImageNet", "random", "ImageNet"]}))
    'ImageNet; random'
    """
    return "; ".join(predictions["weights"].unique()) if "weights" in predictions else ""
