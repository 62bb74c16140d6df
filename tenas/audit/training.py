"""Audit a round of trainings: rank the finalists again, by the metrics of each training or by the space's table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tenas import layout
from tenas.audit.ledger import mapping
from tenas.audit.step import State, Step
from tenas.files import read_table
from tenas.scoring.subjects import Cell, Cells
from tenas.search.finalists import COLUMNS, looked_up, rank_finalists, trained
from tenas.search.made_by import training_code
from tenas.search.shortlist import shortlist_json


def follow_training(step: Step) -> State | None:
    """Repeat the decision of a round of trainings. Returns the state after it."""
    case, ledger, ranking = step.case, step.case.ledger, step.file(layout.TRAININGS)
    cells = step.before.cells.cells
    inputs: list[Path | None] = [step.before.path, ranking]
    if step.entry["column"] is None:
        files = [_training(step, place, cells) for place in range(1, step.round.trials + 1)]
        _left_over(step, files)
        results, sound = _results(step, files, cells), all(map(ledger.sound, files))
    else:
        table = _table(step)
        results, sound = _looked_up(step, table, cells), table is None or ledger.sound(table)
        inputs.append(table)
    if results is None:
        ledger.hash(ranking)
        return step.after(None)
    columns, rows, kept = rank_finalists(cells, results, step.entry["keep"])
    ledger.table(ranking, columns, rows, "is not the ranking that its trainings lead to")
    case.decision(
        step.file(layout.FINALISTS), "list of finalists", "finalists", shortlist_json(case.space, kept), inputs,
        "does not have the finalists that the ranking leads to",
    )  # fmt: skip
    _tell(step, rows)
    return step.after(Cells(case.space, tuple(kept)), sound=sound)


def _training(step: Step, place: int, cells: Sequence[Cell]) -> Path:
    """Check the record of a training: cell, seed, round, protocol, and the hash of its history."""
    case, ledger = step.case, step.case.ledger
    path = step.file(layout.TRAINING_METRICS, place=place)
    arch = cells[place - 1].arch if place <= len(cells) else None
    case.checkpoint(path.parent)
    value = case.result(path, "training's metrics", arch, "trainings", training_code(case.space))
    if not value:
        return path
    for key, expected in {"round": step.round.number, "place": place}.items():
        ledger.equal(path, key, value.get(key), expected)
    if layout.TRAINING_HISTORY.rpartition("/")[2] not in mapping(value.get("files")):
        ledger.fault(path, "does not have the hash of its history")
    if arch is None:
        return path
    made = mapping(value.get("provenance"))
    ledger.equal(path, "seed", made.get("seed"), step.seed)
    protocol = {key: part for key, part in mapping(made.get("settings")).items() if key != "dataset"}
    if protocol != step.entry["training"]:
        ledger.fault(path, f"was trained with other settings than {case.settings_file} has")
    case.inputs(
        path, made.get("inputs"), {file.name: file for file in (case.settings_file, step.before.path)}, exact=True
    )  # fmt: skip
    return path


def _left_over(step: Step, files: Sequence[Path]) -> None:
    folders = {file.parent for file in files}
    for path in sorted(step.file(layout.TRAINING, place=1).parent.glob("*")):
        if path not in folders:
            step.case.ledger.note(f"{path} is no part of the round: an earlier or interrupted run has left it.")


def _results(step: Step, files: Sequence[Path], cells: Sequence[Cell]) -> list[dict[str, Any]] | None:
    first = next((file for file in files if not step.case.ledger.sound(file)), step.file(layout.TRAININGS))
    with step.case.ledger.damage(first, "does not lead to a ranking"):
        results = trained(files, cells)
        # A value that is no number would fail in the sorting.
        return [{key: value if key != "valid_accuracy" else float(value) for key, value in r.items()} for r in results]
    return None


def _table(step: Step) -> Path | None:
    """Find the table that was looked up by its hash in the decision; None if it is not here."""
    path = step.file(layout.FINALISTS)
    recorded = mapping(mapping(step.case.ledger.json(path, "list of finalists").get("made_by")).get("inputs"))
    known = (step.before.path.name, step.file(layout.TRAININGS).name)
    digests = [digest for name, digest in recorded.items() if Path(name).name not in known]
    named: list[str] = []
    for file in sorted(step.case.folder.glob(layout.LOOKUP.replace("{seed}", "*"))):
        named += mapping(mapping(step.case.ledger.json(file, "look-up").get("provenance")).get("inputs"))
    table = step.case.find_table(digests[0] if digests else None, named)
    if table is None:
        step.case.ledger.note(
            f"The table that round {step.round.number} looks {step.entry['column']!r} up in is not here (--table gives it): its "
            "figures were taken as they are."
        )
    return table


def _looked_up(step: Step, table: Path | None, cells: Sequence[Cell]) -> list[dict[str, Any]] | None:
    ranking = step.file(layout.TRAININGS)
    with step.case.ledger.damage(ranking, "does not go with its shortlist or table"):
        if table is not None:
            return looked_up(table, step.entry["column"], step.case.space, cells)
        if step.case.ledger.hash(ranking) is None:
            return None
        values = {row["arch"]: float(row["valid_accuracy"]) for row in read_table(ranking, COLUMNS, "ranking")}
        return [{"valid_accuracy": values[cell.arch]} for cell in cells]
    return None


def _tell(step: Step, rows: Sequence[Mapping[str, Any]]) -> None:
    """Report which cells a round has kept, and by which training."""
    kept = sorted((row for row in rows if row["kept"]), key=lambda row: row["place"])
    where = step.file(layout.TRAINING, place=1).parent if step.entry["column"] is None else f"column {step.entry['column']}"
    step.tell(f"  round {step.round.number}, {len(rows)} trainings, of which it keeps {len(kept)}; {where}")
    for row in kept:
        epoch = "" if row["best_epoch"] == "" else f" in epoch {row['best_epoch']}"
        which = f"; training {row['shortlisted']}" if step.entry["column"] is None else ""
        step.tell(f"    keeps {row['arch']}: {row['valid_accuracy']:.2f} % in validation{epoch}{which}")
