"""The embedded data set: breast-tissue images drawn by program, in the layout of BreakHis.

The design is fixed. 26 cases (13 benign, 13 malignant; three or four per subtype) give 32 slides: six
cases have two slides (letters AB and CD), four have one without letters, the others one with AB.
Each slide has five images at each of 40X, 100X, 200X and 400X: 640 images, half of them malignant.

An image is drawn in micrometres and stained by the Beer-Lambert law. What a classifier can learn:

- *class*: a grade from 0 (calm) to 1 (wild) steers the size, variety and crowding of nuclei and the loss of
  lumens; on top of it each subtype has its architecture. The grades of the two classes overlap.
- *case and slide*: stain, white balance, blur, grain and fibre texture, drawn without regard to the class.
  A model that has seen a slide knows it again, hence splits by image look better than splits by case.

Nothing here is medical data; year 99 in the names says so.
"""

import itertools
import os
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy.special import ndtri
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from bcdlib.data.breakhis import BENIGN, MAGNIFICATIONS, official_path, parse_name
from bcdlib.errors import InputError, check_known
from bcdlib.runs.files import read_json, write_json

VERSION = 1
IMAGES_EACH = 5  # per slide and magnification
MARKER = "synthetic.json"
# Benign and malignant alternate, so that the case number says nothing about the class.
ORDER = ("A", "DC", "F", "LC", "PT", "MC", "TA", "PC") * 3 + ("F", "DC")
TWO_SLIDES = (1, 2, 8, 11, 17, 20)  # positions in ORDER, three of each class
NO_LETTERS = (5, 6, 15, 22)
WIDTH, HEIGHT = 700, 460
# grain cannot be compressed, so the quickest way is taken; half the time of OpenCV's usual one, 4 % larger
PNG = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
PNG += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_AVG]

# Grades: mean by class, spread between cases and between the images of one case.
GRADE_MEAN = {"B": 0.23, "M": 0.77}
GRADE_CASE, GRADE_IMAGE = 0.16, 0.08
ORDINARY = 0.06  # share of images, of either class, that show ordinary tissue beside the lesion

STROMA, EPITHELIUM, LUMEN, MUCIN, FAT = range(5)


def plan_images(seed: int = 0) -> pd.DataFrame:
    """List the images to draw.

    Parameters
    ----------
    seed : int
        Only ``grade`` depends on it.

    Returns
    -------
    DataFrame
        640 rows in a fixed order, with the columns filename (str), class ("B" or "M"), subtype, slide, case
        (str), magnification (int: 40, 100, 200, 400), sequence (int from 1), grade (float, 0 to 1), relpath
        (str).

    Examples
    --------
    >>> plan_images()["slide"].nunique()
    32
    """
    rng = np.random.default_rng([seed, 1])
    ranks = {c: iter(rng.permutation(13)) for c in "BM"}
    rows = []
    for number, subtype in enumerate(ORDER):
        group = "B" if subtype in BENIGN else "M"
        # Quantiles rather than free draws: each seed gets the same mix of easy and hard cases.
        case_grade = GRADE_MEAN[group] + GRADE_CASE * ndtri((next(ranks[group]) + 0.5) / 13)
        letters = ["AB", "CD"] if number in TWO_SLIDES else ["" if number in NO_LETTERS else "AB"]
        for letter, magnification, sequence in itertools.product(
            letters, MAGNIFICATIONS, range(1, IMAGES_EACH + 1)
        ):
            name = f"SOB_{group}_{subtype}-99-{10001 + number}{letter}-{magnification}-{sequence:03d}.png"
            rows.append(
                {
                    **parse_name(name),
                    "class": group,
                    "grade": float(np.clip(case_grade + GRADE_IMAGE * rng.standard_normal(), 0, 1)),
                    "relpath": official_path(name),
                }
            )
    return pd.DataFrame(rows).drop(columns="year")


def draw_dataset(
    folder, seed: int = 0, workers: int | None = None, *, limit: int | None = None, progress=True
) -> Path:
    """Draw the data set into a folder.

    Files that are already there are kept, so that an interrupted run is completed by the next; a folder whose
    ``synthetic.json`` says that it is complete is returned at once. With another version of numpy or OpenCV
    single pixels may come out differently.

    Parameters
    ----------
    folder : path-like
        Made if need be.
    workers : int, optional
        Threads; default: one a core. The pixels do not depend on it.
    limit : int, optional
        Draw only the first so many images of the plan and leave the set incomplete.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    InputError
        If the folder holds a set of another seed or version (begun or complete).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table = plan_images(seed)
    state = {"seed": int(seed), "version": VERSION, "count": len(table)}
    done, begun = folder / MARKER, folder / (MARKER + ".begun")
    if _has_marker(done, state):
        return folder
    if not _has_marker(begun, state):
        write_json(begun, state)
    # Linux takes back the memory of each array and fills it with zeros for the next, a fifth of the time,
    # until one large block was freed (mallopt(3), M_MMAP_THRESHOLD, "dynamic")
    np.empty(31 << 20, np.uint8)
    thread_map(
        partial(_draw_into, folder, seed),
        [row for row in table[:limit].to_dict("records") if not (folder / row["relpath"]).exists()],
        max_workers=workers or os.cpu_count(),
        tqdm_class=tqdm,
        desc="drawing tissue",
        unit="image",
        disable=not progress,
    )
    if limit is None:
        write_json(done, state)
        begun.unlink(missing_ok=True)
    return folder


def draw_image(
    subtype: str,
    magnification: int,
    grade: float = 0.5,
    *,
    slide="99-10001AB",
    sequence: int = 1,
    seed: int = 0,
) -> np.ndarray:
    """Draw one image: the same arguments give the same pixels.

    Parameters
    ----------
    subtype : str
        One of A, F, PT, TA (benign), DC, LC, MC, PC (malignant).
    magnification : int
        40, 100, 200 or 400.
    grade : float
        0 (calm, small and even nuclei) to 1 (large, varied, crowded).
    slide : str
        Its name gives the stain and the grain, which slides of one case (the name without trailing letters)
        nearly share.

    Returns
    -------
    uint8 array (460, 700, 3), RGB, 0 to 255

    Raises
    ------
    InputError
        For an unknown subtype or magnification.

    Examples
    --------
    >>> draw_image("F", 100).shape
    (460, 700, 3)
    """
    check_known("subtype", subtype, LAYOUTS)
    check_known("magnification", magnification, MAGNIFICATIONS)
    rng = np.random.default_rng([seed, 3, zlib.crc32(slide.encode()), magnification, sequence])
    scene = _Scene(rng, magnification, float(np.clip(grade, 0, 1)), _style(slide, seed))
    layout, apart = LAYOUTS[rng.choice(["A", "F"]) if rng.random() < ORDINARY else subtype]
    for _ in range(4):  # a photographer looks for a field that shows something
        scene.tissue[:] = STROMA
        layout(scene)
        if np.mean(scene.tissue == EPITHELIUM) > 0.08:
            break
    if rng.random() < 0.18:
        _fat(scene)
    return _stain(scene, *_densities(scene, apart))


# ---------------------------------------------------------------- files


def _has_marker(path: Path, state: dict) -> bool:
    try:
        found = read_json(path)
    except FileNotFoundError:
        return False
    except ValueError:
        found = None
    if found != state:
        raise InputError(f"{path} belongs to another set ({found}, wanted {state}): choose another folder")
    return True


def _draw_into(folder: Path, seed: int, row: dict) -> None:
    wanted = {key: row[key] for key in ("subtype", "magnification", "grade", "slide", "sequence")}
    path = folder / row["relpath"]
    path.parent.mkdir(parents=True, exist_ok=True)
    # there in full or not at all; what a killed run leaves must not be taken for an image
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(cv2.imencode(".png", draw_image(**wanted, seed=seed)[..., ::-1], PNG)[1].tobytes())
    temporary.replace(path)


# ---------------------------------------------------------------- stain and grain of a slide


def _style(slide, seed):
    """Stain and grain of a slide: its case's draw, moved a little. No argument knows the class."""
    case = slide.rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    base = np.random.default_rng([seed, 2, zlib.crc32(case.encode())]).uniform(-1, 1, 14)
    own = np.random.default_rng([seed, 2, zlib.crc32(slide.encode()), 1]).uniform(-1, 1, 14)
    v = np.clip(base + 0.25 * own, -1, 1)
    tint = 1 + np.array([0.04, 0.01, -0.05]) * v[7] + np.array([-0.03, 0.03, 0.0]) * v[8]
    return {
        "hema": (np.array([0.72 + 0.16 * v[0], 0.80, 0.36 + 0.18 * v[1]]) * 1.45 ** v[2]).astype("float32"),
        "eosin": (np.array([0.17 + 0.14 * v[3], 0.75, 0.34 + 0.24 * v[4]]) * 1.65 ** v[5]).astype("float32"),
        "white": ((232 + 14 * v[6]) * tint).astype("float32"),
        "grain": float(2.6 + 1.6 * v[9]),
        "blur": float(0.75 + 0.45 * v[10]),
        "fibre": float(1.7 ** v[11]),
        "contrast": float(0.32 + 0.18 * v[12]),
        "chromatin": float(0.22 + 0.12 * v[13]),
    }


def _stain(scene, hematoxylin, eosin):
    """Densities -> uint8 RGB by Beer-Lambert, then the camera: vignette, blur, grain."""
    rng, style = scene.rng, scene.style
    vignette = 1 + 0.025 * _noise(rng, 600)
    # a channel at a time: numpy is slow where the last axis has three elements
    channels = [
        cv2.exp(-(hematoxylin * hema + eosin * pink)) * white * vignette
        for hema, pink, white in zip(style["hema"], style["eosin"], style["white"])
    ]
    light = cv2.GaussianBlur(cv2.merge(channels), (0, 0), style["blur"])
    grain = cv2.GaussianBlur(rng.standard_normal((HEIGHT, WIDTH), dtype=np.float32), (0, 0), 0.7)
    return cv2.add(light, cv2.merge([1.6 * style["grain"] * grain] * 3), dtype=cv2.CV_8U)


def _noise(rng, wavelength):
    """Smooth noise of about unit variance over the image; wavelength in pixels."""
    coarse = rng.standard_normal(
        [max(3, round(side / wavelength) + 2) for side in (HEIGHT, WIDTH)], dtype=np.float32
    )
    return 1.4 * cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


# ---------------------------------------------------------------- where the tissues lie


class _Scene:
    """A field of view: a label map of tissues, drawn to in micrometres."""

    def __init__(self, rng, magnification, grade, style):
        self.rng, self.grade, self.style = rng, grade, style
        self.ppm = 0.015 * magnification  # pixels per micrometre: 0.6 at 40X, 6 at 400X
        self.extent = np.array([WIDTH, HEIGHT]) / self.ppm
        self.angle = rng.uniform(0, np.pi)  # the way the fibres run
        self.tissue = np.zeros((HEIGHT, WIDTH), np.uint8)

    def fill(self, outline, label):
        cv2.fillPoly(self.tissue, [np.rint(outline * self.ppm).astype(np.int32)], label)

    def strip(self, line, width, label):
        points = np.rint(line * self.ppm).astype(np.int32)
        cv2.polylines(self.tissue, [points], False, label, max(1, round(width * self.ppm)))

    def at(self, points):
        """Index a map of the field, its rows and columns, at these points (n, 2)."""
        return tuple(np.clip(points * self.ppm, 0, [WIDTH - 1, HEIGHT - 1]).astype(int).T[::-1])

    def scatter(self, spacing, jitter=0.3, margin=1.0):
        """Points (n, 2) on a jittered, randomly shifted triangular grid that covers the field."""
        low, high = -margin * spacing, self.extent + margin * spacing
        y, x = np.mgrid[low : high[1] : spacing * 0.87, low : high[0] : spacing]
        x = x + 0.5 * spacing * (np.arange(len(x)) % 2)[:, None]
        points = np.stack([x.ravel(), y.ravel()], 1) + self.rng.uniform(0, spacing, 2)
        return points + self.rng.normal(0, jitter * spacing, points.shape)

    def blob(self, centre, radius, wobble, stretch=1.0):
        """Draw a closed smooth outline (36, 2) around the centre."""
        t = np.linspace(0, 2 * np.pi, 36, endpoint=False)
        k = np.arange(2, 7)[:, None]
        waves = np.cos(k * t + self.rng.uniform(0, 2 * np.pi, k.shape)) * self.rng.normal(0, 1, k.shape) / k
        r = radius * np.clip(1 + wobble * 2 * waves.sum(0), 0.3, 2)
        c, s = np.cos(self.angle), np.sin(self.angle)
        ellipse = np.stack([r * stretch * np.cos(t), r / stretch * np.sin(t)], 1)
        return centre + ellipse @ np.array([[c, s], [-s, c]])

    def walk(self, start, length, bend, step=10.0):
        """Draw a wandering line (n, 2) that leaves `start` roughly along the fibres."""
        turns = self.rng.normal(0, bend, max(3, int(length / step)))
        angle = self.angle + self.rng.normal(0, 0.3) + np.cumsum(turns)
        return start + np.cumsum(step * np.stack([np.cos(angle), np.sin(angle)], 1), 0)


def _glands(scene, spacing, radius, *, growth=(0, 0), coverage, patch, hollow, wobble):
    """Draw round structures; `hollow` is the chance of a lumen, which high grades lower further.

    Of spacing and radius, `growth` is what the highest grade adds.
    """
    rng, g = scene.rng, scene.grade
    spacing, radius = np.array([spacing, radius]) + g * np.array(growth)
    centres = scene.scatter(spacing)
    level = _noise(rng, patch * scene.ppm)
    near = centres[level[scene.at(centres)] > np.quantile(level, np.clip(1.15 - coverage - 0.3 * g, 0, 1))]
    radii = radius * rng.lognormal(0, 0.12 + 0.2 * g, len(near))
    for centre, r in zip(near, radii):
        scene.fill(scene.blob(centre, r, wobble + 0.15 * g, rng.uniform(1, 1.35)), EPITHELIUM)
    for centre, r in zip(near, radii):
        if rng.random() < hollow * (1.3 - g):
            inner = max(r - rng.uniform(11, 14) - 4 * g, 0.18 * r)
            scene.fill(scene.blob(centre, inner, wobble + 0.3 * g), LUMEN)


def _strands(scene, spacing, length, width, *, bend, wall, inside, unit=1.0):
    """Draw wandering strips of epithelium about something; `length` in units, all else in micrometres."""
    lines = [scene.walk(p, scene.rng.uniform(*length) * unit, bend) for p in scene.scatter(spacing)]
    widths = scene.rng.uniform(*width, len(lines))
    for label, more in ((EPITHELIUM, wall), (inside, 0)):
        for line, thick in zip(lines, widths):
            scene.strip(line, thick + more, label)


def _slits(scene, spacing, width, bend):
    spacing *= 1.15 - 0.3 * scene.grade
    _strands(
        scene, spacing, (0.8, 2.0), width, bend=bend, wall=24 + 10 * scene.grade, inside=LUMEN, unit=spacing
    )


def _lobular(scene):
    for start in scene.scatter(46 - 14 * scene.grade):
        if scene.rng.random() < 0.75:
            line = scene.walk(start, scene.rng.uniform(20, 150), 0.14)
            scene.strip(line, scene.rng.uniform(9, 13), EPITHELIUM)
    if scene.rng.random() < 0.6 * (1 - scene.grade):
        _glands(scene, 150, 30, coverage=0.4, patch=300, hollow=0.9, wobble=0.1)


def _mucinous(scene):
    for centre in scene.scatter(400):
        scene.fill(scene.blob(centre, scene.rng.uniform(170, 290), 0.2), MUCIN)
    for centre in scene.scatter(95):
        if scene.tissue[scene.at(centre[None])][0] == MUCIN and scene.rng.random() < 0.7:
            r = scene.rng.uniform(18, 44)
            scene.fill(scene.blob(centre, r, 0.25, 1.3), EPITHELIUM)
            if scene.rng.random() < 0.6 * (1 - scene.grade):
                scene.fill(scene.blob(centre, max(r - 15, 4), 0.2, 1.3), LUMEN)


def _papillary(scene):
    for centre in scene.scatter(520):
        scene.fill(scene.blob(centre, scene.rng.uniform(250, 380), 0.15), LUMEN)
    _strands(scene, 82, (60, 240), (6, 26), bend=0.35, wall=20 + 26 * scene.grade, inside=STROMA)


# how each subtype is laid out, and how far apart the cells of its stroma are, in micrometres
LAYOUTS: dict[str, tuple[Callable, int]] = {
    "A": (partial(_glands, spacing=58, radius=23, coverage=0.6, patch=350, hollow=0.9, wobble=0.10), 30),
    "F": (partial(_slits, spacing=170, width=(2, 14), bend=0.22), 26),
    "PT": (partial(_slits, spacing=300, width=(10, 90), bend=0.3), 15),
    "TA": (partial(_glands, spacing=60, radius=25, coverage=0.75, patch=600, hollow=1.0, wobble=0.06), 34),
    "DC": (
        partial(
            _glands, spacing=70, radius=34, growth=(40, 22), coverage=0.7, patch=400, hollow=0.7, wobble=0.2
        ),
        30,
    ),
    "LC": (_lobular, 30),
    "MC": (_mucinous, 30),
    "PC": (_papillary, 24),
}


def _fat(scene):
    """Fat cells in patches, in either class."""
    level = _noise(scene.rng, 500 * scene.ppm)
    for centre in scene.scatter(52, 0.12):
        if level[scene.at(centre[None])][0] > 0.9:
            scene.fill(scene.blob(centre, scene.rng.uniform(22, 28), 0.05), FAT)


# ---------------------------------------------------------------- nuclei


def _lining(scene):
    """Place the nuclei of the epithelium, in rows along its border.

    Returns an array (n, 6): x, y [px], long and short radius [um], angle, darkness.
    """
    rng, g, ppm = scene.rng, scene.grade, scene.ppm
    radius = 3.1 + 1.9 * g
    pitch = radius * (2.35 - 0.35 * g)
    inside = np.isin(scene.tissue, (EPITHELIUM, LUMEN)).astype(np.uint8)
    inside[0, 0] = 0  # a field that is all epithelium has no border: give it one
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
    deepest = depth[scene.tissue == EPITHELIUM].max(initial=0)
    found = [np.zeros((0, 3))]  # no epithelium, no nuclei
    for level in np.arange(1.25 * radius * ppm, deepest, 1.1 * pitch * ppm):
        deeper = (depth > level).astype(np.uint8)
        for contour in cv2.findContours(deeper, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]:
            line = contour[:, 0]
            at = np.arange(rng.uniform(0, pitch * ppm), len(line), pitch * ppm / 1.12).astype(int)
            across = line[(at + 3) % len(line)] - line[(at - 3) % len(line)]
            found.append(np.column_stack([line[at], np.arctan2(across[:, 1], across[:, 0]) + np.pi / 2]))
    x, y, angle = np.concatenate(found).T
    keep = (x > 1) & (y > 1) & (x < WIDTH - 2) & (y < HEIGHT - 2)  # contours also follow the image's edge
    keep &= (scene.tissue[y.astype(int), x.astype(int)] == EPITHELIUM) & (rng.random(len(x)) > 0.08)
    n = keep.sum()
    x, y = (v[keep] + rng.normal(0, (0.10 + 0.16 * g) * pitch * ppm, n) for v in (x, y))
    size = radius * rng.lognormal(0, 0.07 + 0.20 * g, n)
    longer = rng.uniform(1.0, 1.35, n)
    return np.column_stack(
        [
            x,
            y,
            size * longer,
            size / longer,
            angle[keep] + rng.normal(0, 0.2 + g, n),
            rng.uniform(0.55, 0.8, n) + 0.2 * g,
        ]
    )


def _strangers(scene, apart, slope):
    """Place the spindle nuclei of the stroma, `apart` micrometres, along its fibres; at times lymphocytes."""
    rng = scene.rng
    points = scene.scatter(apart * rng.uniform(0.85, 1.2), 0.35, 0)
    points = points[scene.tissue[scene.at(points)] == STROMA]
    n = len(points)
    spindle = np.column_stack(
        [
            points * scene.ppm,
            rng.uniform(3.5, 7, n),
            rng.uniform(1.0, 1.9, n),
            slope[scene.at(points)] + rng.normal(0, 0.25, n),
            rng.uniform(0.55, 0.95, n),
        ]
    )
    points = scene.scatter(9, 0.3, 0)
    level = _noise(rng, 180 * scene.ppm)
    at = scene.at(points)
    points = points[(scene.tissue[at] == STROMA) & (level[at] > rng.uniform(1.3, 4))]
    n = len(points)
    lymphocytes = np.column_stack(
        [points * scene.ppm, np.full((n, 2), 2.7), np.zeros(n), rng.uniform(0.85, 1, n)]
    )
    return np.concatenate([spindle, lymphocytes])


def _draw_nuclei(scene, nuclei):
    """Nuclei, less regular in high grades, as darkness 0 to 1, float32 (460, 700)."""
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    rng, n = scene.rng, len(nuclei)
    t = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    x, y, a, b, angle, dark = nuclei.T[:, :, None]
    bumps = 1 + (0.05 + 0.2 * scene.grade) * sum(
        rng.normal(0, 1 / k, (n, 1)) * np.cos(k * t + rng.uniform(0, 6, (n, 1))) for k in (2, 3)
    )
    px, py = a * bumps * np.cos(t), b * bumps * np.sin(t)
    c, s = np.cos(angle), np.sin(angle)
    outlines = np.stack([x + scene.ppm * (c * px - s * py), y + scene.ppm * (s * px + c * py)], 2)
    for polygon, value in zip(
        np.rint(outlines * 16).astype(np.int32), np.rint(255 * dark[:, 0]).astype(int).tolist()
    ):
        cv2.fillConvexPoly(canvas, polygon, value, cv2.LINE_AA, 4)
    return canvas.astype(np.float32) / 255


# ---------------------------------------------------------------- densities of the two stains


def _fibres(scene):
    """Fibre texture (about unit variance) and the direction of the fibres at each pixel (radians)."""
    rng, ppm = scene.rng, scene.ppm
    y, x = (np.arange(side, dtype=np.float32) / np.float32(ppm) for side in (HEIGHT, WIDTH))
    y = y[:, None]
    c, s = np.float32(np.cos(scene.angle)), np.float32(np.sin(scene.angle))
    inside = cv2.distanceTransform((scene.tissue == STROMA).astype(np.uint8), cv2.DIST_L2, 3) / ppm
    around = cv2.GaussianBlur(np.minimum(inside, 50), (0, 0), 3)
    u = c * x + s * y
    v = c * y - s * x + 28 * _noise(rng, 260 * ppm) + 5 * _noise(rng, 55 * ppm) + 0.8 * around
    gy, gx = np.gradient(cv2.GaussianBlur(v[::4, ::4], (0, 0), 1.5))
    slope = np.arctan2(gy, gx).astype(np.float32) + np.float32(np.pi / 2)
    tile = cv2.GaussianBlur(rng.standard_normal((256, 256), dtype=np.float32), (0, 0), 1)
    tile /= tile.std()
    texture = np.zeros((HEIGHT, WIDTH), np.float32)
    for thick, weight in ((7.0, 0.6), (2.6, 0.5), (0.9, 0.45), (0.35, 0.45)):
        thick *= scene.style["fibre"]
        if thick * ppm > 0.9:  # finer than that only gives moire
            # OpenCV wraps too, but slowly: left to it is the tile's edge
            where = [x - 256 * np.floor(x / 256) for x in (u / (9 * thick) + 31 * thick, v / thick)]
            texture += weight * cv2.remap(tile, *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return texture, cv2.resize(slope, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)


def _densities(scene, apart):
    """Compute the hematoxylin and eosin densities, float32 (460, 700), 0 = clear glass."""
    rng, g, ppm, style, tissue = scene.rng, scene.grade, scene.ppm, scene.style, scene.tissue
    present = np.flatnonzero(np.bincount(tissue.ravel()))
    texture, slope = _fibres(scene)
    nuclei = _draw_nuclei(scene, np.concatenate([_strangers(scene, apart, slope), _lining(scene)]))
    soft = {
        label: cv2.GaussianBlur((tissue == label).astype(np.float32), (0, 0), max(0.8, 0.8 * ppm))
        if label in present
        else np.float32(0)
        for label in (EPITHELIUM, LUMEN, MUCIN, FAT)
    }
    cloud, fine = _noise(rng, 90 * ppm), _noise(rng, max(2.0, 0.9 * ppm))

    # Stroma: pink fibres with clear clefts between them.
    clefts = np.clip((-texture - 1.0 + 0.2 * cloud) * 2.5, 0, 1)
    stroma = (0.42 + style["contrast"] * 0.5 * texture + 0.08 * cloud + 0.06 * fine) * (1 - 0.85 * clefts)
    # Cytoplasm: densest near the nuclei, so that gaps show between cells.
    gap = cv2.distanceTransform((nuclei < 0.3).astype(np.uint8), cv2.DIST_L2, 3) / ppm
    body = cv2.exp(-gap / np.float32(5)) * (1 + 0.18 * fine)
    wisps = np.clip(texture - 0.7, 0, 1)

    clear = np.clip(1 - sum(soft.values()), 0, 1)
    eosin = clear * stroma + soft[EPITHELIUM] * (0.10 + 0.32 * body) + soft[MUCIN] * (0.08 + 0.12 * wisps)
    hema = (
        clear * (0.05 + 0.02 * cloud)
        + soft[MUCIN] * (0.10 + 0.20 * wisps)
        + soft[EPITHELIUM] * (0.05 + (0.16 + 0.26 * g) * body)
    )
    if rng.random() < 0.3:
        eosin += soft[LUMEN] * rng.uniform(0.05, 0.3) * np.clip(1 + 0.4 * cloud, 0, 2)  # secretion
    eosin += 1.2 * soft[FAT] * (1 - soft[FAT])  # membranes
    # Nuclei: a dark rim around a paler, grainy inside; the more so in high grades.
    inner = (0.35 + 0.3 * g) * cv2.GaussianBlur(nuclei, (0, 0), max(0.6, 1.1 * ppm))
    chromatin = 1.25 - inner + style["chromatin"] * fine * min(0.7, ppm / 6)
    hema = hema * (1 - nuclei) + (0.95 + 0.35 * g) * nuclei * np.clip(chromatin, 0.2, 2)
    return np.clip(hema, 0, 3), np.clip(eosin * (1 - 0.6 * nuclei), 0, 3)
