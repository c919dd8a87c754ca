"""ResNet-152 with a head a magnification and a decision over the slide: MuDeRN (Gandomkar 2018)."""

import copy

import keras
import numpy as np
import pandas as pd
from scipy.optimize import nnls

from bcdlib.data import splits
from bcdlib.data.breakhis import CLASSES, MAGNIFICATIONS, class_labels
from bcdlib.methods._base import malignant_probability, probability_columns
from bcdlib.methods._keras import KerasMethod, chain
from bcdlib.methods._training import first_copies
from bcdlib.methods.parts import heads, losses
from bcdlib.methods.parts.heads import shares


class ResNet152(KerasMethod):
    """ResNet-152 with one head per magnification; an image gets the decision over its slide's magnifications.

    Publication: Gandomkar, Brennan & Mello-Thoms, "MuDeRN: Multi-category classification of breast
    histopathological image using deep residual networks", Artificial Intelligence in Medicine 88, 2018.
    Printed: 98.77 % (Table II), which is exactly 80 of 81; BreakHis has 81 slide numbers, so it is probably
    of slides, which are called patients there, not of images. Its split is not known.

    As far as known (the publication was not at hand): a ResNet-152 for each magnification, on patches; 98.52,
    97.90, 98.33 and 97.66 % of images from 40X to 400X; a second stage of networks, one for the four benign
    and one for the four malignant subtypes (``task="subtype"``); a fitted meta-decision tree for the patient;
    eight subtypes by image 95.4, 94.9, 95.7 and 94.6 %, by patient 96.25 %. Nothing is known of size,
    optimizer, rate, batches and epochs: the profile's.

    Here, for memory's sake: one base for all magnifications, frozen or fine-tuned together, with a head of
    its own for each, and for subtypes both stages in it (one network of 58 million weights rather than
    twelve), on whole images. Chosen here: hidden layers of 256 with ReLU, dropout 0.4; cross-entropy,
    RMSprop; for the decision a weighted vote of the magnifications (see `slide_decision`), its weights fitted
    on slides of cases that the heads have not seen, in three folds inside training. With a base that is
    fine-tuned each magnification has one vote: such folds would cost three trainings more. A magnification
    that training lacks (40X in the paper's protocol) gets the mean of the heads.

    The decision uses the slide's images among those asked for, and no label. It needs ``images``; without,
    and in the saved network by itself, an image gets the same vote over all heads.

    Attributes
    ----------
    votes_ : float array (heads,)
        Each magnification's share in the decision; sum 1.
    """

    key = "resnet152"
    decides_for = "slide"
    title = "MuDeRN (ResNet-152)"
    architectures = ("resnet152",)
    changes = {"head": {"learning_rate": 0.0005}}
    magnifications_: tuple = MAGNIFICATIONS
    votes_: np.ndarray | None = None

    def build_outputs(self, x):
        """Append a head for each magnification."""
        outputs = [self._head(x, magnification) for magnification in self.magnifications_]
        if len(outputs) == 1:
            return outputs[0]
        return keras.layers.Concatenate(name="trained", dtype="float32")(outputs)

    def _head(self, x, name):
        x = chain(
            x,
            keras.layers.Dense(256, activation="relu", name=f"dense_{name}"),
            keras.layers.Dropout(0.4, name=f"dropout_{name}"),
        )
        if self.task == "binary":
            return self.output(f"{heads.HEAD}{name}")(x)
        # the second stage: of what is benign or malignant, the subtype
        malignant = keras.layers.Dense(1, activation="sigmoid", name=f"class_{name}", dtype="float32")(x)
        subtypes = [
            keras.layers.Dense(4, activation="softmax", name=f"{kind}_{name}", dtype="float32")(x)
            for kind in CLASSES
        ]
        # layers with names: of networks whose builds are the same in all, Keras compiles one
        benign = keras.layers.Rescaling(-1, offset=1, name=f"not_class_{name}", dtype="float32")(malignant)
        parts = [
            keras.layers.Multiply(name=f"{kind}_share_{name}", dtype="float32")([part, share])
            for kind, part, share in zip(CLASSES, subtypes, (benign, malignant), strict=True)
        ]
        return keras.layers.Concatenate(name=f"{heads.HEAD}{name}", dtype="float32")(parts)

    def build_prediction(self, model):
        """Let the heads vote."""
        number = len(self.magnifications_)
        votes = np.full(number, 1 / number) if self.votes_ is None else self.votes_
        decision = keras.layers.Dense(1, use_bias=False, name="decision", dtype="float32")
        x = chain(
            model.output,
            keras.layers.Reshape((number, self.units), name="heads"),
            keras.layers.Permute((2, 1), name="by_class"),
            decision,
            keras.layers.Reshape((self.units,), name="probability"),
        )
        decision.set_weights([votes[:, None]])
        return x

    def build_loss(self):
        """Give the loss of the heads' mixture."""
        return heads_loss

    def build_metric(self):
        """Make the accuracy of the heads' mixture."""
        return keras.metrics.MeanMetricWrapper(heads_accuracy, name="accuracy")

    def fit(self, X, y, validation_data=None, *, folder=None, images=None):
        """Train as `KerasMethod.fit`, each image its magnification's head (without ``images`` one head)."""
        self.magnifications_ = ("all",) if images is None else tuple(sorted(set(images["magnification"])))
        self.images_, self.votes_ = images, None
        return super().fit(X, y, validation_data, folder=folder, images=images)

    def _train(self, X, y, held_out, folder):
        if self.frozen and self.images_ is not None and len(self.magnifications_) > 1:
            self.votes_ = self._fitted_votes(first_copies(X), y)
        super()._train(X, y, held_out, folder)

    def _fitted_votes(self, X, y) -> np.ndarray | None:
        """Weigh the magnifications by slides that heads trained on other cases predict; None if too few."""
        images, found = self.images_, np.zeros((len(X), self.units))
        fold = splits.inner_folds(images, "case", 3, seed=self.seed)
        if not fold.any():
            return None
        for number in range(fold.max() + 1):
            other, held = copy.copy(self), fold == number
            super(ResNet152, other)._train(X[~held], y[~held], None, None)
            found[held] = other._predict_head(
                X[held], lambda head, own, held=held: heads.predict_own(head, own, images[held])
            )
        malignant = malignant_probability(probability_columns(found))
        return fit_votes(malignant, images, self.magnifications_)

    def targets(self, y, images=None):
        """Give the label and the heads' `shares`; (N, 1 + heads)."""
        known = np.full(len(y), None) if images is None else images["magnification"]
        return np.column_stack([y, shares(known, self.magnifications_)])

    @classmethod
    def probabilities(cls, network, X, images=None):
        """Predict as `KerasMethod.probabilities`; with ``images`` by magnification, then by slide."""
        if images is None:
            return super().probabilities(network, X)
        names = heads.head_names(network)
        votes = np.ravel(network.get_layer("decision").get_weights()[0])
        votes = dict(zip(names, votes, strict=True))
        return slide_decision(heads.predict_own(network, X, images), images, votes)


def fit_votes(probability, images: pd.DataFrame, magnifications) -> np.ndarray:
    """Fit each magnification's share in the decision over slides, by least squares; never negative, sum 1.

    Parameters
    ----------
    probability : array (N,)
        Of malignant, of images that the heads have not seen.
    images : DataFrame
        Columns slide, magnification and class, rows parallel.
    magnifications : sequence

    Returns
    -------
    float64 array (magnifications,)

    Examples
    --------
    >>> images = pd.DataFrame({"slide": ["a", "a", "b", "b"], "magnification": [40, 100, 40, 100]})
    >>> images = images.assign(**{"class": ["benign", "benign", "malignant", "malignant"]})
    >>> fit_votes(np.array([0.1, 0.5, 0.9, 0.5]), images, (40, 100)).round(1).tolist()
    [1.0, 0.0]
    """
    by_slide = pd.DataFrame(
        {
            "p": probability,
            "slide": images["slide"].to_numpy(),
            "magnification": images["magnification"].to_numpy(),
        }
    ).pivot_table("p", "slide", "magnification")
    by_slide = by_slide.reindex(columns=list(magnifications))
    by_slide = by_slide.apply(lambda row: row.fillna(row.mean()), axis=1)
    label = pd.Series(class_labels(images), images["slide"].to_numpy()).groupby(level=0).max()
    # around 0, so that a magnification that tells nothing gets nothing
    votes, _ = nnls(by_slide.to_numpy() - 0.5, label[by_slide.index].to_numpy() - 0.5)
    return votes / votes.sum() if votes.sum() > 0 else np.full(len(votes), 1 / len(votes))


def slide_decision(probability, images: pd.DataFrame, votes: dict | None = None) -> np.ndarray:
    """Give each image the vote of its slide's magnifications, each the mean over its images.

    Parameters
    ----------
    probability : array (N, outputs)
    images : DataFrame
        Columns slide and magnification, rows parallel.
    votes : dict, optional
        Each magnification's share, by its name as text; of those that it lacks, and without it, the same.

    Returns
    -------
    float64 array (N, outputs)
    """
    slide, magnification = images["slide"].to_numpy(), images["magnification"].astype(str).to_numpy()
    means = pd.DataFrame(np.asarray(probability, dtype="float64")).groupby([slide, magnification]).mean()
    votes = votes or {}
    usual = float(np.mean(list(votes.values()))) if votes else 1.0
    share = pd.Series([votes.get(name, usual) for _, name in means.index], means.index, dtype="float64")
    # a slide whose magnifications all have no share
    share = share.where(share.groupby(level=0).transform("sum") > 0, 1.0)
    decided = means.mul(share, axis=0).groupby(level=0).sum().div(share.groupby(level=0).sum(), axis=0)
    return decided.loc[slide].to_numpy()


def _mixed(y_true, y_pred):
    heads = keras.ops.reshape(y_pred, (-1, y_true.shape[1] - 1, y_pred.shape[1] // (y_true.shape[1] - 1)))
    return keras.ops.sum(heads * y_true[:, 1:, None], axis=1)


@keras.saving.register_keras_serializable("bcdlib")
def heads_loss(y_true, y_pred):
    """Compute the cross-entropy of the heads' outputs in ``y_pred``, mixed by their shares in ``y_true``."""
    return losses.cross_entropy(y_true[:, :1], _mixed(y_true, y_pred))


@keras.saving.register_keras_serializable("bcdlib")
def heads_accuracy(y_true, y_pred):
    """Say of each image whether the same mixture predicts it correctly, 1 or 0."""
    return losses.accuracy(y_true[:, :1], _mixed(y_true, y_pred))
