"""``python -m tests.bench``: its speed beside its peers' and the machine's limits; half an hour."""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import click

from bcdlib import mount
from bcdlib.__main__ import cli, data_option, weights_option
from tests.bench import Setting, report, run


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, params=[data_option, weights_option])
@click.option(
    "--only", multiple=True, help="A part: ingest, batches, training, inference, scale; may be repeated."
)
@click.option(
    "--pairs", type=click.IntRange(1), default=5, show_default=True, help="Runs of each comparison."
)
@click.option("--out", default="", help="Folder for bench.json and bench.png.")
@click.option("--json", "as_json", is_flag=True, help="JSON for machines.")
def bench(data, only, pairs, out, as_json, weights):
    """Compare this library's speed with its peers', side by side; takes half an hour."""
    source = mount.find_data(data)
    kept = mount.open_run(out).folder if out else None
    images = f"images: {'drawn' if data == 'synthetic' else Path(data).name}"
    with tempfile.TemporaryDirectory(prefix="bcdlib-bench-") as folder:
        found = []
        with contextlib.redirect_stdout(sys.stderr):  # where peers talk: stdout is for the answer
            for one in run(Setting(source, Path(folder), weights, pairs), only):
                print(one.line(), flush=True)
                found.append(one)
                if kept:  # each time: whatever stops the next one, these stay
                    report.save(kept, report.facts(found, images))
    click.echo(json.dumps(report.facts(found, images), indent=2) if as_json else report.text(found))


if __name__ == "__main__":
    cli(bench)
