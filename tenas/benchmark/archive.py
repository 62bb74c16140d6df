"""Convert the official files of NAS-Bench-201, in either of their forms, to one small Parquet file.

Both forms hold the same records, one per (cell, epochs, data set, seed), as the package nas-bench-201 defines them. They are
pickles, which can run any code when they are opened. So only the types of the format can be built (``PLAIN``).
"""

import hashlib
import io
import json
import math
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from tenas.benchmark.reading import METADATA, unpacked
from tenas.errors import UNFIT, TenasError
from tenas.files import sha256, whole
from tenas.provenance import Stopwatch, provenance
from tenas.spaces import get_space

if TYPE_CHECKING:
    import numpy as np

# Names of the archive -> ours: training sets, and the parts that their networks are evaluated on. `cifar10-valid` is half of
# CIFAR-10's training set, the other half being `x-valid`. `ori-test` is a data set's own test set; of CIFAR-100 and
# ImageNet16-120 it is halved into `x-valid` and `x-test`. `train` is the training set itself.
ACCURACIES = {
    "cifar10-valid": {"train": "cifar10_halftrain", "x-valid": "cifar10_valid", "ori-test": "cifar10_halftest"},
    "cifar10": {"train": "cifar10_train", "ori-test": "cifar10_test"},
    "cifar100": {
        "train": "cifar100_train", "x-valid": "cifar100_valid", "x-test": "cifar100_test", "ori-test": "cifar100_valtest",
    },
    "ImageNet16-120": {
        "train": "imagenet16_train", "x-valid": "imagenet16_valid", "x-test": "imagenet16_test", "ori-test": "imagenet16_valtest",
    },
}  # fmt: skip
COSTS = {"cifar10": "cifar10", "cifar100": "cifar100", "ImageNet16-120": "imagenet16"}
EPOCHS = (12, 200)
SUFFIX = ".pickle.pbz2"
# The last digits of the MD5 of the file, by which its authors name it.
PTH_NAME = "NAS-Bench-201-v1_1-096897.pth"
PTH_MD5 = "096897"


class Archive(NamedTuple):
    """Opened official files. ``records`` yields {epochs: state} for each of ``archs``, once.

    A state is that of an ``ArchResults`` of the package nas-bench-201, plain data: all trainings of a cell with so many epochs.
    ``checksum``: SHA-256 of what has been read; call it after all records.
    """

    path: Path
    archs: tuple[str, ...]
    records: Iterator[dict[int, dict[str, Any]]]
    checksum: Callable[[], str]


# Types of NumPy's scalars that the pickles hold, as NumPy names them in pickles.
KINDS = ("f8", "f4", "i8", "i4", "b1")


class _Kind:
    """Replacement of ``numpy.dtype`` in pickles: NumPy's own builds any type, including objects, and crashes on some."""

    def __init__(self, name: object = "", *rest: object) -> None:
        if name not in KINDS:
            raise pickle.UnpicklingError(f"it has a NumPy type {name!r}, which is no type of plain numbers")
        self.name, self.order = str(name), "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # (version, byte order, ...); the rest is for types with fields.
        if len(state) < 5 or state[1] not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("it has a NumPy type that is no type of plain numbers")
        self.order = state[1]


def _scalar(kind: object, data: object = None, *rest: object) -> object:
    """A scalar of NumPy from its bytes, as ``numpy.core.multiarray.scalar`` makes it."""
    import numpy as np

    if not isinstance(kind, _Kind) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("it has a NumPy scalar that is no plain number")
    dtype = np.dtype(f"{kind.order}{kind.name}")
    if len(data) != dtype.itemsize:
        raise pickle.UnpicklingError(f"it has a NumPy scalar of {len(data)} bytes for a type of {dtype.itemsize}")
    return np.frombuffer(data, dtype)[0].astype(kind.name)


def _encode(text: object, encoding: object = "utf-8", *rest: object) -> bytes:
    """Bytes, as pickles before protocol 3 hold them."""
    if not isinstance(text, str) or encoding not in ("latin1", "utf-8", "ascii"):
        raise pickle.UnpicklingError(f"it encodes something as {encoding!r}")
    return text.encode(str(encoding))


# Objects that the pickles may name: sets, ordered dictionaries and NumPy's scalars, by their old and new names.
PLAIN: dict[str, Callable[..., object]] = {
    "builtins.set": set,
    "__builtin__.set": set,
    "_codecs.encode": _encode,
    "collections.OrderedDict": OrderedDict,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.dtype": _Kind,
}
FULL = "a full archive also has the trained weights: use the one whose name ends in -simple"


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler that builds only plain data: dictionaries, lists, sets, texts, numbers."""

    def find_class(self, module: str, name: str) -> object:
        found = PLAIN.get(f"{module}.{name}")
        if found is None:
            hint = f"; {FULL}" if module.partition(".")[0] == "torch" else ""
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no plain data{hint}")
        return found


# Variables that override torch.load's weights_only, or make it fail.
FORCED = ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD")


@contextmanager
def _nothing_forced() -> Iterator[None]:
    """Remove these variables from the environment within the block."""
    before = {name: os.environ.pop(name) for name in FORCED if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _reason(error: Exception) -> str:
    """Message of an unpickler on one line; of several lines of torch, the last one has the cause."""
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    lines = str(error).strip().splitlines()
    return " ".join(lines[-1].split()).rstrip(".") if lines else type(error).__name__


def _folder(path: Path) -> Archive:
    digests: dict[str, str] = {}

    def load(name: str) -> dict[str, Any]:
        try:
            compressed = (path / name).read_bytes()
            digests[name] = hashlib.sha256(compressed).hexdigest()
            # Read to the end before parsing, as the checksum is at the end.
            found = _PlainUnpickler(io.BytesIO(unpacked(compressed))).load()
        except FileNotFoundError as error:
            raise TenasError(f"The archive {path} is incomplete: it has no {name}.") from error
        # On bytes that are not a pickle, an unpickler raises almost any exception.
        except Exception as error:
            raise TenasError(f"The archive's file {path / name} cannot be read: {_reason(error)}.") from error
        if not isinstance(found, dict):
            raise TenasError(f"The archive's file {path / name} holds something other than a dictionary.")
        return found

    def records() -> Iterator[dict[int, dict[str, Any]]]:
        for number in range(len(archs)):
            found = load(f"{number:06d}{SUFFIX}")
            yield {epochs: found[str(epochs)] for epochs in EPOCHS if str(epochs) in found}

    def checksum() -> str:
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    archs = _checked(load(f"meta{SUFFIX}").get("meta_archs"), path)
    return Archive(path, archs, records(), checksum)


def _pth(path: Path) -> Archive:
    import torch
    from nas_201_api import NASBench201API

    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    if path.name == PTH_NAME and not md5.endswith(PTH_MD5):
        raise TenasError(f"The file {path} is damaged: its MD5 {md5} doesn't end in {PTH_MD5}, as its name says.")
    digest = sha256(path)
    try:
        # The package calls torch.load with its defaults: weights_only=True, unless a variable overrides it.
        plain: list[Callable[..., object] | tuple[Callable[..., object], str]] = [(value, name) for name, value in PLAIN.items()]
        with _nothing_forced(), torch.serialization.safe_globals(plain):
            api = NASBench201API(path, verbose=False)
    except Exception as error:
        raise TenasError(f"The file {path} cannot be read as NAS-Bench-201: {_reason(error)}.") from error
    archs = _checked(api.meta_archs, path)

    def records() -> Iterator[dict[int, dict[str, Any]]]:
        for number in range(len(archs)):
            try:
                found = api.arch2infos_dict.pop(number)
            except KeyError as error:
                raise TenasError(f"The file {path} is incomplete: it has no record of the cell {number}.") from error
            yield {epochs: found[str(epochs)].state_dict() for epochs in EPOCHS}

    return Archive(path, archs, records(), lambda: digest)


def _checked(archs: object, path: Path) -> tuple[str, ...]:
    """The texts of an archive's cells, checked: each is valid, and none is repeated."""
    if not isinstance(archs, list | tuple) or not archs or not all(isinstance(arch, str) for arch in archs):
        raise TenasError(f"The archive {path} does not list its cells: it has another format.")
    space = get_space("nas-bench-201")
    if len({space.parse(arch).arch for arch in archs}) < len(archs):
        raise TenasError(f"The archive {path} lists a cell twice.")
    return tuple(archs)


def open_archive(path: str | os.PathLike[str]) -> Archive:
    """Open the folder ``NATS-tss-v1_0-3ffb9-simple`` or the file ``NAS-Bench-201-v1_1-096897.pth``.

    The folder is read cell by cell. The file must be loaded as a whole, which takes minutes and up to 28 GB of memory.
    Raises TenasError for anything else, and for files that are damaged, incomplete, or contain more than data.
    """
    path = Path(path)
    if any(name in path.name for name in ("NATS-sss", "-full")):
        raise TenasError(f"{path} is not the supported archive, NATS-tss-v1_0-3ffb9-simple: {FULL}.")
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".pth" and path.is_file():
        return _pth(path)
    if path.is_file() and path.suffix in (".tar", ".zip", ".tgz", ".gz"):
        raise TenasError(f"{path} is packed: unpack it, and name the folder with meta{SUFFIX}.")
    raise TenasError(
        f"{path} is neither a folder with meta{SUFFIX}, as NATS-tss-v1_0-3ffb9-simple, nor an existing "
        f".pth file, such as {PTH_NAME}."
    )


def _values(states: dict[int, dict[str, Any]]) -> dict[str, float]:
    """The columns of one cell, from its states {epochs: state}.

    Accuracies in % after the last epoch: ``<name>_e<epochs>``, the mean over the seeds, and ``<name>_e<epochs>_seed<seed>``.
    ``params_*`` and ``flops_*``: counts. ``*_seconds_e<epochs>``: training time, the mean over the seeds that report it.
    """
    values: dict[str, float] = {}
    for epochs, state in states.items():
        for trained_on, parts in ACCURACIES.items():
            trials = {seed: state["all_results"][trained_on, seed] for seed in state["dataset_seed"].get(trained_on, ())}
            for part, name in parts.items():
                found = {}
                for seed, trial in trials.items():
                    if trial["epochs"] != epochs:
                        raise ValueError(f"a training of {trial['epochs']} epochs is among those of {epochs}")
                    if part == "train":
                        found[seed] = float(trial["train_acc1es"][epochs - 1])
                    # Not every training was evaluated on every part.
                    elif part in trial["eval_names"]:
                        found[seed] = float(trial["eval_acc1es"][f"{part}@{epochs - 1}"])
                values |= {f"{name}_e{epochs}_seed{seed}": accuracy for seed, accuracy in found.items()}
                if found:
                    values[f"{name}_e{epochs}"] = fmean(found.values())
            seconds = [sum(trial["train_times"].values()) for trial in trials.values() if trial["train_times"] is not None]
            if seconds:
                values[f"{parts['train']}_seconds_e{epochs}"] = fmean(seconds)
            if trained_on in COSTS:
                for trial in trials.values():
                    # In millions in the archive; the counts are integers.
                    values[f"params_{COSTS[trained_on]}"] = round(trial["params"] * 1e6)
                    values[f"flops_{COSTS[trained_on]}"] = round(trial["flop"] * 1e6)
    return values


def gather(archive: Archive, progress: Callable[[int], object] = lambda cells: None) -> dict[str, "np.ndarray"]:
    """All cells of an archive as columns, NaN for missing values; ``progress`` is called with 1 after each cell.

    Raises TenasError if a record is of another cell than that of its position, or has another format.
    """
    import numpy as np

    columns: dict[str, np.ndarray] = {}
    for number, (arch, states) in enumerate(zip(archive.archs, archive.records, strict=True)):
        try:
            if set(states) != set(EPOCHS):
                raise ValueError(f"it has no trainings of {' or '.join(str(e) for e in EPOCHS if e not in states)} epochs")
            for state in states.values():
                if (state["arch_index"], state["arch_str"]) != (number, arch):
                    raise ValueError(f"it is of the cell {state['arch_index']}, {state['arch_str']}")
            values = _values(states)
            if not all(math.isfinite(value) for value in values.values()):
                raise ValueError("it has a value that is no number")
        except KeyError as error:
            raise TenasError(f"The record of the cell {number} in {archive.path} is faulty: it has no {error}.") from error
        except UNFIT as error:
            raise TenasError(f"The record of the cell {number} in {archive.path} is faulty: {error}.") from error
        for name, value in values.items():
            if name not in columns:
                columns[name] = np.full(len(archive.archs), np.nan)
            columns[name][number] = value
        progress(1)
    return columns


def _in_order(name: str) -> tuple[bool, bool, bool, bool, list[int | str]]:
    """Means before single seeds, 200 epochs before 12, costs last."""
    stem, _, epochs = name.partition("_e")
    # CIFAR-10 before CIFAR-100.
    natural: list[int | str] = [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
    return name.startswith(("params", "flops")), stem.endswith("seconds"), "seed" in epochs, not epochs.startswith("200"), natural


def import_archive(
    archive: Archive, out: str | os.PathLike[str], progress: Callable[[int], object] = lambda cells: None
) -> dict[str, Any]:
    """Write an archive as one Parquet file, one row per cell (columns: docs/benchmark.md), and return its record.

    The record (source, its checksum, code and packages) is also stored in the file, as JSON under the metadata key ``tenas``.
    """
    import pyarrow as pa
    from pyarrow import parquet

    stopwatch = Stopwatch()
    columns = gather(archive, progress)
    if not columns:
        raise TenasError(f"The archive {archive.path} has no results.")
    arrays = {
        "index": pa.array(range(len(archive.archs)), pa.int32()),
        "arch": pa.array([get_space("nas-bench-201").parse(arch).arch for arch in archive.archs]),
    }
    for name in sorted(columns, key=_in_order):
        array = pa.array(columns[name], from_pandas=True)
        arrays[name] = array.cast(pa.int64()) if name.startswith(("params", "flops")) else array
    source = {"name": archive.path.name, "sha256": archive.checksum(), "cells": len(archive.archs)}
    record = provenance(settings={}, inputs=[], stopwatch=stopwatch, source=source)
    table = pa.table(arrays).replace_schema_metadata({METADATA: json.dumps(record)})
    with whole(out) as temporary:
        parquet.write_table(table, temporary, compression="zstd", write_page_checksum=True)
    return record
