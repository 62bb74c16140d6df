"""Audit a run or a study: read all of its files, write none."""

import os
import warnings
from pathlib import Path
from typing import NamedTuple

from tenas import layout
from tenas.audit.archive import Archive, unpacked
from tenas.audit.ledger import Ledger
from tenas.audit.run import audit_run, open_run, seeds_of
from tenas.audit.study import audit_study, open_study
from tenas.benchmark.index import IncompleteTableWarning
from tenas.errors import TenasError


class Audit(NamedTuple):
    """Result of an audit.

    ``trail``: lines for a reader, decision by decision. ``faults``: file -> what is wrong with it. ``notes``: facts worth knowing
    that are no faults. ``files``: number of files read.
    """

    trail: list[str]
    notes: list[str]
    faults: dict[Path, list[str]]
    files: int


def audit(
    run: str | os.PathLike[str], data: str | os.PathLike[str] | None = None, table: str | os.PathLike[str] | None = None
) -> Audit:
    """Follow each genotype of a run back to the images; or the correlations of a study.

    Repeats every decision and compares bytes; checks every recorded hash, seed, round, shard and setting.
    ``run``: a folder, or an archive of ``tenas archive``, whose runs are all followed.
    ``data``: folder of the prepared images; ``table``: the space's table. Default: the paths in the records, relative to the
    working directory; for an archive, its hashes of the images.

    Raises TenasError only if there is nothing to audit, or if the run is of an earlier version. An audit finds edits by hand, not
    forgeries: a measurement changed together with all that follows from it leaves no trace.
    """
    given = (None if data is None else Path(data), None if table is None else Path(table))
    if Path(run).is_file():
        with unpacked(run) as archive:
            return _of_archive(Path(run), archive, *given)
    return _of_folder(Path(run), Ledger(), *given)


def _of_folder(folder: Path, ledger: Ledger, *given: Path | None) -> Audit:
    if layout.path(layout.STUDY, folder).exists():
        case = open_study(folder, ledger, *given)
    elif seeds_of(folder):
        case = open_run(folder, ledger, *given)
    else:
        raise TenasError(f"There is nothing to audit in {folder}: it has no folder of a seed, and it is no study.")
    if case is None:
        # Without settings no decision can be repeated.
        ledger.close()
        return Audit([], ledger.notes, ledger.faults, ledger.count)
    with warnings.catch_warnings():
        # The warning of an incomplete table was given when it was read first.
        warnings.simplefilter("ignore", IncompleteTableWarning)
        (audit_study if case.settings_file.name == layout.STUDY else audit_run)(case)
    case.close()
    return Audit(case.trail, ledger.notes, ledger.faults, ledger.count)


def _of_archive(path: Path, archive: Archive, data: Path | None, table: Path | None) -> Audit:
    """Audit each run of an archive, with paths relative to it."""
    commit = archive.listed["commit"]
    by = "no known commit" if commit is None else f"commit {commit['sha1']}" + (", changed" if commit["changed"] else "")
    trail, files = [f"archive {path}, packed by code of {by}"], 0
    notes: list[str] = []
    faults: dict[Path, list[str]] = {}
    for name, folder in archive.runs.items():
        ledger = Ledger()
        ledger.listed = archive.left_out
        found = _of_folder(folder, ledger, archive.data[name] if data is None else data, table)
        root = f"{folder.parent.parent}{os.sep}"
        trail += ["", *(line.replace(root, "") for line in found.trail)]
        notes += [note.replace(root, "") for note in found.notes]
        faults |= {
            Path(str(at).replace(root, "")): [what.replace(root, "") for what in said] for at, said in found.faults.items()
        }
        files += found.files
        if ledger.by_list:
            names = ", ".join(sorted({place.name for place in ledger.by_list}))
            notes.append(
                f"{len(ledger.by_list)} files of the run {name} are not in the archive ({names}): records were compared "
                "with the hashes recorded when it was packed."
            )
    return Audit(trail, list(dict.fromkeys(notes)), faults, files)


def in_words(found: Audit) -> str:
    """The faults of an audit, one line per file."""
    lines = [f"  {path} {'; it '.join(faults)}." for path, faults in found.faults.items()]
    return "Not everything is as it was recorded:\n" + "\n".join(lines)
