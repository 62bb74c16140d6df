"""Parse the input of ``tenas search``: limits as texts, images in one of several forms."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tenas.data.entry import entry_of
from tenas.data.prepared import filled, in_words, prepare
from tenas.errors import TenasError
from tenas.files import read_json, sha256
from tenas.progress import note
from tenas.settings.search import assigned


def given_limits(texts: Iterable[str]) -> dict[str, Any]:
    """Parse limits from texts such as ``parameters=0.5e6``, ``flops=60%`` and ``latency=FILE:COLUMN:5.0``."""
    found = assigned(texts)
    if empty := [name for name, value in found.items() if value is None]:
        raise TenasError(f"The limit {empty[0]} has no value: an unset variable, perhaps.")
    if "latency" in found:
        parts = str(found["latency"]).rsplit(":", 2)
        if len(parts) != 3:
            raise TenasError(f"The limit latency={found['latency']} has another form than latency=FILE:COLUMN:MOST.")
        try:
            most: float | str = float(parts[2])
        except ValueError:
            most = parts[2]
        found["latency"] = {"table": parts[0], "column": parts[1], "most": most}
    return found


def given_data(data: str | os.PathLike[str], out: Path) -> Path:
    """Find or make the folder of a prepared data set: ``data`` itself if it is one; otherwise prepare images below ``out``.

    ``data`` may be an .npz file, a folder of class folders, the name of a source that needs no path or a reference to one, or a
    data set's entry as in a configuration, as JSON: ``{"source": "photos.py:SOURCE", "path": "photos", "side": 64}``.
    Raises TenasError for anything else.
    """
    if os.path.exists(os.path.join(data, "card.json")):  # not Path's, which raises an error for what is too long for a path
        return Path(data)
    entry = filled(entry_of(str(data)))
    folder = out / "data"
    if not _is_prepared(folder, entry):
        note(f"prepared from {data}: {in_words(prepare(entry, folder), folder)}")
    return folder


def _is_prepared(folder: Path, entry: Mapping[str, Any]) -> bool:
    """Whether ``folder`` has the images of an entry, prepared from the present files."""
    if not (folder / "card.json").exists():
        return False
    made = read_json(folder / "card.json", "data card")["provenance"]
    return made["settings"] == entry and all(
        Path(file).is_file() and sha256(file) == digest for file, digest in made["inputs"].items()
    )


def training_dataset(data: Path) -> dict[str, Any]:
    """The data set for short trainings: the one from which the prepared images were sampled."""
    card = read_json(data / "card.json", "data card")
    entry: dict[str, Any] = card["provenance"]["settings"]
    if entry["source"] == "arrays":
        return {"source": "prepared", "path": str(data), "side": card["side"]}
    return entry
