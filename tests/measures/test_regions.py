"""The number of linear regions, against a plain Python set of patterns."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torchvision.models import resnet18

from tenas.errors import TenasError
from tenas.measures import SaturatedWarning, linear_regions
from tenas.measures.regions import count_distinct_rows, relu_signs
from tenas.networks import Network, Supernet, SupernetCells, initialise
from tenas.spaces import get_space

pytestmark = pytest.mark.filterwarnings("ignore::tenas.measures.SaturatedWarning")


def patterns_by_hooks(network: nn.Module, blocks: list[torch.Tensor], relus: list[nn.Module]) -> set[tuple]:
    """Patterns as tuples of booleans, from forward hooks on the given modules: nothing shared with the code under test."""
    found: set[tuple] = set()
    outputs: list[torch.Tensor] = []
    for block in blocks:
        outputs.clear()
        hooks = [relu.register_forward_hook(lambda module, args, out: outputs.append(out.clone())) for relu in relus]
        with torch.no_grad():
            network(block)
        for hook in hooks:
            hook.remove()
        for i in range(len(block)):
            found.add(tuple(value > 0 for out in outputs for value in out[i].flatten().tolist()))
    return found


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(1, 60), st.integers(0, 2**31), st.booleans(), st.booleans()
)
@settings(max_examples=30, deadline=None)
def test_it_is_the_size_of_the_set_of_patterns(widths, n, seed, training, norm):
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in zip([2, *widths], widths, strict=False):
        layers += [nn.Linear(before, after), *([nn.BatchNorm1d(after)] if norm else []), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(widths[-1], 3)).train(training and n > 1)
    inputs = torch.randn(n, 2)
    expected = patterns_by_hooks(network, [inputs], [m for m in network if isinstance(m, nn.ReLU)])
    assert linear_regions(network, inputs) == len(expected)


def test_modules_and_functions_count_alike():
    torch.manual_seed(0)

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = functional.relu(self.a(x), inplace=True)
            return torch.relu(self.b(x)).relu_()

    network = Functional()
    modules = nn.Sequential(network.a, nn.ReLU(), network.b, nn.ReLU())
    inputs = torch.randn(300, 2)
    count = linear_regions(network, inputs)
    assert count == linear_regions(modules, inputs) == len(patterns_by_hooks(modules, [inputs], [modules[1], modules[3]]))
    assert 4 < count < 280  # neither trivial nor saturated


def test_the_cells_of_a_supernet_on_crops_in_blocks():
    network = SupernetCells("nas-bench-201", channels=1)
    initialise(network, "kaiming_fan_in", 3)
    generator = torch.Generator().manual_seed(1)  # a grey level and a little noise, as in a crop of a photograph
    crops = torch.randn(900, 1, 1, 1, generator=generator) + 0.3 * torch.randn(900, 1, 3, 3, generator=generator)
    blocks = list(crops.split(300))
    # The rectified nodes, computed by hand from the modules: batch norm takes its statistics from a block.
    found = set()
    for block in blocks:
        nodes = [block]
        edges = iter(network.body.cell.edges)
        with torch.no_grad():
            for _ in range(3):
                total = 0
                for node in nodes.copy():
                    edge = next(edges)
                    total = total + sum(
                        operator(torch.clamp(node, min=0) if "conv" in name else node) for name, operator in edge.items()
                    ) / len(network.space.operators)  # ``none`` counts in the average, without a module
                nodes.append(total)
        with torch.no_grad():
            nodes[3] = network.body.bn(nodes[3])
        signs = torch.cat([(node > 0).flatten(1) for node in nodes], 1)
        found |= {tuple(row) for row in signs.tolist()}
    assert linear_regions(network, blocks) == len(found)
    assert 50 < len(found) < 855


@pytest.mark.parametrize(
    "make", [lambda: resnet18(num_classes=4), lambda: Supernet("nas-bench-201", channels=2, cells=1, classes=4)]
)
def test_the_network_is_left_as_it_was(make):
    network = make().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert linear_regions(network, torch.randn(6, 3, 32, 32)) == 6
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_equal_inputs_share_a_region_and_zero_is_not_active():
    network = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU()).eval()
    inputs = torch.tensor([[1.0, 2.0]] * 40 + [[0.0, 0.0]] * 40)
    assert linear_regions(network, inputs) == 2
    assert linear_regions(nn.Linear(2, 2), inputs) == 1  # no ReLU: one linear map


@given(st.integers(1, 200), st.integers(0, 20), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_counting_rows(n, width, seed):
    assert count_distinct_rows(np.zeros((0, width), np.uint8)) == 0
    rows = np.random.default_rng(seed).integers(0, 2, (n, width), dtype=np.uint8)
    assert count_distinct_rows(rows) == len({bytes(row) for row in rows})


@pytest.mark.filterwarnings("error")
def test_saturation_is_said_and_nothing_else_is():
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    torch.manual_seed(0)
    assert linear_regions(network, torch.randn(100, 2)) <= 4
    wide = nn.Sequential(nn.Linear(2, 500), nn.ReLU())
    with pytest.warns(SaturatedWarning, match=r"each of the 100 inputs .* saturated"):
        linear_regions(wide, torch.randn(100, 2))


# A function with linear pieces -> on which side of each of its kinks an input is; at a kink, on that of the flat piece.
PIECES = {
    "relu": (nn.ReLU(), lambda x: [x > 0]),
    "leaky": (nn.LeakyReLU(), lambda x: [x > 0]),
    "steep": (nn.LeakyReLU(0.9), lambda x: [x > 0]),
    "parametric": (nn.PReLU(init=-0.3), lambda x: [x > 0]),
    "threshold": (nn.Threshold(0.5, 0.5), lambda x: [x > 0.5]),
    "hard tanh": (nn.Hardtanh(), lambda x: [x > -1, x >= 1]),
    "other hard tanh": (nn.Hardtanh(-2, 0.5), lambda x: [x > -2, x >= 0.5]),
    "relu6": (nn.ReLU6(), lambda x: [x > 0, x >= 6]),
    "hard sigmoid": (nn.Hardsigmoid(), lambda x: [x > -3, x >= 3]),
    "clamp": (lambda x: x.clamp(-1, 2), lambda x: [x > -1, x >= 2]),
    "clamp below": (lambda x: x.clamp(min=0.5), lambda x: [x > 0.5]),
    "clamp above": (lambda x: x.clamp(max=2), lambda x: [x >= 2]),
    "clamp_min": (lambda x: x.clamp_min(-2), lambda x: [x > -2]),
    "clamp_max": (lambda x: x.clamp_max(-2), lambda x: [x >= -2]),
    "hard shrink": (nn.Hardshrink(0.5), lambda x: [x > 0.5, x >= -0.5]),
}


@pytest.mark.parametrize("name", PIECES)
def test_each_unit_is_in_the_piece_that_its_function_says(name):
    class Alone(nn.Module):
        def forward(self, x):
            return PIECES[name][0](x)

    inputs = torch.linspace(-7, 7, 57)[:, None]  # by quarters: on the kinks too
    sides = [side.reshape(-1).tolist() for side in PIECES[name][1](inputs)]
    found = relu_signs(Alone(), inputs)
    assert sorted(map(tuple, found.T.tolist())) == sorted(map(tuple, sides))
    assert linear_regions(Alone(), inputs) == len(sides) + 1


def test_bad_input_is_refused_with_a_sentence():
    for slope in (-0.1, -1.0):
        with pytest.raises(TenasError, match="A leaky ReLU with a negative slope folds: its output does not say"):
            linear_regions(nn.LeakyReLU(slope), torch.randn(4, 2))
    assert linear_regions(nn.LeakyReLU(0.0), torch.tensor([[-1.0], [1.0]])) == 2
    with pytest.raises(TenasError, match=r"no linear pieces \(gelu, tanh\)"):
        linear_regions(nn.Sequential(nn.Tanh(), nn.GELU()), torch.randn(4, 2))
    with pytest.raises(TenasError, match="no inputs"):
        linear_regions(nn.ReLU(), torch.zeros(0, 2))

    class Flat(nn.Module):
        def forward(self, x):
            return torch.relu(x.flatten())

    with pytest.raises(TenasError, match="first dimension must be the samples"):
        linear_regions(Flat(), torch.randn(4, 2))


def test_a_pruned_operator_is_not_counted():
    """A cell of skip connections alone has no ReLU: its patterns are those of the ReLU before the classifier."""
    cell = "|skip_connect~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|"
    network = Network(cell, channels=2, cells=1, classes=2).eval()
    initialise(network, "kaiming_fan_in", 0)
    seen: list = []
    hook = network.body.bn.register_forward_hook(lambda m, a, out: seen.append((out > 0).flatten(1)))
    blocks = [m for m in network.body.layers if hasattr(m, "conv_a")]
    hooks = [b.register_forward_pre_hook(lambda m, a: seen.append((a[0] > 0).flatten(1))) for b in blocks]
    hooks += [b.bn_a.register_forward_hook(lambda m, a, out: seen.append((out > 0).flatten(1))) for b in blocks]
    images = torch.randn(20, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        count = linear_regions(network, images)
    for h in [hook, *hooks]:
        h.remove()
    assert count == len({tuple(row) for row in torch.cat(seen, 1).tolist()})


def test_the_cells_of_a_darts_supernet_on_crops_in_blocks(monkeypatch):
    """Its ReLUs are functions of two modules of ours: noted there, in float64, and gathered in a set."""
    network = SupernetCells("darts", darts_mask(), channels=1).double()
    initialise(network, "kaiming_fan_in", 3)
    generator = torch.Generator().manual_seed(1)
    crops = torch.randn(600, 1, 1, 1, generator=generator) + 0.3 * torch.randn(600, 1, 3, 3, generator=generator)
    blocks = list(crops.double().split(200))
    signs: list[torch.Tensor] = []

    def noted(x: torch.Tensor) -> torch.Tensor:
        signs.append((x > 0).flatten(1))
        return x.clamp(min=0)

    found = set()
    with monkeypatch.context() as patch, torch.no_grad():
        for module in ("tenas.networks.darts", "tenas.networks.edge"):
            patch.setattr(f"{module}.relu", noted)
        for block in blocks:
            signs.clear()
            network(block)
            found |= {tuple(row) for row in torch.cat(signs, 1).tolist()}
    assert linear_regions(network, blocks) == len(found)
    assert 50 < len(found) < 570


def darts_mask():
    """Few enough ReLUs for patterns to be shared by crops."""
    return get_space("darts").full_mask(["none", "sep_conv_5x5", "dil_conv_5x5", "sep_conv_3x3"])


def test_where_the_first_relu_tells_all_inputs_apart_the_rest_need_not_run(monkeypatch):
    """Nor is it taken for told apart when inputs of different blocks share a pattern."""
    torch.manual_seed(0)
    runs = []
    # No hook: it could undo what another one does before the layer, so that the whole pass would be run.
    monkeypatch.setattr(nn.Bilinear, "forward", lambda *_: runs.append(1) or torch.zeros(_[1].shape))
    rest = nn.Bilinear(1, 1, 1)
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), rest, nn.ReLU())
    inputs = torch.randn(40, 8)
    with pytest.warns(SaturatedWarning):
        assert linear_regions(network, inputs.split(10)) == 40
    assert runs == []
    with pytest.warns(SaturatedWarning):
        assert linear_regions(network, torch.cat([inputs, inputs[:1]]).split(10)) == 40
    assert len(runs) == 5
