"""What made a result: written beside every result, so that it can be audited."""

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

from tenas import __version__
from tenas.code import code_digest
from tenas.files import sha256, sha256_of

PACKAGES = ("torch", "torchvision", "numpy", "pandas", "snakemake", "dvc", "nas-bench-201")


def package_versions() -> dict[str, str]:
    """Versions of the packages a result can depend on; one that is not installed is left out."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@cache
def processor(device: str = "cpu") -> str:
    """The kind of processor, or of GPU, that computes on ``device``: the last bits of a measurement follow from it."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() in ("model name", "cpu model"):
                return value.strip()
    return platform.processor() or platform.machine()


class Stopwatch:
    """Wall time since it was made, in seconds, and ``earlier`` seconds of other processes that worked on the same result."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.earlier = 0.0

    def seconds(self) -> float:
        return round(self.earlier + time.perf_counter() - self._start, 3)


def provenance(
    *,
    settings: Mapping,
    inputs: Iterable[str | os.PathLike] | Mapping[str, str],
    stopwatch: Stopwatch,
    device: str = "cpu",
    **more: object,
) -> dict:
    """A JSON-ready record: settings, code and package versions, machine and device, wall time and the hash of every input.

    ``inputs``: paths, or path -> hash of what was read, for files that may have been replaced since.
    """
    return {
        "settings": dict(settings),
        **more,
        "tenas": __version__,
        "code_sha256": code_digest(),
        "packages": package_versions(),
        "machine": {
            "host": platform.node(),
            "platform": platform.platform(),
            "processor": processor(device),
            "device": device,
        },
        "wall_seconds": stopwatch.seconds(),
        "inputs": dict(inputs) if isinstance(inputs, Mapping) else {str(path): sha256(path) for path in inputs},
    }


def sealed(record: Mapping) -> dict:
    """A record with its own hash as its last key, ``record_sha256``: for a file whose hash no other file holds."""
    return {**record, "record_sha256": sha256_of(json.dumps(record))}


def is_sealed(record: Mapping) -> bool:
    """Whether a record has its own hash, and it is the right one."""
    return dict(record) == sealed({key: value for key, value in record.items() if key != "record_sha256"})
