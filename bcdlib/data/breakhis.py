"""BreakHis names and the 7909 rows of data_manifest.csv: parse, scan and verify.

Source of the naming rule: Spanhol et al., "A Dataset for Breast Cancer Histopathological Image
Classification", IEEE TBME 63(7), 2016, and the data set's own readme.
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from bcdlib.data.sources import IMAGE_SUFFIXES
from bcdlib.errors import InputError, printable
from bcdlib.runs.files import TEXTS
from bcdlib.runs.names import clean_path
from bcdlib.runs.places import shipped

CLASSES = ("benign", "malignant")
MAGNIFICATIONS = (40, 100, 200, 400)
SUBTYPES = {
    "A": "adenosis",
    "F": "fibroadenoma",
    "PT": "phyllodes_tumor",
    "TA": "tubular_adenoma",
    "DC": "ductal_carcinoma",
    "LC": "lobular_carcinoma",
    "MC": "mucinous_carcinoma",
    "PC": "papillary_carcinoma",
}
BENIGN = ("A", "F", "PT", "TA")
UNKNOWN = (
    "unknown"  # the subtype of an image of another data set that comes without one; its magnification is 0
)
SIZE = (700, 460)  # width, height as published; four images of the 7909 known here are 700x456
FOLD_COLUMNS = [f"fold_{k}" for k in range(1, 6)]
IMAGE_COLUMNS = ["filename", "class", "subtype", "year", "slide", "case", "magnification", "sequence"]
COLUMNS = [*IMAGE_COLUMNS, *FOLD_COLUMNS, "relpath"]

# Table I of Abu Al-Haija & Adebanjo, as printed. 652 is a slip: its column's total, and the data, say 625.
TABLE_I_PRINTED = pd.DataFrame(
    {
        40: [652, 1370, 1995],
        100: [644, 1437, 2081],
        200: [623, 1390, 2013],
        400: [588, 1232, 1820],
        "total": [2480, 5429, 7909],
    },
    index=["benign", "malignant", "total"],
)

_NAME = re.compile(
    r"SOB_(?P<letter>[BM])_(?P<subtype>[A-Z]{1,2})-(?P<year>[0-9]{2})-(?P<number>[0-9]+)(?P<part>[A-Z]*)"
    r"-(?P<magnification>40|100|200|400)-(?P<sequence>[0-9]{3})\.png"
)

_ANY_NAME = re.compile(
    r"(?:.*/)?\s*(SOB_[BM]_[A-Z]{1,2}-[0-9]{2}-[0-9]+[A-Z]*-(?:40|100|200|400)-[0-9]{3})(?:\.\w+)*\s*",
    re.IGNORECASE,
)


def parse_name(filename: str) -> dict:
    """Parse a BreakHis file name.

    Parameters
    ----------
    filename : str
        For example ``"SOB_B_A-14-22549AB-40-001.png"``; no folder in front.

    Returns
    -------
    dict with the keys of `IMAGE_COLUMNS`: str, except ``year`` (two digits), ``magnification`` and
    ``sequence`` (int).

    Raises
    ------
    InputError
        If it is not a BreakHis name, or class letter and subtype contradict each other.

    Examples
    --------
    >>> parse_name("SOB_B_A-14-22549AB-40-001.png")["slide"]
    '14-22549AB'
    """
    match = _NAME.fullmatch(filename)
    if match is None:
        raise InputError(
            f"{filename!r} is not a BreakHis file name; expected one like SOB_B_A-14-22549AB-40-001.png"
        )
    letter, subtype, year, number, part, magnification, sequence = match.groups()
    if subtype not in SUBTYPES:
        raise InputError(f"{filename!r}: unknown subtype {subtype!r}; known are {', '.join(SUBTYPES)}")
    if (letter == "B") != (subtype in BENIGN):
        raise InputError(f"{filename!r}: class letter {letter!r} contradicts subtype {subtype!r}")
    case = f"{year}-{number}"
    return {
        "filename": filename,
        "class": CLASSES[letter == "M"],
        "subtype": subtype,
        "year": int(year),
        "slide": case + part,
        "case": case,
        "magnification": int(magnification),
        "sequence": int(sequence),
    }


def official_name(path: str) -> str:
    r"""Find the BreakHis file name in a name or path that was changed on the way; else return it cleaned.

    Folders in front (also with Windows' separators), upper or lower case, invisible signs, blanks around and
    another suffix do not matter.

    Examples
    --------
    >>> official_name("D:\\train\\sob_b_a-14-22549ab-40-001.JPG"), official_name("mine\\1.png")
    ('SOB_B_A-14-22549AB-40-001.png', 'mine/1.png')
    """
    path = clean_path(path)
    match = "sob_" in path.lower() and _ANY_NAME.fullmatch(path)  # a table may hold a million other names
    return f"{match[1].upper()}.png" if match else path


def official_names(paths: pd.Series) -> pd.Series:
    """Apply `official_name` to each path (str); skip the work where none can change, as in most tables.

    Examples
    --------
    >>> official_names(pd.Series(["a/1.png", "x/SOB_B_A-14-22549AB-40-001.jpg"])).tolist()
    ['a/1.png', 'SOB_B_A-14-22549AB-40-001.png']
    """
    text = "".join(paths.to_numpy(dtype=object)).lower()
    plain = text.isascii() and text.isprintable()
    if plain and not any(sign in text for sign in (" ", "\\", "//", "./", "sob_")):
        return paths
    return paths.map(official_name)


def official_path(filename: str) -> str:
    """Give the file's path in the official archive, whose folders join subtype and slide by ``_``.

    Examples
    --------
    >>> official_path("SOB_B_A-14-22549AB-40-001.png")
    'BreaKHis_v1/histology_slides/breast/benign/SOB/adenosis/SOB_B_A_14-22549AB/40X/SOB_B_A-14-22549AB-40-001.png'
    """
    row = parse_name(filename)
    return (
        f"BreaKHis_v1/histology_slides/breast/{row['class']}/SOB/{SUBTYPES[row['subtype']]}"
        f"/{filename.split('-')[0]}_{row['slide']}/{row['magnification']}X/{filename}"
    )


def known_images() -> pd.DataFrame:
    """Read the table of all 7909 images of BreakHis, one row each; its columns are `COLUMNS`."""
    return _known_images().copy()


@functools.cache
def _known_images() -> pd.DataFrame:
    return pd.read_csv(shipped("data_manifest.csv"), dtype=TEXTS)


def images_table(filenames: Iterable[str]) -> pd.DataFrame:
    """Tabulate BreakHis names: `IMAGE_COLUMNS`, plus the author's folds for the 7909 known images (else NaN).

    Raises
    ------
    InputError
        If one of the names is not a BreakHis name.
    """
    return pd.DataFrame([parse_name(name) for name in filenames], columns=IMAGE_COLUMNS).merge(
        known_images()[["filename", *FOLD_COLUMNS]], how="left", validate="many_to_one"
    )


def class_labels(images: pd.DataFrame):
    """Encode the class as the paper does: benign 0, malignant 1; int64 array (N,)."""
    return (images["class"] == CLASSES[1]).to_numpy().astype("int64")


def is_breakhis_name(filename: str) -> bool:
    """Tell whether a file is named as BreakHis names them, as the drawn ones are too.

    Examples
    --------
    >>> is_breakhis_name("SOB_B_A-14-22549AB-40-001.png"), is_breakhis_name("1.png")
    (True, False)
    """
    if not _NAME.fullmatch(filename):  # said at once: a table may hold a million other names
        return False
    try:
        parse_name(filename)
    except InputError:
        return False
    return True


def is_breakhis(images: pd.DataFrame) -> bool:
    """Tell whether all these images (column ``filename``) have BreakHis names, as the drawn ones have too."""
    return all(map(is_breakhis_name, images["filename"].unique()))


def is_synthetic(images: pd.DataFrame) -> bool:
    """Tell whether these images (column ``filename``) are drawn: BreakHis names, none of them in BreakHis."""
    return is_breakhis(images) and not images["filename"].isin(known_images()["filename"]).any()


def count_table_i(images: pd.DataFrame, magnifications: Iterable[int] = MAGNIFICATIONS) -> pd.DataFrame:
    """Count the paper's Table I.

    Returns
    -------
    DataFrame of int
        Rows benign, malignant, total; columns: the magnifications, total.

    Examples
    --------
    >>> int(count_table_i(known_images()).loc["benign", 40])
    625
    """
    return (
        pd.crosstab(images["class"], images["magnification"], margins=True, margins_name="total")
        .reindex(index=[*CLASSES, "total"], columns=[*magnifications, "total"], fill_value=0)
        .rename_axis(index=None, columns=None)
    )


def read_classes(labels: pd.Series) -> pd.Series:
    """Understand labels as people write them: the class, None where it is none of them.

    Examples
    --------
    >>> read_classes(pd.Series(["0", "1.0", "Benign"])).tolist()
    ['benign', 'malignant', 'benign']
    """
    known = {"0": CLASSES[0], "1": CLASSES[1]} | {name: name for name in CLASSES}
    return labels.map(
        {label: known.get(re.sub(r"\.0*$", "", label.lower())) for label in labels.unique()}
    ).astype(object)


def read_magnifications(cells: pd.Series) -> pd.Series:
    """Understand magnifications as people write them: 0 where empty or "unknown", NaN where not understood.

    Examples
    --------
    >>> read_magnifications(pd.Series(["40X", "100.0", "", "high"])).tolist()
    [40.0, 100.0, 0.0, nan]
    """
    known = {"": 0.0, UNKNOWN: 0.0}
    for cell in cells.unique():
        if match := re.fullmatch(r"([0-9]{1,6}(\.0*)?)\s*x?", cell, re.IGNORECASE):
            known[cell] = float(match[1])
    return cells.map(known).astype(float)


def slide_folders(images: pd.DataFrame) -> pd.Series:
    """Name what counts as one slide: in BreakHis its folder (subtype and slide), elsewhere its name alone.

    Numbers in place of names are of such folders already.
    """
    if pd.api.types.is_integer_dtype(images["slide"]):
        return images["slide"]
    names = images["slide"].astype(object)
    known = images["subtype"].isin(list(SUBTYPES))
    return (images["subtype"].astype(str) + "_" + names).where(known, names)


def distinct_slides(images: pd.DataFrame) -> pd.Series:
    """Name slides so that no name stands in two cases: those numbered within each case get the case in front.

    Examples
    --------
    >>> distinct_slides(pd.DataFrame({"case": ["a", "a", "b"], "slide": ["1", "2", "1"]})).tolist()
    ['a/1', '2', 'b/1']
    """
    several = images.groupby("slide")["case"].transform("nunique") > 1
    return images["slide"].mask(several, images["case"] + "/" + images["slide"])


def count_slide_folders(images: pd.DataFrame) -> int:
    """Count the slide folders: 82 in BreakHis, since slide 14-13412 is filed under both DC and LC."""
    if not pd.api.types.is_integer_dtype(images["slide"]):
        images = images[["subtype", "slide"]].drop_duplicates()
    return int(slide_folders(images).nunique())


@dataclass
class Scan:
    """What a source holds of BreakHis.

    Attributes
    ----------
    images : DataFrame
        IMAGE_COLUMNS, the author's folds and ``path`` (inside the source), sorted by filename.
    not_breakhis, duplicates : lists of str
        Paths of images with another name, and of second copies of a name.
    reasons : list of (path, why it is left out)
        Of ``not_breakhis``, ``duplicates`` and all else: links, folders called like images, and images whose
        folder contradicts their name.
    """

    images: pd.DataFrame
    not_breakhis: list[str]
    duplicates: list[str]
    reasons: list[tuple[str, str]]

    @property
    def partial(self) -> bool:
        """Whether it is a part of BreakHis rather than all of it."""
        return not known_images()["filename"].isin(self.images["filename"]).all()


def scan_breakhis(source) -> Scan:
    """List the BreakHis images of a `sources.Source`, in any folder depth.

    What counts is the name without suffix, in any case: a .jpg is that image too. A name that occurs twice is
    used once (a .png before others, then the first path in sorted order) and reported in ``duplicates``. An
    image whose folder says something else than its name (class, subtype, slide or magnification) is not used:
    nobody knows which of them is right.

    Raises
    ------
    InputError
        If not one BreakHis image is found.
    """
    paths: dict[str, str] = {}
    not_breakhis, duplicates, reasons = [], [], []
    for path in sorted(source.names(), key=_best_first):
        name = official_name(path).rsplit("/", 1)[-1]
        try:
            contradiction = _contradiction(path, parse_name(name))
        except InputError as error:
            not_breakhis.append(path)
            reasons.append((path, str(error).removeprefix(f"{name!r}").lstrip(" :")))
        else:
            if contradiction:
                reasons.append((path, contradiction))
            elif name in paths:
                duplicates.append(path)
                reasons.append((path, f"{SECOND_COPY}{paths[name]}, the one that is used"))
            else:
                paths[name] = path
    reasons += source.left_out
    for path in sorted(source.others):  # a text beside an image, for example, is not of interest
        name = official_name(path).rsplit("/", 1)[-1]
        if name not in paths and is_breakhis_name(name):
            reasons.append((path, f"not one of {', '.join(IMAGE_SUFFIXES)}; save it as PNG"))
    if not paths:
        others = [f"; {len(reasons)} others, first {printable(path)}: {why}" for path, why in reasons[:1]]
        raise InputError(
            f"{source.path}: no BreakHis image found{others[0] if others else ', nor any other image'}; "
            "expected names like SOB_B_A-14-22549AB-40-001.png, or --manifest MY.csv for images of your own"
            f"{source.hint()}"
        )
    images = images_table(sorted(paths))
    return Scan(images.assign(path=images["filename"].map(paths)), not_breakhis, duplicates, reasons)


def other_copies(source, images: pd.DataFrame) -> pd.DataFrame:
    """List what else a `sources.Source` holds of BreakHis images, under other paths than theirs.

    Parameters
    ----------
    source : sources.Source
    images : DataFrame
        With ``filename`` and ``path``.

    Returns
    -------
    DataFrame
        ``filename`` and ``path``, the first to try first; see `scan_breakhis`.
    """
    wanted = set(filter(is_breakhis_name, images["filename"]))
    paths = sorted(set(source.names()) - set(images["path"]), key=_best_first) if wanted else []
    found = [(official_name(path).rsplit("/", 1)[-1], path) for path in paths]
    return pd.DataFrame(
        [
            (name, path)
            for name, path in found
            if name in wanted and not _contradiction(path, parse_name(name))
        ],
        columns=["filename", "path"],
    )


def _best_first(path: str):
    return not path.lower().endswith(".png"), path  # copies in other formats may have lost something


SECOND_COPY = "second copy of "  # how the reason begins where a name occurs twice; its path follows
_SUBTYPE_KEYS = {name.replace("_", ""): key for key, name in SUBTYPES.items()}
_FOLDER_SAYS = (
    ("class", re.compile("benign|malignant", re.I), str.lower),
    (
        "subtype",
        re.compile("|".join(SUBTYPES.values()).replace("_", "[_ -]?"), re.I),
        lambda text: _SUBTYPE_KEYS[re.sub("[_ -]", "", text.lower())],
    ),
    ("magnification", re.compile("(?:40|100|200|400)X", re.I), lambda text: int(text[:-1])),
    ("subtype", re.compile("SOB_[BM]_([A-Z]{1,2})_[0-9]{2}-[0-9]+[A-Z]*", re.I), str.upper),
    ("slide", re.compile("SOB_[BM]_[A-Z]{1,2}_([0-9]{2}-[0-9]+[A-Z]*)", re.I), str.upper),
)


def _contradiction(path: str, row: dict) -> str:
    """In what a folder of the official layout contradicts the file's own name; "" if in nothing."""
    for folder in path.split("/")[:-1]:
        for fact, pattern, understood in _FOLDER_SAYS:
            match = pattern.fullmatch(folder)
            if match and understood(match[match.lastindex or 0]) != row[fact]:
                return f"its folder {folder} contradicts its name, {fact} {row[fact]}"
    return ""
