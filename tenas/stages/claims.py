"""Judge claims by the results of runs, and compare those with baselines at equal cost."""

from pathlib import Path
from typing import Annotated


def claims(
    claims: Annotated[Path, "YAML file of the claims"],
    *,
    results: Annotated[Path, "folder of the runs"] = Path("results"),
    tested: Annotated[list[str], "runs with results; others count as not tested"] = [],  # noqa: B006
    out: Annotated[Path, "JSON file of figures and verdicts"],
    page: Annotated[Path, "Markdown file of the same"],
) -> None:
    """Judge claims by the results of runs, and compare those with baselines at equal cost.

    Examples:
        tenas claims config/claims.yaml --tested cifar10-default --out claims.json --page claims.md
        tenas claims mine.yaml --results elsewhere --tested one two --out claims.json --page claims.md
    """
    from tenas.errors import damaged
    from tenas.files import write_json, write_text
    from tenas.report.claims import judge
    from tenas.report.claims import page as page_of

    with damaged(results):
        judged = judge(claims, results, tested)
        text = page_of(judged)
    write_text(page, text)
    write_json(out, judged)
