"""The report as a file: what it is made of, no data taken for HTML, nothing asked of the network."""

import base64
import hashlib
import html as html_text
import io
import json
import re
from pathlib import Path

import keras  # what is loaded is recorded
import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from bcdlib import evaluate
from bcdlib.data import breakhis
from bcdlib.plots import panel, style
from bcdlib.runs.files import write_csv
from bcdlib.runs.folder import open_run_folder
from bcdlib.suite import checklist
from bcdlib.suite.report import OWN_SECTIONS, write_report
from bcdlib.trials.notebook import STAGES

HOSTILE = '<img src="http://example.com/x.png" onerror="alert(1)">'
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def evaluated(run, table, flow):
    """What the first page reads of 05_evaluate."""
    for name, values in (
        ("results", evaluate.results_table(table)),
        ("by_case", evaluate.case_table(table)),
        ("precision", evaluate.precision_table(table)),
        ("flow", flow),
    ):
        run.table(name, values)


@pytest.fixture
def html(tmp_path):
    run = open_run_folder(tmp_path / "run & <b>")
    run.record(data=HOSTILE, profile="demo")
    table = pd.DataFrame(
        {
            "filename": ["a", "b"],
            "slide": ["s", "t"],
            "case": ["s", "t"],
            "magnification": 40,
            "subtype": "A",
            "label": [0, 1],
            "probability": [0.2, 0.7],
            "fold": 0,
            "method": HOSTILE,
            "split": "case",
            "seed": 0,
            "weights": HOSTILE,
        }
    )
    write_csv(run.folder / "predictions.csv", table)
    evaluated(run, table, evaluate.flow_table(run, table))
    picture = {"image/png": PNG, panel.VIEW: {"model_id": "x"}, "text/plain": "a panel"}
    run.record(source=str(tmp_path / "my" / "BreaKHis_v1"), cache=str(tmp_path / "cache" / "pixels"))
    shown = run.table("hostile", pd.DataFrame({HOSTILE: [HOSTILE, "b"], "a_long_name": 1}))
    cells = [
        new_markdown_cell("# 5. Evaluate"),
        new_markdown_cell("## 5.1 One\n\nWords."),
        new_code_cell("x", outputs=[new_output("execute_result", picture)]),
        new_markdown_cell("More words, no heading."),
        new_code_cell("y", outputs=[new_output("display_data", picture), new_output("stream", text="log")]),
        new_code_cell('run.figure("protocols", 1)', outputs=[new_output("execute_result", picture)]),
        new_code_cell("w", outputs=[new_output("error", ename="E", traceback=[f"{tmp_path}/my/slide.png"])]),
        new_markdown_cell("## 5.2 Two <&>"),
        new_code_cell(
            "z", outputs=[new_output("execute_result", {"text/html": shown.to_html(), "text/plain": ""})]
        ),
        new_markdown_cell("## References"),
    ]
    (run.folder / "notebooks").mkdir()
    nbformat.write(new_notebook(cells=cells), run.folder / "notebooks" / "05_evaluate.ipynb")
    run.figure("protocols", style.make_figure(width=2, height=1)[0])
    write_report(run)
    return (run.folder / "report.html").read_text()


def test_pictures_have_words_and_widgets_leave_pictures(html):
    alts = re.findall(r'<img[^>]*\balt="([^"]*)"', html)
    assert len(alts) == len(re.findall(r"<img\b", html)) == 3
    assert alts[0].startswith("Accuracy and AUC") and alts[1:] == ["Figure of section 5.1 One"] * 2
    assert "widget-view" not in html and ">log" not in html


def test_the_protocol_figure_comes_first_and_contents_name_the_sections(html):
    assert (
        html.index("<nav")
        < html.index("Accuracy and AUC of each method")
        < html.index('<section id="05_evaluate"')
    )
    links = re.findall(r'<li><a href="#([^"]+)">', html)
    assert links[:4] == ["page", "results", "data", "environment"] and "References" not in links
    assert all(f'id="{name}"' in html for name in links) and len(links) == 6


def test_what_it_was_made_with_is_recorded_and_shown(tmp_path):
    run = open_run_folder(tmp_path / "run")
    run.record(data="somewhere", source="somewhere", profile="demo", fingerprint="d0123456789ab")
    before = {"device": "Tesla T4", "keras": "3.13.2", "colab": "release-colab_20260801"}
    for name, data in (("a", "d0123456789ab"), ("b", "d0123456789ab"), ("c", "dffffffffffff")):
        folder = run.folder / "trials" / name
        folder.mkdir(parents=True)
        facts = {"data": data, "precision": "mixed_float16", "environment": before}
        (folder / "trial.json").write_text(json.dumps(facts))
    summary = write_report(run)
    assert summary == json.loads((run.folder / "summary.json").read_text())
    assert summary["data"] == "d0123456789ab"
    assert summary["trials"] == [
        {"trials": 2, "data": "d0123456789ab", "precision": "mixed_float16", **before}
    ]
    environment = summary["environment"]
    assert environment["numpy"] == np.__version__ and environment["backend"] == keras.backend.backend()
    html = (run.folder / "report.html").read_text()
    for text in (
        "d0123456789ab",
        "Tesla T4",
        "mixed_float16",
        "release-colab_20260801",
        "2 trials",
        np.__version__,
    ):
        assert text in html


def test_nothing_of_the_data_becomes_html(html):
    assert '<img src="http' not in html and html.count("&lt;img") >= 5
    assert "run &amp; &lt;b&gt;" in html


def test_tables_have_the_look_of_the_report(html):
    body = html.split("<body>")[1]
    assert "<table id=" in body and "<style" not in body
    assert ">a_<wbr/>long_<wbr/>name</th>" in body, "a long heading may break"
    assert not any("wbr" in tag for tag in re.findall("<th[^>]*", body))


def test_nothing_is_asked_of_the_network(html):
    assert not re.findall(r'<[a-z]+ [^<>]*\b(?:src|srcset|action|data)="(?!data:)', html)
    assert not re.findall(r"<(?:link|iframe|object|embed|base)\b|@import|url\(", html)
    # and if something got through: browsers load only what is in the file, and run only our one script
    (nonce,) = re.findall(
        r"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'nonce-([\w-]+)'", html
    )
    assert re.findall("<script[^>]*>", html) == [f'<script nonce="{nonce}">']


def test_no_folder_of_this_machine_is_told(html, tmp_path):
    summary = (tmp_path / "run & <b>" / "summary.json").read_text()
    assert '"source": "BreaKHis_v1"' in summary and '"cache": "pixels"' in summary
    assert "slide.png" in html
    assert str(tmp_path) not in html + summary


def test_pictures_are_packed_once_and_small(html):
    assert html.count("data:image/webp;base64,") == 3 and "data:image/png" not in html
    assert html.count('<a href="#results">Results</a>') == 2  # in the contents and in the notebook


def test_photographs_are_packed_with_little_loss_and_drawings_with_none(tmp_path):
    random = np.random.default_rng(0)
    photograph = (
        (np.array([200, 120, 180]) + random.normal(0, 15, (600, 600, 1))).clip(0, 255).astype("uint8")
    )
    drawing = np.full((600, 600, 3), 255, np.uint8)
    drawing[100:200, ::7] = [0, 114, 178]
    cells, sizes = [new_markdown_cell("# 3. Visualize")], []
    for pixels in (photograph, drawing):
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        sizes.append(len(png.getvalue()))
        picture = {"image/png": base64.b64encode(png.getvalue()).decode()}
        cells.append(new_code_cell("x", outputs=[new_output("display_data", picture)]))
    run = open_run_folder(tmp_path)
    run.record(data="synthetic", profile="demo")
    (tmp_path / "notebooks").mkdir()
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / "03_visualize.ipynb")
    write_report(run)
    html = (tmp_path / "report.html").read_text()
    packed = [base64.b64decode(text) for text in re.findall(r'"data:image/webp;base64,([^"]+)"', html)]
    found = [np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in packed]
    assert len(packed[0]) < sizes[0] / 3 and np.abs(found[0].astype(int) - photograph).mean() < 6
    assert len(packed[1]) <= sizes[1] and (found[1] == drawing).all()


def first_page(run):
    text = (run.folder / "report.html").read_text()
    part = text.split('<section id="page">')[1].split("</section>")[0]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", part))


def real_run(folder, images):
    """A run of BreakHis images, the last third of the cases tested; every fifth case is wrong."""
    run = open_run_folder(folder)
    images = images.assign(path=images["filename"])
    run.record(data="BreaKHis_v1", source="BreaKHis_v1", profile="quick")
    write_csv(run.folder / "images.csv", images)
    number = images["case"].rank(method="dense").astype(int)
    label = breakhis.class_labels(images)
    table = images[["filename", "slide", "case", "magnification", "subtype"]].assign(
        label=label,
        probability=np.where(number % 5 == 0, 0.7 - 0.4 * label, 0.2 + 0.6 * label) + 0.001 * number,
        fold=0,
        method="mine",
        split="case",
        seed=0,
    )
    tested = table[number > number.max() * 2 // 3]
    write_csv(run.folder / "predictions.csv", tested)
    return run, tested


def test_the_first_page_says_what_was_found_by_case(tmp_path):
    images = breakhis.known_images().query("magnification == 40")
    run, tested = real_run(tmp_path / "run", images)
    facts = {"split": "case", "fold": 0, "step": "test", "images": len(tested), "slides": 26, "cases": 24}
    counts = {"benign": 1, "malignant": 2, "benign_cases": 9, "malignant_cases": 15, "cases_in_training": 0}
    evaluated(run, tested, pd.DataFrame([facts | counts]))
    write_report(run)
    page = first_page(run)
    shown = evaluate.case_table(tested).set_index("measure")
    auc = evaluate.results_table(tested).set_index("metric").loc["case_auc"]
    low, high = (f"{float(limit):.2f}" for limit in auc["95 % by case"].split(" to "))
    assert f"Split case, mine: AUC {auc['value']:.2f} ({low} to {high})." in page
    cases, value = shown.loc["sensitivity", ["cases", "value"]]
    assert f"Malignant cases found: {cases}, {value:.2f} (" in page
    assert "Split case: 24 test cases (15 malignant, 9 benign), 26 slides" in page and "Paraná" in page
    assert "0 of 24 test cases were also in training" in page and "other cases of the same data set" in page
    needed, cases = evaluate.precision_table(tested).set_index("measure").loc["AUC by case"].iloc[[-1, -4]]
    assert f"about {needed} test cases would be needed; there are {cases}" in page
    html = (run.folder / "report.html").read_text()
    assert "P&amp;D Laboratory" in html and "Fairness cannot be tested" in html and "No readers" in html
    assert '<a href="checklist.md">' in html
    # with shared cases, and over several folds, the page says so
    several = pd.DataFrame([facts | counts | {"fold": n, "cases_in_training": n} for n in (1, 2)])
    write_csv(run.folder / "tables" / "flow.csv", several)
    write_report(run)
    page = first_page(run)
    told = "2 folds together (each in every fold that tests it; 24 different ones)."
    assert f"3 of 48 test cases were also in training or validation, {told}" in page
    assert page.count(told) == 2
    assert "how well it knows these" in page and "other cases of the same data set" not in page


def test_the_first_page_of_other_data(html, tmp_path):
    run = open_run_folder(tmp_path / "run & <b>")
    page = first_page(run)
    assert "Images of the user's own" in page.replace("&#39;", "'") and "&lt;img" in page
    assert "too few test cases for an interval" in page and "made elsewhere" in page
    assert "must be written by the author" in html and "P&amp;D" not in html
    for name in ("by_case", "flow"):
        (run.folder / "tables" / f"{name}.csv").unlink()
        write_report(run)
        assert "05_evaluate has not run in this folder" in first_page(run)


@pytest.mark.parametrize("name", ["=1+1", "01", "a 'b'", "-x {y} $z$ %s"])
def test_the_first_page_with_names_of_all_kinds(tmp_path, name):
    images = breakhis.known_images().query("magnification == 40")
    run, tested = real_run(tmp_path / "run", images)
    (run.folder / "images.csv").unlink()
    tested = tested.assign(method=name, split=name)
    write_csv(run.folder / "predictions.csv", tested)
    evaluated(run, tested, evaluate.flow_table(run, tested))
    write_report(run)
    page = html_text.unescape(first_page(run))
    cases = tested["case"].nunique()
    assert f": {cases} test cases (" in page and f"{name}: AUC " in page
    assert "not known, since the predictions were made elsewhere" in page


def test_what_went_in_is_told_by_its_digest(html, tmp_path):
    run = open_run_folder(tmp_path / "run & <b>")
    summary = json.loads((run.folder / "summary.json").read_text())
    digest = hashlib.sha256((run.folder / "predictions.csv").read_bytes()).hexdigest()
    assert summary["files"] == {"predictions.csv": digest} and digest in html


def test_drawings_are_packed_small_and_stay_what_they_are(tmp_path):
    figure, axis = style.make_figure(width=4, height=3)
    axis.plot([0, 1], [0, 1], color=style.SERIES[0])
    axis.fill_between([0, 1], [0, 0], [1, 1], alpha=0.15)
    file = io.BytesIO()
    figure.savefig(file, dpi=200)
    picture = {"image/png": base64.b64encode(file.getvalue()).decode()}
    cells = [new_code_cell("x", outputs=[new_output("display_data", picture)])]
    run = open_run_folder(tmp_path)
    run.record(data="synthetic", profile="demo")
    (tmp_path / "notebooks").mkdir()
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / "05_evaluate.ipynb")
    write_report(run)
    (packed,) = re.findall(r'"data:image/webp;base64,([^"]+)"', (tmp_path / "report.html").read_text())
    before, after = (
        np.asarray(Image.open(one).convert("RGB")).astype(int)
        for one in (file, io.BytesIO(base64.b64decode(packed)))
    )
    white = (before == 255).all(axis=2)
    assert np.abs(after - before).max() <= 15 and (after[white] == 255).all() and len(packed) < 20_000


def rows_of(text):
    return dict(re.findall(r"^\| (\d\w*) \| .+ \| (.+) \|$", text, flags=re.M))


@pytest.mark.parametrize(
    ("kind", "site", "age"),
    [
        ("BreakHis", "met: What is known of the data", "impossible with BreakHis"),
        ("own", "author must write", "author must write"),
        ("drawn", "impossible with drawn tissue", "impossible with drawn tissue"),
    ],
)
def test_checklist(kind, site, age, tmp_path):
    run, titles = open_run_folder(tmp_path), [*OWN_SECTIONS.values(), "5.10 Calibration", "5.8 Net benefit"]
    text = checklist.render_checklist(run, titles, kind)
    claim, tripod = (rows_of(part) for part in text.split("\n## ")[1:])
    assert list(claim) == [str(n) for n in range(1, 45)] and len(tripod) == 52
    assert claim["7"] == site and claim["36"] == age and claim["1"] == "author must write"
    assert (
        tripod["12e"] == "met: 5.10 Calibration; 5.8 Net benefit" and tripod["24"] == "met: 5.10 Calibration"
    )
    assert claim["35"] == "author must write"  # this report has no flow diagram
    answers = {answer.split(":")[0] for answer in [*claim.values(), *tripod.values()]}
    assert answers == {"met", "author must write", age}
    met = sum(answer.startswith("met") for answer in claim.values())
    assert f"{met} of 44 met." in text and "from memory" in text and "2024" in text


def test_a_section_that_says_nothing_meets_no_item(tmp_path):
    run, titles = open_run_folder(tmp_path), ["5.7 Which images went where", "5.18 Another laboratory"]
    assert "met:" not in checklist.render_checklist(run, titles, "own")
    for name in ("images.csv", "tables/elsewhere.csv"):
        write_csv(run.folder / name, pd.DataFrame({"filename": ["a"]}))
    claim, _ = (rows_of(part) for part in checklist.render_checklist(run, titles, "own").split("\n## ")[1:])
    assert claim["35"] == "met: 5.7 Which images went where" and claim["33"] == "met: 5.18 Another laboratory"


def test_the_checklist_names_sections_that_there_are():
    notebooks = Path(checklist.__file__).parents[2] / "notebooks"
    titles = set(OWN_SECTIONS.values())
    for stage in STAGES:
        text = "\n".join(c.source for c in nbformat.read(notebooks / f"{stage}.ipynb", as_version=4).cells)
        titles |= set(re.findall(r"^## (?:\d+\.\d+ )?(.+)$", text, flags=re.M))
    items = pd.read_csv(Path(checklist.__file__).with_name("checklist.csv"), keep_default_na=False)
    named = {title for titles in items["sections"] for title in titles.split(";") if title}
    assert named - titles <= {"Another laboratory"}
    assert set(items["answer"]) == {"met", "met with BreakHis", "author", "impossible"}
    assert (items["sections"] != "").tolist() == items["answer"].str.startswith("met").tolist()
