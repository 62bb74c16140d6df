"""Rank the finalists by short trainings."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from tenas.benchmark.index import read_column
from tenas.errors import TenasError
from tenas.files import finite
from tenas.provenance import check_alike, check_one_kind, read_record
from tenas.scoring.subjects import Cell
from tenas.spaces.base import Space

COLUMNS = ("cell", "arch", "shortlisted", "valid_accuracy", "best_epoch", "place", "kept")


def rank_finalists(
    cells: Sequence[Cell], results: Sequence[Mapping[str, Any]], keep: int
) -> tuple[tuple[str, ...], list[dict[str, Any]], list[Cell]]:
    """Rank a round of trainings. Returns the columns, one row per cell in the shortlist's order, and the cells kept, best first.

    ``results``: for each cell ``valid_accuracy`` in %, and ``best_epoch`` if it was trained. Ties go to the cell higher on the
    shortlist. The table has no times, because a decision records its hash.
    """
    order = sorted(range(len(cells)), key=lambda place: (-results[place]["valid_accuracy"], place))
    by_place = {index: place for place, index in enumerate(order, start=1)}
    rows = [
        {
            "cell": cell.number,
            "arch": cell.arch,
            "shortlisted": index + 1,
            "valid_accuracy": result["valid_accuracy"],
            "best_epoch": result.get("best_epoch", ""),
            "place": by_place[index],
            "kept": int(by_place[index] <= keep),
        }
        for index, (cell, result) in enumerate(zip(cells, results, strict=True))
    ]
    return COLUMNS, rows, [cells[index] for index in order[:keep]]


def trained(metrics: Sequence[str | os.PathLike[str]], cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Read the results of real trainings from their metrics, in the shortlist's order.

    Raises TenasError for a missing training, for one of another cell, and for trainings on different kinds of devices, with
    different code or images.
    """
    if len(metrics) < len(cells):
        raise TenasError(f"The shortlist has {len(cells)} cells, but there are {len(metrics)} trainings: one is missing.")
    results: list[dict[str, Any]] = []
    made: dict[str, Mapping[str, Any]] = {}
    for cell, path in zip(cells, metrics, strict=False):
        value = read_record(path, "training's metrics file")
        if value.get("arch") != cell.arch:
            raise TenasError(f"The training {path} is of another cell than the shortlist has in its place: run it again.")
        try:
            results.append({key: finite(value.get(key)) for key in ("valid_accuracy", "best_epoch")})
        except ValueError as error:
            raise TenasError(f"The training's metrics {path} are damaged: {error}.") from error
        record = value.get("provenance")
        made[str(path)] = record if isinstance(record, dict) else {}
    check_one_kind({path: record.get("machine") for path, record in made.items()}, "trainings of the shortlist")
    origins = {path: {"code": record.get("code"), "images": record.get("data_sha256")} for path, record in made.items()}
    check_alike(origins, "trainings of the shortlist")
    return results


def looked_up(table: str | os.PathLike[str] | None, column: str, space: Space, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Look the results of short trainings up in a column of the space's table.

    Raises TenasError for a missing column or cell.
    """
    if table is None:
        raise TenasError(f"The round looks {column!r} up, but no table of {space.name} was given ('benchmark').")
    values = read_column(table, column, space)
    missing = [cell.arch for cell in cells if cell.arch not in values]
    if missing:
        raise TenasError(f"The table {table} has no {column!r} of the cell {missing[0]}.")
    return [{"valid_accuracy": values[cell.arch]} for cell in cells]
