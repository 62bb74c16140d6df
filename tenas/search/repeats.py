"""Repeats of measurements: their table, the standard error of a mean over them, bootstrap samples of them. No torch."""

from collections.abc import Iterable, Mapping

import numpy as np

from tenas.scoring.subjects import Measurement


def table_of_repeats(values: Mapping[Measurement, float], measure: str, subjects: Iterable[int], repeats: int) -> np.ndarray:
    """Values of a measure as an array (subjects, repeats)."""
    return np.array([[values[Measurement(subject, measure, repeat)] for repeat in range(repeats)] for subject in subjects])


def bootstrap_counts(repeats: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """How often each repeat is in a sample, (1 + resamples, repeats): all repeats once, then bootstrap samples of them."""
    return np.vstack([np.ones(repeats), generator.multinomial(repeats, np.full(repeats, 1 / repeats), resamples)])


def standard_error(values: np.ndarray) -> float | str:
    """Standard error of the mean of the finite values; empty, as it stands in a table, below two of them."""
    finite = values[np.isfinite(values)]
    return float(finite.std(ddof=1) / len(finite) ** 0.5) if len(finite) > 1 else ""
