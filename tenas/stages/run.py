"""Run the workflow on a configuration."""

from pathlib import Path
from typing import Annotated

from tenas.stages.types import Cores


def run(
    config: Annotated[str, "YAML file, or name of a built-in configuration, such as nas-bench-201"],
    targets: Annotated[list[Path], "files to make (default: all of the configuration)"] = [],  # noqa: B006
    *,
    cores: Annotated[Cores, "processor cores to use at most, or all"] = "all",
    profile: Annotated[str | None, "folder of a Snakemake profile, or name of a built-in one: slurm, kubernetes"] = None,
    dry_run: Annotated[bool, "print how many jobs of each rule would run, and exit"] = False,
    report: Annotated[Path | None, "write the report of the existing results to this HTML file, and exit"] = None,
    unlock: Annotated[bool, "remove the lock of a run that was killed (kill -9, a closed terminal), and exit"] = False,
) -> None:
    """Run the workflow on a configuration, in the current folder: Snakemake with the package's rules.

    Results are in results/, prepared images in data/, logs in logs/. The same command resumes an interrupted run.

    Examples:
        tenas run mine.yaml
        tenas run mine.yaml results/mine/seed0/genotype.json --cores 4
        tenas run nas-bench-201 --dry-run
        tenas run mine.yaml --report results/report.html
        tenas run mine.yaml --unlock
    """
    import os
    import sys

    from tenas.code import PROJECT
    from tenas.config import load_config, read_config
    from tenas.errors import TenasError

    file, ours = Path(config), {path.stem: path for path in sorted((PROJECT / "config").glob("*.yaml"))}
    if not file.is_file():
        if config not in ours:
            texts = {name: path.read_text(encoding="utf-8") for name, path in ours.items()}
            names = ", ".join(name for name, text in texts.items() if "\nruns:" in text or "\nstudies:" in text)
            raise TenasError(
                f"There is no configuration {config}: expected a YAML file (tenas new writes one), or a name of {names}."
            )
        file = ours[config]
    # Snakemake says the same in many lines, and ends with another status.
    load_config(read_config(file), str(file))
    # No option, whatever its name begins with.
    file = file if file.is_absolute() else Path.cwd() / file
    command = ["snakemake", "--snakefile", str(PROJECT / "Snakefile"), "--configfile", str(file), "--cores", str(cores)]
    if profile is not None:
        named = PROJECT / "profiles" / profile
        command += ["--profile", str(named if named.is_dir() and not Path(profile).is_dir() else profile)]
    if dry_run:
        command += ["--dry-run", "--quiet", "rules"]
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        command += ["--report", str(report), "--quiet", "rules", "host", "progress"]
    if unlock:
        command += ["--unlock"]
    command += ["--", *map(str, targets)]
    # Snakemake replaces this process: it ends its jobs on Ctrl-C, and its exit status is that of the command.
    # Not from this folder, whose files may have names of Python's modules.
    os.execv(sys.executable, [sys.executable, "-P", "-m", *command])
