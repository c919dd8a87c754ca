"""A small network that its authors call a customised LeNet-5, trained from scratch (Dabeer 2019)."""

from keras import layers

from bcdlib.methods._keras import KerasMethod, chain


class LeNet5(KerasMethod):
    """Three 5x5 convolutions of 32, 64 and 128 maps, 3x3 pooling, and two dense layers of 64.

    Publication: Dabeer, Khan & Islam, "Cancer diagnosis in histopathological image: CNN based approach",
    Informatics in Medicine Unlocked 16, 2019. Printed: 93.45 % (Table II), which is of single images of all
    magnifications: 7909, of which 6327 train and 1582 test; that they were drawn by image is inferred.

    Seen: two reconstructions by others have these convolutions, 3x3 pooling, two dense layers of 64 and a
    softmax of two (here one sigmoid, which is the same); they differ on the pooling after the first. These
    are not LeNet-5's layers: the name is Table II's. Seen in a student's text: the 6327 and 1582 images.
    Inferred: pooling by 3 after each convolution, padding, ReLU. Nothing is known of the size of the images,
    optimizer, rate, batch size and epochs: the profile's, with the rate 0.001 (no weights to protect), and
    cross-entropy. Always trained whole. The publication was not at hand.
    """

    key = "lenet5"
    title = "Customised LeNet-5"
    changes = {"all": {"learning_rate": 0.001}}

    def build_features(self, x):
        """Build the convolutions."""
        x = layers.Rescaling(1 / 127.5, offset=-1.0, name="normalisation")(x)
        for maps in (32, 64, 128):
            x = chain(
                x,
                layers.Conv2D(maps, 5, padding="same", activation="relu", name=f"conv_{maps}"),
                layers.MaxPooling2D(3, padding="same", name=f"pool_{maps}"),
            )
        return layers.Flatten(name="flatten")(x)

    def build_head(self, x):
        """Append the dense layers."""
        return chain(
            x,
            layers.Dense(64, activation="relu", name="dense_1"),
            layers.Dense(64, activation="relu", name="dense_2"),
        )
