"""GoogLeNet, fine-tuned (Sun & Binder 2017)."""

import keras

from bcdlib.methods._keras import KerasMethod


class GoogLeNet(KerasMethod):
    """GoogLeNet (Inception v1), pooled, dropout 40 %, one output layer: its own top, for this task.

    Publication: J. Sun and A. Binder, "Comparison of deep learning architectures for H&E histopathology
    images", ICBDA 2017. Printed: 95.00 % (Table II, as printed; split not stated there). The publication was
    not at hand, and nothing further is known (it compared GoogLeNet, CaffeNet and ResNet-50; what 95 stands
    for is not known). Known from Table II: a pre-trained GoogLeNet. Chosen here: the top as in Szegedy et al.
    2015 (global average pooling, dropout 0.4), no auxiliary heads, cross-entropy, RMSprop. Keras has no
    ImageNet weights of GoogLeNet: they come from a folder with ``googlenet_notop.weights.h5``, or the network
    starts from random ones.
    """

    key = "googlenet"
    title = "GoogLeNet"
    architectures = ("googlenet",)
    changes = {"head": {"learning_rate": 0.001}}

    def build_head(self, x):
        """Append dropout."""
        return keras.layers.Dropout(0.4, name="dropout")(x)
