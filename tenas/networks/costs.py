"""Parameters and multiply-adds as sums over operators: a few additions per cell, without building its network."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from tenas.errors import TenasError
from tenas.networks import Network, builders, count_flops, count_parameters, operators_of, without_values
from tenas.networks.edge import Edge
from tenas.networks.flops import Products
from tenas.spaces.base import Genotype, Space
from tenas.spaces.sums import Sums

# Cells whose sums are compared with their networks; more where another package builds these.
CHECKED, CHECKED_OF_OTHERS = 3, 64


def operator_costs(space: Space, *, side: int, classes: int, **shape: Any) -> dict[str, Sums]:
    """``parameters`` (trainable ones) and ``flops`` of the space's discrete networks as exact sums over operators.

    ``side``: of the images. ``shape``: channels, cells and stem, as Network takes them. One network with every operator runs on
    the meta device, where nothing is computed. For some random cells the sums are compared with the networks themselves.

    Raises TenasError if a network's cost is not a sum over its operators, which is possible for user-defined networks only, and
    for networks whose operators are not in an ``Edge``.
    """
    network = whole_network(space, classes=classes, **shape)
    if not any(isinstance(module, Edge) for module in network.modules()):
        raise TenasError(
            f"The networks of {space.name} have no tenas.networks.edge.Edge, by which the costs of operators are counted: limits "
            "on them cannot be kept."
        )
    parameters, flops = _counted(network.eval(), side)
    found = {name: _sums(space, counts) for name, counts in (("parameters", parameters), ("flops", flops))}
    mask, generator = space.full_mask(), np.random.default_rng(0)
    is_shipped = isinstance(space.networks, str) and space.networks.startswith("tenas.")
    for _ in range(CHECKED if is_shipped else CHECKED_OF_OTHERS):
        genotype = space.random_genotype(mask, generator)
        for name, value in network_costs(genotype, side=side, classes=classes, **shape).items():
            if found[name].of(genotype) != value:
                raise TenasError(
                    f"The {name} of the networks of {space.name} are no sum over its operators ({found[name].of(genotype):,} for "
                    f"{value:,}): limits on them cannot be kept."
                )
    return found


def whole_network(space: Space, *, classes: int, **shape: Any) -> nn.Module:
    """A discrete network with every operator, on the meta device. ``shape``: as in ``operator_costs``."""
    options = {key: value for key, value in shape.items() if key != "stem" or value not in (None, "cifar")}
    mask = space.full_mask()
    with torch.device("meta"):
        network: nn.Module = builders(space).network(space, operators_of(mask), classes=classes, **options)
    network.set_mask(mask)  # type: ignore[operator]
    return network


def network_costs(genotype: Genotype, *, side: int, classes: int, **shape: Any) -> dict[str, int]:
    """Parameters and multiply-adds of one cell's network, counted on the network itself."""
    options = {key: value for key, value in shape.items() if value is not None}
    with torch.device("meta"):
        network = Network(genotype, classes=classes, **options)
    return {"parameters": count_parameters(network), "flops": count_flops(network, (3, side, side))}


# Cell type, edge, operator; None for layers outside of operators.
Owner = tuple[str, int, str] | None


def _counted(network: nn.Module, side: int) -> tuple[Counter[Owner], Counter[Owner]]:
    """Parameters and multiply-adds of a network by owner."""
    owner: dict[nn.Module, Owner] = {}
    for module in network.modules():
        if isinstance(module, Edge):
            for name, operator in module.named():
                owner.update(dict.fromkeys(operator.modules(), (module.place[0], module.place[1], name)))
    parameters: Counter[Owner] = Counter()
    held: dict[nn.Parameter, Owner] = {}
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            # One that an operator shares within itself counts once.
            if held.setdefault(parameter, owner.get(module)) != owner.get(module):
                raise TenasError("Operators share parameters with each other: limits on them cannot be kept.")
    for parameter, holder in held.items():
        parameters[holder] += parameter.numel() if parameter.requires_grad else 0
    flops: Counter[Owner] = Counter()

    running: list[Owner] = [None]

    def add(count: int) -> None:
        flops[running[-1]] += count

    for module in network.modules():
        if module in owner:
            module.register_forward_pre_hook(lambda module, _: running.append(owner[module]))
            module.register_forward_hook(lambda *_: running.pop() and None)
    with without_values(), Products(add):
        network(torch.empty(1, 3, side, side, device="meta"))
    return parameters, flops


def _sums(space: Space, counts: Mapping[Owner, int]) -> Sums:
    return Sums(
        space,
        counts[None],
        tuple(
            tuple(tuple(counts[cell, edge, name] for name in space.operators) for edge in range(len(space.edges)))
            for cell in space.cell_types
        ),
    )
