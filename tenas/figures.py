"""Figures as SVG files: one style, and equal bytes for equal contents. No torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tenas.files import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DECIMALS = 6  # of a position, in parts of the figure's width and height


@contextmanager
def style() -> Iterator[None]:
    """What figures of this package look like, while they are drawn and saved."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "tenas", "font.size": 8, "svg.fonttype": "none"}):
        yield


def save_svg(figure: "Figure", out: str | os.PathLike[str]) -> None:
    """Write a figure to an SVG file, whole or not at all.

    The constrained layout is settled first and its positions rounded: its solver ends a rounding error apart from one process to
    the next, and names within the file are hashes of positions.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position(tuple(round(part, DECIMALS) for part in axes.get_position().bounds))
    with whole(out) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None}, dpi=150)
