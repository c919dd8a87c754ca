"""Captions of images."""

from bcdlib.data.breakhis import UNKNOWN
from bcdlib.data.custom import magnification_label


def image_caption(image, columns=("class", "subtype", "magnification", "slide")) -> str:
    """Describe an image in one line, by what is known of it.

    Parameters
    ----------
    image : mapping
        A row of an image table.
    columns : sequence of str
        What to say; what is unknown is left out.

    Examples
    --------
    >>> image_caption({"class": "benign", "subtype": "A", "magnification": 40, "slide": "14-22549AB"})
    'benign, A, 40X, slide 14-22549AB'
    >>> image_caption({"class": "benign", "subtype": "unknown", "magnification": 0, "slide": "7"})
    'benign, slide 7'
    """
    parts = []
    for name in columns:
        value = magnification_label(image[name]) if name == "magnification" else str(image[name])
        if value != UNKNOWN:
            parts.append(f"{name} {value}" if name in ("slide", "case") else value)
    return ", ".join(parts)
