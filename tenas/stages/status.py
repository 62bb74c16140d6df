"""Print how far runs are."""

from pathlib import Path
from typing import Annotated


def status(
    runs: Annotated[list[Path], "folders of runs and studies, or a folder of such"] = [Path("results")],  # noqa: B006
) -> str:
    """Print how far runs are: rounds, measurements, time left, best so far, failures.

    Reads files and nothing else, so it can be run anywhere that sees them, while a cluster works on them or after.

    Examples:
        tenas status
        tenas status results/digits
    """
    from tenas.report.status import status

    return status(runs)
