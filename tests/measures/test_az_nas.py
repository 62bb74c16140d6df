"""AZ-NAS's measures against loops, full Jacobians and closed forms; what counts as a block."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn.functional import interpolate, relu

from benchmarks.az_nas import ranks, sum_of_log_ranks
from tenas.errors import TenasError
from tenas.measures import MEASURES, az_expressivity, az_nas_scores, az_progressivity, az_trainability
from tenas.measures.az_nas import SEED, blocks_of
from tenas.networks import Network, Supernet, SupernetCells, initialise

ARCH = "|nor_conv_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|avg_pool_3x3~0|skip_connect~1|nor_conv_3x3~2|"
DEAD = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
IDENTITY = "|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|"
DARTS = (
    "Genotype(normal=[('skip_connect', 0), ('sep_conv_3x3', 1), ('max_pool_3x3', 0), ('dil_conv_3x3', 2), "
    "('skip_connect', 1), ('none', 3), ('avg_pool_3x3', 0), ('skip_connect', 4)], normal_concat=range(2, 6), "
    "reduce=[('max_pool_3x3', 0), ('skip_connect', 1), ('skip_connect', 2), ('sep_conv_3x3', 1), ('avg_pool_3x3', 1), "
    "('skip_connect', 3), ('skip_connect', 2), ('max_pool_3x3', 0)], reduce_concat=range(2, 6))"
)
NAMES = ("az_expressivity", "az_progressivity", "az_trainability")


def images(n: int = 4, side: int = 6, channels: int = 3) -> torch.Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Chain(nn.Module):
    """Blocks one after another."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*blocks)
        self.blocks = list(blocks)

    def forward(self, x):
        return self.body(x)


def small_chain(inplace: bool = False) -> Chain:
    torch.manual_seed(0)
    return Chain(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)),
        nn.Sequential(nn.ReLU(inplace), nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5)),
        nn.Sequential(nn.ReLU(inplace), nn.Conv2d(5, 3, 3, padding=1, stride=2)),
        nn.Sequential(nn.ReLU(inplace), nn.Conv2d(3, 3, 1), nn.ReLU(inplace)),
    ).double()


# --- the same numbers by other ways


def entropy(features: np.ndarray) -> float:
    n, channels, *size = features.shape
    rows = [features[(i, slice(None), *p)] for i in range(n) for p in np.ndindex(*size)]
    mean = sum(rows) / len(rows)
    covariance = np.zeros((channels, channels))
    for row in rows:
        covariance += np.outer(row - mean, row - mean) / len(rows)
    values = np.linalg.svd(covariance, compute_uv=False)
    return -sum(p * math.log(p + 1e-8) for p in values / values.sum())


def cotangent(shape: torch.Size, block: int) -> torch.Tensor:
    """The draw is part of the definition: 0 or 1 from a generator of its own for each block."""
    bits = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(SEED + block))
    return bits.double() * 2 - 1


def trainability(function, x: torch.Tensor, block: int) -> float:
    """One block, by its whole Jacobian: (out, in) numbers, and sums over images, positions, channels one by one."""
    x = x.detach()
    output = function(x)
    g = cotangent(output.shape, block)
    jacobian = torch.autograd.functional.jacobian(function, x).reshape(output.numel(), x.numel())
    back = (g.reshape(-1) @ jacobian).reshape(x.shape)
    (n, c_out, height, width), (_, c_in, tall, wide) = output.shape, x.shape
    rh, rw = -(-tall // height), -(-wide // width)
    matrix = np.zeros((c_in * rh * rw, c_out))
    for i, y, z in np.ndindex(n, height, width):
        merged = [
            back[i, c, rh * y + dy, rw * z + dz].item() if rh * y + dy < tall and rw * z + dz < wide else 0.0
            for c in range(c_in) for dy in range(rh) for dz in range(rw)
        ]  # fmt: skip
        matrix += np.outer(merged, g[i, :, y, z].numpy())
    s = np.linalg.svd(matrix / (n * height * width), compute_uv=False)[0]
    return -s - 1 / (s + 1e-6) + 2


def by_hand(network: Chain, x: torch.Tensor) -> tuple[float, float, float]:
    entropies, scores = [], []
    for number, block in enumerate(network.blocks):
        if number:
            scores.append(trainability(block, x, number))
        x = block(x).detach()
        entropies.append(entropy(x.numpy()))
    return sum(entropies), min(np.diff(entropies)), np.mean(scores)


@pytest.mark.parametrize("sides", [(6, 6), (5, 5), (6, 3), (5, 8)])
def test_a_chain_of_blocks(sides):
    """With an odd side 5 rows become 3: the sixth is zeros."""
    x = images(3, 8)[:, :, : sides[0], : sides[1]]
    expected = by_hand(small_chain(), x)
    assert az_nas_scores(small_chain(), x) == pytest.approx(expected, rel=1e-9)
    assert [MEASURES[name](small_chain(), x) for name in NAMES] == pytest.approx(expected, rel=1e-9)


def test_a_cell_of_darts_is_differentiated_by_the_nearer_input():
    network = Network(DARTS, channels=2, cells=3, classes=4).double()
    initialise(network, "kaiming_fan_in", 0)
    network.double()
    x = images(2, 4)
    features = [network.body.stem(x)]
    entropies, scores = [entropy(features[0].detach().numpy())], []
    before = now = relu(features[0])
    for number, cell in enumerate(network.body.stack.cells, start=1):
        scores.append(trainability(partial(cell, before.detach()), now, number))
        out = cell(before, now)
        entropies.append(entropy(out.detach().numpy()))
        before, now = now, relu(out)
    expected = (sum(entropies), min(np.diff(entropies)), np.mean(scores))
    assert az_nas_scores(network, x) == pytest.approx(expected, rel=1e-9)


# --- closed forms


def isometry(factor: float) -> nn.Conv2d:
    """A 1x1 convolution that turns the channels and multiplies by ``factor``."""
    layer = nn.Conv2d(4, 4, 1, bias=False).double()
    matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    layer.weight.data = factor * torch.linalg.qr(matrix).Q[:, :, None, None]
    return layer


@pytest.mark.parametrize(("factor", "score"), [(1, 0), (2, -0.5), (0.5, -0.5), (5, -3.2)])
def test_a_block_that_keeps_the_scale_of_gradients_scores_best(factor, score):
    network = Chain(nn.Conv2d(3, 4, 1).double(), isometry(factor), isometry(factor))
    assert az_trainability(network, images(16, 64)) == pytest.approx(score, abs=0.1)


def test_white_features_have_the_entropy_of_their_channels():
    x = images(64, 16, 4)
    network = Chain(nn.Identity(), isometry(1), nn.Conv2d(4, 2, 1, bias=False).double())
    network.blocks[2].weight.data = torch.eye(4)[:2, :, None, None].double()
    assert az_expressivity(network, x) == pytest.approx(2 * math.log(4) + math.log(2), abs=1e-3)
    assert az_progressivity(network, x) == pytest.approx(-math.log(2), abs=1e-3)


def test_one_direction_has_no_entropy():
    network = Chain(nn.Conv2d(3, 3, 1).double(), nn.Conv2d(3, 3, 1).double())
    network.blocks[1].weight.data = torch.ones(3, 3, 1, 1).double()
    assert az_progressivity(network, images()) == pytest.approx(-entropy(network.blocks[0](images()).detach().numpy()), abs=1e-6)


# --- degenerate networks


def test_an_identity_is_worst_for_gradients_alone():
    network = Network(IDENTITY, channels=4, cells=2, classes=4)
    initialise(network, "kaiming_fan_in", 0)
    found = az_nas_scores(network, images(side=8).float())
    assert found.trainability == -math.inf
    assert math.isfinite(found.expressivity)
    assert math.isfinite(found.progressivity)
    # One of three blocks.
    assert az_trainability(Chain(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Identity()).double(), images()) == -math.inf


def test_a_disconnected_cell_is_worst():
    network = Network(DEAD, channels=4, cells=1, classes=4)
    initialise(network, "kaiming_fan_in", 0)
    found = az_nas_scores(network, images(side=8).float())
    assert found.expressivity == found.progressivity == -math.inf
    assert -1e6 < found.trainability < -1e5


class Constant(nn.Module):
    def forward(self, x):
        return torch.full_like(x, 0.1)


def test_constant_features_are_told_from_features_that_differ_little():
    """The mean of many equal numbers is not quite that number."""
    network = Chain(nn.Conv2d(3, 3, 1).double(), Constant())
    assert az_expressivity(network, images()) == -math.inf
    network = Chain(nn.Conv2d(3, 3, 1).double(), nn.Conv2d(3, 3, 1).double())
    network.blocks[1].weight.data *= 1e-9
    assert math.isfinite(az_expressivity(network, images()))


@pytest.mark.parametrize("value", [1e30, 3e38])
def test_what_overflows_is_worst_and_never_nan(value):
    network = Chain(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    for block in network.blocks[:2]:
        nn.init.constant_(block.weight, value)
    assert [MEASURES[name](network, images().float()) for name in NAMES[:2]] == [-math.inf] * 2
    assert not math.isnan(az_trainability(network, images().float()))


def test_a_block_whose_output_does_not_depend_on_its_input_has_a_norm_of_zero():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.ones(1, 3, 1, 1).double())

        def forward(self, x):
            return self.bias * torch.ones_like(x)

    network = Chain(nn.Conv2d(3, 3, 1).double(), Constant())
    assert az_trainability(network, images()) == pytest.approx(2 - 1e6)


def test_features_may_be_vectors():
    torch.manual_seed(0)
    network = Chain(nn.Linear(3, 4), nn.Linear(4, 5)).double()
    x = torch.randn(40, 3).double()
    g = cotangent(torch.Size((40, 5)), 1)
    s = np.linalg.svd((g @ network.blocks[1].weight).T.detach().numpy() @ g.numpy() / 40, compute_uv=False)[0]
    assert az_trainability(network, x) == pytest.approx(2 - s - 1 / (s + 1e-6))


# --- the network and what is around it do not matter


def test_writes_in_place_change_nothing():
    assert az_nas_scores(small_chain(inplace=True), images()) == pytest.approx(az_nas_scores(small_chain(), images()))


def test_frozen_weights_and_no_grad_change_nothing():
    expected = az_nas_scores(small_chain(), images())
    network = small_chain().requires_grad_(False)
    with torch.no_grad():
        assert az_nas_scores(network, images()) == expected


def test_features_do_not_depend_on_the_order_of_the_images():
    x = images(6)
    for name in NAMES[:2]:
        assert MEASURES[name](small_chain(), x.flip(0)) == pytest.approx(MEASURES[name](small_chain(), x))


def test_hooks_are_removed_when_a_block_fails():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("as it must")

    network = Chain(nn.Conv2d(3, 3, 1).double(), Fails())
    with pytest.raises(RuntimeError, match="as it must"):
        az_nas_scores(network, images())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


# --- what counts as a block


def test_blocks_of_the_packages_networks():
    nas = Network(ARCH, channels=2, cells=5, classes=4)
    assert len(nas.blocks) == len(Supernet("nas-bench-201", channels=2, cells=5, classes=4).blocks) == 1 + 15 + 2
    assert nas.blocks[0] is nas.body.stem
    darts = Network(DARTS, channels=2, cells=8, classes=4)
    assert darts.blocks == [darts.body.stem, *darts.body.stack.cells]
    assert len(Supernet("darts", channels=2, cells=2, classes=4).blocks) == 1 + 2
    large = Network(DARTS, channels=2, cells=4, classes=4, stem="imagenet")
    assert len(large.blocks) == 2 + 4
    assert math.isfinite(sum(az_nas_scores(large, images(4, 64).float())))
    assert len(SupernetCells("darts", channels=2).blocks) == 2


def test_blocks_may_be_a_method_or_a_module():
    class Method(Chain):
        def __init__(self):
            super().__init__(nn.Conv2d(3, 4, 1).double(), nn.Conv2d(4, 4, 1).double())
            del self.blocks

        def blocks(self):
            return list(self.body)

    network = Method()
    assert blocks_of(network) == list(network.body)
    resnet = torchvision.models.resnet18()
    resnet.blocks = nn.Sequential(resnet.conv1, *resnet.layer1)
    assert blocks_of(resnet) == [resnet.conv1, *resnet.layer1]


class TwoOutputs(nn.Conv2d):
    def forward(self, x):
        return super().forward(x), x


class Enlarges(nn.Module):
    def forward(self, x):
        return interpolate(x, scale_factor=2)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (torchvision.models.resnet18(), "give ResNet an attribute 'blocks'"),
        (SupernetCells("nas-bench-201", channels=3), "at least 2 modules"),
        (Chain(nn.Conv2d(3, 3, 1), TwoOutputs(3, 3, 1)), "The block TwoOutputs gave tuple"),
        (Chain(nn.Conv2d(3, 3, 1), nn.Flatten(0)), "The block Flatten gave"),
        (Chain(nn.Conv2d(3, 3, 1), Enlarges()), "stays the same or shrinks"),
        (Chain(nn.Conv2d(3, 3, 1), nn.Flatten()), "stays the same or shrinks"),
    ],
)
def test_what_has_no_such_measure_is_a_sentence(network, words):
    with pytest.raises(TenasError, match=words):
        az_trainability(network, images().float())


def test_blocks_that_do_not_run_are_a_sentence():
    network = Chain(nn.Conv2d(3, 3, 1).double(), nn.Conv2d(3, 3, 1).double())
    network.blocks[1] = nn.Conv2d(3, 3, 1)
    with pytest.raises(TenasError, match="only 1 ran"):
        az_expressivity(network, images())


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_is_a_sentence(name):
    with pytest.raises(TenasError, match="empty batch"):
        MEASURES[name](small_chain(), images()[:0])


# --- the sum of log ranks


def test_log_ranks_punish_the_worst_place_in_any_measure():
    """-inf and NaN are last, equal values share a rank."""
    columns = np.array([[3.0, 1.0], [2.0, 2.0], [-np.inf, 3.0], [2.5, np.nan]])
    places = np.array([[4, 2], [2, 3], [1, 4], [3, 1]])
    assert np.array_equal(ranks(columns), places)
    assert sum_of_log_ranks(columns) == pytest.approx([math.log(a / 4) + math.log(b / 4) for a, b in places])
    assert ranks(np.array([[1.0], [1.0], [0.0]])).tolist() == [[2.5], [2.5], [1.0]]


def test_a_block_that_runs_several_times_is_hooked_once():
    """However often it is listed; parts of one another are no sequence."""

    def made(*listed: str) -> nn.Module:
        torch.manual_seed(0)
        network = nn.Module()
        network.stem, network.body = nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        network.blocks = [network.get_submodule(name) for name in listed]
        network.forward = lambda x: network.body(network.body(network.stem(x))).mean((2, 3))
        return network

    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for measure in (az_expressivity, az_trainability):
        assert measure(made("stem", "body", "body"), images) == measure(made("stem", "body"), images)
        with pytest.raises(TenasError, match="is part of another one"):
            measure(made("stem", "body", "body.0"), images)
