"""The run folder: all that one execution of the suite made, and how files get into it (whole, or not at all)."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bcdlib.errors import InputError
from bcdlib.runs.files import atomic_write, write_csv, write_json


@dataclass(frozen=True)
class Run:
    """A run folder. Stages find each other's files here.

    ``settings.json`` (what was asked for), ``images.csv`` (the data set's images), ``splits/``, ``trials/``,
    ``figures/``, ``tables/``, ``notebooks/`` (executed), ``report.html``, ``summary.json``.
    """

    folder: Path

    @property
    def settings(self) -> dict:
        """What 01_mount and 02_preprocess recorded.

        Raises
        ------
        InputError
            If no stage has written here yet.
        """
        try:
            return json.loads((self.folder / "settings.json").read_text())
        except (OSError, ValueError):
            raise InputError(
                f"{self.folder}: no settings.json there; run 01_mount with this run folder first"
            ) from None

    def record(self, **values) -> None:
        """Add to the settings."""
        known = self.settings if (self.folder / "settings.json").is_file() else {}
        write_json(self.folder / "settings.json", known | values)

    def images(self) -> pd.DataFrame:
        """The images that 01_mount found (breakhis.IMAGE_COLUMNS, folds, path)."""
        return self.read_csv("images.csv", "01_mount")

    def read_csv(self, name: str, stage: str) -> pd.DataFrame:
        """Read a table of the run; InputError naming the stage that writes it if it is not there."""
        if not (self.folder / name).is_file():
            raise InputError(f"{self.folder / name}: not there yet; run {stage} with this run folder first")
        return pd.read_csv(self.folder / name, dtype={"slide": str, "case": str})

    def table(self, name: str, values: pd.DataFrame, *, digits: int = 3, rows=None):
        """Write ``tables/<name>.csv``; return the table as notebooks and the report show it.

        Without index, "-" where a metric is not defined, text escaped: names of files, slides and methods come from
        others.

        Parameters
        ----------
        name : str
            File name without suffix.
        values : DataFrame
        digits : int
            Decimal places that are shown; the file has all.
        rows : index labels, optional
            Which rows are shown; the file has all.

        Returns
        -------
        pandas.io.formats.style.Styler
        """
        write_csv(self.folder / "tables" / f"{name}.csv", values)
        styled = (values if rows is None else values.loc[rows]).style.hide(axis="index")
        styled = styled.format(precision=digits, na_rep="-", escape="html")
        return styled.format_index(escape="html", axis="columns")

    def figure(self, name: str, figure):
        """Write ``figures/<name>.png`` and ``.svg``; return the figure."""
        for suffix in ("png", "svg"):
            with atomic_write(self.folder / "figures" / f"{name}.{suffix}") as temporary:
                figure.savefig(temporary, dpi=200, bbox_inches="tight")
        return figure


def open_run_folder(folder) -> Run:
    """A run in this folder, which is created if need be.

    Raises
    ------
    InputError
        If the folder cannot be created or written to.
    """
    folder = Path(folder).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror}); choose another --out") from None
    return Run(folder)


TRIAL_COLUMNS = ["method", "split", "fold", "seed"]


MODEL = "model.keras"


def trial_folder(run: Run, row) -> Path | None:
    """The folder of the trial that made a row of a predictions table, if its model is stored there."""
    for file in sorted((run.folder / "trials").glob("*/trial.json")):
        folder, facts = file.parent, json.loads(file.read_text())
        if (folder / MODEL).is_file() and all(facts[name] == row[name] for name in TRIAL_COLUMNS):
            # trials of other settings may have the same four names: the one that made this prediction
            made = pd.read_csv(folder / "predictions.csv").set_index("filename")["probability"]
            if row["filename"] in made and abs(made[row["filename"]] - row["probability"]) < 1e-9:
                return folder
    return None


def has_cache(run: Run) -> bool:
    """Whether the pictures of a run are at hand."""
    if not (run.folder / "settings.json").is_file():
        return False
    cache = run.settings.get("cache")
    return bool(cache) and (Path(cache) / "cache.json").is_file()
