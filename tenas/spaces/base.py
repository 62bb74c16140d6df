"""What every search space is made of. Plain data: nothing here imports torch."""

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from tenas.errors import TenasError, one_of
from tenas.files import read_json


class WrongFormError(TenasError):
    """A text that isn't of the form in which a space writes its genotypes: it may be of another space."""


class Edge(NamedTuple):
    """An edge of a cell: node ``target`` reads node ``source``."""

    target: int
    source: int


class Choice(NamedTuple):
    """An edge of a found cell with the operator that is left on it."""

    target: int
    source: int
    operator: str


class Trial(NamedTuple):
    """One operator of one edge, to be taken away from a mask."""

    cell: str
    edge: int
    operator: str


class Round(NamedTuple):
    """A round of a search: how many trials it has, and what they compete within.

    In a round of ``operators`` the trials of an edge compete and ``prune`` of them go, never the last one. In a round
    of ``edges`` the incoming edges of a node compete and all but the two best go, which is at least ``prune`` (DARTS;
    TE-NAS's released code, last stage).
    """

    number: int
    stage: str
    prune: int
    trials: int


@dataclass(frozen=True)
class Mask:
    """Which operators are active: ``active[cell type][edge][operator]``, booleans."""

    space: "Space"
    active: tuple[tuple[tuple[bool, ...], ...], ...]

    def __post_init__(self) -> None:
        space = self.space
        shape_is_right = len(self.active) == len(space.cell_types) and all(
            len(cell) == len(space.edges) and all(len(edge) == len(space.operators) for edge in cell) for cell in self.active
        )
        if not shape_is_right:
            raise TenasError(
                f"A mask of {space.name} needs {len(space.cell_types)} x {len(space.edges)} x {len(space.operators)} booleans "
                "(cell types x edges x operators)."
            )
        space.check(self)

    def operators(self, cell: str, edge: int) -> tuple[str, ...]:
        """The active operators of an edge, in the space's order."""
        row = self.active[self.space.cell_types.index(cell)][edge]
        return tuple(operator for operator, on in zip(self.space.operators, row, strict=True) if on)

    def without(self, trials: Iterable[Trial]) -> "Mask":
        """This mask with the operators of ``trials`` taken away."""
        active = [[list(row) for row in cell] for cell in self.active]
        for cell, edge, operator in trials:
            active[self.space.cell_types.index(cell)][edge][self.space.operators.index(operator)] = False
        return Mask(self.space, tuple(tuple(tuple(row) for row in cell) for cell in active))

    def to_json(self) -> dict:
        return {
            "space": self.space.name,
            "operators": list(self.space.operators),
            "edges": [f"{edge.target}<-{edge.source}" for edge in self.space.edges],
            "active": {cell: [list(row) for row in rows] for cell, rows in zip(self.space.cell_types, self.active, strict=True)},
        }


@dataclass(frozen=True)
class Genotype:
    """A found architecture: for each cell type of its space, the chosen edges with their operators, by target then source."""

    space: "Space"
    cells: tuple[tuple[Choice, ...], ...]

    @property
    def arch(self) -> str:
        """The text that is customary in the genotype's space; ``space.parse`` is its inverse."""
        return self.space.text(self)

    def to_json(self) -> dict:
        return {
            "space": self.space.name,
            "arch": self.arch,
            "cells": {
                cell: [choice._asdict() for choice in choices]
                for cell, choices in zip(self.space.cell_types, self.cells, strict=True)
            },
        }


class Space(ABC):
    """A search space: cells whose edges each choose one of the same operators.

    Nodes are numbered with the cell's inputs first. ``edges`` are in the order in which masks, files and genotypes list
    them. ``output`` are the nodes whose concatenation is the cell's output; by default that is the last node. ``size`` is the
    number of genotypes of a space that a table can list whole, None of a larger one.
    """

    name: ClassVar[str]
    operators: ClassVar[tuple[str, ...]]
    cell_types: ClassVar[tuple[str, ...]]
    inputs: ClassVar[int]
    nodes: ClassVar[int]
    edges: ClassVar[tuple[Edge, ...]]
    output: ClassVar[tuple[int, ...]] = ()
    size: ClassVar[int | None] = None

    @abstractmethod
    def parse(self, text: str) -> Genotype:
        """The genotype of a text in the space's customary form. Raises TenasError when the text isn't one."""

    @abstractmethod
    def text(self, genotype: Genotype) -> str:
        """The customary text of a genotype of this space."""

    def canonical_form(self, genotype: Genotype) -> str | None:
        """A text that two genotypes share exactly when they are the same network; None where a space doesn't know."""
        return None

    def check(self, mask: Mask) -> None:
        """Raise TenasError when a network cannot be built from the mask: here, when an edge has no operator left."""
        for cell, rows in zip(self.cell_types, mask.active, strict=True):
            for edge, row in zip(self.edges, rows, strict=True):
                if not any(row):
                    raise TenasError(
                        f"The mask leaves no operator on edge {edge.target}<-{edge.source} of the {self.name} cell type {cell!r}."
                    )

    def full_mask(self, exclude: Sequence[str] = ()) -> Mask:
        """The supernet that a search starts from: every operator on every edge, but those in ``exclude``."""
        for operator in exclude:
            if operator not in self.operators:
                raise one_of(f"operator of {self.name}", operator, self.operators)
        row = tuple(operator not in exclude for operator in self.operators)
        return Mask(self, tuple(tuple(row for _ in self.edges) for _ in self.cell_types))

    def rounds(self, exclude: Sequence[str] = (), prune: int = 1) -> tuple[Round, ...]:
        """The schedule of a search, known beforehand: every edge has the same number of operators in a round."""
        left = len(self.operators) - len(set(exclude))
        rounds = []
        while left > 1:
            trials = len(self.cell_types) * len(self.edges) * left
            rounds.append(Round(len(rounds) + 1, "operators", min(prune, left - 1), trials))
            left -= rounds[-1].prune
        return tuple(rounds)

    def candidates(self, mask: Mask, round: Round) -> Iterator[Trial]:
        """What a round tries to take away from a mask, by cell type, edge and operator."""
        return (
            Trial(cell, edge, operator)
            for cell in self.cell_types
            for edge in range(len(self.edges))
            for operator in mask.operators(cell, edge)
        )

    def trials(self, mask: Mask, round: Round) -> tuple[Trial, ...]:
        """The trials of a round, by cell type, edge and operator. Raises TenasError when the mask is of another round."""
        trials = tuple(self.candidates(mask, round))
        if len(trials) != round.trials:
            raise TenasError(
                f"The mask has {len(trials)} {round.stage} to try, but round {round.number} of this search has {round.trials}: "
                "it belongs to another round or to other settings."
            )
        return trials

    def rivals(self, trials: Sequence[Trial], round: Round) -> list[tuple[list[int], int]]:
        """Groups of trials (their indices) that compete with each other, and how many of each group are pruned."""
        groups: dict[tuple[str, int], list[int]] = {}
        for index, trial in enumerate(trials):
            groups.setdefault((trial.cell, trial.edge), []).append(index)
        return [(group, round.prune) for group in groups.values()]

    def genotype(self, mask: Mask) -> Genotype:
        """What is left when a search has ended. Raises TenasError while an edge still has a choice."""
        cells = []
        for cell in self.cell_types:
            choices = []
            for index, edge in enumerate(self.edges):
                operators = mask.operators(cell, index)
                if len(operators) > 1:
                    raise TenasError(
                        f"The search has not ended: edge {edge.target}<-{edge.source} of the cell type {cell!r} still has "
                        f"{len(operators)} operators."
                    )
                choices += [Choice(edge.target, edge.source, operator) for operator in operators]
            cells.append(tuple(choices))
        return Genotype(self, tuple(cells))

    def mask(self, genotype: Genotype) -> Mask:
        """The mask in which just the genotype's operators are active."""
        chosen = [{(c.target, c.source, c.operator) for c in cell} for cell in genotype.cells]
        return Mask(
            self,
            tuple(
                tuple(tuple((*edge, operator) in cell for operator in self.operators) for edge in self.edges) for cell in chosen
            ),
        )

    def read_mask(self, path: str | os.PathLike) -> Mask:
        """A mask from its JSON file. Raises TenasError when it is damaged, empty on an edge, or of another space."""
        value = read_json(path, "mask")
        if value.get("space") != self.name:
            raise TenasError(f"The mask {path} is of the space {value.get('space')!r}, not {self.name}.")
        if value.get("operators") != list(self.operators):
            raise TenasError(f"The mask {path} lists other operators than {self.name} has.")
        active = value.get("active")
        try:
            cells = tuple(tuple(tuple(row) for row in active[cell]) for cell in self.cell_types)
        except (KeyError, TypeError) as error:
            raise TenasError(f"The mask {path} lacks rows of booleans for {' and '.join(self.cell_types)}.") from error
        if any(type(on) is not bool for cell in cells for row in cell for on in row):
            raise TenasError(f"The mask {path} holds something other than booleans.")
        try:
            return Mask(self, cells)
        except TenasError as error:
            raise TenasError(f"{path}: {error}") from error

    def _genotype(self, cells: Iterable[Iterable[Choice]], text: str) -> Genotype:
        """A genotype from parsed choices, checked against the space; ``text`` is what the error quotes."""
        cells = tuple(tuple(sorted(cell)) for cell in cells)
        for choice in (choice for cell in cells for choice in cell):
            if choice.operator not in self.operators:
                raise TenasError(
                    f"{choice.operator!r} is no operator of {self.name} ({', '.join(self.operators)}), in the genotype {text!r}."
                )
            if Edge(choice.target, choice.source) not in self.edges:
                raise TenasError(f"{self.name} has no edge {choice.target}<-{choice.source}, in the genotype {text!r}.")
        for cell in cells:
            doubled = [edge for edge, count in Counter((c.target, c.source) for c in cell).items() if count > 1]
            if doubled:
                raise TenasError(f"Edge {doubled[0][0]}<-{doubled[0][1]} is given twice, in the genotype {text!r}.")
        return Genotype(self, cells)


def genotype_from_json(space: Space, value: dict, what: str) -> Genotype:
    """The genotype in a JSON object with the key ``arch``; ``what`` names it in the error."""
    if value.get("space", space.name) != space.name:
        raise TenasError(f"{what} is of the space {value['space']!r}, not {space.name}.")
    if not isinstance(value.get("arch"), str):
        raise TenasError(f"{what} has no key 'arch' with the text of a cell.")
    return space.parse(value["arch"])


def is_json_path(genotype: str | os.PathLike) -> bool:
    """Whether this names a file rather than being a genotype's text."""
    return isinstance(genotype, os.PathLike) or str(genotype).endswith(".json")
