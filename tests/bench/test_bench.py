"""bench: what a ratio is, that both sides do the same work, what comes out; not how fast this machine is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bcdlib.data import sources
from bcdlib.data.breakhis import images_table
from bcdlib.data.decode import decode_image
from bcdlib.errors import InputError
from tests import bench
from tests.bench import accelerator, peers, report, scale
from tests.bench.ratios import Ratio, paired

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_ratio_is_taken_pair_by_pair_and_its_median_meets_the_goal():
    one = Ratio("a", "a / b", ">= 1.2", "s", [2.0, 3.0, 1.0], [1.0, 2.0, 2.0])
    assert one.ratios == [2.0, 1.5, 0.5] and one.median == 1.5 and one.met
    assert not Ratio("a", "a / b", ">= 1.6", "s", one.first, one.second).met
    assert Ratio("a", "a / b", "<= 1.5", "s", one.first, one.second).met
    assert Ratio("a", "a / b", "", "s", one.first, one.second).met is None
    facts = one.facts()
    assert (facts["ratio"], facts["lowest"], facts["highest"], facts["met"]) == (1.5, 0.5, 2.0, True)
    assert one.line() == "a / b: 1.5 (0.5 to 2; goal >= 1.2)"


def test_pairs_run_in_turn_each_side_first_as_often():
    order = []
    found = paired(
        "a",
        "a / b",
        "",
        "s",
        lambda: order.append("one") or 1.0,
        lambda: order.append("other") or 2.0,
        pairs=4,
    )
    assert order[:2] == ["one", "other"]  # to warm up
    assert order[2:] == ["one", "other", "other", "one"] * 2
    assert found.ratios == [0.5] * 4


def test_made_up_names_are_names_of_breakhis_kind_and_all_different():
    names = [bench.made_up(number) for number in (*range(3000), *range(79_000, 80_000))]
    assert len(set(names)) == len(names)
    images = images_table(names)
    assert len(images) == len(names) and images["class"].value_counts().nunique() == 1


def test_peers_resize_as_we_do(breakhis, tmp_path):
    """Images of the same size: Pillow and tf.data as exactly as they can; Keras without antialiasing."""
    folder = bench.copies(sources.open_source(breakhis / "original"), tmp_path / "pictures", 4)
    files = sorted(folder.rglob("*.png"))
    assert len(files) == 29 and {file.parent.name for file in files} == {"B", "M"}
    ours = np.stack([decode_image(file.read_bytes(), (144, 96)) for file in files]).astype(float)
    pillow = np.stack([peers.Pictures(files, (144, 96))[number] for number in range(len(files))])
    assert pillow.shape == ours.shape and np.abs(pillow - ours).mean() < 1
    keras_own = np.concatenate(
        [np.asarray(batch[0]) for batch in peers.keras_directory(folder, (144, 96)).data]
    )
    assert (
        keras_own.shape == ours.shape and 1 < np.abs(keras_own - ours).mean() < 12
    )  # not antialiased: coarser grain
    antialiased = peers.keras_directory_antialiased(folder, (144, 96)).data
    assert np.abs(np.concatenate([np.asarray(batch[0]) for batch in antialiased]) - ours).mean() < 1


@pytest.mark.thorough
def test_the_command(tiny, tmp_path):
    words = [sys.executable, "-m", "tests.bench", "--data", tiny, "--only", "ingest", "--only", "batches"]
    words += ["--pairs", "2", "--out", tmp_path / "out", "--json"]
    done = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    names = [row["name"] for row in found["comparisons"]]
    assert {"ingest-decode", "ingest-archive", "ingest-tfdata", "ingest-pillow", "batches-generator"} <= set(
        names
    )
    for row in found["comparisons"]:
        assert len(row["ratios"]) == 2 and all(ratio > 0 for ratio in row["ratios"]), row
        assert f"{row['what']}: {row['ratio']:.3g}" in done.stderr
    assert found["machine"]["packages"]["keras"] and found["machine"]["cores"] >= 1
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == found
    with Image.open(tmp_path / "out" / "bench.png") as picture:
        assert picture.width > 600
    done = subprocess.run([*words[:3], "--only", "all"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "unknown part 'all'" in done.stderr and "Traceback" not in done.stderr


def test_pictures_without_a_png(tmp_path):
    (tmp_path / "data").mkdir()
    Image.fromarray(np.zeros((20, 30, 3), "uint8")).save(tmp_path / "data" / "a.jpg")
    with pytest.raises(InputError, match="no readable PNG"):
        bench.copies(sources.open_source(tmp_path / "data"), tmp_path / "pictures", 4)


def test_scale_measures_memory_and_a_second_run(tmp_path, monkeypatch):
    for name, number in (("FEW", 70), ("MANY", 140), ("BREAKHIS", 90), ("DRAWN", 8)):
        monkeypatch.setattr(scale, name, number)
    found = {one.name: one for one in scale.comparisons(bench.Setting(None, tmp_path, "none", 1))}
    assert set(found) == {"scale-memory", "scale-time", "scale-again"}
    assert (
        1 < found["scale-memory"].first[0] < 1536
    )  # MiB; nothing at all would mean that nothing was looked at
    assert ", 0 decoded again" in found["scale-again"].note and found["scale-again"].first[0] > 0


def test_the_memory_that_is_measured_is_anonymous_memory():
    code = (
        "import numpy as np; from tests.bench import scale\n"
        "with scale.highest() as found:\n    x = np.ones(2**27, 'uint8'); import time; time.sleep(0.2)\n"
        "print(found[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(128, abs=8)


def test_operations_of_resnet50_as_published():
    """He et al. 2015, table 1: 3.8e9 multiply-adds at 224x224 (there without the classifier's 2e6)."""
    assert accelerator.operations(224, 224) / 6 == pytest.approx(3.8e9, rel=0.03)
    known = {"operations_a_picture": 1e10, "datasheet_tflops": 10, "measured_matmul_tflops": 5}
    few = accelerator.with_shares(100.0, 32, known)
    assert few["tflops"] == 1 and few["share_of_datasheet"] == 0.1 and few["share_of_measured_matmul"] == 0.2
    assert few["hours_of_200x200_steps"] == pytest.approx(40_000 * 32 / 100 / 3600)


@pytest.mark.slow
def test_the_accelerator_script_runs_on_a_cpu(tmp_path, monkeypatch):
    for name in ("XLA_PYTHON_CLIENT_PREALLOCATE", "JAX_COMPILATION_CACHE_DIR"):  # it sets them
        monkeypatch.setenv(name, os.environ.get(name, ""))
    words = ["--batches", "2", "--steps", "1", "--size", "48x32", "--no-torch", "--parts", "speed"]
    done = CliRunner().invoke(accelerator.main, [*words, "--few-blocks", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["speed"][0]["images_a_second"] > 0 and answer["measured_matmul_tflops"] > 0
    assert json.loads((tmp_path / "accelerator.json").read_text()) == answer
    assert (tmp_path / "accelerator.png").is_file()


def test_the_figure_shows_every_goal(tmp_path):
    found = [
        Ratio("a", "one / other", ">= 2", "s", [3.0, 4.0], [1.0, 1.0]),
        Ratio("b", "this / that", "<= 1.5", "s", [2.0, 2.0], [1.0, 1.0]),
        Ratio("c", "no goal", "", "s", [1.0], [1.0]),
    ]
    chart = report.figure(report.facts(found, "pictures: drawn"))
    labels = " ".join(text.get_text() for text in chart.axes[0].get_yticklabels())
    assert "one / other" in labels and "goal <= 1.5" in labels and "no goal" not in labels
    shares = {line.get_ydata()[0]: sorted(line.get_xdata()) for line in chart.axes[0].lines[:2]}
    assert shares[1] == [1.5, 2.0] and shares[0] == [0.75, 0.75]
    assert report.table(found)["met"].tolist() == ["yes", "NO", ""]
