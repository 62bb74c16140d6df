"""Depth, against the longest path written out by hand over genotypes."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn.functional import linear

from tenas.errors import TenasError
from tenas.measures import layers
from tenas.networks import Network, Supernet
from tenas.spaces import get_space, load_genotype

NAS, DARTS = get_space("nas-bench-201"), get_space("darts")
IMAGES = torch.zeros(2, 3, 16, 16)
WEIGHTED = {
    "skip_connect": 0, "nor_conv_1x1": 1, "nor_conv_3x3": 1, "avg_pool_3x3": 0, "max_pool_3x3": 0, "sep_conv_3x3": 4,
    "sep_conv_5x5": 4, "dil_conv_3x3": 2, "dil_conv_5x5": 2,
}  # fmt: skip


def random_genotype(space, generator):
    """Any operator on each of the edges that a genotype has."""
    if space is NAS:
        return list(NAS.genotypes())[generator.integers(5**6)]

    def random_cell():
        sources = [int(s) for node in range(4) for s in generator.choice(node + 2, 2, replace=False)]
        return [(str(generator.choice(DARTS.operators)), source) for source in sources]

    normal, reduction = random_cell(), random_cell()
    return load_genotype(f"Genotype(normal={normal}, normal_concat=range(2, 6), reduce={reduction}, reduce_concat=range(2, 6))")


def longest(values: list) -> float | None:
    """The largest; None, of what no path reaches, is left out."""
    return max((value for value in values if value is not None), default=None)


@pytest.mark.parametrize("seed", range(8))
def test_depth_of_cells_of_nas_bench_201(seed):
    genotype = random_genotype(NAS, np.random.default_rng(seed))
    (choices,) = genotype.cells
    depth = 1  # stem
    for stage in range(3):
        if stage and depth is not None:
            depth += 2  # residual block
        for _ in range(2):
            nodes = [depth]
            for node in (1, 2, 3):
                edges = [c for c in choices if c.target == node and c.operator != "none" and nodes[c.source] is not None]
                nodes.append(longest([nodes[c.source] + WEIGHTED[c.operator] for c in edges]))
            depth = nodes[3]
    network = Network(genotype, channels=2, cells=2, classes=4)
    assert layers(network, IMAGES) == (0 if depth is None else depth + 1)


@pytest.mark.parametrize("seed", range(8))
def test_depth_of_cells_of_darts(seed):
    genotype = random_genotype(DARTS, np.random.default_rng(seed))
    outputs = [1, 1]  # stem, read twice
    for index in range(3):
        reduction = index in (1, 2)  # of 3 cells
        choices = genotype.cells[int(reduction)]
        nodes = [None if value is None else value + 1 for value in outputs[-2:]]  # preprocessing, also where it halves
        for node in range(2, 6):
            depths = []
            for c in choices:
                if c.target == node and c.operator != "none" and nodes[c.source] is not None:
                    # A skip that halves is a convolution.
                    weighted = 1 if c.operator == "skip_connect" and reduction and c.source < 2 else WEIGHTED[c.operator]
                    depths.append(nodes[c.source] + weighted)
            nodes.append(longest(depths))
        outputs.append(longest(nodes[2:]))
    depth = outputs[-1]
    network = Network(genotype, channels=2, cells=3, classes=4)
    assert layers(network, IMAGES) == (0 if depth is None else depth + 1)


def test_known_depths():
    assert layers(torchvision.models.resnet18(), torch.zeros(2, 3, 64, 64)) == 18
    assert layers(torchvision.models.vgg11(), torch.zeros(2, 3, 64, 64)) == 11
    deepest = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
    assert layers(Network(deepest, channels=16, cells=5, classes=10), IMAGES) == 1 + 15 * 3 + 2 * 2 + 1
    # Attention: its projections in and out, and two linear layers; products of activations are no layers.
    encoder = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    assert layers(encoder, torch.zeros(2, 5, 8)) == 4


def test_a_supernet_is_as_deep_as_what_its_mask_leaves():
    genotype = load_genotype("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|skip_connect~1|nor_conv_1x1~2|")
    whole = Supernet(NAS, channels=2, cells=1, classes=4)
    assert layers(whole, IMAGES) == 1 + 3 * 3 + 4 + 1
    whole.set_mask(NAS.mask(genotype))
    assert layers(whole, IMAGES) == layers(Network(genotype, channels=2, cells=1, classes=4), IMAGES) == 1 + 3 * 2 + 4 + 1


class Odd(nn.Module):
    """Views, writes in place, functions in place of modules, a branch that the images don't reach, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.constant = nn.Parameter(torch.randn(1, 6))
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        aside = self.constant
        for _ in range(9):
            aside = linear(aside, self.weight)  # 9 layers of nothing but weights
        x = self.norm(linear(x, self.weight))
        left, right = x.chunk(2, 1)
        buffer = torch.zeros_like(x)
        buffer[:, :3] = left
        buffer[:, 3:] = right.relu_()
        buffer = buffer @ self.weight.T + aside
        return self.head(buffer[:, :3]), (x.T @ x).sum()


def test_depth_follows_views_and_writes_and_no_other_branches():
    assert layers(Odd(), torch.zeros(2, 6)) == 3


def test_depth_without_layers_or_images():
    assert layers(nn.Flatten(), IMAGES) == 0
    with pytest.raises(TenasError, match="empty batch"):
        layers(nn.Flatten(), IMAGES[:0])
