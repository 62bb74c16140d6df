"""Print what a run has found."""

from pathlib import Path
from typing import Annotated


def show(run: Annotated[Path, "folder of the run"]) -> str:
    """Print what a run has found.

    Examples:
        tenas show results/digits
        tenas show results/digits | grep genotype
    """
    from tenas.errors import damaged
    from tenas.report.show import show

    with damaged(run):
        return show(run)
