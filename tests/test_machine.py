"""What a machine gives, by the files of others: pretended ones, in folders that are laid out as Linux does."""

import os
from pathlib import Path

import pytest

from tenas.machine import driver_version, gpu_files, has_gpu, memory_limit, processors, shared_memory, visible_devices

SEEN = len(os.sched_getaffinity(0))


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2, V1 = "0::/pod/job\n", "4:memory:/pod\n2:cpu,cpuacct:/pod\n0::/\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, SEEN),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/job/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/job/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/job/cpu.max": "max 100000\n"}, SEEN),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/job/cpu.max": "9900000 100000\n"}, SEEN),
        # The limit of a group above, and of the mount itself: in a container the path is the host's.
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/../../host\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/unified/pod/cpu.max": "100000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000\n",
            },
            SEEN,
        ),
    ],
)
def test_processors_are_those_of_the_control_groups(files, expected, tmp_path):
    assert processors(written(tmp_path, files)) == expected


def test_processors_are_those_of_the_affinity():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert processors() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_memory_is_that_of_the_control_groups(tmp_path):
    files = {"proc/meminfo": "MemTotal:       16000000 kB\nMemFree: 1 kB\n", "proc/self/cgroup": V2}
    assert memory_limit(tmp_path / "nowhere") is None
    assert memory_limit(written(tmp_path, files)) == 16000000 * 1024
    assert memory_limit(written(tmp_path, {"sys/fs/cgroup/pod/job/memory.max": "max\n"})) == 16000000 * 1024
    assert memory_limit(written(tmp_path, {"sys/fs/cgroup/pod/memory.max": "4000000000\n"})) == 4_000_000_000
    v1 = {"proc/self/cgroup": V1, "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": "1000000\n"}
    assert memory_limit(written(tmp_path, v1)) == 1_000_000


def test_shared_memory(tmp_path):
    assert shared_memory(tmp_path) > 0
    assert shared_memory(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None), ("", []), ("-1", []), ("none", []), ("void", []), ("NoDevFiles", []), (" ", []), ("-1,0", []),
        ("0", ["0"]), ("0,1", ["0", "1"]), ("1, 0", ["1", "0"]), ("0,-1,1", ["0"]),
        ("GPU-8932f937-d72c", ["GPU-8932f937-d72c"]), ("MIG-1,MIG-2", ["MIG-1", "MIG-2"]), ("nonsense", []),
    ],
)  # fmt: skip
def test_the_gpus_that_are_left_visible(text, expected, tmp_path):
    environ = {} if text is None else {"CUDA_VISIBLE_DEVICES": text}
    assert visible_devices(environ) == expected
    assert has_gpu(tmp_path, environ) == bool(expected)
    written(tmp_path, {"dev/nvidia0": "", "dev/nvidiactl": ""})
    assert gpu_files(tmp_path) == ["/dev/nvidia0"]
    assert has_gpu(tmp_path, environ) == (expected != [])


def test_the_version_of_the_driver(tmp_path):
    assert driver_version(tmp_path) is None
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build\nGCC version: 12.2.0\n"
    assert driver_version(written(tmp_path, {"proc/driver/nvidia/version": text})) == "580.82.07"
    text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"
    assert driver_version(written(tmp_path, {"proc/driver/nvidia/version": text})) == "535.183.01"


def test_a_gpu_of_windows(tmp_path):
    written(tmp_path, {"dev/dxg": ""})
    assert not has_gpu(tmp_path, {})
    written(tmp_path, {"usr/lib/wsl/lib/libcuda.so.1": ""})
    assert has_gpu(tmp_path, {})
