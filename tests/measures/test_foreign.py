"""Networks of one's own: the kernel is autograd's for whatever they compute, other measures are right or say that they aren't."""

import copy
import functools
import math
import random
import re
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tenas.errors import TenasError
from tenas.measures import MEASURES, linear_regions, naswot, ntk_gram, snip, swap
from tenas.measures.ntk import LeftOutWarning, PlainLoopWarning, _agrees
from tenas.measures.regions import SaturatedWarning, SmoothActivationWarning

pytestmark = [
    pytest.mark.filterwarnings("ignore::tenas.measures.ntk.PlainLoopWarning"),
    pytest.mark.filterwarnings("ignore::tenas.measures.regions.SaturatedWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.:FutureWarning"),
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


def gradient_within(layer: Layer, x: Tensor) -> Tensor:
    """As energy-based layers have it: the gradient of a function is a part of the function."""
    (slope,) = torch.autograd.grad(layer.other(x).sin().sum(), x, create_graph=True)
    return x + slope


def gradient_apart(layer: Layer, x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(layer.other(leaf).sin().sum(), leaf)
    return x * slope


def autocast_within(layer: Layer, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return layer.other(x)  # double stays double


def halved_by(register: str) -> Callable:
    """A layer with a hook that halves what it reads, gives, or gets back."""

    def function(layer: Layer, x: Tensor) -> Tensor:
        hooks = {
            "register_forward_hook": lambda module, inputs, output: output * 0.5,
            "register_forward_pre_hook": lambda module, inputs: (inputs[0] * 0.5,),
            "register_full_backward_hook": lambda module, gradients, outputs: (gradients[0] * 0.5,),
            "register_full_backward_pre_hook": lambda module, gradients: (gradients[0] * 0.5,),
        }
        handle = getattr(layer.other, register)(hooks[register])
        try:
            return layer.other(x) + x
        finally:
            handle.remove()

    return function


with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)

    @torch.jit.script
    def scripted_function(x: Tensor) -> Tensor:
        return x.tanh() * x + x.relu()


def sparse(layer: Layer, x: Tensor) -> Tensor:
    return torch.sparse.mm(torch.eye(SIDE, dtype=x.dtype).mul(0.5).to_sparse(), x.permute(2, 0, 1, 3).flatten(1)).view(
        SIDE, -1, CHANNELS, SIDE
    ).permute(1, 2, 0, 3)  # fmt: skip


def square_of(x: Tensor) -> Tensor:
    """Matrices that have an inverse, of the columns and rows of a batch."""
    return x.tanh() * 0.1 + torch.eye(SIDE, dtype=x.dtype)


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
    "complex_exp": lambda x: torch.exp(torch.complex(x.clamp(max=1), x)).imag,
    "complex_matmul": lambda x: (torch.complex(x, x.sin()) @ torch.complex(x.cos(), x).mH).real,
    "angle": lambda x: torch.complex(x, x + 3).angle(),
    "resolve_conj": lambda x: torch.complex(x, x).conj().resolve_conj().imag,
    "view_as_real": lambda x: torch.view_as_real(torch.complex(x, x * 2)).sum(-1),
    # matrices
    "inverse": lambda x: torch.linalg.inv(square_of(x)),
    "solve": lambda x: torch.linalg.solve(square_of(x), x),
    "determinant": lambda x: x * torch.linalg.det(square_of(x))[..., None, None],
    "slogdet": lambda x: x * torch.linalg.slogdet(square_of(x)).logabsdet[..., None, None],
    "matrix_exp": lambda x: torch.matrix_exp((x.tanh() * 0.1).contiguous()),
    "cholesky": lambda x: torch.linalg.cholesky(square_of(x) @ square_of(x).mT),
    "eigvalsh": lambda x: x * torch.linalg.eigvalsh(x + x.mT)[..., None],
    "matrix_norm": lambda x: x / (torch.linalg.matrix_norm(x)[..., None, None] + 1),
    "multi_dot": lambda x: torch.stack([torch.linalg.multi_dot([m, m, m]) for m in x[:, 0]])[:, None] + x,
    "kron": lambda x: torch.stack([torch.kron(m[:2, :2], m[:3, :3]) for m in x[:, 0]])[:, None] + x,
    "baddbmm": lambda x: torch.baddbmm(x[:, 0], x[:, 1], x[:, 2])[:, None] + x,
    "addmm": lambda x: torch.addmm(x[0, 0], x[0, 1], x[0, 2]) + x,
    "vecdot": lambda x: x * torch.linalg.vecdot(x, x.flip(3))[..., None],
    # more of each kind
    "sinh": lambda x: x.clamp(-3, 3).sinh(),
    "atanh": lambda x: x.tanh().mul(0.9).atanh(),
    "erfc": torch.erfc,
    "erfinv": lambda x: x.tanh().mul(0.9).erfinv(),
    "lgamma": lambda x: (x.abs() + 1).lgamma(),
    "digamma": lambda x: (x.abs() + 1).digamma(),
    "i0": torch.i0,
    "log_ndtr": torch.special.log_ndtr,
    "entr": lambda x: torch.special.entr(x.abs() + 0.1),
    "exp2": lambda x: x.clamp(max=3).exp2(),
    "log": lambda x: (x.abs() + 0.1).log(),
    "deg2rad": torch.deg2rad,
    "copysign": lambda x: torch.copysign(x, x.flip(1)),
    "fmod": lambda x: torch.fmod(x, 0.7),
    "rsub": lambda x: torch.rsub(x, 1, alpha=2),
    "floor_divide": lambda x: x + torch.floor_divide(x.detach(), 0.3),
    "true_divide": lambda x: 1 / (x.abs() + 1),
    "heaviside": lambda x: x * torch.heaviside(x.detach(), torch.tensor(0.5, dtype=x.dtype)),
    "clamp_max": lambda x: x.clamp(max=0.3),
    "minimum": lambda x: torch.minimum(x, x.flip(1)),
    "triu": torch.triu,
    "diag_embed": lambda x: torch.diag_embed(x.mean(3)),
    "swapaxes": lambda x: x.swapaxes(2, 3).sin(),
    "unsqueeze": lambda x: x.unsqueeze(1).sin().squeeze(1),
    "unflatten": lambda x: x.unflatten(1, (2, 2)).cos().flatten(1, 2),
    "broadcast_to": lambda x: x[:, :1].broadcast_to(x.shape) * 2,
    "tile": lambda x: x[:, :, :3].tile(1, 1, 2, 1),
    "hsplit": lambda x: torch.cat(x.tensor_split(3, dim=2)[::-1], 2),
    "strided": lambda x: x[:, :, ::2].repeat_interleave(2, 2),
    "negative_pad": lambda x: F.pad(x, (-1, 1, 1, -1)),
    "replicate": lambda x: F.pad(x, (1, 1, 1, 1), "replicate")[:, :, :6, 2:],
    "index_fill": lambda x: x.index_fill(1, torch.tensor([2]), 0.5),
    "index_copy": lambda x: x.index_copy(1, torch.tensor([0, 2]), x[:, 1:3] * 2),
    "masked_select": lambda x: x + x.masked_select(x > 0).sum(),
    "masked_scatter": lambda x: x.masked_scatter(x > 1, x.flip(0)),
    "scatter_add": lambda x: torch.zeros_like(x).scatter_add(1, x.argsort(1) // 2, x),
    "scatter_reduce": lambda x: x.scatter_reduce(1, x.argsort(1), x, "mean"),
    "slice_scatter": lambda x: x.slice_scatter(x[:, :2] * 3, 1, 2, 4),
    "select_scatter": lambda x: x.select_scatter(x[:, 0] * 2, 1, 1),
    "nansum": lambda x: x - x.nansum(1, keepdim=True),
    "nanmean": lambda x: x - x.nanmean(1, keepdim=True),
    "aminmax": lambda x: x - x.aminmax(dim=1, keepdim=True).min,
    "mode": lambda x: x + x.mode(1, keepdim=True).values,
    "renorm": lambda x: x.renorm(2, 1, 0.5),
    "trapezoid": lambda x: x + torch.trapezoid(x, dim=3)[..., None],
    "cumulative_trapezoid": lambda x: F.pad(torch.cumulative_trapezoid(x, dim=3), (1, 0)),
    "cummin": lambda x: x.cummin(2).values,
    "msort": lambda x: x.flatten(1).sort(1, descending=True).values.view(x.shape),
    "cov": lambda x: x + torch.stack([torch.cov(m) for m in x[:, 0]])[:, None],
    "pairwise": lambda x: x * F.pairwise_distance(x, x.flip(1))[..., None],
    "pdist": lambda x: x + torch.pdist(x.flatten(1)).sum(),
    "gumbel": lambda x: x + F.one_hot(x.argmax(1), 4).permute(0, 3, 1, 2) * x.softmax(1),
    "straight_through": lambda x: x + (x.round() - x).detach(),
    "stft": lambda x: x + torch.fft.ihfft(torch.fft.hfft(x.to(torch.complex128), n=10)).real,
    "pool1d": lambda x: F.avg_pool1d(x.flatten(2), 3, 1, 1).view(x.shape),
    "pool3d": lambda x: F.max_pool3d(x, 3, 1, 1),
    "adaptive_max_indices": lambda x: x + F.adaptive_max_pool2d(x, (2, 3)).repeat(1, 1, 3, 2),
    "unpool": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "ceil_mode": lambda x: F.interpolate(F.avg_pool2d(x, 4, 4, ceil_mode=True, count_include_pad=False), size=(6, 6)),
    "area": lambda x: F.interpolate(F.interpolate(x, size=(4, 3), mode="area"), size=(6, 6)),
    "huber": lambda x: x + F.huber_loss(x, x.detach() * 0.5),
    "kl": lambda x: x * F.kl_div(x.log_softmax(1), x.flip(1).softmax(1), reduction="batchmean"),
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
    "dropped_in": in_place(lambda y: y[:, :, 1:].sub_(y[:, :, :-1].clone())),
    "addcmul_": in_place(lambda y: y.addcmul_(y.detach(), y.detach(), value=0.5)),
    "sigmoid_": in_place(lambda y: y.sigmoid_()),
    "tanh_": in_place(lambda y: y.tanh_()),
    "leaky_relu_": in_place(lambda y: F.leaky_relu_(y, 0.1)),
    "hardtanh_": in_place(lambda y: F.hardtanh_(y)),
    "pow_": in_place(lambda y: y.abs_().add_(0.1).pow_(1.5)),
    "transposed_": in_place(lambda y: y.transpose(2, 3).tril_()),
    "diagonal_": in_place(lambda y: y.diagonal(dim1=2, dim2=3).mul_(2)),
    "chunks_": in_place(lambda y: [y.select(1, i).mul_(2 + i) for i in range(CHANNELS)]),
    "masked_from_below_": in_place(lambda y: y.masked_fill_(y < -1, -1)),
    "lerp_": in_place(lambda y: y.lerp_(y.detach().cos(), 0.25)),
    "fill_row_": in_place(lambda y: y[0].fill_(0.5)),
    "accumulated": in_place(lambda y: y.select(1, 0).add_(y.select(1, 1))),
    "gradient_within": gradient_within,
    "gradient_apart": gradient_apart,
    "autocast_within": autocast_within,
    "forward_hook": halved_by("register_forward_hook"),
    "forward_pre_hook": halved_by("register_forward_pre_hook"),
    "backward_hook": halved_by("register_full_backward_hook"),
    "backward_pre_hook": halved_by("register_full_backward_pre_hook"),
    "scripted": lambda layer, x: scripted_function(x),
    "sparse": sparse,
    "vmap": lambda layer, x: torch.vmap(lambda row: layer.square(row).sin())(x),
    "vmapped_weight": lambda layer, x: torch.vmap(lambda row, w: row * w.sum(), (1, 0), 1)(x, layer.other.weight),
    "jvp": lambda layer, x: torch.func.jvp(torch.sin, (x,), (layer.other(x),))[1],
    "vjp": lambda layer, x: torch.func.vjp(torch.sin, x)[1](layer.other(x))[0],
    "set_grad": lambda layer, x: (torch.set_grad_enabled(False), y := x * 2, torch.set_grad_enabled(True), x + y)[3],
    "saved_hooks": lambda layer, x: saved_elsewhere(layer, x),
    "checkpoints": lambda layer, x: checkpoint_sequential([layer.other, nn.ReLU(), layer.other], 2, x, use_reentrant=False),
    "checkpoint_no_grad": lambda layer, x: x + checkpoint(lambda y: y.detach() * layer.other(y), x, use_reentrant=False),
    "detached_weight": lambda layer, x: F.conv2d(x, layer.other.weight.detach()) + F.conv2d(x, layer.other.weight),
    "data_weight": lambda layer, x: F.conv2d(x, layer.other.weight.data * 2) + layer.other(x),
    "weight_as_gate": lambda layer, x: x * layer.vector.weight.view(1, -1, 1, 1).softmax(1),
    "weight_squared": lambda layer, x: F.linear(x, layer.square.weight @ layer.square.weight.T),
    "weight_twice": lambda layer, x: F.linear(F.linear(x, layer.square.weight), layer.square.weight.T),
    "weight_inverse": lambda layer, x: F.linear(x, torch.linalg.inv(layer.square.weight * 0.1 + torch.eye(SIDE, dtype=x.dtype))),
    "hyper": lambda layer, x: torch.einsum("nc,cd,ndhw->nchw", x.mean((2, 3)), layer.other.weight[:, :, 0, 0], x),
    "no_grad_scale": without_grad(lambda x: x.mul_(0.5)),
    "no_grad_view": without_grad(lambda x: x[:, 0].zero_()),
    "data_scale": lambda layer, x: (x.data.mul_(0.5), x)[1],
}


def saved_elsewhere(layer: Layer, x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        return layer.other(x).sin() * x


class Flat(nn.Module):
    """A module of (n, 36, 4) or of (n, 4, 36) on images (n, 4, 6, 6)."""

    def __init__(self, module: nn.Module, *, tokens: bool = True) -> None:
        super().__init__()
        self.module, self.tokens = module, tokens

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2).transpose(1, 2) if self.tokens else x.flatten(2)
        found = self.module(flat)
        found = found[0] if isinstance(found, tuple) else found
        return (found.transpose(1, 2) if self.tokens else found).reshape(x.shape)


class Of(nn.Module):
    """A function of modules and images."""

    def __init__(self, function: Callable, *modules: nn.Module) -> None:
        super().__init__()
        self.parts, self.function = nn.ModuleList(modules), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


class Held(nn.Module):
    """What is neither weight nor bias of a layer: a buffer, a list and a mapping of parameters, one that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS, 1, 1))
        self.register_buffer("scale", torch.rand(CHANNELS, 1, 1))
        self.register_buffer("count", torch.zeros(1))
        self.listed = nn.ParameterList([nn.Parameter(torch.randn(SIDE)) for _ in range(2)])
        self.named = nn.ParameterDict({"weight": nn.Parameter(torch.randn(SIDE))})
        self.fixed = nn.Parameter(torch.randn(SIDE, SIDE), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.weight * self.scale + self.listed[0] * self.listed[1] * x + self.named["weight"] * (x @ self.fixed)


class Attended(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x.flip(1), x, need_weights=False)[0] + x


def conv(*arguments: int, **more: object) -> nn.Module:
    return nn.Conv2d(CHANNELS, CHANNELS, *(arguments or (1,)), **more)


def made(*changes: Callable) -> nn.Module:
    """A convolution whose weight is computed from other parameters."""
    module = conv()
    for change in changes:
        change(module)
    return module


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 0.5


def with_one_weight(first: nn.Module, second: nn.Module) -> nn.Module:
    second.weight = first.weight
    return nn.Sequential(first, nn.ReLU(), second)


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


PARAMETRIZE = nn.utils.parametrize.register_parametrization
# By name: what makes a module of (n, 4, 6, 6) to the same shape.
MODULES: dict[str, Callable[[], nn.Module]] = {
    "Conv2d groups": lambda: conv(3, padding=1, groups=2),
    "Conv2d reflect": lambda: conv(3, padding=1, padding_mode="reflect", bias=False),
    "Conv2d same": lambda: conv(3, padding="same", dilation=2),
    "Conv2d frozen": lambda: frozen(conv()),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, padding=1),
    "ConvTranspose2d groups": lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, 1, groups=4),
    "Conv1d": lambda: Flat(nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1), tokens=False),
    "Conv3d": lambda: Of(lambda x, c: c(x[:, None])[:, 0], nn.Conv3d(1, 1, 3, padding=1)),
    "depthwise separable": lambda: nn.Sequential(conv(3, padding=1, groups=4), nn.BatchNorm2d(CHANNELS), nn.ReLU6(), conv()),
    "Linear": lambda: nn.Linear(SIDE, SIDE),
    "Linear on tokens": lambda: Flat(nn.Linear(CHANNELS, CHANNELS)),
    "Bilinear": lambda: Of(lambda x, b: b(x, x.flip(1)), nn.Bilinear(SIDE, SIDE, SIDE)),
    "Embedding": lambda: Of(lambda x, e: x + e(x.argmax(1)).permute(0, 3, 1, 2), nn.Embedding(CHANNELS, CHANNELS)),
    "EmbeddingBag": lambda: Of(
        lambda x, e: x + e(x.argmax(1).flatten(1))[..., None, None], nn.EmbeddingBag(CHANNELS, CHANNELS, mode="sum")
    ),
    "BatchNorm2d": lambda: nn.BatchNorm2d(CHANNELS),
    "BatchNorm2d eval": lambda: nn.BatchNorm2d(CHANNELS).eval(),
    "BatchNorm2d plain": lambda: nn.BatchNorm2d(CHANNELS, affine=False, track_running_stats=False),
    "BatchNorm1d": lambda: Flat(nn.BatchNorm1d(CHANNELS), tokens=False),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(CHANNELS, affine=True),
    "GroupNorm": lambda: nn.GroupNorm(2, CHANNELS),
    "LayerNorm": lambda: Flat(nn.LayerNorm(CHANNELS)),
    "LayerNorm of images": lambda: nn.LayerNorm((CHANNELS, SIDE, SIDE)),
    "RMSNorm": lambda: nn.RMSNorm(SIDE),
    "PReLU": lambda: nn.PReLU(CHANNELS),
    "activations": lambda: nn.Sequential(nn.GELU("tanh"), nn.Softplus(), nn.Hardswish(), nn.ELU()),
    "ReLU inplace": lambda: nn.Sequential(conv(), nn.ReLU(inplace=True), conv(), nn.LeakyReLU(inplace=True)),
    "SiLU inplace": lambda: nn.Sequential(conv(), nn.SiLU(inplace=True), nn.Hardtanh(inplace=True)),
    "Dropout eval": lambda: nn.Dropout(0.5).eval(),
    "Dropout of nothing": lambda: nn.Dropout2d(0.0),
    "GRU": lambda: Flat(nn.GRU(CHANNELS, CHANNELS, batch_first=True)),
    "LSTM": lambda: Flat(nn.LSTM(CHANNELS, CHANNELS, batch_first=True)),
    "RNN": lambda: Flat(nn.RNN(CHANNELS, 2, batch_first=True, bidirectional=True)),
    "GRUCell": lambda: Of(lambda x, cell: x + cell(x.mean((2, 3)))[..., None, None], nn.GRUCell(CHANNELS, CHANNELS)),
    "MultiheadAttention": lambda: Flat(Attended()),
    "TransformerEncoderLayer": lambda: Flat(nn.TransformerEncoderLayer(CHANNELS, 2, 8, dropout=0.0, batch_first=True)),
    "TransformerEncoderLayer first": lambda: Flat(
        nn.TransformerEncoderLayer(CHANNELS, 2, 8, dropout=0.0, batch_first=True, norm_first=True, activation="gelu")
    ),
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(conv()),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(SIDE, SIDE)),
    "spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(SIDE, SIDE)).eval(),
    "parametrized": lambda: made(lambda module: PARAMETRIZE(module, "weight", Halved())),
    "parametrized twice": lambda: made(*[lambda module: PARAMETRIZE(module, "weight", Halved())] * 2),
    "parametrized bias": lambda: made(lambda module: PARAMETRIZE(module, "bias", Halved())),
    "pruned": lambda: prune.random_unstructured(conv(), "weight", 0.5),
    "shared": lambda: (lambda one: nn.Sequential(one, nn.Tanh(), one))(conv()),
    "tied": lambda: Of(lambda x, one: F.linear(one(x).relu(), one.weight.T), nn.Linear(SIDE, SIDE)),
    "one weight of two": lambda: with_one_weight(conv(), conv()),
    "held": Held,
    "residual": lambda: Of(lambda x, a, b: x + b(a(x).relu()), conv(3, padding=1), nn.BatchNorm2d(CHANNELS)),
    "dense": lambda: Of(lambda x, a: a(torch.cat([x, x.relu()], 1)), nn.Conv2d(2 * CHANNELS, CHANNELS, 1)),
    "squeeze": lambda: Of(lambda x, a, b: x * b(a(x.mean((2, 3), True)).relu()).sigmoid(), conv(), conv()),
    "strided and back": lambda: nn.Sequential(conv(3, stride=2, padding=1), nn.Upsample(scale_factor=2, mode="bilinear")),
    "PixelShuffle": lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(16, 16, 1), nn.PixelShuffle(2)),
    "pools": lambda: nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, 1), nn.ReflectionPad2d(1), nn.AvgPool2d(3, 1)),
    "functional_call": lambda: Of(
        lambda x, a: torch.func.functional_call(a, {"weight": a.weight.sin(), "bias": a.bias.detach()}, (x,)), conv()
    ),
    "stacked": lambda: Of(
        lambda x, a, b: torch.vmap(
            lambda p, row: torch.func.functional_call(copy.deepcopy(a).to("meta"), p, (row,)), (0, None)
        )(torch.func.stack_module_state([a, b])[0], x).sum(0) * 0 + a(x) + b(x),
        conv(), conv(),
    ),
    "no_grad half": lambda: Of(lambda x, a, b: b(x) + torch.no_grad()(a)(x), conv(), conv()),
    "unused": lambda: Of(lambda x, a, b: a(x), conv(), conv()),
    "ModuleDict": lambda: Of(lambda x, d: d["a"](x) + d["b"](x), nn.ModuleDict({"a": conv(), "b": conv()})),
}  # fmt: skip
# What chains are drawn from: functions of a layer's result, and modules after a layer.
GRAMMAR = [*OPERATORS, *MODULES]


def drawn(*names: str) -> nn.Module:
    """A chain of layers, each of an operator or followed by a module."""
    torch.manual_seed(5)
    parts: list[nn.Module] = []
    for name in names:
        identity = OPERATORS.get(name, lambda layer, x: x)
        parts += [Layer(identity), *([MODULES[name]()] if name in MODULES else [])]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(CHANNELS * SIDE * SIDE, 3)).double()


def kernels_agree(network: nn.Module, **how: object) -> None:
    batch = images()
    expected = plainly(network, batch)
    found = ntk_gram(network, batch, **how)
    assert (found - expected).abs().max() <= 1e-8 * expected.abs().max() + 1e-300


class First(nn.Module):
    """A module whose first result counts."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0]


@pytest.mark.parametrize(
    ("layer", "left"),
    [
        (lambda: nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), "0.self_attn.in_proj_weight"),
        (lambda: First(nn.LSTM(8, 8, batch_first=True)), "0.inner.weight_ih_l0, 0.inner.weight_hh_l0"),
    ],
)
def test_matrices_that_a_measure_leaves_out_are_named(layer, left):
    network, images = nn.Sequential(layer(), nn.Flatten(), nn.Linear(32, 3)), torch.randn(4, 4, 8)
    for measure, rule in ((ntk_gram, "parameters named weight"), (snip, "the weights of convolutions and linear layers")):
        with pytest.warns(LeftOutWarning, match=f"over {rule}: it leaves out {left}"):
            measure(network, images, *([] if measure is ntk_gram else [torch.arange(4) % 3]))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith("2."))
    with warnings.catch_warnings():
        warnings.simplefilter("error", LeftOutWarning)
        ntk_gram(network, images)


def test_the_grammar_is_large():
    assert len(OPERATORS) >= 280
    assert len(MODULES) >= 50


@pytest.mark.filterwarnings("ignore::tenas.measures.common.LeftOutWarning")
@pytest.mark.slow
@pytest.mark.parametrize("name", GRAMMAR)
def test_every_operator_and_module_alone(name):
    kernels_agree(drawn(name))


@pytest.mark.filterwarnings("ignore::tenas.measures.common.LeftOutWarning")
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(sorted(GRAMMAR)), min_size=2, max_size=4))
def test_operators_and_modules_together(names):
    kernels_agree(drawn(*names))


# --- the other measures, written out


def layers_of(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)]


def weights_of(network: nn.Module) -> list[Tensor]:
    """Each weight of a convolution or a linear layer that is trained, once."""
    return list({id(m.weight): m.weight for m in layers_of(network) if m.weight.requires_grad}.values())


def slopes(value: Tensor, of: list[Tensor], **how: bool) -> list[Tensor]:
    found = torch.autograd.grad(value, of, allow_unused=True, **how)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(of, found, strict=True)]


def plain_fisher(network: nn.Module, x: Tensor, y: Tensor) -> float:
    outputs: list[Tensor] = []
    linear: set[int] = set()
    for layer in layers_of(network):

        def forward(*args: Tensor, given: Callable = layer.forward, flat: bool = isinstance(layer, nn.Linear)) -> Tensor:
            outputs.append(given(*args))
            linear.update([id(outputs[-1])] if flat else [])
            return outputs[-1].clone()

        layer.forward = forward
    loss = sum(F.cross_entropy(logits[None], label[None]) for logits, label in zip(network(x), y, strict=True))
    total = 0.0
    noted = [out for out in outputs if out.requires_grad]  # those of a checkpoint's second pass come later
    for out, slope in zip(noted, slopes(loss, noted), strict=True):
        # A linear layer's channels are its last dimension.
        product = (out * slope).movedim(-1, 1) if id(out) in linear else out * slope
        for i in range(len(out)):
            for channel in range(product.shape[1]):
                total += product[i, channel].sum().item() ** 2 / (2 * len(x))
    return total


def plain_jacobian(network: nn.Module, x: Tensor) -> float:
    x = x.clone().requires_grad_()
    rows = slopes(network(x).sum(), [x])[0].flatten(1).numpy()
    if (np.ptp(rows, axis=1) == 0).any():
        return -math.inf
    values = np.linalg.eigvalsh(np.corrcoef(rows)).clip(0) + 1e-5
    return float(-(np.log(values) + 1 / values).sum())


def plain_flow(network: nn.Module, x: Tensor, part: Callable[[Tensor, Tensor], Tensor]) -> float:
    for parameter in network.parameters():
        parameter.data.abs_()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = lambda x: x
    weights = weights_of(network)
    flow = slopes(network(torch.ones_like(x[:1])).sum(), weights)
    return sum(float(part(w.detach(), g).sum()) for w, g in zip(weights, flow, strict=True))


def plain_zico(network: nn.Module, x: Tensor, y: Tensor) -> float | None:
    """None where the value follows from rounding: of gradients that are equal but for their last digits."""
    weights, half = weights_of(network), len(x) // 2
    halves = [slopes(F.cross_entropy(network(x[part]), y[part]), weights) for part in (slice(None, half), slice(half, None))]
    total, found = 0.0, False
    for pair in zip(*halves, strict=True):
        a, b = (g.abs().numpy() for g in pair)
        kept = a != b
        mean, deviation = np.mean([a, b], axis=0)[kept], np.std([a, b], axis=0)[kept]
        if (deviation < 1e-9 * mean).any():
            return None
        if kept.any():
            total, found = total + math.log((mean / deviation).sum()), True
    return total if found else -math.inf


def plain_grasp(network: nn.Module, x: Tensor, y: Tensor) -> float:
    weights = weights_of(network)
    with sdpa_kernel(SDPBackend.MATH):
        gradients = slopes(F.cross_entropy(network(x), y), weights, create_graph=True)
    product = sum((g * g.detach()).sum() for g in gradients)
    curvature = slopes(product, weights) if product.requires_grad else [torch.zeros_like(w) for w in weights]
    return -sum(float((w.detach() * h).sum()) for w, h in zip(weights, curvature, strict=True))


def of_gradients(part: Callable[[Tensor, Tensor], Tensor]) -> Callable[[nn.Module, Tensor, Tensor], float]:
    def measure(network: nn.Module, x: Tensor, y: Tensor) -> float:
        weights = weights_of(network)
        gradients = slopes(F.cross_entropy(network(x), y), weights)
        return sum(float(part(w.detach(), g)) for w, g in zip(weights, gradients, strict=True))

    return measure


PLAINLY: dict[str, Callable[[nn.Module, Tensor, Tensor], float | None]] = {
    "gradient_norm": of_gradients(lambda w, g: g.norm()),
    "snip": of_gradients(lambda w, g: (w * g).abs().sum()),
    "grasp": plain_grasp,
    "fisher": plain_fisher,
    "zico": plain_zico,
    "jacobian_covariance": lambda network, x, y: plain_jacobian(network, x),
    "synflow": lambda network, x, y: plain_flow(network, x, lambda w, g: w * g),
    "log_synflow": lambda network, x, y: plain_flow(network, x, lambda w, g: w * g.abs().log1p()),
}


def values_agree(name: str, make: Callable[[], nn.Module]) -> None:
    """``make``: the same network each time; not every one can be copied."""
    network, batch, labels = make(), images(), torch.arange(N) % 3
    measure = MEASURES[name]
    given = (batch, labels) if measure.needs_labels else (batch,)
    try:
        found = measure(network, *given)
    except TenasError as error:
        found = str(error)
    try:
        expected = PLAINLY[name](make(), batch, labels)
    except (RuntimeError, AttributeError) as error:  # torch has no second derivative; a weight is computed
        expected = str(error)
    if isinstance(expected, str):
        assert isinstance(found, str), expected
        return
    if expected is None:
        assert isinstance(found, float), found
        return
    if isinstance(found, str):
        if not re.search(r"is computed from|no convolution or linear layer|torch\.vmap", found):
            assert re.search("overflows|negative|not finite", found), found
            assert not math.isfinite(expected) or expected < 0, (found, expected)
    else:
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9, nan_ok=True)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(PLAINLY)), st.lists(st.sampled_from(sorted(GRAMMAR)), min_size=1, max_size=3))
def test_the_other_measures_are_what_they_say(name, names):
    values_agree(name, lambda: drawn(*names))


def test_a_second_derivative_that_torch_lacks_is_a_sentence():
    with pytest.raises(TenasError, match=r"GraSP needs second derivatives, and torch lacks one: .*hardsigmoid"):
        MEASURES["grasp"](drawn("hardsigmoid"), images(), torch.arange(N) % 3)


def test_a_weight_of_two_layers_counts_once():
    for name in PLAINLY:
        values_agree(name, lambda: drawn("one weight of two"))


def test_fisher_of_layers_without_gradients_and_of_those_that_cannot_be_seen():
    values_agree("fisher", lambda: drawn("no_grad half"))
    with pytest.raises(TenasError, match=r"Fisher needs the outputs of layers, which torch\.vmap"):
        MEASURES["fisher"](drawn("vmap"), images(), torch.arange(N) % 3)


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(SIDE).to_sparse())
        self.linear = nn.Linear(SIDE, SIDE)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self.matrix, self.linear(x[:, 0, 0]).T)


class Valued(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.mean().item() > 0 else x


def test_sparse_tensors_and_values_that_costs_do_not_have():
    kernels_agree(drawn("sparse", "dropped_in"))
    for network in (Sparse(), Valued()):
        for name in ("parameters", "flops", "layers"):
            with pytest.raises(
                TenasError, match="Costs are counted without values, and an operator of this network needs them: "
            ):
                MEASURES[name](network, BATCH)


def compressed(layer: Layer, x: Tensor) -> Tensor:
    rows = x.flatten(1)
    return (torch.eye(rows.shape[1], dtype=x.dtype).mul(0.5).to_sparse_csr() @ rows.T).T.view_as(x)


def opaque(layer: Layer, x: Tensor) -> Tensor:
    return x.float().to_mkldnn().relu().to_dense().to(x.dtype)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
@pytest.mark.parametrize("operator", [compressed, opaque])
def test_tensors_of_other_layouts(operator, monkeypatch):
    monkeypatch.setitem(OPERATORS, "laid_out", operator)
    with pytest.warns(PlainLoopWarning, match=r"a tensor has the layout (sparse_csr|mkldnn)\."):
        kernels_agree(drawn("conv", "laid_out"))
    # The memory of an opaque tensor cannot be known, which Fisher needs.
    for name in sorted(PLAINLY.keys() - ({"fisher"} if operator is opaque else set())):
        values_agree(name, lambda: drawn("laid_out"))


@pytest.mark.parametrize("names", [("fft", "sparse", "sqrt"), ("sparse", "sparse")])
def test_fisher_of_sparse_tensors(names):
    """They have no storage of their own."""
    values_agree("fisher", lambda: drawn(*names))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_thousand_networks():
    """Kernels of a thousand chains, and another measure of each: `-k thousand -s` prints which differ."""
    differ = []
    for number in range(1000):
        draw = random.Random(number)
        names = [draw.choice(GRAMMAR) for _ in range(draw.randint(2, 4))]
        make, measure = functools.partial(drawn, *names), draw.choice(sorted(PLAINLY))
        for what in ("kernel", measure):
            try:
                kernels_agree(make()) if what == "kernel" else values_agree(measure, make)
            except Exception as error:
                differ.append(f"{number} {what} of {names}: {type(error).__name__} {str(error)[:150]}")
                print(differ[-1], flush=True)
    assert differ == []


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
    # With a stored activation now. In other memory: sums of matrix products may end in another digit.
    assert value(name, network, BATCH) == pytest.approx(first, rel=1e-12)
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
