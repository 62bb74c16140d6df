"""Draw the figures of a run, and its page."""

from pathlib import Path
from typing import Annotated

from tenas.stages.types import Seed


def plot(
    run: Annotated[Path, "folder of the run"],
    *,
    seeds: Annotated[list[Seed], "seeds of the run (default: those with a genotype)"] = [],  # noqa: B006
) -> str:
    """Draw the figures of a run, and write its page.

    Writes to the folder figures of the run, as SVG and PNG, each with its data as CSV: the rounds of each seed, the cells found
    among all cells of the table, accuracies, retrainings and times; also overview.html with results, their certainty and cost: a
    self-contained file without JavaScript.

    Examples:
        tenas plot results/digits
        tenas plot results/digits --seeds 0 1
    """
    from tenas import layout
    from tenas.errors import damaged
    from tenas.figures import save_picture, style
    from tenas.files import write_text
    from tenas.provenance import commit_of_code
    from tenas.report.beside import read_found
    from tenas.report.overview import overview
    from tenas.report.pictures import pictures_of_run

    folder, page = run / layout.FIGURES, run / layout.OVERVIEW
    with damaged(run), style():
        found = read_found(run, seeds)
        pictures = pictures_of_run(found)
        for picture in pictures:
            save_picture(picture, folder)
        drawn = [(picture, (folder / f"{picture.name}.svg").read_text(encoding="utf-8")) for picture in pictures]
        text = overview(found, drawn, commit_of_code())
    write_text(page, text)
    # Figures of seeds that the run no longer has.
    names = {picture.name for picture in pictures}
    for path in folder.glob("*.*"):
        if path.suffix in (".svg", ".png", ".csv") and path.stem not in names:
            path.unlink()
    return str(page)
