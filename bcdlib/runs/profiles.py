"""The sizes in which the suite runs: `paper` (as published), `quick` (laptop), `demo` (drawn tissue)."""

import dataclasses

from bcdlib.errors import InputError, check_known


@dataclasses.dataclass(frozen=True)
class Profile:
    """Settings of a run. Defaults are the paper's, or field practice where it is silent.

    Attributes
    ----------
    name : str
    size : (width, height) in pixels
    epochs, steps_per_epoch, batch_size : int
        ``steps_per_epoch=None`` means one pass over the training images.
    learning_rate : float
        Of RMSprop; the paper does not state it, 0.001 is Keras' default.
    batch_norm : float or "frozen" or None
        Momentum of the batch norm layers; None keeps Keras' 0.99, "frozen" keeps ImageNet's statistics in
        training too. Short profiles need one or the other: after a few dozen steps at 0.99 the moving
        statistics lag behind the weights, and test accuracy looks like chance.
    splits : tuple of str
        Protocols that 04_train trains under, the paper's first.
    folds : int
        Folds of image, slide and case. 04_train fits the first fold only; 06_compare all, with a frozen base.
    compare_splits : tuple of str
        Protocols that 06_compare measures with ``trainable="head"``.
    head_epochs, head_learning_rate : int, float
        Of the head on a frozen base. At RMSprop's 0.001 its sigmoid saturates in the first steps, and MSE has
        no gradient there.
    needs_pretrained : bool
        Whether to stop when ImageNet weights cannot be had, rather than start from random ones.
    """

    name: str
    size: tuple[int, int] = (144, 96)
    epochs: int = 200
    steps_per_epoch: int | None = 200
    batch_size: int = 32
    learning_rate: float = 0.001
    batch_norm: float | str | None = None
    splits: tuple[str, ...] = ("magnification", "case")
    folds: int = 5
    compare_splits: tuple[str, ...] = ("magnification", "image", "official", "slide", "case")
    head_epochs: int = 10
    head_learning_rate: float = 0.0001
    needs_pretrained: bool = True


PROFILES = {
    "paper": Profile("paper"),
    # RMSprop at 0.001 destroys pre-trained weights, and the paper's many epochs are needed to repair them:
    # hence the lower rates. From random weights it saturates the sigmoid at once, where MSE has no gradient.
    "quick": Profile("quick", epochs=4, steps_per_epoch=None, learning_rate=0.00003, batch_norm="frozen"),
    "demo": Profile(
        "demo",
        size=(72, 48),
        epochs=4,
        steps_per_epoch=None,
        learning_rate=0.00005,
        batch_norm=0.8,
        folds=3,
        head_epochs=6,
        needs_pretrained=False,
    ),
}


def get_profile(name: str, **changes) -> Profile:
    """Return a profile by name, with fields replaced.

    Parameters
    ----------
    name : str
        "paper", "quick" or "demo".
    **changes
        Field -> value; None keeps the profile's own, and so does the size (0, 0).

    Raises
    ------
    InputError
        If there is no such profile, only one side of ``size`` is given, or ``epochs`` is negative.

    Examples
    --------
    >>> get_profile("paper").epochs, get_profile("paper", epochs=3, size=None)
    (200, Profile(name='paper', size=(144, 96), epochs=3, ...
    """
    check_known("profile", name, PROFILES)
    if (size := changes.get("size")) is not None:
        if min(size) < 0 or min(size) == 0 < max(size):
            raise InputError(
                f"width {size[0]} and height {size[1]}: give both in pixels, or neither for the profile's"
            )
        changes["size"] = tuple(size) if any(size) else None
    if (changes.get("epochs") or 1) < 1:
        raise InputError(f"epochs {changes['epochs']}: give 1 or more")
    return dataclasses.replace(
        PROFILES[name], **{key: value for key, value in changes.items() if value is not None}
    )
