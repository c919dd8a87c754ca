"""Cross-entropy and accuracy of one probability, or of those of several classes."""

import keras


def cross_entropy(y, p):
    """Compute the cross-entropy of each image.

    Parameters
    ----------
    y : tensor (batch, 1)
        Class numbers.
    p : tensor (batch, 1) or (batch, classes)
        Probability of the second of two classes, or of all classes.

    Returns
    -------
    tensor (batch,)
    """
    if p.shape[-1] == 1:
        return keras.losses.binary_crossentropy(y, p)
    return keras.losses.sparse_categorical_crossentropy(y[:, 0], p)


def accuracy(y, p):
    """Say of each image whether it is predicted correctly, 1 or 0; as `cross_entropy`."""
    if p.shape[-1] == 1:
        return keras.metrics.binary_accuracy(y, p)
    return keras.metrics.sparse_categorical_accuracy(y[:, 0], p)
