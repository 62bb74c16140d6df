"""Resources of this machine for a process: processors, memory, shared memory, GPUs. Reads files only; no torch."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path("/")
# Worker processes pass batches through it.
SHARED_MEMORY = Path("/dev/shm")
# Values of CUDA_VISIBLE_DEVICES and NVIDIA_VISIBLE_DEVICES that hide all GPUs.
NO_DEVICES = ("", "-1", "none", "void", "nodevfiles")


def processors(root: Path = ROOT) -> int:
    """Number of processors for this process: by its affinity, and by the quota of its control groups (v1 and v2), rounded up.

    A container with a quota of one processor sees all of its host's, and would be throttled with one thread for each. ``root``:
    folder that contains /proc and /sys.
    """
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([seen, *(max(1, -(-quota // period)) for quota, period in quotas(root))])


def memory_limit(root: Path = ROOT) -> int | None:
    """Memory for this process in bytes: that of the machine, or the smallest limit of its control groups; None if unknown."""
    found = re.search(r"^MemTotal:\s*(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    limits = [int(found[1]) * 1024] if found else []
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limits += [int(text)] if (text := _text(folder / name).strip()).isdecimal() else []
    return min(limits, default=None)


def shared_memory(folder: Path = SHARED_MEMORY) -> int | None:
    """Size of shared memory in bytes; None if there is none."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_blocks * found.f_frsize


def c_compiler() -> str | None:
    """The C compiler that ``torch.compile`` would use, from the variable CC or the usual names; None if PATH has none."""
    names = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next(filter(None, map(shutil.which, filter(None, names))), None)


def gpu_files(root: Path = ROOT) -> list[str]:
    """Evidence of NVIDIA's GPUs without initialising them: device files, or on WSL the driver's library."""
    files = sorted((root / "dev").glob("nvidia[0-9]*"))
    if not files and (root / "dev/dxg").exists():
        files = sorted((root / "usr/lib/wsl/lib").glob("libcuda.so.1"))
    return [f"/{path.relative_to(root)}" for path in files]


def visible_devices(environ: Mapping[str, str] = os.environ) -> list[str] | None:
    """GPUs named by CUDA_VISIBLE_DEVICES, up to the first invalid name, as CUDA reads it; None if it is not set."""
    text = environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    names = []
    for name in map(str.strip, text.split(",")):
        if name.lower() in NO_DEVICES or re.fullmatch(r"\d+|(GPU|MIG)-\S+", name) is None:
            break
        names.append(name)
    return names


def has_gpu(root: Path = ROOT, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a process would see a GPU: by CUDA_VISIBLE_DEVICES or, if that is not set, by the device files."""
    visible = visible_devices(environ)
    return bool(gpu_files(root)) if visible is None else bool(visible)


def driver_version(root: Path = ROOT) -> str | None:
    """Version of NVIDIA's driver; None if none is loaded."""
    found = re.search(r"\b(\d{3,}\.[\d.]+)", _text(root / "proc/driver/nvidia/version"))
    return found[1] if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control group and its parents, each of which may have its own limit. v1 and v2.

    In a container /proc/self/cgroup may have the host's path, which does not exist there; the root of the mount has the limits.
    """
    base = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines() or ["0::/"]:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number != "0" and controller not in controllers.split(","):
            continue
        names = ("unified",) if number == "0" else (controllers, controller)
        top = next((base / name for name in names if (base / name).is_dir()), base)
        folder = top / path.strip("/")
        for group in (folder, *folder.parents):
            yield group
            if group == top:
                break


def quotas(root: Path) -> Iterator[tuple[int, int]]:
    """(microseconds of processor time, microseconds of the period) of each control group with a quota."""
    for folder in _groups(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
        if not quota:
            quota, period = (_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        if quota.isdecimal() and period.isdecimal() and int(period) > 0 and int(quota) > 0:
            yield int(quota), int(period)
