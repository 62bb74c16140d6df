"""Subjects of measurements: a supernet without one of its operators or edges, or a discrete cell. No torch."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from tenas.errors import TenasError
from tenas.files import WHOLE, read_table
from tenas.measures.catalogue import get_measure
from tenas.spaces.base import Genotype, Mask, Round, Space, Trial


class Measurement(NamedTuple):
    """A planned measurement of a subject, by number, in a repeat."""

    subject: int
    measure: str
    repeat: int


@dataclass(frozen=True)
class Trials:
    """Trials of a round: subject 0 is the whole supernet, subject t > 0 the supernet without the t-th trial.

    ``own_images``: each trial draws its own inputs, on which the whole supernet is measured too: with n trials, subject n + t is
    the whole supernet on the inputs of trial t, and there is no subject 0. As in the authors' code.
    ``own_weights``: measures for which each trial also draws its own weights.
    """

    mask: Mask
    round: Round
    own_images: bool = False
    own_weights: tuple[str, ...] = ()
    columns: ClassVar = ("round", "trial", "cell", "edge", "target", "source", "operator")

    @property
    def space(self) -> Space:
        return self.mask.space

    @cached_property
    def tried(self) -> tuple[Trial, ...]:
        """The operators or edges that the round tries to remove."""
        return self.space.trials(self.mask, self.round)

    @cached_property
    def trials(self) -> tuple[Trial | None, ...]:
        """The trial of each subject; None for the whole network."""
        return (None, *self.tried, *([None] * len(self.tried) if self.own_images else []))

    @property
    def ids(self) -> Sequence[int]:
        return range(1, 2 * len(self.tried) + 1) if self.own_images else range(len(self.tried) + 1)

    def whole(self, trial: int) -> int:
        """The subject that a trial is compared with: the whole network on the same inputs."""
        return len(self.tried) + trial if self.own_images else 0

    def drawn_by(self, subject: int) -> tuple[int, ...]:
        """The trial whose own inputs a subject has; empty if all have the same."""
        return ((subject - 1) % len(self.tried) + 1,) if self.own_images else ()

    def keys(self, subject: int) -> dict[str, Any]:
        """Columns that identify a subject; empty for the whole network, except for its number and round."""
        trial, space = self.trials[subject], self.space
        keys: dict[str, Any] = {"round": self.round.number, "trial": subject}
        if trial is None:
            return keys | dict.fromkeys(("cell", "edge", "target", "source", "operator"), "")
        target, source = space.edges[trial.edge]
        return keys | {
            "cell": trial.cell, "edge": trial.edge, "target": target, "source": source, "operator": trial.operator
        }  # fmt: skip

    def masked(self, subject: int) -> Mask:
        """The supernet's mask of a subject."""
        trial = self.trials[subject]
        return self.mask if trial is None else self.mask.without([trial])


class Cell(NamedTuple):
    """A discrete cell: its number, and the space's text."""

    number: int
    arch: str


@dataclass(frozen=True)
class Cells:
    """Discrete cells; a subject is the number of one."""

    space: Space
    cells: tuple[Cell, ...]
    columns: ClassVar = ("cell", "arch")

    @cached_property
    def archs(self) -> dict[int, str]:
        return {cell.number: cell.arch for cell in self.cells}

    @property
    def ids(self) -> Sequence[int]:
        return [cell.number for cell in self.cells]

    def keys(self, subject: int) -> dict[str, Any]:
        return {"cell": subject, "arch": self.archs[subject]}

    def genotype(self, subject: int) -> Genotype:
        return self.space.parse(self.archs[subject])


Subjects = Trials | Cells


def trials_of(mask: Mask, round: Round, entry: Mapping[str, Any]) -> Trials:
    """The subjects of a round that prunes; ``entry``: its settings."""
    return Trials(mask, round, entry.get("images") == "own", tuple(entry.get("own_weights", ())))


def read_subjects(path: str | os.PathLike[str], space: Space, round: Round, entry: Mapping[str, Any]) -> Subjects:
    """The subjects of a round: cells of a sample.csv, or trials on a mask.json. ``entry``: the round's settings."""
    return read_cells(path, space) if round.stage == "cells" else trials_of(space.read_mask(path), round, entry)


def plan(measures: Mapping[str, Any], subjects: Sequence[int], shard: tuple[int, int] = (1, 1)) -> list[Measurement]:
    """Plan the measurements of shard i of S, ``shard = (i, S)``: those of every S-th subject.

    ``measures``: name or reference -> settings. Ordered by measure and repeat, so that subjects with the same weights and images
    follow each other. Raises TenasError for a number of a shard out of range.
    """
    index, shards = shard
    if not 1 <= index <= shards:
        raise TenasError(f"There is no shard {index} of {shards}; shards are numbered from 1.")
    return [
        Measurement(subject, get_measure(reference).name, repeat)
        for reference, settings in measures.items()
        for repeat in range(settings["repeats"])
        for subject in subjects[index - 1 :: shards]
    ]


def read_cells(path: str | os.PathLike[str], space: Space) -> Cells:
    """Read the cells of a CSV file with the columns ``cell`` (a number) and ``arch``.

    Raises TenasError for a damaged file, an invalid text of a cell, and a cell listed twice.
    """
    cells = []
    for line, row in enumerate(read_table(path, ("cell", "arch"), "cells file"), start=2):
        if not WHOLE.fullmatch(row["cell"]):
            raise TenasError(f"The cells file {path}, line {line}, has {row['cell']!r} instead of a number.")
        try:
            space.parse(row["arch"])
        except TenasError as error:
            raise TenasError(f"The cells file {path}, line {line}: {error}") from error
        cells.append(Cell(int(row["cell"]), row["arch"]))
    if len({cell.number for cell in cells}) < len(cells):
        raise TenasError(f"The cells file {path} lists a cell twice.")
    return Cells(space, tuple(cells))
