"""Provenance of a result, written next to it for audits."""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from tenas import __version__
from tenas.code import PACKAGE, code_digest
from tenas.errors import TenasError
from tenas.files import read_json, sha256, sha256_of
from tenas.machine import driver_version

# Key of a record's own hash.
SEALED = "record_sha256"
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "snakemake", "dvc", "nas-bench-201")


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that a result can depend on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def commit_of_code() -> dict[str, Any] | None:
    """The commit of the code, and whether tracked files differ from it; None outside of a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PACKAGE.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # The package may be installed in a folder of another repository.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != PACKAGE.parent.resolve():
            return None
        return {
            "sha1": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no", PACKAGE.name)),
        }
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def processor_model() -> str:
    """Model of the processor as named by Linux; on other systems its architecture."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def processor(device: str = "cpu", precision: str = "") -> dict[str, str]:
    """The kind of processor, on which the last digits of numbers depend (docs/measures.md): its model, under ``processor``.

    If torch is loaded, also the ``instructions`` that it uses (AVX2, AVX512, ...) and, for ``cuda``, the ``gpu``, its
    ``capability``, the ``precision`` of its float32, and the versions of ``cuda``, ``cudnn`` and the ``driver``.
    """
    found = {"processor": processor_model()}
    if torch := sys.modules.get("torch"):
        found["instructions"] = torch.backends.cpu.get_cpu_capability()
        if device == "cuda":
            found |= {
                "gpu": torch.cuda.get_device_name(),
                "capability": ".".join(map(str, torch.cuda.get_device_capability())),
                "precision": precision,
                "cuda": str(torch.version.cuda),
                "cudnn": str(torch.backends.cudnn.version()),
                "driver": str(driver_version()),
            }
    return found


def kind_of_device(machine: Mapping[str, Any]) -> str:
    """Kind of device on which values depend beyond their last bits: the CPU, or a GPU with its precision.

    ``machine``: of the record; early ones name less of a GPU. The driver is left out: a cluster gets a new one at any time.
    """
    if machine.get("device") != "cuda":
        return "a CPU"
    parts = {"capability": "compute capability", "precision": "", "cuda": "CUDA", "cudnn": "cuDNN"}
    known = ", ".join(f"{what} {machine[key]}".strip() for key, what in parts.items() if machine.get(key))
    return f"a GPU {machine.get('gpu', 'without a name')}" + (f" ({known})" if known else "")


def check_one_kind(machines: Mapping[str, object], what: str) -> None:
    """Raise TenasError for results that are to be compared and come from different kinds of devices.

    Paired values of a CPU and a GPU, or of two GPUs, differ by more than what is measured. ``machines``: the entries of records,
    by the name of the result; those without a machine are skipped. ``what``: what is compared, in the plural.
    """
    found: dict[str, str] = {}
    for name, machine in machines.items():
        if isinstance(machine, Mapping):
            found.setdefault(kind_of_device(machine), name)
    if len(found) > 1:
        (first, one), (second, other) = list(found.items())[:2]
        raise TenasError(
            f"The {what} are of different kinds of devices and cannot be compared: {one} is of {first}, {other} of {second}. "
            "Remove those of one kind, and make them again on the other ('device')."
        )


def check_alike(origins: Mapping[str, Mapping[str, object]], what: str) -> None:
    """Raise TenasError for results that are to be compared and were not made with the same code, settings or files.

    ``origins``: of each result by its path, what it was made with, by what that is; None where a record doesn't say. ``what``:
    what is compared, in the plural.
    """
    first: dict[str, tuple[str, object]] = {}
    for path, origin in origins.items():
        for key, value in origin.items():
            other, expected = first.setdefault(key, (path, value)) if value is not None else (path, value)
            if value != expected:
                raise TenasError(
                    f"The {what} were made with different {key}: {other} and {path}. Remove the one that is not wanted, with its "
                    "record, and make it again."
                )


def input_name(path: str | os.PathLike[str]) -> str:
    """Name of an input in a record: its path as given; for a file of the package, the path within it, the same everywhere."""
    path = Path(path)
    return (Path(PACKAGE.name) / path.relative_to(PACKAGE)).as_posix() if path.is_relative_to(PACKAGE) else str(path)


def input_path(name: str) -> Path:
    """The file with a name in a record: inverse of ``input_name``."""
    path = Path(name)
    # Not path.exists(), which raises for a damaged name that is too long for the system.
    return PACKAGE.parent / path if not os.path.exists(path) and path.parts[:1] == (PACKAGE.name,) else path


class Stopwatch:
    """Wall time since its creation, in seconds, plus ``earlier`` seconds of previous processes on the same result."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.earlier = 0.0

    def seconds(self) -> float:
        return round(self.earlier + time.perf_counter() - self._start, 3)


def provenance(
    *,
    settings: Mapping[str, Any],
    inputs: Iterable[str | os.PathLike[str]] | Mapping[str, str],
    stopwatch: Stopwatch,
    device: str = "cpu",
    precision: str = "",
    **more: object,
) -> dict[str, Any]:
    """A JSON-ready record: settings, code and package versions, machine and device, wall time and the hash of every input.

    ``inputs``: paths, or path -> hash of the content read, for files that may have been replaced since. ``precision``: of float32
    on a GPU.
    """
    return {
        "settings": dict(settings),
        **more,
        "tenas": __version__,
        "code_sha256": code_digest(),
        "packages": package_versions(),
        "machine": {"host": platform.node(), "platform": platform.platform(), "device": device, **processor(device, precision)},
        "wall_seconds": stopwatch.seconds(),
        "inputs": dict(inputs) if isinstance(inputs, Mapping) else {input_name(path): sha256(path) for path in inputs},
    }


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Add a record's own hash as its last key, ``record_sha256``: for a file whose hash no other file records."""
    return {**record, SEALED: sha256_of(json.dumps(record))}


def has_seal(record: Mapping[str, Any]) -> bool:
    """Whether a record has its own hash, correct or not. Records of earlier versions have none.

    One whose key was damaged counts too, or both: no other record ends in a hash, but for old ones of scores, or in a key that
    resembles it.
    """
    key, value = next(reversed(dict(record).items()), ("", None))
    text, digits = str(value), re.sub("[^0-9a-f]", "", str(value))
    ends_in_hash = len(text) >= 48 and len(digits) >= 0.9 * len(text)
    resembles = str(key).startswith("record_") or "sha" in str(key)
    return SEALED in record or (key != "scores_sha256" and (ends_in_hash or resembles))


def is_sealed(record: Mapping[str, Any]) -> bool:
    """Whether a record has its own hash, and it is correct."""
    return dict(record) == sealed({key: value for key, value in record.items() if key != SEALED})


def read_record(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """Read a record. Raises TenasError if it is missing or damaged, or has a hash of its own that is another one."""
    record = read_json(path, what)
    if is_edited(record):
        raise TenasError(f"The {what} {path} is not what was written: its own hash differs. Make it again.")
    return record


def is_edited(record: Mapping[str, Any]) -> bool:
    """Whether a record has its own hash, and it is another one. Records of earlier versions, without one, are not looked at."""
    return has_seal(record) and not is_sealed(record)
