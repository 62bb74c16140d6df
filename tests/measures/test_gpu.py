"""Measures on a GPU: what fake tensors and a CPU can say of them, and their values where there is one."""

import warnings
import weakref
from collections.abc import Iterator

import pytest
import torch
from helpers.engine import DARTS, NAS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tenas.measures import get_measure, ntk_engine, ntk_rules
from tenas.measures.catalogue import Measure
from tenas.measures.common import measuring
from tenas.measures.ntk import ntk_gram, ntk_gram_by_loop
from tenas.measures.ntk_engine import SmallerChunkWarning, batched_jacobian, choose_chunk, recorded
from tenas.measures.ntk_rules import by_autograd, max_pool, max_pool_by_offset
from tenas.measures.ntk_tape import Record, Value, aten
from tenas.measures.sizes import BUDGET
from tenas.measures.threads import full_precision
from tenas.networks import Supernet

GETTERS = torch._C._get_fp32_precision_getter
KEYS = [("generic", "all"), *((backend, name) for backend in ("cuda", "mkldnn") for name in ("all", "conv", "rnn", "matmul"))]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def settings() -> list[object]:
    """All that torch has been told of precision and cuDNN; "refused" for what it refuses to say."""
    found: list[object] = [GETTERS(*key) for key in KEYS]
    for get in (
        torch._C._get_cudnn_allow_tf32, torch._C._get_cublas_allow_tf32, torch.get_float32_matmul_precision,
        torch._C._get_cudnn_enabled, torch._C._get_cudnn_benchmark, torch._C._get_cudnn_deterministic,
    ):  # fmt: skip
        try:
            found.append(get())
        except RuntimeError:
            found.append("refused")
    return found


def inside() -> tuple[object, ...]:
    """What the operators of a measure read."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return (
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32,
        cudnn.conv.fp32_precision, matmul.fp32_precision,
    )  # fmt: skip


FULL = (True, False, True, False, False, "ieee", "ieee")


@pytest.fixture
def restored() -> Iterator[None]:
    """Torch's settings as they were: a test may leave them anyhow."""
    before = {key: GETTERS(*key) for key in KEYS}
    cudnn = torch.backends.cudnn
    switches = cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    matmul = torch.get_float32_matmul_precision()
    yield
    torch._C._set_fp32_precision_setter("generic", "all", before["generic", "all"])
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = switches
    torch.set_float32_matmul_precision(matmul)
    for key, value in before.items():
        if GETTERS(*key) != value:
            torch._C._set_fp32_precision_setter(*key, value)


def set_precision(backend: str, name: str, value: str) -> None:
    torch._C._set_fp32_precision_setter(backend, name, value)


WAYS = {
    "untouched": lambda: None,
    "tf32 off": lambda: torch._C._set_cudnn_allow_tf32(False),
    "tf32 of products": lambda: torch.set_float32_matmul_precision("medium"),
    "everything on": lambda: set_precision("generic", "all", "tf32"),
    "convolutions by the newer interface": lambda: set_precision("cuda", "conv", "ieee"),
    "products by the newer interface": lambda: set_precision("cuda", "matmul", "tf32"),
    "as for a training": lambda: torch._C._set_cudnn_benchmark(True),
    "without cuDNN": lambda: torch._C._set_cudnn_enabled(False),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_measure_computes_in_whole_float32_whatever_torch_was_told_and_leaves_that(way, restored):
    WAYS[way]()
    before, seen = settings(), []

    @measuring
    def measure(network: nn.Module, images: torch.Tensor) -> float:
        seen.append(inside())
        with full_precision():
            seen.append(inside())
        seen.append(inside())
        raise KeyError

    with pytest.raises(KeyError):
        measure(nn.Linear(1, 1), torch.zeros(1))
    assert seen == [FULL] * 3
    assert settings() == before


def test_so_does_a_measure_of_ones_own_and_each_reverse_pass():
    seen = []

    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append(inside())
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            seen.append(inside())
            return g

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return Seen.apply(self.layer(x))

    own = Measure("own", lambda network, images: seen.append(inside()) or 1.0)
    own(nn.Linear(1, 1), torch.zeros(1))
    network, images = Watched(), torch.randn(2, 3)
    ntk_gram_by_loop(network, images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the loop is slow
        ntk_gram(network, images)
    get_measure("gradient_norm")(network, images, torch.tensor([0, 1]))
    assert len(seen) > 6
    assert set(seen) == {FULL}


# --- chunks


class FakeTape:
    """As much of a tape as a chunk follows from."""

    def __init__(self, device: str) -> None:
        with FakeTensorMode():
            value = Value(torch.empty(72, 16, 32, 32, device=device), active=True)
        record = Record(aten.relu.default, (value,), {}, [value])
        record.outputs = [value]
        self.records = [record]


def test_a_chunk_on_a_gpu_follows_from_shapes_alone(monkeypatch):
    for name in ("mem_get_info", "memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device=None: pytest.fail("a chunk must not depend on what is free"))
    size = 72 * 16 * 32 * 32 * 4
    assert choose_chunk(FakeTape("cuda"), 1000) == BUDGET // ntk_engine.LIVE_COTANGENTS // size == 113
    assert choose_chunk(FakeTape("cuda"), 72) == 72
    assert choose_chunk(FakeTape("cuda"), 8) == 8
    assert choose_chunk(FakeTape("cpu"), 72) == ntk_engine.CACHE_BYTES // size == 1


def test_memory_that_runs_out_is_said_and_given_back_first(monkeypatch):
    network, images = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)), torch.randn(6, 3, 8, 8)
    alive, sweep, emptied = weakref.WeakSet(), ntk_engine.sweep, []

    class Cotangents:
        """What a traceback holds."""

    def small(tape, logits, rows, start, stop):
        if stop - start > 2:
            held = Cotangents()
            alive.add(held)
            raise torch.OutOfMemoryError
        sweep(tape, logits, rows, start, stop)

    monkeypatch.setattr(ntk_engine, "sweep", small)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(list(alive)))
    expected = ntk_gram(network, images, chunk=2)
    with pytest.warns(SmallerChunkWarning, match="2 cotangents at a time instead of 4"):
        found = ntk_gram(network, images, chunk=4)
    assert torch.equal(found, expected)
    assert emptied == [[]]


# --- rules


@pytest.mark.parametrize(
    ("settings", "sides"),
    [
        (([3, 3], [1, 1], [1, 1], [1, 1], False), (8, 7)),
        (([3, 3], [2, 2], [1, 1], [1, 1], True), (8, 7)),
        (([2, 2], [2, 2], [0, 0], [1, 1], True), (7, 5)),
        (([3, 2], [1, 2], [1, 1], [2, 1], False), (9, 8)),
        (([3, 3], [], [0, 0]), (9, 9)),
        (([2, 2],), (6, 6)),
    ],
)
def test_max_pooling_backwards_offset_by_offset(settings, sides):
    """What a GPU does, in place of a sum whose order differs from run to run. Ties included."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *sides, dtype=torch.float64, generator=generator).relu_()
    out, indices = aten.max_pool2d_with_indices(x, *settings)
    g = torch.randn(5, *out.shape, dtype=torch.float64, generator=generator)
    value = Value(x, active=True)
    record = Record(aten.max_pool2d_with_indices.default, (value, *settings), {}, [value])
    record.outputs = [Value(out, active=True), Value(indices, active=False)]
    for output in record.outputs:
        output.version = output.tensor._version
    ((_, expected),) = max_pool(record, [g, None])
    torch.testing.assert_close(max_pool_by_offset(record, indices, g), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("message", "times"),
    [
        ("CUDA error: an illegal memory access was encountered", 1),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", 1),
        ("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)", 1),
        ("Batching rule not implemented for aten::something", 2),
    ],
)
def test_a_gpu_that_fails_is_not_asked_again_one_by_one(message, times, monkeypatch):
    value = Value(torch.randn(3), active=True)
    value.version = value.tensor._version
    record = Record(aten.sin.default, (value,), {}, [value])
    asked = []

    def grad(*args, **more):
        asked.append(more)
        raise RuntimeError(message)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    with pytest.raises(RuntimeError, match=message.split("(")[0]):
        list(by_autograd(record, [torch.randn(2, 3)]))
    assert len(asked) == times


def test_errors_of_a_device_are_known_by_their_kind_too():
    assert ntk_rules.of_the_device(torch.AcceleratorError("out of luck"))


# --- fake GPUs: real dispatch, cuDNN's operators included, shapes and devices checked, no numbers


@pytest.fixture
def fake(monkeypatch) -> Iterator[FakeTensorMode]:
    # A fake tensor has no memory, and aten.t of one counts as a write.
    monkeypatch.setattr(Value, "data", property(lambda value: value.tensor.detach()))
    monkeypatch.setattr(torch.UntypedStorage, "data_ptr", id)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


@pytest.mark.parametrize(
    ("space", "training"),
    [(NAS, True), pytest.param(NAS, False, marks=pytest.mark.slow), pytest.param(DARTS, True, marks=pytest.mark.slow)],
    ids=["nas-bench-201", "constants", "darts"],
)
def test_tape_and_reverse_pass_of_a_supernet_on_a_fake_gpu(space, training, fake, monkeypatch):
    monkeypatch.setattr(ntk_engine, "_kernels", lambda: pytest.fail("numba is of no use on a GPU"))
    seen = []
    known = ntk_rules.by_autograd
    monkeypatch.setattr(ntk_rules, "by_autograd", lambda record, g: seen.append(record.op) or known(record, g))
    with torch.device("cuda"):
        network = Supernet(space, channels=2, cells=1, classes=4).train(training)
    images = torch.empty(4, 3, 16, 16, device="cuda")
    parameters = [p for name, p in network.named_parameters() if name.endswith("weight")]
    with recorded(network, images, parameters) as (tape, logits):
        ops = {record.op for record in tape.records}
        rows = batched_jacobian(tape, logits)
        assert ntk_engine.unsuited(tape, logits) == "the network is on cuda, not on a CPU"
    assert aten.cudnn_batch_norm.default in ops
    assert seen == []  # a rule for each operator
    assert (rows.device.type, rows.shape) == ("cuda", (4, sum(p.numel() for p in parameters)))


# --- a real one


@needs_gpu
@pytest.mark.parametrize("space", [NAS, DARTS], ids=lambda space: space.name)
def test_a_gpu_gives_the_kernel_of_the_cpu_twice_the_same(space):
    torch.manual_seed(0)
    network, images = Supernet(space, channels=3, cells=2, classes=4), torch.randn(8, 3, 16, 16)
    expected = ntk_gram_by_loop(network.double(), images.double())
    network = network.float().to("cuda")
    found = [ntk_gram(network, images.to("cuda")) for _ in range(2)]
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
