"""A figure of a search: what taking each operator away did to the measures, and which were pruned for it."""

import csv
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tenas.errors import TenasError
from tenas.files import whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEYS = ("cell", "edge", "target", "source", "operator", "pruned")
PRUNED, KEPT = "#ee6677", "#4477aa"


def read_ranking(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The measures of a ranking.csv, and its rows. Raises TenasError when it lacks the columns that a figure needs."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError) as error:
        raise TenasError(f"The ranking {path} cannot be read: {error}.") from error
    measures = [name.removesuffix("_change") for name in columns if name.endswith("_change")]
    missing = [name for name in (*KEYS, *(f"{measure}_se" for measure in measures)) if name not in columns]
    if missing or not measures or not rows:
        raise TenasError(f"The ranking {path} is not one: it lacks {missing[0] if missing else 'measures or rows'}.")
    for line, row in enumerate(rows, start=2):
        try:
            for measure in measures:
                float(row[f"{measure}_change"]), float(row[f"{measure}_se"] or 0)
        except (TypeError, ValueError) as error:
            raise TenasError(f"The ranking {path} is damaged in line {line}: {error}.") from error
    return measures, rows


def plot_rankings(rankings: Iterable[str | os.PathLike], out: str | os.PathLike) -> None:
    """Draw the rankings of a seed's rounds into the SVG file ``out``: a row of panels a round, a panel a measure.

    ``rankings``: the files ``round<r>/ranking.csv``, in the order of the rounds.

    In a panel each trial has a line: the mean change that taking the operator away made, with its standard error; a
    red x where the operator was pruned. Trials of an edge stand together. A change that is infinite (a kernel that
    turned singular, or ceased to be) is drawn as an arrow at the panel's side. Equal rankings give equal bytes.

    Raises TenasError when a ranking is missing or damaged.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rounds = [(path.parent.name, *read_ranking(path)) for path in map(Path, rankings)]
    heights = [0.9 + 0.16 * len(rows) for _, _, rows in rounds]
    width = max(len(measures) for _, measures, _ in rounds)
    with rc_context({"svg.hashsalt": "tenas", "font.size": 8, "svg.fonttype": "none"}):
        figure = Figure(figsize=(2 + 3.4 * width, sum(heights)), layout="constrained")
        panels = figure.subplots(len(rounds), width, squeeze=False, height_ratios=heights)
        for row_of_panels, (name, measures, rows) in zip(panels, rounds, strict=True):
            for column, panel in enumerate(row_of_panels):
                if column < len(measures):
                    _draw_panel(panel, measures[column], rows, labels=column == 0)
                    panel.set_title(f"{name.replace('round', 'round ')}: {measures[column]}", loc="left")
                else:
                    panel.set_axis_off()
        with whole(out) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def _draw_panel(panel: "Axes", measure: str, rows: list[dict[str, str]], *, labels: bool) -> None:
    """One measure of one round on matplotlib axes, trials from top to bottom."""
    edges = [(row["cell"], row["edge"]) for row in rows]
    shaded = False
    for place, row in enumerate(rows):
        # Every second edge has a grey ground.
        shaded = shaded if place and edges[place] == edges[place - 1] else not shaded
        if shaded:
            panel.axhspan(place - 0.5, place + 0.5, color="#f2f2f2", zorder=0, linewidth=0)
        pruned = row["pruned"] == "1"
        colour = PRUNED if pruned else KEPT
        change = float(row[f"{measure}_change"])
        if math.isfinite(change):
            error = float(row[f"{measure}_se"] or 0)
            panel.errorbar(change, place, xerr=error, color=colour, fmt="x" if pruned else "o", markersize=4, linewidth=1)
        else:
            panel.plot(
                1 if change > 0 else 0, place, marker=">" if change > 0 else "<", color=colour, markersize=5,
                transform=panel.get_yaxis_transform(), clip_on=False,
            )  # fmt: skip
    panel.axvline(0, color="#888888", linewidth=0.8, zorder=1)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlabel("change when taken away (mean, standard error); x: pruned")
    names = [f"{row['target']}<-{row['source']} {row['operator']}" for row in rows]
    if len({row["cell"] for row in rows}) > 1:
        names = [f"{row['cell']} {name}" for row, name in zip(rows, names, strict=True)]
    panel.set_yticks(range(len(rows)), names if labels else [""] * len(rows))
    panel.tick_params(axis="y", length=0)
