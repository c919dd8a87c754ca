"""How a method is trained: this paper's way, or as its own authors did, as far as that is known."""

from collections.abc import Callable
from dataclasses import dataclass, field

import keras

from bcdlib.methods.parts import augmentation

RECIPES = ("authors", "paper")


@dataclass(frozen=True)
class Recipe:
    """What is said of a training; None where nothing is known: then the profile's.

    Attributes
    ----------
    optimizer : callable
        Called with ``learning_rate=``.
    learning_rate : float, optional
    batch_size, epochs : int, optional
    size : (width, height), optional
        To which images are resized, in pixels.
    pixels : {"imagenet", "unit", "raw"}
        What the bases get: normalised as their weights expect, 0..1, or 0..255.
    standardised : bool
        Whether features of frozen bases are standardised by the training images.
    augmentation : callable
        From a seed to the layer that augments training batches.
    settings : dict
        The method's own settings, where authors state them.
    shorter : dict
        What profiles quick and demo take instead of them, as they take fewer epochs.
    """

    optimizer: Callable[..., keras.optimizers.Optimizer] = keras.optimizers.RMSprop
    learning_rate: float | None = None
    batch_size: int | None = None
    epochs: int | None = None
    size: tuple[int, int] | None = None
    pixels: str = "imagenet"
    standardised: bool = True
    augmentation: Callable[[int], keras.layers.Layer] = augmentation.default_augmentation
    settings: dict = field(default_factory=dict)
    shorter: dict = field(default_factory=dict)

    def settings_for(self, *, short: bool, epochs: int) -> dict:
        """Give the settings that are stated, for a profile of so many epochs.

        Parameters
        ----------
        short : bool
            Whether the profile's epochs are fewer passes on purpose, so that its number is an upper bound;
            such profiles also keep their own size of images.
        epochs : int

        Examples
        --------
        >>> Recipe(learning_rate=0.01, epochs=20).settings_for(short=True, epochs=8)
        {'learning_rate': 0.01, 'epochs': 8, 'steps_per_epoch': None}
        """
        found = {"learning_rate": self.learning_rate, "batch_size": self.batch_size}
        found = {name: value for name, value in found.items() if value is not None} | self.settings
        if short:
            found |= self.shorter
        if self.epochs is not None:
            found |= {
                "epochs": min(self.epochs, epochs) if short else self.epochs,
                "steps_per_epoch": None,
            }
        return found


PAPER = Recipe()  # of the paper that compares: all else is the profile's
