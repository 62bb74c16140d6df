"""How far runs and studies are, from their files alone: nothing is asked of Snakemake, of a queue or of a process. No torch."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tenas import layout
from tenas.errors import TenasError
from tenas.files import read_json, read_table
from tenas.progress import duration
from tenas.report.summary import results_of_seed, summarise_round
from tenas.scoring.subjects import plan, read_cells, trials_of
from tenas.settings.search import read_settings, schedule
from tenas.settings.study import read_study
from tenas.spaces import get_space
from tenas.spaces.base import Round

# A shard writes each measurement as it is taken. One that has written nothing for so many times as long as one takes, and at
# least so many seconds, has stopped, or is about to say why.
LATE, LEAST_LATE = 20, 60
# How many of a shard's last measurements its rate is of.
RECENT = 200


class Work(NamedTuple):
    """What is under way: ``done`` of ``planned`` units; ``rate``, units per second, where something is being done now.

    ``quiet``: seconds since the last unit, where nothing has come for longer than one takes.
    """

    what: str
    unit: str
    done: int
    planned: int
    rate: float | None = None
    quiet: float | None = None

    def __str__(self) -> str:
        text = f"{self.what}: {self.done:,} of {self.planned:,} {self.unit}"
        if self.quiet is not None:
            return f"{text}, nothing for {duration(self.quiet)}"
        if self.rate and self.done < self.planned:
            text += f", {_per_time(self.rate)}, {duration((self.planned - self.done) / self.rate)} left"
        return text


def _per_time(rate: float) -> str:
    return f"{rate:.1f} per second" if rate >= 1 else f"{rate * 60:.1f} per minute"


class _Shard(NamedTuple):
    """A shard in the middle of its work, by its checkpoint (tenas.scoring.checkpoint).

    ``rate``: measurements per second over the last ones, None before the second. ``age``: seconds since the last.
    """

    done: int
    rate: float | None
    age: float

    @property
    def late(self) -> bool:
        return self.age > max(LEAST_LATE, LATE / self.rate if self.rate else 0)


def _unfinished(scores: Path, now: float) -> Iterator[_Shard]:
    """The shards of a folder that have begun and not ended."""
    for path in sorted(scores.glob(layout.checkpoint_of("*.csv").name)):
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[1:-1]
            age = now - path.stat().st_mtime
        except FileNotFoundError:  # it has ended meanwhile
            continue
        try:
            # The first measurement of a job waits for the start of its workers, so only what lies between two counts.
            times = [float(line.rpartition(",")[2]) for line in lines[-RECENT:]]
        except ValueError:  # a line that a kill has cut off, which the job will not count either
            times = []
        spent = times[-1] - times[0] if times else 0
        yield _Shard(len(lines), (len(times) - 1) / spent if spent > 0 else None, max(age, 0))


def _finished(scores: Path) -> int:
    """Measurements in a folder's scores that have their record, and so are whole."""
    count = 0
    for record in scores.glob("[0-9]*.json"):
        if record.with_suffix(".csv").exists():
            count += int(read_json(record, "record of scores").get("measurements", 0))
    return count


def scoring(what: str, scores: Path, planned: int, now: float) -> Work:
    """How far the measurements of a folder of scores are."""
    shards = list(_unfinished(scores, now))
    live = [shard for shard in shards if not shard.late]
    rate = sum(shard.rate for shard in live if shard.rate)
    quiet = None if live or not shards else min(shard.age for shard in shards)
    return Work(what, "measurements", _finished(scores) + sum(shard.done for shard in shards), planned, rate or None, quiet)


def _epochs(folder: Path) -> int:
    """Epochs that a training has finished."""
    history = folder / "history.csv"
    return len(read_table(history, ("epoch",), "training history")) if history.exists() else 0


def _training(what: str, folder: Path, epochs: int) -> Work:
    return Work(what, "epochs", epochs if (folder / "metrics.json").exists() else _epochs(folder), epochs)


def _round(run: Path, seed: int, round: Round, settings: Mapping[str, Any], now: float) -> Work:
    """How far a seed is in the round that it is in."""
    entry, space = settings["rounds"][round.number - 1], get_space(settings["space"])
    what = f"round {round.number} of {len(settings['rounds'])}, {round.stage}"
    places = {"seed": seed, "round": round.number}
    if round.stage == "training":
        if entry["column"] is not None:
            return Work(what, "look-ups", 0, round.trials)
        folders = [layout.path(layout.TRAINING, run, place=place, **places) for place in range(1, round.trials + 1)]
        epochs = entry["training"]["epochs"]
        return Work(what, "epochs", sum(_training(what, folder, epochs).done for folder in folders), epochs * round.trials)
    scores = layout.path(layout.SCORES, run, shard=1, **places).parent
    if round.stage == "cells":
        sample = layout.path(layout.SAMPLE, run, **places)
        ids = read_cells(sample, space).ids if sample.exists() else range(round.trials)
    else:
        before = layout.path(layout.MASK, run, seed=seed, round=round.number - 1)
        if not before.exists():
            return Work(what, "measurements", 0, 0)
        ids = trials_of(space.read_mask(before), round, entry).ids
    return scoring(what, scores, len(plan(entry["measures"], ids)), now)


def _best(run: Path, seed: int, rounds: Sequence[Round], settings: Mapping[str, Any]) -> str | None:
    """The cell that stands first after the last finished round of cells or trainings."""
    for round in reversed(rounds):
        if round.stage in ("cells", "training"):
            part = summarise_round(run, seed, round.number, settings["rounds"][round.number - 1])
            accuracy = "" if part.accuracy is None else f", {part.accuracy:.2f} % in validation"
            return f"best so far {part.best}{accuracy}"
    return None


def _found(run: Path, seed: int) -> str:
    """What a finished search has found, and its accuracies as far as they are known."""
    genotype, looked_up, metrics = results_of_seed(run, seed)
    known = [
        f"{name} {standing['accuracy']:.2f} %"
        for name, standing in looked_up.get("accuracies", {}).items()
        if standing is not None and name.endswith("_test")
    ]
    if metrics:
        known.append(f"retrained {metrics['test_accuracy']:.2f} %")
    return ", ".join([f"found {genotype['arch']}", *known])


def _of_seed(run: Path, seed: int, settings: Mapping[str, Any], now: float) -> tuple[list[str], bool]:
    """Lines about a seed, and whether all that it has begun has ended."""
    rounds = schedule(settings)
    finished = []
    for round in rounds:
        if not layout.path(layout.STATE[round.stage], run, seed=seed, round=round.number).exists():
            break
        finished.append(round)
    if not layout.path(layout.GENOTYPE, run, seed=seed).exists():
        if len(finished) == len(rounds):
            return [f"  seed {seed}  every round has ended, the genotype is missing"], False
        best = _best(run, seed, finished, settings)
        work = _round(run, seed, rounds[len(finished)], settings, now)
        return [f"  seed {seed}  {work}", *([] if best is None else [f"    {best}"])], False
    lines = [f"  seed {seed}  {_found(run, seed)}"]
    retraining = layout.path(layout.RETRAIN, run)
    folder = layout.path(layout.RETRAIN_METRICS, run, seed=seed).parent
    if folder.exists() and not (folder / "metrics.json").exists() and retraining.exists():
        epochs = int(read_json(retraining, "retraining settings")["epochs"])
        return [*lines, f"    {_training('retraining', folder, epochs)}"], False
    return lines, True


def failures(folder: Path) -> list[str]:
    """Jobs of a run or study that ended in an error, by the last line of their logs: one line each, with the log.

    A job that runs again starts its log again, so what has been put right is not among them.
    """
    if folder.resolve().parent.name != "results":
        return []
    logs = folder.resolve().parents[1] / "logs" / folder.name
    found = []
    for log in sorted(logs.rglob("*.log")):
        lines = log.read_text(encoding="utf-8", errors="replace").rstrip().split("\n")
        if lines[-1].startswith("tenas: ") or any(line.startswith("Traceback (most recent call last)") for line in lines):
            found.append(f"  failed  {lines[-1].removeprefix('tenas: ')}\n          {_near(log)}")
    return found


def _near(path: Path) -> str:
    """A path as one would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _of_run(run: Path, now: float) -> list[str]:
    settings = read_settings(layout.path(layout.SEARCH, run))
    names = (path.name.removeprefix("seed") for path in run.glob("seed[0-9]*"))
    seeds = sorted(int(name) for name in names if name.isdecimal())
    told = [_of_seed(run, seed, settings, now) for seed in seeds]
    ended = sum(over for _, over in told)
    return [f"{run}: {ended} of {len(seeds)} seeds that have begun are done", *(line for lines, _ in told for line in lines)]


def _of_study(study: Path, now: float) -> list[str]:
    settings = read_study(layout.path(layout.STUDY, study))
    if layout.path(layout.CORRELATIONS, study).exists():
        return [f"{study}: done"]
    cells = layout.path(layout.STUDY_CELLS, study)
    if not cells.exists():
        return [f"{study}: its cells are not drawn yet"]
    measurements = len(plan(settings["measures"], read_cells(cells, get_space(settings["space"])).ids))
    return [str(scoring(str(study), layout.path(layout.STUDY_SCORES, study, shard=1).parent, measurements, now))]


def status(folders: Sequence[str | os.PathLike[str]], now: float | None = None) -> str:
    """How far each run and study is: lines for a reader. A folder of runs stands for all of them.

    ``now``: seconds since the epoch, for rates and silences. Raises TenasError for a folder that has neither.
    """
    now = time.time() if now is None else now
    lines: list[str] = []
    for folder in map(Path, folders):
        inside = sorted(path for path in folder.glob("*") if _is_one(path))
        if not (_is_one(folder) or inside):
            raise TenasError(
                f"There is no run in {folder}: neither {layout.SEARCH} nor {layout.STUDY}, nor a folder that has one."
            )
        for one in [folder] if _is_one(folder) else inside:
            try:
                lines += (_of_run if layout.path(layout.SEARCH, one).exists() else _of_study)(one, now)
            except TenasError as error:  # of one run; the others are told all the same
                lines.append(f"{one}: {error}")
            lines += failures(one)
    return "\n".join(lines)


def _is_one(folder: Path) -> bool:
    return any(layout.path(name, folder).exists() for name in (layout.SEARCH, layout.STUDY))
