"""The reader's guess, and answers to exercises."""

import math

import pytest

from bcdlib.errors import InputError
from bcdlib.runs import lesson
from bcdlib.runs.folder import open_run_folder


def test_a_guess_is_kept_until_another_one_comes(tmp_path):
    run = open_run_folder(tmp_path)
    assert lesson.read_guess(run) is None
    assert "No guess yet" in lesson.record_guess(run, 0)
    assert "85 %" in lesson.record_guess(run, 85)
    assert lesson.read_guess(run) == 0.85 and lesson.read_guess(run, 70) == 0.7
    lesson.record_guess(run, 0)
    assert lesson.read_guess(run) == 0.85


@pytest.mark.parametrize("guess", [-1, 101, 0.9, 1, math.nan])
def test_what_is_no_percentage_is_refused(tmp_path, guess):
    with pytest.raises(InputError, match="give percent"):
        lesson.record_guess(open_run_folder(tmp_path), guess)


def test_a_guess_beside_what_was_measured():
    assert lesson.guess_text(None, 0.5) == ""
    assert lesson.guess_text(0.5, 0.504) == " You guessed 50 %: exactly that."
    assert lesson.guess_text(0.5, 0.51) == " You guessed 50 %: 1 point too low."


def test_answers():
    assert "in place of `None`" in lesson.check_answer(None, 3, lesson="")
    assert "no answer" in lesson.check_answer(3, math.nan, lesson="")
    assert "too high" in lesson.check_answer(5, 3, tolerance=1, lesson="")
    assert lesson.check_answer(3.9, 3.125, tolerance=1, lesson="Why.") == "**Right: 3.125.** Why."


@pytest.mark.parametrize("answer", [(5, 3), "5", "5,3", [5], {}, True, math.nan, math.inf, 1j])
def test_what_is_not_one_number_is_no_answer(answer, tmp_path):
    found = lesson.check_answer(answer, 5, lesson="")
    assert found.startswith("**Not yet:**") and "one number" in found and "\n" not in found
    with pytest.raises(InputError, match="give percent"):
        lesson.record_guess(open_run_folder(tmp_path), answer)
