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


def rounded(means: np.ndarray, values: np.ndarray, *, raw: bool) -> np.ndarray:
    """Round means of ``values`` to 12 decimals, so that equal numbers tie: 0.1 + 0.2 and 0.3 are the same.

    ``raw``: whether they are on the scale of the measure, and not logarithms or shares: if all are smaller than 1, to 12 digits
    of the largest. Numbers near the largest of float64 are left as they are.
    """
    largest = np.abs(values[np.isfinite(values)]).max(initial=0.0) if raw else 1.0
    scale = 10.0 ** np.floor(np.log10(largest) + 1) if 0 < largest < 1 else 1.0
    return np.asarray(means if largest > 1e290 else np.round(means / scale, 12) * scale)


def standard_error(values: np.ndarray) -> float | str:
    """Standard error of the mean of the finite values; empty, as it stands in a table, below two of them."""
    finite = values[np.isfinite(values)]
    return float(finite.std(ddof=1) / len(finite) ** 0.5) if len(finite) > 1 else ""
