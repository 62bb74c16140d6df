"""The number of linear regions that contain a set of inputs: expressivity (TE-NAS, section 3.1.2)."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from tenas.errors import TenasError
from tenas.measures.common import check_eager, is_all_ours, is_ours, is_plain, measuring, modules_of, undisturbed
from tenas.measures.pooling import FasterPooling
from tenas.networks.observer import Marks, Observer, by_parts, is_torchs, plain_name, tensors_in

SATURATED = 0.95
# Largest number that counts as a guard against a division by zero.
GUARD = 1e-3
# For inputs of fewer pixels, such as crops, intercepting poolings costs more than it saves.
PIXELS = 64


class SaturatedWarning(UserWarning):
    """Nearly every input has its own region, so the count reflects the number of inputs, not of regions."""


class _EnoughError(Exception):
    """Ends a forward pass early."""


class SmoothActivationWarning(UserWarning):
    """Some of what bends in a network is not part of its patterns: smooth activation functions, and what is not known as one."""


def _above_zero(args: Sequence[Any], out: Tensor) -> tuple[Tensor, ...]:
    return (out > 0,)


def _either_side(args: Sequence[Any], out: Tensor) -> tuple[Tensor, ...]:
    return (out >= 0, out > 0)


def _input_above_zero(args: Sequence[Any], out: Tensor) -> tuple[Tensor, ...]:
    return (args[0] > 0,)


def _leaky(args: Sequence[Any], out: Tensor) -> tuple[Tensor, ...]:
    if (args[1] if len(args) > 1 else 0.01) < 0:
        raise TenasError("A leaky ReLU with a negative slope folds: its output does not say in which piece the input lies.")
    return (out > 0,)


def _clamped(args: Sequence[Any], out: Tensor) -> tuple[Tensor, ...]:
    low, high = [*args[1:3], None, None][:2]
    return (*(() if low is None else (out > low,)), *(() if high is None else (out >= high,)))


def _threshold(args: Sequence[Any], out: Tensor) -> tuple[Tensor, ...]:
    return (out != args[2],)  # below the threshold it is a constant, which may be above it


def _clamped_above(args: Sequence[Any], out: Tensor) -> tuple[Tensor, ...]:
    return (out >= args[1],)


def _clamped_below(args: Sequence[Any], out: Tensor) -> tuple[Tensor, ...]:
    return (out > args[1],)


def _hard_tanh(args: Sequence[Any], out: Tensor) -> tuple[Tensor, ...]:
    return _clamped((args[0], *[*args[1:], *(-1.0, 1.0)[len(args) - 1 :]]), out)


def _hard_sigmoid(args: Sequence[Any], out: Tensor) -> tuple[Tensor, ...]:
    return (out > 0, out >= 1)


# Activation functions with linear pieces: for each, which side of each kink a unit is on. By the output: the input may have been
# overwritten.
_KINKS: dict[str, Callable[[Sequence[Any], Tensor], tuple[Tensor, ...]]] = {
    "relu": _above_zero, "leaky_relu": _leaky, "_prelu_kernel": _input_above_zero, "rrelu_with_noise": _above_zero,
    "threshold": _threshold, "hardtanh": _hard_tanh, "hardsigmoid": _hard_sigmoid, "softshrink": _either_side,
    "hardshrink": _either_side, "clamp": _clamped, "clamp_min": _clamped_below, "clamp_max": _clamped_above,
}  # fmt: skip
_SMOOTH = frozenset({"elu", "celu", "gelu", "silu", "mish", "softplus", "sigmoid", "tanh", "hardswish", "log_sigmoid_forward"})
# Recurrent layers, and layers of transformers, as one operator: what they have of sigmoid, tanh and ReLU is not to be seen.
WHOLE = frozenset({"mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell",
                   "_transformer_encoder_layer_fwd"})  # fmt: skip
# They bend too, but whether they are activation functions is not to be seen.
_OTHERS = frozenset({"abs", "maximum", "minimum", "fmax", "fmin", "where", "glu", "sin", "cos", "tan", "sinh", "cosh", "asinh",
                     "heaviside", "sign", "sgn", "round", "floor", "ceil", "trunc", "frac", "remainder", "fmod", "hypot", "atan",
                     "atan2", "erf", "erfc", "expm1", "log1p", "square", "topk", "sort", "kthvalue",
                     "median", "_cdist_forward", "signbit", "copysign", "cummax", "cummin", "aminmax", "logaddexp",
                     "bucketize", "searchsorted", "sinc"})  # fmt: skip
# The largest or smallest over channels, as in maxout; over positions they are a pooling.
_EXTREMES = frozenset({"max", "min", "amax", "amin"})
# Comparisons of numbers bend what is multiplied by them, or written where they hold; what is made of them too.
_COMPARISONS = frozenset({"gt", "ge", "lt", "le", "eq", "ne"})
_OF_COMPARISONS = frozenset({"_to_copy", "logical_not", "bitwise_not", "logical_and", "bitwise_and", "logical_or", "bitwise_or",
                             "logical_xor", "bitwise_xor", "rsub", "sub", "add"})  # fmt: skip
_BY_COMPARISONS = frozenset({"mul", "masked_fill", "index_put", "masked_scatter", "addcmul", "lerp"})
# Not always activation functions: calls on tensors without the samples' dimension are skipped.
_BOUNDS = frozenset({"clamp", "clamp_min", "clamp_max"})


def is_guard(args: Sequence[Any]) -> bool:
    """Whether the arguments of a lower bound are those of a guard against a division by zero."""
    least = args[1] if len(args) == 2 else None
    return least is not None and bool(((torch.as_tensor(least) > 0) & (torch.as_tensor(least) <= GUARD)).all())


class _Signs(Observer):
    """Records for each activation function that runs, module or function, in which of its linear pieces each unit is.

    ``first_only``: end the pass with _EnoughError after the first one. ``poolings``: whose operators are not the network's.
    ``weights``: tensors of the network, if it may bend those too: what follows from them alone is no activation.
    """

    def __init__(self, samples: int, first_only: bool, poolings: FasterPooling, weights: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.poolings = poolings
        self.samples, self.first_only = samples, first_only
        self.weights, self.norms, self.compared, self.flat = Marks(), Marks(), Marks(), Marks()
        self.weights.add(list(weights))
        self.bits: list[np.ndarray] = []
        self.smooth: set[str] = set()
        self.others: set[str] = set()

    def saw(self, operator: OpOverload, read: Any, out: Any) -> None:
        name = plain_name(operator)
        if self.weights:
            if self.weights.follow(operator, read, out):
                return
            if isinstance(out, Tensor) and out.ndim == 2 and self._is_of_samples(out):
                self.flat.add(out)
        if name == "linalg_vector_norm" or (name == "clone" and self.norms.has(read)):
            self.norms.add(out)
        if (name in _COMPARISONS and any(tensor.is_floating_point() for tensor in tensors_in(read))) or (
            name in _OF_COMPARISONS and self.compared and self.compared.has(read)
        ):
            self.compared.add(out)
        kinks = _KINKS.get(name)
        if kinks is None:
            if name in _SMOOTH or name in WHOLE:
                self.smooth.add(name)
            elif self._is_of_samples(out[0] if isinstance(out, tuple) else out):
                named = name in _OTHERS or not is_torchs(operator)
                if (named or self._bends(name, *read)) and not self.poolings.running:
                    self.others.add(name)
                if name in _BY_COMPARISONS and self.compared and any(map(self.compared.has, tensors_in(read))):
                    self.others.add("a comparison")
            return
        if name in _BOUNDS and (not self._is_of_samples(out) or self._is_guard(name, read[0])):
            if out.ndim > 1 and out.is_floating_point() and not self._is_of_samples(out) and not is_guard(read[0]):
                self.others.add(name)
            return
        if not self._is_of_samples(out):
            raise TenasError(
                f"A ReLU gave {tuple(out.shape)} for {self.samples} inputs: its first dimension must be the samples."
            )
        for side in kinks(read[0], out):
            self.bits.append(side.reshape(self.samples, -1).cpu().numpy())
        if self.first_only:
            raise _EnoughError

    def _bends(self, name: str, args: Sequence[Any], named: Mapping[str, Any]) -> bool:
        """Whether an operator is an extreme over channels, or a power that is none of a mean square, a root or a quotient.

        Of a map, or of positions, an extreme over those is a pooling; units (n, units) may be in groups (n, groups, units).
        """
        other = args[1] if len(args) > 1 else named.get("dim")
        if name == "pow":
            return isinstance(other, Tensor) or other not in (1, 2, 0.5, -0.5, -1, -2)
        dims = [other] if isinstance(other, int) else other
        if name not in _EXTREMES or not isinstance(dims, list | tuple):
            return False
        return self.flat.has(args[0]) if args[0].ndim < 4 else [dim % args[0].ndim for dim in dims] == [1]

    def _is_of_samples(self, made: object) -> bool:
        return isinstance(made, Tensor) and made.ndim > 0 and len(made) == self.samples

    def _is_guard(self, name: str, args: Sequence[Any]) -> bool:
        """Whether a bound keeps a division by a norm from being one by zero."""
        return name == "clamp_min" and self.norms.has(args[:1]) and is_guard(args)


def relu_signs(network: nn.Module, inputs: Tensor, *, first_only: bool = False) -> np.ndarray:
    """In which linear piece each unit of each activation function is, for each input of one forward pass: (n, units) booleans.

    One boolean per unit of a ReLU, or of another function with one kink (leaky and parametric ReLU, threshold, bounds on one
    side); two with two kinks (ReLU6, hard tanh and sigmoid, shrinkage, bounds on both sides). A network without any gives (n, 0).

    ``first_only``: only of the first one; the pass ends there.

    Raises TenasError if a ReLU's first dimension is not the samples, and for a network whose activation functions are all smooth
    (GELU, SiLU, tanh): it has no linear regions. If some are, a SmoothActivationWarning says that they do not count; so for other
    operators that bend (abs, maximum, where), and for a network of one's own in which no activation function was seen.
    """
    check_eager(network)
    poolings = FasterPooling()
    intercepted = poolings if inputs.ndim == 4 and inputs.shape[2] * inputs.shape[3] >= PIXELS else nullcontext()
    ours = is_all_ours(network)
    weights = () if ours else (*network.parameters(), *network.buffers())
    signs = _Signs(len(inputs), first_only, poolings, weights)
    # Images may be those of a buffer.
    signs.weights.discard(inputs)
    # The package's own networks have no such layers, and many blocks of inputs.
    with nullcontext() if ours else by_parts(network), torch.no_grad(), intercepted, suppress(_EnoughError), signs:
        output = network(inputs)
        if not ours and any(tensor.isnan().any() for tensor in tensors_in(output) if tensor.is_floating_point()):
            raise TenasError("The network's output is not a number for these images: its activations mean nothing.")
    if signs.smooth:
        named = ", ".join(sorted(signs.smooth))
        if not signs.bits:
            raise TenasError(f"The network's activation functions have no linear pieces ({named}): it has no linear regions.")
        warnings.warn(f"Activation functions without linear pieces do not count: {named}.", SmoothActivationWarning, stacklevel=4)
    if signs.others:
        named = ", ".join(sorted(signs.others))
        text = f"Of what bends, these operators do not count as activation functions: {named}."
        warnings.warn(text, SmoothActivationWarning, stacklevel=4)
    elif not signs.bits and not is_ours(network):
        warnings.warn("No activation function was seen that has linear pieces.", SmoothActivationWarning, stacklevel=4)
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


def may_end_early(network: nn.Module) -> bool:
    """Whether nothing is left halfway where a pass ends early: modules without state of a pass, and without hooks."""
    return all(is_plain(m) and not (m._forward_hooks or m._forward_pre_hooks) for m in modules_of(network))


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


@measuring
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
    blocks = [block for block in ([inputs] if isinstance(inputs, Tensor) else inputs) if len(block)]
    total = sum(len(block) for block in blocks)
    if total == 0:
        raise TenasError("The number of linear regions of no inputs is not defined.")
    with undisturbed(network):
        if may_end_early(network) and told_apart_at_once(network, blocks):
            count = total
        else:
            count = count_distinct_rows(np.concatenate([activation_patterns(network, block) for block in blocks]))
    if count >= SATURATED * total:
        warnings.warn(
            # The same text for the same inputs, so that Python shows it once and not for every count.
            f"Nearly each of the {total} inputs lies in a linear region of its own: saturated, use more or smaller inputs.",
            SaturatedWarning,
            stacklevel=3,  # of the caller: a decorator lies between
        )
    return count
