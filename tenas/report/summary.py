"""Gather the results of a run's seeds from their files."""

import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from tenas import layout
from tenas.errors import TenasError
from tenas.files import finite, read_json, read_table, sha256
from tenas.provenance import read_record
from tenas.report.warnings import warnings_of_round
from tenas.search.origins import check_same_origins, shards_in
from tenas.settings.search import first_difference, read_settings
from tenas.settings.study import read_study

COLUMNS = (
    "seed", "arch", "search_seconds", "pruned_share", "parameters", "flops", "best_epoch", "valid_accuracy", "test_accuracy"
)  # fmt: skip
# Further columns of a search with rounds of cells or trainings, after pruned_share.
FUNNEL = {"cells": ("kept_share",), "training": ("training_seconds", "finalist_accuracy")}


class RoundSummary(NamedTuple):
    """Result of a round. ``subjects``: number of subjects measured or trained; ``kept``: number kept.

    ``shares``: for each decision, how often it is repeated on bootstrap samples. ``seconds``: total of its jobs. ``best``: text
    of the first cell, for rounds of cells and trainings; ``accuracy``: its validation accuracy in %, for the latter.
    ``warnings``: sentences about measures that told little (tenas.report.warnings).
    """

    number: int
    kind: str
    subjects: int
    kept: int
    shares: list[float]
    seconds: float
    best: str | None = None
    accuracy: float | None = None
    warnings: tuple[str, ...] = ()


def _seconds(path: Path, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise TenasError(f"The record {path} does not say how many seconds it took: run its stage again.")
    return float(value)


def records_of_scores(folder: Path) -> dict[Path, dict[str, Any]]:
    """The records of the scoring jobs of a folder of scores, by their paths.

    The number of shards is read from the first record: an earlier search may have left further ones. Raises TenasError for a
    missing or damaged record.
    """
    first = folder / "1.json"
    record = read_json(first, "record of scores")
    last = shards_in(record)
    if last is None:
        raise TenasError(f"The record {first} is of shard {str(record.get('shard'))!r}: measure the round again.")
    # One by one: a damaged number of shards ends at the first record that is missing.
    paths = (folder / f"{number}.json" for number in range(1, last + 1))
    return {path: read_json(path, "record of scores") for path in paths}


def scoring_seconds(folder: Path) -> float:
    """Total wall time of the scoring jobs of a folder of scores. Raises TenasError for a missing or damaged record."""
    return sum(_seconds(path, record.get("wall_seconds")) for path, record in records_of_scores(folder).items())


def _number(path: Path, row: Mapping[str, str], column: str) -> float | None:
    """A number of a table; None for an empty field."""
    try:
        return finite(float(row[column])) if row[column] else None
    except ValueError as error:
        raise TenasError(f"The table {path} has {row[column]!r} for {column!r}, which is not a number.") from error


def training_seconds(run_dir: Path, seed: int, number: int, trainings: int) -> float:
    """Total time of a round's short trainings. Raises TenasError for missing or damaged metrics."""
    places = [{"seed": seed, "round": number, "place": place} for place in range(1, trainings + 1)]
    paths = [layout.path(layout.TRAINING_METRICS, run_dir, **place) for place in places]
    return sum(_seconds(path, read_json(path, "training's metrics").get("training_seconds")) for path in paths)


def summarise_round(run_dir: Path, seed: int, number: int, entry: Mapping[str, Any]) -> RoundSummary:
    """Summarise a round from its table and records. ``entry``: its settings. Raises TenasError for missing or damaged files."""
    kind = entry["kind"]
    path = layout.path(layout.TABLE[kind], run_dir, seed=seed, round=number)
    warnings: tuple[str, ...] = ()
    if kind == "training":
        rows = read_table(path, ("arch", "valid_accuracy", "place", "kept"), "ranking")
        shares: list[float] = []
        # Looking trainings up takes no time.
        seconds = training_seconds(run_dir, seed, number, len(rows)) if entry["column"] is None else 0.0
    else:
        decision, share = ("kept", "kept_share") if kind == "cells" else ("pruned", "pruned_share")
        rows = read_table(path, (decision, share, *(("arch", "place") if kind == "cells" else ())), "ranking")
        values = [_number(path, row, share) for row in rows if row[decision] == "1"]
        shares = [value for value in values if value is not None]
        seconds = scoring_seconds(layout.path(layout.SCORES, run_dir, seed=seed, round=number, shard=1).parent)
        try:
            warnings = tuple(warnings_of_round(rows, "_score" if kind == "cells" else "_change"))
        except ValueError as error:
            raise TenasError(f"The table {path} is damaged: {error}.") from error
    if not rows:
        raise TenasError(f"The table {path} has no rows: run its stage again.")
    seconds = round(seconds, 3)
    if kind in ("operators", "edges"):
        return RoundSummary(
            number, kind, len(rows), sum(row["pruned"] == "0" for row in rows), shares, seconds, warnings=warnings
        )
    kept, first = sum(row["kept"] == "1" for row in rows), next((row for row in rows if row["place"] == "1"), None)
    if first is None:
        raise TenasError(f"The table {path} has no cell in the first place: run its stage again.")
    accuracy = _number(path, first, "valid_accuracy") if kind == "training" else None
    return RoundSummary(number, kind, len(rows), kept, shares, seconds, first["arch"], accuracy, warnings)


def summarise_rounds(run_dir: str | os.PathLike[str], seed: int, settings: Mapping[str, Any]) -> list[RoundSummary]:
    """The rounds of a seed, in their order."""
    return [summarise_round(Path(run_dir), seed, number, entry) for number, entry in enumerate(settings["rounds"], start=1)]


def of_search(rounds: Sequence[RoundSummary]) -> dict[str, float | None]:
    """The columns of summary.csv about the search: its seconds, and how certain its decisions were."""

    def share(kinds: tuple[str, ...]) -> float | None:
        shares = [value for part in rounds if part.kind in kinds for value in part.shares]
        return round(mean(shares), 4) if shares else None

    kinds = {part.kind for part in rounds}
    found: dict[str, float | None] = {
        "search_seconds": round(sum(part.seconds for part in rounds if part.kind != "training"), 3),
        "pruned_share": share(("operators", "edges")),
    }
    if "cells" in kinds:
        found["kept_share"] = share(("cells",))
    if "training" in kinds:
        last = [part for part in rounds if part.kind == "training"][-1]
        found["training_seconds"] = round(sum(part.seconds for part in rounds if part.kind == "training"), 3)
        found["finalist_accuracy"] = last.accuracy
    return found


class StaleWarning(UserWarning):
    """A result does not belong to the run as it is now, and is left out."""


def _is_stale(metrics: Mapping[str, Any], genotype: Mapping[str, Any], *files: Path) -> bool:
    """Whether metrics are of another cell, or made from other ``files`` than there are now."""
    made = metrics.get("provenance")
    inputs = made.get("inputs") if isinstance(made, dict) else None
    recorded = {Path(str(name)).name: digest for name, digest in inputs.items()} if isinstance(inputs, dict) else {}
    others = [file for file in files if file.exists() and recorded.get(file.name, sha256(file)) != sha256(file)]
    return bool(metrics) and (metrics.get("arch") != genotype["arch"] or bool(others))


def results_of_seed(run_dir: Path, seed: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Genotype, look-up and metrics of a seed; the latter two are empty if the run has none.

    Metrics of a retraining of another genotype or with other settings than the run has now are left out, with a warning.
    """
    genotype_file = layout.path(layout.GENOTYPE, run_dir, seed=seed)
    genotype = read_json(genotype_file, "genotype")
    found: list[dict[str, Any]] = []
    for pattern, what in ((layout.LOOKUP, "benchmark look-up"), (layout.RETRAIN_METRICS, "retraining's metrics")):
        path = layout.path(pattern, run_dir, seed=seed)
        result = read_record(path, what) if path.exists() else {}
        if pattern == layout.RETRAIN_METRICS and _is_stale(result, genotype, genotype_file, layout.path(layout.RETRAIN, run_dir)):
            warnings.warn(f"The {what} {path} are of an earlier genotype or other settings: they are left out.", StaleWarning, 2)
            result = {}
        # The accuracy of another cell next to this one would be wrong, but look right.
        if result and result.get("arch") != genotype["arch"]:
            raise TenasError(f"The {what} {path} is of another genotype than {genotype_file}: run it again.")
        found.append(result)
    look_up, metrics = found
    return genotype, look_up, metrics


def of_other_settings(run_dir: str | os.PathLike[str], seeds: Iterable[int]) -> list[int]:
    """Those of ``seeds`` whose genotype was searched with other settings than the run has now, as after a changed preset."""
    settings = read_settings(layout.path(layout.SEARCH, run_dir))
    found = []
    for seed in seeds:
        genotype = layout.path(layout.GENOTYPE, run_dir, seed=seed)
        made_by = read_json(genotype, "genotype").get("made_by") if genotype.exists() else None
        of = made_by.get("settings") if isinstance(made_by, dict) else None
        found += [] if of is None or first_difference(of, settings) is None else [seed]
    return found


def is_stale_study(folder: str | os.PathLike[str]) -> bool:
    """Whether the correlations of a study were found with other settings than it has now."""
    path, record = (layout.path(name, folder) for name in (layout.STUDY, layout.CORRELATIONS_RECORD))
    made = read_json(record, "record of correlations").get("settings") if record.exists() else None
    return made not in (None, read_study(path), read_json(path, "study settings"))


def check_same_settings(run_dir: str | os.PathLike[str], seeds: Iterable[int]) -> None:
    """Raise TenasError for seeds that were searched with other settings than the run has now."""
    if others := of_other_settings(run_dir, seeds):
        raise TenasError(
            f"Seed {others[0]} of {run_dir} was searched with other settings than {layout.SEARCH} has now: search again, or undo "
            "the change of the configuration."
        )


def summarise(run_dir: str | os.PathLike[str], seeds: Iterable[int]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of summary.csv, one row per seed. Accuracies are in %; fields without a result are empty.

    ``search_seconds``: time of all scoring jobs. ``pruned_share``: how certain the pruning was (docs/method.md). With rounds of
    cells or trainings: ``kept_share``, how certain the choice of cells was; ``training_seconds``, time of the short trainings;
    ``finalist_accuracy``, validation accuracy of the best short training.

    ``parameters`` and ``flops`` are of the retrained network. After those and COLUMNS, for each accuracy of the table: value,
    ``_rank`` (1 is best), ``_regret`` (points below the best); then the parameters and FLOPs that the table has. The last is
    ``warnings``: of which measures in which rounds were constant, saturated, infinite or taken once.
    Raises TenasError for a seed without a genotype or with results of another one, for a missing table or record of a round, and
    for seeds of other settings, or of different images or tables.
    """
    run_dir, seeds = Path(run_dir), list(seeds)
    check_same_settings(run_dir, seeds)
    check_same_origins(run_dir, seeds)
    settings = read_settings(layout.path(layout.SEARCH, run_dir))
    kinds = {entry["kind"] for entry in settings["rounds"]}
    funnel = [column for kind, columns in FUNNEL.items() if kind in kinds for column in columns]
    columns, rows = [*COLUMNS[:4], *funnel, *COLUMNS[4:]], []
    for seed in seeds:
        genotype, benchmark, metrics = results_of_seed(run_dir, seed)
        rounds = summarise_rounds(run_dir, seed, settings)
        row = {"seed": seed, "arch": genotype["arch"]} | of_search(rounds)
        row |= {key: metrics[key] for key in COLUMNS[4:] if key in metrics}
        for name, standing in benchmark.get("accuracies", {}).items():
            if standing is not None:
                row |= {
                    name: standing["accuracy"],
                    f"{name}_rank": standing["rank"],
                    # Of two decimal numbers; the rest is binary noise.
                    f"{name}_regret": round(standing["regret"], 6),
                }
        row |= {name: value for name, value in benchmark.get("costs", {}).items() if value is not None}
        columns += [key for key in row if key not in columns]
        if warnings := [f"round {part.number}: {warning}" for part in rounds for warning in part.warnings]:
            row["warnings"] = "; ".join(warnings)
        rows.append(row)
    return [*columns, "warnings"], rows


def accuracies(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The accuracies in the rows of ``summarise``, by seed, for comparisons between runs."""
    return {
        f"seed{row['seed']}": {
            name: value
            for name, value in row.items()
            if name.endswith(("accuracy", "_valid", "_test", "_valtest")) and value is not None
        }
        for row in rows
    }
