"""The tables shipped with the project (tables/README.md), called ``builtin`` in configurations and commands."""

import os
from pathlib import Path

from tenas.errors import TenasError
from tenas.spaces import Space, get_space

BUILTIN = "builtin"
FOLDER = Path(__file__).parent / "tables"
# Space -> SHA-256 of its table, <space>.parquet. scripts/make_table.py rebuilds the file and prints the hash.
CHECKSUMS = {"nas-bench-201": "3fa7df17042a4c7d4356bdc0da48fd7225ec35d9384ba2a4ecd275a5e0c0cbc4"}
# The default space.
SPACE = "nas-bench-201"


def has_builtin(space: str | Space) -> bool:
    """Whether the project ships a table of the space."""
    return get_space(space).name in CHECKSUMS


def builtin_table(space: str | Space = SPACE) -> Path:
    """The file of the space's shipped table. Raises TenasError for a space without one."""
    name = get_space(space).name
    if name not in CHECKSUMS:
        raise TenasError(f"There is no built-in table of the space {name}, only of {', '.join(CHECKSUMS)}.")
    return FOLDER / f"{name}.parquet"


def index_path(index: str | os.PathLike[str], space: str | Space | None = None) -> Path:
    """The file of an index: a path, or ``builtin`` for the shipped table of ``space``."""
    return builtin_table(space or SPACE) if str(index) == BUILTIN else Path(index)


def checksum_of(path: str | os.PathLike[str]) -> str | None:
    """The expected SHA-256 of a file: known for shipped tables, None for others."""
    path = Path(path)
    return CHECKSUMS.get(path.stem) if os.path.dirname(os.path.realpath(path)) == os.path.realpath(FOLDER) else None
