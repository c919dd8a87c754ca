"""What the six notebooks share: badge, explained parameters, first and last cell; README's badges too."""

import re
from pathlib import Path

import nbformat

from bcdlib import BRANCH, REPOSITORY
from bcdlib.runs import files

BADGE_IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"

FIRST_CELL = """\
# @title Get bcdlib: beside this notebook, else on Drive, else from the repository
import importlib.util
import os
import pathlib
import subprocess
import sys

REPOSITORY = "{repository}"
IN_COLAB = "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ
CONTENT = os.environ.get("BCD_CONTENT", "/content")
if IN_COLAB and not drive:
    os.environ["BCD_DRIVE"] = "none"
elif os.environ.get("BCD_DRIVE") == "none":  # an earlier run of this cell said so
    del os.environ["BCD_DRIVE"]
DRIVE = os.environ.get("BCD_DRIVE") or f"{{CONTENT}}/drive"
if IN_COLAB and drive and "BCD_HOME" not in os.environ and not os.path.isdir(f"{{DRIVE}}/MyDrive"):
    try:
        if not get_ipython().kernel._allow_stdin:  # papermill or a batch job: Colab would wait two minutes
            raise PermissionError("nobody is here to allow it")
        from google.colab import drive as google_drive

        google_drive.mount(DRIVE)
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        failure = RuntimeError(
            f"Google Drive could not be mounted at {{DRIVE}} ({{why}}); run this cell again and allow "
            "access, or set drive = False"
        )
        failure._render_traceback_ = [str(failure)].copy  # the line alone, no traceback
        raise failure from None
places = [pathlib.Path(".."), pathlib.Path("bcdlib-checkout")]
if IN_COLAB and drive:
    places.insert(1, pathlib.Path(DRIVE, "MyDrive", "bcdlib"))
checkout = next((place for place in places if (place / "bcdlib" / "__init__.py").is_file()), places[-1])
if not (checkout / "bcdlib").is_dir() and importlib.util.find_spec("bcdlib") is None:
    subprocess.run(["git", "clone", "--depth=1", REPOSITORY, str(checkout)], check=True)
sys.path.insert(0, str(checkout.resolve()))
# before Keras is imported: where JAX is and TensorFlow is not, as on a TPU, this chooses JAX
from bcdlib.runs import environment

environment.check_backend()
if IN_COLAB:  # pip leaves alone what Colab has
    pip = [sys.executable, "-m", "pip", "install", "-q", *environment.requirements()]
    # the optional packages are only faster, and not made for every Python at once: it works without them
    if subprocess.run([*pip, *environment.OPTIONAL]).returncode:
        subprocess.run(pip, check=True)"""

# what every notebook says of the parameters that it has, in the order of its parameters cell
PARAMETERS = {
    "data": "`synthetic` (drawn tissue), `kaggle` (BreakHis, fetched from there), or a folder or archive of "
    "BreakHis",
    "profile": "`demo`, `quick` (laptop) or `paper` (the recipe as published)",
    "out": "the run folder (empty: one is named after data and profile)",
    "seed": "of every random choice: drawn tissue, splits, initial weights, order of images, samples shown",
    "weights": "what ResNet-50 starts from: `imagenet`, `none` (random), or a folder (empty: `imagenet`)",
    "drive": "in Colab: keep the run folder on Google Drive, for one machine at a time (off: on Colab's own "
    "disk, which is lost with the machine)",
    "guess": "your guess of the accuracy on the next patient, in percent (0: none yet; 05_evaluate and "
    "06_compare take that of 01_mount)",
    "manifest": "a CSV with the columns `path`, `label` and `group` that names the images in `data` if they "
    "are your own rather than BreakHis's (empty: BreakHis)",
    "download": "fetch the official archive of BreakHis (about 4 GB) once, and use it as `data`",
    "archive_url": "where `download` fetches it",
    "run_all": "run the other five notebooks here too (see 1.4)",
    "width": "of the resized images in pixels (0: the profile's)",
    "height": "likewise",
    "strict": "stop if an image has to be left out, instead of naming it and going on",
    "method": "what is trained: a key of the table below, or a file with a method of your own",
    "methods": "what is compared: keys of 04_train's table or files, with commas or spaces between, or `all`",
    "trainable": "`all` fine-tunes the whole network, `head` trains the classifier on a frozen base",
    "task": "`binary` (benign or malignant) or `subtype` (the eight tumour types)",
    "stain": "stain normalisation: `macenko`, `reinhard` or `none` (empty: the method's own)",
    "recipe": "`authors` trains each method as its authors did, as far as known, `paper` all as this paper",
    "splits": "protocols, with commas or spaces between (empty: in 04_train the profile's, in 06_compare all "
    "that the images allow); in 04_train `all` also makes a final model",
    "epochs": "how many to train (0: the profile's)",
    "fold": "which fold of each split is trained, counted from 0",
    "keep_model": "save the trained model; 05_evaluate needs it for maps and for your own image",
    "seeds": "how many seeds are compared, from `seed` on",
    "rule": "how validation sets the threshold: `youden`, or `sensitivity` for a wished sensitivity",
    "sensitivity": "the wished sensitivity, 0 to 1, with that rule",
    "calibration": "of the probabilities, fitted on validation: `temperature`, `platt` or `none`",
    "predictions": "the predictions table of any other model, a CSV (empty: the run's own)",
    "validation": "that model's predictions on its validation part, for threshold and calibration",
    "external": "a folder or archive of images from another laboratory, for 5.18 (empty: none)",
    "external_labels": "a CSV with the columns `path`, `label` and `group` that says what they show",
    "prevalences": "shares of malignant cases, with commas or spaces between, for which predictive values "
    "are computed (empty: 0.05, 0.1, 0.25, 0.5)",
    "image": "a PNG, JPEG, TIFF or BMP file of your own to classify (empty: an image of the test part)",
}

METADATA = {
    "colab": {"provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# GPU time is rationed: only the notebooks that train or ask a network want one
_ON_GPU = {"accelerator": "GPU", "colab": {"gpuType": "T4", "provenance": []}}


def colab_address(notebook: str, repository: str = REPOSITORY, branch: str = BRANCH) -> str:
    """Address that opens a notebook (its file name) in Colab."""
    slug = repository.removeprefix("https://github.com/").removesuffix(".git")
    return f"https://colab.research.google.com/github/{slug}/blob/{branch}/notebooks/{notebook}"


def explain_parameters(names: list[str]) -> str:
    """Write the paragraph that explains a notebook's parameters, as Markdown.

    Examples
    --------
    >>> print(explain_parameters(["epochs"]))
    **Parameters** (the first six are the same in all six notebooks):
    <BLANKLINE>
    - `epochs`: how many to train (0: the profile's).
    """
    return "\n".join(
        [
            "**Parameters** (the first six are the same in all six notebooks):",
            "",
            *(f"- `{name}`: {PARAMETERS[name]}." for name in names),
        ]
    )


def next_step(notebook: str | None, repository: str = REPOSITORY, branch: str = BRANCH) -> str:
    """Write what comes next, as Markdown: a notebook (its file name), or after the last one what to read.

    Examples
    --------
    >>> print(next_step("06_compare.ipynb"))
    **Next**: 06_compare, [in Colab](https://colab...) or [beside this one](06_compare.ipynb), with the ...
    """
    if notebook is None:
        address = f"{repository.removesuffix('.git')}/blob/{branch}/README.md"
        return (
            "**This was the last one.** What the numbers mean, and what they do not: [README]"
            f"({address}#what-the-results-mean-and-what-they-do-not)."
        )
    return (
        f"**Next**: {Path(notebook).stem}, [in Colab]({colab_address(notebook, repository, branch)}) or "
        f"[beside this one]({notebook}), with the same parameters."
    )


def stamp_notebooks(root, repository: str = REPOSITORY, branch: str = BRANCH) -> list[Path]:
    """Write badge, explained parameters, first cell, last cell and metadata, and README.md's badges.

    Also empties outputs and execution counts. Leaves files that are right already untouched.

    Parameters
    ----------
    root : folder of the checkout

    Returns
    -------
    list of the files that changed
    """
    texts, paths = {}, sorted(Path(root, "notebooks").glob("*.ipynb"))
    for path, following in zip(paths, [*(path.name for path in paths[1:]), None], strict=True):
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata = nbformat.from_dict(METADATA | (_ON_GPU if path.name >= "04" else {}))
        badge, _, words, parameters, first, *_, last = notebook.cells
        badge.source = f"[![Open In Colab]({BADGE_IMAGE})]({colab_address(path.name, repository, branch)})"
        words.source = explain_parameters(re.findall(r"^(\w+) = ", parameters.source, flags=re.MULTILINE))
        first.source = FIRST_CELL.format(repository=repository)
        last.source = next_step(following, repository, branch)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        texts[path] = nbformat.writes(notebook) + "\n"
    readme = Path(root, "README.md")
    texts[readme] = re.sub(
        rf"\[!\[Open In Colab\]\({re.escape(BADGE_IMAGE)}\)\]\(\S*/notebooks/([\w.]+)\)",
        lambda match: f"[![Open In Colab]({BADGE_IMAGE})]({colab_address(match[1], repository, branch)})",
        readme.read_text(encoding="utf-8"),
    )
    changed = [path for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        files.write_text(path, texts[path])
    return changed
