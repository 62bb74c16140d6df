"""Take measurements of a task many at a time: networks of one structure side by side as groups of one (tenas.networks.grouped).

For GPUs, on which a small network waits for the launches of its operators. On a CPU one after the other is faster, and has other
last bits.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tenas.measures.common import collector_paused
from tenas.networks.grouped import State, groupable, grouped
from tenas.scoring.checkpoint import Result
from tenas.scoring.subjects import Cells, Measurement
from tenas.spaces.base import Mask

if TYPE_CHECKING:
    from tenas.scoring.score import Scorer


class SmallerGroupWarning(UserWarning):
    """Fewer measurements were taken at a time than planned by their shapes, as memory ran out."""


def alike(scorer: Scorer, measurements: Sequence[Measurement]) -> tuple[list[list[Measurement]], list[Measurement]]:
    """Measurements whose networks have one structure, group by group, and the rest.

    Trials of a round share a supernet, and so do cells whose crops are counted; any other cell has repeats of its own network.
    """
    groups: dict[tuple[str | int, ...], list[Measurement]] = {}
    rest = []
    for measurement in measurements:
        subject, name, _ = measurement
        measure, settings = scorer.measures[name]
        if measure.grouped is None:
            rest.append(measurement)
            continue
        own = isinstance(scorer.task.subjects, Cells) and settings["inputs"] != "crops"
        groups.setdefault((name, *([subject] if own else [])), []).append(measurement)
    return list(groups.values()), rest


def taken_together(drawer: Scorer, scorer: Scorer, group: Sequence[Measurement]) -> Iterator[list[Result]]:
    """Take the measurements of a group, as many at a time as a constant budget of memory allows, by their shapes alone.

    ``drawer``: a Scorer of the same task on the CPU, which draws weights and inputs. ``scorer``: takes, one by one, those of
    networks that cannot be grouped. When a GPU's memory runs out, half as many are tried.
    """
    subject, name, repeat = group[0]
    measure = import_module(drawer.measures[name][0].modules[-1])
    network = drawer.network(name, subject, repeat)
    most = measure.together(network, drawer.inputs(name, subject, repeat)) if groupable(network) else 1
    waiting = list(group)
    while waiting:
        chunk = waiting[:most]
        if most == 1:
            yield [scorer(measurement) for measurement in chunk]
        else:
            try:
                yield _take(drawer, scorer.device, chunk)
            except torch.OutOfMemoryError:
                most = max(1, len(chunk) // 2)
            if most < len(chunk):
                warnings.warn(
                    f"The device's memory ran out: {most} measurements of {name} at a time instead of {len(chunk)}; the last "
                    "bits may be others.",
                    SmallerGroupWarning,
                    stacklevel=2,
                )
                continue
        waiting = waiting[len(chunk) :]


def _take(drawer: Scorer, device: str, chunk: Sequence[Measurement]) -> list[Result]:
    """Take all measurements of a chunk at once. The cost of each: its share of the wall time, without building networks."""
    name = chunk[0].measure
    measure = import_module(drawer.measures[name][0].modules[-1])
    states: dict[int, State] = {}
    seeds, masks, inputs = [], [], []
    network = None
    for subject, _, repeat in chunk:
        seeds.append(drawer.seed(name, repeat, "weights", *_own(drawer, name, subject)))
        network = drawer.network(name, subject, repeat)
        if seeds[-1] not in states:
            states[seeds[-1]] = {key: value.clone() for key, value in network.state_dict().items()}
        masks.append(getattr(network, "mask", None))
        inputs.append(drawer.inputs(name, subject, repeat))
    assert network is not None
    with collector_paused():
        whole = grouped(network, [states[seed] for seed in seeds], [mask for mask in masks if isinstance(mask, Mask)], device)
    joined = tuple(_side_by_side(parts, device) for parts in zip(*inputs, strict=True))
    start = time.perf_counter()
    values = measure.values(whole, joined, len(chunk))
    cost = (time.perf_counter() - start) / len(chunk)
    return [Result(measurement, value, cost) for measurement, value in zip(chunk, values, strict=True)]


def _own(scorer: Scorer, name: str, subject: int) -> tuple[int, ...]:
    """The trial whose own weights a subject has."""
    subjects = scorer.task.subjects
    return () if isinstance(subjects, Cells) or name not in subjects.own_weights else subjects.drawn_by(subject)


def _side_by_side(parts: Sequence[Any], device: str) -> Any:
    """Join the inputs of R networks: batches (n, c, h, w) to (n, R * c, h, w), sequences of blocks block by block."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts), 1).to(device)
    return [torch.cat(list(blocks), 1).to(device) for blocks in zip(*parts, strict=True)]
