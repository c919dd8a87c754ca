"""Names that look the same are the same; names that differ in capitals or number format are told."""

import unicodedata

import pytest
from nbconvert.filters.markdown_mistune import markdown2html_mistune

from bcdlib.runs.names import clean_path, clean_text, in_markdown, spelling_note


@pytest.mark.parametrize(
    "written",
    [
        "Müller",
        unicodedata.normalize("NFD", "Müller"),
        " Müller\u00a0",
        "M\u200bül\u2060ler",
        "\ufeffMüller",
        "\u202eMüller\u202c",
        "Mu\u200d\u0308ller",  # joined apart, composed only without the joiner
        "Mü\ufe0fller\n",
    ],
)
def test_what_looks_the_same_is_the_same(written):
    assert clean_text(written) == "Müller"


def test_what_looks_different_stays():
    for text in ("P 1", "P-1", "p-1", "7", "007", "a  b", "Ω", "陳"):
        assert clean_text(text) == text


def test_paths():
    for path in ("a/Müller.png", "a\\Müller.png", "./a/Mu\u0308ller.png", ".\\.\\a\\Müller.png"):
        assert clean_path(path) == "a/Müller.png"
    assert clean_path("../a.png") == "../a.png" and clean_path(".hidden.png") == ".hidden.png"


@pytest.mark.parametrize(
    "names",
    [
        ["7", "7.0"],
        ["7", "007"],
        ["1e5", "100000"],
        ["P-1", "p-1"],
        ["P-07", "P-7"],
        ["STRASSE", "Straße"],
        ["a b", "a  b"],
    ],
)
def test_spellings_of_one_name_are_noted(names):
    note = spelling_note([*names, "other", "third"], "groups")
    assert note.startswith("groups written in more than one way") and all(
        repr(name) in note for name in names
    )


@pytest.mark.parametrize("rounded", ["2.01E+11", "2,01E+11", "1E+15"])
def test_numbers_that_a_spreadsheet_rounded_are_noted(rounded):
    assert f"round long numbers: {rounded}; several may have become one" in spelling_note([rounded], "cases")
    both = spelling_note([rounded, "P-1", "p-1"], "cases")
    assert rounded in both and "counted apart: 'P-1' and 'p-1'" in both


def test_different_names_are_not_noted():
    names = ["7", "8", "7.5", "70", "P-1", "P1", "P-11", "12345678901234567", "12345678901234568", ""]
    assert spelling_note(names, "groups") == ""


@pytest.mark.parametrize(
    "name, shown",
    [
        ("a*b* _c_ ~~d~~ | $e$ [f](g) \\ &lt;", "a*b* _c_ ~~d~~ | $e$ [f](g) \\ &amp;lt;"),
        ("![p](http://x/p.png) www.x.y", "![p](http://x/p.png) www.x.y"),
        ("<img src=x> http://x/q", "&lt;img src=x&gt; http://x/q"),
        ("`<b>_c_`", "<code>&lt;b&gt;_c_</code>"),  # ours, and others' that look so
        ("```<b>`", "```&lt;b&gt;`"),
        ("`a``<b>`", "`a``&lt;b&gt;`"),
        ("a\\`<b>`", "a\\<code>&lt;b&gt;</code>"),
        ("` [f](g)", "` [f](g)"),
    ],
)
def test_markdown_shows_names_as_they_are(name, shown):
    for place in ("x {} y", "**x {} y**"):
        html = markdown2html_mistune(place.format(in_markdown(name))).strip()
        plain = html.removeprefix("<p>").removesuffix("</p>")
        assert plain.replace("<strong>", "**").replace("</strong>", "**") == place.format(shown)


def test_what_looks_like_code_ends_with_the_paragraph():
    assert "<b>" not in in_markdown("`a\n\n<b>`")
