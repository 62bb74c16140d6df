"""Progress of runs and studies, from their files only, without Snakemake, a queue or their processes. No torch."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tenas import layout
from tenas.errors import TenasError, damaged, in_short
from tenas.files import read_json, read_table
from tenas.progress import REMARK, WARNING, duration
from tenas.report.summary import is_stale_study, of_other_settings, results_of_seed, summarise_round
from tenas.scoring.subjects import plan, read_cells, trials_of
from tenas.settings.search import read_settings, schedule
from tenas.settings.study import read_study
from tenas.spaces import get_space
from tenas.spaces.base import Round

# A shard writes each measurement as it is taken. Without a new one for this many times its usual duration, and at least this many
# seconds, it has probably stopped.
LATE, LEAST_LATE = 20, 60
# Number of a shard's last measurements that determine its rate.
RECENT = 200


class Work(NamedTuple):
    """Work in progress: ``done`` of ``planned`` units. ``rate``: units per second, if it is active now.

    ``quiet``: seconds since the last unit, if that is longer than one takes.
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
    """An unfinished shard, read from its checkpoint (tenas.scoring.checkpoint).

    ``rate``: measurements per second over the last ones, None before the second. ``age``: seconds since the last.
    """

    done: int
    rate: float | None
    age: float

    @property
    def late(self) -> bool:
        return self.age > max(LEAST_LATE, LATE / self.rate if self.rate else 0)


def _unfinished(scores: Path, now: float) -> Iterator[_Shard]:
    """Unfinished shards of a folder."""
    for path in sorted(scores.glob(layout.checkpoint_of("*.csv").name)):
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[1:-1]
            age = now - path.stat().st_mtime
        except FileNotFoundError:  # it has finished meanwhile
            continue
        try:
            # The first measurement of a job waits for the start of its workers, so only what lies between two counts.
            times = [float(line.rpartition(",")[2]) for line in lines[-RECENT:]]
        except ValueError:  # a line cut off by a kill, which the job will ignore too
            times = []
        spent = times[-1] - times[0] if times else 0
        yield _Shard(len(lines), (len(times) - 1) / spent if spent > 0 else None, max(age, 0))


def _whole(path: Path, what: str, key: str) -> int:
    """A whole number of a JSON file; 0 without the key. Raises TenasError for anything else."""
    value = read_json(path, what).get(key, 0)
    if type(value) is not int:
        raise TenasError(f"The {what} {path} has {in_short(value)} for {key!r}, which must be a whole number.")
    return value


def _finished(scores: Path) -> int:
    """Number of measurements in the finished shards of a folder, which have a record."""
    count = 0
    for record in scores.glob("[0-9]*.json"):
        if record.with_suffix(".csv").exists():
            count += _whole(record, "record of scores", "measurements")
    return count


def scoring(what: str, scores: Path, planned: int, now: float) -> Work:
    """Progress of the measurements in a folder of scores."""
    shards = list(_unfinished(scores, now))
    live = [shard for shard in shards if not shard.late]
    rate = sum(shard.rate for shard in live if shard.rate)
    quiet = None if live or not shards else min(shard.age for shard in shards)
    return Work(what, "measurements", _finished(scores) + sum(shard.done for shard in shards), planned, rate or None, quiet)


def _epochs(folder: Path) -> int:
    """Number of finished epochs of a training."""
    history = folder / "history.csv"
    return len(read_table(history, ("epoch",), "training history")) if history.exists() else 0


def _training(what: str, folder: Path, epochs: int) -> Work:
    return Work(what, "epochs", epochs if (folder / "metrics.json").exists() else _epochs(folder), epochs)


def _round(run: Path, seed: int, round: Round, settings: Mapping[str, Any], now: float) -> Work:
    """Progress of a seed in its present round."""
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
    """Describe the best cell after the last finished round of cells or trainings."""
    for round in reversed(rounds):
        if round.stage in ("cells", "training"):
            part = summarise_round(run, seed, round.number, settings["rounds"][round.number - 1])
            accuracy = "" if part.accuracy is None else f", {part.accuracy:.2f} % in validation"
            return f"best so far {part.best}{accuracy}"
    return None


def _found(run: Path, seed: int) -> str:
    """Describe the genotype of a finished search, and its known accuracies."""
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
    """Lines about a seed, and whether all of its work is finished."""
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
    if of_other_settings(run, [seed]):
        return [f"  seed {seed}  was searched with other settings than {layout.SEARCH} has now"], False
    lines = [f"  seed {seed}  {_found(run, seed)}"]
    retraining = layout.path(layout.RETRAIN, run)
    folder = layout.path(layout.RETRAIN_METRICS, run, seed=seed).parent
    if folder.exists() and not (folder / "metrics.json").exists() and retraining.exists():
        epochs = _whole(retraining, "retraining settings", "epochs")
        return [*lines, f"    {_training('retraining', folder, epochs)}"], False
    return lines, True


def failures(folder: Path) -> list[str]:
    """Failed jobs of a run or study, by the last lines of their logs.

    A job that runs again overwrites its log, so repaired failures are not among them.
    """
    if folder.resolve().parent.name != "results":
        return []
    logs = folder.resolve().parents[1] / "logs" / folder.name
    found = []
    for log in sorted(logs.rglob("*.log")):
        lines = log.read_text(encoding="utf-8", errors="replace").rstrip().split("\n")
        failed = lines[-1].startswith("tenas: ") and not lines[-1].startswith((WARNING, REMARK))
        if failed or any(line.startswith("Traceback (most recent call last)") for line in lines):
            found.append(f"  failed  {lines[-1].removeprefix('tenas: ')}\n          {_near(log)}")
    return found


def _near(path: Path) -> str:
    """Path relative to the working directory, if it is below."""
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
    if is_stale_study(study):
        return [f"{study}: its correlations are of other settings than {layout.STUDY} has now"]
    if layout.path(layout.CORRELATIONS, study).exists():
        return [f"{study}: done"]
    cells = layout.path(layout.STUDY_CELLS, study)
    if not cells.exists():
        return [f"{study}: its cells are not drawn yet"]
    measurements = len(plan(settings["measures"], read_cells(cells, get_space(settings["space"])).ids))
    return [str(scoring(str(study), layout.path(layout.STUDY_SCORES, study, shard=1).parent, measurements, now))]


def status(folders: Sequence[str | os.PathLike[str]], now: float | None = None) -> str:
    """Report the progress of runs and studies, in lines. A folder of runs stands for all of them.

    ``now``: seconds since the epoch, for rates. Raises TenasError for a folder without runs and studies.
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
                with damaged(one):
                    lines += (_of_run if layout.path(layout.SEARCH, one).exists() else _of_study)(one, now)
            except TenasError as error:  # only of this run; the others are reported
                lines.append(f"{one}: {error}")
            lines += failures(one)
    return "\n".join(lines)


def _is_one(folder: Path) -> bool:
    return any(layout.path(name, folder).exists() for name in (layout.SEARCH, layout.STUDY))
