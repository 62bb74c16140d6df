"""Estimate the memory that settings need, before anything is allocated. No torch."""

from collections.abc import Iterator, Mapping
from typing import Any

from tenas.errors import TenasError
from tenas.settings.search import measures_of, schedule

# Memory of the largest machines, and the longest list of measurements that a plan can hold.
MOST_BYTES, MOST_MEASUREMENTS = 2**38, 10**8
# Bytes per number; widening from NAS-Bench-201's first stage to its last; weights of a 3x3 kernel.
NUMBER, WIDENED, KERNEL = 4, 4, 9


def network_bytes(batch: int, channels: int, cells: int, side: int) -> int:
    """Rough memory of a batch in a network, in bytes: one feature map and the weights of one convolution per cell."""
    return NUMBER * cells * (batch * channels * side**2 + KERNEL * (WIDENED * channels) ** 2)


def _of_measure(settings: Mapping[str, Any], side: int) -> int:
    if "count" not in settings:
        return network_bytes(settings["batch"], settings["channels"], settings["cells"], side)
    batch = -(-settings["count"] // settings["blocks"])
    return network_bytes(batch, settings["channels"], settings["cells"], 3 if settings["inputs"] == "crops" else side)


def _needs(settings: Mapping[str, Any], side: int) -> Iterator[tuple[str, int]]:
    for number, entry in enumerate(settings.get("rounds", [settings]), start=1):
        here = f"round {number}: " if "rounds" in settings else ""
        if "measures" in entry:
            for name, (_, measure) in measures_of(entry).items():
                yield f"{here}'measures.{name}'", _of_measure(measure, side)
        elif entry.get("training"):
            yield f"{here}'training'", _of_training(entry["training"], side)


def _of_training(settings: Mapping[str, Any], side: int) -> int:
    return network_bytes(settings["batch"], settings["channels"], settings["cells"], settings["side"] or side)


def check_sizes(settings: Mapping[str, Any], side: int, retraining: Mapping[str, Any] | None = None) -> None:
    """Raise TenasError for a search or study that exceeds any memory. ``side``: of the images; ``retraining``: of the run.

    A lower bound, from batches, channels and cells alone: settings that pass may still exceed the memory of a machine.
    """
    needs = [*_needs(settings, side), *([("'retraining'", _of_training(retraining, side))] if retraining else [])]
    for name, size in needs:
        if size > MOST_BYTES:
            raise TenasError(
                f"{name} would take about {size / 2**30:,.0f} GiB of memory; at most {MOST_BYTES // 2**30} are allowed: make "
                "'batch' (or 'count'), 'channels' or 'cells' smaller."
            )
    for name, taken in _measurements(settings):
        if taken > MOST_MEASUREMENTS:
            raise TenasError(f"{name} would take {taken:,} measurements; at most {MOST_MEASUREMENTS:,} are allowed.")


def _measurements(settings: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    if "rounds" in settings:
        for round, entry in zip(schedule(settings), settings["rounds"], strict=True):
            yield f"Round {round.number}", round.trials * _repeats(entry)
    elif settings["cells"] != "all":
        yield "The study", settings["cells"] * _repeats(settings)


def _repeats(entry: Mapping[str, Any]) -> int:
    return sum(measure["repeats"] for measure in entry.get("measures", {}).values())
