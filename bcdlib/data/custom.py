"""Images that are not BreakHis's, named by the user's manifest (path, label, group); see `read_manifest`.

The result has the columns of BreakHis's images, so that all that follows works on it unchanged: a group is a
case.
"""

import warnings
from dataclasses import dataclass

import pandas as pd

from bcdlib.data.breakhis import CLASSES, IMAGE_COLUMNS, UNKNOWN, count_table_i, distinct_slides
from bcdlib.errors import InputError
from bcdlib.runs.files import read_user_csv

REQUIRED = ("path", "label", "group")
_LABELS = {"0": CLASSES[0], "1": CLASSES[1]} | {name: name for name in CLASSES}
# what pandas takes for empty: such a word would be lost on the way through the run's own tables
_EMPTY = set("|#n/a|#n/a n/a|#na|<na>|n/a|na|nan|-nan|none|null|1.#ind|-1.#ind|1.#qnan|-1.#qnan".split("|"))


@dataclass
class CustomScan:
    """What a source holds of the images that a manifest names.

    Attributes
    ----------
    images : DataFrame
        breakhis.IMAGE_COLUMNS and ``path`` (inside the source), sorted by filename.
    missing : list of str
        Paths that the manifest names and the source does not have.
    unused : list of str
        Images of the source that the manifest does not name.
    reasons : list of (path, why it is left out)
        Of ``missing``.
    """

    images: pd.DataFrame
    missing: list[str]
    unused: list[str]
    reasons: list[tuple[str, str]]

    @property
    def partial(self) -> bool:
        """Whether an image that the manifest names is missing."""
        return bool(self.missing)


def read_manifest(csv) -> pd.DataFrame:
    """Read and check a manifest; the images themselves are not looked for (see `scan_custom`).

    Parameters
    ----------
    csv : path-like
        A CSV file with the columns, in any order and case,

        - ``path``: relative to the data folder, or inside the archive
        - ``label``: 0 or benign, 1 or malignant, in any case
        - ``group``: what must not be split, for example the patient or case
        - if wanted, ``slide`` (default: the group; one name in two groups means two slides),
          ``magnification`` (whole number, perhaps with X; default: unknown) and ``subtype`` (default:
          unknown); other columns are not used

    Returns
    -------
    DataFrame
        breakhis.IMAGE_COLUMNS, sorted by filename, which is the path. str, except ``year`` (0),
        ``magnification`` (0: unknown) and ``sequence`` (from 1 within a case; int64).

    Raises
    ------
    InputError
        If it is not a readable CSV, a column is missing, a path is empty, absolute, leads out of the data
        (``..``) or comes twice, a label or magnification cannot be understood, a group is empty, or there is
        one class only.
    """
    table = _read_text(csv)
    # backslashes as a spreadsheet on Windows has them
    paths = table["path"].str.replace("\\", "/", regex=False).str.replace(r"^(\./)+", "", regex=True)
    if (paths == "").any():
        raise InputError(f"{csv}: row {(paths == '').argmax() + 1} has no path")
    _refuse(
        csv,
        table,
        paths.str.contains(r"^/|^[A-Za-z]:|(?:^|/)\.\.(?:/|$)"),
        "path",
        "it must be relative to the data, and stay inside it",
    )
    if paths.duplicated().any():
        raise InputError(
            f"{csv}: path {paths[paths.duplicated()].iloc[0]!r} comes twice; name each image once"
        )
    kinds = table["label"].str.lower().map(_LABELS)
    _refuse(csv, table, kinds.isna(), "label", "use 0 or benign, 1 or malignant")
    _refuse(csv, table, table["group"] == "", "group", "it is empty; name each image's patient or case")
    power = table["magnification"].str.lower().str.removesuffix("x").str.strip().replace("", "0")
    _refuse(
        csv,
        table,
        ~power.str.fullmatch(r"[0-9]{1,6}(\.0*)?"),
        "magnification",
        "use a whole number such as 40, or leave it empty",
    )
    images = (
        table.assign(
            filename=paths,
            year=0,
            subtype=table["subtype"].replace("", UNKNOWN),
            slide=table["slide"].where(table["slide"] != "", table["group"]),
            case=table["group"],
            magnification=power.astype(float).astype("int64"),
            **{"class": kinds},
        )
        .sort_values("filename", ignore_index=True)
        .assign(sequence=lambda images: images.groupby("case").cumcount() + 1)
    )
    _check_classes(csv, images)
    return images.assign(slide=distinct_slides(images))[IMAGE_COLUMNS]


def scan_custom(csv, source) -> CustomScan:
    """List the images that a manifest names (see `read_manifest`) and a `sources.Source` has.

    Images that are missing are left out and listed. In an archive (or folder) with one folder at its top, as
    zip programs make them, paths may also begin below that folder.

    Raises
    ------
    InputError
        As `read_manifest`; or if not one of the images is there, or those that are there have one class only.
    """
    images = read_manifest(csv)
    stored = {name.removeprefix("./"): name for name in source.names()}
    tops = {name.split("/")[0] for name in stored if "/" in name}
    if not images["filename"].isin(list(stored)).any() and len(tops) == 1:
        top = tops.pop() + "/"
        stored = {name.removeprefix(top): path for name, path in stored.items()}
    images["path"] = images["filename"].map(stored)
    missing = images.loc[images["path"].isna(), "filename"].tolist()
    images = images.dropna(subset="path").reset_index(drop=True)
    if images.empty:
        raise InputError(
            f"{csv}: none of its {len(missing)} images is in {source.path}; the first that is missing is "
            f"{missing[0]!r}; paths must be relative to the data"
        )
    _check_classes(f"{csv} with {len(missing)} images missing in {source.path}" if missing else csv, images)
    why = dict(source.left_out)
    reasons = [(path, why.get(path, "named in the manifest, but not there")) for path in missing]
    return CustomScan(images, missing, sorted(set(stored.values()) - set(images["path"])), reasons)


def count_custom(images: pd.DataFrame) -> pd.DataFrame:
    """Count images: rows benign, malignant, total; columns: the magnifications ("40X"; "unknown"), total."""
    powers = sorted(images["magnification"].unique())
    return count_table_i(images, powers).rename(
        columns={power: magnification_label(power) for power in powers}
    )


def magnification_label(magnification: int) -> str:
    """Name a magnification: "40X"; "unknown" for 0."""
    return f"{magnification}X" if magnification else UNKNOWN


def image_caption(image, columns=("class", "subtype", "magnification", "slide")) -> str:
    """Describe an image in one line, by what is known of it.

    Parameters
    ----------
    image : mapping
        A row of an image table.
    columns : sequence of str
        What to say; what is unknown is left out.

    Examples
    --------
    >>> image_caption({"class": "benign", "subtype": "A", "magnification": 40, "slide": "14-22549AB"})
    'benign, A, 40X, slide 14-22549AB'
    >>> image_caption({"class": "benign", "subtype": "unknown", "magnification": 0, "slide": "7"})
    'benign, slide 7'
    """
    values = {
        name: magnification_label(image[name]) if name == "magnification" else str(image[name])
        for name in columns
    }
    return ", ".join(
        f"{name} {value}" if name in ("slide", "case") else value
        for name, value in values.items()
        if value != UNKNOWN
    )


def custom_overview(scan: CustomScan) -> dict:
    """Sum up what was found, as the rows of a table."""
    images = scan.images
    rows: dict[str, int | str] = {
        "images": len(images),
        "slides": int(images["slide"].nunique()),
        "cases (groups)": int(images["case"].nunique()),
        "cases of both classes": int((images.groupby("case")["class"].nunique() > 1).sum()),
        "named but missing": len(scan.missing),
        "not named, not used": len(scan.unused),
    }
    if scan.missing:
        rows["first missing"] = scan.missing[0]
    return rows


def _read_text(csv) -> pd.DataFrame:
    """All wanted columns as stripped text, "" where empty or absent."""
    # commas that end every line: no harm
    with warnings.catch_warnings(action="ignore", category=pd.errors.ParserWarning):
        # index_col: or such commas would make the first column an index; utf-8-sig: as Excel writes
        table = read_user_csv(
            csv,
            f"file; --manifest names a CSV with the columns {', '.join(REQUIRED)}",
            str,
            keep_default_na=False,
            index_col=False,
            encoding="utf-8-sig",
        )
    table.columns = table.columns.str.strip().str.lower()
    table = table.loc[:, ~table.columns.duplicated()]
    for column in REQUIRED:
        if column not in table:
            found = ", ".join(table.columns[:10]).replace("\n", " ")[:200]
            raise InputError(
                f"{csv}: column {column!r} is missing; a manifest has {', '.join(REQUIRED)}, separated by "
                f"commas; found {found!r}"
            )
    if table.empty:
        raise InputError(f"{csv}: the table has no rows")
    table = (
        table.reindex(columns=[*REQUIRED, "slide", "magnification", "subtype"], fill_value="")
        .fillna("")
        .apply(lambda text: text.str.strip())
    )
    return table.mask(table.apply(lambda text: text.str.lower().isin(_EMPTY)), "")


def _refuse(csv, table: pd.DataFrame, bad: pd.Series, column: str, advice: str) -> None:
    if bad.any():
        row = table[bad].iloc[0]
        raise InputError(f"{csv}: {column} {row[column]!r} of {row['path']}: {advice}")


def _check_classes(what, images: pd.DataFrame) -> None:
    found = images["class"].unique()
    if len(found) < 2:
        raise InputError(f"{what}: all {len(images)} images are {found[0]}; both classes are needed")
