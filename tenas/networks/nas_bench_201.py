"""The operators of NAS-Bench-201 (Dong and Yang, ICLR 2020, section 2). Their skeleton is tenas.networks.single's."""

from torch import Tensor, nn

from tenas.networks.single import cells, network, supernet

__all__ = ["cells", "network", "operator", "supernet"]


class ConvBN(nn.Module):
    """Convolution and batch normalisation: what follows the ReLU in the space's "ReLU-Conv-BN".

    The ReLU itself is the cell's, once a node: every convolution that reads a node reads the same rectified node.
    """

    reads_rectified = True

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.bn(self.conv(x))
        return normalised


class Identity(nn.Identity):
    reads_rectified = False


class AvgPool(nn.AvgPool2d):
    reads_rectified = False

    def __init__(self) -> None:
        super().__init__(3, stride=1, padding=1, count_include_pad=False)


def operator(name: str, inputs: int, channels: int, stride: int) -> nn.Module | None:
    """The module of an operator, from as many channels to as many, with stride 1.

    ``none`` has none: it counts in the average of an edge and adds nothing to a node's sum.
    """
    match name:
        case "none":
            return None
        case "skip_connect":
            return Identity()
        case "nor_conv_1x1":
            return ConvBN(channels, 1)
        case "nor_conv_3x3":
            return ConvBN(channels, 3)
        case "avg_pool_3x3":
            return AvgPool()
    raise AssertionError(f"operator {name} has no module")
