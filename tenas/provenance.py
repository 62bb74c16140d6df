"""What made a result: written beside every result, so that it can be audited."""

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping
from functools import cache
from hashlib import sha256 as _sha256
from importlib import metadata
from pathlib import Path

from tenas import __version__
from tenas.files import sha256, sha256_of

PACKAGE = Path(__file__).parent
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "snakemake", "dvc", "nas-bench-201")


@cache
def code_digest(*parts: str) -> str:
    """SHA-256 over the package's Python files and presets (or those below the given ``parts``), by name and content.

    Content, not time: a clone or a touched file has the same digest. The workflow passes it to every rule,
    because Snakemake does not look into the package itself.
    """
    roots = [PACKAGE / part for part in parts] or [PACKAGE]
    files = sorted(file for root in roots for file in ([root] if root.is_file() else root.rglob("*.py")))
    digest = _sha256()
    for file in files:
        digest.update(file.relative_to(PACKAGE).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of the packages a result can depend on; one that is not installed is left out."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def input_name(path: str | os.PathLike) -> str:
    """What a record calls an input: its path as given; a file of the package by its place there, which is the same everywhere."""
    path = Path(path)
    return (Path(PACKAGE.name) / path.relative_to(PACKAGE)).as_posix() if path.is_relative_to(PACKAGE) else str(path)


def input_path(name: str) -> Path:
    """The file that a record calls so (``input_name``)."""
    path = Path(name)
    return PACKAGE.parent / path if not path.exists() and path.parts[:1] == (PACKAGE.name,) else path


class Stopwatch:
    """Wall time since it was made, in seconds, and ``earlier`` seconds of other processes that worked on the same result."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.earlier = 0.0

    def seconds(self) -> float:
        return round(self.earlier + time.perf_counter() - self._start, 3)


def provenance(
    *, settings: Mapping, inputs: Iterable[str | os.PathLike], stopwatch: Stopwatch, device: str = "cpu", **more: object
) -> dict:
    """A JSON-ready record: settings, code and package versions, device, host, wall time and the hash of every input."""
    return {
        "settings": dict(settings),
        **more,
        "tenas": __version__,
        "code_sha256": code_digest(),
        "packages": package_versions(),
        "machine": {"host": platform.node(), "platform": platform.platform(), "device": device},
        "wall_seconds": stopwatch.seconds(),
        "inputs": {input_name(path): sha256(path) for path in inputs},
    }


def sealed(record: Mapping) -> dict:
    """A record with its own hash as its last key, ``record_sha256``: for a file whose hash no other file holds."""
    return {**record, "record_sha256": sha256_of(json.dumps(record))}
