"""Memory of the values of a forward pass, from the shapes of a pass of two samples."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from tenas.measures.common import undisturbed
from tenas.networks.observer import Observer

# Peak memory of a pass on a GPU: of networks side by side, or of the cotangents of one. A constant, not the free memory: it
# determines how many go together, which kernels torch's libraries therefore choose, and with them the last bits.
BUDGET = 4 * 2**30
SAMPLES = 2  # one sample is too few for a batch normalisation of features without positions


class Sizes(NamedTuple):
    """Bytes of the largest value of a pass, and of all values, including views."""

    largest: int
    total: int


class _Sizes(Observer):
    def __init__(self) -> None:
        super().__init__()
        self.found = [0]

    def saw(self, operator: OpOverload, read: object, out: Any) -> None:
        self.found += [value.nbytes for value in (out if isinstance(out, tuple | list) else (out,)) if isinstance(value, Tensor)]


def sizes(network: nn.Module, shape: Sequence[int]) -> Sizes:
    """Sizes of the values of one pass of a batch of ``shape``, (n, ...). The network is not modified."""
    first = next(network.parameters())
    with undisturbed(network), torch.no_grad(), _Sizes() as seen:
        network(torch.zeros(SAMPLES, *shape[1:], dtype=first.dtype, device=first.device))
    return Sizes(max(seen.found) * shape[0] // SAMPLES, sum(seen.found) * shape[0] // SAMPLES)


def fitting(bytes_each: int) -> int:
    """Number of networks of this size that fit side by side, at least 1."""
    return max(1, BUDGET // bytes_each)
