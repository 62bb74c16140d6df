"""The empirical neural tangent kernel at initialisation and its condition number: trainability (TE-NAS, section 3.1.1)."""

import functools
import math
import warnings
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tenas.errors import TenasError, one_of
from tenas.measures import ntk_engine, ntk_reuse
from tenas.measures.common import collector_paused, computed_weights, measuring, undisturbed
from tenas.measures.ntk_tape import UntraceableError, check_traceable, is_known
from tenas.measures.threads import full_precision, one_thread

Implementation = Literal["auto", "compiled", "batched", "loop"]
"""How ``ntk_gram`` computes a kernel. All give the same matrix to rounding; of one of them, equal inputs give equal bits.

``auto``: compiled where it can be, else batched, else the loop, with a PlainLoopWarning. Right for all networks that autograd is
right for, and what every measure uses. On a CPU its forward pass runs some operators with compiled kernels even if the reverse
pass is batched.

``compiled``: kernels that numba compiles, 8 cotangents in a vector (``kernel/README.md``). Fast for small convolutional networks
on a CPU, 6 to 20 times as fast as the loop. Operators without a compiled rule, and only they, go through plain torch. Never falls
back as a whole: on a GPU, without numba, in half precision, for a network without convolutions, of more than 2 million weights or
with values of more than 8 MB, and for what a tape cannot replay (see batched), it raises a TenasError that says so.

``batched``: one reverse pass in plain torch with many cotangents folded into the batch. Fast on a GPU, and for networks that are
too large for the compiled kernels. An operator without a rule goes through autograd, by vmap or, where torch has no batching
for it, one cotangent after the other. Carries as many cotangents as the memory holds, or ``chunk``; when a GPU's memory runs out,
half as many. Raises a TenasError for what a tape cannot replay: gradients that are functions of their own, hooks, writes into
views, random operators without a rule.

``loop``: one backward pass of autograd for each sample, the definition. Slowest, n passes over the whole batch; right for
everything that autograd is right for, and what the others are held against. It has nothing to fall back on.
"""


class PlainLoopWarning(UserWarning):
    """A kernel is computed the plain way, which is right for all networks and many times slower."""


class LeftOutWarning(UserWarning):
    """A layer has no part in a kernel, because none of its parameters is named weight."""


def ntk_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that the kernel is taken over: those named ``weight``, of convolutions, batch norm and linear layers alike.

    No biases: the choice of TE-NAS's released code, which the published figures come from. No frozen weights.
    """
    return list(_weights(network))


def _weights(network: nn.Module) -> Iterator[nn.Parameter]:
    return (p for name, p in network.named_parameters() if name.rpartition(".")[2] == "weight" and p.requires_grad)


@measuring
def ntk_gram(
    network: nn.Module,
    images: Tensor,
    *,
    chunk: int | None = None,
    implementation: Implementation = "auto",
    compiled: bool | None = None,
) -> Tensor:
    """The kernel K[i, j] = <J_i, J_j> of a batch, J_i the gradient of the sum of sample i's logits.

    The gradient is taken with respect to every parameter named ``weight``. The whole batch goes through the network at
    once, in the mode that the network is in: in training mode batch normalisation couples the samples, and J_i sees it.
    The network is left as it was, running statistics included.

    The n reverse passes are one pass with n cotangents side by side (``docs/performance.md``). All of it on one thread, whatever
    torch has: the kernel's bits follow from the kind of processor alone (``one_thread``).

    Args:
        network: any module that maps (n, ...) to logits (n, classes) or (n,), on the device of ``images``.
        images: (n, ...), a batch.
        chunk: how many cotangents torch's operators carry at once, at most; by default what the memory or the cache holds.
            Of the batched implementation, which it chooses where that is left open.
        implementation: how, see ``Implementation``.
        compiled: what ``implementation`` was called before, deprecated: True is "auto", False is "batched", or the loop where a
            network cannot be replayed.

    Returns:
        (n, n) float64, symmetric, on the CPU. Gradients have the dtype of the network; their products are summed in float64.

    Raises:
        TenasError: for an empty batch, a network whose output doesn't have a row a sample, or one without weights; where an
            implementation was asked for that doesn't take the network.

    Source: TE-NAS (Chen, Gong, Wang, ICLR 2021), section 3.1.1; the sum over logits follows its released code.
    """
    may_loop = implementation == "auto"
    if compiled is not None:
        warnings.warn("'compiled' of ntk_gram is deprecated: pass implementation=.", DeprecationWarning, stacklevel=3)
        implementation = "auto" if compiled else "batched"
    if implementation not in get_args(Implementation):
        raise one_of("implementation of the kernel", implementation, get_args(Implementation))
    return _gram(network, images, chunk, implementation, may_loop=may_loop)


def _gram(
    network: nn.Module,
    images: Tensor,
    chunk: int | None = None,
    implementation: Implementation = "auto",
    *,
    may_loop: bool = True,
) -> Tensor:
    """``ntk_gram``, for whoever is ``measuring`` already. ``may_loop``: fall back on the plain loop."""
    state = ntk_reuse.state_of(network, images) if chunk is None and implementation in ("auto", "compiled") else None
    if state is not None and (recording := ntk_reuse.SHELF.take(network, state)) is not None:
        rows = recording.run(images)
        ntk_reuse.SHELF.give(network, state, recording)
        return ntk_engine.gram_of_rows(rows)
    parameters = checked_parameters(network, images)
    if chunk is not None and chunk < 1:
        raise TenasError(f"A chunk is at least 1 cotangent, not {chunk}.")
    if chunk is not None and implementation in ("compiled", "loop"):
        raise TenasError(f"A chunk is of the batched implementation; {implementation!r} has none.")
    if implementation == "loop":
        return ntk_gram_by_loop(network, images)
    forward = implementation != "batched"
    try:
        check_traceable(network)
        with (
            undisturbed(network),
            collector_paused(),
            ntk_engine.recorded(network, images, parameters, compiled=forward) as (tape, logits),
        ):
            sums = logit_sums(logits.tensor, images)
            if not logits.active:
                if logits.tensor.requires_grad and not is_known(network):
                    raise UntraceableError("autograd sees gradients that no operator accounts for")
                return torch.zeros(len(images), len(images), dtype=torch.float64)
            batched = implementation == "batched" or chunk is not None
            reason = None if batched else ntk_engine.unsuited(tape, logits)
            if reason is not None and implementation == "compiled":
                raise TenasError(f"The compiled kernels do not take this network: {reason}.")
            if batched or reason is not None:
                rows = ntk_engine.batched_jacobian(tape, logits, chunk=chunk)
            else:
                keep = functools.partial(ntk_reuse.keep, network, state, images, tape)
                rows = ntk_engine.compiled_jacobian(tape, logits, keep)
            if not is_known(network) and not _agrees(rows, sums, parameters):
                raise UntraceableError("its gradients are others than autograd's")
            return ntk_engine.gram_of_rows(rows)
    except UntraceableError as error:
        if may_loop:
            warnings.warn(
                f"The kernel of this network takes one backward pass per sample, {len(images)} instead of one: {error}.",
                PlainLoopWarning,
                stacklevel=4,  # of whoever called ntk_gram: measuring lies between
            )
            return ntk_gram_by_loop(network, images)
        raise TenasError(f"The pass cannot be replayed, which only 'auto' and 'loop' can do without: {error}.") from error


@full_precision()
def ntk_gram_by_loop(network: nn.Module, images: Tensor) -> Tensor:
    """``ntk_gram`` the plain way: one backward pass a sample. The reference that the fast way is held against.

    On as many threads as torch has, hence with bits that follow from their number.
    """
    parameters = checked_parameters(network, images)
    with undisturbed(network), torch.enable_grad():
        sums = logit_sums(network(images), images)
        if not sums.requires_grad:
            return torch.zeros(len(sums), len(sums), dtype=torch.float64)
        jacobian = []
        for i in range(len(sums)):
            jacobian.append(_gradient(sums[i], parameters, keep=i + 1 < len(sums)))
        rows = torch.stack(jacobian).to("cpu", torch.float64)
    return rows @ rows.T


def _gradient(value: Tensor, parameters: list[nn.Parameter], *, keep: bool) -> Tensor:
    """The gradient of a number, all parameters in a row; of a complex one its real and imaginary parts. ``keep`` the graph."""
    try:
        gradients = torch.autograd.grad(value, parameters, retain_graph=keep, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise TenasError("Reentrant checkpoints have no gradients of single samples: give use_reentrant=False.") from error
    found = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
    return torch.cat([(torch.view_as_real(g.resolve_conj()) if g.is_complex() else g).reshape(-1) for g in found])


def _agrees(rows: Tensor, sums: Tensor, parameters: list[nn.Parameter]) -> bool:
    """Whether a random combination of the rows is the gradient of that combination of the sums, by autograd, to rounding.

    One backward pass, a sample's share of the plain loop. It finds whatever a tape overlooks in a network that is not known.
    """
    weights = torch.randn(len(sums), generator=torch.Generator().manual_seed(0)).to(sums)
    expected = _gradient((sums * weights).sum(), parameters, keep=False).double()
    found = weights.double() @ rows.double()
    scale = expected.norm() + found.norm()
    rounding = max(torch.finfo(dtype).eps for dtype in (rows.dtype, sums.dtype))
    # Where the network overflows neither is a number, and the kernel says so.
    return not bool((found - expected).norm() > rounding**0.5 * scale)


def checked_parameters(network: nn.Module, images: Tensor) -> list[nn.Parameter]:
    """``ntk_parameters``, after the batch and the network have been looked at."""
    if len(images) == 0:
        raise TenasError("The kernel of an empty batch is not defined.")
    if computed := computed_weights(network):
        warnings.warn(
            f"The weight of {computed[0]} is computed from parameters of other names, and the kernel is over those named weight: "
            "it leaves that layer out.",
            LeftOutWarning,
            stacklevel=5,
        )
    parameters = ntk_parameters(network)
    if not parameters:
        raise TenasError("The network has no parameter named weight that requires a gradient: it has no kernel.")
    return parameters


def logit_sums(logits: Tensor, images: Tensor) -> Tensor:
    """The sum of each sample's logits, (n,). Raises TenasError when there isn't a row of logits for each sample."""
    if not isinstance(logits, Tensor) or logits.ndim not in (1, 2) or len(logits) != len(images):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TenasError(f"The network must map {len(images)} samples to as many rows of logits; it gave {shape}.")
    return logits.reshape(len(logits), -1).sum(1)


@one_thread()
def condition_number(gram: Tensor, *, dtype: torch.dtype = torch.float64) -> float:
    """lambda_max / lambda_min of a symmetric positive semidefinite matrix (n, n), in float64; never negative, never NaN.

    ``inf`` when the matrix is singular to rounding or holds a value that isn't finite. Sources of singular kernels:
    duplicate images, disconnected cells, dead paths. 1.0 for a single sample.

    ``dtype`` is that of the gradients behind the matrix. They give its singular values' square roots to about
    n * eps(dtype), so a ratio below the square of that is noise: kappa up to 1e10 can be told from a singular kernel
    in float32. The eigenvalues themselves are good to n * eps(float64).
    """
    n = len(gram)
    gram = gram.to("cpu", torch.float64)
    if not torch.isfinite(gram).all():
        return math.inf
    eigenvalues = torch.linalg.eigvalsh(gram)
    smallest, largest = eigenvalues[0].item(), eigenvalues[-1].item()
    noise = max(n * torch.finfo(torch.float64).eps, (n * torch.finfo(dtype).eps) ** 2)
    if smallest <= noise * largest:
        return math.inf
    return float(largest / smallest)


@measuring
def ntk_condition_number(network: nn.Module, images: Tensor) -> float:
    """kappa = lambda_max / lambda_min of the kernel of ``images`` (``ntk_gram``): lower means easier to train.

    Grows with the batch: compare only kernels of equally many samples. A singular kernel is ``inf``.

    Source: TE-NAS, section 3.1.1, equation 3.
    """
    return condition_number(_gram(network, images), dtype=gradient_dtype(network))


def gradient_dtype(network: nn.Module) -> torch.dtype:
    """The dtype that the network's gradients have: that of its weights."""
    return next((p.dtype for p in _weights(network)), torch.float64)
