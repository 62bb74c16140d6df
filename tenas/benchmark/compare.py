"""Differences between two tables of the same cells."""

from typing import TYPE_CHECKING, NamedTuple

from tenas.errors import TenasError

if TYPE_CHECKING:
    import pandas as pd

# Differences due to rounding: published tables have accuracies with five decimals, some computed from two others
# (2 x valtest - test), and times with two.
ROUNDING, ROUNDING_OF_SECONDS = 2e-5, 6e-3


class Difference(NamedTuple):
    """One column: cells that have it in both tables, cells that differ by more than rounding, and the largest difference."""

    column: str
    cells: int
    differ: int
    largest: float
    arch: str


class Comparison(NamedTuple):
    """``cells``: in each table, and in both. ``renumbered``: cells whose official numbers differ; None without numbers."""

    cells: tuple[int, int, int]
    renumbered: int | None
    columns: tuple[Difference, ...]

    @property
    def agree(self) -> bool:
        """Whether the tables agree in all that both have."""
        return not self.renumbered and not any(column.differ for column in self.columns)


def compare(one: "pd.DataFrame", other: "pd.DataFrame") -> Comparison:
    """Compare two tables of ``read_index`` cell by cell, in their common numeric columns.

    Raises TenasError if they have no cell in common.
    """
    from pandas.api.types import is_numeric_dtype

    both = one.merge(other, on="arch", suffixes=("", " of the other"))
    if both.empty:
        raise TenasError("The two tables have no cell in common: they are of different spaces.")
    found = []
    for name in one.columns:
        if name in ("arch", "index") or name not in other.columns:
            continue
        if not (is_numeric_dtype(one[name]) and is_numeric_dtype(other[name])):
            continue
        differences = (both[name].astype(float) - both[f"{name} of the other"]).abs()
        known = int(differences.notna().sum())
        if known:
            worst = differences.idxmax()
            rounding = ROUNDING_OF_SECONDS if "seconds" in name else ROUNDING
            differ = int((differences > rounding).sum())
            found.append(Difference(name, known, differ, float(differences[worst]), str(both["arch"][worst])))
    numbered = "index" in one.columns and "index" in other.columns
    renumbered = int((both["index"] != both["index of the other"]).sum()) if numbered else None
    return Comparison((len(one), len(other), len(both)), renumbered, tuple(found))


def describe_comparison(found: Comparison) -> str:
    """Format a comparison for the terminal; a cell is shown if its column differs by more than rounding."""
    one, other, both = found.cells
    lines = [f"{one:,} and {other:,} cells, {both:,} of them in both"]
    if found.renumbered:
        lines.append(f"{found.renumbered:,} cells have other numbers")
    if not found.columns:
        return "\n".join([*lines, "no column of numbers in both"])
    width = 2 + max(len(column.column) for column in found.columns)
    lines.append(f"{'':{width}}{'cells':>8}{'largest difference':>20}{'differ':>8}  most")
    for column in found.columns:
        where = column.arch if column.differ else ""
        lines.append(f"{column.column:{width}}{column.cells:8,}{column.largest:20.6g}{column.differ:8,}  {where}".rstrip())
    if found.agree:
        lines.append("they agree in all that both have")
    return "\n".join(lines)
