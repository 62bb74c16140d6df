"""The tables of a study: which cells, and one row a measurement."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tenas.benchmark import read_index
from tenas.errors import TenasError
from tenas.files import read_csv
from tenas.search.seeds import derive_seed
from tenas.search.table import check_value
from tenas.spaces import get_space, load_genotype

CELL_COLUMNS = ("cell", "arch")
SCORE_COLUMNS = ("cell", "measure", "repeat", "value", "seconds")


class Cell(NamedTuple):
    """A cell of a study: its number in the benchmark's index, and the space's text."""

    number: int
    arch: str


class Taken(NamedTuple):
    """A measurement that is to be taken: of the cell with a number, in a repeat."""

    cell: int
    measure: str
    repeat: int


def draw_cells(settings: Mapping, index: str | os.PathLike) -> list[Cell]:
    """The cells of a study, by number: a seeded sample of the index file's, or all of them.

    Raises TenasError when the index has fewer cells than are asked for, or cells of another space.
    """
    table = read_index(index, settings["space"])
    numbers = table["index"].to_numpy() if "index" in table.columns else np.arange(len(table))
    wanted = len(table) if settings["cells"] == "all" else settings["cells"]
    if wanted > len(table):
        raise TenasError(f"The study asks for {wanted} cells, but the benchmark index {index} has {len(table)}.")
    chosen = np.random.default_rng(derive_seed(settings["seed"], "cells")).choice(len(table), wanted, replace=False)
    cells = sorted(Cell(int(numbers[row]), str(table["arch"].iloc[row])) for row in chosen)
    load_genotype(cells[0].arch, settings["space"])
    return cells


def read_cells(path: str | os.PathLike, settings: Mapping) -> list[Cell]:
    """The cells of a cells.csv. Raises TenasError for a damaged file or a text that is no cell of the study's space."""
    cells = []
    for line, row in enumerate(read_csv(path, CELL_COLUMNS, "cells file"), start=2):
        if not row["cell"].isdecimal():
            raise TenasError(f"The cells file {path}, line {line}, has {row['cell']!r} in the place of a number.")
        get_space(settings["space"]).parse(row["arch"])
        cells.append(Cell(int(row["cell"]), row["arch"]))
    if len({cell.number for cell in cells}) < len(cells):
        raise TenasError(f"The cells file {path} lists a cell twice.")
    return cells


def plan(settings: Mapping, cells: Sequence[Cell], shard: tuple[int, int] = (1, 1)) -> list[Taken]:
    """The measurements of shard i of S: those of every S-th cell, by measure and repeat, which share a batch."""
    index, shards = shard
    if not 1 <= index <= shards:
        raise TenasError(f"There is no shard {index} of {shards}; shards are numbered from 1.")
    return [
        Taken(cell.number, name, repeat)
        for name, measure in settings["measures"].items()
        for repeat in range(measure["repeats"])
        for cell in cells[index - 1 :: shards]
    ]


def read_scores(
    paths: Iterable[str | os.PathLike], settings: Mapping, cells: Sequence[Cell]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """All measurements of a study: measure -> values and seconds, each (cells, repeats).

    Raises TenasError when a file is cut off or damaged, or a measurement is missing or doubled.
    """
    place = {cell.number: row for row, cell in enumerate(cells)}
    found = {
        name: (np.full((len(cells), measure["repeats"]), math.nan), np.full((len(cells), measure["repeats"]), math.nan))
        for name, measure in settings["measures"].items()
    }
    for path in paths:
        for line, row in enumerate(read_csv(path, SCORE_COLUMNS, "scores file"), start=2):
            where = f"The scores file {path}, line {line},"
            try:
                cell, repeat, value, seconds = int(row["cell"]), int(row["repeat"]), float(row["value"]), float(row["seconds"])
            except ValueError as error:
                raise TenasError(f"{where} holds something other than numbers: {error}.") from error
            name = row["measure"]
            if cell not in place or name not in found or not 0 <= repeat < found[name][0].shape[1]:
                raise TenasError(f"{where} is no measurement of this study.")
            check_value(name, value, where)
            values, costs = found[name]
            if not math.isnan(values[place[cell], repeat]):
                raise TenasError(f"{where} gives a measurement that was given before: a shard is there twice.")
            values[place[cell], repeat], costs[place[cell], repeat] = value, seconds
    for name, (values, _) in found.items():
        if np.isnan(values).any():
            raise TenasError(f"The scores lack {int(np.isnan(values).sum())} values of {name}: a shard is missing or cut off.")
    return found
