"""What a saved model can say about one picture: class, map, calibrated probability, and whether it knows such pictures.

All models are plain Keras files; a model that lies in a trial's folder also has its calibration (``locked.csv`` of the
run) and, once they were asked for, its training images' features (see `ood.save_reference`).
"""

import html
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bcdlib.data import cache, custom, splits
from bcdlib.data.cache import run_cache
from bcdlib.errors import InputError
from bcdlib.evaluation import thresholds
from bcdlib.explain import gradcam, models, ood
from bcdlib.methods._saved import SavedMethod
from bcdlib.plots import style
from bcdlib.runs.folder import MODEL, TRIAL_COLUMNS, Run, has_cache, trial_folder

SHOWN = 4  # nearest training images in a figure


@dataclass(frozen=True)
class Explanation:
    """What a saved model says about one picture.

    Attributes
    ----------
    label : "benign" or "malignant", at probability 0.5; empty if there was no model to ask
    probability : of malignant, 0..1
    calibrated : the same after the calibration that the trial's validation part gave, or None if there is none
    warning : a sentence if the picture is unlike the training images, else empty
    nearest : DataFrame filename, slide, case, class, distance (0..2) of the nearest training images, nearest first;
        empty if they are not known
    figure : matplotlib Figure: the picture, the map of what speaks for the class, the nearest training images
    """

    label: str
    probability: float
    calibrated: float | None
    warning: str
    nearest: pd.DataFrame
    figure: object

    @property
    def line(self) -> str:
        """All of it but pictures, as Markdown."""
        if not self.label:
            return html.escape(self.warning, quote=False)  # it names a file
        calibrated = "" if self.calibrated is None else f", calibrated {self.calibrated:.2f}"
        warning = f"\n\n**{html.escape(self.warning, quote=False)}**" if self.warning else ""
        return (
            f"Called **{self.label}**: probability of malignant {self.probability:.2f}{calibrated}.{warning}\n\n"
            "For research and teaching, not a medical device."
        )


def read_image(model: SavedMethod, content: bytes) -> np.ndarray:
    """A picture as the model takes it; uint8 (height, width, 3). Raises ValueError if it cannot be decoded."""
    return cache.decode(content, model.size)


def explain_image(model_file, picture, run: Run | None = None) -> Explanation:
    """Ask a saved model about one picture.

    Parameters
    ----------
    model_file : path of a .keras file
    picture : path of a PNG, JPEG, TIFF or BMP file, or its bytes
    run : the run that trained the model; with it, the features of the training images are computed if they are not
        stored yet. Default: the run in whose folder the model lies, if it lies in one, with what is stored there.

    Raises
    ------
    InputError
        If model or picture cannot be read.
    """
    model = models.load_model(model_file)
    try:
        content = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        shown = read_image(model, content)
    except (OSError, ValueError) as error:
        name = "the picture" if isinstance(picture, bytes) else picture
        raise InputError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    return _explain(model, Path(model_file), shown, run)


def explain_own_image(run: Run, table: pd.DataFrame, picture: str = "", *, seed: int = 0) -> Explanation:
    """`explain` with the run's model of the strictest protocol.

    Parameters
    ----------
    table : predictions table of the run
    picture : path of a picture; empty means an image of that model's test part, by `seed`

    Returns
    -------
    Explanation; without a model in this run its ``warning`` and its figure say so.
    """
    strictness = {name: place for place, name in enumerate(splits.STRICTEST)}
    names = sorted(dict.fromkeys(table["split"]), key=lambda name: strictness.get(name, len(strictness)))
    for name in names:
        part = table[table["split"] == name]
        folder = trial_folder(run, part.iloc[0])
        if folder is None:
            continue
        if picture:
            return explain_image(folder / MODEL, picture, run)
        model = models.load_model(folder / MODEL)
        cache = models.model_cache(model, run_cache(run))
        if cache is None:
            continue
        row = part.iloc[int(np.random.default_rng(seed).integers(len(part)))]
        return _explain(
            model, folder / MODEL, cache.pixels[cache.rows([row["filename"]])[0]], run, models.true_class(row)
        )
    text = "This run has no saved model of these predictions, so there is nothing to ask about a picture."
    return Explanation("", float("nan"), None, text, _nearest_table(None, None)[0], style.note_figure(text))


def trial_reference(
    model_file, run: Run | None = None, model: SavedMethod | None = None
) -> ood.OODReference | None:
    """What is stored beside a model, else, with the run that trained it, computed now and stored; None if neither."""
    folder = Path(model_file).parent
    found = ood.load_reference(folder)
    if found is not None or run is None or not (folder / "trial.json").is_file() or not has_cache(run):
        return found
    facts, model = json.loads((folder / "trial.json").read_text()), model or models.load_model(model_file)
    cache = models.model_cache(model, run_cache(run))
    split = run.folder / "splits" / f"{facts['split']}.csv"
    if not split.is_file():
        return None
    part = splits.fold_of(pd.read_csv(split), facts["fold"])
    counts = {role: int((part["role"] == role).sum()) for role in splits.ROLES}
    if cache is None or counts != facts["images"]:
        return None  # preprocessed anew since: these are no longer the images that it was trained on
    points, images = {}, {}
    for role in ("train", "validation"):
        rows = cache.rows(part.loc[part["role"] == role, "filename"])
        columns = ["filename", "slide", "case", "class", "magnification", "subtype"]
        images[role] = cache.images.iloc[rows][columns].reset_index(drop=True)
        points[role] = (
            ood.reference_points(model.network, model.stained(cache.pixels[rows])) if len(rows) else None
        )
    found = ood.build_reference(
        points["train"], images["train"], points["validation"], validation_images=images["validation"]
    )
    ood.save_reference(folder, found)
    return ood.load_reference(folder)  # rounded as stored: the same answer now and later


def explain_predictions(model_file, model: SavedMethod, X, *, probability) -> dict[str, list]:
    """What lies beside a model says about N pictures: calibrated, warning, nearest (lists of N), those that can be had."""
    columns, fit = {}, _calibration(Path(model_file).parent, None)
    if fit is not None:
        columns["calibrated"] = thresholds.calibrate(probability, *fit).tolist()
    known = ood.load_reference(Path(model_file).parent)
    if known is not None:
        queries = ood.reference_points(model.network, model.stained(X))
        columns["warning"] = known.warnings(queries)
        columns["nearest"] = known.images["filename"].iloc[known.nearest(queries, 1)[1][:, 0]].tolist()
    return columns


def _calibration(folder: Path, run: Run | None) -> tuple[float, float] | None:
    """Slope and intercept that the run locked for the trial in this folder, if it did."""
    locked = (run.folder if run else folder.parent.parent) / "locked.csv"
    if not (folder / "trial.json").is_file() or not locked.is_file():
        return None
    facts, table = json.loads((folder / "trial.json").read_text()), pd.read_csv(locked)
    mine = table[(table[TRIAL_COLUMNS] == [facts[name] for name in TRIAL_COLUMNS]).all(axis=1)]
    return None if mine.empty else (float(mine["slope"].iloc[0]), float(mine["intercept"].iloc[0]))


def _explain(model, model_file: Path, shown: np.ndarray, run: Run | None, truth: str = "") -> Explanation:
    X = shown[None]
    probability = float(models.predict_images(model, X)[0])
    label = models.predicted_class(probability)
    fit = _calibration(model_file.parent, run)
    calibrated = None if fit is None else float(thresholds.calibrate([probability], *fit)[0])
    known = trial_reference(model_file, run, model)
    query = None if known is None else ood.reference_points(model.network, model.stained(X))
    warning = "" if known is None else known.warnings(query)[0]
    nearest, captions = _nearest_table(known, query)
    try:
        cam = gradcam.compute_gradcam(model.network, model.stained(X))[0]
    except InputError:  # a network without a feature map still has a class and its probability
        cam = None
    run = run or Run(model_file.parent.parent.parent)
    verdict = _verdict(model_file.parent, probability, calibrated, known, warning)
    pictures = _pictures(run, nearest["filename"][:SHOWN])
    figure = _figure(shown, cam, truth, f"called {label}", verdict, pictures, captions)
    return Explanation(label, probability, calibrated, warning, nearest, figure)


def _nearest_table(known, query) -> tuple[pd.DataFrame, list[str]]:
    if known is None:
        return pd.DataFrame(columns=["filename", "slide", "case", "class", "distance"]), []
    distance, rows = (one[0] for one in known.nearest(query))
    found = known.images.iloc[rows].reset_index(drop=True).assign(distance=distance)
    captions = [
        f"{row['class']} {row['subtype']}, {custom.magnification_label(row['magnification'])}\nslide {row['slide']}"
        f"\ndistance {row['distance']:.2f}"
        for _, row in found.head(SHOWN).iterrows()
    ]
    return found[["filename", "slide", "case", "class", "distance"]], captions


def _verdict(folder: Path, probability, calibrated, known, warning: str) -> str:
    parts = [f"Probability of malignant {probability:.2f}"]
    if calibrated is not None:
        parts[0] += f", calibrated on validation {calibrated:.2f}"
    if (folder / "trial.json").is_file():
        facts = json.loads((folder / "trial.json").read_text())
        parts[0] += f" ({facts['method']}, split {facts['split']})"
    if known is None:
        parts.append(
            "The training images are not known here: whether the picture is like them cannot be said."
        )
    else:
        parts.append(warning or "Like the training images.")
    parts.append("For research and teaching, not a medical device.")
    return "\n\n".join(textwrap.fill(part, 46) for part in parts)


def _figure(shown, cam, truth: str, title: str, verdict: str, pictures, captions):
    figure, axes = style.make_figure(
        2 if captions else 1, SHOWN, width=10, height=4.8 if captions else 2.4, squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    axes[0, 0].imshow(shown)
    axes[0, 0].set_title(truth or "the picture", fontsize=9)
    if cam is not None:
        models.overlay(axes[0, 1], shown, cam)
    axes[0, 1].set_title(title + ("; no map" if cam is None else "\nyellow: what spoke for it"), fontsize=9)
    axes[0, 2].text(0, 1, verdict, fontsize=9, va="top").set_in_layout(
        False
    )  # it may run on over the empty place beside
    for axis, picture, caption in zip(axes[-1], pictures, captions, strict=False):
        if picture is not None:
            axis.imshow(picture)
        axis.set_title(caption, fontsize=8)
    if captions:
        figure.supxlabel("lower row: the nearest training images, by the network's features", fontsize=8)
    return style.finish_figure(figure)


def _pictures(run: Run, names) -> list:
    if not has_cache(run):
        return [None] * len(names)
    cache = run_cache(run)
    known = names.isin(cache.images["filename"])
    return [cache.pixels[cache.rows([name])[0]] if there else None for name, there in zip(names, known)]
