"""Say what this machine is and whether anything is wrong with it."""

from pathlib import Path
from typing import Annotated


def doctor(
    *,
    data: Annotated[Path, "folder of prepared data sets"] = Path("data"),
) -> str:
    """Say what this machine is, which device each stage would use and why, and what is wrong: then the exit status is 2.

    Computes a small NTK by the compiled kernels, on a GPU where there is one, and by the plain loop, and compares them.

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
