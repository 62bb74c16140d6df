"""Save figures in one style, as SVG or with their data, with equal bytes for equal contents. No torch."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tenas.files import whole, write_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DECIMALS = 6  # of positions, relative to the figure's width and height
DPI = 150  # of PNG files, and of rasterised parts of SVG files
# Paul Tol's bright scheme, told apart by the colour-blind; where colours have a meaning, markers or lines differ too.
PRUNED, KEPT, OUT, THIRD = "#ee6677", "#4477aa", "#999999", "#228833"
SERIES = (KEPT, PRUNED, THIRD, "#ccbb44", "#66ccee", "#aa3377")


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of this package while figures are drawn and saved."""
    from matplotlib import rc_context

    # Names may contain dollar signs.
    with rc_context({"svg.hashsalt": "tenas", "font.size": 8, "svg.fonttype": "none", "text.parse_math": False}):
        yield


def _settle(figure: "Figure") -> None:
    """Compute the constrained layout and round its positions.

    The solver's results differ between processes by rounding errors, and names in an SVG file are hashes of positions.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position(tuple(round(part, DECIMALS) for part in axes.get_position().bounds))


def save_svg(figure: "Figure", out: str | os.PathLike[str]) -> None:
    """Write a figure to an SVG file, atomically."""
    _settle(figure)
    with whole(out) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None}, dpi=DPI)


class Picture(NamedTuple):
    """A figure, and its data as a table. ``text``: one sentence for readers who cannot see it."""

    name: str
    figure: "Figure"
    columns: Sequence[str]
    rows: Sequence[Mapping[str, object]]
    text: str


def save_picture(picture: Picture, folder: str | os.PathLike[str]) -> None:
    """Write a figure as ``<name>.svg`` and ``<name>.png``, and its data as ``<name>.csv``, in a folder."""
    path = Path(folder) / picture.name
    save_svg(picture.figure, path.with_suffix(".svg"))
    with whole(path.with_suffix(".png")) as temporary:
        picture.figure.savefig(temporary, format="png", dpi=DPI)
    write_csv(path.with_suffix(".csv"), picture.columns, picture.rows)
