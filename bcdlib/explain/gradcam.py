"""Where a network looks: class activation maps of any Keras model with convolutions, on TensorFlow or JAX.

The map is that of Grad-CAM (Selvaraju et al. 2017), with one change of Draelos & Carin (2020, "HiResCAM"): gradient and
feature map are multiplied place by place before they are added up. Behind global average pooling, as in the paper's
network, both are the same map; where a network flattens its feature map, averaging the gradient over places first would
forget which places count. No kept library does this for Keras 3 on both backends (eli5 and tf-keras-vis need
TensorFlow), hence this small piece; `_gradient` is the one place in the suite that asks a backend for its own gradient.
"""

import keras
import numpy as np

from bcdlib.errors import InputError
from bcdlib.methods.parts.fitting import predict_batches

BATCH = 16


def compute_gradcam(network: keras.Model, X, called=None) -> np.ndarray:
    """What in each picture speaks for the class that it was called.

    Parameters
    ----------
    network : keras.Model
        Pictures -> (N, 1), the probability of class 1, or (N, classes). The feature map is the last one with height and
        width, wherever it stands, also in a network within the network; if there are several (an ensemble), their maps
        are added.
    X : array (N, height, width, channels), as the network takes it
    called : int array (N,), optional
        The class to explain; default: the one that the network calls, at 0.5 or the most probable.

    Returns
    -------
    float32 array (N, height, width), 0..1: the largest value of a picture is 1, or all are 0 where nothing speaks for
    the class.

    Raises
    ------
    InputError
        If the network has no feature map, or cuts pictures other than into a square grid; or if the backend is neither
        TensorFlow nor JAX.
    """
    X = np.asarray(X)
    before, after, weights, bias = _parts(network)
    found = [np.zeros((0, *X.shape[1:3]), "float32")]
    for start in range(0, len(X), BATCH):
        rows = slice(start, start + BATCH)
        found.append(
            _batch(
                before, after, weights, bias, X[rows], None if called is None else np.asarray(called)[rows]
            )
        )
    return np.concatenate(found)


def last_features(network: keras.Model, X) -> np.ndarray:
    """Pooled features of pictures: the layer ``pool``, or, without one, the mean over each last feature map.

    Returns
    -------
    float32 array (N, channels)

    Raises
    ------
    InputError
        If the network has neither.
    """
    if "pool" in [layer.name for layer in network.layers]:
        pooled = network.get_layer("pool").output
    else:
        before, *_ = _parts(network)
        pooled = keras.ops.concatenate([keras.ops.mean(one, axis=(1, 2)) for one in before.outputs], axis=-1)
        network = before
    return predict_batches(keras.Model(network.inputs[0], pooled), X)


def _batch(before, after, weights, bias, X, called):
    feature_maps = [keras.ops.convert_to_tensor(one) for one in _list(before(X, training=False))]

    def scores(values):
        found = after(values, training=False)
        return found if weights is None else keras.ops.matmul(found, weights) + bias

    outputs = keras.ops.convert_to_numpy(scores(feature_maps))
    if called is None:
        limit = 0.5 if weights is None else 0.0  # before the sigmoid, 0 is what 0.5 is behind it
        called = outputs[:, 0] >= limit if outputs.shape[1] == 1 else outputs.argmax(axis=1)
    if outputs.shape[1] == 1:
        direction = np.where(called, 1.0, -1.0)[:, None]
    else:
        direction = np.eye(outputs.shape[1])[called]
    direction = direction.astype("float32")
    gradients = _gradient(lambda values: keras.ops.sum(scores(values) * direction), feature_maps)
    total = 0.0
    for one, gradient in zip(feature_maps, gradients, strict=True):
        each = _joined(keras.ops.relu(keras.ops.sum(one * gradient, axis=-1, keepdims=True)), len(X))
        total += keras.ops.convert_to_numpy(keras.ops.image.resize(each, X.shape[1:3]))[..., 0]
    largest = total.max(axis=(1, 2), keepdims=True)
    return np.divide(total, largest, out=np.zeros_like(total), where=largest > 0)


def _joined(pieces, n: int):
    """One map a picture, of a network that cuts each into a square grid of pieces, row by row (`backbones.cut_patches`)."""
    total, height, width, _ = pieces.shape
    side = round((total // n) ** 0.5)
    if side**2 * n != total:
        raise InputError(
            f"this network makes {total} feature maps of {n} pictures: there is no one map of where it looks"
        )
    grid = keras.ops.reshape(pieces, (n, side, side, height, width))
    return keras.ops.reshape(keras.ops.transpose(grid, (0, 1, 3, 2, 4)), (n, side * height, side * width, 1))


def _gradient(score, tensors):
    """Of score(tensors), a number, by each of the tensors."""
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
    raise InputError(f"maps need the backend tensorflow or jax, not {backend!r}; set KERAS_BACKEND")


def _parts(network: keras.Model):
    """The network cut at its last feature maps: pictures -> maps; maps -> what the output layer gets; its weights, bias.

    A sigmoid or softmax at the end is left out: where it is saturated, its gradient is zero and no map would remain.
    Weights and bias are None if the network ends in something else, which then stays part of the second model.
    """
    last = network.layers[-1]
    plain = (
        isinstance(last, keras.layers.Dense)
        and last.output is network.outputs[0]
        and last.activation in (keras.activations.sigmoid, keras.activations.softmax)
    )
    before, after = _cut(network, last if plain else None)
    if not plain:
        return before, after, None, None
    return before, after, last.kernel, 0.0 if last.bias is None else last.bias


def _cut(network: keras.Model, without=None) -> tuple[keras.Model, keras.Model]:
    operations = getattr(network, "operations", network.layers)
    edge, inside = {}, set()
    for operation in operations:
        if isinstance(
            operation, keras.layers.InputLayer | keras.Model
        ):  # a model's own input is not that of its call
            continue
        ends = not any(map(_is_map, _list(operation.output)))
        for tensor in filter(_is_map, _list(operation.input)):
            edge[id(tensor)] = tensor
            if not ends:  # goes on as a feature map, whatever else looks at it (squeeze and excitation)
                inside.add(id(tensor))
    last = [tensor for key, tensor in edge.items() if key not in inside]
    if last:
        return keras.Model(network.inputs[0], last), keras.Model(
            last, without.input if without else network.outputs[0]
        )
    for place, inner in enumerate(operations):
        if isinstance(inner, keras.Model) and _is_map(inner.inputs[0]) and not _is_map(inner.outputs[0]):
            return _cut_within(network, operations, place, without)
    raise InputError(f"network {network.name!r}: a map needs a feature map, and this network has none")


def _cut_within(network, operations, place: int, without):
    """As `_cut`, if the last feature map is inside a base that pools by itself; the base stands in a chain of layers."""
    before, after = _cut(operations[place])
    x = network.inputs[0]
    for layer in operations[:place]:
        x = x if isinstance(layer, keras.layers.InputLayer) else layer(x)
    feature_maps = [keras.Input(one.shape[1:]) for one in before.outputs]
    y = after(feature_maps)
    for layer in operations[place + 1 :]:
        y = y if layer is without else layer(y)
    return keras.Model(network.inputs[0], before(x)), keras.Model(feature_maps, y)


def _is_map(tensor) -> bool:
    return len(tensor.shape) == 4 and tuple(tensor.shape[1:3]) != (1, 1)


def _list(value) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]
