"""Spaces of a user's own: cells whose edges choose an operator, and chains of layers that each choose one. No torch.

Both are made from factories of operators, and get supernet, discrete networks, sampling, drawing and texts from the package::

    from torch import nn
    from tenas.spaces import CellSpace

    def conv(kernel):
        return lambda inputs, outputs, stride: nn.Sequential(
            nn.ReLU(), nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs))

    SPACE = CellSpace("mine", {"skip": lambda inputs, outputs, stride: nn.Identity(), "conv3": conv(3), "conv5": conv(5)})

A configuration then says ``space: path/to/file.py:SPACE``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tenas.errors import TenasError, one_of
from tenas.spaces.base import Choice, Edge, Genotype, Space, WrongFormError

if TYPE_CHECKING:
    from torch import nn

# (channels in, channels out, stride) -> a module, or None for an operator that gives nothing.
Factory = Callable[[int, int, int], Any]

NAME = re.compile(r"[A-Za-z0-9_.]+")


class _FromFactories(Space):
    def __init__(self, name: str, operators: Mapping[str, Factory], trained: Mapping[str, int]) -> None:
        if not isinstance(name, str) or re.fullmatch(r"[A-Za-z0-9_.-]+", name) is None:
            raise TenasError(f"A space's name is letters, digits, '_', '.' and '-', not {name!r}.")
        if len(operators) < 2:
            raise TenasError(f"The space {name} needs at least two operators to choose from.")
        for operator in operators:
            if not isinstance(operator, str) or NAME.fullmatch(operator) is None:
                raise TenasError(f"An operator's name is letters, digits, '_' and '.', not {operator!r} (space {name}).")
        self.name = name
        self.operators = tuple(operators)
        self.factories = MappingProxyType(dict(operators))
        self.trained = MappingProxyType(dict(trained))

    def operation(self, name: str, inputs: int, outputs: int, stride: int) -> nn.Module | None:
        from torch import nn

        made = self.factories[name](inputs, outputs, stride)
        if made is not None and not isinstance(made, nn.Module):
            raise TenasError(f"The factory of the operator {name!r} of {self.name} gave a {type(made).__name__}, not a module.")
        return made


class CellSpace(_FromFactories):
    """A space of cells: every edge chooses one of ``operators``, a node is the sum of its edges.

    ``operators``: name -> factory. ``nodes``: with the inputs; each node after them reads all earlier ones, unless ``edges`` says
    otherwise, as pairs (target, source). With ``inputs`` 1 a cell maps (n, C, h, w) to the same and stands in the skeleton of
    NAS-Bench-201: stem, three stages of cells with residual blocks of stride 2 between them, classifier; factories are asked
    for stride 1 alone. With ``inputs`` 2 it reads the two cells before it and stands in DARTS's skeleton, with a reduction
    cell where ``cell_types`` has a second name; factories are also asked for stride 2.

    ``output``: nodes whose concatenation is the output (DARTS); by default the last node. ``edges_of_a_node``: incoming edges
    that a node of a genotype keeps. ``channels`` and ``cells``: of the network that is trained in the end (cells per stage, or
    in all with ``inputs`` 2). Raises TenasError for what is no cell.
    """

    def __init__(
        self,
        name: str,
        operators: Mapping[str, Factory],
        *,
        nodes: int = 4,
        inputs: int = 1,
        edges: Sequence[tuple[int, int]] | None = None,
        cell_types: Sequence[str] = ("cell",),
        output: Sequence[int] = (),
        edges_of_a_node: int | None = None,
        channels: int = 16,
        cells: int | None = None,
    ) -> None:
        super().__init__(name, operators, {"channels": channels, "cells": cells or (5 if inputs == 1 else 20)})
        if inputs not in (1, 2) or nodes <= inputs:
            raise TenasError(f"A cell of {name} has 1 or 2 inputs and at least one more node, not {inputs} and {nodes}.")
        if inputs == 2 and not output:
            output = range(inputs, nodes)
        if inputs == 1 and (output or len(cell_types) != 1):
            raise TenasError(f"A cell of {name} with one input has one cell type, and its last node for output.")
        if not 1 <= len(cell_types) <= 2:
            raise TenasError(f"{name} has {len(cell_types)} cell types; 1 or 2 (normal, reduction) can be built.")
        self.inputs, self.nodes, self.cell_types, self.output = inputs, nodes, tuple(cell_types), tuple(output)
        pairs = [(t, s) for t in range(inputs, nodes) for s in range(t)] if edges is None else edges
        self.edges = tuple(sorted(Edge(target, source) for target, source in pairs))
        for edge in self.edges:
            if not inputs <= edge.target < nodes or not 0 <= edge.source < edge.target:
                raise TenasError(
                    f"{name} cannot have an edge {edge.target}<-{edge.source}: edges go from earlier to later nodes."
                )
        if len(set(self.edges)) < len(self.edges) or {edge.target for edge in self.edges} != set(range(inputs, nodes)):
            raise TenasError(f"Each node of {name} after its inputs needs edges, each of them once.")
        self.edges_of_a_node = edges_of_a_node
        self.networks = "tenas.networks.single" if inputs == 1 else "tenas.networks.darts"


@dataclass(frozen=True)
class Layer:
    """A place in a chain. ``width``: channels, as a multiple of the network's. ``stride``: 1 or 2.

    ``operators``: those that the layer can choose from; by default all. An identity, say, only fits where neither
    width nor size changes.
    """

    width: float = 1.0
    stride: int = 1
    operators: tuple[str, ...] | None = None


class ChainSpace(_FromFactories):
    """A chain of layers that each choose an operator: kernel size, expansion, skip.

    The text of a genotype is its operators joined by ``-``. The network: a stem (3x3 convolution, batch normalisation), the
    layers, BN-ReLU, global average pooling, a linear classifier. ``channels`` of the network times a layer's ``width``, at
    least 1, are its channels. ``cells``: how often a layer is repeated, with its stride in the first (depth multiplier).
    """

    cell_types = ("chain",)
    inputs = 1
    networks = "tenas.networks.chain"

    def __init__(
        self, name: str, operators: Mapping[str, Factory], layers: Sequence[Layer], *, channels: int = 16, cells: int = 1
    ) -> None:
        super().__init__(name, operators, {"channels": channels, "cells": cells})
        if not layers:
            raise TenasError(f"The chain {name} needs layers.")
        for place, layer in enumerate(layers, start=1):
            for operator in layer.operators or ():
                if operator not in self.operators:
                    raise TenasError(f"Layer {place}: {one_of(f'operator of {name}', operator, self.operators)}")
            if layer.operators == ():
                raise TenasError(f"Layer {place} of {name} has no operator to choose.")
        self.layers = tuple(layers)
        self.nodes = len(layers) + 1
        self.edges = tuple(Edge(place + 1, place) for place in range(len(layers)))

    def choices(self, cell: str, edge: int) -> tuple[str, ...]:
        allowed = self.layers[edge].operators
        return self.operators if allowed is None else tuple(name for name in self.operators if name in allowed)

    def parse(self, text: str) -> Genotype:
        operators = text.strip().split("-")
        if len(operators) != len(self.layers):
            raise WrongFormError(f"{text!r} has {len(operators)} layers; {self.name} has {len(self.layers)}, joined by '-'.")
        genotype = self._genotype([(Choice(*e, o) for e, o in zip(self.edges, operators, strict=True))], text)
        for place, operator in enumerate(operators):
            if operator not in self.choices("chain", place):
                raise TenasError(f"Layer {place + 1} of {self.name} cannot be {operator!r}, in the genotype {text!r}.")
        return genotype

    def text(self, genotype: Genotype) -> str:
        return "-".join(choice.operator for choice in genotype.cells[0])

    def channels_of(self, place: int, channels: int) -> int:
        """The channels of a layer of a network of ``channels``."""
        return max(1, round(channels * self.layers[place].width))
