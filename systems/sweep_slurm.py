"""Runs of a sweep as jobs of SLURM, through submitit (optional)."""

import logging
from collections.abc import Sequence
from typing import Any

from systems.sweep_plan import Run, command, state
from systems.sweep_pool import Pool, Slot
from utils.errors import UserError

log = logging.getLogger("neus")
GRACE = 60.0  # seconds that a run may take to save before its job is taken away


class Job:
    """One run as a job: what submitit calls on the node. Taken away from there, it saves, is queued again and goes on."""

    def __init__(self, run: Run, slot: Slot, memory: float):
        self.run, self.slot, self.memory = run, slot, memory
        self.pool: Pool | None = None

    def __call__(self) -> str:
        from utils.log import setup_logging

        setup_logging()
        self.pool = Pool([self.slot], self.memory)
        outcome = self.pool.work([self.run])
        if outcome.failed:
            raise RuntimeError(outcome.failed[0][1])
        return "finished" if outcome.finished else "stopped"

    def __submitit_checkpoint__(self) -> Any:
        """Called on the node before a job is preempted or reaches its time limit: the submission that takes its place."""
        from submitit.helpers import DelayedSubmission

        if self.pool is not None:
            self.pool.end(GRACE)
        return DelayedSubmission(Job(self.run, self.slot, self.memory))

    checkpoint = __submitit_checkpoint__  # its name in submitit before 1.5


def parameters(text: str) -> dict[str, Any]:
    """KEY=VALUE,... as keywords of submitit's `update_parameters`; whole numbers become numbers. Raises UserError."""
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not (equals and key.strip().isidentifier() and value.strip()):
            raise UserError(f'--slurm: "{part}" is no KEY=VALUE, for example "slurm_partition=gpu,timeout_min=120"')
        found[key.strip()] = int(value) if value.strip().isdigit() else value.strip()
    return found


def submit(runs: Sequence[Run], text: str, device: str, threads: int, memory: float) -> int:
    """Hand what is not finished to SLURM as one array of jobs; returns the exit code. Raises UserError."""
    try:
        import submitit
    except ImportError:
        raise UserError("--slurm needs submitit, which is not installed: pip install submitit") from None
    left = [run for run in runs if command(run, state(run), device, threads)]
    log.info("%d of %d runs are finished", len(runs) - len(left), len(runs))
    if not left:
        return 0
    folder = left[0].folder.parent / "slurm"
    executor = submitit.AutoExecutor(folder=str(folder), cluster="slurm")
    wanted = {"name": left[0].folder.parent.name, "gpus_per_node": 0 if device == "cpu" else 1, "mem_gb": memory} | parameters(text)
    try:
        executor.update_parameters(**wanted)
        with executor.batch():  # one array of jobs
            jobs = [executor.submit(Job(run, Slot(device, threads), memory)) for run in left]
    except Exception as error:  # submitit names parameters that it does not know, and a cluster that is not there, in many types
        raise UserError(f"--slurm: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from None
    for run, job in zip(left, jobs):
        log.info("job %s: %s -> %s", job.job_id, run.label, run.folder)
    log.info("the same command with --list says how far they are; without --slurm it goes on here")
    return 0
