"""Train the paper's network under the paper's protocol and under an honest one, and show how it went."""

from collections.abc import Iterable

import keras
import pandas as pd

from bcdlib import methods
from bcdlib.data import splits
from bcdlib.data.cache import run_cache
from bcdlib.methods._keras import KerasMethod
from bcdlib.plots import style
from bcdlib.runs.folder import Run
from bcdlib.runs.profiles import Profile
from bcdlib.trials.trial import Result, Trial, add_predictions, run_trial

NO_NETWORK = "This method is not made of Keras layers: there is no network to show."


def plan_trials(
    run: Run,
    profile: Profile,
    *,
    split_names: Iterable[str] = (),
    method: str = "resnet50",
    seed: int = 0,
    trainable: str = "all",
    task: str = "binary",
    stain: str | None = None,
    fold: int = 0,
) -> list[Trial]:
    """The trials of 04_train: one fold of each split, as a rule the first.

    Parameters
    ----------
    split_names : protocols, in order; empty means those of the profile's that the images allow (see `splits.available_splits`).
    """
    names = tuple(split_names) or splits.available_splits(run, profile.splits)
    return [
        Trial(method, name, splits.read_split(run, name), fold, seed, trainable, task, stain or None)
        for name in names
    ]


def plan_table(planned: list[Trial]) -> pd.DataFrame:
    """One row a trial: method, split, fold, images in each role."""
    rows = []
    for trial in planned:
        part = splits.fold_of(trial.split_table, trial.fold)
        counts = part["role"].value_counts().reindex(list(splits.ROLES), fill_value=0)
        folds = trial.split_table["fold"].nunique()
        rows.append(
            {
                "method": trial.label,
                "split": trial.split,
                "fold": f"{trial.fold + 1} of {folds}",
                "seed": trial.seed,
            }
            | counts.to_dict()
        )
    return pd.DataFrame(rows)


def build_network(
    run: Run,
    profile: Profile,
    *,
    weights: str | None = None,
    method: str = "resnet50",
    trainable: str = "all",
    task: str = "binary",
) -> keras.Model | None:
    """The compiled network, for looking at; `fit` builds its own. None if the method is no `_keras.KerasMethod`."""
    estimator = Trial(method, "", pd.DataFrame(), trainable=trainable, task=task).estimator(profile, weights)
    keras_method = isinstance(estimator, KerasMethod)
    return estimator.build(run_cache(run).pixels.shape[1:]) if keras_method else None


def print_network(model: keras.Model | None) -> None:
    """Print Keras' summary of a `network`."""
    print(NO_NETWORK) if model is None else model.summary()


def network_figure(model: keras.Model | None):
    """Figures 6 and 7: the network's blocks with their output shapes and numbers of weights, as a figure."""
    if model is None:
        return style.note_figure(NO_NETWORK)
    layers = [
        layer
        for layer in model.layers
        if layer.count_params() or not isinstance(layer, keras.layers.InputLayer)
    ]
    figure, axes = style.make_figure(width=8, height=0.5 * len(layers) + 0.6)
    for row, layer in enumerate(layers):
        frozen = layer.count_params() and not layer.trainable_weights
        colour = "#E8E8E8" if not layer.count_params() else "#BBD9EE" if frozen else "#FBE3C0"
        text = f"{layer.name}  ({type(layer).__name__})"
        outputs = layer.output if isinstance(layer.output, list | tuple) else [layer.output]
        shape = ", ".join(" x ".join(str(size) for size in one.shape[1:]) for one in outputs)
        axes.text(
            0.02,
            -row,
            text,
            va="center",
            bbox={"boxstyle": "round", "facecolor": colour, "edgecolor": "#666666"},
        )
        axes.text(0.62, -row, shape, va="center", ha="center")
        axes.text(0.98, -row, f"{layer.count_params():,}", va="center", ha="right")
    for x, title, align in (
        (0.02, "layer", "left"),
        (0.62, "output shape", "center"),
        (0.98, "weights", "right"),
    ):
        axes.text(x, 0.9, title, ha=align, weight="bold")
    axes.set(xlim=(0, 1), ylim=(0.4 - len(layers), 1.4))
    axes.axis("off")
    return style.finish_figure(figure)


def train_trials(
    run: Run,
    profile: Profile,
    planned: list[Trial],
    *,
    weights: str | None = None,
    verbose=None,
    keep_model: bool = True,
) -> list[Result]:
    """Train every trial that is not finished yet and save its model.

    Its predictions go into ``predictions.csv``, those of its validation part into ``validation.csv``. A trial that was
    cut off goes on after its last whole epoch. Trials lie in ``trials/`` of the run, or where its settings say ("trials").
    """
    cache = run_cache(run)
    root = run.settings.get("trials") or run.folder / "trials"
    results = []
    for number, trial in enumerate(planned, 1):
        print(
            f"Trial {number} of {len(planned)}: {trial.label}, split {trial.split}, fold {trial.fold}, "
            f"seed {trial.seed}",
            flush=True,
        )
        result = run_trial(
            trial, cache, profile, root=root, weights=weights, verbose=verbose, keep_model=keep_model
        )
        add_predictions(run.folder / "validation.csv", result.validation)
        add_predictions(run.folder / "predictions.csv", result.predictions)
        results.append(result)
    return results


def curves_figure(results: list[Result], quantity: str = "loss"):
    """Figure 8 (``quantity="loss"``, MSE) or Figure 9 (``"accuracy"``) of the paper, one panel a trial.

    The second curve is drawn on the validation part, or, where a protocol has none (the paper's), on the test part:
    the legend says which. Nothing is chosen by it. A method without epochs has no curve, and the figure says so.
    """
    results = [result for result in results if result.history is not None]
    if not results:
        return style.note_figure("This method is fitted at once, not in epochs: there is no curve to draw.")
    figure, axes = style.make_figure(
        1, len(results), width=4.2 * len(results) + 0.6, height=3.4, squeeze=False
    )
    for axis, result in zip(axes[0], results, strict=True):
        epochs = result.history["epoch"] + 1
        shown = result.predictions if result.held_out == "test" else result.validation
        part = f"{result.held_out} ({len(shown)} images, {shown['case'].nunique()} cases)"
        axis.plot(epochs, result.history[quantity], color=style.TRAINING, label="training")
        axis.plot(epochs, result.history[f"val_{quantity}"], color=style.HELD_OUT, label=part)
        axis.set(
            xlabel="epoch",
            ylabel="loss (MSE)" if quantity == "loss" else "accuracy",
            ylim=(0, None),
            title=f"{methods.get_method(result.trial.method).title}, split {result.trial.split}",
        )
        if quantity == "accuracy":
            axis.set_ylim(0, 1.02)
        axis.legend(fontsize=8)
    weights = dict.fromkeys(result.predictions["weights"].iloc[0] for result in results)
    figure.supxlabel("started from " + "; ".join(weights), fontsize=8)
    return style.finish_figure(figure)
