"""One look for all figures: benign and malignant have the same two colours everywhere, safe for colour-blind readers."""

import matplotlib.pyplot as plt
import pandas as pd
from IPython import get_ipython

# Okabe & Ito's palette: told apart under all common kinds of colour blindness, and in grey
COLOURS = {"benign": "#0072B2", "malignant": "#D55E00"}
MEASURED, PUBLISHED, TRAINING, HELD_OUT = "#009E73", "#999999", "#56B4E9", "#CC79A7"
# of methods and splits side by side: none that could be taken for a class (Okabe & Ito, Tol)
SERIES = ("#009E73", "#CC79A7", "#332288", "#999933", "#222222", "#882255")


def subplots(rows: int = 1, columns: int = 1, width: float = 8.0, height: float = 4.5, **options):
    """``plt.subplots`` with the suite's style; sizes in inches."""
    _sharpen()
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "svg.fonttype": "none",
                         "text.parse_math": False,  # names of others may hold dollar signs
                         "axes.prop_cycle": plt.cycler(color=SERIES)})
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **options)


def _sharpen() -> None:
    """Let notebooks draw figures with twice the pixels: sharp on today's screens, and as large as before."""
    if getattr(get_ipython(), "kernel", None) is None:
        return
    from matplotlib_inline.config import InlineBackend  # a kernel has it; a plain program need not

    backend = InlineBackend.instance(parent=get_ipython())
    if backend.figure_formats == {"png"}:  # the default: who asked for another format keeps it
        backend.figure_formats = {"retina"}


def finish(figure):
    """Take the figure out of pyplot's hands, so that a notebook shows it once: as the value of its cell."""
    plt.close(figure)
    return figure


def note(text: str):
    """A figure that is one line of text, where there is nothing to draw."""
    figure, axis = subplots(width=7, height=0.6)
    axis.axis("off")
    axis.text(0, 0.5, text, va="center")
    return finish(figure)


def table(values: pd.DataFrame, digits: int = 3):
    """A table as notebooks and report show it: no index, so many digits, "-" where a figure is not defined.

    Text is escaped: names of files, slides and methods come from others.
    """
    shown = values.style.hide(axis="index").format(precision=digits, na_rep="-", escape="html")
    return shown.format_index(escape="html", axis="columns")
