"""How fast is the NTK? ``python -m benchmarks.ntk [--plots docs/img]``

Pairs, in one run, the plain loop (one backward pass per sample) with ``ntk_gram``, all cores busy in both. The loop is
given the better of one process with one thread per core and one single-threaded process per core; ``ntk_gram`` runs in
single-threaded processes, as a search does. Rates are the best of a few rounds, in which the three take turns. ``--cases``
and ``--least`` make it short.

"GFLOP" is the arithmetic of the convolutions' backward passes, as the loop does it: two operations for each weight,
output pixel, sample and cotangent, for the weight's gradient and again for the input's. ``ntk_gram`` leaves out what is
zero behind a ReLU, so that its share of the machine's peak may be more than the share of time that it multiplies.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.side_by_side import CORES, Workers, table
from tenas.measures import ntk_engine
from tenas.measures.ntk import ntk_gram, ntk_gram_by_loop, ntk_parameters, undisturbed
from tenas.measures.ntk_tape import aten
from tenas.networks import Network, Supernet
from tenas.spaces import get_space

# Space, channels, cells, images: of the supernet, or after a slash of a discrete cell, the same one each time.
CASES = [
    ("nas-bench-201", 3, 1, 72),
    ("nas-bench-201", 3, 1, 32),
    ("nas-bench-201", 3, 1, 16),
    ("darts", 1, 2, 14),
    ("darts", 1, 2, 24),
    ("nas-bench-201/cell", 3, 5, 16),
    ("nas-bench-201/cell", 16, 5, 16),
]
WAYS = {"loop": ntk_gram_by_loop, "ours": ntk_gram}


def network_and_images(
    space: str, channels: int, cells: int, n: int, operators: int | None = None
) -> tuple[nn.Module, torch.Tensor]:
    """A supernet of a search, with all operators but ``none`` or the last few of them, or a cell, and a random batch."""
    torch.manual_seed(0)
    name, _, cell = space.partition("/")
    space = get_space(name)
    active = [name for name in space.operators if name != "none"]
    kept = active if operators is None else active[-operators:]
    mask = space.full_mask(exclude=[name for name in space.operators if name not in kept])
    shape = {"channels": channels, "cells": cells, "classes": 10}
    genotype = space.random_genotype(mask, np.random.default_rng(3))
    network = Network(genotype, **shape) if cell else Supernet(space, mask, **shape)
    return network, torch.randn(n, 3, 32, 32)


def kernel(way: str, *case: object) -> Callable[[], object]:
    network, images = network_and_images(*case)
    return lambda: WAYS[way](network, images)


def product(size: int = 1536) -> Callable[[], object]:
    a, b = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    return lambda: torch.mm(a, b, out=out)


def gflop(*case: object) -> float:
    network, images = network_and_images(*case)
    total = 0
    with undisturbed(network), ntk_engine.recorded(network, images, ntk_parameters(network)) as (tape, _):
        for record in tape.records:
            if record.op is aten.convolution.default:
                x, weight = record.args[:2]
                products = record.outputs[0].tensor.numel() * weight.tensor[0].numel()
                total += 2 * products * (weight.active + x.active)
    return total * len(images) / 1e9


def case_of(text: str) -> tuple[str, int, int, int]:
    """A case from a text such as ``nas-bench-201,3,1,72``."""
    space, *numbers = text.split(",")
    channels, cells, images = map(int, numbers)
    return space, channels, cells, images


def compare(cases: Sequence[tuple[str, int, int, int]], rounds: int, least: float) -> None:
    rows = []
    with Workers(CORES, 1) as many, Workers(1, CORES) as one:
        peak = max(many.rate(product, least=least) for _ in range(rounds)) * 2 * 1536**3 / 1e9
        for case in cases:
            best: dict[str, float] = {}
            for _ in range(rounds):
                turn = {
                    "threads": one.rate(kernel, "loop", *case, least=least),
                    "processes": many.rate(kernel, "loop", *case, least=least),
                    "ours": many.rate(kernel, "ours", *case, least=least),
                }
                best = {name: max(rate, best.get(name, 0)) for name, rate in turn.items()}
            work, loop = gflop(*case), max(best["threads"], best["processes"])
            speed = best["ours"] * work
            rows.append(
                [
                    f"{case[0]}, C={case[1]}, n={case[3]}",
                    *(f"{best[name]:.3g}" for name in ("threads", "processes", "ours")),
                    f"{best['ours'] / loop:.1f}",
                    f"{work:.2f}",
                    f"{speed:.0f}",
                    f"{speed / peak:.0%}",
                ]
            )
    header = ["network", f"loop, {CORES} threads", f"loop, {CORES} processes", "ours", "ratio", "GFLOP", "GFLOP/s", "of peak"]
    print(f"Kernels per second, {CORES} cores busy. Matrix products reach {peak:.0f} GFLOP/s, float32.\n")
    print(table(header, rows))


CURVES: dict[str, tuple[str, Sequence[int], Callable[[int], tuple]]] = {
    "ntk_by_n": ("images n", [8, 16, 24, 32, 48, 72], lambda n: ("nas-bench-201", 3, 1, n)),
    "ntk_by_channels": ("channels C, n = 16", [1, 2, 3, 4, 6, 8, 12, 16], lambda c: ("nas-bench-201", c, 1, 16)),
    "ntk_by_operators": ("operators per edge, n = 16", [1, 2, 3, 4], lambda k: ("nas-bench-201", 3, 1, 16, k)),
}


def plot(folder: Path, points: int | None, least: float) -> None:
    """Draw the cost of a kernel against images, channels and operators; ``points``: how many of each curve."""
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    with Workers(1, 1) as worker:
        for name, (label, every, case) in CURVES.items():
            values = every[:points]
            seconds = {
                way: [1 / max(worker.rate(kernel, way, *case(v), least=least) for _ in range(2)) for v in values] for way in WAYS
            }
            figure, axes = pyplot.subplots(figsize=(5, 3.5), layout="constrained")
            for way, title in (("loop", "one backward pass per sample"), ("ours", "all cotangents at once")):
                axes.plot(values, seconds[way], marker="o", label=title)
            axes.set(xlabel=label, ylabel="seconds per kernel, one thread", yscale="log")
            axes.legend(frameon=False)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            pyplot.close(figure)
            print(name, *(f"{way}: {[round(s, 4) for s in seconds[way]]}" for way in WAYS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed; the best counts")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw cost against n, channels and operators there")
    parser.add_argument("--cases", type=case_of, nargs="+", default=CASES, metavar="SPACE,CHANNELS,CELLS,IMAGES")
    parser.add_argument("--least", type=float, default=1.0, help="seconds over which a rate is measured, at least")
    parser.add_argument("--points", type=int, help="points of each curve; by default all")
    arguments = parser.parse_args()
    if arguments.plots:
        plot(arguments.plots, arguments.points, arguments.least)
    else:
        compare(arguments.cases, arguments.rounds, arguments.least)


if __name__ == "__main__":
    main()
