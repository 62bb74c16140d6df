"""The figures of a study: a forest plot of correlations, and scatter plots of cells."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tenas.figures import save_svg, style
from tenas.study.correlate import KAPPA, RANK_SUM, REGIONS

# Paul Tol's bright scheme, told apart by the colour-blind: TE-NAS's own, costs, and the other measures.
COLOURS = dict.fromkeys((KAPPA, REGIONS, RANK_SUM), "#ee6677") | dict.fromkeys(("parameters", "flops", "layers"), "#777777")
OTHER = "#4477aa"
PANELS = 4  # scatter plots per row


def plot_forest(rows: Sequence[Mapping[str, Any]], out: str | os.PathLike[str]) -> None:
    """Plot Kendall's tau (dot) and Spearman's rho (diamond) of all cells: one panel per accuracy, one line per measure."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["subset"] == "all"]
    accuracies = list(dict.fromkeys(row["accuracy"] for row in rows))
    first = sorted(
        (row for row in rows if row["accuracy"] == accuracies[0]), key=lambda row: -np.nan_to_num(row["kendall"], nan=-2)
    )
    order = [row["measure"] for row in first]
    with style():
        figure = Figure(figsize=(1.8 + 2.6 * len(accuracies), 1.1 + 0.3 * len(order)), layout="constrained")
        panels = figure.subplots(1, len(accuracies), squeeze=False, sharey=True)[0]
        for panel, accuracy in zip(panels, accuracies, strict=True):
            for row in (row for row in rows if row["accuracy"] == accuracy):
                place, colour = order.index(row["measure"]), COLOURS.get(row["measure"], OTHER)
                for statistic, offset, marker, fill in (("kendall", -0.15, "o", colour), ("spearman", 0.15, "D", "white")):
                    value, low, high = (row[f"{statistic}{end}"] for end in ("", "_low", "_high"))
                    panel.plot([low, high], [place + offset] * 2, color=colour, linewidth=1.2)
                    panel.plot(value, place + offset, marker, color=colour, markerfacecolor=fill, markersize=4)
            panel.axvline(0, color="#888888", linewidth=0.8, zorder=1)
            panel.grid(axis="x", color="#eeeeee")
            panel.set_axisbelow(True)
            panel.set_title(accuracy, loc="left")
            panel.set_xlabel("Kendall's tau (dot), Spearman's rho (diamond)")
        panels[0].set_yticks(range(len(order)), order)
        panels[0].set_ylim(len(order) - 0.4, -0.6)
        save_svg(figure, out)


def plot_scatter(places: Mapping[str, np.ndarray], accuracy: str, values: np.ndarray, out: str | os.PathLike[str]) -> None:
    """Plot the ``values`` of an accuracy against the places by each measure, the best on the right: one panel per measure.

    Places rather than values: some measures span fifty orders of magnitude. The accuracy axis starts at the 5th percentile, so
    that a few untrainable cells do not compress the rest; those are drawn at the edge.
    """
    from matplotlib.figure import Figure

    floor = float(np.percentile(values, 5))
    lines = -(-len(places) // PANELS)
    with style():
        figure = Figure(figsize=(2.2 * PANELS, 0.6 + 1.8 * lines), layout="constrained")
        panels = figure.subplots(lines, PANELS, squeeze=False, sharex=True, sharey=True).ravel()
        for panel in panels[len(places) :]:
            panel.set_axis_off()
        for panel, (name, place) in zip(panels, places.items(), strict=False):
            share = place / len(place)
            shown = np.maximum(values, floor)
            # Points as pixels: a thousand vector points per panel would take megabytes of SVG.
            panel.scatter(share, shown, s=4, color=COLOURS.get(name, OTHER), alpha=0.5, linewidths=0, rasterized=True)
            panel.set_title(name, loc="left")
        figure.supxlabel("place by the measure, 1 for the best", fontsize=8)
        figure.supylabel(f"{accuracy}, %", fontsize=8)
        save_svg(figure, out)
