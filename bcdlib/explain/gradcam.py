"""Grad-CAM: where a network looks, for any Keras model with convolutions, on TensorFlow or JAX.

The map is that of Selvaraju et al. (2017), with one change of Draelos & Carin (2020, "HiResCAM"): gradient
and feature map are multiplied place by place before they are added up. Behind global average pooling, as in
the paper's network, both are the same map; where a network flattens its feature map, averaging the gradient
over places first would forget which places count. No kept library does this for Keras 3 on both backends
(eli5 and tf-keras-vis need TensorFlow), hence this small piece; `_gradient` is the one place in the suite
that asks a backend for its own gradient.
"""

import keras
import numpy as np

from bcdlib.errors import InputError
from bcdlib.methods.parts import architectures, fitting, networks


def compute_gradcam(network: keras.Model, X, classes=None) -> np.ndarray:
    """Map what in each image speaks for its predicted class.

    Parameters
    ----------
    network : keras.Model
        Images -> (N, 1), the probability of class 1, or (N, classes). The feature map is the last one with
        height and width, wherever it stands, also in a network within the network; if there are several (an
        ensemble), their maps are added.
    X : array (N, height, width, channels), as the network takes it
    classes : int array (N,), optional
        The class to explain; default: the one that the network predicts, at 0.5 or the most probable.

    Notes
    -----
    All images go through the network at once: give it tens of them, not thousands.

    Returns
    -------
    float32 array (N, height, width)
        0..1: the largest value of an image is 1, or all are 0 where nothing speaks for the class.

    Raises
    ------
    InputError
        If the network has no feature map, or cuts images other than into a square grid; or if the backend is
        neither TensorFlow nor JAX.
    """
    X = np.asarray(X)
    before, scores, limit = _parts(network)
    if len(X) == 0:
        return np.zeros(X.shape[:3], "float32")
    feature_maps = [keras.ops.convert_to_tensor(one) for one in keras.tree.flatten(before(X, training=False))]
    outputs = keras.ops.convert_to_numpy(scores(feature_maps))
    columns = outputs.shape[1]
    if classes is None:
        classes = outputs[:, 0] >= limit if columns == 1 else outputs.argmax(axis=1)
    direction = np.where(classes, 1.0, -1.0)[:, None] if columns == 1 else np.eye(columns)[classes]
    direction = direction.astype("float32")
    gradients = _gradient(lambda values: keras.ops.sum(scores(values) * direction), feature_maps)
    total = 0.0
    for one, gradient in zip(feature_maps, gradients, strict=True):
        if len(one) != len(X):
            raise InputError(
                f"this network makes {len(one)} feature maps of {len(X)} images: there is no map of where "
                "it looks"
            )
        each = keras.ops.relu(keras.ops.sum(one * gradient, axis=-1, keepdims=True))
        total += keras.ops.convert_to_numpy(keras.ops.image.resize(each, X.shape[1:3]))[..., 0]
    largest = total.max(axis=(1, 2), keepdims=True)
    return np.divide(total, largest, out=np.zeros_like(total), where=largest > 0)


def last_features(network: keras.Model, X) -> np.ndarray:
    """Compute pooled features of images: layer ``pool``, or without one the mean of each last feature map.

    Returns
    -------
    float32 array (N, channels)

    Raises
    ------
    InputError
        If the network has neither.
    """
    return fitting.predict_batches(_feature_network(network), X)


@networks.once
def _feature_network(network: keras.Model) -> keras.Model:
    if "pool" in [layer.name for layer in network.layers]:
        pooled = network.get_layer("pool").output
    else:
        network = _parts(network)[0]
        pooled = keras.ops.concatenate([keras.ops.mean(one, axis=(1, 2)) for one in network.outputs], axis=-1)
    return keras.Model(network.inputs[0], pooled)


def _gradient(score, tensors):
    """Return the gradient of score(tensors), a number, by each of the tensors."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = score(tensors)
        return tape.gradient(value, tensors)
    if backend == "jax":
        import jax

        return jax.grad(score)(tensors)
    raise InputError(f"Grad-CAM needs the backend tensorflow or jax, not {backend!r}; set KERAS_BACKEND")


@networks.once
def _parts(network: keras.Model):
    """Cut a network at its last feature maps.

    Returns a model images -> maps, a function maps -> scores (N, classes), and the score from which on a
    single output means class 1. A sigmoid or softmax at the end is left out: where it is saturated, its
    gradient is zero and no map would remain.
    """
    last = network.layers[-1]
    plain = (
        isinstance(last, keras.layers.Dense | keras.layers.Activation)
        and last.output is network.outputs[0]
        and last.activation in (keras.activations.sigmoid, keras.activations.softmax)
    )
    before, after = _cut(network, last if plain else None)
    if not plain:
        return before, lambda maps: after(maps, training=False), 0.5
    if isinstance(last, keras.layers.Activation):
        return before, lambda maps: after(maps, training=False), 0.0
    bias = 0.0 if last.bias is None else last.bias
    # before the sigmoid, 0 is what 0.5 is behind it
    return before, lambda maps: keras.ops.matmul(after(maps, training=False), last.kernel) + bias, 0.0


def _cut(network: keras.Model, without=None) -> tuple[keras.Model, keras.Model]:
    operations = getattr(network, "operations", network.layers)
    # without models and inputs: a model's own input is not that of its call
    plain = [one for one in operations if not isinstance(one, keras.layers.InputLayer | keras.Model)]
    used = {id(tensor): tensor for one in plain for tensor in filter(_is_map, keras.tree.flatten(one.input))}
    # what goes on as a feature map, whatever else looks at it (squeeze and excitation), is not the last
    going_on = [one for one in plain if any(map(_is_map, keras.tree.flatten(one.output)))]
    inside = {id(tensor) for one in going_on for tensor in keras.tree.flatten(one.input)}
    last = [tensor for key, tensor in used.items() if key not in inside]
    if last:
        return (
            keras.Model(network.inputs[0], last),
            keras.Model(last, without.input if without else network.outputs[0]),
        )
    for place, inner in enumerate(operations):
        if isinstance(inner, keras.Model) and _is_map(inner.inputs[0]) and not _is_map(inner.outputs[0]):
            return _cut_within(network, operations, place, without)
    raise InputError(f"network {network.name!r}: a map needs a feature map, and this network has none")


def _cut_within(network, operations, place: int, without):
    """Cut inside a base that pools by itself and stands in a chain of layers."""
    before, after = _cut(operations[place])
    first = [layer for layer in operations[:place] if not isinstance(layer, keras.layers.InputLayer)]
    last = [layer for layer in operations[place + 1 :] if layer is not without]
    feature_maps = [keras.Input(one.shape[1:]) for one in before.outputs]
    return (
        keras.Model(network.inputs[0], architectures.chain(network.inputs[0], *first, before)),
        keras.Model(feature_maps, architectures.chain(feature_maps, after, *last)),
    )


def _is_map(tensor) -> bool:
    return len(tensor.shape) == 4 and tuple(tensor.shape[1:3]) != (1, 1)
