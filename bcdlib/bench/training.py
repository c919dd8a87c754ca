"""Epochs: of the whole network against its bare training steps, of the head against running the frozen base each time."""

import time

import numpy as np

from bcdlib import manifest, methods, pixels, sources
from bcdlib.bench import Setting, peers
from bcdlib.bench.ingest import SIZE
from bcdlib.bench.ratios import Ratio, paired, seconds
from bcdlib.methods.training import Batches, EpochSeeds

STEPS = 8  # of an epoch of the whole network: 32 pictures take seconds on a CPU
HEAD_EPOCHS, BASE_EPOCHS = 200, 2
PICTURES = 400  # of these two
RATE = 0.0001


def comparisons(setting: Setting):
    """Ratios of seconds."""
    source = sources.open_source(setting.pictures)
    cache = pixels.build_cache(source, manifest.scan(source).images, SIZE, setting.folder / "cache", progress=False)
    X, y = cache.pixels[:PICTURES], manifest.labels(cache.images)[:PICTURES]
    yield _epoch(setting, X, y)
    yield _head(setting, X, y)


def _epoch(setting: Setting, X, y) -> Ratio:
    method = methods.get("resnet50")(weights=setting.weights, pretrained_required=False, verbose=0)
    model = method.build(X.shape[1:])
    batches = Batches(X, y, peers.BATCH, STEPS, seed=0)
    constant = batches[0]

    def epoch():
        model.fit(batches, epochs=1, shuffle=False, verbose=0, callbacks=[EpochSeeds(0)])

    def bare():
        for _ in range(STEPS):
            model.train_on_batch(*constant)

    return paired("training-epoch", "epoch of ResNet-50 / its steps on a constant batch", "<= 1.03", "s",
                  lambda: seconds(epoch), lambda: seconds(bare), setting.pairs, f"{STEPS} steps of {peers.BATCH} pictures")


def _head(setting: Setting, X, y) -> Ratio:
    """200 epochs of the head with features computed once, against 100 times 2 epochs through the frozen base."""
    X = np.array(X)
    losses = {}

    def method(epochs):
        return methods.get("resnet50")(trainable="head", weights=setting.weights, pretrained_required=False, epochs=epochs,
                                       learning_rate=RATE, verbose=0)

    def cached():
        losses["cached"] = method(HEAD_EPOCHS).fit(X, y).history_["loss"][BASE_EPOCHS - 1]

    def each_time():
        network = method(0).fit(X, y).whole()  # a head as it is before its first step, behind the base
        batches = Batches(X, y, peers.BATCH, -(-len(y) // peers.BATCH), seed=0)
        started = time.perf_counter()
        history = network.fit(batches, epochs=BASE_EPOCHS, shuffle=False, verbose=0, callbacks=[EpochSeeds(0)]).history
        losses["each"] = history["loss"][-1]
        return (time.perf_counter() - started) * HEAD_EPOCHS / BASE_EPOCHS

    cached()
    each_time()
    if not np.isclose(losses["cached"], losses["each"], atol=1e-4):
        raise RuntimeError(f"the two ways do not train the same: loss {losses['cached']} and {losses['each']}")
    return paired("training-head", f"{HEAD_EPOCHS} epochs of the head: the frozen base each time / once", ">= 60", "s",
                  each_time, lambda: seconds(cached), setting.pairs,
                  f"the base each time: from {BASE_EPOCHS} epochs; loss after these {losses['each']:.6f}, with the features "
                  f"computed once {losses['cached']:.6f}")
