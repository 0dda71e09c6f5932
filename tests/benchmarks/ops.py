"""How long each operation takes: torch twin, Warp kernel, and on CUDA nerfacc and tiny-cuda-nn, side by side.

    python -m tests.benchmarks.ops [--device cpu|cuda] [--quick] [--repeat N] [--threads N] [--only march ...] [--json FILE]

A column that cannot run here is left empty, and the reason is said below the table.

Medians of interleaved runs in one process, first runs not counted. On the CPU everything is measured twice: as PyTorch
comes (freed memory goes back to the system, and every large tensor pays for fresh pages; idle threads spin), and as the
program runs (the heap is kept, idle threads sleep: `utils/device.py`, `run.py`), which makes twin and kernel faster.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from confs.model import OccupancyConfig, SDFConfig
from encoder.hashgrid import HashGrid, HashGridSpec
from models.estimators import OccupancyGrid
from models.proposal import PropNetEstimator
from models.sdf import SDFNetwork
from models.volrend import accumulate, composite, distortion, weights_from_alpha, weights_from_density
from utils.device import missing, setup_threads
from utils.rays import Rays, sphere_span

Runs = dict[str, Callable[[], object]]  # column -> one run
COLUMNS = ("torch", "warp", "nerfacc", "tinycudann")
STEP = 2 * math.sqrt(3) / 1024


def hash_ops(device: torch.device, quick: bool) -> dict[str, Runs]:
    n = 2**14 if quick else 2**17
    spec = HashGridSpec(n_levels=16, n_features=2, log2_size=19, base=16, top=2048)
    x, d_x = torch.rand(n, 3, device=device), torch.randn(n, 3, device=device)
    d_y = torch.randn(spec.width, n, device=device).T  # feature-major, as the field hands it back
    grids: dict[str, torch.nn.Module] = {b: HashGrid(spec, b, init=0.1).to(device) for b in ("torch", "warp", "tinycudann")}

    def once(grid: torch.nn.Module) -> object:
        with torch.no_grad():
            return grid(x)

    def back(grid: torch.nn.Module) -> object:
        return torch.autograd.grad(grid(x), list(grid.parameters()), d_y)

    def twice(grid: torch.nn.Module) -> object:
        p = x.clone().requires_grad_(True)
        y = grid(p)
        (slope,) = torch.autograd.grad(y, p, d_y, create_graph=True)
        return torch.autograd.grad((slope, y), list(grid.parameters()), (d_x, d_y))

    rows = {"forward": once, "forward + backward": back, "with second derivatives": twice}
    return {f"hash grid, {n} points: {name}": {b: lambda f=f, g=g: f(g) for b, g in grids.items()} for name, f in rows.items()}


def field_ops(device: torch.device, quick: bool) -> dict[str, Runs]:
    """The SDF network with normals as a training step runs it: the fused function against autograd taken twice."""
    n = 2**12 if quick else 2**14
    spec = HashGridSpec(n_levels=14, n_features=2, log2_size=18, base=16, top=1024)
    net = SDFNetwork(SDFConfig(hidden=64, layers=1), HashGrid(spec, init=0.1), 1.0).to(device)
    x = torch.rand(n, 3, device=device) * 2 - 1

    def run(backend: str) -> object:
        net.encoding.backend = backend
        out = net(x, spec.n_levels)
        loss = out.sdf.sum() + out.feature.sum() + ((out.grad.norm(dim=-1) - 1) ** 2).sum()
        return torch.autograd.grad(loss, list(net.parameters()))

    return {
        f"field with normals, {n} points, 14 levels, 2^18: forward + backward": {
            b: lambda b=b: run(b) for b in ("torch", "warp", "tinycudann")
        }
    }


def shell(res: int, share: float, device: torch.device) -> Tensor:
    """[1, res, res, res]: the cells nearest to a dented sphere, `share` of all."""
    c = (torch.arange(res, device=device) + 0.5) / res * 2 - 1
    x, y, z = torch.meshgrid(c, c, c, indexing="ij")
    away = ((x * x + y * y + z * z).sqrt() - 0.55 - 0.08 * torch.sin(5 * x) * torch.sin(4 * y + 1) * torch.sin(6 * z)).abs()
    return (away < away.flatten().kthvalue(int(share * res**3)).values)[None]


def march_ops(device: torch.device, quick: bool) -> dict[str, Runs]:
    n = 1024 if quick else 8192
    origins = 2.5 * torch.nn.functional.normalize(torch.randn(n, 3, device=device), dim=-1)
    target = torch.nn.functional.normalize(torch.randn(n, 3, device=device), dim=-1) * torch.rand(n, 1, device=device) ** (1 / 3)
    dirs = torch.nn.functional.normalize(target - origins, dim=-1)
    rays, jitter, grid = Rays(origins, dirs, *sphere_span(origins, dirs, 1.0)), torch.rand(n, device=device), shell(128, 0.03, device)
    grids = {b: OccupancyGrid(OccupancyConfig(resolution=128), 1.0, b).to(device) for b in ("torch", "warp", "nerfacc")}
    for one in grids.values():
        one.binaries = grid
    return {f"march, {n} rays, 128^3, 3 % occupied": {b: lambda one=one: one.sample(rays, STEP, jitter) for b, one in grids.items()}}


def composite_ops(device: torch.device, quick: bool) -> dict[str, Runs]:
    n = 1024 if quick else 8192
    counts = (torch.randn(n) * 10 + 16).round().clamp(0, 60).long().to(device)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    index, size = torch.repeat_interleave(counts), int(counts.sum())
    t_starts = 1.5 + STEP * (torch.arange(size, device=device) - offsets[:-1].repeat_interleave(counts))
    t_ends = t_starts + STEP
    alpha, values, d = torch.rand(size, device=device) ** 3, torch.rand(size, 3, device=device), torch.randn(n, 3, device=device)
    weights = weights_from_alpha(alpha, offsets)[0]
    leaves = [t.clone().requires_grad_(True) for t in (alpha, values, weights)]

    def both(backend: str) -> object:
        return torch.autograd.grad((composite(leaves[0], leaves[1], offsets, index, 1e-4, backend)[0] * d).sum(), leaves[:2])

    def weigh(backend: str) -> object:
        w = weights_from_alpha(leaves[0], offsets, 1e-4, backend)[0]
        return torch.autograd.grad((w * weights).sum(), leaves[0])

    def weigh_density(backend: str) -> object:
        w = weights_from_density(leaves[0] * 100, t_starts, t_ends, offsets, 1e-4, backend)[0]
        return torch.autograd.grad((w * weights).sum(), leaves[0])

    def add(backend: str) -> object:
        return torch.autograd.grad((accumulate(leaves[2], leaves[1], offsets, index, backend) * d).sum(), (leaves[2], leaves[1]))

    def distort(backend: str) -> object:
        return torch.autograd.grad((distortion(leaves[2], t_starts, t_ends, offsets, backend) * d[:, 0]).sum(), leaves[2])

    ours = ("torch", "warp")
    every = (*ours, "nerfacc")
    named = {
        "weights of opacities": (weigh, every),
        "weights of densities": (weigh_density, every),
        "accumulate": (add, every),
        "compositing (weights, colour)": (both, every),
        "distortion": (distort, ours),
    }
    return {
        f"{name}, {n} rays, {size} samples: forward + backward": {b: lambda f=f, b=b: f(b) for b in who} for name, (f, who) in named.items()
    }


def proposal_ops(device: torch.device, quick: bool) -> dict[str, Runs]:
    """Sampling by a proposal, whose density costs next to nothing: ours, which has no kernel, and nerfacc's."""
    from nerfacc import PropNetEstimator as TheirEstimator

    n = 1024 if quick else 8192
    near, far = torch.full((n,), 1.5, device=device), torch.full((n,), 3.5, device=device)

    def sigma(t_starts: Tensor, t_ends: Tensor) -> Tensor:
        return 30 * torch.exp(-(((t_starts + t_ends) / 2 - 2.3) ** 2) * 50)

    ours, theirs = PropNetEstimator(), TheirEstimator().to(device)
    runs: Runs = {
        "torch": lambda: ours.sampling([sigma], [64], 32, near, far, stratified=True, opaque_end=True),
        "nerfacc": lambda: theirs.sampling([sigma], [64], 32, n, 1.5, 3.5, stratified=True),
    }
    return {f"proposal sampling, {n} rays, 64 then 32 intervals": runs}


GROUPS = {"hash": hash_ops, "field": field_ops, "march": march_ops, "composite": composite_ops, "proposal": proposal_ops}
HEAPS = {"stock": ", as PyTorch comes", "kept": ", as the program runs"}


def measure(runs: Runs, repeat: int, device: torch.device, without: Sequence[str] = ()) -> tuple[dict[str, float], dict[str, str]]:
    """(median milliseconds of each column, why the others did not run); slow ones run less often, those of `without` never."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times: dict[str, list[float]] = {}
    failed = {name: reason for name in runs if (reason := "left out" if name in without else missing(name, device))}
    for turn in range(repeat + 1):
        for name, one in runs.items():
            if name in failed or sum(times.get(name, [])) > 8000:
                continue
            try:
                wait()
                begin = time.perf_counter()
                one()
                wait()
            except Exception as error:  # the other columns are worth having
                failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                times.pop(name, None)
                continue
            if turn:
                times.setdefault(name, []).append((time.perf_counter() - begin) * 1e3)
    return {name: statistics.median(t) for name, t in times.items()}, failed


def machine(device: torch.device) -> str:
    """What it ran on, in a line."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    )
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    return f"{gpu}{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def table(rows: dict[str, dict[str, float]], failed: dict[str, dict[str, str]]) -> str:
    """Markdown: milliseconds, how much faster Warp is than the twin, and below why a column is empty."""
    lines = [f"| operation | {' | '.join(f'{c} ms' for c in COLUMNS)} | torch / warp |", f"|---|{'---:|' * (len(COLUMNS) + 1)}"]
    for name, r in rows.items():
        cells = [f"{r[c]:.2f}" if c in r else "" for c in COLUMNS]
        ratio = f"{r['torch'] / r['warp']:.1f}" if {"torch", "warp"} <= r.keys() else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {ratio} |")
    reasons = {(column, reason): None for f in failed.values() for column, reason in f.items()}
    return "\n".join([*lines, "", *(f"{column}: {reason}" for column, reason in reasons)])


def measure_all(
    device: torch.device, quick: bool = False, repeat: int = 7, only: Sequence[str] = (), without: Sequence[str] = ()
) -> dict[str, dict]:
    """{"rows": {operation: {column: ms}}, "failed": {operation: {column: reason}}} of the groups `only` (none: all); a group may
    fail as a whole. without: columns left out."""
    rows: dict[str, dict[str, float]] = {}
    failed: dict[str, dict[str, str]] = {}
    torch.manual_seed(0)
    for group in only or list(GROUPS):
        try:
            operations = GROUPS[group](device, quick)
        except Exception as error:  # the other groups are worth having
            rows[group], failed[group] = {}, {"all": f"{type(error).__name__}: {error}"}
            continue
        for name, runs in operations.items():
            rows[name], failed[name] = measure(runs, repeat, device, without)
    return {"rows": rows, "failed": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="an eighth of the size")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores; on a shared machine compare with 1")
    parser.add_argument("--only", nargs="*", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--heap", choices=list(HEAPS), help="measure this setting of the CPU alone")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" or args.heap:
        setup_threads(args.threads, keep_heap=args.heap != "stock")
        found = measure_all(device, args.quick, args.repeat, args.only)
        print(f"{machine(device)}{HEAPS.get(args.heap, '')}\n\n{table(**found)}\n")
        if args.json:
            args.json.write_text(json.dumps(found))
        return
    for heap, policy in (
        ("stock", {}),
        ("kept", {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}),
    ):  # both are settled when a process starts
        command = [sys.executable, "-m", "tests.benchmarks.ops", *sys.argv[1:], "--heap", heap]
        if code := subprocess.run(command, env={**os.environ, **policy}).returncode:
            sys.exit(code)


if __name__ == "__main__":
    main()
