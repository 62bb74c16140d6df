"""Audit a round of cells: repeat its sample, its ranking from the scores, its shortlist from the ranking."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tenas import layout
from tenas.audit.scores import Scores, scores_of_round
from tenas.audit.step import State, Step
from tenas.errors import TenasError
from tenas.measures.catalogue import get_measure
from tenas.scoring.subjects import Cell, Cells, read_cells
from tenas.search.sample import listed_cells, sample_cells
from tenas.search.shortlist import rank_cells, shortlist_json
from tenas.seeds import derive_seed


def follow_cells(step: Step) -> State | None:
    """Repeat the decisions of a round of cells. Returns the state after it."""
    case, ledger, ranking = step.case, step.case.ledger, step.file(layout.CELLS)
    subjects = _sample(step)
    if subjects is None:
        ledger.hash(ranking)
        return step.after(None)
    sample = step.file(layout.SAMPLE)
    scores, values, sound = scores_of_round(step, subjects, sample)
    if values is None:
        ledger.hash(ranking)
        return step.after(None)
    columns, rows, kept = rank_cells(step.entry, subjects, values)
    ledger.table(ranking, columns, rows, "is not the ranking that its scores lead to")
    case.decision(
        step.file(layout.SHORTLIST), "shortlist", "shortlist", shortlist_json(case.space, kept), [sample, ranking],
        "is not the shortlist that its ranking leads to", step.entry,
    )  # fmt: skip
    _tell(step, rows, kept, scores)
    return step.after(Cells(case.space, tuple(kept)), sound=sound)


def _sample(step: Step) -> Cells | None:
    """Repeat the sample of a round; the cells of its file if the two differ or the sample cannot be repeated."""
    ledger, path = step.case.ledger, step.file(layout.SAMPLE)
    drawn = None
    try:
        drawn = _drawn(step)
    except TenasError as error:
        ledger.fault(path, f"cannot be drawn again: {error}")
    except FileNotFoundError:
        ledger.note(f"{step.entry['sample']}, the list that {path} was made from, is not here: it was not checked.")
    if drawn is not None:
        rows = [{"cell": cell.number, "arch": cell.arch} for cell in drawn.cells]
        ledger.table(
            path, Cells.columns, rows, "does not have the cells that its seed, its limits and what was left before lead to"
        )
        if ledger.sound(path):
            return drawn
    if ledger.hash(path) is None:
        return drawn
    with ledger.damage(path):
        return read_cells(path, step.case.space)
    return drawn


def _drawn(step: Step) -> Cells:
    sample = step.entry["sample"]
    if sample is None:
        return step.before.cells
    if isinstance(sample, str) and sample != "all":
        if not Path(sample).exists():
            raise FileNotFoundError(sample)
        return listed_cells(sample, step.case.space, step.limits)
    count = None if sample == "all" else sample
    return sample_cells(step.before.mask, count, derive_seed(step.seed, step.round.number, "sample"), step.limits)


def _tell(step: Step, rows: Sequence[Mapping[str, Any]], kept: Sequence[Cell], scores: Scores) -> None:
    """Report which cells a round has kept, and by which rows of which files."""
    folder = scores.paths[0].parent
    where = f"measurements in {folder}: {scores.counts}"
    step.tell(f"  round {step.round.number}, {len(rows)} cells, of which it keeps {len(kept)}; {where}")
    by_number = {row["cell"]: row for row in rows}
    for cell in kept:
        row = by_number[cell.number]
        parts = []
        for reference in step.entry["measures"]:
            name = get_measure(reference).name
            error = f" +- {row[f'{name}_se']:.2g}" if row[f"{name}_se"] != "" else ""
            parts.append(f"{name} {row[f'{name}_score']:+.4g}{error} (rank {row[f'{name}_rank']:g})")
        share = "" if row["kept_share"] == "" else f", share {row['kept_share']:.2f}"
        step.tell(f"    keeps {cell.arch}: place {row['place']}{share}: {', '.join(parts)}; rows {scores.places(cell.number)}")
