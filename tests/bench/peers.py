"""The ways that others take from image files to batches; each as its documentation shows it."""

import functools
import io

import numpy as np
from PIL import Image

from bcdlib.data.decode import count_cores

BATCH = 32


def pillow_loop(files, size) -> None:
    """A plain loop: open, convert, resize."""
    for file in files:
        with Image.open(file) as picture:
            np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0))


def keras_directory(folder, size, interpolation: str = "lanczos3"):
    """``keras.utils.image_dataset_from_directory`` with tf.data's prefetch; a `Drain`."""
    import keras
    import tensorflow as tf

    data = keras.utils.image_dataset_from_directory(
        folder,
        image_size=(size[1], size[0]),
        batch_size=BATCH,
        interpolation=interpolation,
        shuffle=False,
        verbose=False,
    ).prefetch(tf.data.AUTOTUNE)

    return Drain(data)


def keras_directory_antialiased(folder, size, original=(700, 460)):
    """The same, its images resized by tf.data's map with antialiasing, which the function lacks."""
    import keras
    import tensorflow as tf

    def resized(picture, label):
        return tf.image.resize(picture, (size[1], size[0]), "lanczos3", antialias=True), label

    data = keras.utils.image_dataset_from_directory(
        folder,
        image_size=(original[1], original[0]),
        batch_size=None,
        interpolation="nearest",
        shuffle=False,
        verbose=False,
    )
    return Drain(data.map(resized, tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE))


def torch_loader(files, size):
    """``torch.utils.data.DataLoader`` over Pillow, a worker a core that stays; a `Drain`."""
    from torch.utils.data import DataLoader

    # forked workers would inherit this process's threads in whatever state they are
    loader = DataLoader(
        Pictures(files, size),
        batch_size=BATCH,
        num_workers=count_cores(),
        persistent_workers=True,
        collate_fn=np.stack,
        multiprocessing_context="spawn",
    )

    return Drain(loader)


class Drain:
    """Runs through ``data`` once each time it is called."""

    def __init__(self, data):
        self.data = data

    def __call__(self):
        for _ in self.data:
            pass


class Pictures:
    """A data set as torch.utils.data wants it."""

    def __init__(self, files, size):
        self.files, self.size = list(files), size

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        with Image.open(io.BytesIO(self.files[index].read_bytes())) as picture:
            return np.asarray(
                picture.convert("RGB").resize(self.size, Image.Resampling.LANCZOS, reducing_gap=2.0)
            )


@functools.cache
def keras_generator(folder, size, seed: int = 0):
    """The paper's way: ImageDataGenerator.flow_from_dataframe with our augmentation; an endless iterator."""
    import pandas as pd
    from tensorflow.keras.preprocessing.image import ImageDataGenerator

    files = sorted(folder.rglob("*.png"))
    table = pd.DataFrame(
        {"filename": [str(file) for file in files], "class": [file.parent.name for file in files]}
    )
    generator = ImageDataGenerator(
        horizontal_flip=True, vertical_flip=True, zoom_range=0.1, fill_mode="reflect"
    )
    return generator.flow_from_dataframe(
        table,
        target_size=(size[1], size[0]),
        batch_size=BATCH,
        class_mode="binary",
        seed=seed,
        validate_filenames=False,
    )
