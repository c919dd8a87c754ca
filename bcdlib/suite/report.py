"""report.html, checklist.md and summary.json, made of what stands in the run folder."""

import base64
import hashlib
import html
import io
import json
import os
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jinja2
import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from PIL import Image

from bcdlib import __version__
from bcdlib.errors import printable
from bcdlib.evaluation import metrics
from bcdlib.plots import panel
from bcdlib.runs import environment, files, places
from bcdlib.runs.folder import Run
from bcdlib.suite import checklist, opening
from bcdlib.trials.notebook import STAGES

PROTOCOLS = 'run.figure("protocols"'  # the call that makes the figure which the report begins with
SEE_ABOVE = '<p>The figure stands at the top, under <a href="#results">Results</a>.</p>'
OWN_SECTIONS = {
    "page": "On one page",
    "results": "Results",
    "data": "What is known of the data",
    "environment": "Made with",
}
WENT_IN = ("predictions.csv", "validation.csv", "locked.csv", "splits/*.csv", "comparison_predictions.csv")
DRAWING = 4096  # colours, which no figure with a photograph has so few of
LOSSLESS = 200_000  # bytes; a figure that is larger without loss holds photographs


def write_report(run: Run) -> dict:
    """Write ``report.html``, ``checklist.md`` and ``summary.json`` from the run folder; return the summary.

    All are meant to be passed on: folders of this machine are named without their paths.
    """
    settings = {key: places.name_only(value) for key, value in run.settings.items()}
    summary = {
        "bcdlib": __version__,
        "data": run.settings.get("fingerprint"),
        "settings": settings,
        "environment": environment.describe_environment(),
        "trials": trial_environments(run),
        "files": file_digests(run),
        "trained": [],
        "compared": [],
    }
    for key, name in (("trained", "predictions.csv"), ("compared", "comparison_predictions.csv")):
        if (run.folder / name).is_file():
            table = metrics.metrics_table(metrics.read_predictions(run.folder / name, any_task=True))
            summary[key] = json.loads(table.to_json(orient="records"))
    files.write_json(run.folder / "summary.json", summary)
    chapters = _chapters(run)
    titles = [html.unescape(part["title"]) for chapter in chapters for part in chapter["sections"]]
    text = checklist.render_checklist(run, [*OWN_SECTIONS.values(), *titles], opening.data_kind(run))
    files.write_text(run.folder / checklist.CHECKLIST_NAME, text)
    files.write_text(run.folder / "report.html", render_report(run, summary, chapters))
    return summary


def file_digests(run: Run) -> dict[str, str]:
    """Compute the SHA-256 of what the report's numbers were computed from, by path inside the run folder."""
    found = [file for pattern in WENT_IN for file in sorted(run.folder.glob(pattern))]
    return {
        file.relative_to(run.folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in found
    }


def trial_environments(run: Run) -> list[dict]:
    """List where the trials behind the run's predictions were trained: a row each kind of environment.

    Parameters
    ----------
    run : Run

    Returns
    -------
    list of dict
        ``trials`` (how many), ``data`` (fingerprint), ``precision``, and what
        `environment.describe_environment` says. Trials of other data than the run's are left out.
    """
    rows, own = [], run.settings.get("fingerprint")
    for file in sorted((run.folder / "trials").glob("*/trial.json")):
        facts = files.read_json(file)
        if "environment" in facts and facts["data"] == own:
            rows.append({"data": own, "precision": facts["precision"], **facts["environment"]})
    distinct = {json.dumps(row): row for row in rows}
    return [{"trials": rows.count(row), **row} for row in distinct.values()]


def _chapters(run: Run) -> list[dict]:
    """Take id, title, body (HTML) and sections of each executed notebook."""
    chapters = []
    for path in filter(Path.is_file, (run.folder / "notebooks" / f"{stage}.ipynb" for stage in STAGES)):
        try:
            notebook = nbformat.read(path, as_version=4)
        except Exception as error:  # half written by a run that was killed: nbformat has its own kinds
            print(
                f"{path}: not readable ({printable(error)[:80]}); run {path.stem} again to have it in the "
                "report"
            )
            continue
        titles = [
            cell.source.splitlines()[0][2:]
            for cell in notebook.cells
            if cell.cell_type == "markdown" and cell.source.startswith("# ")
        ]
        body = _without_folders(_smaller_pictures(_body(notebook)), run)
        chapters.append(
            {
                "id": path.stem,
                "title": titles[0] if titles else path.stem,
                "body": body,
                "sections": [
                    {"id": id, "title": title}
                    for id, title in re.findall(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', body)
                    if title != "References"
                ],
            }
        )
    return chapters


def render_report(run: Run, summary: dict, chapters: list[dict]) -> str:
    """Render one self-contained HTML page: a first page, results, then the chapters."""
    figure = run.folder / "figures" / "protocols.png"
    template = jinja2.Environment(
        loader=jinja2.PackageLoader("bcdlib.suite", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html.j2")
    return template.render(
        summary=summary,
        opening=opening.opening_facts(run, summary),
        own_sections=OWN_SECTIONS,
        made_with=_made_with(summary),
        chapters=chapters,
        protocol_figure=_webp(figure.read_bytes()) if figure.is_file() else "",
        folder=run.folder.name,
        nonce=secrets.token_urlsafe(),  # the page runs the script that knows it and no other
    )


def _made_with(summary: dict) -> list[dict]:
    """Rows of the table of environments: this report's, then the trials', with the same columns."""
    trials = [
        {"what": f"{row['trials']} trial{'s' * (row['trials'] > 1)}", **row} for row in summary["trials"]
    ]
    rows = pd.DataFrame([{"what": "this report", **summary["environment"]}, *trials])
    rows = rows.drop(columns=["trials", "data"], errors="ignore").astype(object)
    return rows.where(rows.notna(), None).to_dict("records")


def _body(notebook) -> str:
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = [heading, *re.findall(r"^#+ *(.*)", cell.source, flags=re.MULTILINE)][-1]
        # logs and progress bars stay in the notebook; errors and results are shown
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
            if cell.source.startswith(PROTOCOLS):
                cell.outputs = [nbformat.v4.new_output("display_data", {"text/html": SEE_ABOVE})]
            for output in cell.outputs:
                data = output.get("data", {})
                data.pop(panel.VIEW, None)
                if "text/html" in data:  # tables have the report's look, which fits phones and paper
                    table = re.sub(r"<style.*?</style>\s*", "", data["text/html"], flags=re.DOTALL)
                    data["text/html"] = re.sub(
                        r"(?<=>)[^<>]*(?=</th>)", lambda head: head[0].replace("_", "_<wbr>"), table
                    )
            cell.metadata["alt"] = f"Figure of section {heading}"
    return HTMLExporter(
        config={"TagRemovePreprocessor": {"enabled": True, "remove_cell_tags": {"hide-in-report"}}},
        template_name="basic",
        exclude_input=True,
        exclude_output_prompt=True,
    ).from_notebook_node(notebook)[0]


def _smaller_pictures(html: str) -> str:
    """Pack the PNG pictures of a page anew, several at a time."""
    picture = re.compile(r'(<img[^>]* src=")data:image/png;base64,([\w+/=\s]+)"')
    with ThreadPoolExecutor() as pool:
        packed = pool.map(lambda match: _webp(base64.b64decode(match[2])), picture.finditer(html))
        return picture.sub(lambda match: f'{match[1]}{next(packed)}"', html)


def _webp(png: bytes) -> str:
    """Pack a PNG file as a WebP address: drawings in few colours, photographs with little loss."""
    with Image.open(io.BytesIO(png)) as image:
        picture = image.convert("RGB")
    if picture.getcolors(DRAWING):  # of its colours most are shades at the edges of letters
        few = picture.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).convert("RGB")
        few.paste("white", mask=picture.convert("L").point(lambda light: 255 * (light == 255)))
        picture = few
    found = io.BytesIO()
    picture.save(found, "WEBP", lossless=True, method=1, quality=20)  # quick, and nearly as small
    if found.tell() > LOSSLESS:
        found = io.BytesIO()
        picture.save(found, "WEBP", method=2, quality=80)
    return f"data:image/webp;base64,{base64.b64encode(found.getvalue()).decode()}"


def _without_folders(html: str, run: Run) -> str:
    """Cut the known folders of this machine from paths, in error messages for example."""
    recorded = [run.settings.get(name) or "" for name in ("source", "manifest", "cache")]
    folders = {Path(path).parent for path in (run.folder, *recorded) if Path(path).is_absolute()}
    folders |= {Path(__file__).resolve().parents[2], places.cache_root(), Path.cwd(), Path.home()}
    for folder in sorted(map(str, folders), key=len, reverse=True):
        if len(Path(folder).parts) > 1:
            html = html.replace(f"{folder}{os.sep}", "")
    return html


def result_lines(summary: dict) -> str:
    """Return the table of results that ends a run, as text."""
    lines = [
        f"{'method':<16} {'split':<14} {'images':>7} {'cases':>6} {'accuracy':>9} {'AUC':>6}  started from"
    ]
    for row in summary["trained"] + summary["compared"]:
        auc = "-" if row["auc"] is None else f"{row['auc']:.3f}"
        lines.append(
            f"{row['method']:<16} {row['split']:<14} {row['images']:>7} {row['cases']:>6} "
            f"{row['accuracy']:>9.3f} {auc:>6}  {row.get('weights', '')}"
        )
    return "\n".join(lines)
