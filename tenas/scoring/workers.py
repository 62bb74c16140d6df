"""Worker processes for measurements of any number of tasks: started once, with one thread each, controlled by messages.

Each worker has its own pipe and shares no lock with the others, so a worker that is killed or stopped does not block them.
"""

import ctypes
import gc
import multiprocessing
import os
import pickle
import signal
import socket
import struct
import sys
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tenas.boundary import Place, end, note_place, place_of
from tenas.errors import TenasError, ended_by
from tenas.progress import one_line, remark
from tenas.references import check_seen, seen_files
from tenas.scoring.checkpoint import Result
from tenas.scoring.subjects import Measurement

if TYPE_CHECKING:
    from tenas.scoring.score import Task

# Seconds between checks of silent workers, and until a stopped one (SIGSTOP) is replaced.
LOOK_SECONDS = 1.0
STOPPED_SECONDS = 20
# A process that is ready reads its messages at once.
SEND_SECONDS = 60
# Retries of a measurement whose worker has died.
AGAIN = 1
READY = "ready"
PR_SET_PDEATHSIG = 1


def _end_with_parent(parent: int) -> None:
    """Ask the kernel to end this process when its parent ends, even by SIGKILL. Linux only.

    Elsewhere, and before this call, a worker ends at its next message, when the parent's end of the pipe is closed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have ended before the call, which would go unnoticed.
    if os.getppid() != parent:
        os._exit(1)


def _work(connection: Connection, parent: int) -> None:
    """Main function of a worker: take the measurements received through ``connection`` until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C for both
    _end_with_parent(parent)
    gc.disable()  # imports leave no garbage
    import torch

    from tenas.scoring.score import Scorer

    warnings.formatwarning = one_line
    torch.set_num_threads(1)
    gc.freeze()  # as collector_spared, for as long as the process lives
    gc.enable()
    scorer: Scorer | None = None
    images: np.ndarray | None = None
    with suppress(EOFError, OSError):  # the parent is gone
        connection.send_bytes(pickle.dumps(READY))
        while True:
            message = connection.recv_bytes()
            try:
                kind, content = pickle.loads(message)
                if kind == "images":
                    images = content
                    continue
                if kind == "task":
                    assert images is not None
                    task, card, seen = content
                    scorer = Scorer(task, images, card, "cpu")
                    check_seen(seen)
                    continue
                assert scorer is not None
                answer = pickle.dumps([scorer(measurement) for measurement in content])
            except (SystemExit, GeneratorExit) as error:
                answer = _pickled(ended_by(error))
            except Exception as error:
                answer = _pickled(error)
            connection.send_bytes(answer)
    end(0)


class _Failure(NamedTuple):
    """An error of a worker, and its place, which a pickle does not keep."""

    error: Exception
    place: Place


def _pickled(error: Exception) -> bytes:
    """Pickle an error for the parent: with this process's traceback unless it is a TenasError; as text if it has no pickle."""
    place = place_of(error)
    if not isinstance(error, TenasError):
        error.add_note(f"In a worker process:\n{traceback.format_exc()}")
    try:
        found = pickle.dumps(_Failure(error, place))
        pickle.loads(found)  # some errors can be pickled, but not unpickled
        return found
    except Exception:
        return pickle.dumps(_Failure(RuntimeError(f"{type(error).__name__}: {error}"), place))


class _Worker:
    """A worker process and its pipe. ``doing``: measurements sent but not answered."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        with socket.socket(fileno=os.dup(self.connection.fileno())) as pipe:
            # Non-blocking for both ends, which share the open file: a stopped worker must not block this process.
            pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_SECONDS, 0))
        self.process = context.Process(target=_work, args=(other, os.getpid()), name="tenas worker")
        # Ctrl-C reaches the whole process group. A worker inherits the blocked signal until it ignores it. The tracker starts
        # first, as its start unblocks the signal.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        other.close()
        self.pid = self.process.pid
        self.ready = False
        self.doing: list[Measurement] = []
        self._images: np.ndarray | None = None
        self._task: Task | None = None
        self._seen_stopped = 0

    def give(self, task: "Task", images: np.ndarray, card: Mapping[str, Any], group: list[Measurement]) -> bool:
        """Send measurements, preceded by changes of the task since the last ones. Returns whether the process accepts them."""
        self.doing = group
        try:
            if self._images is not images:
                self._send("images", images)
                self._images = images
            if self._task is not task:
                self._send("task", (task, card, seen_files()))
                self._task = task
            self._send("measure", group)
        except OSError:
            return False
        return True

    def _send(self, kind: str, content: object) -> None:
        self.connection.send_bytes(pickle.dumps((kind, content), protocol=pickle.HIGHEST_PROTOCOL))

    def answer(self) -> Any:
        """Receive an answer of the process; None if it has ended."""
        try:
            return pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return None

    def is_given_up(self) -> bool:
        """Whether the process has been stopped for STOPPED_SECONDS. Called every LOOK_SECONDS.

        Calls are counted, not time: after Ctrl-Z and fg all processes have been stopped, for as long as that took.
        """
        self._seen_stopped = self._seen_stopped + 1 if _is_stopped(self.pid) else 0
        return self._seen_stopped * LOOK_SECONDS >= STOPPED_SECONDS

    def end(self, patience: float) -> str:
        """End the process, by SIGKILL after some seconds. Returns how it ended, in words."""
        self.connection.close()
        self.process.join(patience)
        self.process.kill()
        self.process.join()
        code = self.process.exitcode or 0
        return f"by signal {-code}" if code < 0 else f"with exit code {code}"


def _is_stopped(pid: int | None) -> bool:
    """Whether a process is stopped by a signal. Linux only: elsewhere False."""
    try:
        # The name, in parentheses, may contain anything.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False


class Workers:
    """Pool of ``count`` worker processes, started on first use, ended with the block.

    A worker that dies, or is stopped for long, is replaced, and its measurements are taken again, once.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        for worker in self._workers:
            worker.connection.close()
        while self._workers:
            worker = self._workers.pop()
            worker.end(0 if worker.doing else 0.5)

    def measure(
        self,
        task: "Task",
        images: np.ndarray,
        card: Mapping[str, Any],
        groups: Iterable[Sequence[Measurement]],
        keep: Callable[[Sequence[Result]], object],
    ) -> None:
        """Measure groups of measurements, calling ``keep`` with the results of each as they come.

        Raises TenasError if the worker of a measurement dies twice, and whatever a measurement raises.
        """
        waiting: deque[list[Measurement]] = deque(map(list, groups))
        died: Counter[Measurement | None] = Counter()
        try:
            looked = time.monotonic()
            while waiting or any(worker.doing for worker in self._workers):
                while len(self._workers) < min(self.count, len(waiting) + sum(bool(worker.doing) for worker in self._workers)):
                    self._workers.append(_Worker())
                lost = [
                    worker
                    for worker in self._workers
                    if worker.ready and not worker.doing and waiting and not worker.give(task, images, card, waiting.popleft())
                ]
                lost += self._answered(keep)
                if time.monotonic() - looked >= LOOK_SECONDS:
                    looked = time.monotonic()
                    lost += [worker for worker in self._workers if worker not in lost and worker.is_given_up()]
                for worker in dict.fromkeys(lost):
                    self._bury(worker, waiting, died)
        except BaseException:
            # Results still to come have no receiver any more.
            self.close()
            raise

    def _answered(self, keep: Callable[[Sequence[Result]], object]) -> list[_Worker]:
        """Wait for answers and keep them. Returns the workers that have ended."""
        by_pipe = {worker.connection: worker for worker in self._workers}
        ended = []
        for pipe in wait(list(by_pipe), LOOK_SECONDS):
            assert isinstance(pipe, Connection)
            worker = by_pipe[pipe]
            answer = worker.answer()
            if answer is None:
                ended.append(worker)
            elif answer == READY:
                worker.ready = True
            elif isinstance(answer, _Failure):
                note_place(answer.error, answer.place)
                raise answer.error
            else:
                worker.doing = []
                keep(answer)
        return ended

    def _bury(self, worker: _Worker, waiting: deque[list[Measurement]], died: Counter[Measurement | None]) -> None:
        """Drop a worker, and queue its measurements again. Raises TenasError if they were queued again before."""
        self._workers.remove(worker)
        stopped = worker.is_given_up()
        how = worker.end(0 if stopped else 1)
        if stopped:
            how = f"after it was stopped for {STOPPED_SECONDS} s"
        # It ended before it had measured anything: let the next one try, once.
        lost: list[Measurement | None] = [*worker.doing] if worker.ready else [None]
        died.update(lost)
        if any(died[measurement] > AGAIN for measurement in lost):
            raise TenasError(
                "A worker process was killed twice, probably for lack of memory: use fewer 'threads', or a smaller 'batch' (the "
                f"second one ended {how}). Finished measurements are kept."
            )
        if worker.doing:
            # One by one: the fault may be with one of them.
            waiting.extendleft([measurement] for measurement in reversed(worker.doing))
        remark(f"worker process {worker.pid} has ended {how} and is replaced.")
