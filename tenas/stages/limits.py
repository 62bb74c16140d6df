"""Resolve a run's limits to numbers, by the costs of operators in the finally trained network."""

from pathlib import Path
from typing import Annotated


def limits(
    *,
    settings: Annotated[Path, "search.json of the run"],
    card: Annotated[Path, "card.json of the prepared data set"],
    out: Annotated[Path, "JSON file of the limits"],
) -> None:
    """Resolve a run's limits to numbers, by the costs of operators in the finally trained network."""
    from tenas.benchmark.builtin import index_path
    from tenas.data.prepared import read_card
    from tenas.files import write_json
    from tenas.provenance import sealed
    from tenas.search.budget import resolved_limits
    from tenas.search.made_by import made_by
    from tenas.settings.search import read_settings

    resolved, (data, _) = read_settings(settings), read_card(card)
    value = resolved_limits(resolved, classes=data["classes"], side=data["side"])
    latency = resolved["limits"].get("latency")
    # The card is no input: only two of its numbers are used, which are recorded; others depend on time and place.
    inputs = [index_path(latency["table"], resolved["space"])] if latency else []
    # Sealed, as no decision records its hash in a search whose rounds only draw cells.
    write_json(out, sealed(value | {"made_by": made_by("limits", resolved, inputs)}))
