"""Shared parts of measures: surroundings, checks of batches and networks, losses, weights, gradients, hooks."""

import functools
import gc
import math
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from tenas.errors import TenasError
from tenas.measures.threads import full_precision, one_thread

P = ParamSpec("P")
R = TypeVar("R")

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
BATCH_NORMS = nn.modules.batchnorm._BatchNorm
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# Locks by network, and the lock of that table.
_LOCKS: "weakref.WeakKeyDictionary[nn.Module, AbstractContextManager[object]]" = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def measuring(function: Callable[Concatenate[nn.Module, P], R], *, drawn: bool = False) -> Callable[Concatenate[nn.Module, P], R]:
    """Decorate a function of (network, images, ...) so that its value does not depend on what surrounds the call.

    It runs on one thread, on a GPU in whole float32 (``full_precision``), outside of ``torch.inference_mode`` and ``no_grad``,
    with an empty cache of autocast: weights that an earlier pass of the same block has cast are cast again. Measures of one
    network wait for each other, in whatever threads they are called. Raises TenasError for a network that no measure supports,
    and for images that are NaN or infinite; with ``drawn`` they are not looked at, as those of a search are pixels.
    """

    @functools.wraps(function)
    def measured(network: nn.Module, *args: P.args, **kwargs: P.kwargs) -> R:
        with _lock_of(network), one_thread(), full_precision(), torch.inference_mode(False):
            check_network(network)
            torch.clear_autocast_cache()
            try:
                args, kwargs = tree_map(_outside_inference, (args, kwargs))
                inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
                if not drawn and not all(_is_finite(tensor) for tensor in inputs if tensor.is_floating_point()):
                    raise TenasError("The images have values that are NaN or infinite: no measure of them means anything.")
                if is_ours(network):
                    return function(network, *args, **kwargs)
                check_values(network)
                with _kept(network, inputs) as again:
                    value = function(network, *args, **kwargs)
                if again():
                    with _kept(network, inputs, copying=True):
                        value = function(network, *args, **kwargs)
                return value
            finally:
                torch.clear_autocast_cache()

    return cast("Callable[Concatenate[nn.Module, P], R]", measured)


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite; mostly their sum tells, in one launch of a GPU."""
    return math.isfinite(tensor.sum().item()) or bool(tensor.isfinite().all())


def _lock_of(network: nn.Module) -> AbstractContextManager[object]:
    """The lock of a network: its measures change it for as long as they take."""
    with _LOCK:
        try:
            return _LOCKS.setdefault(network, threading.RLock())
        except TypeError:  # a network with a notion of equality, and without a hash
            return nullcontext()


def _new_locks() -> None:
    """In a process that was forked: those of threads that are not there would be held for ever."""
    global _LOCK
    _LOCK = threading.Lock()
    _LOCKS.clear()


os.register_at_fork(after_in_child=_new_locks)


def _outside_inference(value: Any) -> Any:
    """A copy of a tensor that was made in inference mode, which autograd refuses."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


@contextmanager
def _kept(network: nn.Module, inputs: Sequence[Tensor], *, copying: bool = False) -> Iterator[Callable[[], bool]]:
    """Restore what a network writes into its inputs. Gives a function that says whether it has; ``copying``: it reads copies."""
    before = [(tensor, tensor._version, tensor.detach().clone()) for tensor in inputs]
    written: list[Tensor] = []
    copies = network.register_forward_pre_hook(_with_copies, with_kwargs=True) if copying else None
    try:
        yield lambda: bool(written)
    finally:
        if copies is not None:
            copies.remove()
        for tensor, version, values in before:
            if tensor._version != version:
                written.append(tensor)
                tensor.data.copy_(values)


def _with_copies(network: nn.Module, args: Any, kwargs: Any) -> Any:
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, (args, kwargs))


def check_network(network: nn.Module) -> None:
    """Raise TenasError for parameters without values, and for those that autograd refuses."""
    tensors = (t for m in modules_of(network) for held in (m._parameters, m._buffers) for t in held.values() if t is not None)
    if not any(is_lazy(tensor) or tensor.is_inference() for tensor in tensors):
        return  # names take ten times as long to find
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if is_lazy(tensor):
            raise TenasError(f"The network's {name} has no values yet: run a batch through its lazy modules first.")
        if tensor.is_inference():
            raise TenasError(f"The network's {name} was made in torch.inference_mode(), without gradients: make it outside.")


def check_values(network: nn.Module) -> None:
    """Raise TenasError for parameters, or running statistics, that are NaN or infinite. Other buffers may be masks of -inf."""
    statistics = ((name, buffer) for name, buffer in network.named_buffers() if name.rpartition(".")[2].startswith("running_"))
    for name, tensor in (*network.named_parameters(), *statistics):
        if tensor.is_floating_point() and tensor.device.type != "meta" and not _is_finite(tensor.detach()):
            raise TenasError(f"The network's {name} has values that are NaN or infinite: no measure of it means anything.")


def modules_of(network: nn.Module) -> Iterator[nn.Module]:
    """``network.modules()`` in another order, several times as fast."""
    left, seen = [network], {id(network)}
    while left:
        module = left.pop()
        yield module
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                left.append(child)


def is_plain(module: nn.Module) -> bool:
    """Whether a module is of torch, torchvision or this package, whose passes leave nothing behind but buffers."""
    return type(module).__module__.partition(".")[0] in ("torch", "torchvision", "tenas")


def is_ours(network: nn.Module) -> bool:
    """Whether a network is of this package's classes, which write into no input."""
    return type(network).__module__.startswith("tenas.")


def scripted(network: nn.Module) -> str | None:
    """The name of the first module that is TorchScript, whose operators cannot be observed; None if there is none."""
    found = (name for name, module in network.named_modules() if isinstance(module, torch.jit.ScriptModule))
    return next((name or "the network" for name in found), None)


def check_eager(network: nn.Module) -> None:
    """Raise TenasError for a network with modules or operators that cannot be observed: TorchScript."""
    if name := scripted(network):
        raise TenasError(f"TorchScript hides its operators: measure {name} unscripted.")


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Restore the network's buffers (running statistics, counters) after the block: the tensors, their sizes and values.

    So are the weights of embeddings that renormalise them.
    """
    modules = list(network.modules())
    places = [(module._buffers, key, buffer) for module in modules for key, buffer in module._buffers.items()]
    # Nothing can write into a tensor with several elements in one place of memory, such as one made by expand.
    buffers = [buffer for _, _, buffer in places if buffer is not None and not _overlaps(buffer)]
    buffers += [module.weight for module in modules if isinstance(module, EMBEDDINGS) and module.max_norm is not None]
    saved = [buffer.detach().clone() for buffer in buffers]
    try:
        yield
    finally:
        for owner, key, buffer in places:
            if isinstance(owner, dict) and owner.get(key) is not buffer:
                owner[key] = buffer
        with torch.no_grad():
            for buffer, values in zip(buffers, saved, strict=True):
                if buffer.shape != values.shape:
                    buffer.resize_(values.shape)
            if buffers:
                # Into their data: where the caller has taken a pass before, autograd refuses to go back through tensors that
                # were written to since.
                torch._foreach_copy_([buffer.data for buffer in buffers], saved)


def _overlaps(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and any(
        not step and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


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
    """Exclude the existing objects, a million of torch's, from garbage collection within the block.

    What the block leaves is collected at its end: later it would be among those million, which Python rarely looks at.
    """
    frozen = gc.get_freeze_count() > 0
    gc.freeze()
    try:
        yield
    finally:
        if not frozen:
            gc.collect()
            gc.unfreeze()


def check_batch(images: Tensor) -> None:
    """Raise TenasError for a batch without images."""
    if len(images) == 0:
        raise TenasError("The measure of an empty batch is not defined.")


def computed_weights(network: nn.Module) -> list[str]:
    """Names of the layers whose weight is computed from other parameters (weight and spectral norm, parametrizations)."""
    layers = ((name, module) for name, module in network.named_modules() if isinstance(module, LAYERS))
    return [name or "the network" for name, module in layers if module._parameters.get("weight") is None]


class LeftOutWarning(UserWarning):
    """Parameters of a network do not contribute to a measure, whose weights are others."""


def warn_of_left_out(network: nn.Module, counted: Iterable[Tensor], rule: str) -> None:
    """Warn of matrices that require a gradient and are none of the ``counted`` weights, such as those of an LSTM.

    ``rule``: which weights count. Vectors (biases, scales) and the tables of layer norms are left out of every measure.
    """
    known = {id(weight) for weight in counted}
    modules = (module for module in network.modules() if type(module) is not nn.LayerNorm)
    held = (p for module in modules for p in module._parameters.values() if p is not None and p.requires_grad and p.ndim > 1)
    # More than one dimension of more than one element.
    found = {id(p) for p in held if p.numel() > max(p.shape)}
    # Names only if there are any: many networks are measured in milliseconds.
    if found - known:
        left = [name for name, p in network.named_parameters() if id(p) in found - known]
        listed = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        warnings.warn(f"The measure is over {rule}: it leaves out {listed}.", LeftOutWarning, stacklevel=2)


def weights_of(network: nn.Module) -> list[Tensor]:
    """Weights of convolutions and linear layers that require a gradient; warns of other matrices.

    Raises TenasError if there are none, or if a layer computes its weight from other parameters.
    """
    if computed := computed_weights(network):
        raise TenasError(
            f"The weight of {computed[0]} is computed from other parameters (weight or spectral norm, a parametrization): make "
            "it a plain one first, with torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.remove_weight_norm."
        )
    # A weight shared by two layers counts once.
    weights = {id(m.weight): m.weight for m in network.modules() if isinstance(m, LAYERS) and m.weight.requires_grad}
    if not weights:
        raise TenasError("The network has no convolution or linear layer whose weights require a gradient.")
    warn_of_left_out(network, weights.values(), "the weights of convolutions and linear layers")
    return list(weights.values())


def batch_loss(network: nn.Module, images: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of a batch. Raises TenasError if the shapes of batch, logits and labels do not match."""
    check_batch(images)
    labels = torch.as_tensor(labels, device=images.device)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TenasError(
            f"Labels must be whole numbers from 0, one for each image, not {str(labels.dtype).removeprefix('torch.')}."
        )
    labels = labels.long()
    logits = network(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TenasError(f"A loss needs logits (n, classes) for {len(images)} samples; the network gave {shape}.")
    if labels.shape != (len(images),):
        raise TenasError(f"A batch of {len(images)} needs as many labels, not {tuple(labels.shape)}.")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise TenasError(f"A label lies outside of the network's {logits.shape[1]} classes, 0 to {logits.shape[1] - 1}.")
    return cross_entropy(logits, labels, reduction=reduction)


def output_of(network: nn.Module, images: Tensor) -> Tensor:
    """The network's output. Raises TenasError for one that is no tensor."""
    output = network(images)
    if not isinstance(output, Tensor):
        raise TenasError(f"This measure takes a network whose output is a tensor, not {type(output).__name__}.")
    return output


def by_channel(output: Tensor, module: nn.Module | None) -> Tensor:
    """The output of a layer as (n, channels, positions): a linear layer's channels are its last dimension, others' the second."""
    if isinstance(module, nn.Linear) and output.ndim > 2:
        output = output.movedim(-1, 1)
    return output.reshape(len(output), output.shape[1], -1)


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
