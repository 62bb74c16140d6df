"""Reverse pass with many cotangents at once: from a network and a batch to the kernel of its gradients."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tenas.measures.ntk_reverse import empty_rows, sweep
from tenas.measures.ntk_tape import Tape, Value, aten
from tenas.measures.sizes import BUDGET

if TYPE_CHECKING:
    from tenas.measures.kernel import Plan

# On a CPU a chunk's largest cotangent should stay in the cache; passes over it run several times slower from memory.
CACHE_BYTES = 8 * 2**20
# A chunk holds about this many cotangents of the size of the largest at its peak: those of a cell's nodes and temporaries.
LIVE_COTANGENTS = 8
# Columns of the gradients that are multiplied at once, in float64.
COLUMNS = 2**18
# The compiled kernels keep a gradient and its sums for a vector of cotangents: 160 bytes per parameter and more.
KERNEL_PARAMETERS = 2**21
# Largest value for the compiled kernels, in bytes; they keep some arrays of 8 and more times its size.
KERNEL_BYTES = 2**23


class SmallerChunkWarning(UserWarning):
    """A kernel took fewer cotangents at a time than planned by its shapes, as memory ran out."""


@contextmanager
def recorded(
    network: nn.Module, images: Tensor, parameters: list[nn.Parameter], *, compiled: bool = True
) -> Iterator[tuple[Tape, Value]]:
    """Run the network once. Returns the tape, and the value of the logits on it.

    ``compiled``: whether to run operators for which torch is slow with compiled kernels, if numba is installed.
    """
    # Not on a GPU, which does not use it.
    kernels = _kernels() if compiled and images.device.type == "cpu" else None
    tape = Tape(parameters, None if kernels is None else kernels.FORWARD)
    try:
        with torch.enable_grad(), tape:
            logits = network(images)
        yield tape, tape.output(logits)
    finally:
        if not tape.kept:
            tape.close()


def compiled_jacobian(tape: Tape, logits: Value, keep: Callable[[Plan], bool] = lambda plan: False) -> Tensor:
    """Gradients of all samples' sums of logits: (n, parameters). Only for a tape that is not ``unsuited``.

    ``keep``: receives the plan to run it again, and returns whether it was kept; otherwise the plan is closed.
    """
    kernels = _kernels()
    assert kernels is not None
    plan = kernels.Plan(tape, logits)
    try:
        plan.load()
        rows: Tensor = plan.run()
        if not keep(plan):
            plan.close()
        return rows
    except BaseException:
        plan.close()
        raise


def batched_jacobian(tape: Tape, logits: Value, *, chunk: int | None = None) -> Tensor:
    """``compiled_jacobian`` in plain torch, for any tape, ``chunk`` cotangents at a time.

    When a GPU's memory runs out, half as many are tried again, with a SmallerChunkWarning.
    """
    n = len(logits.tensor)
    rows = empty_rows(tape, n)
    chunk = chunk or choose_chunk(tape, n)
    start = 0
    while start < n:
        stop = min(start + chunk, n)
        try:
            sweep(tape, logits, rows, start, stop)
        except torch.OutOfMemoryError:
            if chunk == 1:
                raise
        else:
            start = stop
            continue
        # Outside of the handler, whose traceback would keep the cotangents alive.
        chunk //= 2
        torch.cuda.empty_cache()
        warnings.warn(
            f"The device's memory ran out: {chunk} cotangents at a time instead of {2 * chunk}; the last bits may differ.",
            SmallerChunkWarning,
            stacklevel=2,
        )
    return rows


@functools.cache
def _kernels() -> ModuleType | None:
    """The module of the compiled kernels; None if numba is not installed or has no folder for its cache (RuntimeError)."""
    try:
        from tenas.measures import kernel
    except ImportError:
        return None
    except RuntimeError as error:
        warnings.warn(f"The compiled kernels cannot be used, so the NTK takes several times as long: {error}.", stacklevel=2)
        return None
    return kernel


def unsuited(tape: Tape, logits: Value) -> str | None:
    """Reason why the compiled kernels do not support this network; None if they do: convolutions on a CPU, not too large."""
    dtypes = {logits.tensor.dtype, *(parameter.tensor.dtype for parameter in tape.parameters)}
    if logits.tensor.device.type != "cpu":
        return f"the network is on {logits.tensor.device.type}, not on a CPU"
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        return "its weights and logits are not all float32 or all float64"
    if (weights := sum(parameter.tensor.numel() for parameter in tape.parameters)) > KERNEL_PARAMETERS:
        return f"it has {weights:,} weights, more than {KERNEL_PARAMETERS:,}"
    largest = max(output.tensor.nbytes for step in tape.records for output in step.outputs if output is not None)
    if largest > KERNEL_BYTES:
        return f"one of its values has {largest:,} bytes, more than {KERNEL_BYTES:,}"
    if not any(step.op is aten.convolution.default for step in tape.records):
        return "it has no convolution"
    return None if _kernels() is not None else "numba is not installed, or cannot compile here"


def choose_chunk(tape: Tape, n: int) -> int:
    """Number of cotangents to carry at once: a function of the size of the largest value with a cotangent only."""
    values = [output for step in tape.records for output in step.outputs if output is not None and output.active]
    size = max(value.tensor.numel() * value.tensor.element_size() for value in values)
    device = values[0].tensor.device
    room = BUDGET // LIVE_COTANGENTS if device.type == "cuda" else CACHE_BYTES
    return max(1, min(n, room // size))


def gram_of_rows(rows: Tensor) -> Tensor:
    """rows @ rows.T, products summed in float64, on the CPU."""
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for block in torch.split(rows, COLUMNS, dim=1):
        block = block.to(torch.float64)
        gram.addmm_(block, block.T)
    gram = gram.cpu()
    return (gram + gram.T) / 2  # a matrix product rounds the two halves differently
