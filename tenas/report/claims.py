"""Judge claims by runs and their baselines: means, intervals over the seeds, verdicts."""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from math import isnan, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tenas import layout
from tenas.errors import TenasError, reason
from tenas.files import finite, read_json, read_table
from tenas.provenance import Stopwatch, provenance
from tenas.report.baselines import Standing
from tenas.report.beside import Found, baselines_of_run, ranked_first, standings_of_run, table_of
from tenas.report.summary import is_stale_study, of_other_settings
from tenas.settings.base import checked, project_file, read_yaml
from tenas.settings.claims import Claims
from tenas.settings.config import Config
from tenas.settings.search import difference, read_settings, run_settings
from tenas.settings.study import read_study, study_settings

CONFIDENCE = 0.95
# Headings of the page, by the author of the claims.
WHOSE = {"paper": "The paper's claims", "tenas": "Ours"}


def read_claims(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Read and check the claims of a file, by name. Raises TenasError for faulty ones."""
    found: dict[str, dict[str, Any]] = _file(path).model_dump(exclude_none=True)["claims"]
    return found


def _file(path: str | os.PathLike[str]) -> Claims:
    return checked(Claims, read_yaml(path, "file of claims"), str(path))


def configurations_of(path: str | os.PathLike[str]) -> list[Path]:
    """Configurations named by a file of claims, which define its runs and studies."""
    return [project_file(name) for name in _file(path).configurations]


def settings_meant(configurations: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Expected settings of the claims' runs and studies, by name: those that determine their results.

    Beside those of the search or study, a run that is retrained has ``retraining``. The images of a search may be others, such as
    a sample of the data set.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in configurations:
        config = checked(Config, read_yaml(path, "configuration"), str(path)).model_dump()
        for name, run in config["runs"].items():
            dataset = config["datasets"][run["dataset"]]
            settings, retraining = run_settings(run, dataset["source"])
            found[name] = {key: settings[key] for key in ("space", "exclude", "rounds", "limits")}
            found[name] |= {} if retraining is None else {"retraining": _of_retraining({**retraining, "dataset": dataset})}
        for name, study in config["studies"].items():
            settings = study_settings(study, f"{path}: study {name!r}")
            found[name] = {key: settings[key] for key in ("space", "exclude", "measures", "cells", "seed")}
    return found


def _of_retraining(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings of a retraining, as in its file, that determine results."""
    dataset = {key: settings["dataset"].get(key) for key in ("source", "side")}
    return {key: value for key, value in settings.items() if key not in ("preset", "workers", "dataset")} | {"dataset": dataset}


def _other_settings(folder: Path, meant: Mapping[str, Mapping[str, Any]], *, retrained: bool) -> str | None:
    """First difference of a run's or study's settings from the expected ones, or those of its results from those it has now.

    None if there is none. ``retrained``: whether the settings of its retraining count, too.
    """
    expected = dict(meant.get(folder.name, {}))
    if layout.path(layout.SEARCH, folder).exists():
        if others := of_other_settings(folder, _summary(folder)):
            return f"seed {others[0]} was searched with others than {layout.SEARCH} has now"
        found = read_settings(layout.path(layout.SEARCH, folder))
        file = layout.path(layout.RETRAIN, folder)
        if retrained and file.exists():
            found["retraining"] = _of_retraining(read_json(file, "retraining settings"))
        else:
            expected.pop("retraining", None)
    elif not expected and not layout.path(layout.STUDY, folder).exists():
        return None  # results alone
    else:
        found = read_study(layout.path(layout.STUDY, folder))
        if is_stale_study(folder):
            return f"its correlations are of others than {layout.STUDY} has now"
    return difference({key: found.get(key) for key in expected}, expected)


def runs_of(claims: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The runs and studies named by the claims, each once, in their order."""
    named = [run for claim in claims.values() for run in (claim.get("runs") or chain(*claim["better"]))]
    return list(dict.fromkeys(named))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's interval of a mean over seeds, at CONFIDENCE; None for a single seed."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / sqrt(len(values))
    return mean(values) - half, mean(values) + half


def difference_interval(first: tuple[float, float, int], second: tuple[float, float, int]) -> tuple[float, float]:
    """Welch's interval, at CONFIDENCE, of the difference of two means, each given as (mean, standard deviation, number).

    The degrees of freedom are Satterthwaite's. Source: Welch 1947, Biometrika 34.
    """
    from scipy.stats import t

    parts = [spread**2 / n for _, spread, n in (first, second)]
    error = sqrt(sum(parts))
    between = first[0] - second[0]
    if error == 0:
        return between, between
    freedom = sum(parts) ** 2 / sum(part**2 / (n - 1) for part, (_, _, n) in zip(parts, (first, second), strict=True))
    half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return between - half, between + half


def threshold(claim: Mapping[str, Any]) -> float:
    """Smallest mean for which a claim holds: the published figure less its standard error.

    If no spread is published, the published figure less the claim's tolerance, if it has one. For a claim that one run is better
    than another, or than baselines, a difference of zero.
    """
    if "better" in claim or "above" in claim:
        return 0.0
    error = claim["spread"] / sqrt(claim["seeds"]) if "spread" in claim else claim.get("tolerance", 0.0)
    return float(claim["value"] - error)


def verdict(found: Sequence[float] | None, least: float, *, more: bool = False) -> str:
    """Verdict on a claim that needs ``least``: ``holds`` if the interval is above, ``does not hold`` if it is below.

    ``undecided`` if it contains ``least``, or if there is no interval. An interval that begins at ``least`` is above it, unless
    the claim needs ``more``: cells that are equal are not better than each other.
    """
    if found is None:
        return "undecided"
    if found[0] > least or (found[0] == least and not more):
        return "holds"
    return "does not hold" if found[1] < least else "undecided"


def seeds_of_run(folder: Path, column: str) -> list[dict[str, Any]]:
    """Read genotype and accuracy of each seed of a run from its summary. Raises TenasError if a seed lacks the accuracy."""
    rows, path = _summary(folder).items(), layout.path(layout.SUMMARY, folder)
    try:
        found = [(seed, row["arch"], finite(float(row[column]))) for seed, row in rows]
    except (KeyError, ValueError) as error:
        raise TenasError(f"The summary {path} lacks the accuracy {column!r} of a seed, or has no number for it.") from error
    for seed, _, value in found:
        if not 0 <= value <= 100:
            raise TenasError(f"The summary {path} has {value:g} for {column} of seed {seed}; accuracies are in %.")
    return [{"seed": seed, "arch": arch, "value": value} for seed, arch, value in found]


def _summary(folder: Path) -> dict[int, dict[str, str]]:
    """The rows of a run's summary by seed."""
    path = layout.path(layout.SUMMARY, folder)
    rows = read_table(path, ("seed", "arch"), "summary")
    if not rows:
        raise TenasError(f"The summary {path} has no seeds: make it again.")
    try:
        found = {int(row["seed"]): row for row in rows}
    except ValueError as error:
        raise TenasError(f"The summary {path} is damaged: the number of a seed is none ({reason(error)}).") from error
    if len(found) < len(rows):
        raise TenasError(f"The summary {path} has a seed twice.")
    return found


def statistics(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation, number and interval of the mean, as in claims.json."""
    found = interval(values)
    return {
        "mean": mean(values),
        "sd": stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "interval": None if found is None else list(found),
    }


class _Runs:
    """The existing runs and their comparisons in the table of their space, each read or computed once for all claims."""

    def __init__(self, results: Path, tested: Iterable[str]) -> None:
        self.runs = [self._read(results / run) for run in tested if (results / run / layout.SEARCH).exists()]
        self._table = cache(lambda folder: table_of(self.found(folder)))
        self.standings = cache(self._standings)
        self.baselines = cache(self._baselines)

    @staticmethod
    def _read(folder: Path) -> Found:
        archs = {seed: row["arch"] for seed, row in _summary(folder).items()}
        return Found(folder, read_settings(layout.path(layout.SEARCH, folder)), archs)

    def found(self, folder: Path) -> Found:
        """The run of a folder. Raises TenasError if the folder has no settings."""
        for run in self.runs:
            if run.folder == folder:
                return run
        raise TenasError(f"The run {folder} has no {layout.SEARCH}, by which it is compared: search again.")

    def seeds_before_trainings(self, folder: Path, column: str) -> list[dict[str, Any]]:
        """``seeds_of_run`` for the best cells before the short trainings. Raises TenasError if there are none."""
        run, table = self.found(folder), self._table(folder)
        ranked = ranked_first(run)
        if table is None or column not in table or not ranked:
            lacks = f"a table with {column!r}" if ranked else "short trainings at its end"
            raise TenasError(f"The run {folder} lacks {lacks}: a claim about it without trainings cannot be judged.")
        values = table.set_index("arch")[column]
        return [{"seed": seed, "arch": arch, "value": float(values[arch])} for seed, arch in ranked.items()]

    def _standings(self, folder: Path) -> list[Standing]:
        """Standings of the run itself, and without its trainings; empty without a table."""
        table = self._table(folder)
        return [] if table is None else standings_of_run(self.found(folder), table, f"run {folder.name}")

    def _baselines(self, folder: Path, *, trained: bool) -> list[Standing]:
        """Baselines of the run, ``trained`` or without its trainings; empty without a table."""
        table = self._table(folder)
        return [] if table is None else baselines_of_run(self.found(folder), table, self.runs, trained=trained)


def _seeds(claim: Mapping[str, Any], folder: Path, runs: _Runs) -> list[dict[str, Any]]:
    column = claim["accuracy"]
    return seeds_of_run(folder, column) if claim["trained"] else runs.seeds_before_trainings(folder, column)


def _accuracy(claim: Mapping[str, Any], folder: Path, runs: _Runs) -> dict[str, Any]:
    seeds = _seeds(claim, folder, runs)
    ours = statistics([seed["value"] for seed in seeds])
    difference = None
    if ours["interval"] is not None and "spread" in claim:
        published = claim["value"], claim["spread"], claim["seeds"]
        difference = difference_interval((ours["mean"], ours["sd"], ours["n"]), published)
    return ours | {"difference": difference, "verdict": verdict(ours["interval"], threshold(claim)), "seeds": seeds}


def _above(claim: Mapping[str, Any], folder: Path, runs: _Runs) -> list[dict[str, Any]]:
    """Compare a run with each baseline: difference of the means, with Welch's interval.

    A single figure, such as the cell with the most parameters, or an exact mean has no spread: Student's interval then.
    """
    ours = statistics([seed["value"] for seed in _seeds(claim, folder, runs)])
    found = []
    for other in runs.baselines(folder, trained=claim["trained"]):
        if claim["accuracy"] not in other.accuracies:
            continue
        mean_of_other, spread = other.accuracies[claim["accuracy"]]
        between = ours["interval"]
        if between is not None and other.number is not None and other.number > 1:
            between = difference_interval((ours["mean"], ours["sd"], ours["n"]), (mean_of_other, spread, other.number))
        elif between is not None:
            between = [end - mean_of_other for end in between]
        entry = {"than": other.name, "mean": ours["mean"] - mean_of_other, "n": ours["n"], "interval": between}
        found.append(entry | {"verdict": verdict(between, threshold(claim), more=True)})
    if not found:
        raise TenasError(f"The run {folder} was not looked up in a table of its whole space: it has no baselines.")
    return found


def _better(claim: Mapping[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    both = [statistics([seed["value"] for seed in seeds_of_run(folder, claim["accuracy"])]) for folder in folders]
    between = None
    if all(ours["interval"] is not None for ours in both):
        between = difference_interval(*((ours["mean"], ours["sd"], ours["n"]) for ours in both))
    return {
        "mean": both[0]["mean"] - both[1]["mean"],
        "n": min(ours["n"] for ours in both),
        "interval": between,
        "verdict": verdict(between, threshold(claim), more=True),
    }


def _correlation(claim: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    path = folder / "correlations.csv"
    wanted = claim["correlation"]
    columns = ("measure", "accuracy", "subset", "cells", "kendall", "kendall_low", "kendall_high")
    for row in read_table(path, columns, "correlations"):
        if row["subset"] == "all" and (row["measure"], row["accuracy"]) == (wanted["measure"], wanted["accuracy"]):
            try:
                n, tau, *ends = int(row["cells"]), *(float(row[f"kendall{end}"]) for end in ("", "_low", "_high"))
            except ValueError as error:
                raise TenasError(f"The correlations {path} are damaged: {reason(error)}.") from error
            # Of a measure, or of accuracies, that are the same for all cells there is no correlation.
            known = all(-1 <= value <= 1 for value in (tau, *ends))
            if not known and not any(map(isnan, (tau, *ends))):
                raise TenasError(f"The correlations {path} are damaged: {tau} ({ends[0]} to {ends[1]}) is no correlation.")
            interval = ends if known else None
            return {"mean": tau if known else None, "n": n, "interval": interval, "verdict": verdict(interval, threshold(claim))}
    raise TenasError(f"The correlations {path} have no row of {wanted['measure']} with {wanted['accuracy']}.")


def judge(path: str | os.PathLike[str], results: str | os.PathLike[str], tested: Iterable[str]) -> dict[str, Any]:
    """Judge every claim of the file ``path`` by the runs that test it. Returns the value of claims.json.

    ``results``: folder of the runs. ``tested``: the runs expected there; others are reported as not tested, so that an unchecked
    figure is never mistaken for a checked one. So are runs whose settings differ from those in the file's ``configurations``.
    Raises TenasError for a run that no claim is about, for a missing expected result, and for one without the accuracy.
    """
    stopwatch = Stopwatch()
    claims, results, tested = read_claims(path), Path(results), set(tested)
    known = runs_of(claims)
    if unknown := sorted(tested - set(known)):
        raise TenasError(f"No claim in {path} is about {unknown[0]!r}; claims are about the runs and studies {', '.join(known)}.")
    runs = _Runs(results, [run for run in known if run in tested])
    configurations = configurations_of(path)
    meant = settings_meant(configurations)
    others = cache(lambda run, *, retrained: _other_settings(results / run, meant, retrained=retrained))
    inputs, judged = [path, *configurations], []
    for name, claim in claims.items():
        found: list[dict[str, Any]] = []
        for run in claim.get("better") or claim["runs"]:
            names = run if isinstance(run, list) else [run]
            entry = {"run": " - ".join(names)}
            if not tested.issuperset(names):
                found.append(entry | {"verdict": "not tested"})
                continue
            folders = [results / one for one in names]
            retrained = claim.get("accuracy") == "test_accuracy"
            other = [f"{one}: {text}" for one in names if (text := others(one, retrained=retrained))]
            if other:
                found.append(entry | {"verdict": "other settings", "differs": other})
                continue
            inputs += [folder / ("correlations.csv" if "correlation" in claim else "summary.csv") for folder in folders]
            if "better" in claim:
                found.append(entry | _better(claim, folders))
            elif "correlation" in claim:
                found.append(entry | _correlation(claim, folders[0]))
            elif "above" in claim:
                found += [entry | one for one in _above(claim, folders[0], runs)]
            else:
                found.append(entry | _accuracy(claim, folders[0], runs))
        judged.append({"claim": name, **claim, "threshold": threshold(claim), "results": found})
    settings = {"confidence": CONFIDENCE, "tested": sorted(tested)}
    inputs = list(dict.fromkeys(map(str, inputs)))
    beside = _beside(claims, results, {run for run in tested if others(run, retrained=False) is None}, runs)
    made_by = provenance(settings=settings, inputs=inputs, stopwatch=stopwatch)
    return {"claims": judged, "beside": beside, "provenance": made_by}


def _beside(
    claims: Mapping[str, Mapping[str, Any]], results: Path, tested: set[str], runs: _Runs
) -> dict[str, list[dict[str, Any]]]:
    """For each accuracy named by claims: the existing runs, with and without their trainings, and their baselines."""
    found: dict[str, list[dict[str, Any]]] = {}
    for accuracy in dict.fromkeys(claim["accuracy"] for claim in claims.values() if "accuracy" in claim):
        about = {name: claim for name, claim in claims.items() if claim.get("accuracy") == accuracy}
        folders = [results / run for run in runs_of(about) if run in tested and (results / run / layout.SEARCH).exists()]
        standings = [one for folder in folders for one in runs.standings(folder)]
        standings += [one for folder in folders for one in runs.baselines(folder, trained=True)]
        # Runs of equal cost have the same baselines.
        rows = dict.fromkeys((one.name, one.number, *one.accuracies[accuracy]) for one in standings if accuracy in one.accuracies)
        if rows:
            found[accuracy] = [dict(zip(("name", "n", "mean", "sd"), row, strict=True)) for row in rows]
    return found


def _number(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def _between(ends: Sequence[float] | None, decimals: int) -> str:
    return "" if ends is None else f"{ends[0]:.{decimals}f} to {ends[1]:.{decimals}f}"


def _row(claim: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    decimals = 3 if "correlation" in claim else 2
    published = _number(claim.get("value"), decimals)
    if "spread" in claim:
        published += f" ({claim['spread']:g}), {claim['seeds']} seeds"
    run = f"`{result['run']}`" + ("" if claim.get("trained", True) else " without its trainings")
    mean_and_spread = _number(result.get("mean"), decimals)
    if result.get("sd") is not None:
        mean_and_spread += f" ({result['sd']:.{decimals}f})"
    return [
        claim["claim"],
        published or "more than 0",
        f"{run} - {result['than']}" if "than" in result else run,
        mean_and_spread,
        str(result.get("n", "")),
        _between(result.get("interval"), decimals),
        _between(result.get("difference"), decimals),
        f"**{result['verdict']}**" + "".join(f"; {text}" for text in result.get("differs", ())),
    ]


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [list(columns), ["---"] * len(columns), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _beside_page(beside: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The runs and their baselines, one table per accuracy."""
    if not beside:
        return []
    lines = [
        "## Beside them, at equal cost",
        "",
        "Among the cells that the searches could have found, by the table of their space: accuracy in %. n: seeds, or searches;",
        "none where the mean is that of all cells. *The same short trainings* are looked up in the table, as many as a run has.",
        "",
    ]
    for accuracy, rows in beside.items():
        cells = [
            [
                str(row["name"]),
                "" if row["n"] is None else str(row["n"]),
                f"{row['mean']:.2f}" + ("" if row["n"] == 1 else f" ({row['sd']:.2f})"),
            ]
            for row in rows
        ]
        lines += [*_markdown([accuracy, "n", "mean (sd)"], cells), ""]
    return lines


def page(judged: Mapping[str, Any]) -> str:
    """The claims as Markdown: tables of verdicts, how verdicts are reached, and the seeds behind the means."""
    columns = ["claim", "claimed", "run", "found: mean (sd)", "n", "95 % interval", "found - claimed (Welch)", "verdict"]
    lines = ["<!-- Made by `tenas claims`; not to be edited. -->", ""]
    for whose, title in WHOSE.items():
        rows = [_row(claim, result) for claim in judged["claims"] if claim["by"] == whose for result in claim["results"]]
        lines += [f"## {title}", "", *_markdown(columns, rows), ""] if rows else []
    lines += [
        f"n: seeds of a run, cells of a correlation. Intervals are at {100 * CONFIDENCE:g} %: Student's for a mean over seeds,",
        "Welch's for a difference of two means, the bootstrap's over cells for a correlation.",
        "",
        "A claim **holds** when the interval of what was found lies above the claimed figure less that figure's own standard",
        "error (spread / sqrt(seeds); without a spread, less the tolerance that config/claims.yaml gives). It **does not hold**",
        "when the interval lies below, is **undecided** when it is on both sides, and **not tested** when the configuration has",
        "no such run. A run of the name with **other settings** tests nothing: the first one that differs is named. The column",
        "*found - claimed* asks something else: whether the two means differ at all. With four published seeds its interval is",
        "wide.",
        "",
        *_beside_page(judged["beside"]),
        "## What they say",
        "",
        *(f"- `{claim['claim']}`: {claim['says']}. {claim['source']}." for claim in judged["claims"]),
        "",
        "## Every seed",
        "",
    ]
    seeds = {
        (result["run"] + ("" if claim["trained"] else " without its trainings"), seed["seed"], claim["accuracy"]): seed
        for claim in judged["claims"]
        for result in claim["results"]
        for seed in result.get("seeds", [])
    }
    rows = [[f"`{run}`", str(number), column, f"{seed['value']:.2f}", f"`{seed['arch']}`".replace("|", "\\|")]
            for (run, number, column), seed in seeds.items()]  # fmt: skip
    lines += _markdown(["run", "seed", "accuracy", "%", "genotype"], rows)
    return "\n".join(lines) + "\n"
