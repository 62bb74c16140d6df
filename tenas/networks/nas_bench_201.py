"""The operators of NAS-Bench-201 (Dong and Yang, ICLR 2020, section 2). tenas.networks.single has their skeleton."""

from torch import Tensor, nn

from tenas.networks.single import cells, network, supernet

__all__ = ["cells", "network", "operator", "supernet"]


class ConvBN(nn.Module):
    """Convolution and batch normalisation: the part after the ReLU of the space's "ReLU-Conv-BN".

    The cell computes the ReLU, once per node: all convolutions that read a node share the rectified node.
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
    """The module of an operator, which keeps the number of channels and has stride 1.

    ``none`` has no module: it counts in the average of an edge and adds nothing to the sum of a node.
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
