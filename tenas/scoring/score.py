"""Measure subjects: the only part of a search or a study that needs torch."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from torch import nn, no_grad, zeros

from tenas.errors import TenasError
from tenas.measures.catalogue import BUILT_IN, get_measure
from tenas.measures.common import collector_paused, collector_spared
from tenas.measures.costs import parameters
from tenas.measures.threads import one_thread
from tenas.networks import Network, Supernet, SupernetCells, count_parameters, initialise, redrawn_whole, seeded
from tenas.networks.costs import operator_costs, whole_network
from tenas.references import folder_kept
from tenas.scoring.checkpoint import Result
from tenas.scoring.inputs import CROP, draw_inputs
from tenas.scoring.subjects import Cells, Measurement, Subjects
from tenas.scoring.workers import Workers
from tenas.seeds import derive_seed
from tenas.spaces import BUILT_IN as SPACES
from tenas.spaces import Space
from tenas.spaces.sums import Sums


class Task(NamedTuple):
    """All that measurements depend on, except images and device.

    ``measures``: name or reference -> settings. ``names``: what seeds are derived from: (seed, round) of a search, (seed,) of a
    study.
    """

    measures: Mapping[str, Mapping[str, Any]]
    subjects: Subjects
    names: tuple[int, ...]


class Built(NamedTuple):
    """A network that the next measurement may reuse. ``of``: what it was built for; ``drawn``: measure and repeat of its weights.

    ``whole``: whether drawing its weights again resets everything random in it (``redrawn_whole``).
    """

    of: tuple[Any, ...]
    network: nn.Module
    whole: bool
    drawn: tuple[str, int] | None = None


class Scorer:
    """Measure subjects one by one, reusing inputs and networks while they stay the same.

    All subjects of a repeat have the same inputs, unless trials draw their own, and the same seed of weights. The trials of a
    supernet also share the network: its weights are drawn once per repeat. Each discrete cell has its own network; the last one
    is kept for the next measurement of the same size, and only its weights are drawn again. Regions of crops are counted on a
    network with all operators, the same one for all cells.
    """

    def __init__(self, task: Task, images: np.ndarray, card: Mapping[str, Any], device: str) -> None:
        self.task, self.images, self.card, self.device = task, images, card, device
        self.measures = {}
        for reference, settings in task.measures.items():
            measure = get_measure(reference)
            self.measures[measure.name] = (measure, settings)
        # Key of the present inputs and of the supernet's present weights: the repeat, and the trial if it draws its own.
        self.seen: dict[str, tuple[tuple[int, ...], tuple[Any, ...]]] = {}
        self.drawn: tuple[str | int, ...] = ()
        self.supernets: dict[str, Supernet | SupernetCells] = {}
        self.built: dict[bool, Built] = {}
        self.sums: dict[str, Sums | None] = {}
        self.warm: set[str] = set()

    def __call__(self, measurement: Measurement) -> Result:
        """Take a measurement. Its cost: seconds of processor time, on a GPU of wall time, without building the network."""
        subject, name, repeat = measurement
        measure, _ = self.measures[name]
        if isinstance(self.task.subjects, Cells) and (costs := self.costs(name)) is not None:
            start = time.process_time()
            figure = costs.of(self.task.subjects.genotype(subject))
            return Result(measurement, figure, time.process_time() - start)
        inputs, network = self.inputs(name, subject, repeat), self.network(name, subject, repeat)
        clock = time.process_time if self.device == "cpu" else time.perf_counter
        if self.device != "cpu" and name not in self.warm and measure is BUILT_IN.get(name):
            # The first call on CUDA also loads libraries, which is no cost of the measure. Users' measures may change the
            # network.
            self.warm.add(name)
            with seeded(self.seed(name, repeat, "draws")):
                measure(network, *inputs)
        start = clock()
        with seeded(self.seed(name, repeat, "draws")), folder_kept():
            value = measure(network, *inputs)
        seconds = clock() - start
        if measure is not BUILT_IN.get(name):
            # It may have changed the images, and the supernet that the trials of a round share.
            self.seen.pop(name)
            self.supernets.pop(name, None)
            self.drawn = ()
        return Result(measurement, value, seconds)

    def costs(self, name: str) -> Sums | None:
        """Costs of operators in the networks of a measure that is a sum over them; None for other measures."""
        measure, settings = self.measures[name]
        if measure.sums is None:
            return None
        if name not in self.sums:
            shape = {"channels": settings["channels"], "cells": settings["cells"], "classes": self.card["classes"]}
            space, side = self.task.subjects.space, self.images.shape[1]
            self.sums[name] = None
            # The costs of users' networks may be no sum over operators, and their layers may not all be used: those are counted
            # one by one.
            with suppress(TenasError):
                if measure.sums != "parameters" or space.reference in SPACES or _uses_all(space, side, shape):
                    self.sums[name] = operator_costs(space, side=side, **shape)[measure.sums]
        return self.sums[name]

    def seed(self, name: str, repeat: int, purpose: str, *trial: int) -> int:
        """Seed of a draw. ``trial``: number of a trial that draws its own."""
        if purpose == "weights" and not self.measures[name][1]["redraw"]:
            repeat = 0
        return derive_seed(*self.task.names, repeat, name, purpose, *trial)

    def inputs(self, name: str, subject: int, repeat: int) -> tuple[Any, ...]:
        """Inputs of a subject: those of the last measurement, if they are the same."""
        measure, settings = self.measures[name]
        of = (repeat, *(() if isinstance(self.task.subjects, Cells) else self.task.subjects.drawn_by(subject)))
        if name not in self.seen or self.seen[name][0] != of:
            seed = self.seed(name, repeat, "inputs", *of[1:])
            self.seen[name] = of, draw_inputs(measure, settings, self.images, self.card, seed, self.device)
        return self.seen[name][1]

    def network(self, name: str, subject: int, repeat: int) -> nn.Module:
        if isinstance(self.task.subjects, Cells):
            return self.cell(self.task.subjects, name, subject, repeat)
        trials, supernet = self.task.subjects, self.supernet(name)
        own = trials.drawn_by(subject) if name in trials.own_weights else ()
        if self.drawn != (name, repeat, *own):
            initialise(supernet, self.measures[name][1]["weights"], self.seed(name, repeat, "weights", *own))
            self.drawn = (name, repeat, *own)
        supernet.set_mask(trials.masked(subject))
        return supernet

    def cell(self, cells: Cells, name: str, subject: int, repeat: int) -> nn.Module:
        """Network of a discrete cell with the weights of a measure and repeat; the last one is reused if it fits."""
        measure, settings = self.measures[name]
        crops = settings["inputs"] == "crops"
        of = (settings["channels"],) if crops else (subject, settings["channels"], settings["cells"])
        seed = self.seed(name, repeat, "weights")
        built = self.built.pop(crops, None)
        if built is None or built.of != of:
            with seeded(seed), collector_paused():
                network = cell_network(cells, subject, settings, self.card["classes"]).to(self.device)
            built = Built(of, network, redrawn_whole(network))
        if built.drawn != (name, repeat):
            initialise(built.network, settings["weights"], seed)
        if isinstance(built.network, SupernetCells):
            built.network.set_mask(cells.space.mask(cells.genotype(subject)))
        # Not after a user's measure, which may change anything in a network, nor with users' modules that keep what they drew.
        if built.whole and measure is BUILT_IN.get(name):
            self.built[crops] = built._replace(drawn=(name, repeat))
        return built.network

    def supernet(self, name: str) -> Supernet | SupernetCells:
        if name not in self.supernets:
            space, (_, settings) = self.task.subjects.space, self.measures[name]
            with seeded(self.seed(name, 0, "weights")):
                # Crops have one channel, and go through the cells alone.
                self.supernets[name] = (
                    SupernetCells(space, channels=settings["channels"])
                    if settings["inputs"] == "crops"
                    else Supernet(space, channels=settings["channels"], cells=settings["cells"], classes=self.card["classes"])
                ).to(self.device)
        return self.supernets[name]


def _uses_all(space: Space, side: int, shape: Mapping[str, Any]) -> bool:
    """Whether a pass with every operator uses all trainable parameters: the sums over operators count the others too."""
    network = whole_network(space, **shape)
    return parameters(network, zeros(1, 3, side, side)) == count_parameters(network)


def check_crops(space: Space, settings: Mapping[str, Any]) -> None:
    """Raise TenasError for a user's space whose cells cannot process the crops of a round, before the first round."""
    if space.reference in SPACES:
        return
    mask = space.full_mask(settings["exclude"])
    for number, entry in enumerate(settings["rounds"], start=1):
        for name, of in entry.get("measures", {}).items():
            if of["inputs"] == "crops":
                try:
                    with seeded(0), no_grad():
                        SupernetCells(space, mask, channels=of["channels"])(zeros(2, of["channels"], CROP, CROP))
                except Exception as error:
                    raise TenasError(
                        f"Round {number}: {name} reads crops of {CROP} x {CROP} pixels, which a cell of {space.name} cannot "
                        f"process: {' '.join(str(error).split()).rstrip('.')}. Leave the measure out, or change the operator."
                    ) from error


def in_groups(task: Task, measurements: Sequence[Measurement], most: int) -> list[list[Measurement]]:
    """Order measurements and split them where nothing is shared, into groups of at most ``most``.

    Measurements of a cell with networks of the same size follow each other, so that the network is built once; so do those of a
    trial by one measure on images, whose pass is recorded once (``tenas.measures.ntk_reuse``). The order is unchanged otherwise.
    """
    trials = not isinstance(task.subjects, Cells)
    shapes = {}
    for reference, settings in task.measures.items():
        measure = get_measure(reference)
        shapes[measure.name] = None if settings["inputs"] == "crops" else (settings["channels"], settings["cells"])
    groups: dict[tuple[Any, ...], list[Measurement]] = {}
    for measurement in measurements:
        subject, name, repeat = measurement
        key: tuple[Any, ...] = (subject, name if trials else shapes[name])
        if shapes[name] is None:
            key = measurement if trials else (name, repeat)
        groups.setdefault(key, []).append(measurement)
    return [group[start : start + most] for group in groups.values() for start in range(0, len(group), most)]


def cell_network(cells: Cells, subject: int, settings: Mapping[str, Any], classes: int) -> nn.Module:
    """Build the network of a discrete cell for a measure."""
    genotype = cells.genotype(subject)
    if settings["inputs"] == "crops":
        return SupernetCells(cells.space, cells.space.mask(genotype), channels=settings["channels"])
    return Network(genotype, channels=settings["channels"], cells=settings["cells"], classes=classes)


def _measured_here(
    task: Task,
    images: np.ndarray,
    card: Mapping[str, Any],
    measurements: Sequence[Measurement],
    device: str,
    keep: Callable[[Iterable[Result]], None],
) -> None:
    """Take measurements in this process. A function of its own, so that its networks and plans are gone when it has returned."""
    scorer = Scorer(task, images, card, device)
    if device != "cpu":
        from tenas.scoring.together import alike, taken_together

        drawer = Scorer(task, images, card, "cpu")
        groups, measurements = alike(drawer, measurements)
        for group in groups:
            for results in taken_together(drawer, scorer, group):
                keep(results)
    # No map, which would take a StopIteration of a measure for its own end.
    keep(scorer(measurement) for measurement in chain.from_iterable(in_groups(task, measurements, len(measurements))))


# Most measurements that a worker process is given at once: a killed job loses those in progress.
TOGETHER = 4


def score(
    task: Task,
    images: np.ndarray,
    card: Mapping[str, Any],
    measurements: Sequence[Measurement],
    *,
    threads: int = 1,
    device: str = "cpu",
    taken: Callable[[Result], object] = lambda result: None,
    workers: Workers | None = None,
) -> dict[Measurement, float]:
    """Take ``measurements``, calling ``taken`` with each result; on a GPU many at a time, on whose number their last bits depend.

    ``images``: uint8 (n, h, w, 3) with their ``card``, which has ``labels`` if a measure needs them. ``threads``: number of
    worker processes on the CPU, with one thread each; ``workers``: those of a caller that measures more than once. The values
    depend on (task, images) and on the kind of processor, not on threads or order. Raises TenasError for too few images for a
    batch, and if the worker processes of a measurement die twice.
    """
    values: dict[Measurement, float] = {}

    def keep(results: Iterable[Result]) -> None:
        for result in results:
            values[result.measurement] = result.value
            taken(result)

    here = device != "cpu" or threads == 1 or len(measurements) < 2 * threads
    with one_thread(), collector_spared():
        # Called in any case, so that errors in the settings are raised before processes are started.
        _measured_here(task, images, card, measurements if here else [], device, keep)
    if here:
        return values
    # Drawing weights and images for every repeat in each process costs a few hundredths of a measurement.
    groups = in_groups(task, measurements, max(1, min(TOGETHER, len(measurements) // (8 * threads))))
    with nullcontext(workers) if workers is not None else Workers(threads) as used:
        used.measure(task, images, card, groups, keep)
    return values
