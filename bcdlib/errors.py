"""The exception for a user's mistake (one line on the command line, exit status 2), and errors as text."""

import re
import shlex

_CURSOR_UP = "\x1b[A"  # from progress bars
LAST_SEED = 2**32 - 1  # what NumPy, scikit-learn and Keras take
LONGEST = 2000  # characters; a damaged table may hold a "name" of megabytes


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode()


class TerminalText:
    r"""A text stream for a terminal: what the signs of other people's file names could do there is escaped.

    Escape codes would recolour or rewrite the screen, right-to-left marks turn a name round. New lines, tabs
    and what progress bars need pass; signs that the terminal's encoding lacks are escaped too.

    Examples
    --------
    >>> import sys
    >>> _ = TerminalText(sys.stdout).write("a\x1b[31m\u202egnp.exe\n")
    a\x1b[31m\u202egnp.exe
    """

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text."""
        if not text.isascii() or not text.isprintable():
            text = "".join(
                part if part == _CURSOR_UP else "".join(map(self._shown, part))
                for part in re.split(f"({re.escape(_CURSOR_UP)})", text)
            )
        return self._stream.write(text)

    def _shown(self, sign: str) -> str:
        if not sign.isprintable() and sign not in "\n\r\t":
            return _escaped(sign)
        encoding = self._stream.encoding or "utf-8"
        return sign.encode(encoding, "backslashreplace").decode(encoding)

    def __getattr__(self, name):
        if name == "buffer":  # or click would write past this, where the encoding is ASCII
            raise AttributeError(name)
        return getattr(self._stream, name)


def printable(text) -> str:
    r"""Return text of unknown origin (file names, table cells) as one line, with control characters escaped.

    Parameters
    ----------
    text : object
        Anything that `str` takes.

    Returns
    -------
    str
        At most `LONGEST` characters and an ellipsis.

    Examples
    --------
    >>> printable("two\nlines")
    'two\\nlines'
    """
    text = "".join(sign if sign.isprintable() else _escaped(sign) for sign in str(text)[: LONGEST + 1])
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


class InputError(ValueError):
    """Bad input. The message is one line that names the file or value and says what to do."""

    def __init__(self, message):
        super().__init__(printable(message))

    def _render_traceback_(self) -> list[str]:
        """Show the message alone where Jupyter would show a traceback."""
        return [f"{type(self).__name__}: {self}"]


def split_words(text: str) -> list[str]:
    """Split a list that a user typed at commas and spaces; what stands in quotes stays whole.

    Raises
    ------
    InputError
        If a quote is not closed.

    Examples
    --------
    >>> split_words("case, slide image"), split_words("'my method.py',robust")
    (['case', 'slide', 'image'], ['my method.py', 'robust'])
    """
    words = shlex.shlex(text, posix=True, punctuation_chars=False)
    words.whitespace, words.whitespace_split = ", \t\r\n", True
    words.commenters = words.escape = ""
    try:
        return list(words)
    except ValueError as error:
        raise InputError(f"{text}: {one_line(error)}; close the quote") from None


def check_known(what: str, value, known) -> None:
    """Refuse a value that is not among those that are known.

    Raises
    ------
    InputError
        With the value and all that are known.

    Examples
    --------
    >>> check_known("split", "astrology", ["case", "slide"])
    Traceback (most recent call last):
    bcdlib.errors.InputError: unknown split 'astrology'; known are case, slide
    """
    if value not in known:
        raise InputError(
            f"unknown {what} {value!r}; known are {', '.join(str(name) or repr(name) for name in known)}"
        )


def check_seed(seed: int) -> None:
    """Refuse what NumPy, scikit-learn or Keras would not take for a seed.

    Raises
    ------
    InputError

    Examples
    --------
    >>> check_seed(-1)
    Traceback (most recent call last):
    bcdlib.errors.InputError: seed -1: give a whole number from 0 to 4294967295
    """
    if not 0 <= seed <= LAST_SEED:
        raise InputError(f"seed {seed}: give a whole number from 0 to {LAST_SEED}")


class StageError(RuntimeError):
    """A notebook failed. The message is one line that says which cell and why."""

    _render_traceback_ = InputError._render_traceback_


def one_line(error: BaseException) -> str:
    r"""Return the message of an exception as one line, or its type's name if it has no message.

    Examples
    --------
    >>> one_line(OSError("no\n  space")), one_line(KeyError())
    ('no space', 'KeyError')
    """
    return " ".join(str(error).split()) or type(error).__name__


def describe_error(error: BaseException) -> str:
    r"""Return the kind of an exception and the first line of its message.

    An error that comes back from a worker process names its original type in the attribute ``kind``.

    Examples
    --------
    >>> describe_error(ValueError("bad\nvery bad"))
    'ValueError: bad'
    """
    return f"{getattr(error, 'kind', type(error).__name__)}: {error}".splitlines()[0]
