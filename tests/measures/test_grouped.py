"""Networks side by side as groups of one: what each gives alone."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from helpers.engine import DARTS, NAS, chain_space, kept_space, random_mask, with_edges_pruned
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tenas.errors import TenasError
from tenas.measures import condition_number, linear_regions, ntk_gram
from tenas.measures.ntk import ntk_parameters
from tenas.measures.ntk_engine import recorded
from tenas.measures.ntk_grouped import ntk_grams
from tenas.measures.ntk_grouped import together as kernels_together
from tenas.measures.ntk_launches import patches
from tenas.measures.ntk_reverse import carried
from tenas.measures.regions_grouped import counts, distinct, packed
from tenas.measures.regions_grouped import together as regions_together
from tenas.measures.sizes import BUDGET, sizes
from tenas.networks import Network, Supernet, SupernetCells, initialise
from tenas.networks.grouped import groupable, grouped
from tenas.spaces import Mask, Space

pytestmark = pytest.mark.filterwarnings("ignore::tenas.measures.SaturatedWarning")
R = 3
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def removed(space: Space, exclude: tuple[str, ...] = ("none",)) -> list[Mask]:
    """The whole supernet's mask, and those of two trials of the first round."""
    mask = space.full_mask(exclude)
    trials = space.trials(mask, space.rounds(exclude)[0])
    return [mask, mask.without([trials[1]]), mask.without([trials[-1]])]


def cell(space: Space, depth: int, channels: int = 2) -> nn.Module:
    genotype = space.random_genotype(space.full_mask(("none",)), np.random.default_rng(4))
    return Network(genotype, channels=channels, cells=depth, classes=5)


CHAIN, KEPT = chain_space(), kept_space()
NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[Mask]]] = {
    "nas-bench-201": (lambda: Supernet(NAS, channels=3, cells=1, classes=5), []),
    "nas-bench-201, trials": (lambda: Supernet(NAS, channels=3, cells=1, classes=5), removed(NAS)),
    "darts": (lambda: Supernet(DARTS, channels=2, cells=2, classes=5), []),
    "darts, trials": (lambda: Supernet(DARTS, channels=1, cells=2, classes=5), removed(DARTS)),
    "a cell of nas-bench-201, depth 1": (lambda: cell(NAS, 1), []),
    "a cell of nas-bench-201, depth 3": (lambda: cell(NAS, 3), []),
    "a cell of darts, depth 1": (lambda: cell(DARTS, 1), []),
    "a cell of darts, depth 3": (lambda: cell(DARTS, 3), []),
    "a chain": (lambda: Supernet(CHAIN, channels=2, cells=1, classes=5), removed(CHAIN, ())),
    "cells of one's own": (lambda: Supernet(KEPT, channels=2, cells=2, classes=5), removed(KEPT, ())),
}


def drawn(make: Callable[[], nn.Module], masks: list[Mask], dtype: torch.dtype, n: int, count: int = R, side: int = 8):
    """Networks with weights of their own, a batch for each, and all of them side by side."""
    networks, batches = [], []
    for number in range(count):
        network = make()
        initialise(network, "kaiming_fan_out", number)
        if masks:
            network.set_mask(masks[number])
        networks.append(network.to(dtype))
        batches.append(torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(number)).to(dtype))
    assert groupable(networks[0])
    return networks, batches, grouped(networks[0], [network.state_dict() for network in networks], masks)


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_the_kernels_are_those_of_one_by_one(name, dtype):
    networks, batches, whole = drawn(*NETWORKS[name], dtype, n=6)
    found = ntk_grams(whole, torch.cat(batches, 1), R)
    assert found.dtype == torch.float64
    assert torch.equal(found, found.mT)
    for network, batch, gram in zip(networks, batches, found, strict=True):
        expected = ntk_gram(network, batch, implementation="batched")
        assert relative(gram, expected) < 3 * TOLERANCE[dtype]
        # A kernel's smallest eigenvalue is as much less sure as it is smaller than the largest.
        kappa = condition_number(expected, dtype=dtype)
        assert condition_number(gram, dtype=dtype) == pytest.approx(kappa, rel=TOLERANCE[dtype] * max(1, kappa / 10))


def test_networks_in_evaluation_mode_have_their_statistics():
    networks, batches, _ = drawn(*NETWORKS["nas-bench-201"], torch.float64, n=4)
    for network, batch in zip(networks, batches, strict=True):
        network(batch)
        network.eval()
    whole = grouped(networks[0], [network.state_dict() for network in networks])
    assert not whole.training
    found = ntk_grams(whole, torch.cat(batches, 1), R)
    for network, batch, gram in zip(networks, batches, found, strict=True):
        assert relative(gram, ntk_gram(network, batch)) < 1e-12


def test_neither_networks_nor_weights_change_and_frozen_ones_stay_out():
    networks, batches, _ = drawn(*NETWORKS["nas-bench-201, trials"], torch.float64, n=4)
    frozen = [name for name, _ in networks[0].named_parameters() if "conv" in name][::2]
    for network in networks:
        for name in frozen:
            network.get_parameter(name).requires_grad_(False)
    before = {name: value.clone() for name, value in networks[0].state_dict().items()}
    whole = grouped(networks[0], [network.state_dict() for network in networks], removed(NAS))
    found = ntk_grams(whole, torch.cat(batches, 1), R)
    assert networks[0].mask == removed(NAS)[0]
    assert all(torch.equal(value, before[name]) for name, value in networks[0].state_dict().items())
    assert not {id(parameter) for parameter in networks[0].parameters()} & {id(parameter) for parameter in whole.parameters()}
    for network, batch, gram in zip(networks, batches, found, strict=True):
        assert relative(gram, ntk_gram(network, batch)) < 1e-12


class Own(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1)


def hooked() -> nn.Module:
    network = nn.Conv2d(3, 3, 1)
    network.register_forward_hook(lambda module, inputs, output: output)
    return network


STRANGERS = {
    "a module of one's own": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), Own()),
    "a linear layer of who knows which dimension": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.Linear(8, 8)),
    "other padding": lambda: nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
    "another normalisation": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)),
    "two dtypes": lambda: nn.Sequential(nn.Conv2d(3, 3, 1).double(), nn.BatchNorm2d(3)),
    "hooks": hooked,
    "no weights": nn.ReLU,
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_is_not_known_is_not_grouped(stranger):
    assert not groupable(STRANGERS[stranger]())


def test_random_operators_are_not_grouped():
    network = cell(DARTS, 3)
    assert groupable(network)
    network.set_drop_path(0.1)
    assert not groupable(network)


def test_an_output_without_rows_of_logits_is_refused_with_a_sentence():
    networks = [nn.Conv2d(3, 2, 1) for _ in range(R)]
    whole = grouped(networks[0], [network.state_dict() for network in networks])
    with pytest.raises(TenasError, match="3 networks must map 4 samples to as many rows of logits each; they gave"):
        ntk_grams(whole, torch.zeros(4, 9, 5, 5), R)


# What goes together follows from shapes.


def test_how_many_go_together_follows_from_shapes_alone():
    network = Supernet(NAS, channels=3, cells=1, classes=10)
    largest, total = sizes(network, (72, 3, 32, 32))
    assert largest == 72 * 3 * 32 * 32 * 4
    assert total > 10 * largest
    batch = torch.randn(72, 3, 32, 32)
    most = kernels_together(network, (batch,))
    weights = sum(parameter.numel() for parameter in network.parameters())
    assert most == BUDGET // (total + 8 * 72 * largest + 4 * 72 * 4 * weights)
    assert most == kernels_together(network, (batch + 1,))
    assert kernels_together(network, (batch[:16],)) > 10 * most
    crops = torch.randn(1000, 1, 3, 3)
    assert regions_together(SupernetCells(NAS, channels=1), ([crops] * 3,)) > 75
    assert regions_together(SupernetCells(DARTS, channels=1), ([crops] * 3,)) > 30
    assert regions_together(SupernetCells(NAS, channels=1), ([torch.randn(10, 1, 32, 32)],)) == 1


# Rules of few launches.


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 3)])
@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 3), (1, 2, 6)])
@pytest.mark.parametrize("padded", [False, True])
def test_patches_are_those_of_unfold(kernel, stride, dilation, groups, padded):
    padding = [dilation * (side // 2) if padded else 0 for side in kernel]
    x = torch.randn(4, 6, 11, 12)[:, :, 1:, 1:]  # a view, as odd pixels are
    found = patches(x, kernel, (stride, stride), padding, (dilation, dilation), groups)
    expected = nn.functional.unfold(x, kernel, dilation, padding, stride).unflatten(1, (groups, -1))
    assert torch.equal(found, expected.permute(1, 0, 3, 2).flatten(1, 2))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("space", [NAS, DARTS], ids=lambda space: space.name)
def test_the_rules_for_gpus_carry_what_the_others_do(space, training):
    torch.manual_seed(0)
    mask = random_mask(space, np.random.default_rng(1))
    network = Supernet(space, mask, channels=2, cells=2, classes=3).double().train(training)
    batch = torch.randn(5, 3, 8 if space is NAS else 9, 8).double()
    with recorded(network, batch, ntk_parameters(network), compiled=False) as (tape, logits):
        fast, plain = (carried(tape, logits, 1, 4, gpu=gpu) for gpu in (True, False))
        parameters = [parameter for parameter in tape.parameters if parameter in plain]
        assert len(parameters) > 10
        for parameter in parameters:
            assert torch.allclose(fast[parameter].flatten(1), plain[parameter].flatten(1), rtol=1e-10, atol=1e-10)


def test_a_weight_of_several_uses_has_one_gradient():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x).relu()).mean((2, 3)) * self.conv.weight.mean()

    torch.manual_seed(0)
    network, batch = Twice().double(), torch.randn(4, 3, 5, 5).double()
    with recorded(network, batch, ntk_parameters(network), compiled=False) as (tape, logits):
        rows = carried(tape, logits, 0, 4, gpu=True)[tape.parameters[0]].flatten(1)
        assert relative(rows @ rows.T, ntk_gram(network, batch, implementation="loop")) < 1e-12


# Linear regions.


@given(
    st.integers(1, 40).flatmap(lambda n: st.integers(1, 4).flatmap(lambda r: st.integers(1, 150).map(lambda u: (n, r, u)))),
    st.integers(0, 2**32 - 1),
    st.floats(0, 1),
)
@settings(max_examples=20, deadline=None)
def test_patterns_are_counted_exactly(shape, seed, share):
    n, r, units = shape
    generator = np.random.default_rng(seed)
    kinds = generator.random((max(1, n // 2), r, units)) < share
    sides = kinds[generator.integers(len(kinds), size=n)]
    found = distinct(packed(torch.from_numpy(sides)))
    assert found.tolist() == [len(np.unique(sides[:, network], axis=0)) for network in range(r)]


@pytest.mark.parametrize("space", [NAS, DARTS], ids=lambda space: space.name)
def test_the_regions_are_those_of_one_by_one(space):
    masks = removed(space)
    rng = np.random.default_rng(0)
    masks += [with_edges_pruned(random_mask(space, rng), rng) for _ in range(2)] if space is DARTS else []
    networks, blocks = [], []
    for number, mask in enumerate(masks):
        network = SupernetCells(space, mask, channels=2)
        initialise(network, "kaiming_fan_in", number)
        networks.append(network)
        generator = torch.Generator().manual_seed(number)
        # Inputs that come again: not every one has a region of its own.
        kinds = torch.randn(40, 2, 3, 3, generator=generator)
        blocks.append(kinds[torch.randint(40, (100,), generator=generator)].tensor_split(3))
    whole = grouped(networks[0], [network.state_dict() for network in networks], masks)
    found = counts(whole, [torch.cat(block, 1) for block in zip(*blocks, strict=True)], len(masks))
    expected = [linear_regions(network, block) for network, block in zip(networks, blocks, strict=True)]
    assert found == pytest.approx(expected, abs=1)  # a unit may lie within rounding of zero
    assert len(set(expected)) > 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", NETWORKS)
def test_on_a_gpu_the_kernels_are_those_of_float64(name):
    make, masks = NETWORKS[name]
    networks, batches, _ = drawn(make, masks, torch.float32, n=6)
    whole = grouped(networks[0], [network.state_dict() for network in networks], masks, device="cuda")
    found, again = (ntk_grams(whole, torch.cat(batches, 1).cuda(), R) for _ in range(2))
    assert torch.equal(found, again)
    for network, batch, gram in zip(networks, batches, found, strict=True):
        assert relative(gram, ntk_gram(network.double(), batch.double())) < 1e-5
