"""Audit the results of a search: genotype, drawing, look-up, retraining, export, summary."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tenas import layout
from tenas.audit.case import Case
from tenas.audit.ledger import alike, mapping
from tenas.audit.step import State
from tenas.benchmark.index import look_up
from tenas.code import code_digest
from tenas.errors import TenasError
from tenas.files import format_csv, read_table
from tenas.provenance import has_seal, input_path
from tenas.report.drawing import draw
from tenas.report.summary import accuracies, summarise
from tenas.search.made_by import training_code
from tenas.spaces import Genotype, Mask


def look_at_genotype(case: Case, seed: int, state: State) -> Genotype | None:
    """Check that the genotype is the one left by the last state, and the results made from it."""
    path, genotype = layout.path(layout.GENOTYPE, case.folder, seed=seed), None
    with case.ledger.damage(state.path, "leaves no genotype"):
        value = state.value
        genotype = case.space.genotype(value) if isinstance(value, Mask) else case.space.parse(value.cells[0].arch)
    if genotype is None:
        case.ledger.hash(path)
        return None
    otherwise = "is not the genotype that the last round leaves"
    case.decision(path, "genotype", "genotype", genotype.to_json(), [state.path], otherwise)
    drawing = layout.path(layout.DRAWING, case.folder, seed=seed)
    if drawing.exists() and case.ledger.hash(drawing) is not None and drawing.read_bytes() != draw(genotype).encode():
        case.ledger.fault(drawing, "is not the drawing of its genotype")
    case.trail.append(f"  genotype {genotype.arch}")
    _look_up(case, layout.path(layout.LOOKUP, case.folder, seed=seed), genotype)
    _retraining(case, seed, path, genotype)
    _export(case, seed, genotype)
    return genotype


def _look_up(case: Case, path: Path, genotype: Genotype) -> None:
    """Check that the look-up is of this genotype, and repeat it if the table is here."""
    if not path.exists() or not (value := case.ledger.json(path, "look-up")):
        return
    case.ledger.equal(path, "arch", value.get("arch"), genotype.arch)
    if has_seal(value):
        case.ledger.sealed(path, value)
    inputs = mapping(mapping(value.get("provenance")).get("inputs"))
    case.inputs(path, inputs, {})
    tables = [input_path(str(name)) for name in inputs]
    if not all(os.path.isfile(table) and case.ledger.hash(table) in inputs.values() for table in tables):
        return
    try:
        again = look_up(genotype, value.get("index"), case.space)
    except (TenasError, OSError, TypeError, ValueError) as error:
        case.ledger.fault(path, f"cannot be looked up again: {' '.join(str(error).split())}")
        return
    if value.keys() - again.keys() - {"record_sha256"}:
        case.ledger.fault(path, "has other keys than a look-up")
    for key in sorted(value.keys() & again.keys() - {"provenance"}):
        if not alike(value[key], again[key]):
            case.ledger.fault(path, f"has something else under {key!r} than its table")


def _retraining(case: Case, seed: int, genotype_file: Path, genotype: Genotype) -> None:
    path = layout.path(layout.RETRAIN_METRICS, case.folder, seed=seed)
    case.checkpoint(path.parent)
    if not path.exists():
        return
    value = case.result(path, "retraining's metrics", genotype.arch, "trainings", training_code(case.space))
    if not value:
        return
    settings_file = layout.path(layout.RETRAIN, case.folder)
    made = mapping(value.get("provenance"))
    case.inputs(path, made.get("inputs"), {file.name: file for file in (settings_file, genotype_file)}, exact=True)
    case.ledger.equal(path, "seed", made.get("seed"), seed)
    if settings_file.exists() and made.get("settings") != case.ledger.json(settings_file, "retraining settings"):
        case.ledger.fault(path, f"was trained with other settings than {settings_file} has")
    missing = {Path(layout.HISTORY).name, Path(layout.NETWORK).name} - set(mapping(value.get("files")))
    if missing:
        case.ledger.fault(path, f"does not have the hash of {', '.join(sorted(missing))}")


def _export(case: Case, seed: int, genotype: Genotype) -> None:
    path = layout.path(layout.EXPORT, case.folder, seed=seed)
    if not path.exists():
        return
    value = case.result(path, "export", genotype.arch, "exports", code_digest("tenas.export.stage"))
    if not value:
        return
    network = layout.path(layout.NETWORK, case.folder, seed=seed)
    case.inputs(path, mapping(value.get("provenance")).get("inputs"), {network.name: network}, exact=True)
    missing = {Path(layout.PROGRAM).name, Path(layout.ONNX).name} - set(mapping(value.get("files")))
    if missing:
        case.ledger.fault(path, f"does not have the hash of {', '.join(sorted(missing))}")


def look_at_summary(case: Case, seeds: Iterable[int]) -> None:
    """Check summary and metrics against the files of the seeds."""
    path, metrics = (layout.path(name, case.folder) for name in (layout.SUMMARY, layout.METRICS))
    if not path.exists() or case.ledger.hash(path) is None:
        return
    try:
        rows = read_table(path, ("seed", "arch"), "summary")
        columns, again = summarise(case.folder, [int(row["seed"]) for row in rows])
    except (TenasError, ValueError, TypeError, LookupError, AttributeError) as error:
        case.ledger.fault(path, f"does not go with the seeds' files: {' '.join(str(error).split())}")
        return
    for row, other in zip(rows, _as_read(columns, again), strict=True):
        # Other versions may have other columns: those that only this version has are not compared.
        for key in row.keys() - other.keys():
            case.ledger.fault(path, f"has a column {key!r} that no file of the seeds has anything for")
        for key in row.keys() & other.keys():
            if row[key] != other[key]:
                case.ledger.fault(path, f"has {row[key] or 'nothing'} for {key} of seed {row['seed']}, not {other[key]}")
    for seed in sorted(set(seeds) - {int(row["seed"]) for row in rows}):
        case.ledger.note(f"{path} has no row of seed {seed}.")
    if metrics.exists() and case.ledger.hash(metrics) is not None:
        expected = accuracies(again)
        for name, found in case.ledger.json(metrics, "metrics").items():
            if not mapping(found).items() <= expected.get(name, {}).items():
                case.ledger.fault(metrics, f"has other accuracies under {name!r} than {path}")


def _as_read(columns: list[str], rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """Rows as read back from their CSV file."""
    return csv.DictReader(io.StringIO(format_csv(columns, rows)))
