"""Follow one case through the protocols: which of its images train, which test, what the network answers.

Plain ipywidgets, as in `samples`.
"""

import html

import ipywidgets as widgets
import numpy as np
import pandas as pd

from bcdlib import visualize
from bcdlib.data import custom, splits
from bcdlib.evaluation import metrics
from bcdlib.explain import models
from bcdlib.plots import panel, style
from bcdlib.runs.folder import Run

COLOURS = {"test": style.HELD_OUT, "train": style.TRAINING, "validation": style.PUBLISHED}
WORDS = {"test": "test", "train": "training", "validation": "validation"}
UNITS = {"case": "case (accession number)", "slide": "slide"}


def roles_of(split: pd.DataFrame, filenames) -> pd.DataFrame:
    """Look up the roles of some images, in the fold of a split that tests most of them.

    Parameters
    ----------
    split : DataFrame
        Columns filename, fold, role.
    filenames : sequence of str

    Returns
    -------
    DataFrame
        The rows of these images in that fold; of the first fold if none of them is tested.

    Examples
    --------
    >>> split = pd.DataFrame({"filename": ["a", "b"] * 2, "fold": [0, 0, 1, 1]})
    >>> split["role"] = ["train", "train", "train", "test"]
    >>> roles_of(split, ["a", "b"])[["fold", "role"]].to_numpy().tolist()
    [[1, 'train'], [1, 'test']]
    """
    part = split[split["filename"].isin(filenames)]
    tested = part.loc[part["role"] == "test", "fold"].mode()
    return part[part["fold"] == (tested.iloc[0] if len(tested) else part["fold"].min())]


class Protocols:
    """The roles that a run's protocols give to its images, and what was predicted under them.

    Parameters
    ----------
    run : Run
        After 02_preprocess.
    cache : cache.PixelCache
    predictions : DataFrame, optional
        A predictions table. Rows of other seeds than the run's rest on other folds, and are not used.

    Attributes
    ----------
    images : DataFrame
        The cache's image table, with ``row`` (of the cache), by slide and magnification.
    splits : dict of str to DataFrame
        Those that 02_preprocess made; the first one shares the most with training.
    methods : list of str
        Those of which there are predictions.
    """

    def __init__(self, run: Run, cache, predictions: pd.DataFrame | None = None):
        self.cache = cache
        images = cache.images.assign(row=np.arange(len(cache.images)))
        self.images = images.sort_values(["slide", "magnification", "filename"])
        self.splits = {
            name: splits.read_split(run, name) for name in splits.available_splits(run, splits.PROTOCOLS)
        }
        if predictions is None:
            predictions = pd.DataFrame(columns=["seed", "method", "label", "probability"])
        own = predictions["seed"] == run.settings.get("seed", 0)
        self.answers = metrics.with_correct(predictions[own])
        self.methods = self.answers["method"].unique().tolist()

    def names(self, unit: str) -> dict[str, str]:
        """Describe each case or slide in a few words; those of cases with several slides first."""
        images = self.images
        images = images.assign(of=images.groupby("case")["slide"].transform("nunique"))
        found = images.groupby(unit).agg(of=("of", "max"), slides=("slide", "nunique"), n=("of", "size"))
        return {
            row.Index: f"{row.Index}: " + f"{row.slides} slides, " * (row.slides > 1) + f"{row.n} images"
            for row in found.sort_values("of", ascending=False, kind="stable").itertuples()
        }

    def under(self, protocol: str, filenames, method: str = "") -> pd.DataFrame:
        """Look up the roles of images under a protocol, and what was predicted.

        Parameters
        ----------
        protocol : str
            One of `splits`.
        filenames : sequence of str
        method : str

        Returns
        -------
        DataFrame
            The rows of the images (`breakhis.IMAGE_COLUMNS`) that the protocol uses, and ``row`` (of the
            cache), ``fold``, ``role``; of test images that were predicted also ``probability`` (of malignant)
            and ``correct`` (else missing).
        """
        images = self.images[self.images["filename"].isin(filenames)]
        shown = images.merge(roles_of(self.splits[protocol], filenames), on="filename")
        answers = self.answers[self.answers["method"] == method]
        if answers.empty:
            return shown.assign(probability=np.nan, correct=None)
        answers = answers.loc[answers["split"] == protocol, ["filename", "fold", "probability", "correct"]]
        return shown.merge(answers, on=["filename", "fold"], how="left")


def follow_case(run: Run, cache, predictions: pd.DataFrame | None = None) -> panel.Panel:
    """Follow a case or slide from protocol to protocol: its images in training and in test, with answers.

    The figure (``figures/case_roles``, with predictions ``figures/case_answers``): eight images of a case,
    one of several slides if there is one, under each protocol.

    Parameters
    ----------
    run, cache, predictions
        As of `Protocols`.
    """
    protocols = Protocols(run, cache, predictions)
    figure = run.figure("case_answers" if protocols.methods else "case_roles", case_figure(protocols))
    return panel.Panel(figure, lambda: CaseStrips(protocols).box)


def case_figure(protocols: Protocols, columns: int = 8):
    """Draw images of the first case, a row a protocol; frames and captions say which role each has.

    Returns
    -------
    matplotlib Figure
    """
    images, case = protocols.images, next(iter(protocols.names("case")))
    part = images[images["case"] == case]
    turns = visualize.take_turns(part["slide"] + " " + part["magnification"].astype(str), seed=0)
    part = part.iloc[np.sort(turns[:columns])]
    shown, captions, colours = [], [], []
    for name in protocols.splits:
        found = protocols.under(name, part["filename"], next(iter(protocols.methods), ""))
        found = found.set_index("filename").reindex(part["filename"])
        shown += list(protocols.cache.pixels[part["row"]])
        captions += [_short_caption(row) for row in found.itertuples()]
        colours += [COLOURS.get(role, "none") for role in found["role"]]
    figure = style.image_grid(
        shown,
        captions,
        len(part),
        title=f"The same images of case {case} under each protocol",
        headings=[
            f"{row['slide'][-11:]}\n{custom.image_caption(row, ('magnification',))}"
            for _, row in part.iterrows()
        ],
        colours=colours,
    )
    for axis, name in zip(figure.axes[:: len(part)], protocols.splits):
        axis.set_ylabel(name, fontsize=8, weight="bold")
    for axis in figure.axes[: len(part)]:
        axis.title.set_fontsize(8)
    return figure


def _short_caption(row) -> str:
    if pd.isna(row.role):
        return "not used"
    if pd.isna(row.probability):
        return WORDS[row.role]
    return f"{WORDS[row.role]}\n{row.probability:.2f}, {_judged(row)}"


def _judged(row) -> str:
    return "right" if row.correct else "wrong"


class CaseStrips:
    """The widget of `follow_case`; `box` is what is shown."""

    def __init__(self, protocols: Protocols):
        self.protocols, self.images, self.busy = protocols, protocols.images, False
        self.unit = widgets.ToggleButtons(
            description="all images of a",
            options=list(UNITS),
            style={"description_width": "initial", "button_width": "70px"},
            layout=widgets.Layout(width="300px"),
        )
        self.name = panel.dropdown("", (), "420px")
        self.protocol = widgets.SelectionSlider(
            description="protocol",
            options=list(protocols.splits),
            style={"description_width": "initial"},
            layout=widgets.Layout(width="420px", max_width="100%"),
        )
        self.method = panel.dropdown("answers of", protocols.methods, "300px")
        panel.show_widget(self.method, len(protocols.methods) > 1)
        self.said, self.strips = widgets.HTML(), widgets.HTML()
        self.box = widgets.VBox(
            [
                panel.wrapping_row(self.unit, self.name),
                panel.wrapping_row(self.protocol, self.method),
                self.said,
                self.strips,
            ]
        )
        self._list()
        self.unit.observe(lambda _: self._list(), "value")
        for widget in (self.name, self.protocol, self.method):
            widget.observe(lambda _: self._draw(), "value")

    def _list(self):
        """List the cases, or the slides; one of the case that was shown is shown."""
        unit, before = self.unit.value, self.name.value
        names, name = self.protocols.names(unit), None
        if before:
            (other,) = UNITS.keys() - {unit}
            name = self.images.loc[self.images[other] == before, unit].iloc[0]
        self.busy, self.name.description = True, UNITS[unit]
        self.name.options = [(text, value) for value, text in names.items()]
        self.name.value = name or next(iter(names))
        self.busy = False
        self._draw()

    def _draw(self):
        if self.busy:
            return
        protocol, unit = self.protocol.value, self.unit.value
        mine = self.images[unit] == self.name.value
        shown = self.protocols.under(protocol, self.images.loc[mine, "filename"], self.method.value or "")
        lines = (f"{protocol}: {splits.describe_protocol(protocol)}.", self._sentence(shown))
        self.said.value = f'<div style="line-height:1.4">{"<br>".join(map(html.escape, lines))}</div>'
        self.strips.value = "".join(
            strip_html(part, self.protocols.cache.pixels, role)
            for role in WORDS
            if len(part := shown[shown["role"] == role])
        )

    def _sentence(self, shown: pd.DataFrame) -> str:
        unit, tests = self.unit.value, shown["role"] == "test"
        if not tests.any():
            return f"No image of this {unit} is in test."
        fold, split = shown["fold"].iloc[0], self.protocols.splits[self.protocol.value]
        text = f"Fold {fold}: " if split["fold"].nunique() > 1 else ""
        text += f"{tests.sum()} of its images are in test, {(~tests).sum() or 'none'} in training"
        text += " or validation" * ("validation" in set(shown["role"]))
        if unit == "slide" and (kin := self._of_other_slides(shown)):
            text += f"; {kin} of other slides of its case are in training or validation"
        answered = shown["correct"].dropna()
        return f"{text}." + f" {answered.sum()} of {len(answered)} answers are right." * (len(answered) > 0)

    def _of_other_slides(self, shown: pd.DataFrame) -> int:
        """Count the images of the other slides of the case that are not in test."""
        kin = self.images["case"].isin(shown["case"]) & ~self.images["slide"].isin(shown["slide"])
        split = self.protocols.splits[self.protocol.value]
        found = split[split["filename"].isin(self.images.loc[kin, "filename"])]
        return int(((found["fold"] == shown["fold"].iloc[0]) & (found["role"] != "test")).sum())


def strip_html(shown: pd.DataFrame, pixels: np.ndarray, role: str) -> str:
    """Write images of one role as a row of HTML that wraps, each with a text for those who cannot see it.

    Parameters
    ----------
    shown : DataFrame
        Rows of `Protocols.under`.
    pixels : uint8 array (N, height, width, 3)
        The cache's.
    role : str
    """
    figures = []
    for _, row in shown.iterrows():
        about, answer = custom.image_caption(row, ("class", "magnification", "slide")), ""
        if not pd.isna(row["probability"]):
            answer = f"{models.prediction_caption(row['probability'])}, {_judged(row)}"
        alt = ", ".join(filter(None, [about, f"in {WORDS[role]}", answer]))
        frame = f"margin:0;width:104px;border-top:3px solid {style.COLOURS[row['class']]}"
        figures.append(
            f'<figure style="{frame}">{panel.image_html(pixels[row["row"]], alt, widest=144, kind="webp")}'
            f'<figcaption style="font-size:11px;line-height:1.25;overflow-wrap:anywhere">{html.escape(about)}'
            f"<br><b>{answer}</b></figcaption></figure>"
        )
    return (
        f'<div style="border-left:6px solid {COLOURS[role]};padding-left:8px;margin:8px 0"><div>'
        f"<b>In {WORDS[role]}: {len(shown)}</b></div>"
        f'<div style="display:flex;flex-wrap:wrap;gap:6px">{"".join(figures)}</div></div>'
    )
