"""DenseNet201 with a pooled, dropped-out head (Sagar 2019)."""

from keras import layers

from bcdlib.methods._keras import KerasMethod, chain


class DenseNet201(KerasMethod):
    """DenseNet201 with ImageNet weights, pooled, dropout 50 %, batch norm, one output layer.

    Publication: A. Sagar, "Convolutional Neural Network for Breast Cancer Classification", Towards Data
    Science (Medium), 2019: an article, not peer-reviewed. Printed: 98.30 % (Table II, as printed; split not
    stated there). The article was not at hand. Known from Table II: a pre-trained DenseNet201. Chosen here:
    global average pooling, dropout 0.5, batch norm, cross-entropy, RMSprop at the profile's rate.
    """

    key = "densenet201"
    title = "DenseNet201"
    architectures = ("densenet201",)
    changes = {"head": {"learning_rate": 0.001}}

    def build_head(self, x):
        """Append dropout and batch norm."""
        return chain(
            x,
            layers.Dropout(0.5, name="dropout"),
            layers.BatchNormalization(momentum=0.9, name="batch_norm"),
        )
