"""To be looked at: browse the samples, move the threshold, try an image of your own.

Each function returns a `panel.Panel`: a widget where somebody can click, a figure in a headless run. Plain
ipywidgets without JavaScript of its own, so that Colab (ipywidgets 7) and JupyterLab (8) show the same.
"""

import html
import json
from pathlib import Path

import ipywidgets as widgets
import keras
import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from bcdlib import explanation, manifest, metrics, owndata, panel, pixels, sources, splits, stain, style, visualize
from bcdlib.errors import InputError
from bcdlib.methods import backbones
from bcdlib.methods.augment import FlipAndZoom
from bcdlib.runs import Run

FILTERS = ("class", "subtype", "magnification", "slide")
PAGE = 8  # pictures at a time
STAIN_REFERENCE = 12  # pictures that the stain is fitted on
PANELS = 8  # methods and splits in the static picture of the threshold; the slider has all
ALL = ""


# ---------------------------------------------------------------- samples

def matching(images: pd.DataFrame, **chosen) -> np.ndarray:
    """Positions of the images with these values; int (n,).

    Parameters
    ----------
    chosen : values by column (``class`` with ``**{"class": "benign"}``); "" takes all
    """
    keep = np.ones(len(images), bool)
    for column, value in chosen.items():
        if value != ALL:
            keep &= (images[column] == value).to_numpy()
    return np.flatnonzero(keep)


def choices(images: pd.DataFrame, **chosen) -> dict[str, list]:
    """What can be asked for in each of `FILTERS`, given the filters before it: so no choice leads to no picture."""
    found = {}
    for place, column in enumerate(FILTERS):
        before = {name: chosen.get(name, ALL) for name in FILTERS[:place]}
        # what is not there (of the choice before) is not asked for any more
        before = {name: value if value in found[name] else ALL for name, value in before.items()}
        found[column] = sorted(images[column].iloc[matching(images, **before)].unique().tolist())
    return found


def turn(start: int, pages: int, total: int, size: int = PAGE) -> int:
    """First place of the page so many pages on; after the last page comes the first, before the first the last."""
    count = max(1, -(-total // size))
    return (start // size + pages) % count * size


class Views:
    """The stages at which a cached image can be looked at.

    Parameters
    ----------
    cache : pixels.PixelCache
    source : sources.Source, optional; without it, or from a .tar that would be read to its end for each page,
        there is no view ``raw``

    Attributes
    ----------
    names : of raw, resized, normalised, augmented, stain-normalised those that there are
    """

    def __init__(self, cache, source=None, seed: int = 0, architecture: str = "resnet50"):
        self.cache, self.seed, self.architecture = cache, seed, architecture
        self.source = None if isinstance(source, sources.TarSource) else source
        self.target = _stain_target(cache, seed)
        self.names = ["raw"] * (self.source is not None) + ["resized", "normalised", "augmented"]
        self.names += ["stain-normalised"] * (self.target is not None)

    def of(self, rows, view: str) -> list[np.ndarray]:
        """Pictures of these rows of the cache, uint8 (height, width, 3) each. Raises InputError for an unknown view."""
        if view not in self.names:
            raise InputError(f"unknown view {view!r}; there are {', '.join(self.names)}")
        batch = np.asarray(self.cache.pixels[rows])
        if view == "raw":
            images = self.cache.images.iloc[rows]
            read = {name: array for name, array, _ in pixels.decode_all(self.source, images, progress=False)}
            # a file that went away since it was cached is shown as it was cached
            found = [read.get(name) for name in images["filename"]]
            return [small if full is None else full for full, small in zip(found, batch, strict=True)]
        if view == "normalised":  # each channel stretched to its own range, as screens cannot show negative light
            values = backbones.normalised(batch, self.architecture)
            low, high = values.min(axis=(1, 2), keepdims=True), values.max(axis=(1, 2), keepdims=True)
            batch = (255 * (values - low) / np.maximum(high - low, 1e-6)).round().astype("uint8")
        if view == "augmented":
            batch = keras.ops.convert_to_numpy(FlipAndZoom(seed=self.seed)(batch.astype("float32"), training=True))
            batch = batch.round().clip(0, 255).astype("uint8")
        if view == "stain-normalised":
            batch = stain.apply(batch, self.target)
        return list(batch)


def _stain_target(cache, seed: int):
    """What stain normalisation brings pictures to; None if no picture shows stained tissue."""
    rows = np.random.default_rng(seed).permutation(len(cache.images))[:STAIN_REFERENCE]
    try:
        return stain.fit("macenko", np.asarray(cache.pixels[np.sort(rows)]))
    except InputError:
        return None


def caption(image) -> str:
    """One line on an image (a row of an image table): class, subtype, magnification, slide; what is known of it."""
    parts = [image["class"], image["subtype"] if image["subtype"] != manifest.UNKNOWN else ""]
    parts += [f"{image['magnification']}X" if image["magnification"] else "", f"slide {image['slide']}"]
    return ", ".join(filter(None, parts))


def samples(run: Run, cache, source=None, seed: int = 0) -> panel.Panel:
    """Browse the cached images: filters, the stages of preprocessing, pages; a click on a picture enlarges it.

    The static picture (``figures/browser``): two images of each class, at each stage.

    Parameters
    ----------
    cache : pixels.PixelCache
    source : sources.Source, optional, for the originals
    """
    views = Views(cache, source, seed)
    figure = run.save_figure("browser", _sheet(views, seed))
    return panel.Panel(figure, lambda: SampleBrowser(views).box)


def _sheet(views: Views, seed: int, per_class: int = 2):
    images = views.cache.images
    mixed = np.random.default_rng(seed).permutation(len(images))
    rows = np.concatenate([mixed[(images["class"] == name).to_numpy()[mixed]][:per_class] for name in manifest.CLASSES])
    columns = [views.of(rows, name) for name in views.names]
    pictures = [column[place] for place in range(len(rows)) for column in columns]
    captions = []
    for row in rows:
        image = images.iloc[row]
        captions += [caption(image).replace(", slide", "\nslide") if name == views.names[0] else "" for name in views.names]
    colours = np.repeat(images["class"].iloc[rows].map(style.COLOURS), len(views.names)).tolist()
    figure = visualize.grid(pictures, captions, len(views.names), "The same images at each stage", colours)
    for axis, name in zip(figure.axes, views.names, strict=False):
        axis.set_title(name, fontsize=9)
    return figure


class SampleBrowser:
    """The widget of `samples`; `box` is what is shown."""

    def __init__(self, views: Views):
        self.views, self.images, self.start, self.busy = views, views.cache.images, 0, False
        self.order = np.random.default_rng(views.seed).permutation(len(self.images))  # a page shows several slides
        self.filters = {name: _dropdown(name, ()) for name in FILTERS}
        self.view = _dropdown("show", views.names)
        self.view.value = "resized"
        self.where = widgets.HTML()
        self.cells = [_Cell(lambda _, place=place: self._enlarge(place)) for place in range(PAGE)]
        self.large, self.about = _picture("700px"), widgets.HTML()
        self.enlarged = widgets.VBox([self.about, self.large, _button("Close", lambda _: _show(self.enlarged, False))])
        self.box = self._arrange()
        self._filter()
        for widget in [*self.filters.values(), self.view]:
            widget.observe(self._changed, "value")

    def _arrange(self):
        pages = [_button("◀ Previous", lambda _: self._turn(-1)), _button("Next ▶", lambda _: self._turn(1)), self.where]
        wrap = widgets.Layout(flex_flow="row wrap", align_items="center")
        grid = widgets.GridBox([cell.box for cell in self.cells], layout=widgets.Layout(
            grid_template_columns="repeat(auto-fill, minmax(max(150px, 22%), 1fr))", grid_gap="8px", width="100%"))
        _show(self.enlarged, False)
        return widgets.VBox([widgets.Box([*self.filters.values(), self.view], layout=wrap),
                             widgets.Box(pages, layout=wrap), self.enlarged, grid])

    def _changed(self, change):
        if not self.busy:  # filters that follow from another one do not redraw once more
            self._filter() if change["owner"] is not self.view else self._draw()

    def _filter(self):
        self.busy, chosen = True, {name: widget.value or ALL for name, widget in self.filters.items()}
        for name, values in choices(self.images, **chosen).items():
            label = owndata.magnification_label if name == "magnification" else str
            self.filters[name].options = [("all", ALL), *((label(value), value) for value in values)]
            self.filters[name].value = chosen[name] if chosen[name] in values else ALL
        self.busy, self.start = False, 0
        fits = matching(self.images, **{name: widget.value for name, widget in self.filters.items()})
        self.rows = self.order[np.isin(self.order, fits)]
        self._draw()

    def _turn(self, pages: int):
        self.start = turn(self.start, pages, len(self.rows))
        self._draw()

    def _draw(self):
        shown = self.rows[self.start : self.start + PAGE]
        _show(self.enlarged, False)
        self.where.value = f"{self.start + 1} to {self.start + len(shown)} of {len(self.rows)} images"
        self.pictures = self.views.of(shown, self.view.value)
        for place, cell in enumerate(self.cells):
            _show(cell.box, place < len(shown))
            if place < len(shown):
                cell.fill(self.pictures[place], self.images.iloc[shown[place]])

    def _enlarge(self, place: int):
        picture, image = self.pictures[place], self.images.iloc[self.rows[self.start + place]]
        size = f"{picture.shape[1]} × {picture.shape[0]} pixels"
        self.about.value = html.escape(f"{caption(image)}: {self.view.value}, {size} ({image['filename']})")
        self.large.value = panel.png(panel.fit_width(picture, 500, 1400))
        _show(self.enlarged, True)


class _Cell:
    """A picture with its caption. A clear button lies over the picture, because ipywidgets' pictures take no clicks."""

    def __init__(self, clicked):
        here = {"grid_area": "1 / 1 / 2 / 2"}
        self.picture = widgets.Image(format="png", layout=widgets.Layout(width="100%", height="auto", margin="0", **here))
        self.over = widgets.Button(tooltip="Enlarge", layout=widgets.Layout(width="auto", height="auto", margin="0", **here))
        self.over.style.button_color = "transparent"
        self.over.on_click(clicked)
        self.text = widgets.HTML()
        both = widgets.GridBox([self.picture, self.over], layout=widgets.Layout(grid_template_columns="100%"))
        self.box = widgets.VBox([both, self.text])

    def fill(self, picture, image):
        self.picture.value = panel.png(panel.fit_width(picture, 320, 400))
        self.over.tooltip = f"Enlarge {image['filename']}"
        colour = style.COLOURS[image["class"]]
        self.text.value = (f'<div style="border-top:3px solid {colour};line-height:1.3;font-size:12px">'
                           f"{html.escape(caption(image))}</div>")


def _dropdown(name: str, options, width: str = "205px"):
    return widgets.Dropdown(description=name, options=options, style={"description_width": "initial"},
                            layout=widgets.Layout(width=width, max_width="100%"))


def _picture(width: str):
    return widgets.Image(format="png", layout=widgets.Layout(width=width, height="auto", max_width="100%"))


def _button(text: str, clicked):
    button = widgets.Button(description=text, layout=widgets.Layout(width="110px"))
    button.on_click(clicked)
    return button


def _show(widget, visible: bool) -> None:
    widget.layout.display = None if visible else "none"


# ---------------------------------------------------------------- threshold

def at_threshold(table: pd.DataFrame, threshold: float) -> dict:
    """What is called what from this probability on.

    Parameters
    ----------
    table : rows of a predictions table with the columns filename, label, probability, case

    Returns
    -------
    dict: predictions (rows of the table: with several seeds, an image has several), images, cases, true_negative,
    false_positive, false_negative, true_positive (int; of the predictions), sensitivity, specificity, accuracy
    (float, 0..1; NaN where a class is missing)
    """
    label, called = table["label"], (table["probability"] >= threshold).astype(int)
    names = ("true_negative", "false_positive", "false_negative", "true_positive")
    matrix = zip(names, confusion_matrix(label, called, labels=[0, 1]).ravel().tolist(), strict=True)
    figures = metrics.scores(label, table["probability"], threshold)
    return {
        "predictions": len(table), "images": table["filename"].nunique(), "cases": table["case"].nunique(), **dict(matrix),
    } | {name: figures[name] for name in ("sensitivity", "specificity", "accuracy")}


def rates(table: pd.DataFrame, thresholds) -> pd.DataFrame:
    """Sensitivity and specificity at each of many thresholds: columns threshold, sensitivity, specificity (NaN as above)."""
    thresholds = np.asarray(thresholds, dtype=float)
    scores = {label: np.sort(table.loc[table["label"] == label, "probability"]) for label in (0, 1)}
    below = {label: np.searchsorted(values, thresholds) / len(values) if len(values) else np.full(len(thresholds), np.nan)
             for label, values in scores.items()}
    return pd.DataFrame({"threshold": thresholds, "sensitivity": 1 - below[1], "specificity": below[0]})


def threshold(run: Run, table: pd.DataFrame) -> panel.Panel:
    """Move the threshold: confusion matrix, sensitivity and specificity of one method and split.

    The static picture (``figures/threshold``): both rates against the threshold, 0.5 and the locked one marked.

    Parameters
    ----------
    table : predictions, as from ``evaluate.predictions``
    """
    figure = run.save_figure("threshold", threshold_figure(table))
    return panel.Panel(figure, lambda: ThresholdSlider(table).box)


def threshold_figure(table: pd.DataFrame):
    """Sensitivity and specificity against the threshold, a panel a method and split (the first `PANELS` of them)."""
    groups = dict(list(_groups(table).items())[:PANELS])
    rows = -(-len(groups) // 2)
    figure, axes = style.subplots(rows, min(2, len(groups)), width=8, height=3.6 * rows, squeeze=False, sharey=True)
    for axis in axes.flat[len(groups) :]:
        axis.remove()
    for axis, (name, part) in zip(axes.flat, groups.items(), strict=False):
        _draw_rates(axis, name, part)
    return style.finish(figure)


def _draw_rates(axis, name: str, part: pd.DataFrame) -> None:
    curve = rates(part, np.linspace(0, 1, 501))
    for rate, kind, dashes in (("sensitivity", "malignant", "-"), ("specificity", "benign", "--")):
        axis.plot(curve["threshold"], curve[rate], dashes, color=style.COLOURS[kind], label=f"{rate} ({kind} found)")
    axis.axvline(metrics.THRESHOLD, color="black", lw=1, ls=":", label="threshold 0.5")
    for place, value in enumerate(_locked(part)):
        axis.axvline(value, color=style.MEASURED, lw=1.4, ls="-.",
                     label=None if place else f"locked on validation, {value:.3f}")
    axis.set(xlabel="threshold (probability from which on it is called malignant)", ylim=(0, 1.02), xlim=(0, 1))
    axis.xaxis.label.set_size(8)
    axis.set_ylabel("rate", fontsize=9)
    axis.set_title(f"{name}\n{part['filename'].nunique()} images, {part['case'].nunique()} cases", fontsize=9)
    axis.legend(fontsize=7, framealpha=0.9)


def _groups(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    grouped = table.groupby(["method", "split"], sort=False)
    return {f"{method}, split {split}": part for (method, split), part in grouped}


def _locked(part: pd.DataFrame) -> list[float]:
    """The thresholds that validation set, one a trial; none where nothing was locked."""
    return sorted(set(part["threshold"]) - {metrics.THRESHOLD}) if "threshold" in part else []


class ThresholdSlider:
    """The widget of `threshold`; `box` is what is shown."""

    def __init__(self, table: pd.DataFrame):
        self.groups = _groups(table)
        self.group = _dropdown("predictions", list(self.groups), "380px")
        self.slider = widgets.FloatSlider(description="threshold", min=0, max=1, step=0.005, value=metrics.THRESHOLD,
                                          readout_format=".3f", style={"description_width": "initial"},
                                          layout=widgets.Layout(width="420px", max_width="100%"))
        self.numbers = widgets.HTML()
        self.picture = _picture("520px")
        half = _button("0.5", lambda _: setattr(self.slider, "value", metrics.THRESHOLD))
        self.locked = _button("Locked", lambda _: setattr(self.slider, "value", _locked(self._part())[0]))
        wrap = widgets.Layout(flex_flow="row wrap", align_items="center")
        _show(self.group, len(self.groups) > 1)
        self.box = widgets.VBox([self.group, widgets.Box([self.slider, half, self.locked], layout=wrap),
                                 widgets.Box([self.numbers, self.picture], layout=wrap)])
        self._choose()
        self.group.observe(lambda _: self._choose(), "value")
        self.slider.observe(lambda _: self._move(), "value")

    def _part(self) -> pd.DataFrame:
        return self.groups[self.group.value]

    def _choose(self):
        figure, axis = style.subplots(width=5.2, height=3.6)
        _draw_rates(axis, self.group.value, self._part())
        self.line = axis.axvline(0, color="black", lw=2)
        self.figure = style.finish(figure)
        self.figure.canvas.draw()
        self.figure.set_layout_engine("none")  # laid out once: only the line moves
        self.locked.disabled = len(_locked(self._part())) != 1  # each fold has its own: then there is not the one
        self._move()

    def _move(self):
        self.numbers.value = confusion_html(at_threshold(self._part(), self.slider.value), self.slider.value)
        self.line.set_xdata([self.slider.value] * 2)
        self.picture.value = panel.figure_png(self.figure)


def confusion_html(found: dict, threshold: float) -> str:
    """`at_threshold` as an HTML table: rows true, columns called."""
    cells = [("benign", found["true_negative"], found["false_positive"]),
             ("malignant", found["false_negative"], found["true_positive"])]
    rows = "".join(
        f'<tr><th style="text-align:left;padding:4px 10px;color:{style.COLOURS[name]}">{name}</th>'
        + "".join(f'<td style="text-align:right;padding:4px 14px;border:1px solid #888;font-size:16px">{count}</td>'
                  for count in counts) + "</tr>" for name, *counts in cells)
    figures = "".join(f"<br>{name} <b>{'not defined' if np.isnan(found[name]) else format(found[name], '.3f')}</b>"
                      for name in ("sensitivity", "specificity", "accuracy"))
    more = f"{found['predictions']} predictions on " if found["predictions"] > found["images"] else ""
    return (f'<table style="border-collapse:collapse"><tr><td>true \\ called</td><th style="padding:4px 10px">benign</th>'
            f'<th style="padding:4px 10px">malignant</th></tr>{rows}</table>'
            f'<div style="line-height:1.5">{more}{found["images"]} images, {found["cases"]} cases, '
            f"called at {threshold:.3f}{figures}</div>")


# ---------------------------------------------------------------- an image of your own

def uploaded(value) -> list[tuple[str, bytes]]:
    """(name, content) of each file in the value of an ``ipywidgets.FileUpload``.

    ipywidgets 8 gives a tuple of dicts with ``name`` and ``content`` (a memoryview); 7 gives a dict of name to a dict
    with ``content`` (bytes).
    """
    if isinstance(value, dict):
        return [(name, bytes(file["content"])) for name, file in value.items()]
    return [(file["name"], bytes(file["content"])) for file in value]


def models(run: Run) -> dict[str, Path]:
    """The run's saved models by what they were trained on, the strictest protocol first; of equal names the newest."""
    order, found = list(splits.STRICTEST), []
    for record in (run.folder / "trials").glob("*/trial.json"):  # written last: a trial that was cut off has none
        file, facts = record.parent / "model.keras", json.loads(record.read_text())
        if not file.is_file():  # 06_compare keeps no models
            continue
        name = f"{facts['method']}, split {facts['split']}, fold {facts['fold'] + 1}, seed {facts['seed']}"
        place = order.index(facts["split"]) if facts["split"] in order else len(order)
        found.append((place, name, record.stat().st_mtime, file))
    return {name: file for _, name, _, file in sorted(found)}


def your_image(run: Run, answer: explanation.Explanation) -> panel.Panel:
    """Upload a picture: class, probability, what the network looked at, and a warning if it is unlike the training data.

    The static picture (``figures/own_image``), and what the widget shows first, is the answer to an image at hand.

    Parameters
    ----------
    answer : as from ``evaluate.own_image``; in a run without models there is nothing to upload to, and it says so
    """
    figure, known = run.save_figure("own_image", answer.figure), models(run)
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
        self.model = _dropdown("model", list(known), "460px")
        self.upload = widgets.FileUpload(accept="image/*", multiple=False, description="Choose an image",
                                         layout=widgets.Layout(width="180px"))
        self.answer, self.picture = widgets.HTML(), _picture("520px")
        note = widgets.HTML("PNG, JPEG, TIFF or BMP. It goes to this runtime only. Not a medical device.")
        self.box = widgets.VBox([self.model, self.upload, note, self.answer, self.picture])
        self._show("An image at hand", answer)
        self.upload.observe(lambda _: self._answer(), "value")
        self.model.observe(lambda _: self._answer(), "value")

    def _answer(self):
        files = uploaded(self.upload.value)
        if not files:
            return
        name, content = files[-1]
        self.answer.value = f"Looking at {html.escape(name)} …"
        _show(self.picture, False)
        try:
            answer = explanation.explain(self.known[self.model.value], content, self.run)
        except (InputError, ValueError) as error:  # not a picture: said here, where a traceback would get lost
            self.answer.value = f"<b>{html.escape(name)}</b>: {html.escape(str(error))}"
            return
        self._show(name, answer)

    def _show(self, name: str, answer):
        warning = f"<br><b>⚠ {html.escape(answer.warning)}</b>" if answer.warning else ""
        self.answer.value = f"<b>{html.escape(name)}: {html.escape(answer_line(answer))}</b>{warning}"
        self.picture.value = panel.figure_png(answer.figure)
        self.picture.layout.width = f"{100 * answer.figure.get_figwidth():.0f}px"
        _show(self.picture, True)
