"""The sources of images. A new source is one function and one entry in SOURCES, or a user's object by reference."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tenas.code import is_reference
from tenas.data.archives import load_npz, npz_size
from tenas.data.arrays import SMALLEST, check_classes, check_labels, check_pixels
from tenas.data.folders import load_folder, load_imagenet
from tenas.data.official import load_cifar10, load_cifar100, load_digits, load_imagenet16
from tenas.data.parts import UNLABELLED, Arrays, Files, Loaded, Part, Splits
from tenas.errors import TenasError, one_of
from tenas.references import load_object

WIDEST = 32  # images of a source without a side of its own


def load_prepared(path: Path) -> Loaded:
    """A folder written by ``prepare``: all of its images are for training, as the sample has no test images."""
    from tenas.data.prepared import read_prepared

    found = read_prepared(path / "images.npy", labels=True)
    assert found.labels is not None
    return Loaded(
        Arrays(np.asarray(found.images), found.labels),
        None,
        found.card["classes"],
        found.hashes,
        found.card.get("class_names", ()),
    )


def _prepared_size(path: Path) -> tuple[int, int]:
    from tenas.data.prepared import read_card

    card, _ = read_card(path / "card.json")
    return card["side"], card["side"]


class Source(NamedTuple):
    """A source of images: ``load`` takes the path of the data set's entry, or None, and returns its images.

    ``side``: of the images if the data set's entry has none; None: that of the images, at most 32. ``classes``: if they are known
    before anything is loaded. ``size``: gives height and width of the images at a path without reading them, for a plan.
    """

    load: Callable[..., Loaded]
    side: int | None = None
    needs_path: bool = True
    classes: int | None = None
    size: Callable[[Path], tuple[int, int]] | None = None


SOURCES: dict[str, Source] = {
    "digits": Source(load_digits, 32, needs_path=False, classes=10),
    "cifar10": Source(load_cifar10, 32, classes=10),
    "cifar100": Source(load_cifar100, 32, classes=100),
    "imagenet16-120": Source(load_imagenet16, 16, classes=120),
    "imagenet-1k": Source(load_imagenet, 32, classes=1000),
    "folder": Source(load_folder, 32),
    "npz": Source(load_npz, None, size=npz_size),
    "prepared": Source(load_prepared, None, size=_prepared_size),
}


def get_source(name: str) -> Source:
    """The source of a name or of a reference (``path/to/file.py:object``). Raises TenasError for an unknown name."""
    if is_reference(name):
        found = load_object(name, "source of images")
        if not isinstance(found, Source):
            raise TenasError(f"{name!r} is a {type(found).__name__}, not a source of images: see tenas.data.Source.")
        return found
    if name not in SOURCES:
        raise one_of("source", name, [*SOURCES, "path/to/file.py:object"])
    return SOURCES[name]


def check_source(dataset: Mapping[str, Any]) -> Source:
    """The source of a configuration's entry. Raises TenasError for an unknown source, and a missing or superfluous path."""
    source = get_source(dataset["source"])
    path = dataset.get("path")
    if source.needs_path and path is None:
        raise TenasError(f"A data set of the source {dataset['source']!r} needs the key 'path'.")
    if path is not None and not source.needs_path:
        raise TenasError(f"A data set of the source {dataset['source']!r} takes no 'path'.")
    return source


def known_side(dataset: Mapping[str, Any]) -> int | None:
    """Side of the images of a configuration's entry, as far as it is known before they are read; else None."""
    source, path = check_source(dataset), dataset.get("path")
    side: int | None = dataset.get("side") or source.side
    if side is None and source.size is not None and path is not None:
        # A missing or faulty file is reported when it is prepared; another stage may still make it.
        with suppress(TenasError):
            return min(WIDEST, *source.size(Path(path)))
    return side


def load(dataset: Mapping[str, Any]) -> tuple[Loaded, int]:
    """Load the data set of an entry of the configuration's ``datasets``; return it and the side of its images.

    Raises TenasError for an unknown source, a missing or superfluous path, anything that the source refuses, and invalid
    images or labels.
    """
    source = check_source(dataset)
    name, path = dataset["source"], dataset.get("path")
    loaded = source.load(None if path is None else Path(path))
    if not isinstance(loaded, Loaded):
        raise TenasError(f"The source {name!r} gave a {type(loaded).__name__}, not a tenas.data.Loaded.")
    check_classes(loaded.classes)
    if loaded.class_names and len(loaded.class_names) != loaded.classes:
        raise TenasError(f"The source {name!r} gave {len(loaded.class_names)} class names for {loaded.classes} classes.")
    _check_part(loaded.train, loaded.classes, f"of the training part of the source {name!r}")
    if loaded.test is not None:
        _check_part(loaded.test, loaded.classes, f"of the test part of the source {name!r}")
    side = dataset.get("side") or source.side
    if side is None:
        height, width = size_of(loaded.train)
        side = min(WIDEST, height, width)
        if side < SMALLEST:
            raise TenasError(
                f"The images of the source {name!r} have {height} x {width} pixels; a search needs {SMALLEST} x {SMALLEST}: set "
                "'side', which enlarges them."
            )
    return loaded, side


def _check_part(part: Part, classes: int, what: str) -> None:
    """Raise TenasError for a part of the wrong type, without images, or with a wrong number of labels or labels out of range."""
    if not isinstance(part, Arrays | Files):
        raise TenasError(f"The images {what} are a {type(part).__name__}, not tenas.data.Arrays or Files.")
    for array in (part.labels, *([part.images] if isinstance(part, Arrays) else [])):
        if not isinstance(array, np.ndarray):
            raise TenasError(f"Images and labels {what} must be NumPy arrays; one is a {type(array).__name__}.")
    if isinstance(part, Arrays):
        check_pixels(part.images, f"The images {what}")
    count = len(part.images if isinstance(part, Arrays) else part.paths)
    if not count:
        raise TenasError(f"There are no images {what}.")
    check_labels(part.labels, count, classes, f"The labels {what}", least=UNLABELLED)


def size_of(part: Part) -> tuple[int, int]:
    """Height and width of a part's images; for files, of the first one."""
    shape = part.images.shape[1:3] if isinstance(part, Arrays) else part.picture(0).shape[:2]
    return shape[0], shape[1]


def check_drawn(dataset: Mapping[str, Any], loaded: Loaded, card: Mapping[str, Any]) -> None:
    """Raise TenasError if the sample of a data ``card`` was drawn from other images than those that were ``loaded``."""
    # Cards of earlier versions, and of given arrays, have no digests of parts.
    if "parts_sha256" in card and card["parts_sha256"] != loaded.digests():
        raise TenasError(
            f"The images of {dataset.get('path') or dataset['source']} have changed since the search's sample was drawn from "
            "them: prepare them again, and search again; or bring the images of then back."
        )


def load_splits(dataset: Mapping[str, Any], side: int | None = None, middle: float = 1.0) -> Splits:
    """The whole data set of a configuration's entry, for retraining. Arrays are in memory; folders are read on demand.

    The test part is the official one, if there is one (CIFAR, ImageNet16-120, a folder with ``test`` or ``val``); else TEST_SHARE
    of each class is held out, the same images every time. A search draws from the training part only (``prepare``).

    ``side``: of the images, overriding the entry's. ``middle``: share of a test image's shorter side that is kept by the crop.
    """
    loaded, entry_side = load(dataset)
    side = side or entry_side
    test = None if loaded.test is None else loaded.test.sized(side, middle)
    return Splits(loaded.train.sized(side), test, loaded.classes, side, loaded.class_names)
