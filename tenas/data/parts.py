"""The parts of a data set: images in memory or in files, read on demand, and what is held out of them."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tenas.data.pixels import decode, fit

TEST_SHARE = 0.2
TEST_SEED = 2021
# Of image files whose bytes are compared, too: a second's reading.
MOST_BYTES_READ = 2**28
# The label of unlabelled images: below every class, so that it cannot be mistaken for one.
UNLABELLED = -1


@dataclass(frozen=True)
class Arrays:
    """A part of a data set in memory: images uint8 (n, h, w, 3), labels int64 (n,) from 0."""

    images: np.ndarray
    labels: np.ndarray

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The images of ``indices``, in their order: uint8 (k, h, w, 3)."""
        images: np.ndarray = self.images[indices]
        return images

    def picture(self, index: int) -> np.ndarray:
        """One image: uint8 (h, w, 3)."""
        image: np.ndarray = self.images[index]
        return image

    def take(self, indices: np.ndarray) -> "Arrays":
        """The part with the images of ``indices``."""
        return Arrays(self.images[indices], self.labels[indices])

    def digest(self) -> str:
        """SHA-256 over shape, pixels and labels."""
        digest = hashlib.sha256(str(self.images.shape).encode())
        for array in (self.images, self.labels):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def sized(self, side: int, middle: float = 1.0) -> "Arrays":
        """The same part with images of (side, side): the middle square, of the share ``middle`` of an image's shorter side."""
        if self.images.shape[1:3] == (side, side) and middle == 1:
            return self
        from PIL import Image

        images = np.empty((len(self.images), side, side, 3), np.uint8)
        for i, image in enumerate(self.images):
            images[i] = fit(Image.fromarray(image), side, middle)
        return Arrays(images, self.labels)


class Paths:
    """Many paths in one array of bytes. A list of a million objects would be copied, page by page, into each reading process."""

    def __init__(self, names: np.ndarray) -> None:
        self.names = names

    @classmethod
    def of(cls, paths: Iterable[Path]) -> "Paths":
        return cls(np.array([os.fsencode(path) for path in paths], dtype=np.bytes_))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Path:
        return Path(os.fsdecode(self.names[index]))

    def __iter__(self) -> Iterator[Path]:
        return (self[index] for index in range(len(self)))

    def take(self, indices: np.ndarray) -> "Paths":
        return Paths(self.names[indices])


@dataclass(frozen=True)
class Files:
    """A part of a data set in image files, read on demand: ImageNet does not fit in memory.

    ``side``: of the images that ``read`` returns; None before ``sized``. ``middle``: as in ``sized``.
    """

    paths: Paths
    labels: np.ndarray
    side: int | None = None
    middle: float = 1.0

    def read(self, indices: np.ndarray) -> np.ndarray:
        # Decoding releases the interpreter's lock, so threads help.
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(lambda i: decode(self.paths[i], self.side, self.middle), indices))
        side = self.side or 0
        return np.stack(images) if images else np.empty((0, side, side, 3), np.uint8)

    def picture(self, index: int) -> np.ndarray:
        """One image in its own size: uint8 (h, w, 3)."""
        return decode(self.paths[index])

    def take(self, indices: np.ndarray) -> "Files":
        return replace(self, paths=self.paths.take(indices), labels=self.labels[indices])

    def digest(self) -> str:
        """SHA-256 over labels, names from the folder that holds all files on, and sizes; of few files their bytes too.

        Reading 150 GB of pixels at the start of a training would cost too much.
        """
        digest = hashlib.sha256(np.ascontiguousarray(self.labels).data)
        first, last = min(self.paths.names, default=b""), max(self.paths.names, default=b"")
        above = len(os.path.commonpath([first, last]))
        sizes = [path.stat().st_size for path in self.paths]
        for name, size in zip(self.paths.names, sizes, strict=True):
            digest.update(name[above:] + f" {size}\n".encode())
        if sum(sizes) <= MOST_BYTES_READ:
            for path in self.paths:
                digest.update(path.read_bytes())
        return digest.hexdigest()

    def sized(self, side: int, middle: float = 1.0) -> "Files":
        """The same part with images of (side, side): the middle square, of the share ``middle`` of an image's shorter side."""
        return replace(self, side=side, middle=middle)


Part = Arrays | Files


class Splits(NamedTuple):
    """A data set whose images all have the same ``side``. ``test`` is None if the classes are too small for one."""

    train: Part
    test: Part | None
    classes: int
    side: int
    class_names: Sequence[str] = ()


class Loaded(NamedTuple):
    """What a source returns: parts that can be resized, the files to record in the provenance of results, names of the classes.

    ``files``: paths, or path -> SHA-256 of the content that was read. ``class_names``: of each class, in the order of the labels;
    empty where they have none. ``warnings``: sentences for the log and the card.
    """

    train: Part
    test: Part | None
    classes: int
    files: Sequence[Path] | Mapping[str, str] = ()
    class_names: Sequence[str] = ()
    warnings: Sequence[str] = ()

    def digests(self) -> dict[str, str]:
        """The digest of each part, by its name: what data cards record, to notice images that have changed since."""
        return {name: part.digest() for name, part in (("train", self.train), ("test", self.test)) if part is not None}


def split_by_class(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to keep and to hold out, both ascending: the same share of each class is held out, drawn from ``seed``.

    A class of c images contributes round(share * c), halves up, which is none for classes of one or two images.
    """
    generator = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        held[members[: int(np.floor(share * len(members) + 0.5))]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def hold_out(part: Part) -> tuple[Part, Part | None]:
    """Training and test part of a data set without an official split: TEST_SHARE of each class, always the same images."""
    keep, held = split_by_class(part.labels, TEST_SHARE, TEST_SEED)
    return part.take(keep), (part.take(held) if len(held) else None)


def shared(sample: Part, test: Part) -> int:
    """Number of images of ``sample`` that are also in ``test``: with equal pixels in memory, with equal bytes in files."""
    if isinstance(sample, Arrays) and isinstance(test, Arrays):
        known = {hashlib.sha256(image.tobytes()).digest() for image in test.images}
        same_shape = sample.images.shape[1:] == test.images.shape[1:]
        return sum(hashlib.sha256(image.tobytes()).digest() in known for image in sample.images) if same_shape else 0
    if not (isinstance(sample, Files) and isinstance(test, Files)):
        return 0
    # Reading all of ImageNet's 50,000 would take minutes: only those of equal size are compared.
    sizes = [path.stat().st_size for path in sample.paths]
    wanted = set(sizes)
    contents = {_content(path) for path in test.paths if path.stat().st_size in wanted}
    return sum(_content(path) in contents for path in sample.paths) if contents else 0


def _content(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
