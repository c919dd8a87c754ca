"""What the six notebooks have in common: badge, first cell, metadata; and writing it into them."""

import re
from pathlib import Path

import nbformat

from bcdlib import BRANCH, REPOSITORY
from bcdlib.runs.files import atomic_write

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
places = [pathlib.Path(".."), pathlib.Path("bcdlib-checkout")]
if IN_COLAB:
    from google.colab import drive

    DRIVE = os.environ.get("BCD_DRIVE", "/content/drive")
    drive.mount(DRIVE)
    places.insert(1, pathlib.Path(DRIVE, "MyDrive", "bcdlib"))
checkout = next((place for place in places if (place / "bcdlib" / "__init__.py").is_file()), places[-1])
if not (checkout / "bcdlib").is_dir() and importlib.util.find_spec("bcdlib") is None:
    subprocess.run(["git", "clone", "--depth=1", REPOSITORY, str(checkout)], check=True)
sys.path.insert(0, str(checkout.resolve()))
if IN_COLAB:  # pip leaves alone what Colab has
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-r", \
checkout / "requirements.txt"], check=True)"""

METADATA = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def colab_badge(notebook: str, repository: str = REPOSITORY, branch: str = BRANCH) -> str:
    """Markdown of the "Open in Colab" badge of one notebook (its file name)."""
    slug = repository.removeprefix("https://github.com/").removesuffix(".git")
    address = f"https://colab.research.google.com/github/{slug}/blob/{branch}/notebooks/{notebook}"
    return f"[![Open In Colab]({BADGE_IMAGE})]({address})"


def stamp_notebooks(root, repository: str = REPOSITORY, branch: str = BRANCH) -> list[Path]:
    """Write address, badge, first cell and metadata into the notebooks and the badges of README.md.

    Also empties outputs and execution counts. Leaves files that are right already untouched.

    Parameters
    ----------
    root : folder of the checkout

    Returns
    -------
    list of the files that changed
    """
    root, changed = Path(root), []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata = nbformat.from_dict(METADATA)
        notebook.cells[0].source = colab_badge(path.name, repository, branch)
        notebook.cells[2].source = FIRST_CELL.format(repository=repository)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        _write(path, nbformat.writes(notebook) + "\n", changed)
    readme = root / "README.md"
    pattern = re.compile(rf"\[!\[Open In Colab\]\({re.escape(BADGE_IMAGE)}\)\]\(\S*/notebooks/([\w.]+)\)")
    text = pattern.sub(
        lambda match: colab_badge(match[1], repository, branch), readme.read_text(encoding="utf-8")
    )
    _write(readme, text, changed)
    return changed


def _write(path: Path, text: str, changed: list[Path]) -> None:
    if path.read_text(encoding="utf-8") != text:
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        changed.append(path)
