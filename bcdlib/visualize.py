"""Figures of the data set: samples, what preprocessing and augmentation make of them, counts, stains.

Every function returns a matplotlib Figure that pyplot has let go of, so that a notebook shows it once.
"""

import numpy as np
import pandas as pd

from bcdlib.data import custom
from bcdlib.data.breakhis import (
    BENIGN,
    CLASSES,
    MAGNIFICATIONS,
    SUBTYPES,
    UNKNOWN,
    class_labels,
    count_table_i,
    is_breakhis,
)
from bcdlib.data.decode import decode_all
from bcdlib.data.stain import RUIFROK_HE
from bcdlib.errors import InputError
from bcdlib.methods.parts import backbones
from bcdlib.methods.parts.augmentation import augmented
from bcdlib.plots import style

IMAGES_PER_SLIDE = 24  # enough for a steady mean, few enough for the whole of BreakHis in seconds
# channel -> colour (told apart by colour-blind readers) and line
CHANNELS = {"R": ("red", "#D55E00", "-"), "G": ("green", "#009E73", "--"), "B": ("blue", "#0072B2", ":")}


def class_samples_figure(images: pd.DataFrame, source, per_class: int = 4, *, seed: int = 0):
    """Figure 3 of the paper: originals at full size, row (a) benign, row (b) malignant; subtypes take turns.

    `images` has the columns filename, class, subtype, magnification and path (inside the `sources.Source`).
    Others stand in for images that cannot be read; raises InputError if not one can be read.
    """
    images = images.iloc[_turns(images["subtype"], seed)]
    found = {name: _readable(images[images["class"] == name], source, per_class) for name in CLASSES}
    found = {name: samples for name, samples in found.items() if samples}
    if not found:
        raise InputError(f"{source.path}: none of these {len(images)} images can be read")
    columns = max(map(len, found.values()))
    padded = [samples + [(None, "")] * (columns - len(samples)) for samples in found.values()]
    pictures, captions = zip(*sum(padded, []), strict=True)
    sizes = {picture.shape for picture in pictures if picture is not None}
    title = (
        "Originals, {1} × {0} pixels".format(*pictures[0].shape)
        if len(sizes) == 1
        else "Originals, of several sizes"
    )
    figure = style.image_grid(
        pictures,
        captions,
        columns,
        title=title,
        colours=np.repeat([style.COLOURS[c] for c in found], columns),
    )
    for name, start in zip(found, (0, len(next(iter(found.values())))), strict=False):
        letter = "ab"[CLASSES.index(name)]
        figure.axes[start].set_ylabel(f"({letter}) {name}", color=style.COLOURS[name], weight="bold")
    return figure


def random_samples_figure(cache, n: int = 12, seed: int = 0):
    """Random pictures of a `cache.PixelCache` at the new size, with encoded labels: "0 benign, F 100X"."""
    rows = np.random.default_rng(seed).permutation(len(cache.images))[:n]
    title = "Random images at the new size, {} × {} pixels, with encoded labels".format(*cache.size)
    return style.image_grid(
        cache.pixels[rows], _captions(cache, rows), 4, title=title, colours=_colours(cache, rows)
    )


def augmented_samples_figure(cache, n: int = 4, copies: int = 5, *, seed: int = 0):
    """Each row: a cached picture, then `copies` versions of it as training sees them."""
    rows = _turns(cache.images["class"], seed)[:n]
    batch = augmented(np.repeat(cache.pixels[rows], copies, axis=0), seed)
    pictures, captions = [], []
    for number, (row, caption) in enumerate(zip(rows, _captions(cache, rows), strict=True)):
        pictures += [cache.pixels[row], *batch[number * copies : (number + 1) * copies]]
        captions += [caption, *(f"augmented {copy}" for copy in range(1, copies + 1))]
    title = "Left the cached picture, then random flips and zooms of up to 10 %"
    return style.image_grid(
        pictures, captions, 1 + copies, title=title, colours=np.repeat(_colours(cache, rows), 1 + copies)
    )


def normalised_samples_figure(cache, architecture: str = "resnet50", n: int = 4, *, seed: int = 0):
    """Each row: a cached picture, the same normalised for the network, the histogram of its values.

    The normalised picture has its channels in the network's order, each rescaled to its own range.
    Raises InputError if the architecture is unknown.
    """
    rows = _turns(cache.images["class"], seed)[:n]
    values = backbones.normalise_images(cache.pixels[rows], architecture)
    shown = backbones.normalised_for_display(cache.pixels[rows], architecture)
    # a red, a green and a blue pixel tell in which order the network takes the channels
    probe = backbones.normalise_images(255 * np.eye(3)[None, None], architecture)[0, 0]
    order = "".join("RGB"[k] for k in probe.argmax(axis=0))
    title = f"Normalised for {architecture}: channels {order} in this order, each rescaled for display"
    figure, axes = style.image_canvas(len(rows), 3, values.shape[1:], title=title)
    items = zip(axes, rows, values, shown, _colours(cache, rows), _captions(cache, rows), strict=True)
    for (left, middle, right), row, value, stretched, colour, caption in items:
        style.show_image(left, cache.pixels[row], caption, colour=colour)
        caption = f"values {value.min():.4g} to {value.max():.4g}".replace("-", "−")
        style.show_image(middle, stretched, caption, colour=colour)
        for channel, letter in enumerate(order):
            share, edges = np.histogram(value[..., channel], bins=32, range=(values.min(), values.max()))
            name, colour, dashes = CHANNELS[letter]
            right.stairs(100 * share / share.sum(), edges, color=colour, linestyle=dashes, lw=1.4, label=name)
        right.set_ylabel("pixels [%]", fontsize=9)
    right.set_xlabel("normalised value [no unit]", fontsize=9)
    axes[0, 2].legend(frameon=False, fontsize=8, handlelength=1.6)
    for axis, text in zip(axes[0], ("cached", "normalised", "histogram of the channels"), strict=True):
        axis.set_title(text, fontsize=10)
    return style.finish_figure(figure)


def counts_figure(images: pd.DataFrame):
    """Numbers of images, by magnification and by subtype; columns needed: filename, class, subtype, magnification.

    Of BreakHis all magnifications and subtypes are shown, of other images those that there are.
    """
    figure, (left, right) = style.make_figure(1, 2, height=3.6, gridspec_kw={"width_ratios": [1.25, 1]})
    breakhis = is_breakhis(images)
    magnifications = MAGNIFICATIONS if breakhis else sorted(images["magnification"].unique())
    table = count_table_i(images, magnifications)
    for number, name in enumerate(CLASSES):
        places = np.arange(len(magnifications)) + 0.4 * number - 0.2
        *heights, total = table.loc[name]
        bars = left.bar(places, heights, 0.38, color=style.COLOURS[name], label=f"{name} ({total})")
        left.bar_label(bars, fontsize=8, padding=1)
    left.set_xticks(range(len(magnifications)), [custom.magnification_label(m) for m in magnifications])
    left.set(xlabel="magnification", ylabel="number of images", title="By magnification and class")
    left.margins(y=0.22)  # room for the legend above the bars
    left.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", handlelength=1.2, columnspacing=1)
    kinds = {code: CLASSES[code not in BENIGN] for code in SUBTYPES}
    found = images.groupby(["subtype", "class"]).size()
    wanted = list(kinds.items()) if breakhis else sorted(found.index, key=lambda kind: (kind[1], kind[0]))
    labels = [f"{_name(code)} ({code if breakhis else name})" for code, name in wanted]
    bars = right.barh(
        labels, found.reindex(wanted, fill_value=0), color=[style.COLOURS[name] for _, name in wanted]
    )
    right.bar_label(bars, fontsize=8, padding=2)
    right.yaxis.set_inverted(True)
    right.set(xlabel="number of images", title="By subtype", xmargin=0.2)
    return style.finish_figure(figure)


def stain_figure(cache, seed: int = 0):
    """Left: each slide at its mean hematoxylin and eosin density. Right: the slides' mean colours, by class.

    By colour deconvolution with fixed stain vectors, from up to `IMAGES_PER_SLIDE` random images a slide.
    """
    slides = _slide_means(cache, seed)
    figure, (plane, *strips) = style.make_figure(
        1, 3, height=4.6, gridspec_kw={"width_ratios": [7, 1.1, 1.1]}
    )
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
    labels = [f"{stain}, mean optical density (no unit)" for stain in ("hematoxylin", "eosin")]
    plane.set(xlabel=labels[0], ylabel=labels[1])
    figure.suptitle("Each slide has its own stain (marker and stripe: its mean colour)", fontsize=11)
    return style.finish_figure(figure)


def _slide_means(cache, seed: int) -> pd.DataFrame:
    """One row a slide: its class, mean colour (0..255) and brightness, and the densities of both stains."""
    random = np.random.default_rng(seed)
    density = -np.log10(np.maximum(np.arange(256), 1) / 255)  # Beer-Lambert, against white glass
    vectors = np.vstack([RUIFROK_HE, np.cross(*RUIFROK_HE)])  # the third takes up what neither stain explains
    separate = np.linalg.inv(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    found = []
    # by class too: a slide that is not BreakHis's may hold both
    for (slide, _), rows in cache.images.groupby(["slide", "class"]).indices.items():
        rows = np.sort(random.permutation(rows)[:IMAGES_PER_SLIDE])
        # every second pixel both ways; the deconvolution is linear, so it may act on the mean
        sample = cache.pixels[rows, ::2, ::2]
        colour = sample.mean(axis=(0, 1, 2))
        stains = density[sample].mean(axis=(0, 1, 2)) @ separate
        first = cache.images.iloc[rows[0]]
        found.append([slide, first["case"], first["class"], *colour, colour.mean(), *stains[:2]])
    return pd.DataFrame(found, columns="slide case class red green blue brightness hematoxylin eosin".split())


def _readable(images: pd.DataFrame, source, wanted: int) -> list[tuple]:
    """(picture, caption) of the first `wanted` readable images, in passes of `wanted` through the source."""
    found = []
    for start in range(0, len(images), wanted):
        part = images.iloc[start : start + wanted]
        decoded = {name: array for name, array, _ in decode_all(source, part, progress=False)}
        columns = part["filename"], part["subtype"].map(_name), part["magnification"]
        cells = [
            (decoded.get(file), _known(", ", name, power)) for file, name, power in zip(*columns, strict=True)
        ]
        found += [cell for cell in cells if cell[0] is not None]
        if len(found) >= wanted:
            break
    return found[:wanted]


def _turns(groups: pd.Series, seed: int) -> np.ndarray:
    """A random order of the positions in which the groups take turns, so that few rows show all of them."""
    order = np.random.default_rng(seed).permutation(len(groups))
    turn = pd.Series(order).groupby(groups.to_numpy()[order]).cumcount()
    return order[np.argsort(turn.to_numpy(), kind="stable")]


def _captions(cache, rows) -> list[str]:
    images = cache.images.iloc[rows]
    columns = class_labels(images), images["class"], images["subtype"], images["magnification"]
    cells = zip(*columns, strict=True)
    return [
        ", ".join(filter(None, (f"{label} {name}", _known(" ", code, power))))
        for label, name, code, power in cells
    ]


def _colours(cache, rows) -> list[str]:
    return cache.images["class"].iloc[rows].map(style.COLOURS).tolist()


def _name(subtype: str) -> str:
    return SUBTYPES.get(subtype, subtype).replace("_", " ")


def _known(separator: str, subtype: str, magnification: int) -> str:
    """Subtype and magnification, of an image that is not BreakHis's only what is known; may be empty."""
    parts = [subtype] * (subtype != UNKNOWN) + [f"{magnification}X"] * (magnification > 0)
    return separator.join(parts)
