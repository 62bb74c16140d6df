"""Record one forward pass on a tape of operators and values, for reverse passes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode

from tenas.measures.common import has_hooks, modules_of, scripted

aten = torch.ops.aten

# In-place operators whose reverse rule does not read what they overwrite.
REVERSED_FROM_RESULT = {aten.relu_.default, aten.add_.Tensor, aten.sub_.Tensor, aten.div_.Scalar, aten.mul_.Scalar}


class UntraceableError(Exception):
    """The tape cannot replay a part of the pass backwards: the caller uses autograd instead."""


# Modules whose operators the tape supports, besides those of this package.
KNOWN = (
    nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity, nn.Flatten, nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.ReLU,
    nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d,
)  # fmt: skip


def is_known(network: nn.Module) -> bool:
    """Whether a network consists of this package's modules, and the modules of torch in them, only, without hooks."""
    modules = list(modules_of(network))
    return all(map(is_known_kind, set(map(type, modules)))) and not any(map(has_hooks, modules))


def is_known_kind(kind: type[nn.Module]) -> bool:
    """``is_known`` of a class of modules."""
    return kind in KNOWN or kind.__module__.startswith("tenas.")


def check_traceable(network: nn.Module) -> None:
    """Raise UntraceableError for modules whose single operators cannot be observed."""
    if name := scripted(network):
        raise UntraceableError(f"{name} is TorchScript")
    for name, module in network.named_modules():
        if type(module).__module__.startswith("torch._dynamo"):
            raise UntraceableError(f"{name or 'the network'} is compiled")


class Value:
    """A tensor at one point of the pass. An in-place change makes a new value.

    ``active``: whether it depends on a weight, hence has a cotangent. ``uses``: the records that read it.
    """

    __slots__ = ("active", "producer", "tensor", "uses", "version")

    def __init__(self, tensor: Tensor, active: bool, producer: Record | None = None) -> None:
        self.tensor = tensor
        self.version = -1  # until the tape has determined it
        self.active = active
        self.producer = producer
        self.uses: list[Record] = []

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape

    @property
    def data(self) -> Tensor:
        """The tensor, if it still has its values of this point of the pass. Raises UntraceableError otherwise."""
        if self.tensor._version != self.version:
            raise UntraceableError("a tensor that a reverse rule reads was changed in place")
        return self.tensor.detach()


class Record:
    """One operator of the pass: ``op(*args, **kwargs)``, with Values in place of tensors; ``inputs``: these Values."""

    __slots__ = ("args", "cache", "inputs", "kwargs", "op", "outputs")

    def __init__(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Value]) -> None:
        self.op = op
        self.args = args
        self.kwargs = kwargs
        self.inputs = inputs
        self.outputs: list[Value | None] = []
        self.cache: dict[str, Any] = {}

    @property
    def out(self) -> Value:
        """The first output."""
        (out, *_) = self.outputs
        assert out is not None
        return out


def substitute(arg: Any, leaf: Any) -> Any:
    """Replace each Value in ``arg`` by ``leaf(value)``."""
    if isinstance(arg, Value):
        return leaf(arg)
    if isinstance(arg, tuple | list):
        return type(arg)(substitute(a, leaf) for a in arg)
    return arg


class Tape(TorchDispatchMode):
    """Record of a forward pass. ``records``: operators that depend on a weight, in order; ``every``: all operators.

    The pass runs with autograd on, so that ``no_grad`` and ``detach`` cut the graph here as well, and gradients other than the
    operators' own (custom functions, hooks) are detected.

    ``faster``: alternative implementations of some operators, which return None for arguments that they do not support.
    """

    def __init__(self, parameters: list[nn.Parameter], faster: dict[Any, Callable[..., Tensor | None]] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.faster = faster or {}
        self.records: list[Record] = []
        self.every: list[Record] = []
        self.kept = False
        self._values: dict[int, Value] = {}
        self._storages: dict[int, list[Value]] = {}
        self._unindexed: list[Value] = []
        self._unsettled: list[Value] = []
        self.parameters = [self._enter(p, active=True) for p in parameters]

    def output(self, tensor: Tensor) -> Value:
        """The value of what the pass returned."""
        if not isinstance(tensor, Tensor):
            raise UntraceableError("the network returns something other than a tensor")
        self._settle()
        _check_gradients(tensor)
        for value in self._values.values():
            if value.active and value.tensor._backward_hooks:
                raise UntraceableError("a hook changes a gradient")
        return self._values.get(id(tensor)) or self._enter(tensor, active=False)

    def keep(self) -> None:
        """Keep the tape beyond the block in which it was recorded, until ``close``."""
        self.kept = True
        self.every.clear()
        self._values.clear()
        self._storages.clear()
        self._unindexed.clear()

    def close(self) -> None:
        """Break the cycles of values and records, to free their memory at once and not at the next garbage collection."""
        for record in (*self.records, *self.every):
            record.args, record.kwargs, record.inputs, record.outputs, record.cache = (), {}, [], [], {}
        self.records.clear()
        self.every.clear()
        self._values.clear()
        self._storages.clear()
        self._unindexed.clear()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in tenas.measures.regions: nothing is compiled here

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        self._settle()
        kwargs = kwargs or {}
        inputs: list[Value] = []
        wrapped = tuple([self._wrap(arg, inputs) for arg in args])
        record = Record(op, wrapped, {key: self._wrap(arg, inputs) for key, arg in kwargs.items()}, inputs)
        active = any(value.active for value in inputs)
        for place in _written(op):
            self._before_write(op, args, kwargs, place, active)
        result = self.faster[op](*args) if op in self.faster and not kwargs else None
        if result is None:
            result = op(*args, **kwargs)
        active = active and torch.is_grad_enabled() and not _independent(op)
        if active:
            _check_layouts(inputs)
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if not isinstance(tensor, Tensor):
                record.outputs.append(None)
                continue
            if active and tensor.dtype.is_complex:
                raise UntraceableError("it computes with complex numbers")
            differentiable = active and tensor.dtype.is_floating_point
            record.outputs.append(self._enter(tensor, differentiable, record if active else None))
        self.every.append(record)
        if active:
            for value in inputs:
                value.uses.append(record)
            self.records.append(record)
        return result

    def _enter(self, tensor: Tensor, active: bool, producer: Record | None = None) -> Value:
        value = Value(tensor, active, producer)
        if id(tensor) not in self._values:
            self._unindexed.append(value)
        self._values[id(tensor)] = value
        self._unsettled.append(value)
        return value

    def _wrap(self, arg: Any, inputs: list[Value]) -> Any:
        if isinstance(arg, Tensor):
            value = self._values.get(id(arg)) or self._enter(arg, active=False)
            inputs.append(value)
            return value
        if isinstance(arg, tuple | list) and any(isinstance(a, Tensor) for a in arg):
            return [self._wrap(a, inputs) for a in arg]
        return arg

    def _settle(self) -> None:
        # The version of a tensor that an operator writes goes up only after the operator has been seen here.
        for value in self._unsettled:
            value.version = value.tensor._version
        self._unsettled.clear()

    def _before_write(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], place: tuple[int, str], active: bool) -> None:
        index, name = place
        tensor = args[index] if index < len(args) else kwargs.get(name)
        if not isinstance(tensor, Tensor) or not (active or tensor.dtype.is_floating_point):
            return
        if tensor.layout is not torch.strided:
            raise UntraceableError("a sparse tensor is changed in place")
        for value in (value for value in self._unindexed if value.tensor.layout is torch.strided):
            self._storages.setdefault(value.tensor.untyped_storage().data_ptr(), []).append(value)
        self._unindexed.clear()
        value = self._values[id(tensor)]
        if value.active and not torch.is_grad_enabled():
            # Autograd passes the gradient through, as if nothing had been written.
            raise UntraceableError("a tensor is changed in place under no_grad")
        storage = tensor.untyped_storage().data_ptr()
        if storage not in self._storages:
            raise UntraceableError("a tensor gets other memory")
        others = [v for v in self._storages[storage] if v.tensor is not tensor]
        if others and (active or any(v.active for v in others)):
            raise UntraceableError("a tensor that shares its memory is changed in place")
        if active and op not in REVERSED_FROM_RESULT:
            # The value keeps the old contents; the tensor becomes a new value with the new ones.
            value.tensor = tensor.clone()
            value.version = value.tensor._version
            self._storages[storage] = others
            del self._values[id(tensor)]


@functools.cache
def _independent(op: Any) -> bool:
    """Whether no gradient flows through the operator (detach, new_*, *_like), or its result ignores the arguments' values."""
    name: str = op._schema.name.removeprefix("aten::")
    return name == "detach" or name.startswith("new_") or name.endswith("_like")


@functools.cache
def _written(op: Any) -> list[tuple[int, str]]:
    """Arguments that ``op`` changes in place, as (position, name)."""
    return [
        (index, argument.name)
        for index, argument in enumerate(op._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def _check_layouts(values: list[Value]) -> None:
    """Raise UntraceableError for a value of a compressed or opaque layout: torch lacks operators for its reverse pass."""
    for value in values:
        if value.tensor.layout not in (torch.strided, torch.sparse_coo):
            raise UntraceableError(f"a tensor has the layout {str(value.tensor.layout).removeprefix('torch.').lstrip('_')}")


def _check_gradients(tensor: Tensor) -> None:
    """Raise UntraceableError if the gradient of ``tensor`` runs through a function written in Python."""
    stack, seen = [tensor.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, BackwardCFunction):
            raise UntraceableError("a gradient is a function of its own")
        seen.add(node)
        stack.extend(function for function, _ in node.next_functions)
