"""Recorded results: predictions tables of comparisons that took long, small, with what is needed to repeat them.

``notebooks/recorded`` holds for each recording NAME.predictions.csv.gz (filename, fold, method, split, seed,
probability; all else follows from BreakHis' file names), NAME.figures.csv and NAME.differences.csv (what
`bootstrap.interval_table` and `bootstrap.paired_differences` give for them, so that they are drawn at once), and NAME.json.
No image is among them.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bcdlib import __version__
from bcdlib.data import breakhis
from bcdlib.errors import InputError
from bcdlib.evaluation import bootstrap, metrics
from bcdlib.runs.files import atomic_write, write_csv, write_json
from bcdlib.runs.places import shipped

RECORDED_METRICS = ("accuracy", "auc", "slide_recognition", "case_auc")
STORED = ["filename", "fold", "method", "split", "seed", "probability", "weights"]
DIGITS = 5  # of a probability


@dataclass(frozen=True)
class Recording:
    """One recording.

    Attributes
    ----------
    facts : dict: commands (list of str), data, weights, bcdlib, against (the method that others are held against)
    predictions : DataFrame, a predictions table
    figures : DataFrame as from `bootstrap.interval_table`, with the columns seeds and folds
    differences : DataFrame as from `bootstrap.paired_differences`: every method under each split against ``facts["against"]``
    """

    facts: dict
    predictions: pd.DataFrame
    figures: pd.DataFrame
    differences: pd.DataFrame


def recorded_folder() -> Path:
    """``notebooks/recorded``: beside the package in a checkout, inside it when installed from a wheel."""
    return shipped("notebooks") / "recorded"


def recorded_names() -> list[str]:
    """What is recorded."""
    return sorted(file.stem for file in recorded_folder().glob("*.json"))


def write_recording(
    name: str, predictions: pd.DataFrame, weights: str, *, commands: list[str], against: str, place=None
) -> None:
    """Store a recording and compute its intervals (a minute or so).

    Parameters
    ----------
    predictions : predictions table of BreakHis images
    weights : what the networks started from, in words
    commands : what a reader types to repeat it
    against : method

    Raises
    ------
    InputError
        If an image is not BreakHis's by its name, or ``against`` is not among the methods.
    """
    if not breakhis.is_breakhis(predictions):
        raise InputError(
            "only predictions of BreakHis images are recorded: all else must follow from their names"
        )
    if against not in set(predictions["method"]):
        raise InputError(
            f"{against}: not among the methods; choose from {', '.join(predictions['method'].unique())}"
        )
    place = recorded_folder() if place is None else Path(place)
    pretrained = predictions["weights"].str.startswith("ImageNet")
    stored = predictions.assign(weights=predictions["weights"].where(~pretrained, weights))[STORED]
    stored = stored.assign(probability=stored["probability"].round(DIGITS))
    full = _complete(stored)
    with atomic_write(place / f"{name}.predictions.csv.gz") as temporary:
        stored.to_csv(temporary, index=False, compression={"method": "gzip", "mtime": 0})
    counts = metrics.metrics_table(full)[["method", "split", "folds", "seeds", "weights"]]
    write_csv(
        place / f"{name}.figures.csv",
        bootstrap.interval_table(full, RECORDED_METRICS).merge(counts, on=["method", "split"]),
    )
    write_csv(
        place / f"{name}.differences.csv",
        pd.concat(
            [
                bootstrap.paired_differences(full, "method", figure, against=against)
                for figure in RECORDED_METRICS
            ],
            ignore_index=True,
        ),
    )
    write_json(
        place / f"{name}.json",
        {"commands": commands, "weights": weights, "against": against, "bcdlib": __version__},
    )


def read_recording(name: str, place=None) -> Recording:
    """A recording by its name.

    Raises
    ------
    InputError
        If there is none of this name.
    """
    place = recorded_folder() if place is None else Path(place)
    try:
        facts = json.loads((place / f"{name}.json").read_text())
        tables = [pd.read_csv(place / f"{name}.{part}.csv") for part in ("figures", "differences")]
        stored = pd.read_csv(place / f"{name}.predictions.csv.gz")
    except OSError:
        raise InputError(
            f"{place}: no recording {name!r} there; there are {', '.join(recorded_names()) or 'none'}"
        ) from None
    return Recording(facts, _complete(stored), *tables)


def _complete(stored: pd.DataFrame) -> pd.DataFrame:
    images = breakhis.images_table(stored["filename"].unique())
    facts = images[["filename", "class", "slide", "case", "magnification", "subtype"]]
    full = stored.merge(facts, on="filename", how="left")
    return metrics.check_predictions(full.assign(label=breakhis.class_labels(full)))[
        [*metrics.COLUMNS, "weights"]
    ]
