"""What an audit keeps account of: the files that it has read, what is wrong with them, which code made them."""

import json
from collections.abc import Mapping
from pathlib import Path

from tenas.errors import TenasError
from tenas.files import json_text, read_json, sha256


class Ledger:
    """Files that were read, their hashes, and the faults that were found, each at the file that it is about."""

    def __init__(self) -> None:
        self.files: dict[Path, str | None] = {}  # with their SHA-256; None for one that is not there
        self.faults: dict[Path, list[str]] = {}
        self.notes: list[str] = []
        self.codes: dict[str, dict[str, int]] = {}  # kind of file -> digest of the code -> how many files
        self._unlike: dict[Path, list[Path]] = {}

    @property
    def count(self) -> int:
        """How many files were read."""
        return sum(digest is not None for digest in self.files.values())

    def fault(self, path: Path, what: str) -> None:
        """``what`` completes a sentence that starts with the path."""
        if what not in (found := self.faults.setdefault(path, [])):
            found.append(what)

    def hash(self, path: Path) -> str | None:
        """The SHA-256 of a file; None, and a fault, when it is not there."""
        if path not in self.files:
            try:
                self.files[path] = sha256(path)
            except OSError as error:
                self.files[path] = None
                self.fault(path, f"cannot be read ({error.strerror})")
        return self.files[path]

    def json(self, path: Path, what: str) -> dict:
        """A JSON file as a stage writes it; empty, and a fault, when it is missing, damaged or laid out by another hand."""
        if self.hash(path) is None:
            return {}
        try:
            value = read_json(path, what)
        except TenasError as error:
            self.fault(path, f"is damaged: {error}".rstrip("."))
            return {}
        if path.read_text(encoding="utf-8") != json_text(value):
            self.fault(path, "is not laid out as it was written")
        return value

    def recorded(self, path: Path, digest: object, by: Path) -> None:
        """``by`` has ``digest`` for the hash of ``path``."""
        found = self.hash(path)
        if found is not None and found != digest:
            self._unlike.setdefault(path, []).append(by)

    def equal(self, path: Path, key: str, found: object, expected: object) -> None:
        """A key of a record has the value that it must have."""
        if found != expected:
            self.fault(path, f"has {json.dumps(found)} for {key!r}, where {json.dumps(expected)} belongs")

    def code(self, path: Path, kind: str, digest: object) -> None:
        """The code that made a file. Another version than the present one is no fault."""
        if isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef"):
            counts = self.codes.setdefault(kind, {})
            counts[digest] = counts.get(digest, 0) + 1
        else:
            self.fault(path, "does not say by which code it was made")

    def sound(self, path: Path) -> bool:
        """Whether nothing was found against a file so far."""
        return path not in self.faults and path not in self._unlike

    def close(self) -> None:
        """Make faults of the hashes that differ, one a file: when it was changed, every record of it disagrees."""
        for path, records in self._unlike.items():
            names = ", ".join(str(record) for record in records[:3]) + (", ..." if len(records) > 3 else "")
            self.fault(path, f"is not the file whose SHA-256 is recorded in {names}")
        self._unlike.clear()


def mapping(value: object) -> Mapping:
    """A part of a record that has to be a mapping; an empty one where it isn't."""
    return value if isinstance(value, Mapping) else {}
