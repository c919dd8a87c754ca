"""A method of ours: frozen middle layers, larger images, and a head to which every case counts the same."""

import keras
import numpy as np
from sklearn.linear_model import LogisticRegression

from bcdlib.errors import InputError
from bcdlib.methods import KerasMethod, _linear, _training
from bcdlib.methods.parts import backbones

LIMIT = 5.0  # standard deviations: a channel that rarely fires in training may lie hundreds away elsewhere


class Robust(KerasMethod):
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
    C : float
        Inverse strength of the head's L2 penalty, as in scikit-learn's LogisticRegression; features are
        standardised, and cut off at 5 standard deviations.
    balance : "case", "class" or "none"
        "case": in training and in standardising both classes weigh the same, and within a class every case,
        however many images it has; `fit` then needs ``images``, without which every image counts as a case
        of its own.
    stain_copies : int
        Copies of each training image with its haematoxylin and eosin jittered (see `stain.jitter_stain`).
    """

    key = "robust"
    title = "Middle stages of ResNet-50 and Xception, every case counting the same"
    always = "head"
    fits_with_keras = False
    own_size = True
    choices = KerasMethod.choices | {"balance": ("case", "class", "none")}

    def __init__(
        self,
        *,
        bases="resnet50+xception",
        size="350x230",
        stages="234",
        deviations=True,
        C=0.003,
        balance="case",
        stain_copies=0,
        **settings,
    ):
        super().__init__(size=size, **settings)
        self.bases = bases
        self.stages = stages
        self.deviations = deviations
        self.C = C
        self.balance = balance
        self.stain_copies = stain_copies

    @property
    def architectures(self) -> tuple[str, ...]:
        """The networks whose features it takes."""
        return tuple(self.bases.split("+"))

    @property
    def pooling(self) -> str:
        """Which moments of which stages, as in `backbones.append_features`."""
        return f"{'moments' if self.deviations else 'means'}-{self.stages}"

    def build_head(self, x):
        """Cut the standardised features off at `LIMIT` either way; they are then -1..1."""
        x = keras.layers.Rescaling(1 / LIMIT, name="scale", dtype="float32")(x)
        return keras.layers.Activation("hard_tanh", name="cut", dtype="float32")(x)

    def _prepare(self):
        known = [name for name, about in backbones.ARCHITECTURES.items() if about.stages]
        if unknown := [name for name in self.architectures if name not in known]:
            raise InputError(f"{self.key}: bases={unknown[0]!r}; it knows {', '.join(known)}, joined by +")
        super()._prepare()
        if not str(self.stages) or set(str(self.stages)) - set("2345"):
            raise InputError(f"{self.key}: stages={self.stages!r}; give digits from 2 to 5, for example 234")

    def _copies(self):
        return [
            *super()._copies(),
            *({"jitter": [self.seed, number]} for number in range(1, self.stain_copies + 1)),
        ]

    def _train(self, X, y, held_out, folder):
        rows, labels = _training.flatten_copies(X, y.astype(int))
        copies = len(rows) // len(X)
        weights = np.repeat(self._weights(y.astype(int)) / copies, copies)
        self.head_ = self._new_head(rows, weights)
        standard = np.asarray(self.head_.get_layer(_training.STANDARDISE)(rows))
        kernel, bias = _linear.linear_layer(
            LogisticRegression(C=self.C, max_iter=2000),
            standard.clip(-LIMIT, LIMIT),
            labels,
            outputs=self.units,
            sample_weight=weights,
        )
        self.head_.get_layer("probability").set_weights([LIMIT * kernel, bias])

    def _weights(self, y) -> np.ndarray:
        """How much each training image counts; float (N,), mean 1."""
        weights = np.ones(len(y))
        if self.balance == "case" and self.cases_ is not None:
            _, place, counts = np.unique(self.cases_, return_inverse=True, return_counts=True)
            weights /= counts[place]
        if self.balance != "none":
            for kind in np.unique(y):
                weights[y == kind] /= weights[y == kind].sum()
        return weights * len(y) / weights.sum()
