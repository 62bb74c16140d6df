"""Turn a data set into the small file of images that a search reads."""

from pathlib import Path
from typing import Annotated

from tenas.stages.types import Json


def prepare(
    json: Annotated[Json, 'a data set of the configuration: {"source", "path", "images", "side", "seed"}'],
    *,
    out: Annotated[Path, "folder for images.npy, labels.npy, card.json and preview.png"],
) -> None:
    """Turn a data set into the small file of images that a search reads."""
    from tenas.data.prepared import prepare

    prepare(json, out)
