"""An index of a benchmark: a table of one row a cell, as CSV (also compressed) or Parquet."""

import os
import zlib
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

from tenas.benchmark.topology import isomorphic
from tenas.errors import TenasError
from tenas.provenance import Stopwatch, provenance
from tenas.spaces import Genotype, load_genotype

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
# Other names under which tables in circulation have a column.
ALSO = {f"train_time_{name}_s": f"{name}_train_seconds" for name in ("cifar10", "cifar100", "imagenet16")}


def column_of(name: str) -> str:
    """The name that this package uses for a column of an index: that of a mean after 200 epochs has no ``_e200``."""
    return ALSO.get(name, name.removesuffix("_e200"))


def read_index(path: str | os.PathLike) -> "pd.DataFrame":
    """The table of an index file: column ``arch`` (the space's text), and one at least of ACCURACIES.

    A file of ``tenas benchmark import`` says ``cifar10_test_e200`` for what is ``cifar10_test`` here (``column_of``); others,
    of 12 epochs or of one seed, keep their names. Raises TenasError when the file is missing or damaged, lacks these columns,
    has one of them under two names, or lists a cell twice.
    """
    import pandas as pd

    path = Path(path)
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except FileNotFoundError as error:
        raise TenasError(f"There is no benchmark index {path}.") from error
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise TenasError(f"The benchmark index {path} cannot be read: {' '.join(str(error).split())}.") from error
    table = table.rename(columns=column_of)
    twice = table.columns[table.columns.duplicated()]
    if len(twice):
        raise TenasError(f"The benchmark index {path} has the column {twice[0]!r} under two names.")
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


def find(table: "pd.DataFrame", cell: Genotype | str | int | os.PathLike) -> int:
    """The place of a cell in a table: by its text, its genotype (or a genotype's JSON file), or its number in the benchmark.

    The number is that of the column ``index`` or, where there is none, of the row from 0 on. Raises TenasError when the table
    doesn't have it.
    """
    if isinstance(cell, str) and cell.isdecimal():
        cell = int(cell)
    if isinstance(cell, Integral):
        numbers = table["index"].to_numpy() if "index" in table.columns else table.index.to_numpy()
        places = (numbers == cell).nonzero()[0]
        if not len(places):
            raise TenasError(f"The benchmark index has no cell of the number {cell}; it has {len(table)} cells.")
    else:
        arch = load_genotype(cell).arch
        places = (table["arch"] == arch).to_numpy().nonzero()[0]
        if not len(places):
            raise TenasError(f"The benchmark index has no cell {arch}: is it of another space?")
    return int(places[0])


def standing(table: "pd.DataFrame", place: int, name: str) -> dict | None:
    """Where a cell stands among all cells by one accuracy; None where the table has none for it.

    ``rank``: 1 for the best; equal cells share the better rank. ``percentile``: % of the cells that are worse. ``regret``: what
    the best cell has more, in points.
    """
    values = table[name]
    value = float(values.iloc[place])
    if value != value:
        return None
    best = values.idxmax()
    return {
        "accuracy": value,
        "rank": int((values > value).sum()) + 1,
        "percentile": 100 * float((values < value).sum()) / int(values.count()),
        "best": float(values[best]),
        "best_arch": str(table["arch"][best]),
        "regret": float(values[best]) - value,
    }


def spread(values: "pd.Series") -> dict | None:
    """Mean, standard deviation (None for one cell) and extremes of the accuracies that cells have; None where they have none."""
    known = values.dropna()
    if known.empty:
        return None
    return {
        "mean": float(known.mean()),
        "sd": float(known.std()) if len(known) > 1 else None,
        "min": float(known.min()),
        "max": float(known.max()),
    }


def query(table: "pd.DataFrame", cell: Genotype | str | int | os.PathLike) -> dict:
    """What a table (``read_index``) knows of a cell (``find``), JSON-ready.

    ``accuracies``: for each of ACCURACIES that the table has, where the cell stands (``standing``). ``costs``: parameters and
    FLOPs. ``isomorphic``: the other cells that are the same network (``canonical_form``), and over all of them, this one among
    them, the spread of each accuracy. They differ by chance alone, so this is the noise of the table.
    """
    place = find(table, cell)
    row = table.iloc[place]
    genotype = load_genotype(str(row["arch"]))
    names = [name for name in ACCURACIES if name in table.columns]
    same = isomorphic(genotype, table["arch"])
    return {
        "arch": genotype.arch,
        "cells": len(table),
        "row": int(row["index"]) if "index" in table.columns else place,
        "accuracies": {name: standing(table, place, name) for name in names},
        "costs": {name: int(row[name]) for name in COSTS if name in table.columns},
        "isomorphic": {
            "cells": [str(table["arch"].iloc[other]) for other in same if other != place],
            "spread": {name: spread(table[name].iloc[same]) for name in names},
        },
    }


def look_up(cell: Genotype | str | int | os.PathLike, index: str | os.PathLike | None) -> dict:
    """What an index file knows of a cell (``query``), with what made this result: benchmark.json.

    Without a file the result says so under ``reason``, with ``index`` None: a search need not have a benchmark.
    Raises TenasError when the file is faulty, or does not have the cell.
    """
    stopwatch = Stopwatch()
    if index is None:
        genotype = load_genotype(cell)
        return {
            "arch": genotype.arch,
            "index": None,
            "reason": f"No index file was given for the space {genotype.space.name}.",
            "provenance": provenance(settings=_settings(genotype), inputs=[], stopwatch=stopwatch),
        }
    found = query(read_index(index), cell)
    made_by = provenance(settings=_settings(load_genotype(found["arch"])), inputs=[index], stopwatch=stopwatch)
    return {"index": str(index), **found, "provenance": made_by}


def _settings(genotype: Genotype) -> dict:
    return {"space": genotype.space.name, "arch": genotype.arch}


def describe(found: dict) -> str:
    """The result of ``look_up`` for a reader at a terminal."""
    lines = [found["arch"]]
    if found["index"] is None:
        return "\n".join([*lines, found["reason"]])
    same = len(found["isomorphic"]["cells"])
    lines += [
        f"cell {found['row']} of {found['cells']:,}; isomorphic to it: {same or 'none'}",
        "",
        f"{'':20}{'accuracy':>10}{'rank':>8}{'percentile':>12}{'regret':>8}{'sd of isomorphic cells':>24}",
    ]
    for name, there in found["accuracies"].items():
        if there is None:
            lines.append(f"{name:20}{'-':>10}")
            continue
        deviation = found["isomorphic"]["spread"][name]["sd"]
        lines.append(
            f"{name:20}{there['accuracy']:10.2f}{there['rank']:8,}{there['percentile']:12.2f}{there['regret']:8.2f}"
            f"{'-' if deviation is None else format(deviation, '.2f'):>24}"
        )
    if found["costs"]:
        lines += ["", *(f"{name:20}{value:>16,}" for name, value in found["costs"].items())]
    return "\n".join(lines)


def read_column(index, column, space):
    table = read_index(index)
    return dict(zip(table["arch"], table[column].astype(float), strict=True))
