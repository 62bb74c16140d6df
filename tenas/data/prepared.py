"""The small file that a search reads: a sample of a data set, its card, and a picture of it."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tenas.data.arrays import as_labels, as_pixels
from tenas.data.sources import Arrays, load
from tenas.errors import TenasError
from tenas.files import read_json, sha256, whole, write_json
from tenas.provenance import Stopwatch, provenance

MOST_IMAGES = 10_000
GRID = 8


def filled(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with its defaults, checked: the workflow's schema has done so, a caller from Python has not."""
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
    """The indices of the images that are no exact repetition of an earlier one, in their order.

    Two equal images make two equal rows of the kernel, and so a singular one.
    """
    first = {image.tobytes(): index for index, image in reversed(list(enumerate(images)))}
    return np.array(sorted(first.values()), int)


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, of values from 0 to 1. ``images``: uint8 (n, h, w, 3)."""
    # Exact sums of integers: the same figures in whatever order, and no float copy of all images.
    histogram = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)]
    values = np.arange(256)
    count = images[..., 0].size
    mean = [float(h @ values) / count / 255 for h in histogram]
    square = [float(h @ values**2) / count / 255**2 for h in histogram]
    return mean, [max(s - m * m, 0.0) ** 0.5 for s, m in zip(square, mean, strict=True)]


def preview(images: np.ndarray, path: Path) -> None:
    """Save the first 64 images as a grid of 8 x 8; places for which there is no image stay white."""
    from PIL import Image

    side = images.shape[1]
    grid = np.full((GRID, GRID, side, side, 3), 255, np.uint8)
    shown = images[: GRID * GRID]
    grid.reshape(-1, side, side, 3)[: len(shown)] = shown
    picture = Image.fromarray(grid.swapaxes(1, 2).reshape(GRID * side, GRID * side, 3))
    # Enlarged to about 512 pixels, or nobody can see what is on them.
    scale = max(1, 512 // (GRID * side))
    with whole(path) as temporary:
        picture.resize((GRID * side * scale,) * 2, Image.Resampling.NEAREST).save(temporary)


def prepare(dataset: Mapping[str, Any], out: str | os.PathLike[str]) -> dict[str, Any]:
    """Draw the sample that a search reads from a data set, and write it to the folder ``out``. Returns the card.

    ``dataset``: an entry of the configuration's ``datasets`` (``source``, ``path``, ``images``, ``side``, ``seed``).
    images.npy is uint8 (n, side, side, 3), in random order, from the training part alone. labels.npy, int64 (n,), has their
    classes, -1 where the source gives none: not for the search, but for baselines that need a loss. card.json is written
    last: where it is, the folder is whole. Raises TenasError, with nothing changed in ``out``, for a faulty data set.
    """
    stopwatch = Stopwatch()
    dataset = filled(dataset)
    out = Path(out)
    loaded, side = load(dataset)
    part = loaded.train
    # The sample is drawn before images are resized: only those that are used get decoded.
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
    """Write images of one's own, as arrays, to the folder ``out`` as ``prepare`` does; all of them are for the search.

    ``images``: uint8 (n, h, w, 3) or float (n, 3, h, w), of numpy or torch; the middle square of oblong ones. ``labels``: (n,)
    integers from 0. ``classes``: by default as many as the labels say, without labels 10. Of more than 10,000 images a
    sample is taken. A folder that has the same already stays as it is. Returns the card.
    Raises TenasError for arrays of another kind, and for labels that no class has.
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
    out.mkdir(parents=True, exist_ok=True)
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
    """The classes of prepared images, from the file beside them: int64 (n,), from 0.

    Raises TenasError when the file is missing or not that of the card, or when the images have no labels.
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
        raise TenasError(f"The images beside {path} have no labels, which a loss needs.")
    return labels


def read_images(path: str | os.PathLike[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """The prepared images, memory-mapped read-only, and their card, which lies beside them.

    Returns uint8 (n, side, side, 3) and the card (keys ``classes``, ``side``, ``mean``, ``std``, ``sha256``, ...).
    Raises TenasError when either is missing or damaged, or when the images are not those that the card describes.
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
