"""Prepare and read the small file for searches: a sample of a data set, its card, and a preview."""

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from tenas.data.archives import Header, read_header
from tenas.data.arrays import as_labels, as_pixels, check_classes, label_warnings
from tenas.data.parts import Arrays, Files, shared
from tenas.data.pixels import remarks
from tenas.data.sources import SOURCES, load, size_of
from tenas.errors import TenasError, reason
from tenas.files import is_utf8, read_json, sha256, whole, write_json
from tenas.locks import alone
from tenas.provenance import Stopwatch, has_seal, is_edited, provenance, sealed

MOST_IMAGES = 10_000
GRID = 8
# Of 255: images that are all darker than a quarter are rather on another scale.
DARK = 64


class DataWarning(UserWarning):
    """A part of a data set is left out, or makes results mean little. The card has the message too, under ``warnings``."""


def filled(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Check an entry and fill in defaults: calls from Python do not use the configuration's models."""
    entry = {"path": None, "images": MOST_IMAGES, "side": None, "seed": 0, **dataset}
    unknown = entry.keys() - {"source", "path", "images", "side", "seed"}
    if unknown:
        raise TenasError(f"A data set has no key {min(unknown)!r}; it may have source, path, images, side and seed.")
    if not isinstance(entry.get("source"), str):
        raise TenasError("A data set needs the key 'source': the name of a source, or path/to/file.py:object.")
    path = entry["path"]
    if path is not None and not (isinstance(path, str) and path and "\0" not in path and is_utf8(path)):
        raise TenasError(f"The data set's 'path' is {path!r}; it must be a path that can be encoded in UTF-8.")
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
    first = {_digest(image): index for index, image in reversed(list(enumerate(images)))}
    return np.array(sorted(first.values()), int)


def _digest(image: np.ndarray) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()


def contradictory(images: np.ndarray, labels: np.ndarray) -> int:
    """Number of images that are also there with another label."""
    found: dict[bytes, set[int]] = {}
    keys = [_digest(image) for image in images]
    for key, label in zip(keys, labels.tolist(), strict=True):
        found.setdefault(key, set()).add(label)
    return sum(len(found[key]) > 1 for key in keys)


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, for values scaled to 0 to 1. ``images``: uint8 (n, h, w, 3)."""
    # Sums of integers are exact: independent of the order, and without a float copy of all images.
    histogram = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)]
    values = np.arange(256)
    count = images[..., 0].size
    mean = [float(h @ values) / count / 255 for h in histogram]
    square = [float(h @ values**2) / count / 255**2 for h in histogram]
    std = [max(s - m * m, 0.0) ** 0.5 for s, m in zip(square, mean, strict=True)]
    # For a constant channel the difference is a rounding error, mostly not 0.
    return mean, [0.0 if np.count_nonzero(h) == 1 else s for s, h in zip(std, histogram, strict=True)]


def preview(images: np.ndarray, path: Path) -> None:
    """Save the first 64 images as a grid of 8 x 8; empty places stay white."""
    from PIL import Image

    side = images.shape[1]
    grid = np.full((GRID, GRID, side, side, 3), 255, np.uint8)
    shown = images[: GRID * GRID]
    grid.reshape(-1, side, side, 3)[: len(shown)] = shown
    picture = Image.fromarray(grid.swapaxes(1, 2).reshape(GRID * side, GRID * side, 3))
    # Enlarged to about 512 pixels, to be recognisable.
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
    drawn = part.take(indices)
    pixels = drawn.sized(side).read(np.arange(len(indices)))
    kept = distinct(pixels)
    images, labels = pixels[kept], part.labels[indices[kept]].astype(np.int64)
    twice = contradictory(pixels, part.labels[indices])
    said = [*loaded.warnings, *label_warnings(part.labels, loaded.classes)]
    if isinstance(drawn, Files):
        said += remarks(drawn.paths)
    if twice:
        said.append(f"{twice} of the {len(indices)} images drawn are in more than one class.")
    if loaded.test is not None and (both := shared(drawn, loaded.test)):
        said.append(f"{both} of the {len(indices)} images drawn are in the test part too: accuracies in it mean less.")
    facts = {
        "duplicates_left_out": len(pixels) - len(images),
        "available": len(part.labels),
        "held_out_for_testing": 0 if loaded.test is None else len(loaded.test.labels),
        "original_side": min(size_of(part)),
        "class_names": list(loaded.class_names),
        "parts_sha256": loaded.digests(),
    }
    return _write(out, images, labels, loaded.classes, dataset, facts, loaded.files, said, stopwatch)


def prepare_arrays(
    images: object, labels: object | None, classes: int | None, out: str | os.PathLike[str], *, replace: bool = True
) -> dict[str, Any]:
    """Write given arrays to the folder ``out`` as ``prepare`` does, all of them for the search; return the card.

    ``images``: uint8 (n, h, w, 3) or float (n, 3, h, w), of NumPy or torch; oblong ones are cropped to the middle square.
    ``labels``: (n,) integers from 0. ``classes``: by default the largest label + 1, or 10 without labels. More than 10,000 images
    are sampled. A folder that already holds the same images is left unchanged. ``replace``: whether other ones in it may be
    replaced. Raises TenasError for arrays of another shape or dtype, for labels out of range, and for a folder to be kept.
    """
    stopwatch = Stopwatch()
    out, pixels = Path(out), as_pixels(images)
    numbers, classes = as_labels(labels, len(pixels), None if classes is None else check_classes(classes, least=2))
    order = np.random.default_rng(0).permutation(len(pixels))[:MOST_IMAGES]
    sample = Arrays(pixels, numbers).take(order).sized(min(pixels.shape[1:3]))
    entry = {"source": "arrays", "sha256": sample.digest(), "classes": classes}
    with suppress(TenasError, KeyError, TypeError):  # an empty or damaged folder
        _, card = read_images(out / "images.npy")
        if card["provenance"]["settings"] == entry:
            return card
    if not replace and (out / "card.json").exists():
        raise TenasError(f"The folder {out} has other images, of searches with other seeds: choose another folder for this one.")
    kept = distinct(sample.images)
    facts = {
        "duplicates_left_out": len(order) - len(kept),
        "available": len(pixels),
        "held_out_for_testing": 0,
    }
    said = label_warnings(numbers, classes)
    return _write(out, sample.images[kept], sample.labels[kept], classes, entry, facts, [], said, stopwatch)


def _write(
    out: Path,
    images: np.ndarray,
    labels: np.ndarray,
    classes: int,
    entry: Mapping[str, Any],
    facts: Mapping[str, Any],
    files: Iterable[Path] | Mapping[str, str],
    said: Sequence[str],
    stopwatch: Stopwatch,
) -> dict[str, Any]:
    """Write a sample. ``said``: warnings for the log and the card."""
    if len(images) < 2:
        raise TenasError(f"The data set has {len(images)} different image(s) to train on; a search needs at least two.")
    mean, std = channel_statistics(images)
    if images.max() < DARK:
        said = [
            *said,
            f"The brightest pixel of the {len(images)} images has {images.max()} of 255: if that is white (12 bits in 16, "
            "or pixels from 0 to 1), scale them.",
        ]
    if 0 in std:
        said = [*said, "A channel of the images is constant: measures of images cannot be taken."]
    for text in said:
        warnings.warn(text, DataWarning, stacklevel=3)
    with alone(out):
        if (written := _written(out, images, labels, entry, facts, said)) is not None:
            return written
        (out / "card.json").unlink(missing_ok=True)
        with whole(out / "images.npy") as temporary:
            np.save(temporary, images)
        with whole(out / "labels.npy") as temporary:
            np.save(temporary, labels)
        preview(images, out / "preview.png")
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
            **({"warnings": list(said)} if said else {}),
            "provenance": provenance(settings=entry, inputs=files, stopwatch=stopwatch),
        }
        # Sealed: mean, deviation and classes change every score, and have no file of their own whose hash could be recorded.
        card = sealed(card)
        write_json(out / "card.json", card)
        return card


def _written(
    out: Path,
    images: np.ndarray,
    labels: np.ndarray,
    entry: Mapping[str, Any],
    facts: Mapping[str, Any],
    said: Sequence[str],
) -> dict[str, Any] | None:
    """The card of a folder that holds this sample already; None for another. A new card has another time, and so another hash."""
    try:
        found = read_prepared(out / "images.npy", labels=True)
    except TenasError:
        return None
    card, same = found.card, found.images.shape == images.shape and np.array_equal(found.images, images)
    told = {**facts, "warnings": list(said)}
    if not same or not np.array_equal(found.labels, labels) or not (out / "preview.png").exists():  # type: ignore[arg-type]
        return None
    if card["provenance"]["settings"] != dict(entry) or {key: card.get(key, []) for key in told} != told:
        return None
    return card


def in_words(card: Mapping[str, Any], folder: str | os.PathLike[str]) -> str:
    """Describe a prepared data set and the changes to its images, for the log. ``card``: of ``prepare``."""
    names, side, original = card["class_names"], card["side"], card["original_side"]
    listed = f" ({', '.join(names if len(names) <= 10 else [*names[:9], '...'])})" if names else ""
    lines = [
        f"{folder}: {card['images']:,} images to search on, {side}x{side} pixels, {card['classes']} classes{listed}; "
        f"{card['held_out_for_testing']:,} more are held out for testing"
    ]
    if card["duplicates_left_out"]:
        lines.append(f"{card['duplicates_left_out']:,} duplicates are left out")
    if original != side:
        change = "shrunk" if side < original else "enlarged"
        lines.append(f"images are {change}: the shorter side of the first has {original} pixels; 'side' says to how many")
    return "\n".join(lines)


class Prepared(NamedTuple):
    """A prepared data set. ``hashes``: path -> SHA-256 of the content read, for each file."""

    images: np.ndarray
    card: dict[str, Any]
    labels: np.ndarray | None
    hashes: dict[str, str]


def read_card(path: str | os.PathLike[str]) -> tuple[dict[str, Any], str]:
    """Read a data card; also returns its SHA-256. Raises TenasError if it is missing, damaged or edited."""
    try:
        digest = sha256(path)
    except OSError as error:
        raise TenasError(f"The data card {path} cannot be read: {error.strerror}.") from error
    card = read_json(path, "data card")
    if sha256(path) != digest:
        raise TenasError(f"The data card {path} was replaced while it was read: run the command again.")
    missing = [key for key in ("images", "classes", "side", "mean", "std", "sha256") if key not in card]
    if missing:
        raise TenasError(f"The data card {path} has no key {missing[0]!r}. Prepare the data set again.")
    # Cards of earlier versions have no seal.
    if not _is_sound(card) or is_edited(card) or not (has_seal(card) or _has_its_classes(card)):
        raise _other(path)
    return card, digest


def _other(path: str | os.PathLike[str]) -> TenasError:
    return TenasError(f"The data card {path} is not the one that was written. Prepare the data set again.")


def _is_sound(card: Mapping[str, Any]) -> bool:
    """Whether the numbers of a card are valid."""
    try:
        check_classes(card["classes"])
    except TenasError:
        return False
    shares = [value for key in ("mean", "std") for value in card[key]] if _are_lists(card) else []
    whole_ones = all(type(card[key]) is int and card[key] > 0 for key in ("images", "side"))
    names = card.get("class_names", [])
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return named and whole_ones and len(shares) == 6 and all(type(share) in (int, float) and 0 <= share <= 1 for share in shares)


def _has_its_classes(card: Mapping[str, Any]) -> bool:
    """Whether a card has the number of classes of its class names, or else of its source, if either is known."""
    names, source = card.get("class_names"), SOURCES.get(str(card.get("source")))
    known = len(names) if names else None if source is None else source.classes
    return known is None or bool(known == card["classes"])


def _has_its_statistics(card: Mapping[str, Any], images: np.ndarray) -> bool:
    """Whether mean and deviation of a card follow from its images. Earlier versions had other last digits."""
    return np.allclose(channel_statistics(images), (card["mean"], card["std"]), rtol=1e-6, atol=1e-6)


def _are_lists(card: Mapping[str, Any]) -> bool:
    return all(isinstance(card[key], list) and len(card[key]) == 3 for key in ("mean", "std"))


@contextmanager
def _opened(path: Path, what: str) -> Iterator[tuple[IO[bytes], str]]:
    """Open a file and compute its SHA-256, by one open call, as it may be replaced meanwhile."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            yield file, digest
    except TenasError:
        raise
    except Exception as error:
        # On damaged files NumPy raises almost any exception, including those of its tokenizer.
        raise TenasError(f"The {what} {path} cannot be read: {reason(error)}. Prepare the data set again.") from error


def _read_labels(path: Path, card: Mapping[str, Any]) -> tuple[np.ndarray, str]:
    others = TenasError(f"The labels {path} are not those of their card. Prepare the data set again.")
    with _opened(path, "labels") as (file, digest):
        if digest != card.get("labels_sha256"):
            raise others  # before memory is allocated for the shape in its header
        labels: np.ndarray = np.load(file, allow_pickle=False)
    if labels.dtype.kind not in "iu" or labels.shape != (card["images"],) or labels.max() >= card["classes"]:
        raise others
    return labels, digest


def _holds(header: Header, shape: tuple[int, ...]) -> bool:
    return header.dtype == np.uint8 and header.shape == shape and not header.fortran


def read_prepared(path: str | os.PathLike[str], *, labels: bool = False) -> Prepared:
    """Read prepared images, memory-mapped read-only, their card, and with ``labels`` their labels, -1 for unlabelled images.

    The images stay those that were hashed even if the file is replaced. Raises TenasError if a file is missing or damaged, or if
    images or labels are not those of the card.
    """
    path = Path(path)
    card, card_digest = read_card(path.parent / "card.json")
    with _opened(path, "prepared images") as (file, digest):
        shape = (card["images"], card["side"], card["side"], 3)
        if digest != card["sha256"] or not _holds(header := read_header(file), shape):
            raise TenasError(f"The prepared images {path} are not those of their card. Prepare the data set again.")
        images = np.memmap(file, np.uint8, "r", header.offset, shape)
    if not has_seal(card) and not _has_its_statistics(card, images):
        raise _other(path.parent / "card.json")
    hashes = {str(path): digest, str(path.parent / "card.json"): card_digest}
    found = None
    if labels:
        found, labels_digest = _read_labels(path.with_name("labels.npy"), card)
        hashes[str(path.with_name("labels.npy"))] = labels_digest
    return Prepared(images, card, found, hashes)


def read_labels(images: str | os.PathLike[str]) -> np.ndarray:
    """Read the labels of prepared images from the file next to them: int64 (n,), from 0.

    Raises TenasError if the file is missing or is not that of the card, or if the images have no labels.
    """
    path = Path(images).with_name("labels.npy")
    labels, _ = _read_labels(path, read_card(path.with_name("card.json"))[0])
    return labelled(labels, path)


def labelled(labels: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    """Labels of the file ``path``. Raises TenasError if its images have none."""
    if (labels < 0).any():
        raise TenasError(f"The images next to {path} have no labels, which a loss-based measure needs.")
    return labels


def read_images(path: str | os.PathLike[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """Read prepared images, memory-mapped read-only, and their card, from the file next to them.

    Returns uint8 (n, side, side, 3) and the card (keys ``classes``, ``side``, ``mean``, ``std``, ``sha256``, ...).
    Raises TenasError if either is missing or damaged, or if the images are not those of the card.
    """
    found = read_prepared(path)
    return found.images, found.card
