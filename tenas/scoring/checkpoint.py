"""Checkpoint of an unfinished shard: a killed job loses only the measurements in progress.

A hidden file next to the scores, which no job declares as an output: Snakemake removes the outputs of a failed job, but not this
file. Its first line is the origin of the values; one line per measurement follows, with a checksum, appended as it is
taken.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import NamedTuple
from zlib import crc32

from tenas.files import clear_leftovers, write_text
from tenas.scoring.subjects import Measurement


def origin_of(facts: Mapping[str, object]) -> str:
    """Digest of all that the values of a shard depend on: SHA-256 of JSON-ready facts, in any order."""
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Result(NamedTuple):
    """A finished measurement: its value, and its cost in seconds."""

    measurement: Measurement
    value: float
    cost: float


def _line(result: Result, seconds: float, origin: str) -> str:
    (subject, measure, repeat), value, cost = result
    line = f"{subject},{measure},{repeat},{value},{cost:.6f},{seconds}"
    return f"{_checksum(line, origin)},{line}\n"


def _checksum(line: str, origin: str) -> str:
    return f"{crc32(f'{origin}{line}'.encode()):08x}"


def _parsed(line: str, origin: str) -> tuple[Result, float]:
    """Inverse of ``_line``. Counts stay integers, for equal bytes of the scores. Raises ValueError for a damaged line."""
    checksum, _, line = line.partition(",")
    if checksum != _checksum(line, origin):
        raise ValueError(f"not the line that was written: {line}")
    subject, measure, repeat, value, cost, seconds = line.split(",")
    number = int(value) if value.removeprefix("-").isdecimal() else float(value)
    return Result(Measurement(int(subject), measure, int(repeat)), number, float(cost)), float(seconds)


class Checkpoint:
    """The measurements of a shard so far: ``values``, ``costs``, and ``seconds`` of wall time over all jobs.

    A file of another ``origin`` is ignored and replaced; a damaged one is read up to the damage. Nothing is written before the
    first measurement.
    """

    def __init__(self, path: Path, origin: str) -> None:
        self.path, self.origin = path, origin
        self.values: dict[Measurement, float] = {}
        self.costs: dict[Measurement, float] = {}
        self.seconds = 0.0
        self._lines = [f"{origin}\n"]
        self._file: TextIOWrapper | None = None
        try:
            # Text after the last line end is a line cut off by a kill.
            first, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] or [""]
        except FileNotFoundError:
            return
        if first != origin:
            return
        for line in lines:
            try:
                result, seconds = _parsed(line, origin)
            except ValueError:
                break
            self._note(result)
            self.seconds = seconds
            self._lines.append(f"{line}\n")

    def _note(self, result: Result) -> None:
        self.values[result.measurement] = result.value
        self.costs[result.measurement] = result.cost

    def add(self, result: Result, seconds: float) -> None:
        """Append a measurement. ``seconds``: wall time of the shard so far. It survives the process, but not a power cut."""
        if self._file is None:
            write_text(self.path, "".join(self._lines))
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(_line(result, seconds, self.origin))
        self._file.flush()
        self._note(result)

    def remove(self) -> None:
        """Remove the file, once the scores are written."""
        self.path.unlink(missing_ok=True)
        clear_leftovers(self.path)

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
