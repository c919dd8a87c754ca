"""A model card beside each saved model (Mitchell et al. 2019): training data, test results, limits."""

import json
from importlib import resources
from pathlib import Path

import jinja2
import pandas as pd

from bcdlib import __version__
from bcdlib.data import breakhis, splits
from bcdlib.evaluation import bootstrap
from bcdlib.runs.files import atomic_write

CARD_NAME = "model-card.md"
CARD_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity (malignant found)",
    "specificity": "specificity",
    "auc": "AUC",
    "slide_recognition": "slide recognition",
    "case_auc": "AUC by case",
}
_NOT_SHOWN = ("verbose", "weights", "pretrained_required")  # of this machine or said in words


def write_card(folder, images: pd.DataFrame, part: pd.DataFrame) -> Path:
    """Write ``model-card.md`` into a finished trial's folder, from ``trial.json`` and ``predictions.csv``.

    Parameters
    ----------
    folder : path-like
    images : DataFrame
        With filename, class, subtype, slide, case.
    part : DataFrame
        The fold that was trained and tested, with filename and role.

    Returns
    -------
    pathlib.Path
        The card.
    """
    card, facts = Path(folder) / CARD_NAME, json.loads((Path(folder) / "trial.json").read_text())
    predictions = pd.read_csv(card.with_name("predictions.csv"), dtype={"slide": str, "case": str})
    metrics = bootstrap.interval_table(predictions, tuple(CARD_METRICS))
    metrics = metrics.assign(name=metrics["figure"].map(CARD_METRICS), defined=metrics["value"].notna())
    known = part.merge(images.drop_duplicates("filename"), on="filename")
    overlap = splits.split_overlap(part.assign(fold=facts["fold"]), images).iloc[0]
    template = resources.files("bcdlib.trials").joinpath("model_card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    text = environment.from_string(template).render(
        facts=facts,
        version=__version__,
        breakhis=breakhis.is_breakhis(known),
        drawn=breakhis.is_synthetic(known),
        total=_counts(known),
        roles={role: _counts(known[known["role"] == role]) for role in splits.ROLES},
        parameters={key: value for key, value in facts["parameters"].items() if key not in _NOT_SHOWN},
        protocol=(splits.PROTOCOLS | splits.OFFICIAL_AT).get(facts["split"], ""),
        overlap=overlap,
        leaks=splits.overlap_line(overlap),
        metrics=metrics.to_dict("records"),
    )
    with atomic_write(card) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return card


def _counts(images: pd.DataFrame) -> dict[str, int]:
    counts = {
        "images": len(images),
        "slides": breakhis.count_slide_folders(images),
        "cases": images["case"].nunique(),
    }
    return counts | {name: int((images["class"] == name).sum()) for name in breakhis.CLASSES}
