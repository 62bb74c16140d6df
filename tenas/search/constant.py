"""Measures that are the same for all subjects of a round, and so decide nothing there. No torch."""

from collections.abc import Iterable, Mapping
from math import isfinite

from tenas.progress import note


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
        finite = isfinite(float(value))
        what = "the same for all" if finite else "0 or infinite for all"
        cure = (
            "count more of it (count), or in a narrower or wider network (channels)"
            if name == "linear_regions"
            else "other channels, cells, weights or batch may tell them apart"
            if finite
            else "a smaller batch, or a wider network (channels), may have another value"
        )
        note(f"warning: round {number}: {name} is {what}, and decides nothing: {cure}; or leave it out (null in measures)")
