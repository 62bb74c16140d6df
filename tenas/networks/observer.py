"""See the operators of a pass, whether modules or functions run them."""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.backends import mha
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

Value = TypeVar("Value")
# How many blocks have switched something of torch off, and what it was before the first of them; by several threads.
_BLOCKS: dict[str, tuple[int, bool]] = {}
_LOCK = threading.Lock()


class Observer(TorchDispatchMode):
    """Calls ``saw`` after each operator of a pass, whether a module or a function runs it, without touching the network."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types there

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here. Torch's default checks for that, which imports its compiler: seconds per process.
        return False

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.saw(func, (args, kwargs or {}), out)
        return out

    def saw(self, operator: OpOverload, read: object, out: Any) -> None:
        """``read``: the arguments, nested. ``out``: the result, mostly a tensor."""
        raise NotImplementedError


@contextmanager
def _off(name: str, read: Callable[[], bool], write: Callable[[bool], object]) -> Iterator[None]:
    """Switch something of torch off within the block, in whatever threads such blocks overlap."""
    with _LOCK:
        count, before = _BLOCKS.get(name, (0, read()))
        _BLOCKS[name] = count + 1, before
        write(False)
    try:
        yield
    finally:
        with _LOCK:
            count, before = _BLOCKS.pop(name)
            if count > 1:
                _BLOCKS[name] = count - 1, before
            else:
                write(before)


def transformers_by_parts() -> AbstractContextManager[None]:
    """Run layers of transformers by their parts within the block, for observers.

    Torch's operator for a whole layer, in evaluation mode, would hide the activation function.
    """
    return _off("transformers", mha.get_fastpath_enabled, mha.set_fastpath_enabled)


@contextmanager
def by_parts(network: nn.Module) -> Iterator[None]:
    """``transformers_by_parts``, and LSTMs without oneDNN, which has one operator for them, too."""
    running, handles = ExitStack(), []

    def begin(module: nn.Module, inputs: Any) -> None:
        # Not torch.backends.mkldnn.enabled, which may be locked (torch.backends.disable_global_flags).
        running.enter_context(_off("oneDNN", torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled))

    for module in network.modules():
        if isinstance(module, nn.LSTM):
            handles.append(module.register_forward_pre_hook(begin))
            handles.append(module.register_forward_hook(lambda *_: running.close(), always_call=True))
    try:
        with running, transformers_by_parts():
            yield
    finally:
        for handle in handles:
            handle.remove()


class ByStorage(Generic[Value]):
    """Values of tensors by their storages, so that views share one. It keeps no tensor in memory."""

    def __init__(self) -> None:
        # The key of a storage is not given to another one as long as there is a weak reference to it.
        self._kept: dict[int, tuple[StorageWeakRef, Value]] = {}

    def __bool__(self) -> bool:
        return bool(self._kept)

    def __contains__(self, tensor: Tensor) -> bool:
        return storage_key(tensor) in self._kept

    def __setitem__(self, tensor: Tensor, value: Value) -> None:
        storage = StorageWeakRef(_storage(tensor))
        self._kept[storage.cdata] = storage, value

    def get(self, tensor: Tensor) -> Value | None:
        found = self._kept.get(storage_key(tensor))
        return None if found is None else found[1]

    def remove(self, tensor: Tensor) -> None:
        self._kept.pop(storage_key(tensor), None)


class Marks:
    """A set of tensors by their storages."""

    def __init__(self) -> None:
        self._marked = ByStorage[bool]()

    def __bool__(self) -> bool:
        return bool(self._marked)

    def add(self, values: object) -> None:
        """Add all tensors among nested values."""
        for tensor in tensors_in(values):
            self._marked[tensor] = True

    def discard(self, values: object) -> None:
        """Take all tensors among nested values out."""
        for tensor in tensors_in(values):
            self._marked.remove(tensor)

    def follow(self, operator: OpOverload, read: Any, out: object) -> bool:
        """Whether an operator has read members alone: its result is one then, and otherwise none, nor is what it wrote into."""
        if self.has(read):
            self.add(out)
            return True
        self.discard((out, read[0][:1] if operator._schema.is_mutable else ()))
        return False

    def has(self, values: object) -> bool:
        """Whether all tensors among nested values are members."""
        return all(tensor in self._marked for tensor in tensors_in(values))


def storage_key(tensor: Tensor) -> int:
    """What tensors with one storage have in common, as long as one of them lives."""
    key: int = _storage(tensor)._cdata
    return key


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    """Where the values of a tensor are, also those of a sparse one."""
    if tensor.layout == torch.sparse_coo:
        tensor = tensor._values()
    elif tensor.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        tensor = tensor.values()
    return tensor.untyped_storage()


def tensors_in(values: object) -> list[Tensor]:
    """The tensors among nested arguments; several times as fast as torch's own way, for each operator of a pass."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = tuple(values.values())
    return [tensor for value in values for tensor in tensors_in(value)] if isinstance(values, tuple | list) else []


@functools.cache
def name_of(operator: OpOverload) -> str:
    """The operator's name in torch, e.g. ``convolution``, the same for all of its overloads."""
    return str(operator._schema.name).removeprefix("aten::")


def is_torchs(operator: OpOverload) -> bool:
    """Whether an operator is one of torch or torchvision, and not of another library, of which nothing is known."""
    return operator.namespace in ("aten", "prim", "prims", "torchvision", "quantized", "profiler")


@functools.cache
def plain_name(operator: OpOverload) -> str:
    """The name of an operator, the same whether or not it works in place."""
    name = name_of(operator)
    return name if name.startswith("_") else name.removesuffix("_")
