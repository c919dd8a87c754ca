"""Figures of the data set: samples, what preprocessing and augmentation make of them, counts, stains.

All of them return a matplotlib Figure.
"""

import numpy as np
import pandas as pd

from bcdlib.data import custom
from bcdlib.data.breakhis import BENIGN, CLASSES, MAGNIFICATIONS, SUBTYPES, count_table_i, is_breakhis
from bcdlib.data.decode import decode_all
from bcdlib.data.stain import RUIFROK_HE
from bcdlib.errors import InputError
from bcdlib.methods.parts import backbones
from bcdlib.methods.parts.augmentation import augmented
from bcdlib.plots import style

IMAGES_PER_SLIDE = 24  # enough for a steady mean, few enough for the whole of BreakHis in seconds
# channel -> name, colour (told apart by colour-blind readers) and line
CHANNELS = {"R": ("red", "#D55E00", "-"), "G": ("green", "#009E73", "--"), "B": ("blue", "#0072B2", ":")}


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
    found = {name: _read_samples(images[images["class"] == name], source, per_class) for name in CLASSES}
    found = {name: samples for name, samples in found.items() if samples}
    if not found:
        raise InputError(f"{source.path}: none of these {len(images)} images can be read")
    columns = max(map(len, found.values()))
    cells = []
    for samples in found.values():
        cells += samples + [(None, "")] * (columns - len(samples))
    shown, captions = zip(*cells, strict=True)
    sizes = {image.shape[1::-1] for image in shown if image is not None}
    size = "{} × {} pixels".format(*sizes.pop()) if len(sizes) == 1 else "of several sizes"
    colours = np.repeat([style.COLOURS[name] for name in found], columns)
    figure = style.image_grid(shown, captions, columns, title=f"Originals, {size}", colours=colours)
    for axis, name in zip(figure.axes[::columns], found, strict=True):
        letter = "ab"[CLASSES.index(name)]
        axis.set_ylabel(f"({letter}) {name}", color=style.COLOURS[name], weight="bold")
    return figure


def random_samples_figure(cache, n: int = 12, *, seed: int = 0):
    """Draw random images of a `cache.PixelCache`, with encoded labels: "0 benign, F, 100X"."""
    rows = np.random.default_rng(seed).permutation(len(cache.images))[:n]
    title = "Random images at the new size, {} × {} pixels, with encoded labels".format(*cache.size)
    colours = cache.images["class"].iloc[rows].map(style.COLOURS)
    return style.image_grid(cache.pixels[rows], _captions(cache, rows), 4, title=title, colours=colours)


def augmented_samples_figure(cache, n: int = 4, copies: int = 5, *, seed: int = 0):
    """Draw in each row a cached image, then `copies` versions of it as training sees them."""
    rows = take_turns(cache.images["class"], seed=seed)[:n]
    versions = augmented(np.repeat(cache.pixels[rows], copies, axis=0), seed)
    stages = {f"augmented {copy + 1}": versions[copy::copies] for copy in range(copies)}
    title = "Left the cached image, then random flips and zooms of up to 10 %"
    return stages_figure(cache, rows, {"cached": cache.pixels[rows]} | stages, title=title)


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
    stages = {
        "cached": cache.pixels[rows],
        "normalised": backbones.normalised_for_display(cache.pixels[rows], architecture),
        "histogram of the channels": [None] * len(rows),
    }
    title = f"Normalised for {architecture}: channels {order} in this order, each rescaled for display"
    figure = stages_figure(cache, rows, stages, title=title)
    for image_axis, axis, value in zip(figure.axes[1::3], figure.axes[2::3], values, strict=True):
        image_axis.set_xlabel(f"values {value.min():.4g} to {value.max():.4g}".replace("-", "−"), fontsize=9)
        axis.axis("on")
        for channel, letter in enumerate(order):
            share, edges = np.histogram(value[..., channel], bins=32, range=(values.min(), values.max()))
            name, colour, dashes = CHANNELS[letter]
            axis.stairs(100 * share / share.sum(), edges, color=colour, linestyle=dashes, lw=1.4, label=name)
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
    captions = []
    for caption, slide in zip(_captions(cache, rows), cache.images["slide"].iloc[rows], strict=True):
        captions += [f"{caption}\nslide {slide}"] + [""] * (len(stages) - 1)
    colours = np.repeat(cache.images["class"].iloc[rows].map(style.COLOURS), len(stages))
    return style.image_grid(images, captions, len(stages), title=title, headings=stages, colours=colours)


def counts_figure(images: pd.DataFrame):
    """Draw the numbers of images, by magnification and by subtype.

    Of BreakHis all magnifications and subtypes are shown, of other images those that there are.

    Parameters
    ----------
    images : DataFrame
        Columns filename, class, subtype, magnification.
    """
    figure, (left, right) = style.make_figure(1, 2, height=3.6, width_ratios=[1.25, 1])
    breakhis = is_breakhis(images)
    magnifications = MAGNIFICATIONS if breakhis else sorted(images["magnification"].unique())
    counts = count_table_i(images, magnifications).loc[list(CLASSES)]
    counts.index = [f"{name} ({total})" for name, total in counts.pop("total").items()]
    bars = counts.rename(columns=custom.magnification_label).T
    bars.plot.bar(ax=left, width=0.8, rot=0, color=list(style.COLOURS.values()))
    left.set(xlabel="magnification", ylabel="number of images", title="By magnification and class")
    left.margins(y=0.22)  # room for the legend above the bars
    left.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", handlelength=1.2, columnspacing=1)
    kinds = images.groupby(["class", "subtype"]).size()
    if breakhis:
        kinds = kinds.reindex([(CLASSES[code not in BENIGN], code) for code in SUBTYPES], fill_value=0)
    labels = [f"{_subtype_name(code)} ({code if breakhis else name})" for name, code in kinds.index]
    right.barh(labels, kinds, color=[style.COLOURS[name] for name, _ in kinds.index])
    right.yaxis.set_inverted(True)
    right.set(xlabel="number of images", title="By subtype", xmargin=0.2)
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
    plane.set_xlabel("hematoxylin, mean optical density (no unit)")
    plane.set_ylabel("eosin, mean optical density (no unit)")
    figure.suptitle("Each slide has its own stain (marker and stripe: its mean colour)", fontsize=11)
    return figure


def _slide_means(cache, seed: int) -> pd.DataFrame:
    """Return one row a slide: class, mean colour (0..255), brightness, and the densities of both stains."""
    random = np.random.default_rng(seed)
    density = -np.log10(np.maximum(np.arange(256), 1) / 255)  # Beer-Lambert, against white glass
    vectors = np.vstack([RUIFROK_HE, np.cross(*RUIFROK_HE)])  # the third takes up what neither stain explains
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


def _read_samples(images: pd.DataFrame, source, wanted: int) -> list[tuple]:
    """Return (image, caption) of the first readable images, in passes of `wanted` through the source."""
    images, found = images.assign(subtype=images["subtype"].map(_subtype_name)), []
    for start in range(0, len(images), wanted):
        part = images.iloc[start : start + wanted].set_index("filename", drop=False)
        decoded = {name: array for name, array, _ in decode_all(source, part, progress=False)}
        readable = [name for name in part.index if decoded.get(name) is not None]
        found += [
            (decoded[name], custom.image_caption(part.loc[name], ("subtype", "magnification")))
            for name in readable
        ]
        if len(found) >= wanted:
            break
    return found[:wanted]


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
    columns = ("class", "subtype", "magnification")
    images = cache.images.iloc[rows].iterrows()
    return [f"{CLASSES.index(image['class'])} {custom.image_caption(image, columns)}" for _, image in images]


def _subtype_name(subtype: str) -> str:
    return SUBTYPES.get(subtype, subtype).replace("_", " ")
