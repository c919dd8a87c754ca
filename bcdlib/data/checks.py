"""What came in and what did not, a copy of BreakHis against its manifest, and who leaks in a split."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bcdlib.data import breakhis, decode, published_splits, splits
from bcdlib.data.cache import PixelCache
from bcdlib.errors import InputError, printable
from bcdlib.runs.folder import Run

LEFT_OUT, USED = "left out", "used"
TWO_CLASSES = "the same image is also filed as the other class, "  # how this reason begins
_PRINTED = 10


def examine_images(run: Run, source, cache: PixelCache) -> pd.DataFrame:
    """List all images that were left out or look wrong.

    Parameters
    ----------
    run : folder.Run
        Whose ``left_out.csv`` 01_mount wrote.
    source : sources.Source
    cache : cache.PixelCache
        The cached images of the run.

    Returns
    -------
    DataFrame
        Path (inside the data), outcome ("left out" or "used"), reason. Sorted by outcome and path.
    """
    rows, paths = [], dict(run.images()[["filename", "path"]].to_numpy())
    used = dict(cache.images[["filename", "path"]].to_numpy())
    if (run.folder / "left_out.csv").is_file():
        by_name = run.read_csv("left_out.csv", "01_mount").to_numpy()
        second = [path for path, why in by_name if why.startswith(breakhis.SECOND_COPY)]
        rows += [(path, LEFT_OUT, why) for path, why in by_name if path not in second]
        replaced = {paths[name] for name, path in used.items() if path != paths.get(name, path)}
        rows += _compare_copies([*sorted(replaced), *second], source, cache, used)
    rows += [(paths.get(name, name), LEFT_OUT, reason) for name, reason in cache.skipped.to_numpy()]
    rows += [(paths.get(name, name), USED, reason) for name, reason in same_images(cache)]
    return pd.DataFrame(rows, columns=["path", "outcome", "reason"]).sort_values(
        ["outcome", "path"], kind="stable", ignore_index=True
    )


def _compare_copies(paths: list[str], source, cache: PixelCache, used: dict[str, str]) -> list[tuple]:
    """Say of unused copies whether they show the same image: if not, nobody knows which is right."""
    copies = pd.DataFrame({"filename": paths, "path": paths}, dtype=str)
    copies = copies[~copies["path"].isin(list(used.values()))]
    rows = []
    for path, array, reason in decode.decode_all(source, copies, cache.size, progress=False):
        name = breakhis.official_name(path).rsplit("/", 1)[-1]
        if array is None:
            verdict = f"; {reason}"
        elif name in used and np.array_equal(array, cache.pixels[cache.rows([name])[0]]):
            verdict = ": the same image"
        else:
            verdict = ": ANOTHER image; remove the wrong one"
        of = f"{used[name]}, the one that is used" if name in used else f"{name}, which is not used"
        rows.append((path, LEFT_OUT, f"{breakhis.SECOND_COPY}{of}{verdict}"))
    return rows


def same_images(cache: PixelCache) -> list[tuple[str, str]]:
    """Find images that equal one with another label, pixel by pixel at the cache's size.

    Both are used: BreakHis itself files some images of slide 14-13412 under two subtypes.

    Returns
    -------
    list of (filename, reason)
    """
    digests = pd.Series([hashlib.sha256(image.tobytes()).digest() for image in cache.pixels])
    several = digests.duplicated(keep=False).to_numpy()
    found = []
    for _, same in cache.images[several].groupby(digests[several].to_numpy(), sort=False):
        for row in same.to_dict("records"):
            for fact, words in (
                ("class", TWO_CLASSES),
                ("subtype", "the same image is also filed as another subtype, "),
            ):
                others = same.loc[same[fact] != row[fact], "filename"]
                if len(others):
                    found.append((row["filename"], words + others.iloc[0]))
                    break
    return found


def left_out_lines(found: pd.DataFrame, cache: PixelCache, run: Run) -> str:
    """Write how many images are used, how many not, and the first of each with the reason."""
    left_out, odd = (found[found["outcome"] == outcome] for outcome in (LEFT_OUT, USED))
    text = [f"Images: {len(cache.images)} used, {len(left_out)} left out, {len(odd)} used but filed twice"]
    for rows in (left_out, odd):
        text += [
            f"  {row.outcome}: {printable(row.path)}: {printable(row.reason)}"
            for row in rows.head(_PRINTED).itertuples()
        ]
        if len(rows) > _PRINTED:
            text.append(f"  and {len(rows) - _PRINTED} more: {run.folder / 'tables' / 'intake.csv'}")
    return "\n".join(text)


def refuse_left_out(found: pd.DataFrame, run: Run) -> None:
    """Raise InputError if an image was left out, or one image stands under both classes."""
    bad = found[(found["outcome"] == LEFT_OUT) | found["reason"].str.startswith(TWO_CLASSES)]
    if len(bad):
        first = bad.iloc[0]
        raise InputError(
            f"{first['path']}: {first['reason']} ({len(bad)} such images, all in "
            f"{run.folder / 'tables' / 'intake.csv'}); mend or remove them, or run without strict"
        )


@dataclass
class Verification:
    """A copy of BreakHis against data_manifest.csv.

    Attributes
    ----------
    images : DataFrame
        The manifest's and the extra rows with status, width, height and reason.
    scan : breakhis.Scan
        What was found by name.
    """

    images: pd.DataFrame
    scan: breakhis.Scan

    @property
    def wrong_size(self) -> pd.DataFrame:
        """Readable images that are not 700x460: filename, width, height."""
        sizes = self.images[["filename", "width", "height"]].dropna().astype({"width": int, "height": int})
        return sizes[(sizes[["width", "height"]] != breakhis.SIZE).any(axis=1)]

    @property
    def partial(self) -> bool:
        """Whether an image of BreakHis is missing or unreadable."""
        present = self.images.query("status == 'present'")
        return len(present) < len(breakhis.known_images())

    def counts(self) -> pd.DataFrame:
        """Count images by class and magnification (rows) and status (columns)."""
        return pd.crosstab(
            [self.images["class"], self.images["magnification"]], self.images["status"]
        ).reindex(columns=["present", "missing", "extra", "unreadable"], fill_value=0)

    def summary(self) -> dict[str, int]:
        """Count present, missing, extra, unreadable, wrong_size, not_breakhis and duplicates."""
        return self.counts().sum().to_dict() | {
            "wrong_size": len(self.wrong_size),
            "not_breakhis": len(self.scan.not_breakhis),
            "duplicates": len(self.scan.duplicates),
        }


def verify_copy(source, progress: bool = True) -> Verification:
    """Read and decode every image of a `sources.Source` and hold it against data_manifest.csv.

    Statuses: ``present`` (in the manifest, decodes), ``missing``, ``unreadable`` (does not decode), ``extra``
    (a BreakHis name that the manifest does not have; damaged ones are ``unreadable`` too). Other sizes than
    700x460 are listed by `Verification.wrong_size`; they do not make an image unusable.

    Raises
    ------
    InputError
        If not one BreakHis image is found.
    """
    found = breakhis.scan_breakhis(source)
    columns = breakhis.IMAGE_COLUMNS
    rows = breakhis.known_images()[columns].merge(found.images[columns], how="outer", indicator="status")
    found_in = {"left_only": "missing", "both": "present", "right_only": "extra"}
    rows = rows.set_index("filename").assign(
        status=lambda table: table["status"].astype(str).map(found_in), width=np.nan, height=np.nan, reason=""
    )
    for name, _, array, reason in decode.decode_known(
        source, found.images, progress=progress, label="Verify"
    ):
        if array is None:
            rows.loc[name, ["status", "reason"]] = ["unreadable", reason]
        else:
            rows.loc[name, ["height", "width"]] = array.shape[:2]
    return Verification(rows.reset_index(), found)


def audit_splits(
    images: pd.DataFrame,
    split: str | None = None,
    cache: PixelCache | None = None,
    *,
    folds: int = 5,
    seed: int = 0,
) -> list[dict]:
    """Find who leaks into whose test set.

    Parameters
    ----------
    images : DataFrame
        Filename, class, subtype, slide, case, magnification (and fold_1..fold_5 for ``official``).
    split : str, optional
        A protocol, a list by its name, or a CSV with filename, role and perhaps fold. By default all
        protocols that the images allow.
    cache : cache.PixelCache, optional
        Of these images, which are then compared pixel by pixel too.

    Returns
    -------
    list of dict
        A row a fold, plain values for JSON: split, the columns of `splits.split_overlap`; of a list and a CSV
        also ``counts`` and ``cases`` (see `published_splits.count_overlap` and `count_test_cases`), of a list
        ``coverage`` (how many of its images are here); with a cache near_duplicates (test, training,
        correlation).

    Raises
    ------
    InputError
        If the split cannot be made or read, or the images allow none.

    Examples
    --------
    >>> rows = audit_splits(breakhis.known_images(), "magnification")
    >>> audit_lines(rows)[0][:47]
    'magnification, fold 0: 82 of 82 test slides and'
    """
    found = None
    if cache is not None:
        from bcdlib.data import near_duplicates  # SciPy, which is slow to import

        found = near_duplicates.near_duplicates(cache)
    listed, rows = split in published_splits.list_names(), []
    for name in [split] if split else splits.PROTOCOLS:
        try:
            if _is_csv(name):
                table = splits.read_split_table(name, images)
            elif split:  # folds that were asked for by name are made or refused
                table = splits.make_split(images, name, folds, validation=0, seed=seed)
            else:  # among all protocols of few images, what is possible
                table, _ = splits.make_feasible_split(images, name, folds, seed=seed)
        except InputError:
            if split:
                raise
            continue  # among all protocols, one that these images do not allow is left out
        overlap = splits.split_overlap(table, images).to_dict("records")
        if found is not None:
            alike = near_duplicates.across_split(found, table)
            for row in overlap:
                pairs = alike.loc[alike["fold"] == row["fold"], ["test", "training", "correlation"]]
                row["near_duplicates"] = pairs.to_dict("records")
        if listed or _is_csv(name):
            for row, (_, part) in zip(overlap, splits.folds_of(table)):
                row["counts"] = published_splits.count_overlap(part, images)
                row["cases"] = published_splits.count_test_cases(part, images)
        more = {"coverage": published_splits.coverage_text(name, images)} if listed else {}
        rows += [{"split": name} | more | row for row in overlap]
    if not rows:
        raise InputError(f"these {len(images)} images allow no split; use more images")
    return rows


def _is_csv(name: str) -> bool:
    return name.lower().endswith((".csv", ".csv.gz"))


def audit_lines(rows: list[dict]) -> list[str]:
    """Write the rows of `audit_splits` as lines, with the first near-duplicates of each fold."""
    lines, first = [], rows[0]
    if "coverage" in first:
        lines += [published_splits.source_line(first["split"]), first["coverage"]]
    for row in rows:
        lines.append(f"{row['split']}, fold {row['fold']}: {splits.overlap_line(row)}")
        if "counts" in row:
            lines.append(f"  {published_splits.counts_line(row['counts'])}")
            cases = ", ".join(f"{name} {count}" for name, count in row["cases"].items())
            lines.append(f"  test cases: {cases}")
        pairs = row.get("near_duplicates", [])
        lines += [
            f"  near-duplicate ({pair['correlation']:.3f}): test {pair['test']}, training {pair['training']}"
            for pair in pairs[:5]
        ]
        if len(pairs) > 5:
            lines.append(f"  near-duplicates: and {len(pairs) - 5} more test images")
    if "counts" in first and "coverage" not in first:  # a split of the user's own
        leaks = {key: sum(row["counts"][key] for row in rows) for key in ("slide_leak", "case_leak_trainval")}
        lines.append(published_splits.kept_apart_text(leaks))
    return lines
