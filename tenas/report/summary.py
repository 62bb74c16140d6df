"""The results of a run's seeds, gathered from their files."""

import os
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev

from tenas.errors import TenasError
from tenas.files import read_json, read_table

COLUMNS = ("seed", "arch", "search_seconds", "pruned_share", "parameters", "best_epoch", "valid_accuracy", "test_accuracy")


def search_seconds(seed_dir: Path) -> float:
    """Wall time of the scoring jobs of a search, summed over rounds and shards: what it would take one after another.

    Which shards belong to a round is what its first one says: an earlier search with more of them may have left some.
    """
    total = 0.0
    for first in sorted(seed_dir.glob("round*/scores/1.json")):
        shards = read_json(first, "record of scores").get("shard", "1/1").partition("/")[2]
        records = [read_json(first.with_name(f"{i}.json"), "record of scores") for i in range(1, int(shards) + 1)]
        total += sum(record["wall_seconds"] for record in records)
    return round(total, 3)


def pruned_share(seed_dir: Path, genotype: dict) -> float | None:
    """How sure a search was: the mean over its decisions of how often each is taken again on resampled repeats.

    The rounds are those that led to the genotype, by its record; None for a genotype that doesn't have one.
    """
    last = [name for name in genotype.get("made_by", {}).get("inputs", {}) if name.startswith("round")]
    if not last:
        return None
    shares = [
        float(row["pruned_share"])
        for number in range(1, int(last[0].removeprefix("round").partition("/")[0]) + 1)
        for row in read_table(seed_dir / f"round{number}" / "ranking.csv", ("pruned", "pruned_share"), "ranking")
        if row["pruned"] == "1"
    ]
    return round(mean(shares), 4)


def _seed(seed_dir: Path) -> tuple[dict, dict, dict]:
    """Genotype, benchmark and metrics of a seed; the latter two are empty where the run has none."""
    genotype = read_json(seed_dir / "genotype.json", "genotype")
    found = []
    for path, what in (
        (seed_dir / "benchmark.json", "benchmark look-up"),
        (seed_dir / "retrain" / "metrics.json", "retraining's metrics"),
    ):
        result = read_json(path, what) if path.exists() else {}
        # An accuracy of another cell beside this one would be the worst kind of wrong: one that looks right.
        if result and result.get("arch") != genotype["arch"]:
            raise TenasError(f"The {what} {path} is of another genotype than {seed_dir / 'genotype.json'}: run it again.")
        found.append(result)
    return genotype, *found


def summarise(run_dir: str | os.PathLike, seeds: Iterable[int]) -> tuple[list[str], list[dict]]:
    """Columns and rows of summary.csv, a row a seed. Accuracies in %; empty where the run has no such result.

    ``search_seconds``: time of all scoring jobs. ``pruned_share``: how sure the search was (docs/method.md).

    After COLUMNS, for each accuracy of the benchmark: its value, ``_rank`` (1 is best), ``_regret`` (points below it).
    Raises TenasError when a seed has no genotype yet, or results of another one.
    """
    run_dir = Path(run_dir)
    columns, rows = list(COLUMNS), []
    for seed in seeds:
        genotype, benchmark, metrics = _seed(run_dir / f"seed{seed}")
        seed_dir = run_dir / f"seed{seed}"
        row = {"seed": seed, "arch": genotype["arch"], "search_seconds": search_seconds(seed_dir)}
        row["pruned_share"] = pruned_share(seed_dir, genotype)
        row |= {key: metrics[key] for key in COLUMNS[4:] if key in metrics}
        for name, standing in benchmark.get("accuracies", {}).items():
            if standing is not None:
                row |= {
                    name: standing["accuracy"],
                    f"{name}_rank": standing["rank"],
                    # Of two decimal numbers; the rest is binary noise.
                    f"{name}_regret": round(standing["regret"], 6),
                }
        columns += [key for key in row if key not in columns]
        rows.append(row)
    return columns, rows


def accuracies(rows: Iterable[dict]) -> dict[str, dict[str, float]]:
    """The accuracies in ``summarise``'s rows, by seed: what is worth comparing between two runs, and nothing else."""
    return {
        f"seed{row['seed']}": {
            name: value
            for name, value in row.items()
            if name.endswith(("accuracy", "_valid", "_test", "_valtest")) and value is not None
        }
        for row in rows
    }


def show(run_dir: str | os.PathLike) -> str:
    """A run for a reader at a terminal: each seed's genotype and accuracies, and where the rest lies.

    Raises TenasError when no seed of the run has a genotype.
    """
    run_dir = Path(run_dir)
    seeds = sorted(int(path.parent.name[4:]) for path in run_dir.glob("seed[0-9]*/genotype.json"))
    if not seeds:
        raise TenasError(f"There is no result in {run_dir}: no seed there has a genotype yet.")
    lines = [f"run {run_dir.name}"]
    tested = []
    for seed in seeds:
        seed_dir = run_dir / f"seed{seed}"
        genotype, benchmark, metrics = _seed(seed_dir)
        lines += [
            "",
            f"seed {seed}",
            f"  genotype   {genotype['arch']}",
            f"  search     {search_seconds(seed_dir):.0f} s of scoring",
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
        lines.append(f"  drawing    {seed_dir / 'genotype.svg'}")
    if len(tested) > 1:
        lines += ["", f"retrained, {len(tested)} seeds: {mean(tested):.2f} ({stdev(tested):.2f}) %"]
    lines.append("")
    for path, what in ((run_dir / "summary.csv", "table"), (run_dir.parent / "report.html", "report")):
        if path.exists():
            lines.append(f"{what}: {path}")
    return "\n".join(lines).rstrip("\n")
