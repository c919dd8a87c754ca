"""A customised LeNet-5, trained from scratch (Dabeer 2019)."""

from keras import layers

from bcdlib.methods._keras import KerasMethod, chain


class LeNet5(KerasMethod):
    """LeNet-5's plan (two 5x5 convolutions, two dense layers) in colour, with ReLU, max pooling and dropout.

    Publication: Dabeer, Khan & Islam, "Cancer diagnosis in histopathological image: CNN based approach",
    Informatics in Medicine Unlocked 16, 2019. Printed: 93.45 % (Table II, as printed; split not stated
    there). The publication was not at hand. Known from Table II: a customised LeNet-5. Chosen here: 16 and 32
    maps for LeNet-5's 6 and 16, four-fold pooling after the first convolution (the images are larger than
    LeNet's 32x32), dense layers of 120 and 84 as in LeNet-5, dropout 0.3, cross-entropy, RMSprop at 0.001 (no
    weights to protect). Always trained whole.
    """

    key = "lenet5"
    title = "Customised LeNet-5"
    changes = {"all": {"learning_rate": 0.001}}

    def build_features(self, x):
        """Build the convolutions."""
        x = layers.Rescaling(1 / 127.5, offset=-1.0, name="normalisation")(x)
        for maps, pool in ((16, 4), (32, 2)):
            x = chain(
                x,
                layers.Conv2D(maps, 5, padding="same", activation="relu", name=f"conv_{maps}"),
                layers.MaxPooling2D(pool, name=f"pool_{maps}"),
            )
        return layers.Flatten(name="flatten")(x)

    def build_head(self, x):
        """Append the dense layers and dropout."""
        return chain(
            x,
            layers.Dense(120, activation="relu", name="dense_120"),
            layers.Dense(84, activation="relu", name="dense_84"),
            layers.Dropout(0.3, name="dropout"),
        )
