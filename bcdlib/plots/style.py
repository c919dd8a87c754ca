"""One look for all figures: benign and malignant have the same two colours everywhere, safe for colour-blind readers."""

import matplotlib.pyplot as plt
from IPython import get_ipython

from bcdlib.errors import InputError

# Okabe & Ito's palette: told apart under all common kinds of colour blindness, and in grey
COLOURS = {"benign": "#0072B2", "malignant": "#D55E00"}
MEASURED, PUBLISHED, TRAINING, HELD_OUT = "#009E73", "#999999", "#56B4E9", "#CC79A7"
# of methods and splits side by side: none that could be taken for a class (Okabe & Ito, Tol)
SERIES = ("#009E73", "#CC79A7", "#332288", "#999933", "#222222", "#882255")


def make_figure(rows: int = 1, columns: int = 1, width: float = 8.0, *, height: float = 4.5, **options):
    """``plt.subplots`` with the suite's style; sizes in inches."""
    _sharpen()
    plt.rcParams.update(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 10,
            "svg.fonttype": "none",
            "text.parse_math": False,  # names of others may hold dollar signs
            "axes.prop_cycle": plt.cycler(color=SERIES),
        }
    )
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **options)


def axes_or_new(ax, *, width: float, height: float):
    """Return (figure, `ax`), or a new figure of this size in inches and its axes if `ax` is None."""
    if ax is not None:
        return ax.figure, ax
    return make_figure(width=width, height=height)


def _sharpen() -> None:
    """Let notebooks draw figures with twice the pixels: sharp on today's screens, and as large as before."""
    if getattr(get_ipython(), "kernel", None) is None:
        return
    from matplotlib_inline.config import InlineBackend  # a kernel has it; a plain program need not

    backend = InlineBackend.instance(parent=get_ipython())
    if backend.figure_formats == {"png"}:  # the default: who asked for another format keeps it
        backend.figure_formats = {"retina"}


def finish_figure(figure):
    """Take the figure out of pyplot's hands, so that a notebook shows it once: as the value of its cell."""
    plt.close(figure)
    return figure


def note_figure(text: str):
    """A figure that is one line of text, where there is nothing to draw."""
    figure, axis = make_figure(width=7, height=0.6)
    axis.axis("off")
    axis.text(0, 0.5, text, va="center")
    return finish_figure(figure)


def image_grid(pictures, captions, columns: int, *, title: str | None = None, colours=None):
    """Pictures in rows of `columns`, each with its caption below. Raises InputError if there is no picture.

    Parameters
    ----------
    pictures : uint8 array (N, height, width, 3), or a list of such pictures; None leaves a place empty
    captions, colours : lists of str (N,); the colours are those of the frames
    """
    if len(pictures) == 0:
        raise InputError("no picture to show; ask for one at least")
    columns = min(columns, len(pictures))
    figure, axes = image_canvas(-(-len(pictures) // columns), columns, pictures[0].shape, title=title)
    for number, axis in enumerate(axes.flat):
        if number >= len(pictures) or pictures[number] is None:
            axis.remove()
        else:
            show_image(
                axis,
                pictures[number],
                captions[number],
                colour=colours[number] if colours is not None else None,
            )
    return finish_figure(figure)


def image_canvas(rows: int, columns: int, shape, *, title: str | None):
    """Axes (rows, columns), as high as pictures of this shape (height, width, ...) with captions need."""
    height = rows * (8 / columns * shape[0] / shape[1] + 0.25) + 0.35
    figure, axes = make_figure(rows, columns, height=height, squeeze=False)
    figure.suptitle(title or "", fontsize=11)
    return figure, axes


def show_image(axis, picture, caption: str, *, colour: str | None) -> None:
    axis.imshow(picture)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(visible=colour is not None, color=colour, linewidth=2)
    axis.set_xlabel(caption, fontsize=8 if len(axis.figure.axes) > 12 else 9)
