"""Every primitive of the NTK's reverse pass, compiled and in plain torch, against autograd in float64; the implementations."""

import ast
import warnings
from collections.abc import Callable

import pytest
import torch
from helpers import ROOT
from helpers.engine import Doubled
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tenas.errors import TenasError
from tenas.measures import ntk_engine
from tenas.measures.kernel import forward, plan, rules
from tenas.measures.ntk import ntk_gram, ntk_gram_by_loop, ntk_parameters
from tenas.measures.ntk_primitives import PRIMITIVES
from tenas.measures.ntk_tape import aten

Case = Callable[[Tensor, "Draw"], Tensor]


class Draw:
    """The choices of one example, and the weights and constants that it uses: the same whenever the network runs."""

    def __init__(self, data: st.DataObject, network: nn.Module) -> None:
        self.data, self.network, self.held, self.next = data, network, [], 0

    def _once(self, make: Callable[[], object]) -> object:
        if self.next == len(self.held):
            self.held.append(make())
        self.next += 1
        return self.held[self.next - 1]

    def __call__(self, strategy: st.SearchStrategy) -> object:
        return self._once(lambda: self.data.draw(strategy))

    def weight(self, *shape: int) -> nn.Parameter:
        """A trainable parameter that counts."""

        def make() -> nn.Parameter:
            holder = nn.Module()
            holder.weight = nn.Parameter(torch.randn(shape).double())
            self.network.add_module(f"holder{len(self.held)}", holder)
            return holder.weight

        return self._once(make)

    def constant(self, *shape: int) -> Tensor:
        return self._once(lambda: torch.randn(shape).double())


def maybe_relu(x: Tensor, draw: Draw) -> Tensor:
    """Behind a ReLU kernels work on the active pixels only."""
    return torch.relu(x) if draw(st.booleans()) else x


def pair(low: int, high: int) -> st.SearchStrategy:
    return st.tuples(st.integers(low, high), st.integers(low, high)).map(list)


def convolution(x: Tensor, draw: Draw) -> Tensor:
    x = maybe_relu(x, draw)
    channels = x.shape[1]
    groups = draw(st.sampled_from([1, channels]))
    kernel, stride, dilation = draw(pair(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    outer = groups * draw(st.integers(1, 2))
    weight = draw.weight(outer, channels // groups, *kernel)
    bias = draw.constant(outer) if draw(st.booleans()) else None
    padding = [dilation * (k // 2) for k in kernel]
    return aten.convolution.default(x, weight, bias, [stride] * 2, padding, [dilation] * 2, False, [0, 0], groups)


def average_pool(x: Tensor, draw: Draw) -> Tensor:
    kernel, stride = draw(pair(2, 3)), draw(st.integers(1, 2))
    return aten.avg_pool2d.default(maybe_relu(x, draw), kernel, [stride] * 2, [1, 1], False, draw(st.booleans()))


def max_pool(x: Tensor, draw: Draw) -> Tensor:
    kernel, stride = draw(pair(2, 3)), draw(st.integers(1, 2))
    return aten.max_pool2d_with_indices.default(maybe_relu(x, draw), kernel, [stride] * 2, [1, 1])[0]


def batch_norm(x: Tensor, draw: Draw, normalise: Callable[..., tuple[Tensor, ...]]) -> Tensor:
    """Of a convolution's output, which is used once or twice, or of something else; with or without a weight."""
    channels, kind = x.shape[1], draw(st.sampled_from(["convolution", "shared", "other"]))
    z = torch.relu(x) * 2
    if kind != "other":
        z = torch.conv2d(torch.relu(x), draw.weight(channels, channels, 3, 3), padding=1)
    weight = draw.weight(channels) if draw(st.booleans()) else None
    mean, var = draw.constant(channels), draw.constant(channels).square() + 0.5
    y = normalise(z, weight, mean.clone(), var.clone(), draw(st.booleans()))[0]
    return y + z if kind == "shared" else y


def add(op: Callable[..., Tensor]) -> Case:
    def case(x: Tensor, draw: Draw) -> Tensor:
        other = torch.relu(x) if draw(st.booleans()) else draw.constant(*x.shape)
        return op(x * 2, other, alpha=draw(st.sampled_from([1, 2, -0.5])))

    return case


def scale(op: Callable[..., Tensor], scalar: bool) -> Case:
    return lambda x, draw: op(x + 1, 0.7 if scalar else torch.tensor(draw(st.floats(0.5, 2))).double())


def cat(x: Tensor, draw: Draw) -> Tensor:
    parts = [torch.relu(x), draw.constant(*x.shape), x * 2]
    return aten.cat.default(parts[: draw(st.integers(2, 3))], draw(st.sampled_from([1, -3])))


def slice_(x: Tensor, draw: Draw) -> Tensor:
    x, dim = maybe_relu(x, draw), draw(st.sampled_from([2, 3, -1]))
    return aten.slice.Tensor(x, dim, draw(st.integers(0, 2)), draw(st.integers(3, 9)))


CASES: dict[object, Case] = {
    aten.convolution.default: convolution,
    aten.avg_pool2d.default: average_pool,
    aten.max_pool2d_with_indices.default: max_pool,
    aten.native_batch_norm.default: lambda x, draw: batch_norm(
        x, draw, lambda z, w, mean, var, coupled: aten.native_batch_norm.default(z, w, None, mean, var, coupled, 0.1, 1e-5)
    ),
    aten._native_batch_norm_legit.default: lambda x, draw: batch_norm(
        x, draw, lambda z, w, mean, var, coupled: aten._native_batch_norm_legit.default(z, w, None, mean, var, coupled, 0.1, 1e-5)
    ),
    aten._native_batch_norm_legit.no_stats: lambda x, draw: batch_norm(
        x, draw, lambda z, w, mean, var, coupled: aten._native_batch_norm_legit.no_stats(z, w, None, True, 0.1, 1e-5)
    ),
    aten.relu.default: lambda x, draw: aten.relu.default(x) + x,
    aten.relu_.default: lambda x, draw: aten.relu_.default(x * 1),
    aten.add.Tensor: add(aten.add.Tensor),
    aten.add_.Tensor: add(aten.add_.Tensor),
    aten.sub.Tensor: add(aten.sub.Tensor),
    aten.sub_.Tensor: add(aten.sub_.Tensor),
    aten.mul.Tensor: scale(aten.mul.Tensor, scalar=False),
    aten.mul.Scalar: scale(aten.mul.Scalar, scalar=True),
    aten.mul_.Scalar: scale(aten.mul_.Scalar, scalar=True),
    aten.div.Tensor: scale(aten.div.Tensor, scalar=False),
    aten.div.Scalar: scale(aten.div.Scalar, scalar=True),
    aten.div_.Tensor: scale(aten.div_.Tensor, scalar=False),
    aten.div_.Scalar: scale(aten.div_.Scalar, scalar=True),
    aten.cat.default: cat,
    aten.slice.Tensor: slice_,
    aten.mean.dim: lambda x, draw: aten.mean.dim(x, draw(st.sampled_from([[2, 3], [-1], [1, 2]])), draw(st.booleans())),
    aten.addmm.default: lambda x, draw: aten.addmm.default(draw.constant(2), x.flatten(1), draw.weight(x[0].numel(), 2)),
    aten.mm.default: lambda x, draw: aten.mm.default(x.flatten(1), draw.weight(x[0].numel(), 2)),
    aten.view.default: lambda x, draw: aten.view.default(x, [len(x), -1, x.shape[3]]),
    aten._unsafe_view.default: lambda x, draw: aten._unsafe_view.default(x * 2, [len(x), x.shape[1], -1]),
    aten.unsqueeze.default: lambda x, draw: aten.unsqueeze.default(x, draw(st.integers(1, 4))),
    aten.squeeze.default: lambda x, draw: aten.squeeze.default(torch.cat([x, x])[:, :1])[: len(x)],
    aten.squeeze.dim: lambda x, draw: aten.squeeze.dim(x[:, :1], 1),
    aten.squeeze.dims: lambda x, draw: aten.squeeze.dims(x[:, :1, :1], [1, 2]),
    aten.t.default: lambda x, draw: aten.t.default(draw.constant(3, 2) @ aten.t.default(x.flatten(1)[:, :2])),
}
# Only a GPU's: the same rule as the others, called by torch itself.
ELSEWHERE = {aten.cudnn_batch_norm.default}
# The cases are without arguments for which a compiled rule leaves the operator to plain torch.
COMPILED = [op for op, primitive in PRIMITIVES.items() if primitive.compiled and op not in ELSEWHERE]


class Network(nn.Module):
    """A convolution, the operator, and two fixed sums of what comes out."""

    def __init__(self, case: Case, channels: int, data: st.DataObject) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.case, self.draw = case, Draw(data, self)
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        self.draw.next = 0
        x = self.case(self.stem(images), self.draw)
        x = x.reshape(len(images), -1)
        return x @ torch.linspace(-1, 2, 2 * x.shape[1], dtype=torch.float64).sin().reshape(-1, 2)


def rows_by_autograd(network: nn.Module, images: Tensor) -> Tensor:
    weights, rows = ntk_parameters(network), []
    for total in network(images).sum(1):
        gradients = torch.autograd.grad(total, weights, retain_graph=True, allow_unused=True)
        pairs = zip(gradients, weights, strict=True)
        rows.append(torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in pairs]))
    return torch.stack(rows)


def test_every_primitive_has_a_case():
    assert CASES.keys() | ELSEWHERE == PRIMITIVES.keys()


@pytest.mark.parametrize("op", CASES, ids=lambda op: str(op).removeprefix("aten."))
@given(st.data(), st.integers(1, 10), st.integers(1, 3), st.integers(4, 7), st.integers(4, 7), st.integers(0, 99))
@settings(max_examples=6, deadline=None)
def test_gradients_are_those_of_autograd(op, data, n, channels, height, width, seed):
    torch.manual_seed(seed)
    network, images = Network(CASES[op], channels, data), torch.randn(n, 3, height, width).double()
    network(images)
    expected = rows_by_autograd(network, images)
    scale = expected.abs().max().clamp(min=1)
    with ntk_engine.recorded(network, images, ntk_parameters(network), compiled=False) as (tape, logits):
        assert op in [record.op for record in tape.records]
        batched = ntk_engine.batched_jacobian(tape, logits, chunk=3)
    assert (batched - expected).abs().max() / scale < 1e-11
    with ntk_engine.recorded(network, images, ntk_parameters(network)) as (tape, logits):
        made = plan.Plan(tape, logits)
        assert (op in made.left_to_torch) == (op not in COMPILED)
        made.load()
        compiled = made.run()
        made.close()
    assert (compiled - expected).abs().max() / scale < 1e-11


# The registry.


def functions(module) -> set[str]:
    tree = ast.parse((ROOT / (module.__name__.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}


def test_the_registry_names_every_compiled_function_and_no_other():
    assert {primitive.compiled for primitive in PRIMITIVES.values()} - {""} == functions(rules)
    assert {primitive.forward for primitive in PRIMITIVES.values()} - {""} == functions(forward)


# The implementations.


def convolutional() -> nn.Module:
    layers = nn.Conv2d(3, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.Flatten()
    return nn.Sequential(*layers).double()


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.ReLU(), nn.Linear(3, 2)).double()


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = convolutional()

    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(self.body(x))


IMAGES = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("implementation", ["auto", "compiled", "batched", "loop"])
def test_every_implementation_gives_the_same_kernel(implementation):
    torch.manual_seed(0)
    network = convolutional()
    torch.testing.assert_close(
        ntk_gram(network, IMAGES, implementation=implementation), ntk_gram_by_loop(network, IMAGES), rtol=1e-11, atol=1e-11
    )


def test_auto_is_the_fastest_that_takes_the_network():
    torch.manual_seed(0)
    for make, expected in ((convolutional, "compiled"), (linear, "batched"), (Untraceable, "loop")):
        network = make()
        assert torch.equal(ntk_gram(network, IMAGES), ntk_gram(network, IMAGES, implementation=expected))


@pytest.mark.parametrize(
    ("make", "settings_", "message"),
    [
        (linear, {"implementation": "compiled"}, r"do not take this network: it has no convolution\."),
        (Untraceable, {"implementation": "compiled"}, "cannot be replayed.*a gradient is a function of its own"),
        (Untraceable, {"implementation": "batched"}, "cannot be replayed"),
        (lambda: convolutional().bfloat16(), {"implementation": "compiled"}, "not all float32 or all float64"),
        (lambda: nn.Sequential(nn.Conv2d(3, 70_000, 4), nn.Flatten()), {"implementation": "compiled"}, r"3,360,000 weights"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 99_999, 1), nn.Flatten()),
            {"implementation": "compiled"},
            r"31,999,680 bytes, more than 8,388,608",
        ),
        (convolutional, {"implementation": "compiled", "chunk": 2}, "A chunk is of the batched implementation"),
        (convolutional, {"implementation": "loop", "chunk": 2}, "A chunk is of the batched implementation"),
        (
            convolutional,
            {"implementation": "fast"},
            "Unknown implementation of the kernel 'fast'; known: auto, compiled, batched, loop",
        ),
    ],
)
def test_what_an_implementation_does_not_take_is_said(make, settings_, message):
    network = make()
    with pytest.raises(TenasError, match=message):
        ntk_gram(network, IMAGES.to(next(network.parameters()).dtype), **settings_)


def test_the_setting_of_before_goes_on_with_a_warning():
    torch.manual_seed(0)
    network = convolutional()
    with pytest.deprecated_call(match="implementation="):
        old = ntk_gram(network, IMAGES, compiled=False)
    assert torch.equal(old, ntk_gram(network, IMAGES, implementation="batched"))
    with pytest.deprecated_call():
        assert torch.equal(ntk_gram(network, IMAGES, compiled=True), ntk_gram(network, IMAGES))
    with pytest.deprecated_call():  # which fell back by itself
        ntk_gram(Untraceable(), IMAGES, compiled=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ntk_gram(network, IMAGES)
