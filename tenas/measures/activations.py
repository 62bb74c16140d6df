"""Measures of activations: SWAP and NEAR. MORE IS BETTER in both; no labels, no gradients.

The network is measured in its current mode and not modified. Both measures see every activation function that runs, module or
function. An activation that several layers read, such as the ReLU of a node in this package's cells, counts once; papers whose
networks have one ReLU per convolution count it once per convolution.
"""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from tenas.errors import TenasError
from tenas.measures.common import (
    LeftOutWarning,
    by_channel,
    check_batch,
    check_eager,
    layers_called,
    measuring,
    undisturbed,
)
from tenas.measures.regions import WHOLE, count_distinct_rows, is_guard, relu_signs
from tenas.networks.observer import Marks, Observer, by_parts, plain_name


@measuring
def swap(network: nn.Module, images: Tensor) -> int:
    """Number of distinct sample-wise activation patterns, a pattern being the states of one ReLU unit over all images.

    The sign matrix of ``linear_regions`` transposed: units are rows, images are columns, distinct rows are counted.
    0 without a ReLU.

    Source: Peng et al., SWAP-NAS: Sample-Wise Activation Patterns for Ultra-fast NAS, ICLR 2024 (SWAP-score, without the
    regularisation by the number of parameters); there on 16 real images. Traps: at most 2^n and at most the number of units.
    It saturates at 2^n with few images and many units, and merely counts the units if all of them differ.
    """
    check_batch(images)
    with undisturbed(network):
        signs = relu_signs(network, images)
    if signs.shape[1] == 0:
        return 0
    return _distinct_columns(signs)


# Up to so many images, each possible pattern has an entry in a table.
TABLED = 16


def _distinct_columns(signs: np.ndarray) -> int:
    """Distinct columns of (n, units) booleans, exactly."""
    if len(signs) > TABLED:
        return count_distinct_rows(np.packbits(signs, axis=0).T)
    words = np.zeros(signs.shape[1], np.uint16)
    for row, states in enumerate(signs):
        words |= states.astype(np.uint16) << row
    seen = np.zeros(2 ** len(signs), bool)
    seen[words] = True
    return int(np.count_nonzero(seen))


@measuring
def near(network: nn.Module, images: Tensor) -> float:
    """Sum over layers of the effective rank of their outputs, before and after the activation function.

    The effective rank of a matrix is exp(-sum p log p), p its singular values divided by their sum (Roy and Vetterli,
    The effective rank, EUSIPCO 2007). The matrices: the output of each convolution and linear layer, and that of each
    activation function, as (images and positions) x channels. A matrix of zeros, or one that overflows, has rank 0.

    Source: Husistein, Reiher and Eckhoff, NEAR: A Training-Free Pre-Estimator of Machine Learning Model Performance,
    ICLR 2025 (effective rank of the pre-activation plus that of the post-activation matrix of each layer). The paper takes as
    many contiguous rows of a convolution's matrix as it has channels, chosen at random; here the whole matrix is used, without
    randomness. Traps: a rank is at most the number of channels, so NEAR follows width and depth; matrices are not
    centred, and a large mean lowers the rank.
    """
    check_batch(images)
    check_eager(network)
    ranks: list[float] = []
    functions = _ActivationFunctions(network, images, ranks)

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        functions.after, functions.shape = module, output.shape
        ranks.append(_effective_rank(output if output.ndim == 1 else by_channel(output, module)))

    with undisturbed(network), by_parts(network), torch.no_grad(), layers_called(network, note), functions:
        network(images)
    if functions.left_out:
        named = ", ".join(sorted(functions.left_out))
        text = f"NEAR is over activation functions that run under their names, the images being the first dimension: not {named}."
        warnings.warn(text, LeftOutWarning, stacklevel=3)
    if not ranks:
        raise TenasError("NEAR needs a network with a convolution, a linear layer or an activation function.")
    return sum(ranks)


def _effective_rank(output: Tensor) -> float:
    """exp of the entropy of the normalised singular values of (n, channels, ...) as (n * positions) x channels."""
    rows = output.movedim(1, -1).reshape(-1, output.shape[1]).double() if output.ndim > 1 else output.double()[:, None]
    # Eigenvalues are accurate to 1e-16 of the largest, singular values to 1e-8: enough for an entropy.
    gram = rows.T @ rows if rows.shape[0] >= rows.shape[1] else rows @ rows.T
    if not gram.isfinite().all() or not gram.any():
        return 0.0
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp().item())


class _ActivationFunctions(Observer):
    """Appends the effective rank of each activation function's result to ``ranks``.

    ``after``: the layer that ran last, with an output of ``shape``, which tells which dimension has the channels of a result like
    it. A result that is not like it and has no row for each image is of something else, such as of weights.
    """

    NAMES = frozenset({"relu", "leaky_relu", "elu", "celu", "gelu", "silu", "mish", "softplus", "sigmoid", "tanh", "hardtanh",
                       "hardswish", "hardsigmoid", "rrelu_with_noise", "_prelu_kernel", "threshold", "softshrink", "hardshrink",
                       "log_sigmoid_forward", "glu"})  # fmt: skip

    BOUNDS = frozenset({"clamp", "clamp_min", "clamp_max", "maximum", "minimum", "where"})

    def __init__(self, network: nn.Module, images: Tensor, ranks: list[float]) -> None:
        super().__init__()
        self.samples, self.ranks = len(images), ranks
        # What follows from them alone is no activation.
        self.weights = Marks()
        self.weights.add([*network.parameters(), *network.buffers()])
        self.weights.discard(images)
        self.left_out: set[str] = set()
        self.after: Any = None
        self.shape: torch.Size | None = None

    def saw(self, operator: OpOverload, read: Any, out: Any) -> None:
        name = plain_name(operator)
        if self.weights.follow(operator, read, out):
            return
        if name in WHOLE:
            raise TenasError(f"NEAR does not see the activation functions within {name}, which torch runs as one operator.")
        # Numbers by themselves are no units.
        if name in self.BOUNDS and out.ndim > 1 and len(out) == self.samples and not is_guard(read[0]):
            self.left_out.add(name)
        if name in self.NAMES:
            made = out[0] if isinstance(out, tuple) else out
            # But for the last dimension, which a gated activation function halves.
            like = self.shape is not None and made.ndim == len(self.shape) and made.shape[:-1] == self.shape[:-1]
            if like or made.shape[:1] == (self.samples,):
                self.ranks.append(_effective_rank(self._by_channel(made, like=like)))
            elif made.numel() > 1:
                self.left_out.add(name)

    def _by_channel(self, made: Tensor, *, like: bool) -> Tensor:
        """A result as (n, channels, ...). ``like``: whether it has the dimensions of the last layer's output."""
        if made.ndim < 3 or self.after is None:
            return made
        channels = self.after.out_features if isinstance(self.after, nn.Linear) else self.after.out_channels
        last = (isinstance(self.after, nn.Linear) and like) or made.shape[1] != channels == made.shape[-1]
        return made.movedim(-1, 1) if last else made
