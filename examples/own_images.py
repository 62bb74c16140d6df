"""Sources of images: a function from the path of a data set's entry to its images, and a record of it.

PHOTOS reads a folder of image files with a table of their labels, SHAPES draws images itself. A configuration says

    datasets:
      photos: {source: "examples/own_images.py:PHOTOS", path: photos}
      shapes: {source: "examples/own_images.py:SHAPES"}
"""

import csv

import numpy as np

from tenas import Arrays, Files, Loaded, Paths, Source, TenasError


def load_photos(path):
    """``path``/labels.csv with the columns file, label and part (train or test), beside the images that it names."""
    table = path / "labels.csv"
    if not table.is_file():
        raise TenasError(f"The folder {path} has no labels.csv.")
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    classes = sorted({row["label"] for row in rows})

    def part(name):
        chosen = [row for row in rows if row["part"] == name]
        labels = np.array([classes.index(row["label"]) for row in chosen], np.int64)
        # Files are read when they are asked for, at the size that is asked for.
        return Files(Paths.of(path / row["file"] for row in chosen), labels)

    return Loaded(part("train"), part("test"), len(classes), [table], classes)


def draw_shapes(path):
    """Squares, discs and crosses of random colour, place and size: 32x32, 400 of each to train on and 100 to test."""
    generator = np.random.default_rng(0)
    labels = np.arange(1500) % 3
    images = np.empty((len(labels), 32, 32, 3), np.uint8)
    rows, columns = np.mgrid[:32, :32]
    for image, label in zip(images, labels, strict=True):
        y, x, size = generator.integers(8, 24), generator.integers(8, 24), generator.integers(4, 8)
        across, down = abs(columns - x), abs(rows - y)
        shapes = [
            np.maximum(across, down) <= size,
            across**2 + down**2 <= size**2,
            (np.minimum(across, down) <= size // 3) & (np.maximum(across, down) <= size),
        ]
        image[:] = generator.integers(0, 100, 3)
        image[shapes[label]] = generator.integers(120, 256, 3)
        image[:] = np.clip(image + generator.normal(0, 20, image.shape), 0, 255)
    train, test = Arrays(images[:1200], labels[:1200]), Arrays(images[1200:], labels[1200:])
    return Loaded(train, test, 3, class_names=["square", "disc", "cross"])


# 32: the side of the images when the data set's entry gives none.
PHOTOS = Source(load_photos, 32)
SHAPES = Source(draw_shapes, 32, needs_path=False)
