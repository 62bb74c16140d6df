"""The small file that a search reads: a sample of a data set, its card, and a preview."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tenas.data.arrays import as_labels, as_pixels
from tenas.data.sources import Arrays, load
from tenas.errors import TenasError
from tenas.files import read_json, sha256, whole, write_json
from tenas.locks import alone
from tenas.provenance import Stopwatch, provenance

MOST_IMAGES = 10_000
GRID = 8


def filled(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with defaults, checked: calls from Python do not go through the configuration's models."""
    entry = {"path": None, "images": MOST_IMAGES, "side": None, "seed": 0, **dataset}
    unknown = entry.keys() - {"source", "path", "images", "side", "seed"}
    if unknown:
        raise TenasError(f"A data set has no key {sorted(unknown)[0]!r}; it may have source, path, images, side and seed.")
    if not isinstance(entry.get("source"), str):
        raise TenasError("A data set needs the key 'source': the name of a source, or path/to/file.py:object.")
    for key, least, most in (("images", 2, MOST_IMAGES), ("side", 8, None), ("seed", 0, None)):
        value = entry[key]
        if key == "side" and value is None:
            continue
        if type(value) is not int or value < least or (most is not None and value > most):
            upto = "" if most is None else f" and at most {most}"
            raise TenasError(f"The data set's {key!r} is {value!r}; it must be a whole number of at least {least}{upto}.")
    return entry


def distinct(images: np.ndarray) -> np.ndarray:
    """Indices of the distinct images, first occurrences in order.

    Two equal images would make two equal rows of the kernel, which is then singular.
    """
    first = {image.tobytes(): index for index, image in reversed(list(enumerate(images)))}
    return np.array(sorted(first.values()), int)


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, for values scaled to 0 to 1. ``images``: uint8 (n, h, w, 3)."""
    # Sums of integers are exact: independent of the order, and without a float copy of all images.
    histogram = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)]
    values = np.arange(256)
    count = images[..., 0].size
    mean = [float(h @ values) / count / 255 for h in histogram]
    square = [float(h @ values**2) / count / 255**2 for h in histogram]
    return mean, [max(s - m * m, 0.0) ** 0.5 for s, m in zip(square, mean, strict=True)]


def preview(images: np.ndarray, path: Path) -> None:
    """Save the first 64 images as a grid of 8 x 8; empty places stay white."""
    from PIL import Image

    side = images.shape[1]
    grid = np.full((GRID, GRID, side, side, 3), 255, np.uint8)
    shown = images[: GRID * GRID]
    grid.reshape(-1, side, side, 3)[: len(shown)] = shown
    picture = Image.fromarray(grid.swapaxes(1, 2).reshape(GRID * side, GRID * side, 3))
    # Enlarged to about 512 pixels, or nothing could be seen on them.
    scale = max(1, 512 // (GRID * side))
    with whole(path) as temporary:
        picture.resize((GRID * side * scale,) * 2, Image.Resampling.NEAREST).save(temporary)


def prepare(dataset: Mapping[str, Any], out: str | os.PathLike[str]) -> dict[str, Any]:
    """Draw the sample that a search reads from a data set, write it to the folder ``out``, and return the card.

    ``dataset``: an entry of the configuration's ``datasets`` (``source``, ``path``, ``images``, ``side``, ``seed``).
    images.npy is uint8 (n, side, side, 3), in random order, from the training part only. labels.npy, int64 (n,), holds their
    classes, -1 if the source has none; only loss-based measures read it. card.json is written last: if it exists, the folder is
    complete. Raises TenasError for a faulty data set, and changes nothing in ``out``.
    """
    stopwatch = Stopwatch()
    dataset = filled(dataset)
    out = Path(out)
    loaded, side = load(dataset)
    part = loaded.train
    # Draw the sample before resizing: only the images in it are decoded.
    indices = np.random.default_rng(dataset["seed"]).permutation(len(part.labels))[: dataset["images"]]
    pixels = part.take(indices).sized(side).read(np.arange(len(indices)))
    kept = distinct(pixels)
    images, labels = pixels[kept], part.labels[indices[kept]]
    facts = {
        "duplicates_left_out": len(pixels) - len(images),
        "available": len(part.labels),
        "held_out_for_testing": 0 if loaded.test is None else len(loaded.test.labels),
    }
    return _write(out, images, labels, loaded.classes, dataset, facts, loaded.files, stopwatch)


def prepare_arrays(images: object, labels: object | None, classes: int | None, out: str | os.PathLike[str]) -> dict[str, Any]:
    """Write given arrays to the folder ``out`` as ``prepare`` does, all of them for the search; return the card.

    ``images``: uint8 (n, h, w, 3) or float (n, 3, h, w), of NumPy or torch; oblong ones are cropped to the middle square.
    ``labels``: (n,) integers from 0. ``classes``: by default the largest label + 1, or 10 without labels. More than 10,000 images
    are sampled. A folder that already holds the same images is left unchanged.
    Raises TenasError for arrays of another shape or dtype, and for labels out of range.
    """
    stopwatch = Stopwatch()
    out, pixels = Path(out), as_pixels(images)
    numbers, classes = as_labels(labels, len(pixels), classes)
    order = np.random.default_rng(0).permutation(len(pixels))[:MOST_IMAGES]
    sample = Arrays(pixels, numbers).take(order).sized(min(pixels.shape[1:3]))
    entry = {"source": "arrays", "sha256": sample.digest(), "classes": classes}
    if (out / "card.json").exists():
        card = read_json(out / "card.json", "data card")
        if card["provenance"]["settings"] == entry:
            return card
    kept = distinct(sample.images)
    facts = {
        "duplicates_left_out": len(order) - len(kept),
        "available": len(pixels),
        "held_out_for_testing": 0,
    }
    return _write(out, sample.images[kept], sample.labels[kept], classes, entry, facts, [], stopwatch)


def _write(
    out: Path,
    images: np.ndarray,
    labels: np.ndarray,
    classes: int,
    entry: Mapping[str, Any],
    facts: Mapping[str, Any],
    files: Iterable[Path],
    stopwatch: Stopwatch,
) -> dict[str, Any]:
    if len(images) < 2:
        raise TenasError(f"The data set has {len(images)} different image(s) to train on; a search needs at least two.")
    with alone(out):
        return _fill(out, images, labels, classes, entry, facts, files, stopwatch)


def _fill(
    out: Path,
    images: np.ndarray,
    labels: np.ndarray,
    classes: int,
    entry: Mapping[str, Any],
    facts: Mapping[str, Any],
    files: Iterable[Path],
    stopwatch: Stopwatch,
) -> dict[str, Any]:
    (out / "card.json").unlink(missing_ok=True)
    with whole(out / "images.npy") as temporary:
        np.save(temporary, images)
    with whole(out / "labels.npy") as temporary:
        np.save(temporary, labels)
    preview(images, out / "preview.png")
    mean, std = channel_statistics(images)
    card = {
        "source": entry["source"],
        "images": len(images),
        **facts,
        "classes": classes,
        "side": images.shape[1],
        "mean": mean,
        "std": std,
        "sha256": sha256(out / "images.npy"),
        "labels_sha256": sha256(out / "labels.npy"),
        "provenance": provenance(settings=entry, inputs=files, stopwatch=stopwatch),
    }
    write_json(out / "card.json", card)
    return card


def read_labels(images: str | os.PathLike[str]) -> np.ndarray:
    """Labels of prepared images, from the file next to them: int64 (n,), from 0.

    Raises TenasError if the file is missing or is not the one of the card, or if the images have no labels.
    """
    path = Path(images).with_name("labels.npy")
    card = read_json(path.with_name("card.json"), "data card")
    try:
        digest = sha256(path)
        labels: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise TenasError(f"The labels {path} cannot be read: {error}. Prepare the data set again.") from error
    if digest != card.get("labels_sha256"):
        raise TenasError(f"The labels {path} are not those of their card. Prepare the data set again.")
    if (labels < 0).any():
        raise TenasError(f"The images next to {path} have no labels, which a loss-based measure needs.")
    return labels


def read_images(path: str | os.PathLike[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """The prepared images, memory-mapped read-only, and their card, from the file next to them.

    Returns uint8 (n, side, side, 3) and the card (keys ``classes``, ``side``, ``mean``, ``std``, ``sha256``, ...).
    Raises TenasError if either is missing or damaged, or if the images are not the ones of the card.
    """
    path = Path(path)
    card = read_json(path.parent / "card.json", "data card")
    missing = [key for key in ("images", "classes", "side", "mean", "std", "sha256") if key not in card]
    if missing:
        raise TenasError(f"The data card {path.parent / 'card.json'} has no key {missing[0]!r}. Prepare the data set again.")
    try:
        digest = sha256(path)
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise TenasError(f"The prepared images {path} cannot be read: {error}. Prepare the data set again.") from error
    shape = (card["images"], card["side"], card["side"], 3)
    if digest != card["sha256"] or images.dtype != np.uint8 or images.shape != shape:
        raise TenasError(f"The prepared images {path} are not those of their card. Prepare the data set again.")
    return images, card
