"""The five protocols: which images train, validate and test. A split is a table with columns filename, fold, role.

`magnification` is the paper's; `image`, `slide` and `case` are k folds, stratified by class and grouped as they are
called; `official` are the data set author's five folds, over all magnifications, and `official-40` (100, 200, 400) the
same for the images of one magnification, as their author used them. See `PROTOCOLS` for what leaks in each.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from bcdlib.data import breakhis
from bcdlib.errors import InputError
from bcdlib.runs.files import read_user_csv
from bcdlib.runs.folder import Run

ROLES = ("train", "validation", "test")
PROTOCOLS = {
    "magnification": "train 100X+200X+400X, test 40X (the paper's); every test slide is also in training",
    "image": "random by image; other images of the same slide are in training",
    "official": "the data set author's five folds; none by slide folder, but cases are shared",
    "slide": "grouped by slide (the literature's patient-wise); cases may be shared",
    "case": "grouped by case, the strictest that the names allow; nothing shared",
}
OFFICIAL_AT = {f"official-{m}": f"{PROTOCOLS['official']}; {m}X only" for m in breakhis.MAGNIFICATIONS}
STRICTEST = ("case", "slide", "official", "image", "magnification")  # strictest first
_GROUP = {"image": None, "slide": "slide", "case": "case", "official": "case"}


def describe_protocol(protocol: str) -> str:
    """What a protocol trains and tests on, and what leaks; InputError if there is no such protocol."""
    known = PROTOCOLS | OFFICIAL_AT
    if protocol not in known:
        raise InputError(f"unknown split {protocol!r}; known are {', '.join(known)}")
    return known[protocol]


def make_split(
    images: pd.DataFrame, protocol: str, folds: int = 5, *, seed: int = 0, validation: float = 0.15
) -> pd.DataFrame:
    """Make a split table.

    Parameters
    ----------
    images : DataFrame
        One row an image: filename, class, slide, case, magnification (and fold_1..fold_5 for ``official``).
    protocol : str
        One of `PROTOCOLS` or `OFFICIAL_AT`.
    folds : int
        Number of folds of ``image``, ``slide``, ``case``; ``official`` has five, ``magnification`` one.
    seed : int
        Shuffles ``image``, ``slide`` and ``case``, and the choice of validation images.
    validation : float
        Share of the training part that is set aside with the protocol's own grouping (``official``: by case).
        ``magnification`` has none: the paper does not, and nothing is chosen there.

    Returns
    -------
    DataFrame with columns filename, fold (from 0) and role (train, validation, test); each image once a fold.

    Raises
    ------
    InputError
        Unknown protocol, or too few images, slides or cases for it.
    """
    describe_protocol(protocol)
    if protocol in OFFICIAL_AT:
        protocol, at = protocol.split("-")
        images = images[images["magnification"] == int(at)]
        if images.empty:
            raise InputError(f"split 'official-{at}': there is no {at}X image; choose another split")
    images = images.reset_index(drop=True)
    tests = list(_test_parts(images, protocol, folds, seed))
    tables = []
    for fold, test in enumerate(tests):
        role = np.where(test, "test", "train").astype(object)
        if protocol != "magnification" and validation > 0:
            rows = np.flatnonzero(~test)
            role[rows[_held_out(images.loc[rows], _GROUP[protocol], validation, seed + fold)]] = "validation"
        tables.append(pd.DataFrame({"filename": images["filename"], "fold": fold, "role": role}))
    split = pd.concat(tables, ignore_index=True)
    _check(split, images, protocol)
    return split


def _test_parts(images: pd.DataFrame, protocol: str, folds: int, seed: int):
    if protocol == "magnification":
        if not (images["magnification"] == 40).any():
            raise InputError("split 'magnification': no 40X image to test on; choose another split")
        yield (images["magnification"] == 40).to_numpy()
        return
    if protocol == "official":
        columns = [c for c in breakhis.FOLD_COLUMNS if c in images and images[c].notna().all()]
        if len(columns) != len(breakhis.FOLD_COLUMNS):
            raise InputError(
                "split 'official': these images are not in data_manifest.csv; choose another split"
            )
        yield from ((images[column] == "test").to_numpy() for column in columns)
        return
    for _, test in _folds(images, _GROUP[protocol], folds, seed, f"split {protocol!r}"):
        yield np.isin(np.arange(len(images)), test)


def _folds(images: pd.DataFrame, group: str | None, folds: int, seed: int, what: str):
    units = images["class"] if group is None else images.drop_duplicates([group, "class"])["class"]
    fewest = units.value_counts().reindex(breakhis.CLASSES, fill_value=0).min()
    if folds < 2 or fewest < folds:
        raise InputError(
            f"{what}: {folds} folds; give 2 to {fewest}, the {group or 'image'}s of the smaller class"
        )
    splitter = (StratifiedKFold if group is None else StratifiedGroupKFold)(
        folds, shuffle=True, random_state=seed
    )
    return splitter.split(images, images["class"], None if group is None else images[group])


def _held_out(images: pd.DataFrame, group: str | None, share: float, seed: int) -> np.ndarray:
    """Positions set aside for validation: the first of about 1/share folds with the same grouping."""
    units = images["class"] if group is None else images.drop_duplicates([group, "class"])["class"]
    fewest = units.value_counts().reindex(breakhis.CLASSES, fill_value=0).min()
    if fewest < 2:  # a very small data set: better no validation than none of a class in training
        return np.array([], dtype=int)
    folds = min(round(1 / share), fewest)
    return next(iter(_folds(images, group, folds, seed, "validation")))[1]


def _check(split: pd.DataFrame, images: pd.DataFrame, protocol: str) -> None:
    kinds = split.merge(images[["filename", "class"]], on="filename")
    for fold, part in kinds.groupby("fold"):
        for role in ("train", "test"):
            found = set(part.loc[part["role"] == role, "class"])
            if (role == "train" and len(found) < 2) or not found:
                raise InputError(
                    f"split {protocol!r}, fold {fold}: {role} part has "
                    f"{'only ' + found.pop() + ' images' if found else 'no image'}; use more images or another split"
                )


def fold_of(split: pd.DataFrame, fold: int) -> pd.DataFrame:
    """The rows of one fold; InputError if the split does not have it."""
    part = split[split["fold"] == fold]
    if part.empty:
        raise InputError(f"fold {fold}: the split has folds {sorted(split['fold'].unique())}")
    return part


def folds_of(split: pd.DataFrame):
    """(fold, its rows) of a split table, in order; a table without a column ``fold`` is fold 0."""
    yield from (split if "fold" in split else split.assign(fold=0)).groupby("fold")


def read_split_table(path, images: pd.DataFrame) -> pd.DataFrame:
    """Read a split table that was made elsewhere: a CSV with filename, role and, if there are several, fold.

    Parameters
    ----------
    images : DataFrame with filename; names that it does not have cannot be audited

    Raises
    ------
    InputError
        If it cannot be read or is empty, a column or a fold is missing, a role is not train, validation or test, a name
        comes twice in a fold or is not among the images, or a fold has no test or no training image.
    """
    table = read_user_csv(path, "split table", {"filename": str, "role": str})
    for column in ("filename", "role"):
        if column not in table:
            raise InputError(
                f"{path}: column {column!r} is missing; a split table has filename, role and perhaps fold"
            )
    if table.empty:
        raise InputError(f"{path}: has no rows; a split table has one for each image and role")
    checks = (
        (~table["role"].isin(ROLES), f"has a role that is not {', '.join(ROLES)}"),
        (~table["filename"].isin(images["filename"]), "is not among the images that are audited"),
        (table["fold"].isna() if "fold" in table else table["role"].isna(), "has no fold"),
    )
    for bad, what in checks:
        if bad.any():
            raise InputError(f"{path}: {table.loc[bad, 'filename'].iloc[0]} {what} ({bad.sum()} such rows)")
    for fold, part in folds_of(table):
        # a name that stands in train and test is what an audit is for; twice in one role is a slip
        twice = part.duplicated(["filename", "role"])
        if twice.any():
            raise InputError(f"{path}: {part.loc[twice, 'filename'].iloc[0]} comes twice in fold {fold}")
        if not {"train", "test"} <= set(part["role"]):
            raise InputError(f"{path}: fold {fold} has no image with role 'train' or none with role 'test'")
    return table


def split_overlap(split: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """Who leaks into whose test set, a row a fold.

    Training here means the roles train and validation: what was fitted or chosen on.

    Parameters
    ----------
    split : DataFrame with filename, role and, if there are several, fold
    images : DataFrame with filename, subtype, slide, case

    Returns
    -------
    DataFrame with columns fold, test_images, and for each of image, slide, case: ``<unit>s_shared`` (how many of the
    test part's units are also in training) of ``test_<unit>s``, ``test_images_of_shared_<unit>s``, and (slide, case)
    ``shared_<unit>_names``, a sorted list.
    Slides are counted as slide folders (subtype and slide: 82 in BreakHis), but shared as soon as their name is.
    """
    split = pd.concat([part for _, part in folds_of(split)])
    facts = split.merge(
        images[["filename", "subtype", "slide", "case"]].drop_duplicates("filename"), on="filename"
    )
    facts["folder"] = breakhis.slide_folders(facts)
    rows = []
    for fold, part in facts.groupby("fold"):
        test, training = part[part["role"] == "test"], part[part["role"] != "test"]
        row = {"fold": fold, "test_images": len(test)}
        row["images_shared"] = int(test["filename"].isin(training["filename"]).sum())
        for unit, count_by in (("slide", "folder"), ("case", "case")):
            shared = test[unit].isin(training[unit])
            row[f"test_{unit}s"] = test[count_by].nunique()
            row[f"{unit}s_shared"] = test.loc[shared, count_by].nunique()
            row[f"test_images_of_shared_{unit}s"] = int(shared.sum())
            row[f"shared_{unit}_names"] = sorted(test.loc[shared, unit].unique())
        rows.append(row)
    return pd.DataFrame(rows)


def overlap_line(row) -> str:
    """One row of `overlap` as a sentence."""
    few = f" (slide {', '.join(row['shared_slide_names'])})" if 0 < row["slides_shared"] <= 3 else ""
    return (
        f"{row['slides_shared']} of {row['test_slides']} test slides{few} and {row['cases_shared']} of "
        f"{row['test_cases']} test cases were also in training "
        f"({row['test_images_of_shared_cases']} of {row['test_images']} test images)."
    )


def make_feasible_split(
    images: pd.DataFrame, protocol: str, folds: int = 5, *, seed: int = 0
) -> tuple[pd.DataFrame, str]:
    """`make`, with fewer folds of image, slide and case where a small data set does not allow as many.

    Returns
    -------
    (split, note) : the note says how many folds instead of how many, and why; empty if there are as many as asked for.

    Raises
    ------
    InputError
        As `make`; if a class has one slide or case only, the fold that tests it could not learn that class.
    """
    try:
        return make_split(images, protocol, folds, seed=seed), ""
    except InputError:
        if protocol not in ("image", "slide", "case") or folds < 2 or images["class"].nunique() < 2:
            raise
    units = images.drop_duplicates([_GROUP[protocol] or "filename", "class"])["class"].value_counts()
    fewest, name = int(units.min()), units.idxmin()
    if fewest < 2:
        raise InputError(
            f"split {protocol!r}: only one {protocol} has {name} images; in the fold that tests it there would "
            "be none to train on"
        )
    for fewer in range(min(folds, fewest), 1, -1):
        try:
            split = make_split(images, protocol, fewer, seed=seed)
        except InputError as error:  # uneven groups: the smaller class can still end up in one fold
            reason = error
        else:
            return split, f"{fewer} folds instead of {folds}: {fewest} {protocol}s have {name} images"
    raise reason


def available_splits(run: Run, wanted: Iterable[str]) -> tuple[str, ...]:
    """Those of the wanted protocols that 02_preprocess made; if none, the strictest that it made.

    Raises
    ------
    InputError
        If it made none.
    """
    there = _files(run)
    names = (
        tuple(name for name in wanted if name in there)
        or tuple(name for name in STRICTEST if name in there)[:1]
    )
    if not names:
        raise InputError(
            f"{run.folder / 'splits'}: no split there yet; run 02_preprocess with this run folder first"
        )
    return names


def read_split(run: Run, name: str) -> pd.DataFrame:
    """A split that 02_preprocess wrote; InputError if it did not, or if there is no such protocol."""
    describe_protocol(name)
    there = _files(run)
    if there and name not in there:
        raise InputError(
            f"split {name!r}: 02_preprocess did not make it, since these images do not allow it; "
            f"choose from {', '.join(there)}"
        )
    return run.read_csv(f"splits/{name}.csv", "02_preprocess")


def _files(run: Run) -> list[str]:
    return [name for name in PROTOCOLS if (run.folder / "splits" / f"{name}.csv").is_file()]
