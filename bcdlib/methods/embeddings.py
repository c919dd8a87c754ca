"""Vectors that another tool computed, and robust's head on them."""

from pathlib import Path

import numpy as np

from bcdlib.data import vectors
from bcdlib.errors import InputError
from bcdlib.methods import Method
from bcdlib.methods._linear import LinearHead
from bcdlib.methods.parts import backbones


class Embeddings(LinearHead):
    """Vectors of the images from a file, whatever encoder made them, and the head of ``robust``.

    Not in the paper. So features of any pathology encoder (UNI, CONCH, Virchow, Phikon, CTransPath, ...),
    computed by any tool, are judged under the same protocols as all else. How they were made is not known
    here: whether the encoder was trained on these very images, only its authors can say. No model is saved,
    since it would take vectors, not images.

    Parameters
    ----------
    file : str
        As in `data.vectors.match_vectors`: .npz, .npy and .csv, .h5, .parquet, or a folder of such files.
    C, balance
        As in `_linear.LinearHead`.
    """

    key = "embeddings"
    title = "Vectors from a file, every case counting the same"
    architectures = ()
    given = "file"
    save = Method.save

    def __init__(self, *, file="", **settings):
        super().__init__(**settings)
        self.file = file

    def _prepare(self):
        super()._prepare()
        if not self.file:
            raise InputError("embeddings: name a file of vectors: embeddings:file=FILE, or --embeddings FILE")
        self.weights_ = backbones.Weights(self.file, f"vectors of {Path(self.file).name}")

    def starts_from(self) -> str:
        """Identify the vectors by their file's content."""
        return vectors.content_digest(self.file) if Path(self.file).exists() else "missing"

    def inputs(self, cache, train=None) -> np.ndarray:
        """Give the vectors of the cache's images; float32 (N, d)."""
        self._prepare()
        found, extra = vectors.match_vectors(self.file, cache.images["filename"])
        if self.verbose:
            name = Path(self.file).name
            print(
                f"{name}: {len(found)} vectors of {found.shape[1]} numbers; {extra} more belong to no image"
            )
        return found

    def _features(self, extract, X):
        raise InputError("embeddings: takes the vectors of its file, not images")
