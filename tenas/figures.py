"""Save figures as SVG files in one style, with equal bytes for equal contents. No torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tenas.files import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DECIMALS = 6  # of positions, relative to the figure's width and height


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of this package while figures are drawn and saved."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "tenas", "font.size": 8, "svg.fonttype": "none"}):
        yield


def save_svg(figure: "Figure", out: str | os.PathLike[str]) -> None:
    """Write a figure to an SVG file, atomically.

    The constrained layout is computed first and its positions rounded: the solver's results differ between processes by rounding
    errors, and names in the file are hashes of positions.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position(tuple(round(part, DECIMALS) for part in axes.get_position().bounds))
    with whole(out) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None}, dpi=150)
