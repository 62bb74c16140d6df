"""What the tests of the engine share: small settings, images, values drawn at random, spaces of a few operators."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tenas.cli import main
from tenas.scoring.score import Task, score
from tenas.scoring.subjects import Cells, Measurement, Subjects, Trials, plan
from tenas.search.sample import sample_cells
from tenas.settings import search_settings
from tenas.spaces import CellSpace, ChainSpace, Choice, Genotype, Layer, Mask, Space, get_space

NAS, DARTS = get_space("nas-bench-201"), get_space("darts")
KAPPA, REGIONS = "ntk_condition_number", "linear_regions"
IMAGES = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
CARD = {"classes": 4, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
# Settings of a measure of a batch.
ON_A_BATCH = {
    "repeats": 1, "batch": 4, "channels": 2, "cells": 1, "weights": "kaiming_fan_in", "redraw": True, "inputs": "images"
}  # fmt: skip
# A preset whose measurements take milliseconds.
TINY = """
exclude: [none]
prune: 1
change: log
ranks: average
measures:
  ntk_condition_number: {repeats: 1, batch: 4, channels: 1, cells: 1, weights: kaiming_fan_out, redraw: true}
  linear_regions: {repeats: 2, inputs: crops, count: 300, blocks: 3, channels: 1, weights: kaiming_fan_in, redraw: true}
"""


# --- settings


def small(preset: str = "pruning", repeats: int = 3, **changes: object) -> dict:
    """The first round of a search on NAS-Bench-201, with few repeats: its settings."""
    measures = {KAPPA: {"repeats": repeats}, REGIONS: {"repeats": repeats}}
    return search_settings("nas-bench-201", preset, {"measures": measures, **changes})["rounds"][0]


def first_round(exclude: Sequence[str] = ("none",)) -> Trials:
    return Trials(NAS.full_mask(exclude), NAS.rounds(exclude)[0])


def tiny(**changes: object) -> dict:
    """Likewise, with small batches and networks, to be measured."""
    measures = {KAPPA: {"repeats": 2, "batch": 4, "channels": 2}, REGIONS: {"repeats": 2, "count": 90}}
    return search_settings("nas-bench-201", "pruning", {"measures": measures, **changes})["rounds"][0]


def take(
    measurements: Sequence[Measurement],
    entry: Mapping | None = None,
    subjects: Subjects | None = None,
    names: tuple[int, ...] = (7, 1),
    card: Mapping = CARD,
    **more: object,
) -> dict[Measurement, float]:
    """Measure on IMAGES; by default trials of the first round of seed 7."""
    task = Task((entry or tiny())["measures"], subjects or first_round(), names)
    return score(task, IMAGES, card, measurements, **more)


def random_values(measures: Mapping, subjects: Subjects, seed: int) -> dict[Measurement, float]:
    """A value for each measurement of ``subjects``: kappa log-normal, everything else whole numbers."""
    generator = random.Random(seed)
    return {
        m: math.exp(generator.gauss(5, 1)) if m.measure == KAPPA else float(generator.randint(100, 2900))
        for m in plan(measures, subjects.ids)
    }


# --- spaces


def conv(kernel: int):
    def factory(inputs: int, outputs: int, stride: int) -> nn.Module:
        return nn.Sequential(
            nn.ReLU(), nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)
        )

    return factory


def pool(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.AvgPool2d(3, stride, 1)


def nothing(inputs: int, outputs: int, stride: int) -> None:
    return None


OPERATORS = {"none": nothing, "pool": pool, "conv1": conv(1), "conv3": conv(3)}


def kept_space(
    nodes: int = 5, kept: int = 2, operators: int = 3, cell_types: Sequence[str] = ("normal", "reduction")
) -> CellSpace:
    """Cells with two inputs, whose nodes keep some of their edges: DARTS in small."""
    chosen = dict(list(OPERATORS.items())[-operators:])
    return CellSpace("kept", chosen, nodes=nodes, inputs=2, cell_types=cell_types, edges_of_a_node=kept, channels=4, cells=3)


def chain_space(layers: int = 3) -> ChainSpace:
    """Layers of different widths and strides; the second has fewer operators to choose from."""
    places = [Layer(), Layer(width=2, stride=2), Layer(width=2, operators=("conv1", "conv3")), Layer(width=3.5)][:layers]
    return ChainSpace("chain", {"conv1": conv(1), "conv3": conv(3), "conv5": conv(5)}, places, channels=4)


def random_mask(space: Space, generator: np.random.Generator, share: float = 0.6) -> Mask:
    """A mask with about that share of the operators on, at least one on each edge."""
    rows = []
    for cell in space.cell_types:
        rows.append([])
        for edge in range(len(space.edges)):
            allowed = [name in space.choices(cell, edge) for name in space.operators]
            on = [ok and bool(generator.random() < share) for ok in allowed]
            on[int(generator.choice(np.flatnonzero(allowed)))] = True
            rows[-1].append(tuple(on))
    return Mask(space, tuple(map(tuple, rows)))


def with_edges_pruned(mask: Mask, generator: np.random.Generator) -> Mask:
    """One operator on each edge, and some edges gone of the nodes that keep fewer than they have."""
    space, active = mask.space, []
    for rows in mask.active:
        single = []
        for row in rows:
            chosen = int(generator.choice(np.flatnonzero(row)))
            single.append([place == chosen for place in range(len(row))])
        for target in range(space.inputs, space.nodes):
            incoming = [index for index, edge in enumerate(space.edges) if edge.target == target]
            spare = len(incoming) - (len(incoming) if space.edges_of_a_node is None else space.edges_of_a_node)
            for index in generator.permutation(incoming)[: generator.integers(0, max(spare, 0) + 1)]:
                single[index] = [False] * len(space.operators)
        active.append(tuple(map(tuple, single)))
    return Mask(space, tuple(active))


def spanned(mask: Mask) -> set[str]:
    """The texts of all cells that a mask spans, counted out edge by edge without the package's own listing."""
    space = mask.space

    def cells(number: int, target: int) -> list[list[tuple[int, int, str]]]:
        if target == space.nodes:
            return [[]]
        rest, found = cells(number, target + 1), []
        incoming = [index for index, edge in enumerate(space.edges) if edge.target == target]
        count = len(incoming) if space.edges_of_a_node is None else min(space.edges_of_a_node, len(incoming))
        for subset in combinations(incoming, count):
            nodes = [[]]
            for index in subset:
                names = [name for name, on in zip(space.operators, mask.active[number][index], strict=True) if on]
                nodes = [[*node, (*space.edges[index], name)] for node in nodes for name in names]
            found += [node + other for node in nodes for other in rest]
        return found

    whole = [[]]
    for number in range(len(space.cell_types)):
        whole = [[*genotype, cell] for genotype in whole for cell in cells(number, space.inputs)]
    return {Genotype(space, tuple(tuple(sorted(Choice(*c) for c in cell)) for cell in genotype)).arch for genotype in whole}


# --- the command line


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """The sentence with which a command is refused."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tenas: ")
    assert err.endswith(".\n")
    assert err.count("\n") == 1
    return err


def save_images(folder: Path) -> Path:
    """An .npz file of 60 small pictures in three classes: smooth, as a crop of a photograph is mostly of one grey."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (60, 4, 4, 3))
    images = coarse.repeat(4, 1).repeat(4, 2) + generator.integers(-8, 8, (60, 16, 16, 3))
    path = folder / "mine.npz"
    np.savez(path, images=images.clip(0, 255).astype(np.uint8), labels=np.arange(60) % 3)
    return path


def prepared(folder: Path, out: Path, **entry: object) -> Path:
    """The folder ``out`` of prepared pictures."""
    path = save_images(folder) if not (folder / "mine.npz").exists() else folder / "mine.npz"
    assert main(["prepare", json.dumps({"source": "npz", "path": str(path), **entry}), "--out", str(out)]) == 0
    return out


def cells_of(space: Space, count: int, seed: int = 0) -> Cells:
    """Some cells of a space, numbered from 1."""
    return sample_cells(space.full_mask(), count, seed)


class Doubled(torch.autograd.Function):
    """The identity, with twice the gradient: what only autograd can know."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 2 * g
