"""Shared parts of measures: surroundings, checks of batches and networks, losses, weights, gradients, hooks."""

import functools
import gc
import inspect
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
from torch._ops import OpOverload
from torch.nn.functional import batch_norm, cross_entropy
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from tenas.boundary import place_of
from tenas.errors import TenasError
from tenas.measures.threads import full_precision, one_thread
from tenas.networks.observer import Observer, name_of, storage_key, tensors_in

P = ParamSpec("P")
R = TypeVar("R")

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
# Operators with a matrix or kernel of weights.
PRODUCTS = frozenset({"convolution", "addmm", "mm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "linear", "_trilinear", "conv_tbc",
                      "mkldnn_rnn_layer", "torchvision::deform_conv2d"})  # fmt: skip
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# Locks by network, and the lock of that table.
_LOCKS: "weakref.WeakKeyDictionary[nn.Module, AbstractContextManager[object]]" = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def measuring(
    function: Callable[Concatenate[nn.Module, P], R], *, drawn: bool = False, values: bool = True
) -> Callable[Concatenate[nn.Module, P], R]:
    """Decorate a function of (network, images, ...) so that its value does not depend on what surrounds the call.

    It runs on one thread, on a GPU in whole float32 (``full_precision``), outside of ``torch.inference_mode`` and ``no_grad``,
    with an empty cache of autocast: weights that an earlier pass of the same block has cast are cast again. Measures of one
    network wait for each other, in whatever threads they are called. Raises TenasError for a network that no measure supports,
    and for images that are NaN or infinite; with ``drawn`` they are not looked at, as those of a search are pixels. ``values``:
    whether the measure needs the values of weights. An error within a measure, of a network that runs by itself, is a TenasError.
    """
    signature = inspect.signature(function)
    # A user's measure has its own errors.
    is_shipped = function.__module__.startswith("tenas.")

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
                if is_all_ours(network):
                    return function(network, *args, **kwargs)
                if values:
                    check_values(network)
                signature.bind(network, *args, **kwargs)
                with _explained(function.__name__, network, inputs) if is_shipped else nullcontext():
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
    if tensor.dtype.itemsize == 1:  # torch has no sum of such floats
        tensor = tensor.float()
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


@contextmanager
def _explained(measure: str, network: nn.Module, inputs: Sequence[Tensor]) -> Iterator[None]:
    """Raise TenasError for what torch or Python cannot do for a measure. A network's own errors are left as they are."""
    try:
        yield
    except (TenasError, MemoryError, torch.OutOfMemoryError, Warning):
        raise
    except Exception as error:
        if not _runs(network, inputs):
            raise
        said = (str(error).strip().splitlines() or [""])[0].rstrip(".") or type(error).__name__
        place = place_of(error)
        where = "" if place.ours else f" ({type(error).__name__} in {place.text})"
        raise TenasError(f"{measure} cannot be measured of this network, which runs by itself: {said}{where}.") from error


def _runs(network: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Whether a network has a pass of the first of the inputs without an error."""
    try:
        # With gradients, which some take within their pass.
        with undisturbed(network), torch.enable_grad():
            network(inputs[0])
    except Exception:
        return False
    return True


def _with_copies(network: nn.Module, args: Any, kwargs: Any) -> Any:
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, (args, kwargs))


def check_network(network: nn.Module) -> None:
    """Raise TenasError for what is no module, for parameters without values, and for those that autograd refuses."""
    if not isinstance(network, nn.Module):
        what = "it makes one when it is called" if callable(network) else "measures take it, and then images"
        raise TenasError(f"A network is a torch.nn.Module, and this is a {type(network).__name__}: {what}.")
    tensors = (t for m in modules_of(network) for held in (m._parameters, m._buffers) for t in held.values() if t is not None)
    if not any(is_lazy(tensor) or tensor.is_inference() for tensor in tensors):
        return  # names take ten times as long to find
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if is_lazy(tensor):
            raise TenasError(f"The network's {name} has no values yet: run a batch through its lazy modules first.")
        if tensor.is_inference():
            raise TenasError(f"The network's {name} was made in torch.inference_mode(), without gradients: make it outside.")


def check_values(network: nn.Module) -> None:
    """Raise TenasError for parameters, or running statistics, that are NaN or infinite. Other buffers may be masks of -inf.

    So for parameters on the meta device, and for sparse ones, whose gradients are of another shape.
    """
    statistics = ((name, buffer) for name, buffer in network.named_buffers() if name.rpartition(".")[2].startswith("running_"))
    for name, tensor in (*network.named_parameters(), *statistics):
        if tensor.is_meta:
            raise TenasError(f"The network's {name} has no values, as it is on the meta device: only costs can be counted of it.")
        if tensor.layout is not torch.strided:
            raise TenasError(f"The network's {name} is sparse, which no measure takes: make it dense, by to_dense().")
        if tensor.is_floating_point() and not _is_finite(tensor.detach()):
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


def has_hooks(module: nn.Module) -> bool:
    """Whether a module calls functions of others before or after its pass."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def is_ours(network: nn.Module) -> bool:
    """Whether a network is of this package's classes, which write into no input."""
    return type(network).__module__.startswith("tenas.")


def is_all_ours(network: nn.Module) -> bool:
    """``is_ours``, also of every operator in it: those of a user's space may be anything."""
    return is_ours(network) and all(map(is_plain, modules_of(network)))


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

    So are the weights of embeddings that renormalise them; and where there are modules of other packages, all weights and all
    attributes. Raises TenasError for parameters that a pass made: the block will have missed them.
    """
    modules = list(modules_of(network))
    foreign = not all(map(is_plain, modules))
    held = [part for module in modules for part in (_parts(module) if foreign else (module._buffers,))]
    had = [(part, dict(part)) for part in held if isinstance(part, dict)]  # that of a compiled program is no dict
    # Nothing can write into a tensor with several elements in one place of memory, such as one made by expand.
    kept = [b for module in modules for b in module._buffers.values() if b is not None and not _overlaps(b)]
    if foreign:
        kept += [parameter for parameter in network.parameters() if not _overlaps(parameter)]
    else:
        kept += [module.weight for module in modules if isinstance(module, EMBEDDINGS) and module.max_norm is not None]
    known = {id(tensor) for tensor in kept}
    # The data, as a module may exchange them.
    before = [(tensor, tensor.data, tensor.detach().clone()) for tensor in kept]
    new: str | None = None
    try:
        yield
        if foreign:
            new = next((name for name, p in network.named_parameters() if id(p) not in known and not _overlaps(p)), None)
    finally:
        for part, values in had:
            if part.keys() != values.keys() or any(part[key] is not value for key, value in values.items()):
                part.clear()
                part.update(values)
        with torch.no_grad():
            for tensor, data, _ in before:
                if tensor.layout is torch.strided and (tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape):
                    tensor.data = data
            if before:
                # Into their data: where the caller has taken a pass before, autograd refuses to go back through tensors that
                # were written to since.
                torch._foreach_copy_([tensor.data for tensor, _, _ in before], [values for _, _, values in before])
    if new is not None:
        raise TenasError(
            f"The network makes its parameter {new} in a pass, unseen by the measure: run a batch through it before, or write "
            "into the parameter that is there."
        )


def _parts(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """What a module holds by names; not what lists and mappings of its own hold."""
    return vars(module), module._parameters, module._buffers, module._modules


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
    held = (p for module in modules for p in module._parameters.values() if p is not None and p.requires_grad)
    found = {id(p) for p in held if is_matrix(p)}
    # Names only if there are any: many networks are measured in milliseconds.
    if found - known:
        left = [name for name, p in network.named_parameters() if id(p) in found - known]
        warnings.warn(f"The measure is over {rule}: it leaves out {_first(left)}.", LeftOutWarning, stacklevel=2)


class ParametersRead(Observer):
    """Collects the parameters that operators read, by their ids in ``found``: of modules, or those given to functions.

    ``multiplied``: those of them that matrix products and convolutions read.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.owner = {storage_key(parameter): id(parameter) for parameter in network.parameters()}
        self.found: set[int] = set()
        self.multiplied: set[int] = set()

    def saw(self, operator: OpOverload, read: object, out: Any) -> None:
        keys = map(storage_key, tensors_in(read))
        found = {self.owner[key] for key in keys if key in self.owner}
        self.found |= found
        if name_of(operator) in PRODUCTS:
            self.multiplied |= found


@contextmanager
def layers_called(network: nn.Module, hook: Callable[[nn.Module, tuple[Any, ...], Any], Any]) -> Iterator[None]:
    """``hooked`` for convolutions and linear layers; warns of those whose weights a network of one's own gives to functions."""
    called: set[nn.Module] = set()

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        called.add(module)
        return hook(module, inputs, output)

    read = None if is_all_ours(network) else ParametersRead(network)
    with hooked(network, LAYERS, note), read or nullcontext():
        yield
    if read is not None:
        # Those of a layer that is called count with it, also where its weight is computed from them.
        counted = {id(parameter) for layer in called for parameter in layer.parameters()}
        unseen = read.multiplied - counted
        if left := [name for name, parameter in network.named_parameters() if id(parameter) in unseen and is_matrix(parameter)]:
            warnings.warn(
                "The measure is over convolutions and linear layers that are called as modules: it leaves out "
                f"{_first(left)}, which functions read.",
                LeftOutWarning,
                stacklevel=3,
            )


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter has more than one dimension of more than one element; vectors are biases and scales."""
    return parameter.numel() > max(parameter.shape, default=1)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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
    """Call ``hook(module, inputs, output)`` after each call of a layer of these kinds, within the block.

    ``inputs``: all of the call, those by name last.
    """

    def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return hook(module, (*args, *kwargs.values()), output)

    layers = [module for module in network.modules() if isinstance(module, kinds)]
    handles = [module.register_forward_hook(called, with_kwargs=True) for module in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class BatchNorms(TorchFunctionMode):
    """Calls ``instead(input, weight, bias, eps)`` in place of each batch normalisation within the block, of a module or not.

    A module of a class that normalises by hand has its output replaced.
    """

    def __init__(self, network: nn.Module, instead: Callable[[Tensor, Tensor | None, Tensor | None, float], Tensor]) -> None:
        super().__init__()
        self.instead, self.network = instead, network
        self.count = 0
        self.begun: list[int] = []
        self.handles: list[Any] = []

    def __enter__(self) -> "BatchNorms":
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                self.handles.append(module.register_forward_pre_hook(self._before))
                self.handles.append(module.register_forward_hook(self._after, with_kwargs=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self.handles:
            handle.remove()

    def _before(self, module: nn.Module, inputs: Any) -> None:
        self.begun.append(self.count)

    def _after(self, module: Any, inputs: Any, named: Any, output: Any) -> Any:
        if self.begun.pop() != self.count:
            return None
        with torch._C.DisableTorchFunction():  # else this mode would see the normalisation in place of it
            return self.instead((*inputs, *named.values())[0], module.weight, module.bias, module.eps)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is batch_norm:
            return self._instead(*args, **(kwargs or {}))
        if func in (torch.batch_norm, torch.ops.aten.batch_norm, torch.ops.aten.batch_norm.default):
            return self._of_torch(*args, **(kwargs or {}))
        if "batch_norm" in getattr(func, "__name__", ""):
            raise TenasError(f"The network normalises by {func.__name__}, which this measure cannot replace: use F.batch_norm.")
        return func(*args, **(kwargs or {}))

    def _of_torch(
        self, input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Any, running_var: Any, training: Any,
        momentum: Any, eps: float, cudnn_enabled: Any,
    ) -> Tensor:  # fmt: skip
        return self._instead(input, None, None, weight, bias, eps=eps)

    def _instead(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        self.count += 1
        return self.instead(input, weight, bias, eps)
