"""A recorded pass that is run again: the bits of a new one, and never for a network that would do something else."""

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from tenas.measures import ntk_engine, ntk_reuse
from tenas.measures.ntk import ntk_condition_number, ntk_gram, ntk_parameters
from tenas.networks import Network, Supernet, initialise
from tenas.spaces import get_space

CELL = "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
LOOSE = "|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"  # nothing flows into one of its nodes
NAS, DARTS = get_space("nas-bench-201"), get_space("darts")


@pytest.fixture(autouse=True)
def recordings(monkeypatch) -> ntk_reuse.Shelf:
    shelf = ntk_reuse.Shelf(ntk_reuse.KEPT_BYTES)
    monkeypatch.setattr(ntk_reuse, "SHELF", shelf)
    return shelf


def kept(shelf: ntk_reuse.Shelf) -> int:
    return sum(map(len, shelf._held.values()))


def batch(n: int = 4, seed: int = 0, side: int = 8) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def anew(network: nn.Module, images: Tensor) -> Tensor:
    """The kernel from a pass that is recorded and planned for it alone."""
    with ntk_engine.recorded(network, images, ntk_parameters(network)) as (tape, logits):
        return ntk_engine.gram_of_rows(ntk_engine.compiled_jacobian(tape, logits))


def supernet(space=NAS) -> Supernet:
    torch.manual_seed(0)
    return Supernet(space, space.full_mask(exclude=["none"]), channels=2, cells=1 if space is NAS else 2, classes=5)


NETWORKS = {
    "supernet": supernet,
    "darts": lambda: supernet(DARTS),
    "cell": lambda: Network(CELL, channels=3, cells=2, classes=5),
    "loose": lambda: Network(LOOSE, channels=3, cells=1, classes=5),
    "evaluated": lambda: supernet().eval(),
    "double": lambda: supernet().double(),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_second_kernel_has_the_bits_of_one_that_is_recorded(name, recordings, monkeypatch):
    network = NETWORKS[name]()
    buffers = {key: buffer.clone() for key, buffer in network.named_buffers()}
    dtype = next(network.parameters()).dtype
    ntk_gram(network, batch().to(dtype))
    assert kept(recordings) == 1
    found, expected = [], []
    for seed in (1, 2):
        initialise(network, "kaiming_fan_out", seed)
        expected.append(anew(network, batch(seed=seed).to(dtype)))
    network.load_state_dict(buffers, strict=False)
    with monkeypatch.context() as patch:
        patch.setattr(ntk_engine, "recorded", None)  # nothing is recorded
        for seed in (1, 2):
            initialise(network, "kaiming_fan_out", seed)
            found.append(ntk_gram(network, batch(seed=seed).to(dtype)))
    assert [a.numpy().tobytes() for a in found] == [b.numpy().tobytes() for b in expected]
    assert not torch.equal(*found)
    assert all(torch.equal(buffer, buffers[key]) for key, buffer in network.named_buffers())


def mask_without_an_operator(network: Supernet) -> None:
    network.set_mask(NAS.full_mask(exclude=["none", "skip_connect"]))


def another_activation(network: Supernet) -> None:
    network.body.blocks[1].edges[0]["nor_conv_3x3"].bn = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU())


def another_stride(network: Supernet) -> None:
    network.body.blocks[1].edges[0]["avg_pool_3x3"].count_include_pad = True


def a_module_of_ones_own(network: Supernet) -> None:
    network.body.blocks[1].edges[0]["nor_conv_3x3"].bn = nn.Tanh()


def a_hook(network: Supernet) -> None:
    network.body.stem.register_forward_hook(lambda module, inputs, output: 2 * output)


def a_forward_of_its_own(network: Supernet) -> None:
    stem = network.body.stem
    stem.forward = lambda x: nn.Sequential.forward(stem, x).tanh()


def another_weight(network: Supernet) -> None:
    network.body.stem[0].weight = nn.Parameter(torch.randn(2, 3, 3, 3))


def a_frozen_weight(network: Supernet) -> None:
    network.body.stem[0].weight.requires_grad_(False)


def other_numbers(network: Supernet) -> None:
    network.double()


def no_training(network: Supernet) -> None:
    network.eval()


CHANGES = [
    mask_without_an_operator, another_activation, another_stride, a_module_of_ones_own, a_hook, a_forward_of_its_own,
    another_weight, a_frozen_weight, other_numbers, no_training,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_network_that_was_changed_is_recorded_again(change, recordings):
    network, images = supernet(), batch()
    before = ntk_gram(network, images)
    change(network)
    images = images.to(next(network.parameters()).dtype)
    found, again = ntk_gram(network, images), ntk_gram(network, images)
    assert torch.equal(found, anew(network, images))
    assert torch.equal(found, again)
    assert not torch.equal(found, before)


@pytest.mark.parametrize(
    "other", [batch(3), batch(side=12), batch().to(memory_format=torch.channels_last)], ids=["n", "side", "order"]
)
def test_another_shape_of_the_batch_is_recorded_again(other, recordings):
    network = supernet()
    ntk_gram(network, batch())
    assert torch.equal(ntk_gram(network, other), anew(network, other))
    assert kept(recordings) == 2


def test_masks_are_told_apart_and_found_again(recordings):
    network, images = supernet(), batch()
    names = ["nor_conv_1x1", "nor_conv_3x3", "skip_connect"]
    first = []
    for _ in range(2):
        for name in names:
            network.set_mask(NAS.full_mask(exclude=["none", name]))
            first.append(ntk_gram(network, images))
    assert all(torch.equal(a, b) for a, b in zip(first[:3], first[3:], strict=True))
    assert kept(recordings) == len(names)


def test_what_watches_a_pass_sees_one(recordings):
    network, images = supernet(), batch()
    ntk_gram(network, images)
    with torch.autocast("cpu", torch.bfloat16):
        assert ntk_reuse.state_of(network, images) is None
    with torch.device("cpu"):
        assert ntk_reuse.state_of(network, images) is None
    assert ntk_reuse.state_of(network, images.clone().requires_grad_()) is None
    assert ntk_reuse.state_of(network, images) is not None


class Drawing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(())


class Filling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros_like(x)
        zeros[0].add_(x[0].detach().sum())
        return x + zeros


class Closing(nn.Module):
    table = torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.table


@pytest.mark.parametrize("kind", [Drawing, Filling, Closing])
def test_a_pass_that_differs_from_run_to_run_is_not_kept(kind, recordings, monkeypatch):
    monkeypatch.setattr(kind, "__module__", "tenas.networks")
    network = nn.Sequential(nn.Conv2d(3, 2, 3), kind(), nn.Flatten())
    ntk_gram(network, batch())
    assert kept(recordings) == 0


def test_networks_that_are_not_known_are_not_kept(recordings):
    ntk_gram(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Flatten()), batch())
    assert kept(recordings) == 0


def test_a_recording_goes_with_its_network_and_when_there_are_too_many(recordings):
    network, images = supernet(), batch()
    ntk_gram(network, images)
    (held,) = recordings._held[network].values()
    assert all(value.tensor.numel() == 0 for step in held.steps for value in step.outputs if value is not None)
    recordings.most = int(1.5 * held.nbytes)
    other = supernet()
    ntk_condition_number(other, images)
    assert list(recordings._held.keys()) in ([other], [network, other])
    assert kept(recordings) == 1
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None
    assert kept(recordings) == 0
