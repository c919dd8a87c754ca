"""A model card beside each saved model (Mitchell et al. 2019): training data, test results, limits.

It begins with the metadata that Hugging Face reads, so that it can be uploaded as it is (as README.md).
"""

from pathlib import Path

import jinja2
import pandas as pd
import yaml

from bcdlib import REPOSITORY, __version__
from bcdlib.data import breakhis, splits
from bcdlib.errors import InputError
from bcdlib.evaluation import bootstrap, metrics
from bcdlib.runs import files, names, places
from bcdlib.runs import folder as folders

CARD_NAME = "model-card.md"
# names that Hugging Face knows; others stay our own
_HUB_METRICS = {"auc": "roc_auc", "sensitivity": "recall"}
_TAGS = ("histopathology", "breast-cancer", "image-classification", "bcdlib", "research-only")
_NOT_SHOWN = ("verbose", "weights", "pretrained_required")  # of this machine or said in words


def write_card(folder, images: pd.DataFrame, part: pd.DataFrame) -> Path:
    """Write ``model-card.md`` into a finished trial's folder, from ``trial.json`` and its tables.

    Its metrics are those of ``predictions.csv`` at threshold 0.5; of a final model those of
    ``cross_validation.csv``, each fold at the threshold of its own validation part.

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
    card = Path(folder) / CARD_NAME
    facts = files.read_json(card.with_name("trial.json"))
    final = facts["split"] == splits.ALL
    tested = _read(card.with_name(folders.CROSS_VALIDATION if final else "predictions.csv"))
    locked = _read(card.with_name(folders.LOCK))
    shown = bootstrap.interval_table(
        tested, metrics.shown_in("card"), threshold="threshold" if final else metrics.THRESHOLD
    ).assign(
        name=lambda table: [metrics.METRICS[key].label for key in table["metric"]],
        defined=lambda table: table["value"].notna(),
    )
    known = part.merge(images.drop_duplicates("filename"), on="filename")
    overlap = splits.split_overlap(part.assign(fold=facts["fold"]), images).iloc[0]
    template = jinja2.Environment(
        loader=jinja2.PackageLoader("bcdlib.trials", ""),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    ).get_template("model_card.md.j2")
    files.write_text(
        card,
        template.render(
            metadata=yaml.safe_dump(
                _hub_metadata(facts, shown, known, final=final), sort_keys=False, allow_unicode=True
            ),
            facts=facts,
            version=__version__,
            breakhis=breakhis.is_breakhis(known),
            drawn=breakhis.is_synthetic(known),
            total=_counts(known),
            roles={role: _counts(known[known["role"] == role]) for role in splits.ROLES},
            parameters={
                key: places.name_only(value)
                for key, value in facts["parameters"].items()
                if key not in _NOT_SHOWN
            },
            protocol=_protocol(facts["split"]),
            overlap=overlap,
            leaks=names.in_markdown(splits.overlap_line(overlap)),
            metrics=shown.to_dict("records"),
            final=final,
            tested={"images": tested["filename"].nunique(), "cases": tested["case"].nunique()},
            folds=tested[["fold", "split"]].drop_duplicates().to_dict("records"),
            locked=None if locked is None else locked.iloc[0],
        ),
    )
    return card


def _read(table: Path) -> pd.DataFrame | None:
    return files.read_table(table) if table.is_file() else None


def _hub_metadata(facts: dict, shown: pd.DataFrame, images: pd.DataFrame, *, final: bool) -> dict:
    """Describe the model as the front matter of a Hugging Face card does; results with what they are of."""
    ours = breakhis.is_breakhis(images)
    drawn = breakhis.is_synthetic(images)
    part = "all images" if final else f"split {facts['split']}, fold {facts['fold']}"
    which = "final" if final else f"{facts['split']}-fold{facts['fold']}"
    name = f"bcdlib-{Path(facts['method']).stem}-{which}-seed{facts['seed']}"
    data = "drawn tissue (bcdlib)" if drawn else "BreakHis" if ours else "the user's own images"
    test = {
        "name": f"{data}, {part}{', cross-validated' * final}",
        "type": "breakhis" if ours and not drawn else "other",
        "split": "cross-validation" if final else "test",
    }
    results = [
        {
            "type": _HUB_METRICS.get(row.metric, row.metric),
            "value": round(float(row.value), 4),
            "name": f"{row.label}, 95 % interval over cases: {bootstrap.range_text(row.low, row.high)}",
        }
        for row in shown[shown["defined"]].rename(columns={"name": "label"}).itertuples(index=False)
    ]
    return {
        # of the code; what may be done with a model of other images is for their owner to say
        "license": "apache-2.0" if ours else "other",
        **({} if ours else {"license_name": "not-stated"}),
        "library_name": "keras",
        "pipeline_tag": "image-classification",
        "tags": list(_TAGS),
        **({"datasets": ["breakhis"]} if ours and not drawn else {}),
        "metrics": [result["type"] for result in results],
        "model-index": [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": "image-classification", "name": "benign or malignant"},
                        "dataset": test,
                        "metrics": results,
                        "source": {"name": f"bcdlib {__version__}", "url": REPOSITORY},
                    }
                ],
            }
        ],
    }


def _protocol(split: str) -> str:
    try:
        return splits.describe_protocol(split)
    except InputError:  # folds inside a training part, for example
        return ""


def _counts(images: pd.DataFrame) -> dict[str, int]:
    return {
        "images": len(images),
        "slides": breakhis.count_slide_folders(images),
        "cases": images["case"].nunique(),
        **{name: int((images["class"] == name).sum()) for name in breakhis.CLASSES},
    }
