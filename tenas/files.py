"""Read and write files atomically: written under a temporary name in the same folder, then renamed."""

import csv
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tenas.errors import TenasError, in_short, of_os
from tenas.locks import lock_folder

# Bytes that a packed file may unpack to, however small it is.
LARGE = 2**26


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; rename it to ``path`` at the end of the block, remove it after an error.

    The temporary name keeps the suffix of ``path``, for writers that depend on it. Leftovers of killed writers of ``path`` are
    removed.
    """
    path = Path(path)
    with _writing(path):
        _check_place(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path)
        handle, temporary = _held(path)
    try:
        with _writing(path, str(temporary)):
            yield temporary
            # mkstemp makes files private to their owner; results may be shared by a group. Some file systems have no modes.
            umask = os.umask(0)
            os.umask(umask)
            with suppress(OSError):
                temporary.chmod(0o666 & ~umask)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    finally:
        os.close(handle)


# A whole number in a table or on a command line: without sign, and within 64 bits.
WHOLE = re.compile("[0-9]{1,18}")
# Most bytes that a byte of a file may unpack to, where the file is larger than LARGE.
FACTOR = 250


def most_unpacked(packed: int, factor: int = FACTOR) -> int:
    """Most bytes that a file of ``packed`` bytes may unpack to: LARGE, or ``factor`` times its size if that is more.

    Tables and images shrink to a fifth or so; zlib reaches 1,032, with a file that is made to fill the memory.
    """
    return max(LARGE, factor * packed)


def _held(path: Path) -> tuple[int, Path]:
    """Create a temporary file next to ``path``, locked as long as the returned descriptor is open."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        with suppress(OSError):  # a file system without locks, where leftovers are not removed either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # another process removed it as a leftover before it was locked


def clear_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove leftovers of killed writers of ``path``: its temporary files that no process has locked."""
    path = Path(path)
    temporary = re.compile(rf"{re.escape(f'.{path.stem}.')}[a-z0-9_]{{8}}{re.escape(path.suffix)}")
    for name in os.listdir(path.parent):
        if temporary.fullmatch(name):
            with suppress(OSError), (path.parent / name).open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (path.parent / name).unlink()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a temporary folder for the duration of the block. Leftovers of killed processes of this user are removed."""
    parent, prefix = lock_folder(), "scratch-"
    for left in parent.glob(f"{prefix}*"):
        with suppress(OSError):
            handle = _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(handle)
    folder, handle = _held_folder(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _held_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    """Create a temporary folder, locked as long as the returned descriptor is open; like ``_held`` for a file."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with suppress(FileNotFoundError):
            handle = _locked(folder, fcntl.LOCK_EX)
            if folder.exists():
                return folder, handle
            os.close(handle)  # another process removed it as a leftover before it was locked


def _locked(folder: Path, how: int) -> int:
    """Lock a folder until the returned descriptor is closed."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, how)
    except OSError:
        os.close(handle)
        raise
    return handle


@contextmanager
def _writing(path: Path, name: str | None = None) -> Iterator[None]:
    """Turn errors of the system on writing a file into sentences with its name. ``name``: the temporary one."""
    try:
        yield
    except OSError as error:
        if name is not None and error.filename not in (None, name, str(path)):
            raise
        raise TenasError(of_os(error, path, "cannot be written")) from error


def _check_place(path: Path) -> None:
    """Raise OSError if a file would replace a folder or a device, which renaming does in some cases."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if (path.exists() and not path.is_file()) or path.parent.resolve() in DEVICES:
        raise OSError(errno.EINVAL, "It is a device, not a file", str(path))


# Paths that end like a folder.
DEVICES = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(value: object) -> str:
    """Format a value as the text of a JSON file, in the form of all stages."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def finite(value: object) -> int | float:
    """A number of a JSON file as it is. Raises ValueError for anything else, such as a text, true, or Infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{in_short(value)} is no number")
    return value


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write a value as ``json_text``, whole or not at all."""
    write_text(path, json_text(value))


def read_json(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """Read a JSON object. ``what``: its name in messages, e.g. "mask"."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TenasError(f"The {what} {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise TenasError(f"The {what} {path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise TenasError(f"The {what} {path} is not a JSON object.")
    return value


def format_csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    r"""Format CSV text with ``\n`` line ends. Floats have their shortest exact form, so equal numbers are equal bytes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_csv(path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows as ``format_csv``, whole or not at all."""
    write_text(path, format_csv(columns, rows))


def _read_lines(path: str | os.PathLike[str], what: str, *, given: bool = False) -> tuple[list[str], list[list[str]]]:
    """Read header and rows of a complete CSV file, each row with one field per column.

    ``given``: whether it is a user's file, which may begin with a byte order mark, and that no stage can make again.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig" if given else "utf-8")
    except OSError as error:
        raise TenasError(f"The {what} {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise TenasError(f"The {what} {path} is not text: {error}.") from error
    if not text.endswith("\n"):
        cure = "Complete it, or end its last line" if given else "Remove it and run the stage again"
        raise TenasError(f"The {what} {path} is cut off: its last line has no end. {cure}.")
    try:
        header, *lines = csv.reader(io.StringIO(text))
    except csv.Error as error:
        raise TenasError(f"The {what} {path} is damaged: {error}.") from error
    for number, line in enumerate(lines, start=2):
        if len(line) != len(header):
            raise TenasError(f"The {what} {path} is damaged: line {number} has {len(line)} fields, not {len(header)}.")
    return header, lines


def read_csv(path: str | os.PathLike[str], columns: Sequence[str], what: str) -> list[dict[str, str]]:
    """Read a CSV file with exactly ``columns``, and one field per column in each row. ``what``: its name in messages."""
    header, lines = _read_lines(path, what)
    if header != list(columns):
        raise TenasError(f"The {what} {path} has the columns {','.join(header)}; expected {','.join(columns)}.")
    return [dict(zip(columns, line, strict=True)) for line in lines]


def read_table(path: str | os.PathLike[str], needed: Sequence[str], what: str, *, given: bool = False) -> list[dict[str, str]]:
    """``read_csv`` for a table that may have more columns than the ``needed`` ones. ``given``: whether it is a user's file."""
    header, lines = _read_lines(path, what, given=given)
    missing = [name for name in needed if name not in header]
    if missing:
        raise TenasError(f"The {what} {path} has no column {missing[0]!r}.")
    return [dict(zip(header, line, strict=True)) for line in lines]


def is_utf8(text: str) -> bool:
    """Whether files can contain a text: one from the command line, or from another file, may have bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(text: str) -> str:
    """Hex digest of the file that ``write_text`` writes."""
    return hashlib.sha256(text.encode()).hexdigest()


# Last line of a sealed file, with the hash of all before it. Readers of zip archives, such as torch.load, ignore it.
SEAL = b"\nsha256 "
# Signature of the last record of a zip archive, and its length without a comment.
ZIP_END, ZIP_END_LENGTH = b"PK\5\6", 22


def opened_zip(file: IO[bytes]) -> zipfile.ZipFile:
    """Open a zip archive. Raises zipfile.BadZipFile also if files of its directory are missing.

    ``zipfile`` passes over the entries that a damaged length in the one before them swallows.
    """
    archive = zipfile.ZipFile(file)
    # The last record may be followed by a comment of 64 KB.
    file.seek(max(0, file.seek(0, os.SEEK_END) - ZIP_END_LENGTH - 0xFFFF))
    end = file.read().rpartition(ZIP_END)[2]
    named, found = int.from_bytes(end[6:8], "little"), len(archive.infolist())
    if named not in (found, 0xFFFF):  # the latter: see the record of more than 65,534 files
        raise zipfile.BadZipFile(f"its directory has {found} files where {named} should be")
    return archive


def sealed_bytes(content: bytes) -> bytes:
    """Append the hash of a file's content, which ``is_intact`` checks."""
    return content + SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n"


def is_intact(path: str | os.PathLike[str]) -> bool:
    """Whether a sealed file is unchanged; for a zip archive without a seal, whether its checksums are correct.

    Checkpoints and networks of earlier versions have no seal.
    """
    found = Path(path).read_bytes()
    end = len(found) - len(sealed_bytes(b""))
    if found[max(0, end) :].startswith(SEAL):
        return found == sealed_bytes(found[:end])
    if not found[-ZIP_END_LENGTH:].startswith(ZIP_END):
        return False
    try:
        with opened_zip(io.BytesIO(found)) as archive:
            return archive.testzip() is None
    except Exception:  # whatever zipfile raises for a damaged archive
        return False
