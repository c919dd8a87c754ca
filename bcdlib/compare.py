"""All methods under one protocol, one method under all protocols, and the published numbers beside the measured."""

import html
import itertools
import textwrap

import matplotlib.ticker
import pandas as pd

from bcdlib.data import breakhis, splits
from bcdlib.evaluation import bootstrap, metrics, recorded
from bcdlib.evaluation.published import TABLE_II
from bcdlib.plots import style
from bcdlib.runs.files import atomic_write
from bcdlib.runs.folder import Run
from bcdlib.trials import comparison

SHOWN = {
    "accuracy": "accuracy",
    "auc": "AUC",
    "slide_recognition": "slide recognition",
    "case_auc": "case AUC",
}
NOT_HERE = "Recorded on BreakHis: not shown beside images of your own."


def failures_text(run: Run) -> str:
    """`failures` as Markdown."""
    found = [f"- {html.escape(line)}" for line in comparison.failed_trials(run)]
    return "\n".join(["**Trials that failed:**", "", *found]) if found else "No trial failed."


def protocol_table(predictions: pd.DataFrame, found: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row a method and split, folds pooled, with 95 % intervals over cases and what each split shares.

    ``found`` is `bootstrap.interval_table` of the same predictions, if it is at hand.

    Returns
    -------
    DataFrame: method, split, images, slides, cases, folds, seeds, accuracy, AUC, slide recognition, case AUC (each with
    its interval, as text), what is shared
    """
    table = metrics.metrics_table(predictions)
    found = bootstrap.interval_table(predictions, tuple(SHOWN)) if found is None else found
    texts = found.assign(text=[bootstrap.interval_text(row) for row in found.itertuples()])
    texts = texts.pivot(index=["method", "split"], columns="figure", values="text")
    texts = texts.loc[pd.MultiIndex.from_frame(table[["method", "split"]])].reset_index()
    columns = ["method", "split", "images", "slides", "cases", "folds", "seeds"]
    return table[columns].assign(
        **{name: texts[figure] for figure, name in SHOWN.items()},
        **{"what is shared": table["split"].map(splits.describe_protocol)},
    )


def protocol_figure(predictions: pd.DataFrame, found: pd.DataFrame | None = None):
    """Accuracy and AUC of each method under each protocol with 95 % intervals: same pictures, same network.

    ``found`` as in `protocols`.
    """
    order = {name: place for place, name in enumerate(splits.PROTOCOLS)}
    found = (
        bootstrap.interval_table(predictions)
        if found is None
        else found[found["figure"].isin(("accuracy", "auc"))]
    )
    found = found.sort_values("split", key=lambda names: names.map(order), kind="stable")
    chance = max(predictions["label"].mean(), 1 - predictions["label"].mean())
    figure, axes = style.make_figure(1, 2, width=9, height=0.5 * len(found) / 2 + 1.7, sharey=True)
    limits = (("accuracy", chance, "always the larger class"), ("auc", 0.5, "chance"))
    for axis, (column, floor, what) in zip(axes, limits, strict=True):
        rows = found[found["figure"] == column].iloc[::-1].reset_index(drop=True)
        names = [
            f"{r.split}{_beside(found, r.method)}\n{r.images} images, {r.slides} slides, {r.cases} cases"
            for r in rows.itertuples()
        ]
        for method, colour in zip(found["method"].unique(), itertools.cycle(style.SERIES)):
            part = rows[rows["method"] == method]
            reach = [(part["value"] - part["low"]).clip(0), (part["high"] - part["value"]).clip(0)]
            axis.errorbar(
                part["value"], part.index, xerr=reach, fmt="o", color=colour, capsize=4, markersize=7
            )
        axis.set_yticks(range(len(rows)), names)
        for place, row in rows.iterrows():
            axis.annotate(
                f"{row['value']:.2f}", (row["value"], place), (0, 7), textcoords="offset points", ha="center"
            )
        axis.axvline(floor, color="black", linestyle=":", label=f"{what}, {floor:.2f}")
        axis.set(xlim=(0, 1.02), ylim=(-0.6, len(rows) - 0.2))
        axis.set_xlabel(f"{'AUC' if column == 'auc' else column} on test images")
        axis.legend(loc="lower left", fontsize=8)
    methods_text = ", ".join(dict.fromkeys(predictions["method"]))
    figure.supxlabel(
        f"{methods_text}; {_trials_text(predictions)}; 95 % intervals: bootstrap over cases\n"
        f"started from {metrics.weights_note(predictions)}",
        fontsize=8,
    )
    return style.finish_figure(figure)


def _beside(found: pd.DataFrame, method: str) -> str:
    return f", {method}" if found["method"].nunique() > 1 else ""


def _trials_text(predictions: pd.DataFrame) -> str:
    """Folds and seeds; by method where they differ."""
    counts = predictions.groupby("method", sort=False)[["fold", "seed"]].nunique()
    texts = {
        row.Index: f"{row.fold} fold{'s' * (row.fold > 1)} x {row.seed} seed{'s' * (row.seed > 1)}"
        for row in counts.itertuples()
    }
    alike = len(set(texts.values())) == 1
    return (
        next(iter(texts.values()))
        if alike
        else ", ".join(f"{method} {text}" for method, text in texts.items())
    )


def gap_text(predictions: pd.DataFrame) -> str:
    """A paragraph a method, in Markdown: accuracy by image against accuracy by case, with the paired interval.

    Only where both were measured for a method; empty if for none.
    """
    lines = []
    for method, part in predictions.groupby("method", sort=False):
        by_split = dict(list(part.groupby("split")))
        if {"image", "case"} <= set(by_split):
            accuracy = metrics.metrics_table(part).set_index("split")["accuracy"]
            paired = bootstrap.paired_difference(by_split["image"], by_split["case"])
            share = by_split["case"]["label"].mean()
            lines.append(
                f"**{html.escape(method)}: accuracy {accuracy['image']:.3f} with a split by image, "
                f"{accuracy['case']:.3f} with a split by case (always guessing the larger class: "
                f"{max(share, 1 - share):.3f}).** The difference, {paired['value']:+.3f} "
                f"(95 % interval {paired['low']:+.3f} to {paired['high']:+.3f}, "
                f"{paired['cases']} cases), is what recognising slides rather than disease is worth."
            )
    return "\n\n".join(lines)


def difference_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Method against method and protocol against protocol, paired, with Holm's correction: `bootstrap.comparison_table`."""
    return bootstrap.comparison_table(predictions)


def measured_tables(run: Run) -> list[pd.DataFrame]:
    """What was measured in this run so far: the predictions of 04_train, if it ran, and of every comparison."""
    trained = run.folder / "predictions.csv"
    return [
        *([metrics.read_predictions(trained)] if trained.is_file() else []),
        comparison.all_predictions(run),
    ]


def table_ii(*predictions: pd.DataFrame) -> pd.DataFrame:
    """Table II of the paper, each row with what it was measured on, and under each the rows that were measured here.

    Parameters
    ----------
    predictions : predictions tables, of 04_train, 06_compare, or made elsewhere

    Returns
    -------
    DataFrame: key, method, kind (published or measured), accuracy, low, high (percent; the 95 % interval over cases of
    measured rows), measured on, images, cases, weights. Methods in the order of their published accuracy, those without
    one first. Only the measured rows if an image is not BreakHis's (by its name): published numbers say nothing about
    other images.
    """
    measured = pd.concat([_measured(table) for table in predictions], ignore_index=True)
    published = TABLE_II.assign(method=TABLE_II["research"] + ": " + TABLE_II["method"], kind="published")[
        ["key", "method", "kind", "accuracy", "measured on"]
    ]
    order = published.set_index("key")["accuracy"].reindex(measured["key"].unique()).fillna(100)
    table = measured
    if all(breakhis.is_breakhis(made) for made in predictions):
        order = published.set_index("key")["accuracy"].combine_first(order)
        table = pd.concat([published, measured], ignore_index=True)
    table = table.assign(order=table["key"].map(order), published=table["kind"] == "published")
    table = table.sort_values(
        ["order", "key", "published", "accuracy"], ascending=[False, True, False, False]
    )
    return table.drop(columns=["order", "published"]).reset_index(drop=True)


def _measured(predictions: pd.DataFrame) -> pd.DataFrame:
    table = metrics.metrics_table(predictions)
    sure = bootstrap.interval_table(predictions, ("accuracy",))
    table["key"] = table["method"].map(_key)
    place = "here, drawn tissue" if breakhis.is_synthetic(predictions) else "here"
    table["measured on"] = [f"{place}: {_protocol_label(row)}" for _, row in table.iterrows()]
    table[["accuracy", "low", "high"]] = 100 * sure[["value", "low", "high"]].to_numpy()
    columns = [
        "key",
        "method",
        "kind",
        "accuracy",
        "low",
        "high",
        "measured on",
        "images",
        "cases",
        "weights",
    ]
    return table.assign(kind="measured").reindex(columns=columns)


def _key(label: str) -> str:
    """The method's row in Table II; its own label if it has none there."""
    return next((key for key in TABLE_II["key"] if label == key or label.startswith(key + "-")), label)


def _protocol_label(row) -> str:
    folds = f"{row['folds']} fold{'s' if row['folds'] > 1 else ''}"
    return f"split {row['split']}, {folds}, {row['images']} test images of {row['cases']} cases"


def table_ii_figure(table: pd.DataFrame):
    """Table II as bars, a group a method: published, and under it what was measured, the protocol of each in its label."""
    table = table.iloc[::-1].reset_index(drop=True)
    places = table.index + 0.6 * (table["key"] != table["key"].shift()).cumsum()  # a gap between methods
    figure, axis = style.make_figure(width=9, height=0.45 * (places.max() + 1) + 1.2)
    published = table["kind"] == "published"
    colours = [style.PUBLISHED if printed else style.MEASURED for printed in published]
    names = [f"{row['method']}\n({row['measured on']})" for _, row in table.iterrows()]
    axis.barh(places, table["accuracy"], color=colours, height=0.85)
    axis.errorbar(
        table["accuracy"],
        places,
        fmt="none",
        ecolor="black",
        capsize=2,
        lw=1,
        xerr=[(table["accuracy"] - table["low"]).clip(0), (table["high"] - table["accuracy"]).clip(0)],
    )
    for place, row in zip(places, table.itertuples(), strict=True):
        axis.text(1, place, f"{row.accuracy:.1f}", va="center", fontsize=8, color="white", weight="bold")
    axis.set_yticks(places, names, fontsize=7)
    axis.set(
        xlim=(0, 102),
        ylim=(0, places.max() + 0.6),
        xlabel="accuracy (%), measured with 95 % interval over cases"
        + "\npublished numbers rest on different splits and tasks" * bool(published.any()),
    )
    axis.xaxis.set_major_locator(matplotlib.ticker.MultipleLocator(20))
    handles = [
        axis.barh([0], [0], color=c, label=k)
        for k, c in (("published", style.PUBLISHED), ("measured here", style.MEASURED))[not published.any() :]
    ]
    axis.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=8)
    weights = table["weights"].dropna()
    if len(weights):
        note = "measured here: started from " + "; ".join(dict.fromkeys(weights))
        figure.supxlabel(textwrap.fill(note, 150), fontsize=7)
    return style.finish_figure(figure)


def recordings() -> list[str]:
    """Names of the results that were recorded on real images; see `recorded`."""
    return recorded.recorded_names()


def recorded_protocol_table(name: str, run: Run | None = None) -> pd.DataFrame:
    """`protocols` of a recording, from its stored figures.

    Here and below: nothing for a ``run`` of other images than BreakHis's, for which these figures say nothing.
    """
    found = recorded.read_recording(name)
    table = protocol_table(found.predictions, found.figures)
    return table if _of_breakhis(run) else table.iloc[:0]


def recorded_protocol_figure(name: str, run: Run | None = None):
    """`protocol_figure` of a recording, from its stored figures."""
    found = recorded.read_recording(name)
    return (
        protocol_figure(found.predictions, found.figures)
        if _of_breakhis(run)
        else style.note_figure(NOT_HERE)
    )


def save_recorded_figure(name: str) -> None:
    """Store a recording's figure beside it, for the README: protocols, or differences where there is one protocol."""
    figure = (
        recorded_protocol_figure
        if len(recorded.read_recording(name).predictions["split"].unique()) > 1
        else recorded_difference_figure
    )
    with atomic_write(recorded.recorded_folder() / f"{name}.png") as temporary:
        figure(name).savefig(temporary, dpi=110)


def recorded_note(name: str, run: Run | None = None) -> str:
    """Markdown: what a recording was made from, and the commands that repeat it."""
    facts = recorded.read_recording(name).facts
    return "\n".join(
        [f"Started from: {facts['weights']}. To repeat it:", "", "```", *facts["commands"], "```"]
        if _of_breakhis(run)
        else [NOT_HERE]
    )


def _of_breakhis(run: Run | None) -> bool:
    return run is None or breakhis.is_breakhis(run.images())


def recorded_differences(name: str) -> pd.DataFrame:
    """A recording's methods against the one that it names, paired by image and seed, with 95 % intervals over cases."""
    return recorded.read_recording(name).differences


def recorded_difference_figure(name: str, run: Run | None = None, shown=("auc", "case_auc")):
    """What each change is worth: a recording's paired differences with their intervals, a panel a figure."""
    if not _of_breakhis(run):
        return style.note_figure(NOT_HERE)
    found = recorded.read_recording(name)
    rows = found.differences[found.differences["figure"].isin(shown)].copy()
    several = rows["split"].nunique() > 1
    rows["label"] = [
        _short(row.first, row.second) + (f", {row.split}" if several else "") for row in rows.itertuples()
    ]
    order = rows.loc[rows["figure"] == shown[0]].sort_values("value", kind="stable")["label"].tolist()
    figure, axes = style.make_figure(1, len(shown), width=10, height=0.28 * len(order) + 1.6, sharey=True)
    for axis, name_ in zip(axes, shown, strict=True):
        part = rows[rows["figure"] == name_].set_index("label").loc[order]
        reach = [(part["value"] - part["low"]).clip(0), (part["high"] - part["value"]).clip(0)]
        axis.errorbar(part["value"], range(len(part)), xerr=reach, fmt="o", color=style.MEASURED, capsize=3)
        axis.axvline(0, color="black", linestyle=":")
        axis.set_yticks(range(len(part)), order, fontsize=8)
        axis.set_xlabel(f"{SHOWN[name_]}, difference from {found.facts['against']}")
    table = metrics.metrics_table(found.predictions)
    size = f"{table['images'].max()} images, {table['slides'].max()} slides, {table['cases'].max()} cases"
    figure.supxlabel(
        f"{size}; split {', '.join(rows['split'].unique())}; {_trials_text(found.predictions)}; paired 95 % "
        f"intervals: bootstrap over cases\nstarted from {metrics.weights_note(found.predictions)}",
        fontsize=8,
    )
    return style.finish_figure(figure)


def _short(label: str, base: str) -> str:
    """What is changed, if a label is the base's with something behind it."""
    return label.removeprefix(f"{base}-")
