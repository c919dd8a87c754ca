"""report.html and summary.json, made of what stands in the run folder."""

import base64
import json
import re
import secrets
from importlib import resources

import jinja2
import nbformat
from nbconvert import HTMLExporter
from nbconvert.preprocessors import TagRemovePreprocessor

from bcdlib import __version__
from bcdlib.errors import printable
from bcdlib.evaluation import metrics
from bcdlib.plots import panel
from bcdlib.runs.files import atomic_write, write_json
from bcdlib.runs.folder import Run
from bcdlib.trials.notebook import STAGES

SECTION = re.compile(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"')


def write_report(run: Run) -> dict:
    """Write ``report.html`` and ``summary.json`` from what stands in the run folder."""
    results = {}
    for name in ("predictions", "comparison_predictions"):
        if (run.folder / f"{name}.csv").is_file():
            table = metrics.metrics_table(metrics.read_predictions(run.folder / f"{name}.csv"))
            results[name] = json.loads(table.to_json(orient="records"))
    summary = {
        "bcdlib": __version__,
        "settings": run.settings,
        "trained": results.get("predictions", []),
        "compared": results.get("comparison_predictions", []),
    }
    write_json(run.folder / "summary.json", summary)
    with atomic_write(run.folder / "report.html") as temporary:
        temporary.write_text(render_report(run, summary), encoding="utf-8")
    return summary


def render_report(run: Run, summary: dict) -> str:
    """One self-contained HTML page: results first, then prose, tables and pictures of the executed notebooks."""
    template = resources.files("bcdlib.suite").joinpath("report.html.j2").read_text(encoding="utf-8")
    chapters = []
    for stage in STAGES:
        path = run.folder / "notebooks" / f"{stage}.ipynb"
        if path.is_file():
            try:
                notebook = nbformat.read(path, as_version=4)
            except Exception as error:  # half written by a run that was killed: nbformat has its own kinds
                print(
                    f"{path}: not readable ({printable(error)[:80]}); run {stage} again to have it in the report"
                )
                continue
            body = _body(notebook)
            sections = [
                {"id": id, "title": title} for id, title in SECTION.findall(body) if title != "References"
            ]
            chapters.append(
                {"id": stage, "title": _title(notebook, stage), "body": body, "sections": sections}
            )
    figure = run.folder / "figures" / "protocols.png"
    picture = base64.b64encode(figure.read_bytes()).decode() if figure.is_file() else ""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        summary=summary,
        chapters=chapters,
        protocol_figure=picture,
        folder=run.folder.name,
        nonce=secrets.token_urlsafe(),  # the page runs the script that knows it and no other
    )


def _title(notebook, stage: str) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            return cell.source.splitlines()[0][2:]
    return stage


def _body(notebook) -> str:
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found = [line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")]
            heading = found[-1] if found else heading
        if (
            cell.cell_type == "code"
        ):  # logs and progress bars stay in the notebook; errors and results are shown
            cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
            for output in cell.outputs:
                output.get("data", {}).pop(panel.VIEW, None)
            cell.metadata["alt"] = (
                f"Figure of section {heading}"  # what its section says is what a picture shows
            )
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True)
    exporter.register_preprocessor(TagRemovePreprocessor(remove_cell_tags={"hide-in-report"}), enabled=True)
    body, _ = exporter.from_notebook_node(notebook)
    return body
