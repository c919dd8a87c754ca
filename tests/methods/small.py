"""A network that is built and traced in a moment."""

import keras

from bcdlib.methods import KerasMethod


class Small(KerasMethod):
    """Batch norm, dropout, MSE and RMSprop, as the paper's network has them."""

    key, title, loss = "small", "test", "mean_squared_error"

    def build_features(self, x):
        x = keras.layers.Rescaling(1 / 127.5, -1)(x)
        x = keras.layers.Conv2D(8, 3, strides=2, use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=self.momentum)(x))
        return keras.layers.GlobalAveragePooling2D(name="pool")(x)

    def build_head(self, x):
        return keras.layers.Dropout(0.4, seed=self.seed)(x) if self.augment else x
