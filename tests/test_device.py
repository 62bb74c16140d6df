"""Which device is taken, and what is said where one can't be. Of GPUs: what torch would say of them."""

import json
import os
import types
from pathlib import Path

import pytest
import torch

from tenas import device
from tenas.device import check_capability, choose_device, has_kernels, own_device, score_device
from tenas.errors import TenasError
from tenas.locks import take_free
from tenas.provenance import check_one_kind

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
BUILT_FOR = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Four GPUs, as far as taking one goes."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: types.SimpleNamespace(uuid=f"uuid-{number}"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number=0: "Card 9")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number=0: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: BUILT_FOR)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    device._own_gpu.cache_clear()
    yield tmp_path / f"tenas-{os.getuid()}"
    device._own_gpu.cache_clear()


def program(folder: Path, name: str, text: str, monkeypatch) -> None:
    (folder / name).write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@needs_no_gpu
def test_a_gpu_that_torch_cannot_use_is_named(monkeypatch, capsys):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device, "gpu_files", lambda: ["/dev/nvidia0"])
    assert choose_device("auto") == "cpu"
    said = capsys.readouterr().err
    assert said.startswith("tenas: note: PyTorch finds no GPU, though there is /dev/nvidia0: ")
    assert said.endswith("; computing on the CPU.\n")
    with pytest.raises(TenasError, match="though there is /dev/nvidia0"):
        choose_device("cuda")
    for hidden in ("", "-1", "none", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert choose_device("auto") == "cpu"
    assert capsys.readouterr().err == ""


@needs_no_gpu
def test_measures_are_taken_on_the_cpu_unless_a_gpu_is_asked_for(capsys):
    assert score_device("auto") == score_device("cpu") == "cpu"
    with pytest.raises(TenasError, match="finds no GPU"):
        score_device("cuda")


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((7, 5), BUILT_FOR, True), ((8, 0), BUILT_FOR, True), ((8, 9), BUILT_FOR, True), ((9, 0), BUILT_FOR, True),
        ((12, 0), BUILT_FOR, True), ((7, 0), BUILT_FOR, False), ((6, 0), BUILT_FOR, False), ((11, 0), BUILT_FOR, False),
        ((8, 0), ["sm_86"], False), ((9, 0), ["sm_90a"], True), ((12, 1), ["compute_90"], True), ((8, 0), ["compute_90"], False),
        ((9, 0), [], False), ((9, 0), ["gfx90a"], False),
    ],
)  # fmt: skip
def test_which_gpus_a_build_of_torch_runs_on(capability, built_for, runs):
    assert has_kernels(capability, built_for) == runs


def test_a_gpu_without_kernels_is_refused(gpus, monkeypatch):
    check_capability(0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number=0: (7, 0))
    with pytest.raises(TenasError, match=r"Card 9 has the compute capability 7\.0, for which PyTorch .* has no kernels"):
        device.own_gpu()


def test_each_process_takes_a_gpu_that_is_free(gpus):
    gpus.mkdir(mode=0o700)
    taken = take_free(["gpu-uuid-0"], gpus)
    assert device.own_gpu() == 1
    assert device.own_gpu() == 1  # until it ends
    assert take_free(["gpu-uuid-1"], gpus) is None
    taken.file.close()


def test_a_gpu_on_which_somebody_else_computes_is_taken_last(gpus, tmp_path, monkeypatch):
    said = "GPU-uuid-0, 40000\nGPU-uuid-1, 20000\nGPU-uuid-2, 3\nGPU-uuid-3, [N/A]"
    program(tmp_path, "nvidia-smi", said, monkeypatch)
    assert device.own_gpu() == 2
    assert take_free(["gpu-uuid-2"], gpus) is None


def test_a_slice_of_a_gpu_for_each_process(tmp_path, monkeypatch):
    """CUDA shows a process the first slice of several, so all would be on that."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")
    folder = tmp_path / f"tenas-{os.getuid()}"
    folder.mkdir(mode=0o700)
    taken = take_free(["gpu-MIG-a"], folder)
    device._own_slice.cache_clear()
    try:
        own_device("auto")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-b"
        assert take_free(["gpu-MIG-b"], folder) is None
    finally:
        device._own_slice.cache_clear()
        taken.file.close()


H100 = {"device": "cuda", "gpu": "NVIDIA H100", "capability": "9.0", "precision": "float32 without TF32", "cudnn": "91002"}


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"device": "cpu", "processor": "Some"}, "a CPU"),
        (H100 | {"gpu": "NVIDIA A100", "capability": "8.0"}, "a GPU NVIDIA A100"),
        (H100 | {"precision": "TF32"}, "TF32"),
        (H100 | {"cudnn": "90100"}, "cuDNN 90100"),
        ({"device": "cuda", "gpu": "NVIDIA H100"}, "a GPU NVIDIA H100."),
    ],
)
def test_results_of_different_kinds_of_devices_are_not_compared(other, named):
    check_one_kind({"1.csv": H100, "2.csv": H100 | {"driver": "580.82.07"}, "3.csv": None}, "shards of round 1")
    check_one_kind({"1.csv": {"device": "cpu", "processor": "A"}, "2.csv": {"device": "cpu", "processor": "B"}}, "shards")
    with pytest.raises(TenasError, match="The shards of round 1 are of different kinds of devices") as raised:
        check_one_kind({"1.csv": H100, "2.csv": other}, "shards of round 1")
    assert named in str(raised.value)


def test_a_record_names_all_that_a_gpus_values_follow_from(gpus):
    from tenas.provenance import processor

    found = processor("cuda", "float32 without TF32")
    assert found.keys() == {"processor", "instructions", "gpu", "capability", "precision", "cuda", "cudnn", "driver"}
    assert (found["gpu"], found["capability"]) == ("Card 9", "9.0")
    assert processor("cpu").keys() == {"processor", "instructions"}
    json.dumps(found)
