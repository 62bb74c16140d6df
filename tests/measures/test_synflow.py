"""LogSynFlow, next to the tests of SynFlow in test_baselines.py."""

import math

import pytest
import torch
from torch import nn

from tenas.errors import TenasError
from tenas.measures import log_synflow, synflow
from tenas.networks import Network, initialise

ARCH = "|nor_conv_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|avg_pool_3x3~0|skip_connect~1|nor_conv_3x3~2|"


def test_log_synflow_of_two_layers_by_counting_paths():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 3, bias=False), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 4, bias=False))
    network[1].weight.data.fill_(7)
    network[1].running_mean.fill_(3)
    a, b = (layer.weight.detach().abs().double().tolist() for layer in (network[0], network[3]))
    expected = 0.0
    for i in range(3):
        for j in range(5):
            expected += a[i][j] * math.log(1 + sum(b[k][i] for k in range(4)))
        for k in range(4):
            expected += b[k][i] * math.log(1 + sum(a[i][j] for j in range(5)))
    assert log_synflow(network, torch.randn(6, 5)) == pytest.approx(expected, rel=1e-12)


def test_signs_and_images_do_not_matter():
    network = Network(ARCH, channels=4, cells=1, classes=4)
    initialise(network, "kaiming_fan_in", 0)
    values = [log_synflow(network, torch.randn(n, 3, 8, 8)) for n in (2, 5)]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(-1)
    assert values[0] == values[1] == log_synflow(network, torch.zeros(1, 3, 8, 8)) > 0


def test_a_disconnected_network_has_no_flow():
    """Nothing comes from the input; the flow of the classifier's bias reaches no weight."""
    dead = Network("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", channels=4, cells=1, classes=4)
    initialise(dead, "kaiming_fan_in", 0)
    assert log_synflow(dead, torch.zeros(1, 3, 8, 8)) == synflow(dead, torch.zeros(1, 3, 8, 8)) == 0


@pytest.mark.parametrize("function", [synflow, log_synflow])
def test_a_flow_that_overflows_is_a_sentence(function):
    network = nn.Sequential(*(nn.Linear(60, 60, bias=False) for _ in range(40)))
    for layer in network:
        nn.init.constant_(layer.weight, 1e8)
    with pytest.raises(TenasError, match="overflows float64"):
        function(network, torch.zeros(1, 60))


@pytest.mark.parametrize("training", [True, False])
def test_the_network_has_its_own_numbers_back(training):
    """Also where its gradients, a frozen weight, tied weights and a wrapped method are at stake, and after an error."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)).train(
        training
    )
    network[4].weight = network[3].weight
    network[0].bias.requires_grad_(False)
    inner = network[1].forward
    network[1].forward = lambda x: inner(x)
    wrapper = network[1].forward
    network(torch.randn(2, 3, 4, 4)).sum().backward()
    tensors = [*network.parameters(), *network.buffers()]
    before = [(t.data_ptr(), t.dtype, t.clone(), None if t.grad is None else t.grad.clone()) for t in tensors]
    assert synflow(network, torch.zeros(1, 3, 4, 4)) > 0
    with pytest.raises(RuntimeError):
        synflow(network, torch.zeros(1, 5, 4, 4))
    for tensor, (place, dtype, value, gradient) in zip(tensors, before, strict=True):
        assert (tensor.data_ptr(), tensor.dtype) == (place, dtype)
        assert torch.equal(tensor, value)
        assert gradient is None or torch.equal(tensor.grad, gradient)
    assert network[1].forward is wrapper
    assert network.training == network[1].training == training
    assert not network[0].bias.requires_grad
    network(torch.randn(2, 3, 4, 4)).sum().backward()
