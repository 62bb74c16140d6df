"""Folders of images: which files are data, which folders are parts of a data set, and which are classes."""

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tenas.data.parts import Files, Loaded, Paths, hold_out
from tenas.data.pixels import SUFFIXES, is_image
from tenas.errors import TenasError

# Names of the parts of a data set, in any case.
ROLES = {
    "train": "train", "training": "train", "trn": "train", "trainset": "train", "trainingset": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "valset": "val", "validationset": "val", "devset": "val",
    "test": "test", "testing": "test", "tst": "test", "testset": "test",
}  # fmt: skip
# Leftovers of systems and programs in folders, besides names that begin with a dot.
CLUTTER = frozenset({"__macosx", "__pycache__", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information",
                     "lost+found"})  # fmt: skip
ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"})
NAMED = 5  # skipped items listed in a warning


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.casefold() in CLUTTER


def _printable(text: str) -> str:
    """Make a name printable: it may contain bytes that are not UTF-8, which Python keeps as surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_prepared(folder: Path) -> bool:
    """Whether a folder was written by ``prepare``: its preview is no image of a class."""
    # Not Path.is_file, which raises an error for a folder without permission.
    return os.path.isfile(folder / "card.json") and os.path.isfile(folder / "images.npy")


class Walk:
    """A walk through a folder of images: decides which files are data. ``warnings``: sentences about the others.

    Hidden files and folders, leftovers of systems, and files without an image suffix are no data; they are counted.
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        self.remarks: list[str] = []
        self._hidden: list[str] = []
        self._other: Counter[str] = Counter()

    @property
    def warnings(self) -> list[str]:
        found = list(self.remarks)
        if self._hidden:
            names = [*dict.fromkeys(self._hidden)]
            found.append(
                f"Hidden and system files and folders in {self.top} are skipped: {len(self._hidden)} ({_listed(names)})."
            )
        if self._other:
            kinds = [f"{count} {suffix}" for suffix, count in sorted(self._other.items())]
            found.append(
                f"Files in {self.top} without an image suffix are skipped: {self._other.total()} "
                f"({_listed(kinds)}); suffixes read: {' '.join(sorted(SUFFIXES))}."
            )
        return [_printable(text) for text in found]

    def folders(self, folder: Path) -> list[str]:
        """The folders in a folder, sorted by name. Images next to them belong to no class.

        Raises TenasError for a link that leads nowhere, which may have been a class.
        """
        entries = self._entries(folder)
        for entry in entries:
            if entry.is_symlink() and not Path(entry.name).suffix and not os.path.exists(entry.path):
                raise TenasError(f"The folder {entry.path} cannot be read: it is a link that leads nowhere.")
        packed = [entry.name for entry in entries if Path(entry.name).suffix.lower() in ARCHIVES and not _is_folder(entry)]
        if packed:
            self.remarks.append(f"Archives in {folder} are not read: {_listed(packed)}.")
        loose = sum(is_image(entry.name) and not _is_folder(entry) for entry in entries)
        if loose:
            self.remarks.append(f"Images in {folder} that lie in no class folder are not read: {loose}.")
        return [entry.name for entry in entries if _is_folder(entry)]

    def images(self, folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
        """The images of a class folder and the folders below it, in the order of their paths; links are followed.

        Raises TenasError for an image that cannot be opened, is empty or no file, and for a folder that links to one above it.
        """
        try:
            status = folder.stat()
        except OSError as error:
            raise TenasError(f"The image folder {folder} cannot be read: {error.strerror}.") from error
        if (here := (status.st_dev, status.st_ino)) in above:
            raise TenasError(f"The folder {folder} is a link to a folder that contains it.")
        for entry in self._entries(folder):
            path = folder / entry.name
            if _is_folder(entry):
                yield from self.images(path, above | {here})
            elif is_image(entry.name):
                _check_file(path)
                yield path
            else:
                self._other[path.suffix.lower() or "without a suffix"] += 1

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise TenasError(f"The image folder {folder} cannot be read: {error.strerror}.") from error
        kept = []
        for entry in entries:
            if _is_clutter(entry.name) or (_is_folder(entry) and _is_prepared(folder / entry.name)):
                self._hidden.append(entry.name)
            else:
                kept.append(entry)
        return kept


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _check_file(path: Path) -> None:
    """Raise TenasError for an image that no training could open. Its content is not looked at."""
    try:
        status = path.stat()
    except OSError as error:
        why = "it is a link that leads nowhere" if path.is_symlink() and not path.exists() else error.strerror
        raise TenasError(f"The image {path} cannot be read: {why}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise TenasError(f"The image {path} cannot be read: it is no file.")
    if status.st_size == 0:
        raise TenasError(f"The image {path} cannot be read: it is empty.")
    if not os.access(path, os.R_OK):
        raise TenasError(f"The image {path} cannot be read: permission denied.")


class _Holds(NamedTuple):
    """Whether a folder contains images, directly or in its folders."""

    itself: bool
    in_folders: bool


def _holds(folder: Path) -> _Holds:
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if not _is_clutter(entry.name)]
    except OSError as error:
        raise TenasError(f"The image folder {folder} cannot be read: {error.strerror}.") from error
    return _Holds(
        any(is_image(entry.name) and not _is_folder(entry) for entry in entries),
        any(_holds_any(entry.path) for entry in entries if _is_folder(entry)),
    )


def _holds_any(folder: str) -> bool:
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _is_clutter(name)]
        if any(is_image(name) and not _is_clutter(name) for name in files):
            return True
    return False


def _role(name: str) -> str | None:
    """The part of a data set that a name such as ``seg_train`` or ``train2017`` holds; None for none, and for several."""
    roles = {ROLES[word] for word in re.split(r"[^a-z]+", name.casefold()) if word in ROLES}
    return roles.pop() if len(roles) == 1 else None


def _words(name: str) -> set[str]:
    """The words of names such as ``train_cat``, ``trainA`` and ``cat-test``, in small letters."""
    return {word.casefold() for word in re.split(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])", name)}


def find_parts(path: Path, folders: Sequence[str], walk: Walk) -> Mapping[str, Path]:
    """The folders of the parts ``train``, ``val`` and ``test``; empty if all folders are classes.

    A class may be called train: the folders in it, and next to it, decide. Raises TenasError if both readings are possible, or
    neither.
    """
    roles = {name: ROLES[name.casefold()] for name in folders if name.casefold() in ROLES}
    if not roles:
        parts = {name: role for name in folders if (role := _role(name))}
        whole = len(parts) == len(folders) == len(set(parts.values())) and "train" in parts.values()
        if not whole or not all(_holds(path / name).in_folders for name in parts):
            return {}
        roles = parts
    holds = {name: _holds(path / name) for name in folders}
    others = [name for name in folders if name not in roles and any(holds[name])]
    trains = [name for name, role in roles.items() if role == "train"]
    if not any(holds[name].in_folders for name in trains):
        if others and len(roles) == 1:
            (name,) = roles
            walk.remarks.append(
                f"The folder {path / name} is taken for a class, like {_listed(others)} next to it, not for a part of the data."
            )
            return {}
        if not trains:
            raise TenasError(f"The image folder {path} has {' and '.join(map(repr, roles))}, but no folder 'train'.")
        raise TenasError(f"The image folder {path / trains[0]} has no class folders with images; at least two are needed.")
    for role in roles.values():
        same = [other for other in roles if roles[other] == role]
        if len(same) > 1:
            raise TenasError(f"The image folder {path} has {' and '.join(map(repr, same))}, which are the same part: keep one.")
    if others and len(roles) == 1:
        raise TenasError(
            f"The image folder {path} has {trains[0]!r}, with class folders in it, and next to it {_listed(others)}: move the "
            f"others away if {trains[0]!r} is the training part, or rename it if it is a class."
        )
    unread = [name for name in folders if name not in roles]
    if unread:
        walk.remarks.append(f"Folders in {path} that are no part of the data set are not read: {_listed(unread)}.")
    return {role: path / name for name, role in roles.items()}


def _test_part(parts: Mapping[str, Path], order: Sequence[str], walk: Walk) -> Path | None:
    """The first part of ``order`` that has class folders. Raises TenasError for a flat ``val`` if there is no other."""
    labelled = [role for role in order if role in parts and _holds(parts[role]).in_folders]
    if not labelled and "val" in parts:
        raise TenasError(
            f"The folder {parts['val']} has no class folders with images: they must lie in folders named as in {parts['train']}."
        )
    for role in set(parts) - {"train", *labelled[:1]}:
        why = f"{parts[labelled[0]]} is the test part" if role in labelled else "it has no class folders"
        walk.remarks.append(f"The folder {parts[role]} is not read: {why}.")
    return parts[labelled[0]] if labelled else None


def _by_form(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Class folders by their names in Unicode's composed form, which file systems do not keep."""
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(unicodedata.normalize("NFC", name), name)
        if other is not name:
            raise TenasError(f"Two class folders in {folder} have the same name, {name!r}, in two Unicode forms.")
    return found


def _list_images(folder: Path, classes: Sequence[str], walk: Walk) -> Files:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = list(walk.images(folder / name))
        if not found:
            raise TenasError(f"The class folder {folder / name} holds no image ({', '.join(sorted(SUFFIXES))}).")
        inside = {path.relative_to(folder / name).parts[0].casefold() for path in found[:1] + found[-1:]} & ROLES.keys()
        if inside:
            walk.remarks.append(f"The images in the folders of {folder / name} ({_listed(sorted(inside))}) are taken together.")
        paths += found
        labels += [label] * len(found)
    return Files(Paths.of(paths), np.asarray(labels, np.int64))


def _load(path: Path, order: Sequence[str]) -> Loaded:
    """Load a folder; its test part is the first existing one of the parts ``order``."""
    walk = Walk(path)
    folders = walk.folders(path)
    parts = find_parts(path, folders, walk)
    if not parts and len(folders) < 2:
        raise TenasError(f"The image folder {path} has neither a folder 'train' nor at least two class folders.")
    top = parts.get("train", path)
    classes = walk.folders(top) if parts else folders
    if len(classes) < 2:
        raise TenasError(f"The image folder {top} has {len(classes)} class folders; at least two are needed.")
    forms = _by_form(top, classes)
    alike = [names for names in _grouped(classes) if len(names) > 1]
    if alike:
        walk.remarks.append(f"Class folders in {top} differ in case only and are separate classes: {_listed(alike[0])}.")
    names = [_printable(name) for name in classes]
    train = _list_images(top, classes, walk)
    walk.remarks += _within(top, classes)
    walk.remarks += _like_parts(top, classes)
    test = _test_part(parts, order, walk) if parts else None
    if test is None:
        return Loaded(*hold_out(train), len(classes), (), names, walk.warnings)
    tested = _by_form(test, walk.folders(test))
    other = sorted(forms.keys() ^ tested.keys())
    if other:
        raise TenasError(f"The class {other[0]!r} is in only one of {top} and {test}.")
    held = _list_images(test, [tested[form] for form in forms], walk)
    return Loaded(train, held, len(classes), (), names, walk.warnings)


def _within(top: Path, classes: Sequence[str]) -> list[str]:
    """Warnings about folders in class folders that look like classes themselves."""
    inside = {name: {folder for folder in _folders_in(top / name) if _holds_any(str(top / name / folder))} for name in classes}
    first = inside[classes[0]]
    if len(first) > 1 and all(found == first for found in inside.values()):
        return [
            f"The class folders in {top} ({_listed(classes)}) all have the same folders in them ({_listed(sorted(first))}): if "
            "those are the classes, name the folders above them train and test."
        ]
    odd = {name: sorted(found & {*classes} - {name}) for name, found in inside.items()}
    return [
        f"The class folder {top / name} has folders with the names of other classes in it ({_listed(found)}); their images "
        f"count as {name}."
        for name, found in odd.items()
        if found
    ]


def _like_parts(top: Path, classes: Sequence[str]) -> list[str]:
    """A warning about classes that are named like different parts of a data set."""
    roles = {name: {ROLES[word] for word in _words(name) if word in ROLES} for name in classes}
    if len(set().union(*roles.values())) < 2:
        return []
    return [
        f"The folders {_listed([name for name in classes if roles[name]])} in {top} count as classes, though they are named like "
        "parts of a data set: if they are, give them the form train/CLASS and test/CLASS."
    ]


def _folders_in(folder: Path) -> list[str]:
    with os.scandir(folder) as found:
        return [entry.name for entry in found if _is_folder(entry) and not _is_clutter(entry.name)]


def _grouped(names: Sequence[str]) -> list[list[str]]:
    """Names that are equal but for case."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(name)
    return list(groups.values())


def load_folder(path: Path) -> Loaded:
    """A folder of images: ``train/<class>/...``, and ``test`` or ``val`` like it, or class folders alone, sorted by name."""
    return _load(path, ("test", "val"))


def load_imagenet(path: Path) -> Loaded:
    """ImageNet-1k (ILSVRC 2012) as folders: ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``; val is the test part."""
    if {"train", "val"} - set(Walk(path).folders(path)):
        raise TenasError(f"ImageNet-1k in {path} needs the folders 'train' and 'val', each with one folder per class.")
    loaded = _load(path, ("val",))
    if loaded.classes != 1000:
        raise TenasError(f"ImageNet-1k has 1,000 classes; {path} has {loaded.classes} (the source 'folder' takes any).")
    return loaded
