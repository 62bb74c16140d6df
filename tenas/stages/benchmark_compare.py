"""Report where two tables of a space differ."""

from pathlib import Path
from typing import Annotated


def benchmark_compare(
    table: Annotated[Path, "a table as CSV or Parquet, one row per cell"],
    *,
    other: Annotated[Path, "another one; builtin is the built-in table"] = Path("builtin"),
) -> str:
    """Report where two tables of a space differ.

    Examples:
        tenas benchmark compare table.parquet
        tenas benchmark compare one.csv --other two.csv
    """
    from tenas.benchmark.compare import compare, describe_comparison
    from tenas.benchmark.index import read_index

    return describe_comparison(compare(read_index(table), read_index(other)))
