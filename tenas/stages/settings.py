"""Check and write the settings of a search, a retraining or a study."""

from pathlib import Path
from typing import Annotated, Literal

from tenas.stages.types import Json


def settings(
    kind: Annotated[Literal["search", "retrain", "study"], "kind of the settings"],
    json: Annotated[Json, "the resolved settings, as a JSON object"],
    *,
    out: Annotated[Path, "JSON file of the settings"],
) -> None:
    """Check and write the settings of a search, a retraining or a study."""
    from tenas.files import write_json
    from tenas.settings.retrain import check_retraining
    from tenas.settings.search import check_settings
    from tenas.settings.study import study_settings

    if kind == "search":
        value = check_settings(json, "search")
    elif kind == "study":
        value = study_settings(json, "study")
    else:
        own = {key: json[key] for key in ("preset", "dataset") if key in json}
        value = own | check_retraining({key: part for key, part in json.items() if key not in own})
    write_json(out, value)
