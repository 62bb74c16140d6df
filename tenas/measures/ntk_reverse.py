"""One reverse pass over a tape with a chunk of cotangents, in plain torch, and the layout of gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tenas.measures.ntk_primitives import reverse
from tenas.measures.ntk_tape import Record, Tape, Value


def sweep(tape: Tape, logits: Value, rows: Tensor, start: int, stop: int) -> None:
    """Run one reverse pass with the cotangents of samples start to stop; fill their rows."""
    cotangents = carried(tape, logits, start, stop, gpu=logits.tensor.is_cuda)
    for columns, parameter in parameter_columns(tape):
        gradient = cotangents.get(parameter)
        if gradient is None:
            rows[start:stop, columns] = 0
        else:
            rows[start:stop, columns] = gradient.flatten(1)


def carried(tape: Tape, logits: Value, start: int, stop: int, *, gpu: bool) -> dict[Value, Tensor]:
    """Cotangents of samples start to stop for all values without a record on the tape: the parameters.

    ``gpu``: by the rules with few launches. Shapes are (stop - start, *parameter), except that a dimension of a parameter may be
    split.
    """
    cotangents = {logits: seed(logits.tensor, start, stop)}
    for step in reversed(tape.records):
        reverse_record(step, cotangents, gpu=gpu)
    return cotangents


def reverse_record(step: Record, cotangents: dict[Value, Tensor], *, gpu: bool = False) -> None:
    """Replace the cotangents of a record's outputs by those of its inputs."""
    outputs = [None if output is None else cotangents.pop(output, None) for output in step.outputs]
    if all(g is None for g in outputs):
        return
    for value, g in reverse(step, outputs, gpu=gpu):
        cotangents[value] = cotangents[value] + g if value in cotangents else g


def seed(logits: Tensor, start: int, stop: int) -> Tensor:
    """Cotangents of the sums of samples start to stop: (stop - start, *logits), ones in the sample's own row."""
    g = logits.new_zeros(stop - start, *logits.shape)
    index = torch.arange(stop - start, device=logits.device)
    g[index, index + start] = 1
    return g


def parameter_columns(tape: Tape) -> Iterator[tuple[slice, Value]]:
    """Columns of the gradients by parameter."""
    end = 0
    for parameter in tape.parameters:
        start, end = end, end + parameter.tensor.numel()
        yield slice(start, end), parameter


def empty_rows(tape: Tape, n: int) -> Tensor:
    first = tape.parameters[0].tensor
    return first.new_empty(n, sum(parameter.tensor.numel() for parameter in tape.parameters))
