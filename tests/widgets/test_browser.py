"""Widgets and report in a real browser: JupyterLab with ipywidgets 8, with Colab's 7.7.1, and report.html.

Needs Chromium (on the path, or named by BCD_CHROMIUM) and the extra "browser" (Playwright, JupyterLab). For
ipywidgets 7.7.1, BCD_WIDGETS7_PYTHON names the Python of an environment that has bcdlib's requirements and

    pip install "jupyterlab<4" "jupyterlab_widgets<2" "ipywidgets==7.7.1" "ipykernel<7"

Screenshots are kept in the folder that BCD_SCREENSHOTS names.
"""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from bcdlib import compare, evaluate
from bcdlib.data import splits
from bcdlib.runs.folder import open_run_folder
from bcdlib.suite.report import write_report
from bcdlib.suite.run import run_suite
from bcdlib.trials.notebook import STAGES

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent.parent
STAGES = STAGES[
    :5
]  # 06_compare's figure is drawn from 04's predictions: ten trials more would teach nothing here
# what the widgets need of each notebook, by cell id: the rest is tested elsewhere and costs a minute
NEEDED = {
    "03_visualize": [
        "title",
        "get-bcdlib",
        "parameters",
        "code-06",
        "section-3-7",
        "browse-samples",
    ],
    "05_evaluate": [
        "title",
        "setup",
        "parameters",
        "code-06",
        "code-08",
        "threshold-slider",
        "section-5-13",
        "own-image",
    ],
    "06_compare": ["title", "setup", "parameters", "code-06", "follow-case-answers"],
}
# in the place of 06_compare's own trials: those of 04_train
COMPARED = "from bcdlib import evaluate\n\ncompared = evaluate.load_predictions(run)"
# bytes of the images that are seen, as the page has decoded them
IMAGES = """() => [...document.querySelectorAll('.widget-html img')]
    .filter(img => img.offsetParent && img.naturalWidth).map(img => {
        const canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [img.naturalWidth, img.naturalHeight];
        canvas.getContext('2d').drawImage(img, 0, 0);
        return canvas.toDataURL();
    })"""


def chromium():
    found = os.environ.get("BCD_CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    return found or pytest.skip("no Chromium: install one, or name it with BCD_CHROMIUM")


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    path = chromium()
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory):
    folder = Path(os.environ.get("BCD_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def made(browser, tiny, tmp_path_factory):
    """A run of all notebooks on the tiny data set: head only, one epoch; only if there is a browser."""
    run = open_run_folder(tmp_path_factory.mktemp("browser") / "run")
    os.environ.setdefault("BCD_CACHE", str(run.folder.parent / "cache"))
    run_suite(
        run,
        {
            "data": str(tiny),
            "profile": "demo",
            "out": str(run.folder),
            "weights": "none",
            "trainable": "head",
            "epochs": 1,
            "splits": "image case",
        },
        STAGES,
    )
    run.figure("protocols", compare.protocol_figure(evaluate.load_predictions(run)))
    write_report(run)
    return run


# ---------------------------------------------------------------- JupyterLab


@pytest.fixture(scope="module", params=["ipywidgets 8", "ipywidgets 7.7.1"])
def lab(request, made, tmp_path_factory):
    """Address of a JupyterLab with the cells of `NEEDED`, and the major version of its ipywidgets."""
    python = sys.executable
    if request.param == "ipywidgets 7.7.1":
        python = os.environ.get("BCD_WIDGETS7_PYTHON") or pytest.skip(
            "set BCD_WIDGETS7_PYTHON (see the top of this file)"
        )
    elif importlib.util.find_spec("jupyterlab") is None:
        pytest.skip("no JupyterLab: pip install jupyterlab")
    folder = tmp_path_factory.mktemp("lab")
    for stage, ids in NEEDED.items():
        notebook = nbformat.read(ROOT / "notebooks" / f"{stage}.ipynb", as_version=4)
        notebook.cells = [cell for cell in notebook.cells if cell["id"] in ids]
        words = {"data": made.settings["data"], "out": str(made.folder), "weights": "none"}
        parameters = next(c for c in notebook.cells if c["id"] == "parameters")
        parameters.source += "".join(f"\n{name} = {word!r}" for name, word in words.items())
        if stage == "06_compare":
            notebook.cells.insert(-1, nbformat.v4.new_code_cell(COMPARED))
        nbformat.write(notebook, folder / f"{stage}.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        python,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--ServerApp.allow_root=True",
        f"--ServerApp.port={port}",
        "--IdentityProvider.token=",
        "--ServerApp.token=",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.expose_app_in_browser=True",
    ]
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=lab_settings(folder), stdout=log, stderr=subprocess.STDOUT
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/api", server, folder / "lab.log")
            yield f"http://127.0.0.1:{port}", request.param.split()[1][0]
        finally:
            server.terminate()
            server.wait(20)


def lab_settings(folder):
    """An environment in which JupyterLab asks nothing, keeps all cells in the page, and finds bcdlib."""
    settings = {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "notebook-extension/tracker": {"windowingMode": "none"},
    }
    for name, values in settings.items():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    return os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONPATH": str(ROOT),
        "BCD_HEADLESS": "",
    }


def wait_for(address, server, log):
    for _ in range(300):
        try:
            return urllib.request.urlopen(address, timeout=5)
        except OSError:
            assert server.poll() is None, log.read_text()[-2000:]
            time.sleep(0.2)
    raise AssertionError(f"no answer from {address}: {log.read_text()[-2000:]}")


@pytest.fixture
def page(browser):
    opened = browser.new_page(viewport={"width": 1280, "height": 1600})
    opened.set_default_timeout(60_000)
    yield opened
    opened.close()


def run_all(page, address, stage):
    page.goto(f"{address}/doc/tree/{stage}.ipynb")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    # the kernel is chosen a moment after the cells are drawn
    page.wait_for_function("""() => {
        const panel = window.jupyterapp?.shell.currentWidget;
        return panel?.sessionContext?.session?.kernel?.status === 'idle';
    }""")
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")


def dropdown(page, label):
    return page.locator(".widget-dropdown", has=page.get_by_text(label, exact=True)).locator("select")


def keep(page, path, label):
    """A screenshot of the widget that has something with this label in it."""
    page.locator(".jp-OutputArea-child", has=page.get_by_text(label, exact=True)).first.screenshot(path=path)


def changed(page, before):
    """The images, once they are others than before and have come to rest: they arrive one by one."""
    last = None
    for _ in range(100):
        now = page.evaluate(IMAGES)
        if now and now != before and now == last:
            return now
        last = now
        page.wait_for_timeout(300)
    raise AssertionError("the images stayed as they were")


def test_sample_browser(lab, page, screenshots):
    address, version = lab
    run_all(page, address, "03_visualize")
    dropdown(page, "magnification").wait_for()
    before = changed(page, [])
    assert len(before) == 8
    keep(page, screenshots / f"samples-{version}.png", "magnification")
    dropdown(page, "magnification").select_option(label="400X")
    page.get_by_text("of 24 images").wait_for()
    filtered = changed(page, before)
    assert page.get_by_text(", 400X,").count() == 8 and page.get_by_text(", 40X,").count() == 0
    page.get_by_role("button", name="Next").click()
    page.get_by_text("9 to 16 of 24 images").wait_for()
    turned = changed(page, filtered)
    assert not set(turned) & set(filtered)
    dropdown(page, "show").select_option(label="normalised")
    assert not set(changed(page, turned)) & set(turned)
    assert all(page.locator(".widget-html img").evaluate_all("images => images.map(image => image.alt)"))
    page.get_by_title("Enlarge SOB").nth(1).focus()
    page.keyboard.press("Tab")
    focused = page.locator(":focus-visible")
    assert focused.evaluate("button => getComputedStyle(button).outlineWidth") == "3px"
    keep(page, screenshots / f"samples-focus-{version}.png", "magnification")
    page.keyboard.press("Enter")
    page.get_by_text("normalised, 72 × 48 pixels").wait_for()
    keep(page, screenshots / f"samples-enlarged-{version}.png", "magnification")
    page.get_by_role("button", name="Close").click()
    page.get_by_text("normalised, 72 × 48 pixels").wait_for(state="hidden")


def test_threshold_slider_and_upload(lab, page, screenshots, tmp_path):
    address, version = lab
    run_all(page, address, "05_evaluate")
    readout = page.locator(".widget-slider", has=page.get_by_text("threshold", exact=True)).locator(
        ".widget-readout"
    )
    readout.wait_for()
    numbers = page.locator("table", has=page.get_by_text("true \\ predicted"))
    seen = {}
    for value in ("0", "1", "0.5"):
        readout.click()
        page.keyboard.press("Control+a")
        page.keyboard.type(value)
        page.keyboard.press("Enter")
        page.get_by_text(f"at threshold {float(value):.3f}").wait_for()
        page.get_by_alt_text(f"marked at {float(value):.3f}").wait_for()
        seen[value] = numbers.locator("td").all_inner_texts()[1:]
    assert seen["0"][0] == seen["0"][2] == "0" and seen["1"] != seen["0"]  # all malignant, then all benign
    total = {value: sum(map(int, counts)) for value, counts in seen.items()}
    assert len(set(total.values())) == 1
    keep(page, screenshots / f"threshold-{version}.png", "predictions")
    file = tmp_path / "mine <b>.png"
    Image.linear_gradient("L").convert("RGB").save(file)
    with page.expect_file_chooser() as chooser:
        page.locator("button.jupyter-button", has_text="Choose an image").click()
    before = page.evaluate(IMAGES)
    chooser.value.set_files(file)
    page.get_by_text("mine <b>.png: ").wait_for()
    page.get_by_text(re.compile(r"^mine <b>.png: \w+, probability of malignant [01]\.\d")).wait_for()
    page.get_by_alt_text(re.compile(r"^mine <b>.png: ")).wait_for()
    curve, explained = changed(page, before)
    assert curve == before[0] and explained != before[1]
    keep(page, screenshots / f"upload-{version}.png", "model")


def test_a_case_is_followed_by_keyboard(lab, made, page, screenshots):
    address, version = lab
    tested = {
        name: set(splits.read_split(made, name).query("fold == 0 and role == 'test'")["filename"])
        for name in ("image", "case")
    }
    images = made.images()
    case = images.loc[images["filename"].isin(tested["case"]), "case"].iloc[0]
    run_all(page, address, "06_compare")
    dropdown(page, "case (accession number)").select_option(option_of(page, case))
    slider = page.locator("[role=slider], .ui-slider-handle")  # of ipywidgets 8, of 7
    slider.focus()
    page.keyboard.press("Home")
    page.get_by_text("magnification: train 100X+200X+400X").wait_for()
    strips = page.locator(".widget-html", has=page.get_by_text(re.compile(r"^In test: ")))
    assert strips.get_by_text(re.compile(r"^In training: ")).count() == 1
    keep(page, screenshots / f"case-magnification-{version}.png", "protocol")
    page.keyboard.press("End")
    page.get_by_text("case: grouped by case").wait_for()
    page.get_by_text(re.compile(r"none in training\. \d+ of \d+ answers are right\.")).wait_for()
    assert strips.get_by_text(re.compile(r"^In training: ")).count() == 0
    alts = strips.locator("img").evaluate_all("images => images.map(image => image.alt)")
    assert len(alts) == (images["case"] == case).sum()
    assert all(re.search(r"in test, predicted \w+ \([01]\.\d\d\), (right|wrong)$", alt) for alt in alts)
    keep(page, screenshots / f"case-{version}.png", "protocol")
    page.set_viewport_size({"width": 700, "height": 1600})
    keep(page, screenshots / f"case-narrow-{version}.png", "protocol")


def option_of(page, text):
    """The value of the first option that starts so."""
    option = page.locator("option", has_text=re.compile(rf"^{re.escape(text)}:\s")).first
    return option.get_attribute("value", timeout=60_000)


# ---------------------------------------------------------------- the report


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_report(made, browser, screenshots, width, scheme):
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        device_scale_factor=2 if width < 600 else 1,
    )
    page, asked = context.new_page(), []
    address = (made.folder / "report.html").as_uri()
    page.on("request", lambda request: asked.append(request.url))
    page.route("**/*", lambda route: route.continue_() if route.request.url == address else route.abort())
    page.goto(address)
    page.wait_for_load_state("load")
    assert [url for url in asked if url != address and not url.startswith("data:")] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    images = page.evaluate(
        "[...document.images].map(i => [i.complete && i.naturalWidth > 0, i.alt, i.getAttribute('src')])"
    )
    assert len(images) >= 15 and all(loaded and len(alt) > 5 for loaded, alt, _ in images), images
    assert all("No description" not in alt for _, alt, _ in images)
    page.screenshot(path=screenshots / f"report-{width}-{scheme}.png", full_page=True)
    context.close()


@pytest.mark.parametrize("width", [1280, 800, 390])
def test_links_of_the_contents_land_where_they_say(made, browser, width):
    """At the first opening, when nothing below has been seen yet."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    address = (made.folder / "report.html").as_uri()
    page.goto(address)
    chapters = page.evaluate("[...document.querySelectorAll('main > section')].map(s => s.id)")
    assert len(chapters) > 4
    for chapter in chapters[-3:-1]:  # below the last one there may be too little to scroll it up
        page.goto("about:blank")
        page.goto(f"{address}#{chapter}")
        page.wait_for_timeout(300)
        top = page.evaluate("id => document.getElementById(id).getBoundingClientRect().top", chapter)
        assert 0 <= top < 80, (chapter, top)
    page.close()


def test_report_tables_sort(made, browser):
    page = browser.new_page()
    page.goto((made.folder / "report.html").as_uri())
    table = page.locator("#results table").first
    header = table.get_by_role("columnheader", name="accuracy")
    read = "t => [...t.tBodies[0].rows].map(r => parseFloat(r.cells[5].innerText))"
    header.get_by_role("button").focus()
    page.keyboard.press("Enter")
    up = table.evaluate(read)
    assert up == sorted(up) and header.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert table.evaluate(read) == up[::-1] and header.get_attribute("aria-sort") == "descending"
    page.close()
