"""Many scenes: `python -m systems.sweep CONFIG --scenes A B --seeds 1 2` trains, tests and meshes a grid of runs.

CONFIG is a config, or a list of published scenes (confs/benchmarks). The same command again goes on where it was stopped.
"""

import argparse
import logging
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from systems.cli import Parser
from systems.sweep_plan import Benchmark, Run, grid, read_benchmark, state
from systems.sweep_pool import PROGRAM, Outcome, Pool, slots
from utils.errors import UserError, one_line
from utils.files import finite_numbers, read_facts
from utils.log import setup_logging

log = logging.getLogger("neus")
OPTION = re.compile(r"[a-z_]+(\.[a-z0-9_]+)*=")
EXAMPLES = """examples:
  python -m systems.sweep confs/dtu.yaml --scenes inputs/scan24 inputs/scan65 --seeds 1 2 3 trainer.max_minutes=10
  python -m systems.sweep confs/benchmarks/dtu.yaml --data /data/DTU --scenes scan24 scan65
  python -m systems.sweep confs/benchmarks/dtu.yaml --data /data/DTU --list          what is finished; starts nothing
  python -m systems.sweep confs/benchmarks/nerf-synthetic.yaml --data DIR --slurm "slurm_partition=gpu,timeout_min=120"

exit code: 0 when all runs are finished, 1 when one failed, 128 + signal when it was stopped, 2 for a wrong command"""


def parser() -> Parser:
    p = Parser(
        prog="systems.sweep", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    p.add_argument("benchmark", metavar="CONFIG", help="a config, or a list of published scenes: confs/benchmarks/*.yaml")
    p.add_argument(
        "--scenes", nargs="+", metavar="SCENE", help="folders of scenes, or their names below --data; default: those of the list"
    )
    p.add_argument("--seeds", nargs="+", type=int, metavar="N", help="one run each; default: 1")
    p.add_argument("--data", type=Path, metavar="DIR", help="folder that holds the scenes")
    p.add_argument("--config", type=Path, metavar="YAML", help="train a list of scenes with this config instead of its own")
    p.add_argument("--truth", type=Path, metavar="DIR", help="the data set's true surfaces: judge each mesh as the list says")
    p.add_argument("--name", help="folder of the runs below outputs/; default: the name of the list or config")
    p.add_argument("--jobs", type=int, metavar="N", help="runs at once; default: one on each CUDA card, or one on the CPU")
    p.add_argument("--memory", type=float, default=4.0, metavar="GB", help="memory that a run takes: no more are started than fit (4)")
    p.add_argument("--no-video", action="store_true", help="no video of each run")
    p.add_argument("--list", action="store_true", help="say how far each run is, and the table; start nothing")
    p.add_argument(
        "--slurm", nargs="?", const="", metavar="KEY=VALUE,...", help="hand the runs to SLURM; parameters of submitit's executor"
    )
    return p


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """(flags, overrides). Raises UserError."""
    chosen = [i for i, word in enumerate(words) if OPTION.match(word) and words[max(i - 1, 0)] != "--slurm"]
    overrides = [words[i] for i in chosen]
    args = parser().parse_args([word for i, word in enumerate(words) if i not in chosen])
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs: at least 1, got {args.jobs}")
    if not args.memory > 0:
        raise UserError(f"--memory: a number of gigabytes above 0, got {args.memory}")
    return args, overrides


def plan(args: argparse.Namespace, overrides: list[str]) -> tuple[Benchmark, list[Run]]:
    """The list of scenes and the runs that the command line asks for. Raises UserError."""
    bench = read_benchmark(Path(args.benchmark))
    name = args.name
    if bench.scenes:
        name = name or "-".join(["benchmark", bench.path.stem, *([args.config.stem] if args.config else [])])
    elif args.config:
        raise UserError(f"--config goes with a list of scenes (confs/benchmarks), and {bench.path} is a config")
    bench = replace(bench, config=args.config or bench.config)
    scenes = args.scenes or bench.scenes
    if not scenes:
        raise UserError("which scenes? give --scenes FOLDER ..., or a list of confs/benchmarks")
    runs = grid(bench, scenes, args.seeds or bench.seeds, args.data, name, overrides, not args.no_video, args.truth)
    return bench, runs


def table(runs: Sequence[Run]) -> None:
    """Log the figures of runs, and write them beside their folders as table.md and table.csv."""
    if not runs:
        return
    try:
        from systems.eval_table import write_table  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        from utils.summary import summary

        for run in runs:
            log.info("%s: %s", run.label, summary(run.folder).replace("\n", "; "))
    else:
        write_table([str(run.folder) for run in runs], str(runs[0].folder.parent))
    log.info("%s", means(runs))


def means(runs: Sequence[Run]) -> str:
    """The mean over scenes of each scene's mean over seeds, of the figures that all runs have."""
    figures = []
    for run in runs:
        found: dict[str, float] = {}
        for path, keys in (("test/metrics.json", ("psnr", "psnr_masked", "ssim", "lpips")), ("mesh/metrics.json", ("chamfer", "overall"))):
            found |= finite_numbers(read_facts(run.folder / path), keys)
        figures.append((run.scene, found))
    common = [key for key in figures[0][1] if all(key in found for _, found in figures)]
    scenes = list(dict.fromkeys(scene for scene, _ in figures))
    mean = {key: statistics.fmean(statistics.fmean(f[key] for s, f in figures if s == scene) for scene in scenes) for key in common}
    shown = ", ".join(f"{key} {value:.4g}" for key, value in mean.items()) or "no figure that all runs have"
    return f"mean over {len(scenes)} scenes, {len(runs)} runs: {shown}"


def listing(runs: Sequence[Run]) -> int:
    """`--list`: the state of each run and the table of those that are finished."""
    states = {}
    for run in runs:
        try:
            states[run] = state(run)
        except UserError as error:
            states[run] = f"damaged ({error})"
        log.info("%-9s %s -> %s", states[run], run.label, run.folder)
    table([run for run in runs if states[run] == "finished"])
    return 0


def report(outcome: Outcome, total: int) -> int:
    """Log what became of the runs; returns the exit code."""
    table(outcome.finished)
    log.info("%d of %d runs are finished", len(outcome.finished), total)
    for run, reason in outcome.failed:
        log.error("failed: %s: %s", run.label, reason)
    if outcome.signal:
        log.info("stopped; the same command goes on: %s", ", ".join(run.label for run in outcome.stopped) or "nothing is left")
        return 128 + outcome.signal
    return 1 if outcome.failed else 0


def main(words: Sequence[str] | None = None, program: Sequence[str] = PROGRAM) -> int:
    """program: the command that trains, run.py unless a test gives another."""
    setup_logging()
    try:
        args, overrides = parse(sys.argv[1:] if words is None else words)
        bench, runs = plan(args, overrides)
        if bench.protocol:
            log.info("protocol: %s", bench.protocol)
        if args.list:
            return listing(runs)
        device, threads = runs[0].device, runs[0].threads
        if args.slurm is not None:
            from systems.sweep_slurm import submit

            return submit(runs, args.slurm, device, threads, args.memory)
        from torch.cuda import device_count

        pool = Pool(slots(device, args.jobs, threads, device_count()), args.memory, program)
        log.info("%d runs, %d at once; figures and pictures in %s", len(runs), len(pool.slots), runs[0].folder.parent)
        return report(pool.work(runs), len(runs))
    except UserError as error:
        log.error("error: %s", one_line(str(error)))
        return 2


if __name__ == "__main__":
    sys.exit(main())
