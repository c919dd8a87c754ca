"""Try an image of your own."""

import html
import sys
from pathlib import Path

import ipywidgets as widgets

from bcdlib.explain import explanation, models
from bcdlib.plots import panel
from bcdlib.runs.folder import Run


def uploaded_files(value) -> list[tuple[str, bytes]]:
    """Return (name, content) of each file in the value of an ``ipywidgets.FileUpload``.

    ipywidgets 8 gives a tuple of dicts with ``name`` and ``content`` (a memoryview); 7 gives a dict of name
    to a dict with ``content`` (bytes).

    Examples
    --------
    >>> uploaded_files({"a.png": {"content": b"abc"}})
    [('a.png', b'abc')]
    """
    if isinstance(value, dict):
        value = [file | {"name": name} for name, file in value.items()]
    return [(file["name"], bytes(file["content"])) for file in value]


def try_image(run: Run, answer: explanation.Explanation) -> panel.Panel:
    """Upload an image: class, probability, Grad-CAM, and a warning if it is unlike the training images.

    The figure (``figures/own_image``), and what the widget shows first, is the answer to an image at hand.

    Parameters
    ----------
    run : Run
    answer : Explanation
        As from ``evaluate.explain_own_image``; in a run without models there is none to ask, and the answer
        says so.
    """
    figure, saved = run.figure("own_image", answer.figure), models.saved_models(run)
    return panel.Panel(figure, (lambda: YourImage(saved, answer).box) if saved else None)


class YourImage:
    """The widget of `try_image`; `box` is what is shown."""

    def __init__(self, saved: dict[str, Path], answer: explanation.Explanation):
        self.saved = saved
        self.model = panel.dropdown("model", list(saved), "460px")
        self.place = widgets.Output()  # where Colab shows its own form
        button = {"description": "Choose an image", "layout": widgets.Layout(width="180px")}
        if "google.colab" in sys.modules:
            self.upload = widgets.Button(**button)
            self.upload.on_click(lambda _: self._upload_in_colab())
        else:
            self.upload = widgets.FileUpload(accept="image/*", **button)
            self.upload.observe(lambda _: self._ask(), "value")
        self.files: list[tuple[str, bytes]] = []  # chosen in Colab
        self.answer, self.image = widgets.HTML(), widgets.HTML()
        self.box = widgets.VBox(
            [
                self.model,
                self.upload,
                self.place,
                widgets.HTML("PNG, JPEG, TIFF or BMP. It goes to this runtime only. Not a medical device."),
                self.answer,
                self.image,
            ]
        )
        self._show("An image at hand", answer)
        self.model.observe(lambda _: self._ask(), "value")

    def _upload_in_colab(self):
        from google.colab import files  # of an ipywidgets 7 FileUpload, 1 MB and more never arrive there

        with self.place:
            self.files = list(files.upload().items())
        self.place.clear_output()
        self._ask()

    def _ask(self):
        files = self.files or uploaded_files(getattr(self.upload, "value", ()))
        if not files:
            return
        name, content = files[-1]
        self.answer.value = f"Looking at {html.escape(name)} …"
        panel.show_widget(self.image, False)
        try:
            self._show(name, explanation.explain_image(self.saved[self.model.value], content))
        except ValueError as error:  # not an image: said here, where a traceback would get lost
            self.answer.value = f"<b>{html.escape(name)}</b>: {html.escape(str(error))}"

    def _show(self, name: str, answer):
        said = f"{name}: {answer.label}, {answer.summary}" if answer.label else f"{name}: nothing was asked"
        warning = f"<br><b>⚠ {html.escape(answer.warning)}</b>" if answer.warning else ""
        self.answer.value = f"<b>{html.escape(said)}</b>{warning}"
        self.image.value = panel.figure_html(answer.figure, said)
        panel.show_widget(self.image, True)
