"""GoogLeNet with a class-structure constraint in the loss (Han 2017)."""

import keras
import numpy as np

from bcdlib.methods._keras import KerasMethod, chain
from bcdlib.methods._recipe import Recipe
from bcdlib.methods.parts.losses import accuracy, cross_entropy


class CSDCNN(KerasMethod):
    """GoogLeNet whose feature space keeps images of a class together and classes a margin apart.

    Publication: Han et al., "Breast Cancer Multi-classification from Histopathological Images with Structured
    Deep Learning Model", Scientific Reports 7, 4172, 2017. Printed: 93.20 % (Table II), which is the
    average accuracy for eight subtypes, not two classes (seen in the abstract): see ``task="subtype"``.

    As far as known: a GoogLeNet base that starts from ImageNet, a constraint on distances within and between
    classes in feature space, 256x256, SGD at 0.01, rare classes oversampled, 50 % of the images for training
    and 25 % each for validation and test, drawn by image. Chosen here: an embedding of 128 numbers brought to
    unit length, the constraint of `structure` at weight 0.5 beside the cross-entropy, no momentum. Weights of
    the base as for ``googlenet``. The publication was not at hand. Profile demo keeps its small images.

    Parameters
    ----------
    margin : float
        Distance that images of different classes should have; unit vectors are at most 2 apart.
    constraint : float
        Weight of the constraint in the loss.
    """

    key = "csdcnn"
    title = "CSDCNN (GoogLeNet, class structure)"
    architectures = ("googlenet",)
    changes = {"head": {"learning_rate": 0.0005}}
    authors = Recipe(keras.optimizers.SGD, learning_rate=0.01, size=(256, 256))

    def __init__(self, *, margin=1.0, constraint=0.5, **settings):
        super().__init__(**settings)
        self.margin = margin
        self.constraint = constraint

    def _train(self, X, y, held_out, folder):
        if self.recipe == "authors":
            rows = oversample(y, self.seed)
            X, y = X[rows], y[rows]
        super()._train(X, y, held_out, folder)

    def build_outputs(self, x):
        """Append the output, and beside it the embedding."""
        x = keras.layers.Dense(128, activation="relu", name="dense")(x)
        embedding = chain(
            x,
            keras.layers.Dense(128, name="project"),
            # in float16 the sum of squares overflows from 65504 on
            keras.layers.UnitNormalization(name="embedding", dtype="float32"),
        )
        x = chain(x, keras.layers.Dropout(0.4, name="dropout"), self.output())
        return keras.layers.Concatenate(name="trained", dtype="float32")([x, embedding])

    def build_loss(self):
        """Make the loss with the constraint."""
        return StructureLoss(self.units, self.margin, self.constraint)

    def build_metric(self):
        """Make the accuracy of the output without the embedding."""
        return keras.metrics.MeanMetricWrapper(first_accuracy, name="accuracy", outputs=self.units)


def oversample(y, seed: int) -> np.ndarray:
    """Draw rows such that every class has as many as the most frequent one: all of its own, some again.

    Examples
    --------
    >>> oversample(np.array([0, 1, 1, 1]), seed=0)
    array([0, 0, 0, 1, 2, 3])
    """
    classes, counts = np.unique(y, return_counts=True)
    rng, found = np.random.default_rng(seed), []
    for name, count in zip(classes, counts, strict=True):
        rows = np.flatnonzero(y == name)
        found.append(np.concatenate([rows, rng.choice(rows, counts.max() - count)]))
    return np.sort(np.concatenate(found))


def structure(y, embedding, margin: float = 1.0):
    """Compute the class-structure constraint of a batch: the smaller, the better the classes are apart.

    The mean squared distance of pairs of one class, plus the mean of max(0, margin - distance) squared over
    pairs of different classes (the contrastive loss of Hadsell et al., CVPR 2006, over all pairs). A batch
    that has no pair of a kind counts 0 for it.

    Parameters
    ----------
    y : tensor (batch,)
        Class numbers.
    embedding : tensor (batch, dimensions)

    Returns
    -------
    scalar tensor, >= 0
    """
    squared = keras.ops.sum(keras.ops.square(embedding[:, None] - embedding[None]), axis=-1)
    distance = keras.ops.sqrt(keras.ops.maximum(squared, 1e-12))  # the root has no gradient at 0
    same = keras.ops.cast(keras.ops.equal(y[:, None], y[None]), embedding.dtype)
    itself = keras.ops.eye(keras.ops.shape(y)[0], dtype=embedding.dtype)  # no pair
    return _mean(squared, same * (1 - itself)) + _mean(
        keras.ops.square(keras.ops.maximum(margin - distance, 0)), 1 - same
    )


def _mean(values, weights):
    return keras.ops.sum(values * weights) / keras.ops.maximum(keras.ops.sum(weights), 1)


@keras.saving.register_keras_serializable("bcdlib")
class StructureLoss(keras.losses.Loss):
    """Cross-entropy of the first ``outputs`` columns, plus ``constraint`` times `structure` of the others."""

    def __init__(self, outputs: int, margin: float, constraint: float, **settings):
        super().__init__(**{"name": "structure_loss", "reduction": "sum_over_batch_size"} | settings)
        self.outputs, self.margin, self.constraint = outputs, margin, constraint

    def call(self, y_true, y_pred):
        """Compute the loss of a batch."""
        probability, embedding = y_pred[:, : self.outputs], y_pred[:, self.outputs :]
        return cross_entropy(y_true, probability) + self.constraint * structure(
            y_true[:, 0], embedding, self.margin
        )

    def get_config(self):
        """Give the arguments of the constructor."""
        return super().get_config() | {
            "outputs": self.outputs,
            "margin": self.margin,
            "constraint": self.constraint,
        }


@keras.saving.register_keras_serializable("bcdlib")
def first_accuracy(y_true, y_pred, outputs: int):
    """Say of each image whether its first ``outputs`` columns predict it correctly, 1 or 0."""
    return accuracy(y_true, y_pred[:, :outputs])
