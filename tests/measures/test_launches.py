"""What a GPU is given to do: launches and bytes of a round, counted without one, by tensors that have shapes and no values."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.engine import NAS, first_round
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode

from tenas.measures import linear_regions
from tenas.measures.ntk_grouped import ntk_grams
from tenas.measures.ntk_grouped import together as kernels_together
from tenas.measures.ntk_tape import Value
from tenas.measures.regions_grouped import counts
from tenas.measures.regions_grouped import together as regions_together
from tenas.networks import Network, Supernet, SupernetCells
from tenas.networks.grouped import grouped
from tenas.networks.observer import Observer, name_of

pytestmark = pytest.mark.filterwarnings("ignore::tenas.measures.SaturatedWarning")
# By preset: launches of a kernel taken alone before kernels went together, and gigabytes that its operators wrote. All cotangents
# at once; unfold counted once a sample, as CUDA launches it. The supernet with a batch of 72; a cell of depth 5 with one of 16.
ALONE = {"released": (4330, 15.36), "default": (2888, 1.198)}
# Likewise of as many as go together, and how many these are.
TOGETHER = {"released": (1082, 78.9, 6), "default": (1486, 11.0, 12)}
# What operators make without a launch, besides views.
FREE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "detach", "_unsafe_view"}
CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|"


class Launches(Observer):
    """Counts operators that launch, and the bytes of what they make, on a kind of device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.number, self.bytes = device, 0, 0

    def saw(self, operator: OpOverload, read: object, out: Any) -> None:
        made = [value for value in (out if isinstance(out, tuple | list) else (out,)) if isinstance(value, Tensor)]
        views = any(a.alias_info is not None and not a.alias_info.is_write for a in operator._schema.arguments)
        if views or name_of(operator) in FREE or not any(value.device.type == self.device for value in made):
            return
        self.number += 1
        self.bytes += sum(value.nbytes for value in made)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fake tensors for the tape: they have no memory to tell apart, and count a view as a write."""
    monkeypatch.setattr(Value, "data", property(lambda value: value.tensor.detach()))
    monkeypatch.setattr(torch.UntypedStorage, "data_ptr", id)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def check(seen: Launches, preset: str) -> None:
    launches, gigabytes, number = TOGETHER[preset]
    assert seen.number <= launches
    assert seen.bytes <= gigabytes * 1e9
    alone, bytes_alone = ALONE[preset]
    assert launches <= number * alone / 10
    assert gigabytes < number * bytes_alone


@pytest.mark.usefixtures("fake")
@pytest.mark.slow
def test_a_group_of_a_round_of_trials_launches_little_more_than_one_kernel():
    trials = first_round()
    masks = [trials.masked(subject) for subject in range(6)]
    network = Supernet(NAS, trials.mask, channels=3, cells=1, classes=10)
    with Launches("cuda") as seen:
        whole = grouped(network, [network.state_dict()] * 6, masks, device="cuda")
        grams = ntk_grams(whole, torch.empty(72, 6 * 3, 32, 32, device="cuda"), 6)
    assert grams.shape == (6, 72, 72)
    check(seen, "released")


@pytest.mark.usefixtures("fake")
@pytest.mark.slow
def test_the_repeats_of_a_cell_launch_little_more_than_one_kernel():
    network = Network(NAS.parse(CELL), channels=3, cells=5, classes=10)
    with Launches("cuda") as seen:
        whole = grouped(network, [network.state_dict()] * 12, device="cuda")
        ntk_grams(whole, torch.empty(16, 12 * 3, 32, 32, device="cuda"), 12)
    check(seen, "default")


def test_how_many_go_together_in_a_round():
    supernet = Supernet(NAS, first_round().mask, channels=3, cells=1, classes=10)
    cell = Network(NAS.parse(CELL), channels=3, cells=5, classes=10)
    crops = SupernetCells(NAS, channels=1), ([torch.zeros(1000, 1, 3, 3)] * 3,)
    assert kernels_together(supernet, (torch.zeros(72, 3, 32, 32),)) == 6
    assert kernels_together(cell, (torch.zeros(16, 3, 32, 32),)) >= 12
    assert regions_together(*crops) >= 192


def test_the_regions_of_a_round_are_three_passes():
    trials = first_round()
    network = SupernetCells(NAS, trials.mask, channels=1)
    masks = [trials.masked(subject) for subject in trials.ids]
    crops = torch.randn(60, 1, 3, 3)
    crops[1] = crops[0]  # or the first ReLU may tell all of them apart, and the count ends there
    with Launches("cpu") as alone:
        linear_regions(network, crops.split(20))
    whole = grouped(network, [network.state_dict()] * len(masks), masks)
    with Launches("cpu") as seen:
        counts(whole, torch.randn(60, len(masks), 3, 3).split(20), len(masks))
    assert seen.number <= 453
    assert seen.number <= len(masks) * alone.number / 10


def test_a_round_launches_a_tenth_of_what_it_did():
    regions, regions_alone = 453, 279
    for preset, kernels, counted in (("released", 25 * 3, 25 * 3), ("default", 16 * 12, 16 * 12)):
        launches, _, number = TOGETHER[preset]
        after = -(-kernels // number) * launches + regions
        before = kernels * ALONE[preset][0] + counted * regions_alone
        assert after <= before / 20
