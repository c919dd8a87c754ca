"""The run folder: everything that one execution of the suite makes."""

import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bcdlib.errors import InputError, one_line
from bcdlib.runs.files import atomic_write, read_json, read_table, write_csv, write_json

TRIAL_COLUMNS = ["method", "split", "fold", "seed"]  # name a trial in a predictions table
MODEL = "model.keras"  # a trial's stored model
LOCK = "locked.csv"  # threshold and calibration: of a run's trials, and beside each stored model its own
CROSS_VALIDATION = "cross_validation.csv"  # beside a final model: the predictions that its figures rest on
# matplotlib Figure -> its PNG file's bytes, which a notebook shows instead of drawing it a second time
SAVED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
RUN_SUBFOLDERS = ("figures", "notebooks", "prepared", "splits", "tables", "trials")
# what depends on the images, their size and splits; trials do too, but are named by all that they depend on
_RESULTS = (
    *(
        "predictions.csv",
        "validation.csv",
        "locked.csv",
        "choices.csv",
        "report.html",
        "summary.json",
        "checklist.md",
    ),
    *("comparison.csv", "comparison_predictions.csv", "comparison_validation.csv"),
    *("splits/*.csv", "tables/*.csv", "figures/*", "notebooks/*.ipynb"),
)


@dataclass(frozen=True)
class Run:
    """A run folder, in which stages find each other's files.

    ``settings.json`` (what was asked for), ``images.csv`` (the data set's images), ``splits/``, ``trials/``,
    ``figures/``, ``tables/``, ``notebooks/`` (executed), ``report.html``, ``checklist.md``, ``summary.json``.

    Attributes
    ----------
    folder : pathlib.Path
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
        if not (found := self.recorded()):
            raise InputError(
                f"{self.folder}: no settings.json there; run 01_mount with this run folder first"
            )
        return found

    def recorded(self) -> dict:
        """Give the settings; empty if no stage has written here yet."""
        file = self.folder / "settings.json"
        try:
            return read_json(file) if file.is_file() else {}
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: cannot be read ({one_line(error)}); name another run folder") from None

    def claim(self) -> None:
        """Make the folder a run folder, if it is none yet.

        Raises
        ------
        InputError
            If it is none, and holds files with names that a run would replace.
        """
        if (self.folder / "settings.json").exists():
            return
        replaced = ("images.csv", "left_out.csv", "external.csv", *_RESULTS)
        if found := [file for pattern in replaced for file in self.folder.glob(pattern)]:
            raise InputError(
                f"{self.folder}: is no run folder, and holds {found[0].relative_to(self.folder)}, which a "
                "run would replace; name another --out"
            )
        write_json(self.folder / "settings.json", {})

    def record(self, **values) -> None:
        """Add values to the settings.

        Examples
        --------
        >>> run = Run(Path(tempfile.mkdtemp()))
        >>> run.record(data="synthetic", seed=0)
        >>> run.record(seed=1)
        >>> run.settings
        {'data': 'synthetic', 'seed': 1}
        """
        write_json(self.folder / "settings.json", self.recorded() | values)

    def drop_results(self, keep: tuple[str, ...] = ()) -> None:
        """Remove the results of other data, or of other splits of them; finished trials stay.

        Parameters
        ----------
        keep : tuple of str
            Names of files that stay.
        """
        found = [file for pattern in _RESULTS for file in self.folder.glob(pattern) if file.name not in keep]
        for file in found:
            file.unlink(missing_ok=True)
        if found:
            print(
                f"{self.folder}: held results of other images, splits or settings; removed. Finished trials "
                "are kept, and used again where they fit.",
                flush=True,
            )

    def check_origin(self, table: pd.DataFrame, name: str) -> pd.DataFrame:
        """Return a predictions table if its rows are of this run's images (column ``data``, if it has one).

        Raises
        ------
        InputError
            If a row was made from other images than 02_preprocess has recorded.
        """
        settings = self.recorded()
        if "listing" not in settings or "data" not in table:  # predictions made elsewhere
            return table
        if "fingerprint" not in settings:
            raise InputError(f"{self.folder}: its images may have changed; run 02_preprocess with it again")
        if (table["data"] != settings["fingerprint"]).any():
            raise InputError(
                f"{self.folder / name}: holds rows of other images than this run's; remove it, and run "
                "04_train or 06_compare again"
            )
        return table

    def images(self) -> pd.DataFrame:
        """Read the images that 01_mount found (`breakhis.IMAGE_COLUMNS`, the author's folds, path)."""
        return self.read_csv("images.csv", "01_mount")

    def read_csv(self, name: str, stage: str) -> pd.DataFrame:
        """Read a table of the run.

        Parameters
        ----------
        name : str
            Path inside the run folder.
        stage : str
            The notebook that writes it, for the message.

        Raises
        ------
        InputError
            If the file does not exist yet, or is damaged.
        """
        self.need_file(name, stage)
        return read_table(self.folder / name)

    def need_file(self, name: str, stage: str) -> None:
        """Raise InputError if a file of the run does not exist yet; see `read_csv`."""
        if not (self.folder / name).is_file():
            raise InputError(f"{self.folder / name}: not there yet; run {stage} with this run folder first")

    def write_csv(self, name: str, table: pd.DataFrame) -> None:
        """Write a table of the run; `name` is its path inside the run folder."""
        write_csv(self.folder / name, table)

    def table(self, name: str, values: pd.DataFrame, *, digits: int = 3, rows=None):
        """Write ``tables/<name>.csv``; return the table as notebooks and the report show it.

        Without index, unless it has a name, which then heads the first column. "-" where a metric is not
        defined, and with HTML escaped: names of files, slides and methods come from outside.

        Parameters
        ----------
        name : str
            File name without suffix.
        values : pandas.DataFrame
        digits : int
            Decimal places that are shown; the file has all.
        rows : index labels, optional
            Which rows are shown; the file has all.

        Returns
        -------
        pandas.io.formats.style.Styler
        """
        values = values.reset_index() if values.index.name else values
        write_csv(self.folder / "tables" / f"{name}.csv", values, for_reading=True)
        shown = values if rows is None else values.loc[rows]
        # words begin at the left and keep room for a few of them: by themselves notebooks do neither
        words = {
            column: [{"selector": "th, td", "props": f"text-align: left; min-width: {width}ch"}]
            for column, values in shown.items()
            if (width := min(30, max((len(text) for text in values if isinstance(text, str)), default=0)))
        }
        return (
            shown.style.set_uuid(name)  # not a random one: the same tables, the same report
            .hide(axis="index")
            .format(precision=digits, na_rep="-", escape="html")
            .format_index(escape="html", axis="columns")
            .set_table_styles(words)
        )

    def figure(self, name: str, figure):
        """Write ``figures/<name>.png`` and ``.svg``; return the figure.

        `SAVED` has the PNG file's bytes until something in the figure is changed.

        Parameters
        ----------
        name : str
            File name without suffix.
        figure : matplotlib.figure.Figure
        """
        for suffix in ("png", "svg"):
            with atomic_write(self.folder / "figures" / f"{name}.{suffix}") as temporary:
                figure.savefig(temporary, dpi=200, bbox_inches="tight")
        SAVED[figure] = (self.folder / "figures" / f"{name}.png").read_bytes()
        figure.stale_callback = _forget_saved
        return figure


def _forget_saved(figure, stale: bool) -> None:
    """Drop what was saved of a figure; matplotlib calls it when something in the figure is changed."""
    SAVED.pop(figure, None)


def open_run_folder(folder) -> Run:
    """Open a folder as a run; create it if need be.

    Parameters
    ----------
    folder : str or path-like

    Raises
    ------
    InputError
        If the folder cannot be created or written to.
    """
    folder = Path(folder).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror}); choose another --out") from None
    return Run(folder)


def trial_folder(run: Run, row, table: str = "predictions.csv") -> Path | None:
    """Find the trial that made a row of a predictions table.

    Parameters
    ----------
    run : Run
    row : pandas.Series
        With `TRIAL_COLUMNS`, filename and probability.
    table : str
        Which table of the trial holds it; ``validation.csv`` for a row of the validation part.

    Returns
    -------
    pathlib.Path or None
        The trial's folder; None if no trial with a stored model made this prediction.
    """
    for file in sorted((run.folder / "trials").glob("*/trial.json")):
        folder, facts = file.parent, read_json(file)
        if (folder / MODEL).is_file() and all(facts[name] == row[name] for name in TRIAL_COLUMNS):
            # trials of other settings may share these four values: compare the prediction too
            made = read_table(folder / table, ["filename", "probability"])
            made = made.set_index("filename")["probability"]
            if row["filename"] in made and abs(made[row["filename"]] - row["probability"]) < 1e-9:
                return folder
    return None


def is_run_folder(folder) -> bool:
    """Tell whether a folder holds a run, by its ``settings.json``.

    Examples
    --------
    >>> run = Run(Path(tempfile.mkdtemp()))
    >>> run.record(data="synthetic")
    >>> is_run_folder(run.folder), is_run_folder(run.folder.parent / "nowhere")
    (True, False)
    """
    try:
        return bool({"data", "source", "cache"} & read_json(Path(folder, "settings.json")).keys())
    except (OSError, ValueError):
        return False


def has_cache(run: Run) -> bool:
    """Tell whether the decoded images of a run are available."""
    return "cache" in run.recorded() and Path(run.settings["cache"], "cache.json").is_file()
