"""Audit a study: its sample, scores, records, and correlations except for their intervals."""

from pathlib import Path

from tenas import layout
from tenas.audit.case import Case
from tenas.audit.ledger import Ledger, alike, mapping
from tenas.audit.scores import Scores, look_at_scores
from tenas.errors import TenasError
from tenas.files import read_csv
from tenas.scoring.subjects import Cells, read_cells
from tenas.search.made_by import stage_code
from tenas.settings.study import read_study
from tenas.spaces import get_space
from tenas.study.correlate import COLUMNS
from tenas.study.report import read_accuracies, read_table_of_values, rows_of_study
from tenas.study.sample import sample_table


def open_study(folder: Path, ledger: Ledger, data: Path | None, table: Path | None) -> Case | None:
    """Read settings and images of a study; None, and a fault, without settings."""
    path = layout.path(layout.STUDY, folder)
    written = ledger.json(path, "study settings")
    try:
        settings = read_study(path)
    except TenasError as error:
        ledger.fault(path, f"is no study's settings: {error}")
        return None
    case = Case(folder, path, written, settings, get_space(settings["space"]), data, table, ledger)
    case.trail.append(f"study {folder}: {case.space.name}, {', '.join(settings['measures'])}")
    case.images(sorted(folder.glob(layout.STUDY_SCORES_RECORD.format(shard="*"))))
    return case


def audit_study(case: Case) -> None:
    """Check every file of a study. The results are in the ledger and the trail of the case."""
    table, cells = _table(case), layout.path(layout.STUDY_CELLS, case.folder)
    subjects = _cells(case, cells, table)
    if subjects is None:
        return
    scores = look_at_scores(
        case,
        layout.path(layout.STUDY_SCORES, case.folder, shard=1).parent,
        subjects,
        stage="study_score",
        entry=case.settings,
        facts={"seed": case.settings["seed"]},
        subjects_file=cells,
    )
    case.trail.append(f"{len(subjects.cells)} cells; measurements in {scores.paths[0].parent}: {scores.counts}")
    _correlations(case, subjects, scores, table)


def _table(case: Case) -> Path | None:
    """Find the space's table by its hash in the record of the correlations; None if it is not here."""
    record_file = layout.path(layout.CORRELATIONS_RECORD, case.folder)
    if not record_file.exists():
        return case.table
    inputs = mapping(case.ledger.json(record_file, "record of correlations").get("inputs"))
    named = [name for name in inputs if Path(name).parent.name != "scores" and Path(name).name != layout.STUDY_CELLS]
    for name in named:
        if (found := case.find_table(inputs[name], [name])) is not None:
            return found
    case.ledger.note("The table of the study is not here (--table gives it): its cells and accuracies were taken as they are.")
    return None


def _cells(case: Case, path: Path, table: Path | None) -> Cells | None:
    """Check the cells of a study by drawing them again, if the table is here. Returns those of the file."""
    if table is not None:
        try:
            drawn = sample_table(case.settings, table)
        except TenasError as error:
            case.ledger.fault(path, f"cannot be drawn again: {error}")
        else:
            rows = [{"cell": cell.number, "arch": cell.arch} for cell in drawn.cells]
            case.ledger.table(path, Cells.columns, rows, "does not have the cells that the seed leads to")
    if case.ledger.hash(path) is None:
        return None
    with case.ledger.damage(path):
        return read_cells(path, case.space)
    return None


def _correlations(case: Case, cells: Cells, scores: Scores, table: Path | None) -> None:
    """Check the correlations against the scores, and their record. Intervals are not resampled: only their hash is checked."""
    record_file, path = (layout.path(name, case.folder) for name in (layout.CORRELATIONS_RECORD, layout.CORRELATIONS))
    if not record_file.exists():
        return
    ledger, record = case.ledger, case.ledger.json(record_file, "record of correlations")
    ledger.sealed(record_file, record)
    ledger.equal(record_file, "cells", record.get("cells"), len(cells.cells))
    case.same_settings(record_file, record.get("settings"))
    ledger.code(
        record_file, "correlations", record.get("code"), stage_code("study_correlate", case.settings, case.settings["measures"])
    )
    places = {file.name: file for file in (layout.path(layout.STUDY_CELLS, case.folder), *scores.paths)}
    case.inputs(record_file, record.get("inputs"), places)
    files = mapping(record.get("files"))
    for name in (layout.CORRELATIONS, layout.FOREST, layout.SCATTER):
        ledger.recorded(layout.path(name, case.folder), files.get(name), record_file)
    if table is None or not all(map(ledger.sound, scores.paths)) or ledger.hash(path) is None:
        return
    with ledger.damage(path):
        values = read_table_of_values(scores.paths, case.settings["measures"], cells)
        accuracies = read_accuracies(table, cells.cells, case.settings["space"])
        again = rows_of_study(case.settings, cells, values, accuracies, resamples=0)
        rows = read_csv(path, COLUMNS, "correlations")
        if len(rows) != len(again):
            ledger.fault(path, f"has {len(rows)} rows, where its scores lead to {len(again)}")
        for line, (row, expected) in enumerate(zip(rows, again, strict=False), start=2):
            for key, value in expected.items():
                if not key.endswith(("_low", "_high")) and not alike(type(value)(row[key]), value):
                    ledger.fault(path, f"has {row[key]} for {key} in line {line}, where its scores lead to {value}")
