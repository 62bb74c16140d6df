"""Audit a folder of scores, of a round of a search or of a study: its shards, their rows, their records."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenas import layout
from tenas.audit.case import Case
from tenas.audit.ledger import mapping
from tenas.audit.step import Step
from tenas.errors import TenasError
from tenas.files import WHOLE, read_csv
from tenas.measures.catalogue import get_measure
from tenas.scoring.subjects import Cells, Measurement, Subjects, Trials, plan
from tenas.scoring.table import read_scores, score_columns
from tenas.search.made_by import measuring_code


@dataclass
class Scores:
    """Files of the shards, and the rows of each subject as (file, line); the header is line 1."""

    paths: list[Path] = field(default_factory=list)
    rows: dict[int, list[tuple[Path, int]]] = field(default_factory=dict)

    def places(self, subject: int) -> str:
        """Rows of a subject, such as ``1.csv:14-17``."""
        lines: dict[Path, list[list[int]]] = {}
        for path, line in self.rows.get(subject, []):
            ranges = lines.setdefault(path, [])
            if ranges and ranges[-1][-1] == line - 1:
                ranges[-1][-1] = line
            else:
                ranges.append([line, line])
        return ", ".join(f"{path.name}:{first}-{last}" for path, ranges in lines.items() for first, last in ranges)

    @property
    def counts(self) -> str:
        """Number of rows in each file, for the trail."""
        found = dict.fromkeys(self.paths, 0)
        for places in self.rows.values():
            for path, _ in places:
                found[path] += 1
        return ", ".join(f"{path.name} ({count})" for path, count in found.items())


def look_at_scores(
    case: Case,
    folder: Path,
    subjects: Subjects,
    *,
    stage: str,
    entry: Mapping[str, Any],
    facts: Mapping[str, int],
    subjects_file: Path,
) -> Scores:
    """Check scores and record of each shard; faults are in the ledger.

    ``stage``: the one that measured; ``entry``: settings of the round or study. ``facts``: further values that the records must
    have. ``subjects_file``: the measured mask or list of cells.
    """
    ledger, measures = case.ledger, entry["measures"]
    shards = _shards(case, folder)
    inputs = {
        subjects_file.name: subjects_file,
        **{name: case.prepared(name) for name in (layout.IMAGES, layout.CARD)},
        **({layout.LABELS: case.prepared(layout.LABELS)} if any(get_measure(name).needs_labels for name in measures) else {}),
    }
    code = measuring_code(stage, case.settings, entry)
    found = Scores()
    for shard in range(1, shards + 1):
        path = folder / f"{shard}.csv"
        record_file = layout.record_of(path)
        record = ledger.json(record_file, "record of scores")
        expected = plan(measures, subjects.ids, (shard, shards))
        found.paths.append(path)
        _rows(case, path, measures, subjects, expected, found)
        if not record:
            continue
        for key, value in {**facts, "shard": f"{shard}/{shards}", "measurements": len(expected)}.items():
            ledger.equal(record_file, key, record.get(key), value)
        case.same_settings(record_file, record.get("settings"))
        ledger.code(record_file, "measurements", record.get("code"), code)
        case.inputs(record_file, record.get("inputs"), inputs, exact=True)
        ledger.recorded(path, record.get("scores_sha256"), record_file)
        ledger.sealed(record_file, record)
        _costs(case, record_file, record, expected)
        ledger.processor(mapping(record.get("machine")))
    known = {f"{shard}.{kind}" for shard in range(1, shards + 1) for kind in ("csv", "json")}
    for path in sorted(folder.glob("*")):
        if path.name not in known:
            ledger.note(f"{path} is no part of the scores: an earlier or interrupted run has left it.")
    return found


def scores_of_round(step: Step, subjects: Subjects, subjects_file: Path) -> tuple[Scores, dict[Measurement, float] | None, bool]:
    """Check and read the scores of a round.

    Returns their rows by subject, their values (None if they cannot be ranked), and whether their files have no faults.
    """
    ledger = step.case.ledger
    scores = look_at_scores(
        step.case,
        step.file(layout.SCORES, shard=1).parent,
        subjects,
        stage="score",
        entry=step.entry,
        facts={"seed": step.seed, "round": step.round.number},
        subjects_file=subjects_file,
    )
    sound = all(map(ledger.sound, (*([subjects_file] if isinstance(subjects, Cells) else []), *scores.paths)))
    with ledger.damage(scores.paths[0].parent if sound else scores.paths[0], "cannot be ranked"):
        return scores, read_scores(scores.paths, step.entry["measures"], subjects, f"round {step.round.number}"), sound
    return scores, None, sound


def _shards(case: Case, folder: Path) -> int:
    """Number of shards, from the first record that names it."""
    for record in sorted(folder.glob("*.json"), key=lambda path: (len(path.name), path.name)):
        said = re.fullmatch(r"\d{1,6}/([1-9]\d{0,5})", str(case.ledger.json(record, "record of scores").get("shard")))
        if said:
            return int(said[1])
    case.ledger.fault(folder, "has no record that says into how many shards the measurements were split")
    return len(list(folder.glob("*.csv"))) or 1


def _rows(
    case: Case,
    path: Path,
    measures: Mapping[str, Any],
    subjects: Subjects,
    expected: Sequence[Measurement],
    found: Scores,
) -> None:
    """Check that a scores file has the rows of its shard, in their order."""
    ledger = case.ledger
    if ledger.hash(path) is None:
        return
    try:
        rows = read_csv(path, score_columns(subjects), "scores file")
    except TenasError as error:
        ledger.fault(path, f"is damaged: {error}")
        return
    number = "trial" if isinstance(subjects, Trials) else "cell"
    order = {get_measure(name).name: place for place, name in enumerate(measures)}
    places = {subject: place for place, subject in enumerate(subjects.ids)}
    expected = sorted(expected, key=lambda m: (places[m.subject], order[m.measure], m.repeat))
    if len(rows) != len(expected):
        ledger.fault(path, f"has {len(rows)} rows, where its shard has {len(expected)}")
    for line, (row, measurement) in enumerate(zip(rows, expected, strict=False), start=2):
        has = (row[number], row["measure"], row["repeat"])
        if has != tuple(map(str, measurement)):
            here, there = (f"{number} {subject}, {name}, repeat {repeat}" for subject, name, repeat in (has, measurement))
            ledger.fault(path, f"has {here} in line {line}, where {there} belongs")
            break
    for line, row in enumerate(rows, start=2):
        if WHOLE.fullmatch(row[number]):
            found.rows.setdefault(int(row[number]), []).append((path, line))


def _costs(case: Case, path: Path, record: Mapping[str, Any], expected: Sequence[Measurement]) -> None:
    """Check that the record has the cost of every measurement."""
    counts: dict[str, int] = {}
    for measurement in expected:
        counts[measurement.measure] = counts.get(measurement.measure, 0) + 1
    found = {name: mapping(cost).get("measurements") for name, cost in mapping(record.get("costs")).items()}
    case.ledger.equal(path, "costs", found, dict(sorted(counts.items())))
