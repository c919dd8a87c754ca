"""The whole suite in one go: papermill runs the six notebooks, nbconvert and Jinja2 make one report of them."""

import base64
import contextlib
import json
import os
import re
import secrets
import sys
from importlib import resources
from pathlib import Path

import jinja2
import nbformat
import papermill
from nbconvert import HTMLExporter
from nbconvert.preprocessors import TagRemovePreprocessor

from bcdlib import __version__, manifest, metrics, mount, owndata, panel, profiles, sources
from bcdlib.errors import InputError, shown
from bcdlib.methods import backbones
from bcdlib.runs import Run, replacing, write_json

STAGES = ("01_mount", "02_preprocess", "03_visualize", "04_train", "05_evaluate", "06_compare")
SECTION = re.compile(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"')


class StageError(RuntimeError):
    """A notebook failed; the message says which cell and why."""


def notebooks_folder() -> Path:
    """The six notebooks: beside the package in a checkout, inside it when installed from a wheel."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "notebooks", package / "notebooks"):
        if (folder / f"{STAGES[0]}.ipynb").is_file():
            return folder
    raise InputError(f"the notebooks are missing beside {package}; get a complete checkout of bcdlib")


def check(data: str, profile: str, weights: str | None, only: tuple[str, ...], seed: int = 0, own: str = "") -> None:
    """Find a user's mistakes before anything long starts. `own` is the manifest of images that are not BreakHis's.

    Raises
    ------
    InputError
        Unknown profile or notebook, a data set or manifest that cannot be used, weights that cannot be had.
    """
    settings = profiles.get(profile)
    for stage in only:
        if stage not in STAGES:
            raise InputError(f"unknown notebook {stage!r}; known are {', '.join(STAGES)}")
    own = mount.find_own(data, own) if own else ""
    if own:
        owndata.read(own)
    source = mount.find(data, seed=seed)
    if not isinstance(source, sources.TarSource):  # listing a .tar.gz means reading it all: 01_mount does that once
        owndata.scan(own, source) if own else manifest.scan(source)
    if not only or "04_train" in only or "06_compare" in only:
        backbones.find_weights("resnet50", weights, required=settings.needs_pretrained)


def run(run: Run, parameters: dict, only: tuple[str, ...] = (), verbose: bool = True) -> dict:
    """Execute the notebooks in order into ``<run>/notebooks``, then write ``report.html`` and ``summary.json``.

    Parameters
    ----------
    parameters : values for the notebooks' parameters; each notebook gets those that it declares
    only : names of notebooks, for example ("05_evaluate",); empty means all six

    Returns
    -------
    dict, the contents of summary.json.

    Raises
    ------
    StageError
        If a notebook fails; its executed half is kept.
    InputError
        If it fails because of bad input.
    """
    stages = [stage for stage in STAGES if not only or stage in only]
    for number, stage in enumerate(stages, 1):
        print(f"[{number}/{len(stages)}] {stage}", flush=True)
        _execute(stage, run, parameters)
    return summarise(run)


def _execute(stage: str, run: Run, parameters: dict) -> None:
    output = run.folder / "notebooks" / f"{stage}.ipynb"
    output.parent.mkdir(exist_ok=True)
    execute(stage, parameters, output, notebooks_folder(), sys.stdout)


def execute(stage: str, parameters: dict, output: Path, cwd: Path, log=None, env: dict[str, str] | None = None) -> None:
    """Execute one notebook.

    Parameters
    ----------
    parameters : those that it declares are handed on
    output : gets the executed notebook, or, if it fails, its executed half
    cwd : where it works
    log : file that what it prints goes to
    env : changes of its environment

    Raises
    ------
    StageError, InputError
        As `run`.
    """
    notebook = notebooks_folder() / f"{stage}.ipynb"
    known = papermill.inspect_notebook(str(notebook))
    try:
        with _environment(env or {}):
            papermill.execute_notebook(
                str(notebook), str(output), {key: value for key, value in parameters.items() if key in known},
                kernel_name="python3", cwd=str(cwd), progress_bar=False, stdout_file=log, stderr_file=log and sys.stderr,
            )
    except papermill.PapermillExecutionError as error:
        if error.ename == InputError.__name__:
            raise InputError(error.evalue) from None
        reason = f"{error.ename}: {error.evalue}".splitlines()[0]
        raise StageError(f"{stage}, cell {error.cell_index + 1}: {reason} (see {output})") from None


@contextlib.contextmanager
def _environment(changes: dict[str, str]):
    changes = {
        # the kernel must be this very Python, not one that the user's Jupyter settings name "python3"
        "JUPYTER_PREFER_ENV_PATH": "1",
        # and its caches ours: the notebooks work in their own folder, which need not be beside the user's
        "BCD_HOME": str(mount.home()),
        "BCD_VERBOSE": os.environ.get("BCD_VERBOSE", "1" if sys.stdout.isatty() else "2"),
    } | changes
    before = {name: os.environ[name] for name in changes if name in os.environ}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name in changes:
            del os.environ[name]
        os.environ.update(before)


def summarise(run: Run) -> dict:
    """Write ``report.html`` and ``summary.json`` from what stands in the run folder."""
    results = {}
    for name in ("predictions", "comparison_predictions"):
        if (run.folder / f"{name}.csv").is_file():
            table = metrics.table(metrics.read_predictions(run.folder / f"{name}.csv"))
            results[name] = json.loads(table.to_json(orient="records"))
    summary = {"bcdlib": __version__, "settings": run.settings, "trained": results.get("predictions", []),
               "compared": results.get("comparison_predictions", [])}
    write_json(run.folder / "summary.json", summary)
    with replacing(run.folder / "report.html") as temporary:
        temporary.write_text(report(run, summary), encoding="utf-8")
    return summary


def report(run: Run, summary: dict) -> str:
    """One self-contained HTML page: results first, then prose, tables and pictures of the executed notebooks."""
    template = resources.files("bcdlib").joinpath("report.html.j2").read_text(encoding="utf-8")
    chapters = []
    for stage in STAGES:
        path = run.folder / "notebooks" / f"{stage}.ipynb"
        if path.is_file():
            try:
                notebook = nbformat.read(path, as_version=4)
            except Exception as error:  # half written by a run that was killed: nbformat has its own kinds
                print(f"{path}: not readable ({shown(error)[:80]}); run {stage} again to have it in the report")
                continue
            body = _body(notebook)
            sections = [{"id": id, "title": title} for id, title in SECTION.findall(body) if title != "References"]
            chapters.append({"id": stage, "title": _title(notebook, stage), "body": body, "sections": sections})
    figure = run.folder / "figures" / "protocols.png"
    picture = base64.b64encode(figure.read_bytes()).decode() if figure.is_file() else ""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        summary=summary, chapters=chapters, protocol_figure=picture, folder=run.folder.name,
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
        if cell.cell_type == "code":  # logs and progress bars stay in the notebook; errors and results are shown
            cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
            for output in cell.outputs:
                output.get("data", {}).pop(panel.VIEW, None)
            cell.metadata["alt"] = f"Figure of section {heading}"  # what its section says is what a picture shows
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True)
    exporter.register_preprocessor(TagRemovePreprocessor(remove_cell_tags={"hide-in-report"}), enabled=True)
    body, _ = exporter.from_notebook_node(notebook)
    return body


def result_lines(summary: dict) -> str:
    """The table of results that ends a run, as text."""
    lines = [f"{'method':<16} {'split':<14} {'images':>7} {'cases':>6} {'accuracy':>9} {'AUC':>6}  started from"]
    for row in summary["trained"] + summary["compared"]:
        auc = "-" if row["auc"] is None else f"{row['auc']:.3f}"
        lines.append(f"{row['method']:<16} {row['split']:<14} {row['images']:>7} {row['cases']:>6} "
                     f"{row['accuracy']:>9.3f} {auc:>6}  {row.get('weights', '')}")
    return "\n".join(lines)
