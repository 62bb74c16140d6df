"""The workflow on a real SLURM of two nodes, both this machine, with GPUs that are none: profiles/slurm as a user has it."""

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
from helpers.runs import (
    FUNNEL,
    TINY,
    call,
    changed,
    copied,
    environment,
    profile_lines,
    search_bytes,
    succeed,
    write_config,
)

pytestmark = pytest.mark.slurm
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
SEED = Path("results/digits/seed0")
GPUS = 2
NODES = ("first", "second")
# Of Snakemake: one whose test has failed would wait for its jobs.
SUBMITTED: list[subprocess.Popen] = []

# No accounting, no cgroups, no systemd. Processors and memory are given out, not measured: more than there may be, so that two
# jobs fit on any machine. A job of the partition `urgent` takes the place of others, as on a cluster with priorities.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
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
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge=300
ReturnToService=2
GresTypes=gpu
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port=17001,17002 CPUs=4 RealMemory=100000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=cpu Nodes=first Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=first MaxTime=INFINITE State=UP
PartitionName=both Nodes={nodes} MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=first PriorityTier=2 MaxTime=INFINITE State=UP
"""
# A GPU is a device file; that it is another /dev/null is not noticed, and a job gets its CUDA_VISIBLE_DEVICES.
DEVICES = "NodeName={nodes} Name=gpu File={folder}/nvidia[0-1] Flags=nvidia_gpu_env\n"


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
            (settled / name).write_text(text.format(host=host, folder=folder, gpus=GPUS, nodes=",".join(NODES)))
        if started_munge:
            for path in ("/run/munge", "/var/log/munge", "/var/lib/munge"):
                succeed(call("install", "-d", "-o", "munge", "-g", "munge", path, cwd=folder))
            succeed(call("setpriv", "--reuid=munge", "--regid=munge", "--init-groups", "munged", cwd=folder))
        succeed(call("slurmctld", cwd=folder))
        for node in NODES:
            succeed(call("slurmd", "-N", node, cwd=folder))
        began = time.monotonic()
        while quietly("sinfo", "--noheader", "--Node", "--partition", "both", "--format", "%T").stdout.split() != ["idle"] * 2:
            assert time.monotonic() - began < 60, "".join(path.read_text() for path in sorted(folder.glob("*.log")))
            time.sleep(0.1)
        yield
    finally:
        for process in SUBMITTED:
            process.kill()
        for daemon in (*(f"slurmd-{node}" for node in NODES), "slurmctld"):
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


def to_retrain(finished: Path, to: Path, epochs: int, retries: int = 0, **resources: object) -> Path:
    """A copy of a finished run that lacks its retraining, whose job has other ``resources`` than in the profile."""
    retraining = TINY["runs"]["digits"]["retraining"] | {"epochs": epochs}
    folder = prepared(copied(finished, to), changed(retraining=retraining))
    shutil.rmtree(folder / SEED / "retrain")
    profile = yaml.safe_load((folder / "profile/config.yaml").read_text())
    profile["set-resources"]["retrain"] |= resources
    (folder / "profile/config.yaml").write_text(yaml.safe_dump(profile | {"retries": retries}))
    return folder


def assert_as_a_quiet_retraining(folder: Path, processes: int = 1) -> None:
    """Train once more, without SLURM and undisturbed, with as many processes on this machine, and compare the bytes."""
    start = ("torchrun", "--standalone", "--nproc-per-node", processes, "-m", "tenas.cli") if processes > 1 else ("tenas",)
    arguments = ("--settings", "results/digits/retrain.json", "--genotype", SEED / "genotype.json", "--seed", 0)
    succeed(call(*start, "retrain", *arguments, "--threads", 1, "--device", "cpu", "--out", "quiet", cwd=folder))
    for name in ("history.csv", "network.pt"):
        assert (folder / SEED / "retrain" / name).read_bytes() == (folder / "quiet" / name).read_bytes()
    metrics = json.loads((folder / SEED / "retrain/metrics.json").read_text())
    assert metrics["provenance"]["processes"] == processes


def submit(folder: Path, *arguments: object) -> subprocess.Popen:
    """Snakemake with the profile, in the background, its output in ``output``."""
    command = ["snakemake", "--snakefile", ROOT / "Snakefile", "--profile", "profile", *arguments]
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            list(map(str, command)), cwd=folder, env=environment(),
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    SUBMITTED.append(process)
    return process


def listed(*number: str) -> list[dict[str, str]]:
    """SLURM's jobs, or one of them, with what they have of the nodes."""
    lines = quietly("scontrol", "--details", "--oneliner", "show", "job", *number).stdout.splitlines()
    return [dict(re.findall(r"(\w+)=(\S+)", line)) for line in lines]


def running() -> list[dict[str, str]]:
    return [job for job in listed() if job.get("JobState") == "RUNNING"]


def held(folder: Path, stage: str) -> bool:
    """Stop the process of a stage in ``folder``, as if it were in the middle of a long step. Returns whether there is one."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (path / "cmdline").read_bytes().split(b"\0")
            if Path(os.readlink(path / "cwd")) == folder and command[1].endswith(b"/tenas") and command[2] == stage.encode():
                os.kill(int(path.name), signal.SIGSTOP)
                return True
    return False


def scoring(round: int) -> list[dict[str, str]]:
    return [job for job in running() if re.match(rf"rule_score_wildcards_digits_0_{round}_", job["Comment"])]


def out_of_time(folder: Path) -> str:
    """Have the time of the only job end. Returns its number.

    SLURM refuses a time that has passed when it reads the request. It looks at the clock twice a minute,
    lets a process that is stopped continue, and tells it to end.
    """
    (job,) = running()
    succeed(call("scontrol", "update", f"JobId={job['JobId']}", "EndTime=now+2", cwd=folder))
    return job["JobId"]


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


@pytest.mark.long
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


@pytest.mark.long
def test_a_retraining_on_two_nodes(slurm, finished, tmp_path):
    """By the lines of the profile for two nodes, with a GPU of each: asked to stop, it goes on, and ends as on one node."""
    lines = profile_lines("Two nodes")
    assert (lines["gpu"], lines["slurm_extra"]) == (8, "--signal=TERM@120 --gpus-per-node=4 --ntasks-per-node=1")
    lines |= {"gpu": 2, "slurm_extra": lines["slurm_extra"].replace("node=4", "node=1"), "slurm_partition": "both"}
    folder = to_retrain(finished, tmp_path, 12, 1, **lines | {"mem_mb": 16000})
    log, checkpoint = folder / "logs/digits/retrain/seed0.log", folder / SEED / "retrain/checkpoint.pt"
    process = submit(folder, SEED / "retrain/metrics.json", "--resources", f"gpu={lines['gpu']}")
    (job,) = wait_for(process, folder, lambda: checkpoint.exists() and running())
    assert job["NodeList"] == "first,second"
    assert job["NumNodes"] == "2"
    succeed(call("scancel", "--signal=TERM", job["JobId"], cwd=folder))
    wait_for(process, folder, lambda: "asked to stop" in log.read_text())
    status, output = ended(process, folder)
    assert status == 0, output + log.read_text()
    assert "Error in rule retrain" in output
    assert_as_a_quiet_retraining(folder, 2)


def test_a_retraining_that_is_preempted_goes_on_where_it_was(slurm, finished, tmp_path):
    """SLURM puts it back into the queue under its number, and Snakemake takes no notice."""
    folder = to_retrain(finished, tmp_path, 12)
    process = submit(folder, SEED / "retrain/metrics.json")
    wait_for(process, folder, (folder / SEED / "retrain/checkpoint.pt").exists)
    (job,) = running()
    succeed(call("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true", cwd=folder))
    (job,) = wait_for(process, folder, lambda: [it for it in listed(job["JobId"]) if it["JobState"] == "PENDING"])
    assert job["Restarts"] == "1"
    # Not after the two minutes for which SLURM holds a job that it has put back.
    succeed(call("scontrol", "update", f"JobId={job['JobId']}", "StartTime=now", cwd=folder))
    status, output = ended(process, folder)
    assert status == 0, output
    assert "Error in rule" not in output
    assert len(re.findall(r"has been submitted with SLURM jobid", output)) == 1
    assert_as_a_quiet_retraining(folder)


@pytest.mark.long
def test_a_retraining_that_runs_out_of_time_goes_on_where_it_was(slurm, finished, tmp_path):
    folder = to_retrain(finished, tmp_path, 6, retries=1)
    process = submit(folder, SEED / "retrain/metrics.json")
    wait_for(process, folder, (folder / SEED / "retrain/checkpoint.pt").exists)
    assert held(folder, "retrain")
    number = out_of_time(folder)
    status, output = ended(process, folder)
    log = (folder / "logs/digits/retrain/seed0.log").read_text()
    assert status == 0, output + log
    assert "asked to stop" in log or "Error in rule retrain" in output
    assert listed(number)[0]["JobState"] == "TIMEOUT"
    assert_as_a_quiet_retraining(folder)


def test_scores_that_run_out_of_time_go_on_where_they_were(slurm, finished, tmp_path):
    folder = prepared(tmp_path)
    shutil.copytree(finished / "data", folder / "data")
    profile = yaml.safe_load((folder / "profile/config.yaml").read_text())
    (folder / "profile/config.yaml").write_text(yaml.safe_dump(profile | {"retries": 1}))
    scores, kept = SEED / "round1/scores/1.csv", folder / SEED / "round1/scores/.1.partial"
    process = submit(folder, scores)
    wait_for(process, folder, kept.exists)
    assert held(folder, "score")
    before = kept.read_bytes()
    number = out_of_time(folder)
    status, output = ended(process, folder)
    assert status == 0, output
    assert "Error in rule score" in output
    assert listed(number)[0]["JobState"] == "TIMEOUT"
    assert before
    assert (folder / scores).read_bytes() == (finished / scores).read_bytes()


def test_a_job_that_fails_shows_its_log(slurm, finished, tmp_path):
    shutil.copytree(finished / "data", tmp_path / "data")
    folder = prepared(tmp_path, changed(search={"measures": {"ntk_condition_number": {"repeats": 1, "batch": 500}}}))
    status, output = ended(submit(folder, SEED / "round1/scores/1.csv"), folder)
    assert status != 0
    assert "tenas: A batch of 500 images was asked for, but the data set has " in output
    assert "Traceback" not in output
    assert not (folder / SEED / "round1").exists() or not list((folder / SEED / "round1").rglob("*.csv"))
