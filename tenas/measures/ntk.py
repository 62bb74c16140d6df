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
from tenas.measures.common import LeftOutWarning, collector_paused, computed_weights, measuring, undisturbed, warn_of_left_out
from tenas.measures.ntk_tape import UntraceableError, check_traceable, is_known
from tenas.measures.threads import full_precision, one_thread

Implementation = Literal["auto", "compiled", "batched", "loop"]
"""Implementation of ``ntk_gram``. All give the same matrix to rounding; each gives equal bits for equal inputs.

``auto``: compiled if possible, else batched, else the loop, with a PlainLoopWarning. Correct for all networks for which autograd
is correct; every measure uses it. On a CPU, some operators of the forward pass run with compiled kernels even if the reverse pass
is batched.

``compiled``: kernels compiled by numba, 8 cotangents per vector (``kernel/README.md``). Fast for small convolutional networks on
a CPU, 6 to 20 times as fast as the loop. Only operators without a compiled rule go through plain torch. No fallback: raises
TenasError on a GPU, without numba, in half precision, for a network without convolutions, with more than 2 million weights or
values of more than 8 MB, and for passes that a tape cannot replay (see batched).

``batched``: one reverse pass in plain torch with many cotangents folded into the batch. Fast on a GPU, and for networks too large
for the compiled kernels. An operator without a rule goes through autograd, by vmap or, if torch cannot batch it, one cotangent
after the other. Carries as many cotangents as fit in memory, or ``chunk``; half as many when a GPU's memory runs out. Raises
TenasError for passes that a tape cannot replay: custom gradient functions, hooks, writes into views, random operators without a
rule.

``loop``: one backward pass of autograd per sample, the definition. Slowest, n passes over the whole batch; correct whenever
autograd is, and the reference for the others.
"""


class PlainLoopWarning(UserWarning):
    """A kernel is computed by the plain loop, which is correct for all networks but many times slower."""


def ntk_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Parameters of the kernel: those named ``weight``, of convolutions, batch normalisations and linear layers.

    No biases, as in TE-NAS's released code, the source of the published figures. No frozen weights.
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
    The network is not modified, including its running statistics.

    The n reverse passes are one pass with n cotangents side by side (``docs/performance.md``). Runs on one thread, whatever
    torch's setting: the kernel's bits depend only on the kind of processor (``one_thread``).

    Args:
        network: any module that maps (n, ...) to logits (n, classes) or (n,), on the device of ``images``.
        images: (n, ...), a batch.
        chunk: most cotangents per pass; by default as many as fit in memory or cache. Selects the batched implementation if
            ``implementation`` is not given.
        implementation: see ``Implementation``.
        compiled: former name of ``implementation``, deprecated: True is "auto", False is "batched", or the loop for a network
            that cannot be replayed.

    Returns:
        (n, n) float64, symmetric, on the CPU. Gradients have the dtype of the network; their products are summed in float64.

    Raises:
        TenasError: for an empty batch, a network whose output does not have one row per sample, or one without weights; for a
            network that the requested implementation does not support.

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
    """``ntk_gram`` for callers that are already ``measuring``. ``may_loop``: whether to fall back on the plain loop."""
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
    # The plain loop draws what the pass before it has drawn: dropout, stochastic depth.
    drawn = torch.get_rng_state(), torch.cuda.get_rng_state(images.device) if images.is_cuda else None
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
                stacklevel=4,  # of the caller of ntk_gram: measuring lies between
            )
            torch.set_rng_state(drawn[0])
            if drawn[1] is not None:
                torch.cuda.set_rng_state(drawn[1], images.device)
            return ntk_gram_by_loop(network, images)
        raise TenasError(f"The pass cannot be replayed, which only 'auto' and 'loop' can do without: {error}.") from error


@full_precision()
def ntk_gram_by_loop(network: nn.Module, images: Tensor) -> Tensor:
    """``ntk_gram`` by the plain loop: one backward pass per sample. The reference for the fast implementations.

    Runs on torch's number of threads, on which its bits depend.
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
    gram = rows @ rows.T
    return (gram + gram.T) / 2  # as in ntk_engine.gram_of_rows


def _gradient(value: Tensor, parameters: list[nn.Parameter], *, keep: bool) -> Tensor:
    """Gradient of a number, all parameters in one row; of a complex number its real and imaginary parts. ``keep``: the graph."""
    try:
        gradients = torch.autograd.grad(value, parameters, retain_graph=keep, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise TenasError("Reentrant checkpoints have no gradients of single samples: give use_reentrant=False.") from error
    found = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
    return torch.cat([(torch.view_as_real(g.resolve_conj()) if g.is_complex() else g).reshape(-1) for g in found])


def _agrees(rows: Tensor, sums: Tensor, parameters: list[nn.Parameter]) -> bool:
    """Whether a random combination of the rows equals autograd's gradient of that combination of the sums, to rounding.

    Costs one backward pass. Detects gradients that a tape misses in a network of unknown modules.
    """
    weights = torch.randn(len(sums), generator=torch.Generator().manual_seed(0), device="cpu").to(sums)
    expected = _gradient((sums * weights).sum(), parameters, keep=False).double()
    found = weights.double() @ rows.double()
    scale = expected.norm() + found.norm()
    rounding = max(torch.finfo(dtype).eps for dtype in (rows.dtype, sums.dtype))
    # If the network overflows, both are NaN, which the kernel shows.
    return not bool((found - expected).norm() > rounding**0.5 * scale)


def checked_parameters(network: nn.Module, images: Tensor) -> list[nn.Parameter]:
    """``ntk_parameters``, after checks of the batch and the network."""
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
    if not computed:
        warn_of_left_out(network, parameters, "parameters named weight")
    return parameters


def logit_sums(logits: Tensor, images: Tensor) -> Tensor:
    """Sum of each sample's logits, (n,). Raises TenasError unless there is one row of logits per sample."""
    if not isinstance(logits, Tensor) or logits.ndim not in (1, 2) or len(logits) != len(images):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TenasError(f"The network must map {len(images)} samples to as many rows of logits; it gave {shape}.")
    return logits.reshape(len(logits), -1).sum(1)


@one_thread()
def condition_number(gram: Tensor, *, dtype: torch.dtype = torch.float64) -> float:
    """Condition number lambda_max / lambda_min of a symmetric positive semidefinite (n, n), in float64; not negative, not NaN.

    ``inf`` if the matrix is singular to rounding or has a value that is not finite. Sources of singular kernels:
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
    """Dtype of the network's gradients: that of its weights."""
    return next((p.dtype for p in _weights(network)), torch.float64)
