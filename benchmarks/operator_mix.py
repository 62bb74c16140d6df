"""Does a search choose where operators go, or only which? ``python -m benchmarks.operator_mix INDEX RUN [RUN ...]``

For each run (a folder of NAS-Bench-201 searches with several seeds, e.g. results/cifar10-default) a row with

- how often two seeds agree in the operator of an edge, and how often they would if each edge's operator were drawn from the run's
  mix of operators, whatever the edge;
- the mean accuracies of the cells that were found, and those that all 15,625 cells have on average when each is weighted with
  its probability under such draws: what a random cell of the same mix is worth. INDEX is a benchmark index, or builtin.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import prod
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd

from benchmarks.side_by_side import table
from tenas import layout
from tenas.benchmark import read_index
from tenas.errors import TenasError
from tenas.spaces import load_genotype

ACCURACIES = ("cifar10_test", "cifar100_test", "imagenet16_test")


def operators_of(arch: str | Path) -> tuple[str, ...]:
    """The operators of a cell, edge by edge."""
    return tuple(choice.operator for choice in load_genotype(arch).cells[0])


def accuracies_by_operators(index: pd.DataFrame) -> dict[tuple[str, ...], np.ndarray]:
    """ACCURACIES of each cell of a table, by its operators."""
    return dict(zip(map(operators_of, index["arch"]), index[list(ACCURACIES)].to_numpy(), strict=True))


def agreement(cells: Sequence[Sequence[str]]) -> float:
    """Share of the edges on which two of the cells have the same operator, over all pairs of cells."""
    return mean(mean(a == b for a, b in zip(*pair, strict=True)) for pair in combinations(cells, 2))


def mix_of(cells: Sequence[Sequence[str]]) -> dict[str, float]:
    """Share of each operator among all edges of all cells."""
    counts = Counter(operator for cell in cells for operator in cell)
    return {operator: count / counts.total() for operator, count in counts.most_common()}


def worth_of(mix: dict[str, float], accuracies: Mapping[tuple[str, ...], np.ndarray]) -> np.ndarray:
    """Mean of the ``accuracies`` by cells' operators when each edge is drawn from ``mix``."""
    weights = np.array([prod(mix.get(operator, 0.0) for operator in cell) for cell in accuracies])
    return weights @ np.array(list(accuracies.values())) / weights.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("index", type=Path, help="table of NAS-Bench-201, or builtin")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs with two seeds at least")
    arguments = parser.parse_args()
    index = read_index(arguments.index)
    by_operators = accuracies_by_operators(index)
    rows = []
    for run in arguments.runs:
        found = [operators_of(path) for path in sorted(run.glob(layout.GENOTYPE.format(seed="*")))]
        if len(found) < 2:
            raise TenasError(f"The run {run} has {len(found)} genotypes; two at least are needed.")
        mix = mix_of(found)
        rows.append(
            [
                run.name,
                str(len(found)),
                f"{agreement(found):.2f}",
                f"{sum(share**2 for share in mix.values()):.2f}",
                " / ".join(f"{value:.2f}" for value in np.mean([by_operators[cell] for cell in found], axis=0)),
                " / ".join(f"{value:.2f}" for value in worth_of(mix, by_operators)),
                ", ".join(f"{operator} {share:.2f}" for operator, share in mix.items()),
            ]
        )
    print(table(["run", "seeds", "agreement", "by chance", "found, %", "random cell of the same mix, %", "mix"], rows))


if __name__ == "__main__":
    main()
