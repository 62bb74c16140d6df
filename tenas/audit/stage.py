"""The audit of a run or a study: reads all of its files, writes none."""

import os
import warnings
from pathlib import Path
from typing import NamedTuple

from tenas import layout
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
    ``data``: folder of the prepared images, ``table``: the space's table, where either was read; by default where the records
    say, from the working directory.

    Raises TenasError only when there is nothing to audit, or the run is of an earlier version. It finds what was edited by
    hand, not a forgery: whoever changes a measurement and all that follows from it leaves no trace here.
    """
    folder, ledger = Path(run), Ledger()
    given = (None if data is None else Path(data), None if table is None else Path(table))
    if layout.path(layout.STUDY, folder).exists():
        case = open_study(folder, ledger, *given)
    elif seeds_of(folder):
        case = open_run(folder, ledger, *given)
    else:
        raise TenasError(f"There is nothing to audit in {run}: it has no folder of a seed, and it is no study.")
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


def in_words(found: Audit) -> str:
    """The faults of an audit, one line per file."""
    lines = [f"  {path} {'; it '.join(faults)}." for path, faults in found.faults.items()]
    return "Not everything is as it was recorded:\n" + "\n".join(lines)
