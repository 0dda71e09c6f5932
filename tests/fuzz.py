"""Spoilt scenes, configs and checkpoints, in seeded variety, through the real command line: python -m tests.fuzz --seed 1 --cases 200

With --kinds commands what the other commands read is spoilt: light maps, photographs, networks, meshes, lists of scenes, run folders.

Each case runs in a forked child with limits of time and memory, among files that must stay as they are (tests/fuzzing/box.py). The program
may do its work, or refuse in one line that starts with "error: "; a traceback, a hang, a crash, a loss that is not finite, more than 2 GiB
or a file touched elsewhere is a failure. A case depends on (kinds, seed, its number) alone: --only 17 repeats it, --keep leaves its box.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork of a process with a pool of threads hangs

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import cv2
import torch

import run
from tests.fuzzing import box as boxes
from tests.fuzzing import commands, configs, runs, scenes
from tests.systems.test_train import tiny_words

FAMILIES = {"scene": scenes.case, "config": configs.case, "run": runs.case}
KINDS = {"files": list(FAMILIES), "commands": list(commands.FAMILIES)}  # the numbers of their cases are apart
LIMITS = [
    "trainer.threads=1", "trainer.max_skipped=1", "trainer.log_every=1", "trainer.val_minutes=0", "export.texture=false", "dataset.test_scale=0.5",
    "trainer.device=cpu",
]  # fmt: skip
SMALL = [
    "model.background_field.log2_size=10",
    "model.background_field.n_levels=2",
    "model.background_field.levels=2",
    "model.sampling.log2_size=8",
]


def words_of(family: str, words: list[str], box: Path) -> list[str]:
    """The words of a case with tiny sizes before its own; a checkpoint has them already."""
    given = {word.partition("=")[0] for word in words if "=" in word}
    steps = "trainer.max_steps=4" if family == "run" else "trainer.max_steps=2"
    method = next((word.partition("=")[2] for word in words if word.startswith("model.name=")), "neus")
    tiny = [] if family == "run" else [*tiny_words(method if method in ("neus", "nerf", "nero-shape") else "neus"), *SMALL]
    named = [f"trainer.outputs_dir={box / 'outputs'}"] if family != "run" or "--train" not in words else []
    tail = [] if family == "run" and "--train" not in words else [steps, "trainer.finish=false"]
    if family == "scene":
        tail += ["name=n", "trainer.trial_name=t"]
    flags = [word for word in words if "=" not in word or word.startswith("--")]
    own = [word for word in words if word not in flags]
    front = [word for word in (*tiny, *LIMITS, *named, *tail) if word.partition("=")[0] not in given]
    return [*flags, *front, *own]


def prepare(sources: Path, kinds: str = "files") -> None:
    """Valid scenes and finished runs; what is imported and compiled on the way serves every case."""
    scenes.write_all(sources)
    for method in ("neus", "nerf"):
        more = [
            f"model.name={method}",
            f"trainer.outputs_dir={sources / 'runs/out'}",
            f"name={method}",
            "trainer.trial_name=t",
            "dataset.test_steps=2",
        ]
        words = [*tiny_words(method), *SMALL, *LIMITS, "trainer.max_steps=2", f"dataset.root_dir={sources / 'dtu'}", *more]
        words += ["export.resolution=16", "export.coarse=16", "export.min_faces=1", f"trainer.finish={str(method == 'neus').lower()}"]
        if run.main(["--train", "--no-video", *words]):
            raise SystemExit("a valid scene is not trained")
        shutil.move(sources / "runs/out" / method / "t", sources / "runs" / method)
    if kinds == "commands":
        commands.prepare(sources, LIMITS)


def one(kinds: str, seed: int, number: int, sources: Path, box: Path, limit: float) -> tuple[str, str, list[str], boxes.Ended]:
    """(family, what was spoilt, failures, how it ended) of a case."""
    family = KINDS[kinds][number % len(KINDS[kinds])]
    rng = random.Random(f"{seed} {number}")
    boxes.make_box(box)
    if kinds == "files":
        words, what = FAMILIES[family](sources, box, rng)
        main, words = run.main, words_of(family, words, box)
    else:
        main, words, what = commands.FAMILIES[family](sources, box, rng)
    before = boxes.watched(box)
    ended = boxes.run_in_child(main, words, box, limit)
    return family, what, boxes.judge(ended, box, before, family not in ("table", "sweep")), ended


def fuzz(kinds: str, seed: int, numbers: list[int], limit: float, keep: Path | None = None, verbose: bool = False) -> int:
    """Run the cases; prints a line for each failure and a summary. Returns the number of failures."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    count: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        sources = Path(folder) / "sources"
        _quietly(lambda: prepare(sources, kinds), Path(folder) / "prepare.txt")
        began = time.perf_counter()
        for number in numbers:
            box = Path(folder) / f"box{number}"
            family, what, failures, ended = one(kinds, seed, number, sources, box, limit)
            count[family, "failed" if failures else "done" if ended.code == 0 else "refused"] += 1
            if failures or verbose:
                last = ([line for line in ended.text.splitlines() if line.strip()] or [""])[-1]
                print(
                    ascii(
                        f"{'FAIL' if failures else 'ok'} --kinds {kinds} --seed {seed} --only {number} {family}: {what[:200]} -> {'; '.join(failures) or last[:300]}"
                    )[1:-1],
                    flush=True,
                )
            if keep and failures:
                boxes.clear(keep / f"{seed}-{number}")
                shutil.copytree(box, keep / f"{seed}-{number}", symlinks=True, ignore=_pipes)
            boxes.clear(box)
        seconds = time.perf_counter() - began
    for family in KINDS[kinds]:
        print(f"{family}: " + ", ".join(f"{count[family, how]} {how}" for how in ("done", "refused", "failed")))
    print(f"{len(numbers)} cases in {seconds:.0f} s, seed {seed}: {sum(n for (_, how), n in count.items() if how == 'failed')} failed")
    return sum(n for (_, how), n in count.items() if how == "failed")


def _pipes(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (Path(folder, name).is_file() or Path(folder, name).is_dir())]


def _quietly(call, log: Path) -> None:
    """Run it with everything that it prints in a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(target, 1)
    os.dup2(target, 2)
    try:
        call()
    except BaseException:
        os.write(kept[1], log.read_bytes()[-3000:])
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--kinds", choices=list(KINDS), default="files", help="files: scenes, configs, checkpoints (default); commands: the others"
    )
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--cases", type=int, default=200)
    p.add_argument("--first", type=int, default=0, help="number of the first case")
    p.add_argument("--only", type=int, nargs="*", help="numbers of the cases to run")
    p.add_argument("--family", choices=[*KINDS["files"], *KINDS["commands"]], help="only cases of this family")
    p.add_argument("--limit", type=float, default=boxes.LIMIT, help="seconds a case")
    p.add_argument("--keep", type=Path, help="folder for the boxes of failures")
    p.add_argument("--verbose", action="store_true", help="a line for every case")
    a = p.parse_args()
    numbers = a.only or list(range(a.first, a.first + a.cases))
    if a.family:
        kinds = next(kinds for kinds, families in KINDS.items() if a.family in families)
        if kinds != a.kinds:
            p.error(f"--family {a.family} goes with --kinds {kinds}")
        numbers = [n for n in numbers if KINDS[kinds][n % len(KINDS[kinds])] == a.family]
    return 1 if fuzz(a.kinds, a.seed, numbers, a.limit, a.keep, a.verbose) else 0


if __name__ == "__main__":
    sys.exit(main())
