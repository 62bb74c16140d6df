"""Look a cell up in the table of its space."""

from pathlib import Path
from typing import Annotated


def benchmark_query(
    cell: Annotated[str, "text of a cell, its number in the table, or JSON file of a genotype"],
    *,
    index: Annotated[
        Path, "the table as CSV or Parquet, one row per cell; builtin is the built-in one, none for no table"
    ] = Path("builtin"),
    out: Annotated[Path | None, "JSON file of the result; without it a table is printed"] = None,
) -> str | None:
    """Look a cell up in the table of its space.

    Examples:
        tenas benchmark query results/digits/seed0/genotype.json
        tenas benchmark query 1462 --out cell.json
    """
    from tenas.benchmark.index import describe, look_up
    from tenas.files import write_json
    from tenas.provenance import sealed

    found = look_up(cell, None if str(index) == "none" else index)
    if out is None:
        return describe(found)
    write_json(out, sealed(found))
    return None
