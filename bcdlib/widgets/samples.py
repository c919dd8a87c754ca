"""To be looked at: browse the samples, move the threshold, try an image of your own.

Each function returns a `panel.Panel`: a widget where somebody can click, a figure in a headless run. Plain
ipywidgets without JavaScript of its own, so that Colab (ipywidgets 7) and JupyterLab (8) show the same.
"""

import html

import ipywidgets as widgets
import numpy as np
import pandas as pd

from bcdlib.data import breakhis, custom, sources, stain
from bcdlib.data.decode import decode_all
from bcdlib.errors import InputError
from bcdlib.methods.parts import backbones
from bcdlib.methods.parts.augmentation import augmented
from bcdlib.plots import panel, style
from bcdlib.runs.folder import Run

FILTERS = ("class", "subtype", "magnification", "slide")
PAGE = 8  # pictures at a time
STAIN_REFERENCE = 12  # pictures that the stain is fitted on
ALL = ""


# ---------------------------------------------------------------- samples


def matching_rows(images: pd.DataFrame, **chosen) -> np.ndarray:
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


def filter_choices(images: pd.DataFrame, **chosen) -> dict[str, list]:
    """What can be asked for in each of `FILTERS`, given the filters before it: so no choice leads to no picture."""
    found = {}
    for place, column in enumerate(FILTERS):
        before = {name: chosen.get(name, ALL) for name in FILTERS[:place]}
        # what is not there (of the choice before) is not asked for any more
        before = {name: value if value in found[name] else ALL for name, value in before.items()}
        found[column] = sorted(images[column].iloc[matching_rows(images, **before)].unique().tolist())
    return found


def turn_page(start: int, pages: int, total: int, *, size: int = PAGE) -> int:
    """First place of the page so many pages on; after the last page comes the first, before the first the last."""
    count = max(1, -(-total // size))
    return (start // size + pages) % count * size


class Views:
    """The stages at which a cached image can be looked at.

    Parameters
    ----------
    cache : cache.PixelCache
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
            read = {name: array for name, array, _ in decode_all(self.source, images, progress=False)}
            # a file that went away since it was cached is shown as it was cached
            found = [read.get(name) for name in images["filename"]]
            return [small if full is None else full for full, small in zip(found, batch, strict=True)]
        if (
            view == "normalised"
        ):  # each channel stretched to its own range, as screens cannot show negative light
            shown = backbones.normalised_for_display(batch, self.architecture)
            batch = (255 * shown).round().astype("uint8")
        if view == "augmented":
            batch = augmented(batch, self.seed)
        if view == "stain-normalised":
            batch = stain.normalise_stain(batch, self.target)
        return list(batch)


def _stain_target(cache, seed: int):
    """What stain normalisation brings pictures to; None if no picture shows stained tissue."""
    rows = np.random.default_rng(seed).permutation(len(cache.images))[:STAIN_REFERENCE]
    try:
        return stain.fit_stain("macenko", np.asarray(cache.pixels[np.sort(rows)]))
    except InputError:
        return None


def caption(image) -> str:
    """One line on an image (a row of an image table): class, subtype, magnification, slide; what is known of it."""
    parts = [image["class"], image["subtype"] if image["subtype"] != breakhis.UNKNOWN else ""]
    parts += [f"{image['magnification']}X" if image["magnification"] else "", f"slide {image['slide']}"]
    return ", ".join(filter(None, parts))


def browse_samples(run: Run, cache, source=None, *, seed: int = 0) -> panel.Panel:
    """Browse the cached images: filters, the stages of preprocessing, pages; a click on a picture enlarges it.

    The static picture (``figures/browser``): two images of each class, at each stage.

    Parameters
    ----------
    cache : cache.PixelCache
    source : sources.Source, optional, for the originals
    """
    views = Views(cache, source, seed)
    figure = run.figure("browser", _sheet(views, seed))
    return panel.Panel(figure, lambda: SampleBrowser(views).box)


def _sheet(views: Views, seed: int, per_class: int = 2):
    images = views.cache.images
    mixed = np.random.default_rng(seed).permutation(len(images))
    rows = np.concatenate(
        [mixed[(images["class"] == name).to_numpy()[mixed]][:per_class] for name in breakhis.CLASSES]
    )
    columns = [views.of(rows, name) for name in views.names]
    pictures = [column[place] for place in range(len(rows)) for column in columns]
    captions = []
    for row in rows:
        image = images.iloc[row]
        captions += [
            caption(image).replace(", slide", "\nslide") if name == views.names[0] else ""
            for name in views.names
        ]
    colours = np.repeat(images["class"].iloc[rows].map(style.COLOURS), len(views.names)).tolist()
    figure = style.image_grid(
        pictures, captions, len(views.names), title="The same images at each stage", colours=colours
    )
    for axis, name in zip(figure.axes, views.names, strict=False):
        axis.set_title(name, fontsize=9)
    return figure


class SampleBrowser:
    """The widget of `samples`; `box` is what is shown."""

    def __init__(self, views: Views):
        self.views, self.images, self.start, self.busy = views, views.cache.images, 0, False
        self.order = np.random.default_rng(views.seed).permutation(
            len(self.images)
        )  # a page shows several slides
        self.filters = {name: panel.dropdown(name, ()) for name in FILTERS}
        self.view = panel.dropdown("show", views.names)
        self.view.value = "resized"
        self.where = widgets.HTML()
        self.cells = [_Cell(lambda _, place=place: self._enlarge(place)) for place in range(PAGE)]
        self.large, self.about = panel.image_widget("700px"), widgets.HTML()
        self.enlarged = widgets.VBox(
            [self.about, self.large, panel.button("Close", lambda _: panel.show_widget(self.enlarged, False))]
        )
        self.box = self._arrange()
        self._filter()
        for widget in [*self.filters.values(), self.view]:
            widget.observe(self._changed, "value")

    def _arrange(self):
        pages = [
            panel.button("◀ Previous", lambda _: self._turn(-1)),
            panel.button("Next ▶", lambda _: self._turn(1)),
            self.where,
        ]
        wrap = widgets.Layout(flex_flow="row wrap", align_items="center")
        grid = widgets.GridBox(
            [cell.box for cell in self.cells],
            layout=widgets.Layout(
                grid_template_columns="repeat(auto-fill, minmax(max(150px, 22%), 1fr))",
                grid_gap="8px",
                width="100%",
            ),
        )
        panel.show_widget(self.enlarged, False)
        return widgets.VBox(
            [
                widgets.Box([*self.filters.values(), self.view], layout=wrap),
                widgets.Box(pages, layout=wrap),
                self.enlarged,
                grid,
            ]
        )

    def _changed(self, change):
        if not self.busy:  # filters that follow from another one do not redraw once more
            self._filter() if change["owner"] is not self.view else self._draw()

    def _filter(self):
        self.busy, chosen = True, {name: widget.value or ALL for name, widget in self.filters.items()}
        for name, values in filter_choices(self.images, **chosen).items():
            label = custom.magnification_label if name == "magnification" else str
            self.filters[name].options = [("all", ALL), *((label(value), value) for value in values)]
            self.filters[name].value = chosen[name] if chosen[name] in values else ALL
        self.busy, self.start = False, 0
        fits = matching_rows(self.images, **{name: widget.value for name, widget in self.filters.items()})
        self.rows = self.order[np.isin(self.order, fits)]
        self._draw()

    def _turn(self, pages: int):
        self.start = turn_page(self.start, pages, len(self.rows))
        self._draw()

    def _draw(self):
        shown = self.rows[self.start : self.start + PAGE]
        panel.show_widget(self.enlarged, False)
        self.where.value = f"{self.start + 1} to {self.start + len(shown)} of {len(self.rows)} images"
        self.pictures = self.views.of(shown, self.view.value)
        for place, cell in enumerate(self.cells):
            panel.show_widget(cell.box, place < len(shown))
            if place < len(shown):
                cell.fill(self.pictures[place], self.images.iloc[shown[place]])

    def _enlarge(self, place: int):
        picture, image = self.pictures[place], self.images.iloc[self.rows[self.start + place]]
        size = f"{picture.shape[1]} × {picture.shape[0]} pixels"
        self.about.value = html.escape(f"{caption(image)}: {self.view.value}, {size} ({image['filename']})")
        self.large.value = panel.png_bytes(panel.fit_width(picture, 500, 1400))
        panel.show_widget(self.enlarged, True)


class _Cell:
    """A picture with its caption. A clear button lies over the picture, because ipywidgets' pictures take no clicks."""

    def __init__(self, clicked):
        here = {"grid_area": "1 / 1 / 2 / 2"}
        self.picture = widgets.Image(
            format="png", layout=widgets.Layout(width="100%", height="auto", margin="0", **here)
        )
        self.over = widgets.Button(
            tooltip="Enlarge", layout=widgets.Layout(width="auto", height="auto", margin="0", **here)
        )
        self.over.style.button_color = "transparent"
        self.over.on_click(clicked)
        self.text = widgets.HTML()
        both = widgets.GridBox([self.picture, self.over], layout=widgets.Layout(grid_template_columns="100%"))
        self.box = widgets.VBox([both, self.text])

    def fill(self, picture, image):
        self.picture.value = panel.png_bytes(panel.fit_width(picture, 320, 400))
        self.over.tooltip = f"Enlarge {image['filename']}"
        colour = style.COLOURS[image["class"]]
        self.text.value = (
            f'<div style="border-top:3px solid {colour};line-height:1.3;font-size:12px">'
            f"{html.escape(caption(image))}</div>"
        )
