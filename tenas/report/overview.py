"""Page of a run: results, their certainty, cost and provenance. A self-contained HTML file."""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import mean, stdev
from typing import Any

from tenas import layout
from tenas.code import code_digest
from tenas.figures import Picture
from tenas.files import read_json
from tenas.progress import duration
from tenas.report.beside import Found, baselines_of_run, standings_of_run, table_if_looked_up
from tenas.report.claims import interval
from tenas.report.cloud import test_of
from tenas.report.drawing import draw
from tenas.report.pictures import Accuracy, Stage, accuracies_of_run, is_looked_up, stages_of_run
from tenas.report.summary import RoundSummary, records_of_scores, results_of_seed, summarise, summarise_rounds
from tenas.spaces import get_space

STYLE = (
    "body{font:15px/1.45 Helvetica,Arial,sans-serif;color:#222;background:#fff;max-width:62rem;margin:1.5rem auto;padding:0 1rem}"
    "h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:1.8rem 0 .5rem;border-bottom:1px solid #ddd}"
    "table{border-collapse:collapse;font-size:.87rem}.wide{overflow-x:auto}"
    "th,td{padding:.25rem .7rem .25rem 0;text-align:left;vertical-align:top}"
    "th{border-bottom:1px solid #999}td{border-bottom:1px solid #eee}.n{text-align:right}td.n{white-space:nowrap}"
    "code{font-size:.8rem;overflow-wrap:anywhere}figure{margin:.8rem 0}img{max-width:100%;height:auto}"
    "figcaption,.quiet{color:#555;font-size:.85rem}dl{display:flex;flex-wrap:wrap;gap:1rem 2rem;margin:1rem 0}"
    "dt{color:#555;font-size:.85rem}dd{margin:0;font-size:1.25rem}dd small{display:block;font-size:.8rem;color:#555}"
)
# Most bytes of SVG of rounds on the page; further seeds have separate files. A report contains the pages of several runs.
ROUNDS_BYTES = 600_000
ROUNDS = (
    "Rounds that prune: for each trial the mean change that taking the operator away makes to a measure, with its standard error "
    "over the repeats; a red cross is what was pruned, and the arrow below says at which end pruning begins. Rounds of cells: "
    "ranks by the measures against each other, the kept cells numbered by their places. A round of trainings: the finalists by "
    "validation accuracy, the best as a star."
)
# Rounds of each seed.
Rounds = Mapping[int, Sequence[RoundSummary]]
# The page must not load or run anything.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]], numbers: Iterable[int] = ()) -> str:
    """A table of texts. ``numbers``: indices of the right-aligned columns."""
    right = set(numbers)

    def line(cells: Sequence[object], tag: str) -> str:
        parts = (f"<{tag}{' class=n' if place in right else ''}>{escape(str(cell))}</{tag}>" for place, cell in enumerate(cells))
        return f"<tr>{''.join(parts)}</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table>\n<thead>{line(columns, "th")}</thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _image(svg: str, text: str) -> str:
    """Embed an SVG as an image, so that its ids and styles do not clash with others on the page."""
    return f'<img alt="{escape(text)}" src="data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}">'


def _figure(svg: str, text: str, caption: str) -> str:
    return f"<figure>{_image(svg, text)}<figcaption>{escape(caption)}</figcaption></figure>"


def _section(title: str, *parts: str) -> str:
    return "\n".join([f"<h2>{escape(title)}</h2>", *parts])


def _facts(facts: Iterable[tuple[str, str, str]]) -> str:
    """Facts in large type: name, value, description."""
    parts = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(what)}</small></dd></div>" for name, value, what in facts
    )
    return f"<dl>{''.join(parts)}</dl>"


def _count(value: object) -> str:
    """Format a number of parameters or multiply-adds."""
    if not isinstance(value, int | float):
        return ""
    return f"{value / 1e6:,.2f} M" if value >= 1e5 else f"{value:,.0f}"


def _several(values: Sequence[float], format: str = ",.2f") -> str:
    """Format a mean, with the standard deviation of several values."""
    spread = f" ({stdev(values):{format}})" if len(values) > 1 else ""
    return f"{mean(values):{format}}{spread}"


# --- results


def _lead(run: Found, found: Sequence[Accuracy]) -> Accuracy | None:
    """The headline accuracy: of the retrained networks, or else of the table, on the run's images if possible."""
    trained = [accuracy for accuracy in found if not is_looked_up(accuracy)]
    name = test_of(run, [accuracy.name for accuracy in found])
    return next((accuracy for accuracy in [*trained, *found] if accuracy in trained or accuracy.name == name), None)


def _costs(run: Found, seed: int, column: str | None) -> tuple[float | None, float | None, str]:
    """Parameters and FLOPs of a seed's network, None if unknown, and the network: the retrained one, or the table's."""
    _, benchmark, metrics = results_of_seed(run.folder, seed)
    if metrics:
        return metrics.get("parameters"), metrics.get("flops"), "of the retrained network"
    costs, of = benchmark.get("costs", {}), (column or "").removesuffix("_test")
    return costs.get(f"params_{of}"), costs.get(f"flops_{of}"), f"of the table's network for {of}"


def _found(run: Found, found: Sequence[Accuracy], seconds: float) -> list[str]:
    lead, seeds = _lead(run, found), list(run.archs)
    costs = [_costs(run, seed, lead.name if lead else None) for seed in seeds]
    facts = []
    if lead is not None:
        facts.append(("accuracy", f"{_several(list(lead.values.values()))} %", f"{lead.name}, {lead.source}"))
    for place, name in enumerate(("parameters", "FLOPs (multiply-adds)")):
        known = [value for cost in costs if isinstance(value := cost[place], int | float)]
        if len(known) == len(seeds):
            least, most = _count(min(known)), _count(max(known))
            facts.append((name, least if least == most else f"{least} to {most}", costs[0][2]))
    several = ", mean over the seeds" if len(seeds) > 1 else ""
    facts.append(("search", duration(seconds), f"jobs that measured and trained{several}"))
    facts.append(("seeds", str(len(seeds)), ", ".join(map(str, seeds))))
    return [_facts(facts)]


def _cells(run: Found) -> list[str]:
    """The distinct cells found, with their seeds."""
    space = get_space(run.settings["space"])
    by_cell: dict[str, list[int]] = {}
    for seed, arch in run.archs.items():
        by_cell.setdefault(arch, []).append(seed)
    parts = []
    for place, (arch, seeds) in enumerate(by_cell.items()):
        who = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        drawing = _figure(draw(space.parse(arch)), f"the cell {arch}", arch)
        # Only the first is open; the others unfold without a script.
        parts.append(f"<details{' open' if not place else ''}><summary>{escape(who)}</summary>{drawing}</details>")
    return parts


def _rows(run: Found, found: Sequence[Accuracy], rows: Sequence[Mapping[str, Any]]) -> str:
    """One row per seed: accuracies, ranks, costs, times."""
    lead = _lead(run, found)
    table = []
    for row in rows:
        seed = row["seed"]
        parameters, flops, _ = _costs(run, seed, lead.name if lead else None)
        values = [f"{accuracy.values[seed]:.2f} %{_rank(row, accuracy)}" for accuracy in found]
        short = [] if row.get("finalist_accuracy") is None else [f"{row['finalist_accuracy']:.2f} %"]
        trained = row.get("training_seconds") or 0
        table.append([seed, *values, *short, _count(parameters), _count(flops), duration(row["search_seconds"] + trained)])
    names = [f"{accuracy.name}, {'table' if is_looked_up(accuracy) else 'retrained'}" for accuracy in found]
    names += ["short training, validation"] if any("finalist_accuracy" in row for row in rows) else []
    columns = ["seed", *names, "parameters", "FLOPs", "search"]
    return _table(columns, table, range(len(columns)))


def _rank(row: Mapping[str, Any], accuracy: Accuracy) -> str:
    rank = row.get(f"{accuracy.name}_rank") if is_looked_up(accuracy) else None
    return "" if rank is None else f", rank {rank:,}"


# --- certainty


def _sure(found: Sequence[Accuracy], rows: Sequence[Mapping[str, Any]], rounds: Rounds) -> list[str]:
    table = []
    for accuracy in found:
        values = list(accuracy.values.values())
        ends = interval(values)
        between = "none: one seed" if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}"
        spread = "" if len(values) < 2 else f"{stdev(values):.2f}"
        table.append([accuracy.name, accuracy.source, f"{mean(values):.2f}", spread, between, len(values)])
    columns = ["accuracy, %", "source", "mean", "sd", "95 % interval of the mean", "seeds"]
    parts = (
        [_table(columns, table, (2, 3, 4, 5))] if table else ["<p>No accuracy is known: nothing was retrained or looked up.</p>"]
    )
    shares = {"pruned_share": "operators that were pruned", "kept_share": "cells that were kept"}
    for column, what in shares.items():
        if values := [row[column] for row in rows if row.get(column) is not None]:
            parts.append(
                f"<p>With the repeats drawn again, the same {what} come out in {mean(values):.0%} of the draws on average.</p>"
            )
    return [*parts, _warnings(rounds)]


def _warnings(rounds: Rounds) -> str:
    """The warnings of all rounds, each with the seeds that have it unless all have."""
    seeds_with: dict[str, list[int]] = {}
    for seed, summaries in rounds.items():
        for summary in summaries:
            for warning in summary.warnings:
                seeds_with.setdefault(f"round {summary.number}: {warning}", []).append(seed)
    if not seeds_with:
        return "<p>No measure was constant, saturated, infinite, or taken once.</p>"
    lines = (
        f"<li>{escape(text)}{'' if len(seeds) == len(rounds) else escape(f' (seeds {seeds})')}</li>"
        for text, seeds in seeds_with.items()
    )
    return f"<p>Warnings:</p><ul>{''.join(lines)}</ul>"


def _beside(run: Found) -> str | None:
    """Baselines of equal cost, in the table of the run's space; None if it was not looked up."""
    table = table_if_looked_up(run)
    found = [] if table is None else standings_of_run(run, table, "this run")
    if table is None or not found:
        return None
    names = list(found[0].accuracies)
    rows = []
    for part in [*found, *baselines_of_run(run, table)]:
        values = [part.accuracies[name] for name in names]
        rows.append([part.name, *(f"{value:.2f} ({spread:.2f})" if spread else f"{value:.2f}" for value, spread in values)])
    return _table(["test accuracy in the table, mean (sd), %", *names], rows, range(1, len(names) + 1))


# --- round by round


def _rounds(figures: Mapping[str, str]) -> list[str]:
    """The rounds of the first seeds, only the first one open, and the seeds left out."""
    parts: list[str] = []
    left_out, size = [], 0
    for name, figure in figures.items():
        if name.startswith("rounds-"):
            size += len(figure) * 3 // 4  # base64
            who = name.removeprefix("rounds-").replace("seed", "seed ")
            if parts and size > ROUNDS_BYTES:
                left_out.append(who)
            else:
                parts.append(f"<details{'' if parts else ' open'}><summary>{escape(who)}</summary>{figure}</details>")
    if left_out:
        parts.append(f'<p class="quiet">In figures of their own: {escape(", ".join(left_out))}.</p>')
    return [f"<p>{ROUNDS}</p>", *parts]


# --- cost and provenance


def _funnel(stages: Sequence[Stage], rounds: Rounds) -> str:
    """The rounds, with numbers of subjects and of kept ones in the first seed, and mean seconds over all seeds."""
    first = rounds[min(rounds)]
    rows = []
    for place, stage in enumerate(stages):
        part = first[place] if place < len(first) else None
        numbers = ["", ""] if part is None else [f"{part.subjects:,}", f"{part.kept:,}"]
        rows.append([stage.name, *numbers, duration(mean(stage.seconds.values()))])
    several = f"kept (seed {min(rounds)})" if len(rounds) > 1 else "kept"
    return _table(["stage", "subjects", several, "time, mean" if len(rounds) > 1 else "time"], rows, (1, 2, 3))


def _records(run: Found, rounds: Rounds) -> list[Mapping[str, Any]]:
    """The records of all measurements and trainings."""
    found: list[Mapping[str, Any]] = []
    for seed in run.archs:
        for number, entry in enumerate(run.settings["rounds"], start=1):
            at = {"seed": seed, "round": number}
            if entry["kind"] != "training":
                found += records_of_scores(layout.path(layout.SCORES_RECORD, run.folder, **at, shard=1).parent).values()
            elif entry["column"] is None:
                for place in range(1, rounds[seed][number - 1].subjects + 1):
                    path = layout.path(layout.TRAINING_METRICS, run.folder, **at, place=place)
                    found.append(read_json(path, "training's metrics").get("provenance") or {})
        metrics = results_of_seed(run.folder, seed)[2]
        found += [metrics.get("provenance") or {}] if metrics else []
    return found


def _made_by(run: Found, rounds: Rounds, commit: Mapping[str, Any] | None) -> str:
    records = _records(run, rounds)

    def values(*keys: str) -> list[str]:
        found: dict[str, None] = {}
        for record in records:
            value: Any = record
            for key in keys:
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                found[str(value)] = None
        return list(found)

    codes = values("code_sha256")
    packages = sorted({name for record in records for name in record.get("packages") or {}})
    rows = [
        ("space", [run.settings["space"]]),
        ("preset", [run.settings["preset"]]),
        ("processor", values("machine", "processor")),
        ("GPU", values("machine", "gpu")),
        ("system", values("machine", "platform")),
        ("TE-NAS", values("tenas")),
        ("packages", [", ".join(f"{name} {' and '.join(values('packages', name))}" for name in packages)]),
        ("code (SHA-256)", codes),
        ("commit", _commit(codes, commit)),
    ]
    return _table(["what", "by the records"], [(name, "; ".join(map(str, found))) for name, found in rows if any(found)])


def _commit(codes: Sequence[str], commit: Mapping[str, Any] | None) -> list[str]:
    """The commit of the present code, if it made the results."""
    if commit is None or list(codes) != [code_digest()]:
        return ["not known: the records have the hash of the code above"] if codes else []
    return [f"{commit['sha1']}{', with changes that are not committed' if commit['changed'] else ''}"]


def overview(run: Found, pictures: Iterable[tuple[Picture, str]], commit: Mapping[str, Any] | None = None) -> str:
    """The page of a run as HTML, from its files only.

    ``pictures``: those of ``tenas.report.pictures.pictures_of_run``, each with its SVG text; the page has the
    rounds of as many seeds as ROUNDS_BYTES allow. ``commit``: of the present code (``tenas.provenance.commit_of_code``).

    Raises TenasError for missing or damaged files of the run.
    """
    seeds = list(run.archs)
    found = accuracies_of_run(run.folder, seeds)
    stages = stages_of_run(run.folder, seeds, run.settings)
    _, rows = summarise(run.folder, seeds)
    rounds = {seed: summarise_rounds(run.folder, seed, run.settings) for seed in seeds}
    searched = sum(mean(stage.seconds.values()) for stage in stages if stage.name.startswith("round "))
    figures = {picture.name: _figure(svg, picture.text, picture.text) for picture, svg in pictures}
    beside = _beside(run)

    def wanted(*names: str) -> list[str]:
        return [figures[name] for name in names if name in figures]

    name = run.folder.resolve().name
    parts = [
        f"<h1>{escape(name)}</h1>",
        *_found(run, found, searched),
        _section("What was found", *_cells(run), _rows(run, found, rows), *wanted("cloud", "retraining")),
        _section("How sure it is", *_sure(found, rows, rounds), *wanted("seeds")),
        *([] if beside is None else [_section("What costs as much", beside)]),
        _section("What it cost", _funnel(stages, rounds), figures["time"]),
        _section("Round by round", *_rounds(figures)),
        _section("What made it", _made_by(run, rounds, commit)),
        '<p class="quiet">All figures as SVG and PNG, with their data as CSV, also of the rounds of each seed, lie in the folder '
        f"{layout.FIGURES} of the run. Every decision: tenas audit {escape(str(run.folder))}.</p>",
    ]
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(name)}: overview</title><style>{STYLE}</style>'
    )
    return "\n".join(
        ["<!DOCTYPE html>", f'<html lang="en"><head>{head}</head><body>', *filter(None, parts), "</body></html>", ""]
    )
