"""Write the genotype that a search has found."""

from pathlib import Path
from typing import Annotated


def genotype(
    *,
    settings: Annotated[Path, "search.json of the run"],
    state: Annotated[Path, "state after the last round: mask.json, shortlist.json or finalists.json"],
    out: Annotated[Path, "JSON file of the genotype"],
) -> None:
    """Write the genotype that a search has found: that of the last mask, or the first cell of the last list."""
    from tenas.files import write_json
    from tenas.search.made_by import made_by
    from tenas.search.state import found_genotype
    from tenas.settings.search import read_settings

    resolved = read_settings(settings)
    found = found_genotype(resolved, state)
    write_json(out, found.to_json() | {"made_by": made_by("genotype", resolved, [state])})
