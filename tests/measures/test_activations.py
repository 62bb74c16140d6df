"""SWAP and NEAR against loops over units and singular values."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, relu

from tenas.errors import TenasError
from tenas.measures import near, swap
from tenas.networks import Network, Supernet, initialise

ARCH = "|nor_conv_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|avg_pool_3x3~0|skip_connect~1|nor_conv_3x3~2|"
DEAD = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"


def images(n: int, side: int = 6) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def small_cnn(inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace), nn.Conv2d(4, 5, 3, stride=2), nn.BatchNorm2d(5),
        nn.ReLU(inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 7), nn.Tanh(),
    ).double()  # fmt: skip


def outputs_of(network: nn.Sequential, x: torch.Tensor, kinds: tuple) -> list[np.ndarray]:
    found = []
    for layer in network:
        x = layer(x)
        if isinstance(layer, kinds):
            found.append(x.detach().numpy().copy())
    return found


# --- SWAP


@pytest.mark.parametrize("n", [1, 3, 9, 17])
def test_swap_counts_what_units_do_over_the_images(n):
    patterns = set()
    for output in outputs_of(small_cnn(), images(n), (nn.ReLU,)):
        for unit in np.ndindex(output.shape[1:]):
            patterns.add(tuple(output[(i, *unit)] > 0 for i in range(n)))
    assert swap(small_cnn(), images(n)) == len(patterns) <= 2**n
    assert swap(small_cnn(inplace=True), images(n)) == len(patterns)


def test_swap_sees_functions_and_each_unit_once():
    """A unit that is rectified twice, or a copy of another, adds no pattern."""

    class Twice(nn.Module):
        def forward(self, x):
            return torch.cat([relu(x), relu(x), relu(relu(x) - 0)], 1)

    x = torch.tensor([[1.0, -1.0, 2.0, 0.0], [1.0, 1.0, -2.0, 0.0]])
    assert swap(Twice(), x) == 4  # (1, 1), (0, 1), (1, 0), (0, 0)


def test_swap_depends_on_no_order_and_no_copies_of_images():
    network, x = small_cnn().eval(), images(8)
    assert swap(network, x[[5, 1, 7, 0, 2, 6, 4, 3]]) == swap(network, x) == swap(network, torch.cat([x, x]))


def test_swap_goes_on_where_the_linear_regions_are_saturated():
    values = []
    for channels in (2, 4, 8):
        network = Network(ARCH, channels=channels, cells=1, classes=4)
        initialise(network, "kaiming_fan_in", 0)
        values.append(swap(network, images(16, 16).float()))
    assert 16 < values[0] < values[1] < values[2]


def test_swap_of_degenerate_networks():
    assert swap(nn.Flatten(), images(3)) == 0
    dead = swap(Network(DEAD, channels=4, cells=1, classes=4), images(3).float())
    assert 1 <= dead <= 8
    with pytest.raises(TenasError, match="empty batch"):
        swap(nn.Flatten(), images(3)[:0])


# --- NEAR


def effective_rank(output: np.ndarray) -> float:
    rows = np.stack([output[(i, slice(None), *p)] for i in range(len(output)) for p in np.ndindex(output.shape[2:])])
    values = np.linalg.svd(rows, compute_uv=False)
    shares = values / values.sum()
    return float(np.exp(-sum(p * np.log(p) for p in shares if p > 0)))


@pytest.mark.parametrize("inplace", [False, True])
def test_near_by_singular_values(inplace):
    expected = sum(map(effective_rank, outputs_of(small_cnn(), images(4), (nn.Conv2d, nn.Linear, nn.ReLU, nn.Tanh))))
    assert near(small_cnn(inplace), images(4)) == pytest.approx(expected, rel=1e-7)


def test_near_of_known_ranks():
    """Orthogonal rows of equal length have full rank; one direction has rank 1, zeros and what overflows 0."""
    network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 3, bias=False)).double()
    network[0].weight.data = torch.linalg.qr(torch.randn(4, 4).double()).Q
    network[1].weight.data = torch.outer(torch.tensor([1.0, 2.0, -3.0]), torch.tensor([1.0, 0.0, 1.0, 1.0])).double()
    x = torch.eye(4).double()
    assert near(network, x) == pytest.approx(4 + 1)
    assert near(network, 0 * x) == 0
    network[1].weight.data.fill_(1e308)
    assert near(network, x) == pytest.approx(4)


def test_near_sees_activation_functions_and_few_images():
    class Functions(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 6).double()

        def forward(self, x):
            return gelu(self.linear(x))

    torch.manual_seed(0)
    network, x = Functions(), torch.randn(2, 3).double()  # fewer images than channels
    z = network.linear(x).detach()
    expected = effective_rank(z.numpy()) + effective_rank(gelu(z).numpy())
    assert near(network, x) == pytest.approx(expected)
    assert near(network, x.flip(0)) == pytest.approx(expected)


def test_near_does_not_depend_on_the_scale_or_the_order_of_images():
    network, x = small_cnn()[:1], images(5)
    network[0].bias.data.zero_()
    assert near(network, x) == pytest.approx(near(network, 1000 * x[[3, 1, 0, 4, 2]]))


def test_near_is_bounded_by_the_channels():
    network = Supernet("nas-bench-201", channels=4, cells=1, classes=4)
    initialise(network, "kaiming_fan_in", 0)
    value = near(network, images(4, 8).float())
    # 20 convolutions and ReLUs at most per cell, of 4, 8 and 16 channels, and what is around them.
    assert 1 < value < 20 * (4 + 8 + 16) + 200


def test_near_of_degenerate_networks():
    assert near(Network(DEAD, channels=4, cells=1, classes=4), images(3).float()) < 20
    with pytest.raises(TenasError, match="needs a network with a convolution"):
        near(nn.Flatten(), images(3))
    with pytest.raises(TenasError, match="empty batch"):
        near(nn.Flatten(), images(3)[:0])
