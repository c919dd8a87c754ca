"""A flow diagram as STARD asks for: found, left out with reasons, used, and the parts of each split."""

import textwrap
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from bcdlib.plots import style

MOST_SPLITS = 8  # drawn beneath each other; more would be taller than a picture may be
_LINE, _GAP, _BOX = 0.165, 0.22, 0.13  # inches: of a line of text, between rows of boxes, a box's margins
_WIDTH = 4.2  # inches, so that a phone shows it nearly as large as it is
_INDENT = 0.12  # of a box that stands aside
_PLAIN, _ASIDE, _TITLE = "#ffffff", "#f3f5f8", ""
_COLOURS = {"train": "#d9eefa", "validation": "#d6efe6", "test": "#f5e4ee"}


class _Box(NamedTuple):
    text: str
    colour: str = _PLAIN
    left: float = 0
    width: float = 1


def _aside(text: str) -> list[_Box]:
    return [_Box(text, _ASIDE, _INDENT, 1 - _INDENT)]


def draw_flow(table: pd.DataFrame):
    """Draw a flow table.

    Parameters
    ----------
    table : DataFrame
        From `flow.flow_table`. Of each split the first fold is drawn, of more than `MOST_SPLITS` splits the
        first ones.

    Returns
    -------
    matplotlib Figure
    """
    rows = _common_rows(table[table["split"] == ""])
    parts = [(name, part) for name, part in table.groupby("split", sort=False) if name]
    for name, part in parts[:MOST_SPLITS]:
        rows += _split_rows(name, part)
    heights = [_BOX + _LINE * max(box.text.count("\n") + 1 for box in boxes) for boxes in rows]
    tops = np.r_[0, np.cumsum(np.add(heights, _GAP))]
    figure, axis = style.make_figure(width=_WIDTH, height=tops[-1])
    axis.set(xlim=(0, 1), ylim=(tops[-1], 0))
    axis.axis("off")
    for number, (boxes, top, height) in enumerate(zip(rows, tops, heights)):
        for box in boxes:
            _draw_box(axis, box, top, height)
            if box.colour == _ASIDE:  # the others pass it by on its left
                _draw_arrow(axis, (_INDENT / 2, top + height / 2), (_INDENT, top + height / 2))
                _draw_arrow(axis, (_INDENT / 2, top - _GAP), (_INDENT / 2, top + height + _GAP))
            elif number and rows[number - 1][0].colour != _ASIDE and box.colour:
                middle = box.left + box.width / 2
                _draw_arrow(axis, (middle, top - _GAP), (middle, top))
    return figure


def _common_rows(table: pd.DataFrame) -> list[list[_Box]]:
    """Make the boxes that stand above the splits."""
    if table.empty:
        return [[_Box("Made elsewhere: what was found and left\nout, and the training, are not known")]]
    (found,), left_out, (used,) = (
        list(table[table["step"] == step].itertuples()) for step in ("found", "left out", "used")
    )
    reasons = [f"{row.images:.0f}: {row.reason}" for row in left_out]
    lines = [line for reason in reasons for line in textwrap.wrap(reason, 44, subsequent_indent="   ")]
    gone = sum(row.images for row in left_out)
    return [
        [_Box(f"Found: {found.images:.0f} files")],
        _aside("\n".join([f"Left out: {gone:.0f}" if gone else "Left out: none", *lines])),
        [_Box(f"Used\n{_count_text(used, ' ')}")],
    ]


def _split_rows(name: str, table: pd.DataFrame) -> list[list[_Box]]:
    folds = table["fold"].unique()
    part = table[table["fold"] == folds[0]].set_index("step")
    title = f"Split {name}, fold {folds[0]}" + (f" (first of {len(folds)} tested)" if len(folds) > 1 else "")
    rows = [[_Box(textwrap.fill(title, 48), _TITLE)]]
    if "outside the split" in part.index:
        rows.append(_aside(f"Not in this split\n{_count_text(part.loc['outside the split'], ' ')}"))
    roles = [role for role in _COLOURS if role in part.index and part.loc[role, "images"]]
    width, boxes = (1 - 0.03 * (len(roles) - 1)) / len(roles), []
    newline = "\n"
    for place, role in enumerate(roles):
        row = part.loc[role]
        text = f"{role}\n{_count_text(row, newline)}"
        if pd.notna(row["cases_in_training"]):
            text += f"\n({row['cases_in_training']:.0f} cases also\nin training)"
        boxes.append(_Box(text, _COLOURS[role], place * (width + 0.03), width))
    return [*rows, boxes]


def _count_text(row, gap: str) -> str:
    """Count in lines; `gap`, a blank or the start of a new line, stands before each class."""
    lines = []
    for name, number, classes in (
        ("image", row.images, (row.benign, row.malignant)),
        ("slide", row.slides, ()),
        ("case", row.cases, (row.benign_cases, row.malignant_cases)),
    ):
        parts = [f"{count:.0f} {kind}" for count, kind in zip(classes, ("benign", "malignant"))]
        line = f"{number:.0f} {name}" + ("" if number == 1 else "s")
        lines.append(f"{line}{gap}({f',{gap}'.join(parts)})" if parts else line)
    return "\n".join(lines)


def _draw_box(axis, box: _Box, top: float, height: float) -> None:
    middle = top + height / 2
    if box.colour == _TITLE:
        axis.text(0, middle, box.text, va="center", fontsize=9.5, weight="bold")
        return
    outline = {"facecolor": box.colour, "edgecolor": "#1d2129", "clip_on": False}  # half of it lies outside
    axis.add_patch(Rectangle((box.left, top), box.width, height, **outline))
    axis.text(box.left + box.width / 2, middle, box.text, ha="center", va="center", fontsize=8.5)


def _draw_arrow(axis, start: tuple, end: tuple) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "shrinkA": 0, "shrinkB": 0})
