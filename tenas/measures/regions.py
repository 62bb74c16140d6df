"""The number of linear regions that contain a set of inputs: expressivity (TE-NAS, section 3.1.2)."""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from tenas.errors import TenasError
from tenas.measures.common import Observer, undisturbed
from tenas.measures.pooling import FasterPooling
from tenas.measures.threads import one_thread

SATURATED = 0.95
# For inputs of fewer pixels, such as crops, intercepting poolings costs more than it saves.
PIXELS = 64


class SaturatedWarning(UserWarning):
    """Nearly every input has its own region, so the count reflects the number of inputs, not of regions."""


class _EnoughError(Exception):
    """Ends a forward pass early."""


class _ReluSigns(Observer):
    """Records the signs of each ReLU that runs, module or function.

    ``first_only``: end the pass with _EnoughError after the first one.
    """

    RELUS = (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)

    def __init__(self, samples: int, first_only: bool = False) -> None:
        super().__init__()
        self.samples, self.first_only = samples, first_only
        self.bits: list[np.ndarray] = []

    def saw(self, operator: OpOverload, read: object, out: Any) -> None:
        if operator in self.RELUS:
            if out.ndim == 0 or len(out) != self.samples:
                raise TenasError(
                    f"A ReLU gave {tuple(out.shape)} for {self.samples} inputs: its first dimension must be the samples."
                )
            self.bits.append((out > 0).reshape(self.samples, -1).cpu().numpy())
            if self.first_only:
                raise _EnoughError


def relu_signs(network: nn.Module, inputs: Tensor, *, first_only: bool = False) -> np.ndarray:
    """Which ReLU outputs are positive, for each input of one forward pass: (n, units) booleans.

    ``first_only``: only of the first ReLU; the pass ends there. A network without a ReLU gives (n, 0).
    Raises TenasError if a ReLU's first dimension is not the samples.
    """
    poolings = FasterPooling() if inputs.ndim == 4 and inputs.shape[2] * inputs.shape[3] >= PIXELS else nullcontext()
    with torch.no_grad(), poolings, suppress(_EnoughError), _ReluSigns(len(inputs), first_only) as signs:
        network(inputs)
    return np.concatenate(signs.bits, axis=1) if signs.bits else np.zeros((len(inputs), 0), bool)


def activation_patterns(network: nn.Module, inputs: Tensor, *, first_only: bool = False) -> np.ndarray:
    """``relu_signs`` as (n, bytes) uint8, eight units per byte."""
    return np.packbits(relu_signs(network, inputs, first_only=first_only), axis=1)


def count_distinct_rows(patterns: np.ndarray) -> int:
    """Exact number of distinct rows of (n, bytes) uint8, by sorting whole rows, n log n, instead of comparing all pairs."""
    n, width = len(patterns), int(patterns.shape[1])
    if n == 0 or width == 0:
        return min(n, 1)
    if width <= 8:  # a row is a number, which sorts several times faster than a string of bytes
        words = np.zeros((n, 8), np.uint8)
        words[:, :width] = patterns
        return len(np.unique(words.view(np.uint64)))
    return len(np.unique(np.ascontiguousarray(patterns).view(np.dtype((np.void, width)))))


def told_apart_at_once(network: nn.Module, blocks: Sequence[Tensor]) -> bool:
    """Whether the first ReLU alone gives each input a pattern of its own.

    Then all ReLUs do: more signs cannot make two patterns equal. Whole images usually have distinct patterns there, and most of
    the network need not run. Stops after the first block with two equal patterns.
    """
    found = []
    for block in blocks:
        found.append(activation_patterns(network, block, first_only=True))
        if count_distinct_rows(found[-1]) < len(block):
            return False
    patterns = np.concatenate(found)
    return count_distinct_rows(patterns) == len(patterns)


@one_thread()
def linear_regions(network: nn.Module, inputs: Tensor | Sequence[Tensor]) -> int:
    """R = the number of distinct sign patterns over all ReLU outputs: higher means more expressive.

    Every ReLU that runs counts, module or function. The network is measured in its current mode and not modified, running
    statistics included; in training mode, batch normalisation uses the statistics of each block.

    Args:
        network: any module; its output does not matter.
        inputs: (n, ...), or a sequence of such blocks. Each block is one forward pass, patterns are counted over all.

    Returns:
        between 1 and the number of inputs. From 95 % of it the count is saturated, with a SaturatedWarning.

    Raises:
        TenasError: for no inputs, or a ReLU whose first dimension is not the samples.

    Source: TE-NAS, section 3.1.2 and equation 5; one pattern per input, as in its released code.
    """
    blocks = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    total = sum(len(block) for block in blocks)
    if total == 0:
        raise TenasError("The number of linear regions of no inputs is not defined.")
    with undisturbed(network):
        if told_apart_at_once(network, blocks):
            count = total
        else:
            count = count_distinct_rows(np.concatenate([activation_patterns(network, block) for block in blocks]))
    if count >= SATURATED * total:
        warnings.warn(
            # The same text for the same inputs, so that Python shows it once and not for every count.
            f"Nearly each of the {total} inputs lies in a linear region of its own: saturated, use more or smaller inputs.",
            SaturatedWarning,
            stacklevel=3,  # of whoever called: one_thread lies between
        )
    return count
