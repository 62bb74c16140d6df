"""The command line: one subcommand a stage of the workflow, and ``tenas search`` for a whole search in one process.

Exit status: 0; 2 when something has to be put right, which one sentence on stderr says.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tenas import __version__
from tenas.errors import TenasError


def _shard(text: str) -> tuple[int, int]:
    index, _, shards = text.partition("/")
    if not (index.isdecimal() and shards.isdecimal() and 1 <= int(index) <= int(shards)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shard; expected I/N with I from 1 to N")
    return int(index), int(shards)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed; expected a whole number from 0 to 2^32 - 1")
    return int(text)


def _json_object(text: str, what: str, keys: Sequence[str]) -> dict:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise TenasError(f"The {what} is not valid JSON: {error}.") from error
    if not isinstance(value, dict) or not set(keys) <= set(value):
        raise TenasError(f"The {what} must be a JSON object with the keys {', '.join(keys)}.")
    return value


def _settings(arguments: argparse.Namespace) -> None:
    from tenas.files import write_json
    from tenas.settings import load_preset, search_settings, study_settings

    if arguments.kind == "search":
        given = _json_object(arguments.json, "search", ["space", "preset"])
        settings = search_settings(given["space"], given["preset"], given.get("changes"))
    elif arguments.kind == "study":
        settings = study_settings(_json_object(arguments.json, "study", ["space", "dataset", "cells", "measures"]), "study")
    else:
        given = _json_object(arguments.json, "retraining", ["preset", "dataset"])
        preset = load_preset("retrain", given["preset"], given.get("changes"))
        settings = {"preset": given["preset"], "dataset": given["dataset"], **preset}
    write_json(arguments.out, settings)


def _prepare(arguments: argparse.Namespace) -> None:
    from tenas.data import prepare

    prepare(_json_object(arguments.json, "data set", ["source"]), arguments.out)


def _mask(arguments: argparse.Namespace) -> None:
    from tenas.search.stages import mask_stage, read_settings

    mask_stage(read_settings(arguments.settings), arguments.out)


def _score(arguments: argparse.Namespace) -> None:
    from tenas.search.stages import find_round, read_settings, score_stage
    from tenas.search.table import plan

    settings = read_settings(arguments.settings)
    total = len(plan(settings, find_round(settings, arguments.round).trials, arguments.shard))
    with _progress(total, f"round {arguments.round}, shard {arguments.shard[0]}/{arguments.shard[1]}") as update:
        score_stage(
            settings,
            arguments.images,
            arguments.mask,
            arguments.round,
            arguments.seed,
            arguments.out,
            shard=arguments.shard,
            threads=arguments.threads,
            device=arguments.device,
            progress=update,
        )


def _prune(arguments: argparse.Namespace) -> None:
    from tenas.search.stages import prune_stage, read_settings

    prune_stage(
        read_settings(arguments.settings),
        arguments.mask,
        arguments.round,
        arguments.scores,
        arguments.ranking,
        arguments.out,
    )


def _genotype(arguments: argparse.Namespace) -> None:
    from tenas.search.stages import genotype_stage, read_settings

    genotype_stage(read_settings(arguments.settings), arguments.mask, arguments.out, arguments.svg)


def _benchmark_import(arguments: argparse.Namespace) -> None:
    from tenas.benchmark.archive import import_archive, open_archive

    archive = open_archive(arguments.source)
    with _progress(len(archive.archs), f"import of {archive.path.name}", "cells") as update:
        record = import_archive(archive, arguments.out, progress=update)
    print(f"{record['source']['cells']:,} cells in {arguments.out}; SHA-256 of the source: {record['source']['sha256']}")
    print("\ncompared with the built-in table:")
    _compare(arguments.out, Path("builtin"))


def _benchmark_compare(arguments: argparse.Namespace) -> None:
    _compare(arguments.table, arguments.other)


def _compare(table: Path, other: Path) -> None:
    from tenas.benchmark import read_index
    from tenas.benchmark.compare import compare, describe_comparison

    print(describe_comparison(compare(read_index(table), read_index(other))))


def _benchmark_query(arguments: argparse.Namespace) -> None:
    from tenas.benchmark import look_up
    from tenas.benchmark.index import describe
    from tenas.files import write_json

    found = look_up(arguments.cell, None if str(arguments.index) == "none" else arguments.index)
    if arguments.out is None:
        print(describe(found))
    else:
        write_json(arguments.out, found)


def _benchmark_search(arguments: argparse.Namespace) -> None:
    from tenas.benchmark import index_path, read_index
    from tenas.benchmark.searches import COLUMNS, DATASETS, METHODS, describe_searches, search_table
    from tenas.files import write_csv, write_json
    from tenas.provenance import Stopwatch, provenance

    stopwatch = Stopwatch()
    settings = {
        "datasets": arguments.datasets or list(DATASETS),
        "methods": arguments.methods or list(METHODS),
        "budgets": arguments.budgets,
        "searches": arguments.searches,
    }
    total = len(settings["datasets"]) * len(settings["methods"]) * settings["searches"]
    with _progress(total, "search on the table", "searches") as update:
        rows = search_table(read_index(arguments.index), **settings, progress=update)
    record = provenance(settings=settings, inputs=[index_path(arguments.index)], stopwatch=stopwatch)
    write_json(arguments.out.with_suffix(".json"), record)
    write_csv(arguments.out, COLUMNS, rows)
    print(describe_searches(rows))


def _retrain(arguments: argparse.Namespace) -> None:
    from tenas.files import read_json
    from tenas.retrain import retrain
    from tenas.spaces import load_genotype

    retrain(
        read_json(arguments.settings, "retraining settings"),
        load_genotype(arguments.genotype),
        seed=arguments.seed,
        threads=arguments.threads,
        device=arguments.device,
        out=arguments.out,
        inputs=[arguments.settings, arguments.genotype],
    )


def _export(arguments: argparse.Namespace) -> None:
    from tenas.export import export

    export(arguments.network, arguments.out)


def _summary(arguments: argparse.Namespace) -> None:
    from tenas.files import write_csv, write_json
    from tenas.report import accuracies, summarise

    columns, rows = summarise(arguments.run, arguments.seeds)
    write_json(arguments.metrics, accuracies(rows))
    write_csv(arguments.out, columns, rows)


def _claims(arguments: argparse.Namespace) -> None:
    from tenas.files import write_json, write_text
    from tenas.report.claims import judge, page

    judged = judge(arguments.claims, arguments.results, arguments.tested)
    write_text(arguments.page, page(judged))
    write_json(arguments.out, judged)


def _plot(arguments: argparse.Namespace) -> None:
    from tenas.report import plot_rankings

    plot_rankings(arguments.rankings, arguments.out)


def _audit(arguments: argparse.Namespace) -> None:
    from tenas.audit import audit, in_words

    found = audit(arguments.run, arguments.data)
    print("\n".join(found.trail))
    print()
    for note in found.notes:
        print(f"note: {note}")
    if found.faults:
        raise TenasError(in_words(found))
    print(f"{found.files} files, all as recorded")


def _show(arguments: argparse.Namespace) -> None:
    from tenas.report import show

    print(show(arguments.run))


def _study_cells(arguments: argparse.Namespace) -> None:
    from tenas.study.stages import cells_stage, read_study

    cells_stage(read_study(arguments.settings), arguments.index, arguments.out)


def _study_score(arguments: argparse.Namespace) -> None:
    from tenas.study.stages import read_study, score_stage
    from tenas.study.table import plan, read_cells

    settings = read_study(arguments.settings)
    total = len(plan(settings, read_cells(arguments.cells, settings), arguments.shard))
    with _progress(total, f"shard {arguments.shard[0]}/{arguments.shard[1]}") as update:
        score_stage(
            settings,
            arguments.images,
            arguments.cells,
            arguments.out,
            shard=arguments.shard,
            threads=arguments.threads,
            device=arguments.device,
            progress=update,
        )


def _correlate(arguments: argparse.Namespace) -> None:
    from tenas.study.stages import correlate_stage, read_study

    correlate_stage(read_study(arguments.settings), arguments.cells, arguments.index, arguments.scores, arguments.out)


def _search(arguments: argparse.Namespace) -> None:
    from tenas.files import read_json, write_json
    from tenas.search.stages import measurement_count, search
    from tenas.settings import search_settings

    settings = search_settings(arguments.space, arguments.preset)
    write_json(arguments.out / "search.json", settings)
    with _progress(measurement_count(settings) * len(arguments.seeds), "search") as update:
        found = [
            search(
                settings,
                arguments.data / "images.npy",
                seed,
                arguments.out / f"seed{seed}",
                threads=arguments.threads,
                device=arguments.device,
                progress=update,
            )
            for seed in arguments.seeds
        ]
    for seed, path in zip(arguments.seeds, found, strict=True):
        print(f"seed {seed}: {read_json(path, 'genotype')['arch']}")


@contextmanager
def _progress(total: int, what: str, unit: str = "measurements") -> Iterator[Callable[[int], None]]:
    """Give the function that counts what is done: a bar on a terminal, a plain line every tenth of the way in a log.

    Nothing is shown before the first is done, so that an error in the input stands alone.
    """
    bar, done = None, 0

    def advance(more: int) -> None:
        nonlocal bar, done
        before, done = done, done + more
        if not sys.stderr.isatty():
            if before * 10 // total < done * 10 // total:
                print(f"{what}: {done} of {total} {unit}", file=sys.stderr, flush=True)
            return
        if bar is None:
            from tqdm import tqdm

            bar = tqdm(total=total, desc=what, unit=f" {unit}", dynamic_ncols=True)
        bar.update(more)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tenas", description=__doc__.split("\n\n")[0])
    parser.add_argument("--version", action="version", version=f"tenas {__version__}")
    stages = parser.add_subparsers(metavar="STAGE", required=True)

    def stage(name: str, function: Callable, help: str, among: object = stages) -> argparse.ArgumentParser:
        added = among.add_parser(name, help=help, description=help)
        added.set_defaults(function=function)
        return added

    def path(added: argparse.ArgumentParser, name: str, help: str, **more: object) -> None:
        added.add_argument(name, type=Path, help=help, **({"required": True} | more if name.startswith("-") else more))

    def on_hardware(added: argparse.ArgumentParser) -> None:
        added.add_argument("--threads", type=_count, default=1, help="processor threads to use (default: 1)")
        added.add_argument(
            "--device",
            choices=("auto", "cpu", "cuda"),
            default="auto",
            help="auto (default) is a GPU where there is one",
        )

    added = stage("settings", _settings, "resolve the settings of a search, a retraining or a study and write them down")
    added.add_argument("kind", choices=("search", "retrain", "study"))
    added.add_argument(
        "json", help='search: {"space", "preset", "changes"}; retrain: {"preset", "changes", "dataset"}; study: its entry'
    )
    path(added, "--out", "JSON file of the settings")

    added = stage("prepare", _prepare, "turn a data set into the small file of images that the search reads")
    added.add_argument("json", help='a data set of the configuration: {"source", "path", "images", "side", "seed"}')
    path(added, "--out", "folder for images.npy, card.json and preview.png")

    added = stage("mask", _mask, "write the mask that a search starts from")
    path(added, "--settings", "search.json of the run")
    path(added, "--out", "JSON file of the mask")

    added = stage("score", _score, "measure a shard of a round's trials")
    path(added, "--settings", "search.json of the run")
    path(added, "--images", "images.npy of a prepared data set, its card.json beside it")
    path(added, "--mask", "mask before the round")
    added.add_argument("--round", type=_count, required=True, help="number of the round, from 1")
    added.add_argument("--seed", type=_seed, required=True)
    added.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help="every N-th trial (default: 1/1)")
    on_hardware(added)
    path(added, "--out", "CSV file of the scores; what made them is written beside it as JSON")

    added = stage("prune", _prune, "rank the trials of a round and prune")
    path(added, "--settings", "search.json of the run")
    path(added, "--mask", "mask before the round")
    added.add_argument("--round", type=_count, required=True, help="number of the round, from 1")
    path(added, "--scores", "scores of all shards", nargs="+")
    path(added, "--ranking", "CSV file of the ranking")
    path(added, "--out", "mask after the round")

    added = stage("genotype", _genotype, "export the genotype that a search has left")
    path(added, "--settings", "search.json of the run")
    path(added, "--mask", "mask after the last round")
    path(added, "--out", "JSON file of the genotype")
    path(added, "--svg", "drawing of its cells")

    table = "the benchmark as CSV or Parquet, a row a cell; builtin (default) is the one that comes with the project"
    builtin = {"required": False, "default": Path("builtin")}
    help = "import the benchmark of a space, compare tables of it, look cells up in it, search on it"
    parts = stages.add_parser("benchmark", help=help, description=help).add_subparsers(metavar="PART", required=True)

    added = stage("import", _benchmark_import, "turn the official files of NAS-Bench-201 into an index", parts)
    path(added, "source", "the folder NATS-tss-v1_0-3ffb9-simple, or NAS-Bench-201-v1_1-096897.pth")
    path(added, "--out", "Parquet file, a row a cell")

    added = stage("compare", _benchmark_compare, "say where two tables differ", parts)
    path(added, "table", "a benchmark as CSV or Parquet, a row a cell")
    path(added, "other", "another; builtin (default) is the one that comes with the project", nargs="?", default=Path("builtin"))

    added = stage("query", _benchmark_query, "look a cell up in its space's benchmark", parts)
    added.add_argument("cell", help="text of a cell, its number in the benchmark, or JSON file of a genotype")
    path(added, "--index", f"{table}; with none the output says that there is none", **builtin)
    path(added, "--out", "JSON file of the result; without it a table is printed", required=False)

    added = stage("search", _benchmark_search, "search by looking accuracies up: random, evolution, local search", parts)
    path(added, "--index", f"{table}; all cells of nas-bench-201", **builtin)
    added.add_argument("--datasets", nargs="+", metavar="NAME", help="default: cifar10 cifar100 imagenet16")
    added.add_argument("--methods", nargs="+", metavar="NAME", help="default: random_search regularised_evolution local_search")
    added.add_argument("--budgets", type=_count, nargs="+", default=[1, 10, 54, 100, 1000], metavar="N",
                       help="cells that a search may look at (default: 1 10 54 100 1000)")  # fmt: skip
    added.add_argument("--searches", type=_count, default=100, metavar="N", help="of each kind, with seeds from 0 (default: 100)")
    path(added, "--out", "CSV file, a row a search and budget; what made it is written beside it as JSON")

    added = stage("retrain", _retrain, "train the network of a genotype from scratch")
    path(added, "--settings", "retrain.json of the run")
    path(added, "--genotype", "JSON file of the genotype")
    added.add_argument("--seed", type=_seed, required=True)
    on_hardware(added)
    path(added, "--out", "folder for history.csv, metrics.json, network.pt and the checkpoint")

    added = stage("export", _export, "write a trained network as torch.export program and as ONNX, and check both")
    path(added, "--network", "network.pt of a retraining")
    path(added, "--out", "folder for network.pt2, network.onnx and export.json")

    added = stage("summary", _summary, "gather the results of a run's seeds")
    path(added, "run", "folder of the run")
    added.add_argument("--seeds", type=_seed, nargs="+", required=True)
    path(added, "--out", "CSV file, a row a seed")
    path(added, "--metrics", "JSON file of their accuracies alone, which DVC compares")

    added = stage("claims", _claims, "set published figures beside the results of runs")
    path(added, "claims", "YAML file of the claims")
    path(added, "--results", "folder of the runs (default: results)", required=False, default=Path("results"))
    added.add_argument("--tested", nargs="*", default=[], metavar="RUN", help="runs that are there; others count as not tested")
    path(added, "--out", "JSON file of figures and verdicts")
    path(added, "--page", "Markdown file of the same")

    added = stage("plot", _plot, "draw the rankings of a search")
    path(added, "--rankings", "ranking.csv of each round, in their order", nargs="+")
    path(added, "--out", "SVG file")

    added = stage("show", _show, "print what a run has found")
    path(added, "run", "folder of the run")

    added = stage("audit", _audit, "follow a run's genotypes back to the images, and say what isn't as it was recorded")
    path(added, "run", "folder of the run")
    path(added, "--data", "folder of its images (default: where its records say)", required=False)

    added = stage("study-cells", _study_cells, "draw the cells that a study measures")
    path(added, "--settings", "study.json of the study")
    path(added, "--index", table, **builtin)
    path(added, "--out", "CSV file of the cells")

    added = stage("study-score", _study_score, "measure a shard of a study's cells")
    path(added, "--settings", "study.json of the study")
    path(added, "--images", "images.npy of a prepared data set, its card.json and labels.npy beside it")
    path(added, "--cells", "CSV file of the cells")
    added.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help="every N-th cell (default: 1/1)")
    on_hardware(added)
    path(added, "--out", "CSV file of the scores; what made them is written beside it as JSON")

    added = stage("correlate", _correlate, "correlate a study's measures with the accuracies of its cells")
    path(added, "--settings", "study.json of the study")
    path(added, "--cells", "CSV file of the cells")
    path(added, "--index", table, **builtin)
    path(added, "--scores", "scores of all shards", nargs="+")
    path(added, "--out", "folder for correlations.csv, correlations.json, forest.svg and scatter.svg")

    added = stage("search", _search, "a whole search in one process, with the results of the workflow")
    added.add_argument("--space", default="nas-bench-201", help="default: nas-bench-201")
    path(
        added,
        "--data",
        "folder of a prepared data set (default: data/digits)",
        required=False,
        default=Path("data/digits"),
    )
    added.add_argument("--preset", default="default", help="name in config/presets, or a YAML file (default: default)")
    added.add_argument("--seeds", type=_seed, nargs="+", default=[0], help="default: 0")
    on_hardware(added)
    path(added, "--out", "folder of the run")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = _parser().parse_args(arguments)
    try:
        parsed.function(parsed)
    except TenasError as error:
        print(f"tenas: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
