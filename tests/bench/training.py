"""Epochs: of the network against its bare training steps, of the head against the frozen base each time."""

import time

import numpy as np

from bcdlib import methods
from bcdlib.data import breakhis, sources
from bcdlib.data.cache import build_cache
from bcdlib.methods.parts import backbones, features
from bcdlib.methods.parts.fitting import Batches, fit_network
from tests.bench import Setting, peers
from tests.bench.ingest import SIZE
from tests.bench.ratios import Ratio, paired, seconds

STEPS = 8  # of an epoch of the whole network: 32 images take seconds on a CPU
HEAD_EPOCHS, BASE_EPOCHS = 200, 2
PICTURES = 400  # of these two
RATE = 0.0001


def comparisons(setting: Setting):
    """Ratios of seconds."""
    source = sources.open_source(setting.pictures)
    images = breakhis.scan_breakhis(source).images[:PICTURES]
    cache = build_cache(source, images, SIZE, root=setting.folder / "cache", progress=False)
    y = breakhis.class_labels(cache.images)
    yield _epoch(setting, cache.pixels, y)
    yield from _head(setting, cache, y)


def _epoch(setting: Setting, X, y) -> Ratio:
    method = methods.get_method("resnet50")(weights=setting.weights, pretrained_required=False, verbose=0)
    model = method.build(X.shape[1:])
    batches = Batches(X, y, peers.BATCH, STEPS, seed=0)
    constant = batches[0]

    def epoch():
        fit_network(model, batches, None, folder=None, epochs=batches.epoch + 1, seed=0, verbose=0)

    def bare():
        for _ in range(STEPS):
            model.train_on_batch(*constant)

    return paired(
        "training-epoch",
        "epoch of ResNet-50 / its steps on a constant batch",
        "<= 1.03",
        "s",
        lambda: seconds(epoch),
        lambda: seconds(bare),
        setting.pairs,
        f"{STEPS} steps of {peers.BATCH} pictures",
    )


def _head(setting: Setting, cache, y):
    """200 epochs of the head on stored features, against 100 times 2 epochs through the frozen base."""
    losses = {}

    def method(epochs):
        return methods.get_method("resnet50")(
            trainable="head",
            weights=setting.weights,
            pretrained_required=False,
            epochs=epochs,
            learning_rate=RATE,
            verbose=0,
        )

    def stored():
        one = method(HEAD_EPOCHS)
        losses["stored"] = one.fit(one.inputs(cache), y).history_["loss"][BASE_EPOCHS - 1]

    def each_time():
        start = method(0)
        network = start.fit(
            start.inputs(cache), y
        ).whole()  # a head as it is before its first step, behind the base
        batches = Batches(cache.pixels, y, peers.BATCH, None, seed=0)
        started = time.perf_counter()
        history = fit_network(network, batches, None, folder=None, epochs=BASE_EPOCHS, seed=0, verbose=0)
        losses["each"] = history["loss"].iloc[-1]
        return (time.perf_counter() - started) * HEAD_EPOCHS / BASE_EPOCHS

    stored()
    each_time()
    if not np.isclose(losses["stored"], losses["each"], atol=1e-4):
        raise RuntimeError(
            f"the two ways do not train the same: loss {losses['stored']} and {losses['each']}"
        )
    what = f"{HEAD_EPOCHS} epochs of the head: the frozen base each time"
    found = paired(
        "training-head",
        f"{what} / features cached",
        ">= 60",
        "s",
        each_time,
        lambda: seconds(stored),
        setting.pairs,
        f"the base each time: from {BASE_EPOCHS} epochs; loss after these {losses['each']:.6f}, "
        f"on cached features {losses['stored']:.6f}",
    )
    yield found
    weights = backbones.find_weights("resnet50", setting.weights, required=False)

    def base():
        features.extract_features(cache.pixels, "resnet50", weights)

    once = [seconds(base) for _ in range(setting.pairs)]
    yield Ratio(
        "training-head-first",
        f"{what} / features computed first",
        "",
        "s",
        found.first,
        [head + first for head, first in zip(found.second, once)],
        f"with the very first head on these pictures the base once before, {np.median(once):.1f} s",
    )
