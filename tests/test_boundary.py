"""What a command says when something goes wrong, and its exit status: real processes, real signals, real file systems."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from helpers.engine import TINY, files, prepared, refused

from tenas.boundary import FAULT, LATER, REFUSED, STOPPED, bounded, described
from tenas.cli import main
from tenas.errors import TenasError
from tenas.files import read_csv, read_json, write_text

DIGITS = json.dumps({"source": "digits", "images": 20})
QUERY = ("benchmark", "query", "3")


def run(*arguments: object, shell: str = "", **more: object) -> subprocess.CompletedProcess:
    """Run a command. ``shell``: what stands behind it on the line of a shell."""
    command = [sys.executable, "-m", "tenas.cli", *map(str, arguments)]
    if shell:
        command = ["bash", "-c", f'set -o pipefail; "$@" {shell}', "bash", *command]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


def sentence(done: subprocess.CompletedProcess, status: int = REFUSED) -> str:
    """The one line on stderr of a command that ended with a status."""
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("tenas: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith(".\n")
    return done.stderr


# --- places that cannot be written


PLACES = ["file/x.json", "file/x/y.json", "x" * 300, "/proc/x/y.json", "/dev/null", "/dev/full", "/dev/stdout"]


@pytest.mark.parametrize(
    ("command", "place"),
    [*((QUERY, place) for place in (*PLACES, "/proc/x.json", ".", "folder")),
     *((("prepare", DIGITS), place) for place in (*PLACES, "file"))],
)  # fmt: skip
def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch, capsys, command, place):
    """A file, something below a file, a folder, a device; nothing half-written stays."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("folder").mkdir()
    before = {device: os.lstat(device).st_mode for device in ("/dev/null", "/dev/full", "/dev/stdout")}
    assert place[:7] in refused(capsys, *command, "--out", place)
    assert {device: os.lstat(device).st_mode for device in before} == before
    assert files(tmp_path) == ["file"]
    assert Path("file").read_text() == "mine"


def test_a_file_that_cannot_grow_leaves_nothing_behind(tmp_path):
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    done = run(*QUERY, "--out", "x.json", cwd=tmp_path, preexec_fn=small)
    assert "The path x.json cannot be written: File too large" in sentence(done)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a file system of 64 KB")
def test_a_full_disk_is_for_later(tmp_path, capsys):
    """What is written whole is there or not, also where NumPy tells of the failure in words of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True, check=False).returncode:
        pytest.skip("this container may not mount")
    try:
        (folder / "filler").write_bytes(b"0" * (60 << 10))
        for command in (QUERY, ("prepare", DIGITS)):
            out = folder / command[0]
            assert main([*command, "--out", str(out)]) == LATER
            said = capsys.readouterr().err
            assert said.startswith(f"tenas: The path {out}")
            assert said.count("\n") == 1
        assert files(folder) == ["filler"]
    finally:
        subprocess.run(["umount", folder], check=True)


def test_an_error_of_the_system_keeps_its_cause_in_python(tmp_path):
    with pytest.raises(TenasError, match="cannot be written: Is a directory") as error:
        write_text(tmp_path, "text")
    assert isinstance(error.value.__cause__, IsADirectoryError)


def test_a_table_or_a_record_with_odd_signs_is_a_sentence(tmp_path):
    """One bit makes a quotation mark, and half of the file one field."""
    path = tmp_path / "x.csv"
    for text in ('a,b\n"1,2\n3,4\n', "a,b\n" + "1" * 200_000 + ",2\n", "a,b\n1", "\n", ""):
        path.write_text(text, encoding="utf-8", newline="")
        with pytest.raises(TenasError, match=r"The table .*x\.csv (is damaged|is cut off|has the columns)"):
            read_csv(path, ("a", "b"), "table")
    path.write_text("[" * 100_000)
    with pytest.raises(TenasError, match="is not valid JSON"):
        read_json(path, "record")


# --- what a command says, and to whom


@pytest.mark.parametrize(
    ("arguments", "shell", "status", "said"),
    [
        (QUERY, "| true", 0, ""),
        (QUERY, "2>&1 | true", 0, ""),
        (("--help",), "| true", 0, ""),
        (QUERY, ">&- 2>&-", 0, ""),
        (QUERY, "> /dev/full", LATER, "No space left on device"),
        ((*QUERY, "--index", "absent.csv"), "2> /dev/full", REFUSED, ""),
    ],
    ids=str,
)
def test_output_that_nobody_reads(arguments, shell, status, said):
    """The exit status is the command's: who reads only the head has not stopped it."""
    done = run(*arguments, shell=shell)
    assert (done.returncode, said in done.stderr, done.stderr.count("\n")) == (status, True, int(bool(said))), done.stderr


def test_texts_that_the_terminal_has_no_letters_for():
    plain = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    assert "There is no benchmark index" in sentence(run(*QUERY, "--index", "ä.csv", env=plain))
    # Records name files as texts.
    assert "'\\udcff.csv' is not text in UTF-8" in sentence(run(*QUERY, "--index", "\udcff.csv", env=plain))


def test_a_traceback_is_printed_when_it_is_asked_for(capsys, monkeypatch):
    command = [*QUERY, "--index", "absent.csv"]
    plain = refused(capsys, *command)
    for arguments, value in ((["--debug", *command], "0"), ([*command, "--debug"], ""), (command, "1")):
        monkeypatch.setenv("TENAS_DEBUG", value)
        assert main(arguments) == REFUSED
        said = capsys.readouterr().err
        assert said.startswith("Traceback (most recent call last)")
        assert "FileNotFoundError" in said  # the cause
        assert said.endswith(plain)


def refuse(cause: BaseException) -> TenasError:
    error = TenasError("A sentence.")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (TenasError("A sentence."), REFUSED, "A sentence."),
        (refuse(OSError(28, "No space left on device")), LATER, "A sentence."),
        (refuse(refuse(TimeoutError("timed out"))), LATER, "A sentence."),
        (FileNotFoundError(2, "No such file or directory", "x"), REFUSED, "The path x cannot be read or written: No such"),
        (OSError(28, "No space left on device", "x"), LATER, "No space left on device. Make room there"),
        (OSError("4096 requested and 0 written"), LATER, "4096 requested and 0 written."),
        (ConnectionResetError(104, "Connection reset by peer"), LATER, "Connection reset by peer."),
        (MemoryError(), LATER, "There is not enough memory"),
        (RuntimeError("[alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"), LATER, "not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), LATER, "not enough memory"),
        (KeyboardInterrupt(), STOPPED, "Stopped. The same command goes on where this one was."),
        (ModuleNotFoundError("No module named 'onnx'"), REFUSED, "No module named 'onnx'. Install it"),
        (KeyError("x"), FAULT, "This is a fault of tenas (KeyError in an unknown place: 'x'). Please report it"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_said_of_an_error(capsys, error, status, words):
    text, found = described(error)
    assert (found, words in text) == (status, True), text
    assert "\n" not in text
    assert text.endswith(".")
    if isinstance(error, Exception) and status != FAULT:

        def fail() -> int:
            raise error

        assert bounded(fail) == status
        assert capsys.readouterr().err == f"tenas: {text}\n"


def test_a_fault_names_the_line_of_the_package_that_it_is_in(capsys):
    assert bounded(lambda: len(write_text)) == FAULT
    assert "TypeError in" in capsys.readouterr().err
    assert bounded(lambda: write_text(Path(), None)) == REFUSED


def test_a_warning_is_one_line():
    def warn() -> int:
        assert warnings.formatwarning("two\nlines", UserWarning, "x.py", 1) == "tenas: warning: two lines\n"
        assert warnings.formatwarning("old", FutureWarning, "x.py", 1) == "tenas: warning: FutureWarning: old\n"
        return 0

    before = warnings.formatwarning
    assert bounded(warn) == 0
    assert warnings.formatwarning is before


# --- Ctrl-C


def interrupted(command: list[str], cwd: Path, seen: str) -> tuple[int, str]:
    """Status and stderr of a command that got the SIGINT of a terminal, as all that it has started, once a file was there."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}

    def as_on_a_terminal() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which is ignored in what a shell has started in the background

    process = subprocess.Popen(command, cwd=cwd, start_new_session=True, text=True, preexec_fn=as_on_a_terminal, **streams)
    try:
        started = time.monotonic()
        # Not empty: the first measurements are in it.
        while not any(path.stat().st_size > 1000 for path in cwd.glob(seen)):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() - started < 200
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
        return process.returncode, said
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_ctrl_c_is_one_sentence_and_the_same_command_goes_on(tmp_path):
    """With worker processes, which a terminal's Ctrl-C reaches too."""
    data = prepared(tmp_path, tmp_path / "mine")
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = [sys.executable, "-m", "tenas.cli", "search", "--data", str(data), "--preset", "tiny.yaml", "--threads", "2"]
    command += ["--set", "measures.ntk_condition_number.repeats=20", "prune=3", "--out", "run"]
    status, said = interrupted(command, tmp_path, "run/seed0/round1/scores/.1.partial")
    assert status == STOPPED
    told = [line for line in said.splitlines() if "measurements" not in line]
    assert told == ["tenas: Stopped. The same command goes on where this one was."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/seed0/round1/scores/1.json").read_text())["resumed"] > 0


def test_pools_of_threads_that_nobody_has_closed_do_not_keep_a_process():
    """As those of torch.compile, and of a measure at the top of its module."""
    code = (
        "from concurrent.futures import ThreadPoolExecutor; from tenas.boundary import end\n"
        "pool = ThreadPoolExecutor(1); pool.submit(print, 'done').result(); end(0)"
    )
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (found.stdout, found.returncode) == ("done\n", 0)


OWN = """
from tenas import Measure

def measure(network, images):
    {body}

MEASURE = Measure("mine", measure)
"""


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("raise SystemExit(0)", r"Code that this command runs ended it by SystemExit\(0\)"),
        ("next(iter([]))", "StopIteration"),
        ("return True", "The measure mine gave a bool, not a number"),
    ],
)
def test_code_of_ones_own_does_not_end_a_command_unseen(tmp_path, monkeypatch, capsys, body, sentence):
    monkeypatch.chdir(tmp_path)
    data = prepared(tmp_path, tmp_path / "mine")
    (tmp_path / "own.py").write_text(OWN.format(body=body))
    (tmp_path / "tiny.yaml").write_text(TINY)
    once = "{own.py:MEASURE: {repeats: 1, batch: 4, channels: 1, cells: 1, weights: pytorch, redraw: true}}"
    command = ["search", "--data", data, "--preset", "tiny.yaml", "--set", f"measures={once}", "change=absolute", "--out", "run"]
    assert main(list(map(str, command))) != 0
    assert re.search(sentence, capsys.readouterr().err)
    assert not (tmp_path / "run/seed0/genotype.json").exists()
    assert not list(tmp_path.glob("run/seed0/round1/scores/*.csv"))


def test_a_process_ends_as_python_ends_it():
    """Threads that aren't daemons are waited for, what is registered runs, buffers are written, the status is the one given."""
    code = (
        "import atexit, threading, time; from tenas.boundary import end; atexit.register(print, 'registered')\n"
        "threading.Thread(target=lambda: (time.sleep(0.3), print('thread'))).start()\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "print('said')\n"
        "end(3)"
    )
    begun = time.monotonic()
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    assert (found.stdout, found.returncode) == ("said\nthread\nregistered\n", 3)
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    ("variable", "sentence"),
    [
        ("NUMBA_DISABLE_JIT=1", "NUMBA_DISABLE_JIT is set in the environment, and the kernels are compiled by Numba: unset it."),
        ("NUMBA_NUM_THREADS=0", "The library numba cannot be imported (ValueError: Number of threads specified must be > 0)"),
        ("TORCH_LOGS=nothing", "The library torch cannot be imported (ValueError: Invalid log settings: nothing"),
    ],
)
def test_a_library_that_the_environment_hinders_is_a_sentence(tmp_path, variable, sentence):
    code = (
        "from tenas.boundary import bounded; import sys; sys.exit(bounded(lambda: __import__('tenas.device', fromlist='x') and "
    )
    code += "__import__('tenas.measures.kernel.compiled.jit', fromlist='x') and 0))"
    name, _, value = variable.partition("=")
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, name: value}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "fault of tenas" not in done.stderr
