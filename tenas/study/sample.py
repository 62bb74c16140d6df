"""Which cells a study measures."""

import os
from collections.abc import Mapping

import numpy as np

from tenas.benchmark.index import read_index
from tenas.errors import TenasError
from tenas.scoring.subjects import Cell, Cells
from tenas.seeds import derive_seed
from tenas.spaces import get_space, load_genotype


def sample_table(settings: Mapping, index: str | os.PathLike) -> Cells:
    """The cells of a study, by number: a seeded sample of the table's, or all of them.

    Raises TenasError when the table has fewer cells than are asked for, or cells of another space.
    """
    table = read_index(index, settings["space"])
    numbers = table["index"].to_numpy() if "index" in table.columns else np.arange(len(table))
    wanted = len(table) if settings["cells"] == "all" else settings["cells"]
    if wanted > len(table):
        raise TenasError(f"The study asks for {wanted} cells, but the benchmark index {index} has {len(table)}.")
    chosen = np.random.default_rng(derive_seed(settings["seed"], "cells")).choice(len(table), wanted, replace=False)
    cells = sorted(Cell(int(numbers[row]), str(table["arch"].iloc[row])) for row in chosen)
    space = get_space(settings["space"])
    load_genotype(cells[0].arch, space)
    return Cells(space, tuple(cells))
