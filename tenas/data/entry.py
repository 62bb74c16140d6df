"""Resolve a text that names a data set, in place of an entry of a configuration's ``datasets``. No torch."""

import json
import os
from pathlib import Path
from typing import Any

from tenas.code import is_reference
from tenas.data.sources import SOURCES
from tenas.errors import TenasError


def entry_of(data: str, **keys: object) -> dict[str, Any]:
    """The entry of a configuration's ``datasets`` that ``data`` names, with those of ``keys`` that are not None.

    ``data``: an .npz file, a folder of images, the name of a source, a reference to one, or an entry as JSON. Raises TenasError
    for anything else.
    """
    path = Path(data)
    given = {key: value for key, value in keys.items() if value is not None}
    if data.lstrip().startswith("{"):
        try:
            entry: dict[str, Any] = json.loads(data)
        except ValueError as error:
            raise TenasError(f"The data set {data} is not valid JSON: {error}.") from error
        return entry | given
    if "path" in given and (data in SOURCES or is_reference(data)):
        return {"source": data, **given}
    if "path" in given:
        raise TenasError(
            f"A path goes with the name of a source ({', '.join(SOURCES)}, or path/to/file.py:object), not with {data}."
        )
    if path.suffix == ".npz":
        return {"source": "npz", "path": data, **given}
    if os.path.isdir(data):  # not Path's, which raises an error for what is too long for a path
        return {"source": "folder", "path": data, **given}
    if is_reference(data) or (data in SOURCES and not SOURCES[data].needs_path):
        return {"source": data, **given}
    if data in SOURCES:
        raise TenasError(f"The source {data} needs a path: tenas prepare {data} --path FOLDER_OR_FILE --out FOLDER.")
    raise TenasError(
        f"There are no images in {data}: expected a folder of images, an .npz file, a source ({', '.join(SOURCES)}, or "
        'path/to/file.py:object), {"source": ..., "path": ...}, or the folder that tenas prepare has made.'
    )
