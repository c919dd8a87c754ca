"""04_train: train the paper's network under the paper's protocol and under an honest one."""

import inspect
import os
import re
from collections.abc import Iterable

import keras
import numpy as np
import pandas as pd

from bcdlib import methods
from bcdlib.data import breakhis, cache, splits
from bcdlib.errors import InputError
from bcdlib.evaluation import metrics, published
from bcdlib.explain import explanation
from bcdlib.methods.parts import backbones
from bcdlib.plots import style
from bcdlib.runs import lesson
from bcdlib.runs.folder import MODEL, Run
from bcdlib.runs.places import name_only
from bcdlib.runs.profiles import Profile
from bcdlib.trials import final
from bcdlib.trials.trial import Result, Trial, add_predictions, run_trial

RECIPE = """\
```python
model.compile(
    optimizer={optimizer},
    loss={loss},
    metrics=[{metric}],
)
model.fit(
    batches,  # {batch} of {images} {what}
    epochs={epochs},
    steps_per_epoch={steps},
    validation_data={held_out},  # for the second curve{only}{callbacks}
)
```"""
NO_NETWORK = "This method is not made of Keras layers: there is no network to show."


def plan_trials(
    run: Run,
    profile: Profile,
    *,
    split_names: Iterable[str] = (),
    method: str = "resnet50",
    trainable: str = "all",
    task: str = "binary",
    stain: str | None = None,
    recipe: str = "authors",
    fold: int = 0,
    seed: int = 0,
) -> list[Trial]:
    """Plan one trial a split, and for "all" a final model, last.

    Parameters
    ----------
    run : Run
    profile : Profile
    split_names : iterable of str
        Protocols, in order; by default those of the profile's that the images allow (see
        `splits.available_splits`). "all": a model of all images, and the folds that say what it is worth (see
        `final.plan_final`).
    method, trainable, task, stain, recipe, fold, seed
        See `Trial`; a final model has all folds.

    Raises
    ------
    InputError
        For the task "magnification": what follows on 04_train is about benign and malignant.
    """
    if task == "magnification":
        raise InputError("task 'magnification': only `python -m bcdlib compare` knows it")
    settings = {
        "seed": seed,
        "trainable": trainable,
        "task": task,
        "stain": stain or None,
        "recipe": recipe,
    }
    names = tuple(split_names) or splits.available_splits(run, profile.splits)
    whole = final.plan_final(run, method, **settings) if splits.ALL in names else []
    known = {(trial.split, trial.fold) for trial in whole}
    single = [
        Trial(method, name, splits.read_split(run, name), fold=fold, **settings)
        for name in names
        if name != splits.ALL and (name, fold) not in known
    ]
    return single + whole


def methods_table(run: Run) -> pd.DataFrame:
    """List the methods: key, what it is, who published it, the paper's printed accuracy, and what that is of.

    Any of them, or a file with a method of one's own, can be trained here. For images of the user's own the
    last three columns are left out: they are about BreakHis.
    """
    printed = published.TABLE_II.set_index("key")
    kinds = {key: methods.get_method(key) for key in methods.method_names()}
    table = pd.DataFrame(
        {
            "method": key,
            "what it is": inspect.getdoc(kind).splitlines()[0],
            "published as": printed["research"].get(key, "a method of ours"),
            "printed (%)": printed["accuracy"].get(key, np.nan),
            "measured on": printed["measured on"].get(key, ""),
        }
        for key, kind in kinds.items()
    )
    return table.iloc[:, :2] if run.settings.get("manifest") else table


def parameter_table(planned: list[Trial], profile: Profile, *, weights: str | None = None) -> pd.DataFrame:
    """List every parameter of the planned method: its value in this run, and what its docstring says of it.

    Returns
    -------
    pandas.DataFrame
        parameter, value (text), meaning. Of a path, the name only.
    """
    estimator, meanings = planned[0].estimator(profile, weights), {}
    for kind in reversed(type(estimator).__mro__):
        found = re.findall(r"^(\w[\w, ]*) : .*\n((?:    .*\n?)+)", inspect.getdoc(kind) or "", flags=re.M)
        meanings |= {
            name: " ".join(text.replace("`", "").split())
            for names, text in found
            for name in names.split(", ")
        }
    values = {name: value for name, value in estimator.get_params().items() if name != "verbose"}
    return pd.DataFrame(
        {
            "parameter": name,
            "value": str(name_only(value)),
            "meaning": meanings.get(name, ""),
        }
        for name, value in values.items()
    )


def plan_table(planned: list[Trial]) -> pd.DataFrame:
    """Show planned trials, one row each: method, split, fold, seed, number of images in each role."""
    rows = []
    for trial in planned:
        roles = splits.fold_of(trial.split_table, trial.fold)["role"]
        rows.append(
            {
                "method": trial.label,
                "split": trial.split,
                "fold": f"{trial.fold} (of {trial.split_table['fold'].nunique()})",
                "seed": trial.seed,
            }
            | {role: int((roles == role).sum()) for role in splits.ROLES}
        )
    return pd.DataFrame(rows)


def build_network(
    run: Run,
    profile: Profile,
    *,
    method: str = "resnet50",
    weights: str | None = None,
    trainable: str = "all",
    task: str = "binary",
    recipe: str = "authors",
) -> keras.Model | None:
    """Build and compile a method's network, to look at; its `fit` builds another.

    Parameters
    ----------
    run : Run
        Its cache gives the size of images.
    profile : Profile
    method, trainable, task, recipe
        See `Trial`.
    weights : str, optional
        "imagenet", "none" or a folder.

    Returns
    -------
    keras.Model or None
        None if the method is no `KerasMethod`.
    """
    trial = Trial(method, "", pd.DataFrame(), trainable=trainable, task=task, recipe=recipe)
    estimator = trial.estimator(profile, weights)
    if not isinstance(estimator, methods.KerasMethod):
        return None
    with methods.explain_errors(method):
        return estimator.build(estimator.image_shape(cache.run_cache(run)))


def recipe_text(
    planned: list[Trial], profile: Profile, model: keras.Model | None, *, weights: str | None = None
) -> str:
    """Write the Keras calls that train the first planned trial, with their values, as Markdown.

    Parameters
    ----------
    planned : list of Trial
        From `plan_trials`.
    profile : Profile
    model : keras.Model or None
        From `build_network`.
    weights : str, optional
        "imagenet", "none" or a folder.
    """
    estimator = planned[0].estimator(profile, weights)
    if model is None or not estimator.fits_with_keras:
        return "This method does not learn by Keras' `fit`: there is no such call to show."
    images, steps = _epoch(planned[0], estimator)
    config, usual = model.optimizer.get_config(), type(model.optimizer)().get_config()
    optimizer = ", ".join(
        f"{name}={float(f'{value:.6g}') if isinstance(value, float) else repr(value)}"
        for name, value in config.items()
        if name == "learning_rate" or (name != "name" and value != usual[name])
    )
    watching = estimator.build_callbacks()
    loss, metric = (
        repr(one) if isinstance(one, str) else _called(one)
        for one in (estimator.build_loss(), estimator.build_metric())
    )
    return RECIPE.format(
        optimizer=f"keras.optimizers.{type(model.optimizer).__name__}({optimizer})",
        loss=loss,
        metric=metric,
        what="features of the frozen base"
        if estimator.frozen
        else "images" + ", augmented anew each time" * estimator.augment,
        images=images,
        batch=estimator.batch_size,
        epochs=estimator.epochs,
        steps=steps,
        held_out="None" if estimator.frozen else "held_out",
        only=" only" * (not estimator.chooses),
        callbacks=f"\n    callbacks=[{own}]," if (own := ", ".join(map(repr, watching))) else "",
    )


def _epoch(trial: Trial, estimator: methods.KerasMethod) -> tuple[int, int]:
    """Count training images, and batches of an epoch. A head is fitted on validation images too."""
    roles = splits.fold_of(trial.split_table, trial.fold)["role"]
    images = int(roles.isin(("train", "validation") if estimator.frozen else ("train",)).sum())
    rows = images * (1 + estimator.augmented_copies * estimator.frozen)
    return images, estimator.steps_per_epoch or -(-rows // estimator.batch_size)


def _called(thing) -> str:
    return thing if isinstance(thing, str) else getattr(thing, "name", None) or thing.__name__


def print_network(model: keras.Model | None) -> None:
    """Print Keras' summary of what `build_network` returned."""
    print(NO_NETWORK) if model is None else model.summary()


def network_figure(model: keras.Model | None):
    """Draw Figures 6 and 7 of the paper: the network's layers, their output shapes and numbers of weights.

    Parameters
    ----------
    model : keras.Model or None
        From `build_network`.

    Returns
    -------
    matplotlib.figure.Figure
        One row a layer: grey without weights, blue frozen, orange trained.
    """
    if model is None:
        return style.note_figure(NO_NETWORK)
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    figure, axes = style.make_figure(width=8, height=0.5 * len(layers) + 0.6)
    for title, x, align in (
        ("layer", 0.02, "left"),
        ("output shape", 0.62, "center"),
        ("weights", 0.98, "right"),
    ):
        axes.text(x, 0.9, title, ha=align, weight="bold")
    for row, layer in enumerate(layers):
        colour = "#FBE3C0" if layer.trainable_weights else "#BBD9EE"
        shapes = [" x ".join(map(str, output.shape[1:])) for output in keras.tree.flatten(layer.output)]
        axes.text(
            0.02,
            -row,
            f"{layer.name}  ({type(layer).__name__})",
            va="center",
            bbox={
                "boxstyle": "round",
                "facecolor": colour if layer.count_params() else "#E8E8E8",
                "edgecolor": "#666666",
            },
        )
        axes.text(0.62, -row, ", ".join(shapes), va="center", ha="center")
        axes.text(0.98, -row, f"{layer.count_params():,}", va="center", ha="right")
    axes.set(xlim=(0, 1), ylim=(0.4 - len(layers), 1.4))
    axes.axis("off")
    return figure


@backbones.one_try()
def train_trials(
    run: Run,
    profile: Profile,
    planned: list[Trial],
    *,
    weights: str | None = None,
    keep_model: bool = True,
    verbose=None,
) -> list[Result]:
    """Train every trial that is not finished yet, and save its model.

    Predictions go into ``predictions.csv``, those of the validation part into ``validation.csv``. A trial
    that was cut off goes on from its last checkpoint. Trials lie in ``trials/`` of the run, or where the
    environment variable BCD_TRIALS says.

    Parameters
    ----------
    run : Run
    profile : Profile
    planned : list of Trial
        From `plan_trials`.
    weights : str, optional
        "imagenet", "none" or a folder.
    keep_model : bool
        Save the model; a final one always is.
    verbose : optional
        As in `keras.Model.fit`.
    """
    pixels = cache.run_cache(run)
    results = []
    for number, trial in enumerate(planned, 1):
        print(f"Trial {number} of {len(planned)}: {trial}", flush=True)
        result = run_trial(
            trial,
            pixels,
            profile,
            root=os.environ.get("BCD_TRIALS") or run.folder / "trials",
            weights=weights,
            verbose=verbose,
            keep_model=keep_model or trial.split == splits.ALL,
        )
        if trial.split == splits.ALL:
            result = final.finish_final([*results, result], pixels.images)
            explanation.store_reference(result.folder / MODEL)
        add_predictions(run.folder / "validation.csv", result.validation)
        add_predictions(run.folder / "predictions.csv", result.predictions)
        results.append(result)
    return results


def curves_figure(results: list[Result], quantity: str = "loss"):
    """Draw Figure 8 (loss) or Figure 9 (accuracy) of the paper, one panel a trial.

    The second curve is drawn on the validation part or, where a protocol has none (the paper's), on the test
    part: the legend says which. Nothing is chosen by it. A head that is trained on a frozen base has none: it
    is fitted on the whole training part (see `trial.run_trial`).

    Parameters
    ----------
    results : list of Result
        From `train_trials`. A method without epochs has no curve, and the figure says so.
    quantity : str
        "loss" or "accuracy".

    Returns
    -------
    matplotlib.figure.Figure
    """
    results = [result for result in results if result.history is not None]
    if not results:
        return style.note_figure("This method is fitted at once, not in epochs: there is no curve to draw.")
    figure, axes = style.make_figure(
        1, len(results), width=4.2 * len(results) + 0.6, height=3.4, squeeze=False
    )
    for axis, result in zip(axes[0], results, strict=True):
        epochs = result.history["epoch"] + 1
        axis.plot(epochs, result.history[quantity], color=style.TRAINING, label="training")
        if result.held_out:
            shown = result.predictions if result.held_out == "test" else result.validation
            axis.plot(
                epochs,
                result.history[f"val_{quantity}"],
                color=style.HELD_OUT,
                label=f"{result.held_out} ({len(shown)} images, {shown['case'].nunique()} cases)",
            )
        axis.set(
            xlabel="epoch",
            ylabel=_loss_label(result.trial) if quantity == "loss" else "accuracy",
            ylim=(0, 1.02 if quantity == "accuracy" else None),
        )
        title = f"{methods.get_method(result.trial.method).title}, split {result.trial.split}"
        axis.set_title(style.wrap(title, 12, 4.2))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8)
    tables = [table for result in results for table in (result.predictions, result.validation) if len(table)]
    started = dict.fromkeys(table["weights"].iloc[0] for table in tables)
    figure.supxlabel("started from " + "; ".join(started), fontsize=8)
    return figure


def _loss_label(trial: Trial) -> str:
    """Name the loss that a trial minimises: the paper's "loss (MSE)", or "loss (binary crossentropy)"."""
    kind = methods.get_method(trial.method)
    if not issubclass(kind, methods.KerasMethod):
        return "loss"
    name = _called(kind(task=trial.task, **methods.method_settings(trial.method)).build_loss())
    return f"loss ({'MSE' if name in ('mse', 'mean_squared_error') else name.replace('_', ' ')})"


def predictions_figure(run: Run, results: list[Result], per_class: int = 4, *, seed: int = 0):
    """Draw test images of the last trial, benign ones above, with what the network says of each."""
    result = next(result for result in reversed(results) if len(result.predictions))  # a final model has none
    table = metrics.with_correct(result.predictions)
    table = pd.concat(
        part.sample(min(per_class, len(part)), random_state=seed) for _, part in table.groupby("label")
    )
    images, names = cache.run_cache(run), breakhis.CLASSES
    captions = [
        f"{names[row.label]},\npredicted {names[row.predicted]}\n"
        f"P(malignant) {row.probability:.2f}: {'right' if row.correct else 'wrong'}"
        for row in table.itertuples()
    ]
    return style.image_grid(
        images.pixels[images.rows(table["filename"])],
        captions,
        per_class,
        title=f"Test images of {result.trial}: truth, and what the network says",
        colours=[style.MEASURED if right else style.PUBLISHED for right in table["correct"]],
    )


def findings(results: list[Result]) -> str:
    """Say how each training ended and what its test part says, as Markdown, a line a trial and one more."""
    lines, tested = [], [result for result in results if len(result.predictions)]
    for result in tested:
        test = metrics.metrics_table(result.predictions, keys=["accuracy", "auc"]).iloc[0]
        history = result.history
        learned = "" if history is None else f"{history['accuracy'].iloc[-1]:.3f} in training, "
        lines.append(
            f"`{result.trial.split}`: accuracy {learned}{test['accuracy']:.3f} on {test['images']} test "
            f"images of {test['cases']} cases; AUC {test['auc']:.3f}."
        )
    if len(tested) < len(results):
        cases = results[-1].validation["case"].nunique()
        lines.append(
            f"The final model was trained on all images; what it is worth is said by the folds above, which "
            f"have tested {cases} cases. To use it elsewhere take its whole folder, "
            f"`trials/{results[-1].folder.name}` of this run."
        )
    larger = tested[-1].predictions["label"].value_counts(normalize=True).max()
    return lesson.findings_text(
        [
            *lines,
            f"Always predicting the larger class is right for {larger:.3f} of the last test part.",
        ]
    )


def check_exercise(profile: Profile, results: list[Result], answer: float | None) -> str:
    """Check the exercise of 04_train: how often each training image was seen, on average."""
    estimator = results[0].trial.estimator(profile)
    if results[0].history is None or not isinstance(estimator, methods.KerasMethod):
        return "This method does not learn in epochs: this run has no answer to that."
    images, steps = _epoch(results[0].trial, estimator)
    truth = len(results[0].history) * steps * estimator.batch_size / images
    return lesson.check_answer(
        answer,
        truth,
        tolerance=0.1 * truth,
        lesson=f"{len(results[0].history)} epochs x {steps} batches x {estimator.batch_size} / {images} "
        "images: so many chances to learn each image by heart.",
    )
