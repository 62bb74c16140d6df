"""Measure a shard, file to file: plan, resume, measure, record."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tenas.data.prepared import labelled, read_prepared
from tenas.errors import TenasError
from tenas.files import format_csv, read_json, sha256, sha256_of, write_json, write_text
from tenas.layout import LABELS, checkpoint_of, record_of
from tenas.locks import alone
from tenas.measures.catalogue import get_measure
from tenas.progress import Progress
from tenas.provenance import Stopwatch, package_versions, processor, provenance, sealed
from tenas.scoring.checkpoint import Checkpoint, Result, origin_of
from tenas.scoring.subjects import Measurement, Subjects, plan
from tenas.scoring.table import score_columns, score_rows
from tenas.scoring.workers import Workers

# Of measures on a GPU (tenas.measures.threads).
PRECISION = "float32 without TF32"


def read_inputs(measures: Iterable[str], images: str | os.PathLike[str]) -> tuple[Any, dict[str, Any], dict[str, str]]:
    """Read prepared images, their card, to which their ``labels`` are added if one of the measures needs them, and the hashes.

    The hashes are of the content that was read: a file may be replaced while it is measured.
    """
    found = read_prepared(images, labels=any(get_measure(reference).needs_labels for reference in measures))
    if found.labels is None:
        return found.images, found.card, found.hashes
    return found.images, found.card | {"labels": labelled(found.labels, Path(images).with_name(LABELS))}, found.hashes


def score_shard(
    *,
    settings: Mapping[str, Any],
    measures: Mapping[str, Mapping[str, Any]],
    subjects: Subjects,
    images: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    shard: tuple[int, int],
    threads: int,
    device: str,
    code: str,
    facts: Mapping[str, int],
    progress: Progress,
    what: str,
    workers: Workers | None = None,
    reuse: bool = False,
    planned_code: str | None = None,
) -> None:
    """Measure a shard: ``out`` and, next to it with the suffix .json, its record.

    Resumes a killed job: finished measurements are kept in a hidden file next to ``out``, and the record says under
    ``resumed`` how many were found there. ``facts``: by name, the numbers that seeds are derived from: seed and round of a
    search, seed of a study. ``workers``: those of a whole search. ``reuse``: existing scores of the same origin are left as they
    are. ``planned_code``: raises TenasError if ``code`` is another digest.
    """
    from tenas.device import own_device, score_device
    from tenas.scoring.score import Task, check_crops, score

    stopwatch = Stopwatch()
    if planned_code not in (None, code):
        raise TenasError(f"The code of {what} has changed since the workflow planned this job: run the same command again.")
    device = own_device(score_device(device))
    out = Path(out)
    pixels, card, hashes = read_inputs(measures, images)
    if any(entry["inputs"] != "crops" for entry in measures.values()):
        subjects.space.check_side(card["side"])
    if facts.get("round") == 1:
        check_crops(subjects.space, settings)
    measurements = plan(measures, subjects.ids, shard)
    read = _hashes(hashes, inputs)
    # Everything on which a value depends, so that another machine of the same kind may resume.
    origin = origin_of(
        {"measures": measures, "inputs": list(read.values()), **facts, "shard": shard, "device": device, "code": code}
        | {"processor": processor(device, PRECISION), "packages": package_versions()}
    )
    with alone(out.parent, out.name) as waited:
        # Another process may have been measuring the same.
        if (reuse or waited) and _made_from(out, origin):
            with progress(len(measurements), what) as advance:
                advance(len(measurements))
            return
        with (
            progress(len(measurements), f"{what}, shard {shard[0]}/{shard[1]}") as advance,
            Checkpoint(checkpoint_of(out), origin) as checkpoint,
        ):
            stopwatch.earlier = checkpoint.seconds
            resumed = len(checkpoint.values)
            if resumed:
                advance(resumed)

            def taken(result: Result) -> None:
                checkpoint.add(result, stopwatch.seconds())
                advance(1)

            waiting = [measurement for measurement in measurements if measurement not in checkpoint.values]
            task = Task(measures, subjects, tuple(facts.values()))
            score(task, pixels, card, waiting, threads=threads, device=device, taken=taken, workers=workers)
        text = format_csv(score_columns(subjects), score_rows(measures, subjects, checkpoint.values))
        made = provenance(
            settings=settings,
            inputs=read,
            stopwatch=stopwatch,
            device=device,
            precision=PRECISION,
            **facts,
            shard=f"{shard[0]}/{shard[1]}",
            measurements=len(checkpoint.values),
            resumed=resumed,
            costs=_costs(checkpoint.costs),
            code=code,
            origin=origin,
            scores_sha256=sha256_of(text),
        )
        # An existing scores file always has its own record: remove one of an earlier run first, write the new one last.
        out.unlink(missing_ok=True)
        write_json(record_of(out), sealed(made))
        write_text(out, text)
        checkpoint.remove()


def _hashes(prepared: Mapping[str, str], inputs: Iterable[str | os.PathLike[str]]) -> dict[str, str]:
    """Hashes of all files read: images, card, ``inputs``, labels."""
    images, card, *labels = prepared.items()
    return dict([images, card, *((str(path), sha256(path)) for path in inputs), *labels])


def _costs(costs: Mapping[Measurement, float]) -> dict[str, dict[str, float]]:
    """Number of measurements and their total seconds of processor time (on a GPU, of wall time), by measure."""
    found: dict[str, list[float]] = {}
    for measurement, seconds in costs.items():
        found.setdefault(measurement.measure, []).append(seconds)
    return {name: {"measurements": len(seconds), "seconds": round(sum(seconds), 3)} for name, seconds in sorted(found.items())}


def _made_from(out: Path, origin: str) -> bool:
    """Whether there are intact scores of the same origin."""
    if not out.exists() or not record_of(out).exists():
        return False
    try:
        record = read_json(record_of(out), "record of scores")
    except TenasError:
        return False
    return record.get("origin") == origin and record.get("scores_sha256") == sha256(out)
