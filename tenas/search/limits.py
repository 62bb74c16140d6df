"""Limits on the finally trained network: which cells fit, and whether a mask still spans a fitting one. No torch.

Parameters and multiply-adds are sums over operators, so their minimum over a mask is exact. Tables, such as measured latencies,
are searched cell by cell.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

from tenas.errors import TenasError
from tenas.provenance import read_record
from tenas.spaces.base import Genotype, Mask, Space
from tenas.spaces.sums import Sums

if TYPE_CHECKING:
    import numpy as np

UNITS = {"parameters": "parameters", "flops": "multiply-adds"}


@dataclass(frozen=True)
class Limits:
    """Upper limits. ``sums``: name -> (costs, limit). ``table``: costs by the space's text, with the limit ``most``."""

    space: Space
    sums: Mapping[str, tuple[Sums, float]]
    table: Mapping[str, float] | None = None
    most: float = 0.0
    _seen: dict[bytes, bool] = field(default_factory=dict, repr=False, compare=False)

    def figures(self, genotype: Genotype) -> dict[str, float | None]:
        """The limited costs of a cell, by name; None for a cell missing from the table."""
        found: dict[str, float | None] = {name: sums.of(genotype) for name, (sums, _) in self.sums.items()}
        return found if self.table is None else found | {"latency": self.table.get(genotype.arch)}

    def fits(self, genotype: Genotype) -> bool:
        """Whether a cell is within all limits."""
        if any(sums.of(genotype) > most for sums, most in self.sums.values()):
            return False
        return self.table is None or self.table.get(genotype.arch, float("inf")) <= self.most

    def reachable(self, mask: Mask) -> bool:
        """Whether a mask spans a cell that is within all limits at once."""
        key = bytes(on for rows in mask.active for row in rows for on in row)
        if key not in self._seen:
            self._seen[key] = self._any_in_table(mask) if self.table is not None else self._any_sum(mask)
        return self._seen[key]

    def _any_sum(self, mask: Mask) -> bool:
        if len(self.sums) == 1:
            ((sums, most),) = self.sums.values()
            return sums.extreme(mask) <= most
        # With two costs, no single cell need have the minimum of both: keep the Pareto front of the sums.
        front: list[tuple[float, ...]] = [tuple(sums.base for sums, _ in self.sums.values())]
        limits = [most for _, most in self.sums.values()]
        tables = [sums.operators for sums, _ in self.sums.values()]
        for number, rows in enumerate(mask.active):
            for target in range(self.space.inputs, self.space.nodes):
                front = _smallest(
                    tuple(a + b for a, b in zip(point, node, strict=True))
                    for point in front
                    for node in _node_front(self.space, rows, [table[number] for table in tables], target)
                )
        return any(all(value <= most for value, most in zip(point, limits, strict=True)) for point in front)

    @cached_property
    def _fitting(self) -> np.ndarray:
        """The fitting cells of the table, (cells, cell types x edges): index of each edge's operator, -1 for no edge."""
        import numpy as np

        places = {(edge.target, edge.source): index for index, edge in enumerate(self.space.edges)}
        rows = []
        for arch in self.table or ():
            genotype = self.space.parse(arch)
            if not self.fits(genotype):
                continue
            row = [-1] * (len(self.space.cell_types) * len(places))
            for number, choices in enumerate(genotype.cells):
                for choice in choices:
                    place = number * len(places) + places[choice.target, choice.source]
                    row[place] = self.space.operators.index(choice.operator)
            rows.append(row)
        return np.array(rows, int).reshape(len(rows), len(self.space.cell_types) * len(places))

    def _any_in_table(self, mask: Mask) -> bool:
        import numpy as np

        active = np.array([[*row, True] for rows in mask.active for row in rows])  # the last column is for -1, no edge
        edges = np.arange(active.shape[0])
        return bool(active[edges, self._fitting].all(axis=1).any())


def _node_front(space: Space, rows: Any, tables: list[Any], target: int) -> list[tuple[float, ...]]:
    """Pareto front of a node's costs over all choices of its edges and operators."""
    edges = [index for index, edge in enumerate(space.edges) if edge.target == target]
    options = {
        index: _smallest(tuple(table[index][place] for table in tables) for place, on in enumerate(rows[index]) if on)
        for index in edges
        if any(rows[index])
    }
    found: list[tuple[float, ...]] = []
    for subset in combinations(options, space.kept_edges(len(edges))):
        sums: list[tuple[float, ...]] = [(0,) * len(tables)]
        for index in subset:
            sums = _smallest(tuple(a + b for a, b in zip(s, o, strict=True)) for s in sums for o in options[index])
        found += sums
    return _smallest(found)


def _smallest(points: Iterable[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Pareto front of points with one or two coordinates: those not dominated by another."""
    front: list[tuple[float, ...]] = []
    for point in sorted(set(points)):
        if not front or point[-1] < front[-1][-1]:
            front.append(point)
    return front


def amount(value: float | str, largest: float, name: str) -> float:
    """Resolve a limit to a number: a number, or a share such as ``"60%"`` of the largest cell's cost.

    Raises TenasError for anything else.
    """
    if isinstance(value, str):
        text = value.strip()
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            number = -1.0
        if not 0 < number < math.inf or (text.endswith("%") and number > 100):
            raise TenasError(f"The limit {name!r} is {value!r}; it must be a number above 0, or a share such as '60%'.")
        return number / 100 * largest if text.endswith("%") else number
    if not 0 < value < math.inf:
        raise TenasError(f"The limit {name!r} is {value}; it must be above 0.")
    return float(value)


def resolve(
    space: Space, exclude: Iterable[str], limits: Mapping[str, Any], sums: Mapping[str, Sums], table: Mapping[str, float] | None
) -> dict[str, Any]:
    """Resolve the limits of a run to the value of its limits.json. Raises TenasError for limits that no cell meets.

    ``limits``: of the settings. ``sums``: parameters and flops of the finally trained network. ``table``: latencies.
    """
    mask = space.full_mask(list(exclude))
    found: dict[str, Any] = {"space": space.reference, "sums": {}, "latency": None}
    for name, unit in UNITS.items():
        if name in limits:
            smallest, largest = sums[name].extreme(mask), sums[name].extreme(mask, largest=True)
            most = amount(limits[name], largest, name)
            if smallest > most:
                raise TenasError(
                    f"No cell of {space.name} has at most {most:,.0f} {unit}: the smallest has {smallest:,}, "
                    f"the largest {largest:,}."
                )
            found["sums"][name] = {
                "most": most, "smallest": smallest, "largest": largest, "base": sums[name].base,
                "operators": [[list(row) for row in rows] for rows in sums[name].operators],
            }  # fmt: skip
    if "latency" in limits:
        limit = limits["latency"]
        spanned = {
            arch: value
            for arch, value in (table or {}).items()
            if value >= 0 and all(c.operator not in exclude for cell in space.parse(arch).cells for c in cell)
        }
        if not spanned:
            raise TenasError(f"The table {limit['table']} has no value in {limit['column']!r} for any cell of {space.name}.")
        most = amount(limit["most"], max(spanned.values()), "latency.most")
        if min(spanned.values()) > most:
            raise TenasError(
                f"No cell of {space.name} has at most {most:g} of {limit['column']}: the smallest has {min(spanned.values()):g}."
            )
        found["latency"] = {"table": limit["table"], "column": limit["column"], "most": most, "values": spanned}
    if not from_json(found).reachable(mask):
        raise TenasError(
            f"No cell of {space.name} is within all limits at once ({', '.join(sorted(limits))}), though each alone can be met."
        )
    return found


def from_json(value: Mapping[str, Any]) -> Limits:
    """Limits from the value of a limits.json. Raises ValueError, KeyError, TypeError or AttributeError for what is none."""
    from tenas.spaces import get_space

    space = get_space(value["space"])
    sums = {name: (_sums(space, part), _number(part["most"])) for name, part in value["sums"].items()}
    latency = value["latency"]
    if latency is None:
        return Limits(space, sums)
    return Limits(space, sums, {arch: _number(cost) for arch, cost in latency["values"].items()}, _number(latency["most"]))


def _sums(space: Space, part: Mapping[str, Any]) -> Sums:
    operators = tuple(tuple(tuple(map(_number, row)) for row in rows) for rows in part["operators"])
    shape = [[len(space.operators)] * len(space.edges)] * len(space.cell_types)
    if [[len(row) for row in rows] for rows in operators] != shape:
        raise ValueError("it has not one number for each operator of each edge")
    return Sums(space, _number(part["base"]), operators)


def _number(value: Any) -> Any:
    """A number as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError(f"{value!r} is no number")
    return value


def read_limits(path: str | os.PathLike[str] | None) -> Limits | None:
    """Read the limits of a run from its limits.json; None without a file. Raises TenasError for a damaged one."""
    if path is None:
        return None
    value = read_record(path, "file of limits")
    try:
        return from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TenasError(f"The limits {path} are damaged: {error!r}. Remove the file and run the stage again.") from error
