"""AlexNet on patches of the image, their probabilities fused by a rule (Spanhol 2016)."""

import keras
import numpy as np

from bcdlib.methods._keras import KerasMethod, chain


class AlexNet(KerasMethod):
    """AlexNet's convolutions on four patches of an image, two dense layers, and a rule that fuses patches.

    Publication: Spanhol et al., "Breast Cancer Histopathological Image Classification using Convolutional
    Neural Networks", IJCNN 2016. Printed: 84.60 % (Table II, as printed; split not stated there). The
    publication was not at hand. Known of it: an AlexNet trained on patches of the images, patch results fused
    by sum, product or max. Chosen here: the image cut into 2x2 equal patches, each learnt with the image's
    label; AlexNet's five convolution layers (Krizhevsky et al. 2012); dense layers of 512 and 512 for its
    4096 and 4096, and dropout 0.5; the sum rule unless told otherwise; cross-entropy, RMSprop. Keras has no
    ImageNet weights of AlexNet: they come from a folder with ``alexnet_notop.weights.h5``, or the network
    starts from random ones.

    Parameters
    ----------
    fusion : "sum", "product" or "max"
        See `fuse`.
    patches : int
        The image is cut into patches x patches.
    """

    key = "alexnet"
    title = "AlexNet on patches"
    architectures = ("alexnet",)
    pooling = "flatten"
    choices = KerasMethod.choices | {"fusion": ("sum", "product", "max")}

    def __init__(self, *, fusion="sum", patches=2, **settings):
        super().__init__(**settings)
        self.fusion = fusion
        self.patches = patches

    def build_outputs(self, x):
        """Append two dense layers with dropout, and the output, for each patch."""
        number = self.patches**2
        x = keras.layers.Reshape((number, x.shape[-1] // number), name="patches")(x)
        for layer in (1, 2):
            x = chain(
                x,
                keras.layers.Dense(512, activation="relu", name=f"dense_{layer}"),
                keras.layers.Dropout(0.5, name=f"dropout_{layer}"),
            )
        return self.output("patch_probability")(x)

    def build_prediction(self, model):
        """Fuse the patches."""
        return keras.layers.Identity(name="probability")(fuse(model.output, self.fusion))

    def targets(self, y, images=None):
        """Give each patch its image's label; (N, patches**2, 1)."""
        return np.repeat(np.asarray(y)[:, None, None], self.patches**2, axis=1)


def fuse(p, rule: str):
    """Fuse patch probabilities by a rule.

    Kittler et al., "On combining classifiers", IEEE TPAMI 20(3), 1998. The rule acts on each class over the
    patches; then the classes are brought to the sum 1.

    Parameters
    ----------
    p : tensor (batch, patches, classes) or (batch, patches, 1)
        Probabilities of all classes, or of the second of two.
    rule : "sum", "product" or "max"

    Returns
    -------
    tensor (batch, classes) or (batch, 1)
    """
    two = p.shape[-1] == 1
    if two:
        p = keras.ops.concatenate([1 - p, p], axis=-1)
    if rule == "product":
        p = keras.ops.maximum(p, 1e-6)  # so that one patch alone cannot veto all others
        p = keras.ops.softmax(keras.ops.sum(keras.ops.log(p), axis=1), axis=-1)
    else:
        p = (keras.ops.mean if rule == "sum" else keras.ops.max)(p, axis=1)
        p = p / keras.ops.sum(p, axis=-1, keepdims=True)
    return p[:, 1:] if two else p
