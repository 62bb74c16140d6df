"""The table of scores: one row per measurement."""

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tenas.errors import TenasError
from tenas.files import read_csv, sha256
from tenas.layout import record_of
from tenas.measures.catalogue import Measure, get_measure
from tenas.provenance import check_alike, check_one_kind, read_record
from tenas.scoring.subjects import Measurement, Subjects, plan

VALUES = ("measure", "repeat", "value")


def score_columns(subjects: Subjects) -> tuple[str, ...]:
    """Columns of a scores file: those that identify the subject, then measure, repeat and value."""
    return (*subjects.columns, *VALUES)


def score_rows(measures: Mapping[str, Any], subjects: Subjects, values: Mapping[Measurement, float]) -> list[dict[str, Any]]:
    """Rows of a scores file, ordered by subject, measure and repeat, independent of the order of measurement."""
    order = {get_measure(reference).name: place for place, reference in enumerate(measures)}
    place = {subject: index for index, subject in enumerate(subjects.ids)}
    return [
        subjects.keys(m.subject) | {"measure": m.measure, "repeat": m.repeat, "value": values[m]}
        for m in sorted(values, key=lambda m: (place[m.subject], order[m.measure], m.repeat))
    ]


def check_value(measure: Measure, value: float, where: str) -> None:
    """Raise TenasError for a value that the measure cannot have. ``where``: beginning of the message."""
    if not value >= (-math.inf if measure.signed else 0):
        never = "NaN" if measure.signed else "negative and never NaN"
        raise TenasError(f"{where} has the value {value}; {measure.name} is never {never}.")


def read_scores(
    paths: Iterable[str | os.PathLike[str]], measures: Mapping[str, Any], subjects: Subjects, what: str = "this round"
) -> dict[Measurement, float]:
    """Read all measurements of ``subjects`` from their shards, in any order. ``what``: round or study, for messages.

    Raises TenasError if a file is cut off or damaged or does not match its record (the JSON file of the same name), if a row is
    of another search, if a measurement is missing or doubled, or if shards were measured on different kinds of devices, by
    different code, with other settings or of other files.
    """
    expected = set(plan(measures, subjects.ids))
    by_name = {get_measure(reference).name: get_measure(reference) for reference in measures}
    number = subjects.columns[1] if "trial" in subjects.columns else "cell"
    values: dict[Measurement, float] = {}
    records: dict[str, dict[str, Any]] = {}
    for path in paths:
        rows = read_csv(path, score_columns(subjects), "scores file")
        records[str(path)] = _checked_record(Path(path))
        for line, row in enumerate(rows, start=2):
            where = f"The scores file {path}, line {line},"
            try:
                measurement = Measurement(int(row[number]), row["measure"], int(row["repeat"]))
                value = float(row["value"])
            except ValueError as error:
                raise TenasError(f"{where} holds something other than numbers: {error}.") from error
            if measurement not in expected:
                raise TenasError(f"{where} is no measurement of {what}.")
            keys = subjects.keys(measurement.subject)
            if any(row[key] != str(value) for key, value in keys.items()):
                raise TenasError(f"{where} is about another subject than {number} {measurement.subject} of {what}.")
            check_value(by_name[measurement.measure], value, where)
            if measurement in values:
                raise TenasError(f"{where} repeats an earlier measurement: a shard is given twice.")
            values[measurement] = value
    check_one_kind({path: record.get("machine") for path, record in records.items()}, f"shards of {what}")
    check_alike({path: _origin(record) for path, record in records.items()}, f"shards of {what}")
    missing = sorted(expected - values.keys())
    if missing:
        raise TenasError(
            f"The scores of {what} lack {len(missing)} of {len(expected)} measurements, the first of them "
            f"{missing[0].measure} of {number} {missing[0].subject}, repeat {missing[0].repeat}: a shard is missing or cut off."
        )
    return values


def _origin(record: Mapping[str, Any]) -> dict[str, object]:
    """What all shards must have been measured with."""
    inputs = record.get("inputs")
    # Folders may have been moved between two shards.
    files = list(inputs.values()) if isinstance(inputs, Mapping) else None
    return {"code": record.get("code"), "settings": record.get("settings"), "files": files}


def _checked_record(path: Path) -> dict[str, Any]:
    """The record of the scores, empty where there is none. Raises TenasError if its hash, or theirs, is not the recorded one."""
    if not record_of(path).exists():
        return {}
    record = read_record(record_of(path), "record of scores")
    recorded = record.get("scores_sha256")
    if recorded is not None and recorded != sha256(path):
        raise TenasError(
            f"The scores file {path} has changed since it was written: its record has another hash. Measure it again."
        )
    return record
