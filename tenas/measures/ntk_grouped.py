"""Condition numbers of the kernels of many networks side by side in one (tenas.networks.grouped)."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tenas.errors import TenasError
from tenas.measures.common import collector_paused, measuring
from tenas.measures.ntk import checked_parameters, condition_number, gradient_dtype
from tenas.measures.ntk_engine import LIVE_COTANGENTS, recorded
from tenas.measures.ntk_reverse import carried
from tenas.measures.sizes import fitting, sizes


@functools.partial(measuring, drawn=True)
def ntk_grams(network: nn.Module, images: Tensor, count: int) -> Tensor:
    """``ntk_gram`` of ``count`` networks side by side: their kernels, to rounding.

    One forward and one reverse pass for all: cotangent i starts at sample i's logits of every network; as networks do not mix,
    the gradient of a weight is that of its own network.

    Args:
        network: of ``grouped``, from (n, count * c, h, w) to logits (n, count * classes).
        images: one batch per network, side by side.
        count: number of networks.

    Returns:
        (count, n, n) float64, symmetric, on the CPU; the only synchronisation with the device.

    Raises:
        TenasError: for an empty batch, a network without weights, or one whose output has no rows of logits.
    """
    parameters = checked_parameters(network, images)
    n = len(images)
    with collector_paused(), recorded(network, images, parameters, compiled=False) as (tape, logits):
        shape = logits.tensor.shape
        if len(shape) != 2 or shape[0] != n or shape[1] % count:
            raise TenasError(f"{count} networks must map {n} samples to as many rows of logits each; they gave {tuple(shape)}.")
        if not logits.active:
            return torch.zeros(count, n, n, dtype=torch.float64)
        cotangents = carried(tape, logits, 0, n, gpu=True)
        found = [cotangents.pop(parameter).reshape(n, count, -1) for parameter in tape.parameters if parameter in cotangents]
    rows = torch.cat(found, 2).transpose(0, 1).to(torch.float64)
    grams = torch.bmm(rows, rows.mT).cpu()
    return (grams + grams.mT) / 2


def values(network: nn.Module, inputs: tuple[Tensor, ...], count: int) -> Sequence[float]:
    """``ntk_condition_number`` of ``count`` networks side by side. ``inputs``: (images,)."""
    (images,), dtype = inputs, gradient_dtype(network)
    return [condition_number(gram, dtype=dtype) for gram in ntk_grams(network, images, count)]


def together(network: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Number of networks like this one side by side on a GPU: those that fit in a constant budget, by the shapes of one."""
    (images,) = inputs
    n, found = len(images), sizes(network, images.shape)
    # The values of the forward pass, n cotangents of some of them, and each weight's gradients: parts, whole, in float64.
    weights = sum(parameter.nbytes for parameter in network.parameters())
    return fitting(found.total + LIVE_COTANGENTS * n * found.largest + 4 * n * weights)
