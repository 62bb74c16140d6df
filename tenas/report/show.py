"""A run for a reader at a terminal: what it found, round by round, and what stands beside it. No torch."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tenas import layout
from tenas.benchmark.index import read_index
from tenas.errors import TenasError
from tenas.report.baselines import baselines, standing_of
from tenas.report.summary import RoundSummary, of_search, results_of_seed, summarise_rounds
from tenas.search.limits import read_limits
from tenas.search.shortlist import read_shortlist
from tenas.settings.search import read_settings
from tenas.spaces import get_space
from tenas.study.correlate import TESTS


def _told(rounds: Sequence[RoundSummary], settings: Mapping[str, Any]) -> list[str]:
    """The funnel, one line per round."""
    lines = [f"  {'round':<7}{'kind':<11}{'subjects':>8}{'kept':>7}{'seconds':>9}  best"]
    for part in rounds:
        best = f"{'' if part.accuracy is None else f'{part.accuracy:.2f} %  '}{part.best or ''}"
        looked_up = part.kind == "training" and settings["rounds"][part.number - 1]["column"] is not None
        seconds = "table" if looked_up else f"{part.seconds:,.0f}"
        lines.append(f"  {part.number:<7}{part.kind:<11}{part.subjects:>8,}{part.kept:>7,}{seconds:>9}  {best}".rstrip())
    return lines


def _beside(run_dir: Path, settings: Mapping[str, Any], looked_up: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Test accuracies of what was found, of what would have been without trainings, and of what costs as much, by the table.

    ``looked_up``: what the table says of each seed's cell, for the seeds that have been looked up.
    """
    first, *others = looked_up.values()
    names = [name for name, value in first["accuracies"].items() if name.endswith(TESTS) and value is not None]
    if not names or any(other["index"] != first["index"] for other in others):
        return []
    cells = [{name: each["accuracies"][name]["accuracy"] for name in names} for each in looked_up.values()]
    found, table = [standing_of("this run", cells)], read_index(first["index"], settings["space"])
    kinds = [entry["kind"] for entry in settings["rounds"]]
    if kinds[-1] == "training" and "cells" in kinds:
        last = len(kinds) - kinds[::-1].index("cells")
        paths = [layout.path(layout.SHORTLIST, run_dir, seed=seed, round=last) for seed in looked_up]
        ranked = [read_shortlist(path, get_space(settings["space"])).cells[0].arch for path in paths]
        without = table.set_index("arch").loc[ranked, names].to_dict("records")
        found.append(standing_of("this run without its trainings", without))
    limits = layout.path(layout.LIMITS, run_dir)
    found += baselines(table, settings, read_limits(limits if limits.exists() else None))
    width = max(len(part.name) for part in found) + 2
    title = "test accuracy, mean (sd), %" if len(looked_up) > 1 else "test accuracy, %"
    lines = [f"{title:<{width + 2}}" + "".join(f"{name:>18}" for name in names)]
    for part in found:
        means = (part.accuracies[name] for name in names)
        # One cell has no deviation.
        figures = (f"{value:.2f} ({spread:.2f})" if spread else f"{value:.2f}" for value, spread in means)
        lines.append(f"  {part.name:<{width}}" + "".join(f"{figure:>18}" for figure in figures))
    return lines


def show(run_dir: str | os.PathLike[str]) -> str:
    """A run for a reader at a terminal: each seed's funnel round by round, its genotype and accuracies, and where the rest lies.

    Raises TenasError when no seed of the run has a genotype.
    """
    run_dir = Path(run_dir)
    found = run_dir.glob(layout.GENOTYPE.replace("{seed}", "[0-9]*"))
    seeds = sorted(int(path.parent.name[4:]) for path in found if path.parent.name[4:].isdecimal())
    if not seeds:
        raise TenasError(f"There is no result in {run_dir}: no seed there has a genotype yet.")
    settings = read_settings(layout.path(layout.SEARCH, run_dir))
    lines = [f"run {run_dir.name}"]
    tested: list[float] = []
    looked_up: dict[int, Mapping[str, Any]] = {}
    for seed in seeds:
        genotype, benchmark, metrics = results_of_seed(run_dir, seed)
        if benchmark.get("accuracies"):
            looked_up[seed] = benchmark
        rounds = summarise_rounds(run_dir, seed, settings)
        spent = of_search(rounds)
        trained = f", {spent['training_seconds']:.0f} s of short trainings" if spent.get("training_seconds") else ""
        lines += [
            "",
            f"seed {seed}",
            *_told(rounds, settings),
            f"  search     {spent['search_seconds']:.0f} s of scoring{trained}",
            f"  genotype   {genotype['arch']}",
        ]
        if metrics:
            tested.append(metrics["test_accuracy"])
            # A protocol without a validation part takes the last epoch.
            chosen = "" if metrics["valid_accuracy"] is None else f" ({metrics['valid_accuracy']:.2f} % in validation)"
            lines.append(
                f"  retrained  {metrics['test_accuracy']:.2f} % of the test images, epoch {metrics['best_epoch']} of "
                f"{metrics['epochs']}{chosen}, {metrics['parameters']:,} parameters"
            )
        if "reason" in benchmark:
            lines.append(f"  benchmark  {benchmark['reason']}")
        for name, standing in benchmark.get("accuracies", {}).items():
            if standing is not None and name.endswith(("_test", "accuracy")):
                lines.append(
                    f"  benchmark  {name} {standing['accuracy']:.2f} %, rank {standing['rank']:,} of "
                    f"{benchmark['cells']:,}, {standing['regret']:.2f} below the best"
                )
        lines.append(f"  drawing    {layout.path(layout.DRAWING, run_dir, seed=seed)}")
    if len(tested) > 1:
        lines += ["", f"retrained, {len(tested)} seeds: {mean(tested):.2f} ({stdev(tested):.2f}) %"]
    if looked_up:
        lines += ["", *_beside(run_dir, settings, looked_up)]
    lines.append("")
    for path, what in ((layout.path(layout.SUMMARY, run_dir), "table"), (run_dir.parent / "report.html", "report")):
        if path.exists():
            lines.append(f"{what}: {path}")
    return "\n".join(lines).rstrip("\n")
