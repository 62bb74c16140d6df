"""Reuse the recorded pass of a network and its plan, for kernels with other weights and other images.

A measure with many draws runs the same operators again and again, and for small batches recording and planning take longer than
the arithmetic. The key of a recording is everything on which the operators of the forward pass can depend: class and attributes
of every module, identity, dtype and shape of its tensors, modes, the shape of the batch; not the values of tensors. Only for
networks of this package's modules and of the modules of torch in them: other modules may read anything.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from tenas.measures.common import collector_paused, modules_of
from tenas.measures.ntk_tape import Record, Tape, Value, aten, is_known_kind, substitute
from tenas.networks.observer import name_of

if TYPE_CHECKING:
    from tenas.measures.kernel.plan import Plan

# Most bytes of kept recordings, roughly.
KEPT_BYTES = 2**27
# Bytes of a record on the tape and its part of a plan, without arrays, roughly.
RECORD_BYTES = 2**13

# Types of attributes that are compared by value.
PLAIN = frozenset({int, float, bool, str, type(None), tuple})
# Attributes of a module that contain tensors or modules. All its other dictionaries contain hooks.
HELD = ("_parameters", "_buffers", "_modules")
_RELEASED = torch.empty(0)


def state_of(network: nn.Module, images: Tensor) -> Hashable | None:
    """Everything on which the operators of the forward pass depend; None if it is unknown, or if the pass is observed."""
    if type(images) is not Tensor or not images.is_cpu or images.requires_grad or torch.is_autocast_enabled("cpu"):
        return None
    if _has_any_global_hook() or _get_current_function_mode_stack() or _get_current_dispatch_mode_stack():
        return None
    parts: list[Any] = [images.shape, images.stride(), images.dtype, torch.get_default_dtype()]
    if not all(_add_state(module, parts) for module in modules_of(network)):
        return None
    try:
        return State(parts)
    except TypeError:
        return None


class State:
    """A key of thousands of parts, hashed once. Raises TypeError for a part that cannot be compared."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = tuple(parts)
        self.hash = hash(self.parts)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and self.hash == other.hash and self.parts == other.parts


def _add_state(module: nn.Module, parts: list[Any]) -> bool:
    """Add the state of a module, without that of its children; False if it is unknown."""
    attributes, kind = vars(module), module.__class__
    key = kind, *attributes
    layout = LAYOUTS.get(key)
    if layout is None:
        if not is_known_kind(kind):
            return False
        layout = LAYOUTS[key] = Layout.of(attributes)
    plain = layout.plain(attributes)
    if any(layout.hooks(attributes)) or not PLAIN.issuperset(map(type, plain)):
        return False
    parts += (layout, kind.forward, plain)
    for name in HELD:
        if attributes[name] and not _add_held(attributes[name], parts):
            return False
    return all(_add(attributes[name], parts) for name in layout.others)


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Names of the attributes of a class of modules by kind: plain values, dictionaries of hooks, others.

    The state of a module is unknown if its attributes have other classes than those of the layout.
    """

    plain: Callable[[dict[str, Any]], tuple[Any, ...]]
    hooks: Callable[[dict[str, Any]], tuple[Any, ...]]
    others: list[str]

    @classmethod
    def of(cls, attributes: dict[str, Any]) -> Layout:
        left = [name for name in attributes if name not in HELD]
        plain = [name for name in left if type(attributes[name]) in PLAIN]
        hooks = [name for name in left if isinstance(attributes[name], dict)]
        # Every module of torch has at least two of each: an itemgetter of one name returns no tuple.
        return cls(itemgetter(*plain), itemgetter(*hooks), [name for name in left if name not in (*plain, *hooks)])


def _add_held(held: dict[str, Any], parts: list[Any]) -> bool:
    """Add a module's parameters, buffers or children."""
    for name, value in held.items():
        parts.append(name)
        if isinstance(value, Tensor):
            if not value.is_cpu or value._backward_hooks or value.is_inference():
                return False
            # By id: a recording keeps the tensors that it uses alive. Tensors cannot be compared.
            parts += (id(value), value.__class__, value.dtype, value.shape, value.requires_grad)
        else:
            parts.append(value)
    return True


def _add(value: Any, parts: list[Any]) -> bool:
    """Add an attribute: numbers, modules, spaces and masks, and lists of such."""
    kind = value.__class__
    if isinstance(value, list | set):
        parts.append(len(value))
        return all(_add(item, parts) for item in value)
    if kind in PLAIN or isinstance(value, nn.Module) or kind.__module__.startswith("tenas.spaces"):
        parts.append(value)
        return True
    return False


class Step:
    """An operator of a recorded pass, to be run on the present values of its inputs."""

    __slots__ = ("args", "faster", "kwargs", "nested", "op", "outputs", "plain")

    def __init__(self, record: Record, faster: Callable[..., Any] | None) -> None:
        self.op, self.faster = record.op, faster
        args = record.args
        if record.op is aten.native_batch_norm.default and args[5]:
            args = (*args[:3], None, None, *args[5:])  # the network's running statistics are not updated
        self.args, self.kwargs = list(args), record.kwargs
        self.plain = [(index, arg) for index, arg in enumerate(args) if isinstance(arg, Value)]
        self.nested = [
            (index, arg) for index, arg in enumerate(args) if isinstance(arg, list) and any(isinstance(a, Value) for a in arg)
        ]
        self.outputs = record.outputs

    def inputs(self) -> Iterator[Value]:
        yield from (value for _, value in self.plain)
        yield from (value for _, values in self.nested for value in values if isinstance(value, Value))

    def __call__(self) -> None:
        args = self.args.copy()
        for index, value in self.plain:
            args[index] = value.tensor
        for index, values in self.nested:
            args[index] = substitute(values, lambda value: value.tensor)
        result = None if self.faster is None else self.faster(*args)
        if result is None:
            result = self.op(*args, **self.kwargs)
        for output, tensor in zip(self.outputs, result if isinstance(result, tuple | list) else (result,), strict=True):
            if output is not None:
                output.tensor, output.version = tensor, tensor._version


class Recording:
    """A forward pass that can be run again, and its plan. It has values only during a run."""

    def __init__(self, tape: Tape, plan: Plan, images: Tensor, steps: list[Step], leaves: list[Value]) -> None:
        self.tape, self.plan, self.steps = tape, plan, steps
        self.weights = [leaf for leaf in leaves if leaf.tensor is not images]
        self.images = [leaf for leaf in leaves if leaf.tensor is images]
        self.made = [output for step in steps for output in step.outputs if output is not None]
        self.nbytes = plan.nbytes + RECORD_BYTES * len(steps)

    def run(self, images: Tensor) -> Tensor:
        """Gradients of all samples' sums of logits: (n, parameters)."""
        for value in self.images:
            value.tensor = images
        for value in (*self.weights, *self.images):
            value.version = value.tensor._version
        with collector_paused():
            try:
                with torch.no_grad():
                    for step in self.steps:
                        step()
                self.plan.load()
                return self.plan.run()
            finally:
                self.release()

    def release(self) -> None:
        """Release the values of a run."""
        self.plan.release()
        for record in self.tape.records:
            record.cache.pop("norm", None)
        for value in (*self.images, *self.made):
            value.tensor = _RELEASED

    def close(self) -> None:
        self.plan.close()
        self.tape.close()


def recording_of(tape: Tape, plan: Plan, network: nn.Module, images: Tensor) -> Recording | None:
    """Make a recording of the tape and its plan; None if a part of them is not the same in each run.

    Such parts are in-place changes, random numbers, and tensors that belong neither to the network nor to the pass.
    """
    buffers = {id(buffer) for buffer in network.buffers()}
    own = {*buffers, *map(id, network.parameters()), id(images)}
    changing = (record for record in tape.every if record.op._schema.is_mutable)
    if not all(id(value.tensor) in buffers for record in changing for value in record.inputs):
        return None
    makers = {output: record for record in tape.every for output in record.outputs if output is not None}
    leaves = dict.fromkeys(tape.parameters)
    steps: dict[Record, Step] = {}
    waiting = list(tape.records)
    while waiting:
        record = waiting.pop()
        if record in steps:
            continue
        if not _repeats(record):
            return None
        steps[record] = Step(record, None if record.kwargs else tape.faster.get(record.op))
        for value in steps[record].inputs():
            if id(value.tensor) in own:
                leaves[value] = None
            elif value in makers:
                waiting.append(makers[value])
            else:
                return None
    if not plan.reusable:
        return None
    return Recording(tape, plan, images, [steps[record] for record in tape.every if record in steps], list(leaves))


def _repeats(record: Record) -> bool:
    """Whether the operator is pure: same result for the same arguments, none of which it changes."""
    schema, name = record.op._schema, name_of(record.op)
    drawn = torch.Tag.nondeterministic_seeded in record.op.tags or "empty" in name
    return not (drawn or schema.is_mutable or any(isinstance(arg, Value) for arg in record.kwargs.values()))


def keep(network: nn.Module, state: Hashable | None, images: Tensor, tape: Tape, plan: Plan) -> bool:
    """Keep a recorded pass and its plan for the next kernel of the network; False if they cannot be run again."""
    recording = None if state is None else recording_of(tape, plan, network, images)
    if recording is None:
        return False
    tape.keep()
    recording.release()
    SHELF.give(network, state, recording)
    return True


class Shelf:
    """Recordings that are not in use, by network and state. A caller takes one exclusively, and returns it."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Recording]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def take(self, network: nn.Module, state: Hashable) -> Recording | None:
        with self._lock:
            return self._held.get(network, OrderedDict()).pop(state, None)

    def give(self, network: nn.Module, state: Hashable, recording: Recording) -> None:
        """Keep a recording; drop the least recently used ones if there are too many."""
        with self._lock:
            held = self._held.pop(network, OrderedDict())
            held[state] = recording
            self._held[network] = held  # last, as the most recently used
            size = sum(r.nbytes for recordings in self._held.values() for r in recordings.values())
            for other in list(self._held):
                recordings = self._held[other]
                while recordings and size > self.most:
                    _, oldest = recordings.popitem(last=False)
                    size -= oldest.nbytes
                    oldest.close()


# By class and names of attributes, of the few known classes only.
LAYOUTS: dict[tuple[Any, ...], Layout] = {}
SHELF = Shelf(KEPT_BYTES)
