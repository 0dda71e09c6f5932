"""A box for one case: scene/ and outputs/ for the program, and around them what it must leave as it is; its run in a forked child."""

import contextlib
import faulthandler
import hashlib
import json
import math
import os
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils.errors import NO_MEMORY

MEMORY = 2 << 30  # bytes above those at the start
LIMIT = 20.0  # seconds
LONGEST = 2000  # characters of an error
OWN = ("scene", "outputs", "output.txt")  # what the program may write to; photographs and cameras in scene/ must stay


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int  # exit code; negative: the signal that killed it
    text: str  # everything printed
    late: bool  # killed at the limit
    grown: int  # bytes of memory above the start


def make_box(folder: Path) -> Path:
    """The folders of a box, with the tree that nobody may touch."""
    for name in ("scene", "outputs", "tmp", "cwd", "sentinel/deep"):
        (folder / name).mkdir(parents=True)
    for name in ("sentinel/a.txt", "sentinel/deep/b.txt", "cwd/c.txt"):
        (folder / name).write_text(f"{name} is not yours\n" * 20)
    os.symlink("a.txt", folder / "sentinel/link")
    return folder


def _mark(path: Path) -> str:
    """Kind, mode and content of one entry."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return "link " + os.readlink(path)
    if stat.S_ISREG(found.st_mode):
        return f"file {found.st_mode:o} " + hashlib.sha256(path.read_bytes()).hexdigest()
    return f"other {found.st_mode:o}"


def picture(folder: Path) -> dict[str, str]:
    """{path: `_mark`} of everything below a folder; links are not followed."""
    return {str(Path(top, name)): _mark(Path(top, name)) for top, dirs, files in os.walk(folder) for name in (*dirs, *files)}


def watched(box: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(everything that must stay as it is, the scene, to which files may be added)."""
    outside: dict[str, str] = {str(p): _mark(p) for p in box.iterdir() if p.name not in OWN}
    for path in box.iterdir():
        if path.name not in OWN and path.is_dir():
            outside |= picture(path)
    return outside, picture(box / "scene")


def changes(before: dict[str, str], after: dict[str, str], box: Path, may_add: bool = False) -> list[str]:
    after = {
        p: mark for p, mark in after.items() if "/tmp/wp_pch" not in p and not p.startswith(str(box / "cwd/outputs"))
    }  # Warp's, at its end; ours
    gone = [f"removed {Path(p).relative_to(box)}" for p in before if p not in after]
    new = [] if may_add else [f"made {Path(p).relative_to(box)}" for p in after if p not in before]
    return gone + new + [f"changed {Path(p).relative_to(box)}" for p in before if p in after and before[p] != after[p]]


# ---- the child ----


def _sizes() -> tuple[int, int]:
    """(virtual, resident) bytes of this process."""
    pages = Path("/proc/self/statm").read_text().split()
    return int(pages[0]) * resource.getpagesize(), int(pages[1]) * resource.getpagesize()


def _child(main: Callable[[list[str]], int], words: list[str], box: Path) -> int:
    log = os.open(box / "output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))  # noqa: SIM115 - not those of a test's capture
    faulthandler.register(signal.SIGUSR1, file=log, all_threads=True)
    os.chdir(box / "cwd")
    os.environ["TMPDIR"] = str(box / "tmp")
    tempfile.tempdir = None
    limit = _sizes()[0] + MEMORY + (512 << 20)  # addresses, which a thread's stack takes too; what is used is measured
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        return main(words)
    except BaseException:
        traceback.print_exc()
        return 70


def run_in_child(main: Callable[[list[str]], int], words: list[str], box: Path, limit: float = LIMIT) -> Ended:
    """main(words) in a fork with the box's cwd/ as its folder; killed after `limit` seconds, with the stacks in its output.

    Where it computes all the while, the seconds of the processor count, which others may use too.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    start = _sizes()[1]
    pid = os.fork()
    if pid == 0:
        code = 70
        with contextlib.suppress(BaseException):
            os.setpgid(0, 0)
            code = _child(main, words, box)
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 255)
    began, late = time.monotonic(), False
    while True:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            break
        waited = time.monotonic() - began
        if waited > limit and (waited > 15 * limit or _idle(pid) or _seconds(pid) > limit):
            late = True
            os.kill(pid, signal.SIGUSR1)
            time.sleep(0.5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            done, status, used = os.wait4(pid, 0)
            break
        time.sleep(0.005)
    text = (box / "output.txt").read_text(errors="backslashreplace") if (box / "output.txt").exists() else ""
    return Ended(os.waitstatus_to_exitcode(status), text, late, used.ru_maxrss * 1024 - start)


def _seconds(pid: int) -> float:
    """CPU seconds that a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _idle(pid: int) -> bool:
    """Whether a process and those that it started wait; one that others keep from computing on a busy machine does not hang."""
    for _ in range(10):
        if "R" in _states(pid) or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":  # Z: it has just ended
            return False
        time.sleep(0.1)
    return True


def _states(group: int) -> str:
    """A letter for each thread of the processes of a group."""
    states = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((process / "stat").read_text().rpartition(")")[2].split()[2]) == group:
                states += [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in (process / "task").iterdir()]
    return "".join(states)


# ---- the judgement ----


def _numbers(run: Path) -> list[str]:
    """What is wrong with the losses and the metrics that a run has written."""
    rows = [json.loads(line) for path in run.rglob("metrics.jsonl") for line in path.read_text().splitlines()[-2:] if line.startswith("{")]
    bad = [f"step {row.get('step')}: loss {row.get('loss')}" for row in rows if not math.isfinite(row.get("loss", 0.0))]
    for path in run.rglob("test/metrics.json"):
        psnr = json.loads(path.read_text()).get("psnr", 0.0)
        bad += [] if psnr is None or math.isfinite(psnr) else [f"psnr {psnr}"]
    return bad[:1]


def judge(ended: Ended, box: Path, before: tuple[dict[str, str], dict[str, str]], figures: bool = True) -> list[str]:
    """What the case shows to be wrong with the program; nothing, where it did its work or said in one line why not.

    figures: whether the figures of run folders are the program's own, and no part of what was spoilt.
    """
    errors = [line for line in ended.text.splitlines() if line.startswith("error: ")]
    last = ([line for line in ended.text.splitlines() if line.strip()] or [""])[-1]
    problems = []
    if ended.late:
        problems.append("hangs")
    elif ended.code < 0:
        problems.append(f"killed by signal {-ended.code}")
    if "Traceback (most recent call last)" in ended.text:
        problems.append("traceback: " + last[:200])
    if "--- Logging error ---" in ended.text:
        problems.append("a line cannot be printed")
    if ended.code > 0 and not ended.late and "Traceback" not in ended.text:
        if ended.code != 2 or len(errors) != 1 or last != errors[0]:
            problems.append(f"exit code {ended.code} with {len(errors)} errors, last line: {last[:120]}")
        elif len(errors[0]) > LONGEST:
            problems.append(f"an error of {len(errors[0])} characters")
    if ended.grown > MEMORY and f"error: {NO_MEMORY}" not in ended.text:  # refused at the limit, by its name
        problems.append(f"{ended.grown / 2**30:.1f} GiB of memory")
    if ended.code == 0 and figures:
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):  # of a file that the case has spoilt
            problems += _numbers(box / "outputs")
    outside, scene = watched(box)
    wrong = [*changes(before[0], outside, box), *changes(before[1], scene, box, may_add=True)]
    return problems + wrong[:3]


def clear(box: Path) -> None:
    shutil.rmtree(box, ignore_errors=True)
