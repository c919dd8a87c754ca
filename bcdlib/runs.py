"""The run folder: all that one execution of the suite made, and how files get into it (whole, or not at all)."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bcdlib.errors import InputError


@contextlib.contextmanager
def replacing(path) -> Iterator[Path]:
    """Write a file atomically: yields a temporary path of the same suffix, renamed to `path` when all went well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(suffix=path.suffix, prefix=f".{path.stem}-", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # mkstemp's 0600 would keep a shared Drive's other users out
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def write_csv(path, table: pd.DataFrame) -> None:
    """Write a table without its index, atomically."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)


def write_json(path, value) -> None:
    """Write JSON, indented, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


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
            raise InputError(f"{self.folder}: no settings.json there; run 01_mount with this run folder first") from None

    def record(self, **values) -> None:
        """Add to the settings."""
        known = self.settings if (self.folder / "settings.json").is_file() else {}
        write_json(self.folder / "settings.json", known | values)

    def images(self) -> pd.DataFrame:
        """The images that 01_mount found (manifest.IMAGE_COLUMNS, folds, path)."""
        return self.read_csv("images.csv", "01_mount")

    def read_csv(self, name: str, stage: str) -> pd.DataFrame:
        """Read a table of the run; InputError naming the stage that writes it if it is not there."""
        if not (self.folder / name).is_file():
            raise InputError(f"{self.folder / name}: not there yet; run {stage} with this run folder first")
        return pd.read_csv(self.folder / name, dtype={"slide": str, "case": str})

    def save_table(self, name: str, table: pd.DataFrame) -> pd.DataFrame:
        """Write ``tables/<name>.csv`` and give the table back, so that a notebook's last line can show it."""
        write_csv(self.folder / "tables" / f"{name}.csv", table)
        return table

    def save_figure(self, name: str, figure):
        """Write ``figures/<name>.png`` and ``.svg`` and give the figure back."""
        for suffix in ("png", "svg"):
            with replacing(self.folder / "figures" / f"{name}.{suffix}") as temporary:
                figure.savefig(temporary, dpi=200, bbox_inches="tight")
        return figure


def read_given_csv(path, what: str, dtype: dict) -> pd.DataFrame:
    """A CSV file that a user named.

    Parameters
    ----------
    what : what it is to be, for the message

    Raises
    ------
    InputError
        If there is no such file, or it is not a readable CSV.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such {what}")
    try:
        return pd.read_csv(path, dtype=dtype)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a readable CSV ({error})".splitlines()[0]) from None


def open_run(folder) -> Run:
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
