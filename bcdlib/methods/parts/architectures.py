"""A base that keras.applications lacks: GoogLeNet (Inception v1), without its top.

Same arguments as the constructors of keras.applications. Padding is "same" where the publication pads, so
that feature maps at 224x224 have the published sizes and smaller images still pass.
"""

from keras import Input, Model, layers

# Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, Table 1:
# #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj
INCEPTION = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def chain(x, *chained):
    """Connect a Keras tensor to layers, one behind the other."""
    for layer in chained:
        x = layer(x)
    return x


def GoogLeNet(include_top=False, weights=None, input_shape=(224, 224, 3), *, name="googlenet") -> Model:
    """Build GoogLeNet (Inception v1) without top and auxiliary heads.

    From (height, width, 3) to (height/32, width/32, 1024). Szegedy et al., CVPR 2015, Table 1. Local response
    normalisation, which has no weights and which later work found to matter little, is left out.

    Parameters
    ----------
    weights : path of a Keras weights file, or None
    """
    inputs = Input(input_shape)
    x = chain(
        inputs,
        _conv(64, 7, 2, "conv1"),
        layers.MaxPooling2D(3, 2, padding="same", name="pool1"),
        _conv(64, 1, 1, "conv2_reduce"),
        _conv(192, 3, 1, "conv2"),
        layers.MaxPooling2D(3, 2, padding="same", name="pool2"),
    )
    for block, widths in INCEPTION.items():
        x = _inception(x, f"inception_{block}", *widths)
        if block in ("3b", "4e"):
            x = layers.MaxPooling2D(3, 2, padding="same", name=f"pool{block[0]}")(x)
    return _finished(inputs, x, include_top, weights, name)


def _conv(filters: int, size: int, strides: int, name: str) -> layers.Layer:
    return layers.Conv2D(filters, size, strides=strides, padding="same", activation="relu", name=name)


def _inception(x, name: str, one, three_reduce, three, five_reduce, five, pool):
    return layers.Concatenate(name=name)(
        [
            _conv(one, 1, 1, f"{name}_1x1")(x),
            chain(x, _conv(three_reduce, 1, 1, f"{name}_3x3_reduce"), _conv(three, 3, 1, f"{name}_3x3")),
            chain(x, _conv(five_reduce, 1, 1, f"{name}_5x5_reduce"), _conv(five, 5, 1, f"{name}_5x5")),
            chain(
                x,
                layers.MaxPooling2D(3, 1, padding="same", name=f"{name}_pool"),
                _conv(pool, 1, 1, f"{name}_pool_proj"),
            ),
        ]
    )


def _finished(inputs, x, include_top, weights, name) -> Model:
    if include_top:
        raise ValueError(f"{name}: only the base is here, without its top")
    model = Model(inputs, x, name=name)
    if weights is not None:
        model.load_weights(weights)
    return model
