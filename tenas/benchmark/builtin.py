"""The tables that come with the project (tables/README.md), which a configuration or a command calls ``builtin``."""

import os
from pathlib import Path

from tenas.errors import TenasError
from tenas.spaces import Space, get_space

BUILTIN = "builtin"
FOLDER = Path(__file__).parent / "tables"
# For each space the SHA-256 of its table, <space>.parquet. scripts/make_table.py makes the file again and prints the hash.
CHECKSUMS = {"nas-bench-201": "3fa7df17042a4c7d4356bdc0da48fd7225ec35d9384ba2a4ecd275a5e0c0cbc4"}
# Whose table is meant where nothing else says so.
SPACE = "nas-bench-201"


def has_builtin(space: str | Space) -> bool:
    """Whether a table of a space comes with the project."""
    return get_space(space).name in CHECKSUMS


def builtin_table(space: str | Space = SPACE) -> Path:
    """The file of the table that comes with the project. Raises TenasError for a space that has none."""
    name = get_space(space).name
    if name not in CHECKSUMS:
        raise TenasError(f"No benchmark table of the space {name} comes with the project, only of {', '.join(CHECKSUMS)}.")
    return FOLDER / f"{name}.parquet"


def index_path(index: str | os.PathLike[str], space: str | Space | None = None) -> Path:
    """The file that is meant by an index: a path, or ``builtin`` for the table of ``space``."""
    return builtin_table(space or SPACE) if str(index) == BUILTIN else Path(index)


def checksum_of(path: str | os.PathLike[str]) -> str | None:
    """The SHA-256 that a file must have: known of the tables that come with the project, None of others."""
    path = Path(path)
    return CHECKSUMS.get(path.stem) if path.resolve().parent == FOLDER.resolve() else None
