"""The report of a study: from files of scores to files of correlations and figures."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tenas.benchmark.builtin import index_path
from tenas.benchmark.index import accuracies_of, read_index
from tenas.errors import UNFIT, TenasError, in_short
from tenas.files import finite, format_csv, read_json, sha256, sha256_of, write_json, write_text
from tenas.layout import record_of
from tenas.measures.catalogue import get_measure
from tenas.provenance import Stopwatch, provenance, sealed
from tenas.scoring.subjects import Cell, Cells, Measurement, read_cells
from tenas.scoring.table import read_scores
from tenas.search.made_by import stage_code
from tenas.spaces import get_space
from tenas.study.correlate import COLUMNS, FEWEST, RESAMPLES, TESTS, Scores, correlations, oriented
from tenas.study.sample import is_valid


def read_table_of_values(
    scores: Sequence[str | os.PathLike[str]], measures: Mapping[str, Any], cells: Cells
) -> dict[str, Scores]:
    """All scores of a study by measure, with the mean seconds per measurement from the records.

    Raises TenasError if a file is truncated or damaged, or a measurement is missing or duplicated.
    """
    values = read_scores(scores, measures, cells, "this study")
    spent: dict[str, list[float]] = {}
    for path in scores:
        costs = read_json(record_of(path), "record of scores").get("costs", {}) if record_of(path).exists() else {}
        try:
            for name, cost in costs.items():
                total = spent.setdefault(name, [0.0, 0.0])
                total[0] += finite(cost["seconds"])
                total[1] += finite(cost["measurements"])
        except UNFIT as error:
            raise TenasError(f"The record of scores {record_of(path)} is damaged: its costs are {in_short(costs)}.") from error
    found = {}
    for reference, settings in measures.items():
        measure = get_measure(reference)
        name = measure.name
        repeats = range(settings["repeats"])
        table = np.array([[values[Measurement(cell.number, name, r)] for r in repeats] for cell in cells.cells], float)
        seconds, count = spent.get(name, (0.0, 0.0))
        found[name] = Scores(measure, table, seconds / count if count else math.nan)
    return found


def read_accuracies(index: str | os.PathLike[str], cells: Sequence[Cell], space: str) -> dict[str, np.ndarray]:
    """Test accuracies of the cells in a table, by name, in %. Raises TenasError if it lacks a cell or an accuracy."""
    table = read_index(index, space).set_index("arch")
    missing = [cell.arch for cell in cells if cell.arch not in table.index]
    if missing:
        raise TenasError(f"The benchmark index {index} has no cell {missing[0]}.")
    names = [name for name in accuracies_of(table) if name.endswith(TESTS)]
    if not names:
        raise TenasError(f"The benchmark index {index} has no test accuracies, whose names end in {' or '.join(TESTS)}.")
    accuracies = {name: table.loc[[cell.arch for cell in cells], name].to_numpy(float) for name in names}
    for name, values in accuracies.items():
        if (values != values).any():
            raise TenasError(f"The benchmark index {index} lacks {name} of some of the study's cells.")
    return accuracies


def _together(settings: Mapping[str, Any]) -> list[list[str]]:
    """Sets of measures by their names; the settings may have references."""
    return [[get_measure(reference).name for reference in references] for references in settings["together"]]


def rows_of_study(
    settings: Mapping[str, Any],
    cells: Cells,
    values: Mapping[str, Scores],
    accuracies: Mapping[str, np.ndarray],
    *,
    resamples: int = RESAMPLES,
) -> list[dict[str, Any]]:
    """The rows of correlations.csv; without ``resamples`` their intervals are NaN."""
    valid = np.array([is_valid(cells.genotype(number)) for number in cells.ids])
    return correlations(values, accuracies, settings["seed"], together=_together(settings), valid=valid, resamples=resamples)


def correlate(
    settings: Mapping[str, Any],
    cells: str | os.PathLike[str],
    index: str | os.PathLike[str],
    scores: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
) -> None:
    """Write correlations.csv, its record correlations.json, forest.svg and scatter.svg to the folder ``out``."""
    from tenas.study.figures import plot_forest, plot_scatter

    stopwatch = Stopwatch()
    out = Path(out)
    listed = read_cells(cells, get_space(settings["space"]))
    chosen = listed.cells
    if len(chosen) < FEWEST:
        raise TenasError(f"A study needs at least {FEWEST} cells; {cells} has {len(chosen)}.")
    accuracies = read_accuracies(index, chosen, settings["space"])
    values = read_table_of_values(scores, settings["measures"], listed)
    rows = rows_of_study(settings, listed, values, accuracies)
    plot_forest(rows, out / "forest.svg")
    plot_scatter(oriented(values, _together(settings)), *next(iter(accuracies.items())), out / "scatter.svg")
    text = format_csv(COLUMNS, rows)
    files = {name: sha256(out / name) for name in ("forest.svg", "scatter.svg")} | {"correlations.csv": sha256_of(text)}
    code = stage_code("study_correlate", settings, settings["measures"])
    inputs = [cells, index_path(index, settings["space"]), *scores]
    made = provenance(settings=settings, inputs=inputs, stopwatch=stopwatch, cells=len(chosen), code=code, files=files)
    write_json(out / "correlations.json", sealed(made))
    write_text(out / "correlations.csv", text)
