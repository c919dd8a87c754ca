"""Breast cancer diagnosis on BreakHis: the library beneath the notebooks.

One notebook, one module, one verb: `mount`, `preprocess`, `visualize`, `train`, `evaluate`, `compare`.
Beneath them the nouns that they share: `manifest`, `sources`, `pixels`, `splits`, `profiles`, `methods`, `runs`.
"""

__version__ = "0.1.0"
