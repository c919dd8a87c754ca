"""What Keras has compiled is kept: to compile a network takes longer than to predict a few hundred rows."""

import contextlib
import functools
import random
import weakref
from collections.abc import Callable, Iterator

import keras
import numpy as np

_TWINS: dict[str, keras.Model] = {}  # networks that have predicted, by their build


def set_seed(seed: int) -> None:
    """Set the seed of the layers and initial weights that are made next, without dropping what is compiled.

    Keras takes the seeds of layers and initializers from Python's generator. ``keras.utils.set_random_seed``
    would make TensorFlow forget its functions too: the next step of a ResNet-50 then takes 5 seconds longer.
    """
    random.seed(seed)
    np.random.seed(seed)


def once(build: Callable) -> Callable:
    """Cache what a function builds from a network, for as long as the network lives."""
    built = weakref.WeakKeyDictionary()

    @functools.wraps(build)
    def find(network):
        if network not in built:
            built[network] = build(network)
        return built[network]

    return find


@contextlib.contextmanager
def twin(network: keras.Model, copy: Callable) -> Iterator[keras.Model]:
    """Lend a compiled network of the same build and with the same weights, to predict with.

    Networks of one build share it, so Keras compiles it once; a comparison makes hundreds of small heads.

    Parameters
    ----------
    network : keras.Model
    copy : callable
        Copies a layer, as ``clone_function`` of keras.models.clone_model. What Keras compiles holds the
        statistics of a normalisation layer as constants: it must leave these out.
    """
    build = repr(network.get_config())
    found = _TWINS.pop(build, None)  # taken out: another thread gets its own
    if found is None:
        found = keras.models.clone_model(network, clone_function=copy)
    copy_weights(network, found)
    try:
        yield found
    finally:
        if len(_TWINS) >= 4:
            _TWINS.clear()
        _TWINS[build] = found


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Give the layers of a network the weights of another's layers of the same names."""
    for layer in source.layers:
        if layer.weights and target.get_layer(layer.name).weights:
            set_weights(target.get_layer(layer.name), layer.get_weights())


def set_weights(layer: keras.layers.Layer, weights) -> None:
    """Set a layer's weights, and what it derives from them."""
    layer.set_weights(weights)
    if isinstance(layer, keras.layers.Normalization):
        layer.finalize_state()  # set_weights leaves the derived mean as it was
