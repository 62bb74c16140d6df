"""The NTK: every way to compute it against plain autograd, one backward pass a sample."""

import copy
import gc
import math
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, SHARED
from helpers.engine import Doubled
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18

from tenas.errors import TenasError
from tenas.measures import ntk_engine, ntk_reuse
from tenas.measures.ntk import condition_number, ntk_condition_number, ntk_gram, ntk_gram_by_loop, ntk_parameters
from tenas.networks import Supernet
from tenas.spaces import Mask, get_space

WAYS = {"kernels": {}, "torch": {"compiled": False}, "chunks": {"chunk": 2}}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Small operators on several threads mostly wait for each other, above all beside other tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def expected_gram(network: nn.Module, images: Tensor) -> Tensor:
    """The definition, on a copy of the network: J_i by ``backward``, nothing shared with the code under test."""
    network = copy.deepcopy(network)
    weights = [p for name, p in network.named_parameters() if name.split(".")[-1] == "weight" and p.requires_grad]
    logits = network(images).reshape(len(images), -1)
    rows = []
    for i in range(len(images)):
        network.zero_grad()
        logits[i].sum().backward(retain_graph=True)
        rows.append(torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in weights]))
    rows = torch.stack(rows).double()
    return rows @ rows.T


def assert_exact(network: nn.Module, images: Tensor, expected: Tensor | None = None, tolerance: float = 1e-10) -> None:
    expected = expected_gram(network, images) if expected is None else expected
    # A kernel can be zero but for rounding: normalised over all that is then averaged.
    scale = expected.abs().max().clamp(min=1e-6)
    for way, settings_ in WAYS.items():
        gram = ntk_gram(network, images, **settings_)
        assert gram.shape == (len(images), len(images)), way
        assert gram.dtype == torch.float64, way
        assert gram.device.type == "cpu", way
        assert torch.equal(gram, gram.T), way
        assert ((gram - expected).abs().max() / scale).item() < tolerance, way


def double(network: nn.Module) -> nn.Module:
    return network.double()


# The supernets.


@st.composite
def masks(draw: st.DrawFn, name: str) -> Mask:
    space = get_space(name)
    subsets = st.integers(1, 2 ** len(space.operators) - 1).map(
        lambda bits: tuple(bool(bits >> i & 1) for i in range(len(space.operators)))
    )
    edges = st.tuples(*[subsets] * len(space.edges))
    return Mask(space, draw(st.tuples(*[edges] * len(space.cell_types))))


@given(masks("nas-bench-201"), st.integers(1, 3), st.integers(2, 10), st.booleans(), st.sampled_from([8, 12]), st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_nas_bench_201_is_exact(mask, channels, n, training, side, seed):
    torch.manual_seed(seed)
    network = double(Supernet("nas-bench-201", mask, channels=channels, cells=1, classes=3)).train(training)
    assert_exact(network, torch.randn(n, 3, side, 8).double())


@given(masks("darts"), st.integers(1, 2), st.integers(2, 4), st.booleans(), st.integers(0, 99))
@settings(max_examples=3, deadline=None)
def test_darts_is_exact(mask, channels, n, training, seed):
    torch.manual_seed(seed)
    network = double(Supernet("darts", mask, channels=channels, cells=2, classes=3)).train(training)
    assert_exact(network, torch.randn(n, 3, 8, 8).double())


@pytest.mark.data
@pytest.mark.slow
def test_on_images_in_both_precisions():
    arrays = np.load(SHARED / "cifar10_train_10k.npz")
    pixels = next(arrays[key] for key in arrays.files if arrays[key].ndim == 4)[:12]
    pixels = pixels if pixels.shape[1] == 3 else pixels.transpose(0, 3, 1, 2)
    images = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1)
    torch.manual_seed(0)
    network = Supernet("nas-bench-201", channels=3, cells=1, classes=10)
    # In single precision a ReLU whose input is next to zero may go the other way, whichever way the kernel is computed.
    assert_exact(network, images, ntk_gram_by_loop(network, images), tolerance=2e-2)
    exact = expected_gram(network.double(), images.double())
    assert_exact(network, images.double(), exact)
    assert ntk_condition_number(network.float(), images) == pytest.approx(condition_number(exact), rel=5e-2)


# Networks of every other kind.


class Block(nn.Module):
    """A small network of functions, drawn: what it does is spelled out in ``steps``."""

    def __init__(self, steps: list[str], channels: int) -> None:
        super().__init__()
        self.steps = steps
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.layers = nn.ModuleList()
        for step in steps:
            layer: nn.Module = nn.Identity()
            match step.split():
                case ["conv", kernel, stride, dilation, groups]:
                    k, s, d = int(kernel), int(stride), int(dilation)
                    g = channels if groups == "depthwise" else 1
                    layer = nn.Conv2d(channels, channels, k, s, d * (k // 2), d, g, bias=s == 2)
                case ["valid"]:
                    layer = nn.Conv2d(channels, channels, 2)
                case ["transposed"]:
                    layer = nn.ConvTranspose2d(channels, channels, 2)
                case ["batchnorm"]:
                    layer = nn.BatchNorm2d(channels)
                case ["batchnorm", "plain"]:
                    layer = nn.BatchNorm2d(channels, affine=False, track_running_stats=False)
                case ["groupnorm"]:
                    layer = nn.GroupNorm(1, channels)
                case ["relu"]:
                    layer = nn.ReLU()
                case ["relu", "inplace"]:
                    layer = nn.ReLU(inplace=True)
                case ["act", name]:
                    layer = {"tanh": nn.Tanh(), "silu": nn.SiLU(inplace=True), "relu6": nn.ReLU6(inplace=True)}[name]
                case ["avg", kernel, stride, count]:
                    k, s = int(kernel), int(stride)
                    layer = nn.AvgPool2d(k, s, k // 2, count_include_pad=count == "all")
                case ["max", kernel, stride]:
                    k, s = int(kernel), int(stride)
                    layer = nn.MaxPool2d(k, s, k // 2)
            self.layers.append(layer)
        self.head = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for step, layer in zip(self.steps, self.layers, strict=True):
            match step.split():
                case ["residual"]:
                    x = x + 0.5 * functional.relu(x)
                case ["cat"]:
                    x = torch.cat([x[:, 1:], functional.relu(x[:, :1])], 1)
                case ["shift"]:
                    x = x[:, :, 1:, 1:]
                case ["difference"]:
                    x = x / 3 - functional.avg_pool2d(x, 3, 1, 1)
                case ["iadd"]:
                    y = x * 2
                    y += x
                    x = y
                case _:
                    x = layer(x)
        return self.head(x.mean((2, 3)))


CONVOLUTIONS = [f"conv {k} {s} {d} {g}" for k in (1, 3, 5) for s in (1, 2) for d in (1, 2) for g in ("dense", "depthwise")]
POOLS = [f"avg {k} {s} {c}" for k in (2, 3) for s in (1, 2) for c in ("all", "valid")] + ["max 3 1", "max 3 2", "max 2 2"]
NORMS = ["batchnorm", "batchnorm plain", "groupnorm"]
OTHERS = ["relu", "relu inplace", "act tanh", "act silu", "act relu6", "residual", "cat", "shift", "difference", "iadd"]
STEPS = [st.sampled_from(kinds) for kinds in (CONVOLUTIONS, [*CONVOLUTIONS, "valid", "transposed"], POOLS, NORMS, OTHERS, OTHERS)]


@given(
    st.lists(st.one_of(STEPS), min_size=1, max_size=7), st.integers(1, 4), st.integers(2, 9), st.booleans(), st.integers(0, 99)
)
@settings(max_examples=40, deadline=None)
@example(["shift", "act silu", "conv 1 1 1 dense", "conv 1 1 1 dense"], 1, 2, False, 1)  # the plain loop's halves differed
def test_drawn_networks_are_exact(steps, channels, n, training, seed):
    torch.manual_seed(seed)
    network = double(Block(steps, channels)).train(training)
    images = torch.randn(n, 3, 9, 9).double()
    try:
        expected = expected_gram(network, images)
    except (RuntimeError, ValueError):
        return  # no pixels are left, or one value a channel to normalise, or autograd itself needs what was overwritten
    if not expected.isfinite().all():
        return  # the mean of no pixels
    assert_exact(network, images, expected, tolerance=1e-9 if any("norm" in step for step in steps) else 1e-10)


@pytest.mark.slow
def test_resnet_with_in_place_operators():
    torch.manual_seed(0)
    network = double(resnet18(num_classes=3))
    assert_exact(network, torch.randn(3, 3, 16, 16).double())
    assert_exact(network.eval(), torch.randn(2, 3, 16, 16).double())


class Shared(nn.Module):
    """One convolution used twice, a weight that isn't used, a path that is dead, and no pixel of it an image's at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.unused = nn.Linear(2, 2)
        self.norm = nn.LayerNorm([3, 6, 6])
        self.head = nn.Linear(108, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        x = functional.relu(self.first(x) - 100) + self.norm(self.first(torch.tanh(x)))
        return self.head(x.flatten(1))


class Branching(nn.Module):
    """Control flow that depends on the data, and a logit for each sample instead of a row."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.detach().sum() > 0:
            x = x.exp()
        return self.b(x * torch.sigmoid(x))[:, 0]


class Custom(nn.Module):
    def __init__(self, hooked: bool) -> None:
        super().__init__()
        self.conv, self.hooked = nn.Conv2d(3, 2, 1), hooked

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.hooked:
            x.register_hook(lambda g: 3 * g)
        else:
            x = Doubled.apply(x)
        return x.flatten(1)


class Detached(nn.Module):
    """What autograd doesn't follow: a detached branch and one under no_grad."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.b(x)
        return (self.a(x) * y + self.c(x).detach() * self.a(y)).sum((2, 3))


class Written(nn.Module):
    """Writes into a view and into a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        x = self.conv(x)
        x[:, 0] *= 2
        return x.flatten(1) * self.steps


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (Shared(), (4, 3, 6, 6)),
        (Branching(), (5, 4)),
        (Custom(hooked=False), (3, 3, 4, 4)),
        (Custom(hooked=True), (3, 3, 4, 4)),
        (Detached(), (4, 3, 5, 5)),
        (Written(), (4, 3, 5, 5)),
        (nn.Sequential(nn.Conv1d(3, 2, 3), nn.BatchNorm1d(2), nn.ReLU(), nn.Flatten()), (5, 3, 8)),
        (nn.Sequential(nn.Embedding(9, 4), nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), nn.Flatten()), (3, 5)),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ELU(inplace=True), nn.Flatten(), nn.Dropout(0.5)).eval(), (4, 3, 5, 5)),
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding_mode="reflect", padding=1), nn.Flatten()), (4, 3, 5, 5)),
        (nn.Sequential(nn.Conv2d(3, 4, (1, 3), stride=(1, 2)), nn.PReLU(), nn.Flatten()), (4, 3, 5, 5)),
        (nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)), (7, 6)),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3, bias=False), nn.BatchNorm2d(2), nn.Flatten()), (3, 3, 5, 5)),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 2, 3)), nn.Conv2d(2, 2, 1), nn.Flatten()),
            (3, 3, 5, 5),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_networks_are_exact(network, shape):
    torch.manual_seed(1)
    images = torch.randint(0, 9, shape) if isinstance(next(network.children()), nn.Embedding) else torch.randn(shape).double()
    assert_exact(double(network), images)


def test_channels_last_and_images_that_are_views():
    torch.manual_seed(0)
    network = double(Supernet("nas-bench-201", channels=2, cells=1, classes=3))
    images = torch.randn(4, 8, 8, 3).double().permute(0, 3, 1, 2)
    assert_exact(network.to(memory_format=torch.channels_last), images)


def test_random_layers_draw_once():
    torch.manual_seed(0)
    network = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)))
    images = torch.randn(5, 3, 5, 5).double()
    grams = []
    for gram in (ntk_gram_by_loop, ntk_gram):
        torch.manual_seed(7)
        grams.append(gram(network, images))
    torch.testing.assert_close(grams[1], grams[0], rtol=1e-12, atol=1e-12)


def test_weights_that_are_frozen_do_not_count():
    torch.manual_seed(0)
    network = double(nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten()))
    network[0].weight.requires_grad_(False)
    network[1].weight.requires_grad_(False)
    assert len(ntk_parameters(network)) == 1
    assert_exact(network, torch.randn(3, 3, 6, 6).double())


# Robustness.


def test_without_numba(monkeypatch):
    torch.manual_seed(0)
    network = double(Supernet("nas-bench-201", channels=2, cells=1, classes=3))
    images = torch.randn(3, 3, 8, 8).double()
    expected = ntk_gram(network, images)
    monkeypatch.setattr(ntk_engine, "_kernels", lambda: None)
    torch.testing.assert_close(ntk_gram(network, images), expected, rtol=1e-11, atol=1e-11)


def test_a_chunk_that_does_not_fit_is_halved(monkeypatch):
    torch.manual_seed(0)
    network = double(Supernet("nas-bench-201", channels=2, cells=1, classes=3))
    images = torch.randn(7, 3, 8, 8).double()
    sweep, sizes = ntk_engine.sweep, []

    def small(tape, logits, rows, start, stop):
        sizes.append(stop - start)
        if stop - start > 2:
            raise torch.OutOfMemoryError
        sweep(tape, logits, rows, start, stop)

    monkeypatch.setattr(ntk_engine, "sweep", small)
    gram = ntk_gram(network, images, chunk=6)
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1, 1]
    torch.testing.assert_close(gram, ntk_gram_by_loop(network, images), rtol=1e-11, atol=1e-11)


def test_the_network_is_left_as_it_was():
    network = Supernet("nas-bench-201", channels=2, cells=1, classes=3)
    before = copy.deepcopy(network.state_dict())
    ntk_gram(network, torch.randn(4, 3, 8, 8))
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("way", WAYS)
def test_the_result_does_not_depend_on_threads(way):
    """Bit for bit, and as many threads as before are left. Large enough that every product would be shared by threads."""
    torch.manual_seed(0)
    network = Supernet("nas-bench-201", channels=3, cells=1, classes=10)
    images = torch.randn(10, 3, 32, 32)
    threads, grams, kappas = torch.get_num_threads(), [], []
    try:
        for count in (1, 2, 4, 1):
            torch.set_num_threads(count)
            grams.append(ntk_gram(network, images, **WAYS[way]))
            kappas.append(condition_number(grams[0]))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gram, grams[0]) for gram in grams)
    assert len(set(kappas)) == 1


def test_a_network_that_is_looped_over_does_not_depend_on_threads_either():
    torch.manual_seed(0)
    network, images = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), Custom(hooked=False)), torch.randn(8, 3, 32, 32)
    network[1].conv = nn.Conv2d(32, 8, 3)
    threads, grams = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            grams.append(ntk_gram(network, images))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gram, grams[0]) for gram in grams)


KAPPAS = """
import numpy, torch
from tenas.measures import ntk_condition_number
from tenas.networks import Supernet
network = Supernet("nas-bench-201", channels=3, cells=1, classes=10)
draws = numpy.random.default_rng(0)  # torch's normal draws have other last bits with other instructions
with torch.no_grad():
    for parameter in network.parameters():
        parameter.copy_(torch.from_numpy(draws.normal(scale=0.3, size=parameter.shape)))
images = torch.from_numpy(draws.normal(size=(8, 3, 16, 16)))
kappas = [ntk_condition_number(network.to(dtype), images.to(dtype)) for dtype in (torch.float32, torch.float64)]
print(torch.backends.cpu.get_cpu_capability(), *kappas)
"""


@pytest.mark.slow
def test_other_instructions_give_the_same_kappa_to_rounding():
    """As on an old processor: torch, oneDNN and MKL each told to do without AVX. What they can't be told is who made it."""
    older = {"ATEN_CPU_CAPABILITY": "default", "DNNL_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
    plain = {key: value for key, value in os.environ.items() if key not in older}
    found = []
    for env in (plain, plain | older):
        result = subprocess.run([sys.executable, "-c", KAPPAS], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        capability, *kappas = result.stdout.split()
        found.append((capability, *map(float, kappas)))
    native, other = found
    assert other[0] == "DEFAULT"
    assert other[2] == pytest.approx(native[2], rel=1e-9)
    # In single precision a ReLU whose input is next to zero may go the other way.
    assert other[1] == pytest.approx(native[1], rel=5e-3)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left_for_the_garbage_collector(way, monkeypatch):
    monkeypatch.setattr(ntk_reuse, "SHELF", ntk_reuse.Shelf(0))  # without what is kept for the network's next kernel
    network = Supernet("nas-bench-201", channels=2, cells=1, classes=3)
    images = torch.randn(4, 3, 8, 8)
    gc.collect()
    gc.disable()
    try:
        before = set(map(id, gc.get_objects()))
        ntk_gram(network, images, **WAYS[way])
        after = [type(o) for o in gc.get_objects() if id(o) not in before]
        left = [kind.__name__ for kind in after if str(kind.__module__).startswith("tenas.measures.")]
    finally:
        gc.enable()
    assert not {"Tape", "Value", "Record", "Plan", "Base", "Convolution"} & set(left)


PEAK = """
import resource, torch
torch.set_num_threads(1)
from tenas.measures.ntk import ntk_gram
from tenas.networks import Supernet
network = Supernet("nas-bench-201", channels=3, cells=1, classes=10)
ntk_gram(network, torch.randn(2, 3, 8, 8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(6):
    ntk_gram(network, torch.randn(72, 3, 32, 32))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in Linux's units")
def test_a_kernel_of_72_images_needs_less_than_a_gigabyte():
    result = subprocess.run([sys.executable, "-c", PEAK], cwd=ROOT, capture_output=True, text=True, check=True)
    more, _ = map(int, result.stdout.split())
    assert more * 1024 < 2**29, f"{more / 1024:.0f} MiB"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0


def test_errors_are_sentences():
    network = Supernet("nas-bench-201", channels=2, cells=1, classes=3)
    with pytest.raises(TenasError, match="empty batch"):
        ntk_gram(network, torch.randn(0, 3, 8, 8))
    with pytest.raises(TenasError, match="rows of logits"):
        ntk_gram(nn.Conv2d(3, 2, 3), torch.randn(2, 3, 8, 8))
    with pytest.raises(TenasError, match="no parameter named weight"):
        ntk_gram(nn.Flatten(), torch.randn(2, 3, 8, 8))
    with pytest.raises(TenasError, match="chunk"):
        ntk_gram(network, torch.randn(2, 3, 8, 8), chunk=0)


# The condition number.


def test_condition_number():
    assert condition_number(torch.diag(torch.tensor([1.0, 4.0, 2.0]))) == 4
    assert condition_number(torch.ones(1, 1)) == 1
    assert condition_number(torch.ones(3, 3)) == math.inf
    assert condition_number(torch.zeros(2, 2)) == math.inf
    assert condition_number(torch.tensor([[1.0, math.nan], [math.nan, 1.0]])) == math.inf


def test_singular_kernels_are_infinite():
    torch.manual_seed(0)
    network = Supernet("nas-bench-201", channels=2, cells=1, classes=3)
    images = torch.randn(4, 3, 8, 8)
    assert ntk_condition_number(network, images) < math.inf
    images[3] = images[0]
    assert ntk_condition_number(network, images) == math.inf


def test_no_weight_reaches_the_logits():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(2, 2)

        def forward(self, x):
            return x.flatten(1)

    assert torch.equal(ntk_gram(Constant(), torch.randn(3, 4)), torch.zeros(3, 3, dtype=torch.float64))
    assert torch.equal(ntk_gram_by_loop(Constant(), torch.randn(3, 4)), torch.zeros(3, 3, dtype=torch.float64))
