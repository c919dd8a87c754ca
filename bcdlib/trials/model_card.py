"""A model card beside each saved model (Mitchell et al. 2019): on what it was trained, how well it did, where it ends."""

import html
import json
from importlib import resources
from pathlib import Path

import jinja2
import pandas as pd

from bcdlib import __version__
from bcdlib.data import breakhis, splits
from bcdlib.evaluation import bootstrap, metrics
from bcdlib.runs.files import atomic_write

CARD_NAME = "model-card.md"
NOT_SHOWN = ("verbose", "weights", "pretrained_required")  # of this machine or said in words
BREAKHIS = (
    "- Images: F. A. Spanhol, L. S. Oliveira, C. Petitjean, L. Heutte, *A Dataset for Breast Cancer Histopathological\n"
    "  Image Classification*, IEEE TBME 63(7):1455-1462, 2016; CC BY 4.0."
)


def write_card(folder, images: pd.DataFrame, part: pd.DataFrame) -> Path:
    """Write ``model-card.md`` into a finished trial's folder, from its ``trial.json`` and ``predictions.csv``.

    Parameters
    ----------
    images : DataFrame with filename, class, subtype, slide, case
    part : DataFrame with filename and role: the fold that was trained and tested
    """
    folder = Path(folder)
    facts = json.loads((folder / "trial.json").read_text())
    predictions = pd.read_csv(folder / "predictions.csv", dtype={"slide": str, "case": str})
    template = resources.files("bcdlib.trials").joinpath("model_card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    known = part.merge(images.drop_duplicates("filename"), on="filename")
    (overlap,) = (row for _, row in splits.split_overlap(part.assign(fold=facts["fold"]), images).iterrows())
    protocols = splits.PROTOCOLS | splits.OFFICIAL_AT
    text = environment.from_string(template).render(
        facts=facts,
        version=__version__,
        breakhis=breakhis.is_breakhis(images),
        data=_data(known),
        roles=_roles(known),
        parameters=[item for item in facts["parameters"].items() if item[0] not in NOT_SHOWN],
        protocol=protocols.get(facts["split"], ""),
        leaks=html.escape(splits.overlap_line(overlap)),
        curves_on_test=facts["curves_on"] == "test",
        test={"images": predictions["filename"].nunique(), "cases": predictions["case"].nunique()},
        figures=_figures(predictions),
        limits=_limits(known, facts, overlap),
        licence=_licence(known),
    )
    with atomic_write(folder / CARD_NAME) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / CARD_NAME


def _data(images: pd.DataFrame) -> str:
    count = f"{len(images)} images of {breakhis.count_slide_folders(images)} slides and {images['case'].nunique()} cases"
    if not breakhis.is_breakhis(images):
        return f"The user's own images: {count}."
    if breakhis.is_synthetic(images):
        return f"Drawn tissue, or other pictures with BreakHis names that are not in BreakHis: {count}."
    return f"BreakHis: {count} (the whole data set has 7909 images of 82 slides and 70 cases)."


def _roles(known: pd.DataFrame) -> list[dict]:
    rows = []
    for role in splits.ROLES:
        mine = known[known["role"] == role]
        classes = {name: int((mine["class"] == name).sum()) for name in breakhis.CLASSES}
        rows.append(
            {
                "role": role,
                "images": len(mine),
                "slides": breakhis.count_slide_folders(mine),
                "cases": mine["case"].nunique(),
            }
            | classes
        )
    return rows


def _figures(predictions: pd.DataFrame) -> list[dict]:
    rows = bootstrap.interval_table(predictions, metrics.shown_in("card")).itertuples()
    return [
        {
            "name": metrics.METRICS[row.metric].label,
            "value": "not defined" if pd.isna(row.value) else f"{row.value:.3f}",
            "interval": _interval(row.low, row.high),
        }
        for row in rows
    ]


def _interval(low: float, high: float) -> str:
    if (
        not low < high
    ):  # not defined, or all resamples alike: of the one case of a class, or all of them right
        return "cannot be said from these cases"
    return f"{low:.3f} to {high:.3f}"


def _limits(known: pd.DataFrame, facts: dict, overlap) -> list[str]:
    counts = {row["role"]: row["cases"] for row in _roles(known)}
    lines = [
        f"It has seen {counts['train']} cases in training and was tested on {counts['test']}: few, whatever the number "
        "of images."
    ]
    if overlap["cases_shared"]:
        lines.append(
            f"{overlap['cases_shared']} of the {overlap['test_cases']} test cases were also in training: the "
            "figures above say how well it knows these cases, not how well it would do on the next patient."
        )
    if breakhis.is_synthetic(known):
        lines.append("The images are not BreakHis's: the figures say nothing about tissue.")
    elif breakhis.is_breakhis(known):
        lines.append(
            "One laboratory, one microscope and camera, one stain (H&E): on others' pictures nothing is known."
        )
    else:
        lines.append("Pictures from another laboratory, scanner or stain: nothing is known.")
    if "random" in facts["weights"]:
        lines.append(
            "The network started from random weights, not from ImageNet's: it is for trying the machinery."
        )
    lines.append(
        "It knows two classes only and calls anything one of them: normal tissue, other diseases, a photograph. "
        "The warning for pictures unlike the training images (05_evaluate) helps, and is no guarantee."
    )
    lines.append("It sees one field of view at a small size, and no clinical facts.")
    return lines


def _licence(images: pd.DataFrame) -> str:
    if not breakhis.is_breakhis(images):
        return "- Images: the user's own; their terms hold."
    return "- Images: drawn by bcdlib, or not BreakHis's." if breakhis.is_synthetic(images) else BREAKHIS
