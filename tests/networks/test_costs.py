"""Costs as sums over operators, against the networks themselves; and how fast a sum is."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.engine import DARTS, IMAGES, KAPPA, NAS, ON_A_BATCH, OPERATORS, cells_of, chain_space, kept_space, random_mask, take
from torch import nn

from tenas.errors import TenasError
from tenas.networks import Network, builders, count_flops, count_parameters, single
from tenas.networks.costs import network_costs, operator_costs
from tenas.scoring.subjects import plan
from tenas.spaces import CellSpace

CIFAR = {"channels": 6, "cells": 5, "stem": "cifar"}
IMAGENET = {"channels": 6, "cells": 6, "stem": "imagenet"}
ONE_INPUT = CellSpace("one-input", OPERATORS, nodes=4, edges=[(1, 0), (2, 0), (2, 1), (3, 1), (3, 2)], channels=4, cells=2)


@pytest.mark.parametrize(
    ("space", "shape", "side", "count"),
    [
        (NAS, {"channels": 16, "cells": 5}, 32, 12),
        (NAS, {"channels": 3, "cells": 1, "stem": None}, 16, 12),
        (DARTS, CIFAR, 32, 6),
        (DARTS, IMAGENET, 64, 6),
        (ONE_INPUT, {"channels": 4, "cells": 2}, 16, 12),
        (kept_space(), {"channels": 4, "cells": 5}, 16, 8),
        (CellSpace("alike", OPERATORS, nodes=4, inputs=2, edges_of_a_node=2), {"channels": 3, "cells": 4}, 16, 8),
        (chain_space(4), {"channels": 4, "cells": 2}, 16, 12),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else "",
)
@pytest.mark.slow
def test_sums_are_the_networks_own_counts(space, shape, side, count):
    """Built and run, not on the meta device: parameters counted, multiplications hooked, cell by cell."""
    sums = operator_costs(space, side=side, classes=7, **shape)
    options = {key: value for key, value in shape.items() if value is not None}
    generator = np.random.default_rng(1)
    for _ in range(count):
        genotype = space.random_genotype(space.full_mask(), generator)
        network = Network(genotype, classes=7, **options)
        assert sums["parameters"].of(genotype) == count_parameters(network)
        assert sums["flops"].of(genotype) == count_flops(network, (3, side, side))


def test_the_benchmarks_largest_cell_has_its_published_costs():
    """1.531546 M parameters and 220.11969 M multiply-adds on CIFAR-10 (NAS-Bench-201)."""
    sums = operator_costs(NAS, side=32, classes=10, channels=16, cells=5)
    mask = NAS.full_mask()
    assert sums["parameters"].extreme(mask, largest=True) == 1_531_546
    assert sums["flops"].extreme(mask, largest=True) == 220_119_690


class Wider(nn.Module):
    """A network that is wider for each 3x3 convolution: its cost is no sum over operators."""

    def __init__(self, operators, channels: int, classes: int) -> None:
        super().__init__()
        width = channels * (1 + sum("conv3" in names and len(names) == 1 for names in operators))
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(width, classes)

    def set_mask(self, mask) -> None: ...

    def forward(self, images):
        return self.classifier(self.layers(images))


def wider_space() -> CellSpace:
    space = CellSpace("wider", OPERATORS, nodes=3)
    space.networks = SimpleNamespace(
        network=lambda space, operators, *, channels, cells, classes: Wider(operators, channels, classes),
        supernet=single.supernet,
        cells=single.cells,
    )
    return space


class Rarely(nn.Module):
    """Networks of the package with a layer more where both first edges are 3x3 convolutions."""

    def __init__(self, body: nn.Module, operators, classes: int) -> None:
        super().__init__()
        self.body, self.set_mask = body, body.set_mask
        self.more = nn.Linear(classes, classes) if operators[:2] == [("conv3",), ("conv3",)] else nn.Identity()

    def forward(self, images):
        return self.more(self.body(images))


def rare_space() -> CellSpace:
    def network(space, operators, *, channels, cells, classes):
        return Rarely(single.network(space, operators, channels=channels, cells=cells, classes=classes), operators, classes)

    space = CellSpace("rare", OPERATORS, nodes=3)
    space.networks = SimpleNamespace(network=network, supernet=single.supernet, cells=single.cells)
    return space


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (wider_space(), r"networks of wider have no tenas\.networks\.edge\.Edge, by which the costs of operators are counted"),
        (rare_space(), "of the networks of rare are no sum over its operators"),
    ],
)
def test_networks_whose_cost_is_no_sum_are_refused(space, sentence):
    assert builders(space).supernet is single.supernet
    with pytest.raises(TenasError, match=sentence):
        operator_costs(space, side=16, classes=3, channels=4, cells=1)


class Attention(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.attend, self.project = nn.MultiheadAttention(inputs, 1, batch_first=True), nn.Linear(inputs, outputs)

    def forward(self, features):
        tokens = features.flatten(2).transpose(1, 2)
        found = self.project(self.attend(tokens, tokens, tokens, need_weights=False)[0])
        return found.transpose(1, 2).unflatten(2, features.shape[2:])


def test_costs_of_an_operator_do_not_depend_on_what_it_stands_behind():
    """Strides of one operator's output decide how torch runs the next."""
    own = {"attention": lambda inputs, outputs, _: Attention(inputs, outputs), "pool": OPERATORS["pool"]}
    sums = operator_costs(CellSpace("attentive", own, nodes=3), side=16, classes=4, channels=4, cells=2)
    # Of 256, 64 and 16 positions and 4, 8 and 16 channels, twice each: five projections with biases; scores and sums.
    once = [n * 5 * c * (c + 1) + 2 * n * n * c for n, c in ((256, 4), (64, 8), (16, 16))]
    assert {sums["flops"].operators[0][edge][0] for edge in range(3)} == {2 * sum(once)}


class OfItsValues(nn.Module):
    def forward(self, features):
        return features * float(features.mean())


@pytest.mark.parametrize(
    ("late", "sentence"),
    [
        (lambda *_: OfItsValues(), "an operator of this network needs them: "),
        (lambda a, b, _: nn.Sequential(OfItsValues(), nn.Conv2d(a, b, 1)), "operator 'late' .* cannot run without values"),
    ],
)  # fmt: skip
def test_an_operator_that_needs_values_is_blamed_for_that(late, sentence):
    """It can be searched, but not limited; its features are no reason."""
    space = CellSpace("late", OPERATORS | {"late": late})
    with pytest.raises(TenasError, match=sentence):
        operator_costs(space, side=16, classes=3, channels=4, cells=1)


def test_a_round_of_cells_counts_what_is_no_sum():
    subjects = cells_of(wider_space(), 8)
    measures = dict.fromkeys(("parameters", "flops", KAPPA), ON_A_BATCH)
    values = take(plan({"parameters": ON_A_BATCH, "flops": ON_A_BATCH}, subjects.ids), {"measures": measures}, subjects, (0,))
    for cell in subjects.cells:
        expected = network_costs(subjects.genotype(cell.number), side=IMAGES.shape[1], classes=4, channels=2, cells=1)
        assert {name: values[cell.number, name, 0] for name in expected} == expected
    assert len({values[cell.number, "parameters", 0] for cell in subjects.cells}) > 1


def test_a_cell_costs_microseconds():
    """A thousand cells and more in the time that one network takes to be built."""
    sums = operator_costs(NAS, side=32, classes=10, channels=16, cells=5)
    generator = np.random.default_rng(0)
    genotypes = [NAS.random_genotype(NAS.full_mask(), generator) for _ in range(2000)]
    start = time.process_time()
    for genotype in genotypes:
        sums["parameters"].of(genotype)
    assert (time.process_time() - start) / len(genotypes) < 100e-6


@pytest.mark.parametrize("space", [NAS, kept_space(), chain_space(4)], ids=lambda space: space.name)
def test_what_a_mask_leaves_out_costs_nothing_to_those_that_it_spans(space):
    """Sums of a mask's cells do not depend on the mask that they are counted with."""
    sums = operator_costs(space, side=16, classes=3, **space.trained)
    mask = random_mask(space, np.random.default_rng(2), 0.4)
    figures = [sums["parameters"].of(genotype) for genotype in space.genotypes(mask)]
    assert sums["parameters"].extreme(mask) == min(figures)
    assert sums["parameters"].extreme(mask, largest=True) == max(figures)
