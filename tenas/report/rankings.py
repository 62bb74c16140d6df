"""Plot the rankings of a search, one row of panels per round: what was pruned or kept, by which measurements."""

import csv
import math
import os
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tenas import layout
from tenas.errors import TenasError
from tenas.figures import save_svg, style
from tenas.search.constant import deciding_nothing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Paul Tol's bright scheme, told apart by the colour-blind; markers differ too.
PRUNED, KEPT, OUT = "#ee6677", "#4477aa", "#999999"
# With more cells, they are rasterised: thousands of vectors would make megabytes of SVG.
MOST_VECTORS = 400
# With more kept cells, their places are not written.
MOST_LABELS = 20
# With more cells, axes of ranks are logarithmic: the best cells matter, and would be crowded in a corner.
MOST_LINEAR = 30


class Table(NamedTuple):
    """Table of a round: its file, its rows, and the measures in its columns."""

    path: Path
    rows: list[dict[str, str]]
    measures: list[str]


class Panel(NamedTuple):
    """A panel of the figure: its title, and the function that draws it on matplotlib's axes."""

    title: str
    draw: Callable[["Axes"], None]


def _read(path: Path, keys: Iterable[str], suffix: str | None, parts: Iterable[str], numbers: Iterable[str] = ()) -> Table:
    """Read a table with the columns ``keys`` and, for each measure (a column ending in ``suffix``), those ending in ``parts``.

    Raises TenasError for a missing column, and for other than numbers in a measure's columns or in ``numbers``.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError) as error:
        raise TenasError(f"The ranking {path} cannot be read: {error}.") from error
    measures = [] if suffix is None else [name.removesuffix(suffix) for name in columns if name.endswith(suffix)]
    of_measures = [f"{measure}{part}" for measure in measures for part in parts]
    missing = [name for name in (*keys, *of_measures) if name not in columns]
    if missing or (suffix is not None and not measures) or not rows:
        raise TenasError(f"The ranking {path} is incomplete: it lacks {missing[0] if missing else 'measures or rows'}.")
    for line, row in enumerate(rows, start=2):
        try:
            for name in (*of_measures, *numbers):
                # A single repeat has no standard error.
                float(row[name] or (0 if name.endswith("_se") else row[name]))
        except (TypeError, ValueError) as error:
            raise TenasError(f"The ranking {path} is damaged in line {line}: {error}.") from error
    return Table(path, rows, measures)


# --- rounds that prune


def _pruning(path: Path) -> tuple[list[Panel], float]:
    """One panel per measure: each trial's mean change, with its standard error."""
    keys = ("cell", "edge", "target", "source", "operator", "pruned")
    table = _read(path, keys, "_change", ("_change", "_se", "_rank"))

    constant = deciding_nothing(table.rows, "_change")

    def panel(measure: str, *, labels: bool) -> Panel:
        return Panel(_titled(measure, constant), lambda axes: _draw_changes(axes, measure, table.rows, labels=labels))

    panels = [panel(measure, labels=place == 0) for place, measure in enumerate(table.measures)]
    return panels, 0.9 + 0.16 * len(table.rows)


def _titled(measure: str, constant: Container[str]) -> str:
    return f"{measure}, the same for all" if measure in constant else measure


def _direction(measure: str, rows: Iterable[Mapping[str, str]]) -> str:
    """Which way a measure prunes, by its own ranks: an arrow on the axis of changes; none where all are equal."""
    by_rank = sorted(rows, key=lambda row: float(row[f"{measure}_rank"]))
    first, last = (float(row[f"{measure}_change"]) for row in (by_rank[0], by_rank[-1]))
    if first == last:
        return ""
    return "pruned first \N{RIGHTWARDS ARROW}" if first > last else "\N{LEFTWARDS ARROW} pruned first"


def _draw_changes(axes: "Axes", measure: str, rows: list[dict[str, str]], *, labels: bool) -> None:
    """One measure of one round, trials from top to bottom."""
    edges = [(row["cell"], row["edge"]) for row in rows]
    shaded = False
    for place, row in enumerate(rows):
        # Every second edge has a grey background.
        shaded = shaded if place and edges[place] == edges[place - 1] else not shaded
        if shaded:
            axes.axhspan(place - 0.5, place + 0.5, color="#f2f2f2", zorder=0, linewidth=0)
        pruned = row["pruned"] == "1"
        colour = PRUNED if pruned else KEPT
        change = float(row[f"{measure}_change"])
        if math.isfinite(change):
            error = float(row[f"{measure}_se"] or 0)
            axes.errorbar(change, place, xerr=error, color=colour, fmt="x" if pruned else "o", markersize=4, linewidth=1)
        else:
            axes.plot(
                1 if change > 0 else 0, place, marker=">" if change > 0 else "<", color=colour, markersize=5,
                transform=axes.get_yaxis_transform(), clip_on=False,
            )  # fmt: skip
    axes.axvline(0, color="#888888", linewidth=0.8, zorder=1)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    direction = _direction(measure, rows)
    axes.set_xlabel(f"change when taken away (mean, standard error)\nx: pruned{direction and f'   {direction}'}")
    names = [f"{row['target']}<-{row['source']} {row['operator']}" for row in rows]
    if len({row["cell"] for row in rows}) > 1:
        names = [f"{row['cell']} {name}" for row, name in zip(rows, names, strict=True)]
    axes.set_yticks(range(len(rows)), names if labels else [""] * len(rows))
    axes.tick_params(axis="y", length=0)


# --- rounds of cells


def _cells(path: Path) -> tuple[list[Panel], float]:
    """With one measure, score against place; with two, their ranks against each other; with more, place against each rank."""
    table = _read(path, ("cell", "place", "kept"), "_rank", ("_score", "_se", "_rank"), ("place",))
    constant = deciding_nothing(table.rows, "_score")
    if len(table.measures) == 1:
        (measure,) = table.measures
        return [Panel(f"cells by {_titled(measure, constant)}", lambda axes: _draw_scores(axes, measure, table.rows))], 2.8
    if len(table.measures) == 2:
        first, second = table.measures
        title = f"{_titled(second, constant)} against {_titled(first, constant)}"
        labels = f"rank by {first}, 1 for the best", f"rank by {second}"
        return [Panel(title, lambda axes: _draw_ranks(axes, table.rows, f"{first}_rank", f"{second}_rank", labels))], 3.4

    def panel(measure: str) -> Panel:
        labels = f"rank by {measure}, 1 for the best", "place by all measures"
        return Panel(_titled(measure, constant), lambda axes: _draw_ranks(axes, table.rows, f"{measure}_rank", "place", labels))

    return [panel(measure) for measure in table.measures], 3.0


def _draw_ranks(axes: "Axes", rows: list[dict[str, str]], x: str, y: str, labels: tuple[str, str]) -> None:
    """Cells by two of their ranks, the best in the lower left corner; kept cells are labelled with their places."""
    from matplotlib.ticker import MaxNLocator

    out, kept = ([row for row in rows if row["kept"] == kept] for kept in ("0", "1"))
    few = len(rows) <= MOST_VECTORS
    for some, colour, marker, size, name in ((out, OUT, "x", 14 if few else 3, "left out"), (kept, KEPT, "o", 24, "kept")):
        axes.scatter(
            [float(row[x]) for row in some], [float(row[y]) for row in some], color=colour, marker=marker, s=size,
            linewidths=1 if few else 0.5, label=f"{name} ({len(some):,})", rasterized=len(some) > MOST_VECTORS,
            zorder=3 if some is kept else 2,
        )  # fmt: skip
    _write_places(axes, kept, x, y)
    for axis, set_limits, label in ((axes.xaxis, axes.set_xlim, labels[0]), (axes.yaxis, axes.set_ylim, labels[1])):
        axis.set_label_text(label)
        if len(rows) > MOST_LINEAR:
            axis.axes.set(**{f"{axis.axis_name}scale": "log"})
            axis.set_major_formatter("{x:,.0f}")
            axis.set_minor_formatter("")
            set_limits(0.8, len(rows) * 1.25)
        else:
            axis.set_major_locator(MaxNLocator(integer=True))
            set_limits(1 - 0.05 * len(rows), len(rows) * 1.05)
    axes.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none", handletextpad=0.2, borderpad=0.3)


def _write_places(axes: "Axes", kept: list[dict[str, str]], x: str, y: str) -> None:
    if len(kept) <= MOST_LABELS:
        for row in kept:
            axes.annotate(
                str(int(float(row["place"]))), (float(row[x]), float(row[y])), (3.5, 3.5), textcoords="offset points",
                fontsize=6.5,
            )  # fmt: skip


def _draw_scores(axes: "Axes", measure: str, rows: list[dict[str, str]]) -> None:
    """Mean score of each cell with its standard error, best first. Infinite scores are arrows at the edge of the panel."""
    for row in rows:
        kept = row["kept"] == "1"
        place, score = float(row["place"]), float(row[f"{measure}_score"])
        colour = KEPT if kept else OUT
        if math.isfinite(score):
            axes.errorbar(
                place, score, yerr=float(row[f"{measure}_se"] or 0), color=colour, fmt="o" if kept else "x", markersize=4,
                linewidth=1, rasterized=len(rows) > MOST_VECTORS,
            )  # fmt: skip
        else:
            axes.plot(
                place, 1 if score > 0 else 0, marker="^" if score > 0 else "v", color=colour, markersize=5,
                transform=axes.get_xaxis_transform(), clip_on=False,
            )  # fmt: skip
    axes.set_xlabel("place, 1 for the best; o: kept, x: left out")
    axes.set_ylabel(f"{measure}, more is better\n(mean, standard error)")


# --- rounds of trainings


def _trainings(path: Path) -> tuple[list[Panel], float]:
    """One panel: the finalists by their validation accuracy."""
    keys = ("cell", "shortlisted", "valid_accuracy", "place", "kept")
    table = _read(path, keys, None, (), ("valid_accuracy", "place"))
    return [Panel("short trainings", lambda axes: _draw_trainings(axes, table.rows))], 0.9 + 0.2 * len(table.rows)


def _draw_trainings(axes: "Axes", rows: list[dict[str, str]]) -> None:
    """Accuracies from the best to the worst, the winner as a star."""
    rows = sorted(rows, key=lambda row: float(row["place"]))
    values = [float(row["valid_accuracy"]) for row in rows]
    low, high = min(values), max(values)
    margin = 0.1 * (high - low) or 1.0
    for line, (row, value) in enumerate(zip(rows, values, strict=True)):
        kept, winner = row["kept"] == "1", line == 0
        colour = KEPT if kept else OUT
        axes.hlines(line, low - margin, value, color="#e4e4e4", linewidth=2, zorder=1)
        axes.plot(value, line, marker="*" if winner else "o" if kept else "x", color=colour, markersize=9 if winner else 4.5)
        axes.annotate(
            f"{value:.2f}", (value, line), (7, 0), textcoords="offset points", va="center", fontsize=7,
            fontweight="bold" if winner else "normal",
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [f"cell {row['cell']} (shortlist {row['shortlisted']})" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(low - margin, high + 3 * margin)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("validation accuracy, %; star: the best, o: kept, x: left out")


KINDS = {
    Path(layout.RANKING).name: _pruning, Path(layout.CELLS).name: _cells, Path(layout.TRAININGS).name: _trainings,
}  # fmt: skip


def plot_rankings(rankings: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str]) -> None:
    """Plot the tables of a seed's rounds in the SVG file ``out``, one row of panels per round.

    ``rankings``: the files ``round<r>/ranking.csv``, ``cells.csv`` or ``trainings.csv``, in the order of the rounds.

    Rounds that prune have one panel per measure: the mean change by removing each operator, with its standard error; a red x if
    it was pruned; an arrow says at which end pruning begins. Trials of an edge are grouped. An infinite change (a kernel that
    became singular, or ceased to be) is an arrow at the side of the panel. Rounds of cells plot ranks against each other, and
    label the kept cells with their places. Rounds of trainings plot validation accuracies. A measure that is the same for all is
    said to be. Equal tables give equal bytes.

    Raises TenasError for a missing or damaged table.
    """
    from matplotlib.figure import Figure

    rounds = []
    for path in map(Path, rankings):
        if path.name not in KINDS:
            raise TenasError(f"{path} is not the table of a round; their names are {', '.join(KINDS)}.")
        rounds.append((path.parent.name.replace("round", "round "), *KINDS[path.name](path)))
    heights = [height for _, _, height in rounds]
    width = max(len(panels) for _, panels, _ in rounds)
    with style():
        figure = Figure(figsize=(2 + 3.4 * width, sum(heights)), layout="constrained")
        grid = figure.subplots(len(rounds), width, squeeze=False, height_ratios=heights)
        for row, (name, panels, _) in zip(grid, rounds, strict=True):
            for place, axes in enumerate(row):
                if place < len(panels):
                    panels[place].draw(axes)
                    axes.set_title(f"{name}: {panels[place].title}", loc="left")
                else:
                    axes.set_axis_off()
        save_svg(figure, out)
