"""Audit a run: follow each seed round by round from the supernet to the genotype."""

import re
from collections.abc import Callable
from pathlib import Path

from tenas import layout
from tenas.audit.case import Case
from tenas.audit.cells import follow_cells
from tenas.audit.ledger import Ledger
from tenas.audit.limits import look_at_limits
from tenas.audit.pruning import follow_pruning
from tenas.audit.results import look_at_genotype, look_at_summary
from tenas.audit.step import State, Step
from tenas.audit.training import follow_training
from tenas.errors import TenasError
from tenas.search.limits import Limits
from tenas.settings.search import is_of_earlier_version, read_settings, schedule
from tenas.spaces import get_space

FOLLOW: dict[str, Callable[[Step], State | None]] = {
    "operators": follow_pruning, "edges": follow_pruning, "cells": follow_cells, "training": follow_training,
}  # fmt: skip


def seeds_of(run: Path) -> list[int]:
    """The seeds of a run that have a folder, ascending."""
    return sorted(int(path.name[4:]) for path in run.glob("seed*") if re.fullmatch(r"seed\d+", path.name) and path.is_dir())


def open_run(run: Path, ledger: Ledger, data: Path | None, table: Path | None) -> Case | None:
    """Read settings and images of a run; None, and a fault, without settings, which every decision needs.

    Raises TenasError for a run of an earlier version.
    """
    path = layout.path(layout.SEARCH, run)
    written = ledger.json(path, "search settings")
    try:
        settings = read_settings(path)
    except TenasError as error:
        if is_of_earlier_version(written):
            raise
        ledger.fault(path, f"is no search's settings: {error}")
        return None
    case = Case(run, path, written, settings, get_space(settings["space"]), data, table, ledger)
    case.trail.append(f"run {run}: {case.space.name}, preset {settings['preset']}")
    case.images(sorted(run.glob(layout.SCORES_RECORD.format(seed="*", round="*", shard="*"))))
    return case


def audit_run(case: Case) -> None:
    """Check every file of a run. The results are in the ledger and the trail of the case."""
    seeds, limits = seeds_of(case.folder), look_at_limits(case)
    for seed in seeds:
        case.trail += ["", f"seed {seed}"]
        _seed(case, seed, limits)
    look_at_summary(case, seeds)
    left = [path for path in sorted(case.folder.rglob("*")) if path.is_file() and path not in case.ledger.files]
    if left:
        case.trail += ["", "not looked at, as nothing follows from them:", *(f"  {path}" for path in left)]


def _seed(case: Case, seed: int, limits: Limits | None) -> None:
    """Follow a seed from the first mask to the genotype, and check the results made from that."""
    rounds = schedule(case.settings)
    mask, path = case.space.full_mask(case.settings["exclude"]), layout.path(layout.MASK, case.folder, seed=seed, round=0)
    case.decision(path, "mask", "mask", mask.to_json(), [], "is not the supernet that the settings start from")
    state = State(mask, path)
    for round in rounds:
        after = FOLLOW[round.stage](Step(case, seed, round, state, limits))
        if after is None:
            # Later rounds cannot be checked: read the genotype, so that a missing one is a fault.
            case.trail.append(f"  round {round.number} cannot be followed")
            case.ledger.hash(layout.path(layout.GENOTYPE, case.folder, seed=seed))
            return
        state = after
    for number in sorted(_numbers(case, seed) - {round.number for round in rounds} - {0}):
        left = layout.path(layout.ROUND, case.folder, seed=seed, round=number)
        case.ledger.note(f"{left} is no round of the search: an earlier one has left it.")
    look_at_genotype(case, seed, state)


def _numbers(case: Case, seed: int) -> set[int]:
    folders = layout.path(layout.SEED, case.folder, seed=seed).glob("round*")
    return {int(path.name[5:]) for path in folders if re.fullmatch(r"round\d+", path.name)}
