"""Archive runs in one file for an audit: settings, scores, decisions and records, without images and networks.

A .tar.xz whose first member, ``archive.json``, lists the SHA-256 of every other member and of every file left out, as of the
time of packing, so that recorded hashes of those can still be checked.
"""

import hashlib
import io
import json
import lzma
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, NoReturn

from tenas import layout
from tenas.audit.ledger import mapping
from tenas.errors import TenasError
from tenas.files import json_text, most_unpacked, read_json, scratch_folder, sha256, whole
from tenas.provenance import commit_of_code, is_sealed, sealed
from tenas.search.origins import images_in

LIST = "archive.json"
FORMAT = 1
# Text that decisions depend on. An audit redraws drawings; networks and images are too large.
KEPT = {".csv", ".json"}
# Checkpoints of trainings are no results, and nothing follows from the page of a run.
NO_RESULT = {layout.CHECKPOINT, layout.OVERVIEW}
# Larger archives are refused, and those with a larger compression ratio: archives of text stay far below.
MOST_BYTES, MOST_FACTOR = 8 * 2**30, 1000


class Archive(NamedTuple):
    """An unpacked archive: its list, the folder of each run by name, and the hashes of the files left out."""

    listed: dict[str, Any]
    runs: dict[str, Path]
    data: dict[str, Path]
    left_out: dict[Path, str]


def images_folder(run: Path) -> Path:
    """Folder of the prepared images of a run or a study, from its records. Raises TenasError if they are missing."""
    for record in sorted(run.glob("**/scores/*.json")):
        if (images := images_in(read_json(record, "record of scores"))) is not None:
            folder = images[0].parent
            if (folder / layout.CARD).is_file() and (folder / layout.IMAGES).is_file():
                return folder
            raise TenasError(f"The images of {run} are not in {folder}, the folder in its records: pack it where it ran.")
    raise TenasError(f"There is nothing to pack in {run}: no record of scores there names any images.")


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder. Raises OSError for a folder that cannot be read, which rglob leaves out."""

    def fail(error: OSError) -> NoReturn:
        raise error

    for parent, _, names in os.walk(folder, onerror=fail):
        yield from (Path(parent, name) for name in names)


def pack(runs: Sequence[str | PathLike[str]], out: str | PathLike[str]) -> dict[str, Any]:
    """Pack runs and studies in one file. Returns its list. Equal files, commit and version of liblzma give equal bytes.

    Raises TenasError for a folder that is no run or study, for two of the same name, and for missing images, whose hashes the
    list has.
    """
    kept: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    found: dict[str, str] = {}
    for run in map(Path, runs):
        if not any((run / name).is_file() for name in (layout.SEARCH, layout.STUDY)):
            raise TenasError(f"There is nothing to pack in {run}: it has neither {layout.SEARCH} nor {layout.STUDY}.")
        name = run.resolve().name
        if name in found:
            raise TenasError(f"Two of the runs are named {name!r}, which would share a folder in the archive.")
        for path in sorted(_files(run)):
            member = f"runs/{name}/{path.relative_to(run).as_posix()}"
            parts = path.relative_to(run).parts
            if (
                not path.is_file()
                or path.name in NO_RESULT
                or parts[0] == layout.FIGURES
                or any(part.startswith(".") for part in parts)
            ):
                continue
            if path.suffix in KEPT:
                kept[member] = path
            else:
                left_out[member] = sha256(path)
        images = images_folder(run)
        # Named by content: data sets of several folders may have the same name, and one may be a copy.
        data = found[name] = f"data/{sha256(images / layout.CARD)[:16]}"
        kept[f"{data}/{layout.CARD}"] = images / layout.CARD
        for file in (layout.IMAGES, layout.LABELS):
            if (images / file).is_file() and f"{data}/{file}" not in left_out:
                left_out[f"{data}/{file}"] = sha256(images / file)
    # Read once: a run may go on meanwhile.
    contents = {member: path.read_bytes() for member, path in sorted(kept.items())}
    listed = sealed(
        {
            "format": FORMAT,
            "commit": commit_of_code(),
            "runs": dict(sorted(found.items())),
            "files": {member: hashlib.sha256(content).hexdigest() for member, content in contents.items()},
            "left_out": dict(sorted(left_out.items())),
        }
    )
    with whole(out) as temporary, tarfile.open(temporary, "w:xz", format=tarfile.PAX_FORMAT, preset=9) as archive:
        _add(archive, LIST, json_text(listed).encode())
        for member, content in contents.items():
            _add(archive, member, content)
    return listed


def _add(archive: tarfile.TarFile, member: str, content: bytes) -> None:
    """Add a member with fixed time, owner and mode."""
    entry = tarfile.TarInfo(member)
    entry.size, entry.mode = len(content), 0o644
    archive.addfile(entry, io.BytesIO(content))


@contextmanager
def unpacked(path: str | PathLike[str]) -> Iterator[Archive]:
    """Unpack an archive in a temporary folder for the duration of the block.

    Writes only plain files below that folder, named in the list and with the hash given there. Raises TenasError for anything
    else: links, devices, other paths, unlisted or missing members, other contents.
    """
    with scratch_folder() as folder:
        try:
            with tarfile.open(path, "r:xz") as archive:
                listed = _read_list(path, archive)
                for member, content in _members(path, archive, listed["files"]):
                    place = folder / member
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(content)
        except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
            raise TenasError(f"The archive {path} cannot be read: {' '.join(str(error).split())}.") from error
        runs = {run: folder / "runs" / run for run in listed["runs"]}
        data = {run: folder / place for run, place in listed["runs"].items()}
        yield Archive(listed, runs, data, {folder / member: digest for member, digest in listed["left_out"].items()})


def _read_list(path: str | PathLike[str], archive: tarfile.TarFile) -> dict[str, Any]:
    entry = archive.next()
    stream = archive.extractfile(entry) if entry is not None and entry.isreg() and entry.name == LIST else None
    if stream is None or entry is None or entry.size > _most(path):
        raise TenasError(f"The archive {path} does not begin with {LIST}: it was not made by `tenas archive`.")
    try:
        listed = json.loads(stream.read())
    except ValueError as error:
        raise TenasError(f"The list of the archive {path} is not valid JSON: {error}.") from error
    listed = dict(mapping(listed))
    if listed.get("format") != FORMAT:
        raise TenasError(f"The archive {path} has the format {listed.get('format')!r}; this version reads {FORMAT}.")
    if not is_sealed(listed):
        raise TenasError(f"The list of the archive {path} is not the one that was written: its own hash differs.")
    commit = listed.setdefault("commit", None)
    known = isinstance(commit, dict) and isinstance(commit.get("sha1"), str) and isinstance(commit.get("changed"), bool)
    if commit is not None and not known:
        raise TenasError(f"The list of the archive {path} has {commit!r} for the commit of the code.")
    parts = [listed.get(key) for key in ("files", "left_out", "runs")]
    names = [*(name for part in parts[:2] for name in mapping(part)), *mapping(parts[2]).values()]
    names += [f"runs/{run}/{layout.SEARCH}" for run in mapping(parts[2])]
    plain = all(isinstance(part, dict) for part in parts) and not any("/" in run for run in mapping(parts[2]))
    if not plain or not all(map(_is_safe, names)):
        raise TenasError(f"The list of the archive {path} names files outside of it.")
    return listed


def _most(path: str | PathLike[str]) -> int:
    """Most bytes that an archive may unpack to."""
    return min(MOST_BYTES, most_unpacked(Path(path).stat().st_size, MOST_FACTOR))


def _is_safe(member: object) -> bool:
    """Whether the name of a member is a normalised path below the folder of runs or of data."""
    if not isinstance(member, str) or "\\" in member or "\0" in member:
        return False
    pure = PurePosixPath(member)
    return member == str(pure) and pure.parts[0] in ("runs", "data") and len(pure.parts) > 1 and ".." not in pure.parts


def _members(path: str | PathLike[str], archive: tarfile.TarFile, files: Mapping[str, Any]) -> Iterable[tuple[str, bytes]]:
    """Name and content of each member after the list. Raises TenasError for any difference from it."""
    missing, total, most = set(files), 0, _most(path)
    while (entry := archive.next()) is not None:
        total += entry.size
        if not entry.isreg() or entry.name not in missing or total > most:
            raise TenasError(f"The archive {path} has {entry.name!r}, which is not in its list: nothing of it is used.")
        missing.remove(entry.name)
        stream = archive.extractfile(entry)
        content = b"" if stream is None else stream.read()
        if len(content) != entry.size:
            raise TenasError(f"The archive {path} is cut off at {entry.name}.")
        if hashlib.sha256(content).hexdigest() != files[entry.name]:
            raise TenasError(f"The archive {path} has a {entry.name} that differs from the SHA-256 in its list.")
        yield entry.name, content
    if missing:
        raise TenasError(f"The archive {path} lacks {min(missing)}, which its list has.")
