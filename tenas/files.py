"""Read and write files atomically: written under a temporary name in the same folder, then renamed."""

import csv
import errno
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tenas.errors import TenasError, of_os


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; rename it to ``path`` at the end of the block, remove it after an error.

    The temporary name keeps the suffix of ``path``, for writers that depend on it.
    """
    path = Path(path)
    with _writing(path):
        _check_place(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(handle)
    temporary = Path(name)
    try:
        with _writing(path, name):
            yield temporary
            # mkstemp makes files private to their owner; results may be shared by a group. Some file systems know no modes.
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


@contextmanager
def _writing(path: Path, name: str | None = None) -> Iterator[None]:
    """Turn errors of the system about a file that is written into sentences that name it. ``name``: its temporary one."""
    try:
        yield
    except OSError as error:
        if name is not None and error.filename not in (None, name, str(path)):
            raise
        raise TenasError(of_os(error, path, "cannot be written")) from error


def _check_place(path: Path) -> None:
    """Raise OSError where a file of that name would take the place of a folder or a device, which renaming does to some."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if (path.exists() and not path.is_file()) or path.parent.resolve() in DEVICES:
        raise OSError(errno.EINVAL, "It is a device, not a file", str(path))


# Folders whose names are not of files, whatever they lead to.
DEVICES = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_first(path: str | os.PathLike[str], text: str) -> None:
    """Write a text, whole, unless the file is there: of two that write at once, one is first and the other changes nothing."""
    path = Path(path)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
            temporary = Path(folder) / path.name
            write_text(temporary, text)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return
            except OSError:
                # A file system without links: another writer would have to come between these two lines.
                if not path.exists():
                    os.replace(temporary, path)


def json_text(value: object) -> str:
    """The text of a JSON file, as every stage writes it."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


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


def _read_lines(path: str | os.PathLike[str], what: str) -> tuple[list[str], list[list[str]]]:
    """Read header and rows of a complete CSV file, each row with one field per column."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise TenasError(f"The {what} {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise TenasError(f"The {what} {path} is not text: {error}.") from error
    if not text.endswith("\n"):
        raise TenasError(f"The {what} {path} is cut off: its last line has no end. Remove it and run the stage again.")
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


def read_table(path: str | os.PathLike[str], needed: Sequence[str], what: str) -> list[dict[str, str]]:
    """``read_csv`` for a table that may have more columns than the ``needed`` ones."""
    header, lines = _read_lines(path, what)
    missing = [name for name in needed if name not in header]
    if missing:
        raise TenasError(f"The {what} {path} has no column {missing[0]!r}.")
    return [dict(zip(header, line, strict=True)) for line in lines]


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(text: str) -> str:
    """Hex digest of the file that ``write_text`` writes."""
    return hashlib.sha256(text.encode()).hexdigest()
