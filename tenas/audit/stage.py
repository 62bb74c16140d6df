"""The audit of a run or a study: reads all of its files, writes none."""

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
    """``trail``: lines for a reader, decision by decision. ``faults``: file -> what is wrong with it, in its own words.

    ``notes``: what is no fault, but should be known. ``files``: how many were read.
    """

    trail: list[str]
    notes: list[str]
    faults: dict[Path, list[str]]
    files: int


def audit(
    run: str | os.PathLike[str], data: str | os.PathLike[str] | None = None, table: str | os.PathLike[str] | None = None
) -> Audit:
    """Follow each genotype of a run back to the images; or the correlations of a study.

    Takes every decision again and compares bytes; looks at every hash, seed, round, shard and setting that is recorded.
    ``run``: a folder, or an archive of ``tenas archive``, of which every run is followed.
    ``data``: folder of the prepared images, ``table``: the space's table, where either was read; by default where the records
    say, from the working directory; of an archive, the hashes that it has of the images.

    Raises TenasError only when there is nothing to audit, or the run is of an earlier version. It finds what was edited by
    hand, not a forgery: whoever changes a measurement and all that follows from it leaves no trace here.
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
        # Without settings no decision can be taken again.
        ledger.close()
        return Audit([], ledger.notes, ledger.faults, ledger.count)
    with warnings.catch_warnings():
        # That a table lacks cells was said when it was read first.
        warnings.simplefilter("ignore", IncompleteTableWarning)
        (audit_study if case.settings_file.name == layout.STUDY else audit_run)(case)
    case.close()
    return Audit(case.trail, ledger.notes, ledger.faults, ledger.count)


def _of_archive(path: Path, archive: Archive, data: Path | None, table: Path | None) -> Audit:
    """Each of its runs, with paths as they are in the archive."""
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
                f"{len(ledger.by_list)} files of the run {name} are not in the archive ({names}): records were held against "
                "the hashes that these had when it was packed."
            )
    return Audit(trail, list(dict.fromkeys(notes)), faults, files)


def in_words(found: Audit) -> str:
    """The faults of an audit, one line per file."""
    lines = [f"  {path} {'; it '.join(faults)}." for path, faults in found.faults.items()]
    return "Not everything is as it was recorded:\n" + "\n".join(lines)
