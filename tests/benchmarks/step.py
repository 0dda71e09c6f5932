"""A real training step on the demo scene: samples/s, rays/s, the share of each part, and the floor.

    python -m tests.benchmarks.step [--device cpu|cuda] [--steps 100] [--scene inputs/demo] [key=value ...]

The floor is (matrix-product FLOPs / the rate of a large product here) + (bytes touched / the bandwidth of a large copy
here), both measured in the same run. The step: 14 x 2 levels, 16 -> 1024, 2^18, all open, SDF and colour networks 64
wide, analytic normals, about 16,384 samples. The parts are timed one by one, which on CUDA waits for each: the step itself is
timed before, undisturbed, and its launches are counted between two refreshes of the occupancy.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import argparse
import logging
import platform
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch

from confs.load import load_config
from process_data.demo import make_demo
from process_data.load import load_scene
from systems.build import build_system
from systems.trainer import Trainer
from tests.benchmarks.launches import count
from utils.device import pick_device, setup_threads
from utils.log import RunFolder

SETTINGS = [
    "seed=1", "model.grid.n_levels=14", "model.grid.levels=14", "model.grid.log2_size=18", "model.grid.base=16", "model.grid.top=1024", "model.sdf.hidden=64",
    "model.sdf.layers=1", "model.radiance.hidden=64", "model.radiance.layers=2", "trainer.target_samples=16384", "trainer.val_minutes=0", "trainer.max_steps=1000000",
    "trainer.save_minutes=1000",
]  # fmt: skip


class Stopwatch:
    """Adds up the seconds spent in wrapped methods."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, defaultdict(float)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def wrap(self, owner: object, method: str, label: str) -> None:
        real = getattr(owner, method)

        def timed(*args, **kwargs):
            began = self.now()
            out = real(*args, **kwargs)
            self.seconds[label] += self.now() - began
            return out

        setattr(owner, method, timed)


def rates(device: torch.device) -> tuple[float, float]:
    """(FLOP/s of a [131072, 64] x [64, 64] product, bytes/s of a large copy)."""
    a, b, big = torch.randn(131072, 64, device=device), torch.randn(64, 64, device=device), torch.randn(32 << 20, device=device)
    watch = Stopwatch(device)

    def best(run) -> float:
        run()
        times = []
        for _ in range(7):
            began = watch.now()
            run()
            times.append(watch.now() - began)
        return sorted(times)[3]

    target, product = torch.empty_like(big), torch.empty(131072, 64, device=device)
    return 2 * 131072 * 64 * 64 / best(lambda: torch.mm(a, b, out=product)), 2 * 4 * big.numel() / best(lambda: target.copy_(big))


def work(model, samples: float, field_points: float) -> tuple[float, float]:
    """(FLOPs of matrix products, bytes that must move) of one training step."""
    sdf = sum(p.numel() for layer in (*model.sdf.layers, model.sdf.out) for p in [layer.weight])
    back = sum(p.numel() for layer in model.sdf.layers for p in [layer.weight])  # the gradient chain
    colour = sum(p.numel() for p in model.radiance.net.parameters() if p.dim() == 2)
    flops = 6 * (field_points * (sdf + back) + samples * colour)
    spec = model.sdf.encoding.spec
    corner = 8 * spec.n_levels * spec.n_features * 4
    hidden = model.sdf.out.in_features
    activations = 4 * (spec.width * 8 + hidden * 10) * field_points + 4 * (64 * 8 + 60) * samples
    return flops, field_points * corner * 3 + activations


def measure(scene_dir: Path, device: torch.device, steps: int, overrides: list[str], warm: int = 150) -> dict:
    """Figures of a step after `warm` steps: "ms" (undisturbed), "parts" {part: ms} (their sum is "timed_ms"), "samples" and "rays"
    a step, "samples_per_s", "field_points_per_s", "floor_ms" and what it is made of, "counts" of `launches.count`."""
    cfg = load_config(Path(__file__).parents[2] / "confs/demo.yaml", [f"dataset.root_dir={scene_dir}", *SETTINGS, *overrides])
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(build_system(cfg, device), load_scene(cfg.dataset, cfg.model.radius), cfg, RunFolder(Path(folder)), device)
        trainer.prepare()
        watch, model = Stopwatch(device), trainer.system.model
        totals = defaultdict(float)

        def step() -> None:
            trainer.system.before_step(trainer.clock.step, 0.5)
            trainer.graph.step() if trainer.graph else trainer.attempt(next(trainer.batches))
            trainer.clock.step += 1

        for _ in range(max(warm, steps)):  # until the ray count and the occupancy have settled
            step()
        began = watch.now()
        for _ in range(steps):
            step()
            totals["samples"] += float(trainer.system.stats["samples"])
            totals["rays"] += float(trainer.system.stats["rays"])
        seconds = watch.now() - began
        every = cfg.model.occupancy.every
        while trainer.clock.step % every != 1 and every > 1:
            step()
        counts = count(step, device, max(every - 1, 1))
        trainer.graph = None  # within a graph no part can be timed
        watch.wrap(trainer.system, "before_step", "occupancy refresh")
        watch.wrap(model.sampler, "sample", "marching")
        watch.wrap(model.sdf, "forward", "field (grid + SDF + normals)")
        watch.wrap(model.radiance, "forward", "colour network")
        backward = torch.Tensor.backward
        watch.wrap(torch.Tensor, "backward", "backward")
        watch.wrap(trainer.optimizer, "step", "optimiser")
        watch.wrap(trainer, "_finite", "finite check")
        try:
            began = watch.now()
            for _ in range(steps):
                step()
            timed = watch.now() - began
        finally:
            torch.Tensor.backward = backward  # type: ignore[method-assign]
            trainer.run.close()
    parts = {label: 1000 * spent / steps for label, spent in sorted(watch.seconds.items(), key=lambda kv: -kv[1])}
    parts["the rest (batch, alpha, compositing, losses)"] = 1000 * timed / steps - sum(parts.values())
    samples, points = totals["samples"] / steps, (totals["samples"] + cfg.loss.eikonal_points * steps) / steps
    flops, nbytes = work(model, samples, points)
    gemm, copy = rates(device)
    return {
        "ms": 1000 * seconds / steps,
        "parts": parts,
        "timed_ms": 1000 * timed / steps,
        "samples": samples,
        "rays": totals["rays"] / steps,
        "samples_per_s": totals["samples"] / seconds,
        "field_points_per_s": points * steps / seconds,
        "floor_ms": 1000 * (flops / gemm + nbytes / copy),
        "floor": f"{flops / 1e9:.2f} GFLOP at {gemm / 1e9:.0f} GFLOP/s and {nbytes / 1e6:.0f} MB at {copy / 1e9:.1f} GB/s",
        "counts": counts,
    }


def table(found: dict) -> str:
    """Markdown of `measure`."""
    lines = ["| part | ms a step | share |", "|---|---|---|"]
    lines += [f"| {label} | {ms:.1f} | {ms / found['timed_ms']:.0%} |" for label, ms in found["parts"].items()]
    lines += [f"| **step, its parts timed** | **{found['timed_ms']:.1f}** | |", f"| **step** | **{found['ms']:.1f}** | |", ""]
    lines.append(
        f"{found['samples_per_s']:,.0f} samples/s ({found['field_points_per_s']:,.0f} field points/s), "
        f"{1000 * found['rays'] / found['ms']:,.0f} rays/s, {found['samples']:,.0f} samples a step"
    )
    lines.append(f"floor {found['floor_ms']:.1f} ms: {found['floor']}; the step takes {found['ms'] / found['floor_ms']:.1f} x the floor")
    lines.append("a step between two refreshes: " + ", ".join(f"{n:.0f} {what}" for what, n in found["counts"].items()))
    return "\n".join(lines)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args.add_argument("--steps", type=int, default=100)
    args.add_argument("--scene", type=Path, default=Path("inputs/demo"))
    args.add_argument("overrides", nargs="*")
    args = args.parse_args()
    logging.getLogger("neus").setLevel(logging.WARNING)
    threads, device = setup_threads(), pick_device(args.device)
    make_demo(args.scene)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU, {threads} threads"
    print(f"## training step on {name}, torch {torch.__version__}\n")  # noqa: T201
    print(table(measure(args.scene, device, args.steps, args.overrides)))  # noqa: T201


if __name__ == "__main__":
    main()
