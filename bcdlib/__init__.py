"""Breast cancer diagnosis on BreakHis: the library beneath the notebooks.

One notebook, one module, one verb: `mount`, `preprocess`, `visualize`, `train`, `evaluate`, `compare`.
Beneath them the nouns that they share: `manifest`, `sources`, `pixels`, `splits`, `profiles`, `methods`, `runs`.
"""

__version__ = "0.1.0"

# The one place for the repository's address; `python -m bcdlib stamp` writes it into badges and first cells.
REPOSITORY = "https://github.com/bcdlib/bcdlib"
BRANCH = "main"
