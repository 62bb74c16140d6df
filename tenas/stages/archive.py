"""Pack the records of runs into one file that an audit reads."""

from pathlib import Path
from typing import Annotated


def archive(
    runs: Annotated[list[Path], "folders of runs and studies"],
    *,
    out: Annotated[Path, "file to write, such as searches.tar.xz"],
) -> str:
    """Pack the records of runs into one file that an audit reads.

    Examples:
        tenas archive results/digits --out digits.tar.xz
        tenas archive results/one results/two --out searches.tar.xz
    """
    from tenas.audit.archive import pack
    from tenas.files import sha256

    listed = pack(runs, out)
    commit = "no known commit" if listed["commit"] is None else f"commit {listed['commit']['sha1']}"
    changed = ", with uncommitted changes" if (listed["commit"] or {}).get("changed") else ""
    size = f"{out.stat().st_size / 1000:,.0f} kB"
    return (
        f"{out}: {len(listed['runs'])} runs, {len(listed['files'])} files, {size}, by {commit}{changed}\n"
        f"left out, with their hashes: {len(listed['left_out'])} files of images, networks and figures\n"
        f"SHA-256 {sha256(out)}"
    )
