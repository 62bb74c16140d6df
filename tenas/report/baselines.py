"""Baselines of a search at equal cost, among the cells it could have found: random and largest cells, tabular searches."""

from collections.abc import Mapping, Sequence
from statistics import mean, pstdev, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from tenas.benchmark.index import accuracies_of, costs_of
from tenas.benchmark.searches import Landscape, neighbours, random_search, regularised_evolution
from tenas.search.limits import Limits
from tenas.seeds import derive_seed
from tenas.settings.search import schedule
from tenas.spaces import Space, get_space
from tenas.study.correlate import TESTS
from tenas.study.sample import operators_of

if TYPE_CHECKING:
    import pandas as pd

SEARCHES = 500
# Fewest cells for a meaningful search.
FEWEST = 100


class Standing(NamedTuple):
    """Accuracy of a way to find a cell: ``accuracies`` by name are (mean, standard deviation) in %.

    ``number``: of searches averaged over; None for an exact mean over all cells.
    """

    name: str
    accuracies: dict[str, tuple[float, float]]
    number: int | None = None


def standing_of(name: str, found: Sequence[Mapping[str, float]]) -> Standing:
    """Mean and standard deviation of the accuracies found by several searches."""
    columns = {column: [row[column] for row in found] for column in found[0]}
    spread = {c: (mean(values), stdev(values) if len(values) > 1 else 0.0) for c, values in columns.items()}
    return Standing(name, spread, len(found))


def baselines(
    table: "pd.DataFrame",
    settings: Mapping[str, Any],
    limits: Limits | None = None,
    *,
    others: tuple[str, Sequence[str]] | None = None,
    searches: int = SEARCHES,
) -> list[Standing]:
    """Baselines among the cells of a table that a search could have found: without its excluded operators, within its limits.

    ``table``: of ``tenas.benchmark.index.read_index``. The baselines: the cell with the most parameters; a random cell; and, if
    the search looks short trainings up, random search and regularised evolution (Real et al., AAAI 2019) with the same number of
    short trainings, ``searches`` of each. ``others``: name and texts of the cells found by other searches, for their mean, or for
    the best of them by the same short trainings, at most as many as the search takes. Empty if the table lacks cells of the
    space, or if too few are left.
    """
    space = get_space(settings["space"])
    tests = [name for name in accuracies_of(table) if name.endswith(TESTS)]
    left = _spanned(table, space, set(settings["exclude"]), limits)
    if space.listed_cells != len(table) or len(left) < FEWEST or not tests:
        return []
    rows = table[tests].to_dict("records")
    found = []
    parameters = next((name for name in costs_of(table) if name.startswith("params_")), None)
    if parameters is not None:
        # Isomorphic cells tie: the first in the table.
        most = max(left, key=table[parameters].tolist().__getitem__)
        found.append(standing_of("most parameters", [rows[most]]))
    spread = {name: [rows[place][name] for place in left] for name in tests}
    without = f" without {', '.join(settings['exclude'])}" if settings["exclude"] else ""
    found.append(Standing(f"a random cell{without}", {name: (mean(values), pstdev(values)) for name, values in spread.items()}))
    # Only rounds of trainings have a column.
    column, trainings = settings["rounds"][-1].get("column"), schedule(settings)[-1].trials
    name, archs = others or ("", ())
    place_of = dict(zip(table["arch"], range(len(table)), strict=True))
    places = [place_of[arch] for arch in archs]
    if column not in table.columns:
        return found + ([standing_of(name, [rows[place] for place in places])] if places else [])
    if places := places[:trainings]:
        best = max(places, key=table[column].tolist().__getitem__)
        found.append(standing_of(f"best of {len(places)} seeds of {name}, by the same short trainings", [rows[best]]))
    for way, chosen in _searches(table, left, column, trainings, searches).items():
        found.append(standing_of(way, [rows[place] for place in chosen]))
    return found


def _spanned(table: "pd.DataFrame", space: Space, exclude: set[str], limits: Limits | None) -> list[int]:
    """Rows of the cells that a search could have found."""
    return [
        row
        for row, genotype in enumerate(map(space.parse, table["arch"]))
        if exclude.isdisjoint(operators_of(genotype)) and (limits is None or limits.fits(genotype))
    ]


def _searches(table: "pd.DataFrame", left: Sequence[int], column: str, trainings: int, searches: int) -> dict[str, list[int]]:
    """Rows of the cells found by ``searches`` of each kind among the rows ``left``, with ``trainings`` look-ups in ``column``."""
    short = table[column].to_numpy()[left].tolist()
    number = {row: n for n, row in enumerate(left)}
    around = [[number[n] for n in row if n in number] for row in neighbours(list(table["arch"]))[left].tolist()]
    landscape = Landscape(short, around)
    ways = {
        f"best of {trainings} random cells, by the same short trainings": random_search,
        f"regularised evolution, {trainings} of the same short trainings": regularised_evolution,
    }
    return {
        way: [left[max(looks(landscape, derive_seed(seed, way), trainings), key=short.__getitem__)] for seed in range(searches)]
        for way, looks in ways.items()
    }
