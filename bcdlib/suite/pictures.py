"""README's two pictures, drawn by a command, and what tells whether they are older than what draws them."""

import hashlib
import inspect
from pathlib import Path

from bcdlib import compare
from bcdlib.data import published_splits
from bcdlib.evaluation import metrics
from bcdlib.plots import style
from bcdlib.runs import files


def draw_pictures(root, run_folder) -> None:
    """Draw README's two pictures anew; what they were drawn with is noted in the files (`picture_sources`).

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
    """Give a digest of what each of README's pictures is drawn with: the code, and the register's table."""
    register = (published_splits.LISTS / "index.csv").read_text(encoding="utf-8")
    look = inspect.getsource(style.make_figure)
    drawn_with = {
        "report.png": inspect.getsource(compare.protocol_figure) + look,
        "published_splits.png": inspect.getsource(compare.published_splits_figure) + look + register,
    }
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in drawn_with.items()}
