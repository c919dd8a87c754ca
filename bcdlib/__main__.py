"""The command line: ``python -m bcdlib COMMAND``. Exit status 0, 1 if a notebook failed, 2 on bad input."""

import contextlib
import errno
import json
import os
import shlex
import sys
from pathlib import Path

# TensorFlow's start-up notes would bury the one line that counts
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "20")  # a log file wants a line now and then, not ten a second

import click

from bcdlib import __version__
from bcdlib.errors import LAST_SEED, InputError, StageError, TerminalText, printable, split_words
from bcdlib.runs import noise

# All other imports stand in the commands: `--help` must not wait for pandas, nor `audit` for Keras.

data_option = click.Option(
    ["--data"],
    default="synthetic",
    show_default=True,
    help="Folder or archive of BreakHis, 'kaggle' (fetched from there), or 'synthetic' (drawn tissue).",
)
manifest_option = click.Option(
    ["--manifest"],
    default="",
    help="CSV (path, label, group) that names the images in --data, if they are your own and not BreakHis's; "
    "others are not used.",
)
seed_option = click.Option(
    ["--seed"],
    type=click.IntRange(0, LAST_SEED),
    default=0,
    show_default=True,
    help="Seed of every random choice.",
)
weights_option = click.Option(
    ["--weights"],
    default=None,
    help="'imagenet', 'none', or a folder with <architecture>_notop.weights.h5.  "
    "[default: $BCD_WEIGHTS_DIR or imagenet]",
)
json_option = click.Option(["--json", "as_json"], is_flag=True, help="JSON for machines.")


def _go_on_anyway(context, option, given: bool) -> None:
    if given:
        os.environ["BCD_ANYWAY"] = "1"  # the notebooks' kernels and the workers read it


training_options = (  # those that ``run`` and ``compare`` share
    data_option,
    manifest_option,
    click.Option(
        ["--profile"],
        default="demo",
        show_default=True,
        help="demo (small images, minutes), quick (4 passes, for a laptop) or paper (200 epochs of 200 "
        "steps, as published: wants a GPU).",
    ),
    click.Option(["--out"], default=None, help="Run folder.  [default: runs/<data>-<profile>]"),
    click.Option(
        ["--scheduler"],
        default="none",
        show_default=True,
        help="Where work is done: none (this process), local:N (N processes), tcp://host:port "
        "or a Dask scheduler file.",
    ),
    click.Option(["--strict"], is_flag=True, help="Stop if an image has to be left out, with exit status 2."),
    click.Option(
        ["--anyway"],
        is_flag=True,
        expose_value=False,
        callback=_go_on_anyway,
        help="Train with profile paper on a CPU too, however long it takes.",
    ),
    seed_option,
    weights_option,
)


FINAL = (
    "Also train on all images, for use elsewhere: threshold, calibration and figures of this final model "
    "come from cross-validation under the strictest split."
)


def _print_failed(lines: list[str]) -> None:
    for line in lines:
        click.echo(f"Failed: {line}", err=True)
    if lines:
        raise SystemExit(1)


def _run_notebooks(opened, parameters: dict, only: tuple[str, ...], **options) -> None:
    from bcdlib.suite import report, run

    click.echo(report.result_lines(run.run_suite(opened, parameters, only, **options)))
    click.echo(f"Report: {opened.folder / 'report.html'}")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main():
    """Breast cancer diagnosis on BreakHis: the paper's system, its rivals, and what "99 %" is worth."""
    from bcdlib.runs import environment

    environment.check_backend()


@main.command(params=[*training_options])
@click.option(
    "--only", multiple=True, help="Run this notebook only (for example 05_evaluate); may be repeated."
)
@click.option("--method", default="resnet50", show_default=True, help="What 04_train trains.")
@click.option(
    "--sweep",
    "sweep_file",
    default="",
    help="YAML file of notebook parameters, each with a value or a list: 04_train and "
    "05_evaluate for every combination, and one table, sweep.csv.",
)
@click.option("--final", is_flag=True, help=FINAL)
def run(out, only, sweep_file, scheduler, final, **parameters):
    """Execute the six notebooks; write report.html and summary.json."""
    if final and (sweep_file or only and "04_train" not in only):
        raise InputError("--final: 04_train makes the final model; goes neither with --sweep nor without it")
    from bcdlib import mount
    from bcdlib.suite import run, sweep
    from bcdlib.trials import cluster

    if scheduler != "none" and not sweep_file:  # before anything that it needs is asked for
        raise InputError(
            f"--scheduler {scheduler}: without --sweep there is one piece of work; compare knows it too"
        )
    cluster.check_scheduler(scheduler)
    if sweep_file and only:
        raise InputError(
            f"--only {only[0]}: does not go with --sweep, which runs {' and '.join(sweep.SWEEP_STAGES)}"
        )
    given = sweep.read_sweep(sweep_file) if sweep_file else {}
    parameters = run.absolute_parameters(parameters)
    opened = mount.open_run(out, parameters["data"], "sweep" if sweep_file else parameters["profile"])
    if sweep_file:
        table = sweep.run_sweep(opened, given, parameters, scheduler=scheduler)
        click.echo(sweep.sweep_text(table, given))
        click.echo(f"Table: {opened.folder / 'sweep.csv'}")
        _print_failed(sweep.failed_combinations(table))
    else:
        run.check_inputs(parameters, only)
        _run_notebooks(opened, parameters | {"out": str(opened.folder)}, only, final=final)


@main.command()
@click.argument("source")
def verify(source):
    """Compare a copy of BreakHis with data_manifest.csv: missing, extra and unreadable images, other sizes.

    For BreakHis only, not for images of your own.
    """
    from bcdlib.data import checks, sources

    found = checks.verify_copy(sources.open_source(source))
    click.echo(found.counts().to_string())
    click.echo(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in found.summary().items()))
    named = {*found.scan.not_breakhis, *found.scan.duplicates}
    kinds = {
        "not 700x460": [
            f"{row.filename} is {row.width}x{row.height}" for row in found.wrong_size.itertuples()
        ],
        "unreadable": [
            f"{row.filename}: {row.reason}"
            for row in found.images.query("status == 'unreadable'").itertuples()
        ],
        "not a BreakHis name": found.scan.not_breakhis,
        "second copy": found.scan.duplicates,
        "left out": [f"{path}: {why}" for path, why in found.scan.reasons if path not in named],
    }
    for kind, lines in kinds.items():
        most = len(lines) if kind == "unreadable" else 20
        for line in lines[:most]:
            click.echo(f"{kind}: {printable(line)}")
        if len(lines) > most:
            click.echo(f"{kind}: and {len(lines) - most} more")
    counts = found.summary()
    if not counts["present"] + counts["extra"]:
        raise InputError(f"{source}: no image with a BreakHis name can be read there")
    click.echo("partial copy: usable" if found.partial else "complete")


@main.command(
    params=[
        click.Option(
            ["--data"],
            default=None,
            help="Folder or archive; its images are compared too.  [default: data_manifest.csv]",
        ),
        manifest_option,
        click.Option(
            ["--split"],
            default=None,
            help="A protocol, a published split (eva, thunder, ...), 'published' for a table of these, or a "
            "CSV with filename, role and perhaps fold.  [default: all protocols]",
        ),
        click.Option(["--folds"], type=click.IntRange(2, 100), default=5, show_default=True),
        seed_option,
        json_option,
    ]
)
def audit(data, manifest, split, folds, seed, as_json):
    """Report what leaks into test sets: images, slides, cases, near-duplicates on both sides of a split.

    Names in a split table are matched by their BreakHis stem: folders in front, another suffix or lower case
    do not matter.
    """
    from bcdlib.data import published_splits

    if split == "published":
        rows = published_splits.published_table().to_dict("records")
        click.echo(json.dumps(rows, indent=2) if as_json else "\n".join(published_splits.published_lines()))
        return
    from bcdlib.data import breakhis, checks

    images, pixels = breakhis.known_images(), None
    if data is not None or manifest:
        from bcdlib import mount
        from bcdlib.data import cache, custom
        from bcdlib.runs import places, profiles

        manifest = mount.find_manifest(data or "", manifest)
        source = mount.find_data(data, seed=seed)
        scan = custom.scan_custom(manifest, source) if manifest else breakhis.scan_breakhis(source)
        for note in getattr(scan, "notes", ()):
            click.echo(f"Note: {note}", err=True)
        images = scan.images
        pixels = cache.build_cache(
            source, images, profiles.get_profile("paper").size, root=places.cache_root()
        )
    rows = checks.audit_splits(images, split, pixels, folds=folds, seed=seed)
    click.echo(json.dumps(rows, indent=2) if as_json else "\n".join(checks.audit_lines(rows)))


@main.command(params=[*training_options])
@click.option(
    "--methods", default="resnet50", show_default=True, help="Separated by commas or spaces, or 'all'."
)
@click.option(
    "--embeddings",
    default="",
    help="Vectors of the images, made by any encoder: .npz, .npy beside a .csv, .h5, .parquet, or a folder "
    "of them. They are judged as method 'embeddings', with the head of 'robust'.",
)
@click.option(
    "--splits",
    default="",
    help="Protocols or published splits (see audit), separated by commas or spaces; 'authors' is the one "
    "that each method's own authors used, where known.  [default: all protocols that the data allow]",
)
@click.option(
    "--folds", type=click.IntRange(2, 100), help="Folds of image, slide and case.  [default: the profile's]"
)
@click.option(
    "--seeds",
    type=click.IntRange(1, 1000),
    help="How many seeds, from --seed on.  [default: 1; with --without-shared-cases 5 draws]",
)
@click.option(
    "--trainable",
    type=click.Choice(["head", "all"]),
    default="head",
    show_default=True,
    help="head: bases stay frozen, also those that their authors trained (then the name ends in -head); all: "
    "they are trained, except where authors froze them.",
)
@click.option(
    "--recipe",
    type=click.Choice(["authors", "paper"]),
    default="authors",
    show_default=True,
    help="Train each method as its authors did, as far as known, or all as this paper did (then the name "
    "ends in -paper_recipe).",
)
@click.option(
    "--task",
    type=click.Choice(["binary", "subtype", "magnification"]),
    default="binary",
    show_default=True,
    help="Benign or malignant, the eight tumour types, or (hybrid_cnn) which magnification.",
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
@click.option(
    "--without-shared-cases",
    "shared_cases",
    is_flag=True,
    help="Measure what shared cases are worth under --splits: the same test images, trained with and "
    "without their cases, on equally many images.",
)
@click.option(
    "--store",
    default="",
    help="Folder or URL (gs://, s3://) where finished trials are kept and looked for too.",
)
@click.option("--keep-models", is_flag=True, help="Store each trial's model, with its card.")
@click.option(
    "--notebooks", is_flag=True, help="Store with each trial 04_train, executed, as its record: trial.ipynb."
)
@click.option("--final", is_flag=True, help=FINAL)
def compare(
    data,
    manifest,
    profile,
    out,
    strict,
    seed,
    methods,
    splits,
    folds,
    seeds,
    choose,
    shared_cases,
    weights,
    embeddings,
    final,
    **options,
):
    """Run methods under protocols; trials that are finished already are not run again.

    One that fails is named in the table and does not stop the others. Published splits are run on those of
    their images that are in the data; how many these are is said.

    Names are separated by commas or spaces.
    A method's own settings may be changed behind its name: robust:stages=4:C=0.1
    """
    import pandas as pd

    from bcdlib import compare, mount, preprocess
    from bcdlib.data import vectors
    from bcdlib.runs import profiles
    from bcdlib.suite.run import prepare_run
    from bcdlib.trials import cluster, comparison
    from bcdlib.trials.shared_cases import DRAWS, measure_shared_cases

    cluster.check_scheduler(options["scheduler"])
    if options["task"] == "magnification" and (shared_cases or choose):
        raise InputError("--task magnification: goes with neither --choose nor --without-shared-cases")
    if final and (options["task"] == "magnification" or shared_cases):
        raise InputError("--final: goes with neither --task magnification nor --without-shared-cases")
    if shared_cases and (choose or not splits):
        raise InputError("--without-shared-cases: needs --splits, and does not go with --choose")
    many = seeds or (DRAWS if shared_cases else 1)
    if seed + many - 1 > LAST_SEED:
        raise InputError(f"--seed {seed}: with {many} seeds from there on the last is beyond {LAST_SEED}")
    settings = profiles.get_profile(profile, folds=folds)
    names = split_words(methods)
    if embeddings:  # may be named with settings of its head
        given = f"embeddings:file={Path(embeddings).expanduser().absolute()}"
        named = [
            given + name.removeprefix("embeddings") if name.partition(":")[0] == "embeddings" else name
            for name in names
        ]
        names = named if named != names else [*names, given]
    asked = {
        "method_names": comparison.expand_methods(names),
        "split_names": split_words(splits),
        "seeds": range(seed, seed + many),
        "trainable": options.pop("trainable"),
        "recipe": options.pop("recipe"),
        "weights": weights,
    }
    run = mount.open_run(out, data, profile)
    made = prepare_run(run, settings, data, manifest=manifest, strict=strict, data_seed=seed, split_seed=seed)
    if embeddings:
        found, extra = vectors.match_vectors(embeddings, run.images()["filename"])
        click.echo(f"{embeddings}: a vector of each of {len(found)} images; {extra} more belong to none")
    if shared_cases:
        click.echo(measure_shared_cases(run, settings, **asked, **options).to_string(index=False))
        click.echo(f"Table: {run.folder / 'shared_cases.csv'}")
        return
    predictions = comparison.run_comparison(run, settings, **asked, **options)
    if choose:
        predictions = pd.concat(
            [predictions, comparison.choose_methods(run, settings, **asked)], ignore_index=True
        )
    click.echo(compare.protocol_table(predictions).drop(columns="what is shared").to_string(index=False))
    if note := preprocess.splits_note(made):
        click.echo(note.strip("*"))
    click.echo(f"Table: {run.folder / 'comparison.csv'}")
    if final:
        asked = {name: value for name, value in asked.items() if name not in ("split_names", "seeds")}
        for made in compare.train_finals(run, settings, seed=seed, **asked, **options):
            click.echo(f"Final model: {made.folder}")
    _print_failed(comparison.failed_trials(run))


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
    "--sensitivity", default=0.95, show_default=True, help="The one to reach, with --rule sensitivity."
)
@click.option("--calibration", default="temperature", show_default=True, help="temperature, platt or none.")
@click.option(
    "--prevalences",
    default="",
    help="Shares of malignant cases for which PPV and NPV are computed.  [default: 0.05 0.1 0.25 0.5]",
)
@click.option("--out", help="Folder of the report.  [default: runs/<name of the table>-evaluate]")
def evaluate(predictions, out, **options):
    """Write the full report for any model's predictions table: 05_evaluate on it, and report.html.

    PREDICTIONS is a CSV with the columns filename, slide, case, magnification, subtype, label (0 benign, 1
    malignant), probability (of malignant), fold, method, split, seed.
    """
    from bcdlib import mount
    from bcdlib.runs import files
    from bcdlib.suite import run

    with files.read_once():
        parameters = run.evaluation_parameters(predictions, **options)
        for note in parameters.pop("notes"):
            click.echo(f"Note: {note}", err=True)
        opened = mount.open_run(out, parameters["predictions"], "evaluate")
        held = opened.recorded().get("data", parameters["predictions"])
        if out and held != parameters["predictions"]:
            raise InputError(f"{opened.folder}: holds the run or report of {held}; name another --out")
        opened.record(
            data=parameters["predictions"],
            source=parameters["predictions"],
            profile="predictions made elsewhere",
        )
        _run_notebooks(opened, parameters | {"out": str(opened.folder)}, ("05_evaluate",))


input_option = click.Option(
    ["--input", "values"],
    default="",
    help="What a model made elsewhere takes: 0..255, 0..1 or -1..1 (--input=-1..1).  [default: 0..255]",
)


@main.command(params=[json_option, input_option])
@click.option(
    "--manifest",
    default="",
    help="CSV (path, label, group) that labels the images of one folder or archive: what comes out is a "
    "predictions table, which evaluate reads, and the metrics are shown beside the model's own.",
)
@click.option("--csv", default="", help="Write the table into this file.")
@click.option(
    "--adapt",
    is_flag=True,
    help="For a head on frozen features: standardise by the mean features of these images, so that another "
    "laboratory's stain does not shift all answers. They must hold both classes.",
)
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
def predict(model, images, as_json, values, manifest, csv, adapt):
    """Classify images (or folders, archives) with a saved model, ours or any .keras file of plain layers.

    The class is that at the threshold that was locked with the model, if one lies beside it, else at 0.5.

    For research and teaching, not a medical device.
    """
    if manifest and len(images) > 1:
        raise InputError(f"{images[1]}: with --manifest name one folder or archive")
    if not all(images):
        raise InputError("an image has an empty name: name a file, a folder or an archive")
    if csv:
        _check_table_name(csv, manifest)
    from bcdlib import evaluate
    from bcdlib.runs import files

    if manifest:
        table = evaluate.predict_labelled(
            model, images[0], manifest, progress=True, values=values, adapt=adapt
        )
    else:
        table = evaluate.predict_files(model, images, progress=True, values=values, adapt=adapt)
    for note in table.attrs["notes"]:
        click.echo(f"Note: {printable(note)}", err=True)
    if csv:
        files.write_csv(csv, table)
        click.echo(f"Table: {csv}", err=True)
        validation = Path(model).with_name("validation.csv")
        if manifest and validation.is_file():
            command = ["python", "-m", "bcdlib", "evaluate", csv, "--validation", str(validation)]
            click.echo(f"Report, at the same threshold: {shlex.join(command)}", err=True)
    if manifest and not as_json:
        click.echo(
            evaluate.elsewhere_table(table, model).to_string(index=False, float_format="{:.3f}".format)
        )
    elif as_json or not csv:
        click.echo(evaluate.as_json(table) if as_json else table.to_string(index=False))


def _check_table_name(csv: str, manifest: str) -> None:
    """Refuse a table's name before there is anything to lose."""
    path = Path(csv)
    if path.suffix.lower() != ".csv" or path.is_dir():
        raise InputError(f"--csv {csv}: name a file that ends with .csv")
    if not path.parent.is_dir():
        raise InputError(f"--csv {csv}: there is no folder {path.parent}")
    if manifest and path.resolve() == Path(manifest).expanduser().resolve():
        raise InputError(f"--csv {csv}: that is the manifest; name another file")


@main.command(params=[input_option])
@click.argument("model")
@click.argument("out")
def export(model, out, values):
    """Write a saved model as ONNX (OUT.onnx): raw RGB in, probability of malignant out, as predict gives it.

    Its calibration is in it; size and threshold stand in the file's metadata. For research and teaching, not
    a medical device.
    """
    from bcdlib.explain.export import export_onnx

    for name, value in export_onnx(model, out, values=values).items():
        click.echo(f"{name}: {printable(str(value))}")
    click.echo(f"Model: {out}")


@main.command()
@click.argument("name")
@click.argument("runs", nargs=-1, required=True)
@click.option("--pretrained", required=True, help="What the pre-trained networks started from, in words.")
@click.option(
    "--command", "commands", multiple=True, help="What a reader types to repeat it; may be repeated."
)
@click.option(
    "--against", default="resnet50-head", show_default=True, help="The method that others are compared with."
)
def record(name, runs, pretrained, commands, against):
    """Store the comparisons of run folders under notebooks/recorded: small tables and a figure, no images."""
    import pandas as pd

    from bcdlib import compare
    from bcdlib.evaluation import metrics, recorded
    from bcdlib.runs import folder

    table = pd.concat(
        metrics.read_predictions(Path(run) / "comparison_predictions.csv") for run in runs
    ).drop_duplicates([*folder.TRIAL_COLUMNS, "filename"], ignore_index=True)
    recorded.write_recording(name, table, pretrained, commands=list(commands), against=against)
    compare.save_recorded_figure(name)
    click.echo(f"recorded {name}: {len(table)} predictions")


@main.command()
@click.option("--pictures", default="", help="A finished run folder: draw README's pictures anew, from it.")
def stamp(pictures):
    """Write the repository's address (bcdlib/__init__.py) into the notebooks and the README."""
    from bcdlib.suite import stamp

    root = Path(__file__).resolve().parent.parent
    for path in stamp.stamp_notebooks(root):
        click.echo(f"stamped {path}")
    if pictures:
        from bcdlib.suite.pictures import draw_pictures

        draw_pictures(root, pictures)


@contextlib.contextmanager
def _disk_errors_explained():
    try:
        yield
    except Exception:
        from bcdlib.runs import files

        with files.explain_disk_errors("results"):  # where no file of ours is named
            raise


def cli(command=main) -> None:
    """Run a click command, by default ``bcdlib`` itself, whose entry point this is.

    An error ends it with one line on stderr and status 2 (bad input), 1 (a notebook failed) or 130 (stopped
    by the keyboard). What it writes reaches the terminal as `errors.TerminalText` lets it.
    """
    noise.drop_noise()
    sys.stdout, sys.stderr = TerminalText(sys.stdout), TerminalText(sys.stderr)
    try:
        with _disk_errors_explained():
            sys.exit(command(standalone_mode=False))
    except StageError as error:
        _end(str(error), 1)
    except InputError as error:
        _end(str(error), 2)
    except getattr(click.exceptions, "NoArgsIsHelpError", ()) as error:  # of newer versions
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _end(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _end("stopped; the same command goes on from here", 130)
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR):
            raise
        _end(f"{error.strerror}: {error.filename or 'a path'}", 2)
    except RuntimeError as error:
        if "home directory" not in str(error):  # pathlib's, of ~nouser or without HOME
            raise
        _end("there is no such home folder; write paths in full instead of ~, or set HOME", 2)


def _end(message: str, status: int) -> None:
    click.echo(f"Error: {printable(message)}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    cli()
