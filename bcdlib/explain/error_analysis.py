"""Error analysis: the worst errors of a predictions table, with maps of what the models looked at."""

import contextlib

import numpy as np
import pandas as pd

from bcdlib.data import cache, custom
from bcdlib.errors import InputError
from bcdlib.evaluation import metrics
from bcdlib.explain import models
from bcdlib.plots import style
from bcdlib.runs.folder import MODEL, TRIAL_COLUMNS, Run, has_cache, trial_folder


def worst_errors(table: pd.DataFrame, by: str | None = None, n: int = 6) -> pd.DataFrame:
    """Select the wrong predictions at threshold 0.5, the farthest from the true class first.

    Parameters
    ----------
    table : DataFrame
        Predictions.
    by : str, optional
        A column, for example "magnification" or "subtype": the n worst of each of its values, in order.
    n : int

    Returns
    -------
    DataFrame
        Rows of `table` with the column ``off_by``: how far the probability is from the label, 0.5..1. An
        image comes once, with the prediction that is farthest off.

    Examples
    --------
    >>> predictions = {"filename": ["a", "b", "c"], "label": [0, 1, 1], "probability": [0.7, 0.6, 0.1]}
    >>> worst_errors(pd.DataFrame(predictions))["filename"].tolist()
    ['c', 'a']
    """
    wrong = table[(table["probability"] >= metrics.THRESHOLD) != table["label"]]
    wrong = wrong.assign(off_by=(wrong["probability"] - wrong["label"]).abs())
    wrong = wrong.sort_values("off_by", ascending=False, kind="stable").drop_duplicates("filename")
    if by is None:
        return wrong.head(n).reset_index(drop=True)
    return wrong.groupby(by).head(n).sort_values(by, kind="stable", ignore_index=True)


def error_figure(run: Run, table: pd.DataFrame, n: int = 6):
    """Draw the first n images of a predictions table, each beside its Grad-CAM map for the predicted class.

    Each map is that of the model that made the prediction. Where none is stored, or no image is given, the
    figure says so.

    Returns
    -------
    matplotlib Figure
    """
    rows = table.head(n)
    if rows.empty:
        return style.note_figure("No image here: there is no wrong prediction to show.")
    if not has_cache(run):
        return style.note_figure("The images of these predictions are not in this run, so there is no map.")
    cached = cache.run_cache(run)
    rows = rows[rows["filename"].isin(cached.images["filename"])].reset_index(drop=True)
    maps = _maps(run, rows, cached)
    if not maps:
        return style.note_figure(
            "No saved model of these predictions, of which a map can be made, is in this run."
        )
    images, captions = [], []
    for place, row in rows.iterrows():
        images += [cached.pixels[cached.rows([row["filename"]])[0]]] * 2
        without = "" if place in maps else "; no map"
        captions += [
            f"{models.true_caption(row)}\n{custom.image_caption(row, ('subtype', 'magnification', 'case'))}",
            f"{models.prediction_caption(row['probability'])}\nsplit {row['split']}{without}",
        ]
    figure = style.image_grid(
        images,
        captions,
        4,
        title="In brackets: probability of malignant; yellow: what spoke most for the predicted class",
    )
    for place, cam in maps.items():
        models.overlay(figure.axes[2 * place + 1], cam)
    return figure


def _maps(run: Run, rows: pd.DataFrame, cached) -> dict[int, np.ndarray]:
    """Return maps by the rows' index, those that can be made."""
    found = {}
    for _, part in rows.groupby(TRIAL_COLUMNS, sort=False):
        folder = trial_folder(run, part.iloc[0])
        if folder is None:
            continue
        with contextlib.suppress(InputError):  # no network, or no map of it: the figure says so
            model = models.load_model(folder / MODEL)
            resized = models.model_cache(model, cached)
            if resized is not None:
                from bcdlib.explain import gradcam  # needs Keras; the rest does not

                X = model.stained(resized.pixels[resized.rows(part["filename"])])
                found |= dict(zip(part.index, gradcam.compute_gradcam(model.network, X), strict=True))
    return found
