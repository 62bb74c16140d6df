"""What a network costs: parameters, and multiply-accumulates of one image."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def count_parameters(network: nn.Module) -> int:
    """Trainable numbers of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def layer_flops(layer: nn.Conv2d | nn.Linear, output: Tensor) -> int:
    """Multiply-accumulates of one run of a layer: one for each multiplication, one for each number that a bias is added to."""
    return output.numel() * layer.weight[0].numel() + (0 if layer.bias is None else output.numel())


def count_flops(network: nn.Module, image_shape: Sequence[int]) -> int:
    """Multiply-accumulates of the network for one image of ``image_shape`` (channels, height, width), in evaluation mode.

    Counted as the "FLOPs" of NAS-Bench-201: one for each multiplication of a convolution or a linear layer, one for each
    number that a bias is added to; normalisation, poolings and sums are not counted. Papers in the DARTS space count
    some of those too, and say 2 to 8 % more (P-DARTS on ImageNet 557 M, here 543 M; DARTS 574 M, here 530 M).

    Only layers that run count, each time that they run. The network is left as it is, and nothing is computed: a copy
    on the meta device runs.
    """
    total = 0

    def add(layer: nn.Conv2d | nn.Linear, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += layer_flops(layer, output)

    network = copy.deepcopy(network).to("meta").eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    with torch.no_grad():
        network(torch.empty(1, *image_shape, device="meta"))
    return total
