"""Launches and host synchronisations of a training step, on a pretended CUDA device.

    python -m tests.pretend.count --config confs/dtu-wmask.yaml [--progress 0.8] [--lines 25] [key=value ...]

Prints the counts of a step by phase, for a step with and one without a refresh, and the lines they come from. What is
counted as a launch and as a wait stands in tests/pretend/device.py. The numbers do not depend on the machine; on the scene and the
sizes they depend in so far as branches do. `tests/pretend/budget.json` holds what a step may have.
"""

import argparse
import contextlib
import functools
import logging
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.pretend.device import ROOT, Tally, pretended_cuda

import torch  # isort: skip

from confs.load import load_config
from process_data.load import load_scene
from systems.build import build_system
from systems.trainer import Trainer
from tests import formats
from tests.scenes import write_tiny_scene
from utils.log import RunFolder

# small sizes, but a step as most of a run has them: the surface is sharp, so that long intervals are moved to their crossings
SMALL = [
    "seed=5", "trainer.n_rays=128", "trainer.max_rays=128", "trainer.target_samples=1024", "trainer.val_minutes=0", "trainer.save_minutes=1000",
    "trainer.log_every=1000000", "trainer.max_steps=100", "model.grid.log2_size=10", "model.occupancy.resolution=16", "model.variance.init=0.7",
]  # fmt: skip
PROGRESS = 0.8  # late, where long intervals are moved to their crossings
PHASES = ("refresh", "batch", "forward", "backward", "optimiser", "the rest")
KINDS = ("launches", "kernels", "waits", "copies", "nodes")


@dataclass
class Step:
    """The counts of one step; keys are (phase, what, file:line)."""

    launches: Counter = field(default_factory=Counter)
    kernels: Counter = field(default_factory=Counter)
    waits: Counter = field(default_factory=Counter)
    copies: Counter = field(default_factory=Counter)
    nodes: Counter = field(default_factory=Counter)
    refreshed: bool = False

    def total(self, kind: str, phase: str | None = None) -> int:
        """The sum of a kind of count, of one phase or of all."""
        return sum(n for (at, _, _), n in getattr(self, kind).items() if phase in (None, at))


@contextlib.contextmanager
def phase(tally: Tally, name: str):
    before, tally.phase = tally.phase, name
    try:
        yield
    finally:
        tally.phase = before


def in_phase(tally: Tally, owner: Any, method: str, name: str) -> None:
    """Count what a method does under a phase."""
    real: Callable = getattr(owner, method)

    @functools.wraps(real)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with phase(tally, name):
            return real(*args, **kwargs)

    setattr(owner, method, inside)


class _Batches:
    def __init__(self, batches: Any, tally: Tally):
        self.batches, self.tally = batches, tally

    def __iter__(self):
        return self

    def __next__(self):
        with phase(self.tally, "batch"):
            return next(self.batches)


def count_steps(
    config: str, scene: Path, folder: Path, more: list[str], progress: float = PROGRESS, steps: int = 4, located: bool = True
) -> list[Step]:
    """The counts of training steps around a progress, after those in which state is made; the first of them refreshes the sampler."""
    words = [*SMALL, f"dataset.root_dir={scene}", f"trainer.outputs_dir={folder}", *more]
    cfg = load_config(ROOT / config, words)
    every = cfg.model.occupancy.every
    found: list[Step] = []
    with pretended_cuda(located) as tally, torch.autograd.set_detect_anomaly(located, check_nan=False):
        device = torch.device("cuda")
        world = load_scene(cfg.dataset, cfg.model.radius)
        cfg = load_config(
            ROOT / config,
            words,
            masks=world.masks is not None,
            start="points" if world.tracks is not None and len(world.tracks) else "sphere",
        )
        trainer = Trainer(build_system(cfg, device, world), world, cfg, RunFolder(folder / "run"), device)
        trainer.clock.seconds = 1e-9  # not the first step of a run: no start from points
        trainer.clock.step = round(progress * cfg.trainer.max_steps) // every * every - 4
        for owner, method, name in (
            (trainer.system, "before_step", "refresh"), (trainer.system, "losses", "forward"), (torch.Tensor, "backward", "backward"),
            (trainer.optimizer, "step", "optimiser"), (trainer.scaler, "step", "optimiser"), (trainer.scaler, "update", "optimiser"),
        ):  # fmt: skip
            in_phase(tally, owner, method, name)
        made, real_after = trainer._batches, trainer._after_step
        trainer._batches = lambda: _Batches(made(), tally)  # type: ignore[method-assign, assignment, return-value]

        def after(*args: Any) -> None:
            real_after(*args)
            if trainer.clock.step > first + 4:
                step = Step(*(Counter(getattr(tally, kind)) for kind in KINDS), refreshed=(trainer.clock.step - 1) % every == 0)
                found.append(step)
            tally.clear()
            trainer.stop_signal = int(len(found) == steps)

        first = trainer.clock.step
        trainer._after_step = after  # type: ignore[method-assign]
        trainer.save = lambda: folder  # type: ignore[method-assign]
        tally.phase = "the rest"
        try:
            trainer.train()
        finally:
            torch.Tensor.backward = torch.Tensor.backward.__wrapped__  # type: ignore[attr-defined, method-assign]
            trainer.run.close()
    return found


def table(steps: list[Step]) -> str:
    """Counts by phase of a step with and one without a refresh, as Markdown."""
    with_refresh, without = next(s for s in steps if s.refreshed), next(s for s in steps if not s.refreshed)
    lines = ["| phase | launches | Warp launches | waits | copies | in a graph |", "|---|---:|---:|---:|---:|---:|"]
    for name in PHASES:
        lines.append(f"| {name} | " + " | ".join(str(without.total(kind, name)) for kind in KINDS) + " |")
    for label, step in (("a step", without), ("a step with a refresh", with_refresh)):
        lines.append(f"| **{label}** | " + " | ".join(f"**{step.total(kind)}**" for kind in KINDS) + " |")
    return "\n".join(lines)


def places(step: Step, kind: str, most: int) -> str:
    """The lines with the most counts of a kind."""
    at: dict[tuple[str, str], Counter] = {}
    for (name, what, where), n in getattr(step, kind).items():
        at.setdefault((name, where), Counter())[what] += n
    rows = sorted(at.items(), key=lambda row: -sum(row[1].values()))
    lines = [
        f"{sum(c.values()):5d}  {name:10s} {where}: " + ", ".join(f"{n} {w}" for w, n in c.most_common())
        for (name, where), c in rows[:most]
    ]
    return "\n".join(lines) or "  none"


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--config", default="confs/dtu-wmask.yaml")
    args.add_argument("--progress", type=float, default=PROGRESS, help="of the run, at which the steps are taken")
    args.add_argument("--lines", type=int, default=25, help="lines of the program shown for each kind")
    args.add_argument("overrides", nargs="*")
    args = args.parse_args()
    logging.getLogger("neus").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene, more = counted_scene(args.config, folder)
        steps = count_steps(args.config, scene, folder, [*more, *args.overrides], args.progress)
    print(f"{args.config} at progress {args.progress}\n\n{table(steps)}\n")  # noqa: T201
    step = next(s for s in steps if not s.refreshed)
    for kind in KINDS:
        print(f"{kind} of a step without a refresh ({step.total(kind)}):\n{places(step, kind, args.lines)}\n")  # noqa: T201


def counted_scene(config: str, folder: Path) -> tuple[Path, list[str]]:
    """(a tiny scene for the config, the overrides with which it reads it): photographs without masks for the recipe of photographs."""
    if Path(config).stem == "neus-colmap":
        written = formats.make(hw=(24, 32), fx=35, fy=36, cx=16, cy=11)
        written = replace(written, images=[image[..., :3] for image in written.images])
        return formats.write_colmap(folder / "scene", written, points=formats.surface_points(400)), []
    return write_tiny_scene(folder / "scene", hw=(24, 32)), ["dataset.name=dtu"]


if __name__ == "__main__":
    main()
