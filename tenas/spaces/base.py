"""Base of all search spaces: edges, masks, rounds, genotypes. Plain data, no torch."""

from __future__ import annotations

import importlib
import math
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations, product
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from tenas.errors import TenasError, one_of
from tenas.files import read_json

if TYPE_CHECKING:
    import numpy as np


class WrongFormError(TenasError):
    """A text is not of the form in which a space writes its genotypes: it may belong to another space."""


class Edge(NamedTuple):
    """An edge of a cell: node ``target`` reads node ``source``."""

    target: int
    source: int


class Choice(NamedTuple):
    """An edge of a genotype, with its operator."""

    target: int
    source: int
    operator: str


class Trial(NamedTuple):
    """One operator of one edge, to be removed from a mask."""

    cell: str
    edge: int
    operator: str


class Round(NamedTuple):
    """A round of a search: its kind, and the number of its subjects.

    ``operators``: the trials of each edge compete, and ``prune`` of them are removed, never the last one; with ``edge`` (cell
    type, edge) only those of that edge. ``edges``: the incoming edges of each node compete, and all but the best are removed
    (DARTS; TE-NAS's released code, last stage). ``cells``: discrete cells are measured, ``keep`` stay. ``training``: cells are
    trained, ``keep`` stay. ``trials``: number of operators or edges tried, or of cells measured or trained.
    """

    number: int
    stage: str
    prune: int
    trials: int
    edge: tuple[str, int] | None = None
    keep: int = 0


@dataclass(frozen=True)
class Mask:
    """The active operators: ``active[cell type][edge][operator]``, booleans."""

    space: Space
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

    def without(self, trials: Iterable[Trial]) -> Mask:
        """The mask without the operators of ``trials``."""
        active = [[list(row) for row in cell] for cell in self.active]
        for cell, edge, operator in trials:
            active[self.space.cell_types.index(cell)][edge][self.space.operators.index(operator)] = False
        return Mask(self.space, tuple(tuple(tuple(row) for row in cell) for cell in active))

    def to_json(self) -> dict[str, Any]:
        return {
            "space": self.space.reference,
            "operators": list(self.space.operators),
            "edges": [f"{edge.target}<-{edge.source}" for edge in self.space.edges],
            "active": {cell: [list(row) for row in rows] for cell, rows in zip(self.space.cell_types, self.active, strict=True)},
        }


@dataclass(frozen=True)
class Genotype:
    """A discrete architecture: for each cell type of its space, the chosen edges with their operators, by target then source."""

    space: Space
    cells: tuple[tuple[Choice, ...], ...]

    @property
    def arch(self) -> str:
        """The customary text of the genotype's space; ``space.parse`` is its inverse."""
        return self.space.text(self)

    def __repr__(self) -> str:
        return f"<Genotype of {self.space.name}: {self.arch}>"

    def to_json(self) -> dict[str, Any]:
        return {
            "space": self.space.reference,
            "arch": self.arch,
            "cells": {
                cell: [choice._asdict() for choice in choices]
                for cell, choices in zip(self.space.cell_types, self.cells, strict=True)
            },
        }


def operators_left(mask: Mask) -> dict[tuple[str, int], int]:
    """Number of active operators for each (cell type, edge)."""
    space = mask.space
    return {
        (cell, edge): sum(row) for cell, rows in zip(space.cell_types, mask.active, strict=True) for edge, row in enumerate(rows)
    }


def after(left: Mapping[tuple[str, int], int], round: Round) -> dict[tuple[str, int], int]:
    """``operators_left`` after a round of operators."""
    return {
        key: count - min(round.prune, count - 1) if count > 1 and round.edge in (None, key) else count
        for key, count in left.items()
    }


def edges_left(mask: Mask) -> Counter[tuple[str, int]]:
    """Number of incoming edges with an operator for each (cell type, node)."""
    space = mask.space
    left = Counter({(cell, target): 0 for cell in space.cell_types for target in range(space.inputs, space.nodes)})
    for cell, rows in zip(space.cell_types, mask.active, strict=True):
        for edge, row in zip(space.edges, rows, strict=True):
            left[cell, edge.target] += any(row)
    return left


class Space:
    """A search space: cells whose edges each choose one operator.

    Nodes are numbered with the cell's inputs first. ``edges`` are in the order in which masks, files and genotypes list
    them. ``output`` are the nodes whose concatenation is the cell's output; by default that is the last node.
    ``edges_of_a_node``: how many incoming edges a node of a genotype keeps; None for all.

    ``networks``: builder of the networks, an object or the name of a module, imported when the first network is built: functions
    ``supernet``, ``cells`` and ``network`` (tenas.networks.builders), and ``operator`` unless the space has factories.
    ``trained``: default arguments of Network for the finally trained networks. ``stems``: those that these networks may have;
    ``auxiliary``: whether they may have an auxiliary head. ``least_cells``: number of cells of the smallest supernet with every
    cell type. ``short_trainings``: data set -> column of the space's table with validation accuracies after a few epochs.
    ``listed_cells``: number of cells in a complete table of the space; None if no table is complete. ``side_step``: sides of
    images must be multiples of it.
    """

    name: str
    operators: tuple[str, ...]
    cell_types: tuple[str, ...]
    inputs: int
    nodes: int
    edges: tuple[Edge, ...]
    output: tuple[int, ...] = ()
    edges_of_a_node: int | None = None
    networks: Any = "tenas.networks.single"
    trained: Mapping[str, Any] = MappingProxyType({"channels": 16, "cells": 5})
    stems: tuple[str, ...] = ("cifar",)
    auxiliary: bool = False
    least_cells: int = 1
    short_trainings: Mapping[str, str] = MappingProxyType({})
    listed_cells: int | None = None
    side_step: int = 1
    _reference: str | None = None
    # Stands for the code of a space that no file defines in code digests: unique, so that no result counts as made by it.
    _token: str | None = None

    @property
    def reference(self) -> str:
        """Name of the space in configurations: its name if it is built in, else ``path/to/file.py:object``."""
        return self._reference or self.name

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled by reference: other processes import the space, so each has a single object of it.
        from tenas.spaces import get_space

        if self._token is not None:
            raise TenasError(
                f"The space {self.name} was made in this process, and other processes cannot import it: put it into a file and "
                "name it path/to/file.py:object, or use one thread."
            )
        return get_space, (self.reference,)

    def __deepcopy__(self, memo: dict[str, Any]) -> Space:
        return self

    # --- texts

    def parse(self, text: str) -> Genotype:
        """Parse the text of a genotype (see ``text``). Raises TenasError for an invalid text, WrongFormError for another form."""
        cells = []
        texts = text.strip().split(";")
        if len(texts) != len(self.cell_types):
            raise WrongFormError(f"{text!r} has {len(texts)} cells; one of {self.name} has {len(self.cell_types)}.")
        for cell in texts:
            nodes = cell.strip().split("+")
            choices = []
            for target, node in enumerate(nodes, start=self.inputs):
                if re.fullmatch(r"\|(?:[^|~+]+~\d{1,9}\|)+", node.strip()) is None:
                    raise WrongFormError(f"{text!r} is not a cell of {self.name}; expected the form {self._form()}.")
                for part in node.strip().strip("|").split("|"):
                    operator, source = part.split("~")
                    choices.append(Choice(target, int(source), operator))
            cells.append(choices)
        genotype = self._genotype(cells, text)
        self._check_complete(genotype, text)
        return genotype

    def text(self, genotype: Genotype) -> str:
        """The customary text of a genotype: ``|op~0|+|op~0|op~1|``, nodes joined by ``+``, cell types by ``;``."""
        return ";".join(
            "+".join(
                "|" + "".join(f"{c.operator}~{c.source}|" for c in cell if c.target == target)
                for target in range(self.inputs, self.nodes)
            )
            for cell in genotype.cells
        )

    def _form(self) -> str:
        kept = self.edges_of_a_node
        nodes = []
        for target in range(self.inputs, self.nodes):
            sources = [edge.source for edge in self.edges if edge.target == target][:kept]
            nodes.append("|" + "".join(f"op~{source}|" for source in sources))
        return ";".join(["+".join(nodes)] * len(self.cell_types))

    def _check_complete(self, genotype: Genotype, text: str) -> None:
        """Raise TenasError unless each node has the number of incoming edges required in a genotype of this space."""
        incoming = Counter(edge.target for edge in self.edges)
        for choices in genotype.cells:
            found = Counter(choice.target for choice in choices)
            if sum(found.values()) != (wanted := sum(min(count, self.kept_edges(count)) for count in incoming.values())):
                raise TenasError(f"{text!r} has {sum(found.values())} operators; a cell of {self.name} has {wanted}.")
            for target, count in incoming.items():
                if found[target] != self.kept_edges(count):
                    raise TenasError(
                        f"Node {target} has {found[target]} edges, not {self.kept_edges(count)}, in the genotype {text!r}."
                    )

    def kept_edges(self, incoming: int) -> int:
        """Number of edges that a node with ``incoming`` edges keeps in a genotype."""
        return incoming if self.edges_of_a_node is None else min(incoming, self.edges_of_a_node)

    def canonical_form(self, genotype: Genotype) -> str | None:
        """A text shared by all cells that are the same network; None if the space does not define one."""
        return None

    def check_side(self, side: int) -> None:
        """Raise TenasError for a side of images, in pixels, that the space's networks cannot process."""
        step = self.side_step
        if side % step:
            below, above = side // step * step, (side // step + 1) * step
            allowed = f"{below} or {above}" if below else str(above)
            raise TenasError(
                f"The networks of {self.name} halve images twice, and their branches only fit for a side that is a multiple of "
                f"{step}; it is {side}: set 'side' to {allowed}."
            )

    # --- what an edge can choose from

    def choices(self, cell: str, edge: int) -> tuple[str, ...]:
        """Candidate operators of an edge, in the space's order; by default all."""
        return self.operators

    def operation(self, name: str, inputs: int, outputs: int, stride: int) -> Any:
        """The module of an operator, (n, inputs, h, w) to (n, outputs, h / stride, w / stride); None if it adds nothing.

        By default made by the function ``operator`` of ``networks``, with the same arguments.
        """
        networks = importlib.import_module(self.networks) if isinstance(self.networks, str) else self.networks
        if not hasattr(networks, "operator"):
            raise TenasError(f"The networks of {self.reference}, {self.networks!r}, have no function 'operator'.")
        return networks.operator(name, inputs, outputs, stride)

    # --- masks

    def check(self, mask: Mask) -> None:
        """Raise TenasError if no network can be built from the mask.

        Every edge needs an operator. If nodes keep only some of their edges, edges may be empty once no edge has more than one
        operator (after the round of edges), as long as enough edges are left.
        """
        pruned_edges = self.edges_of_a_node is not None and max(sum(row) for rows in mask.active for row in rows) == 1
        if not pruned_edges:
            for cell, rows in zip(self.cell_types, mask.active, strict=True):
                for edge, row in zip(self.edges, rows, strict=True):
                    if not any(row):
                        raise TenasError(
                            f"The mask leaves no operator on edge {edge.target}<-{edge.source} of the {self.name} cell type "
                            f"{cell!r}."
                        )
        incoming = Counter(edge.target for edge in self.edges)
        for (cell, target), left in edges_left(mask).items():
            if left < self.kept_edges(incoming[target]):
                raise TenasError(
                    f"The mask leaves {left} edges into node {target} of the {self.name} cell type {cell!r}; "
                    f"it needs {self.kept_edges(incoming[target])}."
                )

    def full_mask(self, exclude: Sequence[str] = ()) -> Mask:
        """Mask of the supernet at the start of a search: every operator of every edge, except those in ``exclude``."""
        for operator in exclude:
            if operator not in self.operators:
                raise one_of(f"operator of {self.name}", operator, self.operators)
        return Mask(
            self,
            tuple(
                tuple(
                    tuple(operator in self.choices(cell, edge) and operator not in exclude for operator in self.operators)
                    for edge in range(len(self.edges))
                )
                for cell in self.cell_types
            ),
        )

    def size(self, mask: Mask) -> int:
        """Number of genotypes that a mask spans."""
        return self.size_of(operators_left(mask))

    def size_of(self, left: Mapping[tuple[str, int], int]) -> int:
        """``size`` of a mask with the numbers of operators ``left``, by (cell type, edge)."""
        total = 1
        for cell in self.cell_types:
            for target in range(self.inputs, self.nodes):
                counts = [left[cell, index] for index, edge in enumerate(self.edges) if edge.target == target]
                # Sum over all choices of kept edges of the product of their numbers of operators: an elementary
                # symmetric polynomial.
                sums = [1] + [0] * self.kept_edges(len(counts))
                for count in counts:
                    for size in range(len(sums) - 1, 0, -1):
                        sums[size] += sums[size - 1] * count
                total *= sums[-1]
        return total

    def genotypes(self, mask: Mask | None = None) -> Iterator[Genotype]:
        """All genotypes of a mask, by default of the whole space; the operator of the last edge changes fastest."""
        mask = self.full_mask() if mask is None else mask
        per_type = []
        for cell in self.cell_types:
            nodes = []
            for target in range(self.inputs, self.nodes):
                incoming = [index for index, edge in enumerate(self.edges) if edge.target == target]
                nodes.append(
                    [
                        tuple(Choice(*self.edges[index], operator) for index, operator in zip(subset, operators, strict=True))
                        for subset in combinations(incoming, self.kept_edges(len(incoming)))
                        for operators in product(*(mask.operators(cell, index) for index in subset))
                    ]
                )
            per_type.append(nodes)
        for combination in product(*(node for nodes in per_type for node in nodes)):
            chosen = iter(combination)
            yield Genotype(self, tuple(tuple(c for _ in nodes for c in next(chosen)) for nodes in per_type))

    def random_genotype(self, mask: Mask, generator: np.random.Generator) -> Genotype:
        """Draw a genotype of a mask uniformly."""
        cells = []
        for cell in self.cell_types:
            choices: list[Choice] = []
            for target in range(self.inputs, self.nodes):
                incoming = [index for index, edge in enumerate(self.edges) if edge.target == target]
                active = [index for index in incoming if mask.operators(cell, index)]
                subsets = list(combinations(active, self.kept_edges(len(incoming))))
                # Weigh each subset of edges by its number of ways to choose operators.
                ways = list(accumulate(math.prod(len(mask.operators(cell, index)) for index in subset) for subset in subsets))
                subset = subsets[bisect_right(ways, int(generator.integers(ways[-1])))]
                for index in subset:
                    operators = mask.operators(cell, index)
                    choices.append(Choice(*self.edges[index], operators[generator.integers(len(operators))]))
            cells.append(tuple(choices))
        return Genotype(self, tuple(cells))

    # --- TE-NAS's rounds

    def rounds(self, exclude: Sequence[str] = (), prune: int = 1) -> tuple[Round, ...]:
        """TE-NAS's schedule: rounds of operators until one is left on each edge, then a round of edges, if nodes keep some."""
        left = operators_left(self.full_mask(exclude))
        rounds: list[Round] = []
        while max(left.values()) > 1:
            rounds.append(self.operators_round(len(rounds) + 1, left, prune))
            left = after(left, rounds[-1])
        return tuple(rounds) + tuple(self.edges_rounds(len(rounds) + 1))

    def operators_round(
        self, number: int, left: Mapping[tuple[str, int], int], prune: int, edge: tuple[str, int] | None = None
    ) -> Round:
        """A round of operators, of all edges or of one ``edge``. ``left``: numbers of operators by (cell type, edge)."""
        competing = [count for key, count in left.items() if count > 1 and edge in (None, key)]
        most = max(competing, default=1) - 1
        return Round(number, "operators", most if edge else min(prune, most), sum(competing), edge)

    def edges_rounds(self, number: int) -> list[Round]:
        """The round of edges, for nodes with more incoming edges than they keep; empty if all nodes keep all."""
        incoming = Counter(edge.target for edge in self.edges).values()
        trials = len(self.cell_types) * sum(count for count in incoming if count > self.kept_edges(count))
        return [Round(number, "edges", 1, trials)] if trials else []

    def candidates(self, mask: Mask, round: Round) -> Iterator[Trial]:
        """All possible trials of a round on a mask, by cell type, edge and operator."""
        left = edges_left(mask)
        incoming = Counter(edge.target for edge in self.edges)
        for cell in self.cell_types:
            for edge in range(len(self.edges)):
                operators, target = mask.operators(cell, edge), self.edges[edge].target
                if round.stage == "edges":
                    competes = left[cell, target] > self.kept_edges(incoming[target])
                else:
                    competes = len(operators) > 1 and round.edge in (None, (cell, edge))
                if competes:
                    yield from (Trial(cell, edge, operator) for operator in operators)

    def trials(self, mask: Mask, round: Round) -> tuple[Trial, ...]:
        """The trials of a round, by cell type, edge and operator. Raises TenasError if the mask belongs to another round."""
        trials = tuple(self.candidates(mask, round))
        if len(trials) != round.trials:
            raise TenasError(
                f"The mask has {len(trials)} {round.stage} to try, but round {round.number} of this search has {round.trials}: "
                "it belongs to another round or to other settings."
            )
        return trials

    def rivals(self, trials: Sequence[Trial], round: Round) -> list[tuple[list[int], int]]:
        """Groups of competing trials (their indices), and the number pruned of each group."""
        groups: dict[tuple[str, int], list[int]] = {}
        for index, trial in enumerate(trials):
            place = self.edges[trial.edge].target if round.stage == "edges" else trial.edge
            groups.setdefault((trial.cell, place), []).append(index)
        if round.stage == "edges":
            incoming = Counter(edge.target for edge in self.edges)
            return [(group, len(group) - self.kept_edges(incoming[target])) for (_, target), group in groups.items()]
        return [(group, min(round.prune, len(group) - 1)) for group in groups.values()]

    # --- genotypes

    def genotype(self, mask: Mask) -> Genotype:
        """The genotype left in a mask. Raises TenasError while an edge or a node still has a choice."""
        cells = []
        for cell in self.cell_types:
            choices: list[Choice] = []
            for index, edge in enumerate(self.edges):
                operators = mask.operators(cell, index)
                if len(operators) > 1:
                    raise TenasError(
                        f"The search has not ended: edge {edge.target}<-{edge.source} of the cell type {cell!r} still has "
                        f"{len(operators)} operators."
                    )
                choices += [Choice(edge.target, edge.source, operator) for operator in operators]
            cells.append(tuple(choices))
        incoming = Counter(edge.target for edge in self.edges)
        for cell, chosen in zip(self.cell_types, cells, strict=True):
            for target, left in Counter(choice.target for choice in chosen).items():
                if left > self.kept_edges(incoming[target]):
                    raise TenasError(f"The search has not ended: node {target} of the cell type {cell!r} still has {left} edges.")
        return Genotype(self, tuple(cells))

    def mask(self, genotype: Genotype) -> Mask:
        """Mask in which only the operators of a genotype are active."""
        chosen = [{(c.target, c.source, c.operator) for c in cell} for cell in genotype.cells]
        return Mask(
            self,
            tuple(
                tuple(tuple((*edge, operator) in cell for operator in self.operators) for edge in self.edges) for cell in chosen
            ),
        )

    def read_mask(self, path: str | os.PathLike[str]) -> Mask:
        """Read a mask from its JSON file. Raises TenasError if it is damaged, empty on an edge, or of another space."""
        value = read_json(path, "mask")
        if value.get("space") != self.reference:
            raise TenasError(f"The mask {path} is of the space {value.get('space')!r}, not {self.reference}.")
        if value.get("operators") != list(self.operators):
            raise TenasError(f"The mask {path} lists other operators than those of {self.name}.")
        active: Any = value.get("active")
        try:
            cells = tuple(tuple(tuple(row) for row in active[cell]) for cell in self.cell_types)
        except (KeyError, TypeError) as error:
            raise TenasError(f"The mask {path} lacks rows of booleans for {' and '.join(self.cell_types)}.") from error
        if any(type(on) is not bool for cell in cells for row in cell for on in row):
            raise TenasError(f"The mask {path} holds something other than booleans.")
        try:
            mask = Mask(self, cells)
        except TenasError as error:
            raise TenasError(f"{path}: {error}") from error
        for cell in self.cell_types:
            for edge in range(len(self.edges)):
                if foreign := set(mask.operators(cell, edge)).difference(self.choices(cell, edge)):
                    raise TenasError(f"The mask {path} has {min(foreign)!r} on edge {edge} of {cell!r}, which cannot have it.")
        return mask

    def _genotype(self, parsed: Iterable[Iterable[Choice]], text: str) -> Genotype:
        """Make a genotype from parsed choices, checked against the space; error messages quote ``text``."""
        cells = tuple(tuple(sorted(cell)) for cell in parsed)
        for choice in (choice for cell in cells for choice in cell):
            if choice.operator not in self.operators:
                raise TenasError(
                    f"{choice.operator!r} is no operator of {self.name} ({', '.join(self.operators)}), in the genotype {text!r}."
                )
            if Edge(choice.target, choice.source) not in self.edges:
                raise TenasError(f"{self.name} has no edge {choice.target}<-{choice.source}, in the genotype {text!r}.")
        for name, cell in zip(self.cell_types, cells, strict=True):
            for target, source, operator in cell:
                allowed = self.choices(name, self.edges.index(Edge(target, source)))
                if operator not in allowed:
                    raise TenasError(
                        f"{operator!r} is no operator of the edge {target}<-{source} of {self.name} ({', '.join(allowed)}), in "
                        f"the genotype {text!r}."
                    )
        for cell in cells:
            doubled = [edge for edge, count in Counter((c.target, c.source) for c in cell).items() if count > 1]
            if doubled:
                raise TenasError(f"Edge {doubled[0][0]}<-{doubled[0][1]} is given twice, in the genotype {text!r}.")
        return Genotype(self, cells)


def genotype_from_json(space: Space, value: dict[str, Any], what: str) -> Genotype:
    """Parse the genotype in a JSON object with the key ``arch``; ``what``: its name in error messages."""
    if value.get("space", space.reference) != space.reference:
        raise TenasError(f"{what} is of the space {value['space']!r}, not {space.reference}.")
    if not isinstance(value.get("arch"), str):
        raise TenasError(f"{what} has no key 'arch' with the text of a cell.")
    return space.parse(value["arch"])


def is_json_path(genotype: str | os.PathLike[str]) -> bool:
    """Whether this names a file, and is not the text of a genotype."""
    return isinstance(genotype, os.PathLike) or str(genotype).endswith(".json")
