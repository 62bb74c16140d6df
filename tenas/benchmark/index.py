"""An index of a benchmark: a table of one row a cell, as CSV (also compressed) or Parquet."""

import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from tenas.errors import TenasError
from tenas.provenance import Stopwatch, provenance
from tenas.spaces import Genotype

if TYPE_CHECKING:
    import pandas as pd

# Accuracies in %, after 200 epochs, means over the seeds. NAS-Bench-201's parts are different numbers: `cifar10_valid`
# is of training on half of the training set; `valtest` is the official test set before it is halved.
ACCURACIES = (
    "cifar10_valid",
    "cifar10_test",
    "cifar100_valid",
    "cifar100_test",
    "cifar100_valtest",
    "imagenet16_valid",
    "imagenet16_test",
    "imagenet16_valtest",
)
COSTS = (
    "params_cifar10",
    "params_cifar100",
    "params_imagenet16",
    "flops_cifar10",
    "flops_cifar100",
    "flops_imagenet16",
)


def read_index(path: str | os.PathLike) -> "pd.DataFrame":
    """The table of an index file: column ``arch`` (the space's text), and one at least of ACCURACIES.

    Raises TenasError when the file is missing or damaged, lacks these columns, or lists a cell twice.
    """
    import pandas as pd

    path = Path(path)
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except FileNotFoundError as error:
        raise TenasError(f"There is no benchmark index {path}.") from error
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise TenasError(f"The benchmark index {path} cannot be read: {' '.join(str(error).split())}.") from error
    if "arch" not in table.columns:
        raise TenasError(f"The benchmark index {path} has no column 'arch'.")
    found = [name for name in ACCURACIES if name in table.columns]
    if not found:
        raise TenasError(f"The benchmark index {path} has no column of accuracies; known: {', '.join(ACCURACIES)}.")
    for name in found:
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise TenasError(f"The benchmark index {path} has something other than numbers in the column {name!r}.")
    doubled = table["arch"][table["arch"].duplicated()]
    if len(doubled):
        raise TenasError(f"The benchmark index {path} lists the cell {doubled.iloc[0]} twice.")
    return table


def standing(table: "pd.DataFrame", row: "pd.Series", name: str) -> dict | None:
    """Where a cell stands among all cells by one accuracy; None where the table has none for it.

    ``rank``: 1 for the best; equal cells share the better rank. ``regret``: what the best cell has more, in points.
    """
    values = table[name]
    value = float(row[name])
    if value != value:
        return None
    best = values.idxmax()
    return {
        "accuracy": value,
        "rank": int((values > value).sum()) + 1,
        "best": float(values[best]),
        "best_arch": str(table["arch"][best]),
        "regret": float(values[best]) - value,
    }


def look_up(genotype: Genotype, index: str | os.PathLike | None) -> dict:
    """The accuracies of a genotype in an index file, each with its rank among all cells and its distance to the best.

    Without a file the result says so under ``reason``, with ``index`` None: a search need not have a benchmark.
    Raises TenasError when the file is faulty, or does not have the genotype's cell.
    """
    stopwatch = Stopwatch()
    made_by = {"space": genotype.space.name, "arch": genotype.arch}
    if index is None:
        return {
            "arch": genotype.arch,
            "index": None,
            "reason": f"No index file was given for the space {genotype.space.name}.",
            "provenance": provenance(settings=made_by, inputs=[], stopwatch=stopwatch),
        }
    table = read_index(index)
    rows = table[table["arch"] == genotype.arch]
    if rows.empty:
        raise TenasError(f"The benchmark index {index} has no cell {genotype.arch}: is it of another space?")
    row = rows.iloc[0]
    return {
        "arch": genotype.arch,
        "index": str(index),
        "cells": len(table),
        "row": int(row["index"]) if "index" in table.columns else int(rows.index[0]),
        "accuracies": {name: standing(table, row, name) for name in ACCURACIES if name in table.columns},
        "costs": {name: int(row[name]) for name in COSTS if name in table.columns},
        "provenance": provenance(settings=made_by, inputs=[index], stopwatch=stopwatch),
    }
