"""Measure discrete networks: the one stage of a study that needs torch."""

import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch

from tenas.measures import MEASURES, one_thread
from tenas.networks import Network, SupernetCells, initialise
from tenas.search.score import draw_inputs
from tenas.search.seeds import derive_seed
from tenas.spaces import get_space, load_genotype
from tenas.study.table import Cell, Taken


class CellScorer:
    """Measures one cell after another. All cells of a repeat have the same inputs and the same seed of their weights."""

    def __init__(self, settings: Mapping, images: np.ndarray, card: Mapping, cells: Sequence[Cell], device: str) -> None:
        self.settings, self.images, self.card, self.device = settings, images, card, device
        self.space = get_space(settings["space"])
        self.genotypes = {cell.number: load_genotype(cell.arch, self.space) for cell in cells}
        self.drawn: tuple[str, int] | None = None

    def __call__(self, taken: Taken) -> tuple[float, float]:
        """The value, and what it cost: seconds of the processor, or of the clock on a GPU. Making the network is not counted."""
        settings, names = self.settings["measures"][taken.measure], (self.settings["seed"], taken.repeat, taken.measure)
        if self.drawn != (taken.measure, taken.repeat):
            self.inputs = draw_inputs(taken.measure, settings, self.images, self.card, derive_seed(*names, "inputs"), self.device)
            self.drawn = (taken.measure, taken.repeat)
        genotype = self.genotypes[taken.cell]
        # Crops have one channel and are for the cells alone, as in a search.
        network = (
            SupernetCells(self.space, self.space.mask(genotype), channels=settings["channels"])
            if settings.get("inputs") == "crops"
            else Network(genotype, channels=settings["channels"], cells=settings["cells"], classes=self.card["classes"])
        )
        repeat = taken.repeat if settings["redraw"] else 0
        initialise(network, settings["weights"], derive_seed(self.settings["seed"], repeat, taken.measure, "weights"))
        network.to(self.device)
        clock = time.process_time if self.device == "cpu" else time.perf_counter
        start = clock()
        value = MEASURES[taken.measure](network, *self.inputs)
        return value, clock() - start


_scorer: CellScorer


def _start_worker(*arguments: object) -> None:
    global _scorer
    torch.set_num_threads(1)
    _scorer = CellScorer(*arguments)


def _measure(taken: Taken) -> tuple[float, float]:
    return _scorer(taken)


def score_cells(
    settings: Mapping,
    images: np.ndarray,
    card: Mapping,
    cells: Sequence[Cell],
    plan: Sequence[Taken],
    *,
    threads: int = 1,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda done: None,
) -> list[tuple[float, float]]:
    """Take the measurements of ``plan``: value and seconds of each, in its order.

    ``images``: uint8 (n, h, w, 3) with their ``card``, which has ``labels`` where a measure needs them. ``threads``: on the
    CPU as many processes of one thread each. The values depend on (settings, images) and on the kind of processor, not on
    threads, order or company. Raises TenasError when there are too few images for a batch.
    """
    results: list[tuple[float, float]] = []

    def keep(found: Iterable[tuple[float, float]]) -> None:
        for result in found:
            results.append(result)
            progress(1)

    with one_thread():
        arguments = (settings, images, card, cells, device)
        if device != "cpu" or threads == 1 or len(plan) < 2 * threads:
            keep(map(CellScorer(*arguments), plan))
            return results
    with multiprocessing.get_context("spawn").Pool(threads, _start_worker, arguments) as pool:
        keep(pool.imap(_measure, plan, chunksize=max(1, len(plan) // (threads * 16))))
    return results
