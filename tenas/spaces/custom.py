"""User-defined spaces: cells whose edges choose an operator, and chains of layers that each choose one. No torch.

Both are made from factories of operators; the package provides supernet, discrete networks, sampling, drawing and texts::

    from torch import nn
    from tenas.spaces import CellSpace

    def conv(kernel):
        return lambda inputs, outputs, stride: nn.Sequential(
            nn.ReLU(), nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs))

    SPACE = CellSpace("mine", {"skip": lambda inputs, outputs, stride: nn.Identity(), "conv3": conv(3), "conv5": conv(5)})

A configuration then says ``space: path/to/file.py:SPACE``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tenas.errors import TenasError, one_of, reason
from tenas.spaces.base import Choice, Edge, Genotype, Space, WrongFormError

if TYPE_CHECKING:
    from torch import nn

# (channels in, channels out, stride) -> a module, or None for an operator that adds nothing.
Factory = Callable[[int, int, int], Any]

NAME = re.compile(r"[A-Za-z0-9_.]+")
SIDE = 8  # side of the features on which the shapes of operators are checked


class _FromFactories(Space):
    def __init__(self, name: str, operators: Mapping[str, Factory], trained: Mapping[str, int], networks: Any) -> None:
        if not isinstance(name, str) or re.fullmatch(r"[A-Za-z0-9_.-]+", name) is None:
            raise TenasError(f"A space's name is letters, digits, '_', '.' and '-', not {name!r}.")
        if len(operators) < 2:
            raise TenasError(f"The space {name} needs at least two operators to choose from.")
        for operator in operators:
            if not isinstance(operator, str) or NAME.fullmatch(operator) is None:
                raise TenasError(f"An operator's name is letters, digits, '_' and '.', not {operator!r} (space {name}).")
        for key, value in trained.items():
            if type(value) is not int or value < 1:
                raise TenasError(f"The space {name} has {value!r} for {key!r}; it must be a whole number of at least 1.")
        self.name = name
        self.operators = tuple(operators)
        self.factories = MappingProxyType(dict(operators))
        self.trained = MappingProxyType(dict(trained))
        self.networks = networks
        self._seen: set[tuple[str, int, int, int]] = set()

    def operation(self, name: str, inputs: int, outputs: int, stride: int) -> nn.Module | None:
        """Make the module of an operator by its factory. Raises TenasError for anything else, or for a wrong output shape."""
        from torch import nn

        made = self.factories[name](inputs, outputs, stride)
        if made is None:
            return None
        if not isinstance(made, nn.Module):
            raise TenasError(f"The factory of the operator {name!r} of {self.name} gave a {type(made).__name__}, not a module.")
        if (name, inputs, outputs, stride) not in self._seen:
            self._check_shape(made, name, inputs, outputs, stride)
            self._seen.add((name, inputs, outputs, stride))
        return made

    def _check_shape(self, made: nn.Module, name: str, inputs: int, outputs: int, stride: int) -> None:
        import torch
        from torch.nn.parameter import UninitializedParameter

        given, wanted = (2, inputs, SIDE, SIDE), (2, outputs, SIDE // stride, SIDE // stride)
        asked = f"The operator {name!r} of {self.name}, made for {inputs} to {outputs} channels with stride {stride},"
        if lazy := next((key for key, value in made.named_parameters() if isinstance(value, UninitializedParameter)), None):
            raise TenasError(f"{asked} has no values for {lazy} before it is used: give its module the number of channels.")
        # Another one, to be tried on the meta device: not every module can be copied.
        with torch.random.fork_rng(devices=[]):
            other = self.factories[name](inputs, outputs, stride)
        if not isinstance(other, torch.nn.Module):
            raise TenasError(f"{asked} is a module at one time and none at another.")
        if {id(module) for module in made.modules()} & {id(module) for module in other.modules()}:
            raise TenasError(f"{asked} has a module that its factory gives twice: it must make a new one each time.")
        try:
            found, is_written = _shape_of(other, given)
        except Exception as error:
            said = reason(error)
            if next((parameter.is_meta for parameter in other.parameters()), False) and "meta" in said.lower():
                raise TenasError(f"{asked} cannot run without values, and costs are counted without: {said}.") from error
            raise TenasError(f"{asked} cannot read features of {given}: {said}.") from error
        if is_written:
            raise TenasError(f"{asked} writes into its input, which others read too: use inplace=False, or copy it first.")
        if found != wanted:
            raise TenasError(f"{asked} gives {found} for {given}, not {wanted}: its factory must respect channels and stride.")


def _shape_of(module: nn.Module, given: tuple[int, ...]) -> tuple[object, bool]:
    """Output shape of a module for features of a shape, and whether it writes into them. The module is spent.

    Without arithmetic (meta device) where possible.
    """
    import torch

    def on(device: str) -> tuple[object, bool]:
        features = torch.zeros(given, device=device)
        before = features._version
        with torch.no_grad():
            found = module(features)
        return tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__, features._version != before

    own = next((parameter.device.type for parameter in module.parameters()), "cpu")
    state = {name: value.clone() for name, value in module.state_dict().items()}
    try:
        module.to("meta")
        return on("meta")
    except Exception:
        # Not every user-defined operator can run on the meta device.
        if own == "meta":
            raise
        module.to_empty(device=own).load_state_dict(state)
        return on(own)


class CellSpace(_FromFactories):
    """A space of cells: each edge chooses one of ``operators``, a node is the sum of its edges.

    ``operators``: name -> factory. ``nodes``: their number, including the inputs. ``edges``: pairs (target, source); by default
    each node after the inputs reads all earlier ones. With ``inputs`` 1, a cell maps (n, C, h, w) to the same shape, in the
    skeleton of NAS-Bench-201: stem, three stages of cells with residual blocks of stride 2 between them, classifier; factories
    are called with stride 1 only. With ``inputs`` 2, a cell reads the previous two cells, in DARTS's skeleton, which has
    reduction cells if ``cell_types`` has a second name; factories are also called with stride 2.

    ``output``: nodes whose concatenation is the output (DARTS); by default the last node. ``edges_of_a_node``: number of
    incoming edges that a node of a genotype keeps. ``channels`` and ``cells``: of the finally trained network (cells per stage,
    or in all with ``inputs`` 2). ``choices``: edge (target, source) -> its candidate operators; by default all. ``networks``:
    builder of another skeleton (tenas.networks.builders): an object, a module, or the name of one.
    Raises TenasError for an invalid cell.
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
        choices: Mapping[tuple[int, int], Sequence[str]] | None = None,
        networks: Any = None,
    ) -> None:
        shape = {"channels": channels, "cells": cells or (5 if inputs == 1 else 20)}
        super().__init__(name, operators, shape, networks or f"tenas.networks.{'single' if inputs == 1 else 'darts'}")
        if inputs not in (1, 2) or nodes <= inputs:
            raise TenasError(f"A cell of {name} has 1 or 2 inputs and at least one more node, not {inputs} and {nodes}.")
        if inputs == 2 and not output:
            output = range(inputs, nodes)
        if inputs == 1 and (output or len(cell_types) != 1):
            raise TenasError(f"A cell of {name} with one input has one cell type, and its last node for output.")
        if not 1 <= len(set(cell_types)) == len(cell_types) <= 2:
            raise TenasError(f"{name} has the cell types {', '.join(cell_types)}; at most 2 (normal, reduction) can be built.")
        if edges_of_a_node is not None and edges_of_a_node < 1:
            raise TenasError(f"A node of {name} keeps at least one edge, not {edges_of_a_node}.")
        if inputs == 1 and networks is None:
            self.side_step = 4  # as in NAS-Bench-201, for the same skeleton
        if inputs == 2 and networks is None:
            self.stems, self.auxiliary, self.least_cells = ("cifar", "imagenet"), True, len(cell_types)
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
        self._choices: dict[tuple[int, int], tuple[str, ...]] = {}
        for pair, allowed in (choices or {}).items():
            if pair not in self.edges:
                raise TenasError(f"'choices' names the edge {pair[0]}<-{pair[1]}, which {name} does not have.")
            self._choices[pair] = _allowed(allowed, self, f"The edge {pair[0]}<-{pair[1]}")

    def choices(self, cell: str, edge: int) -> tuple[str, ...]:
        return self._choices.get(self.edges[edge], self.operators)


def _allowed(names: Sequence[str], space: Space, where: str) -> tuple[str, ...]:
    """Candidate operators of an edge or layer, in the space's order. Raises TenasError for unknown operators, and for none."""
    for operator in names:
        if operator not in space.operators:
            raise TenasError(f"{where}: {one_of(f'operator of {space.name}', operator, space.operators)}")
    if not names:
        raise TenasError(f"{where} of {space.name} needs at least one operator to choose from.")
    return tuple(name for name in space.operators if name in names)


@dataclass(frozen=True)
class Layer:
    """A place in a chain. ``width``: channels, as a multiple of the network's. ``stride``: 1 or 2.

    ``operators``: candidates of the layer; by default all. An identity, for example, fits only if neither width nor size
    changes.
    """

    width: float = 1.0
    stride: int = 1
    operators: tuple[str, ...] | None = None


class ChainSpace(_FromFactories):
    """A chain of layers that each choose an operator: kernel size, expansion, skip.

    The text of a genotype is its operators joined by ``-``. The network: a stem (3x3 convolution, batch normalisation), the
    layers, BN-ReLU, global average pooling, a linear classifier. A layer has ``channels`` times its ``width`` channels, at least
    1. ``cells``: number of repeats of each layer, the first of which has its stride (depth multiplier).
    """

    cell_types = ("chain",)
    inputs = 1

    def __init__(
        self,
        name: str,
        operators: Mapping[str, Factory],
        layers: Sequence[Layer],
        *,
        channels: int = 16,
        cells: int = 1,
        networks: Any = "tenas.networks.chain",
    ) -> None:
        super().__init__(name, operators, {"channels": channels, "cells": cells}, networks)
        if not layers:
            raise TenasError(f"The chain {name} needs layers.")
        for place, layer in enumerate(layers, start=1):
            if layer.stride not in (1, 2) or not 0 < layer.width < math.inf:
                raise TenasError(
                    f"Layer {place} of {name} has the width {layer.width} and the stride {layer.stride}; a width is a number "
                    "above 0, a stride is 1 or 2."
                )
        self.layers = tuple(layers)
        self._choices = [
            self.operators if layer.operators is None else _allowed(layer.operators, self, f"Layer {place}")
            for place, layer in enumerate(layers, start=1)
        ]
        self.nodes = len(layers) + 1
        self.edges = tuple(Edge(place + 1, place) for place in range(len(layers)))

    def choices(self, cell: str, edge: int) -> tuple[str, ...]:
        return self._choices[edge]

    def operation(self, name: str, inputs: int, outputs: int, stride: int) -> nn.Module:
        made = super().operation(name, inputs, outputs, stride)
        if made is None:
            raise TenasError(f"The operator {name!r} of {self.name} adds nothing, which would cut the chain: use an identity.")
        return made

    def parse(self, text: str) -> Genotype:
        operators = text.strip().split("-")
        if len(operators) != len(self.layers):
            raise WrongFormError(f"{text!r} has {len(operators)} layers; {self.name} has {len(self.layers)}, joined by '-'.")
        for place, operator in enumerate(operators):
            if operator in self.operators and operator not in self.choices("chain", place):
                raise TenasError(f"Layer {place + 1} of {self.name} cannot be {operator!r}, in the genotype {text!r}.")
        return self._genotype([(Choice(*e, o) for e, o in zip(self.edges, operators, strict=True))], text)

    def text(self, genotype: Genotype) -> str:
        return "-".join(choice.operator for choice in genotype.cells[0])

    def channels_of(self, place: int, channels: int) -> int:
        """Number of channels of a layer, in a network of ``channels``."""
        return max(1, round(channels * self.layers[place].width))
