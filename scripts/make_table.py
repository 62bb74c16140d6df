#!/usr/bin/env python
"""Make the built-in table of NAS-Bench-201 from a CSV of its figures: ``python scripts/make_table.py nb201.csv.gz``.

The CSV has one row per cell: ``index``, ``arch`` and the columns that tenas/benchmark/tables/README.md lists. The same CSV and
the same version of pyarrow make the same bytes. Printed is their SHA-256, which belongs into tenas/benchmark/builtin.py.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from tenas.benchmark.builtin import builtin_table
from tenas.benchmark.index import column_of
from tenas.benchmark.reading import METADATA
from tenas.errors import TenasError
from tenas.files import sha256, whole
from tenas.spaces import get_space

SPACE = get_space("nas-bench-201")
DATASETS = ("cifar10", "cifar100", "imagenet16")
ACCURACIES = (
    "cifar10_valid", "cifar10_test",
    "cifar100_valid", "cifar100_test", "cifar100_valtest",
    "imagenet16_valid", "imagenet16_test", "imagenet16_valtest",
    *(f"{dataset}_{part}_e12" for dataset in DATASETS for part in ("valid", "test")),
)  # fmt: skip
COSTS = tuple(f"{cost}_{dataset}" for cost in ("params", "flops") for dataset in DATASETS)
SECONDS = tuple(f"{dataset}_train_seconds" for dataset in DATASETS)


def make_table(source: Path, out: Path) -> None:
    """Write the table of a CSV as Parquet: numbers as printed, cells in their official order."""
    given = pd.read_csv(source).rename(columns=column_of).sort_values("index")
    archs = [SPACE.parse(arch).arch for arch in given["arch"]]
    if list(given["index"]) != list(range(SPACE.listed_cells)) or len(set(archs)) != SPACE.listed_cells:
        raise TenasError(f"{source} does not have each of the {SPACE.listed_cells:,} cells of {SPACE.name} once.")
    columns = {"index": pa.array(given["index"], pa.int32()), "arch": pa.array(archs)}
    columns |= {name: pa.array(given[name], pa.float64()) for name in (*ACCURACIES, *SECONDS)}
    columns |= {name: pa.array(given[name], pa.int64()) for name in COSTS}
    # As written by tenas benchmark import, without keys that depend on the machine.
    record = {"source": {"name": source.name, "sha256": sha256(source), "cells": SPACE.listed_cells}}
    table = pa.table(columns).replace_schema_metadata({METADATA: json.dumps(record)})
    with whole(out) as temporary:
        parquet.write_table(
            table,
            temporary,
            compression="zstd",
            compression_level=19,
            # Accuracies are multiples of 1 / (a few thousand images): dictionary encoding pays.
            use_dictionary=[*ACCURACIES, *COSTS],
            write_page_checksum=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("source", type=Path, help="CSV, also compressed")
    parser.add_argument("--out", type=Path, default=builtin_table(SPACE), help="default: the file in the package")
    arguments = parser.parse_args()
    make_table(arguments.source, arguments.out)
    print(f"{sha256(arguments.out)}  {arguments.out}")


if __name__ == "__main__":
    main()
