"""Networks of chains of layers, with one choice of operator per layer."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

from tenas.networks.edge import Edge
from tenas.spaces.base import Mask
from tenas.spaces.custom import ChainSpace


class Chain(nn.Module):
    """The layers only: (n, inputs, h, w) to features. A layer is the average of its active operators.

    ``channels``: multiplied by a layer's ``width``. ``repeats``: copies of each layer, the first of which has its stride.
    """

    def __init__(self, space: ChainSpace, operators: Sequence[Sequence[str]], inputs: int, channels: int, repeats: int) -> None:
        super().__init__()
        self.space, self.layers = space, nn.ModuleList()
        self.places: list[int] = []
        for place, (layer, names) in enumerate(zip(space.layers, operators, strict=True)):
            for repeat in range(repeats):
                outputs = space.channels_of(place, channels)
                self.layers.append(
                    Edge(space, (space.cell_types[0], place), names, inputs, outputs, 1 if repeat else layer.stride)
                )
                self.places.append(place)
                inputs = outputs
        self.channels = inputs
        self.active: list[list[nn.Module]] = []

    def set_mask(self, mask: Mask) -> None:
        (cell,) = self.space.cell_types
        layers = [layer for layer in self.layers if isinstance(layer, Edge)]
        self.active = [
            [layer[name] for name in mask.operators(cell, place)] for place, layer in zip(self.places, layers, strict=True)
        ]

    def forward(self, x: Tensor) -> Tensor:
        for operators in self.active:
            total: Tensor = operators[0](x)
            for operator in operators[1:]:
                total = total + operator(x)
            x = total / len(operators) if len(operators) > 1 else total
        return x


class Features(nn.Module):
    """The layers followed by BN-ReLU, for linear regions: (n, channels, h, w) to features."""

    def __init__(self, space: ChainSpace, operators: Sequence[Sequence[str]], inputs: int, channels: int, repeats: int) -> None:
        super().__init__()
        self.chain = Chain(space, operators, inputs, channels, repeats)
        self.bn = nn.BatchNorm2d(self.chain.channels)

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.chain.layers]

    def set_mask(self, mask: Mask) -> None:
        self.chain.set_mask(mask)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.bn(self.chain(x)))


class Skeleton(nn.Module):
    """Stem, layers, BN-ReLU, global average pooling, a linear classifier: images (n, 3, h, w) to logits (n, classes)."""

    def __init__(self, space: ChainSpace, operators: Sequence[Sequence[str]], *, channels: int, cells: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.features = Features(space, operators, channels, channels, cells)
        self.classifier = nn.Linear(self.features.chain.channels, classes)

    @property
    def blocks(self) -> list[nn.Module]:
        return [self.stem, *self.features.blocks]

    def set_mask(self, mask: Mask) -> None:
        self.features.set_mask(mask)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(self.stem(images)).mean((2, 3)))
        return logits


def supernet(space: ChainSpace, operators: Sequence[Sequence[str]], *, channels: int, cells: int, classes: int) -> Skeleton:
    """The chain with every operator in every layer."""
    return Skeleton(space, operators, channels=channels, cells=cells, classes=classes)


def cells(space: ChainSpace, operators: Sequence[Sequence[str]], *, channels: int) -> Features:
    """The layers without stem and classifier, for inputs of ``channels``."""
    return Features(space, operators, channels, channels, 1)


def network(space: ChainSpace, operators: Sequence[Sequence[str]], *, channels: int, cells: int, classes: int) -> Skeleton:
    """The discrete network of a genotype."""
    return Skeleton(space, operators, channels=channels, cells=cells, classes=classes)
