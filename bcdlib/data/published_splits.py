"""The register of published BreakHis splits: their lists, their sources, and what their parts share.

``split_lists/index.csv`` has a row a split: where it comes from, what its text says about patients, and
counts made from its list. ``split_lists/NAME.csv`` is the list: ``folder`` (a slide folder, as file names
begin) or ``filename``, ``role`` and, where there are several, ``fold``; without ``role``, ``fold`` is the one
in which an image is tested. The lists of `RECOMMENDED` are ours. That cases are shared was seen before: the
README of EhetisumSharif/magscan-mamba-breakhis says that ten accession prefixes recur, and
lizbaka/BreakHis-exp cites Benhammou 2020 for the doubled slide 13412.

Neither Keras nor scikit-learn is imported here, so that the register is read in a moment.
"""

import functools
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from bcdlib.data import breakhis
from bcdlib.errors import check_known

LISTS = Path(__file__).with_name("split_lists")
RECOMMENDED = ("breakhis-case-5fold", "breakhis-case-40x")
TWICE = "14-13412"  # the slide that is filed under both DC and LC
_UNITS = {"image": "filename", "slide": "folder", "case": "case"}


@functools.cache
def _index() -> pd.DataFrame:
    text = dict.fromkeys(("commit", "publication", "claim", "magnifications", "sha256"), str)
    return pd.read_csv(LISTS / "index.csv", dtype=text, keep_default_na=False).set_index("split", drop=False)


def list_names() -> tuple[str, ...]:
    """Name the splits that are stored as lists: the published ones except ``official``, and `RECOMMENDED`.

    Examples
    --------
    >>> list_names()[:3]
    ('eva', 'eva-2025-02', 'thunder')
    """
    return tuple(name for name in _index()["split"] if name != "official")


def published_table() -> pd.DataFrame:
    """Read the register: the published splits, one row each, with sources and counts.

    Returns
    -------
    DataFrame
        split, citation, source, commit, publication, claim (what its text says about patients), unit,
        magnifications, subtypes, basis (how the list was had), and the counts of `count_overlap`.

    Examples
    --------
    >>> table = published_table().set_index("split")
    >>> int(table.loc["eva", "case_leak"]), int(table.loc["eva", "test_images"])
    (91, 339)
    """
    table = _index()
    return table[~table["split"].isin(RECOMMENDED)].drop(columns="sha256").reset_index(drop=True)


def describe_list(name: str) -> str:
    """Say where a stored split comes from, and what its training and test part share.

    Examples
    --------
    >>> describe_list("eva")
    'kaiko-ai/eva, current version; 91 of 339 test images are of a case that is also in training'
    """
    row = _index().loc[name]
    sums = f", summed over {row['folds']} folds" if row["folds"] > 1 else ""
    return (
        f"{row['citation']}; {row['case_leak']} of {row['test_images']} test images are of a case "
        f"that is also in training{sums}"
    )


def source_line(name: str) -> str:
    """Say where exactly a stored split stands, where it was published, and what its text says about it."""
    row = _index().loc[name]
    version = f" at {row['commit'][:7]}" if row["commit"] else ""
    claim = f"; its text on the split: {row['claim']}" if row["claim"] else ""
    return f"{name}: {row['source']}{version}; {row['publication']}{claim}"


def read_list(name: str) -> pd.DataFrame:
    """Read a stored split as it was published.

    Parameters
    ----------
    name : str
        One of `list_names`, or ``official`` (the data set author's five folds, from data_manifest.csv).

    Returns
    -------
    DataFrame
        filename, fold (from 0) and role (train, validation, test); only the images that the split covers.

    Raises
    ------
    InputError
        If there is no such split.

    Examples
    --------
    >>> read_list("thunder")["role"].value_counts().to_dict()
    {'train': 936, 'test': 339, 'validation': 196}
    """
    check_known("published split", name, _index().index)
    known = breakhis.known_images()
    if name == "official":
        columns = dict(zip(breakhis.FOLD_COLUMNS, range(len(breakhis.FOLD_COLUMNS))))
        return known.rename(columns=columns).melt("filename", columns.values(), "fold", "role")
    table = pd.read_csv(list_file(name))
    if "folder" in table:
        covered = known[known["magnification"].astype(str).isin(_index().loc[name, "magnifications"].split())]
        table = covered.assign(folder=_folder(covered["filename"]))[["filename", "folder"]].merge(table)
    if "role" not in table:
        table = pd.concat(
            [
                table.assign(fold=fold, role=(table["fold"] == fold).map({True: "test", False: "train"}))
                for fold in sorted(table["fold"].unique())
            ]
        )
    return table.reindex(columns=["filename", "fold", "role"]).fillna({"fold": 0}).astype({"fold": int})


def is_by_image(name: str) -> bool:
    """Tell whether a stored split was drawn image by image, not by slide or case."""
    return _index().loc[name, "unit"] == "image"


def coverage_text(name: str, images: pd.DataFrame) -> str:
    """Say how many of a stored split's images are among `images`.

    Examples
    --------
    >>> coverage_text("eva", breakhis.known_images())
    'eva: 339 of 339 test images and 1132 of 1132 of the others are here'
    """
    table, here = read_list(name), set(images["filename"])
    tests = set(table.loc[table["role"] == "test", "filename"])
    others = set(table["filename"]) - tests
    return (
        f"{name}: {len(tests & here)} of {len(tests)} test images and {len(others & here)} of {len(others)} "
        "of the others are here"
    )


def list_file(name: str) -> Path:
    """Find the file of a stored split."""
    return next(LISTS.glob(f"{name}.csv*"))


def _folder(filenames: pd.Series) -> pd.Series:
    return filenames.str.rsplit("-", n=2).str[0]


def count_overlap(split: pd.DataFrame, images: pd.DataFrame) -> dict:
    """Count the test images whose image, slide or case is also in training, summed over the folds.

    Training is the role train alone; ``case_leak_trainval`` counts train and validation. Slides are slide
    folders. A case is an accession number: one patient is likely, not proven.

    Parameters
    ----------
    split : DataFrame
        filename, role and, if there are several, fold.
    images : DataFrame
        filename, class, subtype, slide, case.

    Returns
    -------
    dict
        folds, images (rows of all folds), slides_in_test (slide folders), test_images; ``<unit>_leak`` and
        ``<unit>_leak_pct`` of image, slide and case; the same of each class (``test_benign``,
        ``case_leak_benign`` and so on); case_leak_trainval; dup_14-13412_both_sides ("yes", "no" or in how
        many folds).

    Examples
    --------
    >>> found = count_overlap(read_list("eva"), breakhis.known_images())
    >>> found["case_leak"], found["case_leak_pct"], found["case_leak_benign"], found["slide_leak"]
    (91, 26.8, 49, 0)
    """
    known = images.assign(folder=breakhis.slide_folders(images)).drop_duplicates("filename")
    rows = split.merge(known[["filename", "class", "folder", "slide", "case"]], on="filename")
    tests, twice = [], []
    for _, part in rows.groupby("fold") if "fold" in rows else [(0, rows)]:
        test, train = part[part["role"] == "test"], part[part["role"] == "train"]
        leaks = {f"{unit}_leak": test[column].isin(train[column]) for unit, column in _UNITS.items()}
        others = part.loc[part["role"] != "test", "case"]
        tests.append(test.assign(**leaks, trainval=test["case"].isin(others)))
        twice.append(all((side["slide"] == TWICE).any() for side in (test, train)))
    test = pd.concat(tests)
    found = {"folds": len(tests), "images": len(rows), "slides_in_test": test["folder"].nunique()}
    for end, part in (("images", test), *((name, test[test["class"] == name]) for name in breakhis.CLASSES)):
        found[f"test_{end}"] = len(part)
        for unit in _UNITS:
            key = f"{unit}_leak" + ("" if end == "images" else f"_{end}")
            found[key] = int(part[f"{unit}_leak"].sum())
            found[f"{key}_pct"] = round(100 * found[key] / max(len(part), 1), 1)
    found["case_leak_trainval"] = int(test["trainval"].sum())
    both = ("no", "yes")[twice[0]] if len(twice) == 1 else f"{sum(twice)} of {len(twice)} folds"
    return found | {f"dup_{TWICE}_both_sides": both}


def count_test_cases(split: pd.DataFrame, images: pd.DataFrame) -> dict[str, int]:
    """Count the cases of a fold's test part by class and subtype; a case of two subtypes counts in both.

    Examples
    --------
    >>> count_test_cases(read_list("eva"), breakhis.known_images())
    {'benign': 4, 'malignant': 9, 'F': 2, 'TA': 2, 'DC': 7, 'MC': 2}
    """
    test = images[images["filename"].isin(split.loc[split["role"] == "test", "filename"])]
    counts = pd.concat([test.groupby(column)["case"].nunique() for column in ("class", "subtype")])
    return counts.reindex([*breakhis.CLASSES, *breakhis.SUBTYPES]).dropna().astype(int).to_dict()


def counts_line(counts: dict) -> str:
    """Put `count_overlap` in a line.

    Examples
    --------
    >>> counts_line(count_overlap(read_list("thunder"), breakhis.known_images()))
    'role train alone: 75 of 339 test images (22.1 %) are of a case in it: 49 of 129 benign, ...
    """
    classes = ", ".join(f"{counts[f'case_leak_{c}']} of {counts[f'test_{c}']} {c}" for c in breakhis.CLASSES)
    return (
        f"role train alone: {counts['case_leak']} of {counts['test_images']} test images "
        f"({counts['case_leak_pct']:.1f} %) are of a case in it: {classes}"
    )


def published_lines() -> list[str]:
    """Write the register as lines: a table, then for each split its source and its text on the split."""
    table = published_table()
    shown = table[["split", "folds", "test_images"]].rename(columns={"test_images": "test images"})
    for unit in ("slide", "case"):
        percent = table[f"{unit}_leak_pct"].map("{:.1f} %".format)
        shown[f"same {unit}"] = table[f"{unit}_leak"].astype(str) + ", " + percent
    for name in breakhis.CLASSES:
        shown[name] = table[f"case_leak_{name}"].astype(str) + " of " + table[f"test_{name}"].astype(str)
    shown["or validation"] = table["case_leak_trainval"]
    shown[TWICE] = table[f"dup_{TWICE}_both_sides"]
    return [
        "Test images of a slide folder, and of a case, that is also in training (role train); the latter by",
        f"class, and counting validation as training. {TWICE}: whether this slide stands on both sides. Sums",
        "over the folds. A case is an accession number: that it is one patient is likely, not proven.",
        "",
        *shown.to_string(index=False).splitlines(),
        "",
        *(source_line(name) for name in table["split"]),
        "",
        f"Fixed lists that share no case: {', '.join(RECOMMENDED)}.",
    ]


def kept_apart_text(counts) -> str:
    """Compare a split with the register: how many of the published ones keep apart what it does.

    Parameters
    ----------
    counts : dict
        As from `count_overlap`.

    Examples
    --------
    >>> kept_apart_text({"slide_leak": 0, "case_leak_trainval": 91})
    'This split keeps slides apart but not cases, as 7 of the 9 published ones in the register ...
    """
    table = published_table()
    slides, cases = counts["slide_leak"] > 0, counts["case_leak_trainval"] > 0
    same = ((table["slide_leak"] > 0) == slides) & ((table["case_leak_trainval"] > 0) == cases)
    what = "keeps slides apart but not cases" if cases else "keeps slides and cases apart"
    what = "has slides on both sides" if slides else what
    ones = f"of the {len(table)} published ones in the register"
    found = f"as {same.sum()} {ones} do" if same.any() else f"which none {ones} does"
    return f"This split {what}, {found} (`python -m bcdlib audit --split published`)."


def recognise(filenames: Iterable[str]) -> list[str]:
    """Find the stored splits that test exactly these images, in one fold or in all of them together.

    Examples
    --------
    >>> recognise(read_list("thunder").query("role == 'test'")["filename"])
    ['eva', 'thunder']
    """
    asked, found = set(filenames), []
    for name in _index()["split"]:
        test = read_list(name).query("role == 'test'")
        parts = [test, *(part for _, part in test.groupby("fold"))]
        if any(set(part["filename"]) == asked for part in parts):
            found.append(name)
    return found
