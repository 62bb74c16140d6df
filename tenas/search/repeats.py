"""Repeats of measurements: their table, the standard error of a mean over them, bootstrap samples of them. No torch."""

from collections.abc import Iterable, Mapping

import numpy as np

from tenas.progress import note
from tenas.scoring.subjects import Measurement


def table_of_repeats(values: Mapping[Measurement, float], measure: str, subjects: Iterable[int], repeats: int) -> np.ndarray:
    """Values of a measure as an array (subjects, repeats)."""
    return np.array([[values[Measurement(subject, measure, repeat)] for repeat in range(repeats)] for subject in subjects])


def bootstrap_counts(repeats: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """How often each repeat is in a sample, (1 + resamples, repeats): all repeats once, then bootstrap samples of them."""
    return np.vstack([np.ones(repeats), generator.multinomial(repeats, np.full(repeats, 1 / repeats), resamples)])


def deciding_nothing(rows: Iterable[Mapping[str, object]], part: str) -> dict[str, str]:
    """The measures that are the same for all subjects of a round, and that one number, as a text.

    ``rows``: of a ranking, also as read from its file. ``part``: end of the column that has a measure's number, ``_change`` in
    rounds that prune and ``_score`` in rounds of cells.
    """
    rows = list(rows)
    names = [name.removesuffix(part) for name in rows[0] if name.endswith(part)] if len(rows) > 1 else []
    found = {name: {str(row[f"{name}{part}"]) for row in rows} for name in names}
    return {name: values.pop() for name, values in found.items() if len(values) == 1}


def warn_of_nothing(rows: Iterable[Mapping[str, object]], part: str, number: int) -> None:
    """Say on stderr which measures have decided nothing in round ``number``, and what to do about it."""
    for name, value in deciding_nothing(rows, part).items():
        finite = np.isfinite(float(value))
        what = "the same for all" if finite else "infinite for all"
        cure = (
            "count more of it (count), or in a narrower or wider network (channels)"
            if name == "linear_regions"
            else "other channels, cells, weights or batch may tell them apart"
            if finite
            else "a smaller batch, or a wider network (channels), may have a finite value"
        )
        note(f"warning: round {number}: {name} is {what}, and decides nothing: {cure}; or leave it out (null in measures)")


def standard_error(values: np.ndarray) -> float | str:
    """Standard error of the mean of the finite values; empty, as it stands in a table, below two of them."""
    finite = values[np.isfinite(values)]
    return float(finite.std(ddof=1) / len(finite) ** 0.5) if len(finite) > 1 else ""
