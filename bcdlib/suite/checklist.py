"""checklist.md: the items of CLAIM and TRIPOD+AI, and where the report answers each."""

from pathlib import Path

import pandas as pd

from bcdlib.runs.folder import Run
from bcdlib.suite import opening

CHECKLIST_NAME = "checklist.md"
MET, AUTHOR = "met", "author must write"
# sections that say something only in a run that has this file: its own images, those of another laboratory
NEEDS = {
    "Who leaked into the test part": "images.csv",
    "What it sees": "images.csv",
    "Your own image": "images.csv",
    "Which images went where": "images.csv",
    "Another laboratory": "tables/elsewhere.csv",
}
_EDITIONS = {
    "CLAIM": "CLAIM, update of 2024 (Tejani et al., Radiology: Artificial Intelligence), 44 items",
    "TRIPOD+AI": "TRIPOD+AI, 2024 (Collins et al., BMJ 385:e078378), 27 items with 52 parts",
}


def render_checklist(run: Run, sections: list[str], kind: str) -> str:
    """Write the checklist of a run's report, in Markdown.

    Parameters
    ----------
    run : Run
    sections : list of str
        The titles of the report's sections, with their numbers. An item is met if one of its sections is
        among them, and has what it needs (`NEEDS`).
    kind : str
        Of the images; see `opening.data_kind`. What BreakHis' authors state is met with BreakHis only, and
        what they do not give is impossible with it.
    """
    sections = [title for title in sections if (run.folder / NEEDS.get(_bare(title), "")).exists()]
    text = [
        "# Checklist",
        "",
        "Which items of two reporting guidelines this run's report answers. The guidelines themselves were "
        "not at hand: numbers and order of the items are from memory of these editions, the wording is ours. "
        'Check against the originals before you submit. "met" says that the report holds it, not that it is '
        "good.",
    ]
    items = pd.read_csv(Path(__file__).with_name("checklist.csv"), dtype=str, keep_default_na=False)
    items["answer"] = [_answer(row, sections, kind) for row in items.itertuples()]
    for guideline, edition in _EDITIONS.items():
        rows = items[items["guideline"] == guideline]
        met = rows["answer"].str.startswith(MET).sum()
        text += [
            "",
            f"## {edition}",
            "",
            f"{met} of {len(rows)} met.",
            "",
            "| item | what | answer |",
            "|---|---|---|",
        ]
        text += [f"| {row.number} | {row.item} | {row.answer} |" for row in rows.itertuples()]
    return "\n".join(text) + "\n"


def _bare(title: str) -> str:
    """Cut the number from a section's title."""
    return title.lstrip("0123456789. ")


def _answer(row, sections: list[str], kind: str) -> str:
    """Say whether, and where, an item is met."""
    if row.answer == "impossible" and kind != opening.OWN:
        return "impossible with BreakHis" if kind == opening.BREAKHIS else "impossible with drawn tissue"
    if row.answer == "met with BreakHis" and kind != opening.BREAKHIS:
        return AUTHOR if kind == opening.OWN else "impossible with drawn tissue"
    titles = row.sections.split(";")
    found = [title for title in sections if _bare(title) in titles]
    return f"{MET}: {'; '.join(found)}" if found else AUTHOR
