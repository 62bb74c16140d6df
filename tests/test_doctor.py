"""The doctor, on this machine and on such as have what is pretended: files laid out as another machine's, and real limits."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT
from helpers.runs import call
from torch._subclasses.fake_tensor import FakeTensorMode

from tenas import doctor
from tenas.doctor import difference, driver_too_old, examine, faster, report
from tenas.measures.ntk_tape import Value
from tenas.networks import Supernet
from tenas.spaces import get_space


def wrong(findings: list) -> str:
    return " ".join(finding.wrong for finding in findings if finding.wrong)


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> tuple[list, str]:
    data = tmp_path_factory.mktemp("data")
    (data / "digits").mkdir()
    (data / "digits/card.json").write_text("{}")
    findings = examine(data)
    return findings, report(findings)


def test_what_this_machine_is(here):
    findings, text = here
    found = {finding.what: finding.found for finding in findings}
    assert found["processors"].endswith(f" of {os.cpu_count()} usable") or "quota" in found["processors"]
    assert found["score, study score"].startswith("cpu: ")
    assert ("cuda" if torch.cuda.is_available() else "cpu") in found["training, retrain"]
    assert found["data"].endswith(": digits")
    assert "snakemake 9" in found["packages"]
    assert "two runs equal" in found["compiled kernels on the CPU"]
    assert "kernels per second" in found["plain loop on the CPU"]
    if not torch.cuda.is_available():
        assert {found[f"faster for {what}"] for what in ("scores", "trainings")} == {"--device cpu: there is no GPU to be timed"}
    assert len(text.splitlines()) == len(findings)


@pytest.mark.slow
def test_the_command_says_what_is_wrong_and_exits_with_2(tmp_path):
    """Two faults that are real here: no compiler in PATH, and a cache that is a file."""
    (tmp_path / "file").touch()
    bin = tmp_path / "bin"
    bin.mkdir()
    result = subprocess.run(
        [sys.executable, "-m", "tenas.cli", "doctor"],
        cwd=tmp_path,
        env={"PATH": str(bin), "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path / "file/cache")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2, result.stdout + result.stderr
    assert "There is no C compiler in PATH" in result.stderr
    assert "The cache of matplotlib" in result.stderr
    assert "set MPLCONFIGDIR to a folder that can be." in result.stderr
    assert "Traceback" not in result.stderr
    assert len([line for line in result.stdout.splitlines() if line.startswith("WRONG")]) == 2


def test_caches_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "numba"))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    assert wrong(doctor._caches()).startswith(f"The cache of numba {tmp_path}/file/numba cannot be written (Not a directory): ")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    assert wrong(doctor._caches()) == ""


def test_shared_memory_of_a_container(tmp_path):
    """64 MB of it, as Docker gives: really, where one may mount."""
    code = "from tenas import doctor; print(doctor._machine(doctor.ROOT, doctor.Path('/dev/shm'))[-1])"
    script = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec python -c "$0"'
    result = call("unshare", "--mount", "bash", "-c", script, code, cwd=tmp_path)
    if "not permitted" in result.stdout or "denied" in result.stdout:
        pytest.skip("this user may not mount anything")
    assert "/dev/shm: 64 MiB" in result.stdout
    assert "docker run --shm-size=8g" in result.stdout
    assert doctor._machine(doctor.ROOT, tmp_path / "nowhere")[-1].wrong


@pytest.mark.parametrize(
    ("driver", "cuda", "old"),
    [("535.183.01", "13.0", True), ("580.82.07", "13.0", False), ("580", "13.0", False), ("535.183.01", "12.8", False),
     ("470.1", "12.8", True), (None, "13.0", False), ("535.183.01", None, False)],
)  # fmt: skip
def test_a_driver_that_is_too_old(driver, cuda, old):
    assert driver_too_old(driver, cuda) == old


@pytest.mark.skipif(torch.cuda.is_available() or torch.version.cuda is None, reason="PyTorch has a GPU, or is built for none")
def test_a_gpu_with_an_old_driver(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, text in (
        ("dev/nvidia0", ""),
        (
            "proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021\n",
        ),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    said = wrong(doctor._gpus(tmp_path))
    assert f"driver 470.57.02 is too old for CUDA {torch.version.cuda}" in said
    assert "There is /dev/nvidia0, but PyTorch cannot use it: " in said
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "NoDevFiles")
    assert "cannot use it" not in wrong(doctor._gpus(tmp_path))


def test_the_faster_device_is_named_with_both_rates():
    assert faster({"cpu": 226.0, "cuda": 30.26}, "kernels per second") == (
        "--device cpu: 226.0 on cpu against 30.3 on cuda kernels per second"
    )
    assert faster({"cpu": 2.0, "cuda": 40.0}, "steps per second").startswith("--device cuda: 2.0 on cpu against 40.0 on cuda")


def test_what_is_timed_on_a_gpu_runs(monkeypatch):
    """On the CPU, and kernels on a fake GPU, which tells of tensors on another device."""
    monkeypatch.setattr(doctor, "timed", lambda compute: (compute(), 1.0))
    monkeypatch.setattr(doctor, "together", lambda network, inputs: 3)
    network, images = doctor.small_problem()
    assert doctor.kernels_together(network, images[:4], "cpu") == 3
    assert doctor.training_steps("cpu") == 1
    monkeypatch.setattr(Value, "data", property(lambda value: value.tensor.detach()))
    monkeypatch.setattr(torch.UntypedStorage, "data_ptr", id)
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = Supernet(get_space("nas-bench-201"), channels=4, cells=1, classes=10)
        assert doctor.kernels_together(network, torch.zeros(4, 3, 16, 16), "cuda") == 3


def test_kernels_that_are_not_right(monkeypatch):
    network, images = doctor.small_problem()
    right = doctor.ntk_gram(network, images)
    draws = itertools.count()
    monkeypatch.setattr(doctor, "ntk_gram", lambda *_, **__: right + 1e-3 * right.max() * (1 + next(draws)))
    finding, _ = doctor._kernel("compiled kernels", network, images, right, "compiled")
    assert "differs from that of the plain loop in float64 by " in finding.wrong
    assert "two runs of the same NTK differ" in finding.wrong
    assert difference(right, right) == 0
