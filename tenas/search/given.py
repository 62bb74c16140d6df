"""What a user gives a search on the command line or in a call: limits as texts, images in one of many forms."""

import os
from collections.abc import Iterable
from pathlib import Path

from tenas.data.prepared import prepare
from tenas.data.sources import SOURCES
from tenas.errors import TenasError
from tenas.files import read_json
from tenas.references import is_reference
from tenas.settings.search import assigned


def given_limits(texts: Iterable[str]) -> dict:
    """Limits from texts such as ``parameters=0.5e6``, ``flops=60%`` and ``latency=FILE:COLUMN:5.0``."""
    found = assigned(texts)
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


def given_data(data: str | os.PathLike, out: Path) -> Path:
    """The folder of a prepared data set: ``data`` itself where it is one; else images are prepared below ``out``.

    ``data`` may be an .npz file, a folder of class folders, the name of a source that needs no path, or a reference to one.
    Raises TenasError where it is none of these.
    """
    path = Path(data)
    if (path / "card.json").exists():
        return path
    if is_reference(str(data)) or (str(data) in SOURCES and not SOURCES[str(data)].needs_path):
        entry = {"source": str(data)}
    elif path.suffix == ".npz":
        entry = {"source": "npz", "path": str(path)}
    elif path.is_dir():
        entry = {"source": "folder", "path": str(path)}
    else:
        raise TenasError(
            f"There is nothing to search on in {data}: it is no folder of a prepared data set (tenas prepare), no .npz file and no "
            "folder of images."
        )
    folder = out / "data"
    if not (folder / "card.json").exists() or _entry(folder) != entry:
        prepare(entry, folder)
    return folder


def _entry(folder: Path) -> dict:
    settings = read_json(folder / "card.json", "data card")["provenance"]["settings"]
    return {key: settings[key] for key in ("source", "path") if settings.get(key) is not None}


def training_dataset(data: Path) -> dict:
    """The data set that short trainings read: that which the prepared images were drawn from."""
    card = read_json(data / "card.json", "data card")
    entry = card["provenance"]["settings"]
    if entry["source"] == "arrays":
        return {"source": "prepared", "path": str(data), "side": card["side"]}
    return entry
