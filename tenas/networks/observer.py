"""See the operators of a pass, whether modules or functions run them."""

import functools
from collections.abc import Sequence
from typing import Any

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode


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


@functools.cache
def name_of(operator: OpOverload) -> str:
    """The operator's name in torch, e.g. ``convolution``, the same for all of its overloads."""
    return str(operator._schema.name).removeprefix("aten::")


@functools.cache
def plain_name(operator: OpOverload) -> str:
    """The name of an operator, the same whether or not it works in place."""
    name = name_of(operator)
    return name if name.startswith("_") else name.removesuffix("_")
