"""What the processes of a test of several do, started as torchrun would: `python -m tests.systems.ranks CASE SCENE OUT [words]`."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

import run
from models.distractors import Distractors
from process_data.load import load_scene
from systems import together
from systems.build import build_system
from systems.parallel import ALONE, Ranks, start
from systems.trainer import Trainer
from tests.systems.test_train import ROOT, config
from utils.device import setup_threads
from utils.log import RunFolder, setup_logging

EXACT = [  # terms that need no random numbers but those all processes share
    "trainer.n_rays=48", "loss.curvature=0.001", "loss.sparsity=0.02", "loss.points=0.1", "loss.opaque=0.05", "loss.distortion=0.01",
    "model.sdf.normals=finite", "model.sdf.eps=0.1", "model.background=random", "dataset.apply_mask=true", "trainer.threads=1", "model.distractors=true",
]  # fmt: skip


def make(scene, out, *words, ranks: Ranks = ALONE, name: str = "run") -> Trainer:
    cfg = config(scene, out, *EXACT, *words)
    loaded = load_scene(cfg.dataset, cfg.model.radius)
    points = torch.randn(300, 3, generator=torch.Generator().manual_seed(1)) * 0.7  # some outside the sphere
    device = torch.device("cpu")
    return Trainer(build_system(cfg, device, loaded), replace(loaded, points=points), cfg, RunFolder(Path(out) / name), device, ranks)


def first_step(t: Trainer) -> dict:
    """What the first step works with, and the gradients it would update with."""
    found: dict = {}
    model = t.system.model

    def note(*_):
        found.update({"grads": {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}})

    t.optimizer.step = note
    t.prepare()
    t.together.align()
    t.together.begin()
    t.system.before_step(0, 0.0)
    batch = next(t.batches)
    t.update(batch, 0.0)
    return {**found, "rgb": batch.rgb, "points": batch.points, "samples": t.system.stats["samples"], "occs": model.sampler.occs.clone()}


def gradients(scene, out, ranks: Ranks) -> None:
    t = make(scene, out, ranks=ranks, name=f"first{ranks.rank}")
    torch.save(first_step(t), Path(out) / f"first{ranks.rank}.pt")
    t.together.weigh = lambda terms: {name: value / ranks.world for name, value in terms.items()}
    t.optimizer.zero_grad(set_to_none=True)
    torch.save(first_step(t), Path(out) / f"plain{ranks.rank}.pt")


def troubles(scene, out, ranks: Ranks) -> None:
    """A short run in which something happens to one process after the other; the last ends it."""
    together.COMPARE = 9
    words = ["trainer.target_samples=1500", "trainer.max_steps=100", "trainer.max_minutes=10", "model.occupancy.every=2"]
    t = make(scene, out, *words, ranks=ranks, name=f"trouble{ranks.rank}")
    rows: list[tuple] = []
    losses, gather = t.system.losses, t.together.gather

    def troubled(batch, progress):
        step = t.clock.step
        if (step, ranks.rank) == (7, 1):  # until step 9
            with torch.no_grad():
                t.system.model.variance.v.add_(1e-4)
        if (step, ranks.rank) == (6, 1):
            raise torch.OutOfMemoryError("before the exchange of the counts")
        terms = losses(batch, progress)
        if (step, ranks.rank) == (4, 1):
            terms["rgb"] = terms["rgb"] * float("nan")
        if (step, ranks.rank) == (10, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return terms

    def gathered(loss):
        if (t.clock.step, ranks.rank) == (8, 0):
            raise torch.OutOfMemoryError("behind the backward pass")
        return gather(loss)

    after = t._after_step

    def watched(*args):
        after(*args)
        rows.append((t.clock.step, t.n_rays, t.skipped, t.progress, t.optimizer.param_groups[0]["lr"]))

    t.system.losses, t.together.gather, t._after_step = troubled, gathered, watched
    whole = t.train()
    state = {k: v.clone() for k, v in t.system.model.state_dict().items()}
    torch.save({"rows": rows, "whole": whole, "signal": t.stop_signal, "state": state}, Path(out) / f"trouble{ranks.rank}.pt")


def command(kill_at: int, words: list[str]) -> int:
    """run.py, in which the second process is killed after a step, the first time that it is started; says how many errors are added up."""
    after, refresh = Trainer._after_step, Distractors.refresh

    def told(self, together=None):
        def summed(tensors):
            together(tensors)
            print(f"errors of {int(tensors[0][0].sum())} rays", flush=True)

        refresh(self, summed if together else None)

    def killed(self, *args):
        after(self, *args)
        if self.ranks.rank == 1 and self.clock.step == kill_at and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer._after_step, Distractors.refresh = killed, told
    return run.main(words)


def spawn(*words, world: int = 2) -> list[subprocess.Popen]:
    """`world` processes of this module, with the environment that torchrun gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    common |= {"TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1", "CI": "1"}
    arguments = [sys.executable, "-m", "tests.systems.ranks", *(str(w) for w in words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    return [subprocess.Popen(arguments, env={**os.environ, **common, "RANK": str(r), "LOCAL_RANK": str(r)}, **pipes) for r in range(world)]


def main() -> int:
    case, *words = sys.argv[1:]
    if case == "command":
        return command(int(words[0]), words[1:])
    setup_logging()
    setup_threads(1)
    ranks = start()
    for part in case.split("+"):
        {"gradients": gradients, "troubles": troubles}[part](*words, ranks)
    ranks.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
