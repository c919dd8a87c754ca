"""A small network on patches of the image, their probabilities fused by a rule (Spanhol 2016)."""

import functools

import keras
import numpy as np

from bcdlib.errors import InputError
from bcdlib.methods._keras import KerasMethod, chain
from bcdlib.methods._recipe import Recipe
from bcdlib.methods._training import AUGMENTATION
from bcdlib.methods.parts import losses


class AlexNet(KerasMethod):
    """Three 5x5 convolutions on patches of 32 or 64 pixels, from scratch, and a rule that fuses patches.

    Publication: Spanhol et al., "Breast Cancer Histopathological Image Classification using Convolutional
    Neural Networks", IJCNN 2016. Printed: 84.60 % (Table II), which is of one magnification only. As far as
    known it is either the patient score of this network at 200X with the rule "max" (90.0, 88.4, 84.6 and
    86.1 from 40X to 400X), or, at 40X, of a paper of 2017 on DeCaf features.

    Seen in WendyDong/BreastCancerCNN, whose README calls its ``deploy_32.prototxt`` and
    ``deploy_64.prototxt`` the networks of this publication: convolutions of 32, 32 and 64 maps, pooling of
    3x3 by 2 (max, average, average), dense layers of 64 and 2 (here one sigmoid, which is the same), Xavier
    weights, biases of 0.2; patches of 32x32 or 64x64 of images of 350x230, 1000 at random or all 260 or 54 of
    a sliding window. These are not AlexNet's layers, nor are there pre-trained weights: the name is Table
    II's. Inferred: the window slides by half a patch, which gives 260 and 54. As far as known: from scratch,
    SGD, the author's five folds by patient, rules sum, product and max. Chosen here: momentum 0.9 at rate
    0.01, batches of 32 images with 20 patches of each drawn anew, pixels in -1..1, no other augmentation. The
    publication was not at hand. Profile demo cuts the patches out of its own small images.

    Parameters
    ----------
    patch : int
        Side of the patches: 32 or 64 pixels.
    fusion : "sum", "product" or "max"
        See `fuse`.
    """

    key = "alexnet"
    title = "AlexNet (small network on patches)"
    choices = KerasMethod.choices | {"fusion": ("sum", "product", "max"), "patch": (32, 64)}
    changes = {"all": {"learning_rate": 0.001}}
    authors = Recipe(
        functools.partial(keras.optimizers.SGD, momentum=0.9), learning_rate=0.01, size=(350, 230)
    )

    def __init__(self, *, patch=32, fusion="sum", **settings):
        super().__init__(**settings)
        self.patch = patch
        self.fusion = fusion

    def build_augmentation(self):
        """Leave images as they are under the authors' recipe: patches are drawn anew."""
        if self.recipe == "paper":
            return super().build_augmentation()
        return keras.layers.Identity(name=AUGMENTATION)

    def build_features(self, x):
        """Cut patches, and build the convolutions on them; (batch * patches, channels)."""
        if min(x.shape[1:3]) < self.patch:
            raise InputError(
                f"{self.key}: patch={self.patch} is larger than the images, {x.shape[2]}x{x.shape[1]}; give "
                "larger images"
            )
        x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="normalisation", dtype="float32")(x)
        x = Patches(self.patch, seed=self.seed, name="patches", dtype="float32")(x)
        return self._convolutions(x)

    def _convolutions(self, x):
        bias = keras.initializers.Constant(0.2)
        pools = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D, keras.layers.AveragePooling2D)
        for number, (maps, pool) in enumerate(zip((32, 32, 64), pools, strict=True), 1):
            x = chain(
                x,
                keras.layers.Conv2D(
                    maps, 5, padding="same", activation="relu", bias_initializer=bias, name=f"conv_{number}"
                ),
                pool(3, 2, padding="same", name=f"pool_{number}"),
            )
        return chain(
            x,
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(64, activation="relu", bias_initializer=bias, name="dense"),
        )

    def build_outputs(self, x):
        """Append the output for each patch."""
        return self.output("patch_probability")(x)

    def build_loss(self):
        """Give the loss of all patches, each with its image's label."""
        return patch_loss

    def build_metric(self):
        """Make the accuracy of the patches."""
        return keras.metrics.MeanMetricWrapper(patch_accuracy, name="accuracy")

    def _predictor(self, model):
        """Connect whole images to their fused probability, with layers of Keras alone."""
        if len(model.inputs[0].shape) != 4 or "patches" not in {layer.name for layer in model.layers}:
            return super()._predictor(model)
        images = keras.Input(model.inputs[0].shape[1:], dtype="uint8", name="image")
        x = model.get_layer("normalisation")(keras.layers.Rescaling(1.0, name="as_float")(images))
        places = [window_places(side, self.patch) for side in x.shape[1:3]]
        number = len(places[0]) * len(places[1]) // self.patch**2
        x = take_patches(x, *places, self.patch)
        behind = [layer.name for layer in model.layers].index("patches") + 1
        x = chain(x, *model.layers[behind:])
        x = keras.layers.Reshape((number, self.units), name="each")(
            keras.ops.reshape(x, (-1, number * self.units))
        )
        fused = keras.layers.Identity(name="probability")(fuse(x, self.fusion))
        return keras.Model(images, fused, name=self.key)


def window_places(side: int, patch: int) -> np.ndarray:
    """List the pixels along one side that a window sees which slides by half a patch, patch by patch.

    Examples
    --------
    >>> [[len(window_places(side, patch)) // patch for side in (350, 230)] for patch in (32, 64)]
    [[20, 13], [9, 6]]
    """
    return (np.arange(0, side - patch + 1, patch // 2)[:, None] + np.arange(patch)).ravel()


def take_patches(x, rows, columns, patch: int):
    """Cut square patches.

    Parameters
    ----------
    x : tensor (batch, height, width, 3)
    rows, columns : int array or tensor (R * patch,) and (C * patch,)
        Which pixels along each side, patch by patch.
    patch : int

    Returns
    -------
    tensor (batch * R * C, patch, patch, 3)
        An image's patches one after the other, row by row.
    """
    x = keras.ops.take(keras.ops.take(x, rows, axis=1), columns, axis=2)
    shape = (-1, rows.shape[0] // patch, patch, columns.shape[0] // patch, patch, 3)
    x = keras.ops.transpose(keras.ops.reshape(x, shape), (0, 1, 3, 2, 4, 5))
    return keras.ops.reshape(x, (-1, patch, patch, 3))


@keras.saving.register_keras_serializable("bcdlib")
class Patches(keras.layers.Layer):
    """Cut patches: in training some at random, the same places for all images of a batch; else a window's.

    Takes float (batch, height, width, 3), gives float (batch * patches, patch, patch, 3).
    """

    DRAWN = (4, 5)  # in training: places along the height, and along the width

    def __init__(self, patch: int, seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.patch, self.seed = patch, seed
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, x, training=False):
        """Cut patches out of a batch."""
        sides = x.shape[1:3]
        if not training:
            return take_patches(x, *(window_places(side, self.patch) for side in sides), self.patch)
        places = []
        for count, side in zip(self.DRAWN, sides, strict=True):
            starts = keras.random.randint((count, 1), 0, side - self.patch + 1, seed=self.generator)
            places.append(keras.ops.reshape(starts + keras.ops.arange(self.patch, dtype="int32"), (-1,)))
        return take_patches(x, *places, self.patch)

    def compute_output_shape(self, input_shape):
        """Give the shape of the patches."""
        return (None, self.patch, self.patch, 3)

    def get_config(self):
        """Give the arguments of the constructor."""
        return super().get_config() | {"patch": self.patch, "seed": self.seed}


def _of_patches(y, p):
    """Repeat labels (batch, 1) for the patches of each image."""
    return keras.ops.repeat(y, keras.ops.shape(p)[0] // keras.ops.shape(y)[0], axis=0)


@keras.saving.register_keras_serializable("bcdlib")
def patch_loss(y_true, y_pred):
    """Compute the cross-entropy of each patch, which has its image's label."""
    return losses.cross_entropy(_of_patches(y_true, y_pred), y_pred)


@keras.saving.register_keras_serializable("bcdlib")
def patch_accuracy(y_true, y_pred):
    """Say of each patch whether it is predicted correctly, 1 or 0."""
    return losses.accuracy(_of_patches(y_true, y_pred), y_pred)


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
