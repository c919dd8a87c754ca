"""Fifty images that are no tissue sections: scikit-image's photographs, noise, flat colour, text."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage import data

# without immunohistochemistry, which is tissue; cell, retina, microaneurysms are no stained sections
BUNDLED = (
    "astronaut brick camera cat cell checkerboard clock coffee coins colorwheel grass gravel horse "
    "hubble_deep_field logo microaneurysms moon page retina rocket shepp_logan_phantom text"
).split()
FLAT = {
    "grey": (128, 128, 128),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "red": (220, 30, 30),
    "pink": (220, 160, 200),
    "blue": (60, 80, 200),
}  # pink: about the colour of eosin
WORDS = (
    "Benign or malignant?",
    "The quick brown fox jumps over the lazy dog",
    "0123456789 0123456789",
    "lorem ipsum dolor sit amet",
    "Not a slide",
    "STOP",
    "a b c d e f g",
)
WIDTH, HEIGHT = 700, 460


def images(size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Name -> uint8 (height, width, 3), resized to (width, height) as the suite resizes."""
    found = {name: getattr(data, name)() for name in BUNDLED}
    found["motorcycle_left"], found["motorcycle_right"], _ = data.stereo_motorcycle()
    found |= {"face": data.lfw_subset()[0], "blobs": data.binary_blobs(256, rng=0)}
    found |= {f"flat_{name}": np.full((HEIGHT, WIDTH, 3), colour, "uint8") for name, colour in FLAT.items()}
    found |= (
        _noise(np.random.default_rng(0)) | _gradients() | {f"text_{k}": _text(k) for k in range(len(WORDS))}
    )
    return {name: np.asarray(_rgb(one).resize(size, Image.Resampling.LANCZOS)) for name, one in found.items()}


def _noise(rng) -> dict:
    shape = (HEIGHT, WIDTH, 3)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 18, 3), dtype="uint8"))
    return {
        "noise_colour": rng.integers(0, 256, shape, dtype="uint8"),
        "noise_grey": rng.integers(0, 256, shape[:2], dtype="uint8"),
        "noise_soft": rng.normal(128, 20, shape).clip(0, 255).astype("uint8"),
        "noise_pink": (FLAT["pink"] + rng.normal(0, 30, shape)).clip(0, 255).astype("uint8"),
        "noise_coarse": np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)),
        "noise_black_and_white": rng.random(shape[:2]) > 0.5,
    }


def _gradients() -> dict:
    x, y = np.meshgrid(np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT))
    pink = np.array([240, 200, 225]) * (1 - x)[..., None] + np.array([110, 60, 150]) * x[..., None]
    return {
        "gradient_across": x,
        "gradient_down": y,
        "gradient_round": np.hypot(x - 0.5, y - 0.5),
        "gradient_colours": (255 * np.stack([x, y, 1 - x], axis=-1)).astype("uint8"),
        "gradient_stain": pink.astype("uint8"),
    }


def _text(number: int) -> np.ndarray:
    image = Image.new("RGB", (WIDTH, HEIGHT), ("white", "black", "#f4d9e8", "#333366")[number % 4])
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=20 + 12 * number)
    for line in range(10):
        place = (20, 15 + line * (24 + 14 * number))
        draw.text(place, WORDS[number], fill="white" if number % 2 else "black", font=font)
    return np.asarray(image)


def _rgb(values) -> Image.Image:
    values = np.asarray(values)
    if values.dtype != np.uint8:
        values = values.astype(float)
        values = (255 * (values - values.min()) / np.ptp(values)).astype("uint8")
    image = Image.fromarray(values)
    if image.mode == "RGBA":  # what a viewer shows: on white
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
