"""Read the file of a table completely or refuse it: CSV, also compressed, or Parquet, recognised by its first bytes."""

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tenas.errors import TenasError, reason
from tenas.files import most_unpacked, opened_zip

if TYPE_CHECKING:
    import pandas as pd

PARQUET = b"PAR1"
POINTER = b"version https://git-lfs"
METADATA = b"tenas"


def _unzip(data: bytes) -> IO[bytes]:
    archive = opened_zip(io.BytesIO(data))
    names = [name for name in archive.namelist() if not name.endswith("/")]
    if len(names) != 1:
        raise ValueError(f"it is a zip archive of {len(names)} files, not of one table")
    return archive.open(names[0])


def _unzstd(data: bytes) -> IO[bytes]:
    import pyarrow as pa

    stream: IO[bytes] = pa.CompressedInputStream(pa.BufferReader(data), "zstd")
    return stream


# First bytes of a packed file -> function that opens the stream of its content.
UNPACKERS: dict[bytes, Callable[[bytes], Any]] = {
    b"\x1f\x8b": lambda data: gzip.GzipFile(fileobj=io.BytesIO(data)),
    b"BZh": lambda data: bz2.BZ2File(io.BytesIO(data)),
    b"\xfd7zXZ\x00": lambda data: lzma.LZMAFile(io.BytesIO(data)),  # noqa: SIM115
    b"\x28\xb5\x2f\xfd": _unzstd,
    b"PK\x03\x04": _unzip,
}


def unpacked(data: bytes) -> bytes:
    """Unpack a packed file completely, with its checksum verified; return any other file unchanged.

    Raises ValueError, before memory is allocated, for a file that unpacks to far more than its size; and any error of the
    unpackers.
    """
    unpack = next((unpack for start, unpack in UNPACKERS.items() if data.startswith(start)), None)
    if unpack is None:
        return data
    most, parts, size = most_unpacked(len(data)), [], 0
    with unpack(data) as stream:
        # To the end, to verify the checksum.
        while part := stream.read(2**20):
            parts.append(part)
            size += len(part)
            if size > most:
                raise ValueError(f"it would unpack from {len(data):,} to more than {most:,} bytes, as no table does")
    return b"".join(parts)


def load(path: str | os.PathLike[str], what: str, checksum: str | None = None) -> tuple["pd.DataFrame", dict[str, Any]]:
    """The table in a file, and the record that ``tenas benchmark import`` stored in it, empty if there is none.

    ``what`` names the file in errors; ``checksum`` is the expected SHA-256, if known. Raises TenasError for a file that is
    missing, damaged, truncated, or a Git LFS pointer. A CSV that was truncated between two rows is not detected here.
    """
    path = Path(path)
    if path.is_char_device():
        raise TenasError(f"The {what} {path} is a device, not a file.")
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise TenasError(f"There is no {what} {path}.") from error
    except OSError as error:
        raise TenasError(f"The {what} {path} cannot be read: {error.strerror}.") from error
    if data.startswith(POINTER):
        raise TenasError(f"The {what} {path} is a pointer of Git LFS, not the table: `git lfs pull` fetches that.")
    if checksum is not None and (found := hashlib.sha256(data).hexdigest()) != checksum:
        raise TenasError(
            f"The {what} {path} is damaged: its SHA-256 is {found}, not {checksum}. Take it from the repository again, "
            "or install the package again."
        )
    try:
        return _parquet(data) if data.startswith(PARQUET) or path.suffix == ".parquet" else (_csv(unpacked(data)), {})
    # On damaged bytes, these libraries raise almost any exception.
    except Exception as error:
        raise TenasError(f"The {what} {path} cannot be read: {reason(error)}.") from error


def _parquet(data: bytes) -> tuple["pd.DataFrame", dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    # Files of ``tenas benchmark import`` have page checksums; pages without one are not verified.
    file = parquet.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    # A run of equal values takes a few bytes however long it is.
    if (size := 8 * file.metadata.num_rows * file.metadata.num_columns) > most_unpacked(len(data)):
        raise ValueError(f"it would unpack from {len(data):,} to {size:,} bytes, as no table does")
    table = file.read()
    record = json.loads((table.schema.metadata or {}).get(METADATA, b"{}"))
    if not isinstance(record, dict) or not isinstance(record.get("source") or {}, dict):
        raise ValueError("the record in it is not one of `tenas benchmark import`")
    # Pandas' own types of columns, whose missing values are no NaN, are not restored.
    return table.to_pandas(ignore_metadata=True), record


def _csv(data: bytes) -> "pd.DataFrame":
    """Read a CSV whose rows are all complete: pandas pads short rows, and accepts a truncated number."""
    import pandas as pd

    if b"\0" in data:
        raise ValueError("it has zero bytes where text belongs")
    if data and not data.endswith((b"\n", b"\r")):
        raise ValueError("its last line has no end: it was cut off, or lacks just that")
    lines = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    header = next(lines, [])
    mark = next((mark for mark in (";", "\t") if len(header) == 1 and mark in header[0]), None)
    if mark is not None:
        raise ValueError(f"its columns are separated by {mark!r}: save it with commas")
    twice = [name for place, name in enumerate(header) if name in header[:place]]
    if twice:
        # pandas would give the second another name.
        raise ValueError(f"it has the column {twice[0]!r} twice")
    odd = [name for name in header if not name.isprintable()]
    if odd:
        raise ValueError(f"the name of its column {odd[0]!r} is no text: it is damaged, or packed in a way that is not known")
    for row, fields in enumerate(lines, start=1):
        # pandas skips empty lines.
        if fields and len(fields) != len(header):
            raise ValueError(f"its row {row} has {len(fields)} fields, not {len(header)} as its header")
    return pd.read_csv(io.BytesIO(data), index_col=False)
