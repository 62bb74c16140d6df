"""Parse the input of ``tenas search``: limits as texts, images in one of several forms."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tenas import layout
from tenas.benchmark.builtin import index_path
from tenas.data.entry import entry_of
from tenas.data.prepared import filled, in_words, prepare, read_prepared
from tenas.data.sources import load
from tenas.errors import TenasError
from tenas.files import read_json, sha256
from tenas.progress import note
from tenas.search.origins import images_of, table_of_finalists
from tenas.settings.search import assigned
from tenas.spaces import get_space


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


def given_data(data: str | os.PathLike[str], out: Path, others: Sequence[int] = ()) -> Path:
    """Find or make the folder of a prepared data set: ``data`` itself if it is one; otherwise prepare images below ``out``.

    ``data`` may be an .npz file, a folder of class folders, the name of a source that needs no path or a reference to one, or a
    data set's entry as in a configuration, as JSON: ``{"source": "photos.py:SOURCE", "path": "photos", "side": 64}``.
    ``others``: seeds that were searched in ``out`` before. Raises TenasError for anything else, and for images that are not those
    of the others.
    """
    if os.path.exists(os.path.join(data, "card.json")):  # not Path's, which raises an error for what is too long for a path
        return Path(data)
    entry = filled(entry_of(str(data)))
    folder = out / "data"
    if not _is_prepared(folder, entry):
        if others and (folder / "card.json").exists():
            raise _of_others(f"The images in {data}", others[0], out)
        note(f"prepared from {data}: {in_words(prepare(entry, folder), folder)}")
    return folder


def _of_others(what: str, seed: int, out: Path) -> TenasError:
    return TenasError(
        f"{what} are not those that seed {seed} was searched with in {out}: choose another folder for this search, or search all "
        "seeds again in one command."
    )


def searched_before(out: Path, seeds: Iterable[int]) -> list[int]:
    """The seeds that have measurements in the folder of a search, but for ``seeds``, ascending."""
    records = out.glob(layout.SCORES_RECORD.format(seed="[0-9]*", round=1, shard=1))
    found = (path.relative_to(out).parts[0].removeprefix("seed") for path in records)
    return sorted({int(seed) for seed in found if seed.isdecimal()} - set(seeds))


def check_others(settings: Mapping[str, Any], images: str, table: Path, others: Iterable[int], out: Path) -> None:
    """Raise TenasError for other seeds of a search with images of another hash than ``images``, or trainings of another table."""
    looked_up = [number for number, entry in enumerate(settings["rounds"], start=1) if entry.get("column")]
    for seed in others:
        found = images_of(out, seed)
        if found is not None and found[1] != images:
            raise _of_others("The images", seed, out)
        tables = {table_of_finalists(out, seed, round) for round in looked_up} - {None}
        if tables and tables != {sha256(index_path(table, get_space(settings["space"])))}:
            raise _of_others(f"The accuracies in {table}", seed, out)


def _is_prepared(folder: Path, entry: Mapping[str, Any]) -> bool:
    """Whether ``folder`` has the images of an entry, prepared from the present files."""
    if not (folder / "card.json").exists():
        return False
    try:
        card = read_prepared(folder / layout.IMAGES, labels=True).card
    except TenasError:  # a file is gone or damaged
        return False
    return card["provenance"]["settings"] == entry and card.get("parts_sha256") == load(entry)[0].digests()


def training_dataset(data: Path) -> dict[str, Any]:
    """The data set for short trainings: the one from which the prepared images were sampled."""
    card = read_json(data / "card.json", "data card")
    entry: dict[str, Any] = card["provenance"]["settings"]
    if entry["source"] == "arrays":
        return {"source": "prepared", "path": str(data), "side": card["side"]}
    return entry
