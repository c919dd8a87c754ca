"""One look for all figures.

Benign and malignant have the same two colours everywhere, told apart by colour-blind readers.
"""

import base64
import io
import itertools
import textwrap

import matplotlib.pyplot as plt
from IPython import get_ipython
from IPython.core import pylabtools
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from PIL import Image

from bcdlib.errors import InputError
from bcdlib.runs import folder

# Okabe & Ito's palette: told apart under all common kinds of colour blindness, and in grey
COLOURS = {"benign": "#0072B2", "malignant": "#D55E00"}
MEASURED, PUBLISHED, TRAINING, HELD_OUT = "#009E73", "#999999", "#56B4E9", "#CC79A7"
# of methods and splits side by side: none that could be taken for a class (Okabe & Ito, Tol)
SERIES = ("#009E73", "#CC79A7", "#332288", "#999933", "#222222", "#882255")


def make_figure(rows: int = 1, columns: int = 1, *, width: float = 8.0, height: float = 4.5, **options):
    """Call ``plt.subplots`` with the suite's style, and close the figure in pyplot.

    pyplot would show an open figure at the end of a notebook's cell, beside the cell's value. A closed one
    can still be drawn into, saved and returned.

    Parameters
    ----------
    rows, columns : int
    width, height : float
        In inches.
    **options
        Of ``plt.subplots``.

    Returns
    -------
    figure : matplotlib Figure
    axes : matplotlib Axes, or array of Axes
    """
    _sharpen()
    plt.rcParams.update(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 10,
            "svg.fonttype": "none",
            "text.parse_math": False,  # file names and other text of users may hold dollar signs
            "axes.prop_cycle": plt.cycler(color=SERIES),
        }
    )
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **options)
    plt.close(figure)
    return figure, axes


def _sharpen() -> None:
    """Let notebooks draw figures with twice the pixels: sharp on today's screens, and as large as before."""
    if getattr(get_ipython(), "kernel", None) is not None:
        from matplotlib_inline.config import InlineBackend  # a kernel has it; a plain program need not

        backend = InlineBackend.instance(parent=get_ipython())
        if backend.figure_formats == {"png"}:  # the default: who asked for another format keeps it
            backend.figure_formats = {"retina"}
            get_ipython().display_formatter.formatters["image/png"].for_type(Figure, shown_png)


def shown_png(figure) -> tuple[str, dict]:
    """Encode a figure as notebooks show it: sharp, and as large as its size in inches says.

    One that `bcdlib.runs.folder.Run.figure` saved is not drawn again, unless it was changed since.

    Parameters
    ----------
    figure : matplotlib Figure

    Returns
    -------
    data : str
        PNG, base64.
    metadata : dict
        width and height at which it is shown, in CSS pixels.
    """
    saved = folder.SAVED.get(figure)
    if saved is None:
        return pylabtools.retina_figure(figure, base64=True)
    with Image.open(io.BytesIO(saved)) as image:
        scale = figure.dpi / image.info["dpi"][0]
        width, height = (round(scale * side) for side in image.size)
    return base64.b64encode(saved).decode(), {"width": width, "height": height}


def mark_guess(axis, guess: float | None) -> None:
    """Draw the reader's guess (a share, 0..1) as an upright line, if there is one."""
    if guess is not None:
        axis.axvline(guess, color="#332288", linestyle="--", label=f"your guess, {100 * guess:g} %")


def note_figure(text: str):
    """Draw a figure that is one line of text, for where there is nothing else to draw."""
    figure, axis = make_figure(width=7, height=0.6)
    axis.axis("off")
    axis.text(0, 0.5, text, va="center")
    return figure


def wrap(text: str, size: float, inches: float) -> str:
    """Break the lines of a title or caption that would run into the one beside it.

    Parameters
    ----------
    text : str
    size : float
        Of the font, in points.
    inches : float
        Width of the axes, with the space to the next one.

    Examples
    --------
    >>> wrap("malignant, predicted malignant", 9, 2).splitlines()
    ['malignant, predicted', 'malignant']
    """
    lines, font = text.split("\n"), FontProperties(size=size)
    room = 0.86 * 72 * inches  # points: the rest is space, and letters are drawn wider than measured
    widths = [text_to_path.get_text_width_height_descent(line, font, False)[0] for line in lines]
    return "\n".join(
        textwrap.fill(line, max(int(len(line) * room / width), 1)) if width > room else line
        for line, width in zip(lines, widths)
    )


def image_grid(images, captions, columns: int, *, title: str = "", headings=(), colours=None):
    """Draw images in rows of `columns`, each with its caption below.

    Parameters
    ----------
    images : sequence of uint8 arrays (height, width, 3)
        The first sets the height of the rows. None leaves a place without frame, with its caption as text.
    captions : sequence of str
        Lines that are wider than an image are wrapped.
    columns : int
    title : str
        Above the whole figure.
    headings : sequence of str
        Above the columns.
    colours : sequence of str, optional
        Of the images' frames; default: no frames.

    Returns
    -------
    matplotlib Figure
        With one axes a place; places after the last image have none.

    Raises
    ------
    InputError
        If there is no image.
    """
    if len(images) == 0:
        raise InputError("no image to show; ask for at least one")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width = images[0].shape[:2]
    size = 8 if rows * columns > 12 else 9
    captions = [
        caption if image is None else wrap(caption, size, 8 / columns)
        for image, caption in zip(images, captions)
    ]
    lines = 1 + max(caption.count("\n") for image, caption in zip(images, captions) if image is not None)
    figure, axes = make_figure(
        rows,
        columns,
        height=rows * (8 / columns * height / width + 0.1 + 0.15 * lines) + 0.35,
        squeeze=False,
    )
    figure.suptitle(title, fontsize=11)
    colours = itertools.repeat(None) if colours is None else colours
    for axis, image, caption, colour in zip(axes.flat, images, captions, colours):
        if image is None:
            axis.axis("off")
            # not in the layout: it may run on over the empty place beside
            axis.text(0, 1, caption, fontsize=8, va="top").set_in_layout(False)
        else:
            axis.imshow(image)
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(caption, fontsize=size)
            axis.spines[:].set(visible=colour is not None, color=colour, linewidth=2)
    for axis in axes.flat[len(images) :]:
        axis.remove()
    for axis, heading in zip(axes[0], headings):
        axis.set_title(heading, fontsize=10)
    return figure
