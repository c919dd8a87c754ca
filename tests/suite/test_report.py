"""The report as a file: what it is made of, no data taken for HTML, nothing asked of the network."""

import base64
import io
import json
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from bcdlib.plots import panel, style
from bcdlib.runs.files import write_csv
from bcdlib.runs.folder import open_run_folder
from bcdlib.suite.report import write_report

HOSTILE = '<img src="http://example.com/x.png" onerror="alert(1)">'
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


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
    picture = {"image/png": PNG, panel.VIEW: {"model_id": "x"}, "text/plain": "a panel"}
    run.record(source=str(tmp_path / "my" / "BreaKHis_v1"), cache=str(tmp_path / "cache" / "pixels"))
    shown = run.table("hostile", pd.DataFrame({HOSTILE: [HOSTILE, "b"]}))
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
    assert "results" in links and "References" not in links
    assert all(f'id="{name}"' in html for name in links) and len(links) == 4


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
    assert summary["environment"]["numpy"] == np.__version__ and summary["environment"]["backend"]
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
