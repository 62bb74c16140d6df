"""One reverse pass over a tape with a chunk of cotangents, in plain torch, and how gradients are laid out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tenas.measures.ntk_primitives import reverse
from tenas.measures.ntk_tape import Record, Tape, Value


def sweep(tape: Tape, logits: Value, rows: Tensor, start: int, stop: int) -> None:
    """One reverse pass with the cotangents of samples start to stop; fills their rows."""
    cotangents = carried(tape, logits, start, stop, gpu=logits.tensor.is_cuda)
    for columns, parameter in parameter_columns(tape):
        gradient = cotangents.get(parameter)
        if gradient is None:
            rows[start:stop, columns] = 0
        else:
            rows[start:stop, columns] = gradient.flatten(1)


def carried(tape: Tape, logits: Value, start: int, stop: int, *, gpu: bool) -> dict[Value, Tensor]:
    """The cotangents, of samples start to stop, of what has no record on the tape: of the parameters.

    ``gpu``: by the rules of few launches. (stop - start, *parameter) but for the dimensions of one parameter, which may be split.
    """
    cotangents = {logits: seed(logits.tensor, start, stop)}
    for step in reversed(tape.records):
        reverse_record(step, cotangents, gpu=gpu)
    return cotangents


def reverse_record(step: Record, cotangents: dict[Value, Tensor], *, gpu: bool = False) -> None:
    """Take the cotangents of the record's outputs away, add those of its inputs."""
    outputs = [None if output is None else cotangents.pop(output, None) for output in step.outputs]
    if all(g is None for g in outputs):
        return
    for value, g in reverse(step, outputs, gpu=gpu):
        cotangents[value] = cotangents[value] + g if value in cotangents else g


def seed(logits: Tensor, start: int, stop: int) -> Tensor:
    """The cotangents of the sums of samples start to stop: (stop - start, *logits), one on the sample's own row."""
    g = logits.new_zeros(stop - start, *logits.shape)
    index = torch.arange(stop - start, device=logits.device)
    g[index, index + start] = 1
    return g


def parameter_columns(tape: Tape) -> Iterator[tuple[slice, Value]]:
    """Which columns of the gradients belong to which parameter."""
    end = 0
    for parameter in tape.parameters:
        start, end = end, end + parameter.tensor.numel()
        yield slice(start, end), parameter


def empty_rows(tape: Tape, n: int) -> Tensor:
    first = tape.parameters[0].tensor
    return first.new_empty(n, sum(parameter.tensor.numel() for parameter in tape.parameters))
