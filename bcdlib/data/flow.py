"""Which images went where: found, left out and why, used, and in which part of a split (as STARD asks)."""

import re

import numpy as np
import pandas as pd

from bcdlib.data import breakhis, cache, checks, splits
from bcdlib.runs.folder import Run

COUNTS = ["images", "slides", "cases", "benign", "malignant", "benign_cases", "malignant_cases"]
COLUMNS = ["split", "fold", "step", "reason", *COUNTS, "cases_in_training"]
_TEXTS = {"split": "", "fold": "", "reason": ""}
_MOST_REASONS = 4


def flow_table(run: Run, tested: pd.DataFrame) -> pd.DataFrame:
    """Count what became of the images that were found, from the run's files.

    Parameters
    ----------
    run : Run
        Of predictions made elsewhere only the test part is known.
    tested : DataFrame
        A predictions table: the splits and folds that were tested.

    Returns
    -------
    DataFrame
        split, fold (both empty where a row is about all), step (found, left out, used, outside the split,
        train, validation, test), reason (of those that were left out), images, slides (folders), cases,
        benign and malignant (images), benign_cases, malignant_cases (those with a malignant image); all but
        images NaN of files that were left out; cases_in_training (test cases that are also in training or
        validation, NaN in other rows).
    """
    if not (run.folder / "images.csv").is_file():
        return pd.DataFrame(
            [
                _TEXTS | {"split": split, "fold": fold, "step": "test", **_counts(part)}
                for (split, fold), part in _with_class(tested).groupby(["split", "fold"], sort=False)
            ]
        ).reindex(columns=COLUMNS)
    used = cache.run_cache(run).images
    left_out = _left_out(run)
    rows = [{"step": "found", "images": len(used) + sum(left_out.values())}]
    rows += [{"step": "left out", "reason": why, "images": count} for why, count in left_out.items()]
    rows.append({"step": "used", **_counts(used)})
    for split, fold in tested[["split", "fold"]].drop_duplicates().itertuples(index=False):
        table = run.read_csv(f"splits/{split}.csv", "02_preprocess")
        part = table[table["fold"] == fold].merge(used, on="filename")
        outside = used[~used["filename"].isin(part["filename"])]
        names = {"split": split, "fold": fold}
        if len(outside):
            rows.append(names | {"step": "outside the split", **_counts(outside)})
        rows += [names | {"step": role, **_counts(part[part["role"] == role])} for role in splits.ROLES]
        shared = splits.split_overlap(part[["filename", "fold", "role"]], used)["cases_shared"]
        rows[-1]["cases_in_training"] = int(shared.iloc[0])
    return pd.DataFrame([_TEXTS | row for row in rows]).reindex(columns=COLUMNS)


def _with_class(tested: pd.DataFrame) -> pd.DataFrame:
    once = tested.drop_duplicates(["split", "fold", "filename"])
    return once.assign(**{"class": np.take(breakhis.CLASSES, once["label"])})


def _counts(images: pd.DataFrame) -> dict[str, int]:
    malignant = images.loc[images["class"] == breakhis.CLASSES[1], "case"].nunique()
    return {
        "images": len(images),
        "slides": breakhis.count_slide_folders(images),
        "cases": images["case"].nunique(),
        **{name: int((images["class"] == name).sum()) for name in breakhis.CLASSES},
        "benign_cases": images["case"].nunique() - malignant,
        "malignant_cases": malignant,
    }


def _left_out(run: Run) -> dict[str, int]:
    """How many files were left out, by the kind of the reason, the most frequent first."""
    found = run.read_csv("tables/intake.csv", "02_preprocess")
    kinds = found.loc[found["outcome"] == checks.LEFT_OUT, "reason"].map(reason_kind).value_counts()
    counts = kinds.head(_MOST_REASONS).to_dict()
    if len(kinds) > _MOST_REASONS:
        counts["other reasons (tables/intake.csv)"] = int(kinds.iloc[_MOST_REASONS:].sum())
    return counts


def reason_kind(reason: str) -> str:
    """Cut what is about one file only from the reason why it was left out.

    Examples
    --------
    >>> reason_kind("second copy of a/SOB_B_A-14-22549AB-40-001.png, the one that is used: the same image")
    'second copy'
    >>> reason_kind("its folder malignant contradicts its name, class benign")
    'its folder contradicts its name'
    >>> reason_kind("named in the manifest, but not there; there is a.jpg")
    'named in the manifest, but not there'
    """
    if reason.startswith(breakhis.SECOND_COPY):
        return "second copy, of another image" if "ANOTHER" in reason else "second copy"
    return re.split(r"[;:(]|, (?!but)", re.sub(r"folder .+ contradicts", "folder contradicts", reason))[
        0
    ].strip()
