"""What the results of a run's seeds were made from: seeds of other images or another table cannot be compared. No torch."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from tenas import layout
from tenas.errors import TenasError
from tenas.files import read_json


def images_in(record: Mapping[str, Any]) -> tuple[Path, str] | None:
    """Path and hash of the images that a record of scores names; None if it names none."""
    inputs = record.get("inputs")
    named = inputs.items() if isinstance(inputs, Mapping) else ()
    return next(((Path(name), str(digest)) for name, digest in named if Path(name).name == layout.IMAGES), None)


def images_of(run: str | os.PathLike[str], seed: int) -> tuple[Path, str] | None:
    """Path and hash of the images of a seed's first measurements; None if there is no record of them."""
    return images_in(_read(layout.path(layout.SCORES_RECORD, run, seed=seed, round=1, shard=1), "record of scores"))


def shards_in(record: Mapping[str, Any]) -> int | None:
    """The number of shards that the record of the first one names; None for another record."""
    found = re.fullmatch("1/([1-9][0-9]{0,8})", str(record.get("shard")))
    return None if found is None else int(found[1])


def _images_of_rounds(run: str | os.PathLike[str], seed: int) -> str | None:
    """The hash of the images of a seed's measurements. Raises TenasError for rounds of different ones, or of another seed."""
    found: dict[str, Path] = {}
    for path in _records(run, seed):
        record = read_json(path, "record of scores")
        if isinstance(other := record.get("seed"), int) and other != seed:
            raise TenasError(
                f"The results in {path.parents[2]} are those of seed {other}, copied or renamed: remove the folder, or give it "
                "its name back."
            )
        if (images := images_in(record)) is not None:
            found.setdefault(images[1], path)
    if len(found) > 1:
        named = " and ".join(map(str, found.values()))
        raise TenasError(f"Measurements of seed {seed} are of different images ({named}): search it again.")
    return next(iter(found), None)


def _records(run: str | os.PathLike[str], seed: int) -> Iterator[Path]:
    """The records of a seed's scores, as far as they are there. An earlier search may have left more rounds, or more shards."""
    rounds = _read(layout.path(layout.SEARCH, run), "search settings").get("rounds")
    for round in range(1, (len(rounds) if isinstance(rounds, list) else 0) + 1):
        place = {"seed": seed, "round": round}
        last = shards_in(_read(layout.path(layout.SCORES_RECORD, run, **place, shard=1), "record of scores")) or 1
        paths = (layout.path(layout.SCORES_RECORD, run, **place, shard=shard) for shard in range(1, last + 1))
        # To the first one that is missing: a damaged number of shards may be any.
        yield from takewhile(Path.exists, paths)


def _read(path: Path, what: str) -> dict[str, Any]:
    return read_json(path, what) if path.exists() else {}


def _within(record: Mapping[str, Any], *keys: str) -> Any:
    """A value in mappings within each other; None if there is none."""
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def origins(run: str | os.PathLike[str], seed: int) -> dict[str, str]:
    """Hashes of what a seed's results were made from, by what it is, as far as there are results."""
    images = _images_of_rounds(run, seed)
    look_up = _read(layout.path(layout.LOOKUP, run, seed=seed), "benchmark look-up")
    metrics = _read(layout.path(layout.RETRAIN_METRICS, run, seed=seed), "retraining's metrics")
    tables = _within(look_up, "provenance", "inputs")
    found = {
        "images": images,
        "tables": next(iter(tables.values()), None) if isinstance(tables, Mapping) else None,
        "test images": _within(metrics, "provenance", "data_sha256", "test"),
    }
    return {what: str(digest) for what, digest in found.items() if digest is not None}


def table_of_finalists(run: str | os.PathLike[str], seed: int, round: int) -> str | None:
    """Hash of the table in which a seed's short trainings were looked up; None if they were not."""
    record = _read(layout.path(layout.FINALISTS, run, seed=seed, round=round), "list of finalists")
    inputs = _within(record, "made_by", "inputs")
    # Other inputs are of rounds.
    names = [name for name in inputs if "/" not in str(name)] if isinstance(inputs, Mapping) else []
    return str(inputs[names[0]]) if names else None


def table_of_limits(run: str | os.PathLike[str]) -> str | None:
    """Hash of the table of latencies of a run's limits; None if they have none."""
    inputs = _within(_read(layout.path(layout.LIMITS, run), "file of limits"), "made_by", "inputs")
    return next(map(str, inputs.values()), None) if isinstance(inputs, Mapping) else None


def check_same_origins(run: str | os.PathLike[str], seeds: Iterable[int]) -> None:
    """Raise TenasError for seeds that are of different images or tables: their means would be of nothing."""
    first: dict[str, tuple[int, str]] = {}
    for seed in seeds:
        for what, digest in origins(run, seed).items():
            other, same = first.setdefault(what, (seed, digest))
            if digest != same:
                raise TenasError(
                    f"The seeds {other} and {seed} of {run} are of different {what} and cannot be compared: make the results of "
                    "one of them again, or in a folder of its own."
                )
