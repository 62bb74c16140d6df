"""Networks of cells with one input, as in NAS-Bench-201 (Dong and Yang, ICLR 2020, section 2): cell and skeleton.

A space whose ``networks`` is this module builds its operators by ``operation``.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from tenas.networks.edge import Edge, average
from tenas.spaces.base import Mask, Space


class Cell(nn.Module):
    """A cell, (n, channels, h, w) to the same: an edge is the average of its active operators, a node the sum of its edges.

    ``operators``: the operators that each edge is built with: all of them in a supernet, so that its weights do not depend on
    the mask; the chosen one in a discrete network.
    """

    def __init__(self, space: Space, operators: Iterable[Iterable[str]], channels: int) -> None:
        super().__init__()
        self.space = space
        self.edges = nn.ModuleList(
            Edge(space, (space.cell_types[0], index), names, channels, channels, 1) for index, names in enumerate(operators)
        )
        self.active: list[list[nn.Module | None]] = []

    def set_mask(self, mask: Mask) -> None:
        (cell,) = self.space.cell_types
        edges = [edge for edge in self.edges if isinstance(edge, Edge)]
        self.active = [edge.chosen(mask.operators(cell, index)) for index, edge in enumerate(edges)]

    def incoming(self, target: int) -> Iterator[tuple[tuple[int, int], list[nn.Module | None]]]:
        """The edges into a node, each with its active operators."""
        return (pair for pair in zip(self.space.edges, self.active, strict=True) if pair[0].target == target)

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        rectified: dict[int, Tensor] = {}
        for target in range(1, self.space.nodes):
            total = None
            for (_, source), operators in self.incoming(target):
                edge = average(operators, source, nodes, rectified)
                if edge is not None:
                    total = edge if total is None else total + edge
            nodes.append(torch.zeros_like(x) if total is None else total)
        return nodes[-1]


class Cells(nn.Module):
    """One cell followed by BN-ReLU, (n, channels, h, w) to the same: the released code counts linear regions on it.

    Without the last ReLU, no edge into the last node could change the count.
    """

    def __init__(self, space: Space, operators: Iterable[Iterable[str]], channels: int) -> None:
        super().__init__()
        self.cell = Cell(space, operators, channels)
        self.bn = nn.BatchNorm2d(channels)

    @property
    def blocks(self) -> list[nn.Module]:
        return [self.cell]

    def set_mask(self, mask: Mask) -> None:
        self.cell.set_mask(mask)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.bn(self.cell(x)))


class ResidualBlock(nn.Module):
    """ResNet's basic block, ReLU before the convolution: (n, c, h, w) to (n, 2c, h/2, w/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_a = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.bn_a = nn.BatchNorm2d(2 * channels)
        self.conv_b = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, bias=False)
        self.bn_b = nn.BatchNorm2d(2 * channels)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels, 2 * channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn_a(self.conv_a(relu(x)))
        residual = self.bn_b(self.conv_b(relu(residual)))
        total: Tensor = self.shortcut(x) + residual
        return total


class Skeleton(nn.Module):
    """Stem, three stages of cells with residual blocks between, BN-ReLU, global average pooling, a linear classifier.

    ``cells``: number of cells per stage (N). ``channels``: of the first stage (C). The benchmark's networks have C = 16 and
    N = 5, TE-NAS's search network C = 3 and N = 1.
    """

    def __init__(self, space: Space, operators: Iterable[Iterable[str]], *, channels: int, cells: int, classes: int) -> None:
        super().__init__()
        operators = [tuple(names) for names in operators]
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        layers: list[nn.Module] = []
        for stage in range(3):
            if stage:
                layers.append(ResidualBlock(channels))
                channels *= 2
            layers += [Cell(space, operators, channels) for _ in range(cells)]
        self.layers = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)

    @property
    def blocks(self) -> list[nn.Module]:
        return [self.stem, *self.layers]

    def set_mask(self, mask: Mask) -> None:
        for layer in self.layers:
            if isinstance(layer, Cell):
                layer.set_mask(mask)

    def forward(self, images: Tensor) -> Tensor:
        features = relu(self.bn(self.layers(self.stem(images))))
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


def supernet(space: Space, operators: Sequence[Sequence[str]], *, channels: int, cells: int, classes: int) -> Skeleton:
    """TE-NAS's search network: the skeleton of the trained networks, smaller, with every operator on every edge."""
    return Skeleton(space, operators, channels=channels, cells=cells, classes=classes)


def cells(space: Space, operators: Sequence[Sequence[str]], *, channels: int) -> Cells:
    """Only the first cell, on which TE-NAS's released code counts linear regions."""
    return Cells(space, operators, channels)


def network(space: Space, operators: Sequence[Sequence[str]], *, channels: int, cells: int, classes: int) -> Skeleton:
    """The discrete network of a genotype."""
    return Skeleton(space, operators, channels=channels, cells=cells, classes=classes)
