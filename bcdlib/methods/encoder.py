"""Any frozen encoder that KerasHub knows, and robust's head on its features."""

from bcdlib.errors import InputError
from bcdlib.methods import Method
from bcdlib.methods._linear import LinearHead
from bcdlib.methods.parts import backbones, encoders


class Encoder(LinearHead):
    """A frozen encoder by its preset (DINOv2, DINOv3, ViT, ConvNeXt, ...), and the head of ``robust``.

    Not in the paper. Image size and normalisation are the preset's; the whole image is shown, resized to that
    size. Features are computed once and stored, as those of other frozen bases. Weights that ask for it are
    fetched with the Hugging Face token in Colab's secrets or in HF_TOKEN. The network is not saved: it has
    layers that Keras alone does not know.

    Parameters
    ----------
    preset : str
        An address for KerasHub (``hf://owner/name``, ``kaggle://...``, or a name that it has built in), a
        folder in KerasHub's layout or that of Hugging Face's transformers, or one of our bases
        (``resnet50``, ``mobilenet_v2``, ``xception``, ...) with Keras' weights.
    tokens : "class", "mean" or "both"
        What stands for the image where the encoder gives a vector a patch: its class token, the mean of the
        patches, or both side by side. Feature maps are averaged.
    size : str
        "WIDTHxHEIGHT" at which images are read instead; the preset's own preprocessing then resizes them.
        Of our bases any size; "" means the profile's.
    C, balance
        As in `_linear.LinearHead`.
    """

    key = "encoder"
    title = "A frozen encoder, every case counting the same"
    own_size = True
    given = "preset"
    choices = LinearHead.choices | {"tokens": encoders.TOKENS}
    save = Method.save

    def __init__(self, *, preset="", tokens="class", size="", **settings):
        super().__init__(size=size, **settings)
        self.preset = preset
        self.tokens = tokens

    @property
    def architectures(self) -> tuple[str, ...]:
        """The preset alone."""
        return (self.preset,)

    @property
    def pooling(self) -> str:
        """As in `backbones.append_features`, or which tokens."""
        return "average" if self.preset in backbones.ARCHITECTURES else self.tokens

    def _prepare(self):
        if not self.preset:
            raise InputError("encoder: name a preset, for example encoder:preset=hf://facebook/dinov2-small")
        super()._prepare()

    def image_shape(self, cache) -> tuple[int, int, int]:
        """Give the preset's (height, width, 3), unless another size is asked for."""
        if self.size or self.preset in backbones.ARCHITECTURES:
            return super().image_shape(cache)
        return (*encoders.load_encoder(self.preset).size[::-1], 3)
