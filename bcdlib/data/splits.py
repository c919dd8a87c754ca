"""The five protocols: which images train, validate and test. A split has columns filename, fold, role.

`magnification` is the paper's; `image`, `slide` and `case` are k folds, stratified by class and grouped as
they are called; `official` are the data set author's five folds, over all magnifications, and `official-40`
(100, 200, 400) the same for the images of one magnification, as their author used them. Those of `AUTHORS`
are what publications of the compared methods drew, all of them by image. Published splits and the recommended
lists go by their names too; see `published_splits`. See `PROTOCOLS` for what leaks in each.
"""

import warnings
from collections.abc import Iterable

import numpy as np
import pandas as pd

from bcdlib.data import breakhis, cache, published_splits
from bcdlib.errors import LAST_SEED, InputError, check_known
from bcdlib.runs import files, folder

ROLES = ("train", "validation", "test")
PROTOCOLS = {
    "magnification": "train 100X+200X+400X, test 40X (the paper's); every test slide is also in training",
    "image": "random by image; other images of the same slide are in training",
    "official": "the data set author's five folds; none by slide folder, but cases are shared",
    "slide": "grouped by slide (the literature's patient-wise); cases may be shared",
    "case": "grouped by case, the strictest that the names allow; nothing shared",
}
OFFICIAL_AT = {f"official-{m}": f"{PROTOCOLS['official']}; {m}X only" for m in breakhis.MAGNIFICATIONS}
_BY_IMAGE = "drawn by image, as publications did; other images of the same slide are in training"
AUTHORS = {
    "image-80-20": f"80 % for training, 20 % for the test, {_BY_IMAGE}",
    "image-50-25-25": f"50 % for training, 25 % each for validation and test, {_BY_IMAGE}",
    "image-400-balanced": f"400X only, as many malignant as benign images, 20 % for the test, {_BY_IMAGE}",
}
ALL = "all"  # no protocol: every image is trained on, for a final model, and none is tested
STRICTEST = ("case", "slide", "official", "image", "magnification")  # strictest first
_GROUP = {"image": None, "slide": "slide", "case": "case", "official": "case", **dict.fromkeys(AUTHORS)}


def describe_protocol(protocol: str) -> str:
    """Say what a protocol trains and tests on, and what leaks; InputError if there is no such protocol.

    Examples
    --------
    >>> describe_protocol("case")
    'grouped by case, the strictest that the names allow; nothing shared'
    """
    known = PROTOCOLS | OFFICIAL_AT | AUTHORS
    listed = published_splits.list_names()
    check_known("split", protocol, (*known, *listed))
    return published_splits.describe_list(protocol) if protocol in listed else known[protocol]


def make_split(
    images: pd.DataFrame, protocol: str, folds: int = 5, *, validation: float = 0.25, seed: int = 0
) -> pd.DataFrame:
    """Make a split table.

    Folds are drawn from a table of groups (images, slides or cases), one row each, stratified by class and,
    where a subtype has enough of them, by subtype: a group with many images counts as much as one with few.

    Parameters
    ----------
    images : DataFrame
        One row an image: filename, class, slide, case, magnification (and fold_1..fold_5 for ``official``).
    protocol : str
        One of `PROTOCOLS`, `OFFICIAL_AT` or `AUTHORS`, or a list by its name (see
        `published_splits.list_names`), of which only the images that are among `images` are used.
    folds : int
        Number of folds of ``image``, ``slide``, ``case``; ``official`` has five, ``magnification`` and those
        of `AUTHORS` one, a list its own.
    validation : float
        Share of the training part that is set aside with the protocol's own grouping (``official`` and lists
        of slides: by case). ``magnification`` has none: the paper does not, and nothing is chosen there. A
        list that names validation images keeps them.
    seed : int
        Shuffles ``image``, ``slide`` and ``case``, and the choice of validation images.

    Returns
    -------
    DataFrame with columns filename, fold (from 0) and role (train, validation, test); each image once a fold.

    Raises
    ------
    InputError
        Unknown protocol, or too few images, slides or cases for it.

    Examples
    --------
    >>> split = make_split(breakhis.known_images(), "case")
    >>> sorted(split["role"].unique())
    ['test', 'train', 'validation']
    """
    describe_protocol(protocol)
    if protocol in OFFICIAL_AT:
        protocol, at = protocol.split("-")
        images = images[images["magnification"] == int(at)]
        if images.empty:
            raise InputError(f"split 'official-{at}': there is no {at}X image; choose another split")
    if protocol == "image-400-balanced":
        images = _balanced(images[images["magnification"] == 400], seed)
    images = images.reset_index(drop=True)
    if protocol in AUTHORS:
        roles, group = [_drawn_roles(images, protocol, seed)], None
    elif protocol in published_splits.list_names():
        images, roles = _listed_roles(images, protocol)
        group = None if published_splits.is_by_image(protocol) else "case"
    else:
        roles = [
            np.where(test, "test", "train").astype(object)
            for test in _test_parts(images, protocol, folds, seed)
        ]
        group = _GROUP.get(protocol)
    tables = []
    for fold, role in enumerate(roles):
        if protocol != "magnification" and validation > 0 and "validation" not in role:
            rows = np.flatnonzero(role == "train")
            role[rows[_held_out(images.loc[rows], group, validation, seed + fold)]] = "validation"
        tables.append(pd.DataFrame({"filename": images["filename"], "fold": fold, "role": role}))
        for part, least in (("train", 2), ("test", 1)):
            found = images.loc[role == part, "class"].unique()
            if len(found) < least:
                what = f"only {found[0]} images" if len(found) else "no image"
                raise InputError(
                    f"split {protocol!r}, fold {fold}: {part} part has {what}; use more images or "
                    "another split"
                )
    return pd.concat(tables, ignore_index=True)


def whole_split(images: pd.DataFrame) -> pd.DataFrame:
    """Make the split `ALL`, of a final model: one fold, in which every image is trained on.

    Examples
    --------
    >>> whole_split(pd.DataFrame({"filename": ["a.png", "b.png"]})).values.tolist()
    [['a.png', 0, 'train'], ['b.png', 0, 'train']]
    """
    return images[["filename"]].assign(fold=0, role="train")


def _balanced(images: pd.DataFrame, seed: int) -> pd.DataFrame:
    """As many images of each class, drawn."""
    if images.empty:
        raise InputError("split 'image-400-balanced': there is no 400X image; choose another split")
    fewest = int(images["class"].value_counts().min())
    drawn = images.sort_values("filename").groupby("class").sample(fewest, random_state=seed)
    return drawn.sort_index()


def _drawn_roles(images: pd.DataFrame, protocol: str, seed: int) -> np.ndarray:
    """Roles, str (N,), of a protocol of `AUTHORS`: one of 5 folds tests; of 4 folds another validates."""
    quarters = protocol == "image-50-25-25"
    number = _fold_numbers(images, None, 4 if quarters else 5, seed, what=f"split {protocol!r}")
    role = np.where(number == 0, "test", "train").astype(object)
    role[quarters & (number == 1)] = "validation"
    return role


def _listed_roles(images: pd.DataFrame, name: str) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Those of the images that a list has, and their roles, str (N,), fold by fold."""
    roles = published_splits.read_list(name).pivot(index="filename", columns="fold", values="role")
    images = images[images["filename"].isin(roles.index)].reset_index(drop=True)
    if images.empty:
        raise InputError(
            f"split {name!r}: it is of BreakHis, and none of its images is here; choose another split"
        )
    return images, [roles.loc[images["filename"], fold].to_numpy(object) for fold in roles]


def _test_parts(images: pd.DataFrame, protocol: str, folds: int, seed: int) -> list[np.ndarray]:
    """Which rows are tested, bool (N,), fold by fold."""
    if protocol == "magnification":
        test = (images["magnification"] == 40).to_numpy()
        if not test.any():
            raise InputError("split 'magnification': no 40X image to test on; choose another split")
        return [test]
    if protocol == "official":
        if images.reindex(columns=breakhis.FOLD_COLUMNS).isna().any(axis=None):
            raise InputError(
                "split 'official': these images are not in data_manifest.csv; choose another split"
            )
        return [(images[column] == "test").to_numpy() for column in breakhis.FOLD_COLUMNS]
    number = _fold_numbers(images, _GROUP[protocol], folds, seed, what=f"split {protocol!r}")
    return [number == fold for fold in range(folds)]


def inner_folds(images: pd.DataFrame, protocol: str, folds: int, *, seed: int = 0) -> np.ndarray:
    """Cut a training part into folds of its own, grouped as its protocol groups.

    Parameters
    ----------
    images : DataFrame
        Rows of the training part: filename, class, subtype, slide, case.
    protocol : str
        One of `PROTOCOLS` or `OFFICIAL_AT`; ``magnification`` and all others are cut by case.
    folds : int
        At most; fewer where the smaller class has fewer groups.
    seed : int

    Returns
    -------
    int64 array (N,)
        The fold, from 0, that each image is held out in; all 0 where a class has one group only.
    """
    group = _GROUP.get(protocol, "case")
    possible = min(folds, _count_units(images, group).min())
    if possible < 2:
        return np.zeros(len(images), dtype=int)
    return _fold_numbers(images, group, possible, seed, what="inner folds")


def _count_units(images: pd.DataFrame, group: str | None) -> pd.Series:
    """How many images, slides or cases each class has."""
    units = images.drop_duplicates([group or "filename", "class"])["class"]
    return units.value_counts().reindex(breakhis.CLASSES, fill_value=0)


def _fold_numbers(images: pd.DataFrame, group: str | None, folds: int, seed: int, *, what: str) -> np.ndarray:
    """Assign to each image the number of the fold, from 0, that holds it out; int64 (N,)."""
    fewest = _count_units(images, group).min()
    if folds < 2 or fewest < folds:
        raise InputError(
            f"{what}: {folds} folds; give 2 to {fewest}, the {group or 'image'}s of the smaller class"
        )
    subtypes = images.get("subtype", images["class"])
    return group_folds(images[group or "filename"], images["class"], subtypes, folds=folds, seed=seed)


def group_folds(groups, classes, subtypes, *, folds: int, seed: int = 0) -> np.ndarray:
    """Assign whole groups to folds, stratified over a table of groups, one row each.

    Parameters
    ----------
    groups, classes, subtypes : array-like (N,)
        Of each image. Stratified is by subtype if one has a group for each fold, else by class.
    folds : int
    seed : int
        Shuffles.

    Returns
    -------
    int64 array (N,)
        The fold, from 0, that holds each image out.

    Examples
    --------
    >>> group_folds(["a", "a", "b", "c", "d"], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1], folds=2).tolist()
    [1, 1, 0, 0, 1]
    """
    from sklearn.model_selection import StratifiedKFold  # slow to import, and most audits need no folds

    table = pd.DataFrame({"group": groups, "class": classes, "subtype": subtypes}).astype(str)
    classes, subtypes = (table.sort_values(name).groupby("group")[name] for name in ("class", "subtype"))
    first, last = classes.first(), classes.last()
    # a group with images of both classes stands between them, so that both classes stay balanced
    strata = pd.DataFrame(
        {"class": first.where(first == last, first + "+" + last), "subtype": subtypes.first()}
    )
    strata = strata.rename_axis("group").reset_index().sort_values(["class", "subtype", "group"])
    subtype = strata["class"] + " " + strata["subtype"]
    by = subtype if subtype.value_counts().max() >= folds else strata["class"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a rare subtype may have fewer groups than folds
        # a fold's number may have been added to the last seed
        shuffled = StratifiedKFold(folds, shuffle=True, random_state=seed % (LAST_SEED + 1))
        parts = shuffled.split(strata, by)
        fold_of = {
            group: fold for fold, (_, held) in enumerate(parts) for group in strata["group"].iloc[held]
        }
    return table["group"].map(fold_of).to_numpy("int64")


def _held_out(images: pd.DataFrame, group: str | None, share: float, seed: int) -> np.ndarray:
    """Positions set aside for validation: the first of about 1/share folds with the same grouping."""
    fewest = _count_units(images, group).min()
    if fewest < 2:  # a very small data set: better no validation than none of a class in training
        return np.array([], dtype=int)
    folds = min(round(1 / share), fewest)
    return np.flatnonzero(_fold_numbers(images, group, folds, seed, what="validation") == 0)


def fold_of(split: pd.DataFrame, fold: int) -> pd.DataFrame:
    """Select the rows of one fold; InputError if the split does not have it."""
    part = split[split["fold"] == fold]
    if part.empty:
        raise InputError(
            f"fold {fold}: the split has folds {', '.join(map(str, sorted(split['fold'].unique())))}"
        )
    return part


def folds_of(split: pd.DataFrame):
    """Yield (fold, its rows) of a split table, in order; a table without a column ``fold`` is fold 0."""
    yield from (split if "fold" in split else split.assign(fold=0)).groupby("fold")


def read_split_table(path, images: pd.DataFrame) -> pd.DataFrame:
    """Read a split table that was made elsewhere: a CSV with filename, role and, if there are several, fold.

    Names may have folders in front, another suffix or lower case where they hold a BreakHis name; see
    `breakhis.official_name`. The column ``grp`` of Kaggle's Folds.csv is taken for the role.

    Parameters
    ----------
    path : path-like
    images : DataFrame
        With filename; names that it does not have cannot be audited.

    Raises
    ------
    InputError
        If it cannot be read or is empty, a column or a fold is missing, a role is not train, validation or
        test, a name comes twice in a fold or is not among the images, or a fold has no test or no training
        image.
    """
    table = files.read_user_csv(path, "split table", ("filename",), ("role", "grp", "fold"))
    if "role" not in table:
        if "grp" not in table:
            raise InputError(
                f"{path}: column 'role' is missing; a split table has filename, role and perhaps fold"
            )
        table = table.rename(columns={"grp": "role"})  # as the Folds.csv of Kaggle's copy of BreakHis
    table = table.assign(role=table["role"].str.lower())
    known = table["filename"].isin(images["filename"])
    table["filename"] = table["filename"].where(known, table["filename"].map(breakhis.official_name))
    outside = ~table["filename"].isin(images["filename"])
    elsewhere = outside.any() and table["filename"][outside].isin(breakhis.known_images()["filename"]).any()
    by_name = "; without --data all of BreakHis is audited, by its names" if elsewhere else ""
    for bad, column, advice in (
        (~table["role"].isin(ROLES), "role", f"a role is one of {', '.join(ROLES)}"),
        (outside, "filename", f"it is not among the images that are audited{by_name}"),
        ((table["fold"] if "fold" in table else table["role"]) == "", "fold", "each row needs one"),
    ):
        files.refuse_rows(path, table, bad, column, advice, name="filename")
    if "fold" in table:
        table["fold"] = files.numbers_or_text(table["fold"])
    for fold, part in folds_of(table):
        # a name that stands in train and test is what an audit is for; twice in one role is a slip
        twice = part.duplicated(["filename", "role"])
        if twice.any():
            raise InputError(f"{path}: {part.loc[twice, 'filename'].iloc[0]} comes twice in fold {fold}")
        if not {"train", "test"} <= set(part["role"]):
            raise InputError(f"{path}: fold {fold} has no image with role 'train' or none with role 'test'")
    return table


def split_overlap(split: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """Count who leaks into whose test set, a row a fold.

    Training here means the roles train and validation: what was fitted or chosen on.

    Parameters
    ----------
    split : DataFrame
        Filename, role and, if there are several, fold.
    images : DataFrame
        Filename, subtype, slide, case.

    Returns
    -------
    DataFrame
        Columns fold, test_images, images_shared, and for slide and case: ``<unit>s_shared`` (how many of the
        test part's units are also in training) of ``test_<unit>s``, ``test_images_of_shared_<unit>s`` and
        ``shared_<unit>_names``, a sorted list. Slides are counted as slide folders (subtype and slide: 82 in
        BreakHis), but shared as soon as their name is.
    """
    known = images.assign(folder=breakhis.slide_folders(images)).drop_duplicates("filename")
    rows = []
    for fold, part in folds_of(split.merge(known[["filename", "slide", "case", "folder"]], on="filename")):
        test, training = part[part["role"] == "test"], part[part["role"] != "test"]
        shared = test["filename"].isin(training["filename"])
        row = {"fold": fold, "test_images": len(test), "images_shared": int(shared.sum())}
        for unit, count_by in (("slide", "folder"), ("case", "case")):
            shared = test[unit].isin(training[unit])
            row |= {
                f"test_{unit}s": test[count_by].nunique(),
                f"{unit}s_shared": test.loc[shared, count_by].nunique(),
                f"test_images_of_shared_{unit}s": int(shared.sum()),
                f"shared_{unit}_names": sorted(test.loc[shared, unit].unique()),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def overlap_line(row) -> str:
    """Put a row of `split_overlap` in a sentence."""
    few = f" (slide {', '.join(row['shared_slide_names'])})" if 0 < row["slides_shared"] <= 3 else ""
    again = f"{row['images_shared']} of {row['test_images']} test images themselves, "
    return (
        f"{again if row['images_shared'] else ''}"
        f"{row['slides_shared']} of {row['test_slides']} test slides{few} and "
        f"{row['cases_shared']} of {row['test_cases']} test cases were also in training "
        f"({row['test_images_of_shared_cases']} of {row['test_images']} test images)."
    )


def make_feasible_split(
    images: pd.DataFrame, protocol: str, folds: int = 5, *, seed: int = 0
) -> tuple[pd.DataFrame, str]:
    """Make a split as `make_split`, with fewer folds where a small data set does not allow as many.

    Returns
    -------
    split : DataFrame
    note : str
        How many folds instead of how many, and why; "" if there are as many as asked for.

    Raises
    ------
    InputError
        As `make_split`; if a class has one slide or case only, the fold that tests it could not learn that
        class.
    """
    try:
        return make_split(images, protocol, folds, seed=seed), ""
    except InputError:
        if protocol not in ("image", "slide", "case") or folds < 2 or images["class"].nunique() < 2:
            raise
    units = _count_units(images, _GROUP[protocol])
    fewest, name = units.min(), units.idxmin()
    if fewest < 2:
        raise InputError(
            f"split {protocol!r}: only one {protocol} has {name} images; in the fold that tests it there "
            "would be none to train on"
        )
    made = make_split(images, protocol, int(fewest), seed=seed)
    return made, f"{fewest} folds instead of {folds}: {fewest} {protocol}s have {name} images"


def strictness(split: str) -> int:
    """Return the rank of a split's protocol for sorting, the strictest first, unknown ones last.

    Examples
    --------
    >>> sorted(["my_split", "image", "case"], key=strictness)
    ['case', 'image', 'my_split']
    """
    return STRICTEST.index(split) if split in STRICTEST else len(STRICTEST)


def available_splits(run: folder.Run, wanted: Iterable[str]) -> tuple[str, ...]:
    """Select those of the wanted protocols that 02_preprocess made; if none, the strictest that it made.

    What 02_preprocess does not make (see `read_split`) is selected unseen.

    Raises
    ------
    InputError
        If it made none.
    """
    there = _made_splits(run)
    if not there:
        raise InputError(
            f"{run.folder / 'splits'}: no split there yet; run 02_preprocess with this run folder first"
        )
    chosen = tuple(name for name in wanted if name in there or name not in PROTOCOLS)
    return chosen or (min(there, key=strictness),)


def read_split(run: folder.Run, name: str) -> pd.DataFrame:
    """Read a split that 02_preprocess wrote, or write one of `OFFICIAL_AT` or a list now.

    Raises
    ------
    InputError
        If these images do not allow it, or there is no such protocol.
    """
    describe_protocol(name)
    if name not in PROTOCOLS:
        made = make_split(cache.run_cache(run).images, name, seed=run.settings.get("seed", 0))
        run.write_csv(f"splits/{name}.csv", made)
        return made
    there = _made_splits(run)
    if there and name not in there:
        raise InputError(
            f"split {name!r}: 02_preprocess did not make it, since these images do not allow it; "
            f"choose from {', '.join(there)}"
        )
    return run.read_csv(f"splits/{name}.csv", "02_preprocess")


def _made_splits(run: folder.Run) -> list[str]:
    return [name for name in PROTOCOLS if (run.folder / "splits" / f"{name}.csv").is_file()]
