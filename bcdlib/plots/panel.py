"""A cell that answers where somebody can click, and leaves a good picture where nobody can.

In Colab and JupyterLab a `Panel` shows its widget. Run by papermill or nbconvert, it shows its figure, which is
what an executed notebook still shows when it is opened later, and what the report takes.
"""

import io
import os
from collections.abc import Callable
from functools import cached_property

import ipywidgets as widgets
import numpy as np
from IPython import get_ipython
from IPython.core.pylabtools import retina_figure
from PIL import Image

from bcdlib.runs.places import in_colab

VIEW = "application/vnd.jupyter.widget-view+json"


def is_live() -> bool:
    """Whether a person sits before this cell: the one place where widget or picture is decided.

    BCD_HEADLESS=1 and BCD_HEADLESS=0 say so. Otherwise the request that runs the cell does: front ends in which
    people work (Colab, JupyterLab, classic Notebook, VS Code) let a cell ask with ``input()``; nbclient, on which
    papermill and nbconvert rest, says that nobody will answer. Outside a kernel there is no front end at all.
    """
    if os.environ.get("BCD_HEADLESS"):
        return os.environ["BCD_HEADLESS"] == "0"
    kernel = getattr(get_ipython(), "kernel", None)
    return bool(kernel and kernel.get_parent().get("content", {}).get("allow_stdin"))


class Panel:
    """What a notebook's last line shows: a widget if `live`, else a figure.

    Parameters
    ----------
    figure : matplotlib Figure, the static picture
    build : returns the ipywidgets widget; called when it is first wanted. None: there is nothing to click.
    """

    def __init__(self, figure, build: Callable | None = None):
        self.figure, self.build = figure, build

    @cached_property
    def widget(self):
        """The widget, or None. A headless run never makes one: its state would swell the notebook."""
        return self.build() if self.build else None

    def _repr_mimebundle_(self, include=None, exclude=None):
        data, metadata = {"text/plain": "<interactive panel>"}, {}
        if not (is_live() and self.widget is not None and in_colab()):
            # beside a widget too: a site that only shows notebooks has no kernel, and takes the picture
            data["image/png"], metadata["image/png"] = retina_figure(self.figure, base64=True)
        if (
            is_live() and self.widget is not None
        ):  # written out, because ipywidgets 7 and 8 do it by different methods
            data[VIEW] = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
        return data, metadata


def png_bytes(picture: np.ndarray) -> bytes:
    """A uint8 array (height, width, 3) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "PNG")
    return file.getvalue()


def figure_image(figure, dpi: int = 150) -> bytes:
    """A matplotlib Figure as a PNG file, sharp where it is shown at 100 pixels an inch."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def fit_width(picture: np.ndarray, least: int, most: int) -> np.ndarray:
    """The picture not wider than `most`; one narrower than `least` with each pixel as a visible square."""
    width = picture.shape[1]
    if width > most:
        size = most, max(1, round(picture.shape[0] * most / width))
        return np.asarray(
            Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.LANCZOS)
        )
    times = -(-least // width)
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def dropdown(name: str, options, width: str = "205px"):
    return widgets.Dropdown(
        description=name,
        options=options,
        style={"description_width": "initial"},
        layout=widgets.Layout(width=width, max_width="100%"),
    )


def image_widget(width: str):
    return widgets.Image(format="png", layout=widgets.Layout(width=width, height="auto", max_width="100%"))


def button(text: str, clicked):
    button = widgets.Button(description=text, layout=widgets.Layout(width="110px"))
    button.on_click(clicked)
    return button


def show_widget(widget, visible: bool) -> None:
    widget.layout.display = None if visible else "none"
