"""Diagnose this machine: its resources, the device of each stage and why, and whether the NTK's kernels are correct."""

import copy
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tenas.benchmark.builtin import index_path
from tenas.device import choose_device, cuda_trouble, has_kernels, score_device
from tenas.errors import TenasError
from tenas.locks import lock_folder
from tenas.machine import (
    ROOT,
    SHARED_MEMORY,
    c_compiler,
    driver_version,
    gpu_files,
    memory_limit,
    processors,
    quotas,
    shared_memory,
    visible_devices,
)
from tenas.measures.ntk import Implementation, ntk_gram, ntk_gram_by_loop
from tenas.measures.ntk_grouped import ntk_grams, together
from tenas.networks import Network, Supernet, initialise
from tenas.networks.grouped import grouped
from tenas.provenance import processor_model
from tenas.retrain.train import train_step
from tenas.spaces import get_space

# With less, the batches of a retraining's workers may not fit: those of images of 224 pixels take 3 GB.
SHARED_BYTES = 2**30
# Oldest NVIDIA driver for each major version of CUDA.
DRIVERS = {12: 525, 13: 580}
# Largest allowed difference of a kernel in float32 from that in float64, relative to its largest element.
TOLERANCE = 1e-5
PACKAGES = ("torch", "torchvision", "numpy", "numba", "snakemake", "snakemake-executor-plugin-slurm", "dvc")


class Finding(NamedTuple):
    """A line of the report. ``wrong``: a sentence if there is a problem."""

    what: str
    found: str
    wrong: str = ""


def examine(data: Path = Path("data"), *, root: Path = ROOT, shm: Path = SHARED_MEMORY) -> list[Finding]:
    """Examine this machine, and compute a small kernel by each implementation. ``data``: folder of prepared data sets.

    ``root``: folder that contains /proc, /sys and /dev. ``shm``: folder of shared memory.
    """
    return [
        *_machine(root, shm),
        *_gpus(root),
        *_devices(),
        *_programs(),
        *_caches(),
        *_files(data),
        *_kernels(),
    ]


def report(findings: list[Finding]) -> str:
    """Format the findings, one per line; problems are marked."""
    width = max(len(finding.what) for finding in findings)
    return "\n".join(f"{'WRONG' if f.wrong else '':5} {f.what:{width}}  {f.found}" for f in findings)


def _machine(root: Path, shm: Path) -> list[Finding]:
    limits = ", ".join(f"{quota / period:g}" for quota, period in quotas(root))
    left = processors(root)
    memory, shared = memory_limit(root), shared_memory(shm)
    small = shared is None or shared < SHARED_BYTES
    return [
        Finding("processors", f"{left} of {os.cpu_count()} usable" + (f", by a quota of {limits}" if limits else "")),
        Finding("kind", f"{processor_model()}, {torch.backends.cpu.get_cpu_capability()}"),
        Finding("memory", "unknown" if memory is None else f"{memory / 2**30:.1f} GiB may be used"),
        Finding("threads of torch", f"{torch.get_num_threads()}; a measure takes one"),
        Finding(
            "shared memory",
            f"{shm}: {'missing' if shared is None else f'{shared / 2**20:.0f} MiB'}",
            f"{shm} is small for the worker processes of a retraining on image files ('workers'), which end with a bus error: "
            "docker run --shm-size=8g or --ipc=host, on Kubernetes an emptyDir of medium Memory."
            if small
            else "",
        ),
    ]


def driver_too_old(driver: str | None, cuda: str | None) -> bool:
    """Whether PyTorch's version of CUDA needs a newer driver; False if either version is unknown."""
    if driver is None or cuda is None:
        return False
    return int(driver.partition(".")[0]) < DRIVERS.get(int(cuda.partition(".")[0]), 0)


def _gpus(root: Path) -> list[Finding]:
    files, visible, driver = gpu_files(root), visible_devices(), driver_version(root)
    found = [
        Finding("GPUs", f"{', '.join(files) or 'no device file'}; CUDA_VISIBLE_DEVICES {_environment('CUDA_VISIBLE_DEVICES')}"),
        Finding(
            "driver",
            f"{driver or 'none'}; PyTorch {torch.__version__} was built for CUDA {torch.version.cuda or '(none)'}",
            f"NVIDIA's driver {driver} is too old for CUDA {torch.version.cuda}: update it, or install PyTorch for an older CUDA."
            if driver_too_old(driver, torch.version.cuda)
            else "",
        ),
    ]
    if not torch.cuda.is_available():
        hidden = visible == []
        wrong = f"There is {files[0]}, but PyTorch cannot use it: {cuda_trouble()}." if files and not hidden else ""
        return [*found, Finding("PyTorch's GPUs", "none" + (", as CUDA_VISIBLE_DEVICES names none" if hidden else ""), wrong)]
    for number in range(torch.cuda.device_count()):
        capability, name = torch.cuda.get_device_capability(number), torch.cuda.get_device_name(number)
        bf16 = "" if torch.cuda.is_bf16_supported(including_emulation=False) else "no "
        found.append(
            Finding(
                f"GPU {number}",
                f"{name}, compute capability {capability[0]}.{capability[1]}, {bf16}bfloat16; "
                "measures in whole float32, trainings in TF32 where the GPU has it",
                ""
                if has_kernels(capability, torch.cuda.get_arch_list())
                else f"PyTorch {torch.__version__} has no kernels for {name}: use another build, or 'device: cpu'.",
            )
        )
    return found


def _environment(name: str) -> str:
    return repr(os.environ[name]) if name in os.environ else "not set"


def _devices() -> list[Finding]:
    trained = "cuda" if torch.cuda.is_available() else "cpu"
    why = "a GPU is faster for a training" if trained == "cuda" else "PyTorch finds no GPU"
    measures = f"{score_device('auto')}: for small networks the compiled kernels are faster than a GPU; 'device: cuda' overrules"
    return [
        Finding("score, study score", measures),
        Finding("training, retrain", f"{choose_device(trained)}: {why}"),
        Finding("limits, export", "cpu: one pass of one network"),
    ]


def _programs() -> list[Finding]:
    compiler = c_compiler()
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    return [
        Finding(
            "C compiler",
            compiler or "none in PATH",
            "" if compiler else "There is no C compiler in PATH, which a retraining with 'compile: true' needs: install gcc.",
        ),
        Finding("packages", ", ".join(versions)),
        Finding("SLURM", _slurm()),
    ]


def _slurm() -> str:
    if shutil.which("sbatch") is None:
        return "no sbatch in PATH: jobs run on this machine"
    try:
        said = subprocess.run(["sbatch", "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "sbatch does not answer"
    return (said.stdout or said.stderr).strip().partition("\n")[0]


def _cannot_write(folder: Path) -> str:
    """Reason why a folder cannot be written (it is created if missing); empty if it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _caches() -> list[Finding]:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    compiled = Path(__file__).parent / "measures/kernel/compiled/__pycache__"
    numba = [Path(os.environ["NUMBA_CACHE_DIR"])] if os.environ.get("NUMBA_CACHE_DIR") else [compiled, home / "numba"]
    matplotlib = Path(os.environ.get("MPLCONFIGDIR") or home / "matplotlib")
    found = []
    for what, folders, variable, cost in (
        ("cache of numba", numba, "NUMBA_CACHE_DIR", "each job compiles the NTK's kernels again, or cannot"),
        ("cache of matplotlib", [matplotlib], "MPLCONFIGDIR", "each job looks for fonts again"),
    ):
        reasons = [_cannot_write(folder) for folder in folders]
        good = next((folder for folder, reason in zip(folders, reasons, strict=True) if not reason), None)
        wrong = f"The {what} {folders[-1]} cannot be written ({reasons[-1]}): {cost}; set {variable} to a folder that can be."
        found.append(Finding(what, str(good or folders[-1]), "" if good else wrong))
    try:
        found.append(Finding("locks of GPUs", str(lock_folder())))
    except (OSError, TenasError) as error:
        found.append(Finding("locks of GPUs", tempfile.gettempdir(), f"A GPU cannot be locked: {str(error).rstrip('.')}."))
    return found


def _files(data: Path) -> list[Finding]:
    sets = sorted(card.parent.name for card in data.glob("*/card.json"))
    table = Path(index_path("builtin", get_space("nas-bench-201")))
    return [
        Finding("data", f"{data}: {', '.join(sets) or 'no prepared data set'}"),
        Finding(
            "table", str(table), "" if table.exists() else f"The built-in table {table} is missing: install the package again."
        ),
    ]


def small_problem() -> tuple[nn.Module, Tensor]:
    """A supernet of NAS-Bench-201 and a batch of noise: all kinds of operators, small enough for the plain loop."""
    network = Supernet(get_space("nas-bench-201"), channels=4, cells=1, classes=10)
    initialise(network, "kaiming_fan_in", 0)
    return network, torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def timed(compute: Callable[[], Tensor], *, least: float = 0.5) -> tuple[Tensor, float]:
    """Repeat a computation for ``least`` seconds after a warm-up. Returns its last result and the number of calls per second."""
    compute()
    start, count = time.perf_counter(), 0
    while True:
        found = compute()
        count += 1
        if (passed := time.perf_counter() - start) >= least:
            return found, count / passed


def difference(gram: Tensor, expected: Tensor) -> float:
    """Largest difference of two kernels, relative to the largest element."""
    return ((gram - expected).abs().max() / expected.abs().max()).item()


def _kernels() -> list[Finding]:
    network, images = small_problem()
    expected = ntk_gram_by_loop(copy.deepcopy(network).double(), images.double())
    _, loop = timed(lambda: ntk_gram(network, images, implementation="loop"))
    compiled, rate = _kernel("compiled kernels on the CPU", network, images, expected, "compiled")
    found = [Finding("plain loop on the CPU", f"{loop:.1f} kernels per second"), compiled]
    # A scoring job runs one process per processor.
    scores, trainings = {"cpu": processors() * max(loop, rate)}, {"cpu": 0.0}
    if torch.cuda.is_available() and has_kernels(torch.cuda.get_device_capability(), torch.cuda.get_arch_list()):
        on_gpu = copy.deepcopy(network).to("cuda")
        found.append(_kernel("GPU, against the CPU", on_gpu, images.to("cuda"), expected, "batched")[0])
        scores["cuda"] = kernels_together(network, images, "cuda")
        trainings = {device: training_steps(device) for device in ("cpu", "cuda")}
    found.append(Finding("faster for scores", faster(scores, f"kernels per second ({processors()} processes on the CPU)")))
    found.append(Finding("faster for trainings", faster(trainings, "steps per second")))
    return found


def faster(rates: Mapping[str, float], what: str) -> str:
    """Recommend a ``--device``, with the reason. ``rates``: by device; only of the CPU if there is no GPU."""
    best = max(rates, key=lambda device: rates[device])
    if len(rates) == 1:
        return f"--device {best}: there is no GPU to be timed"
    return f"--device {best}: " + " against ".join(f"{rates[device]:.1f} on {device}" for device in rates) + f" {what}"


def kernels_together(network: nn.Module, images: Tensor, device: str) -> float:
    """Kernels per second with as many networks side by side as in a search on a GPU; 0 if they cannot be grouped."""
    count = together(network, (images,))
    try:
        whole = grouped(network, [network.state_dict()] * count, device=device)
        batch = images.repeat(1, count, 1, 1).to(device)
        return count * timed(lambda: ntk_grams(whole, batch, count))[1]
    except RuntimeError:
        return 0.0


def training_steps(device: str) -> float:
    """Steps per second of a training: a small cell of convolutions, 64 images of 32 pixels."""
    genotype = get_space("nas-bench-201").parse(
        "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_1x1~1|skip_connect~2|"
    )
    network = Network(genotype, channels=16, cells=1, classes=10).to(device)
    optimizer, scaler = torch.optim.SGD(network.parameters(), lr=0.01), torch.amp.GradScaler(device, enabled=False)
    settings = {"compile": False, "precision": "fp32", "label_smoothing": 0.0, "auxiliary": 0.0, "clip": None}
    images, labels = torch.zeros(64, 3, 32, 32, device=device), torch.zeros(64, dtype=torch.int64, device=device)
    return timed(lambda: train_step(network, optimizer, scaler, images, labels, settings)[0].cpu())[1]


def _kernel(
    what: str, network: nn.Module, images: Tensor, expected: Tensor, implementation: Implementation
) -> tuple[Finding, float]:
    """Compare an implementation of the kernel with ``expected`` in float64: difference, reproducibility; also its speed."""
    try:
        first, rate = timed(lambda: ntk_gram(network, images, implementation=implementation))
        second = ntk_gram(network, images, implementation=implementation)
    except (TenasError, RuntimeError) as error:
        return Finding(what, "unusable", f"The {what} cannot be used: {' '.join(str(error).split()).rstrip('.')}."), 0.0
    off, equal = difference(first, expected), torch.equal(first, second)
    wrong = []
    if not off <= TOLERANCE:
        wrong.append(f"The {what}: the NTK differs from that of the plain loop in float64 by {off:.1e} of its largest element.")
    if not equal:
        wrong.append(f"The {what}: two runs of the same NTK differ.")
    text = f"{rate:.1f} kernels per second; {off:.0e} from the loop in float64; two runs {'equal' if equal else 'differ'}"
    return Finding(what, text, " ".join(wrong)), rate
