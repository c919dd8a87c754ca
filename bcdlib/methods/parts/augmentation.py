"""Real-time augmentation as a layer that compiles."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="bcdlib")
class FlipAndZoom(keras.layers.Layer):
    """Flips on both axes (both together: a half turn) and zooms, anew for each picture of each training batch.

    The paper does not say which augmentation it used; tissue has no up or down. A quarter turn would cut a third off a 3:2
    picture, so none here. As keras.layers.RandomFlip and RandomZoom with ``fill_mode="reflect"``; but RandomZoom cannot be
    compiled by XLA, and one such layer keeps the whole training step from it: on a GPU under TensorFlow, and under JAX
    everywhere, where Keras then runs it operation by operation. This is one product with a matrix each way.

    Takes and gives float (batch, height, width, channels); acts while training.

    Parameters
    ----------
    zoom : float, 0 to 1
        Pictures are scaled by 1 / (1 - zoom) to 1 / (1 + zoom), the same both ways.
    seed : int
        Of its random numbers; see also `fitting.EpochSeeds`.
    always : bool
        Act outside training too. (A network passes its own ``training`` on to its layers, whatever they were called with.)
    """

    def __init__(self, zoom: float = 0.1, seed: int = 0, always: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.zoom, self.seed, self.always = zoom, seed, always
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, x, training=False):
        if not (training or self.always):
            return x
        drawn = keras.random.uniform(
            (ops.shape(x)[0], 3), seed=self.generator
        )  # zoom, flip of rows, flip of columns
        step = 1 + self.zoom * (2 * drawn[:, :1] - 1)
        rows, columns = (
            self._weights(x.shape[1 + axis], ops.where(drawn[:, 1 + axis, None] < 0.5, step, -step), x.dtype)
            for axis in (0, 1)
        )
        x = ops.transpose(
            x, (0, 3, 1, 2)
        )  # a channel a matrix: on a CPU a third faster than products across channels
        x = ops.matmul(ops.matmul(rows[:, None], x), ops.transpose(columns, (0, 2, 1))[:, None])
        return ops.transpose(x, (0, 2, 3, 1))

    @staticmethod
    def _weights(size: int, step, dtype):
        """Of linear interpolation, (batch, made, from), for steps (batch, 1) from pixel to pixel; mirrored outside."""
        place = (ops.arange(size, dtype="float32") - (size - 1) / 2) * step + (size - 1) / 2
        place = ops.abs(place + 0.5) - 0.5
        place = ops.clip(size - 0.5 - ops.abs(size - 0.5 - place), 0, size - 1)
        return ops.cast(ops.relu(1 - ops.abs(place[:, :, None] - ops.arange(size, dtype="float32"))), dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {"zoom": self.zoom, "seed": self.seed, "always": self.always}
