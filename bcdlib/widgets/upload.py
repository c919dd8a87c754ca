"""Try an image of your own."""

import html
from pathlib import Path

import ipywidgets as widgets

from bcdlib.errors import InputError
from bcdlib.explain import explanation, models
from bcdlib.plots import panel
from bcdlib.runs.folder import Run


def uploaded_files(value) -> list[tuple[str, bytes]]:
    """(name, content) of each file in the value of an ``ipywidgets.FileUpload``.

    ipywidgets 8 gives a tuple of dicts with ``name`` and ``content`` (a memoryview); 7 gives a dict of name to a dict
    with ``content`` (bytes).
    """
    if isinstance(value, dict):
        return [(name, bytes(file["content"])) for name, file in value.items()]
    return [(file["name"], bytes(file["content"])) for file in value]


def try_image(run: Run, answer: explanation.Explanation) -> panel.Panel:
    """Upload a picture: class, probability, what the network looked at, and a warning if it is unlike the training data.

    The static picture (``figures/own_image``), and what the widget shows first, is the answer to an image at hand.

    Parameters
    ----------
    answer : as from ``evaluate.explain_own_image``; in a run without models there is nothing to upload to, and it says so
    """
    figure, known = run.figure("own_image", answer.figure), models.saved_models(run)
    return panel.Panel(figure, (lambda: YourImage(run, known, answer).box) if known else None)


def answer_line(answer) -> str:
    """The answer in one line, for example "malignant, probability of malignant 0.812 (calibrated 0.744)"."""
    if not answer.label:
        return "nothing was asked"
    calibrated = "" if answer.calibrated is None else f" (calibrated {answer.calibrated:.3f})"
    return f"{answer.label}, probability of malignant {answer.probability:.3f}{calibrated}"


class YourImage:
    """The widget of `your_image`; `box` is what is shown."""

    def __init__(self, run: Run, known: dict[str, Path], answer: explanation.Explanation):
        self.run, self.known = run, known
        self.model = panel.dropdown("model", list(known), "460px")
        self.upload = widgets.FileUpload(
            accept="image/*",
            multiple=False,
            description="Choose an image",
            layout=widgets.Layout(width="180px"),
        )
        self.answer, self.picture = widgets.HTML(), panel.image_widget("520px")
        note = widgets.HTML("PNG, JPEG, TIFF or BMP. It goes to this runtime only. Not a medical device.")
        self.box = widgets.VBox([self.model, self.upload, note, self.answer, self.picture])
        self._show("An image at hand", answer)
        self.upload.observe(lambda _: self._answer(), "value")
        self.model.observe(lambda _: self._answer(), "value")

    def _answer(self):
        files = uploaded_files(self.upload.value)
        if not files:
            return
        name, content = files[-1]
        self.answer.value = f"Looking at {html.escape(name)} …"
        panel.show_widget(self.picture, False)
        try:
            answer = explanation.explain_image(self.known[self.model.value], content, self.run)
        except (
            InputError,
            ValueError,
        ) as error:  # not a picture: said here, where a traceback would get lost
            self.answer.value = f"<b>{html.escape(name)}</b>: {html.escape(str(error))}"
            return
        self._show(name, answer)

    def _show(self, name: str, answer):
        warning = f"<br><b>⚠ {html.escape(answer.warning)}</b>" if answer.warning else ""
        self.answer.value = f"<b>{html.escape(name)}: {html.escape(answer_line(answer))}</b>{warning}"
        self.picture.value = panel.figure_image(answer.figure)
        self.picture.layout.width = f"{100 * answer.figure.get_figwidth():.0f}px"
        panel.show_widget(self.picture, True)
