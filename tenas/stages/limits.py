"""Turn a run's limits into numbers: what each operator costs in the network that is trained in the end."""

from pathlib import Path
from typing import Annotated


def limits(
    *,
    settings: Annotated[Path, "search.json of the run"],
    card: Annotated[Path, "card.json of the prepared data set"],
    out: Annotated[Path, "JSON file of the limits"],
) -> None:
    """Turn a run's limits into numbers: what each operator costs in the network that is trained in the end."""
    from tenas.benchmark.builtin import index_path
    from tenas.files import read_json, write_json
    from tenas.provenance import sealed
    from tenas.search.budget import resolved_limits
    from tenas.search.made_by import made_by
    from tenas.settings.search import read_settings

    resolved, data = read_settings(settings), read_json(card, "data card")
    value = resolved_limits(resolved, classes=data["classes"], side=data["side"])
    latency = resolved["limits"].get("latency")
    # Of the card it takes two numbers, which it records: the rest of the card says when it was written, and where.
    inputs = [index_path(latency["table"], resolved["space"])] if latency else []
    # No decision of a search has its hash where rounds only draw cells: it carries its own.
    write_json(out, sealed(value | {"made_by": made_by("limits", resolved, inputs)}))
