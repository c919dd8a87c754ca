"""Names as people and file systems write them: one spelling for what looks the same on a screen."""

import html
import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal
from pathlib import PurePosixPath

# marks that show nothing, beyond Unicode's control and format characters (DerivedCoreProperties: ignorable)
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)
_CODE = re.compile(r"((?<!`)`[^`\n]+`(?!`))")  # in Markdown
_MARKS = re.compile(r"[\\`*_\[\]~|$]|:(?=//)|(?<=www)\.")  # mean something in it; the last two make links
_LEADING_ZERO = re.compile("(?<![0-9])0[0-9]")
_ROUNDED = re.compile(r"[0-9]([.,][0-9]+)?E\+[0-9]{2,3}")  # 2.01E+11
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?(e[+-]?[0-9]{1,3})?", re.IGNORECASE)
_ANY_NUMBER = re.compile("^[+-]?[0-9]+[.,0-9e+-]*$", re.IGNORECASE | re.MULTILINE)


def clean_text(text: str) -> str:
    r"""Write a name as it looks: composed letters (NFC), no invisible signs, plain blanks, none at the ends.

    Examples
    --------
    >>> clean_text("Mu\u0308ller\u200b\u00a0") == "M\u00fcller"
    True
    """
    if text.isascii() and text.isprintable():
        return text.strip()
    seen = (
        " " if sign.isspace() else sign
        for sign in _UNSEEN.sub("", text)
        if sign.isspace() or unicodedata.category(sign) not in ("Cc", "Cf")
    )
    return unicodedata.normalize("NFC", "".join(seen)).strip()


def clean_path(text: str) -> str:
    r"""Write a path as `clean_text` does, with one ``/`` between folders and no ``./``.

    Examples
    --------
    >>> clean_path(".\\ward 3\\a.png"), clean_path("ward 3//./a.png")
    ('ward 3/a.png', 'ward 3/a.png')
    """
    path = clean_text(text)
    path = path.replace("\\", "/") if "\\" in path else path
    # said at once of most: a table may hold a million
    return str(PurePosixPath(path)) if "//" in path or "./" in path else path


def in_markdown(text: str) -> str:
    """Write a text that holds others' names so that Markdown shows it as it is: no link, picture or HTML.

    What stands in single `backquotes` is shown as code.

    Examples
    --------
    >>> in_markdown("`case`: slide <b>[7]")
    '`case`: slide &lt;b&gt;&#91;7&#93;'
    """
    parts = _CODE.split(text)
    parts[::2] = [
        _MARKS.sub(lambda sign: f"&#{ord(sign[0])};", html.escape(part, quote=False)) for part in parts[::2]
    ]
    return "".join(parts)


def spelling_note(names: Iterable[str], what: str) -> str:
    """Say which names differ only in capitals or in how a number is written, or were rounded; "" if none do.

    Examples
    --------
    >>> spelling_note(["7", "7.0", "P-1", "p-1", "b"], "cases")
    "cases written in more than one way, and counted apart: '7' and '7.0'; 'P-1' and 'p-1'; write each ...
    """
    names = set(names)
    text = "\n".join(names)  # said at once of most: a table may hold a million
    plain = text.isascii() and "  " not in text
    plain = plain and not _LEADING_ZERO.search(text) and not _ANY_NUMBER.search(text)
    fold = str.lower if plain else _folded
    spellings: dict[str, set[str]] = {}
    if len(set(map(fold, names))) < len(names):
        for name in names:
            spellings.setdefault(fold(name), set()).add(name)
    found = sorted(sorted(ways) for ways in spellings.values() if len(ways) > 1)
    notes = []
    if rounded := [] if plain else sorted(filter(_ROUNDED.fullmatch, names)):
        notes.append(
            f"{what} as spreadsheets round long numbers: {rounded[0]}; several may have become one: write "
            "numbers in full, as text"
        )
    if found:
        shown = [" and ".join(map(repr, ways)) for ways in found[:3]]
        shown += [f"and {len(found) - 3} more"] if len(found) > 3 else []
        notes.append(
            f"{what} written in more than one way, and counted apart: {'; '.join(shown)}; write each in one "
            "way"
        )
    return "; ".join(notes)


def _folded(name: str) -> str:
    # a table may hold a million: most are plain
    name = name.lower() if name.isascii() else unicodedata.normalize("NFKC", name).casefold()
    name = " ".join(name.split())
    if _NUMBER.fullmatch(name):
        return str(Decimal(name).normalize())
    if name.isascii() and not _LEADING_ZERO.search(name):
        return name
    return re.sub("[0-9]+", lambda digits: digits[0].lstrip("0") or "0", name)
