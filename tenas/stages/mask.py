"""Write the mask that a search starts from."""

from pathlib import Path
from typing import Annotated


def mask(
    *,
    settings: Annotated[Path, "search.json of the run"],
    out: Annotated[Path, "JSON file of the mask"],
) -> None:
    """Write the mask that a search starts from."""
    from tenas.files import write_json
    from tenas.search.made_by import made_by
    from tenas.settings.search import read_settings
    from tenas.spaces import get_space

    resolved = read_settings(settings)
    start = get_space(resolved["space"]).full_mask(resolved["exclude"])
    write_json(out, start.to_json() | {"made_by": made_by("mask", resolved, [])})
