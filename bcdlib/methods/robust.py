"""A method of ours: frozen middle layers, larger images, and a head to which every case counts the same."""

import numpy as np
from sklearn.linear_model import LogisticRegression

from bcdlib.errors import InputError
from bcdlib.methods import KerasMethod, _linear, _training


class Robust(KerasMethod):
    """Mean and deviation of a frozen ResNet-50's middle stages, and a regularised logistic head.

    Not in the paper. Fitted at once: there are no epochs to draw, and nothing is chosen on
    ``validation_data``. What the last stage of a network trained on ImageNet knows is objects; what tells one
    tissue from another in cases that nobody has seen is texture, which the middle stages hold (that they
    transfer better: Yosinski et al. 2014; deviations beside means: the texture statistics of Andrearczyk &
    Whelan 2016). The bases always stay frozen: a few dozen cases do not teach 23 million weights anything but
    those cases. Which part of it helps how much was measured one change at a time (``notebooks/recorded``,
    drawn by 06_compare).

    Parameters
    ----------
    size : str
        "WIDTHxHEIGHT" to which the images are resized, read from the source again, whatever the profile's
        size is. "cache" takes the images as they are given.
    stages : str
        Which stages of ResNet-50, as digits 2 to 5.
    deviations : bool
        Whether the channels' standard deviations are features too, beside their means.
    C : float
        Inverse strength of the head's L2 penalty, as in scikit-learn's LogisticRegression; features are
        standardised.
    balance : "case", "class" or "none"
        "case": in training both classes weigh the same, and within a class every case, however many images it
        has; `fit` then needs ``images``, without which every image counts as a case of its own.
    stain_copies : int
        Copies of each training image with its haematoxylin and eosin jittered (see `stain.jitter_stain`).
    """

    key = "robust"
    title = "ResNet-50's middle stages, every case counting the same"
    architectures = ("resnet50",)
    always = "head"
    fits_with_keras = False
    own_size = True
    choices = KerasMethod.choices | {"balance": ("case", "class", "none")}

    def __init__(
        self,
        *,
        size="350x230",
        stages="234",
        deviations=True,
        C=0.01,
        balance="case",
        stain_copies=0,
        **settings,
    ):
        super().__init__(size=size, **settings)
        self.stages = stages
        self.deviations = deviations
        self.C = C
        self.balance = balance
        self.stain_copies = stain_copies

    @property
    def pooling(self) -> str:
        """Which moments of which stages, as in `backbones.append_features`."""
        return f"{'moments' if self.deviations else 'means'}-{self.stages}"

    def _prepare(self):
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
        self.head_ = self._new_head(rows)
        self.head_.get_layer("probability").set_weights(
            _linear.linear_layer(
                LogisticRegression(C=self.C, max_iter=2000),
                np.asarray(self.head_.get_layer("standardise")(rows)),
                labels,
                outputs=self.units,
                sample_weight=np.repeat(self._weights(y.astype(int)) / copies, copies),
            )
        )

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
