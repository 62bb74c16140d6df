"""A GPU that is none: tensors that have shapes and devices, through torch's real dispatch, and made-up numbers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tenas.measures.ntk_tape import Value

NUMPY = {torch.bool: np.bool_, torch.uint8: np.uint8, torch.int64: np.int64, torch.float32: np.float32, torch.float64: np.float64}

# What `item` is, and within another mode `bool`.
READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default, torch.ops.aten.is_nonzero.default}


class Numbers(TorchDispatchMode):
    """Answers where a value is read: 1 for a number, ``yes`` for a truth, no two tensors are equal. Counts what a GPU makes."""

    def __init__(self, yes: bool) -> None:
        super().__init__()
        self.yes, self.made = yes, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            return self.yes if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        if func is torch.ops.aten.equal.default:
            return False
        if func is torch.ops.aten._fused_sgd_.default:  # there is none for tensors without memory
            assert {tensor.device.type for tensors in args for tensor in tensors} == {"cuda"}
            return None
        if func is torch.ops.aten.unique_dim.default:
            places = torch.zeros(len(args[0]), dtype=torch.int64, device=args[0].device)
            return args[0], places, places
        out = func(*args, **(kwargs or {}))
        self.made += isinstance(out, Tensor) and out.device.type == "cuda"
        return out


def _moved(module: nn.Module, device: str) -> nn.Module:
    """``nn.Module.to``, which refuses to exchange a fake parameter that somebody else knows."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(parameter.detach().to(device), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device)
    return module


def _gradients(outputs: object, inputs: Tensor | Sequence[Tensor], *rest: object, **more: object) -> tuple[Tensor, ...]:
    """``torch.autograd.grad``, whose threads want the device itself: zeros of the right shapes, where they belong."""
    return tuple(torch.zeros_like(tensor) for tensor in ([inputs] if isinstance(inputs, Tensor) else inputs))


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch, *, yes: bool = False) -> Iterator[Numbers]:
    """Within the block tensors are fake, and ``cuda`` is there for them. An operator of tensors on two devices is an error."""
    # A fake tensor has no memory, and aten.t of one counts as a write.
    monkeypatch.setattr(Value, "data", property(lambda value: value.tensor.detach()))
    monkeypatch.setattr(torch.UntypedStorage, "data_ptr", id)
    monkeypatch.setattr(torch.autograd, "grad", _gradients)
    monkeypatch.setattr(Tensor, "numpy", lambda tensor, **more: np.zeros(tuple(tensor.shape), NUMPY[tensor.dtype]))
    monkeypatch.setattr(nn.Module, "to", _moved)
    with FakeTensorMode(allow_non_fake_inputs=True), Numbers(yes) as numbers:
        yield numbers
