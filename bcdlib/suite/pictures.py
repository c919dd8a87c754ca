"""Draw README's two pictures, and tell by a digest whether they are out of date."""

import hashlib
import inspect
from pathlib import Path

from bcdlib import compare
from bcdlib.data import published_splits
from bcdlib.evaluation import metrics
from bcdlib.plots import style
from bcdlib.runs import files


def draw_pictures(root, run_folder) -> None:
    """Draw README's two pictures anew, and store in the files what they were drawn with (`picture_sources`).

    Parameters
    ----------
    root : folder of the checkout
    run_folder : path-like
        A finished run, whose comparison of protocols is shown.
    """
    predictions = metrics.read_predictions(Path(run_folder, "comparison_predictions.csv"))
    figures = {
        "report.png": compare.protocol_figure(predictions),
        "published_splits.png": compare.published_splits_figure(),
    }
    for name, source in picture_sources().items():
        with files.atomic_write(Path(root, "notebooks", name)) as temporary:
            figures[name].savefig(temporary, format="png", dpi=110, metadata={"Source": source})


def picture_sources() -> dict[str, str]:
    """Return, for each of README's pictures, a digest of the code and the table that it is drawn with."""
    register = (published_splits.LISTS / "index.csv").read_text(encoding="utf-8")
    look = inspect.getsource(style.make_figure)
    drawn_with = {
        "report.png": inspect.getsource(compare.protocol_figure) + look,
        "published_splits.png": inspect.getsource(compare.published_splits_figure) + look + register,
    }
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in drawn_with.items()}
