"""What a saved model says about one image: class, probability, Grad-CAM, out-of-distribution warning.

All models are plain Keras files. Beside a model in a trial's folder lie its threshold and calibration
(``locked.csv``) and, once they were asked for, its training images' features (see `ood.save_reference`).
"""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bcdlib.data import cache, custom, decode, sources, splits
from bcdlib.errors import InputError
from bcdlib.evaluation import metrics, thresholds
from bcdlib.explain import models, ood
from bcdlib.plots import style
from bcdlib.runs.files import read_table
from bcdlib.runs.folder import MODEL, TRIAL_COLUMNS, Run, has_cache, trial_folder
from bcdlib.runs.names import in_markdown

if TYPE_CHECKING:
    from bcdlib.methods import SavedMethod

SHOWN = 4  # nearest training images in a figure
NEAREST_COLUMNS = ["filename", "slide", "case", "class", "distance"]
DISCLAIMER = "For research and teaching, not a medical device."


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a saved model says about one image.

    Attributes
    ----------
    label : str
        "benign" or "malignant", at the threshold; empty if there was no model to ask.
    probability : float
        Of malignant, 0..1.
    calibrated : float or None
        The same after the calibration that the trial's validation part gave, if there is one.
    warning : str
        A sentence if the image is out-of-distribution, else empty.
    nearest : DataFrame
        The nearest training images, nearest first: filename, slide, case, class, distance (0..2); empty if
        they are not known.
    figure : matplotlib Figure
        The image, its Grad-CAM map for the predicted class, the nearest training images.
    threshold : float
        The one that was locked with the model, else 0.5.
    """

    label: str
    probability: float
    calibrated: float | None
    warning: str
    nearest: pd.DataFrame
    figure: object
    threshold: float = metrics.THRESHOLD

    @property
    def summary(self) -> str:
        """The probability in words, for example "probability of malignant 0.812 (calibrated 0.744)".

        What changes nothing is left out: a calibration where none was fitted, a threshold of 0.5.
        """
        probability, calibrated = f"{self.probability:.3f}", ""
        if self.calibrated is not None and f"{self.calibrated:.3f}" != probability:
            calibrated = f" (calibrated {self.calibrated:.3f})"
        at = "" if self.threshold == metrics.THRESHOLD else f", threshold {self.threshold:.3f}"
        return f"probability of malignant {probability}{calibrated}{at}"

    @property
    def line(self) -> str:
        """Class, probability and warning as Markdown."""
        warning = in_markdown(self.warning)  # it may name a file
        if not self.label:
            return warning
        warning = f"\n\n**{warning}**" if warning else ""
        return f"Predicted **{self.label}**: {self.summary}.{warning}\n\n{DISCLAIMER}"


def explain_image(model_file, image) -> Explanation:
    """Ask a saved model about one image.

    If the model lies in the run that trained it, the features of its training images are computed once and
    stored beside it.

    Parameters
    ----------
    model_file : path-like
        A .keras file.
    image : path-like or bytes
        A PNG, JPEG, TIFF or BMP file, or its content.

    Raises
    ------
    InputError
        If model or image cannot be read.
    """
    model, content, reason = models.load_model(model_file), image, ""
    if not isinstance(image, bytes):  # neither a pipe nor gigabytes
        [(_, content, reason)] = sources.FolderSource(Path()).read([image])
    try:
        shown = None if reason else decode.decode_image(content, model.size)
    except ValueError as error:
        reason = str(error)
    if reason:
        raise InputError(f"{'the image' if isinstance(image, bytes) else image}: {reason}")
    return _explain(model, model_file, shown)


def explain_own_image(run: Run, table: pd.DataFrame, image: str = "", *, seed: int = 0) -> Explanation:
    """Ask the run's model of the strictest protocol about an image; see `explain_image`.

    Parameters
    ----------
    run : Run
    table : DataFrame
        Predictions of the run.
    image : path-like
        Empty: an image of that model's test part.
    seed : int
        Which image of the test part.

    Returns
    -------
    Explanation
        Without a model in this run its ``warning`` and its figure say so.
    """
    trials = [part for _, part in table.groupby(TRIAL_COLUMNS, sort=False)]
    for part in sorted(trials, key=lambda part: splits.strictness(part["split"].iloc[0])):
        folder = trial_folder(run, part.iloc[0])
        if folder is None:
            continue
        try:
            model = models.load_model(folder / MODEL)
        except InputError:  # a method of one's own that is no Keras network
            continue
        if image:
            return explain_image(folder / MODEL, image)
        cached = models.model_cache(model, cache.run_cache(run))
        if cached is None:
            continue
        row = part.iloc[int(np.random.default_rng(seed).integers(len(part)))]
        return _explain(
            model,
            folder / MODEL,
            cached.pixels[cached.rows([row["filename"]])[0]],
            title=models.true_caption(row),
        )
    text = "This run has no saved model of these predictions, so there is none to ask about an image."
    nothing = pd.DataFrame(columns=NEAREST_COLUMNS)
    return Explanation("", float("nan"), None, text, nothing, style.note_figure(text))


def trial_reference(model_file, model: SavedMethod) -> ood.OODReference | None:
    """Load the reference beside a model, or compute and store it in the run that trained the model.

    Returns
    -------
    OODReference or None
        None if the training images are not at hand.
    """
    folder, record, run = Path(model_file).parent, models.trial_record(model_file), models.run_of(model_file)
    reference = ood.load_reference(folder)
    if reference is not None or not record or not has_cache(run):
        return reference
    cached = models.model_cache(model, cache.run_cache(run))
    split = run.folder / "splits" / f"{record['split']}.csv"
    if cached is None or not split.is_file():
        return None
    part = splits.fold_of(read_table(split, ["filename", "role", "fold"]), record["fold"])
    tested = set(read_table(folder / "predictions.csv", ["filename"])["filename"])
    counts = {role: (part["role"] == role).sum() for role in splits.ROLES}
    if counts != record["images"] or tested != set(part.loc[part["role"] == "test", "filename"]):
        return None  # preprocessed anew since: these are no longer the images that it was trained on
    points, images = {}, {}
    for role in ("train", "validation"):
        rows = cached.rows(part.loc[part["role"] == role, "filename"])
        images[role] = cached.images.iloc[rows][
            ["filename", "slide", "case", "class", "magnification", "subtype"]
        ]
        points[role] = (
            ood.reference_points(model.network, model.stained(cached.pixels[rows])) if len(rows) else None
        )
    ood.save_reference(
        folder,
        ood.build_reference(
            points["train"], images["train"], points["validation"], validation_images=images["validation"]
        ),
    )
    return ood.load_reference(folder)  # rounded as stored: the same answer now and later


def store_reference(model_file) -> None:
    """Store the training images' features beside a model that is to be taken elsewhere, if it is a network.

    See `trial_reference`.
    """
    try:
        model = models.load_model(model_file)
    except InputError:  # a method of one's own that is no Keras network
        return
    trial_reference(model_file, model)


def explain_predictions(model_file, model: SavedMethod, X, *, probability) -> dict[str, list]:
    """Explain predictions by what is stored beside the model: its calibration and its training images.

    Parameters
    ----------
    model_file : path-like
    model : SavedMethod
    X : uint8 array (N, height, width, 3)
    probability : float array (N,)
        As from `models.predict_images`.

    Returns
    -------
    dict
        Lists of N: threshold, calibrated (probability), warning (see `Explanation`), nearest (file name of
        the nearest training image); those that can be had.
    """
    columns, lock = {}, models.saved_lock(model_file)
    if lock is not None:
        calibrated = thresholds.calibrate(probability, lock["slope"], lock["intercept"])
        columns |= {"threshold": [lock["threshold"]] * len(X), "calibrated": calibrated.tolist()}
    reference = ood.load_reference(Path(model_file).parent)
    if reference is not None:
        queries = ood.reference_points(model.network, model.stained(X))
        columns["warning"] = reference.warnings(queries)
        columns["nearest"] = reference.images["filename"].iloc[reference.nearest(queries)[1][:, 0]].tolist()
    return columns


def _explain(model: SavedMethod, model_file, shown: np.ndarray, *, title: str = "the image") -> Explanation:
    from bcdlib.explain import gradcam  # needs Keras; the rest does not

    X = model.stained(shown[None])
    probability = float(models.predict_images(model, shown[None])[0])
    lock, threshold, calibrated = models.saved_lock(model_file), metrics.THRESHOLD, None
    if lock is not None:
        threshold = lock["threshold"]
        calibrated = float(thresholds.calibrate(probability, lock["slope"], lock["intercept"]))
    reference = trial_reference(model_file, model)
    if reference is None:
        warning, nearest = "", pd.DataFrame(columns=NEAREST_COLUMNS)
        verdict = "The training images are not known here: whether the image is like them cannot be said."
    else:
        query = ood.reference_points(model.network, X)
        warning = reference.warnings(query)[0]
        verdict = warning or "Like the training images."
        distances, rows = reference.nearest(query)
        nearest = reference.images.iloc[rows[0]].reset_index(drop=True).assign(distance=distances[0])
    try:
        cam = gradcam.compute_gradcam(model.network, X)[0]
    except InputError:  # a network without a feature map still has a class and its probability
        cam = None
    label = models.predicted_class(probability, threshold)
    answer = Explanation(
        label, probability, calibrated, warning, nearest[NEAREST_COLUMNS], None, threshold=threshold
    )
    record = models.trial_record(model_file)
    made = f"{record['method']}, split {record['split']}: " if record else ""
    texts = [made + answer.summary, verdict, DISCLAIMER]
    captions = [
        title,
        models.prediction_caption(probability, threshold)
        + ("; no map" if cam is None else "\nyellow: what spoke for it"),
        "\n\n".join(textwrap.fill(text, 60) for text in texts),
        "",
    ]
    figure = _figure(shown, cam, captions, nearest=nearest.head(SHOWN), run=models.run_of(model_file))
    return dataclasses.replace(answer, figure=figure)


def _figure(shown: np.ndarray, cam, captions: list[str], *, nearest: pd.DataFrame, run: Run):
    """Draw the image, its map and the text, and below them the nearest training images, if known."""
    near = [
        custom.image_caption(row).replace(", slide", "\nslide") + f"\ndistance {row['distance']:.2f}"
        for _, row in nearest.iterrows()
    ]
    images = [None] * len(nearest)
    if has_cache(run):
        cached = cache.run_cache(run)
        rows = pd.Index(cached.images["filename"]).get_indexer(nearest["filename"])
        images = [cached.pixels[row] if row >= 0 else None for row in rows]
    figure = style.image_grid([shown, shown, None, None, *images], captions + near, SHOWN)
    if cam is not None:
        models.overlay(figure.axes[1], cam)
    if len(nearest):
        figure.supxlabel("lower row: the nearest training images, by the network's features", fontsize=8)
    return figure
