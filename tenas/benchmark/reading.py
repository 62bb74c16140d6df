"""The file of a table, read whole or refused: CSV, also compressed, or Parquet. What it is, its first bytes say, not its name."""

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenas.errors import TenasError

if TYPE_CHECKING:
    import pandas as pd

PARQUET = b"PAR1"
POINTER = b"version https://git-lfs"
METADATA = b"tenas"


def _unzip(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        if len(names) != 1:
            raise ValueError(f"it is a zip archive of {len(names)} files, not of one table")
        return archive.read(names[0])


def _unzstd(data: bytes) -> bytes:
    import pyarrow as pa

    unpacked: bytes = pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
    return unpacked


UNPACKERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
    b"\x28\xb5\x2f\xfd": _unzstd,
    b"PK\x03\x04": _unzip,
}


def load(path: str | os.PathLike[str], what: str, checksum: str | None = None) -> tuple["pd.DataFrame", dict[str, Any]]:
    """The table in a file, and the record that ``tenas benchmark import`` has put into it, empty where there is none.

    ``what`` names the file in errors; ``checksum`` is the SHA-256 that it must have, where that is known. Raises TenasError for
    a file that is missing, damaged, cut off, or a pointer of Git LFS. Not seen here is a CSV that was cut between two rows.
    """
    path = Path(path)
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
        return _parquet(data) if data.startswith(PARQUET) or path.suffix == ".parquet" else (_csv(_unpacked(data)), {})
    # On damaged bytes these libraries raise almost anything.
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise TenasError(f"The {what} {path} cannot be read: {reason}.") from error


def _parquet(data: bytes) -> tuple["pd.DataFrame", dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    # Pages have checksums in files of ``tenas benchmark import``; of pages without any nothing is asked.
    table = parquet.read_table(pa.BufferReader(data), page_checksum_verification=True)
    record = json.loads((table.schema.metadata or {}).get(METADATA, b"{}"))
    return table.to_pandas(), record


def _unpacked(data: bytes) -> bytes:
    for start, unpack in UNPACKERS.items():
        if data.startswith(start):
            return unpack(data)
    return data


def _csv(data: bytes) -> "pd.DataFrame":
    """A CSV all of whose rows are whole: pandas fills up short rows with nothing, and takes a cut number for a number."""
    import pandas as pd

    if b"\0" in data:
        raise ValueError("it has zero bytes where text belongs")
    if data and not data.endswith((b"\n", b"\r")):
        raise ValueError("its last line has no end: it was cut off, or lacks just that")
    lines = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    header = next(lines, [])
    for row, fields in enumerate(lines, start=1):
        # pandas passes over empty lines.
        if fields and len(fields) != len(header):
            raise ValueError(f"its row {row} has {len(fields)} fields, not {len(header)} as its header")
    return pd.read_csv(io.BytesIO(data), index_col=False)
