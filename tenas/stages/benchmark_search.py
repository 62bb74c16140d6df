"""Search by looking accuracies up: random search, evolution, local search."""

from pathlib import Path
from typing import Annotated, Any

from tenas.progress import Progress, silent
from tenas.stages.types import Count


def benchmark_search(
    *,
    index: Annotated[Path, "the table as CSV or Parquet, all cells of nas-bench-201; builtin is the built-in one"] = Path(
        "builtin"
    ),
    datasets: Annotated[list[str], "default: cifar10 cifar100 imagenet16"] = [],  # noqa: B006
    methods: Annotated[list[str], "default: random_search regularised_evolution local_search"] = [],  # noqa: B006
    budgets: Annotated[list[Count], "number of cells that a search may look up"] = [1, 10, 54, 100, 1000],  # noqa: B006
    searches: Annotated[Count, "number of searches of each kind, with seeds from 0"] = 100,
    out: Annotated[Path, "CSV file, one row per search and budget; its record is written next to it as JSON"],
    progress: Progress = silent,
) -> str:
    """Search by looking accuracies up: random search, evolution, local search.

    Examples:
        tenas benchmark search --out searches.csv
        tenas benchmark search --budgets 16 54 --searches 500 --datasets cifar10 --out searches.csv
    """
    from tenas.benchmark.builtin import index_path
    from tenas.benchmark.index import read_index
    from tenas.benchmark.searches import COLUMNS, DATASETS, METHODS, describe_searches, search_table
    from tenas.errors import TenasError
    from tenas.files import write_csv, write_json
    from tenas.provenance import Stopwatch, provenance

    if out.suffix == ".json":
        raise TenasError(f"The table {out} would have the name of its record: choose another suffix, such as .csv.")
    stopwatch = Stopwatch()
    datasets, methods = datasets or list(DATASETS), methods or list(METHODS)
    settings: dict[str, Any] = {"datasets": datasets, "methods": methods, "budgets": budgets, "searches": searches}
    total = len(datasets) * len(methods) * searches
    with progress(total, "search on the table", "searches") as advance:
        rows = search_table(read_index(index), **settings, progress=advance)
    record = provenance(settings=settings, inputs=[index_path(index)], stopwatch=stopwatch)
    write_json(out.with_suffix(".json"), record)
    write_csv(out, COLUMNS, rows)
    return describe_searches(rows)
