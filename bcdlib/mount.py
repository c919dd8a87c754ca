"""01_mount: open the run folder (on Google Drive in Colab), find or fetch the data set, count its images."""

import hashlib
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from bcdlib.data import breakhis, custom, sources
from bcdlib.data.download import ARCHIVE_URL, KAGGLE_DATASET, download_archive, find_kaggle_copy
from bcdlib.errors import InputError, check_seed
from bcdlib.errors import split_words as split_words  # for notebooks, as is the next
from bcdlib.runs import lesson
from bcdlib.runs.environment import check_backend
from bcdlib.runs.files import make_cache_folder, read_json, write_json
from bcdlib.runs.folder import Run, open_run_folder
from bcdlib.runs.lesson import record_guess as record_guess
from bcdlib.runs.places import (
    cache_root,
    content_folder,
    drive_folder,
    home_folder,
    in_colab,
    mount_drive,
    name_only,
    shipped,
    uses_drive,
)
from bcdlib.runs.profiles import get_profile as get_profile

DRAWN_OR_FETCHED = ("synthetic", "kaggle")  # data that are no path


def open_run(out=None, data="synthetic", profile: str = "demo") -> Run:
    """Open a run folder, on Google Drive in Colab; create it if need be.

    Parameters
    ----------
    out : str or path-like, optional
        The folder; by default ``<home>/<data>-<profile>``, where <data> has no archive suffix.
    data, profile : str
        What the default name is made of.

    Raises
    ------
    InputError
        If Drive cannot be mounted, or the folder cannot be written to or holds files of somebody else's (see
        `Run.claim`).
    """
    check_backend()
    mount_drive()
    run = open_run_folder(out or _default_folder(data, profile))
    run.claim()
    return run


def _run_name(data, profile: str) -> str:
    name = os.path.basename(os.path.abspath(os.path.expanduser(str(data) or "BreaKHis_v1")))
    known = (*sources.ARCHIVE_SUFFIXES, ".csv", ".csv.gz")
    suffix = next((end for end in known if name.lower().endswith(end)), "")
    stem = name[: len(name) - len(suffix)] or "data"
    return f"{stem}-{profile}"


def _default_folder(data, profile: str) -> Path:
    """Name the default run folder; if it holds a run of another place of that name, the next one."""
    name = _run_name(data, profile)
    for number in itertools.count(1):
        folder = home_folder() / (name if number == 1 else f"{name}-{number}")
        if not (settings := Run(folder).recorded()):
            return folder
        if str(data) in ("", *DRAWN_OR_FETCHED, settings.get("asked")) or "source" not in settings:
            same = str(data) in (settings.get("data", str(data)), settings.get("asked"))
        else:
            same = str(_here_or_on_drive(data).absolute()) == settings["source"]
        if same:
            return folder


def reopen_run(out=None, data="synthetic", profile: str = "demo", *, seed: int = 0, predictions="") -> Run:
    """Open the run folder that 01_mount made, and hold this notebook's parameters against that one's.

    Parameters
    ----------
    out, data, profile
        As in `open_run`; after a download in 01_mount the same as there.
    seed : int
    predictions : str or path-like
        A predictions table made elsewhere, which needs no data set: nothing is compared then, and the folder
        is created if need be.

    Raises
    ------
    InputError
        If 01_mount has not run, or ran with other parameters: the message says what to change.
    """
    if str(predictions):
        return open_run(out, data, profile)
    check_backend()
    mount_drive()
    name = _run_name(data, profile)
    run = Run(Path(out or _fetched().get(name) or _default_folder(data, profile)).expanduser().absolute())
    settings = run.settings
    for key, given in {"data": str(data), "profile": profile, "seed": seed}.items():
        if settings.get(key) is None:
            raise InputError(
                f"{run.folder}: was made by an older bcdlib; run 01_mount with this run folder again"
            )
        if not _means(key, given, settings):
            raise InputError(
                f"{run.folder}: made with {key} = {settings[key]!r}, and this notebook has {given!r}; set "
                f"{key} = {settings[key]!r} here, or run 01_mount with {key} = {given!r}"
            )
    print(f"Run folder {run.folder}, data {settings['source']}")
    return run


def _means(key: str, given, settings: dict) -> bool:
    """Whether a parameter is what 01_mount had: for data also another way to name the same place."""
    if key != "data":
        return given == settings[key]
    return given in (settings["data"], settings.get("asked")) or (
        given not in DRAWN_OR_FETCHED and str(_here_or_on_drive(given).absolute()) == settings.get("source")
    )


def _fetched() -> dict[str, str]:
    """Run folders of data that 01_mount has downloaded, by the names that they would have without."""
    try:
        return read_json(home_folder() / "fetched.json")
    except (OSError, ValueError):
        return {}


def _note_fetched(run: Run, asked, data, profile: str) -> None:
    known = {name: folder for name, folder in _fetched().items() if name != _run_name(asked, profile)}
    if str(asked) != str(data):
        known[_run_name(asked, profile)] = str(run.folder)
    if known != _fetched():
        write_json(home_folder() / "fetched.json", known)


def find_data(data="synthetic", *, seed: int = 0, progress: bool = True) -> sources.Source:
    """Open the data set.

    Parameters
    ----------
    data : str or path-like
        ``"synthetic"``: the embedded data set, drawn if it does not exist yet. ``"kaggle"``: BreakHis from
        Kaggle (see `download.find_kaggle_copy`). ``""``: a folder or archive named like BreaKHis_v1*,
        searched for in the likely places. Otherwise a folder or archive; in Colab also relative to
        ``MyDrive``.
    seed : int
        Of the synthetic data set.
    progress : bool
        Show a progress bar while drawing.

    Raises
    ------
    InputError
        If nothing is found, or it is neither a folder with content nor an archive.
    """
    if str(data) == "synthetic":
        from bcdlib.data import synthetic  # needs OpenCV and SciPy, which are slow to import

        # in Colab on the local disk: hundreds of small files are slow on a mounted Drive
        folder = (
            Path(tempfile.gettempdir(), f"bcdlib-synthetic-{seed}")
            if in_colab()
            else make_cache_folder(cache_root()) / f"synthetic-{seed}"
        )
        return sources.open_source(synthetic.draw_dataset(folder, seed=seed, progress=progress))
    if str(data) == "kaggle":
        return sources.open_source(find_kaggle_copy())
    return sources.open_source(_here_or_on_drive(data) if str(data) else _search(), cache_root() / "listings")


def _here_or_on_drive(place) -> Path:
    path = Path(place).expanduser()
    if in_colab() and not path.exists():
        if uses_drive():
            mount_drive()
        on_drive = drive_folder() / "MyDrive" / path
        return on_drive if on_drive.exists() else path
    return path


def _search() -> Path:
    mine = drive_folder() / "MyDrive"
    if mount_drive() and uses_drive():
        places = [mine, mine / "BCDataset", mine / "bcdlib"]
    else:
        places = [Path.cwd(), Path.cwd() / "data", *([content_folder(), home_folder()] if in_colab() else [])]
    for place in places:
        found = [path for path in place.glob("*") if _looks_like_breakhis(path)]
        if found:
            # an archive first: Drive reads one file faster than 7909, and it is never half unpacked
            return min(found, key=lambda path: (path.is_dir(), path.name))
    raise InputError(
        f"no folder or archive named like BreaKHis_v1* in {', '.join(map(str, places))}; "
        "point --data at a copy, fetch it, or use 'synthetic'"
    )


def _looks_like_breakhis(path: Path) -> bool:
    name = path.name.lower()
    if path.is_dir():  # neither empty nor the folder of a run
        return (
            name.startswith("breakhis_v1") and any(path.iterdir()) and not (path / "settings.json").exists()
        )
    return name.startswith("breakhis_v1") and name.endswith(sources.ARCHIVE_SUFFIXES)


def find_manifest(data, manifest) -> str:
    """Find and check the manifest that names the images in `data`, if they are not BreakHis's.

    Parameters
    ----------
    data : str or path-like
        Folder or archive of those images.
    manifest : str or path-like
        CSV file (see `custom.read_manifest`); in Colab also relative to ``MyDrive``. Empty: none.

    Returns
    -------
    str
        Absolute path of the manifest; empty if there is none.

    Raises
    ------
    InputError
        If `data` names no images of the user's own, or the manifest cannot be used.
    """
    if not str(manifest):
        return ""
    if str(data) in ("", *DRAWN_OR_FETCHED):
        raise InputError(
            f"{manifest}: a manifest names images of your own; give their folder or archive too (--data DIR)"
        )
    path = _here_or_on_drive(manifest).absolute()
    custom.read_manifest(path)  # before an archive is listed, which may take long
    return str(path)


def start_run(
    run: Run,
    data="synthetic",
    *,
    asked=None,
    manifest="",
    profile: str = "demo",
    seed: int = 0,
    progress: bool = True,
) -> breakhis.Scan | custom.CustomScan:
    """Find the data set and list its images; record both in the run's ``images.csv`` and ``settings.json``.

    Files that look like images but cannot be used go into ``left_out.csv`` (path, reason). If the run folder
    holds results of other data, another profile or seed, they are removed (see `Run.drop_results`).

    Parameters
    ----------
    run : Run
    data : str or path-like
        See `find_data`.
    asked : str or path-like, optional
        What the notebook's parameter says, where `data` was downloaded in its place: later notebooks find the
        run by it.
    profile : str
        Recorded for later notebooks, as are `data` and `seed`.
    manifest : str or path-like
        For images that are not BreakHis's: the CSV that names them (see `custom.read_manifest`).
    seed : int
        Of the synthetic data set.
    progress : bool
        Show a progress bar while drawing.

    Returns
    -------
    breakhis.Scan, or custom.CustomScan with `manifest`
        Its ``images`` have one row per image.

    Raises
    ------
    InputError
        If there is no such data set, or no image in it, or `manifest` cannot be used.
    """
    manifest = find_manifest(data, manifest)
    check_seed(seed)
    source = find_data(data, seed=seed, progress=progress)
    scan = custom.scan_custom(manifest, source) if manifest else breakhis.scan_breakhis(source)
    if str(data) == "kaggle":
        print(_kaggle_text(source, scan.images))
    facts = source.fingerprint() + scan.images.to_csv(index=False)
    made_from = {
        "listing": hashlib.sha256(facts.encode()).hexdigest()[:16],
        "profile": profile,
        "data_seed": seed,
    }
    known = run.recorded()
    if known and any(known.get(key) != value for key, value in made_from.items()):
        write_json(run.folder / "settings.json", {"data": str(data)})  # until all is written, there is no run
        run.drop_results(keep=("01_mount.ipynb",))
    elif "cache" in known and known.get("modified") != source.modified():
        # of the same names and sizes, but perhaps not the same: 02_preprocess finds out
        known["previous"] = known.pop("cache")
        write_json(run.folder / "settings.json", {k: v for k, v in known.items() if k != "fingerprint"})
    for note in getattr(scan, "notes", ()):
        print(f"Note: {note}", flush=True)
    run.write_csv("left_out.csv", pd.DataFrame(scan.reasons, columns=["path", "reason"]))
    run.write_csv("images.csv", scan.images)
    run.record(
        data=str(data),
        asked=str(data if asked is None else asked),
        seed=seed,
        source=str(source.path.absolute()),
        partial=scan.partial,
        manifest=manifest,
        modified=source.modified(),
        **made_from,
    )
    _note_fetched(run, data if asked is None else asked, data, profile)
    return scan


def _kaggle_text(source: sources.Source, images: pd.DataFrame) -> str:
    """Say what of BreakHis a copy from Kaggle has, as far as names and sizes tell."""
    names = breakhis.known_images()["filename"]
    missing = names[~names.isin(images["filename"])]
    empty = [path for path in images["path"] if not (source.path / path).stat().st_size]
    faults = [f"; {len(missing)} are missing, the first is {missing.iloc[0]}"] if len(missing) else []
    faults += [f"; {len(empty)} are empty, the first is {empty[0]}"] if empty else []
    advice = f'; kagglehub.dataset_download("{KAGGLE_DATASET}", force_download=True) fetches all again'
    return (
        f"Kaggle's copy has {len(names) - len(missing)} of BreakHis's {len(names)} images"
        f"{''.join(faults)}{advice if faults else ''} (compared: their names, and that none is empty; "
        "02_preprocess decodes each)"
    )


def open_data(run: Run) -> sources.Source:
    """Reopen the data set that `start_run` recorded; a synthetic one is drawn again if it is gone.

    Raises
    ------
    InputError
        If `start_run` has not been here, or the data set is no longer where it was.
    """
    settings = run.settings
    if "source" not in settings:
        raise InputError(f"{run.folder}: its settings name no data set; run 01_mount with this run first")
    place = settings["data"] if settings["data"] in DRAWN_OR_FETCHED else settings["source"]
    return find_data(place, seed=settings.get("data_seed", 0))


def overview(run: Run, scan: breakhis.Scan | custom.CustomScan) -> pd.DataFrame:
    """Summarize what was found.

    Parameters
    ----------
    run : Run
    scan : breakhis.Scan or custom.CustomScan
        From `start_run`.

    Returns
    -------
    pandas.DataFrame
        One row a fact, in the single column ``found`` (int; str for source, manifest and extent).
    """
    rows = {"source": name_only(run.settings["source"])}
    if isinstance(scan, custom.CustomScan):
        rows |= {"manifest": name_only(run.settings["manifest"]), **custom.custom_overview(scan)}
    else:
        names = breakhis.known_images()["filename"]
        present = int(names.isin(scan.images["filename"]).sum())
        rows |= {
            "images": len(scan.images),
            "slides": breakhis.count_slide_folders(scan.images),
            "cases": int(scan.images["case"].nunique()),
            f"present of BreakHis's {len(names)}": present,
            "duplicates left out": len(scan.duplicates),
            "other image names left out": len(scan.not_breakhis),
            "left out for another reason": len(scan.reasons) - len(scan.not_breakhis) - len(scan.duplicates),
            "BreakHis is": ("partial" if present else "not here") if scan.partial else "complete",
        }
    return pd.DataFrame({"found": pd.Series(rows, dtype=object)})


def count_images(images: pd.DataFrame) -> pd.DataFrame:
    """Count images by class and magnification.

    Parameters
    ----------
    images : pandas.DataFrame
        With class and magnification.

    Returns
    -------
    pandas.DataFrame of int
        Rows (``class``) benign, malignant, total. For BreakHis and drawn tissue Table I of the paper: columns
        ("counted", 40 ... "total"), then ("printed", 40 ... "total"). For other images see
        `custom.count_custom`.
    """
    if not breakhis.is_breakhis(images):
        return custom.count_custom(images).rename_axis("class")
    counted = {"counted": breakhis.count_table_i(images), "printed": breakhis.TABLE_I_PRINTED}
    return pd.concat(counted, axis=1).rename_axis("class")


def counts_remark(run: Run) -> str:
    """Return what to know about `count_images`, as Markdown."""
    if not run.settings.get("manifest"):
        return (
            "Table I as counted here, beside what the paper prints. The paper prints 652 benign images at "
            "40X; its own totals (1995 images at 40X, 2480 benign images) and the data set say 625."
        )
    unknown = (run.images()["magnification"] == 0).sum()
    return (
        "These images are not BreakHis's. What the manifest calls a group is called a case in all that "
        "follows." + (f" The magnification of {unknown} images is not known." if unknown else "")
    )


def references(run: Run) -> str:
    """Return the source and licence of BreakHis, as Markdown; empty for images of the user's own."""
    if run.settings.get("manifest"):
        return ""
    return (
        "- F. A. Spanhol, L. S. Oliveira, C. Petitjean, L. Heutte, *A Dataset for Breast Cancer "
        "Histopathological Image Classification*, IEEE TBME 63(7), 2016. Licence of the images: CC BY 4.0."
    )


def download(url: str = ARCHIVE_URL) -> str:
    """Download the official archive of BreakHis (about 4 GB) into the home folder; return its path.

    See `download.download_archive`: a download that broke off is resumed.
    """
    return str(download_archive(home_folder(), url))


def findings(run: Run) -> str:
    """Say in three lines what 01_mount found, as Markdown."""
    images = run.images()
    share = images["class"].value_counts(normalize=True)
    return lesson.findings_text(
        [
            f"{len(images)} images, but only {breakhis.count_slide_folders(images)} slides of "
            f"{images['case'].nunique()} cases: what can be said about the "
            "next patient depends on the number of cases.",
            f"{100 * share.iloc[0]:.1f} % of the images are {share.index[0]}: whoever always says so is "
            "right that often.",
            "Some cases have more than one slide: a split that keeps slides apart may still have such a "
            "case in training and in test."
            if _several_slides(images)
            else "No case has more than one slide: a split that keeps slides apart keeps cases apart.",
        ]
    )


def check_exercise(run: Run, answer: float | None) -> str:
    """Check the exercise of 01_mount: the number of cases with more than one slide."""
    return lesson.check_answer(
        answer,
        _several_slides(run.images()),
        lesson="A split that only keeps slides apart may have these cases in training and in test.",
    )


def _several_slides(images: pd.DataFrame) -> int:
    return int((images.groupby("case")["slide"].nunique() > 1).sum())


def run_others(run: Run, weights: str = "") -> None:
    """Run the other five notebooks on this machine, and write the report.

    For accounts that may open one notebook at a time. Their parameters are those of 01_mount; all others are
    the notebooks' own.

    Parameters
    ----------
    run : Run
        After `start_run`.
    weights : str
        As in the notebooks.

    Raises
    ------
    InputError
        If one of them ends with an error, which stands in what was printed.
    """
    settings = run.settings
    stages = sorted(file.stem for file in shipped("notebooks").glob("0[2-6]_*.ipynb"))
    command = [sys.executable, "-m", "bcdlib", "run", "--out", str(run.folder), "--data", settings["data"]]
    command += ["--profile", settings["profile"], "--seed", str(settings["seed"])]
    command += [*(["--weights", weights] if weights else []), *(f"--only={stage}" for stage in stages)]
    paths = [str(Path(__file__).resolve().parent.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    ) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
    if process.returncode:
        raise InputError(f"{run.folder}: not all of the notebooks ended well; the last lines above say why")
