"""What only a GPU can prove: ``python -m benchmarks.gpu``, which says so and exits with 2 where there is none.

NTKs against those of the CPU in float64, each twice for equal bits; their speed beside the plain loop on the GPU and beside the
compiled kernels on one processor core; how many kernels the GPU is given for one NTK, how much of the time it works, and which
share of its bandwidth that is; every measure on both devices; a step of a training in both layouts of memory.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.ntk import network_and_images
from tenas.doctor import difference, timed
from tenas.errors import TenasError
from tenas.measures import get_measure
from tenas.measures.catalogue import BUILT_IN
from tenas.measures.ntk import condition_number, ntk_gram, ntk_gram_by_loop
from tenas.networks import Network
from tenas.spaces import load_genotype

# Space, channels, cells, images.
CASES = [("nas-bench-201", 3, 1, 72), ("nas-bench-201", 3, 1, 16), ("darts", 1, 2, 14)]
COLUMNS = (
    "kernel",
    "gram off",
    "kappa off",
    "twice equal",
    "ours /s",
    "loop /s",
    "one core /s",
    "launches",
    "GPU busy",
    "bandwidth",
)
# Of the shallow networks that measures see, and of a training.
ARCH = "|nor_conv_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
DARTS = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 1), "
    "('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), "
    "('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=range(2, 6))"
)


class Traffic(TorchDispatchMode):
    """Counts the bytes that operators read and write: what a GPU moves at least, if nothing stays in its cache."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operator(*args, **(kwargs or {}))
        if not operator.is_view:
            self.bytes += sum(leaf.nbytes for leaf in tree_leaves((args, out)) if isinstance(leaf, Tensor))
        return out


def launched(compute: Callable[[], object]) -> tuple[int, float]:
    """How many kernels a computation launches on the GPU, and the seconds that they take."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        compute()
        torch.cuda.synchronize()
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return len(events), sum(event.device_time for event in events) / 1e6


def copied_bytes(device: str, size: int = 2**28) -> float:
    """Bytes a second that the device reads and writes in a copy: its bandwidth, measured."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy_once() -> Tensor:
        target.copy_(source)
        return target[0].cpu()

    return 2 * size * timed(copy_once)[1]


def kernel_row(case: tuple[Any, ...], device: str, bandwidth: float) -> list[str]:
    """A line of the table: one NTK on ``device``, held against the CPU. On a CPU without what only a GPU says."""
    network, images = network_and_images(*case)
    expected = ntk_gram_by_loop(copy.deepcopy(network).double(), images.double())
    _, core = timed(lambda: ntk_gram(network, images))
    there, batch = copy.deepcopy(network).to(device), images.to(device)

    def ours() -> Tensor:
        return ntk_gram(there, batch, implementation="batched")

    found, rate = timed(ours)
    _, loop = timed(lambda: ntk_gram_by_loop(there, batch))
    kappa = condition_number(expected)
    with Traffic() as traffic:
        again = ours()
    launches, busy = launched(ours) if device == "cuda" else (0, 0.0)
    return [
        f"{case[0]}, C={case[1]}, n={case[3]}",
        f"{difference(found, expected):.1e}",
        f"{abs(condition_number(found, dtype=torch.float32) / kappa - 1):.1e}",
        "yes" if torch.equal(found, again) and torch.equal(found, ours()) else "NO",
        f"{rate:.1f}", f"{loop:.1f}", f"{core:.1f}", f"{launches:,}", f"{busy * rate:.0%}",
        f"{traffic.bytes * rate / bandwidth:.0%}",
    ]  # fmt: skip


def measure_row(name: str, device: str) -> list[str]:
    """A line of the table of measures: the value on the CPU, how far that of ``device`` is off, whether it is the same twice."""
    measure = get_measure(name)
    network = Network(load_genotype(ARCH), channels=8, cells=1, classes=10)
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16) % 10

    def value(on: str) -> float:
        torch.manual_seed(0)
        there, batch = copy.deepcopy(network).to(on), images.to(on)
        inputs = ([batch],) if measure.inputs == "regions" else (batch, labels.to(on)) if measure.needs_labels else (batch,)
        return float(measure(there, *inputs))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected, first, second = value("cpu"), value(device), value(device)
        except TenasError as error:
            return [name, "-", "-", str(error)]
    off = 0.0 if first == expected else abs(first - expected) / max(abs(expected), 1e-30)
    return [name, f"{expected:.6g}", f"{off:.1e}", "yes" if first == second else "NO"]


def training_row(layout: str, device: str, *, channels: int = 36, cells: int = 20, batch: int = 96, steps: int = 20) -> list[str]:
    """Steps a second of a DARTS network's training in a layout of memory."""
    form = torch.channels_last if layout == "channels last" else torch.contiguous_format
    network: nn.Module = Network(load_genotype(DARTS), channels=channels, cells=cells, classes=10)
    network = network.to(device).to(memory_format=form).train()
    images = torch.randn(batch, 3, 32, 32, device=device).to(memory_format=form)

    def step() -> Tensor:
        total = network(images).square().mean()
        torch.autograd.backward(total)
        return total.detach().cpu()

    _, rate = timed(step, least=steps / 10)
    return [layout, f"{rate:.2f}"]


def proofs(
    device: str, cases: Sequence[tuple[Any, ...]] = CASES, **training: int
) -> list[tuple[tuple[str, ...], list[list[str]]]]:
    """The tables: their columns, their lines."""
    bandwidth = copied_bytes(device)
    return [
        (COLUMNS, [kernel_row(case, device, bandwidth) for case in cases]),
        (("measure", "on the CPU", "off", "twice equal"), [measure_row(name, device) for name in BUILT_IN]),
        (("layout", "steps /s"), [training_row(layout, device, **training) for layout in ("channels last", "channels first")]),
    ]


def failed(tables: list[tuple[tuple[str, ...], list[list[str]]]]) -> list[str]:
    """What of the kernels is not as it has to be: 1e-5 in kappa and in the matrix, equal bits."""
    _, kernels = tables[0]
    return [row[0] for row in kernels if not (float(row[1]) < 1e-5 and float(row[2]) < 1e-5 and row[3] == "yes")]
