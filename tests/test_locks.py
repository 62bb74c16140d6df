"""Locks between real processes: what stands for GPUs here is a name, as the lock neither knows nor asks."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tenas.errors import TenasError
from tenas.locks import lock_folder, take_free

NAMES = ("gpu-a", "gpu-b")

# Takes one, and appends a line to a log when it has it and, unless it is killed, when it is about to give it back.
HOLDER = """
import os, sys, time
from pathlib import Path
from tenas.locks import take_one
folder, log, seconds, names = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4:]
taken = take_one(names, folder, "GPU")
log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.write(log, f"{taken.number} taken {os.getpid()}\\n".encode())
time.sleep(seconds)
os.write(log, f"{taken.number} left {os.getpid()}\\n".encode())
"""


@contextmanager
def holders(folder: Path, count: int, seconds: float) -> Iterator[list[subprocess.Popen]]:
    command = [sys.executable, "-c", HOLDER, folder, folder / "log", str(seconds), *NAMES]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stderr.close()


def events(folder: Path) -> list[tuple[int, str, int]]:
    lines = (folder / "log").read_text().splitlines() if (folder / "log").exists() else []
    return [(int(index), what, int(pid)) for index, what, pid in map(str.split, lines)]


def wait_for(folder: Path, count: int) -> list[tuple[int, str, int]]:
    started = time.monotonic()
    while len(found := events(folder)) < count:
        assert time.monotonic() - started < 60
        time.sleep(0.02)
    return found


def test_each_is_had_by_one_process_at_a_time(tmp_path):
    ours = [take_free(NAMES, tmp_path) for _ in NAMES]
    assert [taken.number for taken in ours] == [0, 1]
    with holders(tmp_path, len(NAMES) + 2, 0.2) as processes:
        for process in processes:
            assert process.stderr.readline() == "tenas: waiting for a GPU: other processes hold all 2.\n"
        assert events(tmp_path) == []
        for taken in ours:
            taken.file.close()
        found = wait_for(tmp_path, 2 * len(processes))
        assert [process.wait() for process in processes] == [0] * len(processes)
    holder: dict[int, int] = {}
    for index, what, pid in found:
        if what == "taken":
            assert index not in holder
            holder[index] = pid
        else:
            assert holder.pop(index) == pid
    assert len({pid for _, _, pid in found}) == len(processes)
    assert {index for index, _, _ in found} == {0, 1}


def test_what_a_killed_process_had_is_free(tmp_path):
    with holders(tmp_path, len(NAMES), 600) as processes:
        (first, _, pid), (second, _, _) = wait_for(tmp_path, 2)
        assert {first, second} == {0, 1}
        assert take_free(NAMES, tmp_path) is None
        (victim,) = [process for process in processes if process.pid == pid]
        victim.kill()
        victim.wait()
        taken = take_free(NAMES, tmp_path)
        assert taken.number == first
        assert take_free(NAMES, tmp_path) is None
        taken.file.close()
        assert take_free(NAMES, tmp_path).number == first


def test_the_folder_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = lock_folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert lock_folder() == folder
    if os.getuid() == 0:
        os.chown(folder, 12345, 12345)
        with pytest.raises(TenasError, match="belongs to another user"):
            lock_folder()
