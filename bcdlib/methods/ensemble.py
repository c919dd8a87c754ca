"""DenseNet201, VGG19 and MobileNetV2 side by side (Kassani 2019)."""

from keras import layers

from bcdlib.methods._keras import KerasMethod, chain


class Ensemble(KerasMethod):
    """Pooled features of DenseNet201, VGG19 and MobileNetV2, concatenated, and a perceptron on them.

    Publication: Kassani et al., "Classification of Histopathological Biopsy Images Using Ensemble of Deep
    Learning Networks", CASCON 2019. Printed: 98.13 % on BreakHis (Table II, as printed; split not stated
    there). The publication was not at hand. Known of it: the three bases, features concatenated into one
    perceptron, stain normalisation and augmentation in front. Chosen here: Macenko's stain normalisation,
    global average pooling, one hidden layer of 256 with ReLU, dropout 0.5, cross-entropy, RMSprop.
    """

    key = "ensemble"
    title = "DenseNet201 + VGG19 + MobileNetV2"
    architectures = ("densenet201", "vgg19", "mobilenet_v2")
    changes = {"head": {"learning_rate": 0.0005}}

    def __init__(self, *, stain="macenko", **settings):
        super().__init__(stain=stain, **settings)

    def build_head(self, x):
        """Append a dense layer and dropout."""
        return chain(
            x, layers.Dense(256, activation="relu", name="dense"), layers.Dropout(0.5, name="dropout")
        )
