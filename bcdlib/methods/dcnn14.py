"""A plain network of 14 layers, trained from scratch (Adeshina 2018)."""

from keras import layers

from bcdlib.methods._keras import KerasMethod, chain


class DCNN14(KerasMethod):
    """Twelve convolutions of 3x3 in five stages and two dense layers: 14 layers with weights.

    Publication: Adeshina et al., "Breast cancer histopathology image classification with deep convolutional
    neural networks", ICECCO 2018. Printed: 91.5 % (Table II; probably for the eight subtypes). The
    publication was not at hand, and nothing further is known. Known from Table II: 14 layers, "DCNN-14".
    Chosen here: VGG's plan (3x3, ReLU, maps doubled after each pooling) with 16 to 128 maps, batch norm,
    without which so deep a plain network hardly starts, global average pooling, dropout 0.3, cross-entropy,
    RMSprop at 0.001 (no weights to protect). Always trained whole.
    """

    key = "dcnn14"
    title = "DCNN-14"
    changes = {"all": {"learning_rate": 0.001}}
    stages = ((16, 2), (32, 2), (64, 3), (128, 3), (128, 2))  # maps, convolutions

    def build_features(self, x):
        """Build the convolutions."""
        x = layers.Rescaling(1 / 127.5, offset=-1.0, name="normalisation")(x)
        for stage, (maps, count) in enumerate(self.stages, 1):
            if stage > 1:
                x = layers.MaxPooling2D(2, padding="same", name=f"pool_{stage}")(x)
            for number in range(1, count + 1):
                x = chain(
                    x,
                    layers.Conv2D(maps, 3, padding="same", use_bias=False, name=f"conv_{stage}_{number}"),
                    layers.BatchNormalization(momentum=self.momentum, name=f"norm_{stage}_{number}"),
                    layers.ReLU(name=f"relu_{stage}_{number}"),
                )
        return layers.GlobalAveragePooling2D(name="pool")(x)

    def build_head(self, x):
        """Append a dense layer and dropout."""
        return chain(
            x, layers.Dense(64, activation="relu", name="dense"), layers.Dropout(0.3, name="dropout")
        )
