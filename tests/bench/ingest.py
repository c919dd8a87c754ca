"""From image files to the pixel cache: against decoding alone, an archive, and the ways that others take."""

import importlib.util
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bcdlib.data import breakhis, sources
from bcdlib.data.cache import build_cache
from bcdlib.data.decode import count_cores, decode_once
from tests.bench import Setting, peers
from tests.bench.ratios import paired, rate

SIZE = (144, 96)  # the paper's


def comparisons(setting: Setting):
    """Ratios of images/s, both sides on as many workers as there are cores."""
    folder = setting.pictures
    source = sources.open_source(folder)
    images = breakhis.scan_breakhis(source).images
    files = [folder / path for path in images["path"]]
    ours = _ingest(source, images, setting.folder / "cache")

    def against(name, what, goal, work, note="", some=files):
        return paired(
            f"ingest-{name}",
            f"ingest / {what}",
            goal,
            "images/s",
            ours,
            lambda: rate(len(some), work),
            setting.pairs,
            note,
        )

    yield against(
        "decode",
        "decoding alone",
        ">= 0.9",
        lambda: _decode_alone(files),
        "the same files, read and decoded by the same decoder on all cores, and thrown away",
    )
    archive = setting.folder / "pictures.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, "pictures")
    packed = sources.open_source(archive)
    yield paired(
        "ingest-archive",
        "ingest from .tar.gz / from a folder",
        ">= 0.85",
        "images/s",
        _ingest(packed, breakhis.scan_breakhis(packed).images, setting.folder / "cache"),
        ours,
        setting.pairs,
    )
    if importlib.util.find_spec("tensorflow"):
        yield against(
            "tfdata",
            "image_dataset_from_directory, same resize",
            ">= 1.2",
            peers.keras_directory_antialiased(folder, SIZE),
            "mapped to antialiased Lanczos, prefetched",
        )
        yield against(
            "tfdata-plain",
            "image_dataset_from_directory, its own Lanczos",
            ">= 1.2",
            peers.keras_directory(folder, SIZE),
            "prefetched; it does not antialias: less work than ours",
        )
        yield against(
            "tfdata-bilinear",
            "image_dataset_from_directory, bilinear",
            "",
            peers.keras_directory(folder, SIZE, "bilinear"),
            "its default; not antialiased",
        )
    if importlib.util.find_spec("torch"):
        yield against(
            "torch",
            "torch DataLoader with Pillow",
            ">= 1.2",
            peers.torch_loader(files, SIZE),
            "workers started before; Lanczos with reducing_gap=2.0",
        )
    some = files[: len(files) // 4]
    yield against("pillow", "a plain Pillow loop", "", lambda: peers.pillow_loop(some, SIZE), some=some)


def _ingest(source, images, root: Path):
    def work() -> float:
        shutil.rmtree(root, ignore_errors=True)
        return rate(len(images), lambda: build_cache(source, images, SIZE, root=root, progress=False))

    return work


def _decode_alone(files) -> None:
    with ThreadPoolExecutor(count_cores()) as pool:
        for _ in pool.map(lambda file: decode_once(file.read_bytes()).shape, files):
            pass
