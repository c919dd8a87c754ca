"""Figures from predictions tables, against scikit-learn and cases computed by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from bcdlib import evaluate, metrics
from bcdlib.errors import InputError


def table(label, probability, **columns):
    n = len(label)
    rows = {"filename": [f"{i}.png" for i in range(n)], "slide": "14-1A", "case": "14-1", "magnification": 40,
            "subtype": ["DC" if y else "A" for y in label], "label": label, "probability": probability, "fold": 0,
            "method": "m", "split": "case", "seed": 0}
    return pd.DataFrame(rows | columns)


def test_by_hand():
    found = metrics.scores([1, 1, 1, 0, 0], [0.9, 0.5, 0.2, 0.6, 0.1])
    assert found["accuracy"] == 3 / 5 and found["sensitivity"] == 2 / 3 and found["specificity"] == 1 / 2
    assert found["precision"] == 2 / 3 and found["f1"] == pytest.approx(2 / 3)
    assert found["mse"] == pytest.approx((0.01 + 0.25 + 0.64 + 0.36 + 0.01) / 5)
    assert found["auc"] == 4 / 6  # of 6 pairs, 0.9 beats both, 0.5 and 0.2 beat 0.1 only


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_sklearn(seed):
    rng = np.random.default_rng(seed)
    y, p = rng.integers(0, 2, 200), rng.random(200).round(2)
    row = metrics.table(table(y, p)).iloc[0]
    called = p >= 0.5
    assert row["images"] == 200 and row["cases"] == 1
    for name, value in {"accuracy": sk.accuracy_score(y, called), "auc": sk.roc_auc_score(y, p),
                        "f1": sk.f1_score(y, called), "mse": sk.brier_score_loss(y, p)}.items():
        assert row[name] == pytest.approx(value, abs=1e-9)


def test_one_class_only_is_nan_where_not_defined():
    found = metrics.scores([0, 0, 0], [0.1, 0.2, 0.3])
    assert np.isnan(found["auc"]) and np.isnan(found["sensitivity"]) and np.isnan(found["precision"])
    assert found["specificity"] == 1 and found["accuracy"] == 1


def test_groups():
    y = [0, 1, 0, 1]
    t = table(y, [0.1, 0.9, 0.9, 0.1], split=["case", "case", "image", "image"], magnification=[40, 400, 40, 40])
    assert metrics.table(t).set_index("split")["accuracy"].to_dict() == {"case": 1.0, "image": 0.0}
    by = evaluate.by(t, "magnification")
    assert by[["split", "magnification", "images"]].values.tolist() == [["case", 40, 1], ["case", 400, 1], ["image", 40, 2]]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.drop(columns="case"), "'case' is missing"),
        (lambda t: t.assign(probability=[0.1, float("nan")]), "probability of 1.png"),
        (lambda t: t.assign(probability=[0.1, 1.5]), "probability of 1.png"),
        (lambda t: t.assign(probability=["0.1", "high"]), "probability of 1.png"),
        (lambda t: t.assign(label=[0, 2]), "label of 1.png"),
        (lambda t: pd.concat([t, t]), "comes twice"),
        (lambda t: t.iloc[:0], "no rows"),
    ],
)
def test_bad_tables(tmp_path, change, message):
    change(table([0, 1], [0.2, 0.8])).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(InputError, match=message):
        metrics.read_predictions(tmp_path / "p.csv")


def test_missing_and_empty_file(tmp_path):
    with pytest.raises(InputError, match="no such"):
        metrics.read_predictions(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="not a readable CSV"):
        metrics.read_predictions(tmp_path / "empty.csv")
