"""Diagnose this machine."""

from pathlib import Path
from typing import Annotated


def doctor(
    *,
    data: Annotated[Path, "folder of prepared data sets"] = Path("data"),
) -> str:
    """Diagnose this machine: resources, device of each stage and why, problems. With problems, the exit status is 2.

    Computes a small NTK by the compiled kernels, on a GPU if there is one, and by the plain loop, and compares them.

    Examples:
        tenas doctor
        tenas doctor --data data
    """
    from tenas.doctor import examine, report
    from tenas.errors import TenasError
    from tenas.progress import say

    findings = examine(data)
    text = report(findings)
    if wrong := [finding.wrong for finding in findings if finding.wrong]:
        say(text)
        raise TenasError(" ".join(wrong))
    return text
