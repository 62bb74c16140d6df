"""Draw a search among all cells of its space's table: the cells left by each round, and the cells found."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tenas import layout
from tenas.benchmark.index import accuracies_of
from tenas.figures import KEPT, OUT, PRUNED, THIRD, Picture
from tenas.files import read_table
from tenas.report.beside import Found
from tenas.search.origins import images_of
from tenas.search.shortlist import read_shortlist
from tenas.settings.search import schedule
from tenas.spaces import get_space
from tenas.study.correlate import TESTS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Landmarks by space: the residual block of NAS-Bench-201.
LANDMARKS = {
    "nas-bench-201": {"ResNet": "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"},
}
# Share of the cells below the axis of accuracies, of which the worst would take up most.
BELOW = 1 / 3
# With more cells, they are rasterised and drawn smaller.
MOST_LARGE = 100
SHORT = {
    "ntk_condition_number": "kappa", "linear_regions": "R", "flops": "FLOPs", "swap": "SWAP", "naswot": "NASWOT",
    "synflow": "SynFlow",
}  # fmt: skip
COLUMNS = ("panel", "what", "arch", "parameters", "accuracy", "rank")


class Step(NamedTuple):
    """A panel: its title, and the texts of the cells left by a round."""

    title: str
    archs: list[str]


class Cloud(NamedTuple):
    """The cells of a table, by their texts: an accuracy in %, its name, and millions of parameters."""

    accuracy: "pd.Series"
    name: str
    parameters: "pd.Series"
    rank: "pd.Series"


def test_of(run: Found, tests: Sequence[str]) -> str | None:
    """Name of the test accuracy on the run's images, or on those of its short trainings; else the first of ``tests``."""
    images = images_of(run.folder, min(run.archs))
    names = [run.settings["rounds"][-1].get("column") or "", "" if images is None else images[0].parent.name]
    for name in names:
        # The longest match: cifar100 begins with cifar10.
        if wanted := [test for test in tests if name.startswith(test.removesuffix("_test"))]:
            return max(wanted, key=len)
    return next(iter(tests), None)


def cloud_of(run: Found, table: "pd.DataFrame") -> Cloud | None:
    """All cells of a run's space by a test accuracy (``test_of``). None if the table lacks cells, accuracies or parameters."""
    name = test_of(run, [name for name in accuracies_of(table) if name.endswith(TESTS)])
    if get_space(run.settings["space"]).listed_cells != len(table) or name is None:
        return None
    parameters = f"params_{name.removesuffix('_test')}"
    cells = table.set_index("arch")
    if parameters not in cells.columns or cells[[name, parameters]].isna().any(axis=None):
        return None
    return Cloud(cells[name], name, cells[parameters] / 1e6, cells[name].rank(ascending=False, method="min").astype(int))


def steps(run: Found, seed: int, cells: "pd.Index[str]") -> Iterator[Step]:
    """Cells left by the rounds of a seed, for each round that left fewer, and the samples drawn from them."""
    space, settings = get_space(run.settings["space"]), run.settings
    before = len(cells)
    for round, entry in zip(schedule(settings), settings["rounds"], strict=True):
        state = layout.path(layout.STATE[round.stage], run.folder, seed=seed, round=round.number)
        by = "short trainings" if round.stage == "training" else ", ".join(SHORT.get(name, name) for name in entry["measures"])
        if round.stage in ("operators", "edges"):
            active = space.read_mask(state).active
            left = [arch for arch in cells if _spans(space, active, arch)]
        else:
            if round.stage == "cells":
                sample = layout.path(layout.SAMPLE, run.folder, seed=seed, round=round.number)
                drawn = [row["arch"] for row in read_table(sample, ("arch",), "sample")]
                if len(drawn) < before:
                    yield Step(f"{len(drawn):,} drawn\nof {before:,}", drawn)
                    before = len(drawn)
            left = [cell.arch for cell in read_shortlist(state, space).cells]
        if len(left) < before:
            yield Step(f"{len(left):,} left by\n{by}", left)
        before = len(left)


def _spans(space: Any, active: Any, arch: str) -> bool:
    """Whether a mask spans a cell."""
    place = {edge: number for number, edge in enumerate(space.edges)}
    return all(
        active[kind][place[choice.target, choice.source]][space.operators.index(choice.operator)]
        for kind, choices in enumerate(space.parse(arch).cells)
        for choice in choices
    )


def landmarks(cloud: Cloud, space: str) -> dict[str, str]:
    """Landmarks, name -> text of the cell: the best, the largest, and those of LANDMARKS."""
    found = {"best there is": str(cloud.accuracy.idxmax()), "most parameters": str(cloud.parameters.idxmax())}
    return found | {name: arch for name, arch in LANDMARKS.get(space, {}).items() if arch in cloud.accuracy.index}


def draw_cloud(run: Found, cloud: Cloud) -> Picture:
    """Draw all cells of a table, accuracy over parameters, with the cells left by each round of the first seed, and the results.

    The last panel has the cells found by all seeds, and the landmarks. The picture's data have these and the cells left by
    rounds, but not the grey cells, which are those of the table.
    """
    from matplotlib.figure import Figure

    first = min(run.archs)
    panels = list(steps(run, first, cloud.accuracy.index))
    several = len(run.archs) > 1
    # The last round leaves the cell found.
    if panels and len(panels[-1].archs) == 1:
        panels, title = panels[:-1], panels[-1].title
    else:
        title = "found"
    title = f"found by\n{len(run.archs)} seeds" if several else title
    known = landmarks(cloud, get_space(run.settings["space"]).name)
    marked = cloud.accuracy[[*run.archs.values(), *known.values()]]
    low = min(cloud.accuracy.quantile(BELOW), marked.min() - 1)
    limits = (float(low), float(cloud.accuracy.max() + 0.06 * (cloud.accuracy.max() - low)))
    figure = Figure(figsize=(2.4 * (len(panels) + 1) + 1.9, 3), layout="constrained")
    rows: list[dict[str, object]] = []
    axes_of = figure.subplots(1, len(panels) + 1, sharey=True, squeeze=False)[0]
    for number, (axes, step) in enumerate(zip(axes_of, [*panels, Step(title, [])], strict=True), start=1):
        axes.scatter(cloud.parameters, cloud.accuracy, s=2, color=OUT, alpha=0.4, linewidths=0, rasterized=True)
        large = len(step.archs) <= MOST_LARGE
        axes.scatter(
            cloud.parameters[step.archs], cloud.accuracy[step.archs], s=14 if large else 4, color=KEPT, linewidths=0,
            rasterized=not large,
        )  # fmt: skip
        axes.set(ylim=limits, xlabel="million parameters")
        axes.set_title(step.title if not several or not step.archs else f"seed {first}: {step.title}", loc="left")
        rows += [_row(cloud, number, "left", arch) for arch in step.archs]
    rows += _mark(axes_of[-1], cloud, known, run.archs)
    hidden = float((cloud.accuracy < limits[0]).mean())
    axes_of[0].set_ylabel(f"{cloud.name}, %\n({hidden:.0%} of all cells lie below)")
    text = (
        f"All {len(cloud.accuracy):,} cells of the table, {cloud.name} over parameters: what each round left, and what was found."
    )
    return Picture("cloud", figure, COLUMNS, rows, text)


def _row(cloud: Cloud, panel: int, what: str, arch: str) -> dict[str, object]:
    return {
        "panel": panel, "what": what, "arch": arch, "parameters": round(float(cloud.parameters[arch]) * 1e6),
        "accuracy": float(cloud.accuracy[arch]), "rank": int(cloud.rank[arch]),
    }  # fmt: skip


def _mark(axes: "Axes", cloud: Cloud, known: Mapping[str, str], found: Mapping[int, str]) -> list[dict[str, object]]:
    """Mark the cells found and the landmarks in the last panel. Returns the rows of its data."""
    panel = len(axes.figure.axes)
    rows = []
    for (name, arch), marker in zip(known.items(), ("^", "D", "s"), strict=False):
        axes.scatter(
            cloud.parameters[arch], cloud.accuracy[arch], s=26, marker=marker, facecolors="none", edgecolors=THIRD,
            linewidths=1.3, zorder=4, label=f"{name}: {cloud.accuracy[arch]:.2f} %",
        )  # fmt: skip
        rows.append(_row(cloud, panel, name, arch))
    archs = list(found.values())
    values, ranks = cloud.accuracy[archs], cloud.rank[archs]
    if len(archs) == 1:
        said = f"found: {values.iloc[0]:.2f} %,\nrank {ranks.iloc[0]:,} of {len(cloud.rank):,}"
    else:
        said = (
            f"found: {values.min():.2f} to {values.max():.2f} %,\nranks {ranks.min():,} to {ranks.max():,} of {len(cloud.rank):,}"
        )
    size = 110 if len(archs) == 1 else 60
    axes.scatter(cloud.parameters[archs], values, s=size, marker="*", color=PRUNED, linewidths=0, zorder=3, label=said)
    rows += [_row(cloud, panel, f"found by seed {seed}", arch) for seed, arch in found.items()]
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0, frameon=False, handletextpad=0.3)
    return rows
