"""Ablations: scenes x recipes x seeds -> one table, resumable.

    python -m tests.benchmarks.recipes --scenes inputs/demo --recipes default smoothstep --seeds 1 2 3 --minutes 3
    python -m tests.benchmarks.recipes --scenes inputs/demo --recipes default pass-encoding --steps 2000
    python -m tests.benchmarks.recipes --scenes inputs/bunny --recipes default --judge "python judge.py {mesh} {truth} --scene {scene}"

A recipe is a line of RECIPES, or given as NAME:key=value,key=value. --steps instead of --minutes compares at equal steps, which a
busy machine does not disturb (the column of minutes then shows what each took). Each cell of the table is one run of run.py in
outputs/recipes/<scene>-<recipe>-<seed>-<budget>; a finished one is not run again, so the table can be continued and widened at
any time. The mesh is judged by `systems/mesh_eval.py` over the whole truth, or by a command that prints a JSON object
with `chamfer`, `normal` and perhaps `half_px`.
"""

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parents[2]
RECIPES = {
    "default": [],
    "linear": ["model.grid.interpolation=linear"],
    "smoothstep": ["model.grid.interpolation=smoothstep"],
    "softplus": ["model.sdf.activation=softplus"],
    "quadratic": ["model.sdf.activation=quadratic"],
    "relu": ["model.sdf.activation=relu"],
    "all-levels": ["model.grid.levels=12"],
    "14-levels": ["model.grid.n_levels=14", "model.grid.top=1024", "model.grid.levels=[4,14,0,0.5]"],
    "levels-0.15": ["model.grid.levels=[4,12,0,0.15]"],
    "levels-0.5": ["model.grid.levels=[4,12,0,0.5]"],
    "levels-0.8": ["model.grid.levels=[4,12,0,0.8]"],
    "curvature": ["loss.curvature=[0.02,0,0.3,1]"],
    "no-sphere-eikonal": ["loss.eikonal_points=0"],
    "eikonal-0.03": ["loss.eikonal=0.03"],
    "occupancy-96": ["model.occupancy.resolution=96"],
    "to-512-a-ray": ["model.samples_per_ray=[256,512,0.3,0.8]"],
    "128-a-ray": ["model.samples_per_ray=128"],
    "512-a-ray": ["model.samples_per_ray=512"],
    "1024-a-ray": ["model.samples_per_ray=1024"],
    "grid-lr-0.005": ["optim.lr_grid=0.005"],
    "half-samples": ["trainer.target_samples=8192"],
    "double-samples": ["trainer.target_samples=32768"],
    "refine-never": ["model.refine=1"],
    "refine-0.25": ["model.refine=0.25"],
    "refine-0.75": ["model.refine=0.75"],
    "decay-0.005": ["optim.decay=0.005"],
    "pass-encoding": ["model.sdf.pass_encoding=true"],
}


def run_one(scene: Path, recipe: str, changes: list[str], seed: int, args: argparse.Namespace) -> dict | None:
    """One cell: train unless it is done, judge the mesh; None when the run failed."""
    name = f"{scene.name}-{recipe}-{seed}-" + (f"{args.steps}steps" if args.steps else f"{args.minutes:g}")
    folder = ROOT / args.out / "recipes" / name
    result = folder / "cell.json"
    if result.exists():
        return json.loads(result.read_text())
    budget = [f"trainer.max_steps={args.steps}"] if args.steps else [f"trainer.max_minutes={args.minutes}", "trainer.max_steps=1000000"]
    words = ["--config", args.config, "--train", f"dataset.root_dir={scene}", *budget, "name=recipes",
             f"trainer.outputs_dir={args.out}", f"trainer.trial_name={name}", f"seed={seed}", "dataset.test_steps=1", "trainer.test_share=0", "trainer.val_minutes=0", *changes]  # fmt: skip
    done = subprocess.run([sys.executable, "run.py", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        tqdm.write(f"{name} failed:\n" + done.stdout[-600:])
        return None
    test = json.loads((folder / "test/metrics.json").read_text())
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    cell = {
        "psnr": test["psnr"],
        "psnr_masked": test["psnr_masked"],
        "steps": last["step"],
        "inv_s": last.get("inv_s"),
        "minutes": last["seconds"] / 60,
    }
    cell |= judge(folder / "mesh/mesh.ply", scene, args.judge)
    result.write_text(json.dumps(cell))
    return cell


def judge(mesh: Path, scene: Path, command: str | None) -> dict:
    truth = scene / "gt_mesh.ply"
    if not truth.exists():
        return {}
    if command:
        out = subprocess.run(
            shlex.split(command.format(mesh=mesh, truth=truth, scene=scene)), cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        found = json.loads(out[out.index("{") : out.rindex("}") + 1])
        return {"chamfer": found["chamfer"], "normal": found["normal"], "half_px": found.get("half_px")}
    own = json.loads((mesh.parent / "metrics.json").read_text())
    return {"chamfer": own["chamfer"], "normal": own["normal_consistency"]}


def table(cells: dict[tuple[str, str], list[dict]]) -> str:
    """Markdown: mean over the seeds (and the spread of the Chamfer distance)."""
    lines = [
        "| scene | recipe | minutes | seeds | half px | Chamfer | normals | PSNR | masked | steps |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]

    def mean(rows: list[dict], key: str, digits: int) -> str:
        values = [r[key] for r in rows if r.get(key) is not None]
        if not values:
            return ""
        spread = f" ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 and key in ("half_px", "chamfer") else ""
        return f"{statistics.mean(values):.{digits}f}{spread}"

    for (scene, recipe), rows in cells.items():
        figures = [mean(rows, *k) for k in (("half_px", 2), ("chamfer", 5), ("normal", 4), ("psnr", 2), ("psnr_masked", 2), ("steps", 0))]
        lines.append(f"| {scene} | {recipe} | {mean(rows, 'minutes', 1)} | {len(rows)} | {' | '.join(figures)} |")
    return "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--scenes", nargs="+", type=lambda s: Path(s).resolve(), default=[ROOT / "inputs/demo"])
    p.add_argument("--recipes", nargs="+", default=["default"], help=", ".join(RECIPES) + ", or NAME:key=value,key=value")
    p.add_argument("--seeds", nargs="+", type=int, default=[1])
    p.add_argument("--minutes", type=float, default=3)
    p.add_argument("--steps", type=int, help="a budget of steps instead of minutes")
    p.add_argument("--config", default="confs/dtu-wmask.yaml")
    p.add_argument("--out", default="outputs")
    p.add_argument("--judge")
    args = p.parse_args()
    cells: dict[tuple[str, str], list[dict]] = {}
    grid = [(scene, recipe, seed) for scene in args.scenes for recipe in args.recipes for seed in args.seeds]
    for scene, word, seed in tqdm(grid, desc="recipes"):
        recipe, colon, given = word.partition(":")
        if not colon and recipe not in RECIPES:
            p.error(f"unknown recipe {recipe}; one of {', '.join(RECIPES)}, or NAME:key=value")
        cell = run_one(scene, recipe, re.split(r",(?![^[]*\])", given) if colon else RECIPES[recipe], seed, args)
        if cell:
            cells.setdefault((scene.name, recipe), []).append(cell)
    print(table(cells))


if __name__ == "__main__":
    main()
