"""The cells that a study measures."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tenas.benchmark.index import read_index
from tenas.errors import TenasError
from tenas.scoring.subjects import Cell, Cells
from tenas.seeds import derive_seed
from tenas.spaces import Genotype, get_space, parse_genotype


def sample_table(settings: Mapping[str, Any], index: str | os.PathLike[str]) -> Cells:
    """The cells of a study, by number: a seeded sample of the table's cells without excluded operators, or all of those.

    Raises TenasError if the table has fewer cells than requested, or cells of another space.
    """
    table = read_index(index, settings["space"])
    numbers = table["index"].to_numpy() if "index" in table.columns else np.arange(len(table))
    space = get_space(settings["space"])
    parse_genotype(str(table["arch"].iloc[0]), space)
    excluded = set(settings["exclude"])
    if excluded:
        archs = table["arch"].astype(str)
        left = [excluded.isdisjoint(operators_of(space.parse(arch))) for arch in archs]
        table, numbers = table[left], numbers[left]
    wanted = len(table) if settings["cells"] == "all" else settings["cells"]
    if wanted > len(table):
        without = f" without {', '.join(sorted(excluded))}" if excluded else ""
        raise TenasError(f"The study asks for {wanted} cells, but the benchmark index {index} has {len(table)}{without}.")
    chosen = np.random.default_rng(derive_seed(settings["seed"], "cells")).choice(len(table), wanted, replace=False)
    cells = sorted(Cell(int(numbers[row]), str(table["arch"].iloc[row])) for row in chosen)
    return Cells(space, tuple(cells))


def operators_of(genotype: Genotype) -> set[str]:
    """The distinct operators of a genotype."""
    return {choice.operator for cell in genotype.cells for choice in cell}


def is_valid(genotype: Genotype) -> bool:
    """Whether every operator but ``none`` is on a path from an input of its cell to the cell's output.

    9,445 of the 15,625 cells of NAS-Bench-201 are valid; VKDNW, zc_combine and GRAF correlate measures over these.
    """
    space = genotype.space
    for cell in genotype.cells:
        used = sorted(choice for choice in cell if choice.operator != "none")
        fed, needed = set(range(space.inputs)), set(space.output or [space.nodes - 1])
        for choice in used:
            if choice.source in fed:
                fed.add(choice.target)
        for choice in reversed(used):
            if choice.target in needed:
                needed.add(choice.source)
        if any(choice.source not in fed or choice.target not in needed for choice in used):
            return False
    return True
