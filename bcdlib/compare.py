"""All methods under one protocol, one method under all protocols, and the published numbers beside the measured."""

from collections.abc import Iterable

import matplotlib.ticker
import pandas as pd
from tqdm import tqdm

from bcdlib import manifest, methods, metrics, paper, pixels, splits, style, trials
from bcdlib.errors import InputError
from bcdlib.profiles import Profile
from bcdlib.runs import Run, write_csv


def run_trials(run: Run, profile: Profile, method_names: Iterable[str] = ("resnet50",), split_names: Iterable[str] = (),
               seeds: Iterable[int] = (0,), trainable: str = "head", weights: str | None = None,
               progress: bool = True) -> pd.DataFrame:
    """Every method x split x fold x seed; trials that are finished already are read, not run.

    Writes ``comparison_predictions.csv`` and ``comparison.csv`` into the run.

    Parameters
    ----------
    split_names : protocols; empty means those of the profile's ``compare_splits`` that 02_preprocess could make.
    trainable : "head" (features of the frozen base once, then seconds a trial) or "all"

    Returns
    -------
    DataFrame, the predictions of all trials.

    Raises
    ------
    InputError
        Unknown method or split, or a split that these images do not allow. Any other failure of a trial is kept in
        ``comparison.csv`` (column ``error``) and does not stop the others; if all fail, the first error is raised.
    """
    cache = pixels.cache_of(run)
    tables = _split_tables(run, profile, tuple(split_names))
    planned = [
        trials.Trial(method, name, table, int(fold), seed, trainable)
        for method in dict.fromkeys(method_names)
        if methods.get(method)
        for seed in seeds
        for name, table in tables.items()
        for fold in sorted(table["fold"].unique())
    ]
    done, failed, shared = [], [], {}
    with tqdm(planned, desc="Compare", unit="trial", disable=not progress) as bar:
        for trial in bar:
            bar.set_postfix_str(f"{trial.label}, {trial.split}, fold {trial.fold}")
            try:
                result = trials.run(trial, cache, profile, run.folder / "trials", weights, 0, False, shared)
                done.append(result.predictions)
            except InputError:
                raise
            except Exception as error:  # one method's failure must not cost the others' hours
                failed.append((trial, error))
    if not done:
        raise failed[0][1]
    predictions = pd.concat(done, ignore_index=True)
    errors = [{"method": t.label, "split": t.split, "error": f"fold {t.fold}, seed {t.seed}: {e}"} for t, e in failed]
    write_csv(run.folder / "comparison_predictions.csv", predictions)
    write_csv(run.folder / "comparison.csv", pd.concat([metrics.table(predictions), pd.DataFrame(errors)]))
    return predictions


def _split_tables(run: Run, profile: Profile, names: tuple[str, ...]) -> dict[str, pd.DataFrame]:
    unknown = [name for name in names if name not in splits.PROTOCOLS]
    if unknown:
        raise InputError(f"unknown split {unknown[0]!r}; known are {', '.join(splits.PROTOCOLS)}")
    if not names:
        names = [name for name in profile.compare_splits if (run.folder / "splits" / f"{name}.csv").is_file()]
    return {name: splits.read(run, name) for name in names}


def protocols(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row a method and split, folds pooled, with what each split shares between training and test."""
    table = metrics.table(predictions)
    return table.assign(**{"what is shared": table["split"].map(splits.PROTOCOLS)})


def protocol_figure(predictions: pd.DataFrame):
    """Accuracy and AUC of each method under each protocol: the same pictures and the same network in every row."""
    table = metrics.table(predictions).iloc[::-1]
    names = [f"{r['method']}, {r['split']}\n{r['images']} images, {r['cases']} cases" for _, r in table.iterrows()]
    chance = max(predictions["label"].mean(), 1 - predictions["label"].mean())
    figure, axes = style.subplots(1, 2, width=9, height=0.55 * len(table) + 1.4, sharey=True)
    for axis, column, floor, what in ((axes[0], "accuracy", chance, "the larger class"), (axes[1], "auc", 0.5, "chance")):
        bars = axis.barh(names, table[column], color=style.MEASURED)
        axis.bar_label(bars, fmt="%.2f", padding=3)
        axis.axvline(floor, color="black", linestyle=":", label=f"{what}, {floor:.2f}")
        axis.set(xlim=(0, 1.08), xlabel=f"{'AUC' if column == 'auc' else column} on test images")
        axis.legend(loc="lower right", fontsize=8)
    figure.supxlabel("started from " + metrics.weights_note(predictions), fontsize=8)
    return style.finish(figure)


def gap(predictions: pd.DataFrame) -> str:
    """A sentence in bold Markdown: accuracy by image against accuracy by case, and the share of the larger class.

    Only where both were measured for a method; empty if for none.
    """
    lines = []
    for method, part in metrics.table(predictions).groupby("method", sort=False):
        accuracy = part.set_index("split")["accuracy"]
        if {"image", "case"} <= set(accuracy.index):
            share = predictions.loc[predictions["split"] == "case", "label"].mean()
            lines.append(
                f"**{method}: accuracy {accuracy['image']:.3f} with a split by image, {accuracy['case']:.3f} with a split "
                f"by case (always guessing the larger class: {max(share, 1 - share):.3f}).** The difference, "
                f"{accuracy['image'] - accuracy['case']:+.3f}, is what recognising slides rather than disease is worth."
            )
    return "\n\n".join(lines)


def table_ii(*predictions: pd.DataFrame) -> pd.DataFrame:
    """Table II of the paper, each row with what it was measured on, and our measured rows beside it.

    Parameters
    ----------
    predictions : predictions tables, of 04_train, 06_compare, or made elsewhere

    Returns
    -------
    DataFrame: method, accuracy (percent), kind (published or measured), measured on, images, cases, weights. Only the
    measured rows if an image is not BreakHis's (by its name): published numbers say nothing about other images.
    """
    published = paper.TABLE_II.assign(
        method=paper.TABLE_II["research"] + ": " + paper.TABLE_II["method"], kind="published"
    )[["method", "accuracy", "kind", "measured on"]]
    measured = pd.concat([metrics.table(table) for table in predictions], ignore_index=True)
    measured["measured on"] = [_protocol_label(row) for _, row in measured.iterrows()]
    measured["accuracy"] *= 100
    measured["kind"] = "measured"
    columns = ["method", "accuracy", "kind", "measured on", "images", "cases", "weights"]
    table = measured.reindex(columns=columns)
    if all(manifest.is_breakhis(made) for made in predictions):
        table = pd.concat([published, table], ignore_index=True)
    return table.sort_values("accuracy", ascending=False, ignore_index=True)


def _protocol_label(row) -> str:
    folds = f"{row['folds']} fold{'s' if row['folds'] > 1 else ''}"
    return f"here: split {row['split']}, {folds}, {row['images']} test images of {row['cases']} cases"


def table_ii_figure(table: pd.DataFrame):
    """Table II as bars, published and measured in two colours, the protocol of each in its label."""
    table = table.iloc[::-1]
    figure, axis = style.subplots(width=9, height=0.48 * len(table) + 1.2)
    colours = [style.MEASURED if kind == "measured" else style.PUBLISHED for kind in table["kind"]]
    names = [f"{row['method']}\n({row['measured on']})" for _, row in table.iterrows()]
    bars = axis.barh(range(len(table)), table["accuracy"], color=colours)
    axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axis.set_yticks(range(len(table)), names, fontsize=7)
    published = bool((table["kind"] == "published").any())
    axis.set(xlim=(0, 108), xlabel="accuracy (%)" + "; published numbers rest on different splits and tasks" * published)
    axis.xaxis.set_major_locator(matplotlib.ticker.MultipleLocator(20))
    handles = [axis.barh([0], [0], color=c, label=k) for k, c in
               (("published", style.PUBLISHED), ("measured here", style.MEASURED))[not published :]]
    axis.legend(handles=handles, loc="lower right", fontsize=8)
    weights = table["weights"].dropna()
    if len(weights):
        figure.supxlabel("measured here: started from " + "; ".join(dict.fromkeys(weights)), fontsize=8)
    return style.finish(figure)
