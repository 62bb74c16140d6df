"""Networks of one's own: the kernel is autograd's for whatever they compute, other measures are right or say that they aren't."""

import functools
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from tenas.errors import TenasError
from tenas.measures import MEASURES, linear_regions, naswot, ntk_gram, swap
from tenas.measures.ntk import LeftOutWarning, PlainLoopWarning, _agrees
from tenas.measures.regions import SaturatedWarning, SmoothActivationWarning

pytestmark = [
    pytest.mark.filterwarnings("ignore::tenas.measures.ntk.PlainLoopWarning"),
    pytest.mark.filterwarnings("ignore::tenas.measures.regions.SaturatedWarning"),
]
N, CHANNELS, SIDE = 4, 4, 6


def images(n: int = N, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, CHANNELS, SIDE, SIDE, dtype=dtype, generator=torch.Generator().manual_seed(3))


def plainly(network: nn.Module, batch: Tensor) -> Tensor:
    """The kernel by its definition: a backward pass a sample, over the parameters whose name ends in ``weight``."""
    parameters = [p for name, p in network.named_parameters() if name.rpartition(".")[2] == "weight"]
    sums = network(batch).flatten(1).sum(1)
    rows = []
    for i in range(len(batch)):
        network.zero_grad()
        sums[i].backward(retain_graph=True)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        rows.append(torch.cat([(torch.view_as_real(g) if g.is_complex() else g).flatten().clone() for g in grads]))
    rows = torch.stack(rows).double()
    return rows @ rows.T


class Layer(nn.Module):
    """A convolution, then a function of its result (n, 4, 6, 6) to the same shape, which may use the layer's other weights."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.other = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.vector = nn.BatchNorm2d(CHANNELS)
        self.square = nn.Linear(SIDE, SIDE)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.conv(x))


def chain(*functions: Callable) -> nn.Module:
    torch.manual_seed(5)
    layers = [Layer(function) for function in functions]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(CHANNELS * SIDE * SIDE, 3)).double()


class Cubed(torch.autograd.Function):
    """Whose gradient is not that of its operators."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * x


def in_place(change: Callable) -> Callable:
    def function(layer: Layer, x: Tensor) -> Tensor:
        y = x * 1.0
        change(y)
        return y

    return function


def without_grad(change: Callable) -> Callable:
    def function(layer: Layer, x: Tensor) -> Tensor:
        with torch.no_grad():
            change(x)
        return x

    return function


def halves(x: Tensor) -> Tensor:
    x[:, :2] = x[:, 2:] * 2
    return x


def grad_within(layer: Layer, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x * 3
        with torch.enable_grad():
            z = layer.other(x)
    return z + y


def hooked(layer: Layer, x: Tensor) -> Tensor:
    y = x * 1.0
    y.register_hook(lambda gradient: gradient * 0.5)
    return y


def by_parts(layer: Layer, x: Tensor) -> Tensor:
    return torch.cat([part.sin() for part in x.split([1, 3], dim=1)], dim=1)


def called(layer: Layer, x: Tensor) -> Tensor:
    weights = {name: parameter * 2 for name, parameter in layer.other.named_parameters()}
    return torch.func.functional_call(layer.other, weights, (x,))


def attention(layer: Layer, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    return F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).reshape(x.shape)


def folded(layer: Layer, x: Tensor) -> Tensor:
    return F.fold(F.unfold(x, 3, padding=1), (SIDE, SIDE), 3, padding=1)


def complex_weight(layer: Layer, x: Tensor) -> Tensor:
    weight = torch.complex(layer.other.weight[:, :, 0, 0], layer.square.weight[:4, :4])
    return torch.einsum("oc,nchw->nohw", weight, x.to(weight.dtype)).abs()


def recurrent(layer: Layer, x: Tensor) -> Tensor:
    for _ in range(3):
        x = layer.other(x).relu()  # the same weights three times
    return x


# By name: functions of (layer, x) that keep the shape.
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    # elementwise
    "abs": torch.abs,
    "acos": lambda x: x.tanh().mul(0.9).acos(),
    "asinh": torch.asinh,
    "atan": torch.atan,
    "ceil": lambda x: x.ceil() + x,
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp_min": lambda x: x.clamp(min=0),
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": lambda x: x.clamp(max=3).exp(),
    "expm1": lambda x: x.clamp(max=3).expm1(),
    "frac": torch.frac,
    "log1p": lambda x: x.abs().log1p(),
    "logit": lambda x: x.sigmoid().logit(),
    "neg": torch.neg,
    "pow": lambda x: x**3,
    "reciprocal": lambda x: (x.abs() + 1).reciprocal(),
    "rsqrt": lambda x: (x.abs() + 1).rsqrt(),
    "sign": lambda x: x.sign() * x,
    "sin": torch.sin,
    "sinc": torch.sinc,
    "sqrt": lambda x: (x.abs() + 0.1).sqrt(),
    "square": torch.square,
    "tan": lambda x: x.tanh().tan(),
    "trunc": lambda x: x.trunc() + x,
    "xlogy": lambda x: torch.xlogy(x, x.abs() + 1),
    "hypot": lambda x: torch.hypot(x, x + 1),
    "atan2": lambda x: torch.atan2(x, x + 3),
    "lerp": lambda x: torch.lerp(x, x.sin(), 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x.cos()),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.abs() + 1),
    "maximum": lambda x: torch.maximum(x, -x * 0.5),
    "fmin": lambda x: torch.fmin(x, x * 2),
    "where": lambda x: torch.where(x > 0, x, x * 0.2),
    "masked_fill": lambda x: x.masked_fill(x > 1, 0.0),
    "remainder": lambda x: torch.remainder(x, 0.7),
    "logaddexp": lambda x: torch.logaddexp(x, -x),
    "float_power": lambda x: torch.float_power(x.abs() + 0.1, 1.5),
    "nan_to_num": torch.nan_to_num,
    # activation functions
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "tanhshrink": F.tanhshrink,
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "logsigmoid": F.logsigmoid,
    "sigmoid": torch.sigmoid,
    "glu": lambda x: F.glu(torch.cat([x, x], 1), 1),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "softmin": lambda x: F.softmin(x, 1),
    # shapes
    "view": lambda x: x.view(x.shape[0], -1).view(x.shape),
    "permute": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "transpose": lambda x: x.transpose(2, 3),
    "flip": lambda x: x.flip(2),
    "roll": lambda x: x.roll(1, 3),
    "rot90": lambda x: x.rot90(1, (2, 3)),
    "expand": lambda x: x.mean(1, keepdim=True).expand_as(x),
    "repeat": lambda x: x[:, :2].repeat(1, 2, 1, 1),
    "repeat_interleave": lambda x: x[:, :2].repeat_interleave(2, dim=1),
    "unbind": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "narrow": lambda x: F.pad(x.narrow(2, 1, 4), (0, 0, 1, 1)),
    "select": lambda x: x + x.select(1, 0)[:, None],
    "diagonal": lambda x: x + x.diagonal(dim1=2, dim2=3)[..., None],
    "unfold": lambda x: x.unfold(2, 3, 1).sum(-1).repeat(1, 1, 2, 1)[:, :, :6],
    "as_strided": lambda x: x.contiguous().as_strided(x.shape, x.contiguous().stride()),
    "movedim": lambda x: x.movedim(1, -1).sin().movedim(-1, 1),
    "pixel_shuffle": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "tril": torch.tril,
    "index": lambda x: x[:, [3, 1, 2, 0]],
    "mask": lambda x: x * (x > 0),
    "gather": lambda x: x.gather(1, x.argsort(1)),
    "take_along_dim": lambda x: x.take_along_dim(x.argsort(2), 2),
    "index_select": lambda x: x.index_select(1, torch.tensor([1, 1, 0, 2])),
    "scatter": lambda x: torch.zeros_like(x).scatter(1, x.argsort(1), x),
    "index_add": lambda x: torch.zeros_like(x).index_add(1, torch.tensor([0, 0, 1, 2]), x),
    "pad": lambda x: F.pad(x, (1, 1, 1, 1))[:, :, 1:-1, 1:-1],
    "reflect": lambda x: F.pad(x, (2, 2, 2, 2), "reflect")[:, :, :6, :6],
    "circular": lambda x: F.pad(x, (1, 1, 1, 1), "circular")[:, :, :6, :6],
    # reductions, sums, order
    "mean": lambda x: x - x.mean((2, 3), keepdim=True),
    "std": lambda x: x / (x.std(1, keepdim=True) + 1),
    "var": lambda x: x / (x.var((1, 2, 3), keepdim=True) + 1),
    "norm": lambda x: x / (x.norm(dim=1, keepdim=True) + 1),
    "amax": lambda x: x - x.amax(1, keepdim=True),
    "median": lambda x: x - x.median(1, keepdim=True).values,
    "logsumexp": lambda x: x - x.logsumexp(1, keepdim=True),
    "prod": lambda x: x + x.prod(1, keepdim=True),
    "cumsum": lambda x: x.cumsum(1),
    "cumprod": lambda x: x.cumprod(1),
    "cummax": lambda x: x.cummax(1).values,
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "sort": lambda x: x.sort(1).values,
    "topk": lambda x: x.topk(4, 1).values,
    "kthvalue": lambda x: x + x.kthvalue(2, 1, keepdim=True).values,
    "diff": lambda x: F.pad(x.diff(dim=3), (0, 1)),
    "quantile": lambda x: x - x.quantile(0.3, dim=1, keepdim=True),
    "normalize": lambda x: F.normalize(x, dim=1),
    # products
    "matmul": lambda x: x @ x.transpose(2, 3),
    "bmm": lambda x: torch.bmm(x.flatten(0, 1), x.flatten(0, 1)).view(x.shape),
    "einsum": lambda x: torch.einsum("nchw,nchv->nchv", x, x),
    "cosine": lambda x: x * F.cosine_similarity(x, x.flip(1), dim=1)[:, None],
    "cdist": lambda x: torch.cdist(x, x + 1),
    "outer": lambda x: x.mean(3)[..., None] * x.mean(2)[:, :, None],
    "cross": lambda x: torch.cat([torch.linalg.cross(x[:, :3], x[:, 1:], dim=1), x[:, :1]], 1),
    "tensordot": lambda x: torch.tensordot(x, torch.ones(6, 6, dtype=x.dtype), 1),
    # pooling, resampling, normalisation
    "avg_pool": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "max_pool": lambda x: F.max_pool2d(x, 3, 1, 1),
    "lp_pool": lambda x: F.pad(F.lp_pool2d(x.abs() + 0.1, 2, 2), (0, 3, 0, 3)),
    "adaptive_avg": lambda x: x + F.adaptive_avg_pool2d(x, 1),
    "adaptive_max": lambda x: x - F.adaptive_max_pool2d(x, 1),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2)[:, :, ::2, ::2],
    "bilinear": lambda x: F.interpolate(x[:, :, :3, :3], size=(6, 6), mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x[:, :, :4, :4], size=(6, 6), mode="bicubic"),
    "grid_sample": lambda x: F.grid_sample(
        x,
        F.affine_grid(torch.eye(2, 3, dtype=x.dtype).expand(len(x), 2, 3), list(x.shape), align_corners=False),
        align_corners=False,
    ),
    "layer_norm": lambda x: F.layer_norm(x, (6, 6)),
    "group_norm": lambda x: F.group_norm(x, 2),
    "instance_norm": F.instance_norm,
    "local_response_norm": lambda x: F.local_response_norm(x, 2),
    "rms_norm": lambda x: F.rms_norm(x, (6,)),
    # complex
    "rfft2": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 0.9, s=x.shape[-2:]),
    "fft": lambda x: torch.fft.fft(x).real,
    "view_as_complex": lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(3, (3, 2))) * (1 + 0.5j)).flatten(3),
    "polar": lambda x: torch.polar(x.abs() + 0.1, x).real,
    "conj": lambda x: (torch.complex(x, x.sin()).conj() * 1j).imag,
    "complex_abs": lambda x: torch.complex(x, x.cos()).abs(),
    # cut from the graph
    "detach": lambda x: x.detach() + x,
    "detached": lambda x: x * x.detach(),
    "to_double": lambda x: x.float().double(),
}
OPERATORS: dict[str, Callable[[Layer, Tensor], Tensor]] = {
    **{name: (lambda layer, x, f=function: f(x)) for name, function in PLAIN.items()},
    "conv": lambda layer, x: layer.other(x),
    "batch_norm": lambda layer, x: layer.vector(x),
    "linear": lambda layer, x: layer.square(x),
    "conv_transpose": lambda layer, x: F.conv_transpose2d(x, layer.other.weight),
    "depthwise": lambda layer, x: F.conv2d(x, layer.conv.weight[:, :1], padding=1, groups=4),
    "dilated": lambda layer, x: F.conv2d(x, layer.conv.weight, padding=2, dilation=2),
    "conv1d": lambda layer, x: F.conv1d(x.flatten(2), layer.other.weight[..., 0]).view(x.shape),
    "bilinear_form": lambda layer, x: x * F.bilinear(x, x, layer.square.weight[None]),
    "prelu": lambda layer, x: F.prelu(x, layer.vector.weight),
    "gate": lambda layer, x: x * layer.other(x).sigmoid(),
    "squeeze_excite": lambda layer, x: x * layer.other(x.mean((2, 3), keepdim=True)).sigmoid(),
    "weight_standard": lambda layer, x: F.conv2d(x, (layer.other.weight - layer.other.weight.mean()) / layer.other.weight.std()),
    "folded": folded,
    "recurrent": recurrent,
    "attention": attention,
    "by_parts": by_parts,
    "called": called,
    "complex_weight": complex_weight,
    "custom": lambda layer, x: Cubed.apply(x),
    "hook": hooked,
    "grad_within": grad_within,
    "checkpoint": lambda layer, x: checkpoint(layer.other, x, use_reentrant=False),
    "relu_": in_place(lambda y: y.relu_()),
    "add_": in_place(lambda y: y.add_(1)),
    "mul_": in_place(lambda y: y.mul_(2)),
    "clamp_": in_place(lambda y: y.clamp_(-1, 1)),
    "exp_": in_place(lambda y: y.clamp_(max=2).exp_()),
    "zero_": in_place(lambda y: y.zero_().add_(1)),
    "halves": in_place(halves),
    "written_view": in_place(lambda y: y[:, 0].mul_(3)),
    "written_flat": in_place(lambda y: y.view(-1).add_(2)),
    "copy_": in_place(lambda y: y[:, :2].copy_(y[:, 2:])),
    "masked_": in_place(lambda y: y.masked_fill_(y > 0, 2)),
    "index_put_": in_place(lambda y: y.__setitem__((slice(None), 1), 5.0)),
    "no_grad_scale": without_grad(lambda x: x.mul_(0.5)),
    "no_grad_view": without_grad(lambda x: x[:, 0].zero_()),
    "data_scale": lambda layer, x: (x.data.mul_(0.5), x)[1],
}


def kernels_agree(network: nn.Module, **how: object) -> None:
    batch = images()
    expected = plainly(network, batch)
    found = ntk_gram(network, batch, **how)
    assert (found - expected).abs().max() <= 1e-8 * expected.abs().max() + 1e-300


def test_the_grammar_is_large():
    assert len(OPERATORS) >= 180


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.slow
def test_every_operator_alone(name):
    kernels_agree(chain(OPERATORS[name]))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(sorted(OPERATORS)), min_size=2, max_size=4))
def test_operators_together(names):
    kernels_agree(chain(*[OPERATORS[name] for name in names]))


def test_rows_that_are_not_autograds_are_found():
    network = chain(OPERATORS["relu"])
    parameters = [p for name, p in network.named_parameters() if name.endswith("weight")]
    batch = images()
    sums = network(batch).sum(1)
    rows = torch.stack([
        torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(
            torch.autograd.grad(s, parameters, retain_graph=True, allow_unused=True), parameters, strict=True)]) for s in sums
    ])  # fmt: skip
    assert _agrees(rows, network(batch).sum(1), parameters)
    rows[2, 7] += 1e-3 * rows.norm()
    assert not _agrees(rows, network(batch).sum(1), parameters)


# --- how a network is called, and what it holds


def small(activation: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(CHANNELS, 4, 3, padding=1),
        nn.ReLU() if activation is None else activation,
        nn.Flatten(),
        nn.Linear(4 * SIDE * SIDE, 3),
    )


def value(name: str, network: nn.Module, batch: Tensor) -> float:
    measure = MEASURES[name]
    return measure(network, batch, torch.arange(len(batch)) % 3) if measure.needs_labels else measure(network, batch)


def on_blocks(name: str) -> bool:
    return name.startswith("az_")


BY_NAME = [name for name in MEASURES if not on_blocks(name)]
BATCH = images(6, torch.float32)


@pytest.mark.parametrize("name", BY_NAME)
def test_inference_mode_changes_no_value(name):
    network, expected = small(), value(name, small(), BATCH)
    with torch.inference_mode():
        assert value(name, network, BATCH) == expected
        made_inside = BATCH * 1.0
        assert value(name, network, made_inside) == expected
        inside = small()
    assert value(name, network, made_inside) == expected
    with pytest.raises(TenasError, match=r"0\.weight was made in torch.inference_mode"):
        value(name, inside, BATCH)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_lazy_network_is_refused_and_left_as_it_was(name):
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(TenasError, match="has no values yet"):
        value(name, network, BATCH)
    assert isinstance(network[1], nn.LazyLinear)


class Buffers(nn.Module):
    """Buffers that share memory, are replaced, resized and counted up by a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.linear = nn.Linear(4 * SIDE * SIDE, 3)
        self.register_buffer("expanded", torch.ones(1).expand(3))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("resized", torch.zeros(2))
        self.register_buffer("counted", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.replaced = torch.ones(5)
        self.resized.resize_(7).fill_(1)
        self.counted += 1
        self.last = self.conv(x).relu()
        return self.linear(self.last.flatten(1)) + self.expanded


@pytest.mark.parametrize("name", BY_NAME)
def test_buffers_of_every_kind_are_left_as_they_were(name):
    torch.manual_seed(2)
    network = Buffers()
    before = {key: (tensor, tensor.clone()) for key, tensor in network.named_buffers()}
    first = value(name, network, BATCH)
    assert value(name, network, BATCH) == first  # with a stored activation now
    for key, tensor in network.named_buffers():
        kept, values = before[key]
        assert tensor is kept
        assert torch.equal(tensor, values)


def test_autocast_gives_the_same_kernel_every_time():
    network = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = ntk_gram(network, BATCH)
        network(BATCH)  # casts the weights, and keeps them
        assert torch.equal(ntk_gram(network, BATCH), first)
    assert first.trace() == pytest.approx(float(ntk_gram(network, BATCH).trace()), rel=0.1)


def test_scripted_networks_have_the_eager_kernel_and_nothing_that_would_have_to_be_seen():
    network = small().double()
    scripted, batch = torch.jit.script(network), images()
    expected = plainly(network, batch)
    for _ in range(5):
        assert torch.allclose(ntk_gram(scripted, batch), expected, rtol=1e-8)
    for name in ("linear_regions", "naswot", "swap", "near", "zen", "parameters", "flops", "layers"):
        with pytest.raises(TenasError, match="TorchScript"):
            value(name, scripted, batch)


def test_the_plain_loop_is_said_once_and_why():
    with pytest.warns(
        PlainLoopWarning, match=r"one backward pass per sample, 4 instead of one: it computes with complex numbers"
    ):
        ntk_gram(chain(OPERATORS["fft"]), images())
    with pytest.raises(TenasError, match="complex numbers"):
        ntk_gram(chain(OPERATORS["fft"]), images(), implementation="batched")


def test_reentrant_checkpoints_get_a_sentence():
    network = chain(lambda layer, x: checkpoint(layer.other, x, use_reentrant=True))
    with pytest.raises(TenasError, match="use_reentrant=False"):
        ntk_gram(network, images())


WEIGHTS = ("snip", "grasp", "gradient_norm", "zico", "fisher", "synflow", "log_synflow")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("normed", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("name", BY_NAME)
def test_weights_that_are_computed_are_refused_where_weights_count(name, normed):
    network = small()
    normed(network[0])
    if name in WEIGHTS:
        with pytest.raises(TenasError, match=r"The weight of 0 is computed from other parameters"):
            value(name, network, BATCH)
    elif name == "ntk_condition_number":
        with pytest.warns(LeftOutWarning, match="The weight of 0 is computed"):
            value(name, network, BATCH)
    else:
        assert value(name, network, BATCH) == value(name, network, BATCH)


# --- activation functions with linear pieces

KINKS = {
    "ReLU6": (nn.ReLU6(), (0.0, 6.0)),
    "LeakyReLU": (nn.LeakyReLU(), (0.0,)),
    "PReLU": (nn.PReLU(), (0.0,)),
    "Hardtanh": (nn.Hardtanh(), (-1.0, 1.0)),
    "Threshold": (nn.Threshold(0.3, 0.0), (0.3,)),
    "Hardsigmoid": (nn.Hardsigmoid(), (-3.0, 3.0)),
    "Softshrink": (nn.Softshrink(0.2), (-0.2, 0.2)),
    "in place": (nn.LeakyReLU(inplace=True), (0.0,)),
    "Hardshrink": (nn.Hardshrink(0.2), (-0.2, 0.2)),
}


@pytest.mark.parametrize("name", KINKS)
def test_each_kink_is_a_bit(name):
    activation, kinks = KINKS[name]
    network = small(activation)
    before = network[0](BATCH).flatten(1)
    bits = torch.cat([before > kink for kink in kinks], dim=1)
    assert linear_regions(network, BATCH) == len(bits.unique(dim=0))
    assert swap(network, BATCH) == len(bits.T.unique(dim=0))
    agreements = (bits[:, None] == bits[None]).sum(2).double()
    assert naswot(network, BATCH) == pytest.approx(torch.linalg.slogdet(agreements).logabsdet.item())


@pytest.mark.parametrize(
    "function", [functools.partial(torch.clamp, min=0), functools.partial(torch.clamp, min=0.0, max=1.0), F.relu6]
)
def test_bounds_as_functions_count(function):
    network = nn.Sequential(small()[0], Apply(function), nn.Flatten())
    ones = nn.Sequential(
        network[0],
        nn.ReLU6() if function is F.relu6 else nn.Hardtanh(0, 1 if "max" in getattr(function, "keywords", {}) else 1e9),
    )
    assert swap(network, BATCH) == swap(ones, BATCH) > 10


class Apply(nn.Module):
    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    "activation", [nn.GELU(), nn.SiLU(), nn.ELU(), nn.Tanh(), nn.Hardswish(), nn.Softplus(), nn.Mish(), nn.Sigmoid()]
)
@pytest.mark.parametrize("measure", [linear_regions, naswot, swap])
def test_smooth_activations_have_no_regions(activation, measure):
    with pytest.raises(TenasError, match="no linear pieces"):
        measure(small(activation), BATCH)


def test_of_mixed_activations_those_with_pieces_count_and_the_others_are_named():
    network = nn.Sequential(*small()[:2], nn.Conv2d(4, 4, 1), nn.SiLU(), nn.Flatten())
    with pytest.warns(SmoothActivationWarning, match="silu"):
        found = swap(network, BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SmoothActivationWarning)
        assert found == swap(small()[:2], BATCH)


def test_regions_of_a_network_without_activations_are_one():
    with warnings.catch_warnings():
        warnings.simplefilter("error", SaturatedWarning)
        assert linear_regions(nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * SIDE * SIDE, 3)), BATCH) == 1
