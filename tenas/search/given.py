"""Parse the input of ``tenas search``: limits as texts, images in one of several forms."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tenas import layout
from tenas.benchmark.builtin import index_path
from tenas.data.entry import entry_of
from tenas.data.prepared import filled, in_words, prepare, read_prepared
from tenas.data.sources import load
from tenas.errors import TenasError
from tenas.files import format_csv, read_json, sha256, sha256_of
from tenas.progress import note
from tenas.search.limits import read_limits
from tenas.search.made_by import measuring_code
from tenas.search.origins import origins, table_of_finalists, table_of_limits
from tenas.search.sample import listed_cells
from tenas.settings.search import assigned, is_list
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


def given_data(data: str | os.PathLike[str], out: Path, others: Sequence[int] = ()) -> tuple[Path, dict[str, Any] | None]:
    """Find or make the folder of a prepared data set: ``data`` itself if it is one; otherwise prepare images below ``out``.

    Returns it, and the entry that ``data`` means unless it is prepared: the same images may have moved since they were prepared.

    ``data`` may be an .npz file, a folder of class folders, the name of a source that needs no path or a reference to one, or a
    data set's entry as in a configuration, as JSON: ``{"source": "photos.py:SOURCE", "path": "photos", "side": 64}``.
    ``others``: seeds that were searched in ``out`` before. Raises TenasError for anything else, and for images that are not those
    of the others.
    """
    if os.path.exists(os.path.join(data, "card.json")):  # not Path's, which raises an error for what is too long for a path
        return Path(data), None
    entry = filled(entry_of(str(data)))
    folder = out / "data"
    state = _state(folder, entry)
    if state == "others" and others:
        raise _of_others(f"images than those in {data}", others[0], out)
    if state != "same":
        note(f"prepared from {data}: {in_words(prepare(entry, folder), folder)}")
    return folder, entry


def _of_others(what: str, seed: int, out: Path) -> TenasError:
    return TenasError(
        f"Seed {seed} in {out} was searched with other {what}: choose another folder for this search, or search all seeds again "
        "in one command."
    )


def searched_before(out: Path, seeds: Iterable[int]) -> list[int]:
    """The seeds that have measurements in the folder of a search, finished or not, but for ``seeds``, ascending."""
    scores = Path(layout.SCORES.format(seed="[0-9]*", round=1, shard=1)).parent
    found = (path.relative_to(out).parts[0].removeprefix("seed") for path in out.glob(f"{scores}/*") if "1." in path.name)
    return sorted({int(seed) for seed in found if seed.isdecimal()} - set(seeds))


def check_others(settings: Mapping[str, Any], images: str, table: Path, others: Iterable[int], out: Path) -> None:
    """Raise TenasError for other seeds of a search with other images than those of the hash ``images``, code, cells or tables."""
    space = get_space(settings["space"])
    limits = layout.path(layout.LIMITS, out)
    latency = settings["limits"].get("latency")
    for seed in others:
        if latency and table_of_limits(out) not in (None, sha256(index_path(latency["table"], space))):
            raise _of_others(f"latencies than those in {latency['table']}", seed, out)
        found = origins(out, seed)
        if found.get("images", images) != images:
            raise _of_others("images", seed, out)
        for number, entry in enumerate(settings["rounds"], start=1):
            record = layout.path(layout.SCORES_RECORD, out, seed=seed, round=number, shard=1)
            if "measures" in entry and record.exists():
                code = read_json(record, "record of scores").get("code")
                if code not in (None, measuring_code("score", settings, entry)):
                    raise _of_others(f"code of round {number}", seed, out)
            sample = layout.path(layout.SAMPLE, out, seed=seed, round=number)
            if is_list(entry.get("sample")) and sample.exists():
                cells = listed_cells(entry["sample"], space, read_limits(limits if limits.exists() else None)).cells
                rows = [dict(zip(("cell", "arch"), cell, strict=True)) for cell in cells]
                if sha256(sample) != sha256_of(format_csv(("cell", "arch"), rows)):
                    raise _of_others(f"cells than those in {entry['sample']}", seed, out)
            looked_up = table_of_finalists(out, seed, number) if entry.get("column") else None
            if looked_up not in (None, sha256(index_path(table, space)) if looked_up else None):
                raise _of_others(f"accuracies than those in {table}", seed, out)


def _state(folder: Path, entry: Mapping[str, Any]) -> Literal["same", "others", "none"]:
    """Whether ``folder`` has the images of an entry, those of another one or of other files, or none that can be read."""
    try:
        card = read_prepared(folder / layout.IMAGES, labels=True).card
    except TenasError:
        return "none"
    made = card["provenance"]
    # Paths may be spelled otherwise; what they hold is compared.
    alike = {**made["settings"], "path": None} == {**entry, "path": None}
    if "parts_sha256" in card:
        same = card["parts_sha256"] == load(entry)[0].digests()
    else:  # of an earlier version, or of given arrays
        same = all(Path(file).is_file() and sha256(file) == digest for file, digest in made["inputs"].items())
    return "same" if alike and same else "others"


def training_dataset(data: Path) -> dict[str, Any]:
    """The data set for short trainings: the one from which the prepared images were sampled."""
    card = read_json(data / "card.json", "data card")
    entry: dict[str, Any] = card["provenance"]["settings"]
    if entry["source"] == "arrays":
        return {"source": "prepared", "path": str(data), "side": card["side"]}
    return entry
