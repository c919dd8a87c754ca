"""What 04_train plans and draws; that it trains is tested with the notebooks and under tests/methods."""

import os
import re

import keras
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from bcdlib import train
from bcdlib.__main__ import main
from bcdlib.errors import InputError
from bcdlib.evaluation import published
from bcdlib.methods import get_method
from bcdlib.methods.parts import fitting
from bcdlib.runs.profiles import get_profile
from bcdlib.trials.trial import Result, Trial

TINY = get_profile("demo", size=(36, 24), folds=2, epochs=2, batch_size=16)


@pytest.fixture(scope="module")
def run(prepare, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    return prepare(folder / "run", tiny, TINY, folder / "cache")[0]


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for axes in figure.axes for text in axes.texts)


def test_plan(run):
    planned = train.plan_trials(run, TINY, method="lenet5", seed=3)
    assert [(trial.split, trial.seed) for trial in planned] == [("magnification", 3), ("case", 3)]
    table = train.plan_table(planned)
    assert table["fold"].tolist() == ["0 (of 1)", "0 (of 2)"] and table["seed"].tolist() == [3, 3]
    assert table[["train", "validation", "test"]].sum(axis=1).tolist() == [96, 96]
    assert table.loc[0, ["train", "validation", "test"]].tolist() == [72, 0, 24]


def test_network(run, capsys):
    model = train.build_network(run, TINY, method="lenet5")
    figure = train.network_figure(model)
    for layer in model.layers[1:]:
        assert f"{layer.name}  ({type(layer).__name__})" in texts(figure)
        assert f"{layer.count_params():,}" in texts(figure)
    train.print_network(model)
    assert "Total params" in capsys.readouterr().out


def test_a_method_without_layers_has_no_network_and_no_curve(run, prior, capsys):
    assert train.build_network(run, TINY, method=str(prior)) is None
    train.print_network(None)
    assert train.NO_NETWORK in capsys.readouterr().out and train.NO_NETWORK in texts(
        train.network_figure(None)
    )
    results = train.train_trials(
        run, TINY, train.plan_trials(run, TINY, split_names=["case"], method=str(prior)), verbose=0
    )
    assert "no curve" in texts(train.curves_figure(results))
    for name in ("predictions", "validation"):
        assert len(pd.read_csv(run.folder / f"{name}.csv"))


def test_curves(run):
    results = train.train_trials(run, TINY, train.plan_trials(run, TINY, method="lenet5"), verbose=0)
    figures = [train.curves_figure(results, quantity) for quantity in ("loss", "accuracy")]
    for figure, quantity in zip(figures, ("loss", "accuracy")):
        assert ["test" in axes.get_legend().get_texts()[1].get_text() for axes in figure.axes] == [
            True,
            False,
        ]
        for axes, result in zip(figure.axes, results):
            drawn = [line.get_ydata() for line in axes.lines]
            np.testing.assert_array_equal(drawn[0], result.history[quantity])
            np.testing.assert_array_equal(drawn[1], result.history[f"val_{quantity}"])
    assert figures[1].axes[0].get_ylim() == (0, 1.02)


@pytest.mark.parametrize(
    "method, task, label",
    [
        ("resnet50", "binary", "loss (MSE)"),
        ("resnet50", "subtype", "loss (sparse categorical crossentropy)"),
        ("lenet5", "binary", "loss (binary crossentropy)"),
        ("csdcnn", "binary", "loss (structure loss)"),
        ("resnet152", "subtype", "loss (heads loss)"),
    ],
)
def test_figure_8_names_the_loss_that_was_minimised(method, task, label, tmp_path):
    trial = Trial(method, "case", pd.DataFrame(), task=task)
    table = pd.DataFrame({"filename": ["a"], "case": ["b"], "weights": ["random"]})
    history = pd.DataFrame({"epoch": [0, 1], "loss": [2.0, 1.0], "val_loss": [2.0, 1.5]})
    (tmp_path / "trial.json").write_text('{"curves_on": "validation"}')
    figure = train.curves_figure([Result(trial, tmp_path, table, table, history)])
    assert figure.axes[0].get_ylabel() == label
    assert all(tick == round(tick) for tick in figure.axes[0].get_xticks()), "epochs are whole"


def test_titles_of_curves_do_not_run_into_each_other(apart, tmp_path):
    trial = Trial("ensemble", "breakhis-case-5fold", pd.DataFrame())
    table = pd.DataFrame({"filename": ["a"], "case": ["b"], "weights": ["random"]})
    history = pd.DataFrame({"epoch": [0, 1], "loss": [2.0, 1.0], "val_loss": [2.0, 1.5]})
    (tmp_path / "trial.json").write_text('{"curves_on": "validation"}')
    figure = train.curves_figure([Result(trial, tmp_path, table, table, history)] * 2)
    apart(figure)
    assert (
        figure.axes[0].get_title().split()
        == f"{get_method('ensemble').title}, split breakhis-case-5fold".split()
    )


def test_paper_on_a_cpu_stops_with_the_time_it_would_take(run, monkeypatch):
    """From the first steps; not if it is told to go on, and no other profile."""
    monkeypatch.delenv("BCD_ANYWAY", raising=False)
    monkeypatch.setattr(fitting, "LONGEST", 0.0)
    short = {"size": (36, 24), "folds": 2, "epochs": 1, "steps_per_epoch": 3, "needs_pretrained": False}
    paper, quick = get_profile("paper", **short), get_profile("quick", **short)
    planned = train.plan_trials(run, paper, split_names=["case"], method="lenet5", seed=7)
    with pytest.raises(InputError, match=r"Training takes about .* \(1 epoch\) on this CPU.*--anyway"):
        train.train_trials(run, paper, planned, verbose=0)
    assert not list(run.folder.glob("trials/lenet5-case-fold0-seed7-*/trial.json"))
    train.train_trials(run, quick, planned, verbose=0)
    result = CliRunner().invoke(main, ["compare", "--anyway", "--methods", "nothing"])
    assert result.exit_code and os.environ.pop("BCD_ANYWAY") == "1"
    monkeypatch.setenv("BCD_ANYWAY", "1")
    assert len(train.train_trials(run, paper, planned, verbose=0)[0].history) == 1


class Recorder:
    def __init__(self):
        self.calls = {}

    def compile(self, **options):
        self.calls["compile"] = options

    def fit(self, batches, **options):
        self.calls["fit"] = options


@pytest.mark.parametrize("method, trainable", [("lenet5", "all"), ("resnet50", "head")])
def test_the_recipe_shows_the_calls_that_are_made(run, shallow, monkeypatch, method, trainable):
    planned = train.plan_trials(run, TINY, split_names=["case"], method=method, trainable=trainable, seed=5)
    model = train.build_network(run, TINY, method=method, trainable=trainable, weights="none")
    text = train.recipe_text(planned, TINY, model, weights="none")
    shown, made = Recorder(), Recorder()
    code = text.removeprefix("```python\n").removesuffix("```")
    exec(code, {"model": shown, "batches": None, "held_out": "held out", "keras": keras})
    compiled, fitted = keras.Model.compile, keras.Model.fit

    def compile(self, **options):
        made.compile(**options)
        compiled(self, **options)

    def fit(self, data, **options):
        made.fit(data, **options)
        return fitted(self, data, **options)

    monkeypatch.setattr(keras.Model, "compile", compile)
    monkeypatch.setattr(keras.Model, "fit", fit)
    train.train_trials(run, TINY, planned, weights="none", keep_model=False, verbose=0)
    for name in ("loss", "metrics"):
        assert shown.calls["compile"][name] == made.calls["compile"][name]
    one, other = (each.calls["compile"]["optimizer"] for each in (shown, made))
    assert type(one) is type(other)
    assert one.get_config() | {"name": ""} == other.get_config() | {"name": ""}
    for name in ("epochs", "steps_per_epoch"):
        assert shown.calls["fit"][name] == made.calls["fit"][name]
    assert (shown.calls["fit"]["validation_data"] is None) == (made.calls["fit"]["validation_data"] is None)


def test_no_recipe_for_what_keras_does_not_fit(run, prior):
    for method in (str(prior), "robust"):
        planned = train.plan_trials(run, TINY, split_names=["case"], method=method)
        model = train.build_network(run, TINY, method=method, weights="none")
        assert "no such call" in train.recipe_text(planned, TINY, model, weights="none")


@pytest.mark.parametrize("augment", [True, False])
def test_the_recipe_says_whether_images_are_augmented(run, augment):
    chosen = {"method": f"lenet5:augment={augment}"}
    planned = train.plan_trials(run, TINY, split_names=["case"], **chosen)
    model = train.build_network(run, TINY, weights="none", **chosen)
    assert ("augmented" in train.recipe_text(planned, TINY, model, weights="none")) == augment


def test_the_recipe_shows_what_watches_the_training(run):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.Adam(0.0001))  # in place of a large network
    texts = []
    for recipe in ("authors", "paper"):
        planned = train.plan_trials(
            run, TINY, split_names=["case"], method="densenet201", trainable="all", recipe=recipe
        )
        texts.append(train.recipe_text(planned, TINY, model, weights="none"))
    assert "callbacks=[Plateau(factor=0.2, patience=5)]" in texts[0] and "second curve\n" in texts[0]
    assert "callbacks" not in texts[1] and "for the second curve only\n)" in texts[1]
    with pytest.raises(InputError, match="task 'magnification': only"):
        train.plan_trials(run, TINY, split_names=["case"], method="hybrid_cnn", task="magnification")


def test_all_methods_and_all_parameters_are_listed(run, tmp_path):
    table = train.methods_table(run).set_index("method")
    assert table.loc["resnet50", "printed (%)"] == 99.10 and np.isnan(table.loc["robust", "printed (%)"])
    assert set(published.TABLE_II["key"]) < set(table.index)
    for method in ("resnet50", "robust"):
        planned = train.plan_trials(run, TINY, split_names=["case"], method=f"{method}:augment=False")
        found = train.parameter_table(planned, TINY, weights=str(tmp_path)).set_index("parameter")
        assert set(found.index) == set(get_method(method)().get_params()) - {"verbose"}
        assert (found["meaning"] != "").all() and found.loc["augment", "value"] == "False"
        assert found.loc["weights", "value"] == tmp_path.name


def test_what_was_found_and_the_exercise(run):
    planned = train.plan_trials(run, TINY, method="lenet5")
    results = train.train_trials(run, TINY, planned, verbose=0)
    lines = train.findings(results).splitlines()
    assert len(lines) == 3 and "on 24 test images of 12 cases" in lines[0] and "0.500" in lines[2]
    # 72 training images, 16 a batch: 5 batches an epoch, 2 epochs
    assert "**Right: 2.222.**" in train.check_exercise(TINY, results, 2.2)
    assert "too high" in train.check_exercise(TINY, results, 3)
    figure = train.predictions_figure(run, results, 2)
    shown = [axes.get_xlabel() for axes in figure.axes]
    assert len(shown) == 4 and [text.split(",")[0] for text in shown] == ["benign"] * 2 + ["malignant"] * 2
    for text in shown:
        truth, said = re.match(r"(\w+),\spredicted (\w+)", text).groups()
        assert text.endswith("right" if truth == said else "wrong")
