"""Draw a genotype."""

from pathlib import Path
from typing import Annotated


def draw(
    *,
    genotype: Annotated[Path, "JSON file of the genotype"],
    out: Annotated[Path, "SVG file"],
) -> None:
    """Draw the cells of a genotype.

    Examples:
        tenas draw --genotype results/digits/seed0/genotype.json --out cell.svg
        tenas draw --genotype genotype.json --out genotype.svg
    """
    from tenas.files import write_text
    from tenas.report.drawing import draw
    from tenas.spaces import load_genotype

    write_text(out, draw(load_genotype(genotype)))
