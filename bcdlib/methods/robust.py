"""A method of ours: frozen middle layers, larger pictures, and a head to which every case counts the same."""

import keras
import numpy as np
from sklearn.linear_model import LogisticRegression

from bcdlib.data.cache import resized_cache
from bcdlib.errors import InputError
from bcdlib.methods._base import TASKS
from bcdlib.methods._keras import KerasMethod, flatten_copies, standardise
from bcdlib.methods._linear import linear_layer


class Robust(KerasMethod):
    """Mean and deviation of a frozen ResNet-50's middle stages, and a regularised logistic head.

    Not in the paper. What the last stage of a network trained on ImageNet knows is objects; what tells one tissue from
    another in cases that nobody has seen is texture, which the middle stages hold (that they transfer better: Yosinski
    et al. 2014; deviations beside means: the texture statistics of Andrearczyk & Whelan 2016). The bases always stay
    frozen: a few dozen cases do not teach 23 million weights anything but those cases. Which part of it helps how much
    was measured one change at a time (``notebooks/recorded``, drawn by 06_compare).

    Parameters
    ----------
    size : str
        "WIDTHxHEIGHT" at which the pictures are looked at, whatever the profile's size: read from the source again.
        "cache" takes the pictures as they are given.
    stages : str
        Which stages of ResNet-50, as digits 2 to 5.
    deviations : bool
        Channels' standard deviations beside their means.
    C : float
        Inverse strength of the head's L2 penalty, as in scikit-learn's LogisticRegression; features are standardised.
    balance : "case", "class" or "none"
        "case": in training both classes weigh the same, and within a class every case, however many images it has.
    stain_copies : int
        Copies of each training image with its haematoxylin and eosin jittered (see `stain.jitter_stain`).
    """

    key = "robust"
    title = "ResNet-50's middle stages, every case counting the same"
    architectures = ("resnet50",)
    always = "head"
    own_size = True

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
        super().__init__(**settings)
        self.size = size
        self.stages = stages
        self.deviations = deviations
        self.C = C
        self.balance = balance
        self.stain_copies = stain_copies

    @property
    def pooling(self) -> str:
        """As in `backbones.append_features`."""
        return f"{'moments' if self.deviations else 'means'}-{self.stages}"

    def build_outputs(self, x):
        return self.output()(x)

    def build_loss(self):
        return "binary_crossentropy" if self.task == "binary" else "sparse_categorical_crossentropy"

    def _prepare(self):
        super()._prepare()
        if not str(self.stages) or set(str(self.stages)) - set("2345"):
            raise InputError(f"{self.key}: stages={self.stages!r}; give digits from 2 to 5, for example 234")
        if self.balance not in ("case", "class", "none"):
            raise InputError(f"{self.key}: balance={self.balance!r}; it knows 'case', 'class', 'none'")

    def _size(self) -> tuple[int, int]:
        try:
            width, height = map(int, self.size.split("x"))
        except ValueError:
            raise InputError(
                f"{self.key}: size={self.size!r}; give WIDTHxHEIGHT, for example 350x230, or 'cache'"
            ) from None
        return width, height

    def _copies(self):
        return [
            *super()._copies(),
            *({"jitter": [self.seed, number]} for number in range(1, self.stain_copies + 1)),
        ]

    def inputs(self, cache, train=None) -> np.ndarray:
        """As `KerasMethod.inputs`, of all images at the method's own size.

        Raises
        ------
        InputError
            If the source that the cache was made from is needed and no longer there.
        """
        return super().inputs(cache if self.size == "cache" else resized_cache(cache, self._size()), train)

    def fit(self, X, y, validation_data=None, folder=None, images=None):
        """As `KerasMethod.fit`. ``images`` (its column ``case``) is needed for ``balance="case"``; without it every image
        counts as a case of its own. Nothing is chosen on ``validation_data``, and there are no epochs to draw."""
        self.groups_ = None if images is None else images["case"].to_numpy()
        return super().fit(X, y, None, None, images)

    def _train(self, X, y, held_out, folder):
        rows, labels = flatten_copies(X, y.astype(int))
        copies = len(rows) // len(X)
        inputs = keras.Input(rows.shape[1:], name="features")
        head = self._connect(inputs, inputs)
        scale = standardise(head.get_layer("standardise"), rows)
        classifier = LogisticRegression(C=self.C, max_iter=2000)
        kernel, bias = linear_layer(
            classifier,
            np.asarray(scale(rows)),
            labels,
            outputs=1 if self.task == "binary" else len(TASKS[self.task]),
            sample_weight=np.repeat(self._weights(y.astype(int)) / copies, copies),
        )
        head.get_layer("probability").set_weights([kernel, bias])
        self.head_, self.joined_ = head, False
        return self

    def _weights(self, y) -> np.ndarray:
        """What each training image counts; float (N,), mean 1."""
        weights = np.ones(len(y))
        if self.balance == "case" and self.groups_ is not None:
            _, place, counts = np.unique(self.groups_, return_inverse=True, return_counts=True)
            weights /= counts[place]
        if self.balance != "none":
            for kind in np.unique(y):
                weights[y == kind] /= weights[y == kind].sum()
        return weights * len(y) / weights.sum()
