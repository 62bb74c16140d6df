"""Turn the official files of NAS-Bench-201 into a table."""

from pathlib import Path
from typing import Annotated

from tenas.progress import Progress, silent


def benchmark_import(
    source: Annotated[Path, "the folder NATS-tss-v1_0-3ffb9-simple, or NAS-Bench-201-v1_1-096897.pth"],
    *,
    out: Annotated[Path, "Parquet file, one row per cell"],
    progress: Progress = silent,
) -> str:
    """Turn the official files of NAS-Bench-201 into a table, and say where it differs from the built-in one.

    Examples:
        tenas benchmark import NATS-tss-v1_0-3ffb9-simple --out table.parquet
        tenas benchmark import NAS-Bench-201-v1_1-096897.pth --out table.parquet
    """
    from tenas.benchmark.archive import import_archive, open_archive
    from tenas.benchmark.compare import compare, describe_comparison
    from tenas.benchmark.index import read_index

    archive = open_archive(source)
    with progress(len(archive.archs), f"import of {archive.path.name}", "cells") as advance:
        record = import_archive(archive, out, progress=advance)
    return (
        f"{record['source']['cells']:,} cells in {out}; SHA-256 of the source: {record['source']['sha256']}\n\n"
        f"compared with the built-in table:\n{describe_comparison(compare(read_index(out), read_index('builtin')))}"
    )
