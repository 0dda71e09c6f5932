"""Runs of a sweep as processes: one on each device at a time, as long as there is memory; a signal stops and saves them all."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from systems.sweep_plan import Run, command, record, state
from utils.errors import UserError
from utils.memory import GIB, available

log = logging.getLogger("neus")
PROGRAM = (sys.executable, str(Path(__file__).resolve().parent.parent / "run.py"))
OUTPUT = "output.txt"  # in a run folder: what its processes print
LOOK = 0.1  # seconds between looks at the processes
PATIENCE = 600.0  # seconds that a stopped run may take to save


@dataclass(frozen=True)
class Slot:
    """A place for one process."""

    device: str  # cpu, cuda:N
    threads: int  # CPU threads; 0: all


@dataclass
class Child:
    run: Run
    doing: str  # the state that its command ends
    process: subprocess.Popen
    lock: IO


@dataclass
class Outcome:
    """Runs by how they ended."""

    finished: list[Run] = field(default_factory=list)
    failed: list[tuple[Run, str]] = field(default_factory=list)  # with the reason
    stopped: list[Run] = field(default_factory=list)  # by a signal, or not begun because of it
    signal: int = 0


class Pool:
    """Brings runs to their end; one that fails does not keep the others."""

    def __init__(self, slots: Sequence[Slot], memory: float, program: Sequence[str] = PROGRAM, free: Callable[[], int | None] = available):
        """memory: GiB that a run takes. free: bytes that are left, None where that is unknown."""
        self.slots, self.memory, self.program, self.free = list(slots), memory * GIB, list(program), free
        self.going: dict[int, Child] = {}  # by the place of the slot
        self.waiting: deque[Run] = deque()
        self.outcome = Outcome()
        self.said = False  # that memory is waited for

    def work(self, runs: Sequence[Run]) -> Outcome:
        """Until all have ended, or a signal has stopped them."""
        self.waiting = deque(runs)
        with self._signals():
            while self.waiting or self.going:
                for place, slot in enumerate(self.slots):
                    if place not in self.going and self.waiting and self._room():
                        self._begin(place, slot, self.waiting.popleft())
                time.sleep(LOOK)
                for place in list(self.going):
                    self._look(place)
        return self.outcome

    def _room(self) -> bool:
        """Whether memory is left for one more, besides what those that go have still to take. The first always starts."""
        free = self.free()
        if not self.going or free is None:
            return True
        owed = sum(max(0.0, self.memory - resident(child.process.pid)) for child in self.going.values())
        enough = free - owed >= self.memory
        if not enough and not self.said:
            message = "waiting for memory: %.1f GiB are free, %.1f of them for the runs that go on, and one takes %.1f (--memory)"
            log.info(message, free / GIB, owed / GIB, self.memory / GIB)
        self.said = not enough
        return enough

    def _begin(self, place: int, slot: Slot, run: Run, before: str = "") -> None:
        """Start what is left of a run; before: the state that its last process should have ended."""
        try:
            lock = locked(run.folder)
        except BlockingIOError:
            return self._fail(run, f"another process is at work in {run.folder}")
        try:
            now = state(run)
            if now == before:
                raise UserError(f"the run is still '{now}' after a process that ended well; see {run.folder / OUTPUT}")
            words = command(run, now, slot.device, slot.threads)
            if not words:
                log.info("finished: %s -> %s", run.label, run.folder)
                self.outcome.finished.append(run)
                return lock.close()
            record(run)
            with open(run.folder / OUTPUT, "ab") as output:
                process = subprocess.Popen(
                    [*self.program, *words], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    start_new_session=True, pass_fds=[lock.fileno()],
                )  # fmt: skip
        except (UserError, OSError) as error:
            lock.close()
            return self._fail(run, str(error))
        log.info("%s: %s on %s (process %d)", {"new": "start", "tested": "judge"}.get(now, "go on"), run.label, slot.device, process.pid)
        self.going[place] = Child(run, now, process, lock)
        if self.outcome.signal:  # it came while the process was being started
            process.terminate()

    def _look(self, place: int) -> None:
        child = self.going[place]
        code = child.process.poll()
        if code is None:
            return
        del self.going[place]
        child.lock.close()
        if self.outcome.signal:
            self.outcome.stopped.append(child.run)
        elif code == 0:
            self._begin(place, self.slots[place], child.run, child.doing)
        else:
            self._fail(child.run, last_words(child.run.folder / OUTPUT, code))

    def _fail(self, run: Run, reason: str) -> None:
        log.error("failed: %s: %s", run.label, reason)
        self.outcome.failed.append((run, reason))

    def stop(self, number: int) -> None:
        """Begin nothing more, and let the processes save and end; a second signal ends them at once."""
        again, self.outcome.signal = bool(self.outcome.signal), number
        self.outcome.stopped += self.waiting
        self.waiting.clear()
        for child in self.going.values():
            child.process.kill() if again else child.process.terminate()

    def end(self, patience: float = PATIENCE) -> None:
        """Stop, and wait until every process has ended; one that takes longer than this many seconds is killed."""
        self.stop(signal.SIGTERM)
        deadline = time.monotonic() + patience
        for child in list(self.going.values()):
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        old = {number: signal.signal(number, lambda got, _: self.stop(got)) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            for child in self.going.values():  # an error of ours must not leave them behind
                child.process.terminate()


def resident(pid: int) -> int:
    """Bytes of memory that a process holds; 0 where that is unknown."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def locked(folder: Path) -> IO:
    """A lock on a run folder, held as long as this file is open here or in a process that inherited it.

    Raises BlockingIOError where another process holds it. So no two trainings write into one folder, also after a sweep was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / "lock", "a")  # noqa: SIM115
    try:
        import fcntl
    except ImportError:  # not Unix
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    return file


def last_words(output: Path, code: int) -> str:
    """Why a process ended with this code, as far as what it printed tells."""
    how = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
    try:
        with open(output, "rb") as file:
            file.seek(max(0, output.stat().st_size - 8192))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    told = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "it printed nothing")
    return f"{how}: {told.removeprefix('error: ')[:300]} (all of it: {output})"


def slots(device: str, jobs: int | None, threads: int, cards: int) -> list[Slot]:
    """Places for processes: the cards there are, one process each, or `jobs` (1) shares of the CPU.

    device: trainer.device. threads: trainer.threads, 0 to divide the cores. Raises UserError.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device == "cuda" and not cards:
        raise UserError("trainer.device=cuda, but PyTorch sees no CUDA device; install a CUDA build of torch and a driver, or set cpu")
    if device.startswith("cuda:"):
        devices = [device]
    elif device == "cpu" or not cards:
        devices = ["cpu"] * (jobs or 1)
    else:
        devices = [f"cuda:{i}" for i in range(cards)]
    if jobs and jobs > len(devices):
        log.warning("--jobs %d: a CUDA card trains one scene at a time, and there are %d", jobs, len(devices))
    devices = devices[: jobs or None]
    return [Slot(name, threads or max(1, cores // len(devices))) for name in devices]
