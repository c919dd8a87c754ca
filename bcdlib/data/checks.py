"""What came in and what did not: every image that was left out, by name with the reason, and pictures that look wrong."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from bcdlib.data import breakhis
from bcdlib.data.cache import PixelCache
from bcdlib.data.decode import decode_all
from bcdlib.errors import InputError, printable
from bcdlib.runs.folder import Run

COLUMNS = ["path", "outcome", "reason"]
LEFT_OUT, USED = "left out", "used"
TWO_CLASSES = "the same picture is also filed as the other class, "  # how this reason begins
TWO_SUBTYPES = "the same picture is also filed as another subtype, "
_PRINTED = 10


def examine_images(run: Run, source, cache: PixelCache) -> pd.DataFrame:
    """All images that were left out or look wrong.

    Parameters
    ----------
    run : whose ``left_out.csv`` 01_mount wrote
    source : sources.Source
    cache : the cached images of the run

    Returns
    -------
    DataFrame: path (inside the data), outcome ("left out" or "used"), reason. Sorted by outcome and path.
    """
    by_name = run.read_csv("left_out.csv", "01_mount") if (run.folder / "left_out.csv").is_file() else []
    rows = [(row.path, LEFT_OUT, row.reason) for row in by_name.itertuples()] if len(by_name) else []
    rows = _with_copies_compared(rows, source, cache)
    paths = dict(run.images()[["filename", "path"]].itertuples(index=False))
    rows += [
        (paths.get(row.filename, row.filename), LEFT_OUT, row.reason) for row in cache.skipped.itertuples()
    ]
    rows += [(paths.get(name, name), USED, reason) for name, reason in same_images(cache)]
    return pd.DataFrame(sorted(rows, key=lambda row: (row[1], row[0])), columns=COLUMNS)


def _with_copies_compared(rows: list, source, cache: PixelCache) -> list:
    """Second copies of a name, told whether they show the same picture: if not, nobody knows which is the right one."""
    copies = {
        path: path.rsplit("/", 1)[-1] for path, _, reason in rows if reason.startswith(breakhis.SECOND_COPY)
    }
    images = pd.DataFrame({"filename": list(copies), "path": list(copies)})
    known = set(cache.images["filename"])
    verdicts = {}
    for path, array, reason in decode_all(source, images, cache.size, progress=False) if copies else ():
        if array is None:
            verdicts[path] = f"; {reason}"
        elif copies[path] in known:
            same = np.array_equal(array, cache.pixels[cache.rows([copies[path]])[0]])
            verdicts[path] = ": the same picture" if same else ": ANOTHER picture; remove the wrong one"
        else:
            verdicts[path] = " and cannot be decoded; remove that one, and this copy will be used"
    return [(path, outcome, reason + verdicts.get(path, "")) for path, outcome, reason in rows]


def same_images(cache: PixelCache) -> list[tuple[str, str]]:
    """(filename, reason) of pictures that are equal, pixel by pixel at the cache's size, to one with another label.

    Both are used: BreakHis itself files some pictures of slide 14-13412 under two subtypes.
    """
    digests = pd.Series([hashlib.sha256(np.ascontiguousarray(picture)).digest() for picture in cache.pixels])
    several = digests.duplicated(keep=False).to_numpy()
    found = []
    for _, same in cache.images[several].groupby(digests[several].to_numpy(), sort=False):
        # of each label the first picture is named
        firsts = [same.drop_duplicates(fact)[[fact, "filename"]].to_numpy() for fact in ("class", "subtype")]
        for row in same.to_dict("records") if any(len(first) > 1 for first in firsts) else ():
            other = [
                next((name for label, name in first if label != row[fact]), None)
                for fact, first in zip(("class", "subtype"), firsts)
            ]
            found.append((row["filename"], TWO_CLASSES + other[0] if other[0] else TWO_SUBTYPES + other[1]))
    return found


def left_out_lines(found: pd.DataFrame, cache: PixelCache, run: Run) -> str:
    """The end of preprocessing as text: how many images are used, how many not, and the first of each with the reason."""
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
    """Raise InputError if an image was left out, or one picture stands under both classes."""
    bad = found[(found["outcome"] == LEFT_OUT) | found["reason"].str.startswith(TWO_CLASSES)]
    if len(bad):
        first = bad.iloc[0]
        raise InputError(
            f"{first['path']}: {first['reason']} ({len(bad)} such images, all in "
            f"{run.folder / 'tables' / 'intake.csv'}); mend or remove them, or run without strict"
        )


@dataclass
class Verification:
    """A source against the manifest. `images` has the manifest's and the extra rows with status, width and height.

    ``reasons`` is as in `Scan`.
    """

    path: str
    images: pd.DataFrame
    not_breakhis: list[str]
    duplicates: list[str]
    reasons: list[tuple[str, str]] = field(default_factory=list)

    def names(self, status: str) -> list[str]:
        """File names with this status: present, missing, extra or unreadable."""
        return self.images.loc[self.images["status"] == status, "filename"].tolist()

    @property
    def wrong_size(self) -> pd.DataFrame:
        """Readable images that are not 700x460: filename, width, height."""
        odd = self.images["width"].notna() & (
            (self.images["width"] != breakhis.SIZE[0]) | (self.images["height"] != breakhis.SIZE[1])
        )
        return self.images.loc[odd, ["filename", "width", "height"]].astype({"width": int, "height": int})

    @property
    def partial(self) -> bool:
        """True if an image of BreakHis is missing or unreadable."""
        known = self.images["filename"].isin(breakhis.known_images()["filename"])
        return bool(self.images.loc[known, "status"].isin(["missing", "unreadable"]).any())

    def counts(self) -> pd.DataFrame:
        """Number of images by class and magnification (rows) and status (columns)."""
        table = pd.crosstab([self.images["class"], self.images["magnification"]], self.images["status"])
        return table.reindex(columns=["present", "missing", "extra", "unreadable"], fill_value=0)

    def summary(self) -> dict[str, int]:
        """Totals: present, missing, extra, unreadable, wrong_size, not_breakhis, duplicates."""
        status = self.images["status"].value_counts()
        totals = {key: int(status.get(key, 0)) for key in ("present", "missing", "extra", "unreadable")}
        return totals | {
            "wrong_size": len(self.wrong_size),
            "not_breakhis": len(self.not_breakhis),
            "duplicates": len(self.duplicates),
        }


def verify_copy(source, progress: bool = True) -> Verification:
    """Read and decode every image of a `sources.Source` and hold it against data_manifest.csv.

    Statuses: ``present`` (in the manifest, decodes), ``missing``, ``unreadable`` (does not decode),
    ``extra`` (a BreakHis name that the manifest does not have; damaged ones are ``unreadable`` too). Sizes other than
    700x460 are told apart by `Verification.wrong_size`; they do not make an image unusable.

    Raises
    ------
    InputError
        If not one BreakHis image is found.
    """
    from bcdlib.data import decode  # here, not above: names alone must work without an image library

    found = breakhis.scan_breakhis(source)
    rows = breakhis.known_images()[breakhis.IMAGE_COLUMNS].assign(status="missing")
    extra = found.images[~found.images["filename"].isin(rows["filename"])]
    rows = pd.concat([rows, extra[breakhis.IMAGE_COLUMNS].assign(status="extra")], ignore_index=True)
    rows = rows.set_index("filename")
    rows["width"] = rows["height"] = float("nan")
    rows["reason"] = ""
    for name, array, reason in decode.decode_all(source, found.images, progress=progress, label="Verify"):
        if array is None:
            rows.loc[name, ["status", "reason"]] = ["unreadable", reason]
            continue
        rows.loc[name, ["height", "width"]] = array.shape[:2]
        if rows.at[name, "status"] == "missing":
            rows.at[name, "status"] = "present"
    return Verification(
        str(source.path), rows.reset_index(), found.not_breakhis, found.duplicates, found.reasons
    )
