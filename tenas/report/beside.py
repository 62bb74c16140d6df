"""Comparisons of a run in the table of its space: the run without its trainings, and baselines at equal cost. No torch."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tenas import layout
from tenas.benchmark.index import accuracies_of, read_index
from tenas.errors import TenasError, in_short
from tenas.files import read_json
from tenas.report.baselines import Standing, baselines, standing_of
from tenas.report.summary import StaleWarning, check_same_settings, of_other_settings
from tenas.search.limits import read_limits
from tenas.search.origins import check_same_origins, images_of
from tenas.search.shortlist import read_shortlist
from tenas.settings.search import read_settings, search_settings
from tenas.spaces import get_space
from tenas.study.correlate import TESTS

if TYPE_CHECKING:
    import pandas as pd

# The preset of the authors' settings, with which any search is compared.
RELEASED = "released"


class Found(NamedTuple):
    """The result of a run: its folder, its settings (of ``read_settings``), and the text of each seed's cell."""

    folder: Path
    settings: Mapping[str, Any]
    archs: Mapping[int, str]

    @property
    def name(self) -> str:
        return f"run {self.folder.name}"


def seeds_of(run_dir: Path) -> list[int]:
    """The seeds of a run that have a genotype. Raises OSError for a folder that cannot be read, which glob leaves out."""
    found = [path.name[4:] for path in run_dir.glob("seed*") if path.name[4:].isdecimal()]
    return sorted(int(seed) for seed in found if layout.path(layout.GENOTYPE, run_dir, seed=seed).exists())


def read_found(run_dir: Path, seeds: Iterable[int] = ()) -> Found:
    """The result of a run, for these seeds, or for all that have a genotype and were searched with the settings that it has now.

    Raises TenasError if there is none, for given seeds of other settings, and for seeds of different images or tables.
    """
    wanted = sorted(seeds) or seeds_of(run_dir)
    if not wanted:
        raise TenasError(f"There is no result in {run_dir}: no seed there has a genotype yet.")
    if seeds:
        check_same_settings(run_dir, wanted)
    elif others := of_other_settings(run_dir, wanted):
        wanted = [seed for seed in wanted if seed not in others]
        if not wanted:
            raise TenasError(f"There is no result in {run_dir} of a search with the settings that it has now: search again.")
        said = ", ".join(map(str, others))
        warnings.warn(f"Seeds of {run_dir} that were searched with other settings are left out: {said}.", StaleWarning, 2)
    check_same_origins(run_dir, wanted)
    archs = {seed: read_json(layout.path(layout.GENOTYPE, run_dir, seed=seed), "genotype")["arch"] for seed in wanted}
    return Found(run_dir, read_settings(layout.path(layout.SEARCH, run_dir)), archs)


def ranked_round(settings: Mapping[str, Any]) -> int | None:
    """The last round of cells before the final trainings, whose first cell is the result without them; None if there is none."""
    kinds = [entry["kind"] for entry in settings["rounds"]]
    return len(kinds) - kinds[::-1].index("cells") if kinds[-1] == "training" and "cells" in kinds else None


def ranked_first(run: Found) -> dict[int, str]:
    """The result of each seed without the final trainings; empty for a search without them."""
    round, space = ranked_round(run.settings), get_space(run.settings["space"])
    if round is None:
        return {}
    paths = {seed: layout.path(layout.SHORTLIST, run.folder, seed=seed, round=round) for seed in run.archs}
    return {seed: read_shortlist(path, space).cells[0].arch for seed, path in paths.items()}


def without_trainings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a search without its trainings."""
    return {**settings, "rounds": [entry for entry in settings["rounds"] if entry["kind"] != "training"]}


def table_of(run: Found) -> "pd.DataFrame | None":
    """The table in which the cells of all seeds were looked up; None if there is none, or more than one."""
    paths = [layout.path(layout.LOOKUP, run.folder, seed=seed) for seed in run.archs]
    indices = [read_json(path, "benchmark look-up").get("index") for path in paths]
    for path, index in zip(paths, indices, strict=True):
        if not isinstance(index, str | None):
            raise TenasError(f"The benchmark look-up {path} is damaged: its table is {in_short(index)}.")
    index = indices[0] if len(set(indices)) == 1 else None
    return None if index is None else read_index(index, run.settings["space"])


def table_if_looked_up(run: Found) -> "pd.DataFrame | None":
    """``table_of``; None also if a seed was not looked up."""
    looked_up = all(layout.path(layout.LOOKUP, run.folder, seed=seed).exists() for seed in run.archs)
    return table_of(run) if looked_up else None


def is_released(settings: Mapping[str, Any]) -> bool:
    """Whether all settings of a search are the authors'."""
    return bool(settings["preset"] == RELEASED and settings["rounds"] == search_settings(settings["space"], RELEASED)["rounds"])


def released_beside(run: Found, others: Iterable[Found]) -> Found | None:
    """The first of ``others`` with the authors' settings, and with the space, limits and images of ``run``."""
    for other in others:
        same = all(other.settings[key] == run.settings[key] for key in ("space", "limits"))
        if other.folder != run.folder and other.archs and same and is_released(other.settings):
            mine, theirs = (images_of(one.folder, min(one.archs)) for one in (run, other))
            if mine is not None and theirs is not None and mine[1] == theirs[1]:
                return other
    return None


def standings_of_run(run: Found, table: "pd.DataFrame", name: str) -> list[Standing]:
    """Standings of a run, under ``name``, and of the same seeds without their final trainings, if it has any.

    Accuracies are the test accuracies that the table has for all of these cells; empty if there are none.
    """
    ranked = ranked_first(run)
    rows = table.set_index("arch")[[column for column in accuracies_of(table) if column.endswith(TESTS)]]
    rows = rows.loc[[*run.archs.values(), *ranked.values()]].dropna(axis="columns")
    if not len(rows.columns):
        return []
    records = rows.to_dict("records")
    parts = {name: records[: len(run.archs)], f"{name} without its trainings": records[len(run.archs) :]}
    return [standing_of(part, cells) for part, cells in parts.items() if cells]


def baselines_of_run(run: Found, table: "pd.DataFrame", others: Iterable[Found] = (), *, trained: bool = True) -> list[Standing]:
    """Baselines of a run at equal cost, with the search of the authors' settings that is among ``others``.

    ``trained``: whether the run's short trainings are part of its cost; otherwise the baselines of the run without them.
    """
    path = layout.path(layout.LIMITS, run.folder)
    released = released_beside(run, others)
    cells = None if released is None else (released.name, [arch for _, arch in sorted(released.archs.items())])
    settings = run.settings if trained else without_trainings(run.settings)
    return baselines(table, settings, read_limits(path if path.exists() else None), others=cells)
