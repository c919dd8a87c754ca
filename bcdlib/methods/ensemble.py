"""Intermediate layers of frozen DenseNet201 and MobileNetV2, and a perceptron on them (Kassani 2019)."""

import functools

import keras

from bcdlib.errors import InputError
from bcdlib.methods._keras import KerasMethod, chain
from bcdlib.methods._recipe import Recipe

# of which layers the channels' means are features; of VGG19, which the authors' notebook lacks, the last
LAYERS = {
    "densenet201": (
        "conv2_block1_0_bn",
        "conv3_block1_0_bn",
        "conv4_block1_0_bn",
        "conv5_block1_0_bn",
        "conv5_block30_1_relu",
        "conv5_block31_2_conv",
        "conv5_block32_1_bn",
    ),
    "mobilenet_v2": ("block_15_depthwise_BN",),
    "vgg19": ("block5_pool",),
}


class Ensemble(KerasMethod):
    """Means of eight intermediate layers of frozen DenseNet201 and MobileNetV2, and a perceptron on them.

    Publication: Kassani et al., "Classification of Histopathological Biopsy Images Using Ensemble of Deep
    Learning Networks", CASCON 2019. Printed: 98.13 % on BreakHis (Table II), which is 684 of 697 test images
    (216 benign, 481 malignant) of all magnifications; drawn by image, as far as the repository's split script
    shows.

    Seen in sara-kassani/paper-codes, Classification-of-histopathological-biopsy-images/BreakHis-3path-CNN:
    the eight layers (2592 features: 1632 of DenseNet201, 960 of MobileNetV2). VGG19, which Table II names, is
    loaded there, but none of its layers is among the eight: ``bases=densenet201+mobilenet_v2+vgg19`` adds its
    512. Seen too: 224x224, pixels in 0..1, Dense 256 with ReLU, dropout 0.5; Adam at 0.0001 with betas 0.7
    and 0.995 and amsgrad, batches of 32, 1000 epochs; 36224 benign and 79168 malignant training images, 16
    times what whole numbers of BreakHis images give, so fifteen augmented copies of each (profile paper only;
    which operations is inferred, here they are flips and zooms; the notebook's generator zooms and shears by
    0.2 too). A stain script (Reinhard) is of another data set: none here. Always frozen. Profiles quick and
    demo make no copies, and demo keeps its small images.

    Parameters
    ----------
    bases : str
        Of ``densenet201``, ``mobilenet_v2`` and ``vgg19``, with ``+`` between.
    """

    key = "ensemble"
    title = "DenseNet201 + MobileNetV2, intermediate layers"
    always = "head"
    changes = {"head": {"learning_rate": 0.0005}}
    authors = Recipe(
        functools.partial(keras.optimizers.Adam, beta_1=0.7, beta_2=0.995, amsgrad=True),
        learning_rate=0.0001,
        batch_size=32,
        epochs=1000,
        size=(224, 224),
        pixels="unit",
        standardised=False,
        settings={"augmented_copies": 15},
        shorter={"augmented_copies": 0},
    )

    def __init__(self, *, bases="densenet201+mobilenet_v2", **settings):
        super().__init__(**settings)
        self.bases = bases

    @property
    def architectures(self) -> tuple[str, ...]:
        """The bases, by name."""
        return tuple(self.bases.split("+"))

    def base_options(self, name):
        """Take the means of the layers of `LAYERS`."""
        return super().base_options(name) | {"pooling": f"layers-{','.join(LAYERS[name])}"}

    def _prepare(self):
        if unknown := [name for name in self.architectures if name not in LAYERS]:
            raise InputError(
                f"{self.key}: bases={self.bases!r}: {unknown[0]!r} is none; give {'+'.join(LAYERS)}, or some"
            )
        super()._prepare()

    def build_head(self, x):
        """Append a dense layer and dropout."""
        return chain(
            x,
            keras.layers.Dense(256, activation="relu", name="dense"),
            keras.layers.Dropout(0.5, name="dropout"),
        )
