"""How often intervals hold the truth: simulated studies with cases as large as those of BreakHis."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from bcdlib.data import breakhis
from bcdlib.evaluation import bootstrap, metrics

# distance of the class means, in deviations within a case: image AUC about 0.76, 0.89 and 0.99
LEVELS = {"middling": 0.7, "good": 1.2, "nearly perfect": 2.4}
KEYS = ("accuracy", "auc", "case_auc", "precision", "f1")


def study(seed, cases: int, level: float, share: float = 1.0):
    """Predictions of two methods: 70 % malignant cases, each with a difficulty that its images share.

    ``share`` of the images of each case is kept, which makes a study quicker.
    """
    rng = np.random.default_rng(seed)
    known = breakhis.known_images().groupby("case").agg(size=("filename", "size"), kind=("class", "first"))
    malignant = round(0.7 * cases)
    sizes = np.r_[
        rng.choice(known["size"][known["kind"] == "malignant"], malignant),
        rng.choice(known["size"][known["kind"] == "benign"], cases - malignant),
    ]
    sizes = np.maximum(1, (sizes * share).astype(int))
    label = np.repeat(np.arange(cases) < malignant, sizes).astype(int)
    signal = (2 * label - 1) * level + np.repeat(rng.normal(0, 1, cases), sizes)
    case = np.repeat([f"14-{k}" for k in range(cases)], sizes)
    table = pd.DataFrame(
        {"filename": np.arange(len(case)).astype(str), "case": case, "slide": case, "label": label}
    )
    table = table.assign(subtype="A", magnification=40, fold=0, split="case", seed=0)
    noise = rng.normal(0, [[1.0], [1.4]], (2, len(case)))
    return [table.assign(method=str(k), probability=expit(signal + noise[k])) for k in (0, 1)]


def coverage(cases: int, level: float, studies: int, *, repeats: int = 400, share: float = 1.0) -> pd.Series:
    """Share of studies whose 95 % interval holds the truth, which a very large study tells."""
    truth = [metrics.metrics_table(one).iloc[0] for one in study(1, 12_000, level, 0.1)]
    held = []
    for number in range(studies):
        first, second = study([cases, number], cases, level, share)
        found = bootstrap.interval_table(first, KEYS, repeats=repeats).set_index("metric")
        row = {key: found.loc[key, "low"] <= truth[0][key] <= found.loc[key, "high"] for key in KEYS}
        for key in ("accuracy", "auc"):
            gap = bootstrap.paired_difference(first, second, key, repeats=repeats)
            row[f"{key}, difference"] = gap["low"] <= truth[0][key] - truth[1][key] <= gap["high"]
        row["accuracy by image"] = (
            found.loc["accuracy", "low_by_image"]
            <= truth[0]["accuracy"]
            <= found.loc["accuracy", "high_by_image"]
        )
        held.append(row)
    return pd.DataFrame(held).mean()


@pytest.mark.thorough
def test_coverage_of_few_cases_near_one():
    """26 cases, AUC 0.99: a bootstrap alone holds 0.72 to 0.82 of the truths, and of case AUC 0.15."""
    held = coverage(26, LEVELS["nearly perfect"], 60, repeats=300, share=0.2)
    assert held[[*KEYS]].min() >= 0.93, held.to_string()
    assert held["accuracy by image"] < 0.85


@pytest.mark.thorough
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("cases", [14, 26, 70])
def test_coverage(cases, level):
    """300 studies: no interval is more than 3 points short of the 95 % that it claims."""
    held = coverage(cases, LEVELS[level], 300)
    print(f"\n{cases} cases, {level}\n{held.to_string()}")
    assert held[[*KEYS]].min() >= 0.92, held.to_string()
