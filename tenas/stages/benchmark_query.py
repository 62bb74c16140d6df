"""Look a cell up in the table of its space."""

from pathlib import Path
from typing import Annotated


def benchmark_query(
    cell: Annotated[str, "text of a cell, its number in the table, or JSON file of a genotype"],
    *,
    index: Annotated[Path | None, "the table as CSV or Parquet, one row per cell; without it the output says so"] = None,
    out: Annotated[Path | None, "JSON file of the result; without it a table is printed"] = None,
) -> str | None:
    """Look a cell up in the table of its space."""
    from tenas.benchmark.index import describe, look_up
    from tenas.files import write_json

    found = look_up(cell, index)
    if out is None:
        return describe(found)
    write_json(out, found)
    return None
