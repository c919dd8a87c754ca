"""Compare methods under one protocol, one method under all protocols, and both with published numbers."""

import itertools
import textwrap

import numpy as np
import pandas as pd

from bcdlib.data import breakhis, published_splits, splits
from bcdlib.evaluation import bootstrap, metrics, published, recorded
from bcdlib.explain import explanation
from bcdlib.plots import style
from bcdlib.runs import files, lesson
from bcdlib.runs.folder import MODEL, Run
from bcdlib.runs.names import in_markdown
from bcdlib.runs.profiles import Profile
from bcdlib.trials import comparison, final
from bcdlib.trials.store import put_trial
from bcdlib.trials.trial import Result

# isort: split
# for notebooks, which call verbs only
from bcdlib.evaluation.bootstrap import comparison_table as comparison_table
from bcdlib.evaluation.metrics import cross_validation_table as cross_validation_table
from bcdlib.runs.lesson import read_guess as read_guess
from bcdlib.trials.comparison import run_comparison as run_comparison

# of test images, by what they have in common with training
_SHARED = {
    "nothing shared with training": "#DDDDDD",
    "same case in training": "#E69F00",
    "same slide in training": "#882255",
    "same image in training": "#222222",
}
NOT_HERE = "Recorded on BreakHis: not shown beside images of your own."


def failures_text(run: Run) -> str:
    """List the trials that failed, in Markdown."""
    found = [f"- {in_markdown(line)}" for line in comparison.failed_trials(run)]
    return "\n".join(["**Trials that failed:**", "", *found]) if found else "No trial failed."


def train_finals(run: Run, profile: Profile, *, store: str = "", **options) -> list[Result]:
    """Train final models as `final.train_finals`, each with what tells images apart that are unlike its own.

    Parameters
    ----------
    run, profile
        After 02_preprocess.
    store, **options
        As in `final.train_finals`.
    """
    found = final.train_finals(run, profile, store=store, **options)
    for result in found:
        explanation.store_reference(result.folder / MODEL)
        if store:
            put_trial(store, result.folder)
    return found


def protocol_table(predictions: pd.DataFrame, found: pd.DataFrame | None = None) -> pd.DataFrame:
    """Compare methods and splits: a row each, folds pooled, with intervals and what each split shares.

    Parameters
    ----------
    predictions : DataFrame
        A predictions table.
    found : DataFrame, optional
        `bootstrap.interval_table` of the same predictions, if it is at hand.

    Returns
    -------
    DataFrame
        method, split, what is shared, the metrics that comparisons show (accuracy, AUC, ...), each as text
        with its 95 % interval over cases; images, slides, cases, folds, seeds.
    """
    keys = metrics.shown_in("comparison")
    found = bootstrap.interval_table(predictions, keys) if found is None else found
    texts = found.assign(text=[bootstrap.interval_text(row) for row in found.itertuples()]).pivot(
        index=["method", "split"], columns="metric", values="text"
    )
    labels = {
        key: metrics.METRICS[key].label for key in keys if key in texts
    }  # a recording: those of its day
    table = metrics.metrics_table(predictions, keys=())
    table["what is shared"] = table["split"].map(splits.describe_protocol)
    table = table.join(texts[list(labels)].rename(columns=labels), on=["method", "split"])
    counts = ["images", "slides", "cases", "folds", "seeds"]
    return table[["method", "split", "what is shared", *labels.values(), *counts]]


def protocol_figure(
    predictions: pd.DataFrame, found: pd.DataFrame | None = None, *, guess: float | None = None
):
    """Draw accuracy and AUC of each method under each protocol: same images, same network.

    Parameters
    ----------
    predictions, found
        As of `protocol_table`.
    guess : float, optional
        The reader's, of the accuracy on the next patient, 0..1; see `read_guess`.
    """
    found = bootstrap.interval_table(predictions) if found is None else found
    found = found.sort_values(
        "split", key=lambda names: pd.Categorical(names, list(splits.PROTOCOLS)), kind="stable"
    )
    methods = found["method"].unique()
    larger = metrics.larger_class(predictions)
    figure, axes = style.make_figure(
        1, 2, width=9, height=0.5 * (found["metric"] == "accuracy").sum() + 1.7, sharey=True
    )
    for axis, (metric, what) in zip(axes, (("accuracy", "always the larger class"), ("auc", "chance"))):
        rows = found[found["metric"] == metric].iloc[::-1].reset_index(drop=True)
        floors = [larger[row.method, row.split] if metric == "accuracy" else 0.5 for row in rows.itertuples()]
        names = [
            f"{row.split}{f', {row.method}' if len(methods) > 1 else ''}\n"
            f"{row.images} images, {row.slides} slides, {row.cases} cases"
            for row in rows.itertuples()
        ]
        for method, colour in zip(methods, itertools.cycle(style.SERIES)):
            part = rows[rows["method"] == method]
            axis.errorbar(
                part["value"],
                part.index,
                xerr=bootstrap.error_bars(part),
                fmt="o",
                color=colour,
                capsize=4,
                markersize=7,
            )
        for place, value in rows["value"].items():
            text = f"{value:.2f}" if rows["low"].notna()[place] else f"{value:.2f}, interval cannot be said"
            white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # no line runs through a number
            axis.annotate(text, (value, place), (0, 7), textcoords="offset points", ha="center", bbox=white)
        if len({f"{floor:.2f}" for floor in floors}) == 1:
            what += f", {floors[0]:.2f}"
        axis.vlines(floors, rows.index - 0.5, rows.index + 0.5, "black", ":", label=what, zorder=1)
        if metric == "accuracy":
            style.mark_guess(axis, guess)
        axis.set_yticks(range(len(rows)), names)
        axis.set(
            xlim=(0, 1.02),
            ylim=(-0.6, len(rows) - 0.2),
            xlabel=f"{metrics.METRICS[metric].label} on test images",
        )
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False)
    if found["split"].nunique() > 1 and set(found["split"]) <= set(splits.PROTOCOLS):
        title = "From top to bottom the test images have less in common with training"
        if {"magnification", "image"} <= set(found["split"]):
            title = title.replace("top to bottom", "image down") + "; magnification: all slides, other views"
        figure.suptitle(title, fontsize=10)
    note = f"{_trials_text(predictions, named=True)}; 95 % intervals"
    return _with_note(figure, note, predictions)


def _with_note(figure, note: str, predictions: pd.DataFrame):
    figure.supxlabel(
        f"{note}: bootstrap over cases\nstarted from {metrics.weights_note(predictions)}", fontsize=8
    )
    return figure


def _trials_text(predictions: pd.DataFrame, *, named: bool = False) -> str:
    """Folds and seeds; by method where they differ, else after the names of the methods if `named`."""
    counts = predictions.groupby("method", sort=False)[["fold", "seed"]].nunique()
    texts = [
        f"{row.fold} fold{'s' * (row.fold > 1)} x {row.seed} seed{'s' * (row.seed > 1)}"
        for row in counts.itertuples()
    ]
    by_method = (f"{method} {text}" for method, text in zip(counts.index, texts, strict=True))
    if len(set(texts)) > 1:
        return ", ".join(by_method)
    return f"{', '.join(counts.index)}; {texts[0]}" if named else texts[0]


def gap_text(predictions: pd.DataFrame) -> str:
    """Compare accuracy by image with accuracy by case, in a Markdown paragraph a method.

    Only where both were measured for a method; empty if for none.
    """
    lines = []
    for method, part in predictions.groupby("method", sort=False):
        by_split = dict(list(part.groupby("split")))
        if {"image", "case"} <= set(by_split):
            accuracy = metrics.metrics_table(part, keys=["accuracy"]).set_index("split")["accuracy"]
            paired = bootstrap.paired_difference(by_split["image"], by_split["case"])
            larger = metrics.larger_class(by_split["case"])[method, "case"]
            lines.append(
                f"**{in_markdown(method)}: accuracy {accuracy['image']:.3f} with a split by image, "
                f"{accuracy['case']:.3f} with a split by case (always predicting the larger class: "
                f"{larger:.3f}).** The difference, {paired['value']:+.3f} "
                f"(95 % interval {bootstrap.range_text(paired['low'], paired['high'])}, "
                f"{paired['cases']} cases), is what recognising slides rather than disease is worth."
            )
    return "\n\n".join(lines)


def findings(predictions: pd.DataFrame, guess: float | None = None) -> str:
    """Say in a few lines what the comparison showed, as Markdown; `guess` as in `protocol_figure`."""
    found = bootstrap.interval_table(predictions, ["accuracy"], by_image=False)
    known = [name for name in splits.STRICTEST if name in set(found["split"])] or list(found["split"])
    strict = found[found["split"] == known[0]].iloc[0]
    same = found[found["method"] == strict["method"]].set_index("split")
    loose = same.loc[[name for name in known if name in same.index][-1]]
    larger = metrics.larger_class(predictions)[strict["method"], strict["split"]]
    lines = [
        f"Accuracy under `{strict['split']}`: {bootstrap.interval_text(strict)}. Always predicting the "
        f"larger class: {larger:.3f}." + lesson.guess_text(guess, strict["value"])
    ]
    if strict["split"] != loose.name:
        pair = predictions[predictions["method"] == strict["method"]]
        pair = pair[pair["split"].isin([strict["split"], loose.name])]
        differences = bootstrap.paired_differences(pair, "split", against=strict["split"])
        lines += [
            f"The same network under `{loose.name}`: {bootstrap.interval_text(loose)}."
            + "".join(
                f" On the {row.images} images that both predicted, the difference is {row.value:+.3f} "
                f"({bootstrap.range_text(row.low, row.high)})."
                for row in differences.itertuples()
            ),
            f"A published number may be compared with that under `{strict['split']}` only if its split "
            "shares no more with training.",
        ]
    return lesson.findings_text(lines)


def check_exercise(answer: float | None) -> str:
    """Check the exercise of 06_compare: the number of published splits that share cases, but no slide."""
    table = published_splits.published_table()
    return lesson.check_answer(
        answer,
        int(((table["slide_leak"] == 0) & (table["case_leak"] > 0)).sum()),
        lesson="They keep slide folders apart, which the literature calls patients, but not cases.",
    )


def measured_tables(run: Run) -> list[pd.DataFrame]:
    """Read what was measured in this run: predictions of 04_train, if it ran, and of every comparison."""
    trained = run.folder / "predictions.csv"
    own = [run.check_origin(metrics.read_predictions(trained), trained.name)] if trained.is_file() else []
    return [*own, comparison.all_predictions(run)]


def table_ii(*predictions: pd.DataFrame) -> pd.DataFrame:
    """Make Table II of the paper, with what each row was measured on, and under each the rows measured here.

    Parameters
    ----------
    *predictions : DataFrame
        Predictions tables: of 04_train, 06_compare, or made elsewhere.

    Returns
    -------
    DataFrame
        key, method, kind (published or measured), accuracy, low, high (percent; the 95 % interval over
        cases of measured rows), measured on, images, cases, weights. Methods in the order of their
        published accuracy, those without one first. Only the measured rows if an image is not BreakHis's
        (by its name): published numbers say nothing about other images. The name of a method with a frozen
        random base says that it is not comparable.
    """
    paper = published.TABLE_II
    table = pd.concat([_measured(one) for one in predictions], ignore_index=True)
    if all(breakhis.is_breakhis(one) for one in predictions):
        named = paper.assign(method=paper["research"] + ": " + paper["method"], kind="published")
        table = pd.concat([named[["key", "method", "kind", "accuracy", "measured on"]], table])
    table[["images", "cases"]] = table[["images", "cases"]].astype("Int64")  # whole, though some are missing
    table["order"] = table["key"].map(paper.set_index("key")["accuracy"]).fillna(100)
    # descending, "published" comes before "measured"
    return table.sort_values(
        ["order", "key", "kind", "accuracy"], ascending=[False, True, False, False], ignore_index=True
    ).drop(columns="order")


def _measured(predictions: pd.DataFrame) -> pd.DataFrame:
    table = metrics.metrics_table(predictions, keys=["accuracy"]).assign(
        kind="measured", key=lambda table: table["method"].map(_key)
    )
    intervals = bootstrap.interval_table(predictions, ["accuracy"], by_image=False)
    if "weights" in table:
        random = table["weights"].str.contains(published.NOT_COMPARABLE, regex=False)
        table["method"] += random.map({True: f", {published.NOT_COMPARABLE}", False: ""})
    table[["accuracy", "low", "high"]] = 100 * intervals[["value", "low", "high"]].to_numpy()
    place = "here, drawn tissue" if breakhis.is_synthetic(predictions) else "here"
    table["measured on"] = [
        f"{place}: split {row.split}, {row.folds} fold{'s' * (row.folds > 1)}, "
        f"{row.images} test images of {row.cases} cases"
        for row in table.itertuples()
    ]
    return table.reindex(
        columns="key,method,kind,accuracy,low,high,measured on,images,cases,weights".split(",")
    )


def _key(label: str) -> str:
    """Find the method's row in Table II; its own label if it has none there."""
    return next((key for key in published.TABLE_II["key"] if f"{label}-".startswith(f"{key}-")), label)


def explained_table(*predictions: pd.DataFrame) -> pd.DataFrame:
    """Set beside each printed number what it measured, and what its method gives here under that and by case.

    Parameters
    ----------
    *predictions : DataFrame
        As of `table_ii`.

    Returns
    -------
    DataFrame
        A row a method of Table II and, where several variants or tasks of it were measured, a row each:
        method, printed (%), what it measured, their split, under their split, by case. The last two are in
        percent, with 95 % intervals over cases: the share of images that are right in the row's task (for
        `published.OF_SLIDES` the mean of that over slides); empty where nothing was measured here. No rows if
        an image is not BreakHis's.
    """
    table = pd.concat(predictions, ignore_index=True) if predictions else pd.DataFrame(columns=["method"])
    labels, rows = table["method"].unique(), []
    printed = published.TABLE_II.sort_values("accuracy", ascending=False, kind="stable")
    for row in printed.to_dict("records"):
        for label in [label for label in labels if _key(label) == row["key"]] or [row["key"]]:
            found = {"method": label, "printed (%)": row["accuracy"], "what it measured": row["measured on"]}
            found["their split"] = row["split"] or "not known"
            for column, split in (("under their split", row["split"]), ("by case", "case")):
                part = table[table["method"] == label]
                part = part[part["split"] == split] if len(part) else part
                found[column] = _right_text(part, row["key"]) if len(part) else ""
            rows.append(found)
    whole = all(breakhis.is_breakhis(one) for one in predictions)
    return pd.DataFrame(rows) if whole else pd.DataFrame(rows).iloc[:0]


def _right_text(predictions: pd.DataFrame, key: str) -> str:
    """Percent right in the task that was learned, with interval."""
    learned = metrics.subtype_predictions(predictions)
    if len(learned):
        right = learned["predicted"] == learned["subtype"]
    else:
        right = metrics.with_correct(predictions)["correct"]
    metric = "slide_recognition" if key in published.OF_SLIDES else "accuracy"
    value, low, high = (100 * one for one in bootstrap.share_interval(predictions, right, metric=metric))
    return f"{value:.1f} ({'interval cannot be said' if np.isnan(low) else f'{low:.1f} to {high:.1f}'})"


def table_ii_figure(table: pd.DataFrame):
    """Draw Table II as bars, a group a method: published, and under it what was measured and how."""
    table = table.iloc[::-1].reset_index(drop=True)
    places = table.index + 0.6 * (table["key"] != table["key"].shift()).cumsum()  # a gap between methods
    figure, axis = style.make_figure(width=9, height=0.45 * (places.max() + 1) + 1.2)
    printed = table["kind"] == "published"
    for rows, colour, label in (
        (printed, style.PUBLISHED, "published"),
        (~printed, style.MEASURED, "measured here"),
    ):
        if rows.any():
            axis.barh(places[rows], table["accuracy"][rows], color=colour, height=0.85, label=label)
    axis.errorbar(
        table["accuracy"],
        places,
        xerr=bootstrap.error_bars(table, "accuracy"),
        fmt="none",
        ecolor="black",
        capsize=2,
        lw=1,
    )
    for place, accuracy in zip(places, table["accuracy"], strict=True):
        axis.text(1, place, f"{accuracy:.1f}", va="center", fontsize=8, color="white", weight="bold")
    axis.set_yticks(places, table["method"] + "\n(" + table["measured on"] + ")", fontsize=7)
    axis.set(
        xticks=range(0, 101, 20),
        xlim=(0, 102),
        ylim=(0, places.max() + 0.6),
        xlabel="accuracy (%), measured with 95 % interval over cases"
        + "\npublished numbers rest on different splits and tasks" * bool(printed.any()),
    )
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=8)
    weights = metrics.weights_note(table.dropna(subset="weights"))
    if weights:
        figure.supxlabel(textwrap.fill(f"measured here: started from {weights}", 150), fontsize=7)
    return figure


def published_splits_table(run: Run | None = None) -> pd.DataFrame:
    """Show the register of published splits: what each says of itself, and which test images share what.

    It is empty for a `run` of other images than BreakHis's, as `recorded_protocol_table`.
    """
    table = published_splits.published_table()
    shown = {"split": table["split"], "where": table["citation"], "its text on the split": table["claim"]}
    shown |= {"folds": table["folds"], "test images": table["test_images"]}
    for unit in ("slide", "case"):
        shown[f"{unit} also in training"] = table[f"{unit}_leak"]
        shown[f"{unit} also in training (%)"] = table[f"{unit}_leak_pct"]
    return pd.DataFrame(shown if _of_breakhis(run) else []).reindex(columns=list(shown))


def published_splits_figure(run: Run | None = None):
    """Draw the register of published splits: what test images share with training, a panel a class.

    Returns
    -------
    matplotlib Figure
        A bar a split: the share of its test images that have nothing in common with training, the same case
        or slide, or are themselves in training. A note for a `run` of other images than BreakHis's.
    """
    if not _of_breakhis(run):
        return style.note_figure(NOT_HERE)
    table = published_splits.published_table().iloc[::-1].reset_index(drop=True)
    figure, axes = style.make_figure(1, 2, width=9.5, height=0.36 * len(table) + 1.5, sharey=True)
    for axis, name in zip(axes, breakhis.CLASSES, strict=True):
        tests = table[f"test_{name}"]
        case, slide, image = (table[f"{unit}_leak_{name}"] for unit in ("case", "slide", "image"))
        left = 0 * tests
        for count, (label, colour) in zip(
            (tests - case, case - slide, slide - image, image), _SHARED.items(), strict=True
        ):
            share = 100 * count / tests
            axis.barh(table.index, share, left=left, color=colour, label=label)
            left = left + share
        for place, (shared, of) in enumerate(zip(case, tests, strict=True)):
            axis.annotate(f"{shared} of {of}", (101, place), va="center", fontsize=8, annotation_clip=False)
        axis.set(xlim=(0, 100), xlabel=f"{name} test images (%)")
        axis.set_title(name, fontsize=10, color=style.COLOURS[name])
    axes[0].set_yticks(table.index, table["split"])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    figure.supxlabel(
        "Published BreakHis splits, from their lists. Case: accession number (one patient is likely, not "
        "proven).\nNumbers: test images of a case that is also in training; sums over the folds.",
        fontsize=8,
    )
    return figure


def recorded_protocol_table(name: str, run: Run | None = None) -> pd.DataFrame:
    """Make the `protocol_table` of a recording, from its stored metrics.

    It is empty, and the functions below give a note instead, for a `run` of other images than BreakHis's: the
    recorded numbers say nothing about them.
    """
    found = recorded.read_recording(name)
    table = protocol_table(found.predictions, found.metrics)
    return table if _of_breakhis(run) else table.iloc[:0]


def recorded_protocol_figure(name: str, run: Run | None = None):
    """Draw the `protocol_figure` of a recording, from its stored metrics."""
    if not _of_breakhis(run):
        return style.note_figure(NOT_HERE)
    found = recorded.read_recording(name)
    return protocol_figure(found.predictions, found.metrics)


def save_recorded_figure(name: str) -> None:
    """Store a recording's figure beside it: protocols, or differences where there is one protocol."""
    several = recorded.read_recording(name).predictions["split"].nunique() > 1
    draw = recorded_protocol_figure if several else recorded_difference_figure
    with files.atomic_write(recorded.recorded_folder() / f"{name}.png") as temporary:
        draw(name).savefig(temporary, dpi=110)


def recorded_note(name: str, run: Run | None = None) -> str:
    """Say, in Markdown, what a recording was made from, and the commands that repeat it."""
    if not _of_breakhis(run):
        return NOT_HERE
    facts = recorded.read_recording(name).facts
    return "\n".join(
        [f"Started from: {facts['weights']}. To repeat it:", "", "```", *facts["commands"], "```"]
    )


def recorded_shared_cases(run: Run | None = None) -> pd.DataFrame:
    """Read what the shared cases of published splits were worth on real images, in accuracy.

    Parameters
    ----------
    run : Run, optional
        As in `recorded_protocol_table`.

    Returns
    -------
    DataFrame
        A row a method, split and part of the test images: accuracy with and without the shared cases in
        training, and the difference with its 95 % interval; images, cases, draws.

    Examples
    --------
    >>> recorded_shared_cases()["split"].nunique()
    7
    """
    found = pd.read_csv(recorded.recorded_folder() / "shared_cases.csv").query("metric == 'accuracy'")
    found = found.assign(difference=found.apply(bootstrap.interval_text, axis=1)).reset_index(drop=True)
    columns = ["method", "split", "test images", "with", "without", "difference", "images", "cases", "draws"]
    return found[columns] if _of_breakhis(run) else found[columns].iloc[:0]


def _of_breakhis(run: Run | None) -> bool:
    return run is None or breakhis.is_breakhis(run.images())


def recorded_difference_figure(name: str, run: Run | None = None):
    """Draw a recording's paired differences, what each change is worth: a panel of AUC, one of case AUC."""
    if not _of_breakhis(run):
        return style.note_figure(NOT_HERE)
    shown, found = ("auc", "case_auc"), recorded.read_recording(name)
    against, rows = found.facts["against"], found.differences
    splits_text = ", ".join(rows["split"].unique())
    rows = rows.assign(
        label=[
            row.first.removeprefix(f"{row.second}-") + f", {row.split}" * (", " in splits_text)
            for row in rows.itertuples()
        ]
    )
    order = rows[rows["metric"] == shown[0]].sort_values("value", kind="stable")["label"]
    figure, axes = style.make_figure(1, len(shown), width=10, height=0.28 * len(order) + 1.6, sharey=True)
    for axis, metric in zip(axes, shown, strict=True):
        part = rows[rows["metric"] == metric].set_index("label").loc[order]
        axis.errorbar(
            part["value"],
            range(len(part)),
            xerr=bootstrap.error_bars(part),
            fmt="o",
            color=style.MEASURED,
            capsize=3,
        )
        axis.axvline(0, color="black", linestyle=":")
        axis.set_yticks(range(len(part)), order, fontsize=8)
        axis.set_xlabel(f"{metrics.METRICS[metric].label}, difference from {against}")
    most = metrics.metrics_table(found.predictions, keys=())[["images", "slides", "cases"]].max()
    size = ", ".join(f"{number} {name}" for name, number in most.items())
    note = f"{size}; split {splits_text}; {_trials_text(found.predictions)}; paired 95 % intervals"
    return _with_note(figure, note, found.predictions)
