"""A final model: trained on all images, its threshold and figures from models that had not seen the case."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bcdlib import compare, evaluate, train
from bcdlib.data import splits
from bcdlib.errors import InputError
from bcdlib.evaluation import metrics, thresholds
from bcdlib.explain import ood
from bcdlib.runs.files import read_json
from bcdlib.runs.profiles import get_profile
from tests.command import here
from tests.conftest import TEXTURE, write_labelled

ROOT = Path(__file__).resolve().parent.parent.parent

SMALL = get_profile("demo", size=(24, 16), folds=3)


def folds_of(run):
    """Predictions and locks of the trials by case, read from their folders."""
    parts = []
    for file in sorted((run.folder / "trials").glob("texture-case-*/trial.json")):
        test, validation = (
            pd.read_csv(file.with_name(f"{name}.csv")) for name in ("predictions", "validation")
        )
        parts.append((test, thresholds.lock_thresholds(validation)))
    return parts


def test_it_is_trained_on_all_and_locked_on_what_other_models_predicted(final_run):
    run, result = final_run
    facts = read_json(result.folder / "trial.json")
    assert facts["split"] == splits.ALL and facts["images"] == {"train": 72, "validation": 0, "test": 0}
    assert result.predictions.empty and (result.folder / "model.keras").is_file()
    parts = folds_of(run)
    assert len(parts) == 3
    pooled = pd.concat([test for test, _ in parts]).sort_values("filename", ignore_index=True)
    assert len(pooled) == pooled["filename"].nunique() == 72
    own = pd.read_csv(result.folder / "validation.csv").sort_values("filename", ignore_index=True)
    pd.testing.assert_series_equal(own["probability"], pooled["probability"])
    assert set(own["split"]) == {"all"} and set(own["fold"]) == {0}
    locked = pd.read_csv(result.folder / "locked.csv").iloc[0]
    assert locked["threshold"] == thresholds.choose_threshold(pooled["label"], pooled["probability"])
    assert (locked["slope"], locked["intercept"]) == pytest.approx(
        thresholds.fit_calibration(pooled["label"], pooled["probability"])
    )
    assert locked["benign_cases"] == locked["malignant_cases"] == 12
    # the figures: each fold at its own threshold
    right = sum(
        ((test["probability"] >= lock["threshold"].iloc[0]) == test["label"]).sum() for test, lock in parts
    )
    validated = pd.read_csv(result.folder / "cross_validation.csv")
    assert ((validated["probability"] >= validated["threshold"]) == validated["label"]).sum() == right
    card = (result.folder / "model-card.md").read_text()
    assert "texture, final model" in card and f"{locked['threshold']:.4f}" in card
    assert "Cross-validated, not measured on this very model: 72 images of 24 cases" in card
    (line,) = [line for line in card.splitlines() if line.startswith("| accuracy |")]
    assert float(line.split("|")[2]) == pytest.approx(right / 72, abs=6e-4)
    auc = metrics.metrics_table(pooled, keys=["auc"])["auc"].iloc[0]
    assert f"| AUC | {auc:.3f} |" in card


def test_the_network_is_that_of_all_images(final_run):
    """Fitted by hand on the same images, it predicts the same."""
    run, result = final_run
    own = {}
    exec(TEXTURE, own)
    from bcdlib.data.cache import run_cache
    from bcdlib.methods import load_method

    cache = run_cache(run)
    wanted = own["Texture"]().fit(cache.pixels, (cache.images["class"] == "malignant").to_numpy(int))
    found = load_method(result.folder / "model.keras").predict_proba(cache.pixels)
    assert np.allclose(found, wanted.predict_proba(cache.pixels), atol=1e-5)


def test_04_train_finds_it_finished_and_says_what_it_is(final_run, tmp_path_factory):
    run, result = final_run
    method = str(run.folder.parent / "texture.py")
    planned = train.plan_trials(
        run, SMALL, split_names=("case", "all"), method=method, trainable="head", fold=1
    )
    assert [(trial.split, trial.fold) for trial in planned] == [
        ("case", 0),
        ("case", 1),
        ("case", 2),
        ("all", 0),
    ]
    written = (result.folder / "model.keras").stat().st_mtime_ns
    results = train.train_trials(run, SMALL, planned, weights="none", keep_model=False)
    assert results[-1].folder == result.folder
    assert (result.folder / "model.keras").stat().st_mtime_ns == written
    assert len(train.plan_table(planned)) == 4 and result.folder.name in train.findings(results)
    assert "case, fold 2" in train.predictions_figure(run, results).texts[0].get_text()
    panels = train.curves_figure(results).axes
    assert [len(panel.lines) for panel in panels] == [2, 2, 2, 1]  # a final model has nothing held out
    # 05_evaluate locks by another rule: beside the model too
    evaluate.lock(run, "sensitivity", 1.0)
    probability = pd.read_csv(result.folder / "validation.csv").query("label == 1")["probability"]
    assert pd.read_csv(result.folder / "locked.csv")["threshold"].tolist() == [probability.min()]
    evaluate.lock(run)


def test_compare_makes_one(tmp_path):
    """Through the command line: the folder that is named at the end holds all that is taken elsewhere."""
    (tmp_path / "texture.py").write_text(TEXTURE)
    labels = write_labelled(tmp_path / "own", 6)
    data = ["--data", tmp_path / "own" / "images", "--manifest", labels, "--out", tmp_path / "run"]
    chosen = ["--methods", tmp_path / "texture.py", "--splits", "case", "--folds", "2", "--final"]
    done = here("compare", *data, *chosen, BCD_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1].removeprefix("Final model: "))
    assert folder.parent == tmp_path / "run" / "trials" and folder.name.startswith("texture-all-fold0-seed0-")
    taken = {"model.keras", "model-card.md", "locked.csv", "cross_validation.csv", "trial.json", *ood.FILES}
    assert taken <= {file.name for file in folder.iterdir()}
    assert "fewer than 8" in (folder / "model-card.md").read_text()  # three cases of a class lock nothing
    assert len(list(folder.parent.glob("texture-case-*"))) == 2


def test_what_has_no_final_model_is_refused(final_run, tmp_path):
    run, _ = final_run
    (tmp_path / "unsaved.py").write_text(TEXTURE.partition("    def save")[0].replace("texture", "unsaved"))
    with pytest.raises(InputError, match="unsaved: its method has no `save`"):
        compare.train_finals(run, SMALL, method_names=[str(tmp_path / "unsaved.py")], progress=False)
    with pytest.raises(InputError, match="magnification"):
        compare.train_finals(run, SMALL, method_names=["lenet5"], task="magnification")
