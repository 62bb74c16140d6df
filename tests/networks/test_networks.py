"""Operators, supernets and discrete networks."""

import pytest
import torch
from torch.nn import functional

from tenas.benchmark import read_index
from tenas.errors import TenasError
from tenas.networks import INITIALISERS, Network, Supernet, SupernetCells, initialise
from tenas.spaces import Trial, get_space

NAS = get_space("nas-bench-201")


def parameters(network) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_search_network_has_the_released_codes_parameters():
    # 14,707 in the released code, 30 of them architecture parameters, one an edge and operator, which we don't have.
    assert parameters(Supernet("nas-bench-201", channels=3, cells=1, classes=10)) == 14_707 - 6 * 5


def test_parameters_are_those_of_the_benchmark():
    table = read_index("builtin").sample(12, random_state=0)
    for row in table.itertuples():
        for classes, expected in ((10, row.params_cifar10), (100, row.params_cifar100), (120, row.params_imagenet16)):
            assert parameters(Network(row.arch, channels=16, cells=5, classes=classes)) == expected


def by_definition(network: Supernet, x: torch.Tensor) -> torch.Tensor:
    """NAS-Bench-201's network from its definition, with torch's functions and the supernet's weights, training mode."""

    def norm(x, bn):
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        return (x - mean) / (var + bn.eps).sqrt() * bn.weight[:, None, None] + bn.bias[:, None, None]

    def run(name, operators, x):
        if name == "none":
            return 0 * x
        if name == "skip_connect":
            return x
        if name == "avg_pool_3x3":
            sums = functional.conv2d(x.flatten(0, 1)[:, None], torch.ones(1, 1, 3, 3, dtype=x.dtype), padding=1)
            counts = functional.conv2d(torch.ones_like(x[:1, :1]), torch.ones(1, 1, 3, 3, dtype=x.dtype), padding=1)
            return sums.view_as(x) / counts
        convolution = operators[name]
        return norm(functional.conv2d(x.clamp(min=0), convolution.conv.weight, padding=int(name[-1]) // 2), convolution.bn)

    body = network.body
    x = norm(functional.conv2d(x, body.stem[0].weight, padding=1), body.stem[1])
    for layer in body.layers:
        if hasattr(layer, "edges"):
            nodes = [x]
            for target in range(1, 4):
                total = 0
                for source in range(target):
                    index = NAS.edges.index((target, source))
                    names = network.mask.operators("cell", index)
                    total = total + sum(run(name, layer.edges[index], nodes[source]) for name in names) / len(names)
                nodes.append(total)
            x = nodes[3]
        else:
            main = norm(functional.conv2d(x.clamp(min=0), layer.conv_a.weight, stride=2, padding=1), layer.bn_a)
            main = norm(functional.conv2d(main.clamp(min=0), layer.conv_b.weight, padding=1), layer.bn_b)
            down = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
            x = main + functional.conv2d(down, layer.shortcut[1].weight)
    x = norm(x, body.bn).clamp(min=0).mean((2, 3))
    return x @ body.classifier.weight.T + body.classifier.bias


@pytest.mark.parametrize(
    "mask",
    [
        NAS.full_mask(),
        NAS.full_mask(["none"]),
        NAS.full_mask(["none"]).without([Trial("cell", 0, "skip_connect"), Trial("cell", 4, "nor_conv_3x3")]),
        NAS.mask(NAS.parse("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")),
        NAS.mask(NAS.parse("|none~0|+|nor_conv_3x3~0|none~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|")),
    ],
)
def test_the_supernet_is_what_its_definition_says(mask):
    network = Supernet(NAS, mask, channels=3, cells=1, classes=5).double().train()
    initialise(network, "kaiming_fan_out", 0)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    expected = by_definition(network, x)
    assert torch.allclose(network(x), expected, atol=1e-10)


def test_a_supernet_with_one_operator_an_edge_is_the_discrete_network():
    genotype = NAS.parse("|nor_conv_3x3~0|+|avg_pool_3x3~0|none~1|+|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|")
    supernet = Supernet(NAS, NAS.mask(genotype), channels=4, cells=2, classes=5)
    network = Network(genotype, channels=4, cells=2, classes=5)
    weights = supernet.body.state_dict()
    network.body.load_state_dict({name: weights[name] for name in network.body.state_dict()})
    x = torch.randn(3, 3, 16, 16)
    assert torch.equal(supernet(x), network(x))


def test_a_pruned_operator_is_not_executed_and_keeps_its_weights():
    network = Supernet(NAS, channels=2, cells=1, classes=3)
    pruned = network.body.layers[0].edges[3]["nor_conv_3x3"]
    calls: list = []
    pruned.register_forward_hook(lambda *_: calls.append(1))
    weight = pruned.conv.weight.clone()
    x = torch.randn(2, 3, 8, 8)
    whole = network(x)
    assert calls == [1]
    network.set_mask(NAS.full_mask().without([Trial("cell", 3, "nor_conv_3x3")]))
    assert not torch.equal(network(x), whole)
    assert calls == [1]
    network.set_mask(NAS.full_mask())
    assert torch.equal(network(x), whole)
    assert torch.equal(pruned.conv.weight, weight)


@pytest.mark.parametrize("scheme", INITIALISERS)
def test_initialisation_depends_on_its_seed_alone(scheme):
    a, b = (Supernet(NAS, channels=3, cells=1, classes=10) for _ in range(2))
    torch.manual_seed(1)
    initialise(a, scheme, 5)
    torch.manual_seed(2)
    initialise(b, scheme, 5)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    initialise(b, scheme, 6)
    assert not torch.equal(a.body.stem[0].weight, b.body.stem[0].weight)


def test_initialisation_has_the_spread_it_is_named_for():
    network = Supernet(NAS, channels=64, cells=1, classes=10)
    conv = network.body.layers[1].conv_a  # 64 -> 128 channels: fan-in and fan-out differ
    for scheme, variance in (
        ("kaiming_fan_in", 2 / (64 * 9)),
        ("kaiming_fan_out", 2 / (128 * 9)),
        ("pytorch", 1 / (3 * 64 * 9)),  # uniform on +-1/sqrt(fan in)
    ):
        initialise(network, scheme, 0)
        assert conv.weight.var().item() == pytest.approx(variance, rel=0.02)
        assert network.body.classifier.bias.abs().max().item() > 0 if scheme == "pytorch" else True
        if scheme != "pytorch":
            assert network.body.classifier.bias.abs().max().item() == 0


def test_the_same_default_as_torchs_own():
    """``pytorch`` draws from the same distribution as ``reset_parameters``: same bounds, weight and bias."""
    network = Supernet(NAS, channels=16, cells=1, classes=10)
    fresh = network.body.classifier.weight.abs().max().item()
    initialise(network, "pytorch", 0)
    bound = 1 / 64**0.5
    for extreme in (fresh, network.body.classifier.weight.abs().max().item()):
        assert 0.95 * bound < extreme <= bound


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("scheme", INITIALISERS)
def test_computed_weights_are_drawn_as_plain_ones(scheme):
    """Weight and spectral norm, as hooks and as parametrizations: what the weight follows from is drawn, each time again."""

    def drawn(wrap, seed):
        layer = torch.nn.Sequential(wrap(torch.nn.Conv2d(3, 4, 3)))
        for number in range(2):
            initialise(layer, scheme, seed + number)
            layer(torch.randn(2, 3, 5, 5))
        return layer[0]

    utils, plain = torch.nn.utils, drawn(lambda layer: layer, 0)
    for wrap in (utils.weight_norm, utils.parametrizations.weight_norm, lambda layer: utils.weight_norm(layer, dim=None)):
        layer = drawn(wrap, 0)
        assert torch.allclose(layer.weight, plain.weight, rtol=1e-5, atol=1e-6)
        assert torch.equal(layer.bias, plain.bias)
    assert torch.equal(drawn(utils.spectral_norm, 0).weight_orig, plain.weight)
    assert torch.equal(drawn(utils.parametrizations.spectral_norm, 0).parametrizations.weight.original, plain.weight)
    assert not torch.allclose(drawn(utils.weight_norm, 5).weight, plain.weight)
    # Without a way back, a weight is kept as it was drawn.
    layer = torch.nn.Conv2d(3, 4, 3)
    before = 2 * layer.weight
    utils.parametrize.register_parametrization(layer, "weight", Doubled())
    initialise(layer, scheme, 0)
    assert torch.equal(layer.weight, before)


def test_bad_input_is_refused_with_a_sentence():
    with pytest.raises(TenasError, match="Unknown space"):
        Supernet("nowhere", channels=3, cells=1, classes=10)
    with pytest.raises(TenasError, match="at least 1 of channels"):
        SupernetCells("nas-bench-201", channels=0)
    with pytest.raises(TenasError, match="at least 1 of cells"):
        Network("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", channels=1, cells=0, classes=2)
    with pytest.raises(TenasError, match="Unknown initialisation 'orthogonal'; known: kaiming_fan_in"):
        initialise(SupernetCells("nas-bench-201", channels=1), "orthogonal", 0)
