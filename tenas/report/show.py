"""Report a run at a terminal: its results round by round, and comparisons. No torch."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tenas import layout
from tenas.errors import UNFIT, TenasError
from tenas.report.beside import Found, baselines_of_run, read_found, standings_of_run, table_of
from tenas.report.summary import RoundSummary, of_search, results_of_seed, summarise_rounds


def _search_lines(rounds: Sequence[RoundSummary], settings: Mapping[str, Any]) -> list[str]:
    """The funnel, one line per round, and the time that it took."""
    lines = [f"  {'round':<7}{'kind':<11}{'subjects':>8}{'kept':>7}{'seconds':>9}  best"]
    for part in rounds:
        best = f"{'' if part.accuracy is None else f'{part.accuracy:.2f} %  '}{part.best or ''}"
        looked_up = part.kind == "training" and settings["rounds"][part.number - 1]["column"] is not None
        seconds = "table" if looked_up else f"{part.seconds:,.0f}"
        lines.append(f"  {part.number:<7}{part.kind:<11}{part.subjects:>8,}{part.kept:>7,}{seconds:>9}  {best}".rstrip())
        lines += [f"         {warning}" for warning in part.warnings]
    spent = of_search(rounds)
    trained = f", {spent['training_seconds']:.0f} s of short trainings" if spent.get("training_seconds") else ""
    return [*lines, f"  search     {spent['search_seconds']:.0f} s of scoring{trained}"]


def _accuracy_lines(benchmark: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    """A seed's accuracy after its retraining, if it has one, and those of the table."""
    lines = []
    if metrics:
        # A protocol without a validation part takes the last epoch.
        chosen = "" if metrics["valid_accuracy"] is None else f" ({metrics['valid_accuracy']:.2f} % in validation)"
        lines.append(
            f"  retrained  {metrics['test_accuracy']:.2f} % of the test images, epoch {metrics['best_epoch']} of "
            f"{metrics['epochs']}{chosen}, {_costs(metrics.get('parameters'), metrics.get('flops'))}"
        )
    if "reason" in benchmark:
        lines.append(f"  benchmark  {benchmark['reason']}")
    costs = benchmark.get("costs", {})
    for name, standing in benchmark.get("accuracies", {}).items():
        if standing is not None and name.endswith(("_test", "accuracy")):
            of = name.removesuffix("_test")
            cost = _costs(costs.get(f"params_{of}"), costs.get(f"flops_{of}"))
            lines.append(
                f"  benchmark  {name} {standing['accuracy']:.2f} %, rank {standing['rank']:,} of "
                f"{benchmark['cells']:,}, {standing['regret']:.2f} below the best{cost and f', {cost}'}"
            )
    return lines


def _costs(parameters: float | None, flops: float | None) -> str:
    """Parameters and multiply-adds of a network, if known."""
    parts = [] if parameters is None else [f"{parameters:,} parameters"]
    return ", ".join([*parts, *([] if flops is None else [f"{flops / 1e6:,.1f} M multiply-adds"])])


def _others(run_dir: Path) -> Iterator[Found]:
    """Runs in the same folder. Unfinished and damaged ones, and those of earlier versions, are skipped."""
    for path in sorted(run_dir.parent.glob(f"*/{layout.SEARCH}")):
        if path.parent != run_dir:
            with suppress(TenasError, *UNFIT):
                yield read_found(path.parent)


def _beside(run: Found) -> list[str]:
    """Test accuracies in the table: of the results, of the results without trainings, and of baselines at equal cost.

    ``run``: with the seeds that were looked up.
    """
    table = table_of(run)
    if table is None:
        return []
    found = standings_of_run(run, table, "this run")
    if not found:
        return []
    names = list(found[0].accuracies)
    found += baselines_of_run(run, table, _others(run.folder))
    width = max(len(part.name) for part in found) + 2
    title = "test accuracy, mean (sd), %" if len(run.archs) > 1 else "test accuracy, %"
    lines = [f"{title:<{width + 2}}" + "".join(f"{name:>18}" for name in names)]
    for part in found:
        means = (part.accuracies[name] for name in names)
        # A single cell has no standard deviation.
        figures = (f"{value:.2f} ({spread:.2f})" if spread else f"{value:.2f}" for value, spread in means)
        lines.append(f"  {part.name:<{width}}" + "".join(f"{figure:>18}" for figure in figures))
    return lines


def show(run_dir: str | os.PathLike[str]) -> str:
    """Describe a run: each seed's funnel round by round, its genotype and accuracies, and the paths of further results.

    Raises TenasError if no seed of the run has a genotype.
    """
    run_dir = Path(run_dir)
    run = read_found(run_dir)
    seeds, settings = list(run.archs), run.settings
    lines = [f"run {run_dir.name}"]
    tested: list[float] = []
    looked_up: dict[int, str] = {}
    for seed in seeds:
        genotype, benchmark, metrics = results_of_seed(run_dir, seed)
        if benchmark.get("accuracies"):
            looked_up[seed] = genotype["arch"]
        if metrics:
            tested.append(metrics["test_accuracy"])
        lines += [
            "",
            f"seed {seed}",
            *_search_lines(summarise_rounds(run_dir, seed, settings), settings),
            f"  genotype   {genotype['arch']}",
            *_accuracy_lines(benchmark, metrics),
            f"  drawing    {layout.path(layout.DRAWING, run_dir, seed=seed)}",
        ]
    if len(tested) > 1:
        lines += ["", f"retrained, {len(tested)} seeds: {mean(tested):.2f} ({stdev(tested):.2f}) %"]
    if looked_up:
        lines += ["", *_beside(Found(run_dir, settings, looked_up))]
    lines.append("")
    table, report = layout.path(layout.SUMMARY, run_dir), run_dir.parent / "report.html"
    if table.exists():
        # Seeds that the configuration has no more, or that have been searched since.
        listed = {row.partition(",")[0] for row in table.read_text(encoding="utf-8", errors="replace").splitlines()}
        absent = [str(seed) for seed in seeds if str(seed) not in listed]
        lines.append(f"table: {table}" + (f", without seed {', '.join(absent)}" if absent else ""))
    # The report may be of other runs.
    if report.exists() and f'/{run_dir.name}/{layout.SUMMARY}"' in report.read_text(encoding="utf-8", errors="replace"):
        lines.append(f"report: {report}")
    return "\n".join(lines).rstrip("\n")
