"""Locks between real processes, and what killed ones leave. What stands for GPUs here is a name: the lock does not ask."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tenas.errors import TenasError
from tenas.files import clear_leftovers, scratch_folder, whole
from tenas.locks import alone, lock_folder, take_free

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
            assert process.stderr.readline() == "tenas: note: waiting for a GPU: other processes hold all 2.\n"
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


# --- what is being written

# Writes alone in a folder for some seconds, and appends a line to a log when it begins and, unless it is killed, when it ends.
WRITER = """
import os, sys, time
from pathlib import Path
from tenas.locks import alone
folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
with alone(folder, "part") as waited:
    log = os.open(folder.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(log, f"{int(waited)} taken {os.getpid()}\\n".encode())
    if len(sys.argv) > 3 and not os.fork():
        os.write(log, f"{os.getpid()} forked {os.getppid()}\\n".encode())
        time.sleep(600)
    time.sleep(seconds)
    os.write(log, f"{int(waited)} left {os.getpid()}\\n".encode())
"""


def writer(folder: Path, seconds: float, *forking: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, folder / "out", str(seconds), *forking]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_second_writer_waits_and_says_for_whom(tmp_path):
    first = writer(tmp_path, 1)
    wait_for(tmp_path, 1)
    others = [writer(tmp_path, 0.1) for _ in range(3)]
    for other in others:
        said = other.stderr.readline()
        assert said.startswith(f"tenas: note: {tmp_path}/out/part is being written by process ")
        assert said.endswith(": waiting for it.\n")
        assert " since " in said
    for process in (first, *others):
        assert process.wait(60) == 0
        process.stderr.close()
    # One after the other, and nothing of them is left.
    found = events(tmp_path)
    assert [what for _, what, _ in found] == ["taken", "left"] * 4
    assert [begun[2] == ended[2] for begun, ended in zip(found[::2], found[1::2], strict=True)] == [True] * 4
    assert [waited for waited, what, _ in found if what == "taken"] == [0, 1, 1, 1]
    assert list((tmp_path / "out").iterdir()) == []


def test_the_lock_of_a_machine_that_has_failed_says_whose_it_is_and_how_to_go_on(tmp_path):
    """As a file system has it that keeps the lock: this process stands for that."""
    path = tmp_path / "out/.part.lock"
    path.parent.mkdir()
    began = time.time() - 3 * 3600 - 12 * 60 - 30
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(began))
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"process 4711 on node3 since {since}\n")
        file.flush()
        waiting = writer(tmp_path, 0)
        assert waiting.stderr.readline() == (
            f"tenas: note: {tmp_path}/out/part is being written by process 4711 on node3 since {since} (3 h 12 min): "
            f"waiting for it. If node3 has failed, remove {path}.\n"
        )
        path.unlink()
        assert waiting.wait(60) == 0
    waiting.stderr.close()


@pytest.mark.parametrize("forking", [(), ("fork",)], ids=["", "with a child that lives on"])
def test_the_lock_of_a_killed_writer_is_nobodys(tmp_path, forking):
    killed = writer(tmp_path, 600, *forking)
    found = wait_for(tmp_path, 1 + len(forking))
    killed.kill()
    killed.wait()
    assert (tmp_path / "out/.part.lock").read_text().startswith(f"process {killed.pid} on ")
    with alone(tmp_path / "out", "part") as waited:
        assert not waited
    for child, what, _ in found:
        if what == "forked":
            os.kill(child, signal.SIGKILL)
    killed.stderr.close()
    assert list((tmp_path / "out").iterdir()) == []


def test_what_an_error_ends_is_free(tmp_path):
    with pytest.raises(ValueError, match="in the block"), alone(tmp_path):
        raise ValueError("in the block")
    with alone(tmp_path) as waited:
        assert not waited


# --- what a killed writer leaves

LEAVING = """
import sys, time
from pathlib import Path
from tenas.files import scratch_folder, whole
with scratch_folder() as folder, whole(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    (folder / "inside").touch()
    print(folder, flush=True)
    time.sleep(600)
"""


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    out, mine = tmp_path / "images.npy", tmp_path / ".images.mine.npy"
    mine.touch()
    command = [sys.executable, "-c", LEAVING, out]
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    scratch = [Path(process.stdout.readline().strip()) for process in processes]
    left = set(tmp_path.glob(".images.*")) - {mine}
    assert len(left) == 2
    processes[0].kill()
    processes[0].wait()
    with whole(out) as temporary, scratch_folder() as folder:
        temporary.write_bytes(b"whole")
        # The other one is still at it.
        assert len(set(tmp_path.glob(".images.*")) - {mine, temporary}) == 1
        assert set(folder.parent.glob("scratch-*")) == {folder, scratch[1]}
    processes[1].kill()
    processes[1].wait()
    clear_leftovers(out)
    with scratch_folder() as folder:
        assert set(folder.parent.glob("scratch-*")) == {folder}
    assert {path for path in tmp_path.iterdir() if path.is_file()} == {out, mine}
    assert out.read_bytes() == b"whole"
    for process in processes:
        process.stdout.close()


def test_scratch_folders_at_the_same_time_are_no_leftovers(tmp_path):
    code = "from tenas.files import scratch_folder\nfor i in range(300):\n    with scratch_folder() as f: (f / 'x').touch()"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(4)]
    assert [process.wait(120) for process in processes] == [0, 0, 0, 0]
    assert not list(tmp_path.rglob("scratch-*"))


def test_writers_at_the_same_time_do_not_take_each_others_files_for_leftovers(tmp_path):
    code = "import sys; from tenas.files import write_text\nfor i in range(300): write_text(sys.argv[1], 'x' * i)"
    processes = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "out.txt"]) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]
    assert (tmp_path / "out.txt").read_text() == "x" * 299
