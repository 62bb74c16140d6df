"""Search baselines that look accuracies up in a table instead of training.

A search reads the validation accuracy of one cell after another, as a search that trains would; it chooses the best cell that it
has seen, which is judged by test accuracy. Each is a pure function of (landscape, seed, budget) that returns the cells in the
order of the look-ups. No cell is looked up twice, and the order does not depend on the budget: a shorter search is a prefix of a
longer one.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from tenas.errors import TenasError, one_of
from tenas.seeds import derive_seed
from tenas.spaces import get_space, parse_genotype

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

DATASETS = ("cifar10", "cifar100", "imagenet16")
COLUMNS = ("dataset", "method", "budget", "seed", "arch", "valid_accuracy", "test_accuracy", "regret", "train_seconds")
# Regularised evolution, as in the benchmark's own experiments (AutoDL-Projects, regularized_ea.py).
POPULATION = 10
SAMPLE = 3


class Landscape(NamedTuple):
    """Validation accuracy of each cell, and its neighbours: the cells that differ in the operator of one edge."""

    valid: Sequence[float]
    neighbours: Sequence[Sequence[int]]


def _fresh(cells: int, looked: Iterable[int], random: Random) -> int:
    """Draw a cell uniformly from those that have not been looked up."""
    while (cell := random.randrange(cells)) in looked:
        pass
    return cell


def random_search(landscape: Landscape, seed: int, budget: int) -> list[int]:
    """Draw cells uniformly, without replacement."""
    random, looked = Random(seed), dict[int, None]()
    while len(looked) < budget:
        looked[_fresh(len(landscape.valid), looked, random)] = None
    return list(looked)


def regularised_evolution(landscape: Landscape, seed: int, budget: int) -> list[int]:
    """Mutate the best of a few members of a population in one operator; the child replaces the oldest member.

    A child that has been looked up is mutated again until it is new. Source: Real et al., AAAI 2019, algorithm 1.
    """
    random, looked, population = Random(seed), dict[int, None](), deque[int](maxlen=POPULATION)
    while len(looked) < budget:
        if len(population) < POPULATION:
            cell = _fresh(len(landscape.valid), looked, random)
        else:
            cell = max((random.choice(population) for _ in range(SAMPLE)), key=landscape.valid.__getitem__)
            while cell in looked:
                cell = random.choice(landscape.neighbours[cell])
        looked[cell] = None
        population.append(cell)
    return list(looked)


def local_search(landscape: Landscape, seed: int, budget: int) -> list[int]:
    """From a random cell, step to the best neighbour while that is better, then restart from another random cell.

    All neighbours are looked up before a step, in random order. Source: White et al., UAI 2021, algorithm 1.
    """
    random, looked = Random(seed), dict[int, None]()
    while len(looked) < budget:
        here = _fresh(len(landscape.valid), looked, random)
        looked[here] = None
        while True:
            around = list(landscape.neighbours[here])
            random.shuffle(around)
            looked.update(dict.fromkeys(around))
            best = max(around, key=landscape.valid.__getitem__)
            if landscape.valid[best] <= landscape.valid[here] or len(looked) >= budget:
                break
            here = best
    return list(looked)[:budget]


METHODS: dict[str, Callable[[Landscape, int, int], list[int]]] = {
    "random_search": random_search,
    "regularised_evolution": regularised_evolution,
    "local_search": local_search,
}


def neighbours(archs: Sequence[str]) -> "np.ndarray":
    """Rows of the 24 neighbours of each cell of NAS-Bench-201: int (cells, edges x other operators).

    Raises TenasError if ``archs`` are of another space, or not all cells of this one.
    """
    import numpy as np

    space = get_space("nas-bench-201")
    other = parse_genotype(archs[0]).space if len(archs) else space
    if other is not space:
        raise TenasError(f"Searches on a table step through the cells of {space.name} alone; this table is of {other.name}.")
    # A cell's number has its operators as digits, the last edge's last: the order of `genotypes`.
    number = {genotype.arch: place for place, genotype in enumerate(space.genotypes())}
    if len(archs) != len(number) or not number.keys() == set(archs):
        raise TenasError(f"A search needs a table of all {len(number):,} cells of {space.name}; this one has {len(archs):,}.")
    numbers = np.array([number[arch] for arch in archs])
    place = np.argsort(numbers)
    base, found = len(space.operators), []
    for weight in base ** np.arange(len(space.edges))[::-1]:
        digit = numbers // weight % base
        found += [place[numbers + weight * ((digit + step) % base - digit)] for step in range(1, base)]
    return np.stack(found, axis=1)


def training_seconds(table: "pd.DataFrame", dataset: str) -> "pd.Series | None":
    """Training seconds behind the validation accuracy of each cell; None if the table does not have them.

    For CIFAR-10 that is the training on half of the images: half of the time on all, as the benchmark itself counts.
    """
    if dataset != "cifar10":
        return table.get(f"{dataset}_train_seconds")
    if "cifar10_halftrain_seconds" in table:
        return table["cifar10_halftrain_seconds"]
    return table["cifar10_train_seconds"] / 2 if "cifar10_train_seconds" in table else None


def search_table(
    table: "pd.DataFrame",
    *,
    datasets: Iterable[str] = DATASETS,
    methods: Iterable[str] = tuple(METHODS),
    budgets: Sequence[int],
    searches: int,
    progress: Callable[[int], object] = lambda searches: None,
) -> list[dict[str, Any]]:
    """Rows of table_search.csv (COLUMNS): the choice of each method after each budget, for seeds from 0 to ``searches`` - 1.

    ``table``: of ``read_index``, with all cells of NAS-Bench-201. ``regret``: test accuracy below the table's best, in points.
    ``train_seconds``: of all cells looked up; None if the table has no times. ``progress`` is called with 1 after each search.
    Raises TenasError for unknown names, a budget of more cells than the table has, and a table that lacks cells or accuracies.
    """
    datasets, methods = list(datasets), list(methods)
    given: Sequence[object]
    for what, given in (("data set", datasets), ("method", methods), ("budget", budgets)):
        if not given or len(set(given)) < len(given):
            raise TenasError(f"A search needs at least one {what}, and each of them once: {', '.join(map(str, given))}.")
    if min(budgets) < 1:
        raise TenasError(f"A budget of {min(budgets):,} cells is none.")
    around = neighbours(list(table["arch"])).tolist()
    if max(budgets) > len(table):
        raise TenasError(f"A budget of {max(budgets):,} is more than the {len(table):,} cells there are.")
    rows = []
    for dataset in datasets:
        if dataset not in DATASETS:
            raise one_of("data set of the benchmark", dataset, DATASETS)
        columns = f"{dataset}_valid", f"{dataset}_test"
        for name in columns:
            if name not in table or table[name].isna().any():
                raise TenasError(f"A search needs the accuracy {name!r} of every cell, which the benchmark index doesn't have.")
        valid, test = (table[name].tolist() for name in columns)
        seconds = training_seconds(table, dataset)
        costs = None if seconds is None else seconds.tolist()
        landscape, best = Landscape(valid, around), max(test)
        for method in methods:
            if method not in METHODS:
                raise one_of("method of search", method, METHODS)
            for seed in range(searches):
                looked = METHODS[method](landscape, derive_seed(seed, dataset, method), max(budgets))
                for budget in budgets:
                    chosen = max(looked[:budget], key=valid.__getitem__)
                    rows.append(
                        {
                            "dataset": dataset,
                            "method": method,
                            "budget": budget,
                            "seed": seed,
                            "arch": table["arch"].iloc[chosen],
                            "valid_accuracy": valid[chosen],
                            "test_accuracy": test[chosen],
                            # Accuracies have few decimals; the rest is floating-point noise.
                            "regret": round(best - test[chosen], 6),
                            "train_seconds": None if costs is None else round(sum(costs[cell] for cell in looked[:budget]), 3),
                        }
                    )
                progress(1)
    return rows


def describe_searches(rows: Iterable[Mapping[str, Any]]) -> str:
    """Format the rows of ``search_table`` for the terminal: mean test accuracy and standard deviation over the seeds."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        found.setdefault((row["dataset"], row["method"], row["budget"]), []).append(row["test_accuracy"])
    lines = [f"{'data set':12}{'method':24}{'budget':>8}{'test accuracy, mean (sd)':>28}"]
    for (dataset, method, budget), values in found.items():
        deviation = f" ({stdev(values):.2f})" if len(values) > 1 else ""
        lines.append(f"{dataset:12}{method:24}{budget:8,}{f'{mean(values):.2f}{deviation}':>28}")
    return "\n".join(lines)
