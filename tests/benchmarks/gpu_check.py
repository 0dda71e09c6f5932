"""The first minutes on a card: tests, operations, a step and a training, in one table that says whether all hold.

    make gpu-check        or        python -m tests.benchmarks.gpu_check [--device cuda|cpu] [--steps 20000] [--out FILE]
                                        [--compile-nerfacc] [--only tests operations step training] [key=value ...]

Nothing is downloaded or installed, and it takes under 8 minutes. Each part runs in a process of its own with a time limit, so
that a part that fails is a row that says so. Exit status 0 when every judged row holds, else 1. nerfacc's kernels are compared
only where they are compiled already: `--compile-nerfacc` lets nvcc compile them first, for some minutes more.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import argparse
import importlib.metadata
import importlib.util
import json
import logging
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
MINUTES = 8.0
LIMITS = {"tests": 200, "operations": 90, "step": 80, "training": 330}  # seconds of a part on its own
NEEDED = ("torch", "numpy", "omegaconf", "nerfacc", "trimesh", "cv2", "mcubes", "imageio", "tensorboard", "tqdm", "PIL", "scipy", "pytest")
CPU = {"psnr": 32.7, "chamfer": 0.00145, "steps": 1520}  # the demo on two CPU cores in two minutes
SLACK = {"psnr": 0.3, "chamfer": 1.15}  # dB; times
LAUNCHES, WAITS = 60, 0  # of a step between two refreshes of the occupancy: the aim for a card
SLOWER = 1.25  # times as long as the twin a kernel may take
FASTER = ("hash grid", "field", "march")  # operations whose kernel must beat the twin
MANY_SAMPLES = ("trainer.target_samples=262144",)  # of a step on a card, as in the presets


@dataclass(frozen=True)
class Row:
    """A line of the table; holds None: measured and not judged."""

    part: str
    measured: str
    expected: str = ""
    holds: bool | None = None


@dataclass(frozen=True)
class Options:
    """What is checked, and where. `overrides` are options of the program for the step and the training."""

    device: str = "cuda"
    steps: int = 20000  # of the training
    folder: Path = Path("outputs/gpu-check")  # for run folders and the report of the tests
    scene: Path = Path("inputs/demo")  # the demo scene, made where it is not there
    timed_steps: int = 100
    warm_steps: int = 150
    quick: bool = False  # small operations
    tests: tuple[str, ...] = ("tests",)
    nerfacc: bool = False  # compare with nerfacc, compiling its kernels if need be
    overrides: tuple[str, ...] = ()

    def words(self) -> str:
        return json.dumps({k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()})

    @staticmethod
    def read(words: str) -> "Options":
        found = json.loads(words)
        return Options(
            **{**found, "folder": Path(found["folder"]), "scene": Path(found["scene"])}
            | {name: tuple(found[name]) for name in ("tests", "overrides")}
        )


# ------------------------------------------------------------------ where it runs


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def driver() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def title(device: str) -> str:
    """The device's name and the versions, in a line."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else "CPU"
    packages = ", ".join(f"{label} {version(package)}" for label, package in (("Warp", "warp-lang"), ("nerfacc", "nerfacc")))
    return (
        f"{name}, torch {torch.__version__} (CUDA {torch.version.cuda}), driver {driver()}, {packages}, "
        f"tiny-cuda-nn {version('tinycudann')}, Python {sys.version.split()[0]}"
    )


def surroundings(options: Options) -> list[Row]:
    """Whether the packages and the device are there, and which backends run. A row that does not hold makes the rest vain."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        return [Row("packages", f"missing: {', '.join(absent)}", "those of pyproject.toml", False)]
    import torch

    from utils.device import BACKENDS, choose, missing, nerfacc_compiled, warp_available

    if options.device == "cuda" and not torch.cuda.is_available():
        return [Row("device", f"torch {torch.__version__} sees no CUDA device", "a CUDA device", False)]
    device = torch.device(options.device)
    chosen = ", ".join(f"{operation} {choose(operation, 'auto', device)}" for operation in BACKENDS)
    reason = warp_available()
    rows = [Row("backends", chosen + (f" (no Warp: {reason}; the torch twins run)" if reason else ""))]
    if options.device == "cuda":
        compiled = options.nerfacc or nerfacc_compiled()
        nerfacc = missing("nerfacc", device) if compiled else "kernels not compiled; --compile-nerfacc lets nvcc do it, for minutes"
        rows += [Row(name, reason or "runs") for name, reason in (("nerfacc", nerfacc), ("tiny-cuda-nn", missing("tinycudann", device)))]
    return rows


# ------------------------------------------------------------------ the parts


def check_tests(options: Options) -> list[Row]:
    """`pytest -m gpu`."""
    options.folder.mkdir(parents=True, exist_ok=True)
    report = options.folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", f"--junitxml={report}", "-p", "no:cacheprovider", *options.tests]
    command += ["--continue-on-collection-errors", *([] if options.nerfacc else ["-k", "not nerfacc"])]
    subprocess.run(command, cwd=ROOT, check=False)
    return [row_of_tests(report, options.device)]


def row_of_tests(report: Path, device: str) -> Row:
    """The row of a JUnit report. On CUDA some tests must have run."""
    if not report.exists():
        return Row("pytest -m gpu", "pytest wrote no report", "all pass", False)
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    passed = len(cases) - len(bad) - len(skipped)
    names = ", ".join(f"{case.get('classname', '').rsplit('.', 1)[-1]}::{case.get('name')}" for case in bad[:20])
    measured = f"{passed} passed, {len(bad)} failed, {len(skipped)} skipped" + (f": {names}" if bad else "")
    return Row("pytest -m gpu", measured, "all pass", None if device == "cpu" and not bad else not bad and passed > 0)


def check_operations(options: Options) -> list[Row]:
    """The table of `tests.benchmarks.ops`, an operation a row."""
    import torch

    from tests.benchmarks import ops
    from utils.device import missing, setup_threads

    setup_threads()
    device = torch.device(options.device)
    without = () if options.nerfacc else ("nerfacc",)
    found = ops.measure_all(device, options.quick, 3 if options.quick else 7, without=without)
    lacking = {column: missing(column, device) for column in ops.COLUMNS if column not in without}
    rows = []
    for name, times in found["rows"].items():
        broken = {c: why for c, why in found["failed"][name].items() if c not in without and why != lacking.get(c)}
        measured = ", ".join(f"{column} {ms:.2f} ms" for column, ms in times.items())
        measured = "; ".join([measured, *(f"{column} failed: {why}" for column, why in broken.items())]).strip("; ")
        limit = 1.0 if name.startswith(FASTER) else SLOWER
        expected, holds = "", None if not broken else False
        if options.device == "cuda" and "warp" in times and "torch" in times:
            expected = f"warp at most {limit:g} x torch"
            holds = not broken and times["warp"] <= limit * times["torch"]
        rows.append(Row(name, measured, expected or "no failure" * bool(broken), holds))
    return rows


def check_step(options: Options) -> list[Row]:
    """A training step, its parts, launches and waits."""
    import torch

    from process_data.demo import make_demo
    from tests.benchmarks.step import measure
    from utils.device import setup_threads

    setup_threads()
    make_demo(options.scene)
    on_card = options.device == "cuda"
    overrides = [*(MANY_SAMPLES if on_card else ()), *options.overrides]
    found = measure(options.scene, torch.device(options.device), options.timed_steps, overrides, options.warm_steps)
    ratio = found["ms"] / found["floor_ms"]
    rows = [
        Row("step", f"{found['ms']:.2f} ms, {found['samples']:,.0f} samples, {found['samples_per_s']:,.0f} samples/s"),
        Row("step: floor", f"{found['floor_ms']:.2f} ms ({found['floor']}); the step takes {ratio:.1f} x"),
    ]
    rows += [Row(f"step: {part}", f"{ms:.2f} ms") for part, ms in found["parts"].items()]
    aims = {"launches": LAUNCHES, "waits": WAITS} if on_card and torch.version.cuda else {}
    uncounted = [what for what in aims if what not in found["counts"]]
    rows += [Row(f"step: {what}", "not counted: the profiler sees none", f"at most {aims[what]}", False) for what in uncounted]
    for what, n in found["counts"].items():
        aim = aims.get(what)
        rows.append(Row(f"step: {what}", f"{n:.1f}", "" if aim is None else f"at most {aim}", None if aim is None else n <= aim))
    return rows


def check_training(options: Options) -> list[Row]:
    """A training on the demo scene, with the figures of the CPU beside."""
    import torch

    from process_data.demo import make_demo
    from systems import run
    from utils.log import setup_logging

    setup_logging()
    make_demo(options.scene)
    on_card, trial = options.device == "cuda", time.strftime("%Y%m%d-%H%M%S")
    words = [
        "seed=1",
        f"dataset.root_dir={options.scene}",
        f"trainer.outputs_dir={options.folder}",
        f"trainer.trial_name={trial}",
        f"trainer.device={options.device}",
        f"trainer.max_steps={options.steps}",
        "trainer.max_minutes=4",
        *(MANY_SAMPLES if on_card else ()),
        *options.overrides,
    ]
    if on_card:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    code = run.execute(run.prepare(str(ROOT / "confs/demo.yaml"), None, words), train=True, test=True, mesh=True, film=False)
    seconds = time.perf_counter() - began
    if code:
        return [Row("training", f"ended with {code}", "0", False)]
    return training_rows(options.folder / "demo" / trial, options.steps, seconds, peak_memory(on_card))


def peak_memory(on_card: bool) -> str:
    """Most memory held so far: by torch on the card, or by the process."""
    if on_card:
        import torch

        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB used, {torch.cuda.max_memory_reserved() / 2**30:.2f} GiB reserved"
    import resource

    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"


def training_rows(folder: Path, steps: int, seconds: float, memory: str) -> list[Row]:
    """Rows on a finished run folder; PSNR and Chamfer are judged where at least as many steps were asked for as the CPU does."""
    from utils.checkpoint import load_checkpoint

    state = load_checkpoint(folder / "ckpt/last.pt")
    test, mesh = (json.loads((folder / part / "metrics.json").read_text()) for part in ("test", "mesh"))
    done, trained, skipped = int(state["step"]), float(state["trained_seconds"]), int(state["skipped"])
    judged, allowed = steps >= CPU["steps"], max(5, steps // 1000)  # a few until the scale of float16 gradients is found
    psnr, chamfer = float(test["psnr"]), float(mesh["chamfer"])
    least, most = CPU["psnr"] - SLACK["psnr"], CPU["chamfer"] * SLACK["chamfer"]
    known = f"CPU at {CPU['steps']} steps"
    return [
        Row("training: steps", f"{done} in {trained:.1f} s ({1000 * trained / max(done, 1):.2f} ms each)", f"{steps}", done >= steps),
        Row("training: steps skipped", f"{skipped}", f"at most {allowed}", skipped <= allowed),
        Row(
            "training: held-out PSNR", f"{psnr:.2f} dB", f"at least {least:.1f} ({known}: {CPU['psnr']})", psnr >= least if judged else None
        ),
        Row(
            "training: Chamfer",
            f"{chamfer:.5f}",
            f"at most {most:.5f} ({known}: {CPU['chamfer']:.5f})",
            chamfer <= most if judged else None,
        ),
        Row("training: peak memory", memory),
        Row("training, tests and mesh", f"{seconds:.0f} s"),
    ]


# ------------------------------------------------------------------ all of it

PARTS: dict[str, Callable[[Options], list[Row]]] = {
    "tests": check_tests,
    "operations": check_operations,
    "step": check_step,
    "training": check_training,
}


def here(part: str, options: Options) -> list[Row]:
    """The rows of a part in this process."""
    try:
        return PARTS[part](options)
    except Exception as error:  # the other parts are worth having
        logging.getLogger("neus").exception("%s", part)
        first = str(error).splitlines()[0] if str(error) else ""
        return [Row(part, f"{type(error).__name__}: {first}", "no error", False)]


def apart(part: str, options: Options) -> list[Row]:
    """The rows of a part in a process of its own, killed with its children at the limit."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "tests.benchmarks.gpu_check", "--part", part, "--options", options.words(), "--out", str(out)]
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=sys.stderr)
        try:
            code = process.wait(LIMITS[part])
        except subprocess.TimeoutExpired:
            return [Row(part, f"stopped after {LIMITS[part]} s", f"{LIMITS[part]} s", False)]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if not out.exists():
            return [Row(part, f"the process ended with {code}, see above", "0", False)]
        return [Row(**row) for row in json.loads(out.read_text())]


def check(options: Options, parts: Sequence[str] = tuple(PARTS), run: Callable[[str, Options], list[Row]] = apart) -> list[Row]:
    """All rows. run: how a part is run, `apart` or `here` (for a device that exists in this process alone)."""
    began = time.perf_counter()
    rows = surroundings(options)
    if any(row.holds is False for row in rows):
        return rows
    if not options.nerfacc and any(row == Row("nerfacc", "runs") for row in rows):
        options = replace(options, nerfacc=True)
    compiled = time.perf_counter() - began  # by nvcc or by Warp's start, once
    for part in parts:
        rows += run(part, options)
    seconds = time.perf_counter() - began - compiled
    return [*rows, Row("all", f"{seconds:.0f} s", f"at most {60 * MINUTES:.0f} s", seconds <= 60 * MINUTES)]


def markdown(rows: list[Row]) -> str:
    """The table."""
    say = {True: "yes", False: "**NO**", None: ""}
    cell = lambda text: text.replace("|", "\\|").replace("\n", " ")  # noqa: E731
    lines = [f"| {cell(r.part)} | {cell(r.measured)} | {cell(r.expected)} | {say[r.holds]} |" for r in rows]
    return "\n".join(["| part | measured | expected | holds |", "|---|---|---|---|", *lines])


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--steps", type=int, default=Options.steps, help="of the training")
    parser.add_argument("--scene", type=Path, default=Options.scene, help="the demo scene, made where it is not there")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu-check.md"), help="the table is written here too")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="an eighth of the size of the operations")
    parser.add_argument("--compile-nerfacc", action="store_true", help="let nvcc compile nerfacc's kernels, if they are not")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--options", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options of the program for the step and the training")
    args = parser.parse_args(words)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.part:
        args.out.write_text(json.dumps([asdict(row) for row in here(args.part, Options.read(args.options))]))
        return 0
    folder = args.out.parent.resolve() / "gpu-check"
    options = Options(
        args.device,
        args.steps,
        folder,
        args.scene.resolve(),
        quick=args.quick,
        nerfacc=args.compile_nerfacc,
        overrides=tuple(args.overrides),
    )
    rows = check(options, args.only)
    text = f"GPU check: {title(args.device)}\n\n{markdown(rows)}\n"
    args.out.write_text(text)
    print(f"\n{text}")
    return int(any(row.holds is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
