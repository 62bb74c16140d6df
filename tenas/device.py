"""The device to compute on, and transfers to it. Imports torch."""

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

import numpy as np
import torch
from torch import Tensor

from tenas.errors import TenasError
from tenas.locks import Lock, lock_folder, take_one
from tenas.machine import gpu_files, visible_devices
from tenas.progress import remark

DEVICES = ("auto", "cpu", "cuda")
# Megabytes that the driver, or a desktop, uses on an idle GPU.
IDLE_MB = 1024


def choose_device(device: str) -> str:
    """Resolve ``auto`` to a GPU if there is one, else to the CPU.

    Raises TenasError for ``cuda`` without a GPU that PyTorch can use. Prints a message on stderr if ``auto`` leaves a GPU unused.
    """
    if device not in DEVICES:
        raise TenasError(f"The device is {device!r}; allowed: {', '.join(DEVICES)}.")
    if device == "cpu":
        return device
    if torch.cuda.is_available():
        return "cuda"
    found = gpu_files() if visible_devices() != [] else []
    why = f", though there is {found[0]}: {cuda_trouble()}" if found else ""
    if device == "cuda":
        raise TenasError(f"The device cuda was asked for, but PyTorch finds no GPU here{why}.")
    if found:
        remark(f"PyTorch finds no GPU{why}; computing on the CPU.")
    return "cpu"


def score_device(device: str) -> str:
    """Resolve the device of a stage that measures: ``auto`` is the CPU.

    Measures at initialisation use small networks and batches, one process per core: with the compiled kernels this is faster than
    a GPU, which waits for thousands of launches per measurement (docs/gpu.md). An explicit ``cuda`` is respected.
    """
    return "cpu" if device == "auto" else choose_device(device)


def cuda_trouble() -> str:
    """Reason why PyTorch cannot use an existing GPU, as part of a sentence."""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is a build without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"{' '.join(str(error).split()).rstrip('.')} (PyTorch {torch.__version__}; CUDA 13 needs a driver from 580 on)"
    return "it counts none"


def has_kernels(capability: tuple[int, int], architectures: Iterable[str]) -> bool:
    """Whether a build for ``architectures`` (sm_75, compute_90) runs on a GPU: same major and no later minor, or by its PTX."""
    for name in architectures:
        kind, _, digits = name.partition("_")
        number = re.match(r"\d+", digits)
        if number is None:
            continue
        major, minor = divmod(int(number[0]), 10)
        if (kind == "sm" and major == capability[0] and minor <= capability[1]) or (
            kind == "compute" and (major, minor) <= capability
        ):
            return True
    return False


def check_capability(number: int) -> None:
    """Raise TenasError for a GPU without kernels in this PyTorch: its first operator would fail."""
    capability, architectures = torch.cuda.get_device_capability(number), torch.cuda.get_arch_list()
    if not has_kernels(capability, architectures):
        raise TenasError(
            f"The GPU {torch.cuda.get_device_name(number)} has the compute capability {capability[0]}.{capability[1]}, for which "
            f"PyTorch {torch.__version__} has no kernels (it has {', '.join(architectures)}): set 'device: cpu', or "
            "install another build."
        )


def _used_megabytes() -> dict[str, int]:
    """Memory in use on each GPU, by UUID, from nvidia-smi; empty if it is not installed or fails."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", "--query-gpu=uuid,memory.used", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found = [re.fullmatch(r"GPU-(\S+), (\d+)", line.strip()) for line in lines]
    return {match[1]: int(match[2]) for match in found if match}


@cache
def _own_gpu() -> tuple[int, Lock]:
    # By UUID: indices count the devices that a process sees, and two processes may see different ones.
    uuids = [str(torch.cuda.get_device_properties(number).uuid) for number in range(torch.cuda.device_count())]
    # Last the GPUs used by processes that do not take our locks.
    used = _used_megabytes()
    order = sorted(range(len(uuids)), key=lambda number: used.get(uuids[number], 0) > IDLE_MB)
    lock = take_one([f"gpu-{uuids[number]}" for number in order], lock_folder(), "GPU")
    return order[lock.number], lock


@cache
def _own_slice() -> Lock | None:
    """Choose one of several MIG slices in CUDA_VISIBLE_DEVICES, and make it the only one; None if it does not list several.

    CUDA shows a process only the first slice, even if it is in use. Call this before torch looks for GPUs.
    """
    names = visible_devices() or []
    if len(names) < 2 or not all(name.startswith("MIG-") for name in names):
        return None
    lock = take_one([f"gpu-{name.replace('/', '-')}" for name in names], lock_folder(), "MIG slice")
    os.environ["CUDA_VISIBLE_DEVICES"] = names[lock.number]
    return lock


def own_gpu() -> int:
    """Index of a GPU that no other process of this user holds, held until this process ends, as is its CUDA context.

    Snakemake counts GPUs but assigns none, so processes assign them by locks, and wait while all are held. With one visible GPU
    there is nothing to assign: the scheduler chose it by CUDA_VISIBLE_DEVICES, or the machine has no other. Idle GPUs are
    taken before those on which others compute. Raises TenasError for a GPU that PyTorch has no kernels for.
    """
    number = _own_gpu()[0] if torch.cuda.device_count() > 1 else 0
    check_capability(number)
    return number


def own_device(device: str) -> str:
    """``choose_device``; if it is a GPU, make one that only this process holds (``own_gpu``) torch's current device."""
    if device != "cpu":
        _own_slice()
    kind = choose_device(device)
    if kind == "cuda":
        torch.cuda.set_device(own_gpu())
    return kind


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Run with torch's defaults of a new process: float32 on the CPU, with gradients, outside of inference mode and autocast."""
    with ExitStack() as undone:
        # A default device looks at each call of torch.
        if torch.get_default_device().type != "cpu":
            undone.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                undone.enter_context(torch.autocast(kind, enabled=False))
        undone.enter_context(torch.inference_mode(False))
        undone.enter_context(torch.enable_grad())
        undone.enter_context(_float32())
        yield


_types: list[torch.dtype] = []
_TYPES = threading.Lock()


@contextmanager
def _float32() -> Iterator[None]:
    """Make float32 the default type, which is the process's: the last of several threads to leave restores it."""
    with _TYPES:
        _types.append(torch.get_default_dtype() if not _types else _types[0])
        torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        with _TYPES:
            before = _types.pop()
            if not _types:
                torch.set_default_dtype(before)


def send(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Copy values to ``device`` without waiting for the work queued on a GPU."""
    tensor = torch.as_tensor(values)
    if device.type == "cuda" and not tensor.is_cuda:
        # Copies are asynchronous from pinned memory only.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
