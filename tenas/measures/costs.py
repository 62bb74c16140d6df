"""Costs of a network: parameters, multiply-accumulates, depth. MORE IS BETTER, as larger networks tend to be more accurate.

Masked operators do not count. Nothing is computed: a copy runs on the meta device in evaluation mode, so the values of weights
and images do not matter. Every other measure should be compared with these.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from tenas.measures.common import Observer, check_batch, check_eager, hooked, measuring, name_of
from tenas.networks import copied, count_flops, without_values


@measuring
def parameters(network: nn.Module, images: Tensor) -> int:
    """Trainable parameters of the modules that run: in a masked supernet, those of the active operators.

    A module that runs several times counts once. For a discrete network this equals ``tenas.networks.count_parameters``.
    """
    check_batch(images)
    counted: dict[int, int] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        counted.update((id(p), p.numel()) for p in module.parameters(recurse=False) if p.requires_grad)

    network, image = _on_meta(network, images)
    with hooked(network, nn.Module, note), without_values():
        network(image)
    return sum(counted.values())


@measuring
def flops(network: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates for one image of the batch's shape, counted as NAS-Bench-201 does (``tenas.networks.count_flops``)."""
    check_batch(images)
    check_eager(network)
    return count_flops(network, images.shape[1:])


@measuring
def layers(network: nn.Module, images: Tensor) -> int:
    """Depth: the number of convolutions and linear layers on the longest path from the images to the output.

    A layer is a matrix product or convolution with a parameter, called as a module or as a function. Depthwise and pointwise
    convolutions count one each; normalisation and pooling do not count. 0 if the output does not depend on the images.
    Trap: the longest path is not the most important one; in a residual block it is the branch with the convolutions.
    """
    check_batch(images)
    network, image = _on_meta(network, images)
    with without_values(), _Depths(network, image) as depths:
        output = network(image)
    return max((depths.of(tensor) or 0 for tensor in tree_leaves(output) if isinstance(tensor, Tensor)), default=0)


def _on_meta(network: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy of the network and one image, without values."""
    check_eager(network)
    return copied(network).to("meta").eval(), torch.empty_like(images[:1], device="meta")


class _Depths(Observer):
    """Tracks the number of layers between the image and each tensor, operator by operator.

    Depths are kept per storage, so that views and in-place writes need no special rules. A tensor that does not depend on the
    image has none.
    """

    PRODUCTS = frozenset({"convolution", "addmm", "mm", "bmm", "baddbmm", "linear"})

    def __init__(self, network: nn.Module, image: Tensor) -> None:
        super().__init__()
        self.weights = {self._key(parameter) for parameter in network.parameters()}
        self.depths = {self._key(image): 0}
        self.kept = [image]  # the key of a freed storage could be reused

    @staticmethod
    def _key(tensor: Tensor) -> int:
        key: int = tensor.untyped_storage()._cdata
        return key

    def of(self, tensor: Tensor) -> int | None:
        return self.depths.get(self._key(tensor))

    def saw(self, operator: OpOverload, read: object, out: Any) -> None:
        name = name_of(operator)
        tensors = [tensor for tensor in tree_leaves(read) if isinstance(tensor, Tensor)]
        depths = [depth for tensor in tensors if (depth := self.of(tensor)) is not None]
        # zeros_like and the like read shapes, not values.
        if depths and not name.endswith("_like") and not name.startswith("new_"):
            layer = name in self.PRODUCTS and any(self._key(tensor) in self.weights for tensor in tensors)
            for tensor in tree_leaves(out):
                if isinstance(tensor, Tensor):
                    self.depths[self._key(tensor)] = max(max(depths) + layer, self.of(tensor) or 0)
                    self.kept.append(tensor)
