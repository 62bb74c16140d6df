"""The table of scores: one row a measurement, every one of them kept."""

import math
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tenas.errors import TenasError
from tenas.files import read_csv
from tenas.settings import measure_traits
from tenas.spaces import Mask, Round, Space, Trial

COLUMNS = ("round", "trial", "cell", "edge", "target", "source", "operator", "measure", "repeat", "value")
RANKING_KEYS = COLUMNS[:7]


class Measurement(NamedTuple):
    """What is to be measured: trial 0 is the whole network, trial t > 0 the mask without the round's t-th trial."""

    trial: int
    measure: str
    repeat: int


def plan(settings: Mapping, trials: int, shard: tuple[int, int] = (1, 1)) -> list[Measurement]:
    """The measurements of shard i of S, ``shard = (i, S)``, of a round of ``trials`` trials: every S-th trial, the whole first.

    Ordered by measure and repeat, so that trials which share weights and images follow each other.
    """
    index, shards = shard
    if not 1 <= index <= shards:
        raise TenasError(f"There is no shard {index} of {shards}; shards are numbered from 1.")
    return [
        Measurement(trial, name, repeat)
        for name, measure in settings["measures"].items()
        for repeat in range(measure["repeats"])
        for trial in range(index - 1, trials + 1, shards)
    ]


def trial_keys(space: Space, round: Round, number: int, trial: Trial | None) -> dict:
    """The columns that say which trial a row is about; those of the whole network (None) are empty."""
    keys = {"round": round.number, "trial": number}
    if trial is None:
        return keys | dict.fromkeys(("cell", "edge", "target", "source", "operator"), "")
    target, source = space.edges[trial.edge]
    return keys | {
        "cell": trial.cell, "edge": trial.edge, "target": target, "source": source, "operator": trial.operator
    }  # fmt: skip


def score_rows(settings: Mapping, space: Space, mask: Mask, round: Round, values: Mapping[Measurement, float]) -> list[dict]:
    """Rows of a scores file, by trial, measure and repeat, whatever order they were measured in."""
    trials = (None, *space.trials(mask, round))
    order = {name: index for index, name in enumerate(settings["measures"])}
    return [
        trial_keys(space, round, m.trial, trials[m.trial]) | {"measure": m.measure, "repeat": m.repeat, "value": values[m]}
        for m in sorted(values, key=lambda m: (m.trial, order[m.measure], m.repeat))
    ]


def check_value(measure: str, value: float, where: str) -> None:
    """Raise TenasError for a value that the measure cannot have; ``where`` begins the sentence."""
    signed = measure_traits()[measure].signed
    if not value >= (-math.inf if signed else 0):
        never = "NaN" if signed else "negative and never NaN"
        raise TenasError(f"{where} has the value {value}; {measure} is never {never}.")


def read_scores(
    paths: Iterable[str | os.PathLike], settings: Mapping, space: Space, mask: Mask, round: Round
) -> dict[Measurement, float]:
    """All measurements of a round, from its shards in any order.

    Raises TenasError when a file is cut off or damaged, a row is of another search, or a measurement is missing or
    doubled.
    """
    trials = (None, *space.trials(mask, round))
    expected = set(plan(settings, round.trials))
    values: dict[Measurement, float] = {}
    for path in paths:
        for line, row in enumerate(read_csv(path, COLUMNS, "scores file"), start=2):
            where = f"The scores file {path}, line {line},"
            try:
                measurement = Measurement(int(row["trial"]), row["measure"], int(row["repeat"]))
                value = float(row["value"])
            except ValueError as error:
                raise TenasError(f"{where} holds something other than numbers: {error}.") from error
            if measurement not in expected:
                raise TenasError(f"{where} is no measurement of round {round.number} of this search.")
            keys = trial_keys(space, round, measurement.trial, trials[measurement.trial])
            if any(row[key] != str(value) for key, value in keys.items()):
                raise TenasError(f"{where} is about another trial than the mask has under number {measurement.trial}.")
            check_value(measurement.measure, value, where)
            if measurement in values:
                raise TenasError(f"{where} gives a measurement that was given before: a shard is there twice.")
            values[measurement] = value
    missing = sorted(expected - values.keys())
    if missing:
        raise TenasError(
            f"The scores of round {round.number} lack {len(missing)} of {len(expected)} measurements, the first of them "
            f"{missing[0].measure} of trial {missing[0].trial}, repeat {missing[0].repeat}: a shard is missing or cut off."
        )
    return values
