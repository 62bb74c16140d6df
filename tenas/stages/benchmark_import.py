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
    """Turn the official files of NAS-Bench-201 into a table."""
    from tenas.benchmark.archive import import_archive, open_archive

    archive = open_archive(source)
    with progress(len(archive.archs), f"import of {archive.path.name}", "cells") as advance:
        record = import_archive(archive, out, progress=advance)
    return f"{record['source']['cells']:,} cells in {out}; SHA-256 of the source: {record['source']['sha256']}"
