"""A saved model on labelled images from elsewhere: what it says, beside its own figures."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from bcdlib import evaluate
from bcdlib.errors import InputError
from bcdlib.evaluation import bootstrap, metrics, thresholds
from bcdlib.explain import elsewhere, models
from tests.conftest import write_labelled


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Images of another laboratory: darker, as JPEG, in groups of other names; its manifest."""
    return write_labelled(
        tmp_path_factory.mktemp("other") / "lab", 16, shift=-14, seed=7, suffix=".jpg", prefix="q"
    )


@pytest.fixture(scope="module")
def model(final_run):
    return final_run[1].folder / "model.keras"


@pytest.fixture(scope="module")
def found(model, other):
    return evaluate.predict_labelled(model, other.parent / "images", other)


def test_the_table_holds_what_predict_says(model, other, found):
    alone = evaluate.predict_files(model, [other.parent / "images"])
    wanted = pd.read_csv(other).merge(
        alone.assign(path=[file.rpartition("/")[2] for file in alone["file"]]), on="path"
    )
    wanted = wanted.sort_values("path", ignore_index=True)
    assert found["filename"].tolist() == wanted["path"].tolist() and len(found) == 48
    assert found["label"].tolist() == wanted["label"].tolist()
    assert found["case"].tolist() == found["slide"].tolist() == wanted["group"].tolist()
    archive = shutil.make_archive(str(other.parent / "lab"), "zip", other.parent / "images")
    pd.testing.assert_frame_equal(evaluate.predict_labelled(model, archive, other), found)
    for column in ("probability", "calibrated", "threshold"):
        assert found[column].tolist() == wanted[column].tolist()
    assert found["warning"].tolist() == wanted["warning"].tolist()
    locked = pd.read_csv(model.with_name("locked.csv")).iloc[0]
    assert set(found["threshold"]) == {locked["threshold"]} and locked["threshold"] != 0.5
    malignant = wanted["probability"] >= locked["threshold"]
    assert wanted["class"].tolist() == np.where(malignant, "malignant", "benign").tolist()
    assert np.allclose(
        found["calibrated"], thresholds.calibrate(found["probability"], locked["slope"], locked["intercept"])
    )
    assert found[["method", "split", "fold", "seed"]].drop_duplicates().values.tolist() == [
        ["texture", "external", 0, 0]
    ]
    assert ["it is assumed" in note for note in found.attrs["notes"]] == [
        True
    ]  # the test's method is a stranger


def test_metrics_stand_beside_the_internal_ones(model, found):
    table = evaluate.elsewhere_table(found, model).set_index("metric")
    internal = pd.read_csv(model.with_name("cross_validation.csv"))
    auc = table.loc["AUC"]
    assert auc["elsewhere"] == pytest.approx(roc_auc_score(found["label"], found["probability"]))
    assert auc["inside"] == pytest.approx(roc_auc_score(internal["label"], internal["probability"]))
    for name, rows in (("elsewhere", found), ("inside", internal)):
        predicted = rows["probability"] >= rows["threshold"]
        for metric, side in (("sensitivity (malignant found)", 1), ("specificity", 0)):
            assert table.loc[metric, name] == pytest.approx((predicted == side)[rows["label"] == side].mean())
        brier = ((rows["calibrated"] - rows["label"]) ** 2).mean()
        assert table.loc["Brier score", name] == pytest.approx(brier)
    row = bootstrap.interval_table(found, ["auc"], by_image=False).iloc[0]
    assert auc["95 % by group"] == bootstrap.range_text(row["low"], row["high"])
    assert np.allclose(table["difference"], table["elsewhere"] - table["inside"])
    low, high = map(float, table.loc["accuracy", "95 % of the difference"].split(" to "))
    assert low < table.loc["accuracy", "difference"] < high


def test_a_difference_of_proportions_has_newcombes_interval():
    """56 of 70 less 48 of 80: 0.0524 to 0.3339, his method 10."""
    from statsmodels.stats.proportion import proportion_confint

    def share(right, of):
        low, high = proportion_confint(right, of, method="wilson")
        return {"value": right / of, "low": low, "high": high}

    assert bootstrap.difference_limits(share(56, 70), share(48, 80)) == pytest.approx(
        (0.0524, 0.3339), abs=1e-4
    )
    unknown = {"value": 0.5, "low": float("nan"), "high": float("nan")}
    assert np.isnan(bootstrap.difference_limits(share(56, 70), unknown)).all()


def test_the_section_asks_the_final_model(final_run, other, found):
    run, _ = final_run
    answer = evaluate.ask_elsewhere(run, str(other.parent / "images"), str(other))
    pd.testing.assert_frame_equal(answer.predictions, found)
    assert answer.line.startswith("Model: texture, split all") and "nothing was fitted here" in answer.line
    assert "48 images of `images`, 16 groups (8 benign, 8 malignant)" in answer.line
    flagged = (found["warning"] != "").sum()
    assert f"(out-of-distribution): {flagged} of 48 images" in answer.line
    answer.show_table(run)
    shown = pd.read_csv(run.folder / "tables" / "elsewhere.csv")
    assert shown["elsewhere"].tolist() == pytest.approx(answer.table["elsewhere"].tolist())
    assert answer.show_figure(run).axes[0].get_yticklabels()[0].get_text() == "AUC"
    stored = metrics.read_predictions(run.folder / "external.csv")  # as `evaluate` reads it
    assert np.allclose(stored["probability"], found["probability"])
    nothing = evaluate.ask_elsewhere(run)
    assert "external_labels" in nothing.line and "\n" not in nothing.line
    assert nothing.show_table(run) is nothing.show_figure(run) is None
    with pytest.raises(InputError, match="name both"):
        evaluate.ask_elsewhere(run, "somewhere")


def test_the_same_images_again_are_noticed(final_run, model):
    run, _ = final_run
    own = run.folder.parent / "own"
    answer = evaluate.ask_elsewhere(run, str(own / "images"), str(own / "labels.csv"))
    assert "**72 of these images have names of images that it was trained on.**" in answer.line


def test_what_is_left_out_is_counted_and_what_is_unlabelled_refused(model, other, tmp_path):
    folder = shutil.copytree(other.parent / "images", tmp_path / "images")
    (folder / "q0-0.jpg").unlink()
    (folder / "q1-0.jpg").write_text("no image")
    Image.new("RGB", (24, 16)).save(folder / "stranger.png")
    found = evaluate.predict_labelled(model, folder, other)
    assert len(found) == 46
    missing, unread, extra, _ = found.attrs["notes"]
    assert missing.startswith("left out: 1 missing, though named in the manifest, the first q0-0.jpg: ")
    assert unread.startswith("left out: 1 that cannot be read, the first q1-0.jpg: ")
    assert extra == "left out: 1 without a label in the manifest, the first stranger.png"
    lines = other.read_text().replace("q3-1.jpg,1", "q3-1.jpg,")
    (tmp_path / "labels.csv").write_text(lines)
    with pytest.raises(InputError, match="line 12 has no label; use 0 or benign"):
        evaluate.predict_labelled(model, folder, tmp_path / "labels.csv")


def test_a_model_without_its_folder(model, other, tmp_path):
    shutil.copy(model, tmp_path / "alone.keras")
    found = evaluate.predict_labelled(tmp_path / "alone.keras", other.parent / "images", other)
    assert set(found["threshold"]) == {0.5} and found["method"].unique().tolist() == ["alone"]
    assert "whole folder" in found.attrs["notes"][0]
    table = evaluate.elsewhere_table(found, tmp_path / "alone.keras")
    assert list(table) == ["metric", "elsewhere", "95 % by group"]
    line = elsewhere.elsewhere_text(found, model_file=tmp_path / "alone.keras", table=table)
    assert "0.5: none lies beside it" in line and "cannot be said" in line
    (tmp_path / "locked.csv").write_text("threshold,slope,intercept\n0.5,,0\n")
    with pytest.raises(InputError, match="locked.csv: cannot be read"):
        models.saved_lock(tmp_path / "alone.keras")
    (tmp_path / "locked.csv").write_text("threshold,slope,intercept\n7,1,0\n")
    with pytest.raises(InputError, match="locked.csv: cannot be read .threshold 7 is not in 0..1"):
        models.saved_lock(tmp_path / "alone.keras")
    (tmp_path / "locked.csv").write_text(model.with_name("locked.csv").read_text())
    assert models.saved_lock(tmp_path / "alone.keras") == models.saved_lock(model)
    record = json.loads(model.with_name("trial.json").read_text())
    (tmp_path / "trial.json").write_text(json.dumps(record | {"split": "case"}))
    with pytest.raises(InputError, match="locked.csv: cannot be read .it is of another model"):
        models.saved_lock(tmp_path / "alone.keras")


@pytest.mark.parametrize("damaged", ["", "a,b\n1,2\n", "a word among the probabilities"])
def test_damaged_predictions_beside_a_model_are_named(damaged, final_run, tmp_path):
    run, _ = final_run
    file = sorted((run.folder / "trials").glob("texture-case-*/trial.json"))[0]
    folder = shutil.copytree(file.parent, tmp_path / "model")
    if " " in damaged:
        table = pd.read_csv(folder / "predictions.csv", dtype=str)
        damaged = table.assign(probability=["x", *table["probability"][1:]]).to_csv(index=False)
    (folder / "predictions.csv").write_text(damaged)
    with pytest.raises(InputError, match=r"predictions.csv: cannot be read .*; delete it"):
        elsewhere.internal_predictions(folder / "model.keras")


def test_another_model_is_judged_by_its_test_part(final_run):
    """Of a trial by case the internal figures are those of its test part, at its locked threshold."""
    run, _ = final_run
    file = sorted((run.folder / "trials").glob("texture-case-*/trial.json"))[0]
    assert json.loads(file.read_text())["split"] == "case"
    test = pd.read_csv(file.with_name("predictions.csv"))
    internal = elsewhere.internal_predictions(file.with_name("model.keras"))
    assert internal["filename"].tolist() == test["filename"].tolist()
