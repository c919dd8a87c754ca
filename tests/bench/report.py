"""Ratios as a table, a figure, and JSON."""

import importlib.metadata
import platform
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from bcdlib import __version__
from bcdlib.data.decode import count_cores
from bcdlib.plots import style
from bcdlib.runs.files import atomic_write, write_json
from tests.bench.ratios import Ratio

_PACKAGES = (
    "keras",
    "tensorflow",
    "jax",
    "torch",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "imagecodecs",
    "zlib-ng",
)


def machine() -> dict:
    """What the figures were measured on: processor, cores, Python, backend, packages."""
    return {
        "processor": _processor(),
        "cores": count_cores(),
        "python": platform.python_version(),
        "bcdlib": __version__,
        "backend": keras.backend.backend(),
        "packages": {name: _version(name) for name in _PACKAGES if _version(name)},
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def table(found: list[Ratio]) -> pd.DataFrame:
    """One row a comparison: what, goal, ratio (median), lowest, highest, met, the medians of both sides."""
    rows = [
        {
            "what": one.what,
            "goal": one.goal,
            "ratio": one.median,
            "lowest": min(one.ratios),
            "highest": max(one.ratios),
            "met": {True: "yes", False: "NO", None: ""}[one.met],
            "first": np.median(one.first),
            "second": np.median(one.second),
            "unit": one.unit,
        }
        for one in found
    ]
    return pd.DataFrame(rows)


def text(found: list[Ratio]) -> str:
    """`table` for a terminal."""
    short = dict.fromkeys(("ratio", "lowest", "highest"), "{:.3g}".format)
    return table(found).to_string(
        index=False, formatters=short | dict.fromkeys(("first", "second"), "{:.4g}".format)
    )


def figure(found: dict):
    """The ratios over their goals, a dot a pair: right of the line is better than asked for.

    Parameters
    ----------
    found : as from `facts`
    """
    rows = [row for row in found["comparisons"] if row["goal"]][::-1]
    chart, axis = style.make_figure(width=9, height=0.45 * len(rows) + 1.4)
    for place, row in enumerate(rows):
        sign, bound = row["goal"].split()
        shares = [value / float(bound) if sign == ">=" else float(bound) / value for value in row["ratios"]]
        axis.plot(
            shares,
            [place] * len(shares),
            "o",
            color=style.MEASURED if row["met"] else style.PUBLISHED,
            alpha=0.6,
        )
        axis.annotate(
            f"{row['ratio']:.3g}", (max(shares), place), (9, 0), textcoords="offset points", va="center"
        )
    axis.axvline(1, color="black", linestyle=":")
    axis.set_yticks(range(len(rows)), [f"{row['what']}\ngoal {row['goal']}" for row in rows], fontsize=8)
    highest = max([2.0, *(line.get_xdata()[0] for line in axis.lines[:-1])])
    axis.set(
        xscale="log",
        xlim=(0.5, 2 * highest),
        ylim=(-0.6, len(rows) - 0.4),
        xlabel="ratio over its goal (a dot a pair; the number is the median ratio)",
    )
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50) if tick < 2 * highest]
    axis.set_xticks(ticks, map(str, ticks))
    axis.minorticks_off()
    host = found["machine"]
    chart.supxlabel(
        f"{host['processor']}, {host['cores']} cores, Keras on {host['backend']}; {found['pictures']}",
        fontsize=8,
    )
    return chart


def facts(found: list[Ratio], pictures: str) -> dict:
    """All that was found, as JSON takes it: machine, images, comparisons (`Ratio.facts`).

    Parameters
    ----------
    pictures : what ingest was measured on, in words
    """
    return {"machine": machine(), "pictures": pictures, "comparisons": [one.facts() for one in found]}


def save(folder: Path, found: dict) -> None:
    """Write ``bench.json`` (from `facts`) and ``bench.png``."""
    write_json(folder / "bench.json", found)
    with atomic_write(folder / "bench.png") as temporary:
        figure(found).savefig(temporary, dpi=110)
