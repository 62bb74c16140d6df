"""The sources of images. A new source is one function and one entry in SOURCES, or a user's object by reference."""

import hashlib
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tenas.errors import TenasError, one_of
from tenas.references import is_reference, load_object

if TYPE_CHECKING:
    from PIL import Image

TEST_SHARE = 0.2
TEST_SEED = 2021
# The label of unlabelled images: below every class, so that it cannot be mistaken for one.
UNLABELLED = -1
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp"}


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
        """SHA-256 over names, sizes and labels: reading 150 GB of pixels at the start of a training would cost too much."""
        digest = hashlib.sha256(self.labels.data)
        for path in self.paths:
            digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode())
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

    ``class_names``: of each class, in the order of the labels; empty where they have none.
    """

    train: Part
    test: Part | None
    classes: int
    files: Sequence[Path] = ()
    class_names: Sequence[str] = ()


def fit(image: "Image.Image", side: int, middle: float = 1.0) -> np.ndarray:
    """A PIL image as uint8 (side, side, 3): its middle square, resized (bilinear, anti-aliased when shrinking).

    ``middle``: the square's share of the image's shorter side.
    """
    from PIL import Image

    width, height = image.size
    square = min(width, height) * middle
    left, top = (width - square) / 2, (height - square) / 2
    box = (left, top, left + square, top + square)
    return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR, box=box))


def decode(path: Path, side: int | None = None, middle: float = 1.0) -> np.ndarray:
    """Read an image file as uint8 (side, side, 3), the middle square as in ``fit``; without ``side`` the whole, (h, w, 3).

    Raises TenasError if the file is damaged or not an image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if side is None:
                return np.asarray(image.convert("RGB"))
            # JPEGs decode several times faster at 1/2, 1/4 or 1/8 of their size; twice the side keeps the result sharp.
            image.draft("RGB", (int(2 * side / middle),) * 2)
            return fit(image, side, middle)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise TenasError(f"The image {path} cannot be read: {error}.") from error


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


def load_digits(path: Path | None) -> Loaded:
    """scikit-learn's 1,797 handwritten digits (UCI, Alpaydin and Kaynak 1998), 8x8 grey as three channels."""
    from sklearn.datasets import load_digits as load

    digits = load()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    train, test = hold_out(Arrays(np.repeat(grey[..., None], 3, axis=3), digits.target.astype(np.int64)))
    return Loaded(train, test, 10, class_names=[str(digit) for digit in range(10)])


def _load_cifar(name: str, path: Path) -> Loaded:
    from torchvision import datasets

    kind = getattr(datasets, name)
    try:
        parts = [kind(path, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError, EOFError) as error:
        raise TenasError(f"{name} could not be downloaded to {path}, or is damaged there: {error}.") from error
    train, test = (Arrays(part.data, np.asarray(part.targets, np.int64)) for part in parts)
    files = [path / kind.base_folder / file for file, _ in (*kind.train_list, *kind.test_list)]
    return Loaded(train, test, len(parts[0].classes), files, parts[0].classes)


def load_cifar10(path: Path) -> Loaded:
    """CIFAR-10 (Krizhevsky 2009): downloaded into ``path`` by torchvision, which checks its MD5."""
    return _load_cifar("CIFAR10", path)


def load_cifar100(path: Path) -> Loaded:
    """CIFAR-100 (Krizhevsky 2009): downloaded into ``path`` by torchvision, which checks its MD5."""
    return _load_cifar("CIFAR100", path)


@dataclass(frozen=True)
class ImageNet16:
    """ImageNet at 16x16 (Chrabaszcz et al. 2017), its first 120 classes: official pickles in a folder, checked by MD5.

    The official validation images are the test part: NAS-Bench-201 splits them into its validation and test halves.
    """

    train: Mapping[str, str]
    test: Mapping[str, str]
    classes: int = 120

    def __call__(self, path: Path) -> Loaded:
        if not path.is_dir():
            raise TenasError(f"There is no folder {path} with the files of ImageNet16-120 ({', '.join(self.train)}, ...).")
        train, test = (self._read(path, files) for files in (self.train, self.test))
        return Loaded(train, test, self.classes, [path / file for file in (*self.train, *self.test)])

    def _read(self, folder: Path, files: Mapping[str, str]) -> Arrays:
        images, labels = [], []
        for name, md5 in files.items():
            try:
                content = (folder / name).read_bytes()
            except OSError as error:
                raise TenasError(f"ImageNet16-120's file {folder / name} cannot be read: {error.strerror}.") from error
            # Also for security: a pickle of unknown origin could run any code.
            if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
                raise TenasError(f"The file {folder / name} is not the official one: its MD5 differs. Fetch it again.")
            batch = pickle.loads(content, encoding="latin1")
            label = np.asarray(batch["labels"], np.int64)
            chosen = label <= self.classes
            images.append(np.asarray(batch["data"])[chosen].reshape(-1, 3, 16, 16).transpose(0, 2, 3, 1))
            labels.append(label[chosen] - 1)
        return Arrays(np.concatenate(images), np.concatenate(labels))


load_imagenet16 = ImageNet16(
    train={
        "train_data_batch_1": "27846dcaa50de8e21a7d1a35f30f0e91",
        "train_data_batch_2": "c7254a054e0e795c69120a5727050e3f",
        "train_data_batch_3": "4333d3df2e5ffb114b05d2ffc19b1e87",
        "train_data_batch_4": "1620cdf193304f4a92677b695d70d10f",
        "train_data_batch_5": "348b3c2fdbb3940c4e9e834affd3b18d",
        "train_data_batch_6": "6e765307c242a1b3d7d5ef9139b48945",
        "train_data_batch_7": "564926d8cbf8fc4818ba23d2faac7564",
        "train_data_batch_8": "f4755871f718ccb653440b9dd0ebac66",
        "train_data_batch_9": "bb6dd660c38c58552125b1a92f86b5d4",
        "train_data_batch_10": "8f03f34ac4b42271a294f91bf480f29b",
    },
    test={"val_data": "3410e3017fdaefba8d5073aaa65e4bd6"},
)


def _folders(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise TenasError(f"The image folder {path} cannot be read: {error.strerror}.") from error


def _list_images(folder: Path, classes: Sequence[str]) -> Files:
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not found:
            raise TenasError(f"The class folder {folder / name} holds no image ({', '.join(sorted(SUFFIXES))}).")
        paths += found
        labels += [label] * len(found)
    return Files(Paths.of(paths), np.asarray(labels, np.int64))


def load_folder(path: Path) -> Loaded:
    """A folder of images: ``train/<class>/...`` and ``val/<class>/...``, or only class folders; classes are sorted by name."""
    folders = _folders(path)
    if "train" not in folders:
        if len(folders) < 2:
            raise TenasError(f"The image folder {path} has neither a folder 'train' nor at least two class folders.")
        train, test = hold_out(_list_images(path, folders))
        return Loaded(train, test, len(folders), class_names=folders)
    classes = _folders(path / "train")
    if len(classes) < 2:
        raise TenasError(f"The image folder {path / 'train'} has {len(classes)} class folders; at least two are needed.")
    train = _list_images(path / "train", classes)
    if "val" not in folders:
        return Loaded(*hold_out(train), len(classes), class_names=classes)
    other = sorted(set(classes) ^ set(_folders(path / "val")))
    if other:
        raise TenasError(f"The class {other[0]!r} is in only one of {path / 'train'} and {path / 'val'}.")
    return Loaded(train, _list_images(path / "val", classes), len(classes), class_names=classes)


def load_imagenet(path: Path) -> Loaded:
    """ImageNet-1k (ILSVRC 2012) as folders: ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``; val is the test part."""
    if {"train", "val"} - set(_folders(path)):
        raise TenasError(f"ImageNet-1k in {path} needs the folders 'train' and 'val', each with one folder per class.")
    loaded = load_folder(path)
    if loaded.classes != 1000:
        raise TenasError(f"ImageNet-1k has 1,000 classes; {path} has {loaded.classes} (the source 'folder' takes any).")
    return loaded


def load_npz(path: Path) -> Loaded:
    """A user's file: ``images`` uint8 (n, h, w, 3) and ``labels`` (n,) integers from 0.

    The number of classes is the length of ``class_names``, if the file has it, else the largest label + 1. A file with
    ``class_names`` needs no labels, as most searches use none; then all images are for the search and none for testing.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise TenasError(f"The file {path} holds a single array (.npy), not the arrays 'images' and 'labels' (.npz).")
        with file:
            needed = {"images"} if "class_names" in file.files else {"images", "labels"}
            missing = needed - set(file.files)
            if missing:
                raise TenasError(f"The file {path} has no array {min(missing)!r}; it has {', '.join(file.files)}.")
            images = file["images"]
            labels = file["labels"] if "labels" in file.files else None
            names = file["class_names"] if "class_names" in file.files else None
    except FileNotFoundError as error:
        raise TenasError(f"There is no file {path}.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise TenasError(f"The file {path} is not a valid .npz file: {error}.") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise TenasError(
            f"'images' in {path} must be uint8 of the shape (n, height, width, 3); it is {images.dtype} {images.shape}."
        )
    if labels is None:
        assert names is not None  # or the labels would be missing
        return Loaded(Arrays(images, np.full(len(images), UNLABELLED)), None, len(names), [path], [str(name) for name in names])
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise TenasError(
            f"'labels' in {path} must be {len(images)} integers, one per image; it is {labels.dtype} {labels.shape}."
        )
    labels = labels.astype(np.int64)
    classes = int(labels.max()) + 1 if names is None else len(names)
    if labels.min() < 0 or labels.max() >= classes:
        raise TenasError(f"'labels' in {path} go from {labels.min()} to {labels.max()}; allowed: 0 to {classes - 1}.")
    train, test = hold_out(Arrays(images, labels))
    return Loaded(train, test, classes, [path], [] if names is None else [str(name) for name in names])


def load_prepared(path: Path) -> Loaded:
    """A folder written by ``prepare``: all of its images are for training, as the test part was left out of the sample."""
    from tenas.data.prepared import read_images

    images, card = read_images(path / "images.npy")
    try:
        labels = np.load(path / "labels.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise TenasError(f"The labels {path / 'labels.npy'} cannot be read: {error}. Prepare the data set again.") from error
    files = [path / name for name in ("images.npy", "labels.npy", "card.json")]
    return Loaded(Arrays(np.asarray(images), labels), None, card["classes"], files, card.get("class_names", ()))


class Source(NamedTuple):
    """Where images come from: ``load`` takes the path of the data set's entry, or None, and returns what is there.

    ``side``: of the images if the data set's entry has none; None: that of the images, at most 32. ``classes``: if they are known
    before anything is loaded.
    """

    load: Callable[..., Loaded]
    side: int | None = None
    needs_path: bool = True
    classes: int | None = None


SOURCES: dict[str, Source] = {
    "digits": Source(load_digits, 32, needs_path=False, classes=10),
    "cifar10": Source(load_cifar10, 32, classes=10),
    "cifar100": Source(load_cifar100, 32, classes=100),
    "imagenet16-120": Source(load_imagenet16, 16, classes=120),
    "imagenet-1k": Source(load_imagenet, 32, classes=1000),
    "folder": Source(load_folder, 32),
    "npz": Source(load_npz, None),
    "prepared": Source(load_prepared, None),
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


def load(dataset: Mapping[str, Any]) -> tuple[Loaded, int]:
    """Load the data set of an entry of the configuration's ``datasets``; return it and the side of its images.

    Raises TenasError for an unknown source, a missing or superfluous path, and whatever the source refuses.
    """
    source = check_source(dataset)
    path = dataset.get("path")
    loaded = source.load(None if path is None else Path(path))
    if not isinstance(loaded, Loaded):
        raise TenasError(f"The source {dataset['source']!r} gave a {type(loaded).__name__}, not a tenas.data.Loaded.")
    if loaded.class_names and len(loaded.class_names) != loaded.classes:
        raise TenasError(
            f"The source {dataset['source']!r} gave {len(loaded.class_names)} class names for {loaded.classes} classes."
        )
    return loaded, dataset.get("side") or source.side or min(32, *size_of(loaded.train))


def size_of(part: Part) -> tuple[int, int]:
    """Height and width of a part's images; for files, of the first one."""
    shape = part.images.shape[1:3] if isinstance(part, Arrays) else part.picture(0).shape[:2]
    return shape[0], shape[1]


def load_splits(dataset: Mapping[str, Any], side: int | None = None, middle: float = 1.0) -> Splits:
    """The whole data set of a configuration's entry, for retraining. Arrays are in memory; folders are read on demand.

    The test part is the official one, if there is one (CIFAR, ImageNet16-120, a folder with ``val``); else TEST_SHARE of each
    class is held out, the same images every time. A search draws from the training part only (``prepare``).

    ``side``: of the images, overriding the entry's. ``middle``: share of a test image's shorter side that is kept by the crop.
    """
    loaded, entry_side = load(dataset)
    side = side or entry_side
    test = None if loaded.test is None else loaded.test.sized(side, middle)
    return Splits(loaded.train.sized(side), test, loaded.classes, side, loaded.class_names)
