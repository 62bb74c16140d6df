"""The networks of DARTS (Liu, Simonyan, Yang, ICLR 2019): operators, the cell, three skeletons.

The ReLU at the start of an operator is computed by the cell, once per node, and the ReLU at the start of a cell by the skeleton,
once per cell: all readers of a node, or of a cell's output, share the same rectified values.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu

from tenas.errors import TenasError
from tenas.networks.edge import Concatenate, Edge, average
from tenas.spaces.base import Mask, Space


class ConvBN(nn.Sequential):
    """1x1 convolution and batch normalisation of rectified input."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__(nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels))


class SeparableConv(nn.Sequential):
    """Depthwise convolution, 1x1 convolution, batch normalisation, of rectified input."""

    reads_rectified = True

    def __init__(self, channels: int, kernel: int, stride: int, dilation: int = 1) -> None:
        super().__init__(
            nn.Conv2d(
                channels,
                channels,
                kernel,
                stride=stride,
                padding=dilation * (kernel // 2),
                dilation=dilation,
                groups=channels,
                bias=False,
            ),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )


class DoubleSeparableConv(nn.Module):
    """The space's sep_conv: two separable convolutions, the stride in the first."""

    reads_rectified = True

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.first = SeparableConv(channels, kernel, stride)
        self.second = SeparableConv(channels, kernel, 1)

    def forward(self, x: Tensor) -> Tensor:
        reduced: Tensor = self.second(relu(self.first(x)))
        return reduced


class FactorisedReduce(nn.Module):
    """Halve height and width (rounded up) of rectified input: half of the channels read the even pixels, half the odd ones.

    (n, inputs, h, w) to (n, channels, (h + 1) // 2, (w + 1) // 2). If the number of channels is odd, the odd pixels get one more;
    a single channel reads odd pixels only. If the size is odd, the missing last row and column of odd pixels are zeros.
    """

    reads_rectified = True

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        even = channels // 2
        # A convolution to no channels cannot be initialised.
        self.even = nn.Conv2d(inputs, even, 1, stride=2, bias=False) if even else None
        self.odd = nn.Conv2d(inputs, channels - even, 1, stride=2, bias=False)
        self.join = Concatenate()
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        shifted = x if height % 2 == width % 2 == 0 else pad(x, (0, width % 2, 0, height % 2))
        reduced = self.odd(shifted[:, :, 1:, 1:])
        if self.even is not None:
            reduced = self.join((self.even(x), reduced))
        normalised: Tensor = self.bn(reduced)
        return normalised


class Identity(nn.Identity):
    """The space's skip_connect with stride 1."""

    reads_rectified = False


class AvgPool(nn.AvgPool2d):
    """The space's avg_pool_3x3."""

    reads_rectified = False

    def __init__(self, stride: int) -> None:
        super().__init__(3, stride=stride, padding=1, count_include_pad=False)


class MaxPool(nn.MaxPool2d):
    """The space's max_pool_3x3."""

    reads_rectified = False

    def __init__(self, stride: int) -> None:
        super().__init__(3, stride=stride, padding=1)


def operator(name: str, inputs: int, channels: int, stride: int) -> nn.Module | None:
    """The module of an operator, which keeps the number of channels; ``none`` has no module.

    Poolings are not followed by batch normalisation: as in the networks that DARTS trains, and in TE-NAS's search; DARTS's own
    search network has one.
    """
    match name:
        case "none":
            return None
        case "skip_connect":
            return Identity() if stride == 1 else FactorisedReduce(channels, channels)
        case "sep_conv_3x3":
            return DoubleSeparableConv(channels, 3, stride)
        case "sep_conv_5x5":
            return DoubleSeparableConv(channels, 5, stride)
        case "dil_conv_3x3":
            return SeparableConv(channels, 3, stride, dilation=2)
        case "dil_conv_5x5":
            return SeparableConv(channels, 5, stride, dilation=2)
        case "avg_pool_3x3":
            return AvgPool(stride)
        case "max_pool_3x3":
            return MaxPool(stride)
    raise AssertionError(f"operator {name} has no module")


class Cell(nn.Module):
    """A cell: the rectified outputs of the previous two to (n, 4 * channels, h, w), with half the height and width if it reduces.

    An edge is the average of its active operators, a node the sum of its edges, the output the concatenation of the
    nodes. ``operators``: the operators that each edge is built with: all of them in a supernet, so that its weights do
    not depend on the mask; the chosen ones in a discrete network.

    ``inputs``: channels of the two inputs. ``halved``: the second of them has half the height and width of the first.
    """

    def __init__(
        self,
        space: Space,
        operators: Sequence[Sequence[str]],
        channels: int,
        inputs: tuple[int, int],
        *,
        reduction: bool,
        halved: bool,
    ) -> None:
        super().__init__()
        self.space = space
        self.cell_type = space.cell_types[-1 if reduction else 0]
        self.stride = 2 if reduction else 1
        self.preprocess = nn.ModuleList(
            [(FactorisedReduce if halved else ConvBN)(inputs[0], channels), ConvBN(inputs[1], channels)]
        )
        self.edges = nn.ModuleList(
            Edge(space, (self.cell_type, index), names, channels, channels, self.stride if edge.source < space.inputs else 1)
            for index, (edge, names) in enumerate(zip(space.edges, operators, strict=True))
        )
        self.join = Concatenate()
        self.active: list[list[nn.Module | None]] = []

    def set_mask(self, mask: Mask) -> None:
        edges = [edge for edge in self.edges if isinstance(edge, Edge)]
        self.active = [edge.chosen(mask.operators(self.cell_type, index)) for index, edge in enumerate(edges)]

    def forward(self, before: Tensor, now: Tensor, drop_probability: Tensor | None = None) -> Tensor:
        nodes = [self.preprocess[0](before), self.preprocess[1](now)]
        rectified: dict[int, Tensor] = {}
        for target in range(self.space.inputs, self.space.nodes):
            total = None
            for (edge_target, source), operators in zip(self.space.edges, self.active, strict=True):
                if edge_target != target:
                    continue
                edge = average(operators, source, nodes, rectified, drop_probability)
                if edge is not None:
                    total = edge if total is None else total + edge
            if total is None:
                total = torch.zeros_like(nodes[0][:, :, :: self.stride, :: self.stride])
            nodes.append(total)
        joined: Tensor = self.join([nodes[node] for node in self.space.output])
        return joined


def reductions(cells: int) -> tuple[int, int]:
    """Indices of the reduction cells of a network: after a third and after two thirds of the cells, as in DARTS.

    The first cell is always normal: 2 cells are a normal and a reduction cell, TE-NAS's search network.
    """
    return max(1, cells // 3), max(2, 2 * cells // 3)


class CellStack(nn.Module):
    """A sequence of cells, each of which reads the previous two; a reduction cell doubles the channels.

    ``operators``: of the edges of the normal cell, then of the reduction cell. ``channels``: of a node of the first
    cell. ``inputs``: channels of the two inputs. ``halved``: the second of them has half the height and width of the first.
    """

    def __init__(
        self,
        space: Space,
        operators: Sequence[Sequence[str]],
        channels: int,
        cells: int,
        inputs: tuple[int, int],
        *,
        halved: bool = False,
    ) -> None:
        super().__init__()
        edges = len(space.edges)
        self.reductions = reductions(cells)
        self.cells = nn.ModuleList()
        for index in range(cells):
            reduction = index in self.reductions
            chosen = operators[-edges:] if reduction else operators[:edges]
            channels *= 2 if reduction else 1
            self.cells.append(Cell(space, chosen, channels, inputs, reduction=reduction, halved=halved))
            inputs, halved = (inputs[1], len(space.output) * channels), reduction
        self.channels = inputs[1]

    def set_mask(self, mask: Mask) -> None:
        for cell in self.cells:
            if isinstance(cell, Cell):
                cell.set_mask(mask)

    def forward(self, before: Tensor, now: Tensor, drop_probability: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The outputs of the last cell and of the second reduction cell, None without one. Inputs are rectified."""
        second = None
        for index, cell in enumerate(self.cells):
            out = cell(before, now, drop_probability)
            if index == self.reductions[1]:
                second = out
            if index + 1 < len(self.cells):
                before, now = now, relu(out)
        return out, second


class Cells(nn.Module):
    """TE-NAS's search network without stem and classifier: images (n, channels, h, w) to features; cells, then BN-ReLU.

    The released code counts linear regions with ``cells`` = 2: a normal cell with C channels, a reduction cell with 2C,
    to (n, 8 * C, h/2, w/2).
    """

    def __init__(self, space: Space, operators: Sequence[Sequence[str]], channels: int, cells: int = 2) -> None:
        super().__init__()
        self.stack = CellStack(space, operators, channels, cells, (channels, channels))
        self.bn = nn.BatchNorm2d(self.stack.channels)

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.stack.cells]

    def set_mask(self, mask: Mask) -> None:
        self.stack.set_mask(mask)

    def forward(self, images: Tensor) -> Tensor:
        rectified = relu(images)
        features, _ = self.stack(rectified, rectified)
        return relu(self.bn(features))


class SearchSkeleton(nn.Module):
    """TE-NAS's search network: a stem as wide as a node, cells, BN-ReLU, global average pooling, a linear classifier.

    ``channels``: of a node of the first cell (C). ``cells``: their number. The released code has C = 1 and 2 cells.
    """

    def __init__(self, space: Space, operators: Sequence[Sequence[str]], *, channels: int, cells: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.cells = Cells(space, operators, channels, cells)
        self.classifier = nn.Linear(self.cells.stack.channels, classes)

    @property
    def blocks(self) -> list[nn.Module]:
        return [self.stem, *self.cells.blocks]

    def set_mask(self, mask: Mask) -> None:
        self.cells.set_mask(mask)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.cells(self.stem(images)).mean((2, 3)))
        return logits


class AuxiliaryHead(nn.Module):
    """DARTS's auxiliary classifier: rectified features (n, inputs, h, w) to logits.

    ``stride``: of its pooling, 3 for the 8x8 features of CIFAR and 2 for the 7x7 of ImageNet, which leaves 2x2; larger images
    leave more, which are averaged. DARTS's ImageNet form has no second normalisation.
    """

    def __init__(self, inputs: int, classes: int, stride: int, *, second_norm: bool) -> None:
        super().__init__()
        self.smallest = 5 + stride
        self.pool = nn.AvgPool2d(5, stride=stride)
        self.conv_a = nn.Conv2d(inputs, 128, 1, bias=False)
        self.bn_a = nn.BatchNorm2d(128)
        self.conv_b = nn.Conv2d(128, 768, 2, bias=False)
        self.bn_b = nn.BatchNorm2d(768) if second_norm else nn.Identity()
        self.classifier = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < self.smallest:
            raise TenasError(
                f"The auxiliary head needs features of {self.smallest}x{self.smallest} at least, and these images leave "
                f"{x.shape[2]}x{x.shape[3]}: use larger images or no auxiliary head."
            )
        x = relu(self.bn_a(self.conv_a(self.pool(x))))
        x = relu(self.bn_b(self.conv_b(x)))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


class DiscreteSkeleton(nn.Module):
    """DARTS's network of a genotype: stem, cells, global average pooling, a linear classifier.

    ``channels``: of a node of the first cell (C). ``cells``: their number. ``stem``: ``cifar`` keeps height and width and is
    three times as wide as a node; ``imagenet`` halves them three times. ``auxiliary``: add a second classifier, which reads the
    second reduction cell; in training mode the network then returns (logits, auxiliary logits), in evaluation mode logits.
    """

    drop_probability: Tensor

    def __init__(
        self,
        space: Space,
        operators: Sequence[Sequence[str]],
        *,
        channels: int,
        cells: int,
        classes: int,
        auxiliary: bool = False,
        stem: str = "cifar",
    ) -> None:
        super().__init__()
        if stem == "imagenet":
            first = (channels + 1) // 2
            self.stem = nn.Sequential(
                nn.Conv2d(3, first, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(first),
                nn.ReLU(),
                nn.Conv2d(first, channels, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(channels),
            )
            self.second_stem: nn.Sequential | None = nn.Sequential(
                nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels)
            )
            width = channels
        else:
            width = 3 * channels
            self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
            self.second_stem = None
        self.stack = CellStack(space, operators, channels, cells, (width, width), halved=stem == "imagenet")
        self.auxiliary: AuxiliaryHead | None = None
        if auxiliary:
            if cells < 3:
                raise TenasError(
                    f"The auxiliary head reads the second reduction cell, and a network of {cells} cells has none: "
                    "use at least 3."
                )
            # The channels double at each reduction cell, and do not change after the second one.
            self.auxiliary = AuxiliaryHead(
                self.stack.channels, classes, 2 if stem == "imagenet" else 3, second_norm=stem == "cifar"
            )
        self.classifier = nn.Linear(self.stack.channels, classes)
        self.drops_paths = False
        # A tensor: torch.compile would recompile for each value of a Python number.
        self.register_buffer("drop_probability", torch.zeros(()), persistent=False)

    @property
    def blocks(self) -> list[nn.Module]:
        stems = [self.stem] if self.second_stem is None else [self.stem, self.second_stem]
        return [*stems, *self.stack.cells]

    def set_mask(self, mask: Mask) -> None:
        self.stack.set_mask(mask)

    def set_drop_path(self, probability: float) -> None:
        self.drops_paths = probability > 0
        self.drop_probability.fill_(probability)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        before = now = relu(self.stem(images))
        if self.second_stem is not None:
            now = relu(self.second_stem(before))
        drop_probability = self.drop_probability if self.training and self.drops_paths else None
        features, second = self.stack(before, now, drop_probability)
        logits: Tensor = self.classifier(features.mean((2, 3)))
        if self.auxiliary is None or not self.training:
            return logits
        return logits, self.auxiliary(relu(second))


def supernet(space: Space, operators: Sequence[Sequence[str]], *, channels: int, cells: int, classes: int) -> SearchSkeleton:
    """TE-NAS's search network, with every operator on every edge."""
    return SearchSkeleton(space, operators, channels=channels, cells=cells, classes=classes)


def cells(space: Space, operators: Sequence[Sequence[str]], *, channels: int) -> Cells:
    """Only a normal and a reduction cell, on which TE-NAS's released code counts linear regions."""
    return Cells(space, operators, channels)


def network(
    space: Space,
    operators: Sequence[Sequence[str]],
    *,
    channels: int,
    cells: int,
    classes: int,
    auxiliary: bool = False,
    stem: str = "cifar",
) -> DiscreteSkeleton:
    """The discrete network of a genotype."""
    return DiscreteSkeleton(space, operators, channels=channels, cells=cells, classes=classes, auxiliary=auxiliary, stem=stem)
