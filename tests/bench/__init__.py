"""Ratios of what the library does to its peers and to the machine's limits: ``python -m tests.bench``.

Single times say more of a machine than of a program, so each comparison runs both sides in turn, several
pairs, on the same files under the same process conditions, and what counts is the ratio of each pair.
"""

import functools
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bcdlib.errors import InputError
from tests.bench.ratios import PAIRS, Ratio

PARTS = (
    "ingest",
    "batches",
    "training",
    "inference",
    "scale",
)  # modules here, each with a generator `comparisons`
LEAST = 2400  # images that ingest is measured on: what it takes once is for BreakHis's 7909


@dataclass(frozen=True)
class Setting:
    """What the parts have in common: see `run`."""

    source: object
    folder: Path
    weights: str | None = None
    pairs: int = PAIRS

    @functools.cached_property
    def pictures(self) -> Path:
        """A folder of at least `LEAST` of the source's images as files, named as BreakHis's."""
        return copies(self.source, self.folder / "pictures", LEAST)


def run(setting: Setting, only=()) -> Iterator[Ratio]:
    """Compare, and yield what was found as it comes.

    Parameters
    ----------
    setting : Setting
        Its source has images at their original size; its folder is for copies and caches (a GiB, some 80,000
        files); its weights are as in `backbones.find_weights`.
    only : iterable of str
        Names of parts; empty means all of `PARTS`.

    Raises
    ------
    InputError
        If a part is unknown, or the source has no PNG.
    """
    for part in only:
        if part not in PARTS:
            raise InputError(f"unknown part {part!r}; bench has {', '.join(PARTS)}")
    for part in [part for part in PARTS if not only or part in only]:
        yield from importlib.import_module(f"tests.bench.{part}").comparisons(setting)


def copies(source, folder: Path, least: int) -> Path:
    """The PNG images of a source as files of their own in folders of their class; few come several times.

    Their names are of BreakHis's kind and made up: year 99, alternately adenosis and ductal carcinoma.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names, number = [name for name in source.names() if name.lower().endswith(".png")], 0
    while number < least:
        before = number
        for _, content, _ in source.read(names):
            if content is not None:
                name = made_up(number)
                (folder / name[4]).mkdir(exist_ok=True)
                (folder / name[4] / name).write_bytes(content)
                number += 1
        if number == before:
            raise InputError(f"{source.path}: has no readable PNG image; bench compares ways to decode them")
    return folder


def made_up(number: int) -> str:
    """A name of BreakHis's kind; benign and malignant alternate, 16 images a slide."""
    kind, magnification = ("B_A", "M_DC")[number % 2], (40, 100)[number // 2 % 2]
    return f"SOB_{kind}-99-{20000 + number // 32 * 2 + number % 2}-{magnification}-{number % 1000:03d}.png"
