"""DenseNet201 with a pooled, dropped-out head (Sagar 2019)."""

import keras
from keras import layers

from bcdlib.methods._keras import KerasMethod, chain
from bcdlib.methods._recipe import Recipe
from bcdlib.methods.parts import augmentation, fitting


def _augmentation(seed: int) -> layers.Layer:
    turned = layers.RandomRotation(0.25, fill_mode="nearest", seed=seed, dtype="float32")
    zoomed = augmentation.FlipAndZoom(zoom=2.0, seed=seed, dtype="float32")
    return keras.Sequential([zoomed, turned])


class DenseNet201(KerasMethod):
    """DenseNet201 with ImageNet weights, pooled, dropout 50 %, batch norm, one output layer.

    Publication: A. Sagar, "Convolutional Neural Network for Breast Cancer Classification", Towards Data
    Science (Medium), 2019: an article, not peer-reviewed. Printed: 98.30 % (Table II), which is 176 of 179:
    the best of 20 epochs on the validation part (20 % of the training folder, drawn by image), chosen by that
    same accuracy. The author's separate folder of 287 images gave 200, 69.7 % (70.4 % with augmented copies).

    Seen in abhinavsagar/breast-cancer-classification: average pooling, dropout 0.5, batch norm and a softmax
    of two (here one sigmoid, which is the same); Adam at 0.0001, batches of 16, 20 epochs, the rate times 0.2
    after 5 epochs without gain in validation accuracy, the whole network; 224x224, squashed, pixels in 0..255
    as they are; flips, rotations of up to 90 degrees, a zoom range of 2 (of -1 to 3 times; here the same for
    width and height); 588 benign and 594 malignant images. 588 is the number of benign 400X images: so 400X
    only, balanced, is inferred. Here nothing is chosen by the test part: where there is no validation part
    the rate follows the training accuracy. Chosen here: cross-entropy. With ``trainable="head"`` the base
    stays frozen, which is not the author's way: a shortcut for CPUs. Profile demo keeps its small images.
    """

    key = "densenet201"
    title = "DenseNet201"
    architectures = ("densenet201",)
    changes = {"head": {"learning_rate": 0.001}}
    authors = Recipe(
        keras.optimizers.Adam,
        learning_rate=0.0001,
        batch_size=16,
        epochs=20,
        size=(224, 224),
        pixels="raw",
        augmentation=_augmentation,
    )

    @property
    def chooses(self) -> bool:
        """Whether the rate follows the validation part: under the author's recipe."""
        return self.recipe == "authors"

    def build_callbacks(self):
        """Reduce the rate where accuracy stands still."""
        return [fitting.Plateau(factor=0.2, patience=5)] if self.recipe == "authors" else []

    def build_head(self, x):
        """Append dropout and batch norm."""
        return chain(
            x,
            layers.Dropout(0.5, name="dropout"),
            layers.BatchNormalization(momentum=0.9, name="batch_norm"),
        )
