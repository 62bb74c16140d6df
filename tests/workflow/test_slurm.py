"""The workflow on a real SLURM of one node, started here with two GPUs that are none: profiles/slurm as a user has it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from helpers.runs import FUNNEL, TINY, call, changed, copied, environment, search_bytes, succeed, write_config

pytestmark = pytest.mark.slurm
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
SEED = Path("results/digits/seed0")
GPUS = 2

# No accounting, no cgroups, no systemd. Processors and memory are given out, not measured: more than there may be, so that two
# jobs fit on any machine.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=1,bf_interval=1
MinJobAge=300
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=100000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes={host} MaxTime=INFINITE State=UP
"""
# A GPU is a device file; that it is another /dev/null is not noticed, and a job gets its CUDA_VISIBLE_DEVICES.
DEVICES = "NodeName={host} Name=gpu File={folder}/nvidia[0-1] Flags=nvidia_gpu_env\n"


def quietly(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)


def install() -> None:
    """SLURM from the packages of the system, or skip the tests with the reason."""
    if not os.environ.get("TENAS_SLURM"):
        pytest.skip("TENAS_SLURM is not set, which allows to install a SLURM and to start it on this machine")
    if os.geteuid() != 0:
        pytest.skip("only root can start a SLURM of its own")
    if all(map(shutil.which, ("slurmctld", "slurmd", "sbatch", "munged"))):
        return
    if not shutil.which("apt-get"):
        pytest.skip("no SLURM is installed, and there is no apt-get to install it with")
    apt = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "Acquire::http::Timeout=20")
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        result = quietly(*apt, *command)
        if result.returncode != 0:
            pytest.skip(f"SLURM cannot be installed: {(result.stderr or result.stdout).strip().splitlines()[-1:]}")


def stop(pid_file: Path) -> None:
    with suppress(FileNotFoundError, ValueError, ProcessLookupError):
        os.kill(int(pid_file.read_text()), signal.SIGTERM)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[None]:
    os.environ["PATH"] += os.pathsep + "/usr/sbin"  # where Debian has the daemons
    install()
    settled = Path("/etc/slurm")  # the only place where the srun inside a job looks
    if (settled / "slurm.conf").exists():
        pytest.skip("this machine has a SLURM of its own, in /etc/slurm")
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().partition(".")[0]
    (folder / "state").mkdir()
    settled.mkdir(exist_ok=True)
    for number in range(GPUS):
        os.mknod(folder / f"nvidia{number}", 0o666 | 0o020000, os.makedev(1, 3))
    munge = Path("/run/munge/munged.pid")
    started_munge = quietly("munge", "-n").returncode != 0
    try:
        for name, text in (("slurm.conf", CONFIGURATION), ("gres.conf", DEVICES)):
            (settled / name).write_text(text.format(host=host, folder=folder, gpus=GPUS))
        if started_munge:
            for path in ("/run/munge", "/var/log/munge", "/var/lib/munge"):
                succeed(call("install", "-d", "-o", "munge", "-g", "munge", path, cwd=folder))
            succeed(call("setpriv", "--reuid=munge", "--regid=munge", "--init-groups", "munged", cwd=folder))
        for daemon in ("slurmctld", "slurmd"):
            succeed(call(daemon, cwd=folder))
        began = time.monotonic()
        while "idle" not in quietly("sinfo", "--noheader", "--format", "%T").stdout:
            assert time.monotonic() - began < 30, (folder / "slurmctld.log").read_text() + (folder / "slurmd.log").read_text()
            time.sleep(0.1)
        yield
    finally:
        for daemon in ("slurmd", "slurmctld"):
            stop(folder / f"{daemon}.pid")
        if started_munge:
            stop(munge)
        for name in ("slurm.conf", "gres.conf"):
            (settled / name).unlink(missing_ok=True)


def prepared(folder: Path, config: dict = TINY) -> Path:
    """A folder with the tiny configuration and a profile: profiles/slurm, in a hurry, whose jobs that score ask for a GPU.

    The configuration says `device: cpu`, so its own jobs would not.
    """
    write_config(folder, config)
    profile = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text(encoding="utf-8"))
    profile["set-resources"]["score"]["gpu"] = 1
    profile |= {"slurm-init-seconds-before-status-checks": 1, "seconds-between-status-checks": 1, "retries": 0}
    (folder / "profile").mkdir()
    (folder / "profile/config.yaml").write_text(yaml.safe_dump(profile))
    return folder


def submit(folder: Path, *arguments: object) -> subprocess.Popen:
    """Snakemake with the profile, in the background, its output in ``output``."""
    command = ["snakemake", "--snakefile", ROOT / "Snakefile", "--profile", "profile", *arguments]
    with (folder / "output").open("w") as output:
        return subprocess.Popen(
            list(map(str, command)), cwd=folder, env=environment(),
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip


def running() -> list[dict[str, str]]:
    """SLURM's jobs that run now, with what they have of the node."""
    listed = quietly("scontrol", "--details", "--oneliner", "show", "job").stdout.splitlines()
    jobs = [dict(re.findall(r"(\w+)=(\S+)", line)) for line in listed]
    return [job for job in jobs if job.get("JobState") == "RUNNING"]


def scoring(round: int) -> list[dict[str, str]]:
    return [job for job in running() if re.match(rf"rule_score_wildcards_digits_0_{round}_", job["Comment"])]


def wait_for(process: subprocess.Popen, folder: Path, condition: Callable[[], object]) -> object:
    began = time.monotonic()
    while not (found := condition()):
        assert process.poll() is None, (folder / "output").read_text()
        assert time.monotonic() - began < 180, (folder / "output").read_text()
        time.sleep(0.2)
    return found


def ended(process: subprocess.Popen, folder: Path) -> tuple[int, str]:
    status = process.wait(timeout=300)
    return status, (folder / "output").read_text()


def test_a_search_on_slurm_cancelled_and_resumed(slurm, finished, tmp_path):
    folder = prepared(tmp_path)
    process = submit(folder, SEED / "genotype.json")
    both = wait_for(process, folder, lambda: len(found := scoring(1)) == 2 and found)
    # Two jobs at once, each with a GPU of its own.
    assert {job["GRES"] for job in both} == {"gpu:1(IDX:0)", "gpu:1(IDX:1)"}
    assert {job["Partition"] for job in both} == {"gpu"}
    (cancelled, *_) = wait_for(process, folder, lambda: scoring(2))
    succeed(call("scancel", cancelled["JobId"], cwd=folder))
    status, output = ended(process, folder)
    assert status != 0
    assert "Error in rule score" in output
    assert not (folder / SEED / "round2/ranking.csv").exists()
    kept = {
        name: (folder / SEED / "round1" / name).stat().st_mtime_ns for name in ("scores/1.csv", "scores/2.csv", "ranking.csv")
    }
    status, output = ended(submit(folder, SEED / "genotype.json"), folder)
    assert status == 0, output
    assert kept == {name: (folder / SEED / "round1" / name).stat().st_mtime_ns for name in kept}
    expected = search_bytes(finished / SEED)
    del expected["genotype.svg"]
    assert search_bytes(folder / SEED) == expected


def test_each_short_training_is_a_job(slurm, funnel, tmp_path):
    folder, round4 = prepared(copied(funnel, tmp_path), FUNNEL), Path("results/funnel/seed0/round4")
    expected = search_bytes(funnel / round4.parent)
    shutil.rmtree(folder / round4)
    status, output = ended(submit(folder, round4 / "finalists.json"), folder)
    assert status == 0, output
    assert len(re.findall(r"^rule training:", output, re.MULTILINE)) == 3
    assert len(re.findall(r"has been submitted with SLURM jobid", output)) == 3
    assert search_bytes(folder / round4.parent) == expected
    assert (folder / round4 / "trainings.csv").read_bytes() == (funnel / round4 / "trainings.csv").read_bytes()


def test_a_retraining_by_two_tasks_of_srun(slurm, finished, tmp_path):
    """As on two nodes: srun starts a torchrun for each task, and they find each other."""
    folder = prepared(copied(finished, tmp_path))
    shutil.rmtree(folder / SEED / "retrain")
    profile = yaml.safe_load((folder / "profile/config.yaml").read_text())
    profile["set-resources"]["retrain"] |= {"mpi": "srun", "nodes": 1, "tasks": 2, "tasks_per_gpu": 0}
    (folder / "profile/config.yaml").write_text(yaml.safe_dump(profile))
    status, output = ended(submit(folder, SEED / "retrain/metrics.json"), folder)
    log = folder / "logs/digits/retrain/seed0.log"
    assert status == 0, output + (log.read_text() if log.exists() else "")
    assert json.loads((folder / SEED / "retrain/metrics.json").read_text())["provenance"]["processes"] == 2


def test_a_retraining_that_slurm_stops_goes_on_where_it_was(slurm, finished, tmp_path):
    """By the signal that comes before the end of a job's time: to all of its processes, the shell's too."""
    folder = prepared(copied(finished, tmp_path), changed(retraining={"epochs": 40}))
    shutil.rmtree(folder / SEED / "retrain")
    profile = yaml.safe_load((folder / "profile/config.yaml").read_text())
    assert "--signal=TERM@" in profile["set-resources"]["retrain"]["slurm_extra"]
    (folder / "profile/config.yaml").write_text(yaml.safe_dump(profile | {"retries": 1}))
    process = submit(folder, SEED / "retrain/metrics.json")
    log, checkpoint = folder / "logs/digits/retrain/seed0.log", folder / SEED / "retrain/checkpoint.pt"
    wait_for(process, folder, checkpoint.exists)
    (job,) = running()
    succeed(call("scancel", "--signal=TERM", job["JobId"], cwd=folder))
    wait_for(process, folder, lambda: "asked to stop" in log.read_text())
    status, output = ended(process, folder)
    assert status == 0, output + log.read_text()
    assert "Error in rule retrain" in output
    history = (folder / SEED / "retrain/history.csv").read_bytes()
    succeed(
        call(
            "tenas", "retrain", "--settings", "results/digits/retrain.json", "--genotype", SEED / "genotype.json", "--seed", 0,
            "--device", "cpu", "--out", "quiet", cwd=folder,
        )
    )  # fmt: skip
    assert (folder / "quiet/history.csv").read_bytes() == history


def test_a_job_that_fails_shows_its_log(slurm, finished, tmp_path):
    shutil.copytree(finished / "data", tmp_path / "data")
    folder = prepared(tmp_path, changed(search={"measures": {"ntk_condition_number": {"repeats": 1, "batch": 500}}}))
    status, output = ended(submit(folder, SEED / "round1/scores/1.csv"), folder)
    assert status != 0
    assert "tenas: A batch of 500 images was asked for, but the data set has " in output
    assert "Traceback" not in output
    assert not (folder / SEED / "round1").exists() or not list((folder / SEED / "round1").rglob("*.csv"))
