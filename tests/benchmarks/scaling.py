"""Weak scaling: steps of 1, 2, ... processes, each with the same number of rays, and what a step moves between them.

    python -m tests.benchmarks.scaling [--worlds 1,2] [--steps 60] [--scene inputs/demo] [key=value ...]

Every process has one CPU thread, so that two take two cores. The efficiency is the rays/s of N processes over N times those of one.
Then a model of N devices: their ring moves 2 (N - 1) / N times the bytes of the gradients at a bandwidth that is assumed, not
measured, and nothing of it overlaps the step. It tells how long a device's own step must take for nine tenths of the speed.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import argparse
import json
import logging
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from confs.load import load_config
from process_data.demo import make_demo
from process_data.load import load_scene
from systems.build import build_system
from systems.parallel import start
from systems.trainer import Trainer
from tests.benchmarks.step import SETTINGS
from utils.device import setup_threads
from utils.log import RunFolder

ROOT = Path(__file__).parents[2]
SIZES = (2, 4, 8)
LINKS = {
    "NVLink, 200 GB/s": 200e9,
    "PCIe 4.0 x16, 20 GB/s": 20e9,
    "100 Gbit/s network, 10 GB/s": 10e9,
    "25 Gbit/s network, 2.5 GB/s": 2.5e9,
}


def work(scene: Path, steps: int, overrides: list[str], warm: int) -> dict:
    """Figures of this process's steps: ms, rays/s of all processes, ms in exchanges and sums, and the bytes given to these."""
    ranks = start()
    setup_threads(1)
    words = [f"dataset.root_dir={scene}", *SETTINGS, "trainer.threads=1", "trainer.log_every=1000000", *overrides]
    cfg = load_config(ROOT / "confs/demo.yaml", words)
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        t = Trainer(build_system(cfg, device), load_scene(cfg.dataset, cfg.model.radius), cfg, RunFolder(Path(folder)), device, ranks)
        t.prepare()
        t.together.align()
        spent = {"sums": 0.0, "sum_tensors": 0.0}
        for name in spent:
            _timed(ranks, name, spent)
        rays = 0
        for step in range(warm + steps):
            if step == warm:
                began, rays, sent, spent["sums"], spent["sum_tensors"] = time.perf_counter(), 0, ranks.sent, 0.0, 0.0
            t.together.begin()
            t.system.before_step(step, 0.5)
            rays += t.attempt(next(t.batches)) * ranks.world
            t.clock.step += 1
        seconds = time.perf_counter() - began
        t.run.close()
    each = 1000 / steps
    tables = sum(p.nbytes for p in t.together.tables)
    found = {"ms": each * seconds, "rays_per_s": rays / seconds, "exchange_ms": each * spent["sums"], "sum_ms": each * spent["sum_tensors"]}
    return {**found, "bytes": (ranks.sent - sent) / steps, "tables": tables, "networks": sum(p.nbytes for p in t.together.networks)}


def _timed(owner: object, method: str, spent: dict[str, float]) -> None:
    real = getattr(owner, method)

    def timed(*args):
        began = time.perf_counter()
        out = real(*args)
        spent[method] += time.perf_counter() - began
        return out

    setattr(owner, method, timed)


def measure(world: int, words: list[str]) -> dict:
    """Figures of the first of `world` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    group |= {"TORCHELASTIC_RUN_ID": "scaling", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.benchmarks.scaling", "--worker", *words]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **group, "RANK": str(r), "LOCAL_RANK": str(r)}, text=True, stdout=subprocess.PIPE
        )
        for r in range(world)
    ]
    outputs = [p.communicate()[0] for p in processes]
    if any(p.returncode for p in processes):
        raise SystemExit(f"{world} processes: one failed")
    return json.loads(outputs[0].strip().splitlines()[-1])


def model(gradients: float) -> str:
    """The table of assumed links: ms that a step's gradients (bytes) take, and the step of a device that keeps nine tenths of its speed."""
    lines = ["| link (assumed) | " + " | ".join(f"ms, {n} devices" for n in SIZES) + f" | step for 90 % with {SIZES[-1]}, ms |"]
    lines.append("|---|" + "---|" * (len(SIZES) + 1))
    for name, speed in LINKS.items():
        times = [1000 * 2 * (n - 1) / n * gradients / speed for n in SIZES]
        lines.append(f"| {name} | " + " | ".join(f"{t:.2f}" for t in times) + f" | {9 * times[-1]:.1f} |")
    return "\n".join(lines)


def report(found: dict[int, dict]) -> str:
    lines = [
        "| processes | ms a step | rays/s | efficiency | of it exchanges, ms | sums, ms | MB a step |",
        "|---|---|---|---|---|---|---|",
    ]
    first = found[min(found)]
    base = first["rays_per_s"] / min(found)
    for n, f in found.items():
        lines.append(
            f"| {n} | {f['ms']:.1f} | {f['rays_per_s']:.0f} | {f['rays_per_s'] / n / base:.2f} | {f['exchange_ms']:.1f} | {f['sum_ms']:.1f} "
            f"| {f['bytes'] / 1e6:.2f} |"
        )
    lines.append(f"\nGradients: {first['tables'] / 1e6:.2f} MB of hash tables, {first['networks'] / 1e6:.3f} MB of networks.\n")
    return "\n".join(lines) + "\n" + model(first["tables"] + first["networks"])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--worlds", default="1,2", help="numbers of processes")
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--warm", type=int, default=60, help="steps before, in which the number of rays settles")
    p.add_argument("--scene", type=Path, default=ROOT / "inputs/demo")
    p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    p.add_argument("overrides", nargs="*", metavar="key=value")
    args = p.parse_args()
    if args.worker:
        logging.getLogger("neus").setLevel(logging.ERROR)
        print(json.dumps(work(args.scene, args.steps, args.overrides, args.warm)))
        return
    if not args.scene.exists():
        make_demo(args.scene)
    words = ["--scene", str(args.scene.resolve()), "--steps", str(args.steps), "--warm", str(args.warm), *args.overrides]
    print(report({n: measure(n, words) for n in (int(w) for w in args.worlds.split(","))}))


if __name__ == "__main__":
    main()
