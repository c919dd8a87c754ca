"""The command line: ``python -m bcdlib COMMAND``. Exit status 0, 1 if a notebook failed, 2 on bad input."""

import os
import sys
from pathlib import Path

os.environ.setdefault(
    "TF_CPP_MIN_LOG_LEVEL", "2"
)  # TensorFlow's start-up notes would bury the one line that counts

if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "20")  # a log file wants a line now and then, not ten a second

import click

from bcdlib import __version__
from bcdlib.errors import InputError, printable
from bcdlib.runs.files import explain_disk_errors

# Imports of Keras and papermill stand in the commands: `audit` and `--help` must not wait seconds for them.

data_option = click.option(
    "--data",
    default="synthetic",
    show_default=True,
    help="Folder or archive of BreakHis, or 'synthetic' (drawn tissue).",
)
manifest_option = click.option(
    "--manifest",
    default="",
    help="CSV (path, label, group) that names the images in --data, if they are your own and not BreakHis's.",
)
seed_option = click.option("--seed", default=0, show_default=True, help="Seed of every random choice.")
out_option = click.option("--out", default=None, help="Run folder.  [default: runs/<data>-<profile>]")
weights_option = click.option(
    "--weights",
    default=None,
    help="'imagenet', 'none', or a folder with <architecture>_notop.weights.h5.  [default: $BCD_WEIGHTS_DIR or imagenet]",
)
strict_option = click.option(
    "--strict", is_flag=True, help="Stop if an image has to be left out, with exit status 2."
)
scheduler_option = click.option(
    "--scheduler",
    default="none",
    show_default=True,
    help="Where work is done: none (this process), local:N (N processes), tcp://host:port or a Dask scheduler file.",
)
profile_option = click.option("--profile", default="demo", show_default=True, help="demo, quick or paper.")


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main():
    """Breast cancer diagnosis on BreakHis: the paper's system, its rivals, and what "99 %" is worth."""


@main.command()
@data_option
@manifest_option
@profile_option
@out_option
@click.option(
    "--only", multiple=True, help="Run this notebook only (for example 05_evaluate); may be repeated."
)
@click.option("--method", default="resnet50", show_default=True, help="What 04_train trains.")
@click.option(
    "--sweep",
    default="",
    help="YAML file of notebook parameters, each with a value or a list: 04_train and "
    "05_evaluate for every combination, and one table, sweep.csv.",
)
@scheduler_option
@strict_option
@seed_option
@weights_option
def run(data, manifest, profile, out, only, method, sweep, scheduler, strict, seed, weights):
    """Execute the six notebooks; write report.html and summary.json."""
    from bcdlib import methods, mount
    from bcdlib.suite import run
    from bcdlib.suite import sweep as sweeping
    from bcdlib.trials import cluster, notebook

    methods.method_settings(method)
    cluster.check_scheduler(scheduler)
    if scheduler != "none" and not sweep:
        raise InputError(
            f"--scheduler {scheduler}: without --sweep there is one piece of work; compare knows it too"
        )
    if sweep and only:
        raise InputError(
            f"--only {only[0]}: does not go with --sweep, which runs {' and '.join(sweeping.SWEEP_STAGES)}"
        )
    given = sweeping.read_sweep(sweep) if sweep else {}
    folder = mount.open_run(out, data, "sweep" if sweep else profile)
    if not sweep:
        run.check_inputs(data, profile, weights, only=only, seed=seed, manifest=manifest)
    # the notebooks stand elsewhere: a path that is relative to here must not become relative to there
    place = data if data == "synthetic" else str(Path(data).expanduser().absolute())
    manifest = mount.find_manifest(data, manifest)
    weights = (
        str(Path(weights).expanduser().absolute()) if weights and Path(weights).is_dir() else weights or ""
    )
    if os.environ.get("BCD_WEIGHTS_DIR"):
        os.environ["BCD_WEIGHTS_DIR"] = str(Path(os.environ["BCD_WEIGHTS_DIR"]).expanduser().absolute())
    parameters = {
        "data": place,
        "manifest": manifest,
        "profile": profile,
        "out": str(folder.folder),
        "seed": seed,
        "weights": weights,
        "method": methods.absolute_name(method),
        "strict": strict,
    }
    if sweep:
        return _sweep(folder, given, parameters, scheduler)
    try:
        summary = run.run_suite(folder, parameters, only)
    except notebook.StageError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(1) from None
    click.echo(run.result_lines(summary))
    click.echo(f"Report: {folder.folder / 'report.html'}")


def _sweep(folder, given, parameters, scheduler):
    from bcdlib.suite import sweep

    table = sweep.run_sweep(folder, given, parameters, scheduler=scheduler)
    click.echo(sweep.sweep_text(table, given))
    click.echo(f"Table: {folder.folder / 'sweep.csv'}")
    for line in (failed := sweep.failed_combinations(table)):
        click.echo(f"Failed: {line}", err=True)
    if failed:
        raise SystemExit(1)


@main.command()
@click.argument("source")
def verify(source):
    """Hold a copy of BreakHis against data_manifest.csv: missing, extra, unreadable, sizes. (Not for other images.)"""
    from bcdlib.data import checks, sources

    found = checks.verify_copy(sources.open_source(source))
    click.echo(found.counts().to_string())
    totals = found.summary()
    click.echo(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in totals.items()))
    for row in found.wrong_size.head(20).itertuples():
        click.echo(f"not 700x460: {row.filename} is {row.width}x{row.height}")
    if len(found.wrong_size) > 20:
        click.echo(f"not 700x460: and {len(found.wrong_size) - 20} more")
    for row in found.images[found.images["status"] == "unreadable"].itertuples():
        click.echo(f"unreadable: {row.filename}: {printable(row.reason)}")
    others = [
        f"{path}: {why}"
        for path, why in found.scan.reasons
        if path not in {*found.scan.not_breakhis, *found.scan.duplicates}
    ]
    kinds = (
        ("not a BreakHis name", found.scan.not_breakhis),
        ("second copy, not used", found.scan.duplicates),
        ("left out", others),
    )
    for kind, names in kinds:
        for name in names[:20]:
            click.echo(f"{kind}: {printable(name)}")
    click.echo("partial copy: usable" if found.partial else "complete")


@main.command()
@click.option(
    "--data",
    default=None,
    help="Folder or archive; its images are compared too.  [default: data_manifest.csv]",
)
@manifest_option
@click.option(
    "--split", default=None, help="A protocol, or a CSV with filename, role and perhaps fold.  [default: all]"
)
@click.option("--folds", default=5, show_default=True)
@seed_option
@click.option("--json", "as_json", is_flag=True, help="JSON for machines.")
def audit(data, manifest, split, folds, seed, as_json):
    """Who leaks into whose test set: images, slides, cases and near-duplicates on both sides of a split."""
    import json

    from bcdlib.data import breakhis, checks

    images, cache = breakhis.known_images(), None
    if data is not None or manifest:
        from bcdlib import mount
        from bcdlib.data import custom
        from bcdlib.data.cache import build_cache
        from bcdlib.runs import places, profiles

        manifest = mount.find_manifest(data or "", manifest)
        source = mount.find_data(data, seed=seed)
        images = (custom.scan_custom(manifest, source) if manifest else breakhis.scan_breakhis(source)).images
        cache = build_cache(source, images, profiles.get_profile("paper").size, root=places.cache_root())
    rows = checks.audit_splits(images, split, cache, folds=folds, seed=seed)
    click.echo(json.dumps(rows, indent=2) if as_json else "\n".join(checks.audit_lines(rows)))


@main.command()
@data_option
@manifest_option
@profile_option
@out_option
@click.option("--methods", default="resnet50", show_default=True, help="Comma-separated, or 'all'.")
@click.option("--splits", default="", help="Comma-separated.  [default: all that the data allow]")
@click.option(
    "--folds", type=int, default=None, help="Folds of image, slide and case.  [default: the profile's]"
)
@click.option("--seeds", default=1, show_default=True, help="How many seeds, from --seed on.")
@click.option("--trainable", type=click.Choice(["head", "all"]), default="head", show_default=True)
@click.option(
    "--task",
    type=click.Choice(["binary", "subtype"]),
    default="binary",
    show_default=True,
    help="Benign or malignant, or the eight tumour types.",
)
@click.option(
    "--stain",
    type=click.Choice(["macenko", "reinhard", "none"]),
    default=None,
    help="Stain normalisation.  [default: the method's own]",
)
@click.option(
    "--choose", is_flag=True, help="Also choose among the methods inside each training part: row 'chosen'."
)
@scheduler_option
@click.option(
    "--store",
    default="",
    help="Folder or URL (gs://, s3://) where finished trials are kept and looked for too.",
)
@click.option("--keep-models", is_flag=True, help="Store each trial's model, with its card.")
@click.option(
    "--notebooks", is_flag=True, help="Store with each trial 04_train, executed, as its record: trial.ipynb."
)
@strict_option
@seed_option
@weights_option
def compare(
    data,
    manifest,
    profile,
    out,
    methods,
    splits,
    folds,
    seeds,
    trainable,
    task,
    stain,
    choose,
    scheduler,
    store,
    keep_models,
    notebooks,
    strict,
    seed,
    weights,
):
    """Run methods under protocols; trials that are finished already are not run again.

    A method's own settings may be changed behind its name: robust:stages=4:C=0.1
    """
    import pandas as pd

    from bcdlib import compare as comparing
    from bcdlib import methods as registry
    from bcdlib import mount, preprocess
    from bcdlib.runs import profiles
    from bcdlib.suite import run
    from bcdlib.trials import cluster, comparison

    cluster.check_scheduler(scheduler)
    settings = profiles.get_profile(profile, folds=folds)
    for name in (names := _names(methods)):
        if name != "all":
            registry.method_settings(name)
    folder = mount.open_run(out, data, profile)
    made = run.prepare_run(folder, settings, data, manifest=manifest, strict=strict, seed=seed)
    predictions = comparison.run_comparison(
        folder,
        settings,
        method_names=names,
        split_names=_names(splits),
        seeds=range(seed, seed + seeds),
        trainable=trainable,
        weights=weights,
        task=task,
        stain=stain,
        keep_models=keep_models,
        scheduler=scheduler,
        store=store,
        notebooks=notebooks,
    )
    if choose:
        chosen = comparison.choose_methods(
            folder,
            settings,
            method_names=names,
            split_names=_names(splits),
            seeds=range(seed, seed + seeds),
            trainable=trainable,
            weights=weights,
        )
        predictions = pd.concat([predictions, chosen], ignore_index=True)
    click.echo(comparing.protocol_table(predictions).drop(columns="what is shared").to_string(index=False))
    if preprocess.splits_note(made):
        click.echo(preprocess.splits_note(made).strip("*"))
    click.echo(f"Table: {folder.folder / 'comparison.csv'}")
    for line in comparison.failed_trials(folder):
        click.echo(f"Failed: {line}", err=True)
    if comparison.failed_trials(folder):
        raise SystemExit(1)


@main.command()
@click.argument("predictions")
@click.option(
    "--validation",
    default="",
    help="Predictions table of the validation part, for threshold and calibration.",
)
@click.option(
    "--rule",
    default="youden",
    show_default=True,
    help="How validation sets the threshold: youden, sensitivity.",
)
@click.option(
    "--sensitivity", default=0.95, show_default=True, help="That is wished for, with --rule sensitivity."
)
@click.option("--calibration", default="temperature", show_default=True, help="temperature, platt or none.")
@click.option(
    "--out", default=None, help="Folder of the report.  [default: runs/evaluate-<name of the table>]"
)
def evaluate(predictions, validation, rule, sensitivity, calibration, out):
    """The full report for any model's predictions table: 05_evaluate on it, and report.html."""
    from bcdlib import mount
    from bcdlib.evaluation import metrics, thresholds
    from bcdlib.suite import run
    from bcdlib.trials import notebook

    table = metrics.read_predictions(predictions)
    thresholds.lock_thresholds(
        metrics.read_predictions(validation) if validation else table[:0],
        rule,
        sensitivity,
        calibration=calibration,
    )
    folder = mount.open_run(out, f"{Path(predictions).stem}", "evaluate")
    folder.record(data=str(Path(predictions).absolute()), profile="predictions made elsewhere")
    paths = {
        "predictions": str(Path(predictions).absolute()),
        "validation": str(Path(validation).absolute()) if validation else "",
    }
    parameters = paths | {
        "rule": rule,
        "sensitivity": sensitivity,
        "calibration": calibration,
        "out": str(folder.folder),
    }
    try:
        summary = run.run_suite(folder, parameters, ("05_evaluate",))
    except notebook.StageError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(1) from None
    click.echo(run.result_lines(summary))
    click.echo(f"Report: {folder.folder / 'report.html'}")


@main.command()
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="JSON for machines.")
def predict(model, images, as_json):
    """Classify pictures (or folders, archives) with a saved model. For research and teaching, not a medical device."""
    from bcdlib import evaluate as evaluating

    table = evaluating.predict_files(model, images, progress=True)
    click.echo(evaluating.as_json(table) if as_json else table.to_string(index=False))


@main.command()
@click.argument("name")
@click.argument("runs", nargs=-1, required=True)
@click.option("--pretrained", required=True, help="What the pre-trained networks started from, in words.")
@click.option(
    "--command", "commands", multiple=True, help="What a reader types to repeat it; may be repeated."
)
@click.option(
    "--against", default="resnet50-head", show_default=True, help="The method that others are held against."
)
def record(name, runs, pretrained, commands, against):
    """Store the comparisons of run folders under notebooks/recorded (small tables and their figure, no images)."""
    import pandas as pd

    from bcdlib import compare as comparing
    from bcdlib.evaluation import metrics, recorded
    from bcdlib.runs import folder

    tables = [metrics.read_predictions(Path(run) / "comparison_predictions.csv") for run in runs]
    table = pd.concat(tables).drop_duplicates([*folder.TRIAL_COLUMNS, "filename"], ignore_index=True)
    recorded.write_recording(name, table, pretrained, commands=list(commands), against=against)
    comparing.save_recorded_figure(name)
    click.echo(f"recorded {name}: {len(table)} predictions")


@main.command()
def stamp():
    """Write the repository's address (bcdlib/__init__.py) into the notebooks and the README."""
    from bcdlib.suite import stamp as stamping

    for path in stamping.stamp_notebooks(Path(__file__).resolve().parent.parent):
        click.echo(f"stamped {path}")


def exit_in_one_line(command) -> None:
    """Run a click command; turn a user's mistake into one line on stderr and exit status 2."""
    try:
        with explain_disk_errors("results"):  # where no file of ours is named
            command()
    except InputError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


def cli() -> None:
    """Run the command line (the entry point of ``bcdlib``)."""
    exit_in_one_line(main)


if __name__ == "__main__":
    cli()
