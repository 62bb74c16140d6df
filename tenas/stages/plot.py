"""Draw the rankings of a search."""

from pathlib import Path
from typing import Annotated


def plot(
    *,
    rankings: Annotated[list[Path], "ranking of each round, in their order"],
    out: Annotated[Path, "SVG file"],
) -> None:
    """Draw the rankings of a search, one panel per round and measure."""
    from tenas.report.rankings import plot_rankings

    plot_rankings(rankings, out)
