"""What one comparison is, and how it is timed."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np

PAIRS = 5


@dataclass(frozen=True)
class Ratio:
    """One comparison.

    Attributes
    ----------
    name, what : a key, and in words what is divided by what
    goal : ">= 1.2", "<= 1.03", or "" where there is none
    unit : of ``first`` and ``second``
    first, second : list of float
        The figures of both sides, one a pair.
    note : str
    """

    name: str
    what: str
    goal: str
    unit: str
    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """First over second, pair by pair."""
        return [one / other for one, other in zip(self.first, self.second, strict=True)]

    @property
    def median(self) -> float:
        """Of the ratios."""
        return float(np.median(self.ratios))

    @property
    def met(self) -> bool | None:
        """Whether the median meets the goal; None where there is none."""
        if not self.goal:
            return None
        sign, bound = self.goal.split()
        return self.median >= float(bound) if sign == ">=" else self.median <= float(bound)

    def facts(self) -> dict:
        """All of it, as JSON takes it."""
        found = self.ratios
        return asdict(self) | {
            "ratios": found,
            "ratio": self.median,
            "lowest": min(found),
            "highest": max(found),
            "met": self.met,
        }

    def line(self) -> str:
        """For a log."""
        return f"{self.what}: {self.median:.3g} ({min(self.ratios):.3g} to {max(self.ratios):.3g}" + (
            f"; goal {self.goal})" if self.goal else ")"
        )


def paired(
    name: str,
    what: str,
    goal: str,
    unit: str,
    one: Callable[[], float],
    other: Callable[[], float],
    pairs: int = PAIRS,
    note: str = "",
) -> Ratio:
    """Run two things in turn, after each has run once to warm up; each returns images/s, or seconds.

    In every second pair the other one comes first: what a run leaves behind (a warm cache, a hot chip)
    favours neither.
    """
    one(), other()
    first, second = [], []
    for number in range(pairs):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            (first, second)[side].append((one, other)[side]())
    return Ratio(name, what, goal, unit, first, second, note)


def rate(images: int, work: Callable[[], object]) -> float:
    """Images a second of a piece of work."""
    return images / seconds(work)


def seconds(work: Callable[[], object]) -> float:
    """How long a piece of work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
