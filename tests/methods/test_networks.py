"""Networks in which Keras has compiled prediction are used again, and answer as the ones they stand for."""

import keras
import numpy as np
import pytest

from bcdlib.methods.parts import heads, networks

X = np.random.default_rng(0).normal(3, 2, (9, 4)).astype("float32")


def head(units, seed):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(units, "relu", name="dense"), keras.layers.Dense(1, "sigmoid", name="last")]
    inputs = x = keras.Input((4,), name="features")
    for layer in [keras.layers.Normalization(name="standardise"), *layers]:
        x = layer(x)
    network = keras.Model(inputs, x, name="head")
    networks.set_weights(network.get_layer("standardise"), [X.mean(axis=0), X.var(axis=0), np.array(0)])
    return network


def copy(layer):
    if layer.name == "standardise":
        return keras.layers.Identity(name=layer.name)
    return type(layer).from_config(layer.get_config())


def test_a_twin_answers_as_the_network_and_is_the_same_for_all_of_a_build(monkeypatch):
    monkeypatch.setattr(networks, "_TWINS", {})
    lent = []
    for units, seed in ((3, 0), (3, 1), (5, 1), (3, 0)):
        network = head(units, seed)
        standard = np.asarray(network.get_layer("standardise")(X))
        with networks.twin(network, copy) as found:
            np.testing.assert_array_equal(found.predict(standard, verbose=0), network.predict(X, verbose=0))
        lent.append(found)
    assert lent[0] is lent[1] is lent[3] is not lent[2]


def test_a_twin_is_lent_to_one_at_a_time(monkeypatch):
    monkeypatch.setattr(networks, "_TWINS", {})
    with networks.twin(head(3, 0), copy) as one, networks.twin(head(3, 1), copy) as other:
        assert one is not other
    with pytest.raises(KeyError), networks.twin(head(3, 0), copy):
        raise KeyError  # it is given back all the same
    with networks.twin(head(3, 0), copy) as again:
        assert again in (one, other)


def test_the_heads_of_a_network_are_taken_apart_once():
    inputs = keras.Input((4,))
    outputs = [keras.layers.Dense(1, name=f"{heads.HEAD}{name}")(inputs) for name in ("40", "100")]
    network = keras.Model(inputs, keras.layers.Average()(outputs))
    found = heads.predict_heads(network, X)
    assert heads.head_names(network) == list(found) == ["40", "100"]
    for name, values in found.items():
        kernel, bias = network.get_layer(f"{heads.HEAD}{name}").get_weights()
        np.testing.assert_allclose(values, X @ kernel + bias, rtol=1e-5)
    assert heads._with_every_head(network) is heads._with_every_head(network)
