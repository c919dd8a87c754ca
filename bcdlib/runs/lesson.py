"""What makes the notebooks a lesson: the reader's guess, what was found, and answers to exercises."""

import math
import numbers

from bcdlib.errors import InputError
from bcdlib.runs.folder import Run
from bcdlib.runs.names import in_markdown


def record_guess(run: Run, guess: float) -> str:
    """Record the reader's guess of the accuracy on the next patient in the run's settings.

    Parameters
    ----------
    run : Run
    guess : float
        In percent; 0: none, and one that was recorded before stays.

    Returns
    -------
    str
        What was recorded, in Markdown.
    """
    recorded = read_guess(run, guess)  # refuses what is no percentage
    if recorded is None:
        return "No guess yet: write one into `guess` above, and run that cell and this one again."
    if guess:
        run.record(guess=guess)
    return (
        f"Your guess: **{100 * recorded:g} %** on the next patient. 05_evaluate and 06_compare show it "
        "beside what is measured."
    )


def read_guess(run: Run, guess: float = 0) -> float | None:
    """Give the reader's guess as a share, 0..1: `guess` (percent) or, if that is 0, the recorded one.

    Raises
    ------
    InputError
        If it is no percentage.
    """
    if not _is_number(guess) or not 0 <= guess <= 100 or 0 < guess <= 1:
        raise InputError(f"guess = {guess!r}: give percent, for example 80")
    guess = guess or run.recorded().get("guess", 0)
    return guess / 100 if guess else None


def guess_text(guess: float | None, value: float) -> str:
    """Compare a guess with a measured accuracy (shares, 0..1), in a sentence; empty without a guess.

    Examples
    --------
    >>> guess_text(0.9, 0.62)
    ' You guessed 90 %: 28 points too high.'
    """
    if guess is None:
        return ""
    points = round(100 * guess) - round(100 * value)
    return f" You guessed {100 * guess:g} %: " + (
        f"{abs(points)} point{'s' * (abs(points) != 1)} too {'high' if points > 0 else 'low'}."
        if points
        else "exactly that."
    )


def findings_text(lines: list[str]) -> str:
    """Write lines as a Markdown list; the slides and subtypes that they name may be called anything."""
    return "\n".join(f"- {in_markdown(line)}" for line in lines)


def check_answer(answer: float | None, truth: float, *, tolerance: float = 0, lesson: str) -> str:
    """Say, in Markdown, whether an answer is right, and what it teaches.

    Parameters
    ----------
    answer : float or None
        None: not answered yet.
    truth : float
        NaN where this run has no answer.
    tolerance : float
        How far from `truth` counts as right.
    lesson : str
        Shown with a right answer.

    Examples
    --------
    >>> check_answer(3, 5, lesson="Cases count.")
    '**Not yet:** 3 is too low.'
    >>> check_answer(5, 5, lesson="Cases count.")
    '**Right: 5.** Cases count.'
    """
    if math.isnan(truth):
        return "This run has no answer to that."
    if answer is None:
        return "Write your answer in place of `None`, and run the cell again."
    if not _is_number(answer):
        return f"**Not yet:** {in_markdown(repr(answer))} is not one number: write it like 5.3, with a point."
    if abs(answer - truth) <= tolerance:
        return f"**Right: {truth:.4g}.** {lesson}" if truth % 1 else f"**Right: {truth:.0f}.** {lesson}"
    return f"**Not yet:** {answer:g} is too {'low' if answer < truth else 'high'}."


def _is_number(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
