"""Draw the results of a run over its seeds: accuracies, retrainings, times."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from math import ceil
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from tenas import layout
from tenas.figures import KEPT, SERIES, THIRD, Picture
from tenas.progress import duration
from tenas.report.beside import Found, table_if_looked_up
from tenas.report.claims import interval
from tenas.report.cloud import SHORT, cloud_of, draw_cloud
from tenas.report.rankings import draw_rounds, read_curve
from tenas.report.summary import results_of_seed, summarise_rounds
from tenas.settings.search import schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# With more seeds, curves have no labels.
MOST_NAMED = 8
PER_ROW = 3  # most panels of accuracies
LOOKED_UP = "looked up in the table"
LINES = ("-", "--", "-.", ":")


class Accuracy(NamedTuple):
    """An accuracy known for all seeds: name, source, values in % by seed, and the best in the table."""

    name: str
    source: str
    values: dict[int, float]
    best: float | None = None

    def statistics(self) -> str:
        """Format mean, standard deviation, 95 % interval of the mean, and number of seeds."""
        values = list(self.values.values())
        if (ends := interval(values)) is None:
            return f"{values[0]:.2f} %, one seed: no interval"
        return f"{mean(values):.2f} ({stdev(values):.2f}), [{ends[0]:.2f}, {ends[1]:.2f}], n = {len(values)}"


def is_looked_up(accuracy: Accuracy) -> bool:
    """Whether an accuracy is looked up in a table, and not of a network trained here."""
    return accuracy.source == LOOKED_UP


def accuracies_of_run(folder: Path, seeds: Iterable[int]) -> list[Accuracy]:
    """The test accuracies of a run: of its retrained networks, and those of the table."""
    results = {seed: results_of_seed(folder, seed) for seed in seeds}
    found = []
    trained = {seed: metrics["test_accuracy"] for seed, (_, _, metrics) in results.items() if metrics}
    if len(trained) == len(results):
        found.append(Accuracy("test accuracy", "retrained here", trained))
    looked_up = [benchmark.get("accuracies", {}) for _, benchmark, _ in results.values()]
    for name in looked_up[0]:
        if name.endswith(("_test", "accuracy")) and all(part.get(name) is not None for part in looked_up):
            values = {seed: part[name]["accuracy"] for seed, part in zip(results, looked_up, strict=True)}
            found.append(Accuracy(name, LOOKED_UP, values, looked_up[0][name]["best"]))
    return found


def draw_seeds(found: Sequence[Accuracy]) -> Picture:
    """Draw each accuracy of the seeds in one panel: a dot per seed, mean and 95 % interval of the mean."""
    from matplotlib.figure import Figure

    # Four panels in two rows.
    lines = ceil(len(found) / PER_ROW)
    width = ceil(len(found) / lines)
    figure = Figure(figsize=(3.3 * width, 2.9 * lines), layout="constrained")
    panels = figure.subplots(lines, width, squeeze=False).ravel()
    for axes, accuracy in zip(panels, found, strict=False):
        _draw_strip(axes, accuracy)
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    rows = [
        {"accuracy": part.name, "source": part.source, "seed": seed, "value": value}
        for part in found
        for seed, value in part.values.items()
    ]
    # One legend for all panels, outside of them.
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    text = "Test accuracies by seed, with mean and 95 % interval of the mean."
    return Picture("seeds", figure, ("accuracy", "source", "seed", "value"), rows, text)


def _draw_strip(axes: "Axes", accuracy: Accuracy) -> None:
    values = list(accuracy.values.values())
    places = range(len(values))
    ends = interval(values)
    if ends is not None:
        axes.axhspan(*ends, color=KEPT, alpha=0.15, linewidth=0, label="95 % interval of the mean")
        axes.axhline(mean(values), color=KEPT, linewidth=1.2, label="mean")
    axes.scatter(places, values, color=KEPT, s=18, zorder=3)
    if accuracy.best is not None:
        axes.axhline(accuracy.best, color=THIRD, linewidth=1, linestyle="--", label="best there is")
    axes.set_xticks(places, [str(seed) for seed in accuracy.values], rotation=90 if len(values) > 6 else 0)
    axes.set_xlim(-0.7, len(values) - 0.3)
    axes.set(xlabel="seed", ylabel=f"{accuracy.name}, %")
    axes.set_title(f"{accuracy.source}\n{accuracy.statistics()}", loc="left", fontsize=7.5)
    axes.margins(y=0.12)
    axes.set_ylim(top=min(axes.get_ylim()[1], 100.5))


def draw_retraining(folder: Path, seeds: Iterable[int]) -> Picture | None:
    """Draw the accuracy of the retrained networks by epoch, with the epoch that was tested; None if nothing was retrained.

    Accuracy in validation or, for a protocol without held-out images, in training.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    curves, rows, column = {}, [], ""
    for seed in seeds:
        path = layout.path(layout.HISTORY, folder, seed=seed)
        metrics = results_of_seed(folder, seed)[2]
        if metrics and path.exists():
            column = "train_accuracy" if metrics["valid_accuracy"] is None else "valid_accuracy"
            curves[seed] = (*read_curve(path, column), metrics)
    if not curves:
        return None
    figure = Figure(figsize=(5.6, 3.1), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=SERIES)
    named = len(curves) <= MOST_NAMED
    for (seed, (epochs, values, metrics)), line in zip(curves.items(), cycle(LINES), strict=False):
        chosen = [value for epoch, value in zip(epochs, values, strict=True) if epoch == metrics["best_epoch"]]
        label = f"seed {seed}: {metrics['test_accuracy']:.2f} % in the test" if named else None
        (drawn,) = axes.plot(epochs, values, linestyle=line, linewidth=1.2, label=label, color=None if named else KEPT)
        if chosen:
            axes.scatter(metrics["best_epoch"], chosen[0], color=drawn.get_color(), s=26, zorder=3)
        rows += [
            {"seed": seed, "epoch": int(epoch), column: value, "tested": int(epoch == metrics["best_epoch"])}
            for epoch, value in zip(epochs, values, strict=True)
        ]
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    what = "training" if column == "train_accuracy" else "validation"
    axes.set(xlabel="epoch; the dot: the one that was tested", ylabel=f"{what} accuracy, %")
    if named:
        axes.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")
    text = f"Retraining of {len(curves)} network{'s' * (len(curves) > 1)}, epoch by epoch."
    return Picture("retraining", figure, ("seed", "epoch", column, "tested"), rows, text)


class Stage(NamedTuple):
    """A stage of a run, and its seconds by seed: total wall time of its jobs."""

    name: str
    seconds: dict[int, float]


def stages_of_run(folder: Path, seeds: Iterable[int], settings: Mapping[str, Any]) -> list[Stage]:
    """Times of the stages of a run: its rounds, with their measures, and its retraining."""
    seeds = list(seeds)
    rounds = {seed: summarise_rounds(folder, seed, settings) for seed in seeds}
    found = []
    for place, (round, entry) in enumerate(zip(schedule(settings), settings["rounds"], strict=True)):
        if round.stage == "training":
            what = "looked up" if entry["column"] is not None else "short trainings"
        else:
            what = ", ".join(SHORT.get(name, name) for name in entry["measures"])
        found.append(Stage(f"round {round.number}: {what}", {seed: rounds[seed][place].seconds for seed in seeds}))
    metrics = {seed: results_of_seed(folder, seed)[2] for seed in seeds}
    if all(metrics.values()):
        found.append(Stage("retraining", {seed: float(part.get("training_seconds") or 0) for seed, part in metrics.items()}))
    return found


def draw_time(stages: Sequence[Stage]) -> Picture:
    """Draw the time of each stage: one bar for the mean over the seeds, one dot per seed."""
    from matplotlib.figure import Figure

    means = [mean(stage.seconds.values()) for stage in stages]
    total, most = sum(means) or 1.0, max([*means, *(max(stage.seconds.values()) for stage in stages)]) or 1.0
    figure = Figure(figsize=(6.4, 0.9 + 0.34 * len(stages)), layout="constrained")
    axes = figure.subplots()
    for line, (stage, value) in enumerate(zip(stages, means, strict=True)):
        axes.barh(line, value, height=0.62, color=KEPT, alpha=0.45, linewidth=0)
        seconds = list(stage.seconds.values())
        if len(seconds) > 1:
            axes.scatter(seconds, [line] * len(seconds), color=KEPT, s=7, zorder=3)
        text = f"{'mean ' if len(seconds) > 1 else ''}{duration(value)}, {value / total:.0%}"
        axes.annotate(text, (max([value, *seconds]), line), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(stages)), [stage.name for stage in stages])
    axes.set_ylim(len(stages) - 0.4, -0.6)
    axes.set_xlim(0, 1.55 * most)  # room for the texts
    axes.tick_params(axis="y", length=0)
    several = len(stages[0].seconds) > 1
    axes.set_xlabel(f"seconds of all jobs together{'; bar: mean over the seeds, dot: a seed' if several else ''}")
    rows = [{"stage": stage.name, "seed": seed, "seconds": value} for stage in stages for seed, value in stage.seconds.items()]
    text = "Seconds of each stage, and its share."
    return Picture("time", figure, ("stage", "seed", "seconds"), rows, text)


def pictures_of_run(run: Found) -> list[Picture]:
    """All pictures of a run: over its seeds, and the rounds of each. Draw and save them in ``tenas.figures.style``."""
    seeds = list(run.archs)
    found = []
    # A single seed is a row of the page's table.
    if len(seeds) > 1 and (accuracies := accuracies_of_run(run.folder, seeds)):
        found.append(draw_seeds(accuracies))
    table = table_if_looked_up(run)
    if table is not None and (cloud := cloud_of(run, table)) is not None:
        found.append(draw_cloud(run, cloud))
    if (retraining := draw_retraining(run.folder, seeds)) is not None:
        found.append(retraining)
    found.append(draw_time(stages_of_run(run.folder, seeds, run.settings)))
    for seed in seeds:
        tables = [
            layout.path(layout.TABLE[entry["kind"]], run.folder, seed=seed, round=number)
            for number, entry in enumerate(run.settings["rounds"], start=1)
        ]
        found.append(draw_rounds(tables, f"rounds-seed{seed}"))
    return found
