"""The stages of a study, file to file."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tenas.benchmark import accuracies_of, index_path, read_index
from tenas.errors import TenasError
from tenas.files import format_csv, read_json, write_csv, write_json, write_text
from tenas.provenance import Stopwatch, provenance
from tenas.search.stages import read_inputs
from tenas.settings import study_settings
from tenas.study.table import CELL_COLUMNS, SCORE_COLUMNS, draw_cells, plan, read_cells, read_scores

Progress = Callable[[int], None]


def read_study(path: str | os.PathLike) -> dict:
    """The settings of a study from its study.json, checked again: the file may have been edited."""
    return study_settings(read_json(path, "study settings"), str(path))


def cells_stage(settings: Mapping, index: str | os.PathLike, out: str | os.PathLike) -> None:
    """The cells that a study measures, with their numbers in the index."""
    write_csv(out, CELL_COLUMNS, [dict(zip(CELL_COLUMNS, cell, strict=True)) for cell in draw_cells(settings, index)])


def score_stage(
    settings: Mapping,
    images: str | os.PathLike,
    cells: str | os.PathLike,
    out: str | os.PathLike,
    *,
    shard: tuple[int, int] = (1, 1),
    threads: int = 1,
    device: str = "auto",
    progress: Progress = lambda done: None,
) -> None:
    """Measure a shard of the cells: ``out`` and, beside it with the suffix .json, what made it."""
    from tenas.device import own_device
    from tenas.study.score import score_cells

    stopwatch = Stopwatch()
    device = own_device(device)
    chosen = read_cells(cells, settings)
    measurements = plan(settings, chosen, shard)
    pixels, card = read_inputs(settings, images)
    results = score_cells(
        settings, pixels, card, chosen, measurements, threads=threads, device=device, progress=progress
    )  # fmt: skip
    rows = [
        dict(zip(SCORE_COLUMNS, (*taken, value, round(seconds, 6)), strict=True))
        for taken, (value, seconds) in zip(measurements, results, strict=True)
    ]
    made = provenance(
        settings=settings,
        inputs=[images, Path(images).with_name("card.json"), cells],
        stopwatch=stopwatch,
        device=device,
        shard=f"{shard[0]}/{shard[1]}",
        measurements=len(rows),
    )
    # The record first: a scores file that is there always has one.
    write_json(Path(out).with_suffix(".json"), made)
    write_text(out, format_csv(SCORE_COLUMNS, rows))


def correlate_stage(
    settings: Mapping,
    cells: str | os.PathLike,
    index: str | os.PathLike,
    scores: Sequence[str | os.PathLike],
    out: str | os.PathLike,
) -> None:
    """Into the folder ``out``: correlations.csv with correlations.json, what made it; forest.svg and scatter.svg."""
    from tenas.study.correlate import COLUMNS, FEWEST, TESTS, correlations, oriented
    from tenas.study.figures import plot_forest, plot_scatter

    stopwatch = Stopwatch()
    out = Path(out)
    chosen = read_cells(cells, settings)
    if len(chosen) < FEWEST:
        raise TenasError(f"A study needs at least {FEWEST} cells; {cells} has {len(chosen)}.")
    table = read_index(index, settings["space"]).set_index("arch")
    missing = [cell.arch for cell in chosen if cell.arch not in table.index]
    if missing:
        raise TenasError(f"The benchmark index {index} has no cell {missing[0]}.")
    names = [name for name in accuracies_of(table) if name.endswith(TESTS)]
    if not names:
        raise TenasError(f"The benchmark index {index} has no test accuracies, whose names end in {' or '.join(TESTS)}.")
    accuracies = {name: table.loc[[cell.arch for cell in chosen], name].to_numpy(float) for name in names}
    for name, values in accuracies.items():
        if (values != values).any():
            raise TenasError(f"The benchmark index {index} lacks {name} of some of the study's cells.")
    values = read_scores(scores, settings, chosen)
    rows = correlations(values, accuracies, settings["seed"])
    plot_forest(rows, out / "forest.svg")
    plot_scatter(oriented(values), names[0], accuracies[names[0]], out / "scatter.svg")
    inputs = [cells, index_path(index, settings["space"]), *scores]
    made = provenance(settings=settings, inputs=inputs, stopwatch=stopwatch, cells=len(chosen))
    write_json(out / "correlations.json", made)
    write_csv(out / "correlations.csv", COLUMNS, rows)
