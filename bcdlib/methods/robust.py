"""A method of ours: frozen middle layers, larger images, and a head to which every case counts the same."""

from bcdlib.errors import InputError
from bcdlib.methods._linear import LinearHead
from bcdlib.methods.parts import backbones


class Robust(LinearHead):
    """Mean and deviation of frozen middle layers, side by side, and a regularised logistic head.

    Not in the paper. Fitted at once: there are no epochs to draw, and nothing is chosen on
    ``validation_data``. What the last stage of a network trained on ImageNet knows is objects; what tells one
    tissue from another in cases that nobody has seen is texture and colour, which the middle stages hold
    (that they transfer better: Yosinski et al. 2014; deviations beside means: the texture statistics of
    Andrearczyk & Whelan 2016). The bases always stay frozen: a few dozen cases do not teach 40 million
    weights anything but those cases. Which part of it helps how much was measured one change at a time
    (``notebooks/recorded``, drawn by 06_compare; ``robust_tried.csv`` there holds what was tried for another
    laboratory's stain: what makes the features blind to stain takes more than it gives, so a folder of
    another laboratory is better standardised by its own features, ``predict --adapt``).

    Parameters
    ----------
    bases : str
        Which networks, joined by "+": resnet50, xception, or both.
    size : str
        "WIDTHxHEIGHT" to which the images are resized, read from the source again, whatever the profile's
        size is. "cache" takes the images as they are given.
    stages : str
        Which stages of the bases, as digits 2 to 5.
    deviations : bool
        Whether the channels' standard deviations are features too, beside their means.
    stain_copies : int
        Copies of each training image with its haematoxylin and eosin jittered (see `stain.jitter_stain`).
    C, balance
        As in `_linear.LinearHead`.
    """

    key = "robust"
    title = "Middle stages of ResNet-50 and Xception, every case counting the same"
    own_size = True

    def __init__(
        self,
        *,
        bases="resnet50+xception",
        size="350x230",
        stages="234",
        deviations=True,
        stain_copies=0,
        **settings,
    ):
        super().__init__(size=size, **settings)
        self.bases = bases
        self.stages = stages
        self.deviations = deviations
        self.stain_copies = stain_copies

    @property
    def architectures(self) -> tuple[str, ...]:
        """The networks whose features it takes."""
        return tuple(self.bases.split("+"))

    @property
    def pooling(self) -> str:
        """Which moments of which stages, as in `backbones.append_features`."""
        return f"{'moments' if self.deviations else 'means'}-{self.stages}"

    def _prepare(self):
        known = [name for name, about in backbones.ARCHITECTURES.items() if about.stages]
        if unknown := [name for name in self.architectures if name not in known]:
            raise InputError(f"{self.key}: bases={unknown[0]!r}; it knows {', '.join(known)}, joined by +")
        super()._prepare()
        trained = {name: weights for name, weights in self.bases_.items() if weights.pretrained}
        if trained and len(trained) < len(self.bases_):  # half of the features at random would only be noise
            missing = ", ".join(name for name in self.bases_ if name not in trained)
            label = f"{backbones.weights_label(trained)}; without {missing}, whose weights are missing"
            self.bases_, self.weights_ = trained, backbones.Weights(next(iter(trained.values())).path, label)
        if not str(self.stages) or set(str(self.stages)) - set("2345"):
            raise InputError(f"{self.key}: stages={self.stages!r}; give digits from 2 to 5, for example 234")

    def _copies(self):
        return [
            *super()._copies(),
            *({"jitter": [self.seed, number]} for number in range(1, self.stain_copies + 1)),
        ]
