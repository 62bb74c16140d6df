"""Read a user's .npz file; each array's header is checked before memory is allocated."""

import hashlib
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from tenas.data.arrays import MOST_CLASSES, as_labels, check_pixels
from tenas.data.parts import Arrays, Loaded, hold_out
from tenas.errors import TenasError, in_short, reason
from tenas.files import is_utf8, most_unpacked, opened_zip

# Bytes; NumPy takes 10,000.
LONGEST_HEADER = 2**14
READABLE = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}


class Header(NamedTuple):
    """Header of an array's file. ``offset``: of the first value, in bytes."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    offset: int

    @property
    def size(self) -> int:
        """Size of the array's file in bytes, as a Python integer: a shape may claim more than 64 bits hold."""
        count = self.dtype.itemsize
        for length in self.shape:
            count *= length
        return self.offset + count


def read_header(file: IO[bytes]) -> Header:
    """Read the header of a .npy file from a stream. Raises ValueError for an invalid one."""
    # NumPy would read as much as a damaged length says.
    start = BytesIO(file.read(LONGEST_HEADER))
    version = np.lib.format.read_magic(start)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        return Header(*read(start), start.tell())
    except (MemoryError, RecursionError):
        # Python's parser, of nested expressions. Not as a cause: more memory would not help.
        raise ValueError("its header is no description of an array") from None


class Archive:
    """The arrays of an open .npz file. Raises TenasError for an invalid file, before memory is allocated."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        file.seek(0)
        if file.read(6) == b"\x93NUMPY":
            raise TenasError(f"The file {path} holds a single array (.npy), not the arrays 'images' and 'labels' (.npz).")
        self._zip = opened_zip(file)
        names = [info.filename for info in self._zip.infolist()]
        self.names = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
        if len(set(names)) < len(names):
            raise TenasError(f"The file {path} has two arrays with one name.")
        for info in self._zip.infolist():
            if info.compress_type in READABLE and not info.flag_bits & 1:
                # A file has its name twice; if one is damaged, it would be an array that is never read.
                self._zip.open(info).close()

    def header(self, name: str) -> Header:
        """Shape and dtype of an array, checked against the size of its file."""
        if name not in self.names:
            raise TenasError(f"The file {self.path} has no array {name!r}; it has {', '.join(self.names) or 'none'}.")
        info = self._zip.getinfo(f"{name}.npy")
        if info.flag_bits & 1:
            raise TenasError(f"{name!r} in {self.path} is encrypted: save the arrays without a password.")
        if info.compress_type not in READABLE:
            raise TenasError(
                f"{name!r} in {self.path} is compressed by a method unknown to Python (number {info.compress_type}): "
                "write the file with numpy.savez or numpy.savez_compressed."
            )
        with self._zip.open(info) as file:
            header = read_header(file)
        if header.dtype.hasobject:
            raise TenasError(f"{name!r} in {self.path} holds Python objects: it must be an array of numbers or texts.")
        if header.size != info.file_size:
            raise TenasError(
                f"{name!r} in {self.path} is damaged: {header.dtype} {header.shape} takes {header.size:,} bytes, not "
                f"{info.file_size:,}."
            )
        if header.size > most_unpacked(info.compress_size):
            raise TenasError(
                f"{name!r} in {self.path} would unpack from {info.compress_size:,} to {header.size:,} bytes, unlike any images."
            )
        return header

    def read(self, name: str) -> np.ndarray:
        self.header(name)
        with self._zip.open(f"{name}.npy") as file:
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        return array


def load_npz(path: Path) -> Loaded:
    """Load a user's file: ``images`` uint8 (n, h, w, 3) and ``labels`` (n,) integers from 0.

    The number of classes is the length of ``class_names``, if the file has it, else the largest label + 1. A file with
    ``class_names`` needs no labels, as most searches use none; then all images are for the search and none for testing.
    """
    with _opened(path) as (file, archive):
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        arrays, names = _arrays(archive)
        unread = sorted({*archive.names} - {"images", "labels", "class_names"})
    images, counted = arrays["images"], None if names is None else len(names)
    labels, classes = as_labels(arrays.get("labels"), len(images), counted, f"'labels' in {path}")
    said = [] if names is None or len(set(names)) == len(names) else [f"'class_names' in {path} has a name twice."]
    if unread:
        said.append(
            f"Arrays in {path} that are not read: {', '.join(map(in_short, unread[:5]))}{', ...' if len(unread) > 5 else ''}."
        )
    part = Arrays(images, labels)
    train, test = (part, None) if "labels" not in arrays else hold_out(part)
    return Loaded(train, test, classes, {str(path): digest}, names or (), said)


def npz_size(path: Path) -> tuple[int, int]:
    """Height and width of the images in a file, from the array's header. Raises TenasError like ``load_npz``."""
    with _opened(path) as (_, archive):
        shape = check_pixels(archive.header("images"), f"'images' in {path}").shape
    return shape[1], shape[2]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BufferedReader, Archive]]:
    """Open a file once for all reads, as it may be replaced meanwhile; yield it and its archive."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise TenasError(f"There is no file {path}.") from error
    except OSError as error:
        raise TenasError(f"The file {path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(mode):
        raise TenasError(f"{path} is no file; the source 'npz' needs one (.npz).")
    try:
        with path.open("rb") as file:
            yield file, Archive(path, file)
    except TenasError:
        raise
    except MemoryError as error:
        raise TenasError(f"The arrays of {path} do not fit in memory.") from error
    except Exception as error:
        # On damaged files zipfile, its decompressors and NumPy raise almost any exception.
        raise TenasError(f"The file {path} is not a valid .npz file: {reason(error)}.") from error


def _arrays(archive: Archive) -> tuple[Mapping[str, np.ndarray], Sequence[str] | None]:
    """Read the arrays ``images`` and, if present, ``labels``, and the names of the classes, if present."""
    needed = {"images"} if "class_names" in archive.names else {"images", "labels"}
    for name in ("images", "labels", "class_names"):
        if name in archive.names or name in needed:
            header = archive.header(name)
            if name == "images":
                check_pixels(header, f"'images' in {archive.path}")
            elif name == "class_names" and (len(header.shape) != 1 or not 1 <= header.shape[0] <= MOST_CLASSES):
                raise TenasError(
                    f"'class_names' in {archive.path} has the shape {header.shape}; it must be a list of 1 to {MOST_CLASSES:,} "
                    "names."
                )
    arrays: dict[str, np.ndarray] = {name: archive.read(name) for name in ("images", "labels") if name in archive.names}
    names = [_text(name) for name in archive.read("class_names")] if "class_names" in archive.names else None
    if names is not None and (odd := next((name for name in names if not is_utf8(name)), None)) is not None:
        raise TenasError(f"'class_names' in {archive.path} has {odd!r}, which is no text in UTF-8.")
    return arrays, names


def _text(name: object) -> str:
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)
