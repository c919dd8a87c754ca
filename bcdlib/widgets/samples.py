"""Browse the samples.

Plain ipywidgets without JavaScript of its own, so that Colab (ipywidgets 7) and JupyterLab (8) show the same.
"""

import contextlib
import html

import ipywidgets as widgets
import numpy as np
import pandas as pd

from bcdlib import visualize
from bcdlib.data import custom, decode, sources, stain
from bcdlib.errors import InputError, check_known
from bcdlib.methods.parts import augmentation, backbones
from bcdlib.plots import panel, style
from bcdlib.runs.folder import Run

FILTERS = ("class", "subtype", "magnification", "case", "slide")
PAGE = 8  # images at a time
ALL = ""


def matching_rows(images: pd.DataFrame, **chosen) -> np.ndarray:
    """Find the images with these values.

    Parameters
    ----------
    images : DataFrame
    **chosen
        Values by column (``class`` with ``**{"class": "benign"}``); "" takes all.

    Returns
    -------
    int array (n,)
        Positions.

    Examples
    --------
    >>> images = pd.DataFrame({"slide": ["a", "b", "a"], "magnification": 40})
    >>> matching_rows(images, slide="a", magnification="")
    array([0, 2])
    """
    chosen = pd.Series({column: value for column, value in chosen.items() if value != ALL}, dtype=object)
    return np.flatnonzero((images[chosen.index] == chosen).all(axis=1))


def filter_choices(images: pd.DataFrame, **chosen) -> dict[str, list]:
    """List the values of each of `FILTERS` that occur, given the filters before it."""
    found = {}
    for place, column in enumerate(FILTERS):
        # a value that does not occur any more (given the choice before) is not asked for
        before = {name: chosen[name] for name in FILTERS[:place] if chosen.get(name, ALL) in found[name]}
        found[column] = sorted(images[column].iloc[matching_rows(images, **before)].unique().tolist())
    return found


def turn_page(start: int, pages: int, total: int, *, size: int = PAGE) -> int:
    """Return the first position of the page so many pages on; the last page is followed by the first.

    Examples
    --------
    >>> turn_page(0, 1, 20), turn_page(16, 1, 20), turn_page(0, -1, 20)
    (8, 0, 16)
    """
    count = max(1, -(-total // size))
    return (start // size + pages) % count * size


class Views:
    """The stages of preprocessing at which a cached image can be looked at.

    Parameters
    ----------
    cache : cache.PixelCache
    source : sources.Source, optional
        Without it, or from a .tar that would be read to its end for each page, there is no view ``raw``.
    seed : int

    Attributes
    ----------
    views : dict of str to callable
        What makes them from rows of the cache: of raw, resized, normalised, augmented and stain-normalised
        those that there are.
    """

    def __init__(self, cache, source=None, *, seed: int = 0):
        self.cache, self.source, self.seed, pixels = cache, source, seed, cache.pixels
        self.views = (
            {} if source is None or isinstance(source, sources.TarSource) else {"raw": self._originals}
        )
        self.views |= {
            "resized": lambda rows: pixels[rows],
            "normalised": lambda rows: backbones.normalised_for_display(pixels[rows]),
            "augmented": lambda rows: augmentation.augmented(pixels[rows], seed),
        }
        some = np.random.default_rng(seed).permutation(len(pixels))[:12]  # to fit the stain on
        with contextlib.suppress(InputError):  # no image shows stained tissue
            self.target = stain.fit_stain("macenko", pixels[np.sort(some)])
            self.views["stain-normalised"] = lambda rows: stain.normalise_stain(pixels[rows], self.target)

    def of(self, rows, view: str) -> list[np.ndarray]:
        """Return the images of these rows of the cache in one view; uint8 (height, width, 3) each.

        Raises
        ------
        InputError
            If the view is unknown.
        """
        check_known("view", view, self.views)
        return list(self.views[view](rows))

    def _originals(self, rows):
        images = self.cache.images.iloc[rows]
        originals = {
            name: array
            for name, array, _ in decode.decode_all(self.source, images, progress=False)
            if array is not None
        }
        # a file that went away since it was cached is shown as it was cached
        return list(map(originals.get, images["filename"], self.cache.pixels[rows]))


def browse_samples(run: Run, cache, source=None, *, seed: int = 0) -> panel.Panel:
    """Browse the cached images: filters, the stages of preprocessing, pages; a click on an image enlarges it.

    The figure (``figures/browser``): two images of each class, at each stage.

    Parameters
    ----------
    run : Run
    cache : cache.PixelCache
    source : sources.Source, optional
        For the originals.
    seed : int
    """
    views = Views(cache, source, seed=seed)
    rows = visualize.take_turns(cache.images["class"], seed=seed)[:4]
    figure = visualize.stages_figure(
        cache,
        rows,
        {name: views.of(rows, name) for name in views.views},
        title="The same images at each stage",
    )
    return panel.Panel(run.figure("browser", figure), lambda: SampleBrowser(views).box)


class SampleBrowser:
    """The widget of `browse_samples`; `box` is what is shown."""

    def __init__(self, views: Views):
        self.views, self.images, self.busy = views, views.cache.images, False
        # a page shows several slides
        self.order = np.random.default_rng(views.seed).permutation(len(self.images))
        self.filters = {name: panel.dropdown(name, ()) for name in FILTERS}
        self.view = panel.dropdown("show", list(views.views), value="resized")
        self.where, self.about = widgets.HTML(), widgets.HTML()
        self.large = widgets.HTML(layout=widgets.Layout(width="700px", max_width="100%"))
        self.enlarged = widgets.VBox(
            [
                self.about,
                self.large,
                panel.button("Close", lambda: panel.show_widget(self.enlarged, False)),
            ]
        )
        self.cells = [_Cell(lambda _, place=place: self._enlarge(place)) for place in range(PAGE)]
        self.box = widgets.VBox(
            [
                panel.wrapping_row(*self.filters.values(), self.view),
                panel.wrapping_row(
                    panel.button("◀ Previous", lambda: self._turn(-1)),
                    panel.button("Next ▶", lambda: self._turn(1)),
                    self.where,
                ),
                self.enlarged,
                widgets.GridBox(
                    [cell.box for cell in self.cells],
                    layout=widgets.Layout(
                        grid_template_columns="repeat(auto-fill, minmax(max(150px, 22%), 1fr))",
                        grid_gap="8px",
                        width="100%",
                    ),
                ),
            ]
        )
        self._filter()
        for widget in self.filters.values():
            widget.observe(lambda _: self._filter(), "value")
        self.view.observe(lambda _: self._draw(), "value")

    def _filter(self):
        if self.busy:  # filters that follow from another one do not redraw once more
            return
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
        rows = self.rows[self.start : self.start + PAGE]
        panel.show_widget(self.enlarged, False)
        self.where.value = f"{self.start + 1} to {self.start + len(rows)} of {len(self.rows)} images"
        self.shown = self.views.of(rows, self.view.value)
        for place, cell in enumerate(self.cells):
            panel.show_widget(cell.box, place < len(rows))
            if place < len(rows):
                cell.fill(self.shown[place], self.images.iloc[rows[place]])

    def _enlarge(self, place: int):
        pixels, image = self.shown[place], self.images.iloc[self.rows[self.start + place]]
        about = (
            f"{custom.image_caption(image)}: {self.view.value}, {pixels.shape[1]} × {pixels.shape[0]} pixels "
            f"({image['filename']})"
        )
        self.about.value = html.escape(about)
        self.large.value = panel.image_html(pixels, about, narrowest=500, widest=1400)
        panel.show_widget(self.enlarged, True)


class _Cell:
    """An image with its caption, under a clear button: ipywidgets' HTML takes no clicks."""

    def __init__(self, clicked):
        place = {"grid_area": "1 / 1 / 2 / 2", "width": "auto", "height": "auto", "margin": "0"}
        self.shown = widgets.HTML(layout=widgets.Layout(**place))
        self.over = widgets.Button(style={"button_color": "transparent"}, layout=widgets.Layout(**place))
        self.over.on_click(clicked)
        self.box = widgets.GridBox([self.shown, self.over], layout={"grid_template_columns": "100%"})

    def fill(self, pixels, image):
        """Show the pixels of an image and describe the image, a row of an image table."""
        caption = custom.image_caption(image)
        self.over.tooltip = f"Enlarge {image['filename']}"
        self.shown.value = (
            f"{panel.image_html(pixels, caption, narrowest=320, widest=400)}"
            f'<div style="border-top:3px solid {style.COLOURS[image["class"]]};'
            f'line-height:1.3;font-size:12px">{html.escape(caption)}</div>'
        )
