"""A server that has imported the program and forks a process for each run; the process tells its phases and may be killed in one.

It reads a job as a line of JSON: words of the command line, files for its output and its phases, and a blow or null. A blow is {phase, entry,
calls, delay, signal}: it falls after so many calls of functions in that entry of the phase, and a delay in seconds. Calls are counted, and not
time, so that a busy machine is hit in the same
places. count: whether the phases are told with their numbers of calls. The answer is {"code": ...}, as `subprocess` counts it, when the process has ended.
"""

import functools
import importlib
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Callable

PHASES = ("loading", "training", "validation", "saving", "test", "meshing", "video", "report")


class Phases:
    """Writes when phases begin (+) and end (-), counts calls, and gives the sign for the blow."""

    def __init__(self, path: str, blow: dict | None, strike: Callable[[], None], count: bool = False):
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.blow, self.strike = blow, strike
        self.entries: dict[str, int] = {}
        self.calls, self.count = 0, count

    def _count(self, *_: object) -> None:
        self.calls += 1
        if self.blow and self.calls > self.blow["calls"]:
            sys.setprofile(None)
            self.strike()

    def tell(self, sign: str, phase: str, note: object = "") -> None:
        os.write(self.file, f"{self.calls} {sign} {phase} {note}\n".encode())

    def begin(self, phase: str) -> None:
        if self.count and phase != "loading":  # its millions of calls would take as long as the rest
            sys.setprofile(self._count)
        self.tell("+", phase)
        self.entries[phase] = self.entries.get(phase, 0) + 1
        if self.blow and (phase, self.entries[phase]) == (self.blow["phase"], self.blow["entry"]):
            sys.setprofile(self._count)

    def watch(self, owner: object, name: str, phase: str, note: Callable[[tuple], object] = lambda _: "") -> None:
        """Tell the beginning and the end of each call of `owner.name`."""
        real = getattr(owner, name)

        @functools.wraps(real)
        def call(*args, **kwargs):
            self.begin(phase)
            result = real(*args, **kwargs)
            self.tell("-", phase, note(args))
            return result

        setattr(owner, name, call)


def assassin(blow: dict | None) -> Callable[[], None]:
    """Starts a process that, once the returned function is called, waits for the blow's delay and strikes, if we are still there."""
    if blow is None:
        return lambda: None
    ours, (read, write) = os.getpid(), os.pipe()
    if os.fork():
        os.close(read)
        return lambda: os.write(write, b"x") and None
    os.close(write)
    if os.read(read, 1) and not select.select([read], [], [], blow["delay"])[0]:
        os.kill(ours, blow["signal"])
    os._exit(0)


def child(job: dict) -> int:
    """Run the program in this process."""
    import run
    import systems.base
    import systems.confidence_files
    import systems.finish
    import systems.validate
    from systems.trainer import Trainer

    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    phases = Phases(job["phases"], job["blow"], assassin(job["blow"]), job.get("count", False))
    if job.get("before"):  # a function of a test, module:name
        module, name = job["before"].split(":")
        getattr(importlib.import_module(module), name)()
    if job.get("most_bytes"):  # of a file: larger ones meet a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["most_bytes"], resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    systems.validate.VALIDATION = 100.0  # pictures take longer than these steps: they are to come all the same
    systems.confidence_files.WIDTH = 96  # pixels: a second less
    look = systems.validate.Validator.maybe  # by the clock: only now and then, so that each run has as many pictures
    systems.validate.Validator.maybe = lambda self, step, *more: None if step % 6 else look(self, step, *more)
    phases.watch(run, "parse", "loading")
    phases.watch(Trainer, "train", "training")
    phases.watch(systems.validate.Validator, "__call__", "validation")
    phases.watch(Trainer, "save", "saving", lambda args: args[0].clock.step)
    for name, phase in (("evaluate", "test"), ("video", "video"), ("report_run", "report")):
        phases.watch(systems.finish, name, phase)
    phases.watch(systems.base, "export_mesh", "meshing")
    return run.main(job["words"])


def serve() -> int:
    # imported once here, not in each run; nothing of it starts a thread
    import torch._dynamo
    import torch.utils.tensorboard  # noqa: F401
    import warp  # noqa: F401

    import systems.run
    import systems.texture  # noqa: F401

    answer = functools.partial(print, flush=True)
    answer(json.dumps({"ready": True}))
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.environ["CI"] = "1"
            return child(job)
        answer(json.dumps({"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(serve())
