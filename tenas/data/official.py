"""Data sets in their official files: digits, CIFAR, ImageNet16-120."""

import hashlib
import os
import pickle
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenas.data.parts import Arrays, Loaded, hold_out
from tenas.errors import TenasError


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
    except (OSError, RuntimeError, EOFError, tarfile.TarError, zlib.error) as error:
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
        if not os.path.isdir(path):
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
