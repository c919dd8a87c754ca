"""The augmentation of training images: exchange it here, in `default_augmentation`, and nowhere else."""

import numpy as np
from keras import layers, ops, random, saving

# What the seeds of augmented copies end with. Whoever changes the augmentation writes (1,) here, so that
# stored features of the copies that it made before are not taken for those that it makes now.
REVISION: tuple[int, ...] = ()


@saving.register_keras_serializable(package="bcdlib")
class FlipAndZoom(layers.Layer):
    """Flip images on both axes (both together: a half turn) and zoom them, anew in each training batch.

    The paper does not say which augmentation it used; tissue has no up or down. A quarter turn would cut a
    third off a 3:2 image, so there is none. The same as keras.layers.RandomFlip and RandomZoom with
    ``fill_mode="reflect"``; but XLA cannot compile RandomZoom, and one such layer keeps the whole training
    step from it: on a GPU under TensorFlow, and under JAX everywhere, where Keras then runs it operation by
    operation. This is one product with a matrix each way.

    Takes and gives float (batch, height, width, channels).

    Parameters
    ----------
    zoom : float, 0 to 1
        Images are scaled by 1 / (1 - zoom) to 1 / (1 + zoom), the same both ways.
    seed : int
        Of its random numbers; `fitting.fit_network` sets their state in each epoch.
    always : bool
        Act outside training too. (A network hands its own ``training`` on to its layers, whatever they were
        called with.)
    """

    def __init__(self, zoom: float = 0.1, seed: int = 0, always: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.zoom, self.seed, self.always = zoom, seed, always
        self.generator = random.SeedGenerator(seed)

    def call(self, x, training=False):
        """Augment a batch."""
        if not (training or self.always):
            return x
        # zoom, flip of rows, flip of columns
        drawn = random.uniform((ops.shape(x)[0], 3), seed=self.generator)
        step = 1 + self.zoom * (2 * drawn[:, :1] - 1)
        rows, columns = (
            self._weights(x.shape[1 + axis], ops.where(drawn[:, 1 + axis, None] < 0.5, step, -step), x.dtype)
            for axis in (0, 1)
        )
        # a channel a matrix: on a CPU a third faster than products across channels
        x = ops.transpose(x, (0, 3, 1, 2))
        x = ops.matmul(ops.matmul(rows[:, None], x), ops.transpose(columns, (0, 2, 1))[:, None])
        return ops.transpose(x, (0, 2, 3, 1))

    @staticmethod
    def _weights(size: int, step, dtype):
        """Weigh pixels (batch, made, from) for linear interpolation at steps (batch, 1), mirrored outside."""
        place = (ops.arange(size, dtype="float32") - (size - 1) / 2) * step + (size - 1) / 2
        place = ops.abs(place + 0.5) - 0.5
        place = ops.clip(size - 0.5 - ops.abs(size - 0.5 - place), 0, size - 1)
        return ops.cast(ops.relu(1 - ops.abs(place[:, :, None] - ops.arange(size, dtype="float32"))), dtype)

    def compute_output_shape(self, input_shape):
        """Give the shape that it was given."""
        return input_shape


def default_augmentation(seed: int, *, always: bool = False) -> layers.Layer:
    """Make the layer that augments training images, for float (batch, height, width, channels), RGB 0..255.

    Parameters
    ----------
    seed : int
    always : bool
        Whether it acts outside training too.
    """
    return FlipAndZoom(seed=seed, always=always, dtype="float32")


def augmented(images, seed: int) -> np.ndarray:
    """Augment images as training does.

    Parameters
    ----------
    images : array (N, height, width, 3), RGB 0..255

    Returns
    -------
    uint8 array of the same shape
    """
    found = default_augmentation(seed)(np.asarray(images, dtype="float32"), training=True)
    return ops.convert_to_numpy(found).round().clip(0, 255).astype("uint8")
