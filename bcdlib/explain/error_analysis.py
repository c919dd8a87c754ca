"""The worst mistakes of a predictions table, with maps of what the models saw in them."""

import contextlib

import numpy as np
import pandas as pd

from bcdlib.data import custom
from bcdlib.data.cache import run_cache
from bcdlib.errors import InputError
from bcdlib.evaluation import metrics
from bcdlib.explain import gradcam
from bcdlib.explain.models import load_model, model_cache, overlay, predicted_class, true_class
from bcdlib.plots import style
from bcdlib.runs.folder import MODEL, TRIAL_COLUMNS, Run, has_cache, trial_folder


def worst_errors(table: pd.DataFrame, by: str | None = None, n: int = 6) -> pd.DataFrame:
    """The wrong calls at 0.5, the farthest from the truth first.

    Parameters
    ----------
    by : column, for example "magnification" or "subtype": the n worst of each of its values, in order
    n : how many

    Returns
    -------
    rows of `table` with the column ``distance`` between probability and label, 0.5..1; an image comes once, with the
    prediction that is farthest off
    """
    wrong = metrics.with_correct(table)
    wrong = wrong[~wrong["correct"]].assign(distance=lambda rows: (rows["probability"] - rows["label"]).abs())
    wrong = wrong.sort_values("distance", ascending=False, kind="stable").drop_duplicates("filename")
    if by is None:
        return wrong.head(n).reset_index(drop=True)
    return wrong.groupby(by).head(n).sort_values(by, kind="stable", ignore_index=True)


def error_figure(run: Run, table: pd.DataFrame, n: int = 6):
    """The first n images of a predictions table: picture, and over it what spoke for the class that it was called.

    Each map is that of the model that made the prediction. Where none is stored, or no image is given, the figure says so.
    """
    rows = table.head(n)
    if rows.empty:
        return style.note_figure("No image here: there is no wrong call to show.")
    if not has_cache(run):
        return style.note_figure("The pictures of these predictions are not in this run, so there is no map.")
    cache = run_cache(run)
    rows = rows[rows["filename"].isin(cache.images["filename"])].reset_index(drop=True)
    found = _maps(run, rows, cache) if len(rows) else {}
    if not found:
        return style.note_figure(
            "No saved model of these predictions, of which a map can be made, is in this run."
        )
    lines = -(-len(rows) // 2)
    figure, axes = style.make_figure(lines, 4, width=10, height=2.3 * lines, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for place, row in rows.iterrows():
        left, right = axes[place // 2, 2 * (place % 2) : 2 * (place % 2) + 2]
        picture = cache.pixels[cache.rows([row["filename"]])[0]]
        left.imshow(picture)
        left.set_title(
            f"{true_class(row)}\n{row['subtype']}, {custom.magnification_label(row['magnification'])}, "
            f"case {row['case']}",
            fontsize=8,
        )
        if place in found:
            overlay(right, picture, found[place])
        right.set_title(
            f"called {predicted_class(row['probability'])}, {row['probability']:.2f}\nsplit {row['split']}"
            f"{'' if place in found else '; no map'}",
            fontsize=8,
        )
    figure.supxlabel(
        "number: probability of malignant; yellow: what spoke most for the class that was called", fontsize=8
    )
    return style.finish_figure(figure)


def _maps(run: Run, rows: pd.DataFrame, cache) -> dict[int, np.ndarray]:
    found = {}
    for _, part in rows.groupby(TRIAL_COLUMNS, sort=False):
        folder = trial_folder(run, part.iloc[0])
        if folder is not None:
            model = load_model(folder / MODEL)
            pictures = model_cache(model, cache)
            with contextlib.suppress(InputError):  # a network of which there is no map: the figure says so
                if pictures is not None:
                    X = model.stained(pictures.pixels[pictures.rows(part["filename"])])
                    found |= dict(zip(part.index, gradcam.compute_gradcam(model.network, X), strict=True))
    return found
