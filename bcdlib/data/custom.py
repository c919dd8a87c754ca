"""Images that are not BreakHis's, named by the user's manifest (path, label, group); see `read_manifest`.

The result has the columns of BreakHis's images, so that all that follows works on it unchanged: a group is a
case.
"""

from dataclasses import dataclass, field
from pathlib import PurePosixPath

import pandas as pd

from bcdlib.data.breakhis import (
    IMAGE_COLUMNS,
    UNKNOWN,
    count_table_i,
    distinct_slides,
    read_classes,
    read_magnifications,
)
from bcdlib.data.sources import IMAGE_SUFFIXES
from bcdlib.errors import InputError
from bcdlib.runs.files import read_user_csv, refuse_rows
from bcdlib.runs.names import clean_path, spelling_note

REQUIRED = ("path", "label", "group")
_OPTIONAL = ("slide", "magnification", "subtype")


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
    notes : list of str
        What is odd about the manifest, a sentence each.
    """

    images: pd.DataFrame
    missing: list[str]
    unused: list[str]
    reasons: list[tuple[str, str]]
    notes: list[str] = field(default_factory=list)

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
    table = read_user_csv(csv, "manifest", REQUIRED, _OPTIONAL)
    table = table.reindex(columns=[*REQUIRED, *_OPTIONAL], fill_value="")
    paths = table["path"].map(clean_path)
    outside = paths.str.contains(r"^/|^[A-Za-z]:|(?:^|/)\.\.(?:/|$)")
    kinds, power = read_classes(table["label"]), read_magnifications(table["magnification"])
    for bad, column, advice in (
        (paths == "", "path", "name the image"),
        (outside, "path", "it must be relative to the data, and stay inside it"),
        (paths.duplicated(), "path", "it comes twice; name each image once"),
        (kinds.isna(), "label", "use 0 or benign, 1 or malignant"),
        (table["group"] == "", "group", "it is empty; name each image's patient or case"),
        (power.isna(), "magnification", "use a whole number such as 40, or leave it empty"),
    ):
        refuse_rows(csv, table, bad, column, advice, name="path")
    images = (
        table.assign(
            filename=paths,
            year=0,
            subtype=table["subtype"].replace("", UNKNOWN),
            slide=table["slide"].where(table["slide"] != "", table["group"]),
            case=table["group"],
            magnification=power.astype("int64"),
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
    images, names = read_manifest(csv), source.names()
    # a file's own spelling goes before another one's that looks the same
    stored = {clean_path(name): name for name in names} | {name: name for name in names}
    tops = {name.split("/")[0] for name in stored if "/" in name}
    if not images["filename"].isin(list(stored)).any() and len(tops) == 1:
        top = tops.pop() + "/"
        stored = {name.removeprefix(top): path for name, path in stored.items()}
    images["path"] = images["filename"].map(stored)
    missing = images.loc[images["path"].isna(), "filename"].tolist()
    images = images.dropna(subset="path").reset_index(drop=True)
    reasons = [(path, _why_missing(path, source, stored)) for path in missing]
    if images.empty:
        raise InputError(
            f"{csv}: none of its {len(missing)} images is in {source.path}; the first that is missing is "
            f"{missing[0]!r}, {reasons[0][1]}; paths must be relative to the data{source.hint()}"
        )
    _check_classes(f"{csv} with {len(missing)} images missing in {source.path}" if missing else csv, images)
    note, unused = spelling_note(images["case"], "groups"), sorted(set(names) - set(images["path"]))
    return CustomScan(images, missing, unused, reasons, [note] if note else [])


def _why_missing(path: str, source, stored) -> str:
    """Say why an image that the manifest names cannot be used, as far as that can be seen."""
    left_out = {clean_path(name): why for name, why in source.left_out}
    for place in (path, *map(str, PurePosixPath(path).parents)):
        if place in left_out:
            return left_out[place]
    if path in set(map(clean_path, source.others)):
        return f"there, but not one of {', '.join(IMAGE_SUFFIXES)}"
    near = next((name for name in stored if _stem(name) == _stem(path)), None)
    return "named in the manifest, but not there" + (f"; there is {near}" if near else "")


def _stem(path: str) -> str:
    return path.rsplit(".", 1)[0].casefold()


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
    if scan.notes:
        rows["note"] = scan.notes[0]
    if scan.missing:
        rows["first missing"] = scan.missing[0]
    return rows


def _check_classes(what, images: pd.DataFrame) -> None:
    found = images["class"].unique()
    if len(found) < 2:
        raise InputError(f"{what}: all {len(images)} images are {found[0]}; both classes are needed")
