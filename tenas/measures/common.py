"""What several measures share: checks of batches, losses, weights, gradients, temporary hooks, an observer of operators."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from tenas.errors import TenasError

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
BATCH_NORMS = nn.modules.batchnorm._BatchNorm


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Restore the network's buffers (running statistics, counters) after the block."""
    buffers = list(network.buffers())
    saved = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            if buffers:
                torch._foreach_copy_(buffers, saved)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause garbage collection: networks and passes create thousands of objects, and each collection scans torch's million."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def collector_spared() -> Iterator[None]:
    """Exclude the existing objects, a million of torch's, from garbage collection within the block."""
    frozen = gc.get_freeze_count() > 0
    gc.freeze()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()


def check_batch(images: Tensor) -> None:
    """Raise TenasError for a batch without images."""
    if len(images) == 0:
        raise TenasError("The measure of an empty batch is not defined.")


def weights_of(network: nn.Module) -> list[Tensor]:
    """Weights of convolutions and linear layers that require a gradient. Raises TenasError if there are none."""
    weights = [m.weight for m in network.modules() if isinstance(m, LAYERS) and m.weight.requires_grad]
    if not weights:
        raise TenasError("The network has no convolution or linear layer whose weights require a gradient.")
    return weights


def batch_loss(network: nn.Module, images: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of a batch. Raises TenasError if the shapes of batch, logits and labels do not match."""
    check_batch(images)
    logits = network(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TenasError(f"A loss needs logits (n, classes) for {len(images)} samples; the network gave {shape}.")
    if labels.shape != (len(images),):
        raise TenasError(f"A batch of {len(images)} needs as many labels, not {tuple(labels.shape)}.")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise TenasError(f"A label lies outside of the network's {logits.shape[1]} classes, 0 to {logits.shape[1] - 1}.")
    return cross_entropy(logits, labels, reduction=reduction)


def gradients_of(value: Tensor, tensors: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """Gradients of ``value``; zeros for tensors that it does not depend on, e.g. those of masked operators."""
    if not value.requires_grad:
        return [torch.zeros_like(tensor) for tensor in tensors]
    found = torch.autograd.grad(value, tensors, allow_unused=True, create_graph=create_graph)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True)]


@contextmanager
def hooked(
    network: nn.Module,
    kinds: type[nn.Module] | tuple[type[nn.Module], ...],
    hook: Callable[[nn.Module, tuple[Any, ...], Any], Any],
) -> Iterator[None]:
    """Call ``hook(module, inputs, output)`` after each call of a layer of these kinds, within the block."""
    handles = [module.register_forward_hook(hook) for module in network.modules() if isinstance(module, kinds)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


def name_of(operator: OpOverload) -> str:
    """The operator's name in torch, e.g. ``convolution``, the same for all of its overloads."""
    return str(operator._schema.name).removeprefix("aten::")
