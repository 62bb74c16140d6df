"""Is the kernel faster than in another checkout? ``python -m benchmarks.before_and_after ../before``

Times ``ntk_gram`` of both in turns, each in one single-threaded process per core, all cores busy. The rates of a checkout are
those of its best round. What is measured uses names that all versions have, so that any two can be compared.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.side_by_side import CORES, Workers, table

CELL = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_3x3~1|skip_connect~2|"
# Space, genotype or a supernet of all operators but ``none``, channels, cells, images.
CASES = [
    ("nas-bench-201", None, 3, 1, 72),
    ("nas-bench-201", None, 3, 1, 16),
    ("darts", None, 1, 2, 14),
    ("darts", None, 1, 2, 24),
    ("nas-bench-201", CELL, 3, 5, 16),
    ("nas-bench-201", CELL, 16, 5, 16),
]


def kernel(checkout: Path, space_name: str, genotype: str | None, channels: int, cells: int, n: int) -> Callable[[], object]:
    """The kernel of a checkout's package, which a process imports here, not before."""
    sys.path.insert(0, str(checkout))
    import tenas
    from tenas.measures.ntk import ntk_gram
    from tenas.networks import Network, Supernet
    from tenas.spaces import get_space, load_genotype

    if checkout not in Path(tenas.__file__).resolve().parents:
        raise RuntimeError(f"The package in {tenas.__file__} was imported, not that of {checkout}.")
    space, shape = get_space(space_name), {"channels": channels, "cells": cells, "classes": 10}
    torch.manual_seed(0)
    mask = space.full_mask(exclude=["none"])
    network = Network(load_genotype(genotype, space), **shape) if genotype else Supernet(space, mask, **shape)
    images = torch.randn(n, 3, 32, 32)
    ntk_gram(network, images)  # what a version keeps for the next kernel it has kept when the clock starts
    return lambda: ntk_gram(network, images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before", type=Path, help="folder of a checkout of another version")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed; the best counts")
    parser.add_argument("--least", type=float, default=3.0, help="seconds over which a rate is measured, at least")
    parser.add_argument("--cases", type=int, default=len(CASES), help="how many of the cases, from the first")
    arguments = parser.parse_args()
    rows = []
    with Workers(CORES, 1) as before, Workers(CORES, 1) as after:
        sides = [(before, arguments.before.resolve()), (after, Path(__file__).resolve().parents[1])]
        for case in CASES[: arguments.cases]:
            best = [0.0, 0.0]
            for _ in range(arguments.rounds):
                rates = [workers.rate(kernel, checkout, *case, least=arguments.least) for workers, checkout in sides]
                best = [max(pair) for pair in zip(rates, best, strict=True)]
            space, genotype, channels, _, n = case
            network = f"{space}{'/cell' if genotype else ''}, C={channels}, n={n}"
            rows.append([network, f"{best[0]:.3g}", f"{best[1]:.3g}", f"{best[1] / best[0]:.2f}"])
    print(f"Kernels per second, {CORES} cores busy.\n")
    print(table(["network", "before", "now", "ratio"], rows))


if __name__ == "__main__":
    main()
