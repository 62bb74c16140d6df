"""Print the progress of runs."""

from pathlib import Path
from typing import Annotated


def status(
    runs: Annotated[list[Path], "folders of runs and studies, or a folder that contains them"] = [Path("results")],  # noqa: B006
) -> str:
    """Print the progress of runs: rounds, measurements, time left, best so far, failures.

    Only reads files, so it can run on any machine with access to them, during or after the runs.

    Examples:
        tenas status
        tenas status results/digits
    """
    from tenas.report.status import status

    return status(runs)
