"""Synaptic flow: SynFlow and LogSynFlow. MORE IS BETTER in both.

One backward pass through the network of absolute weights, without batch normalisation, for one input of ones. Only the shape and
device of the batch matter. The network's own values are restored after the pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tenas.errors import TenasError
from tenas.measures.common import (
    BatchNorms,
    check_batch,
    gradients_of,
    measuring,
    output_of,
    undisturbed,
    weights_of,
)


def synaptic_flow(network: nn.Module, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(|w|, dR/d|w|) of each weight, R the sum of the outputs for one input of ones: float64, in the order of the layers.

    Batch normalisation is the identity: it would subtract the mean of the single input, and the flow would not be conserved.
    Biases enter as absolute values and do not count as weights.
    Raises TenasError for an empty batch, a network without weights, and a flow that overflows float64.
    """
    check_batch(images)
    if name := next((name for name, tensor in network.named_parameters() if tensor.is_complex()), None):
        raise TenasError(f"SynFlow runs in real numbers, and the network's {name} is complex.")
    with undisturbed(network), _absolute(network), BatchNorms(network, _identity):
        weights = weights_of(network)
        ones = torch.ones_like(images[:1], dtype=torch.float64)
        with torch.enable_grad():
            try:
                flow = output_of(network, ones).sum()
            except RuntimeError as error:
                if not any(text in str(error) for text in ("dtype", "scalar type", "Input type")):
                    raise
                said = str(error).splitlines()[0].rstrip(".")
                raise TenasError(f"SynFlow runs in float64, and this network makes tensors of another type: {said}.") from error
            gradients = gradients_of(flow, weights)
        if not all(gradient.isfinite().all() for gradient in gradients):
            raise TenasError("The synaptic flow of this network overflows float64: it is too deep and wide for SynFlow.")
        # Separate tensors: the parameters' own data is restored.
        return [(weight.data, gradient) for weight, gradient in zip(weights, gradients, strict=True)]


@contextmanager
def _absolute(network: nn.Module) -> Iterator[None]:
    """Within the block: absolute parameters in float64, floating-point buffers in float64.

    Not a copy of the network, which takes as long as the pass: the data of its tensors is exchanged and restored.
    """
    tensors = [*network.parameters(), *(buffer for buffer in network.buffers() if buffer.is_floating_point())]
    held = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            double = tensor.data.to(torch.float64, copy=True)
            tensor.data = double.abs_() if isinstance(tensor, nn.Parameter) else double
        yield
    finally:
        for tensor, data in zip(tensors, held, strict=True):
            tensor.data = data


def _identity(input: Tensor, *others: object) -> Tensor:
    """A batch normalisation without effect. A copy: an activation function may work in place, and others may read the input."""
    return input.clone()


@measuring
def synflow(network: nn.Module, images: Tensor) -> float:
    """sum over weights of w dR/dw, R the sum of the outputs for one input of ones, in the network of absolute weights.

    Source: Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, NeurIPS 2020,
    equation 3 and algorithm 1.
    Traps: values grow with the product of the widths, 10^30 and more for deep networks, past float32; in ranks it is close
    to depth and width.
    """
    return sum((weight * gradient).sum().item() for weight, gradient in synaptic_flow(network, images))


@measuring
def log_synflow(network: nn.Module, images: Tensor) -> float:
    """sum over weights of |w| log(dR/dw + 1), with SynFlow's R and its network of absolute weights.

    The logarithm keeps a few layers with exploding gradients from dominating the sum.
    Source: Cavagnero et al., FreeREA: Training-Free Evolution-based Architecture Search, WACV 2023.
    Traps: not conserved from layer to layer, unlike SynFlow; depends on the scale of the initialisation. The absolute value of
    the gradient is taken, which matters only for activation functions that can decrease, such as GELU.
    """
    return sum((weight * gradient.abs().log1p()).sum().item() for weight, gradient in synaptic_flow(network, images))
