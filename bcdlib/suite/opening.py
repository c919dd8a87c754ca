"""The report's first page: what was tested, on whom, the figures by case, what leaks, what it means."""

import re
from pathlib import Path

import pandas as pd

from bcdlib.data import breakhis, splits
from bcdlib.evaluation import decisions
from bcdlib.runs.files import TEXTS, read_table
from bcdlib.runs.folder import Run

MOST_ROWS = 8  # methods and splits on the first page
DRAWN, BREAKHIS, OWN = "drawn", "BreakHis", "own"


def opening_facts(run: Run, summary: dict) -> dict:
    """Gather what the first page says, from the tables that 05_evaluate wrote.

    Parameters
    ----------
    run : Run
    summary : dict
        As in ``summary.json``.

    Returns
    -------
    dict
        ``kind`` of the images ("drawn", "BreakHis" or "own"); ``tested``, ``whom``, ``leaks`` and ``means``,
        lists of sentences; ``rows``, a dict a method and split, the strictest first; ``more``, how many rows
        are left out.
    """
    kind = data_kind(run)
    by_case, flow, results = (_table(run, f"tables/{name}.csv") for name in ("by_case", "flow", "results"))
    evaluated = len(by_case) and len(flow) and len(results)
    pairs = list(by_case.groupby(["method", "split"], sort=False).groups) if evaluated else []
    pairs.sort(key=lambda pair: splits.strictness(pair[1]))
    rows = [_row(pair, by_case, flow, results) for pair in pairs]
    return {
        "kind": kind,
        "tested": _tested(run, summary),
        "whom": _whom(kind, flow, results, [split for _, split in pairs]),
        "rows": rows[:MOST_ROWS],
        "more": max(0, len(rows) - MOST_ROWS),
        "leaks": _leaks(rows),
        "means": _means(kind, rows, _table(run, "tables/precision.csv")) + _elsewhere(run),
    }


def data_kind(run: Run) -> str:
    """Tell whether a run is of drawn tissue, of BreakHis or of other images: "drawn", "BreakHis" or "own"."""
    for name in ("images.csv", "predictions.csv"):
        images = _table(run, name)
        if len(images):
            if not breakhis.is_breakhis(images):
                return OWN
            return DRAWN if breakhis.is_synthetic(images) else BREAKHIS
    return OWN


def _table(run: Run, name: str) -> pd.DataFrame:
    """Read a table of the run; empty if it is not there."""
    file = Path(run.folder, name)
    texts = TEXTS | {"method": str, "split": str}
    return read_table(file, dtype=texts) if file.is_file() else pd.DataFrame()


def _row(pair: tuple, by_case: pd.DataFrame, flow: pd.DataFrame, results: pd.DataFrame) -> dict:
    """Gather the figures by case of a method and split."""
    found = by_case[(by_case[["method", "split"]] == list(pair)).all(axis=1)].set_index("measure")
    row = {"method": pair[0], "split": pair[1]}
    for measure in ("sensitivity", "specificity"):
        value, cases, interval = found.loc[measure, ["value", "cases", "95 %"]]
        row[measure] = "not defined" if pd.isna(value) else f"{cases}, {value:.2f} ({_short(interval)})"
    auc = results[
        (results[["method", "split"]] == list(pair)).all(axis=1) & (results["metric"] == "case_auc")
    ]
    row["auc"], row["limits"] = "not defined", None
    if len(auc) and pd.notna(auc["value"].iloc[0]):
        interval = auc["95 % by case"].iloc[0]
        row["auc"] = f"{auc['value'].iloc[0]:.2f} ({_short(interval)})"
        if " to " in interval:
            row["limits"] = [float(limit) for limit in interval.split(" to ")]
    test = flow[(flow["split"] == pair[1]) & (flow["step"] == "test")]
    row["cases"], row["folds"], row["shared"] = int(test["cases"].sum()), _folds_text(test, results), None
    if len(test) and test["cases_in_training"].notna().all():
        row["shared"] = int(test["cases_in_training"].sum())
    return row


def _short(interval: str) -> str:
    """Write an interval, or that it cannot be said, with two decimal places."""
    return re.sub(r"\d\.\d+", lambda number: f"{float(number[0]):.2f}", interval)


def _tested(run: Run, summary: dict) -> list[str]:
    trained = summary["trained"] or summary["compared"]
    if not trained:
        return ["Nothing yet: 04_train has not run in this folder."]
    methods, weights, names = (
        ", ".join(dict.fromkeys(str(row.get(key)) for row in trained if row.get(key)))
        for key in ("method", "weights", "split")
    )
    lines = [f"Method {methods}{f', started from {weights}' if weights else ''}; split {names}."]
    locked = _table(run, "locked.csv")
    chosen = int(locked["note"].isna().sum()) if len(locked) else 0
    lines.append(
        "The threshold was chosen on validation and locked before the test part was read "
        f"({chosen} of {len(locked)} trials with validation; without, it is 0.5)."
        if chosen
        else "The threshold is 0.5: validation was missing, or had too few cases to choose one."
    )
    return lines


def _whom(kind: str, flow: pd.DataFrame, results: pd.DataFrame, names: list[str]) -> list[str]:
    lines = {
        DRAWN: ["Nobody: the images are drawn tissue, or bear BreakHis names that are not in BreakHis."],
        BREAKHIS: ["Patients of one laboratory in Paraná, Brazil, 2014 (BreakHis; see below)."],
        OWN: ["Images of the user's own: whose they are must be written by the author."],
    }[kind]
    for name in dict.fromkeys(names):
        test = flow[(flow["split"] == name) & (flow["step"] == "test")]
        images, slides, cases, malignant = (
            int(test[column].sum()) for column in ("images", "slides", "cases", "malignant_cases")
        )
        lines.append(
            f"Split {name}: {cases} test cases ({malignant} malignant, {cases - malignant} benign), {slides} "
            f"slides, {images} images{_folds_text(test, results)}."
        )
    return lines[: MOST_ROWS + 1]


def _folds_text(test: pd.DataFrame, results: pd.DataFrame) -> str:
    """Say of how many folds these are the cases, and whether folds test a case more than once."""
    if len(test) < 2:
        return ""
    distinct = results.loc[results["split"] == test["split"].iloc[0], "cases"].max()
    twice = f" (each in every fold that tests it; {distinct} different ones)"
    return f", {len(test)} folds together{twice * bool(test['cases'].sum() > distinct)}"


def _leaks(rows: list[dict]) -> list[str]:
    lines = {}
    for row in rows:
        lines[row["split"]] = f"Split {row['split']}: " + (
            "not known, since the predictions were made elsewhere."
            if row["shared"] is None
            else f"{row['shared']} of {row['cases']} test cases were also in training or validation"
            f"{row['folds']}."
        )
    return list(lines.values())[:MOST_ROWS] or ["Nothing was evaluated yet."]


def _means(kind: str, rows: list[dict], precision: pd.DataFrame) -> list[str]:
    if not rows:
        return ["05_evaluate has not run in this folder: nothing can be said by case."]
    first = rows[0]
    name = f"{first['method']} under split {first['split']}"
    lines = (
        ["Drawn tissue tries the machinery: the numbers say nothing about patients."] if kind == DRAWN else []
    )
    if first["shared"] is None:
        lines.append("Ask what the model was trained on: cases that it has seen make every number too high.")
    elif first["shared"]:
        lines.append(
            f"Even {name}, the strictest here, was tested on cases that it had seen ({first['shared']} of "
            f"{first['cases']}): the numbers say how well it knows these, not how well it would do on the "
            "next patient."
        )
    else:
        lines.append(
            f"The strictest, {name}, was tested on other cases of the same data set. That says nothing of "
            "another laboratory, scanner or stain."
        )
    if first["limits"] is None:
        lines.append("There are too few test cases for an interval of the AUC by case.")
    elif first["limits"][0] <= 0.5 <= first["limits"][1]:
        lines.append("Its interval of the AUC by case takes in 0.5: it cannot be told from chance.")
    if len(precision):
        needed = precision[
            (precision[["method", "split"]] == [first["method"], first["split"]]).all(axis=1)
            & (precision["measure"] == "AUC by case")
        ]
        lines += [
            f"For +- {decisions.HALF_WIDTH} about {row[decisions.NEEDED]} test cases would be needed; there "
            f"are {row['cases']}."
            for row in needed.to_dict("records")
        ]
    return lines


def _elsewhere(run: Run) -> list[str]:
    asked = (run.folder / "tables" / "elsewhere.csv").is_file()
    return ["How it did in another laboratory stands in 05_evaluate."] if asked else []
