"""A cell's value that is a widget where somebody can click, and a figure where nobody can.

In Colab and JupyterLab a `Panel` shows its widget. Run by papermill or nbconvert, it shows its figure, which
an executed notebook still shows when it is opened later, and which the report takes.
"""

import base64
import html
import io
import os
from collections.abc import Callable
from functools import cached_property

import ipywidgets as widgets
import numpy as np
from IPython import get_ipython
from IPython.core import pylabtools
from PIL import Image, ImageOps

from bcdlib.plots import style
from bcdlib.runs.places import in_colab

# which of the widgets the keyboard acts on is hardly seen otherwise, over an image above all
FOCUS = "<style>.bcdlib :focus-visible {outline: 3px solid #0072B2 !important; outline-offset: 1px}</style>"
VIEW = "application/vnd.jupyter.widget-view+json"


def is_live() -> bool:
    """Tell whether a person can use widgets in this session.

    BCD_HEADLESS=1 and BCD_HEADLESS=0 say so. Otherwise the request that runs the cell does: front ends in
    which people work (Colab, JupyterLab, classic Notebook, VS Code) let a cell ask with ``input()``;
    nbclient, on which papermill and nbconvert rest, says that nobody will answer. Outside a kernel there is
    no front end at all.
    """
    if os.environ.get("BCD_HEADLESS"):
        return os.environ["BCD_HEADLESS"] == "0"
    kernel = getattr(get_ipython(), "kernel", None)
    return bool(kernel and kernel.get_parent().get("content", {}).get("allow_stdin"))


class Panel:
    """What a notebook's last line shows: a widget if `is_live`, else a figure.

    Parameters
    ----------
    figure : matplotlib Figure
        Shown where nobody can click.
    build : callable, optional
        Returns the ipywidgets widget; called when it is first wanted. None: there is nothing to click.
    """

    def __init__(self, figure, build: Callable | None = None):
        self.figure, self.build = figure, build

    @cached_property
    def widget(self):
        """The widget, or None. A headless run never makes one: its state would swell the notebook."""
        if not self.build:
            return None
        shown = widgets.VBox([widgets.HTML(FOCUS, layout=widgets.Layout(display="none")), self.build()])
        return shown.add_class("bcdlib")

    def _repr_mimebundle_(self, include=None, exclude=None):
        data, metadata = {"text/plain": "<interactive panel>"}, {}
        live = is_live() and self.widget is not None
        if not (live and in_colab()):
            # beside a widget too: a site that only shows notebooks has no kernel, and takes the figure
            data["image/png"], metadata["image/png"] = style.shown_png(self.figure)
        if live:  # written out, because ipywidgets 7 and 8 do it by different methods
            data[VIEW] = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
        return data, metadata


def image_html(image: np.ndarray, alt: str, *, narrowest: int = 1, widest: int, kind: str = "png") -> str:
    """Encode an image as an HTML element, at a width that a widget can show.

    ipywidgets' own Image has no text for those who cannot see it.

    Parameters
    ----------
    image : uint8 array (height, width, 3)
    alt : str
        What it shows, for those who cannot see it.
    narrowest : int
        An image narrower than this grows by a whole factor: each pixel is a visible square.
    widest : int
        A wider image is shrunk to this width.
    kind : {"png", "webp"}
        Without loss, or small.

    Examples
    --------
    >>> image_html(np.zeros((2, 3, 3), np.uint8), "a slide", narrowest=10, widest=100)
    '<img alt="a slide" ... src="data:image/png;base64,iVBOR...">'
    """
    shown = Image.fromarray(np.ascontiguousarray(image))
    shown.thumbnail((widest, shown.height), Image.Resampling.LANCZOS)
    shown = ImageOps.scale(shown, max(1, -(-narrowest // shown.width)), Image.Resampling.NEAREST)
    file = io.BytesIO()
    shown.save(file, kind)
    return _element(file.getvalue(), alt, kind)


def figure_html(figure, alt: str) -> str:
    """Encode a matplotlib Figure as an HTML element, sharp where it is shown at 100 pixels an inch."""
    content = pylabtools.print_figure(figure, dpi=150, bbox_inches=None)
    return f'<div style="max-width:{100 * figure.get_figwidth():.0f}px">{_element(content, alt, "png")}</div>'


def _element(content: bytes, alt: str, kind: str) -> str:
    # decoded at once: where one image takes the place of another, nothing flickers
    return (
        f'<img alt="{html.escape(alt)}" decoding="sync" style="display:block;width:100%;height:auto" '
        f'src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'
    )


def dropdown(name: str, options, width: str = "205px", **more):
    """Make a ``widgets.Dropdown`` (``more`` goes to it) whose whole name is shown."""
    return widgets.Dropdown(
        description=name,
        options=options,
        **more,
        style={"description_width": "initial"},
        layout=widgets.Layout(width=width, max_width="100%"),
    )


def button(text: str, clicked: Callable):
    """Make a ``widgets.Button`` that calls ``clicked()``."""
    made = widgets.Button(description=text, layout=widgets.Layout(width="110px"))
    made.on_click(lambda _: clicked())
    return made


def wrapping_row(*children):
    """Make a ``widgets.Box`` of widgets side by side, in several rows where the page is narrow."""
    return widgets.Box(children, layout=widgets.Layout(flex_flow="row wrap", align_items="center"))


def show_widget(widget, visible: bool) -> None:
    """Show or hide a widget."""
    widget.layout.display = None if visible else "none"
