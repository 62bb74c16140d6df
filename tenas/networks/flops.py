"""The costs of a network: parameters, and multiply-accumulates per image."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tenas.errors import TenasError


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


@contextmanager
def without_values() -> Iterator[None]:
    """Run networks on the meta device within the block. Raises TenasError for a network with an operator that needs values."""
    try:
        with torch.no_grad():
            yield
    except RuntimeError as error:
        if "meta" not in str(error).lower():
            raise
        said = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
        raise TenasError(f"Costs are counted without values, and an operator of this network needs them: {said}.") from error


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
    with without_values():
        network(torch.empty(1, *image_shape, device="meta"))
    return total
