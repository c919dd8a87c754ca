"""Recorded results: predictions tables of long comparisons, with what is needed to repeat them.

``notebooks/recorded`` holds for each recording NAME.predictions.csv.gz (filename, fold, method, split, seed,
probability; all else follows from BreakHis' file names), NAME.metrics.csv and NAME.differences.csv (what
`bootstrap.interval_table` and `bootstrap.paired_differences` give for them, so that they are drawn at once),
and NAME.json. It holds no image.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bcdlib import __version__
from bcdlib.data import breakhis
from bcdlib.errors import InputError
from bcdlib.evaluation import bootstrap, metrics
from bcdlib.runs import files, places


@dataclass(frozen=True)
class Recording:
    """A recorded comparison.

    Attributes
    ----------
    facts : dict
        commands (list of str), weights, bcdlib (its version), against (the method that others are compared
        with).
    predictions : DataFrame
        A predictions table.
    metrics : DataFrame
        As from `bootstrap.interval_table`, with the columns folds, seeds and weights.
    differences : DataFrame
        As from `bootstrap.paired_differences`: every method under each split against ``facts["against"]``.
    """

    facts: dict
    predictions: pd.DataFrame
    metrics: pd.DataFrame
    differences: pd.DataFrame


def recorded_folder() -> Path:
    """Find ``notebooks/recorded``: beside the package in a checkout, inside it in a wheel."""
    return places.shipped("notebooks") / "recorded"


def recorded_names() -> list[str]:
    """List the names of the recordings."""
    return sorted(file.stem for file in recorded_folder().glob("*.json"))


def write_recording(
    name: str, predictions: pd.DataFrame, weights: str, *, commands: list[str], against: str
) -> None:
    """Store a recording and compute its intervals (a minute or so).

    Parameters
    ----------
    name : str
        Of the recording; its files are called after it.
    predictions : DataFrame
        A predictions table of BreakHis images.
    weights : str
        What the pre-trained networks started from, in words.
    commands : list of str
        What a reader types to repeat it.
    against : str
        The method that the others are compared with.

    Raises
    ------
    InputError
        If an image is not BreakHis's by its name, `against` is not among the methods, or the name is a path.
    """
    if not name or name != Path(name).name:
        raise InputError(f"{name!r}: not a plain name for a recording; it becomes the name of files")
    if not breakhis.is_breakhis(predictions):
        raise InputError(
            "only predictions of BreakHis images are recorded: all else must follow from their names"
        )
    if against not in set(predictions["method"]):
        raise InputError(
            f"{against}: not among the methods; choose from {', '.join(predictions['method'].unique())}"
        )
    place, labels = recorded_folder(), predictions["weights"].str
    pretrained = labels.contains("ImageNet weights") & ~labels.contains("random")
    stored = predictions.assign(
        weights=predictions["weights"].where(~pretrained, weights),
        probability=predictions["probability"].round(5),
    )[["filename", "fold", "method", "split", "seed", "probability", "weights"]]
    full, shown = _complete(stored), metrics.shown_in("comparison")
    with files.atomic_write(place / f"{name}.predictions.csv.gz") as temporary:
        stored.to_csv(temporary, index=False, compression={"method": "gzip", "mtime": 0})
    files.write_csv(
        place / f"{name}.metrics.csv",
        bootstrap.interval_table(full, shown).merge(
            metrics.metrics_table(full, keys=())[["method", "split", "folds", "seeds", "weights"]],
            on=["method", "split"],
        ),
    )
    files.write_csv(
        place / f"{name}.differences.csv",
        pd.concat(
            [bootstrap.paired_differences(full, "method", key, against=against) for key in shown],
            ignore_index=True,
        ),
    )
    files.write_json(
        place / f"{name}.json",
        {"commands": commands, "weights": weights, "against": against, "bcdlib": __version__},
    )


def read_recording(name: str) -> Recording:
    """Read a recording by its name.

    Raises
    ------
    InputError
        If there is none of this name.

    Examples
    --------
    >>> read_recording("protocols").facts["against"]
    'resnet50-head'
    """
    place = recorded_folder()
    try:
        facts = files.read_json(place / f"{name}.json")
        tables = [pd.read_csv(place / f"{name}.{part}.csv") for part in ("metrics", "differences")]
        stored = pd.read_csv(place / f"{name}.predictions.csv.gz")
    except OSError:
        raise InputError(
            f"{place}: no recording {name!r} there; there are {', '.join(recorded_names()) or 'none'}"
        ) from None
    return Recording(facts, _complete(stored), *tables)


def _complete(stored: pd.DataFrame) -> pd.DataFrame:
    """Add what BreakHis' file names say."""
    full = stored.merge(breakhis.images_table(stored["filename"].unique()), on="filename", how="left").assign(
        label=breakhis.class_labels
    )
    return metrics.check_predictions(full)[[*metrics.COLUMNS, "weights"]]
