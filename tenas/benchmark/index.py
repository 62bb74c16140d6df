"""The table of a benchmark: one row per cell, as CSV (also compressed) or Parquet."""

import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenas.benchmark.builtin import BUILTIN, SPACE, builtin_table, checksum_of, has_builtin, index_path
from tenas.benchmark.reading import load
from tenas.benchmark.topology import isomorphic
from tenas.errors import TenasError, in_short, one_of
from tenas.files import WHOLE
from tenas.provenance import Stopwatch, provenance
from tenas.spaces import Genotype, Space, get_space, load_genotype, parse_genotype
from tenas.spaces.base import is_json_path

if TYPE_CHECKING:
    import pandas as pd

# Suffixes of accuracies in %, prefixes of costs. The README next to the built-in table says which parts of the data
# NAS-Bench-201's accuracies are measured on.
ACCURACIES = ("_test", "_valid", "_valtest", "accuracy")
COSTS = ("params_", "flops_")
# Suffix of an accuracy after another training than the one of 200 epochs, or of a single seed.
OTHER_TRAINING = re.compile(r"(_e\d+)?(_seed\d+)?$")
# The name of training times in published tables.
TIME = re.compile(r"train_time_(\w+)_s")
NOT_RUNNABLE = -1


class IncompleteTableWarning(UserWarning):
    """A table lacks cells of its space: ranks and regrets are relative to the cells that it has."""


class SharesWarning(UserWarning):
    """A table has accuracies of 1 at most, which are read as per cent."""


def column_of(name: str) -> str:
    """Name in this package of a column of an index: means after 200 epochs have no ``_e200``."""
    return TIME.sub(r"\1_train_seconds", name).removesuffix("_e200")


def is_accuracy(name: str) -> bool:
    """Whether a column of this name holds accuracies that cells are compared by."""
    return name.endswith(ACCURACIES)


def accuracies_of(table: "pd.DataFrame") -> list[str]:
    """The accuracy columns of a table, in its order."""
    return [name for name in table.columns if is_accuracy(name)]


def costs_of(table: "pd.DataFrame") -> list[str]:
    """The columns of a table with numbers of parameters or FLOPs, in its order."""
    from pandas.api.types import is_numeric_dtype

    return [name for name in table.columns if name.startswith(COSTS) and is_numeric_dtype(table[name])]


def read_index(index: str | os.PathLike[str], space: str | Space | None = None) -> "pd.DataFrame":
    """Read the table of an index: a file, or ``builtin`` for the shipped table of a space (by default nas-bench-201).

    It has a column ``arch``, the space's text, and at least one that ``is_accuracy``. Columns are renamed by ``column_of``:
    ``cifar10_test_e200`` of ``tenas benchmark import`` is ``cifar10_test`` here; those of 12 epochs or one seed keep their names.

    Raises TenasError if the file is missing or damaged, lacks these columns, has one of them under two names, lists a cell
    twice or one of another space, or has an accuracy outside 0 to 100 or rows of zeros. Warns if it has fewer cells than its
    space (IncompleteTableWarning), unless the file says that its source had no more, and if accuracies look like shares
    (SharesWarning).
    """
    path = index_path(index, space)
    checksum = checksum_of(path)
    table, record = load(path, "benchmark index", checksum)
    table = table.rename(columns=column_of).reset_index(drop=True)
    twice = table.columns[table.columns.duplicated()]
    if len(twice):
        raise TenasError(f"The benchmark index {path} has the column {twice[0]!r} under two names.")
    # A known checksum covers all other checks.
    if checksum is None:
        _check(table, path, space, (record.get("source") or {}).get("cells"))
    return table


def _check(table: "pd.DataFrame", path: Path, space: str | Space | None, cells: int | None) -> None:
    """Raise TenasError unless a table holds valid cells and accuracies; rewrite ``arch`` as the space writes it.

    ``cells``: the number of cells of the source, according to the file itself.
    """
    from pandas.api.types import is_integer_dtype, is_numeric_dtype

    if "arch" not in table.columns:
        raise TenasError(f"The benchmark index {path} has no column 'arch'.")
    if not accuracies_of(table):
        raise TenasError(f"The benchmark index {path} has no column of accuracies, whose names end in {', '.join(ACCURACIES)}.")
    if not len(table):
        raise TenasError(f"The benchmark index {path} has no rows.")
    accuracies = [name for name in table.columns if is_accuracy(OTHER_TRAINING.sub("", name))]
    for name in accuracies:
        if not is_numeric_dtype(table[name]):
            raise TenasError(f"The benchmark index {path} has something other than numbers in the column {name!r}.")
        wrong = table.index[(table[name] < 0) | (table[name] > 100)]
        if len(wrong):
            raise TenasError(
                f"The benchmark index {path} has {table[name][wrong[0]]:g} for {name} of the cell {table['arch'][wrong[0]]}; "
                "accuracies are in %, from 0 to 100."
            )
        if 0 < table[name].max() <= 1:
            warnings.warn(
                f"The benchmark index {path} has at most {table[name].max():g} for {name}, which counts as per cent: multiply "
                "shares by 100.",
                SharesWarning,
                stacklevel=3,
            )
    zeros = ((table[accuracies] == 0).any(axis=1) & ~(table[accuracies] > 0).any(axis=1)).sum()
    if zeros:
        raise TenasError(f"The benchmark index {path} has zeros for all accuracies in {zeros:,} of its rows: it is damaged.")
    for name in costs_of(table):
        if (table[name].abs() == math.inf).any():
            raise TenasError(f"The benchmark index {path} has an infinite value in the column {name!r}.")
    if "index" in table.columns:
        _check_numbers(table["index"], path)
        if not is_integer_dtype(table["index"]):
            table["index"] = table["index"].map(_float).astype("int64")
    named, table["arch"] = _archs(table["arch"], path, space)
    for name in ("arch", *({"index"} & set(table.columns))):
        doubled = table[name][table[name].duplicated()]
        if len(doubled):
            raise TenasError(f"The benchmark index {path} lists the cell {doubled.iloc[0]} twice.")
    if named.listed_cells is not None and len(table) < named.listed_cells and cells != len(table):
        warnings.warn(
            f"The benchmark index {path} has {len(table):,} of the {named.listed_cells:,} cells of {named.name}.",
            IncompleteTableWarning,
            stacklevel=3,
        )


def _check_numbers(numbers: "pd.Series", path: Path) -> None:
    """Raise TenasError unless a column of official numbers has whole ones from 0."""
    found = numbers.map(_float)
    wrong = numbers[~((found >= 0) & (found % 1 == 0) & (found < 2**63))]
    if len(wrong):
        row, value = wrong.index[0] + 1, in_short(str(wrong.iloc[0]))
        raise TenasError(f"The benchmark index {path}, row {row}: 'index' is {value}; it must be a whole number from 0.")


def _float(value: object) -> float:
    """A value as a number; NaN for what is none, or has hundreds of digits."""
    try:
        return float(value)  # type: ignore[arg-type]  # whatever a table holds
    except (OverflowError, TypeError, ValueError):
        return math.nan


def _archs(texts: Iterable[str], path: Path, space: str | Space | None) -> tuple[Space, list[str]]:
    """The space of a column of cells (if not given, that of the first cell), and the cells as that space writes them."""
    try:
        named, archs = _written(tuple(map(str, texts)), None if space is None else get_space(space))
    except TenasError as error:
        raise TenasError(f"The benchmark index {path}, {error}") from error
    return named, list(archs)


@lru_cache(maxsize=4)
def _written(texts: tuple[str, ...], space: Space | None) -> tuple[Space, tuple[str, ...]]:
    """``_archs``, once for all seeds that are looked up in a table: half a second for NAS-Bench-201."""
    archs = []
    for row, text in enumerate(texts, start=1):
        try:
            genotype = parse_genotype(text, space)
        except TenasError as error:
            raise TenasError(f"row {row}: {error}") from error
        space = genotype.space
        archs.append(genotype.arch)
    assert space is not None  # of no rows there is no space to find
    return space, tuple(archs)


def read_column(index: str | os.PathLike[str], column: str, space: str | Space = SPACE) -> dict[str, float]:
    """One numeric column of a table as text of a cell -> value: accuracies, or costs on some hardware.

    The table (a file as in ``read_index``, or ``builtin``) names its cells in a column ``arch`` or, for a space with a built-in
    table, by their official numbers in a column ``index``. Cells without a value are left out; so are those with -1 in a column
    without other negative numbers: the network does not run there (HW-NAS-Bench, ICLR 2021).

    Raises TenasError if the table cannot be read, the column is missing or not numeric, or a cell is listed twice or of another
    space.
    """
    from pandas.api.types import is_numeric_dtype

    space, path = get_space(space), index_path(index, space)
    checksum = checksum_of(path)
    table, _ = load(path, "table", checksum)
    table = table.rename(columns=column_of)
    name = column_of(column)
    numeric = [other for other in table.columns if other != "index" and is_numeric_dtype(table[other])]
    if name not in table.columns:
        raise one_of(f"column of the table {path}", column, numeric)
    if name not in numeric:
        raise TenasError(f"The table {path} has something other than numbers in the column {column!r}.")
    if checksum is not None:
        archs = list(table["arch"])  # which covers all checks of cells
    elif "arch" in table.columns:
        _, archs = _archs(table["arch"], path, space)
    elif "index" in table.columns and has_builtin(space):
        known, _ = load(builtin_table(space), "table", checksum_of(builtin_table(space)))
        numbered = dict(zip(known["index"], known["arch"], strict=True))
        unknown = [number for number in table["index"] if number not in numbered]
        if unknown:
            raise TenasError(f"The table {path} has the number {unknown[0]}, which no cell of {space.name} has.")
        archs = [numbered[number] for number in table["index"]]
    else:
        numbers = " or official numbers in a column 'index'" if has_builtin(space) else ""
        raise TenasError(f"The table {path} does not name its cells: it needs their texts in a column 'arch'{numbers}.")
    if len(set(archs)) < len(archs):
        raise TenasError(f"The table {path} lists a cell twice.")
    values = table[name]
    if (values[values < 0] == NOT_RUNNABLE).all():
        values = values.where(values >= 0)
    return {arch: float(value) for arch, value in zip(archs, values, strict=True) if value == value}


def find(table: "pd.DataFrame", cell: Genotype | str | int | os.PathLike[str], space: str | Space | None = None) -> int:
    """Row of a cell in a table: by its text, its genotype (or a genotype's JSON file), or its number in the benchmark.

    The number is that of the column ``index`` or, without that column, of the row from 0. Raises TenasError if the table does not
    have the cell.
    """
    if isinstance(cell, str) and WHOLE.fullmatch(cell):
        cell = int(cell)
    if isinstance(cell, int | Integral):
        numbers = table["index"].to_numpy() if "index" in table.columns else table.index.to_numpy()
        places = (numbers == cell).nonzero()[0]
        if not len(places):
            raise TenasError(f"The benchmark index has no cell of the number {cell}; it has {len(table)} cells.")
    else:
        arch = load_genotype(cell, space).arch
        places = (table["arch"] == arch).to_numpy().nonzero()[0]
        if not len(places):
            raise TenasError(f"The benchmark index has no cell {arch}: is it of another space?")
    return int(places[0])


def standing(table: "pd.DataFrame", place: int, name: str) -> dict[str, Any] | None:
    """Rank, percentile and regret of a cell among all cells by one accuracy; None if the table has none for it.

    ``rank``: 1 for the best; equal cells share the better rank. ``percentile``: % of the cells that are worse. ``regret``:
    accuracy of the best cell minus that of this one, in points.
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


def spread(values: "pd.Series") -> dict[str, float | None] | None:
    """Mean, standard deviation (None for one cell), minimum and maximum of known accuracies; None if none is known."""
    known = values.dropna()
    if known.empty:
        return None
    return {
        "mean": float(known.mean()),
        "sd": float(known.std()) if len(known) > 1 else None,
        "min": float(known.min()),
        "max": float(known.max()),
    }


def query(
    table: "pd.DataFrame", cell: Genotype | str | int | os.PathLike[str], space: str | Space | None = None
) -> dict[str, Any]:
    """All that a table (``read_index``) has on a cell (``find``), JSON-ready.

    ``accuracies``: ``standing`` by each of ``accuracies_of``. ``costs``: parameters and FLOPs. ``isomorphic``: the other cells
    that are the same network (``canonical_form``), and the spread of each accuracy over all of them and this one. They differ
    by chance alone, so the spread is the noise of the table. None if the space does not define isomorphism.
    """
    place = find(table, cell, space)
    row = table.iloc[place]
    genotype = parse_genotype(str(row["arch"]), space)
    names = accuracies_of(table)
    same = isomorphic(genotype, table["arch"])
    return {
        "arch": genotype.arch,
        "cells": len(table),
        "row": int(row["index"]) if "index" in table.columns else place,
        "accuracies": {name: standing(table, place, name) for name in names},
        "costs": {name: _number(row[name]) for name in costs_of(table)},
        "isomorphic": None
        if same is None
        else {
            "cells": [str(table["arch"].iloc[other]) for other in same if other != place],
            "spread": {name: spread(table[name].iloc[same]) for name in names},
        },
    }


def _number(value: float) -> int | float | None:
    """A whole number as int, another one as float, NaN as None."""
    if value != value:
        return None
    return int(value) if float(value).is_integer() else float(value)


def look_up(
    cell: Genotype | str | int | os.PathLike[str],
    index: str | os.PathLike[str] | None = BUILTIN,
    space: str | Space | None = None,
) -> dict[str, Any]:
    """The content of benchmark.json: ``query`` of a cell in an index (a file, or ``builtin``), with its provenance.

    Without an index the result has ``index`` None and a ``reason``: a benchmark is optional.
    Raises TenasError if the file is faulty, or does not have the cell.
    """
    stopwatch = Stopwatch()
    builtin = str(index) == BUILTIN
    # The file of a genotype names its space, which a text does not.
    if not isinstance(cell, int | Integral) and not WHOLE.fullmatch(str(cell)) and (builtin or is_json_path(str(cell))):
        cell = load_genotype(cell, space)
        space = cell.space
    if index is None or (builtin and not has_builtin(space or SPACE)):
        genotype = load_genotype(str(cell) if isinstance(cell, int | Integral) else cell, space)
        given = "No table of the space {} comes with the project." if builtin else "No index file was given for the space {}."
        return {
            "arch": genotype.arch,
            "index": None,
            "reason": given.format(genotype.space.name),
            "provenance": provenance(settings=_settings(genotype), inputs=[], stopwatch=stopwatch),
        }
    found = query(read_index(index, space), cell, space)
    settings, inputs = _settings(parse_genotype(found["arch"], space)), [index_path(index, space)]
    made_by = provenance(settings=settings, inputs=inputs, stopwatch=stopwatch)
    return {"index": str(index), **found, "provenance": made_by}


def _settings(genotype: Genotype) -> dict[str, str]:
    return {"space": genotype.space.name, "arch": genotype.arch}


def describe(found: Mapping[str, Any]) -> str:
    """Format the result of ``look_up`` for the terminal."""
    lines = [found["arch"]]
    if found["index"] is None:
        return "\n".join([*lines, found["reason"]])
    same = "not known" if found["isomorphic"] is None else len(found["isomorphic"]["cells"]) or "none"
    lines += [
        f"cell {found['row']} of {found['cells']:,}; isomorphic to it: {same}",
        "",
        f"{'':20}{'accuracy':>10}{'rank':>8}{'percentile':>12}{'regret':>8}{'sd of isomorphic cells':>24}",
    ]
    for name, there in found["accuracies"].items():
        if there is None:
            lines.append(f"{name:20}{'-':>10}")
            continue
        deviation = None if found["isomorphic"] is None else found["isomorphic"]["spread"][name]["sd"]
        lines.append(
            f"{name:20}{there['accuracy']:10.2f}{there['rank']:8,}{there['percentile']:12.2f}{there['regret']:8.2f}"
            f"{'-' if deviation is None else format(deviation, '.2f'):>24}"
        )
    if found["costs"]:
        lines += ["", *(f"{name:20}{'-' if value is None else format(value, ','):>16}" for name, value in found["costs"].items())]
    return "\n".join(lines)
