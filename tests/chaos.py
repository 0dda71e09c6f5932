"""Kills runs of the program at random moments of every phase, resumes them, and compares what they end in with an undisturbed run.

    python -m tests.chaos --seed 1 --kills 30 [--phase saving]

A killed run goes on as its own message says; after SIGKILL, which leaves no message, from its newest checkpoint, or anew without one. A run
in three is killed again. The end must be that of the undisturbed run bit for bit: checkpoint, mesh, metrics, pictures.
"""

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos_files import Steps, differences_of_runs, problems_of_files, read_steps
from tests.chaos_server import PHASES
from tests.scenes import write_tiny_scene
from utils.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]
SIGNALS = (signal.SIGTERM, signal.SIGKILL)
DELAY = 0.005  # seconds at most between the call that a blow waits for and the blow
LIMIT = 3  # blows at most to one run
OPTIONS = [
    "seed=5", "name=n", "trainer.trial_name=t", "trainer.device=cpu", "trainer.threads=1", "trainer.max_steps=40", "trainer.save_every=8",
    "trainer.val_minutes=0.000001", "trainer.log_every=5", "trainer.average=0.3", "trainer.target_samples=2048", "trainer.n_rays=64",
    "trainer.max_rays=256", "model.grid.n_levels=4", "model.grid.levels=4", "model.grid.log2_size=10", "model.grid.base=4",
    "model.grid.top=32", "model.samples_per_ray=128", "model.samples_per_ray_test=128", "model.occupancy.resolution=24",
    "loss.eikonal_points=128", "dataset.hold_every=4", "dataset.test_steps=3", "export.resolution=40", "export.coarse=24",
]  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """A process that has ended: its exit code (-n: signal n), seconds, output and phases."""

    code: int
    seconds: float
    output: str
    steps: Steps


@dataclass
class Blow:
    """A row of the table: a process that was to be killed, and what became of it."""

    kill: int
    phase: str  # where it was to be hit
    number: signal.Signals
    hit: str  # where it was
    code: int
    seconds: float
    problems: list[str]

    def row(self) -> str:
        verdict = "; ".join(self.problems) or "good"
        return f"{self.kill:4d}  {self.phase:10s}  {self.hit:10s}  {self.number.name:7s}  {self.code:4d}  {self.seconds:7.1f}  {verdict}"


HEAD = "kill  phase       hit in      signal   code  seconds  verdict"


class Server:
    """The process that forks the runs (tests/chaos_server.py)."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        command = [sys.executable, "-m", "tests.chaos_server"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server has ended"
        return json.loads(line)

    def run(self, words: Sequence[str], blow: dict | None = None, **more: object) -> Ended:
        assert self.process.stdin is not None
        self.count += 1
        output, phases = self.folder / f"{self.count}.output", self.folder / f"{self.count}.phases"
        job = {"words": list(words), "output": str(output), "phases": str(phases), "blow": blow, **more}
        began = time.monotonic()
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        code = self._answer()["code"]
        return Ended(code, time.monotonic() - began, output.read_text(errors="replace"), read_steps(phases))

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Chaos:
    """An undisturbed run of a tiny scene, and others that are killed."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.random = folder, random.Random(seed)
        self.scene = write_tiny_scene(folder / "scene")
        self.server = Server(folder)
        whole = self.server.run(self.words("whole"), count=True)
        assert whole.code == 0, whole.output
        self.steps, self.whole = whole.steps, self.root("whole")
        assert set(self.steps.entries) == set(PHASES), self.steps.entries
        assert not problems_of_files(self.whole), problems_of_files(self.whole)

    def root(self, name: str) -> Path:
        """The run folder."""
        return self.folder / name / "n/t"

    def words(self, name: str) -> list[str]:
        return [
            *("--config", "confs/dtu-wmask.yaml", "--train", *OPTIONS),
            *(f"dataset.root_dir={self.scene}", f"trainer.outputs_dir={self.folder / name}"),
        ]

    def kill(self, number: int, *plan: tuple[str, signal.Signals]) -> list[Blow]:
        """Kill a run in these phases, one after the other while it goes on, and let it end; the last row holds what differs at the end.

        A plan of one phase may get further ones by chance.
        """
        name, blows, chance = f"kill{number}", [], len(plan) == 1
        words, left = self.words(name), list(plan)
        while True:
            phase, how = left.pop(0)
            ended = self.server.run(words, self._blow(phase, how, first=bool(blows)))
            blow = Blow(number, phase, how, ended.steps.last, ended.code, ended.seconds, self.judged(self.root(name), ended, how))
            blows.append(blow)
            if chance and len(blows) < LIMIT and self.random.random() < 1 / 3:
                left.append((self.random.choice(PHASES), self.random.choice(SIGNALS)))
            if ended.code == 0 or not left:
                break
            words = self.onward(name, ended)
        if ended.code != 0:
            words = self.onward(name, ended)
            ended = self.server.run(words)
            if ended.code != 0:
                blow.problems.append(f"{' '.join(words[:3])} ended with {ended.code}: {ended.output[-300:]}")
        blow.problems += [*differences_of_runs(self.whole, self.root(name)), *problems_of_files(self.root(name))]
        return blows

    def _blow(self, phase: str, how: signal.Signals, first: bool) -> dict:
        """first: in the first entry of the phase; a run that goes on may have fewer of them."""
        entry, calls = 1 if first else self.random.randint(1, self.steps.entries[phase]), self.random.randrange(self.steps.calls[phase])
        return {"phase": phase, "entry": entry, "calls": calls, "delay": DELAY * self.random.random(), "signal": int(how)}

    def onward(self, name: str, ended: Ended) -> list[str]:
        """The words that go on with a run that was killed."""
        said = re.search(r"go on with: python run\.py (.*)", ended.output)
        if said:
            return said[1].split()
        kept = (self.root(name) / "ckpt/last.pt").is_file()
        return ["--train", "--resume", str(self.root(name))] if kept else self.words(name)

    def judged(self, root: Path, ended: Ended, how: signal.Signals) -> list[str]:
        """What is wrong right after a blow."""
        found = problems_of_files(root) if root.exists() else []
        if "Traceback" in ended.output or "Exception ignored" in ended.output:
            found.append("a traceback: " + ended.output[-300:])
        if ended.steps.last == "end":  # it was faster: all is done, though the process may have been hit while it ended
            return found
        if how == signal.SIGKILL and ended.code != -how:
            found.append(f"exit code {ended.code}, expected {-how}")
        if how == signal.SIGTERM:
            if ended.code != 128 + how:
                found.append(f"exit code {ended.code}, expected {128 + how}")
            if not re.search(r"go on with: python run\.py|start again", ended.output):
                found.append("no line that says how to go on")
        saved = ended.steps.saved
        if saved is not None and (root / "ckpt/last.pt").is_file():
            step = load_checkpoint(root)["step"]
            stopped = re.search(r"stopped at step (\d+)", ended.output)
            if step < saved or (stopped and step != int(stopped[1])):
                found.append(f"the checkpoint is of step {step}, expected {stopped[1] if stopped else saved}")
        elif saved is not None:
            found.append(f"there is no checkpoint, expected one of step {saved}")
        return found

    def close(self) -> None:
        self.server.close()


def table(folder: Path, seed: int, kills: int, phases: Sequence[str] = PHASES) -> list[Blow]:
    """Kill this many runs, the phases and signals in turn; prints and returns the rows."""
    chaos, rows = Chaos(folder, seed), []
    try:
        print(HEAD, flush=True)
        for number in range(1, kills + 1):
            phase = phases[(number - 1) % len(phases)]
            how = SIGNALS[((number - 1) // len(phases) + number) % 2]
            for blow in chaos.kill(number, (phase, how)):
                print(blow.row(), flush=True)
                rows.append(blow)
    finally:
        chaos.close()
    return rows


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--kills", type=int, default=30)
    p.add_argument("--phase", choices=PHASES)
    p.add_argument("--folder", type=Path, help="kept, to look at; by default a temporary one")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = table(args.folder or Path(temporary), args.seed, args.kills, (args.phase,) if args.phase else PHASES)
    bad = sum(bool(row.problems) for row in rows)
    print(f"{args.kills} runs, {len(rows)} kills, {bad} bad")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
