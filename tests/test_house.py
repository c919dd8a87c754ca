"""The house is in order: layers, format, lint, types, and the examples in docstrings."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import bcdlib

ROOT = Path(__file__).resolve().parent.parent
TOOLS = {
    "layers": [Path(sys.executable).with_name("lint-imports"), "--no-logo"],
    "format": [sys.executable, "-m", "ruff", "format", "--check", "--diff", "."],
    "lint": [sys.executable, "-m", "ruff", "check", "."],
    "types": [sys.executable, "-m", "mypy"],
}
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "bcdlib").rglob("*.py"))
    if path.name != "__main__.py"
]


@pytest.mark.parametrize("name", TOOLS)
def test_tool_finds_nothing(name):
    done = subprocess.run(TOOLS[name], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    found = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert found.failed == 0


def test_contributing_names_every_room():
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    for path in (ROOT / "bcdlib").iterdir():
        if path.name not in ("__init__.py", "__pycache__"):
            assert f"`{path.name}{'/' if path.is_dir() else ''}`" in text, path.name


def test_citation_names_this_version_and_address():
    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {bcdlib.__version__}\n" in text and f'"{bcdlib.REPOSITORY}"' in text
