"""01_mount: where data, caches and run folders lie (Google Drive in Colab), and getting the data."""

import os
import tempfile
from pathlib import Path

import pandas as pd

from bcdlib.data import breakhis, custom, sources
from bcdlib.data.download import ARCHIVE_URL, download_archive
from bcdlib.errors import InputError
from bcdlib.runs.files import write_csv
from bcdlib.runs.folder import Run, open_run_folder
from bcdlib.runs.places import cache_root, drive_folder, home_folder, in_colab, mount_drive

# for notebooks, which import verbs only
from bcdlib.runs.profiles import get_profile as get_profile

TABLE_I_REMARK = (
    "The paper prints 652 benign images at 40X; its own totals (1995 images at 40X, 2480 benign images) "
    "and the data set say 625."
)
REFERENCES = (
    "- F. A. Spanhol, L. S. Oliveira, C. Petitjean, L. Heutte, *A Dataset for Breast Cancer Histopathological Image "
    "Classification*, IEEE TBME 63(7), 2016. Licence of the images: CC BY 4.0."
)


def open_run(out=None, data="synthetic", profile="demo") -> Run:
    """Open a run folder, on Google Drive in Colab, and create it if need be.

    Parameters
    ----------
    out : str or path-like, optional
        The folder; by default ``home()/<data>-<profile>``, where <data> has no archive suffix.
    data, profile : str
        What the default name is made of.

    Raises
    ------
    InputError
        If Drive cannot be mounted or the folder cannot be written to.
    """
    mount_drive()
    return open_run_folder(out or home_folder() / f"{_stem(data)}-{profile}")


def _stem(data) -> str:
    if not str(data):
        return "BreaKHis_v1"  # what `find` searches for then
    name = os.path.basename(os.path.abspath(os.path.expanduser(data)))
    for suffix in sources.ARCHIVE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)] or "data"
    return name or "data"


# ---------------------------------------------------------------- the data set


def find_data(data="synthetic", seed=0, progress=True) -> sources.Source:
    """Open the data set.

    Parameters
    ----------
    data : str or path-like
        ``"synthetic"``: the embedded data set, drawn if not there yet. ``""``: a folder or archive named
        like BreaKHis_v1*, searched for in the likely places. Otherwise a folder or archive; in Colab also
        relative to ``MyDrive``.
    seed : int
        Of the synthetic data set.

    Raises
    ------
    InputError
        If nothing is found, or it is neither a folder with content nor an archive.
    """
    if str(data) == "synthetic":
        from bcdlib.data import synthetic  # here, not above: it needs OpenCV and SciPy

        # in Colab on the local disk: hundreds of small files are slow on a mounted Drive
        folder = Path(tempfile.gettempdir(), f"bcdlib-synthetic-{seed}") if in_colab() else None
        folder = folder or cache_root() / f"synthetic-{seed}"
        return sources.open_source(synthetic.draw_dataset(folder, seed=seed, progress=progress))
    if not str(data):
        return _opened(_search())
    return _opened(_here_or_on_drive(data))


def _opened(path) -> sources.Source:
    return sources.open_source(path, cache_root() / "listings")


def _here_or_on_drive(place) -> Path:
    path = Path(place).expanduser()
    if in_colab() and not path.exists():
        mount_drive()
        on_drive = drive_folder() / "MyDrive" / path
        path = on_drive if on_drive.exists() else path
    return path


def find_manifest(data, manifest) -> Path:
    """The table `manifest` that names the images in `data`, a folder or archive that is not BreakHis; see `custom.read_manifest`.

    In Colab both may be relative to ``MyDrive``.

    Raises
    ------
    InputError
        If `data` is not a folder or archive of one's own. (Whether the table is there and good, `custom.read_manifest` checks.)
    """
    if str(data) in ("", "synthetic"):
        raise InputError(
            f"{manifest}: a manifest names images of your own; give their folder or archive too (--data DIR)"
        )
    return _here_or_on_drive(manifest)


def _search() -> Path:
    if mount_drive():
        mine = drive_folder() / "MyDrive"
        places = [mine, mine / "BCDataset", mine / "bcdlib"]
    else:
        places = [Path.cwd(), Path.cwd() / "data"]
    for place in places:
        found = [path for path in (place.iterdir() if place.is_dir() else ()) if _looks_like_breakhis(path)]
        if found:
            # an archive first: Drive reads one file quicker than 7909, and it is never half unpacked
            return min(found, key=lambda path: (path.is_dir(), path.name))
    raise InputError(
        f"no folder or archive named like BreaKHis_v1* in {', '.join(map(str, places))}; "
        "point --data at a copy, fetch it, or use 'synthetic'"
    )


def _looks_like_breakhis(path: Path) -> bool:
    name = path.name.lower()
    if not name.startswith("breakhis_v1"):
        return False
    if path.is_dir():  # an empty folder, or a run's folder, is no data set
        return any(path.iterdir()) and not (path / "settings.json").exists()
    return name.endswith(sources.ARCHIVE_SUFFIXES)


def start_run(
    run: Run, data="synthetic", seed=0, *, progress=True, manifest=""
) -> breakhis.Scan | custom.CustomScan:
    """Find the data set, list its images, record both in the run's ``images.csv`` and ``settings.json``.

    What is called like an image but cannot be one goes into ``left_out.csv`` (path, reason).

    Parameters
    ----------
    manifest : str or path-like
        For images that are not BreakHis's: the CSV that names them (see `custom.read_manifest`).

    Returns
    -------
    breakhis.Scan, or custom.CustomScan with `manifest`
        Its `images` have one row per image.

    Raises
    ------
    InputError
        If there is no such data set or not one BreakHis image in it, or if `manifest` is not such a table.
    """
    manifest = find_manifest(data, manifest).absolute() if manifest else ""
    if manifest:
        custom.read_manifest(manifest)  # before a long listing of an archive
    source = find_data(data, seed=seed, progress=progress)
    scan = custom.scan_custom(manifest, source) if manifest else breakhis.scan_breakhis(source)
    write_csv(run.folder / "left_out.csv", pd.DataFrame(scan.reasons, columns=["path", "reason"]))
    write_csv(run.folder / "images.csv", scan.images)
    run.record(
        data=str(data),
        seed=seed,
        source=str(source.path.absolute()),
        partial=scan.partial,
        manifest=str(manifest),
    )
    return scan


def open_data(run: Run) -> sources.Source:
    """Reopen the data set that `start` recorded; a synthetic one is drawn again if it is gone.

    Raises
    ------
    InputError
        If `start` has not been here, or the data set is no longer where it was.
    """
    settings = run.settings
    if "source" not in settings:
        raise InputError(f"{run.folder}: its settings name no data set; run 01_mount with this run first")
    if settings["data"] == "synthetic":
        return find_data("synthetic", seed=settings["seed"])
    if not Path(settings["source"]).exists():
        mount_drive()  # a new Colab session begins without it
    return _opened(settings["source"])


def overview(run: Run, scan: breakhis.Scan | custom.CustomScan) -> pd.DataFrame:
    """What was found, one line each, in the single column ``found`` (int; str for source, manifest and extent)."""
    images = scan.images
    if isinstance(scan, custom.CustomScan):
        rows = {
            "source": run.settings["source"],
            "manifest": run.settings["manifest"],
            **custom.custom_overview(scan),
        }
        return pd.DataFrame({"found": pd.Series(rows, dtype=object)})
    known = breakhis.known_images()["filename"]
    rows = {
        "source": run.settings["source"],
        "images": len(images),
        "slides": breakhis.count_slide_folders(images),
        "cases": int(images["case"].nunique()),
        f"present of BreakHis's {len(known)}": int(known.isin(images["filename"]).sum()),
        "duplicates left out": len(scan.duplicates),
        "other image names left out": len(scan.not_breakhis),
        "left out for another reason": len(scan.reasons) - len(scan.not_breakhis) - len(scan.duplicates),
        "BreakHis is": "partial" if scan.partial else "complete",
    }
    return pd.DataFrame({"found": pd.Series(rows, dtype=object)})


def table_i_beside_printed(images: pd.DataFrame) -> pd.DataFrame:
    """Table I of the paper, counted in `images` beside what is printed (see TABLE_I_REMARK).

    Returns
    -------
    pandas.DataFrame of int, shape (3, 10)
        Rows benign, malignant, total; columns ("counted", 40 ... "total"), then ("printed", 40 ... "total").
    """
    return pd.concat({"counted": breakhis.count_table_i(images), "printed": breakhis.TABLE_I_PRINTED}, axis=1)


def count_images(images: pd.DataFrame) -> pd.DataFrame:
    """Images by class and magnification: `table_i` for BreakHis and drawn tissue, else `custom.count_custom`."""
    return table_i_beside_printed(images) if breakhis.is_breakhis(images) else custom.count_custom(images)


def counts_remark(run: Run) -> str:
    """Markdown: what to know about `counts`; of images of one's own, what a case is and what is unknown."""
    if not run.settings.get("manifest"):
        return f"Table I as counted here, beside what the paper prints. {TABLE_I_REMARK}"
    images = run.images()
    remark = "These images are not BreakHis's. What the manifest calls a group is called a case in all that follows."
    unknown = int((images["magnification"] == 0).sum())
    return remark + (f" The magnification of {unknown} images is not known." if unknown else "")


def references(run: Run) -> str:
    """Markdown: where BreakHis comes from and its licence; empty if the run's images are one's own."""
    return "" if run.settings.get("manifest") else REFERENCES


def download(url: str = ARCHIVE_URL) -> str:
    """Download the official archive of BreakHis (about 4 GB) into the home folder; see `download_archive`."""
    return str(download_archive(home_folder(), url))
