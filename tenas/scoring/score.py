"""Measure subjects: the one part of a search or a study that needs torch."""

import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from tenas.errors import TenasError
from tenas.measures.catalogue import get_measure
from tenas.measures.threads import one_thread
from tenas.networks import Network, Supernet, SupernetCells, initialise, seeded
from tenas.networks.costs import operator_costs
from tenas.scoring.checkpoint import Taken
from tenas.scoring.inputs import draw_inputs
from tenas.scoring.subjects import Cells, Measurement, Subjects, Trials
from tenas.seeds import derive_seed
from tenas.spaces.sums import Sums


class Task(NamedTuple):
    """What measurements follow from, but for images and device.

    ``measures``: name or reference -> settings. ``names``: what seeds are derived from, (seed, round) of a search, (seed,) of a
    study.
    """

    measures: Mapping[str, Mapping[str, Any]]
    subjects: Subjects
    names: tuple[int, ...]


class Scorer:
    """Measures one subject after another. What a repeat shares is drawn once as long as it stays the same.

    All subjects of a repeat have the same inputs, unless trials draw their own, and the same seed of their weights. The trials of
    a supernet also share the network: its weights are drawn once per repeat. A discrete cell has a network of its own.
    """

    def __init__(self, task: Task, images: np.ndarray, card: Mapping[str, Any], device: str) -> None:
        self.task, self.images, self.card, self.device = task, images, card, device
        self.measures = {}
        for reference, settings in task.measures.items():
            measure = get_measure(reference)
            self.measures[measure.name] = (measure, settings)
        # Of what draw the inputs and the supernet's weights are: measure, repeat, and the trial if it is its own.
        self.drawn: tuple[str | int, ...] = ()
        self.weighted: tuple[str | int, ...] = ()
        self.supernets: dict[str, Supernet | SupernetCells] = {}
        self.sums: dict[str, Sums | None] = {}

    def __call__(self, measurement: Measurement) -> Taken:
        """The value and what it cost: seconds of the processor, or of the clock on a GPU, without making the network."""
        subject, name, repeat = measurement
        measure, settings = self.measures[name]
        if isinstance(self.task.subjects, Cells) and (costs := self.costs(name)) is not None:
            start = time.process_time()
            figure = costs.of(self.task.subjects.genotype(subject))
            return Taken(measurement, figure, time.process_time() - start)
        trials = self.task.subjects if isinstance(self.task.subjects, Trials) else None
        own = trials.drawn_by(subject) if trials else ()
        if self.drawn != (name, repeat, *own):
            seed = self.seed(name, repeat, "inputs", *own)
            self.inputs = draw_inputs(measure, settings, self.images, self.card, seed, self.device)
            self.drawn = (name, repeat, *own)
        if trials:
            own = own if name in trials.own_weights else ()
            if self.weighted != (name, repeat, *own):
                initialise(self.supernet(name), settings["weights"], self.seed(name, repeat, "weights", *own))
                self.weighted = (name, repeat, *own)
        network = self.network(name, subject, repeat)
        clock = time.process_time if self.device == "cpu" else time.perf_counter
        start = clock()
        with seeded(self.seed(name, repeat, "draws")):
            value = measure(network, *self.inputs)
        return Taken(measurement, value, clock() - start)

    def costs(self, name: str) -> Sums | None:
        """What operators cost in the networks of a measure that is a sum over them; None where it is no sum."""
        measure, settings = self.measures[name]
        if measure.sums is None:
            return None
        if name not in self.sums:
            shape = {"channels": settings["channels"], "cells": settings["cells"], "classes": self.card["classes"]}
            self.sums[name] = None
            # Networks of one's own may cost what no sum tells: they are counted one by one.
            with suppress(TenasError):
                self.sums[name] = operator_costs(self.task.subjects.space, side=self.images.shape[1], **shape)[measure.sums]
        return self.sums[name]

    def seed(self, name: str, repeat: int, purpose: str, *trial: int) -> int:
        """``trial``: the one that has a draw of its own."""
        if purpose == "weights" and not self.measures[name][1]["redraw"]:
            repeat = 0
        return derive_seed(*self.task.names, repeat, name, purpose, *trial)

    def network(self, name: str, subject: int, repeat: int) -> nn.Module:
        if isinstance(self.task.subjects, Trials):
            supernet = self.supernet(name)
            supernet.set_mask(self.task.subjects.masked(subject))
            return supernet
        _, settings = self.measures[name]
        seed = self.seed(name, repeat, "weights")
        with seeded(seed):
            network = cell_network(self.task.subjects, subject, settings, self.card["classes"])
        initialise(network, settings["weights"], seed)
        return network.to(self.device)

    def supernet(self, name: str) -> Supernet | SupernetCells:
        if name not in self.supernets:
            space, (_, settings) = self.task.subjects.space, self.measures[name]
            with seeded(self.seed(name, 0, "weights")):
                # Crops have one channel and are for the cells alone.
                self.supernets[name] = (
                    SupernetCells(space, channels=settings["channels"])
                    if settings["inputs"] == "crops"
                    else Supernet(space, channels=settings["channels"], cells=settings["cells"], classes=self.card["classes"])
                ).to(self.device)
        return self.supernets[name]


def cell_network(cells: Cells, subject: int, settings: Mapping[str, Any], classes: int) -> nn.Module:
    """The network that a measure sees of a discrete cell."""
    genotype = cells.genotype(subject)
    if settings["inputs"] == "crops":
        return SupernetCells(cells.space, cells.space.mask(genotype), channels=settings["channels"])
    return Network(genotype, channels=settings["channels"], cells=settings["cells"], classes=classes)


_scorer: Scorer


def _start_worker(task: Task, images: np.ndarray, card: Mapping[str, Any]) -> None:
    global _scorer
    torch.set_num_threads(1)
    _scorer = Scorer(task, images, card, "cpu")


def _measure(measurements: Sequence[Measurement]) -> list[Taken]:
    return [_scorer(measurement) for measurement in measurements]


def score(
    task: Task,
    images: np.ndarray,
    card: Mapping[str, Any],
    measurements: Sequence[Measurement],
    *,
    threads: int = 1,
    device: str = "cpu",
    taken: Callable[[Taken], object] = lambda taken: None,
) -> dict[Measurement, float]:
    """Take ``measurements``; ``taken`` is called with each as it comes.

    ``images``: uint8 (n, h, w, 3) with their ``card``, which has ``labels`` where a measure needs them. ``threads``: on the CPU
    as many processes of one thread each. The values depend on (task, images) and on the kind of processor, not on threads or
    order. Raises TenasError when there are too few images for a batch, and when worker processes die twice.
    """
    values: dict[Measurement, float] = {}

    def keep(results: Iterable[Taken]) -> None:
        for result in results:
            values[result.measurement] = result.value
            taken(result)

    # The scorer is made here in any case: what is wrong with the settings is said before processes are started.
    with one_thread():
        scorer = Scorer(task, images, card, device)
        if device != "cpu" or threads == 1 or len(measurements) < 2 * threads:
            keep(map(scorer, measurements))
            return values
    for attempt in (1, 2):
        waiting = [measurement for measurement in measurements if measurement not in values]
        try:
            _in_workers((task, images, card), waiting, threads, keep)
            return values
        except BrokenProcessPool as error:
            # As the kernel does to a process when memory runs out.
            if attempt == 2:
                raise TenasError(
                    "A worker process was killed twice, probably for want of memory: use fewer 'threads', or a smaller 'batch'. "
                    "What was measured is kept."
                ) from error
    return values


def _in_workers(
    arguments: tuple[Task, np.ndarray, Mapping[str, Any]],
    measurements: Sequence[Measurement],
    threads: int,
    keep: Callable[[Iterable[Taken]], None],
) -> None:
    """Measure in worker processes. Raises BrokenProcessPool when one of them dies."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(threads, context, _start_worker, arguments) as pool:
        # One at a time and as they come: a job that is killed loses what was under way and nothing else. That each
        # process draws weights and images for every repeat costs a few hundredths of a measurement.
        waiting = [pool.submit(_measure, [measurement]) for measurement in measurements]
        try:
            for future in as_completed(waiting):
                keep(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
