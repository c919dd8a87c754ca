"""Figures of the data set: samples, what preprocessing and augmentation make of them, counts, stains.

All of them return a matplotlib Figure.
"""

import itertools

import numpy as np
import pandas as pd

from bcdlib.data import breakhis, custom, decode, stain
from bcdlib.errors import InputError
from bcdlib.methods.parts import augmentation, backbones
from bcdlib.plots import style
from bcdlib.runs import lesson

IMAGES_PER_SLIDE = 24  # enough for a steady mean, few enough for the whole of BreakHis in seconds
# colours that colour-blind readers tell apart
CHANNELS = {
    "R": {"label": "red", "color": "#D55E00", "linestyle": "-"},
    "G": {"label": "green", "color": "#009E73", "linestyle": "--"},
    "B": {"label": "blue", "color": "#0072B2", "linestyle": ":"},
}


def class_samples_figure(images: pd.DataFrame, source, per_class: int = 4, *, seed: int = 0):
    """Draw Figure 3 of the paper: originals at full size, row (a) benign, row (b) malignant.

    Subtypes take turns. Others stand in for images that cannot be read.

    Parameters
    ----------
    images : DataFrame
        Columns filename, class, subtype, magnification and path (inside the source).
    source : sources.Source
    per_class : int
        Images a row.
    seed : int

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    InputError
        If not one image can be read.
    """
    images = images.iloc[take_turns(images["subtype"], seed=seed)]
    found = {
        name: list(itertools.islice(_read_samples(part, source, per_class), per_class))
        for name, part in images.groupby("class")
    }
    found = {name: samples for name, samples in found.items() if samples}
    if not found:
        raise InputError(f"{source.path}: none of these {len(images)} images can be read")
    columns = max(map(len, found.values()))
    rows = [samples + [(None, "")] * (columns - len(samples)) for samples in found.values()]
    shown, texts = zip(*itertools.chain(*rows), strict=True)
    sizes = {image.shape[1::-1] for image in shown if image is not None}
    size = "{} × {} pixels".format(*sizes.pop()) if len(sizes) == 1 else "of several sizes"
    figure = style.image_grid(
        shown,
        texts,
        columns,
        title=f"Originals, {size}",
        colours=np.repeat([style.COLOURS[name] for name in found], columns),
    )
    for axis, name in zip(figure.axes[::columns], found, strict=True):
        axis.set_ylabel(
            f"({'ab'[breakhis.CLASSES.index(name)]}) {name}", color=style.COLOURS[name], weight="bold"
        )
    return figure


def random_samples_figure(cache, n: int = 12, *, seed: int = 0):
    """Draw random images of a `cache.PixelCache`, with encoded labels: "0 benign, F, 100X"."""
    rows = np.random.default_rng(seed).permutation(len(cache.images))[:n]
    return style.image_grid(
        cache.pixels[rows],
        _captions(cache, rows),
        4,
        title="Random images at the new size, {} × {} pixels, with encoded labels".format(*cache.size),
        colours=cache.images["class"].iloc[rows].map(style.COLOURS),
    )


def augmented_samples_figure(cache, n: int = 4, copies: int = 5, *, seed: int = 0):
    """Draw in each row a cached image, then `copies` versions of it as training sees them."""
    rows = take_turns(cache.images["class"], seed=seed)[:n]
    versions = augmentation.augmented(np.repeat(cache.pixels[rows], copies, axis=0), seed)
    return stages_figure(
        cache,
        rows,
        {
            "cached": cache.pixels[rows],
            **{f"augmented {copy + 1}": versions[copy::copies] for copy in range(copies)},
        },
        title="Left the cached image, then random flips and zooms of up to 10 %",
    )


def normalised_samples_figure(cache, architecture: str = "resnet50", n: int = 4, *, seed: int = 0):
    """Draw in each row a cached image, the same normalised for the network, and the histogram of its values.

    Raises
    ------
    InputError
        If the architecture is unknown.
    """
    rows = take_turns(cache.images["class"], seed=seed)[:n]
    values = backbones.normalise_images(cache.pixels[rows], architecture)
    order = "BGR" if backbones.ARCHITECTURES[architecture].mode == "caffe" else "RGB"
    figure = stages_figure(
        cache,
        rows,
        {
            "cached": cache.pixels[rows],
            "normalised": backbones.normalised_for_display(cache.pixels[rows], architecture),
            "histogram of the channels": [None] * len(rows),
        },
        title=f"Normalised for {architecture}: channels {order} in this order, each rescaled for display",
    )
    for image_axis, axis, value in zip(figure.axes[1::3], figure.axes[2::3], values, strict=True):
        image_axis.set_xlabel(f"values {value.min():.4g} to {value.max():.4g}".replace("-", "−"), fontsize=9)
        axis.axis("on")
        for channel, letter in enumerate(order):
            share, edges = np.histogram(value[..., channel], bins=32, range=(values.min(), values.max()))
            axis.stairs(100 * share / share.sum(), edges, lw=1.4, **CHANNELS[letter])
        axis.set_ylabel("pixels [%]", fontsize=9)
    axis.set_xlabel("normalised value [no unit]", fontsize=9)
    figure.axes[2].legend(frameon=False, fontsize=8, handlelength=1.6)
    return figure


def stages_figure(cache, rows, stages: dict, *, title: str):
    """Draw cached images at several stages of preprocessing, a row an image.

    Parameters
    ----------
    cache : cache.PixelCache
    rows : int array (n,)
        Of the cache.
    stages : dict
        Heading -> n images, uint8 (height, width, 3), or None.
    title : str
    """
    images = [image for row in zip(*stages.values(), strict=True) for image in row]
    texts = [""] * len(images)
    texts[:: len(stages)] = [
        f"{caption}\nslide {slide}"
        for caption, slide in zip(_captions(cache, rows), cache.images["slide"].iloc[rows], strict=True)
    ]
    return style.image_grid(
        images,
        texts,
        len(stages),
        title=title,
        headings=stages,
        colours=np.repeat(cache.images["class"].iloc[rows].map(style.COLOURS), len(stages)),
    )


def counts_figure(images: pd.DataFrame):
    """Draw the numbers of images, by magnification and by subtype.

    Of BreakHis all magnifications and subtypes are shown, of other images those that there are.

    Parameters
    ----------
    images : DataFrame
        Columns filename, class, subtype, magnification.
    """
    figure, (left, right) = style.make_figure(1, 2, height=3.6, width_ratios=[1.25, 1])
    standard = breakhis.is_breakhis(images)
    magnifications = breakhis.MAGNIFICATIONS if standard else sorted(images["magnification"].unique())
    counts = breakhis.count_table_i(images, magnifications).loc[list(breakhis.CLASSES)]
    counts.index = [f"{name} ({total})" for name, total in counts.pop("total").items()]
    counts = counts.rename(columns=custom.magnification_label)
    counts.T.plot.bar(ax=left, width=0.8, rot=0, color=list(style.COLOURS.values()))
    # a margin with room for the legend above the bars
    left.set(
        xlabel="magnification", ylabel="number of images", title="By magnification and class", ymargin=0.22
    )
    left.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", handlelength=1.2, columnspacing=1)
    kinds = images.groupby(["class", "subtype"]).size()
    if standard:
        kinds = kinds.reindex(
            [(breakhis.CLASSES[code not in breakhis.BENIGN], code) for code in breakhis.SUBTYPES],
            fill_value=0,
        )
    right.barh(
        [f"{_subtype_name(code)} ({code if standard else name})" for name, code in kinds.index],
        kinds,
        color=[style.COLOURS[name] for name, _ in kinds.index],
    )
    right.yaxis.set_inverted(True)
    right.set(xlabel="number of images", title="By subtype", xmargin=0.2)
    for numbers in (left.yaxis, right.xaxis):
        numbers.get_major_locator().set_params(integer=True)
    for axis in (left, right):
        for bars in axis.containers:
            axis.bar_label(bars, fontsize=8, padding=2)
    return figure


def stain_figure(cache, *, seed: int = 0):
    """Draw each slide at its mean hematoxylin and eosin density, and beside it the slides' mean colours.

    By colour deconvolution with fixed stain vectors, from up to `IMAGES_PER_SLIDE` random images a slide.
    """
    slides = _slide_means(cache, seed)
    figure, (plane, *strips) = style.make_figure(1, 3, height=4.6, width_ratios=[7, 1.1, 1.1])
    for _, case in slides.groupby("case"):
        plane.plot(case["hematoxylin"], case["eosin"], color="#555555", lw=0.9, zorder=1)
    for (name, colour), axis, shape in zip(style.COLOURS.items(), strips, "o^", strict=True):
        group = slides[slides["class"] == name].sort_values("brightness")
        face = group[["red", "green", "blue"]].to_numpy() / 255
        marker = {"s": 130, "marker": shape, "edgecolors": colour, "linewidths": 1.8}
        plane.scatter([], [], c="white", label=f"{name} ({len(group)} slides)", **marker)
        if len(group):
            plane.scatter(group["hematoxylin"], group["eosin"], c=face, zorder=2, **marker)
            axis.imshow(face[:, None], aspect="auto", interpolation="nearest")
        axis.set_title(name, color=colour, fontsize=9)
        axis.set(xticks=[], yticks=[], frame_on=False)
    strips[0].set_ylabel("mean colour of each slide, dark at the top", fontsize=9)
    plane.plot([], [], color="#555555", lw=0.9, label="slides of one case")
    plane.legend(frameon=False, fontsize=8)
    plane.set(
        xlabel="hematoxylin, mean optical density (no unit)", ylabel="eosin, mean optical density (no unit)"
    )
    figure.suptitle("Each slide has its own stain (marker and stripe: its mean colour)", fontsize=11)
    return figure


def findings(cache) -> str:
    """Say in three lines what 03_visualize showed, as Markdown."""
    images, colours = cache.images, _mean_colours(cache)
    within = colours - colours.groupby(images["slide"].to_numpy()).transform("mean")
    share = 1 - within.var(ddof=0).sum() / colours.var(ddof=0).sum()
    bright = colours.mean(axis=1).groupby(images["slide"].to_numpy()).mean()
    counts = images["subtype"].value_counts()
    return lesson.findings_text(
        [
            f"{len(counts)} subtypes, from {counts.iloc[-1]} images ({_subtype_name(counts.index[-1])}) to "
            f"{counts.iloc[0]} ({_subtype_name(counts.index[0])}).",
            f"The mean brightness of a slide lies between {bright.min():.0f} and {bright.max():.0f} (of "
            "255), and flips and zooms hardly change it.",
            f"{100 * share:.0f} % of the variance of the images' mean colour lies between slides: a "
            "network can recognise a slide by its colour alone.",
        ]
    )


def check_exercise(cache, answer: float | None) -> str:
    """Check the exercise of 03_visualize: the accuracy, in percent, of always predicting the larger class."""
    return lesson.check_answer(
        answer,
        100 * cache.images["class"].value_counts(normalize=True).max(),
        tolerance=0.6,
        lesson="Compare any accuracy with this one first.",
    )


def _mean_colours(cache) -> pd.DataFrame:
    """Mean red, green and blue of each image, from every fourth pixel both ways."""
    return pd.DataFrame([image[::4, ::4].mean(axis=(0, 1)) for image in cache.pixels])


def _slide_means(cache, seed: int) -> pd.DataFrame:
    """Return one row a slide: class, mean colour (0..255), brightness, and the densities of both stains."""
    random = np.random.default_rng(seed)
    density = -np.log10(np.maximum(np.arange(256), 1) / 255)  # Beer-Lambert, against white glass
    # the third vector takes up what neither stain explains
    vectors = np.vstack([stain.RUIFROK_HE, np.cross(*stain.RUIFROK_HE)])
    separate = np.linalg.inv(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    found = []
    # by class too: a slide that is not BreakHis's may hold both
    for (slide, name), rows in cache.images.groupby(["slide", "class"]).indices.items():
        rows = np.sort(random.permutation(rows)[:IMAGES_PER_SLIDE])
        # every second pixel both ways; the deconvolution is linear, so it may act on the mean
        sample = cache.pixels[rows, ::2, ::2]
        colour = sample.mean(axis=(0, 1, 2))
        stains = density[sample].mean(axis=(0, 1, 2)) @ separate
        found.append([slide, cache.images["case"].iloc[rows[0]], name, *colour, colour.mean(), *stains[:2]])
    return pd.DataFrame(found, columns="slide case class red green blue brightness hematoxylin eosin".split())


def _read_samples(images: pd.DataFrame, source, at_once: int):
    """Yield (image, caption) of the readable images, from passes of so many through the source."""
    images = images.assign(subtype=images["subtype"].map(_subtype_name))
    for start in range(0, len(images), at_once):
        part = images.iloc[start : start + at_once]
        decoded = {name: array for name, array, _ in decode.decode_all(source, part, progress=False)}
        for _, image in part.iterrows():
            if decoded.get(image["filename"]) is not None:
                yield decoded[image["filename"]], custom.image_caption(image, ("subtype", "magnification"))


def take_turns(groups: pd.Series, *, seed: int) -> np.ndarray:
    """Order the rows at random, but so that the groups take turns: few rows show all of them.

    Parameters
    ----------
    groups : Series (N,)
        The group of each row.
    seed : int

    Returns
    -------
    int array (N,)
        Positions.

    Examples
    --------
    >>> groups = pd.Series(["benign", "benign", "benign", "malignant"])
    >>> sorted(groups[take_turns(groups, seed=0)[:2]])
    ['benign', 'malignant']
    """
    order = np.random.default_rng(seed).permutation(len(groups))
    turn = pd.Series(order).groupby(groups.to_numpy()[order]).cumcount()
    return order[np.argsort(turn.to_numpy(), kind="stable")]


def _captions(cache, rows) -> list[str]:
    """Return encoded label, class, and what else is known of each row."""
    return [
        f"{breakhis.CLASSES.index(image['class'])} "
        + custom.image_caption(image, ("class", "subtype", "magnification"))
        for _, image in cache.images.iloc[rows].iterrows()
    ]


def _subtype_name(subtype: str) -> str:
    return breakhis.SUBTYPES.get(subtype, subtype).replace("_", " ")
