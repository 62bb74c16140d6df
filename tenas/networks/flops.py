"""The costs of a network: parameters, and multiply-accumulates per image."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def count_parameters(network: nn.Module) -> int:
    """Number of parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def layer_flops(layer: nn.Conv2d | nn.Linear, output: Tensor) -> int:
    """Multiply-accumulates of one call of a layer: one per multiplication, and one per output if there is a bias."""
    return output.numel() * layer.weight[0].numel() + (0 if layer.bias is None else output.numel())


def copied(network: nn.Module) -> nn.Module:
    """Copy a network, even one that holds tensors of a pass (stored features, weights computed by an old weight norm).

    Such tensors belong to a graph, which cannot be copied; the copy has plain tensors instead.
    """
    held = [leaf for module in network.modules() for leaf in tree_leaves(vars(module)) if isinstance(leaf, Tensor)]
    return copy.deepcopy(network, {id(tensor): tensor.detach() for tensor in held if not tensor.is_leaf})


def count_flops(network: nn.Module, image_shape: Sequence[int]) -> int:
    """Multiply-accumulates of the network for one image of ``image_shape`` (channels, height, width), in evaluation mode.

    Counted as the "FLOPs" of NAS-Bench-201: one per multiplication of a convolution or a linear layer, and one per output with a
    bias; normalisation, poolings and sums are not counted. Papers in the DARTS space count some of those too, and report 2 to 8 %
    more (P-DARTS on ImageNet 557 M, here 543 M; DARTS 574 M, here 530 M).

    A layer counts each time that it runs. The network is not modified and nothing is computed: a copy runs on the meta device.
    """
    total = 0

    def add(layer: nn.Conv2d | nn.Linear, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += layer_flops(layer, output)

    network = copied(network).to("meta").eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    with torch.no_grad():
        network(torch.empty(1, *image_shape, device="meta"))
    return total
