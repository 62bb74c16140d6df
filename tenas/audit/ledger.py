"""Ledger of an audit: files read, their faults, the code and the machines that made them."""

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenas.errors import UNFIT, TenasError
from tenas.files import format_csv, json_text, read_json, sha256
from tenas.provenance import is_sealed

# Smaller differences are rounding: the last bits of logarithms and sums of products depend on the processor.
ROUNDING = 1e-9


class Ledger:
    """Files read, their hashes, and the faults found, by file."""

    def __init__(self) -> None:
        self.files: dict[Path, str | None] = {}  # with their SHA-256; None for one that is not there
        self.listed: dict[Path, str] = {}  # not there, but with a hash that an archive's list has
        self.by_list: set[Path] = set()  # those of them that were asked for
        self.faults: dict[Path, list[str]] = {}
        self.notes: list[str] = []
        self.codes: Counter[tuple[str, str]] = Counter()  # (kind of file, digest of another version's code) -> files
        self.processors: Counter[str] = Counter()
        self._like: dict[Path, list[Path]] = {}
        self._unlike: dict[Path, list[Path]] = {}
        self._certain: set[Path] = set()

    @property
    def count(self) -> int:
        """Number of files read."""
        return sum(digest is not None for digest in self.files.values())

    def fault(self, path: Path, what: str) -> None:
        """Record a fault. ``what`` completes a sentence that begins with the path."""
        if (what := what.rstrip(".")) not in (found := self.faults.setdefault(path, [])):
            found.append(what)

    def note(self, what: str) -> None:
        if what not in self.notes:
            self.notes.append(what)

    @contextmanager
    def damage(self, path: Path, what: str = "is damaged") -> Iterator[None]:
        """Turn errors in the block into a fault of the file whose content causes them."""
        try:
            yield
        except TenasError as error:
            self.fault(path, f"{what}: {error}")
        except UNFIT as error:
            self.fault(path, f"{what}: it holds something other than expected ({' '.join(str(error).split())})")

    def hash(self, path: Path) -> str | None:
        """SHA-256 of a file, from the archive's list if it was left out; None, and a fault, if it is missing."""
        if path in self.listed:
            self.by_list.add(path)
            return self.listed[path]
        if path not in self.files:
            try:
                self.files[path] = sha256(path)
            except OSError as error:
                self.files[path] = None
                self.fault(path, f"cannot be read ({error.strerror})")
        return self.files[path]

    def json(self, path: Path, what: str) -> dict[str, Any]:
        """Read a JSON file as written by a stage; empty, and a fault, if it is missing or damaged. Another layout is a fault."""
        if self.hash(path) is None:
            return {}
        try:
            value = read_json(path, what)
        except (TenasError, RecursionError) as error:
            self.fault(path, f"is damaged: {error}")
            return {}
        if path.read_text(encoding="utf-8") != json_text(value):
            self.fault(path, "is not laid out as it was written")
        return value

    def table(self, path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], otherwise: str) -> None:
        """Check that a CSV file has these rows, byte by byte; differences in the last digits are a note."""
        if self.hash(path) is None:
            return
        expected, found = format_csv(columns, rows), path.read_bytes()
        if found == expected.encode():
            self.certain(path)
            return
        if _equal_but_for_rounding(found.decode("utf-8", errors="replace"), expected):
            self.note(f"{path} has other last digits than its measurements give here, as another processor rounds.")
        else:
            self.fault(path, otherwise)

    def recorded(self, path: Path, digest: object, by: Path) -> None:
        """Note that ``by`` records ``digest`` as the hash of ``path``; judged by ``close``."""
        found = self.hash(path)
        if found is not None:
            (self._like if found == digest else self._unlike).setdefault(path, []).append(by)

    def certain(self, path: Path) -> None:
        """Mark a file as reproduced byte by byte: a record with another hash of it is wrong."""
        self._certain.add(path)

    def sealed(self, path: Path, record: Mapping[str, Any]) -> None:
        """Check the hash of a record over itself."""
        if not is_sealed(record):
            self.fault(path, "is not the record that was written: its own hash differs")

    def equal(self, path: Path, key: str, found: object, expected: object) -> None:
        """Check a value of a record."""
        if found != expected or type(found) is not type(expected):
            self.fault(path, f"has {_short(found)} for {key!r}, where {_short(expected)} belongs")

    def code(self, path: Path, kind: str, digest: object, present: str) -> None:
        """Note the code that made a file. Another version than the present one is no fault."""
        if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            self.fault(path, "does not record the code that made it")
        elif digest != present:
            self.codes[kind, digest] += 1

    def processor(self, machine: Mapping[str, Any]) -> None:
        """Count the kinds of processors (GPUs) in records of scores. Early records name none."""
        parts = ("gpu",) if machine.get("gpu") else ("processor", "instructions")
        named = ", ".join(str(machine[part]) for part in parts if machine.get(part))
        if named:
            self.processors[named] += 1

    def sound(self, path: Path) -> bool:
        """Whether a file has no fault so far."""
        return path not in self.faults and path not in self._unlike

    def close(self) -> None:
        """Turn differing hashes into faults; report other versions of code and kinds of processors in notes.

        A changed file disagrees with all of its records; a changed record with the file and with the other records. The majority
        is right, and a draw blames both. A file reproduced byte by byte is right.
        """
        for path, records in self._unlike.items():
            right = len(self._like.get(path, []))
            if path not in self._certain and right <= len(records):
                self.fault(path, f"is not the file whose SHA-256 is recorded in {listed(records)}")
            if path in self._certain or right >= len(records):
                for record in records:
                    self.fault(record, f"has another SHA-256 of {path} than that file has")
        self._unlike.clear()
        for (kind, digest), count in self.codes.items():
            files = f"{count} file{'s' if count > 1 else ''}"
            self.note(f"{files} of {kind} made by another version of the code ({digest[:12]}).")
        if len(self.processors) > 1:
            kinds = "; ".join(f"{name} ({count})" for name, count in sorted(self.processors.items()))
            self.note(f"The scores are of {len(self.processors)} kinds of processor, whose last bits may differ: {kinds}.")


def mapping(value: object) -> Mapping[str, Any]:
    """A part of a record as a mapping; empty if it is none."""
    return value if isinstance(value, Mapping) else {}


def listed(paths: Sequence[Path]) -> str:
    """The first three of some files, for a message."""
    return ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def alike(found: object, expected: object) -> bool:
    """Whether two JSON values are equal up to rounding. Keys of only one of two mappings are ignored."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        return all(alike(found[key], expected[key]) for key in found.keys() & expected.keys())
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(alike, found, expected))
    if isinstance(found, float) and isinstance(expected, float):
        return _close(found, expected)
    return found == expected and type(found) is type(expected)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _close(a: float, b: float) -> bool:
    return a == b or math.isclose(a, b, rel_tol=ROUNDING, abs_tol=ROUNDING) or (a != a and b != b)


def _equal_but_for_rounding(found: str, expected: str) -> bool:
    one, other = (list(csv.reader(text.splitlines())) for text in (found, expected))
    return (
        found.endswith("\n")
        and len(one) == len(other)
        and all(len(a) == len(b) and all(map(_fields_alike, a, b)) for a, b in zip(one, other, strict=True))
    )


def _fields_alike(a: str, b: str) -> bool:
    if a == b:
        return True
    # Whole numbers and texts are decisions.
    if not all("." in field or "e" in field for field in (a, b)):
        return False
    try:
        return _close(float(a), float(b))
    except ValueError:
        return False
