"""What 04_train plans and draws; that it trains is tested with the notebooks and under tests/methods."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from bcdlib import train
from bcdlib.runs.profiles import get_profile

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
    assert table["fold"].tolist() == ["1 of 1", "1 of 2"] and table["seed"].tolist() == [3, 3]
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
