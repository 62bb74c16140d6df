"""What the tests of the workflow share: the repository, commands run as a user runs them, and a configuration small enough."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent

# A whole run in well under a minute: few and small measurements, one epoch of a very small network.
TINY = {
    "shards": 2,
    "device": "cpu",
    "datasets": {"digits": {"source": "digits", "images": 200}},
    "runs": {
        "digits": {
            "space": "nas-bench-201",
            "dataset": "digits",
            "preset": "default",
            "search": {
                "measures": {
                    "ntk_condition_number": {"repeats": 2, "batch": 4},
                    "linear_regions": {"repeats": 2, "count": 200},
                }
            },
            "seeds": [0],
            "retrain": "digits",
            "retraining": {"channels": 2, "epochs": 1, "batch": 128},
        }
    },
}


def call(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a command of this environment, with stdout and stderr together in ``stdout``; never raises on its exit status."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SNAKEMAKE_", "PYTEST_", "CUDA_"))}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    env["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def snakemake(folder: Path, *arguments: object, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run the workflow of the repository ``root`` with ``folder`` as its working directory."""
    command = ("snakemake", "--snakefile", root / "Snakefile", "--cores", "2", *arguments)
    return call(*command, cwd=folder, **{"PYTHONPATH": str(root)} | environment)


def succeed(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 0, result.stdout
    return result.stdout


def write_config(folder: Path, config: dict) -> Path:
    path = folder / "config" / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def copy_repository(to: Path) -> Path:
    """The files of the repository that git would have, without the history."""
    listed = call("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT)
    for name in filter(None, succeed(listed).split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run that has ended. Tests read it; one that changes something works on a copy."""
    folder = tmp_path_factory.mktemp("finished")
    write_config(folder, TINY)
    succeed(snakemake(folder))
    return folder
