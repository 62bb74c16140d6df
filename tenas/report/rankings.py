"""Draw the rounds of a search, one row of panels per round: what was pruned or kept, by which measurements."""

import csv
import math
import os
from collections.abc import Callable, Container, Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tenas import layout
from tenas.errors import TenasError
from tenas.figures import KEPT, OUT, PRUNED, Picture
from tenas.files import read_table
from tenas.search.constant import deciding_nothing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# With more cells, they are rasterised: thousands of vectors would make megabytes of SVG.
MOST_VECTORS = 400
# With more kept cells, their places are not written.
MOST_LABELS = 20
# With more cells, axes of ranks are logarithmic: the best cells matter, and would be crowded in a corner.
MOST_LINEAR = 30
# With more measures, each is drawn against the place of the cells, not against each other one.
MOST_PAIRED = 3
COLUMNS = ("round", "subject", "measure", "value", "standard_error", "rank", "place", "kept")


class Table(NamedTuple):
    """Table of a round: its file, its rows, and the measures in its columns."""

    path: Path
    rows: list[dict[str, str]]
    measures: list[str]


class Panel(NamedTuple):
    """A panel of the figure: its title, and the function that draws it on matplotlib's axes."""

    title: str
    draw: Callable[["Axes"], None]


class Drawn(NamedTuple):
    """A round: its panels, their height in inches, and what they show, one row per subject and measure."""

    panels: list[Panel]
    height: float
    rows: list[dict[str, object]]


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


def _pruning(path: Path) -> Drawn:
    """One panel per measure: each trial's mean change, with its standard error."""
    keys = ("cell", "edge", "target", "source", "operator", "pruned")
    table = _read(path, keys, "_change", ("_change", "_se", "_rank"))

    constant = deciding_nothing(table.rows, "_change")

    def panel(measure: str, *, labels: bool) -> Panel:
        return Panel(_titled(measure, constant), lambda axes: _draw_changes(axes, measure, table.rows, labels=labels))

    panels = [panel(measure, labels=place == 0) for place, measure in enumerate(table.measures)]
    names = _trials(table.rows)
    shown = [
        {"subject": name, "kept": 1 - int(row["pruned"] == "1")} | _numbers(row, measure, "_change")
        for row, name in zip(table.rows, names, strict=True)
        for measure in table.measures
    ]
    return Drawn(panels, 0.9 + 0.16 * len(table.rows), shown)


def _numbers(row: Mapping[str, str], measure: str, part: str) -> dict[str, object]:
    """What a table has on a subject by a measure, in the columns of the figure's own data."""
    of = {"value": part, "standard_error": "_se", "rank": "_rank"}
    return {"measure": measure, **{name: row[measure + end] for name, end in of.items()}}


def _trials(rows: list[dict[str, str]]) -> list[str]:
    """Names of trials: edge and operator, with the cell type if there are several."""
    names = [f"{row['target']}<-{row['source']} {row['operator']}" for row in rows]
    if len({row["cell"] for row in rows}) > 1:
        names = [f"{row['cell']} {name}" for row, name in zip(rows, names, strict=True)]
    return names


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
    axes.set_yticks(range(len(rows)), _trials(rows) if labels else [""] * len(rows))
    axes.tick_params(axis="y", length=0)


# --- rounds of cells


def _cells(path: Path) -> Drawn:
    """With one measure, score against place; with two or three, their ranks against each other; with more, place against each."""
    table = _read(path, ("cell", "place", "kept"), "_rank", ("_score", "_se", "_rank"), ("place",))
    constant = deciding_nothing(table.rows, "_score")
    shown = [
        {"subject": f"cell {row['cell']}", "place": row["place"], "kept": row["kept"]} | _numbers(row, measure, "_score")
        for row in table.rows
        for measure in table.measures
    ]
    if len(table.measures) == 1:
        (measure,) = table.measures
        panel = Panel(f"cells by {_titled(measure, constant)}", lambda axes: _draw_scores(axes, measure, table.rows))
        return Drawn([panel], 2.8, shown)

    def ranks(title: str, x: str, y: str, of_x: str, of_y: str) -> Panel:
        labels = f"rank by {of_x}, 1 for the best", of_y
        return Panel(title, lambda axes: _draw_ranks(axes, table.rows, x, y, labels))

    if len(table.measures) <= MOST_PAIRED:
        pairs = [
            ranks(f"{_titled(y, constant)}\nagainst {_titled(x, constant)}", f"{x}_rank", f"{y}_rank", x, f"rank by {y}")
            for x, y in combinations(table.measures, 2)
        ]
        return Drawn(pairs, 3.4, shown)
    by = [
        ranks(_titled(measure, constant), f"{measure}_rank", "place", measure, "place by all measures")
        for measure in table.measures
    ]
    return Drawn(by, 3.0, shown)


def _draw_ranks(axes: "Axes", rows: list[dict[str, str]], x: str, y: str, labels: tuple[str, str]) -> None:
    """Cells by two of their ranks, the best in the lower left corner; kept cells are labelled with their places."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    out, kept = ([row for row in rows if row["kept"] == kept] for kept in ("0", "1"))
    few = len(rows) <= MOST_VECTORS
    for some, colour, marker, size in ((out, OUT, "x", 14 if few else 3), (kept, KEPT, "o", 24)):
        axes.scatter(
            [float(row[x]) for row in some], [float(row[y]) for row in some], color=colour, marker=marker, s=size,
            linewidths=1 if few else 0.5, rasterized=len(some) > MOST_VECTORS,
            zorder=3 if some is kept else 2,
        )  # fmt: skip
    _write_places(axes, kept, x, y)
    x_label = f"{labels[0]}\no: kept ({len(kept):,}), x: left out ({len(out):,})"
    for axis, set_limits, label in ((axes.xaxis, axes.set_xlim, x_label), (axes.yaxis, axes.set_ylim, labels[1])):
        axis.set_label_text(label)
        if len(rows) > MOST_LINEAR:
            axis.axes.set(**{f"{axis.axis_name}scale": "log"})
            axis.set_major_formatter("{x:,.0f}")
            # Without minor ticks, which are the larger part of a file.
            axis.set_minor_locator(NullLocator())
            set_limits(0.8, len(rows) * 1.25)
        else:
            axis.set_major_locator(MaxNLocator(integer=True))
            set_limits(1 - 0.05 * len(rows), len(rows) * 1.1)


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


def _trainings(path: Path) -> Drawn:
    """The finalists by their validation accuracy, and its curves over the epochs if they were trained here."""
    keys = ("cell", "shortlisted", "valid_accuracy", "place", "kept")
    table = _read(path, keys, None, (), ("valid_accuracy", "place"))
    panels = [Panel("short trainings", lambda axes: _draw_trainings(axes, table.rows))]
    curves = [curve for row in table.rows if (curve := _curve(path, row)) is not None]
    if curves:
        panels.append(Panel("validation accuracy by epoch", lambda axes: _draw_curves(axes, curves)))
    shown: list[dict[str, object]] = [
        {
            "subject": f"cell {row['cell']}",
            "measure": "valid_accuracy",
            "value": row["valid_accuracy"],
            "place": row["place"],
            "kept": row["kept"],
        }
        for row in table.rows
    ]
    shown += [
        {"subject": f"cell {row['cell']}", "measure": f"valid_accuracy, epoch {epoch:g}", "value": value}
        for row, epochs, values in curves
        for epoch, value in zip(epochs, values, strict=True)
    ]
    return Drawn(panels, max(2.6, 0.9 + 0.2 * len(table.rows)), shown)


def read_curve(path: Path, column: str = "valid_accuracy") -> tuple[list[float], list[float]]:
    """Epochs, from 1, and accuracies in % of a training's history; without epochs that have none, as those not validated.

    Raises TenasError for a missing or damaged history.
    """
    rows = [row for row in read_table(path, ("epoch", column), "history") if row[column]]
    try:
        return [float(row["epoch"]) for row in rows], [float(row[column]) for row in rows]
    except ValueError as error:
        raise TenasError(f"The history {path} is damaged: {error}.") from error


def _curve(table: Path, row: dict[str, str]) -> tuple[dict[str, str], list[float], list[float]] | None:
    """Row, epochs and validation accuracies of a finalist; None if it was looked up, or trained in a single epoch."""
    path = table.parent / "trainings" / row["shortlisted"] / Path(layout.TRAINING_HISTORY).name
    epochs, values = read_curve(path) if path.exists() else ([], [])
    return (row, epochs, values) if len(epochs) > 1 else None


def _draw_curves(axes: "Axes", curves: list[tuple[dict[str, str], list[float], list[float]]]) -> None:
    """The winner's curve thick, with a star at its end."""
    from matplotlib.ticker import MaxNLocator

    for row, epochs, values in curves:
        winner, kept = row["place"] == "1", row["kept"] == "1"
        axes.plot(
            epochs, values, color=KEPT if winner or kept else OUT, linewidth=2.2 if winner else 0.9, zorder=3 if winner else 2,
            linestyle="-" if winner or kept else "--",
        )  # fmt: skip
        if winner:
            axes.plot(epochs[-1], values[-1], marker="*", color=KEPT, markersize=9, clip_on=False, zorder=4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch; thick: the best of the round, dashed: left out")
    axes.set_ylabel("validation accuracy, %")


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


def draw_rounds(rankings: Iterable[str | os.PathLike[str]], name: str = "rounds") -> Picture:
    """Draw the tables of a seed's rounds, one row of panels per round, as the picture ``name``.

    ``rankings``: the files ``round<r>/ranking.csv``, ``cells.csv`` or ``trainings.csv``, in the order of the rounds.

    Rounds that prune have one panel per measure: the mean change by removing each operator, with its standard error; a red x if
    it was pruned; an arrow says at which end pruning begins. Trials of an edge are grouped. An infinite change (a kernel that
    became singular, or ceased to be) is an arrow at the side of the panel. Rounds of cells plot ranks against each other, and
    label the kept cells with their places. Rounds of trainings plot validation accuracies, and their curves. A measure that is
    the same for all is said to be. Equal tables give equal bytes.

    Raises TenasError for a missing or damaged table.
    """
    from matplotlib.figure import Figure

    rounds = []
    for path in map(Path, rankings):
        if path.name not in KINDS:
            raise TenasError(f"{path} is not the table of a round; their names are {', '.join(KINDS)}.")
        rounds.append((path.parent.name.removeprefix("round"), KINDS[path.name](path)))
    heights = [drawn.height for _, drawn in rounds]
    width = max(len(drawn.panels) for _, drawn in rounds)
    figure = Figure(figsize=(2 + 3.4 * width, sum(heights)), layout="constrained")
    grid = figure.subplots(len(rounds), width, squeeze=False, height_ratios=heights)
    for row, (number, drawn) in zip(grid, rounds, strict=True):
        for place, axes in enumerate(row):
            if place < len(drawn.panels):
                drawn.panels[place].draw(axes)
                axes.set_title(f"round {number}: {drawn.panels[place].title}", loc="left")
            else:
                axes.set_axis_off()
    shown = [{"round": number} | row for number, drawn in rounds for row in drawn.rows]
    return Picture(name, figure, COLUMNS, shown, f"What each of the {len(rounds)} rounds measured, and what it pruned or kept.")
