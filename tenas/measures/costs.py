"""Costs of a network: parameters, multiply-accumulates, depth. MORE IS BETTER, as larger networks tend to be more accurate.

Masked operators do not count. Nothing is computed: a copy runs on the meta device in evaluation mode, so the values of weights
and images do not matter. Every other measure should be compared with these.
"""

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from tenas.errors import TenasError
from tenas.measures.common import PRODUCTS, ParametersRead, check_batch, check_eager, hooked, measuring
from tenas.networks import count_flops, on_meta, without_values
from tenas.networks.flops import counted
from tenas.networks.observer import ByStorage, Marks, Observer, name_of, tensors_in


@functools.partial(measuring, values=False)
def parameters(network: nn.Module, images: Tensor) -> int:
    """Trainable parameters that a pass uses: in a masked supernet, those of the active operators.

    They are those of the modules that run, and those that any operator reads. A parameter counts once, however often it is used
    and whoever shares it. For a discrete network whose parameters are all used, this equals ``tenas.networks.count_parameters``.
    """
    check_batch(images)
    network, image = _on_meta(network, images)
    read = ParametersRead(network)

    def note(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        read.found.update(map(id, module.parameters(recurse=False)))

    def run() -> None:
        with without_values(), read, hooked(network, nn.Module, note):
            network(image)

    counted(run)
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad and id(parameter) in read.found)


@functools.partial(measuring, values=False)
def flops(network: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates for one image of the batch's shape, counted as NAS-Bench-201 does (``tenas.networks.count_flops``)."""
    check_batch(images)
    check_eager(network)
    return count_flops(network, images.shape[1:], images.dtype)


@functools.partial(measuring, values=False)
def layers(network: nn.Module, images: Tensor) -> int:
    """Depth: the number of convolutions and linear layers on the longest path from the images to the output.

    A layer is a matrix product or convolution with a parameter, called as a module or as a function. Depthwise and pointwise
    convolutions count one each; normalisation and pooling do not count. 0 if the output does not depend on the images.
    Trap: the longest path is not the most important one; in a residual block it is the branch with the convolutions.
    """
    check_batch(images)
    network, image = _on_meta(network, images)

    def run() -> int:
        with without_values(), _Depths(network, image) as depths:
            output = network(image)
        found = [leaf for leaf in tree_leaves(_opened(output)) if isinstance(leaf, Tensor)]
        if not found:
            raise TenasError(f"The network's output, a {type(output).__name__}, has no tensor to count layers to.")
        return max(depths.depths.get(tensor) or 0 for tensor in found)

    return counted(run)


def _opened(output: Any) -> Any:
    """The values of a data class; another output as it is."""
    is_data = dataclasses.is_dataclass(output) and not isinstance(output, type)
    return [_opened(getattr(output, field.name)) for field in dataclasses.fields(output)] if is_data else output


def _on_meta(network: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy of the network and one image, without values."""
    check_eager(network)
    return on_meta(network), torch.empty_like(images[:1], device="meta")


class _Depths(Observer):
    """Tracks the number of layers between the image and each tensor, operator by operator.

    Depths are kept per storage, so that views and in-place writes need no special rules. A tensor that does not depend on the
    image has none.
    """

    def __init__(self, network: nn.Module, image: Tensor) -> None:
        super().__init__()
        self.weights = Marks()
        self.weights.add(list(network.parameters()))
        self.depths = ByStorage[int]()
        self.depths[image] = 0

    def saw(self, operator: OpOverload, read: object, out: Any) -> None:
        name = name_of(operator)
        tensors = tensors_in(read)
        depths = [depth for tensor in tensors if (depth := self.depths.get(tensor)) is not None]
        # What is computed from weights alone is one: weight and spectral norm, standardised weights.
        if not depths and any(map(self.weights.has, tensors)):
            self.weights.add(out)
        # zeros_like and the like read shapes, not values.
        if depths and not name.endswith("_like") and not name.startswith("new_"):
            layer = name in PRODUCTS and any(map(self.weights.has, tensors))
            for tensor in tensors_in(out):
                self.depths[tensor] = max(max(depths) + layer, self.depths.get(tensor) or 0)
