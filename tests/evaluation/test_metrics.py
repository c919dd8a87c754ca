"""Metrics from predictions tables, against scikit-learn and cases computed by hand."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from sklearn import metrics as sk

from bcdlib import compare, evaluate
from bcdlib.errors import InputError
from bcdlib.evaluation import bootstrap, decisions, metrics, thresholds
from bcdlib.runs import files
from bcdlib.runs.folder import open_run_folder
from bcdlib.trials import model_card


def table(label, probability, **columns):
    n = len(label)
    rows = {
        "filename": [f"{i}.png" for i in range(n)],
        "slide": "14-1A",
        "case": "14-1",
        "magnification": 40,
        "subtype": ["DC" if y else "A" for y in label],
        "label": label,
        "probability": probability,
        "fold": 0,
        "method": "m",
        "split": "case",
        "seed": 0,
    }
    return pd.DataFrame(rows | columns)


def test_by_hand():
    found = metrics.compute_metrics([1, 1, 1, 0, 0], [0.9, 0.5, 0.2, 0.6, 0.1])
    assert found["accuracy"] == 3 / 5 and found["sensitivity"] == 2 / 3 and found["specificity"] == 1 / 2
    assert found["precision"] == 2 / 3 and found["f1"] == pytest.approx(2 / 3)
    assert found["brier"] == pytest.approx((0.01 + 0.25 + 0.64 + 0.36 + 0.01) / 5)
    assert found["auc"] == 4 / 6  # of 6 pairs, 0.9 beats both, 0.5 and 0.2 beat 0.1 only


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("at", [0.5, 0.31])
def test_agrees_with_sklearn(seed, at):
    rng = np.random.default_rng(seed)
    y, p = rng.integers(0, 2, 200), rng.random(200).round(2)
    row = metrics.metrics_table(table(y, p), threshold=at).iloc[0]
    predicted = p >= at
    assert row["images"] == 200 and row["cases"] == 1
    tn, fp, fn, tp = sk.confusion_matrix(y, predicted).ravel()
    expected = {
        "accuracy": sk.accuracy_score(y, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "precision": tp / (tp + fp),
        "f1": sk.f1_score(y, predicted),
        "mcc": sk.matthews_corrcoef(y, predicted),
        "kappa": sk.cohen_kappa_score(y, predicted),
        "auc": sk.roc_auc_score(y, p),
        "average_precision": sk.average_precision_score(y, p),
        "brier": sk.brier_score_loss(y, p),
    }
    fit = sm.Logit(y, sm.add_constant(metrics.clipped_logit(p))).fit(disp=0)
    at_one = sm.GLM(y, np.ones(200), sm.families.Binomial(), offset=metrics.clipped_logit(p)).fit()
    units = {"slide_recognition", "slide_auc", "case_auc"}
    fitted = {"calibration_slope": fit.params[1], "calibration_intercept": at_one.params[0]}
    assert set(expected) | set(fitted) | units | {"ece", "auc_within"} == set(metrics.METRICS)
    assert [row[name] for name in fitted] == pytest.approx(list(fitted.values()), abs=1e-5)
    assert row["auc_within"] == pytest.approx(row["auc"])  # one fold
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, abs=1e-9), name


def test_calibration_of_resamples_is_that_of_the_rows_drawn():
    rng = np.random.default_rng(0)
    p = rng.random(60)
    rows = pd.DataFrame({"label": (rng.random(60) < p**2).astype(int), "probability": p})
    weights = rng.multinomial(60, [1 / 60] * 60, size=5).astype(float)
    one_class = np.where(rows["label"] == 1, 1.0, 0.0)
    for name in ("calibration_slope", "calibration_intercept"):
        metric = metrics.METRICS[name]
        drawn = [metric.value(rows.loc[rows.index.repeat(row.astype(int))]) for row in weights]
        found = metric.weighted_values(rows, np.vstack([weights, one_class]))
        assert found[:5] == pytest.approx(drawn, abs=1e-5) and np.isnan(found[5])
    # too high on average, and not too extreme
    assert metrics.METRICS["calibration_intercept"].value(rows) < -0.3
    table = pd.DataFrame({"label": [0, 1] * 20, "probability": np.tile([0.01, 0.99], 20)})
    assert metrics.METRICS["calibration_slope"].value(table) > 1  # apart, and finite
    assert np.isnan(metrics.METRICS["calibration_slope"].value(table.assign(probability=0.4)))


def test_calibration_error_by_hand():
    # bin 0.2..0.3: none of four malignant, 0.04 too much; bin 0.9..1.0: three of four, less 3/16/3 by chance
    label, probability = [0, 0, 0, 0, 1, 1, 1, 0], [0.2] * 4 + [0.95] * 4
    excess = (0.2**2 - 0) * 4 + (0.2**2 - 0.75 * 0.25 / 3) * 4
    assert metrics.calibration_error(label, probability) == pytest.approx(max(0, excess / 8) ** 0.5)
    assert metrics.calibration_error([0, 1], [0.5, 0.5]) == 0  # constant and right on average


def test_calibration_error_is_not_biased():
    """A calibrated model has an error near 0, also of few images, where the usual one says 0.1."""
    rng, squares, usual = np.random.default_rng(0), [], []
    for _ in range(300):
        p = rng.random(60)
        y = (rng.random(60) < p).astype(int)
        bins = (p * 10).astype(int)
        usual.append(np.abs(np.bincount(bins, p - y, 10)).sum() / 60)
        squares.append(metrics.calibration_error(y, p))
    assert np.mean(usual) > 0.12 and np.median(squares) < 0.05


def test_folds_that_overlap_are_averaged_not_pooled():
    """The author's folds test an image up to four times: pooled, a case would be judged by an ensemble."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 80)
    cases = [f"14-{k // 4}" for k in range(80)]
    folds = [
        table(
            y,
            (y + rng.normal(0, 1.5, 80) > 0.5) * 0.5 + 0.25 * rng.random(80),
            fold=k,
            case=cases,
            slide=cases,
        )
        for k in range(3)
    ]
    row = metrics.metrics_table(pd.concat(folds)).iloc[0]
    alone = [metrics.metrics_table(one).iloc[0] for one in folds]
    for key in ("accuracy", "auc", "case_auc", "slide_recognition", "auc_within"):
        assert row[key] == pytest.approx(np.mean([one[key] for one in alone])), key
    found = metrics.cross_validation_table(pd.concat(folds), ("auc",)).iloc[0]
    assert found["mean"] == pytest.approx(row["auc"]) and np.isnan(found["pooled"])
    assert found["sd"] == pytest.approx(np.std([one["auc"] for one in alone], ddof=1))


def test_auc_within_folds_does_not_rank_across_networks():
    """Two folds that are each perfect, on scales of their own: pooled 0.75, within 1."""
    one = table([0, 1], [0.1, 0.3])
    two = table([0, 1], [0.7, 0.9], fold=1).assign(filename=["a.png", "b.png"])
    row = metrics.metrics_table(pd.concat([one, two])).iloc[0]
    assert row["auc"] == 0.75 and row["auc_within"] == 1


def test_a_metric_that_one_seed_lacks_is_not_defined():
    one = table([0, 1], [0.1, 0.9])
    none = table([0, 1], [0.1, 0.2], seed=1)  # nothing predicted malignant: no precision
    assert metrics.metrics_table(one)["precision"][0] == 1
    assert np.isnan(metrics.metrics_table(pd.concat([one, none]))["precision"][0])


def test_slide_recognition_rate_by_hand():
    # slide 1: 2 of 3 right, slide 2: 1 of 1, slide 3: 0 of 2: (2/3 + 1 + 0) / 3; by image it would be 3 of 6
    y, p = [1, 1, 1, 0, 0, 0], [0.9, 0.8, 0.1, 0.2, 0.7, 0.9]
    t = table(
        y,
        p,
        slide=["14-1A", "14-1A", "14-1A", "14-2", "14-3", "14-3"],
        case=["14-1"] * 3 + ["14-2", "14-3", "14-3"],
    )
    row = metrics.metrics_table(t).iloc[0]
    assert row["slide_recognition"] == pytest.approx((2 / 3 + 1) / 3) and row["accuracy"] == 0.5
    # mean probabilities: malignant 0.6; benign 0.2 and 0.8: one of two pairs is in order
    assert row["slide_auc"] == 0.5 and row["case_auc"] == 0.5


def test_a_slide_with_two_labels_counts_as_malignant():
    t = table(
        [1, 0, 0], [0.9, 0.1, 0.3], slide=["14-1", "14-1", "14-2"], case=["14-1", "14-1", "14-2"], subtype=""
    )
    unit = metrics.group_units(metrics.with_correct(t), "slide")
    assert unit["label"].tolist() == [1, 0] and unit["probability"].tolist() == [0.5, 0.3]
    assert metrics.metrics_table(t)["slide_auc"][0] == 1


def test_constant_probability_is_defined():
    row = metrics.metrics_table(table([0, 1, 1, 0], [0.5] * 4)).iloc[0]
    assert row["auc"] == 0.5 and row["mcc"] == 0 and row["kappa"] == 0 and row["balanced_accuracy"] == 0.5
    assert row["average_precision"] == 0.5 and row["ece"] == 0


def test_seeds_are_averaged_and_folds_pooled():
    one = table(
        [0, 1, 0, 1], [0.1, 0.9, 0.6, 0.4], fold=[0, 0, 1, 1]
    )  # accuracies 1 and 0, pooled AUC 3 of 4
    two = one.assign(seed=1, probability=[0.1, 0.9, 0.2, 0.8])
    row = metrics.metrics_table(pd.concat([one, two])).iloc[0]
    assert row["accuracy"] == 0.75 and row["auc"] == (0.75 + 1) / 2 and (row["folds"], row["seeds"]) == (2, 2)
    spread = metrics.cross_validation_table(pd.concat([one, two])).set_index("metric")
    assert spread.loc["accuracy", ["trials", "mean", "lowest", "highest", "pooled"]].tolist() == [
        4,
        0.75,
        0,
        1,
        0.75,
    ]
    assert spread.loc["accuracy", "sd"] == pytest.approx(0.5)


def test_one_class_only_is_nan_where_not_defined():
    found = metrics.compute_metrics([0, 0, 0], [0.1, 0.2, 0.3])
    assert np.isnan(found["auc"]) and np.isnan(found["sensitivity"]) and np.isnan(found["precision"])
    assert all(
        np.isnan(found[name]) for name in ("balanced_accuracy", "mcc", "kappa", "average_precision", "f1")
    )
    assert found["specificity"] == 1 and found["accuracy"] == 1


def test_groups():
    y = [0, 1, 0, 1]
    t = table(
        y, [0.1, 0.9, 0.9, 0.1], split=["case", "case", "image", "image"], magnification=[40, 400, 40, 40]
    )
    assert metrics.metrics_table(t).set_index("split")["accuracy"].to_dict() == {"case": 1.0, "image": 0.0}
    by = evaluate.metrics_by(t, "magnification")
    assert by[["split", "magnification", "images"]].values.tolist() == [
        ["case", 40, 1],
        ["case", 400, 1],
        ["image", 40, 2],
    ]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.drop(columns="case"), "'case' is missing"),
        (lambda t: t.assign(probability=[0.1, float("nan")]), "line 3 has no probability"),
        (lambda t: t.assign(probability=[0.1, 1.5]), "probability of 1.png"),
        (lambda t: t.assign(probability=["0.1", "high"]), "probability of 1.png"),
        (lambda t: t.assign(label=[0, 2]), "label of 1.png"),
        (lambda t: pd.concat([t, t]), "comes twice"),
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: t.assign(case=["14-1", None]), "line 3 has no case"),
        (lambda t: pd.concat([t, t.assign(seed=1, label=[0, 0])]), "1.png has two different values of label"),
    ],
)
def test_bad_tables(tmp_path, change, message):
    change(table([0, 1], [0.2, 0.8])).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(InputError, match=message):
        metrics.read_predictions(tmp_path / "p.csv")


def test_missing_and_empty_file(tmp_path):
    with pytest.raises(InputError, match="no such"):
        metrics.read_predictions(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="not a readable CSV"):
        metrics.read_predictions(tmp_path / "empty.csv")


def test_subtypes_against_sklearn():
    rng = np.random.default_rng(3)
    truth = rng.choice(["A", "F", "DC", "PC"], 80)
    p = rng.dirichlet(np.ones(8), 80)
    t = table(
        (truth > "C").astype(int) * (truth != "F"),
        p[:, 4:].sum(axis=1),
        subtype=truth,
        **dict(zip(metrics.SUBTYPE_COLUMNS, p.T, strict=True)),
    )
    predicted = np.array(["A", "F", "PT", "TA", "DC", "LC", "MC", "PC"])[p.argmax(axis=1)]
    row = metrics.subtype_table(
        pd.concat([t, t.assign(method="binary", **dict.fromkeys(metrics.SUBTYPE_COLUMNS))])
    ).iloc[0]
    assert row["accuracy"] == pytest.approx((predicted == truth).mean()) and row["subtypes"] == 4
    recalls = [(predicted[truth == name] == name).mean() for name in ("A", "F", "DC", "PC")]
    assert row["macro_sensitivity"] == pytest.approx(np.mean(recalls))
    assert row["macro_f1"] == pytest.approx(
        sk.f1_score(truth, predicted, labels=["A", "F", "DC", "PC"], average="macro")
    )
    assert metrics.subtype_table(table([0, 1], [0.2, 0.8])).empty


def test_a_metric_that_is_registered_once_is_shown_everywhere_with_its_interval(tmp_path, monkeypatch):
    kappa = partial(sk.cohen_kappa_score, weights="quadratic")
    monkeypatch.setitem(metrics.METRICS, "weighted_kappa", metrics.Metric("weighted kappa", kappa))
    monkeypatch.setitem(bootstrap.interval_table.__kwdefaults__, "repeats", 50)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 120)
    cases = [f"14-{i // 12}" for i in range(120)]
    t = table(y, (y + rng.random(120)) / 2.2, slide=cases, case=cases)
    value = sk.cohen_kappa_score(y, t["probability"] >= 0.5)

    row = evaluate.results_table(t).set_index("metric").loc["weighted_kappa"]
    assert row["value"] == pytest.approx(value) and " to " in row["95 % by case"]
    assert " to " in row["by image (too narrow)"]
    shown = compare.protocol_table(t)["weighted kappa"][0]
    assert shown == f"{value:.3f} ({row['95 % by case']})"
    assert evaluate.metrics_by_group(t).set_index("metric").loc["weighted_kappa"].item() == row["value"]

    t.assign(fold=0).to_csv(tmp_path / "predictions.csv", index=False)
    facts = {"method": "m", "split": "case", "fold": 0, "seed": 0, "folds": 2, "profile": "demo"}
    facts |= {"parameters": {}, "weights": "random", "curves_on": "test", "task": "binary"}
    (tmp_path / "trial.json").write_text(json.dumps(facts))
    images = t[["filename", "subtype", "slide", "case"]].assign(
        **{"class": np.where(y, "malignant", "benign"), "magnification": 40}
    )
    part = images[["filename"]].assign(role=np.where(np.arange(120) < 60, "train", "test"))
    card = model_card.write_card(tmp_path, images, part).read_text()
    assert f"| weighted kappa | {value:.3f} | {row['95 % by case']} |" in card


def breakhis_rows():
    """Four images of two cases of BreakHis, as a stranger's table has them."""
    names = [
        "SOB_B_A-14-22549AB-40-001.png",
        "SOB_B_A-14-22549CD-40-001.png",
        "SOB_M_DC-14-2523-40-001.png",
        "SOB_M_DC-14-2523-40-002.png",
    ]
    return table([0, 0, 1, 1], [0.1, 0.6, 0.7, 0.9], filename=names)


def test_names_prove_what_they_prove():
    rows = breakhis_rows().assign(case=["p1", "p2", "p3", "p3"], slide="1")
    found = metrics.check_predictions(rows)
    assert found["case"].tolist() == ["14-22549", "14-22549", "14-2523", "14-2523"]
    assert found["slide"].tolist() == ["14-22549AB", "14-22549CD", "14-2523", "14-2523"]
    notes = metrics.prediction_notes(found)
    assert any("differs from the accession numbers" in note and "4 of 4 rows" in note for note in notes)
    with pytest.raises(
        InputError, match="2 of 4 labels contradict the file name, the first of SOB_B_A-14-22549CD"
    ):
        metrics.check_predictions(rows.assign(label=[0, 1, 0, 1]))


def test_slides_are_numbered_within_cases():
    rows = table(
        [0, 0, 1, 1], [0.1, 0.6, 0.7, 0.9], case=["a", "a", "b", "b"], slide=["1", "2", "1", "2"], subtype=""
    )
    assert metrics.metrics_table(metrics.check_predictions(rows))["slides"][0] == 4


@pytest.mark.parametrize(
    "change, words",
    [
        ({"case": list("abcd"), "slide": list("abcd")}, "Every case has one image"),
        ({"probability": [0.9, 0.6, 0.7, 0.9]}, "confidence in the predicted class"),
        ({"probability": [0.9, 0.6, 0.3, 0.1]}, "AUC 0.000, far under 0.5"),
    ],
)
def test_odd_tables_are_noted(change, words):
    rows = table([0, 0, 1, 1], [0.1, 0.6, 0.7, 0.9], case=["a", "a", "b", "b"], slide=["a", "a", "b", "b"])
    assert metrics.prediction_notes(metrics.check_predictions(rows)) == []
    notes = metrics.prediction_notes(metrics.check_predictions(rows.assign(**change)))
    assert any(words in note for note in notes), notes


def read(tmp_path, rows, **options):
    rows.to_csv(tmp_path / "p.csv", index=False, **options)
    return metrics.read_predictions(tmp_path / "p.csv")


def test_a_table_is_read_once_within_a_command(tmp_path, monkeypatch):
    with files.read_once():
        first = read(tmp_path, breakhis_rows())
        monkeypatch.setattr(files, "read_user_csv", None)
        pd.testing.assert_frame_equal(metrics.read_predictions(tmp_path / "p.csv"), first)
        with pytest.raises(TypeError):  # other content is read anew
            read(tmp_path, breakhis_rows().iloc[:2])
    with pytest.raises(TypeError):
        metrics.read_predictions(tmp_path / "p.csv")


def test_what_is_noted_of_a_table_is_kept_with_it(tmp_path):
    rows = breakhis_rows().assign(case=["p1", "p2", "p3", "p3"], slide="1")
    alone = metrics.prediction_notes(read(tmp_path, rows))
    with files.read_once():
        for _ in range(2):
            assert metrics.prediction_notes(read(tmp_path, rows)) == alone
        run = open_run_folder(tmp_path / "run")
        text = evaluate.leak_lines(run, evaluate.load_predictions(run, None, str(tmp_path / "p.csv")))
    assert any("differs from the accession numbers" in note for note in alone)
    assert "differs from the accession numbers" in text


def test_a_kept_table_gives_no_name_the_room_of_the_longest(tmp_path):
    y = np.arange(1000) % 2
    names = ["x" * 100_000, *(f"é{n}.png" for n in range(999))]
    rows = table(y, np.full(1000, 0.5), filename=names, case="c", slide="s")
    with files.read_once():
        first = read(tmp_path, rows)
        assert files.kept_table(tmp_path / "p.csv").stat().st_size < 1e6
        pd.testing.assert_frame_equal(metrics.read_predictions(tmp_path / "p.csv"), first)


@pytest.mark.parametrize("most", [10_000, 20])
def test_categories_count_as_their_names_do(most, monkeypatch):
    """Slides 1 to 3 of two subtypes are six; the names sort otherwise than they appear."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    rows = table(
        y,
        rng.random(120).round(2),
        filename=[f"{n}.png" for n in rng.permutation(120)],
        case=[f"c{n}" for n in rng.permutation(np.arange(60).repeat(2))],
        slide=[f"{n % 3}" for n in range(120)],
    )
    monkeypatch.setattr(metrics, "MOST_UNITS", most)
    known = rows.astype(dict.fromkeys(("filename", "slide", "case"), "category"))
    assert metrics.metrics_table(known)["slides"][0] == 6
    for compute in (
        metrics.metrics_table,
        metrics.cross_validation_table,
        decisions.two_by_two,
        decisions.net_benefit,
        decisions.precision,
        thresholds.reliability_band,
        partial(bootstrap.interval_table, metrics=["accuracy", "slide_auc", "auc_within"], repeats=50),
    ):
        pd.testing.assert_frame_equal(compute(known), compute(rows))
        pd.testing.assert_frame_equal(compute(known[30:]), compute(rows[30:]))  # names that are not there


def test_rounding_of_a_softmax_is_not_beyond_one(tmp_path):
    found = read(tmp_path, breakhis_rows().assign(probability=[-1e-9, 0.6, 0.7, 1.0000001]))
    assert found["probability"].tolist() == [0, 0.6, 0.7, 1]


def test_the_row_that_is_wrong_is_named(tmp_path):
    rows = breakhis_rows().astype({"label": str})
    assert read(tmp_path, rows.assign(label=["benign", "0.0", "Malignant", "1"]))["label"].tolist() == [
        0,
        0,
        1,
        1,
    ]
    for change, words in (
        ({"label": ["0", "0", "tumour", "1"]}, f"line 4: label of {rows['filename'][2]} is 'tumour'"),
        (
            {"probability": ["0.1", "0,6", "0.7", "0.9"]},
            f"line 3: probability of {rows['filename'][1]} is '0,6'",
        ),
        ({"probability": ["0.1", "60", "0.7", "0.9"]}, "line 3: .*divide per cent by 100"),
        ({"probability": ["10%", "60%", "70%", "90%"]}, "line 2: .*divide per cent by 100"),
        ({"probability": ["0.1", "0,6", "0.7", "0.9"]}, "line 3: .*a decimal point"),
        ({"magnification": ["40", "", "forty", ""]}, "line 4: magnification .* is 'forty'"),
        ({"case": ["a", "a", "", "b"]}, "line 4 has no case"),
        ({"p_A": ["", "0.5", "x", ""]}, "line 4: p_A of .* is 'x'"),
    ):
        with pytest.raises(InputError, match=words):
            read(tmp_path, rows.assign(**change))


def test_cells_that_may_be_empty(tmp_path):
    rows = table(
        [0, 1], [0.1, 0.9], case=["a", "b"], slide=["a", "b"], subtype="", magnification="", weights=["", "w"]
    )
    found = read(tmp_path, rows.assign(fold=["0.0", "1"], threshold="stranger's"))
    assert found["magnification"].tolist() == [0, 0] and found["subtype"].tolist() == ["unknown"] * 2
    assert found["weights"].tolist() == ["not stated", "w"] and found["fold"].tolist() == [0, 1]
    assert "threshold" not in found  # a column that would be taken for a locked one


def test_names_of_breakhis_spelled_in_other_ways(tmp_path):
    rows, plain = breakhis_rows(), read(tmp_path, breakhis_rows())
    other = [f"D:\\x\\{name.lower().replace('png', 'JPG')}" for name in rows["filename"]]
    pd.testing.assert_frame_equal(
        read(tmp_path, rows.rename(columns=str.upper).assign(FILENAME=other)), plain
    )
    twice = pd.concat([rows, rows.iloc[:1].assign(filename=other[0])])
    with pytest.raises(InputError, match=f"{rows['filename'][0]} comes twice in one trial"):
        read(tmp_path, twice)


def test_cases_that_look_the_same_are_one(tmp_path):
    rows = table([0, 0, 1, 1], [0.1, 0.6, 0.7, 0.9], case=["ü", "u\u0308", "7", "7.0"], slide="s", subtype="")
    found = read(tmp_path, rows)
    assert found["case"].tolist() == ["ü", "ü", "7", "7.0"]
    assert any("counted apart: '7' and '7.0'" in note for note in metrics.prediction_notes(found))


def test_folds_are_compared_as_text(tmp_path):
    tested = read(tmp_path, breakhis_rows())
    rows = table([0, 1], [0.2, 0.8], filename=["v0", "v1"], case=["x", "y"], slide=["x", "y"], subtype="")
    validated = read(tmp_path, rows.assign(fold="val"))
    matched = thresholds.match_validation(validated, tested)
    assert matched["fold"].tolist() == [0, 0] and len(matched) == 2
    locked = thresholds.lock_thresholds(matched)
    assert thresholds.apply_lock(tested, locked)["threshold"].nunique() == 1
    both = pd.concat([tested, tested.assign(fold="b")])
    assert len(thresholds.match_validation(validated.assign(fold="b"), both)) == 2


def test_subtypes_of_folds_that_overlap_are_averaged():
    """As all other metrics: not pooled over the networks of several folds."""
    names = list(metrics.SUBTYPE_COLUMNS)
    right = pd.DataFrame(np.eye(8), columns=names)
    wrong = pd.DataFrame(np.roll(np.eye(8), 1, axis=1), columns=names)
    kinds = [name.removeprefix("p_") for name in names]
    rows = [
        pd.concat([table([0] * 8, [0.5] * 8, subtype=kinds, fold=fold), one], axis=1).head(n)
        for fold, (one, n) in enumerate([(right, 8), (wrong, 2)])
    ]
    found = metrics.subtype_table(pd.concat(rows)).iloc[0]
    assert found["accuracy"] == 0.5 and found["images"] == 8  # pooled it would be 0.8


def test_predictions_of_magnifications_have_no_class(tmp_path):
    """Accuracy of the most probable magnification, by hand, with an interval; nothing about malignant."""
    rng = np.random.default_rng(0)
    four = rng.dirichlet(np.ones(4), 40)
    power = np.array([40, 100, 200, 400])[np.arange(40) % 4]
    rows = table(np.arange(40) % 2, np.nan, magnification=power, case=[f"14-{n // 4}" for n in range(40)])
    rows[metrics.MAGNIFICATION_COLUMNS] = four
    rows["slide"] = rows["case"] + "A"
    rows.to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(InputError, match="probability"):  # where benign or malignant is asked for
        metrics.read_predictions(tmp_path / "p.csv")
    read = metrics.read_predictions(tmp_path / "p.csv", any_task=True)
    right = four.argmax(axis=1) == np.arange(40) % 4
    assert metrics.with_correct(read)["correct"].tolist() == right.tolist()
    found = metrics.metrics_table(read).iloc[0]
    assert found["accuracy"] == pytest.approx(right.mean())
    defined = [key for key in metrics.METRICS if not np.isnan(found[key])]
    assert defined == ["accuracy", "slide_recognition"]
    intervals = bootstrap.interval_table(read, list(metrics.METRICS)).set_index("metric")
    assert intervals["low"].notna().sum() == 2 and metrics.prediction_notes(read) == []
    assert intervals.loc["accuracy", "low"] < right.mean() < intervals.loc["accuracy", "high"]
    shown = compare.protocol_table(read)
    assert shown["AUC"].item() == "-" and shown["accuracy"].item() != "-"
    rows.drop(columns="p_40X").to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(InputError, match="probability"):
        metrics.read_predictions(tmp_path / "p.csv", any_task=True)


def test_magnifications_are_those_of_the_names(tmp_path):
    rows = breakhis_rows().assign(magnification=[40, 999, 40, 999])
    found = read(tmp_path, rows)
    assert found["magnification"].tolist() == [40] * 4 and found["magnification"].dtype == int
    said = "differs from the magnifications in the file names"
    assert any(said in note for note in metrics.prediction_notes(found))
