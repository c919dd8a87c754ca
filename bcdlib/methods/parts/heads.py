"""A head for each magnification, beside each other in one network."""

import keras
import numpy as np

from bcdlib.methods.parts import fitting, networks

HEAD = "probability_"  # how the names of the heads' last layers begin


def shares(magnifications, heads) -> np.ndarray:
    """Weigh the heads for each image: its magnification's alone, or all the same; float64 (N, heads)."""
    own = np.asarray(magnifications)[:, None] == np.asarray(heads)
    return np.where(own.any(axis=1, keepdims=True), own, 1 / len(heads))


def average_heads(outputs: list):
    """Connect heads, each (batch, outputs), to their mean, named ``probability``."""
    x = outputs[0] if len(outputs) == 1 else keras.layers.Average(name="mean")(outputs)
    return keras.layers.Identity(name="probability")(x)


def predict_heads(network: keras.Model, X) -> dict[str, np.ndarray]:
    """Predict rows with every head of a network; each (N, outputs), by the head's name."""
    predicted = fitting.predict_batches(_with_every_head(network), X)
    return dict(zip(head_names(network), keras.tree.flatten(predicted), strict=True))


@networks.once
def _with_every_head(network: keras.Model) -> keras.Model:
    return keras.Model(
        network.inputs, [network.get_layer(HEAD + name).output for name in head_names(network)]
    )


def head_names(network: keras.Model) -> list[str]:
    """List the names of a network's heads, in their order."""
    return [layer.name.removeprefix(HEAD) for layer in network.layers if layer.name.startswith(HEAD)]


def predict_own(network: keras.Model, X, images) -> np.ndarray:
    """Predict each row with its magnification's head, or with the mean of all; (N, outputs)."""
    found = predict_heads(network, X)
    share = shares(images["magnification"].astype(str), list(found))
    return (np.stack(list(found.values()), axis=1) * share[:, :, None]).sum(axis=1)
