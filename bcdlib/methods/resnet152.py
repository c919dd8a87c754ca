"""ResNet-152 with a head a magnification and a decision over the slide: MuDeRN (Gandomkar 2018)."""

import keras
import numpy as np
import pandas as pd

from bcdlib.data.breakhis import MAGNIFICATIONS
from bcdlib.methods._keras import KerasMethod, chain
from bcdlib.methods.parts import fitting, losses

_HEAD = "probability_"


class ResNet152(KerasMethod):
    """ResNet-152 with one head a magnification; an image gets the decision over its slide's magnifications.

    Publication: Gandomkar, Brennan & Mello-Thoms, "MuDeRN: Multi-category classification of breast
    histopathological image using deep residual networks", Artificial Intelligence in Medicine 88, 2018.
    Printed: 98.77 % (Table II, as printed; split not stated there). The publication was not at hand. Known of
    it: a ResNet-152 for each magnification, and a decision that combines the magnifications of a patient; it
    also tells the eight subtypes (``task="subtype"``). Chosen here: one base for all magnifications, frozen
    or fine-tuned together, with a head of its own for each (one network of 58 million weights rather than
    four); hidden layers of 256 with ReLU, dropout 0.4; cross-entropy, RMSprop. A magnification that training
    lacks (40X in the paper's protocol) gets the mean of the heads.

    The decision over a slide (see `slide_decision`) is a mean without weights, each magnification one vote: a
    fitted one would have to be fitted on probabilities of the training slides, which a trained network has
    seen and saturates. It uses the slide's images among those asked for, and no label. It needs ``images``;
    without, and in the saved network by itself, an image gets the mean of the heads.
    """

    key = "resnet152"
    decides_for = "slide"
    title = "MuDeRN (ResNet-152)"
    architectures = ("resnet152",)
    changes = {"head": {"learning_rate": 0.0005}}
    magnifications_: tuple = MAGNIFICATIONS

    def build_outputs(self, x):
        """Append a head for each magnification."""
        heads = [
            chain(
                x,
                keras.layers.Dense(256, activation="relu", name=f"dense_{magnification}"),
                keras.layers.Dropout(0.4, name=f"dropout_{magnification}"),
                self.output(f"{_HEAD}{magnification}"),
            )
            for magnification in self.magnifications_
        ]
        if len(heads) == 1:
            return heads[0]
        return keras.layers.Concatenate(name="trained", dtype="float32")(heads)

    def build_prediction(self, model):
        """Average the heads."""
        heads = keras.layers.Reshape((len(self.magnifications_), -1), name="heads")(model.output)
        return keras.layers.Identity(name="probability")(keras.ops.mean(heads, axis=1))

    def build_loss(self):
        """Give the loss of the heads' mixture."""
        return heads_loss

    def build_metric(self):
        """Make the accuracy of the heads' mixture."""
        return keras.metrics.MeanMetricWrapper(heads_accuracy, name="accuracy")

    def fit(self, X, y, validation_data=None, *, folder=None, images=None):
        """Train as `KerasMethod.fit`, each image its magnification's head (without ``images`` one head)."""
        self.magnifications_ = ("all",) if images is None else tuple(sorted(set(images["magnification"])))
        return super().fit(X, y, validation_data, folder=folder, images=images)

    def targets(self, y, images=None):
        """Give the label and the heads' `shares`; (N, 1 + heads)."""
        known = np.full(len(y), None) if images is None else images["magnification"]
        return np.column_stack([y, shares(known, self.magnifications_)])

    @classmethod
    def probabilities(cls, network, X, images=None):
        """Predict as `KerasMethod.probabilities`; with ``images`` by magnification, then by slide."""
        if images is None:
            return super().probabilities(network, X)
        heads = {
            layer.name.removeprefix(_HEAD): layer.output
            for layer in network.layers
            if layer.name.startswith(_HEAD)
        }
        found = fitting.predict_batches(keras.Model(network.inputs, list(heads.values())), X)
        found = np.stack(keras.tree.flatten(found), axis=1)
        share = shares(images["magnification"].astype(str), list(heads))
        return slide_decision((found * share[:, :, None]).sum(axis=1), images)


def shares(magnifications, heads) -> np.ndarray:
    """Weigh the heads for each image: its magnification's alone, or all the same; float64 (N, heads)."""
    own = np.asarray(magnifications)[:, None] == np.asarray(heads)
    return np.where(own.any(axis=1, keepdims=True), own, 1 / len(heads))


def slide_decision(probability, images: pd.DataFrame) -> np.ndarray:
    """Give each image the mean over its slide's magnifications of the mean over the images of each.

    Parameters
    ----------
    probability : array (N, outputs)
    images : DataFrame
        Columns slide and magnification, rows parallel.

    Returns
    -------
    float64 array (N, outputs)
    """
    slide, magnification = (images[name].to_numpy() for name in ("slide", "magnification"))
    votes = pd.DataFrame(np.asarray(probability, dtype="float64")).groupby([slide, magnification]).mean()
    return votes.groupby(level=0).mean().loc[slide].to_numpy()


def _mixed(y_true, y_pred):
    heads = keras.ops.reshape(y_pred, (-1, y_true.shape[1] - 1, y_pred.shape[1] // (y_true.shape[1] - 1)))
    return keras.ops.sum(heads * y_true[:, 1:, None], axis=1)


@keras.saving.register_keras_serializable("bcdlib")
def heads_loss(y_true, y_pred):
    """Compute the cross-entropy of the heads' outputs in ``y_pred``, mixed by their shares in ``y_true``."""
    return losses.cross_entropy(y_true[:, :1], _mixed(y_true, y_pred))


@keras.saving.register_keras_serializable("bcdlib")
def heads_accuracy(y_true, y_pred):
    """Say of each image whether the same mixture predicts it correctly, 1 or 0."""
    return losses.accuracy(y_true[:, :1], _mixed(y_true, y_pred))
