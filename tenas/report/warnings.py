"""Warnings about the measures of a round, from its table: those that were constant, saturated, infinite, or taken once."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite

from tenas.search.constant import deciding_nothing

# A measure is saturated if more than this share of the subjects has the same value.
SATURATED = 0.5
# Costs do not depend on weights and images: one repeat is exact.
EXACT = frozenset({"parameters", "flops", "layers"})


def warnings_of_round(rows: Sequence[Mapping[str, str]], part: str) -> list[str]:
    """Warnings about the measures of a round, one sentence each, without a full stop.

    ``rows``: of a ranking, as read from its file. ``part``: end of the column that has a measure's number, ``_change`` in rounds
    that prune and ``_score`` in rounds of cells. A measure with several faults is listed under the gravest one; another sentence
    names measures with a single repeat, which have no standard error.
    """
    if not rows:
        return []
    names = [name.removesuffix(part) for name in rows[0] if name.endswith(part)]
    constant = deciding_nothing(rows, part)
    found = []
    for name in names:
        values = [row[name + part] for row in rows]
        infinite = sum(not isfinite(float(value)) for value in values)
        most = max(Counter(values).values())
        if name in constant:
            what = "the same" if isfinite(float(constant[name])) else "0 or infinite"  # both have an infinite logarithm
            found.append(f"{name} was {what} for all and decided nothing")
        elif infinite:
            found.append(f"{name} was 0 or infinite for {infinite:,} of {len(rows):,}")
        elif len(rows) > 2 and most > SATURATED * len(rows):
            found.append(f"{name} was saturated: the same for {most:,} of {len(rows):,}")
    once = [name for name in names if name not in EXACT and not any(row.get(f"{name}_se") for row in rows)]
    return [*found, *([f"one repeat only, and so no standard error: {', '.join(once)}"] if once else [])]
