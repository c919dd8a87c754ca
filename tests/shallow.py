"""Large networks with few blocks a stage: the same layers, traced and built in a fraction of the time."""

import contextlib
import inspect

import keras
import pytest

from bcdlib.methods.parts import architectures
from bcdlib.methods.reshist import ResHist

RESNET, DENSENET = map(inspect.getmodule, (keras.applications.ResNet50, keras.applications.DenseNet201))


def _residual(x, filters, blocks, stride1=2, name=None):
    x = RESNET.residual_block_v1(x, filters, stride=stride1, name=f"{name}_block1")
    return RESNET.residual_block_v1(x, filters, conv_shortcut=False, name=f"{name}_block{blocks}")


def _dense(x, blocks, name):
    for number in (1, blocks - 2, blocks - 1, blocks):  # of these the ensemble takes layers
        x = DENSENET.conv_block(x, 32, name=f"{name}_block{number}")
    return x


# what builds the stages of the large networks: as they are, and with few blocks
STAGES = {
    (RESNET, "stack_residual_blocks_v1"): (RESNET.stack_residual_blocks_v1, _residual),
    (DENSENET, "dense_block"): (DENSENET.dense_block, _dense),
    (ResHist, "stages"): (ResHist.stages, tuple((maps, 2) for maps, _ in ResHist.stages)),
    (architectures, "INCEPTION"): (
        architectures.INCEPTION,
        {block: architectures.INCEPTION[block] for block in ("3a", "3b", "4e", "5b")},
    ),
}


@contextlib.contextmanager
def stages(*, few: bool):
    """Give large networks few blocks a stage, or all of them, until the context ends."""
    with pytest.MonkeyPatch.context() as patch:
        for (owner, name), known in STAGES.items():
            patch.setattr(owner, name, known[few])
        yield
