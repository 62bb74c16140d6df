"""Follow a run's genotypes back to the images, and report what differs from the records."""

from pathlib import Path
from typing import Annotated


def audit(
    run: Annotated[Path, "folder of a run or study, or an archive of several"],
    *,
    data: Annotated[Path | None, "folder of its images (default: that of the records)"] = None,
    table: Annotated[Path | None, "table of its space, if one was read (default: that of the records)"] = None,
) -> str:
    """Follow a run's genotypes back to the images, and report what differs from the records.

    Examples:
        tenas audit results/digits
        tenas audit results/digits --data elsewhere/digits
        tenas audit searches.tar.xz
    """
    from tenas.audit import audit, in_words
    from tenas.errors import TenasError
    from tenas.progress import say

    found = audit(run, data, table)
    lines = [*found.trail, "", *(f"note: {note}" for note in found.notes)]
    if found.faults:
        say("\n".join(lines))
        raise TenasError(in_words(found))
    return "\n".join([*lines, f"{found.files} files, all as recorded"])
