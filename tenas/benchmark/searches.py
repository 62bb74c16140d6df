"""Searches that look accuracies up in a table instead of training: what any other search has to stand against.

A search looks at the validation accuracy of one cell after another, as a search that trains would; what it chooses is the best
that it has looked at, and is judged by its test accuracy. Each is a pure function of (landscape, seed, budget) that returns the
cells in the order in which it has looked at them. None looks at a cell twice, and none knows its budget: a shorter search is
the beginning of a longer one.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from tenas.errors import TenasError, one_of
from tenas.seeds import derive_seed
from tenas.spaces import get_space, load_genotype

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

DATASETS = ("cifar10", "cifar100", "imagenet16")
COLUMNS = ("dataset", "method", "budget", "seed", "arch", "valid_accuracy", "test_accuracy", "regret", "train_seconds")
# Of regularised evolution, as in the benchmark's own experiments (AutoDL-Projects, regularized_ea.py).
POPULATION = 10
SAMPLE = 3


class Landscape(NamedTuple):
    """The accuracy that a search sees of each cell, and the cells that differ from it in one edge's operator."""

    valid: Sequence[float]
    neighbours: Sequence[Sequence[int]]


def _fresh(cells: int, looked: Iterable[int], random: Random) -> int:
    """A cell drawn uniformly from those that haven't been looked at."""
    while (cell := random.randrange(cells)) in looked:
        pass
    return cell


def random_search(landscape: Landscape, seed: int, budget: int) -> list[int]:
    """One cell after another, drawn uniformly."""
    random, looked = Random(seed), dict[int, None]()
    while len(looked) < budget:
        looked[_fresh(len(landscape.valid), looked, random)] = None
    return list(looked)


def regularised_evolution(landscape: Landscape, seed: int, budget: int) -> list[int]:
    """The best of a few members of a population is mutated in one operator; the child takes the place of the oldest member.

    A child that has been looked at is mutated on until it is a new cell. Source: Real et al., AAAI 2019, algorithm 1.
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
    """From a random cell on to the best neighbour while there is a better one, then from another random cell.

    All neighbours are looked at before a step, in random order. Source: White et al., UAI 2021, algorithm 1.
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
    """For each of all cells of NAS-Bench-201, the places of its 24 neighbours: int (cells, edges x other operators).

    Raises TenasError when ``archs`` are of another space, or not all cells of this one.
    """
    import numpy as np

    space = get_space("nas-bench-201")
    other = load_genotype(archs[0]).space if len(archs) else space
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
    """Seconds that a look at the validation accuracy of each cell would have cost in training; None where a table doesn't say.

    With CIFAR-10 that is training on half of its images: half of the time on all, by which the benchmark itself reckons.
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
    """Rows of table_search.csv (COLUMNS): what each method has chosen after each budget, with seeds from 0 to ``searches`` - 1.

    ``table``: of ``read_index``, with all cells of NAS-Bench-201. ``regret``: test accuracy below the table's best, in points.
    ``train_seconds``: of all cells looked at; None where the table doesn't have the times. ``progress`` is told of each search.
    Raises TenasError for unknown names, a budget of more cells than there are, and a table that lacks cells or accuracies.
    """
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
                            # Of two decimal numbers; the rest is binary noise.
                            "regret": round(best - test[chosen], 6),
                            "train_seconds": None if costs is None else round(sum(costs[cell] for cell in looked[:budget]), 3),
                        }
                    )
                progress(1)
    return rows


def describe_searches(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows of ``search_table`` for a reader at a terminal: mean test accuracy and standard deviation over the seeds."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        found.setdefault((row["dataset"], row["method"], row["budget"]), []).append(row["test_accuracy"])
    lines = [f"{'data set':12}{'method':24}{'budget':>8}{'test accuracy, mean (sd)':>28}"]
    for (dataset, method, budget), values in found.items():
        deviation = f" ({stdev(values):.2f})" if len(values) > 1 else ""
        lines.append(f"{dataset:12}{method:24}{budget:8,}{f'{mean(values):.2f}{deviation}':>28}")
    return "\n".join(lines)
