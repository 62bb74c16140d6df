"""State shared by the parts of an audit: settings, images, and the checks common to all records."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tenas import layout
from tenas.audit.ledger import Ledger, alike, listed, mapping
from tenas.benchmark.builtin import builtin_table, has_builtin, index_path
from tenas.data.prepared import channel_statistics
from tenas.data.sources import load
from tenas.files import is_intact, json_text, sha256
from tenas.provenance import has_seal, input_path
from tenas.search.made_by import input_name, ranking_code
from tenas.search.origins import images_in
from tenas.spaces import Space

# Sources that read files on demand.
FOLDERS = ("folder", "imagenet-1k")
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass
class Case:
    """A run or a study under audit. ``written``: its settings as in the file; ``settings``: the same with defaults filled in."""

    folder: Path
    settings_file: Path
    written: dict[str, Any]
    settings: dict[str, Any]
    space: Space
    data: Path | None
    table: Path | None
    ledger: Ledger = field(default_factory=Ledger)
    trail: list[str] = field(default_factory=list)
    _others: dict[str, list[Path]] = field(default_factory=dict)
    _same: int = 0

    # --- settings

    def same_settings(self, path: Path, recorded: object) -> None:
        """Check that the settings of a record are those of the run; faults are reported by ``close``."""
        # Records of an earlier version lack the keys that a later one fills in.
        if recorded in (self.settings, self.written):
            self._same += 1
        else:
            self._others.setdefault(json.dumps(recorded), []).append(path)

    def close(self) -> None:
        """Report which settings are the odd ones: those of single records, or the run's own."""
        if not self._same and len(self._others) == 1:
            ((_, paths),) = self._others.items()
            self.ledger.fault(self.settings_file, f"has other settings than those recorded in {listed(paths)}")
        else:
            for path in (path for paths in self._others.values() for path in paths):
                self.ledger.fault(path, f"was made with other settings than {self.settings_file} has")
        self.ledger.close()

    # --- records

    def decision(
        self,
        path: Path,
        what: str,
        stage: str,
        decided: Mapping[str, Any],
        inputs: Sequence[Path | None],
        otherwise: str,
        entry: Mapping[str, Any] = NOTHING,
    ) -> None:
        """Check that a JSON file is ``decided``, byte by byte, with a true provenance.

        ``inputs``: files in the order of their recorded hashes; None for one that cannot be checked. ``entry``: settings of the
        round, if the stage ranks by its measures.
        """
        value = self.ledger.json(path, what)
        if not value:
            return
        made_by = value.get("made_by")
        if json_text(value) != json_text({**decided, "made_by": made_by}):
            self.ledger.fault(path, otherwise)
        true = self.made_by(path, stage, mapping(made_by), inputs, entry)
        if true and self.ledger.sound(path):
            self.ledger.certain(path)

    def made_by(
        self,
        path: Path,
        stage: str,
        made_by: Mapping[str, Any],
        inputs: Sequence[Path | None],
        entry: Mapping[str, Any] = NOTHING,
    ) -> bool:
        """Check the provenance of a decision. Returns whether all of it was confirmed, and by the present code."""
        code = ranking_code(stage, self.settings, entry)
        self.same_settings(path, made_by.get("settings"))
        self.ledger.code(path, "decisions", made_by.get("code_sha256"), code)
        recorded = mapping(made_by.get("inputs"))
        named = [input_name(file) for file in inputs if file is not None]
        found = [name if name in named else name.rpartition("/")[2] for name in recorded]
        if None not in inputs:
            self.ledger.equal(path, "inputs", found, named)
        hashes = dict(zip(found, recorded.values(), strict=True))
        for file in inputs:
            if file is not None and input_name(file) in hashes:
                self.ledger.recorded(file, hashes[input_name(file)], path)
        return (
            made_by.get("settings") in (self.settings, self.written)
            and made_by.get("code_sha256") == code
            and all(file is not None and hashes.get(input_name(file)) == self.ledger.hash(file) for file in inputs)
        )

    def inputs(self, path: Path, recorded: object, places: Mapping[str, Path | None], *, exact: bool = False) -> None:
        """Check the recorded hashes of inputs, by their paths.

        ``places``: expected files by name; None for a missing one. Others are looked for where the record says. ``exact``: the
        recorded names must be exactly those of ``places``.
        """
        hashes = {str(name): digest for name, digest in mapping(recorded).items()}
        names = {Path(name).name for name in hashes}
        if exact and names != set(places):
            self.ledger.fault(path, f"names other inputs than {', '.join(sorted(places))}")
        for name, digest in hashes.items():
            place = places.get(Path(name).name, input_path(name))
            if place is not None and (Path(name).name in places or os.path.exists(place)):
                self.ledger.recorded(place, digest, path)
            elif Path(name).name not in places:
                self.ledger.note(f"{name}, which {path} was made from, is not here: its hash was not checked.")

    def result(self, path: Path, what: str, arch: str | None, kind: str, code: str) -> dict[str, Any]:
        """Check a sealed record of a result of a genotype, and the files next to it whose hashes it has.

        ``kind``: of files, for a note on results of another version of the code than ``code``.
        """
        value = self.ledger.json(path, what)
        if not value:
            return {}
        self.ledger.equal(path, "arch", value.get("arch"), arch)
        self.ledger.sealed(path, value)
        if arch is not None:
            self.ledger.code(path, kind, mapping(value.get("provenance")).get("code"), code)
        for name, digest in mapping(value.get("files")).items():
            self.ledger.recorded(path.parent / Path(str(name)).name, digest, path)
        return value

    def checkpoint(self, training: Path) -> None:
        """Check the checkpoint in the folder of a training, if there is one: a training may be resumed from it."""
        path = training / layout.CHECKPOINT
        if path.exists() and self.ledger.hash(path) is not None and not is_intact(path):
            self.ledger.fault(path, "is not the checkpoint that was written: its own hash differs")

    # --- tables

    def find_table(self, digest: object, named: Iterable[str | Path] = ()) -> Path | None:
        """Find the table with the recorded hash: the given one, one that records name, or the built-in one."""
        places = [] if self.table is None else [index_path(self.table, self.space)]
        places += [input_path(str(name)) for name in named]
        places += [builtin_table(self.space)] if has_builtin(self.space) else []
        for place in places:
            if os.path.isfile(place) and sha256(place) == digest:
                self.ledger.hash(place)
                return place
        return None

    # --- images

    def prepared(self, name: str) -> Path | None:
        """A file of the prepared images; None if their folder is unknown."""
        return None if self.data is None else self.data / name

    def images(self, records: Iterable[Path]) -> None:
        """Check the images against their card. ``records``: of scores, which name their folder."""
        if self.data is None:
            self.data = self._recorded_data(records)
        if self.data is None:
            return
        card_file = self.data / layout.CARD
        if not card_file.exists():
            self.ledger.note(f"The images of the run are not in {self.data}: if they were moved, name their folder with --data.")
        card = self.ledger.json(card_file, "data card")
        self.ledger.recorded(self.data / layout.IMAGES, card.get("sha256"), card_file)
        if "labels_sha256" in card:
            self.ledger.recorded(self.data / layout.LABELS, card["labels_sha256"], card_file)
        self._card(card_file, card)
        for name, digest in mapping(mapping(card.get("provenance")).get("inputs")).items():
            if os.path.exists(place := input_path(str(name))):
                self.ledger.recorded(place, digest, card_file)
            else:
                self.ledger.note(f"{name}, which the images were drawn from, is not here: its hash was not checked.")
        self._folder(card_file, card)
        self.trail.append(f"images {self.data}: {card.get('images')} of {card.get('source')}, SHA-256 {card.get('sha256')}")

    def _folder(self, path: Path, card: Mapping[str, Any]) -> None:
        """Check that the images of a folder, which have no hash each, are those of the card's digests."""
        entry = mapping(mapping(card.get("provenance")).get("settings"))
        if entry.get("source") not in FOLDERS or "parts_sha256" not in card:
            return
        if not os.path.isdir(place := str(entry.get("path"))):
            self.ledger.note(f"{place}, which the images were drawn from, is not here: it was not checked.")
            return
        with self.ledger.damage(Path(place), "has images that cannot be read"):
            if load(entry)[0].digests() != card["parts_sha256"]:
                self.ledger.fault(Path(place), f"has other images than those that {path} was drawn from")

    def _card(self, path: Path, card: Mapping[str, Any]) -> None:
        """Check what the images are normalised by, and the number of classes, which have no file of their own."""
        if has_seal(card):
            self.ledger.sealed(path, card)
        images = path.with_name(layout.IMAGES)
        if not os.path.exists(images) or not self.ledger.sound(images):
            return
        with self.ledger.damage(images):
            constants = channel_statistics(np.load(images, mmap_mode="r", allow_pickle=False))
            for key, value in zip(("mean", "std"), constants, strict=True):
                if not alike(card.get(key), value):
                    self.ledger.equal(path, key, card.get(key), value)

    def _recorded_data(self, records: Iterable[Path]) -> Path | None:
        """The folder of the images: the run's own, which moves with it, or that of a record."""
        if (own := self.folder / "data").joinpath(layout.CARD).exists():
            return own
        for record in records:
            if (images := images_in(self.ledger.json(record, "record of scores"))) is not None:
                return images[0].parent
        return None
